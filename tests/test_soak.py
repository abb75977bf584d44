"""Memory and open files stay flat: over 500 rounds of one run, and over a sweep of 50 runs in one process."""

import os
import resource

import pytest
from conftest import FAST

from genfl_mpi.cli import main
from genfl_mpi.runs import display, runner


def held():
    """(megabytes of memory, open files and mappings) of this process."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    with open("/proc/self/maps") as maps:
        return pages * resource.getpagesize() / 1e6, len(os.listdir("/proc/self/fd")) + sum(
            "/dev/shm" in line for line in maps
        )


def flat(curve, what):
    """Print a curve of `held` and check that its second half does not rise."""
    print(f"\n{what}: " + "; ".join(f"{at}: {memory:.0f} MB, {files} files" for at, memory, files in curve))
    early, late = curve[len(curve) // 2], curve[-1]
    assert late[1] < 1.02 * early[1] + 2, "memory grows"
    assert late[2] <= early[2], "files stay open"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_five_hundred_rounds(algorithm, tmp_path, monkeypatch):
    curve, add = [], display.Lines.add

    def looked_at(lines, record):
        if record.round % 50 == 0:
            curve.append((record.round, *held()))
        add(lines, record)

    monkeypatch.setattr(display.Lines, "add", looked_at)
    assert main([*FAST, f"algorithm.name={algorithm}", "rounds=500", f"output={tmp_path}"]) == 0
    flat(curve, f"rounds of {algorithm}")


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_of_fifty_runs(tmp_path, monkeypatch):
    curve, close = [], runner.Simulation.close

    def looked_at(simulation):
        close(simulation)
        curve.append((len(curve) + 1, *held()))

    monkeypatch.setattr(runner.Simulation, "close", looked_at)
    assert main([*FAST, f"sweep.seed={list(range(1, 51))}", "rounds=2", f"output={tmp_path}"]) == 0
    assert len(curve) == 50
    flat(curve[4::5], "runs")
