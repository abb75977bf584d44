"""The activity of each rank, in a folder beside the results file, because a killed rank cannot report it.

A rank's file is one line of JSON, overwritten in place when the rank starts another phase. It stays in the
page cache, so it costs microseconds and outlives the rank. Rank 0 also notes each finished round, for readers
on file systems where HDF5's SWMR fails, and holds the run's lock as long as it writes notes.

The record is only informative: a damaged file is reported as unreadable and never raises an error.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from genfl_mpi.results import lock
from genfl_mpi.util.errors import UserError

# What a rank notes of itself: rank, ranks, host, pid, round, phase, client, time and, after an error, raised.
# done, of: finished and planned images or clients of the phase, or None; spent: seconds from the start of the
# round and of the phase to `time`.
About: TypeAlias = dict[str, Any]

FILE_BYTES = 384  # size of a rank's file; longer only with an error's text
MAX_BYTES = 8192  # read from a rank's file
MAX_READS, SECONDS_BETWEEN_READS = 5, 1e-3  # before a note counts as damaged
PHASES = {
    "start": "starting",
    "begin": "beginning",
    "generate": "generating images",
    "augment": "training the augmented model",
    "send": "sending images",
    "train": "training",
    "wait": "waiting for the other ranks",
    "reduce": "summing weights",
    "refine": "refining the weights",
    "broadcast": "sending weights",
    "evaluate": "testing",
    "probe": "probing",
    "calibrate": "calibrating the output layer",
    "results": "writing the results file",
    "checkpoint": "writing the checkpoint",
    "finish": "finishing",
}
COUNTED = {"generate": "images", "train": "clients"}  # what a phase counts
MAX_LISTED_RANKS = 8  # bounds the ranks that are listed
MAX_ERROR_CHARS = 200
ROUNDS = "rounds"  # name of the file of finished rounds: a JSON line about the run, then one for each round


def path_for(results: Path) -> Path:
    """Return the folder of a run's progress files."""
    return results.with_suffix(".progress")


class Progress:
    """Record the activity of one rank.

    results: the run's results file; rank, ranks: of the communicator; run_lock: on rank 0 the run's `Lock`,
    which is taken here if not given.

    Rank 0 replaces the record of the previous start; `close_failed` restores it if this start is refused.
    Raises UserError on rank 0 if another job computes the run, or the folder is not writable; other ranks
    that cannot write continue without a record.
    """

    def __init__(self, results: Path, rank: int, ranks: int, run_lock: lock.Lock | None = None) -> None:
        self.about: About = {
            "rank": rank,
            "ranks": ranks,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "round": 0,
        }
        self.begun = [time.monotonic()] * 2  # when the round and the phase began
        self.results, self.folder = results, path_for(results)
        self.descriptor: int | None = None
        self.lock = run_lock or (lock.Lock(results) if rank == 0 else None)
        self.replaced = _contents(self.folder) if rank == 0 else None
        try:
            if rank == 0:
                clear(results)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(self.folder / str(rank), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if rank == 0 and self.lock:
                self.lock.release()
                raise UserError(
                    f"{self.folder}: cannot be written: {error.strerror}; set `output` to a writable folder"
                ) from None
        self("start")

    def __call__(
        self,
        phase: str,
        client: int | None = None,
        round: int | None = None,
        done: int | None = None,
        of: int | None = None,
    ) -> None:
        """Note that the rank starts a phase, of the last noted round or of `round`, or continues it.

        done, of: finished and planned images or clients of the phase.
        """
        now = time.monotonic()
        if round is not None:
            self.about["round"], self.begun[0] = round, now
        if phase != self.about.get("phase") or not done:
            self.begun[1] = now
        self.about |= {"phase": phase, "client": client, "time": _now(), "done": done, "of": of}
        self.about["spent"] = [math.floor(100 * (now - begun)) / 100 for begun in self.begun]
        if self.descriptor is not None:
            with suppress(OSError):  # a missing note is no reason to end a run
                os.pwrite(self.descriptor, f"{json.dumps(self.about):{FILE_BYTES - 1}}\n".encode(), 0)

    def note_rounds(self, *rows: Sequence[Any]) -> None:
        """Note finished rounds. The first row of a run is [method, rounds], for `status.read_status`.

        From here on the record of the previous start is not restored.
        """
        self.replaced = None
        with suppress(OSError), open(self.folder / ROUNDS, "a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)

    def note_error(self, error: BaseException) -> None:
        """Note the error that ended the current phase. It is the last note, and may exceed FILE_BYTES."""
        text = "".join(
            char if char.isprintable() else "?" for char in " ".join(str(error).split())[:MAX_ERROR_CHARS]
        )
        self.about["raised"] = ": ".join(filter(None, (type(error).__name__, text)))
        self(self.about["phase"], self.about["client"])

    def close_failed(self, error: BaseException) -> None:
        """Note the error that ends the start, and close. A refused start restores the previous record."""
        self.note_error(error)
        if self.replaced is not None and isinstance(error, UserError) and not self._is_lost():
            clear(self.results)
            with suppress(OSError):
                for name, content in self.replaced.items():
                    self.folder.mkdir(exist_ok=True)
                    (self.folder / name).write_bytes(content)
        self.close()

    def _is_lost(self) -> bool:
        return self.lock is not None and self.lock.is_lost()

    def doing(self) -> str:
        """Describe the rank's current activity."""
        return describe(self.about)

    def close(self, succeeded: bool = False) -> None:
        """Close the file; on rank 0 also release the lock. succeeded: remove the record, too."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        if self.lock:
            if succeeded and not self._is_lost():  # otherwise the record belongs to another start
                clear(self.results)
            self.lock.release()


def clear(results: Path) -> None:
    """Remove the record of a run. This process must hold the run's lock."""
    shutil.rmtree(path_for(results), ignore_errors=True)


def read(results: Path) -> list[About]:
    """Return the last note of each rank of the latest start, in order of rank.

    If a file is damaged, all values except rank are None.
    """
    found: list[About] = []
    with suppress(OSError):  # the next start may remove the files at any moment
        for path in list(path_for(results).iterdir()):
            if path.name.isascii() and path.name.isdigit() and str(int(path.name)) == path.name:
                found += _read(path)
    return sorted(found, key=lambda about: about["rank"])


def _read(path: Path) -> list[About]:
    """Return the note in a rank's file as a list of one; [] if the file is empty or missing."""
    rank = int(path.name)
    for _ in range(MAX_READS):  # a read beside a write may see parts of two notes
        try:
            with open(path, "rb") as file:
                content = file.read(MAX_BYTES)
        except FileNotFoundError:
            return []
        except OSError:
            break
        if not content:
            return []
        about = _parsed(content.partition(b"\n")[0])
        if _is_valid(about) and about["rank"] == rank:
            return [about]
        time.sleep(SECONDS_BETWEEN_READS)
    about = dict.fromkeys(("ranks", "host", "pid", "round", "phase", "client", "time", "done", "of", "spent"))
    return [about | {"rank": rank}]


def _is_valid(about: Any) -> bool:
    """Return whether a parsed line of a rank's file has the form that `Progress` writes."""
    if type(about) is not dict:
        return False
    texts = [about.get(name) for name in ("host", "phase", "time")] + [about.get("raised", "")]
    numbers = [about.get(name) for name in ("rank", "ranks", "pid", "round")]
    optional = [about.get(name, "missing") for name in ("client", "done", "of")]
    numbers += [number for number in optional if number is not None]
    spent = about.get("spent")
    if type(spent) is not list or len(spent) != 2 or not all(_is_number(one) and one >= 0 for one in spent):
        return False
    if not all(type(text) is str and text.isprintable() for text in texts):
        return False
    if not all(map(_is_count, numbers)):
        return False
    try:
        seconds_since(about)
    except (ValueError, OverflowError):
        return False
    return True


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 63


def _is_number(number: Any) -> bool:
    return type(number) is float or _is_count(number)


def _parsed(line: bytes) -> Any:
    """Parse a line of JSON. Returns None if it is not valid."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def read_rounds(results: Path) -> list[list[Any]]:
    """Return the noted rounds: [[method, rounds], [round, accuracy, images, seconds, accuracy
    of the subset], ...].

    Damaged lines are skipped; [] if the first one is damaged or missing.
    """
    try:
        with open(path_for(results) / ROUNDS, "rb") as file:
            first, *others = [_parsed(line) for line in file.read().splitlines()] or [None]
    except OSError:
        return []
    if type(first) is not list or len(first) != 2 or type(first[0]) is not str or not _is_count(first[1]):
        return []
    return [first, *filter(_is_round, others)]


def _is_round(row: Any) -> bool:
    if type(row) is not list or len(row) != 5:
        return False
    number, accuracy, images, seconds, subset = row
    if not (_is_count(number) and _is_count(images) and all(map(_is_number, (accuracy, seconds, subset)))):
        return False
    return all(0 <= one <= 1 or math.isnan(one) for one in (accuracy, subset)) and 0 <= seconds < math.inf


def is_running(results: Path) -> bool:
    """Return whether rank 0 of some start is alive and computes the run."""
    return lock.is_held(results)


def read_state(results: Path) -> str:
    """Return the state of the latest start: running, failed (a rank noted an error), or cut off.

    Returns "" if it left no record, or succeeded.
    """
    if is_running(results):
        return "running"
    return "failed" if has_failed(results) else "cut off" if read(results) else ""


def has_failed(results: Path) -> bool:
    """Return whether a rank of the latest start noted an error."""
    return any("raised" in about for about in read(results))


def seconds_since(about: About) -> float:
    """Return the duration of a rank's current phase so far, in seconds; NaN if unknown."""
    if about["time"] is None:
        return math.nan
    then = datetime.strptime(about["time"], "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC)
    return max(0.0, time.time() - then.timestamp())


def predict_round(ranks: Sequence[About]) -> tuple[float, float]:
    """Return the seconds of the current round so far and, predicted, as a whole; NaN if unknown.

    ranks: of `read`. The prediction is that of the slowest rank that counts images or clients, at the speed
    of its phase so far. Phases that have not begun are not included.
    """
    so_far, whole = math.nan, math.nan
    active = [about for about in ranks if about["phase"] and about["round"] and "raised" not in about]
    newest = max((about["round"] for about in active), default=0)
    for about in active:
        if about["round"] < newest:  # a rank that has not begun the round yet
            continue
        in_round, in_phase = about["spent"]
        so_far = max(in_round + seconds_since(about), 0.0 if math.isnan(so_far) else so_far)
        if about["done"] and about["of"]:
            left = in_phase * (about["of"] - about["done"]) / about["done"]
            whole = max(in_round + left, 0.0 if math.isnan(whole) else whole)
    return so_far, max(whole, so_far) if math.isfinite(whole) else math.nan


def describe_ranks(results: Path) -> Iterator[str]:
    """Yield a line a rank with its current or last activity, for at most MAX_LISTED_RANKS ranks."""
    known = read(results)
    for about in known[:MAX_LISTED_RANKS]:
        if about["phase"] is None:
            yield f"rank {about['rank']}: {describe(about)}"
            continue
        where = f"rank {about['rank']} of {about['ranks']} on {about['host']} (process {about['pid']})"
        yield f"{where}: {describe(about)}, since {about['time']}"
    if len(known) > MAX_LISTED_RANKS:
        yield f"and {len(known) - MAX_LISTED_RANKS} more ranks"


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the readable files of a folder, {name: bytes}."""
    found = {}
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                found[path.name] = path.read_bytes()
    return found


def _now() -> str:
    """Return the time in UTC, with milliseconds."""
    now = time.time()
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d} UTC"


def describe(about: About) -> str:
    """Describe a rank's activity. about: an item of `read`."""
    if about["phase"] is None:
        return "unreadable progress file"
    phase = PHASES.get(about["phase"]) or str(about["phase"])
    client = f" client {about['client']}" if about["client"] is not None else ""
    where = f" in round {about['round']}" if about["round"] else ""
    return phase + client + where + (f", which raised {about['raised']}" if "raised" in about else "")


def describe_count(about: About) -> str:
    """Return how many images or clients of its phase a rank has finished, or ""."""
    if not about["of"] or about["phase"] not in COUNTED:
        return ""
    return f", {about['done'] or 0} of {about['of']} {COUNTED[about['phase']]} done"
