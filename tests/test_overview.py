"""Many runs at a glance: finished, running, cut off, waiting, unreadable."""

import os
import sys

import pytest
from conftest import FAST, Job, until

from genfl_mpi.analysis import overview
from genfl_mpi.cli import main
from genfl_mpi.results import progress


@pytest.fixture
def finished(tmp_path):
    """Two runs of one method."""
    assert main([*FAST, "rounds=3", "sweep.seed=[1,2]", f"output={tmp_path}/runs"]) == 0
    return tmp_path / "runs"


def test_settings_that_need_a_line_of_their_own(tmp_path, capsys):
    long = [
        "clients=8",
        "cohort=4",
        "training.batch_size=8",
        "training.lr=0.03",
        "training.momentum=0.9",
        "algorithm.name=fednova",
        "rho.policy=uniform",
    ]
    assert main([*FAST, "rounds=1", f"output={tmp_path}/runs"]) == 0
    for method in ("fedavg", "matched"):
        assert (
            main(
                [
                    *FAST,
                    *long,
                    f"method={method}",
                    "generation.cap=2",
                    "rounds=1",
                    f"output={tmp_path}/others",
                ]
            )
            == 0
        )
    capsys.readouterr()
    assert main(["summary", f"{tmp_path}/runs", f"{tmp_path}/others", "-o", f"{tmp_path}/a.png"]) == 0
    table = capsys.readouterr().out.partition("final: ")[0].splitlines()
    rows = [line for line in table if line.startswith(("method ", "FedAvg"))]
    assert len(rows) == 4 and len({len(line) for line in rows}) == 1, "the columns stand below one another"
    assert max(map(len, table)) <= 80 and "fednova" in " ".join(table)


def test_runs_in_every_state(finished, tmp_path, capsys):
    cut = Job(
        1,
        [*FAST, "rounds=100000", "seed=3", f"output={finished}"],
        finished / "fedavg_seed3.h5",
        tmp_path / "log",
    )
    cut.after_round(2)
    cut.process.kill()
    cut.end()
    running = Job(
        1,
        [*FAST, "rounds=100000", "seed=4", f"output={finished}"],
        finished / "fedavg_seed4.h5",
        tmp_path / "log4",
    )
    running.after_round(1)
    (finished / "fedavg_seed5.h5").write_bytes(b"nothing of ours")
    files = [finished / f"fedavg_seed{seed}.h5" for seed in range(1, 7)]
    capsys.readouterr()
    try:
        assert main(["summary", *map(str, files)]) == 0
        states = [overview.state(path).word for path in files]
    finally:
        running.process.terminate()
        running.end()
    said = capsys.readouterr().out
    assert states == ["finished", "finished", "cut off", "running", "unreadable", "waiting"]
    assert "6 runs: 2 finished, 1 cut off, 1 running, 1 unreadable, 1 waiting" in said
    row = next(line for line in said.splitlines() if line.startswith("FedAvg"))
    assert row.split()[-1] == "2", "the means are those of the finished runs alone"
    assert "fedavg_seed3  cut off   " in said and " of 100000 rounds, accuracy " in said
    assert (finished / "summary.png").stat().st_size > 10000


@pytest.mark.parametrize("fault", ["training.lr=0.2", "selection.policy=whose:choice"])
def test_a_refused_start_leaves_everything_as_it_was(fault, tmp_path, monkeypatch, capsys):
    """Of a finished run and of one that was interrupted."""
    (tmp_path / "whose.py").write_text(
        "from genfl_mpi.federation.policies.selection import random as choice\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = [*FAST, *(["selection.policy=whose:choice"] if "whose" in fault else []), f"output={tmp_path}/runs"]
    assert main([*run, "rounds=2"]) == 0
    cut = Job(
        1,
        [*run, "rounds=100000", "seed=2"],
        tmp_path / "runs/fedavg_seed2.h5",
        tmp_path / "log",
        PYTHONPATH=os.pathsep.join(sys.path),
    )
    cut.after_round(1)
    cut.process.kill()
    cut.end()
    until(lambda: not progress.is_running(cut.results))  # a launcher that is killed ends before its ranks
    (tmp_path / "whose.py").write_text(
        "from genfl_mpi.federation.policies.selection import random as choice  # changed\n"
    )
    files = sorted((tmp_path / "runs").glob("*.h5"))
    before = [(overview.state(path), progress.read(path)) for path in files]
    for seed, rounds in ((1, 2), (1, 3), (2, 100000)):
        assert main([*run, fault, f"rounds={rounds}", f"seed={seed}"]) == 2
    assert [(overview.state(path), progress.read(path)) for path in files] == before
    assert [state.word for state, _ in before] == ["finished", "cut off"] and not progress.path_for(
        files[0]
    ).exists()


def test_a_start_that_failed_says_why(tmp_path, monkeypatch, capsys):
    (tmp_path / "nobody.py").write_text("def chosen(state):\n    return ['all of them']\n")
    monkeypatch.syspath_prepend(tmp_path)
    run, path = [*FAST, "rounds=2", f"output={tmp_path}/runs"], tmp_path / "runs/fedavg_seed1.h5"
    assert main([*run, "selection.policy=nobody:chosen"]) == 2
    capsys.readouterr()
    assert main(["summary", str(path)]) == 0
    assert (
        "fedavg_seed1  failed" in (said := capsys.readouterr().out)
        and "UserError: the selection policy chosen must return" in said
    )
    assert main(run) == 0
    assert (
        "the previous start failed: rank 0" in capsys.readouterr().out
        and overview.state(path).word == "finished"
    )


def test_nothing_has_begun(tmp_path, capsys):
    assert main(["summary", f"{tmp_path}/a.h5", f"{tmp_path}/b.h5"]) == 0
    said = capsys.readouterr().out
    assert "no run is finished" in said and "2 runs: 2 waiting" in said and "figure" not in said
    assert main(["summary", str(tmp_path)]) == 2
    assert main(["summary", str(tmp_path / "misspelt")]) == 2
    assert "misspelt: no such folder" in capsys.readouterr().err


def test_a_run_that_is_just_beginning(tmp_path):
    """It holds its lock and has no file yet, or a part of one."""
    path = tmp_path / "fedavg_seed1.h5"
    held = progress.Progress(path, 0, 1)
    assert overview.state(path).word == "running"
    path.write_bytes(b"\x89HDF")
    assert overview.state(path).word == "running"
    held.close()
    assert overview.state(path).word == "unreadable"
