"""Text for messages."""

import difflib
from collections.abc import Iterable

WIDTH = 80  # columns of a terminal, the maximum width of tables


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, for example "1 rank" or "4 ranks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_line(error: BaseException) -> str:
    """Return the message of an exception as one line: libraries may give none, or a whole page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def suggestion(word: str, names: Iterable[str]) -> str:
    """Return "; did you mean NAME?" with the name closest to a misspelt word, or "" if none is close."""
    near = difflib.get_close_matches(word, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""
