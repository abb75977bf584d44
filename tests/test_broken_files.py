"""Real failures of files and disks: one line of error, exit status 2, and no loss of written data."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import FAST, Job, mpirun

from genfl_mpi.cli import main
from genfl_mpi.generation import bank
from genfl_mpi.results import checkpoint, reader
from genfl_mpi.util.errors import UserError


def said_once(text):
    """The one line that a failed command says, besides what the launcher adds."""
    lines = [line for line in text.splitlines() if line.startswith("genfl_mpi: ")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a small disk, or mounts it again with other options, and returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    while subprocess.run(["umount", "--lazy", folder], capture_output=True).returncode == 0:
        pass


def finish_and_compare(overrides, folder, tmp_path, rounds):
    for output in (folder, tmp_path / "whole"):
        assert main([*overrides, f"rounds={rounds}", f"output={output}"]) == 0
    assert reader.digests(folder / "fedavg_seed1.h5") == reader.digests(tmp_path / "whole/fedavg_seed1.h5")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_ends_the_run_in_one_line(ranks, small_disk, tmp_path, capfd):
    """It fills up while the run writes: somebody else's file takes what room there is."""
    disk = small_disk("size=40m")
    job = Job(
        ranks,
        [*FAST, "rounds=5000", f"output={disk}/results"],
        disk / "results/fedavg_seed1.h5",
        tmp_path / "log",
    )
    job.after_round(3)
    (disk / "somebody").write_bytes(bytes(30_000_000))
    assert job.end() == 2
    line = said_once(job.said())
    print(line)
    assert "the disk is full" in line and "finished rounds are kept" in line
    done = checkpoint.list_rounds(job.results)[-1]
    with reader.open_results(job.results) as file:
        assert len(file["rounds/round"]) >= done >= 3
    (disk / "somebody").unlink()
    finish_and_compare(FAST, disk / "results", tmp_path, done + 2)


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_disk_that_is_full_in_the_middle_of_a_write(ranks, small_disk, tmp_path):
    """HDF5 itself meets the end of the disk, because the check for room is off; and it stays full."""
    disk = small_disk("size=8m")
    script = tmp_path / "careless.py"
    script.write_text(
        "import sys\n"
        "from genfl_mpi.cli import main\n"
        "from genfl_mpi.results import disk\n"
        "disk.RESERVE = -1e18\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    overrides = [
        *FAST,
        "method=genfl",
        "generation.checkpoint=digits",
        "generation.prompts=mnist",
        "generation.plan=white:images",
        f"generation.bank={tmp_path}/bank",
        "data.size=32",
        "checkpoint.every_rounds=3",
        "rounds=200",
    ]
    (tmp_path / "white.py").write_text("""
import numpy as np
from genfl_mpi.generation import generator
def draw(self, batch):
    return np.full((len(batch), *self.shape), 255, np.uint8)
generator.Generator._draw = draw
def images(state):
    return [10] * 10
""")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = mpirun(ranks, script, *overrides, f"output={disk}/results", PYTHONPATH=path)
    assert done.returncode == 2, done.stderr
    line = said_once(done.stderr)
    print(line)
    assert f"cannot be written: {os.strerror(errno.ENOSPC)}" in line and str(disk) in line
    results = disk / "results/genfl_seed1.h5"
    kept = checkpoint.list_rounds(results)[-1]
    with reader.open_results(results) as file:
        assert len(file["rounds/round"]) >= kept > 2 and (file["generated/image"][: 100 * kept] == 255).all()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "where",
    [
        "writer.Writer._append",
        "checkpoint.save",
        "progress.Progress.__call__",
        "client_state.ClientStates.write",
    ],
)
def test_a_quota_ends_the_run_in_one_line(where, ranks, tmp_path):
    """A limit on the size of files, from the fourth round on, stops a library in the middle of a write.

    The disk has free space.
    """
    allowed = 3 if where.startswith("checkpoint") else 9 if where.startswith("client_state") else 30
    script = tmp_path / "limited.py"
    script.write_text(f"""
import resource, signal, sys
from mpi4py import MPI
from genfl_mpi.cli import main
from genfl_mpi.results import checkpoint, client_state, progress, writer
writes = MPI.COMM_WORLD.rank == {ranks - 1 if where.startswith("client_state") else 0}
owner, _, name = "{where}".rpartition(".")
owner, calls = eval(owner), []
write = getattr(owner, name)
def limited(*arguments, **options):
    calls.append(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if len(calls) > {allowed} and writes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        return write(*arguments, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
setattr(owner, name, limited)
sys.exit(main(sys.argv[1:]))
""")
    results = tmp_path / "results/fedavg_seed1.h5"
    overrides = [*FAST, "algorithm.name=scaffold"] if where.startswith("client_state") else FAST
    done = mpirun(ranks, script, *overrides, "rounds=30", f"output={tmp_path}/results")
    if where.startswith("progress"):  # that is no reason to end a run
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2, done.stderr
    line = said_once(done.stderr)
    print(line)
    assert f"cannot be written: {os.strerror(errno.EFBIG)}" in line and str(results.parent) in line
    kept = checkpoint.list_rounds(results)[-1]
    assert kept >= 3
    with reader.open_results(results) as file:
        assert len(file["rounds/round"]) >= kept and file["rounds/accuracy"][:kept].all()
    finish_and_compare(overrides, tmp_path / "results", tmp_path, 5 + kept)


def test_a_disk_that_may_not_be_written(small_disk, fast, capsys):
    small_disk("size=40m")
    disk = small_disk("remount,ro,size=40m")
    for setting in (f"output={disk}/results", f"generation.bank={disk}/bank"):
        assert main([*fast, "method=genfl", "data.name=mnist5k", setting]) == 2
        line = said_once(capsys.readouterr().err)
        assert "cannot be written" in line and str(disk) in line


@pytest.mark.slow
def test_a_run_that_is_being_computed_is_left_alone(tmp_path, capsys):
    results = tmp_path / "results/fedavg_seed1.h5"
    overrides = [*FAST, "rounds=5000", f"output={tmp_path}/results"]
    job = Job(1, overrides, results, tmp_path / "log")
    job.after_round(2)
    for more in ([], ["--fresh"]):
        assert main([*overrides, *more]) == 2
        line = said_once(capsys.readouterr().err)
        assert (
            f"computed by another job (rank 0: process {job.rank(0)['pid']} on {os.uname().nodename})" in line
        )
    assert main(["show", str(results)]) == 0
    assert "running:" in capsys.readouterr().out
    os.kill(job.rank(0)["pid"], signal.SIGTERM)
    assert job.end() == 75


def test_a_file_that_is_open_elsewhere(fast, tmp_path, capsys):
    assert main([*fast, "rounds=2"]) == 0
    results = tmp_path / "results/fedavg_seed1.h5"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import h5py; f = h5py.File({str(results)!r}, 'r+'); print('open', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "open\n"
    before = results.read_bytes()
    capsys.readouterr()
    for arguments in (["show", str(results)], [*fast, "rounds=3"]):
        assert main(arguments) == 2
        assert "another program has the file open" in said_once(capsys.readouterr().err)
    holder.communicate("\n")
    assert len(results.read_bytes()) == len(before)
    assert main([*fast, "rounds=3"]) == 0


def test_a_reader_does_not_disturb(fast, tmp_path):
    assert main([*fast, "rounds=2"]) == 0
    results = tmp_path / "results/fedavg_seed1.h5"
    script = (
        f"import h5py; f = h5py.File({str(results)!r}); print('open', flush=True); "
        "input(); print(len(f['rounds/round']))"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "open\n"
    assert main([*fast, "rounds=3"]) == 0
    assert holder.communicate("\n")[0] == "2\n"
    with reader.open_results(results) as file:
        assert len(file["rounds/round"]) == 3


def test_truncated_and_foreign_results(fast, tmp_path, capsys):
    assert main([*fast, "rounds=2"]) == 0
    results = tmp_path / "results/fedavg_seed1.h5"
    content = results.read_bytes()
    results.unlink()
    with h5py.File(results, "w") as foreign:
        foreign["x"] = 1
    for variant in (
        b"",
        b"text",
        results.read_bytes(),
        *(content[: len(content) * part // 4] for part in range(1, 4)),
        content[:-1],
    ):
        results.write_bytes(variant)
        for arguments in (
            ["show", str(results)],
            ["digest", str(results)],
            ["plot", str(results), "-o", str(tmp_path / "x.png")],
            [*fast, "rounds=3"],
        ):
            capsys.readouterr()
            assert main(arguments) == 2
            assert str(results) in said_once(capsys.readouterr().err)
        assert results.read_bytes() == variant
    results.write_bytes(b"text")
    assert main([*fast, "rounds=2", "--fresh"]) == 0
    assert (tmp_path / "results/aside-1/fedavg_seed1.h5").read_bytes() == b"text"


def test_a_bank_with_a_flipped_bit(tmp_path):
    batch = bank.Batch((1, 2), (0, 1), (11, 12), ("one", "two"))
    store = bank.Bank(tmp_path / "bank", {"checkpoint": "x"})
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    store.write(batch, images)
    content, noticed = store.path(batch).read_bytes(), 0
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        store.path(batch).write_bytes(flipped)
        try:
            read = bank.read_batch(store.path(batch))
        except UserError as error:
            noticed += 1
            assert "is damaged or not a file of a bank; remove it, and its images are generated again" in str(
                error
            )
        else:  # the word that says that a checksum follows
            assert place >= len(content) - 72 and np.array_equal(read["image"], images)
    assert noticed >= (len(content) - 72) / 7


def test_no_memory_on_one_rank(tmp_path):
    """What cannot be had ends the job, and says where it was."""
    (tmp_path / "greedy.py").write_text("""
import resource
import numpy as np
from genfl_mpi.federation.policies.selection import random
def much(state):
    if state.round == 2:
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        np.ones(1 << 28)
    return random(state)
""")
    done = mpirun(
        2,
        "-m",
        "genfl_mpi",
        *FAST,
        "rounds=5",
        "selection.policy=greedy:much",
        f"output={tmp_path}/results",
        timeout=120,
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    )
    assert done.returncode != 0
    assert (
        f"rank 0 on {os.uname().nodename}, round 3, the selection policy much: MemoryError" in done.stderr
        and "Traceback" not in done.stderr
    )
    with reader.open_results(tmp_path / "results/fedavg_seed1.h5") as file:
        assert file["rounds/round"][:].tolist() == [1]


def test_an_exception_is_in_the_progress(tmp_path, capsys):
    (tmp_path / "failing.py").write_text("def now(state):\n    raise ValueError('no')\n")
    done = mpirun(
        1,
        "-m",
        "genfl_mpi",
        *FAST,
        "selection.policy=failing:now",
        f"output={tmp_path}/results",
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    )
    assert done.returncode == 1
    assert main(["show", str(tmp_path / "results/fedavg_seed1.h5")]) == 0
    assert "failed:" in (said := capsys.readouterr().out) and "which raised ValueError: no" in said.replace(
        "\n      ", " "
    )
    assert Path(tmp_path / "results/fedavg_seed1.progress").is_dir()
