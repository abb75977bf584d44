"""Progress bars of long commands: on a terminal only."""

import io
import sys

from genfl_mpi.util.progress_bar import progress, progress_bar
from genfl_mpi.util.text import pace


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


def test_lines_of_a_file_have_rate_and_remaining_time():
    assert pace(50.0, 100, 800) == ", 2 steps/s, 5.83 min left"
    assert pace(60.0, 101, 2500) == ", 1.7 steps/s, 23.8 min left"
    assert pace(1.0, 1, 800) == pace(400.0, 800, 800) == ""


def test_a_bar_is_shown_on_a_terminal_and_not_in_a_file(monkeypatch):
    output = shown(monkeypatch, Terminal())
    assert "counting" in output and "decode" in output and "/2" in output
    assert shown(monkeypatch, io.StringIO()) == ""
