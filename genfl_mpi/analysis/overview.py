"""Summarize many runs, including unfinished, interrupted and waiting ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from genfl_mpi.analysis import summary
from genfl_mpi.results import progress
from genfl_mpi.results.reader import is_finished, open_results, read_columns, read_config, report_damage
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted


class State(NamedTuple):
    """State of one run.

    word: finished, running, failed, cut off, waiting (not started yet) or unreadable. rounds: finished ones;
    of: total (0: unknown). accuracy: after the last evaluated round, or NaN. remark: what is wrong.
    """

    path: Path
    word: str
    rounds: int = 0
    of: int = 0
    accuracy: float = float("nan")
    remark: str = ""


def state(path: Path) -> State:
    """Return the `State` of the run with the results file `path`. Raises UserError if it is no such name."""
    if not path.exists() and path.suffix != ".h5":
        raise UserError(f"{path}: no such folder, and not a results file, which ends in .h5; check the name")
    word = progress.read_state(path)
    known = progress.read(path)
    remark = next((about["raised"] for about in known if "raised" in about), "") if word == "failed" else ""
    if not path.exists():  # --fresh locks all runs of a sweep, including those that still wait
        return State(path, word if known else "waiting", remark=remark)
    try:
        with open_results(path) as file, report_damage(path):
            accuracy = read_columns(file, "rounds", ["accuracy"])["accuracy"]
            done, last = len(accuracy), summary.last_evaluated(accuracy)
            if is_finished(file):
                return State(path, "finished", done, read_config(file)["rounds"], last)
            return State(path, word or "cut off", done, read_config(file)["rounds"], last, remark)
    except UserError as error:
        # A run that has just started has written only part of its file.
        return State(path, "running") if word == "running" else State(path, "unreadable", remark=str(error))


def report_lines(states: Sequence[State]) -> Iterator[str]:
    """Yield the table of finished runs, a line for each other run, and the number of runs in each state."""
    unfinished = [one for one in states if one.word != "finished"]
    if finished := [one.path for one in states if one.word == "finished"]:
        yield from summary.table(finished)
    if unfinished:
        yield "" if finished else "no run is finished"
        width = max(len(one.path.stem) for one in unfinished)
        for one in unfinished:
            accuracy = f", accuracy {100 * one.accuracy:.2f} %" if one.accuracy == one.accuracy else ""
            done = f"{one.rounds} of {one.of} rounds{accuracy}" if one.of else ""
            about = "; ".join(filter(None, (done, one.remark)))
            yield f"{one.path.stem:<{width}}  {one.word:<8}  {about}".rstrip()
    words = [one.word for one in states]
    yield f"\n{counted(len(states), 'run')}: " + ", ".join(
        f"{words.count(word)} {word}" for word in dict.fromkeys(words)
    )


def with_rounds(states: Sequence[State]) -> list[Path]:
    """Return the results files with a finished round, which can be drawn."""
    return [one.path for one in states if one.rounds]
