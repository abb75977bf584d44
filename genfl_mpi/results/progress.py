"""What each rank is doing, in a folder beside the results file: a rank that is killed cannot report it.

A rank's file is one line of JSON, overwritten in place whenever the rank begins something else. It stays in
the page cache, so that it costs microseconds and outlives the rank. Rank 0 also notes each finished round,
for readers of file systems on which HDF5's SWMR fails, and holds the run's lock as long as it notes anything.

The record only informs: a file that is damaged is reported as unreadable, and is never an error.
"""

import json
import math
import os
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime

from genfl_mpi.results import lock
from genfl_mpi.util.errors import UserError

LENGTH = 256  # bytes of a file
MAX_BYTES = 8192  # that are read of one: an error's text makes it longer
PHASES = {
    "start": "starting",
    "begin": "beginning",
    "generate": "generating images",
    "augment": "training the augmented model",
    "send": "sending images",
    "train": "training",
    "wait": "waiting for the others",
    "reduce": "summing weights",
    "broadcast": "sending weights",
    "evaluate": "testing",
    "probe": "probing",
    "results": "writing the results file",
    "checkpoint": "writing the checkpoint",
    "finish": "finishing",
}
MOST = 8  # ranks that are told of
MOST_SAID = 200  # characters of what an error says
ROUNDS = "rounds"  # the file of finished rounds: a line of JSON about the run, then one for each round


def path_for(results):
    return results.with_suffix(".progress")


class Progress:
    """Of one rank of a start.

    results: the run's results file; rank, ranks: of the communicator; held: on rank 0 the run's `Lock`, taken
    here if none is given.

    Rank 0 replaces the record of the start before; `failed` puts it back if this start does not go on. Raises
    UserError on rank 0 if the run is being computed already, or nothing can be written; another rank that
    cannot write goes on without.
    """

    def __init__(self, results, rank, ranks, held=None):
        self.about = {
            "rank": rank,
            "ranks": ranks,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "round": 0,
        }
        self.results, self.descriptor, self.folder = results, None, path_for(results)
        self.lock = held or (lock.Lock(results) if rank == 0 else None)
        self.replaced = _contents(self.folder) if rank == 0 else None
        try:
            if rank == 0:
                clear(results)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(self.folder / str(rank), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if rank == 0:
                self.lock.release()
                raise UserError(
                    f"{self.folder}: cannot be written: {error.strerror}; set `output` to a folder that can"
                ) from None
        self("start")

    def __call__(self, phase, client=None, round=None):
        """Note that the rank begins a phase of the round noted last, or of `round`."""
        self.about |= {"phase": phase, "client": client, "time": _now()} | (
            {} if round is None else {"round": round}
        )
        if self.descriptor is not None:
            with suppress(OSError):  # it is a help, and no reason to end a run
                os.pwrite(self.descriptor, f"{json.dumps(self.about):{LENGTH - 1}}\n".encode(), 0)

    def finished(self, *rows):
        """Note finished rounds, or first of all what `status.of_run` needs to know of the run: a list each.

        The start goes on then, and the record of the one before is dropped.
        """
        self.replaced = None
        with suppress(OSError), open(self.folder / ROUNDS, "a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)

    def raised(self, error):
        """Note that what the rank was doing has failed. It is the rank's last word, and may be longer than others."""
        text = "".join(one if one.isprintable() else "?" for one in " ".join(str(error).split())[:MOST_SAID])
        self.about["raised"] = ": ".join(filter(None, (type(error).__name__, text)))
        self(self.about["phase"], self.about["client"])

    def failed(self, error):
        """Note why the start ends, and close. One that is refused before it goes on puts back the record that
        it replaced."""
        self.raised(error)
        if self.replaced is not None and isinstance(error, UserError) and not self.lock.is_lost():
            clear(self.results)
            with suppress(OSError):
                for name, content in self.replaced.items():
                    self.folder.mkdir(exist_ok=True)
                    (self.folder / name).write_bytes(content)
        self.close()

    def doing(self):
        """What the rank is doing, in words."""
        return doing(self.about)

    def close(self, ended=False):
        """Close the file; on rank 0 also release the run's lock. ended: well, so remove the record, too."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        if self.lock:
            if ended and not self.lock.is_lost():  # else the record is another start's
                clear(self.results)
            self.lock.release()


def clear(results):
    """Remove the record of a run whose lock this process holds."""
    shutil.rmtree(path_for(results), ignore_errors=True)


def read(results):
    """What is known of each rank of the start that left its progress here, in their order: dicts. Of a rank
    whose file is damaged, the other values are None."""
    found = []
    with suppress(OSError):  # the next start removes them, at any moment
        for path in list(path_for(results).iterdir()):
            if path.name.isascii() and path.name.isdigit() and str(int(path.name)) == path.name:
                found += _read(path)
    return sorted(found, key=lambda about: about["rank"])


def _read(path):
    """[What a rank's file says]; [] if it says nothing yet, or is gone."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES)
    except FileNotFoundError:
        return []
    except OSError:
        content = b"unreadable"
    if not content:
        return []
    about = _parsed(content.partition(b"\n")[0])
    if not _is_valid(about) or about["rank"] != int(path.name):
        about = dict.fromkeys(("ranks", "host", "pid", "round", "phase", "client", "time"))
        about["rank"] = int(path.name)
    return [about]


def _is_valid(about):
    """Return whether a line of a rank's file says what `Progress` writes."""
    if type(about) is not dict:
        return False
    texts = [about.get(name) for name in ("host", "phase", "time")] + [about.get("raised", "")]
    numbers = [about.get(name) for name in ("rank", "ranks", "pid", "round")]
    if about.get("client", "missing") is not None:
        numbers.append(about.get("client"))
    if not all(type(text) is str and text.isprintable() for text in texts):
        return False
    if not all(map(_is_count, numbers)):
        return False
    try:
        seconds_since(about)
    except (ValueError, OverflowError):
        return False
    return True


def _is_count(number):
    return type(number) is int and 0 <= number < 1 << 63


def _is_number(number):
    return type(number) is float or _is_count(number)


def _parsed(line):
    """What a line of JSON says, None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def rounds(results):
    """What was noted of finished rounds: [[method, rounds], [round, accuracy, images, seconds], ...], without
    damaged lines; [] if the first one is damaged or missing."""
    try:
        with open(path_for(results) / ROUNDS, "rb") as file:
            first, *others = [_parsed(line) for line in file.read().splitlines()] or [None]
    except OSError:
        return []
    if type(first) is not list or len(first) != 2 or type(first[0]) is not str or not _is_count(first[1]):
        return []
    return [first, *filter(_is_round, others)]


def _is_round(row):
    if type(row) is not list or len(row) != 4:
        return False
    number, accuracy, images, seconds = row
    if not (_is_count(number) and _is_count(images) and _is_number(accuracy) and _is_number(seconds)):
        return False
    return (0 <= accuracy <= 1 or math.isnan(accuracy)) and 0 <= seconds < math.inf


def is_running(results):
    """Whether rank 0 of some start is alive and at work on the run."""
    return lock.is_held(results)


def state(results):
    """Of the start that left its progress here, in a word: running; failed, with an error that a rank could
    still note; cut off, without; "" if no start left any, or it ended well."""
    if is_running(results):
        return "running"
    return "failed" if has_failed(results) else "cut off" if read(results) else ""


def has_failed(results):
    """Whether a rank of the start that left its progress here noted an error."""
    return any("raised" in about for about in read(results))


def seconds_since(about):
    """How long a rank has been doing what it does; NaN if that is unknown."""
    if about["time"] is None:
        return math.nan
    then = datetime.strptime(about["time"], "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC)
    return max(0.0, time.time() - then.timestamp())


def lines(results):
    """Who is, or was, doing what: a line a rank."""
    known = read(results)
    for about in known[:MOST]:
        if about["phase"] is None:
            yield f"rank {about['rank']}: {doing(about)}"
            continue
        where = f"rank {about['rank']} of {about['ranks']} on {about['host']} (process {about['pid']})"
        yield f"{where}: {doing(about)}, since {about['time']}"
    if len(known) > MOST:
        yield f"and {len(known) - MOST} more ranks"


def _contents(folder):
    """The files of a folder, {name: bytes}; those that can be read."""
    found = {}
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):
                found[path.name] = path.read_bytes()
    return found


def _now():
    now = time.time()
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d} UTC"


def doing(about):
    """What a rank is doing, in words. about: as `read` gives it."""
    if about["phase"] is None:
        return "unreadable progress file"
    what = PHASES.get(about["phase"], about["phase"])
    who = f" client {about['client']}" if about["client"] is not None else ""
    where = f" in round {about['round']}" if about["round"] else ""
    return what + who + where + (f", which raised {about['raised']}" if "raised" in about else "")
