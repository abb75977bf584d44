"""What a person sees while runs go on: a live view on a terminal, plain lines elsewhere. Nothing of it reaches a result."""

import os
import sys
import time
from contextlib import suppress

import numpy as np
from rich.console import Console, Group
from rich.live import Live as Display
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genfl_mpi.edge.attendance import AGGREGATED
from genfl_mpi.mpi import launchers
from genfl_mpi.results import progress, status

PHASES = ("train", "generate", "augment", "send", "wait", "reduce", "broadcast", "evaluate")
BARS = "▁▂▃▄▅▆▇█"
MOST_RUNS = 12  # in the table of a live view
REFRESH = 0.25  # seconds between two frames


def view(say, total, level="normal", shown=True):
    """The view of a job of `total` runs on this process: live on a terminal if it is `shown`, else lines. say: prints a line; level:
    quiet, normal or verbose."""
    if not shown or level == "quiet":
        return Lines(say, level)
    descriptor = terminal()
    return Lines(say, level) if descriptor is None else Live(say, level, total, descriptor)


def terminal():
    """The descriptor of the terminal that shows what this process prints, or None.

    Launchers give their ranks a pipe, or a terminal of its own kind, and pass on what comes out of it: then theirs counts.
    """
    if os.environ.get("TERM", "dumb") == "dumb":
        return None
    mine = _link("self", 1)
    holds = False  # whether somebody on the way to the launcher reads what is printed here
    with suppress(OSError, ValueError, IndexError):
        for pid, name in launchers.parents():
            holds = holds or any(_link(pid, entry) == mine for entry in os.listdir(f"/proc/{pid}/fd"))
            if name.startswith(launchers.LAUNCHERS):
                descriptor = os.open(f"/proc/{pid}/fd/1", os.O_RDONLY | os.O_NOCTTY)
                return descriptor if os.isatty(descriptor) and (holds or sys.stdout.isatty()) else None
    started_by_others = any(name in os.environ for name in launchers.RANKS)
    return sys.stdout.fileno() if sys.stdout.isatty() and not started_by_others else None


def _link(pid, descriptor):
    return os.readlink(f"/proc/{pid}/fd/{descriptor}")


class Lines:
    """A line for each finished round; quiet: none; verbose: with what it took. say: prints a line."""

    def __init__(self, say, level):
        self.say, self.level = say, level

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin(self, known):
        """A run begins. known: its `Status`."""
        self.known = known

    def add(self, record):
        """A round of the run is finished."""
        row = status.Round(
            record.round, record.accuracy, int(record.columns["images"]), record.columns["round_seconds"]
        )
        self.known.done.append(row)
        if self.level != "quiet":
            self.say(line(self.known, row, record.loss) + _dropped(record))
        if self.level == "verbose":
            self.say(_took(record))


class Live(Lines):
    """A few lines at the foot of the terminal that are drawn again and again, by a thread of their own, from what the ranks note
    of themselves. total: runs of the job; descriptor: of the terminal."""

    def __init__(self, say, level, total, descriptor):
        super().__init__(say, level)
        self.total, self.descriptor, self.runs, self.notices = total, descriptor, [], []
        self.console = Console(force_terminal=True)
        self.display = Display(
            get_renderable=self._frame, console=self.console, refresh_per_second=1 / REFRESH, transient=True
        )

    def __enter__(self):
        self.display.start()
        self.console.show_cursor(True)  # who is killed cannot show it again
        return self

    def __exit__(self, *_):
        self.display.stop()
        for notice in self.notices:
            self.say(notice)

    def tell(self, notice):
        """Show a line below the view, and print it afterwards. A signal's handler may call it at any moment."""
        self.notices.append(notice)

    def begin(self, known):
        super().begin(known)
        self.runs.append(known)

    def add(self, record):
        if self.level == "verbose":
            super().add(record)
            return
        said, self.say = self.say, lambda text: None
        super().add(record)
        self.say = said
        if dropped := _dropped(record):
            self.say(f"{self.known.name}  round {record.round}{dropped}")

    def _frame(self):
        _fit(self.console, self.descriptor)
        return Group(
            frame(self.runs, self.total), *(Text(notice, style="bold") for notice in list(self.notices))
        )


def _fit(console, descriptor):
    """Draw as wide and as high as the terminal is now; some do not know."""
    size = os.get_terminal_size(descriptor)
    console.size = size if all(size) else (80, 24)


def frame(runs, total, ended=None):
    """What is known of runs, as something that rich can draw. runs: `Status`es, of which the last one is computed now, or those
    whose ranks say so; total: how many there are to be; ended: {path: what became of it} of those that nobody computes."""
    parts = []
    for known in runs:
        ranks, end = [] if known.finished else progress.read(known.path), (ended or {}).get(known.path)
        if ranks and end:
            parts += [_bar(known), *(Text(f"  {end}: {line}") for line in progress.lines(known.path))]
        elif ranks or (known is runs[-1] and not known.finished):
            parts += [_bar(known), *_ranks(ranks)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(
        "run" if total == len(runs) else f"run {len(runs)} of {total}", no_wrap=True, overflow="ellipsis"
    )
    for name in ("round", "accuracy", "best", "images", "s a round"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="crop")
    for known in runs[-MOST_RUNS:]:
        reached = [100 * one.accuracy for one in known.done]
        table.add_row(
            known.name,
            f"{len(known.done)}/{known.rounds}",
            *(
                (
                    f"{reached[-1]:.2f} %",
                    f"{max(reached):.2f} %",
                    f"{known.done[-1].images}",
                    f"{np.mean([one.seconds for one in known.done]):.2f}",
                    sparkline(reached),
                )
                if reached
                else ("",) * 5
            ),
        )
    return Group(*parts, table)


def _bar(known):
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
        f"{duration(spent)} so far, {duration(known.seconds_left())} to go" if known.done else "",
    )
    return grid


def _ranks(ranks):
    for about in ranks[: progress.MOST]:
        since = f"  {progress.seconds_since(about):.1f} s" if about["time"] else ""
        what = progress.doing(about)
        yield Text(f"  rank {about['rank']}  {what}{since}", no_wrap=True, overflow="ellipsis")
    if len(ranks) > progress.MOST:
        yield Text(f"  and {len(ranks) - progress.MOST} more ranks")


def sparkline(values, width=20):
    """A curve of percentages, in one line of text: the last value of each of at most `width` stretches."""
    ends = np.unique(np.linspace(0, len(values) - 1, min(width, len(values))).round().astype(int))
    return "".join(
        BARS[min(len(BARS) - 1, int(len(BARS) * values[i] / 100))] if np.isfinite(values[i]) else " "
        for i in ends
    )


def duration(seconds):
    """As text: 42 s, 3 min 05 s, 2 h 07 min."""
    if not np.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )


def line(known, row, loss=None):
    """A finished round as a line. row: its `Round`; loss: of the test set, if it is known."""
    return (
        f"{known.name}  round {row.number:>{len(str(known.rounds))}}/{known.rounds}  accuracy {100 * row.accuracy:5.2f} %  "
        + (f"loss {loss:.3f}  " if loss is not None else "")
        + f"{row.seconds:.2f} s"
    )


def _took(record):
    seconds = ", ".join(f"{phase} {record.columns[f'{phase}_seconds']:.2f} s" for phase in PHASES)
    return f"    {seconds}; {record.columns['images']} images, {record.columns['clients_trained']} clients"


def _dropped(record):
    if not record.clients or record.columns["clients_aggregated"] == len(record.clients["client"]):
        return ""
    clients, status = record.clients["client"], record.clients["status"]
    missing = [
        f"{one.decode()}: client{'s' * (len(who) > 1)} {', '.join(map(str, who))}"
        for one in np.unique(status)
        if one != AGGREGATED
        for who in [clients[status == one]]
    ]
    nobody = (
        ""
        if record.clients["rho"].any()
        else "; nobody is heard: "
        + ("the augmented model alone" if record.columns["kappa2"] else "the weights stay")
    )
    return f"  dropped, {'; '.join(missing)}{nobody}"


def watch(paths, say):
    """Follow the runs of the results files that the function `paths` gives, until nothing is left to wait for: all are finished,
    or Ctrl-C. Live on a terminal, else a line for each round. Raises UserError."""
    descriptor = terminal()
    shown = {}
    if descriptor is None:
        while _look(paths, shown, say):
            time.sleep(REFRESH)
        return
    console = Console(force_terminal=True)
    with Display(console=console, auto_refresh=False) as display:
        while True:
            goes_on = _look(paths, shown, lambda line: None)
            _fit(console, descriptor)
            if shown:
                words = {path: progress.state(path) for path in shown}
                runs = sorted(shown.values(), key=lambda known: (words[known.path] == "running", known.name))
                display.update(
                    frame(runs, len(runs), {path: word for path, word in words.items() if word != "running"}),
                    refresh=True,
                )
            if not goes_on:
                return
            time.sleep(REFRESH)


def _look(paths, shown, say):
    """Bring {path: `Status`} up to date and say what is new; whether there is more to come."""
    for path in paths():
        before = shown.get(path)
        if before and before.finished:
            continue
        known = status.of_run(path)
        if known is None:
            continue
        for row in known.done[len(before.done) if before else 0 :]:
            say(line(known, row))
        shown[path] = known
    return not shown or not all(known.finished for known in shown.values())
