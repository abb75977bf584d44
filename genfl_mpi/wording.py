"""Words of the messages that people read."""

WIDTH = 80  # columns of a terminal, which tables keep to


def counted(number, noun):
    """A number of things: "1 rank", "4 ranks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
