"""Continuing a run: intact and damaged checkpoints, other ranks, other settings; starting over, and forks."""

import h5py
import numpy as np
import pytest
from conftest import interrupt, mpirun

from genfl_mpi.cli import main
from genfl_mpi.federation.simulation import Simulation
from genfl_mpi.results import checkpoint, reader
from genfl_mpi.util.errors import UserError

RUN = "0123456789ab"


@pytest.fixture
def cut(fast, tmp_path, monkeypatch):
    """Return a function that computes some rounds of a run of ten, with settings, and stops."""

    def compute(rounds, *overrides):
        interrupt(monkeypatch, rounds)
        assert main([*fast, "rounds=10", *overrides]) == 1
        monkeypatch.undo()
        return tmp_path / "results/fedavg_seed1.h5"

    return compute


def whole(fast, tmp_path, *overrides):
    assert main([*fast, "rounds=10", *overrides, f"output={tmp_path}/whole"]) == 0
    return reader.digests(tmp_path / "whole/fedavg_seed1.h5")


def test_a_checkpoint_returns_the_saved_arrays(tmp_path):
    results, said = tmp_path / "run.h5", []
    assert checkpoint.load(results, RUN, said.append) == (0, None, {})
    for round in range(1, 8):
        state = {"square": np.arange(3.0) * round}
        checkpoint.save(results, RUN, round, np.full(5, round, np.float32), state, keep=3)
    assert checkpoint.list_rounds(results) == [3, 6, 7]
    round, weights, state = checkpoint.load(results, RUN, said.append)
    assert round == 7 and weights.tolist() == [7] * 5 and state["square"].tolist() == [0, 7, 14] and not said
    assert checkpoint.load(results, RUN, said.append, round=3)[1].tolist() == [3] * 5
    checkpoint.remove(results, keep=3)
    assert checkpoint.list_rounds(results) == [3, 6]


def test_every_flipped_bit_is_detected(tmp_path):
    results, said = tmp_path / "run.h5", []
    for round in (1, 2):
        checkpoint.save(results, RUN, round, np.arange(4, dtype=np.float32), {})
    file = checkpoint.path_for(results) / "2.safetensors"
    content = file.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        round, weights, _ = checkpoint.load(results, RUN, said.append)
        # Bits of the file's padding do not matter; the values are the saved ones.
        assert weights.tolist() == [0, 1, 2, 3] and (round == 1 or len(said) < place + 1)
    assert len(said) > 0.9 * len(content) and all(
        "2.safetensors: the checkpoint is damaged" in line for line in said
    )
    (checkpoint.path_for(results) / "1.safetensors").write_bytes(b"")
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="all checkpoints are damaged"):
        checkpoint.load(results, RUN, said.append)


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(fast, tmp_path, cut, capsys):
    results = cut(5, "algorithm.name=fedadam")
    newest = checkpoint.path_for(results) / "5.safetensors"
    content = bytearray(newest.read_bytes())
    content[-9] ^= 1
    newest.write_bytes(content)
    assert main([*fast, "rounds=10", "algorithm.name=fedadam"]) == 0
    said = capsys.readouterr().out
    assert "5.safetensors: the checkpoint is damaged" in said and "continues after round 4" in said
    assert reader.digests(results) == whole(fast, tmp_path, "algorithm.name=fedadam")


def test_rows_that_a_kill_left_half_written_do_not_count(fast, tmp_path, cut, capsys):
    path = cut(4)
    with h5py.File(path, "r+") as file:
        for name in ("clients/round", "clients/client", "rounds/loss"):
            file[name].resize(len(file[name]) + 3, axis=0)
    assert main(["show", str(path)]) == 0 and "4 of 10 rounds" in capsys.readouterr().out
    assert main(["price", str(path), f"--output={tmp_path}/price.png"]) == 0
    assert main([*fast, "rounds=10"]) == 0
    assert reader.digests(path) == whole(fast, tmp_path)


def test_checkpoints_by_seconds(cut):
    results = cut(5, "checkpoint.every_rounds=null", "checkpoint.every_seconds=1e-9")
    assert checkpoint.list_rounds(results) == [4, 5]


def test_another_configuration_is_refused_with_the_difference(fast, cut, capsys):
    cut(3)
    capsys.readouterr()
    for override, message in (
        ("training.lr=0.5", "training.lr was 0.1 and is 0.5"),
        ("faults.nonfinite=drop", "faults.nonfinite was stop and is drop"),
    ):
        assert main([*fast, "rounds=10", override]) == 2
        said = capsys.readouterr().err
        assert message in said and "--fresh" in said and said.count("\n") == 1
    assert main([*fast, "rounds=12", "checkpoint.every_rounds=5", "checkpoint.keep=2"]) == 0


def test_fresh_moves_the_old_files_aside(fast, tmp_path, cut, capsys):
    results = cut(3, "algorithm.name=scaffold")
    old = results.read_bytes()
    for number in (1, 2):
        assert main([*fast, "rounds=1", "training.lr=0.5", "--fresh"]) == 0
        assert f"into {tmp_path}/results/aside-{number}" in capsys.readouterr().out
    aside = tmp_path / "results/aside-1"
    assert (aside / results.name).read_bytes() == old and checkpoint.list_rounds(aside / results.name) == [
        2,
        3,
    ]
    assert sorted(path.name for path in aside.iterdir()) == [
        f"fedavg_seed1.{part}" for part in ("checkpoint", "h5", "progress", "variates")
    ]
    assert main([*fast, "rounds=1", "training.lr=0.5"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_scaffold_continues_despite_a_damaged_old_checkpoint(fast, cut, tmp_path):
    scaffold = ["algorithm.name=scaffold", "checkpoint.keep=1"]
    results = cut(3, *scaffold)
    (checkpoint.path_for(results) / "1.safetensors").write_bytes(b"damaged")
    assert main([*fast, *scaffold, "rounds=10"]) == 0
    assert reader.digests(results) == whole(fast, tmp_path, *scaffold)


def test_every_kept_round_has_a_checkpoint(cut):
    assert checkpoint.list_rounds(cut(5, "checkpoint.every_rounds=3", "checkpoint.keep=2")) == [2, 3, 4]


@pytest.mark.parametrize(
    ("rounds", "every", "size", "interval"),
    [
        (25, 1, 100, 1),
        (26, 1, 100, 2),  # not more than 25
        (500, 1, 100, 20),
        (500, 3, 100, 21),  # a multiple of every
        (10, 1, 3000, 4),  # three of 3,000 bytes fit into 10,000
        (10, 1, 10001, None),
        (10, None, 100, None),
        (2, 5, 100, None),
    ],
)
def test_kept_checkpoints_fit_into_the_limit(rounds, every, size, interval):
    assert checkpoint.keep_interval(rounds, every, size, 10000) == interval


def test_a_run_keeps_checkpoints_for_forks_and_prints_where(fast, tmp_path, capsys):
    run, results = [*fast, "checkpoint.keep=auto"], tmp_path / "results/fedavg_seed1.h5"
    assert main([*run, "rounds=10"]) == 0
    assert checkpoint.list_rounds(results) == list(range(1, 11))
    said = capsys.readouterr().out
    assert f"can be forked at rounds 1, 2, ..., 9: fork {results} --at 5" in said
    size = (checkpoint.path_for(results) / "5.safetensors").stat().st_size
    assert main(["fork", str(results), "--at", "5", "checkpoint.keep=null"]) == 0
    assert "seconds of a fork include those of the rounds before it" in capsys.readouterr().out
    # Less space for more rounds thins them out.
    limit = f"checkpoint.max_megabytes={4.5 * size / 1e6}"
    assert main([*run, "rounds=12", limit]) == 0
    assert checkpoint.list_rounds(results) == [3, 6, 9, 12]
    assert "can be forked at rounds 3, 6, 9:" in capsys.readouterr().out
    assert main([*run, "rounds=12", "--fresh", "--quiet"]) == 0 and "forked" not in capsys.readouterr().out


def test_client_states_count_in_the_limit(fast):
    scaffold = [*fast, "algorithm.name=scaffold"]
    plain, stateful = (Simulation(None, one) for one in (fast, scaffold))
    weights = plain.weights.nbytes
    assert weights < plain.checkpoint_bytes < 1.1 * weights
    assert stateful.checkpoint_bytes > 7 * weights  # of the server, and of six clients
    for one in (plain, stateful):
        one.close()


@pytest.mark.parametrize("algorithm", ["fedavg", "fedyogi", "scaffold"])
def test_a_fork_that_changes_nothing_is_the_run_itself(algorithm, fast, tmp_path, capsys):
    original = whole(fast, tmp_path, f"algorithm.name={algorithm}", "checkpoint.keep=4")
    file = tmp_path / "whole/fedavg_seed1.h5"
    arguments = ["fork", str(file), "--at", "4"]
    assert main(arguments) == 0
    assert "continues after round 4" in capsys.readouterr().out
    fork = tmp_path / "whole/fedavg_seed1_fork4/fedavg_seed1.h5"
    assert reader.digests(fork) == original
    with reader.open_results(fork) as data:
        assert data["config"].attrs["origin"] == f"{file} at round 4"
    assert main(arguments) == 0 and "already finished" in capsys.readouterr().out
    assert main(["show", str(fork)]) == 0 and f"fork of {file} at round 4" in capsys.readouterr().out.replace(
        "\n", " "
    )


def test_a_fork_with_other_settings_differs(fast, tmp_path, capsys):
    original = whole(fast, tmp_path, "checkpoint.keep=4")
    file = str(tmp_path / "whole/fedavg_seed1.h5")
    assert main(["fork", file, "--at", "4", "training.lr=0.01", f"output={tmp_path}/other"]) == 0
    assert reader.digests(tmp_path / "other/fedavg_seed1.h5")[0] != original[0]
    with reader.open_results(file) as one, reader.open_results(tmp_path / "other/fedavg_seed1.h5") as two:
        assert (
            np.array_equal(one["rounds/loss"][:4], two["rounds/loss"][:4])
            and (one["rounds/loss"][4:] != two["rounds/loss"][4:]).all()
        )
        assert reader.read_config(two)["augmented"]["lr"] == 0.01
    capsys.readouterr()
    for arguments, message in (
        (["--at", "5"], "has no checkpoint of round 5 (available: 4, 8)"),
        (["--at", "11"], "has rounds 1 to 10"),
        (["--at", "4", "model.name=lenet5"], "model.name cannot change in a fork"),
        (["--at", "4", "clients=5"], "clients cannot change in a fork"),
        (["--at", "4", "cohort=2"], "cohort cannot change in a fork"),
        (["--at", "8", "rounds=8"], "no round is left after the fork"),
        (["--at", "4", f"output={tmp_path}/whole"], "the fork would overwrite"),
        (["--at", "8", "training.lr=0.01", f"output={tmp_path}/other"], "is not a fork of"),
    ):
        assert main(["fork", file, *arguments]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_one_run_on_1_3_2_and_4_ranks(fast, tmp_path):
    for ranks, rounds in ((1, 2), (3, 5), (2, 8), (4, 10)):
        done = mpirun(ranks, "-m", "genfl_mpi", *fast, "algorithm.name=scaffold", f"rounds={rounds}")
        assert done.returncode == 0, done.stderr
        assert rounds == 2 or "continues after round" in done.stdout
    assert reader.digests(tmp_path / "results/fedavg_seed1.h5") == whole(
        fast, tmp_path, "algorithm.name=scaffold"
    )
