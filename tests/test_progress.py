"""Damaged progress records count as unknown: no reader fails, and no error blames the results file."""

import io
import json
from types import SimpleNamespace

import pytest
from conftest import interrupt
from rich.console import Console

from genfl_mpi.analysis import overview
from genfl_mpi.cli import main
from genfl_mpi.results import progress, status
from genfl_mpi.runs import display
from genfl_mpi.util.errors import UserError

OTHER_VALUES = [
    None,
    True,
    -1,
    1.5,
    10**400,
    float("nan"),
    "",
    "x",
    "\n",
    "\ud800",
    "\x1b[2J",
    [],
    [1],
    {},
    {"a": 1},
]
NO_RECORDS = [b"{}", b"[]", b"null", b"0", b'"rank"', b"[[[", b"\xff\xfe", bytes(256), 8000 * b"[", b" "]
UNREADABLE = "unreadable progress file"


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Return the record of a start on two ranks, of which rank 1 failed. It has no results file."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_READS", 0)
    path = tmp_path / "run.h5"
    notes = [progress.Progress(path, rank, 2) for rank in range(2)]
    notes[0].note_rounds(["FedAvg", 5], [1, 0.5, 0, 1.0, 0.5], [2, 0.25, 0, 1.0, 0.25])
    notes[1]("train", 5, 3)
    notes[1].note_error(ValueError("\U0001f600 of \x1b[2J"))
    for note in notes:
        note.close()
    folder = progress.path_for(path)
    return SimpleNamespace(results=path, rank=folder / "1", rounds=folder / "rounds")


def read_by_all(path):
    """Read a run's record with every reader. Returns the line about rank 1."""
    zero, one = progress.describe_ranks(path)
    assert zero.startswith("rank 0 of 2 on") and one.startswith("rank 1")
    one.encode()
    word = progress.read_state(path)
    assert word == ("failed" if ", which raised " in one else "cut off") and overview.state(path).word == word
    known = status.read_status(path) or status.Status(path, "FedAvg", 5)
    known.seconds_left()
    console = Console(width=200, file=io.StringIO())
    for ended in ({}, {path: word}):
        console.print(display.frame([known], 1, ended))
    for row in known.done:
        display.format_round(known, row)
    return one


def test_no_flipped_bit_is_an_error(record):
    for file in (record.rank, record.rounds):
        content = file.read_bytes()
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            read_by_all(record.results)
            file.write_bytes(content[:place])
            if place:  # an empty file has no note yet
                read_by_all(record.results)
        file.write_bytes(content)
    said = read_by_all(record.results)
    assert "training client 5 in round 3, which raised ValueError: \U0001f600 of ?[2J, since" in said
    assert len(status.read_status(record.results).done) == 2


def test_no_other_type_is_an_error(record):
    about = json.loads(record.rank.read_text())
    for name in about:
        for value in OTHER_VALUES:
            record.rank.write_text(json.dumps(about | {name: value}))
            said = read_by_all(record.results)
            is_valid = value in ("", "x") or (name in ("client", "done", "of") and value is None)
            assert is_valid or said == f"rank 1: {UNREADABLE}", (name, value)
        record.rank.write_text(json.dumps({key: value for key, value in about.items() if key != name}))
        assert name == "raised" or read_by_all(record.results) == f"rank 1: {UNREADABLE}", name
    for content in NO_RECORDS:
        record.rank.write_bytes(content)
        assert read_by_all(record.results) == f"rank 1: {UNREADABLE}"
    record.rank.unlink()
    record.rank.mkdir()
    assert read_by_all(record.results) == f"rank 1: {UNREADABLE}"
    for name in ("1 (copy)", "01", "1.json", "\u0661"):  # not progress files
        (record.rank.parent / name).write_text("{}")
    assert len(progress.read(record.results)) == 2


def test_rounds_of_other_types_are_ignored(record):
    first, *rows = [["FedAvg", 5], [1, 0.5, 0, 1.0, 0.5], [2, 0.25, 0, 1.0, 0.25]]
    for place in range(5):
        for value in OTHER_VALUES:
            other = [*rows[0][:place], value, *rows[0][place + 1 :]]
            record.rounds.write_text("".join(f"{json.dumps(row)}\n" for row in (first, other, rows[1])))
            read_by_all(record.results)
            assert progress.read_rounds(record.results)[-1] == rows[1]
            first_row = [*first[:place], value, *first[place + 1 :]]
            record.rounds.write_text("".join(f"{json.dumps(row)}\n" for row in (first_row, *rows)))
            read_by_all(record.results)
    for content in (b"", b"\n", *NO_RECORDS):
        record.rounds.write_bytes(content)
        assert progress.read_rounds(record.results) == []
        record.rounds.write_bytes(b'["FedAvg", 5]\n' + content + b"\n[2, 0.25, 0, 1.0, 0.25]\n")
        assert progress.read_rounds(record.results) == [first, rows[1]]
        read_by_all(record.results)


@pytest.fixture
def cut(fast, tmp_path, monkeypatch):
    """Return the results file of a run that failed in round 3."""
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        assert main([*fast, "rounds=4"]) == 1
    return tmp_path / "results/fedavg_seed1.h5"


def test_a_note_read_while_it_is_written_is_read_again(record, monkeypatch):
    whole = record.rank.read_bytes()
    record.rank.write_bytes(whole[:20] + whole[:-20])
    monkeypatch.setattr(progress.time, "sleep", lambda seconds: record.rank.write_bytes(whole))
    assert progress.read(record.results)[1]["round"] == 3


def test_show_and_the_next_start_work_despite_a_damaged_record(fast, cut, capsys):
    for content in (b"{}", b"[]", b"null", b"0"):
        progress.path_for(cut).mkdir(exist_ok=True)
        (progress.path_for(cut) / "0").write_bytes(content)
        (progress.path_for(cut) / "rounds").write_bytes(content)
        for command in (["show", str(cut)], ["summary", str(cut)]):
            assert main(command) == 0
        assert f"cut off:\n    rank 0: {UNREADABLE}" in capsys.readouterr().out
        assert main([*fast, "rounds=4"]) == 0
        out = capsys.readouterr().out
        assert (
            "the previous start was interrupted: rank 0: unreadable progress file" in out or content != b"{}"
        )
    assert not progress.path_for(cut).exists()


def record_of(path):
    return {file.name: file.read_bytes() for file in progress.path_for(path).iterdir()}


@pytest.mark.parametrize("where", ["Simulation.__init__", "Simulation.restore", "_open"])
def test_a_refused_start_restores_the_previous_record(where, fast, cut, monkeypatch, capsys):
    def refuse(*_, **__):
        assert record_of(cut) != before, "the start notes its activity"
        raise UserError("refused")

    before = record_of(cut)
    assert {"0", "rounds"} == set(before) and progress.read_state(cut) == "failed"
    with monkeypatch.context() as patch:
        patch.setattr(f"genfl_mpi.runs.runner.{where}", refuse)
        assert main([*fast, "rounds=4"]) == 2
    assert "genfl_mpi: refused" in capsys.readouterr().err
    assert record_of(cut) == before
    assert main([*fast, "rounds=4"]) == 0
    assert "the previous start failed: rank 0 of 1" in capsys.readouterr().out
    assert not progress.path_for(cut).exists()


def test_a_refused_first_start_leaves_no_record(fast, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UserError("refused")

    monkeypatch.setattr("genfl_mpi.runs.runner._open", refuse)
    assert main([*fast, "rounds=4"]) == 2
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize("first", [0, 1])
def test_all_ranks_of_a_refused_start_restore_the_previous_record(first, record):
    before = record_of(record.results)
    notes = [progress.Progress(record.results, rank, 3) for rank in range(3)]
    for note in (notes[first], *notes[:first], *notes[first + 1 :]):
        note.close_failed(UserError("refused"))
    assert record_of(record.results) == before
