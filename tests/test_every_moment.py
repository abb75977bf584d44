"""Kill a run, or let its disk fail, at any moment.

The error is one line, no finished round is lost, and the same command continues to bit-identical results.
"""

import errno
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import FAST, TINY, is_open_mpi
from every_moment import Fault, Kind, Run, Server

ALONE = [
    *FAST,
    "rounds=2",
    "output={root}/results",
    "--member",
    "0",
]  # without the figure, which takes longer than the run
# AIGC-only does not depend on alpha: the second run of this sweep copies the rounds of the first.
TWO_EQUAL = [
    *TINY,
    "method=aigc",
    "sweep.partition.alpha=[0.1,5.0]",
    "generation.steps=1",
    "data.name=synthetic",
    "data.samples=200",
    "data.size=8",
    "generation.bank={root}/bank",
    "output={root}/results",
    "--member",
]
FEDADAM = ["algorithm.name=fedadam", "algorithm.server_lr=0.01"]
KINDS = {
    "plain": Kind(ALONE),
    "client state": Kind([*ALONE, "algorithm.name=scaffold", "checkpoint.keep=auto"]),
    "server moments": Kind([*ALONE, *FEDADAM]),
    "policy memory": Kind([*ALONE, "selection.policy=importance"]),
    "images, bank": Kind(
        [
            *TINY,
            "generation.steps=1",
            "data.name=synthetic",
            "data.samples=200",
            "data.size=8",
            "rounds=2",
            "generation.bank={root}/bank",
            "output={root}/results",
            "--member",
            "0",
        ]
    ),
    "continued, figure": Kind([*FAST, *FEDADAM, "rounds=2", "output={root}/results"], cut=0.8),
    "extended": Kind(ALONE, before=[[*ALONE, "rounds=1"]]),
    "fork": Kind(
        ["fork", "{root}/original/fedavg_seed1.h5", "--at", "1", "training.lr=0.05", "output={root}/results"],
        before=[[*ALONE, *FEDADAM, "checkpoint.keep=1", "output={root}/original"]],
    ),
    "copied": Kind([*TWO_EQUAL, "1"], before=[[*TWO_EQUAL, "0"]]),
    "groups": Kind(
        [*FAST, "rounds=1", "sweep.seed=[1,2]", "runtime.ranks_per_run=1", "output={root}/results"], ranks=2
    ),
}
FAULTS = {"SIGKILL": (0, False), "EIO": (errno.EIO, False), "ENOSPC": (errno.ENOSPC, True)}
ATTEMPTS = 5  # at a call that several ranks may reach, or not


@pytest.fixture(scope="module")
def server():
    if not shutil.which("gcc"):
        pytest.skip("no gcc, to make the library that disturbs")
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=fast) as folder, Server(f"{folder}/server") as server:
        server.runs = Path(folder)
        yield server


def made(server, kind):
    """The `Run` of a kind, made once."""
    if KINDS[kind].ranks > 1 and is_open_mpi():
        pytest.skip("its ranks cannot be handed over")
    name = re.sub(r"\W+", "-", kind)
    found = server.__dict__.setdefault("made", {})
    if kind not in found:
        found[kind] = Run(server, name, KINDS[kind], server.runs)
    return found[kind]


def disturb(run, fault):
    for _ in range(ATTEMPTS):
        try:
            return run.disturb(fault)
        except Exception as error:  # whatever reading what is left raises
            if "was not reached" not in str(error) or run.kind.ranks == 1:
                return error
            found = error
    return found


def disturb_all(run, kind, faults):
    """Print a table row for each name in `faults`, {name: [Fault]}; fail if any run ends wrongly."""
    wrong = []
    for name, points in faults.items():
        start = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            became = list(pool.map(lambda fault: disturb(run, fault), points))
        for fault, one in zip(points, became):
            if isinstance(one, Exception):
                call = run.log[fault.call - 1] if fault.call <= len(run.log) else ""
                wrong.append(f"{kind}, {name} at call {fault.call} of rank {fault.rank} {call}: {one}")
        count = Counter("wrong" if isinstance(one, Exception) else one for one in became)
        print(
            f"| {kind} | {name} | {len(points)} | {count['killed']} | {count['one line']} | "
            f"{count['went on']} | {count['wrong']} | {time.perf_counter() - start:.0f} |",
            flush=True,
        )
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("kind", ["plain", pytest.param("continued, figure", marks=pytest.mark.slow)])
def test_ten_moments(kind, server):
    run = made(server, kind)
    last = run.calls[0]
    points = sorted({12, last // 10, last // 3, last // 3 * 2, last})
    disturb_all(run, kind, {name: [Fault(point, *how) for point in points] for name, how in FAULTS.items()})


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_moment(kind, server):
    run = made(server, kind)
    rank, every = run.kind.ranks - 1, int(os.environ.get("EVERY", "1"))
    disturb_all(
        run,
        kind,
        {
            name: [Fault(call, *how, rank) for call in range(1, run.calls[rank] + 1, every)]
            for name, how in FAULTS.items()
        },
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].ranks == 1])
def test_every_power_cut(kind, server):
    start = time.perf_counter()
    states = made(server, kind).cut_off()
    print(f"| {kind} | power cut | {states} | | | | | {time.perf_counter() - start:.0f} |", flush=True)


@pytest.mark.parametrize("clocks", [(0, -1e6), (0, 1e9), (1e9, 0)])
def test_a_clock_that_is_set(clocks, server):
    run = made(server, "extended")
    assert run.disturb(Fault(run.calls[0] // 2, 0), clocks) == "killed"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ["client state", "images, bank", "fork"])
def test_no_call_is_missed(kind, tmp_path):
    """What is counted is what the kernel sees."""
    if not shutil.which("strace"):
        pytest.skip("no strace, to compare with")
    calls = (
        "open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,sendfile,splice,copy_file_range,fsync,fdatasync,ftruncate,"
        "truncate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,fallocate,mmap,"
        "io_uring_setup"
    )
    others = {"openat": "open", "renameat": "rename", "unlinkat": "unlink", "mkdirat": "mkdir"}
    trace, unseen, seen = tmp_path / "trace", tmp_path / "unseen", Counter()
    with Server(
        tmp_path / "server", ["strace", "-f", "-qq", "-y", "-o", trace, "-e", f"trace={calls}"]
    ) as server:
        run = Run(server, "run", KINDS[kind], tmp_path)
        run.uncounted(unseen)
    for line in trace.read_text().splitlines():
        name = re.sub(r"^\d+ +(\w+)\(.*", r"\1", line)
        if str(unseen) in line and (
            name not in ("open", "openat", "mmap")
            or re.search("O_CREAT|O_TRUNC|MAP_SHARED.*PROT_WRITE", line)
        ):
            seen[others.get(name, name)] += 1
    assert seen == Counter(line.split()[0] for line in run.log)
