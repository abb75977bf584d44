"""The results file: with h5py, xarray and `show`, and while it grows."""

import shlex
import subprocess
import sys

import h5py
import numpy as np
import pytest
import xarray as xr
import yaml
from conftest import FAST, command, mpirun

from genfl_mpi.analysis import summary
from genfl_mpi.cli import main
from genfl_mpi.config.loading import load
from genfl_mpi.federation.worker import Worker
from genfl_mpi.mpi import launchers
from genfl_mpi.results.layout import CLIENTS, GENERATED, ROUNDS
from genfl_mpi.results.reader import digests, open_results
from genfl_mpi.results.writer import Writer
from genfl_mpi.util.errors import UserError


@pytest.fixture
def file(tiny, tmp_path):
    assert main([*tiny, "rounds=3"]) == 0
    return tmp_path / "results/genfl_seed1.h5"


def test_h5py_reads_every_table(file):
    with h5py.File(file) as data:
        rounds, clients, generated = data["rounds"], data["clients"], data["generated"]
        assert data["finished"][0] == 255
        assert rounds["round"][:].tolist() == [1, 2, 3]
        assert all(len(rounds[name]) == 3 for name in ROUNDS) and rounds["accuracy_per_class"].shape == (
            3,
            10,
        )
        assert rounds["accuracy"][:] == pytest.approx(
            rounds["accuracy_per_class"][:].mean(1)
        )  # classes of equal size
        assert (rounds["kappa1"][:] + rounds["kappa2"][:]).tolist() == [1, 1, 1]
        assert (
            all(len(clients[name]) == 9 for name in CLIENTS)
            and clients["round"][:].tolist() == [1] * 3 + [2] * 3 + [3] * 3
        )
        assert clients["rho"][:].reshape(3, 3).sum(1) == pytest.approx([1, 1, 1])
        sizes = np.diff(data["partition/pointers"][:])
        assert np.array_equal(clients["samples"][:], sizes[clients["client"][:]])
        assert all(len(generated[name]) == 20 for name in GENERATED), (
            "one image a class in the first two rounds"
        )
        assert rounds["images"][:].tolist() == [10, 20, 20]
        assert b"digit" in b" ".join(generated["prompt"][:])
        resolved = yaml.safe_load(data["config"].attrs["resolved"])
        assert (
            resolved["runtime"]["threads"] == 1
            and resolved["runtime"]["device"] == "cpu"
            and resolved["generation"]["seed"] == 1
        )
        assert "sweep:" in data["config"].attrs["given"] and "rounds=3" in data["config"].attrs["given"]
        assert "torch" in data["environment"].attrs["packages"]


@pytest.mark.filterwarnings(
    "error", "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::FutureWarning"
)
def test_xarray_reads_every_table(file):
    with xr.open_dataset(file, group="rounds", engine="h5netcdf") as rounds:
        assert rounds.accuracy.dims == ("round",) and rounds.accuracy_per_class.dims == ("round", "class")
        assert rounds.accuracy.sel(round=2).item() == rounds.accuracy.values[1]
        assert rounds.train_seconds.attrs["units"] == "s"
        assert set(rounds.variables) - {"class"} == set(ROUNDS)
    with xr.open_dataset(file, engine="h5netcdf") as root:
        assert root.weights.dims == ("weight",)
    with xr.open_dataset(file, group="generated", engine="h5netcdf") as generated:
        assert generated.image.dims == ("number", "channel", "height", "width")
    with xr.open_dataset(file, group="partition", engine="h5netcdf") as partition:
        assert partition.label_histograms.dims == ("client", "class") and partition.emd.dims == ("client",)


def test_show_prints_state_policies_and_environment(file, capsys):
    capsys.readouterr()
    assert main(["show", str(file)]) == 0
    said = capsys.readouterr().out
    assert "finished: 3 of 3 rounds, method genfl, seed 1" in said and "20 generated images" in said
    assert (
        "policies: selection random, rho size, kappa fixed (kappa2 0.2), plan equal, algorithm fedavg"
        in " ".join(said.split())
    )
    assert (
        "non-default settings: rounds=3, clients=6" in said
        and "augmented" not in said
        and "generation.seed" not in said
    )
    assert max(map(len, said.splitlines()[1:])) <= 80


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("method=aigc", "policies: plan equal\n"),
        ("method=fedavg", "policies: selection random, rho size, algorithm fedavg\n"),
        (
            "algorithm.name=fedadam",
            "checkpoints in genfl_seed1.checkpoint/ of round 1: for more rounds, and for forks\n",
        ),
    ],
)
def test_show_names_policies_and_kept_state(tiny, tmp_path, setting, said, capsys):
    assert main([*tiny, setting, "rounds=1"]) == 0
    capsys.readouterr()
    assert main(["show", str(*(tmp_path / "results").glob("*.h5"))]) == 0
    assert said in capsys.readouterr().out.replace("\n    ", " ")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_command_can_be_pasted(ranks, tmp_path):
    started = command(ranks, "-m", "genfl_mpi", *FAST, "rounds=1", f"output={tmp_path}/it's $HOME \\ here")
    assert subprocess.run(started, capture_output=True).returncode == 0
    with open_results(*tmp_path.glob("*/*.h5")) as file:
        line = file["environment"].attrs["command"]
    assert shlex.split(line)[1:] == started[1:]
    again = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert again.returncode == 0 and "already finished" in again.stdout


def test_a_command_without_a_launcher():
    assert launchers.command(1, {}) == shlex.join(sys.orig_argv)
    assert launchers.command(3, {}) == "mpirun -n 3 " + shlex.join(sys.orig_argv)
    assert launchers.command(3, {"SLURM_STEP_ID": "0"}).startswith("srun -n 3 ")


@pytest.mark.parametrize("command", ["show", "digest"])
def test_files_that_are_not_results(command, tmp_path, capsys):
    (tmp_path / "text.h5").write_text("no HDF5")
    h5py.File(tmp_path / "other.h5", "w").close()
    for name, message in (
        ("text.h5", "not a readable HDF5 file"),
        ("other.h5", "not a results file"),
        ("none.h5", "no such"),
    ):
        assert main([command, str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_a_growing_file_can_be_read(tiny, tmp_path, monkeypatch):
    train, seen = Worker.train, []

    def looked_at(self, round, clock):
        with open_results(tmp_path / "results/genfl_seed1.h5") as file:
            seen.append(file["rounds/round"][:].tolist())
        return train(self, round, clock)

    monkeypatch.setattr(Worker, "train", looked_at)
    assert main([*tiny, "rounds=3"]) == 0
    assert seen == [[], [1], [1, 2]]


def test_the_format_is_that_of_the_oldest_hdf5_with_swmr(fast, monkeypatch):
    """Only the release that wrote a `latest` file is sure to read it: HDF5 1.14 cannot read that of 2.0."""
    append, formats = Writer.append, []

    def noted(self, record):
        formats.append(self.file.libver[0])
        append(self, record)

    monkeypatch.setattr(Writer, "append", noted)
    assert main([*fast, "rounds=1"]) == 0
    assert formats == ["v110"]


def test_another_configuration_is_not_overwritten(file, tiny, capsys):
    before = file.read_bytes()
    assert main([*tiny, "rounds=3", "training.lr=0.2"]) == 2
    said = capsys.readouterr().err
    assert "training.lr was 0.1 and is 0.2. Set another `output`" in said, "and not what follows from it"
    assert file.read_bytes() == before


def test_a_sweep_writes_a_file_for_each_run_a_table_and_a_figure(tiny, tmp_path, capsys):
    arguments = [one for one in tiny if not one.startswith("method")]
    assert main([*arguments, "sweep.seed=[1,2]", "rounds=1"]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted(
        [
            "accuracy.png",
            *(f"{method}_seed{seed}.h5" for method in ("fedavg", "genfl", "aigc") for seed in (1, 2)),
        ]
    )
    assert all(name in said for name in ("FedAvg", "GenFL", "AIGC-only", "±"))
    assert (tmp_path / "results/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "sweep.seed=[1,2]", "rounds=1"]) == 0
    assert capsys.readouterr().out.count("already finished") == 6


def test_methods_share_partition_cohorts_and_initial_weights(tiny, tmp_path):
    assert main([*tiny, "method=fedavg"]) == 0
    assert main([*tiny]) == 0
    with (
        open_results(tmp_path / "results/fedavg_seed1.h5") as a,
        open_results(tmp_path / "results/genfl_seed1.h5") as b,
    ):
        for name in (
            "partition/pointers",
            "partition/label_histograms",
            "clients/client",
            "clients/round",
            "clients/rho",
        ):
            assert np.array_equal(a[name], b[name]), name
        # The first round starts from the same weights with the same batches.
        assert np.array_equal(a["clients/loss_last_epoch"][:3], b["clients/loss_last_epoch"][:3])


def test_every_rank_and_round_has_a_row_also_when_continued_on_other_ranks(fast, tmp_path):
    for ranks, rounds in ((2, 2), (1, 3)):
        assert mpirun(ranks, "-m", "genfl_mpi", *fast, f"rounds={rounds}").returncode == 0
    with open_results(tmp_path / "results/fedavg_seed1.h5") as file:
        ranks = file["ranks"]
        assert ranks["round"][:].tolist() == [1, 1, 2, 2, 3] and ranks["rank"][:].tolist() == [0, 1, 0, 1, 0]
        assert (ranks["train_seconds"][:] > 0).any() and (ranks["wait_seconds"][:] >= 0).all()
        for round in (1, 2, 3):
            own, here = ranks["round"][:] == round, file["rounds/round"][:] == round
            assert ranks["train_seconds"][:][own].max() == file["rounds/train_seconds"][:][here]
            assert ranks["wait_seconds"][:][own].mean() == pytest.approx(
                file["rounds/wait_seconds"][:][here][0]
            )


@pytest.mark.slow
def test_generation_and_client_training_run_at_the_same_time(tiny, tmp_path):
    """With two ranks and an empty bank the recorded intervals of both overlap."""
    done = mpirun(2, "-m", "genfl_mpi", *tiny, f"generation.bank={tmp_path}/bank", "generation.steps=20")
    assert done.returncode == 0, done.stderr
    with open_results(tmp_path / "results/genfl_seed1.h5") as file:
        rounds, clients = file["rounds"], file["clients"]
        first = (clients["round"][:] == 1) & (clients["rank"][:] == 1)
        start, end = (
            rounds["generate_start_seconds"][0],
            rounds["generate_start_seconds"][0] + rounds["generate_seconds"][0],
        )
        starts = clients["start_seconds"][:][first]
        ends = starts + clients["seconds"][:][first]
        assert first.any() and ((starts < end) & (ends > start)).any()


def test_rank_0_trains_clients_too_once_the_images_are_made(tiny, tmp_path):
    done = mpirun(2, "-m", "genfl_mpi", *tiny, "rounds=4", "cohort=6")
    assert done.returncode == 0, done.stderr
    with open_results(tmp_path / "results/genfl_seed1.h5") as file:
        assert set(file["clients/rank"][:][file["clients/round"][:] == 4]) == {0, 1}


def test_a_folder_with_results_in_a_subfolder(fast, tmp_path, capsys):
    assert main([*fast, f"output={tmp_path}/all/runs"]) == 0
    (tmp_path / "all/bank").mkdir()
    h5py.File(tmp_path / "all/bank/digits.h5", "w").close()
    assert main(["summary", str(tmp_path / "all")]) == 2
    assert f"no results files in this folder; try {tmp_path}/all/runs\n" in capsys.readouterr().err


def test_crop_must_be_less_than_the_images_side(fast, capsys):
    assert main([*fast, "training.crop=8"]) == 2
    assert capsys.readouterr().err == "genfl_mpi: training.crop=8 must be less than the images' side, 8\n"


def test_an_output_folder_that_cannot_be_created(tiny, tmp_path, capsys):
    (tmp_path / "results").write_text("a file")
    assert main([*tiny, "method=fedavg"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_open_results_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no such results file"):
        open_results(tmp_path / "none.h5")


def test_a_full_disk_is_one_line_and_loses_nothing(tiny, tmp_path, capsys, monkeypatch):
    from genfl_mpi.results import disk

    assert main([*tiny, "rounds=3", f"output={tmp_path}/whole"]) == 0
    monkeypatch.setattr(disk, "RESERVE", 1e18)
    assert main([*tiny, "rounds=3"]) == 2
    assert (
        "the disk is full: " in capsys.readouterr().err and not (tmp_path / "results/genfl_seed1.h5").exists()
    )
    monkeypatch.undo()
    append = Writer.append

    def fills_up(self, record):
        if record.round == 2:
            monkeypatch.setattr(disk, "RESERVE", 1e18)
        append(self, record)

    monkeypatch.setattr(Writer, "append", fills_up)
    assert main([*tiny, "rounds=3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with open_results(tmp_path / "results/genfl_seed1.h5") as file:
        assert file["rounds/round"][:].tolist() == [1]
    monkeypatch.undo()
    assert main([*tiny, "rounds=3"]) == 0
    assert digests(tmp_path / "results/genfl_seed1.h5") == digests(tmp_path / "whole/genfl_seed1.h5")


def test_settings_without_effect_are_not_part_of_a_name():
    methods = [
        {"method": "fedavg", "transforms": []},
        {"method": "fedavg", "transforms": ["qsgd"]},
        {"method": "genfl", "generation.per_round": 2},
        {"method": "genfl", "generation.per_round": 4},
    ]
    runs = load({"sweep": {"method": methods}})
    names, _ = summary.distinguish([config.model_dump(mode="json") for config in runs.values()])
    assert [settings for _, settings in names] == [
        "transforms none",
        "transforms qsgd",
        "transforms none, per_round 2",
        "transforms none, per_round 4",
    ]


def test_a_setting_without_effect_in_one_of_a_methods_runs_is_named_in_the_others():
    choices = [
        {"method": "fedavg", "rho.policy": "uniform"},
        {"method": "fedavg", "time.driver": "fedbuff", "time.concurrency": 8},
        {"method": "fedavg", "time.driver": "fedbuff", "time.concurrency": 4},
    ]
    runs = load({"sweep": {"method": choices}, "world": {}, "cohort": 4})
    names, _ = summary.distinguish([config.model_dump(mode="json") for config in runs.values()])
    assert [settings for _, settings in names] == [
        "rho uniform, driver synchronous",
        "driver fedbuff, concurrency 8",
        "driver fedbuff, concurrency 4",
    ]


def test_settings_of_one_method_are_not_part_of_its_name(tiny, tmp_path):
    tiny.remove("method=genfl")
    assert (
        main(
            [
                *tiny,
                "rounds=1",
                "sweep.method=[{method: fedavg, training.lr: 0.2}, {method: aigc, training.lr: 0.1}]",
            ]
        )
        == 0
    )
    paths = sorted((tmp_path / "results").glob("*.h5"))
    assert [(group.method, group.settings) for group in summary.groups(paths)[0]] == [
        ("FedAvg", ""),
        ("AIGC-only", ""),
    ]
    assert (
        main(
            [
                *tiny,
                "rounds=1",
                "sweep.method=[{method: fedavg, partition.alpha: 0.5}, {method: aigc}]",
                f"output={tmp_path}/apart",
            ]
        )
        == 0
    )
    assert [group.panel for group in summary.groups(sorted((tmp_path / "apart").glob("*.h5")))[0]] == [
        "α = 0.1",
        "α = 0.5",
    ], "an alpha is no method's own"
    assert (
        main([*tiny, "rounds=1", "sweep.method=[fedavg]", "training.lr=0.3", f"output={tmp_path}/other"]) == 0
    )
    assert [group.settings for group in summary.groups([*paths, tmp_path / "other/fedavg_seed1.h5"])[0]] == [
        "lr 0.2",
        "lr 0.3",
        "lr 0.1",
    ]


@pytest.mark.slow
def test_plot_has_a_panel_for_each_alpha(tiny, tmp_path, capsys):
    """As in Figures 5 and 6, which compare methods; a single method has one panel, as in Figure 1."""
    tiny.remove("method=genfl")
    assert main([*tiny, "sweep.method=[fedavg,aigc]", "sweep.partition.alpha=[0.1,1.0]", "rounds=1"]) == 0
    found, _ = summary.groups(sorted((tmp_path / "results").glob("*.h5")))
    assert [(group.panel, group.settings) for group in found] == [
        *[("α = 0.1", "")] * 2,
        *[("α = 1", "")] * 2,
    ]
    for path in (tmp_path / "results").iterdir():
        path.unlink()
    assert main([*tiny, "method=fedavg", "sweep.partition.alpha=[0.1,1.0]", "sweep.seed=[1,2]"]) == 0
    found, _ = summary.groups(sorted((tmp_path / "results").glob("*.h5")))
    assert [(group.panel, group.settings) for group in found] == [("", "α = 0.1"), ("", "α = 1")]
    capsys.readouterr()
    assert main(["plot", str(tmp_path / "results"), "-o", str(tmp_path / "figure.pdf")]) == 0
    said = capsys.readouterr().out
    assert (
        "FedAvg      α = 0.1" in said
        and "4 runs" in said
        and (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    )
    for arguments, message in (
        ([str(tmp_path)], "no results files in"),
        ([str(tmp_path / "no.h5")], "no such results file"),
        ([str(tmp_path / "results"), "-o", str(tmp_path / "figure.xyz")], "the figure cannot be written"),
    ):
        assert main(["plot", *arguments]) == 2
        assert message in capsys.readouterr().err
