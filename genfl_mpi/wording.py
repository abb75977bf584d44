"""Words of the messages that people read."""


def counted(number, noun):
    """A number of things: "1 rank", "4 ranks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
