"""Progress records: what the ranks of a start note for those who come later."""

from types import SimpleNamespace

import pytest

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.errors import UserError
from genfl_mpi.results import progress


@pytest.fixture
def record(tmp_path):
    """What a start on two ranks left, of which rank 1 failed. There is no results file."""
    path = tmp_path / "run.h5"
    notes = [progress.Progress(path, rank, 2) for rank in range(2)]
    notes[0].finished(["FedAvg", 5], [1, 0.5, 0, 1.0], [2, 0.25, 0, 1.0])
    notes[1]("train", 5, 3)
    notes[1].raised(ValueError("\U0001f600 of \x1b[2J"))
    for note in notes:
        note.close()
    folder = progress.path_for(path)
    return SimpleNamespace(results=path, rank=folder / "1", rounds=folder / "rounds")


@pytest.fixture
def cut(fast, tmp_path, monkeypatch):
    """The results file of a run that failed in round 3."""
    advance = Simulation._advance

    def interrupted(self, clock):
        if self.round == 2:
            raise MemoryError
        return advance(self, clock)

    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "_advance", interrupted)
        assert main([*fast, "rounds=4"]) == 1
    return tmp_path / "results/fedavg_seed1.h5"


def record_of(path):
    return {file.name: file.read_bytes() for file in progress.path_for(path).iterdir()}


@pytest.mark.parametrize("where", ["Simulation.__init__", "Simulation.restore", "_open"])
def test_a_refused_start_leaves_the_record_of_the_one_before(where, fast, cut, monkeypatch, capsys):
    def refuse(*_, **__):
        assert record_of(cut) != before, "the start tells what it does"
        raise UserError("refused")

    before = record_of(cut)
    assert {"0", "rounds"} == set(before) and progress.state(cut) == "failed"
    with monkeypatch.context() as patch:
        patch.setattr(f"genfl_mpi.runner.{where}", refuse)
        assert main([*fast, "rounds=4"]) == 2
    assert "genfl_mpi: refused" in capsys.readouterr().err
    assert record_of(cut) == before
    assert main([*fast, "rounds=4"]) == 0
    assert "the start before failed: rank 0 of 1" in capsys.readouterr().out
    assert not progress.path_for(cut).exists()


def test_a_refused_first_start_leaves_no_record(fast, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UserError("refused")

    monkeypatch.setattr("genfl_mpi.runner._open", refuse)
    assert main([*fast, "rounds=4"]) == 2
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize("first", [0, 1])
def test_all_ranks_of_a_refused_start_leave_the_record_of_the_one_before(first, record):
    before = record_of(record.results)
    notes = [progress.Progress(record.results, rank, 3) for rank in range(3)]
    for note in (notes[first], *notes[:first], *notes[first + 1 :]):
        note.failed(UserError("refused"))
    assert record_of(record.results) == before
