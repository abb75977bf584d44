"""Live progress display on a terminal, plain lines elsewhere. It has no effect on results."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, Group
from rich.live import Live as Display
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genfl_mpi.edge.attendance import AGGREGATED
from genfl_mpi.mpi import launchers
from genfl_mpi.results import progress, status
from genfl_mpi.util.text import describe_accuracy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from genfl_mpi.federation.records import Record

    Say = Callable[[str], None]

PHASES = ("train", "generate", "augment", "send", "wait", "reduce", "broadcast", "evaluate")
BARS = "▁▂▃▄▅▆▇█"
MAX_RUNS = 12  # in the table of a live view
REFRESH = 0.25  # seconds between two frames


def view(say: Say, total: int, level: str = "normal", shown: bool = True) -> Lines:
    """Return the view of a job of `total` runs: live if `shown` and on a terminal, otherwise lines.

    say: prints a line. level: quiet, normal or verbose.
    """
    if not shown or level == "quiet":
        return Lines(say, level)
    descriptor = terminal()
    return Lines(say, level) if descriptor is None else Live(say, level, total, descriptor)


def terminal() -> int | None:
    """Return the descriptor of the terminal that displays this process's output, or None.

    Launchers connect their ranks to a pipe or a pseudo-terminal and forward the output, so the launcher's
    terminal counts.
    """
    # In a notebook's cell, `!command` has a pseudo-terminal, but the cell cannot move its cursor up.
    if os.environ.get("TERM", "dumb") == "dumb" or "JPY_PARENT_PID" in os.environ:
        return None
    stdout = _link("self", 1)
    is_forwarded = False  # whether a process between this one and the launcher reads our output
    with suppress(OSError, ValueError, IndexError):
        for pid, name in launchers.ancestors():
            is_forwarded = is_forwarded or any(
                _link(pid, entry) == stdout for entry in os.listdir(f"/proc/{pid}/fd")
            )
            if name.startswith(launchers.LAUNCHERS):
                descriptor = os.open(f"/proc/{pid}/fd/1", os.O_RDONLY | os.O_NOCTTY)
                return descriptor if os.isatty(descriptor) and (is_forwarded or sys.stdout.isatty()) else None
    has_launcher = any(name in os.environ for name in launchers.RANK_VARIABLES)
    return sys.stdout.fileno() if sys.stdout.isatty() and not has_launcher else None


def _link(pid: int | str, descriptor: int | str) -> str:
    return os.readlink(f"/proc/{pid}/fd/{descriptor}")


class Lines:
    """Print a line per finished round; quiet: none; verbose: also its phases. say: prints a line."""

    def __init__(self, say: Say, level: str) -> None:
        self.say, self.level = say, level

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def begin(self, known: status.Status) -> None:
        """Begin a run with this status."""
        self.known = known

    def skip(self) -> None:
        """Skip a run that is finished already."""

    def add(self, record: Record) -> None:
        """Add a finished round of the run."""
        row = status.Round(
            record.round,
            record.accuracy,
            int(record.columns["images"]),
            record.columns["round_seconds"],
            record.subset_accuracy,
        )
        self.known.done.append(row)
        if self.level != "quiet":
            self.say(format_round(self.known, row, record.loss) + _dropped(record))
        if self.level == "verbose":
            self.say(_phases(record))


class Live(Lines):
    """Redraw a few lines at the bottom of the terminal, in a separate thread, from the ranks' progress files.

    total: number of runs of the job; descriptor: of the terminal.
    """

    def __init__(self, say: Say, level: str, total: int, descriptor: int) -> None:
        super().__init__(say, level)
        self.total, self.descriptor = total, descriptor
        self.runs: list[status.Status] = []
        self.notices: list[str] = []
        self.console = Console(force_terminal=True)
        self.display = Display(
            get_renderable=self._frame, console=self.console, refresh_per_second=1 / REFRESH, transient=True
        )

    def __enter__(self) -> Self:
        self.display.start()
        self.console.show_cursor(True)  # a killed process could not show it again
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.stop()
        for notice in self.notices:
            self.say(notice)

    def announce(self, notice: str) -> None:
        """Show a line below the view, and print it at the end. May be called from a signal handler."""
        self.notices.append(notice)

    def begin(self, known: status.Status) -> None:
        """Begin a run with this status."""
        super().begin(known)
        self.runs.append(known)

    def skip(self) -> None:
        """Skip a run that is finished already: it is not part of the sweep's remaining time."""
        self.total -= 1

    def add(self, record: Record) -> None:
        """Add a finished round of the run."""
        if self.level == "verbose":
            super().add(record)
            return
        say, self.say = self.say, lambda text: None
        super().add(record)
        self.say = say
        if dropped := _dropped(record):
            self.say(f"{self.known.name}  round {record.round}{dropped}")

    def _frame(self) -> Group:
        _fit(self.console, self.descriptor)
        return Group(
            frame(self.runs, self.total),
            *_sweep(self.runs, self.total),
            *(Text(notice, style="bold") for notice in list(self.notices)),
        )


def _fit(console: Console, descriptor: int) -> None:
    """Set the console to the current size of the terminal; some terminals report none."""
    size = os.get_terminal_size(descriptor)
    console.size = size if all(size) else (80, 24)  # type: ignore[assignment]


def frame(runs: Sequence[status.Status], total: int, ended: Mapping[Path, str] | None = None) -> Group:
    """Return the state of runs as a renderable of rich.

    runs: the last one is being computed, as are those with progress files. total: planned number of runs.
    ended: {path: outcome} of the runs that no process computes.
    """
    parts: list[Table | Text] = []
    for known in runs:
        ranks, outcome = [] if known.finished else progress.read(known.path), (ended or {}).get(known.path)
        if ranks and outcome:
            parts += [
                _bar(known),
                *(
                    Text(f"  {outcome}: {format_round}")
                    for format_round in progress.describe_ranks(known.path)
                ),
            ]
        elif ranks or (known is runs[-1] and not known.finished):
            parts += [_bar(known, *progress.predict_round(ranks)), *_ranks(ranks)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(
        "run" if total == len(runs) else f"run {len(runs)} of {total}", no_wrap=True, overflow="ellipsis"
    )
    for name in ("round", "accuracy", "best", "images", "s/round"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="crop")
    for known in runs[-MAX_RUNS:]:
        reached = [100 * one.progress for one in known.done]
        tested = [100 * one.accuracy for one in known.done if np.isfinite(one.accuracy)]
        table.add_row(
            known.name,
            f"{len(known.done)}/{known.rounds}",
            *(
                (
                    f"{tested[-1]:.2f} %" if tested else "",
                    f"{max(tested):.2f} %" if tested else "",
                    f"{known.done[-1].images}",
                    f"{np.mean([one.seconds for one in known.done]):.2f}",
                    sparkline(reached),
                )
                if reached
                else ("",) * 5
            ),
        )
    return Group(*parts, table)


def _sweep(runs: Sequence[status.Status], total: int) -> Iterator[Text]:
    """Yield a line on the remaining time of a sweep, if it can be predicted.

    runs: those that have begun, the last one is being computed; each waiting run counts as their mean.
    """
    if total < 2 or not runs:
        return
    so_far, whole = progress.predict_round([] if runs[-1].finished else progress.read(runs[-1].path))
    left = runs[-1].seconds_left(so_far, whole)
    spent = [sum(one.seconds for one in known.done) for known in runs]
    spent[-1] += np.nan_to_num(so_far) + left
    waiting = total - len(runs)
    seconds = left + waiting * float(np.mean(spent))
    if np.isfinite(seconds):
        of_runs = f", {waiting} more {'run' if waiting == 1 else 'runs'} at the mean of those so far" * bool(
            waiting
        )
        yield Text(f"sweep: about {duration(seconds)} left{of_runs}", no_wrap=True, overflow="ellipsis")


def _bar(known: status.Status, so_far: float = np.nan, whole: float = np.nan) -> Table:
    """Return a line on a run. so_far, whole: seconds of the current round until now, and predicted."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, overflow="ellipsis", style="bold")
    for _ in range(3):
        grid.add_column(no_wrap=True)
    spent = sum(one.seconds for one in known.done)
    done = len(known.done)
    grid.add_row(
        known.name,
        f"round {min(done + 1, known.rounds)} of {known.rounds}",
        ProgressBar(known.rounds, done, width=12),
        _times(spent + np.nan_to_num(so_far), known.seconds_left(so_far, whole)),
    )
    return grid


def _times(spent: float, left: float) -> str:
    """Return the elapsed and remaining seconds of a run as text. left: NaN if unknown."""
    elapsed = f"{duration(spent)} elapsed" if spent else ""
    return f"{elapsed}, {duration(left)} left" if np.isfinite(left) else elapsed


def _ranks(ranks: Sequence[dict]) -> Iterator[Text]:
    for about in ranks[: progress.MAX_LISTED_RANKS]:
        since = f"  {progress.seconds_since(about):.1f} s" if about["time"] else ""
        yield Text(
            f"  rank {about['rank']}  {progress.describe(about)}{progress.describe_count(about)}{since}",
            no_wrap=True,
            overflow="ellipsis",
        )
    if len(ranks) > progress.MAX_LISTED_RANKS:
        yield Text(f"  and {len(ranks) - progress.MAX_LISTED_RANKS} more ranks")


def sparkline(values: Sequence[float], width: int = 20) -> str:
    """Return a curve of percentages as text: the last value of each of at most `width` intervals."""
    ends = np.unique(np.linspace(0, len(values) - 1, min(width, len(values))).round().astype(int))
    return "".join(
        BARS[min(len(BARS) - 1, int(len(BARS) * values[i] / 100))] if np.isfinite(values[i]) else " "
        for i in ends
    )


def duration(seconds: float) -> str:
    """Return a duration as text: 42 s, 3 min 05 s, 2 h 07 min."""
    if not np.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def format_round(known: status.Status, row: status.Round, loss: float | None = None) -> str:
    """Return a line about a finished round of a run. loss: on the test set, if known; NaN: not evaluated."""
    return (
        f"{known.name}  round {row.number:>{len(str(known.rounds))}}/{known.rounds}  "
        f"{describe_accuracy(row.accuracy, row.subset_accuracy)}  "
        + (f"loss {loss:.3f}  " if loss is not None and np.isfinite(loss) else "")
        + f"{row.seconds:.2f} s"
    )


def _phases(record: Record) -> str:
    seconds = ", ".join(f"{phase} {record.columns[f'{phase}_seconds']:.2f} s" for phase in PHASES)
    return f"    {seconds}; {record.columns['images']} images, {record.columns['clients_trained']} clients"


def _dropped(record: Record) -> str:
    """Return which clients of the cohort are not aggregated, and why."""
    if not record.clients or record.columns["clients_aggregated"] == len(record.clients["client"]):
        return ""
    clients, reasons = record.clients["client"], record.clients["status"]
    dropped = []
    for reason in np.unique(reasons):
        if reason != AGGREGATED:
            numbers = clients[reasons == reason]
            dropped.append(
                f"{reason.decode()}: client{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
            )
    text = f"  dropped, {'; '.join(dropped)}"
    if record.clients["rho"].any():
        return text
    if record.columns["kappa2"]:
        return f"{text}; no client is aggregated: the augmented model becomes the global model"
    return f"{text}; no client is aggregated: the weights stay unchanged"


def watch(paths: Callable[[], Iterable[Path]], say: Say) -> None:
    """Follow the runs in the results files that `paths()` returns until all are finished.

    Draws a live view on a terminal, otherwise prints a line per round. Raises UserError.
    """
    descriptor = terminal()
    known: dict[Path, status.Status] = {}
    if descriptor is None:
        while _update(paths, known, say):
            time.sleep(REFRESH)
        return
    console = Console(force_terminal=True)
    with Display(console=console, auto_refresh=False) as display:
        while True:
            is_unfinished = _update(paths, known, lambda format_round: None)
            _fit(console, descriptor)
            if known:
                states = {path: progress.read_state(path) for path in known}
                runs = sorted(known.values(), key=lambda run: (states[run.path] == "running", run.name))
                ended = {path: state for path, state in states.items() if state != "running"}
                display.update(frame(runs, len(runs), ended), refresh=True)
            if not is_unfinished:
                return
            time.sleep(REFRESH)


def _update(paths: Callable[[], Iterable[Path]], known: dict[Path, status.Status], say: Say) -> bool:
    """Update the status of each run and print new rounds; return whether more are to come."""
    for path in paths():
        before = known.get(path)
        if before and before.finished:
            continue
        now = status.read_status(path)
        if now is None:
            continue
        for row in now.done[len(before.done) if before else 0 :]:
            say(format_round(now, row))
        known[path] = now
    return not known or not all(run.finished for run in known.values())
