"""Disturb a run at each system call that changes a file: kill it before the call, or let the call fail.

Each start is a fork of a server, as in ranks.py. There every_moment.c counts the calls and disturbs one.

    python every_moment.py serve SOCKET    the server
"""

import hashlib
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import ranks

LIMIT = 300  # seconds, after which a start counts as hanging
PAGE = 4096  # bytes that a process shares with the test: the number of calls, and names of shared memory


class Fault(NamedTuple):
    """A disturbance of one system call.

    call: number of the disturbed call, from 1; error: errno with which it fails, or 0 for SIGKILL; stays:
    whether every later call that takes disk space fails too; rank: of the disturbed process.
    """

    call: int
    error: int
    stays: bool = False
    rank: int = 0


class Ended(NamedTuple):
    """How a start ended.

    status: exit status, negative for a killed process, None for one that hung; calls: number of counted calls
    of each rank; said, complaints: standard output and error.
    """

    status: int | None
    calls: list
    said: str
    complaints: str


class Server:
    """Starts commands of genfl_mpi in processes with all modules already imported.

    folder: for the server's files, outside the folders of the runs; tracer: a command that runs and traces
    another one.
    """

    def __init__(self, folder, tracer=()):
        self.folder = Path(folder)
        self.folder.mkdir()
        subprocess.run(
            [
                "gcc",
                "-O1",
                "-shared",
                "-fPIC",
                "-o",
                self.folder / "every_moment.so",
                Path(__file__).with_suffix(".c"),
            ],
            check=True,
        )
        self.server = ranks.Server(f"{folder}/socket", program=__file__, tracer=tracer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.close()

    def start(self, name, arguments, root, count=1, fault=None, **more):
        """Run a command to its end, on `count` ranks, and return `Ended`.

        name: of the start, for its files; root: the folder below which calls are counted; more: further keys
        of the job, as in `become`.
        """
        out, err = (self.folder / f"{name}.{ending}" for ending in ("out", "err"))
        pages = [self.folder / f"{name}.{rank}" for rank in range(count)]
        for page in pages:
            page.write_bytes(bytes(PAGE))
        job = {
            "arguments": arguments,
            "root": os.path.realpath(root),
            "fault": fault,
            "pages": list(map(str, pages)),
            "out": str(out),
            "library": f"{self.folder}/every_moment.so",
            **more,
        }
        with open(out, "wb") as said, open(err, "wb") as complaints:
            if count == 1:
                descriptors = {1: said.fileno(), 2: complaints.fileno()}
                status = ranks.ask(self.server.socket, job, descriptors, LIMIT)
            else:
                from conftest import command

                process = subprocess.Popen(
                    command(count, *self.server.rank_command()),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=complaints,
                    env={**os.environ, "JOB": json.dumps(job)},
                )
                try:
                    status = process.wait(LIMIT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    status = process.wait() and None
        content = [page.read_bytes() for page in pages]
        for memory in b"".join(one[8:].rstrip(b"\0") for one in content).split():
            Path(os.fsdecode(memory)).unlink(missing_ok=True)
        ended = Ended(
            status,
            [int.from_bytes(one[:8], "little") for one in content],
            out.read_text(),
            ranks.without_leaks(err.read_text()),
        )
        for path in (out, err, *pages):
            path.unlink()
        return ended


def become(job):
    """Run the job in the child process and return the exit status.

    Optional keys of the job: log: a file that records each counted call; states: a folder for the disk states
    after a power cut (see `Disk`); clock: seconds by which the time of day is wrong; uncounted: do not count
    calls; quick: exit without the interpreter's shutdown, which takes longer than the run.
    """
    import atexit
    import ctypes
    import time

    ranks.take_over(job)
    sys.stdout.reconfigure(line_buffering=True)

    fault = Fault(*job["fault"]) if job["fault"] else Fault(0, 0)
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT, 0o666) if job.get("log") else -1
    with open(job["pages"][job["rank"]], "r+b") as file:
        page = ctypes.c_char.from_buffer(mmap.mmap(file.fileno(), PAGE))
    look = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p)(
        Disk(job).look if job.get("states") else 0
    )
    if not job.get("uncounted"):
        call = ctypes.c_long(fault.call if fault.rank == job["rank"] else 0)
        assert (
            ctypes.CDLL(job["library"]).moments_start(
                job["root"].encode(), ctypes.byref(page), call, fault.error, fault.stays, log, look
            )
            == 0
        )

    from mpi4py import MPI

    from genfl_mpi.cli import main

    MPI.Init_thread()
    atexit.register(MPI.Finalize)
    if job.get("clock"):
        now, now_ns = time.time, time.time_ns
        time.time, time.time_ns = lambda: now() + job["clock"], lambda: now_ns() + job["clock"] * 10**9
    status = main(job["arguments"])
    if job.get("quick"):
        MPI.Finalize()
        os._exit(status)
    return status


class Disk:
    """The states of the disk that a power cut would leave.

    Files have the content of their last sync. Names come in two variants: those present when their folder was
    last synced, and those present now, because a system may write names to the disk before it has to.

    `look` runs before each counted call and records the states after the previous call. Each state is a line
    of JSON in the file `states` of the folder: [rounds reported as finished, {path: name of the file with its
    content}]. Paths of folders end in /.
    """

    def __init__(self, job):
        self.root, self.folder, self.out, self.last = job["root"], Path(job["states"]), job["out"], None
        self.folder.mkdir()
        self.held, self.contents, self.names, self.known = {}, {}, {}, {}
        for folder, entries in self._there().items():  # what is there before is on the disk
            self.names[folder] = entries
            for inode, path in entries.values():
                self._sync(inode, path)

    def look(self, call, path):
        now = self._there()
        if self.last:
            call_before, path_before = self.last
            if call_before in ("fsync", "fdatasync"):
                if os.path.isdir(path_before):
                    inode = os.stat(path_before).st_ino
                    self.names[inode] = now[inode]
                else:
                    self._sync(os.stat(path_before).st_ino, path_before)
        self._note(now)
        self._note(self.names)
        self.last = call.decode(), path.decode()

    def _there(self):
        """Return {inode of a folder: {name: (inode, path)}}.

        Holds every file open, so that its inode is not reused.
        """
        found, folders = {}, [self.root]
        while folders:
            folder = folders.pop()
            entries = found[os.stat(folder).st_ino] = {}
            for entry in os.scandir(folder):
                inode = entry.inode()
                entries[entry.name] = inode, entry.path
                if inode not in self.held:
                    self.held[inode] = os.open(entry.path, os.O_RDONLY)
                if entry.is_dir():
                    folders.append(entry.path)
        return found

    def _sync(self, inode, path):
        if os.path.isfile(path):
            content = Path(path).read_bytes()
            self.contents[inode] = hashlib.sha256(content).hexdigest()
            (self.folder / self.contents[inode]).write_bytes(content)

    def _note(self, names):
        state, folders = {}, [(os.stat(self.root).st_ino, "")]
        while folders:
            folder, path = folders.pop()
            for name, (inode, _) in names.get(folder, {}).items():
                if os.path.stat.S_ISDIR(os.fstat(self.held[inode]).st_mode):
                    state[f"{path}{name}/"] = None
                    folders.append((inode, f"{path}{name}/"))
                else:
                    state[f"{path}{name}"] = self.contents.get(inode)
        rounds, key = rounds_said(Path(self.out).read_text()), json.dumps(state, sort_keys=True)
        if self.known.get(key) != rounds:
            self.known[key] = rounds
            (self.folder / "states").write_text(
                "".join(f"[{json.dumps(rounds)}, {state}]\n" for state, rounds in self.known.items())
            )


def rounds_said(text):
    """Return {run: the last round reported as finished}.

    Lines of several processes may run together, so that a letter can stand before a name.
    """
    found = {}
    for name, round in re.findall(r"((?:fedavg|genfl)_seed\d+)  round (\d+)/", text):
        found[name] = max(found.get(name, 0), int(round))
    return found


# The runs, and what must be true of each when it was disturbed.


class Kind(NamedTuple):
    """A run to be disturbed.

    arguments: of the command, which writes into {root}/results; ranks: number of ranks; before: arguments of
    the commands that run undisturbed before it; cut: if not 0, the run to be disturbed continues one that was
    killed after this share of its calls.
    """

    arguments: list
    ranks: int = 1
    before: tuple = ()
    cut: float = 0


class Run:
    """A `Kind` in a folder: its initial state, and its undisturbed end.

    server: starts its processes; calls: number of calls of each rank; log: the calls of a single rank, empty
    for several ranks; whole: {results file: digests}.
    """

    def __init__(self, server, name, kind, folder):
        self.server, self.name, self.kind, self.folder, self.start = (
            server,
            name,
            kind,
            Path(folder) / name,
            f"{folder}/{name}/start",
        )
        Path(self.start).mkdir(parents=True)
        for number, arguments in enumerate(kind.before):
            self._undisturbed(f"before{number}", self.start, arguments)
        if kind.cut:
            self._undisturbed("uncut", f"{self.folder}/uncut", kind.arguments)
            fault = Fault(round(kind.cut * max(self.calls)), 0)
            server.start(f"{name}-cut", self._at(self.start, kind.arguments), self.start, fault=fault)
        shutil.copytree(self.start, whole := self.folder / "whole")
        more = {} if kind.ranks > 1 else {"log": f"{self.folder}/log"}
        self._undisturbed("whole", whole, kind.arguments, kind.ranks, **more)
        self.whole = digests(whole)
        self.log = (self.folder / "log").read_text().splitlines() if more else []

    def _at(self, root, arguments):
        return [str(one).replace("{root}", str(root)) for one in arguments]

    def uncounted(self, root):
        """Run once more, unseen."""
        shutil.copytree(self.start, root)
        return self._undisturbed("uncounted", root, self.kind.arguments, uncounted=True)

    def _undisturbed(self, what, root, arguments, count=1, **more):
        Path(root).mkdir(exist_ok=True)
        ended = self.server.start(f"{self.name}-{what}", self._at(root, arguments), root, count, **more)
        assert ended.status == 0, ended
        self.calls = ended.calls

    def disturb(self, fault, clocks=(0, 0)):
        """Start the run with a `Fault`, then continue it.

        clocks: seconds by which the time of day is wrong in each of the two starts. Returns how the first one
        ended: "killed", "one line" or "went on". Raises AssertionError for any other end, or if anything is
        lost.
        """
        where = f"{self.name}-{fault.error}-{fault.rank}-{fault.call}"
        root = self.folder / where
        shutil.copytree(self.start, root)
        ended = self.server.start(
            where, self._at(root, self.kind.arguments), root, self.kind.ranks, fault, clock=clocks[0]
        )
        assert ended.calls[fault.rank] >= fault.call, "this call was not reached"
        became = self._judge(fault, ended)
        self.go_on(root, rounds_said(ended.said), where, clock=clocks[1])
        shutil.rmtree(root)
        return became

    def _judge(self, fault, ended):
        assert ended.status is not None, f"it hangs: {ended}"
        lines = [
            line
            for line in ended.complaints.splitlines()
            if "MPI_Abort" not in line or "application called" not in line
        ]
        if not fault.error:
            assert (ended.status == -signal.SIGKILL) if self.kind.ranks == 1 else ended.status, ended
            return "killed"
        if ended.status == 0:
            assert not lines, ended
            return "went on"
        assert ended.status == 2 and len(lines) == 1 and lines[0].startswith("genfl_mpi: "), ended
        return "one line"

    def go_on(self, root, rounds, where, **more):
        """Start the disturbed run again.

        rounds: {run: last round reported as finished}. Raises AssertionError if one of these rounds is
        missing, or if the result differs from that of the undisturbed run.
        """
        there = finished_rounds(root)
        assert all(there.get(name, 0) >= round for name, round in rounds.items()), (
            f"of the finished rounds {rounds} are left {there}"
        )
        again = self.server.start(
            f"{where}-again",
            self._at(root, self.kind.arguments),
            root,
            self.kind.ranks,
            quick=self.kind.ranks == 1,
            **more,
        )  # MPICH takes leave of its launcher at the interpreter's end
        assert again.status == 0 and not again.complaints, again
        assert digests(root) == self.whole, "another result"

    def cut_off(self):
        """Continue the run from each distinct disk state that a power cut would leave; return the count."""
        states = self.folder / "states"
        root = self.folder / "disk"
        shutil.copytree(self.start, root)
        ended = self.server.start(
            f"{self.name}-states", self._at(root, self.kind.arguments), root, states=str(states)
        )
        assert ended.status == 0, ended
        found = [json.loads(line) for line in (states / "states").read_text().splitlines()]
        for number, (rounds, content) in enumerate(found):
            shutil.rmtree(root)
            root.mkdir()
            for path, what in sorted(content.items()):
                if path.endswith("/"):
                    (root / path).mkdir()
                else:
                    (root / path).write_bytes((states / what).read_bytes() if what else b"")
            try:
                self.go_on(root, rounds, f"{self.name}-disk{number}")
            except AssertionError as error:
                raise AssertionError(
                    f"{self.name}, power cut {number} of {len(found)}, {sorted(content)}: {error}"
                ) from None
        return len(found)


def results(root):
    return sorted(Path(root, "results").glob("*.h5"))


def digests(root):
    from genfl_mpi.results import reader

    return {path.name: reader.digests(path) for path in results(root)}


def finished_rounds(root):
    from genfl_mpi.results import reader

    found = {}
    for path in results(root):
        with reader.open_results(path) as file:
            rounds = reader.read_columns(file, "rounds", ["round"])["round"].tolist()
            assert rounds == list(range(1, len(rounds) + 1)), rounds
            found[path.stem] = len(rounds)
    return found


if __name__ == "__main__":
    sys.exit(become(ranks.serve(sys.argv[2])))
