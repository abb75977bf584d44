"""The events of an asynchronous run on a virtual clock, computed before anything is trained.

Who trains when depends on durations and on keyed draws, never on weights. So every update is known in
advance: the version of the model that it starts from, and the round in which it is aggregated. Version v is
the model after v rounds.

Events are ordered by (time, client). At one moment updates arrive first, then clients start. A client starts
from the newest version, at most once from each. An update that is staler than `max_staleness` is discarded.

The server trains one augmented model at a time: it starts from the newest version, takes a virtual time of
its own, enters the next aggregation after that, and the server starts over from the version that results.
"""

from __future__ import annotations

import csv
import heapq
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.sections.time import Time

# A client's update, or the server's augmented model: begun, the version it starts from; start, end: s; round:
# which aggregates it, counted from 1, 0 if none does.
UPDATE = np.dtype([("client", "i8"), ("begun", "i8"), ("start", "f8"), ("end", "f8"), ("round", "i8")])
SERVER = -1  # client of the augmented models
COLUMNS = ["client", "start", "seconds"]  # of a trace file


class Events(NamedTuple):
    """All events until the last round, and some rounds more.

    seconds: float64 (rounds,), when each round ended. updates, augmentations: UPDATE, in the order of their
    start, without those that no round aggregates.
    """

    seconds: np.ndarray
    updates: np.ndarray
    augmentations: np.ndarray

    def of_round(self, round: int) -> np.ndarray:
        """Return the updates that a round aggregates, UPDATE (n,), by client. round: 1 is the first."""
        found = self.updates[self.updates["round"] == round]
        return found[np.argsort(found["client"], kind="stable")]

    def augmented(self, round: int) -> np.void | None:
        """Return the augmented model that a round aggregates, an UPDATE, or None."""
        found = self.augmentations[self.augmentations["round"] == round]
        return found[0] if len(found) else None

    def live_versions(self, finished: int) -> set[int]:
        """Return the versions from which later rounds have updates, those until `finished` rounds."""
        both = np.concatenate([self.updates, self.augmentations])
        return set(both["begun"][(both["round"] > finished) & (both["begun"] <= finished)].tolist())


class Clock(NamedTuple):
    """The durations and the selection of a run.

    clients: their number. seconds: (version, ids (n,)) -> float64 (n,), how long these clients take. choose:
    (version, draw, idle ids, count) -> ids, the clients that start; draw counts the calls for a version.
    serve: version -> s, how long the server makes images and trains the augmented model; None if it has none,
    or if a trace has it. trace: UPDATE rows, by start, that replace seconds and choose; None without.
    """

    clients: int
    seconds: Callable[[int, np.ndarray], np.ndarray]
    choose: Callable[[int, int, np.ndarray, int], np.ndarray]
    serve: Callable[[int], float] | None = None
    trace: np.ndarray | None = None


def staleness_weight(staleness: np.ndarray | float, power: float) -> np.ndarray | float:
    """Return s(tau) = (1 + tau)^-power."""
    return (1.0 + staleness) ** -power


def simulate(settings: Time, cohort: int, rounds: int, clock: Clock) -> Events:
    """Return the `Events` of a run. settings: config.time. Raises UserError if a trace is too short.

    Also of as many later rounds as an update may be stale: a run that is extended needs their versions.
    """
    run = _Run(settings, cohort, clock)
    run.start()
    while run.version < rounds:
        if not run.advance():
            raise UserError(
                f"time.trace: the updates in {settings.trace} end after {run.version} rounds; set "
                "fewer rounds, or give a longer trace"
            )
    while run.version <= rounds + settings.max_staleness and run.advance():
        pass
    aggregated = [
        np.array([tuple(one) for one in rows if one[4]], UPDATE) for rows in (run.updates, run.served)
    ]
    return Events(np.array(run.ended), *aggregated)


class _Run:
    """The state of a simulation. version: finished rounds; now: s."""

    def __init__(self, settings: Time, cohort: int, clock: Clock) -> None:
        self.settings, self.cohort, self.clock = settings, cohort, clock
        self.period = settings.period_s if settings.driver == "semi_synchronous" else None
        self.concurrency = settings.concurrency or cohort
        self.version, self.draws, self.now = 0, 0, 0.0
        self.ended: list[float] = []
        self.updates: list[list] = []
        self.served: list[list] = []
        self.arriving: list[tuple[float, int, int]] = []  # a heap of (end, client, index of the update)
        self.buffer: list[int] = []
        self.serving = False
        self.training = np.zeros(clock.clients, dtype=bool)
        self.asked = np.zeros(clock.clients, dtype=bool)  # started from this version
        trace = np.zeros(0, UPDATE) if clock.trace is None else clock.trace
        self.rows = [row for row in trace.tolist() if row[0] != SERVER][::-1]
        self.server_rows = [row for row in trace.tolist() if row[0] == SERVER][::-1]

    def advance(self) -> bool:
        """Go to the next moment at which something happens; return False if nothing does."""
        boundary = self.period * (self.version + 1) if self.period else np.inf
        arrival = self.arriving[0][0] if self.arriving else np.inf
        planned = self.rows[-1][2] if self.rows else np.inf
        self.now = min(boundary, arrival, planned)
        if self.now == np.inf or (
            self.clock.trace is not None and planned == arrival == np.inf and not self.buffer
        ):
            return False
        while self.arriving and self.arriving[0][0] == self.now:
            self._arrive(heapq.heappop(self.arriving)[2])
        if self.now == boundary:
            self._aggregate()
        self.start()
        return True

    def _arrive(self, index: int) -> None:
        client, begun, *_ = self.updates[index]
        self.training[client] = False
        if self.version - begun > self.settings.max_staleness:
            return
        self.buffer.append(index)
        if self.period is None and len(self.buffer) == self.cohort:
            self._aggregate()

    def _aggregate(self) -> None:
        self.version, self.draws = self.version + 1, 0
        self.ended.append(self.now)
        self.asked[:] = False
        for index in self.buffer:
            self.updates[index][4] = self.version
        self.buffer.clear()
        if self.serving and (last := self.served[-1])[3] <= self.now:
            self.serving = False
            if self.version - 1 - last[1] <= self.settings.max_staleness:
                last[4] = self.version

    def start(self) -> None:
        """Start the clients, and the server's next augmented model, that are due now."""
        if self.clock.trace is not None:
            while self.rows and self.rows[-1][2] <= self.now:
                client, _, start, end, _ = self.rows.pop()
                if not self.asked[client]:
                    self._begin(client, start, end)
        elif self.period is None or not self.draws:
            self._select()
        if not self.serving:
            self._serve()

    def _select(self) -> None:
        idle = np.flatnonzero(~(self.training | self.asked))
        count = min(self.concurrency - int(self.training.sum()), len(idle))
        if count > 0:
            ids = np.sort(self.clock.choose(self.version, self.draws, idle, count))
            for client, taken in zip(ids.tolist(), self.clock.seconds(self.version, ids).tolist()):
                self._begin(client, self.now, self.now + taken)
        self.draws += 1

    def _begin(self, client: int, start: float, end: float) -> None:
        self.training[client] = self.asked[client] = True
        heapq.heappush(self.arriving, (end, client, len(self.updates)))
        self.updates.append([client, self.version, start, end, 0])

    def _serve(self) -> None:
        if self.clock.trace is not None and self.clock.serve is None:
            if not self.server_rows or self.server_rows[-1][2] > self.now:
                return
            start, end = self.server_rows.pop()[2:4]
        elif self.clock.serve is not None:
            start, end = self.now, self.now + self.clock.serve(self.version)
        else:
            return
        self.served.append([SERVER, self.version, start, end, 0])
        self.serving = True


def read_trace(path: str, clients: int) -> np.ndarray:
    """Read a trace file: UPDATE (n,) in the order of (start, client), with the round unset.

    Raises UserError.
    """
    rows, place = [], f"time.trace: {path}"
    try:
        with Path(path).open(newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise UserError(f"{place} has the columns {reader.fieldnames}; give {', '.join(COLUMNS)}")
            for row in reader:
                client = SERVER if row["client"] == "server" else int(row["client"])
                start, seconds = float(row["start"]), float(row["seconds"])
                is_known = client == SERVER or 0 <= client < clients
                if not (is_known and 0 <= start < np.inf and 0 < seconds < np.inf):
                    raise UserError(
                        f"{place}, line {reader.line_num}: needs a client from 0 to {clients - 1} or server, "
                        f"a start of at least 0 and seconds above 0, not {', '.join(map(str, row.values()))}"
                    )
                rows.append((client, 0, start, start + seconds, 0))
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}") from None
    except (ValueError, TypeError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{place} is not a table of numbers: {str(error)[:80]}") from None
    found = np.array(sorted(rows, key=lambda row: (row[2], row[0])), UPDATE)
    for client in np.unique(found["client"]):
        own = found[found["client"] == client]
        if (own["start"][1:] < own["end"][:-1]).any():
            name = "the server" if client == SERVER else f"client {client}"
            raise UserError(f"{place}: {name} starts before its previous row ends; make its rows disjoint")
    return found
