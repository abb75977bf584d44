"""Progress bars of long commands: on a terminal only."""

import io
import sys

from genfl_mpi.util.progress_bar import progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("genfl_mpi.util.progress_bar.DELAY", 0)
    assert list(progress(range(3), "counting", "steps")) == [0, 1, 2]
    with progress_bar("decode", "images") as note:
        for part in (3, 2):  # of training, then of testing
            for done in range(part):
                note(done + 1, part)
    return stream.getvalue()


def test_a_bar_is_shown_on_a_terminal_and_not_in_a_file(monkeypatch):
    output = shown(monkeypatch, Terminal())
    assert "counting" in output and "decode" in output and "/2" in output
    assert shown(monkeypatch, io.StringIO()) == ""
