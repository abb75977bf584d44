"""The exception for errors that the user can fix, and where the user's code raised an exception."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Where a frame is not in a user's file: this package, the standard library, code without a file; folders
# with installed packages.
NOT_USERS = (f"{Path(__file__).parents[1]}/", f"{Path(traceback.__file__).parent}/", "<")
PACKAGE_FOLDERS = {"site-packages", "dist-packages"}


class UserError(Exception):
    """One line: what is wrong, where, and what to do.

    The command prints it without a traceback and exits with status 2; a notebook shows the line alone.
    """

    on_all_ranks: bool = False  # set where all ranks raise it together
    unclean: bool = False  # set after a disk failure, when closing an HDF5 file on that disk may crash

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


@contextmanager
def annotate_errors(what: str) -> Iterator[None]:
    """Add `what` (a round and a client, for example) as a note to an exception raised in a `with` block."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an exception's traceback that are in the user's files.

    These are files outside this package, the standard library and installed packages.
    """
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(NOT_USERS) and PACKAGE_FOLDERS.isdisjoint(Path(frame.filename).parts)
    ]


def user_line(error: BaseException) -> str:
    """Return " (FILE, line N)", the innermost place in the user's files, or "" if there is none."""
    frames = user_frames(error)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
