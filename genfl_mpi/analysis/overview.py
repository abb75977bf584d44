"""Many runs at a glance, while some of them still run, or were cut off, or have not begun."""

from pathlib import Path
from typing import NamedTuple

from genfl_mpi.analysis import summary
from genfl_mpi.results import progress
from genfl_mpi.results.reader import columns_of, config_of, damage, is_finished, open_results
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted


class State(NamedTuple):
    """Of one run. word: finished, running, failed, cut off, waiting (without a start yet) or unreadable; rounds: done, of how many
    (0: unknown); accuracy: after the last of them, NaN without one; remark: what is wrong."""

    path: Path
    word: str
    rounds: int = 0
    of: int = 0
    accuracy: float = float("nan")
    remark: str = ""


def state(path):
    """The `State` of the run with the results file `path`. Raises UserError if that is no name of one."""
    if not path.exists() and path.suffix != ".h5":
        raise UserError(f"{path}: there is no such folder, and results files end in .h5")
    word = progress.state(path)
    known = progress.read(path)
    remark = next((about["raised"] for about in known if "raised" in about), "") if word == "failed" else ""
    if not path.exists():  # --fresh locks all runs of a sweep, also those whose turn has not come
        return State(path, word if known else "waiting", remark=remark)
    try:
        with open_results(path) as file, damage(path):
            accuracy = columns_of(file, "rounds", ["accuracy"])["accuracy"]
            done, last = len(accuracy), accuracy[-1] if len(accuracy) else float("nan")
            if is_finished(file):
                return State(path, "finished", done, config_of(file)["rounds"], last)
            return State(path, word or "cut off", done, config_of(file)["rounds"], last, remark)
    except UserError as error:
        # A run that is just beginning has written only a part of its file.
        return State(path, "running") if word == "running" else State(path, "unreadable", remark=str(error))


def lines(states):
    """The runs that are not finished, a line each; the table of those that are; how many there are of each."""
    unfinished = [one for one in states if one.word != "finished"]
    if finished := [one.path for one in states if one.word == "finished"]:
        yield from summary.table(finished)
    if unfinished:
        yield "" if finished else "no run is finished"
        width = max(len(one.path.stem) for one in unfinished)
        for one in unfinished:
            accuracy = f", accuracy {100 * one.accuracy:.2f} %" if one.rounds else ""
            done = f"{one.rounds} of {one.of} rounds{accuracy}" if one.of else ""
            yield f"{one.path.stem:<{width}}  {one.word:<8}  {'; '.join(filter(None, (done, one.remark)))}".rstrip()
    words = [one.word for one in states]
    yield f"\n{counted(len(states), 'run')}: " + ", ".join(
        f"{words.count(word)} {word}" for word in dict.fromkeys(words)
    )


def with_rounds(states):
    """The results files of those that have a finished round: what can be drawn."""
    return [one.path for one in states if one.rounds]
