"""Start commands in processes that need not import anything: most runs of the tests take less time than that.

A server imports genfl_mpi and all that it uses, once, and forks for every process. mpirun starts small
processes, which hand over their descriptors, and with them their place in MPI, to children of the server, and
end as those do. A child has the arguments, environment, folder and search path that Python would have given
it. Whatever it changes in memory ends with it.

    python ranks.py serve SOCKET    the server
    python ranks.py rank SOCKET     a rank, under mpirun, of the job in the variable JOB

A child inherits from the server what is fixed when a process starts: limits of resources, cores, and
variables that are read while modules are imported. Tests of these, and of the start itself, start processes
of their own."""

import json
import os
import re
import signal
import socket
import sys
import time
from contextlib import suppress

MAX_MESSAGE_BYTES = 1 << 17
MAX_DESCRIPTORS = 16
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)

# Modules that genfl_mpi imports late, with the attributes that import more.
LATE = {
    "matplotlib.pyplot": (),
    "torchvision.datasets": (),
    "torchvision.models": (),
    "sklearn.datasets": (),
    "PIL.Image": (),
    "peft": (),
    "diffusers": (
        "AutoencoderKL",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "DiffusionPipeline",
        "PNDMScheduler",
        "StableDiffusionPipeline",
        "UNet2DConditionModel",
    ),
    "transformers": ("AutoTokenizer", "CLIPTextConfig", "CLIPTextModel", "CLIPTokenizer"),
}


def without_leaks(text):
    """Remove the report of nanobind, which triton uses, on objects that a fork leaves to the system."""
    return re.sub(
        r"^(nanobind: .*| - leaked .*| - \.\.\. skipped .*|See https://nanobind.*)\n?", "", text, flags=re.M
    )


class Server:
    """The server, until `close` or the end of this process.

    path: of its socket, which must be short. program: the file that is run as the server. tracer: a command
    that runs another one under its eyes. environment: the server's, by default this process's."""

    def __init__(self, path, program=__file__, tracer=(), environment=None):
        import subprocess

        self.socket = str(path)
        self.process = subprocess.Popen(
            [*tracer, sys.executable, str(program), "serve", self.socket],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self.process.stdout.readline() == b"ready\n", "the server of the tests' ranks did not start"

    def rank_command(self):
        """The command of a rank, for mpirun; it finds its job in the variable JOB."""
        return ["-I", "-S", __file__, "rank", self.socket]

    def reap(self, name):
        """Return when no process is left of the jobs called `name`, all of which are about to end."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(self.socket)
            connection.send(json.dumps({"reap": name}).encode())
            connection.recv(MAX_MESSAGE_BYTES)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def ask(path, job, descriptors, timeout=None, started=lambda pid: None):
    """Let the server at `path` do a job, and return the exit status of its process.

    The status is negative if a signal ended the process, and None if it took longer than `timeout` seconds
    and was ended. descriptors: {number in the job's process: descriptor here}. started: called with the
    process id."""
    deadline = time.monotonic() + timeout if timeout else None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(path)
        job = {"rank": 0, **job, "environment": dict(os.environ), "numbers": list(descriptors)}
        socket.send_fds(connection, [json.dumps(job).encode()], list(descriptors.values()))
        try:
            connection.settimeout(timeout)
            started(json.loads(connection.recv(MAX_MESSAGE_BYTES)))
            connection.settimeout(deadline and max(1e-3, deadline - time.monotonic()))
            return json.loads(connection.recv(MAX_MESSAGE_BYTES))
        except TimeoutError:
            return None  # the server ends the process when the connection is closed


def rank(path):
    """Be a rank for mpirun while a child of the server does its work."""
    job, number = json.loads(os.environ.pop("JOB")), int(os.environ.get("PMI_RANK", 0))
    links = [int(value) for name, value in os.environ.items() if name.endswith("_FD")]  # to the launcher
    held = job.get("held", [])  # descriptors that are open as long as the process

    def forward(pid):
        for one in FORWARDED:
            signal.signal(one, lambda number, _: os.kill(pid, number))

    status = ask(
        path, job | {"rank": number}, {one: one for one in (0, 1, 2, *links, *held)}, started=forward
    )
    if status is None or status < 0:
        number = -(status or -signal.SIGKILL)
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(status)


def serve(path):
    """Fork for each job that comes to the socket `path` until standard input ends. In a child, return its
    job."""
    import gc
    import selectors

    front = [sys.path[0], *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    search = [one for one in sys.path if one not in front]
    _import_everything()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    selector, children = selectors.DefaultSelector(), {}
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    gc.collect()
    gc.freeze()
    print("ready", flush=True)

    def end(pid):
        """Wait for the end of a child, and send its status to the process that asked."""
        connection, ended, _ = children.pop(pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for one in (connection, ended):
            selector.unregister(one)
        os.close(ended)
        with connection, suppress(OSError):
            connection.send(json.dumps(status).encode())

    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            elif key.fileobj is listener:
                connection, _ = listener.accept()
                message, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS)
                job = json.loads(message)
                if "reap" in job:
                    for pid in [pid for pid, (_, _, name) in children.items() if name == job["reap"]]:
                        end(pid)
                    with connection:
                        connection.send(b"null")
                    continue
                if not (pid := os.fork()):
                    selector.close()
                    for one in (listener, connection, *(one for one, _, _ in children.values())):
                        one.close()
                    for _, ended, _ in children.values():
                        os.close(ended)
                    return job | {"descriptors": descriptors, "search": search}
                for descriptor in descriptors:
                    os.close(descriptor)
                with suppress(OSError):
                    connection.send(json.dumps(pid).encode())
                children[pid] = connection, os.pidfd_open(pid), job.get("name")
                for one in children[pid][:2]:
                    selector.register(one, selectors.EVENT_READ, pid)
            elif key.data in children:
                if key.fileobj is children[key.data][0]:  # who asked waits no longer
                    os.kill(key.data, signal.SIGKILL)
                end(key.data)


def _import_everything():
    """Import genfl_mpi and what it imports late, without initializing MPI: only a child has a launcher."""
    from importlib import import_module
    from pkgutil import walk_packages

    import mpi4py

    mpi4py.rc.initialize = False
    import genfl_mpi

    for module in walk_packages(genfl_mpi.__path__, "genfl_mpi."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    for name, attributes in LATE.items():
        module = import_module(name)
        for attribute in attributes:
            getattr(module, attribute)


def take_over(job):
    """In the child: take over the job's descriptors and environment."""
    import fcntl

    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 500) for descriptor in job["descriptors"]]
    for descriptor in job["descriptors"]:
        os.close(descriptor)
    for descriptor, number in zip(moved, job["numbers"]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(job["environment"])


def run_python(job):
    """In the child: do what `python *arguments` would, where the first is a file or -m, and end as it would.

    Of the job: arguments; folder: to work in; search: the server's search path without what its own start put
    in front."""
    import runpy

    from mpi4py import MPI

    MPI.Init_thread()
    arguments = job["arguments"]
    module = arguments[1] if arguments[0] == "-m" else None
    sys.orig_argv[:] = [sys.executable, *arguments]
    sys.argv[:] = arguments[1:] if module else arguments
    os.chdir(job["folder"])
    given = job["environment"].get("PYTHONPATH", "").split(os.pathsep)
    first = job["folder"] if module else os.path.dirname(os.path.abspath(arguments[0]))
    sys.path[:] = [first, *filter(None, given), *job["search"]]
    status = 0
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if status and not isinstance(left.code, int):
            print(left.code, file=sys.stderr)
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        status = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    leave(status)


def leave(status):
    """End the process as Python does, without clearing its memory, which takes longer than most runs."""
    import atexit
    import ctypes
    import threading

    from mpi4py import MPI

    threading._shutdown()
    atexit._run_exitfuncs()
    if not MPI.Is_finalized():
        MPI.Finalize()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    ctypes.CDLL(None).exit(status)  # where MPICH takes leave of its launcher


if __name__ == "__main__":
    if sys.argv[1] == "rank":
        rank(sys.argv[2])
    job = serve(sys.argv[2])
    take_over(job)
    run_python(job)
