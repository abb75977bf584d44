"""Words of the messages that people read."""

WIDTH = 80  # columns of a terminal, which tables keep to


def counted(number, noun):
    """A number of things: "1 rank", "4 ranks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_line(error):
    """Return what an exception says in one line, to quote it: a library may say nothing, or a page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
