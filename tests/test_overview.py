"""Many runs at a glance: finished, running, cut off, waiting, unreadable."""

import pytest
from conftest import FAST, Job

from genfl_mpi.cli import main
from genfl_mpi.results import overview, progress


@pytest.fixture
def finished(tmp_path):
    """Two runs of one method."""
    assert main([*FAST, "rounds=3", "sweep.seed=[1,2]", f"output={tmp_path}/runs"]) == 0
    return tmp_path / "runs"


def test_runs_in_every_state(finished, tmp_path, capsys):
    cut = Job(1, [*FAST, "rounds=100000", "seed=3", f"output={finished}"], finished / "fedavg_seed3.h5", tmp_path / "log")
    cut.after_round(2)
    cut.process.kill()
    cut.end()
    running = Job(1, [*FAST, "rounds=100000", "seed=4", f"output={finished}"], finished / "fedavg_seed4.h5", tmp_path / "log4")
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


def test_nothing_has_begun(tmp_path, capsys):
    assert main(["summary", f"{tmp_path}/a.h5", f"{tmp_path}/b.h5"]) == 0
    said = capsys.readouterr().out
    assert "no run is finished" in said and "2 runs: 2 waiting" in said and "figure" not in said
    assert main(["summary", str(tmp_path)]) == 2
    assert main(["summary", str(tmp_path / "misspelt")]) == 2
    assert "misspelt: there is no such folder" in capsys.readouterr().err


def test_a_run_that_is_just_beginning(tmp_path):
    """It holds its lock and has no file yet, or a part of one."""
    path = tmp_path / "fedavg_seed1.h5"
    held = progress.Progress(path, 0, 1)
    assert overview.state(path).word == "running"
    path.write_bytes(b"\x89HDF")
    assert overview.state(path).word == "running"
    held.close()
    assert overview.state(path).word == "unreadable"
