"""A progress bar on a terminal, for commands that take long; nothing in a file or a pipe."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Note = Callable[[int, int], None]
Item = TypeVar("Item")
DELAY = 1.0  # seconds after which a bar appears


def progress(items: Iterable[Item], what: str, unit: str, total: int | None = None) -> Iterable[Item]:
    """Iterate under a bar, which appears after a second."""
    return tqdm(items, desc=what, unit=f" {unit}", total=total, disable=None, delay=DELAY, leave=False)


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Note]:
    """Show a bar after a second; yields a function to call as note(done, of), which may begin anew."""
    with tqdm(desc=what, unit=f" {unit}", disable=None, delay=DELAY, leave=False) as bar:

        def note(done: int, of: int) -> None:
            if bar.total != of or done < bar.n:
                bar.reset(total=of)
            bar.update(done - bar.n)

        yield note
