"""Text for messages."""

from __future__ import annotations

import difflib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDTH = 80  # columns of a terminal, the maximum width of tables


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, for example "1 rank" or "4 ranks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_accuracy(accuracy: float, subset: float) -> str:
    """Return a round's accuracy in percent: on the test set, or on a subset of it; NaN if not evaluated."""
    if accuracy == accuracy:
        return f"accuracy {100 * accuracy:5.2f} %"
    return f"accuracy of subset {100 * subset:5.2f} %" if subset == subset else "not evaluated"


def duration(seconds: float) -> str:
    """Return a predicted duration as text, in seconds, minutes or hours."""
    units = ((1.0, "s"), (60.0, "min"), (3600.0, "h"))
    size, unit = max((one for one in units if seconds >= 2 * one[0]), default=units[0])
    return f"{seconds / size:,.3g} {unit}"


def pace(seconds: float, done: int, of: int) -> str:
    """Return the rate of the steps done, and the time left at it: ", 2.1 steps/s, 5 min left"."""
    if not 1 < done < of or seconds <= 0:  # the first step is slower than others
        return ""
    return f", {done / seconds:.2g} steps/s, {duration(seconds / done * (of - done))} left"


def enumerated(noun: str, numbers: Sequence[int]) -> str:
    """Return ascending numbers with their noun: "round 3", "rounds 2, 4, ..., 24, 25".

    The numbers between are left out where the distances are equal.
    """
    if len(numbers) == 1:
        return f"{noun} {numbers[0]}"
    steps = [after - before for before, after in pairwise(numbers)]
    equal = 1 + next((place for place, step in enumerate(steps) if step != steps[0]), len(steps))
    shown = [*map(str, numbers)]
    if equal > 3:
        shown[2 : equal - 1] = ["..."]
    return f"{noun}s {', '.join(shown)}"


def first_line(error: BaseException) -> str:
    """Return the message of an exception as one line: libraries may give none, or a whole page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def scale(largest: float, unit: str) -> tuple[float, str]:
    """Return a factor and its unit in which `largest` is at least 1 where possible: (1e3, "kJ").

    Seconds have no prefix.
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= factor and unit != "s":
            return factor, prefix + unit
    return 1.0, unit


def file_suggestion(path: str | Path, pattern: str, *folders: str) -> str:
    """Return "; did you mean PATH?" with the file whose name is closest, or "".

    Of those that match a pattern in the folder of `path` or, if none is close there, in one of `folders`.
    """
    for folder in (Path(path).parent, *map(Path, folders)):
        files = {file.stem: file for file in sorted(folder.glob(pattern))}
        if near := difflib.get_close_matches(Path(path).stem, files, n=1):
            return f"; did you mean {files[near[0]]}?"
    return ""


def suggestion(word: str, names: Iterable[str]) -> str:
    """Return "; did you mean NAME?" with the name closest to a misspelt word, or "" if none is close."""
    near = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
