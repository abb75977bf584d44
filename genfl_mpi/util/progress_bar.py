"""A progress bar on a terminal, for commands that take long; nothing in a file or a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Note = Callable[[int, int], None]


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Note]:
    """Show a bar after a second; yields a function to call as note(done, of), which may begin anew."""
    with tqdm(desc=what, unit=f" {unit}", disable=None, delay=1, leave=False) as bar:

        def note(done: int, of: int) -> None:
            if bar.total != of or done < bar.n:
                bar.reset(total=of)
            bar.update(done - bar.n)

        yield note
