"""Progress display: the live view on a terminal, plain lines elsewhere, and following a run with `watch`."""

import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import FAST, Job, command, mpirun, prepare, until
from rich.console import Console

from genfl_mpi.cli import main
from genfl_mpi.results import progress, reader, status
from genfl_mpi.runs import display
from genfl_mpi.util.errors import UserError


def in_terminal(arguments, when=None, keys=b"", environment=()):
    """Run a command in a pseudo-terminal and type `keys` when the text `when` appears.

    environment: variables to add. Returns the exit status and the output.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(environment, TERM="xterm-256color")
        os.execvp(arguments[0], list(map(str, arguments)))
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
            if when and when in shown:
                os.write(terminal, keys)
                when = None
    except OSError:  # the process has ended
        pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_live_view_changes_no_bits(ranks, tmp_path):
    overrides = [*FAST, "rounds=60"]
    code, shown = in_terminal(command(ranks, "-m", "genfl_mpi", *overrides, f"output={tmp_path}/seen"))
    assert code == 0, shown
    assert "\x1b[" in shown and "s/round" in shown
    assert "round  1/60  accuracy" not in shown and "final accuracy" in shown
    assert main([*overrides, f"output={tmp_path}/unseen"]) == 0
    assert reader.digests(tmp_path / "seen/fedavg_seed1.h5") == reader.digests(
        tmp_path / "unseen/fedavg_seed1.h5"
    )


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ctrl_c_under_a_live_view(ranks, tmp_path):
    code, shown = in_terminal(
        command(ranks, "-m", "genfl_mpi", *FAST, "rounds=100000", f"output={tmp_path}"), b" %", b"\x03"
    )
    assert code == 130, shown
    assert "SIGINT while" in shown and "stopped after round" in shown and "Traceback" not in shown
    with reader.open_results(tmp_path / "fedavg_seed1.h5") as file:
        assert 0 < len(file["rounds/round"]) < 100000


def test_a_pipe_behind_the_launcher_gets_lines(tmp_path):
    line = shlex.join(command(2, "-m", "genfl_mpi", *FAST, "rounds=3", f"output={tmp_path}"))
    code, shown = in_terminal(["bash", "-c", f"{line} | cat"])
    assert code == 0 and "\x1b" not in shown and shown.count("accuracy ") >= 3


@pytest.mark.slow
def test_a_pipe_behind_a_rank_gets_lines(tmp_path):
    """The output of mpirun is a terminal, but that of the rank is not."""
    inner = shlex.join([sys.executable, "-m", "genfl_mpi", *FAST, "rounds=3", f"output={tmp_path}"])
    launcher = command(1)[: command(1).index(sys.executable)]
    code, shown = in_terminal([*launcher, "bash", "-c", f"{inner} | cat"])
    assert code == 0 and "\x1b" not in shown and "round 3/3" in shown


def test_quiet_and_verbose(fast, capsys):
    assert main([*fast, "rounds=2", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "round 1/2" not in said and "final accuracy" in said
    assert main([*fast, "rounds=2", "--fresh", "--verbose"]) == 0
    said = capsys.readouterr().out
    assert (
        "round 1/2" in said
        and len(re.findall(r"train [\d.]+ s, generate 0.00 s, .*; 0 images, 3 clients", said)) == 2
    )


def rounds_said(text):
    return [int(number) for number in re.findall(r"round +(\d+)/", text)]


@pytest.mark.parametrize("swmr", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_watch_follows_a_run_from_another_process(swmr, tmp_path):
    """The file system supports HDF5's SWMR, or not."""
    results = tmp_path / "runs/fedavg_seed1.h5"
    job = Job(1, [*FAST, "rounds=60", f"output={results.parent}"], results, tmp_path / "log")
    until(results.exists)
    spoil = (
        ""
        if swmr
        else (
            "import h5py, genfl_mpi.results.reader as r; o = r._open\n"
            "def fail(path):\n"
            "    if r.Path(path).with_suffix('.progress').exists(): raise OSError('no SWMR here')\n"
            "    return o(path)\n"
            "r._open = fail\n"
        )
    )
    script = tmp_path / "watching.py"
    script.write_text(f"{spoil}import sys\nfrom genfl_mpi.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    seen = mpirun(None, script, "watch", results.parent)
    assert seen.returncode == 0, seen.stderr
    assert rounds_said(seen.stdout) == list(range(1, 61))
    assert job.process.wait(60) == 0


def test_watch_in_a_terminal(fast, tmp_path):
    assert main([*fast, "sweep.seed=[1,2]", "rounds=2"]) == 0
    started, environment = prepare(None, ["-m", "genfl_mpi", "watch", tmp_path / "results"])
    code, shown = in_terminal(started, environment=environment)
    assert code == 0 and "fedavg_seed1" in shown and "fedavg_seed2" in shown and "2/2" in shown


def test_watch_says_what_it_cannot_read(tmp_path, capsys):
    (tmp_path / "other.h5").write_text("no HDF5")
    assert main(["watch", str(tmp_path)]) == 2
    assert "not a readable HDF5 file" in capsys.readouterr().err


def test_status_is_what_the_file_holds_and_what_was_noted_since(fast, tmp_path):
    assert main([*fast, "rounds=3"]) == 0
    path = tmp_path / "results/fedavg_seed1.h5"
    note = progress.Progress(path, 0, 1)
    note.note_rounds(["FedAvg", 5], [3, 0.5, 0, 1.0, 0.5], [4, 0.25, 0, 1.0, 0.25])
    known = status.read_status(path)
    with reader.open_results(path) as file:
        assert [one.accuracy for one in known.done] == [*file["rounds/accuracy"][:2], 0.5, 0.25]
    note.close()
    path.write_bytes(b"")
    known = status.read_status(path)
    assert (known.method, known.rounds, [one.number for one in known.done]) == (
        "FedAvg",
        5,
        [3, 4],
    ) and known.seconds_left() == 3
    progress.clear(path)
    with pytest.raises(UserError):
        status.read_status(path)


@pytest.fixture
def now(monkeypatch):
    """Return the time that progress notes and displays see, [seconds], to be changed."""
    found = [100.0]
    clock = SimpleNamespace(**vars(time) | {"monotonic": lambda: found[0], "time": lambda: found[0]})
    monkeypatch.setattr(progress, "time", clock)
    return found


def test_a_frame_fits_a_narrow_terminal(tmp_path, now):
    runs = [
        status.Status(
            tmp_path / f"genfl_seed{i}_alpha0.1.h5",
            "GenFL",
            9,
            [status.Round(t, t / 10, 20, 1.5) for t in range(1, 4)],
        )
        for i in range(30)
    ]
    note = progress.Progress(runs[-1].path, 0, 1)
    note("train", 5, 4)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(display.frame(runs, 54))
    text = console.export_text()
    note.close()
    assert (
        "rank 0  training client 5 in round 4" in text
        and "round 4 of 9" in text
        and "4 s elapsed, 9 s left" in text
        and "run 30 of 54" in text
        and "genfl_seed29" in text
    )
    assert len(text.splitlines()) <= display.MAX_RUNS + 4 and max(map(len, text.splitlines())) <= 80


def test_a_frame_counts_and_predicts_before_the_first_round_has_ended(tmp_path, now):
    run = status.Status(tmp_path / "genfl_seed1.h5", "GenFL", 9)
    notes = [progress.Progress(run.path, rank, 2) for rank in range(2)]

    def shown(total=1):
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(display.frame([run], total), *display._sweep([run], total))
        return console.export_text()

    notes[0]("begin", round=1)
    notes[0]("generate", done=0, of=100)
    assert "generating images in round 1, 0 of 100 images done" in shown() and " left" not in shown()
    now[0] += 5
    notes[0]("generate", done=25, of=100)  # 20 s for the round, at this speed
    notes[1]("begin", round=1)
    notes[1]("train", 7, done=0, of=3)
    now[0] += 5
    assert (
        "25 of 100 images done" in shown() and "training client 7 in round 1, 0 of 3 clients done" in shown()
    )
    assert "10 s elapsed, 2 min 50 s left" in shown()  # 9 rounds of 20 s, without the 10 s so far
    assert "sweep: about 8 min 50 s left, 2 more runs" in shown(total=3)  # and two runs of 180 s
    run.done.append(status.Round(1, 0.5, 100, 30.0))
    notes[0]("begin", round=2)
    assert "30 s elapsed, 4 min 00 s left" in shown()
    for note in notes:
        note.close()


def test_runs_that_are_finished_do_not_count_in_the_sweep(monkeypatch):
    monkeypatch.setattr(display, "_fit", lambda *_: None)  # the test has no terminal
    view = display.Live(print, "normal", 3, 1)
    view.skip()
    assert view.total == 2


def test_a_run_that_nobody_computes_is_not_shown_as_running(tmp_path):
    run = status.Status(tmp_path / "genfl_seed1.h5", "GenFL", 9, [status.Round(1, 0.5, 20, 1.5)])
    note = progress.Progress(run.path, 0, 1)
    note("train", 5, 2)
    words = [progress.read_state(run.path)]
    note.note_error(ValueError("no"))
    note.close()
    words.append(progress.read_state(run.path))
    assert words == ["running", "failed"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(display.frame([run], 1, {run.path: words[1]}))
    assert (
        "failed: rank 0 of 1" in (text := console.export_text())
        and "training client 5 in round 2, which raised ValueError: no" in text
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.4, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (float("nan"), "?")]
)
def test_a_duration_as_text(seconds, text):
    assert display.duration(seconds) == text


def test_a_sparkline_has_the_last_value():
    assert display.sparkline([0, 50, 100]) == "▁▅█" and display.sparkline(list(range(101)), 3) == "▁▅█"


def test_a_notebook_cell_is_no_terminal():
    """A cell's `!command` writes to a pseudo-terminal, and the kernel sets JPY_PARENT_PID."""
    code = "from genfl_mpi.runs import display; import sys; sys.exit(3 if display.terminal() is None else 4)"
    plain = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"} | {
        "TERM": "xterm"
    }
    script = (
        "import json, os, pty, sys; os.environ.clear(); os.environ.update(json.loads(sys.argv[1])); "
        f"sys.exit(os.waitstatus_to_exitcode(pty.spawn([sys.executable, '-c', {code!r}])))"
    )
    for more, expected in (({}, 4), ({"JPY_PARENT_PID": "1"}, 3)):
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(plain | more)], stdin=subprocess.DEVNULL
        )
        assert done.returncode == expected, more
