"""Two jobs never compute a run at the same time: each race is provoked at its exact moment."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import FAST

from genfl_mpi import Simulation
from genfl_mpi.analysis import overview
from genfl_mpi.cli import main
from genfl_mpi.federation.worker import Worker
from genfl_mpi.results import checkpoint, lock, progress, reader
from genfl_mpi.runs import fork, runner, sweep
from genfl_mpi.util.errors import UserError

TWO = [*FAST, "rounds=3", "sweep.seed=[1,2]"]


@pytest.fixture(autouse=True)
def _without_grace(monkeypatch):
    """Do not let a second start wait for an owner that never ends."""
    monkeypatch.setattr(lock, "GRACE", 0)


def is_refused(path):
    """Return whether a second start is refused now; it ends at once."""
    try:
        progress.Progress(path, 0, 1).close()
    except UserError as error:
        return "being computed by another job" in str(error)
    progress.clear(path)
    return False


def before(owner, name, action, monkeypatch):
    """Call `action`, with its arguments, before each call of the function `name` of a module or class."""
    called = getattr(owner, name)

    def both(*arguments, **options):
        action(*arguments)
        return called(*arguments, **options)

    monkeypatch.setattr(owner, name, both)


def in_round(number, action, monkeypatch):
    """Call `action` in a round of the next start."""
    before(Worker, "train", lambda self, round, _: round + 1 == number and action(), monkeypatch)


def whole(fast, tmp_path):
    assert main([*fast, "rounds=3", f"output={tmp_path}/whole"]) == 0
    return reader.digests(tmp_path / "whole/fedavg_seed1.h5")


def test_a_start_that_comes_before_fresh_has_moved_the_files_keeps_them(tmp_path, monkeypatch, capsys):
    """This holds for any run of the sweep, and no file of the other runs is moved."""
    files = [tmp_path / f"results/fedavg_seed{seed}.h5" for seed in (1, 2)]
    assert main([*TWO, f"output={tmp_path}/results"]) == 0
    started, content = [], files[0].read_bytes()

    def start(*_):
        started.append(progress.Progress(files[1], 0, 1))
        files[1].write_bytes(b"of the other start")

    before(fork, "move_aside", start, monkeypatch)
    assert main([*TWO, f"output={tmp_path}/results", "--fresh"]) == 2
    said = capsys.readouterr().err
    assert f"{files[1]}: this run is being computed by another job (rank 0: process {os.getpid()} on" in said
    assert files[0].read_bytes() == content and files[1].read_bytes() == b"of the other start"
    assert not lock.is_held(files[0]) and progress.is_running(files[1])
    started[0].close()
    assert list(tmp_path.glob("results/aside-*")) == list(tmp_path.glob("results/*.lock")) == []


def test_fresh_holds_each_lock_until_its_run_is_finished(tmp_path, monkeypatch):
    files = [tmp_path / f"results/fedavg_seed{seed}.h5" for seed in (1, 2)]
    assert main([*TWO, f"output={tmp_path}/results"]) == 0
    seen, words = [], []
    for module, name in ((sweep, "run"), (runner, "find_earlier"), (runner, "_open")):
        before(module, name, lambda *_: seen.append([is_refused(path) for path in files]), monkeypatch)
    before(runner, "_open", lambda *_: words.append([overview.state(one).word for one in files]), monkeypatch)
    assert main([*TWO, f"output={tmp_path}/results", "--fresh"]) == 0
    assert words == [["running", "waiting"], ["finished", "running"]]
    assert seen == [*3 * [[True, True]], *2 * [[False, True]]]
    left = {path.name for path in (tmp_path / "results").iterdir()}
    assert left == {"accuracy.png", "aside-1", *(path.name for path in files)}


def test_a_fresh_sweep_that_ends_early_leaves_no_lock(tmp_path, monkeypatch):
    def full(self, record):
        raise UserError("no space left")

    monkeypatch.setattr("genfl_mpi.results.writer.Writer.append", full)
    assert main([*TWO, f"output={tmp_path}/results", "--fresh"]) == 2
    assert list(tmp_path.glob("results/*.lock")) == []


def test_a_start_locks_the_run_before_it_reads_the_files(fast, tmp_path, monkeypatch):
    """Otherwise another start could finish rounds in between, unknown to this one."""
    path, seen = tmp_path / "results/fedavg_seed1.h5", []
    for name in ("find_earlier", "_open"):
        before(runner, name, lambda *_: seen.append(is_refused(path)), monkeypatch)
    assert main([*fast, "rounds=3"]) == 0 and seen == [True, True]


def test_a_run_is_locked_also_without_its_progress(fast, tmp_path, monkeypatch, capsys):
    path, seen = tmp_path / "results/fedavg_seed1.h5", []

    def remove():
        shutil.rmtree(progress.path_for(path))
        seen.append((is_refused(path), progress.is_running(path)))
        assert main(["show", str(path)]) == 0

    with monkeypatch.context() as patch:
        in_round(2, remove, patch)
        assert main([*fast, "rounds=3"]) == 0
    assert seen == [(True, True)] and "  running:" in capsys.readouterr().out
    assert reader.digests(path) == whole(fast, tmp_path)


def second_start_without_the_lock_file(path, second):
    """Remove the lock file of a run and begin the run again."""
    lock.path_for(path).unlink()
    second.append(progress.Progress(path, 0, 1))


def leaves(path, said, second):
    """Return whether the first start gave its reason in one line and kept the second one's files."""
    assert f"{lock.path_for(path)}: the lock file was removed" in said and said.count("\n") == 1
    assert is_refused(path) and progress.read_state(path) == "running" and len(progress.read(path)) == 1
    second[0].close()
    return True


def test_a_job_whose_lock_file_was_removed_leaves_the_run_to_others(fast, tmp_path, monkeypatch, capsys):
    path, second = tmp_path / "results/fedavg_seed1.h5", []
    with monkeypatch.context() as patch:
        in_round(2, lambda: second_start_without_the_lock_file(path, second), patch)
        assert main([*fast, "rounds=3"]) == 2
    assert leaves(path, capsys.readouterr().err, second) and checkpoint.list_rounds(path) == [1]
    assert main([*fast, "rounds=3"]) == 0
    assert reader.digests(path) == whole(fast, tmp_path)


def test_a_start_whose_lock_file_was_removed_replaces_no_file(fast, tmp_path, monkeypatch, capsys):
    path, second = tmp_path / "results/fedavg_seed1.h5", []

    def begins(*arguments, **options):
        second_start_without_the_lock_file(path, second)
        path.write_bytes(b"of the second start")
        return Simulation(*arguments, **options)

    monkeypatch.setattr(runner, "Simulation", begins)
    assert main([*fast, "rounds=3"]) == 2
    assert leaves(path, capsys.readouterr().err, second) and path.read_bytes() == b"of the second start"


def test_a_lock_blocks_nobody_once_its_process_is_killed(tmp_path):
    path = tmp_path / "run.h5"
    code = (
        "import sys; from pathlib import Path; from genfl_mpi.results.lock import Lock\n"
        "held = Lock(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, path]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "\n"
    with pytest.raises(UserError, match=rf"rank 0: process {holder.pid} on {os.uname().nodename}\)"):
        lock.Lock(path)
    assert lock.is_held(path)
    holder.send_signal(signal.SIGKILL)
    assert holder.wait() and not lock.is_held(path) and lock.path_for(path).exists()
    lock.Lock(path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_owner_ends_meanwhile(tmp_path, monkeypatch):
    """It removes the file that a second start has just opened; a third start may then be first."""
    path, flock = tmp_path / "run.h5", fcntl.flock
    for third in (False, True):
        owner, others = lock.Lock(path), []

        def ends(descriptor, how, owner=owner, others=others, third=third):
            if not others:
                owner.release()
                monkeypatch.setattr(fcntl, "flock", flock)
                others.append(third and lock.Lock(path))
            flock(descriptor, how)

        monkeypatch.setattr(fcntl, "flock", ends)
        if third:
            assert is_refused(path)
            others[0].release()
        else:
            held = lock.Lock(path)
            assert lock.is_held(path)
            held.check()
            held.release()
        assert list(tmp_path.iterdir()) == []


def test_a_start_waits_for_the_end_of_the_one_before(tmp_path, monkeypatch):
    """A launcher may return before all of its ranks have ended."""
    path = tmp_path / "run.h5"
    monkeypatch.setattr(lock, "GRACE", 60)
    for wait in (lock.check_free, lambda path: lock.Lock(path).release()):
        owner = lock.Lock(path)
        monkeypatch.setattr(lock.time, "sleep", lambda _, owner=owner: owner.release())
        wait(path)
        assert not lock.is_held(path)


def test_a_reader_that_checks_a_lock_is_no_second_job(tmp_path, monkeypatch):
    """Neither to another reader nor to a start, which waits until the reader has closed the file."""
    monkeypatch.setattr(lock, "GRACE", 60)
    path = tmp_path / "run.h5"
    lock.path_for(path).touch()
    with open(lock.path_for(path)) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not lock.is_held(path)
        monkeypatch.setattr(lock.time, "sleep", lambda _: file.close())
        lock.Lock(path).release()
        assert file.closed


def test_a_file_system_without_locks(fast, tmp_path, monkeypatch):
    def none(descriptor, how):
        raise OSError(errno.ENOLCK, "no locks available")

    def others():
        seen.append(progress.is_running(path))
        lock.Lock(path).release()  # of a second start, which ends at once

    path, seen = tmp_path / "results/fedavg_seed1.h5", []
    monkeypatch.setattr(fcntl, "flock", none)
    in_round(2, others, monkeypatch)
    assert main([*fast, "rounds=3"]) == 0 and seen == [False]
    assert {file.name for file in path.parent.iterdir()} == {"accuracy.png", path.name}


def test_a_lock_file_that_cannot_be_made(fast, tmp_path, capsys):
    (tmp_path / "results/fedavg_seed1.lock").mkdir(parents=True)
    assert main([*fast, "rounds=3"]) == 2
    said = capsys.readouterr().err
    assert "fedavg_seed1.lock: cannot be written" in said and said.count("\n") == 1
