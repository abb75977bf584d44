"""The result is a function of the configuration: not of ranks, schedule or interruption."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import command, interrupt, mpirun

from genfl_mpi.cli import main
from genfl_mpi.results import checkpoint, reader


def run(ranks, overrides):
    done = mpirun(ranks, "-m", "genfl_mpi", *overrides)
    assert done.returncode == 0, done.stderr
    return done.stdout


def digests(folder, name="genfl_seed1"):
    return reader.digests(folder / f"{name}.h5")


def test_any_number_of_ranks(tiny, tmp_path, capsys):
    for ranks in (1, 2, 4):
        # Each with a bank of its own: the images must not depend on the ranks either.
        run(ranks, [*tiny, f"output={tmp_path}/{ranks}", f"generation.bank={tmp_path}/{ranks}/bank"])
    first = digests(tmp_path / "1")
    assert digests(tmp_path / "2") == first
    assert digests(tmp_path / "4") == first
    assert main(["digest", str(tmp_path / "4/genfl_seed1.h5")]) == 0
    said = capsys.readouterr().out
    assert first[0] in said and first[1] in said


def test_bfloat16_on_any_number_of_ranks(tiny, tmp_path):
    """The bits are others than float32's, and the model is nearly the same."""
    losses = {}
    for ranks, dtype in ((1, "bfloat16"), (2, "bfloat16"), (1, "float32")):
        run(ranks, [*tiny, "method=fedavg", f"training.dtype={dtype}", f"output={tmp_path}/{dtype}{ranks}"])
        with reader.open_results(tmp_path / f"{dtype}{ranks}/fedavg_seed1.h5") as file:
            losses[dtype] = file["rounds/loss"][-1]
    assert digests(tmp_path / "bfloat161", "fedavg_seed1") == digests(tmp_path / "bfloat162", "fedavg_seed1")
    assert digests(tmp_path / "bfloat161", "fedavg_seed1") != digests(tmp_path / "float321", "fedavg_seed1")
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_another_seed_gives_other_bits(tiny, tmp_path):
    assert main([*tiny]) == 0
    assert main([*tiny, "seed=2"]) == 0
    one, two = digests(tmp_path / "results"), digests(tmp_path / "results", "genfl_seed2")
    assert one[0] != two[0] and one[1] != two[1]


@pytest.mark.slow
def test_a_filtered_run_continues_with_the_images_that_passed(tiny, tmp_path):
    tiny = [
        *tiny,
        "data.public_pool=500",
        "generation.min_fidelity=0.6",
        "generation.per_round=3",
        "generation.cap=9",
        "generation.steps=8",
    ]
    run(2, [*tiny, "rounds=3", f"output={tmp_path}/whole"])
    assert main([*tiny, "rounds=2"]) == 0
    assert main([*tiny, "rounds=3"]) == 0
    assert digests(tmp_path / "results") == digests(tmp_path / "whole")
    with reader.open_results(tmp_path / "whole/genfl_seed1.h5") as file:
        fidelity, rounds = file["generated/fidelity"][:], file["generated/round"][:]
        used = [(fidelity[rounds <= round] >= 0.6).sum() for round in (1, 2, 3)]
        assert file["rounds/images_used"][:].tolist() == used and file["rounds/images"][:].tolist() == [
            30,
            60,
            90,
        ]
        assert 0 < used[-1] < 90


def test_interrupted_and_continued_on_other_ranks(tiny, tmp_path, monkeypatch):
    run(2, [*tiny, "rounds=4", f"output={tmp_path}/whole"])

    interrupt(monkeypatch, 2)
    assert main([*tiny, "rounds=4", f"output={tmp_path}/cut"]) == 1
    assert checkpoint.list_rounds(tmp_path / "cut/genfl_seed1.h5") == [1, 2]
    with reader.open_results(tmp_path / "cut/genfl_seed1.h5") as file:
        assert file["rounds/round"][:].tolist() == [1, 2] and not reader.is_finished(file)
    monkeypatch.undo()
    said = run(3, [*tiny, "rounds=4", f"output={tmp_path}/cut"])
    assert "continues after round 2" in said
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert not checkpoint.path_for(tmp_path / "cut/genfl_seed1.h5").exists()


def test_more_rounds_continue_a_finished_run(tiny, tmp_path, capsys):
    assert main([*tiny, "rounds=3", f"output={tmp_path}/whole"]) == 0
    assert main([*tiny, "rounds=1"]) == 0
    assert main([*tiny, "rounds=3"]) == 0
    assert digests(tmp_path / "results") == digests(tmp_path / "whole")
    capsys.readouterr()
    assert main([*tiny, "rounds=3"]) == 0
    assert "already finished" in capsys.readouterr().out


def killed(ranks, overrides, when, tmp_path):
    """Start a run on `ranks` and kill -9 one of them when `when` holds."""
    job = subprocess.Popen(
        command(ranks, "-m", "genfl_mpi", *overrides),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in job.stdout:
        if when(line):
            own = [process for process in Path("/proc").glob("[0-9]*") if _is_rank(process, str(tmp_path))]
            assert len(own) == ranks
            os.kill(int(own[-1].name), signal.SIGKILL)
            break
    job.stdout.read()
    assert job.wait(timeout=60) != 0


def _is_rank(process, folder):
    try:
        arguments = (process / "cmdline").read_text()
    except OSError:  # it has ended
        return False
    return arguments.startswith(sys.executable) and folder in arguments


@pytest.mark.slow
def test_kill_9_loses_nothing(tiny, tmp_path):
    """In its middle, with checkpoints every other round; and when a finished run is being extended."""
    run(1, [*tiny, "rounds=60", f"output={tmp_path}/whole"])
    arguments = [*tiny, f"output={tmp_path}/cut", "checkpoint.every_rounds=2"]
    file = tmp_path / "cut/genfl_seed1.h5"
    killed(2, [*arguments, "rounds=40"], lambda line: "round  5/40" in line, tmp_path)
    with reader.open_results(file) as data:
        assert len(data["rounds/round"]) >= 5 and not reader.is_finished(data)
    assert "continues after round" in run(3, [*arguments, "rounds=40"])
    killed(2, [*arguments, "rounds=60"], lambda line: "continues after round 40" in line, tmp_path)
    assert "continues after round 4" in run(1, [*arguments, "rounds=60"])
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_killed_between_the_last_checkpoint_and_the_end(tiny, tmp_path, monkeypatch, capsys):
    from genfl_mpi.results.writer import Writer

    def interrupted(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(Writer, "finish", interrupted)
    assert main(tiny) == 1
    monkeypatch.undo()
    assert main(tiny) == 0
    assert "continues after round 2" in capsys.readouterr().out
    with reader.open_results(tmp_path / "results/genfl_seed1.h5") as file:
        assert reader.is_finished(file) and file["weights"][:].any() and len(file["rounds/round"]) == 2


def test_a_checkpoint_of_another_run_is_not_used(tiny, tmp_path):
    assert main([*tiny, f"output={tmp_path}/whole"]) == 0
    (tmp_path / "results").mkdir()
    stale = checkpoint.path_for(tmp_path / "results/genfl_seed1.h5")
    checkpoint.save(tmp_path / "results/genfl_seed1.h5", "another", 1, np.ones(105866, np.float32), {})
    assert main([*tiny, "checkpoint.every_rounds=9"]) == 0
    assert digests(tmp_path / "results") == digests(tmp_path / "whole") and not stale.exists()


def test_a_continued_run_keeps_its_first_threads(tiny, tmp_path, capsys):
    free = [one for one in tiny if not one.startswith("runtime.threads")]
    assert main([*free, "runtime.threads=3", "rounds=1"]) == 0
    assert main([*free, "rounds=2"]) == 0
    with reader.open_results(tmp_path / "results/genfl_seed1.h5") as file:
        runtime = reader.read_config(file)["runtime"]
        assert len(file["rounds/round"]) == 2 and runtime["threads"] == 3 and runtime["device"] == "cpu"
    assert main([*free, "runtime.threads=1", "rounds=3"]) == 2
    assert "runtime.threads was 3 and is 1" in capsys.readouterr().err


@pytest.mark.parametrize(("kappa", "method"), [("kappa.kappa1=1", "fedavg"), ("kappa.kappa2=1", "aigc")])
def test_kappa_at_its_ends_is_a_baseline(tiny, tmp_path, kappa, method):
    assert main([*tiny, kappa]) == 0
    assert main([*tiny, f"method={method}"]) == 0
    with (
        h5py.File(tmp_path / "results/genfl_seed1.h5", swmr=True) as a,
        h5py.File(tmp_path / f"results/{method}_seed1.h5", swmr=True) as b,
    ):
        assert np.array_equal(a["weights"], b["weights"])
        assert np.array_equal(a["rounds/accuracy"], b["rounds/accuracy"])
        assert np.abs(a["weights"]).max() > 0


@pytest.mark.skipif(
    "GENFL_DATA" not in os.environ, reason="set GENFL_DATA to a folder with CIFAR-10 and CIFAR-100"
)
@pytest.mark.parametrize("name", ["cifar10", pytest.param("cifar100", marks=pytest.mark.slow)])
def test_the_papers_configurations_on_real_cifar(name, tiny, tmp_path):
    config = Path(__file__).parents[1] / "configs" / f"{name}.yaml"
    # A small network instead of ResNet-18, and a shipped generator instead of Stable Diffusion.
    small = [
        *tiny,
        f"data.root={os.environ['GENFL_DATA']}",
        "rounds=1",
        "clients=100",
        "model.name=cnn",
        "training.lr=0.1",
        "data.public_pool=10000",  # which that generator has learned from
        f"generation.prompts={name}",
        f"generation.checkpoint={name}",
        "generation.batch_size=100",
    ]
    for ranks in (1, 2):
        done = mpirun(ranks, "-m", "genfl_mpi", config, *small, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    with reader.open_results(tmp_path / "1/genfl_seed1.h5") as file:
        assert file["generated/image"].shape[1:] == (3, 32, 32)
        assert file["rounds/accuracy_per_class"].shape == (1, {"cifar10": 10, "cifar100": 100}[name])
