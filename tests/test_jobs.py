"""Submit the job files unchanged to a private Slurm (slurm.py), with a shortened default configuration."""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import slurm
from conftest import FAST, TINY, until

from genfl_mpi.cli import COMMANDS, main
from genfl_mpi.results import reader

JOBS = Path(__file__).parent.parent / "jobs"
# The default's three methods, in seconds.
SHORT = TINY[1:]  # of every method
METHODS = ("fedavg", "genfl", "aigc")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}


class Cluster:
    """Slurm, and a folder with the job files from which they are submitted, as from the repository."""

    def __init__(self, folder, environment):
        self.folder = folder
        self.environment = {
            **environment,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def call(self, *command, **environment):
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, *arguments, **environment):
        """sbatch; returns the job's id."""
        return self.call("sbatch", "--parsable", *arguments, **environment).strip()

    def about(self, job):
        """What Slurm says of a job, as a dict."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", "--oneliner", job)))

    def log(self, job):
        return "".join(path.read_text() for path in self.folder.glob(f"*-{job}.log"))

    def wait(self, job, *states):
        """Wait for the end of a job, in one of `states`, by default well, and return what it printed."""
        until(lambda: time.sleep(0.3) or self.about(job)["JobState"] in ENDED)
        assert self.about(job)["JobState"] in (states or ["COMPLETED"]), self.log(job)
        return self.log(job)


@pytest.fixture(scope="session")
def daemons(tmp_path_factory):
    if missing := slurm.missing():
        text = f"no Slurm: {', '.join(missing)} not found; on Debian: apt-get install slurm-wlm munge"
        if os.environ.get("CI") == "true" and Path("/etc/debian_version").exists():
            pytest.fail(text)
        pytest.skip(text)
    folder = tmp_path_factory.mktemp("slurm")
    yield slurm.start(folder)
    slurm.stop(folder)


@pytest.fixture
def cluster(daemons, tmp_path):
    (tmp_path / "jobs").symlink_to(JOBS)
    return Cluster(tmp_path, daemons)


@pytest.fixture(scope="session")
def default(tmp_path_factory, bank):
    """The default's runs, shortened, as computed by one rank: {method: digests}."""
    folder = tmp_path_factory.mktemp("default")
    assert main([*SHORT, f"generation.bank={bank}", f"output={folder}"]) == 0
    return {method: reader.digests(folder / f"{method}_seed1.h5") for method in METHODS}


def check(folder, digests):
    """The results in a folder are those of one rank, bit for bit."""
    assert {method: reader.digests(folder / f"{method}_seed1.h5") for method in METHODS} == digests


def ranks(text):
    """What doctor says of placement: ({node: (ranks, cores)}, {rank: (GPU, the GPUs that it sees)})."""
    text = re.sub(r"\n {11}(?=\S)", " ", text)
    cores = {
        host: (first, int(count))
        for host, first, count in re.findall(r"(\S+): ranks? (\S+) on (\d+) cores? \(", text)
    }
    gpus = {
        int(rank): (gpu, seen)
        for rank, gpu, seen in re.findall(r"rank (\d+) uses GPU (\d+) of ([\d,]+),", text)
    }
    return cores, gpus


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_run_and_one_over_several_nodes(cluster, default, bank, launcher):
    one = cluster.submit("--ntasks=2", "jobs/run.sh", *SHORT, f"generation.bank={bank}", launcher=launcher)
    two = cluster.submit(
        "--ntasks-per-node=1",
        "jobs/nodes.sh",
        *SHORT,
        f"generation.bank={bank}",
        "output=results/nodes",
        launcher=launcher,
    )
    assert "3 runs in" in cluster.wait(one)
    check(cluster.folder / "results/default", default)
    cluster.wait(two)
    check(cluster.folder / "results/nodes", default)
    assert cluster.about(two)["NodeList"] == "node[1-2]"


@pytest.mark.slow
def test_a_sweep_as_an_array_with_its_summary(cluster, default, bank):
    said = cluster.call("bash", "jobs/sweep.sh", *SHORT, f"generation.bank={bank}")
    summary = said.split()[-1]
    text = cluster.wait(summary)
    check(cluster.folder / "results/default", default)
    assert (
        all(name in text for name in ("FedAvg", "GenFL", "AIGC-only", "3 runs: 3 finished"))
        and (cluster.folder / "results/default/summary.png").exists()
    )
    logs = [path.read_text() for path in cluster.folder.glob("genfl-member-*_*.log")]
    assert sorted(re.search(r"^(\w+)_seed1  round 2/2", log, re.M)[1] for log in logs) == sorted(METHODS), (
        "an index is a run"
    )
    # A single one again finds its work done.
    again = cluster.submit(
        "--array=1",
        "--ntasks=1",
        "--output=again-%A.log",
        "jobs/member.sh",
        *SHORT,
        f"generation.bank={bank}",
    )
    assert "genfl_seed1: already finished" in cluster.wait(again)


SLOW_AT_FIRST = """
import os, time
from genfl_mpi.federation.policies.selection import random
def slow(state):
    time.sleep(0 if os.environ.get("SLURM_RESTART_COUNT") else 0.5)
    return random(state)
"""


@pytest.mark.slow
def test_a_job_that_its_time_limit_cuts_goes_on_to_the_same_bits(cluster, monkeypatch):
    """A minute is the shortest limit that Slurm has; the signal comes in the second half of it."""
    (cluster.folder / "pace.py").write_text(SLOW_AT_FIRST)
    path = os.pathsep.join([str(cluster.folder), os.environ.get("PYTHONPATH", "")])
    overrides = [*FAST, "rounds=150", "selection.policy=pace:slow", "checkpoint.every_rounds=1000"]
    job = cluster.submit(
        "--ntasks=2",
        "--time=1",
        "--signal=B:USR1@5",
        "jobs/run.sh",
        *overrides,
        "output=cut",
        PYTHONPATH=path,
    )
    until(
        lambda: (
            time.sleep(0.3)
            or (about := cluster.about(job))["JobState"] == "PENDING"
            and about["Restarts"] == "1"
        ),
        120,
    )
    assert re.search(
        r"rank \d: SIGUSR1 while .*\n", cluster.log(job)
    ) and "stopped after round" in cluster.log(job)
    time.sleep(5)  # until what was allowed to the first start is over; Slurm itself would wait two minutes
    cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now")
    text = cluster.wait(job)
    assert "continues after round" in text and cluster.about(job)["Restarts"] == "1"
    monkeypatch.syspath_prepend(cluster.folder)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main([*overrides, f"output={cluster.folder}/whole"]) == 0
    assert reader.digests(cluster.folder / "cut/fedavg_seed1.h5") == reader.digests(
        cluster.folder / "whole/fedavg_seed1.h5"
    )


@pytest.mark.slow
def test_a_job_that_is_cancelled_stays_so(cluster):
    job = cluster.submit("--ntasks=1", "jobs/run.sh", *FAST, "rounds=100000", "output=cancelled")
    until(lambda: time.sleep(0.3) or "round      3" in cluster.log(job))
    cluster.call("scancel", job)
    assert "SIGTERM" in cluster.wait(job, "CANCELLED")
    assert cluster.about(job)["Restarts"] == "0"


def test_a_failing_job_fails(cluster):
    job = cluster.submit("--ntasks=1", "jobs/run.sh", "cohort=99")
    assert "cohort (99) is larger" in cluster.wait(job, "FAILED")
    assert cluster.about(job)["ExitCode"] == "2:0" and cluster.about(job)["Restarts"] == "0"


@pytest.mark.slow
def test_two_jobs_on_one_node_share_neither_cores_nor_gpus(cluster):
    submit = [
        "--nodelist=node1",
        "--ntasks-per-node=2",
        "--gpus-per-node=2",
        "--cpus-per-task=3",
        "--time=5",
        "jobs/gpu.sh",
        "doctor",
        "runtime.device=cpu",
    ]
    jobs = [cluster.submit(*submit) for _ in range(2)]
    found = [ranks(cluster.wait(job, "COMPLETED", "FAILED")) for job in jobs]
    start, end = ([cluster.about(job)[name] for job in jobs] for name in ("StartTime", "EndTime"))
    assert max(start) < min(end), "they were there at the same time"
    assert [len(gpus) for _, gpus in found] == [2, 2]
    assert len({gpu for _, gpus in found for gpu, _ in gpus.values()}) == 4
    for cores, _ in found:
        assert [count for _, count in cores.values()] == [min(6, len(os.sched_getaffinity(0)))]


@pytest.mark.slow
def test_two_runs_at_once_on_one_node(cluster):
    jobs = [
        cluster.submit(
            "--nodelist=node1", "--ntasks=1", "jobs/run.sh", *FAST, "rounds=30", f"output=at-once-{i}"
        )
        for i in range(2)
    ]
    for job in jobs:
        cluster.wait(job)
    assert reader.digests(cluster.folder / "at-once-0/fedavg_seed1.h5") == reader.digests(
        cluster.folder / "at-once-1/fedavg_seed1.h5"
    )


@pytest.mark.slow
def test_what_gpu_jobs_ask_for_and_get(cluster):
    """Slurm assigns fake GPUs, which torch cannot use; doctor reports which rank would take which."""
    own = cluster.submit("--cpus-per-task=1", "jobs/gpu.sh", "doctor", "runtime.device=cpu")
    shared = cluster.submit(
        "--ntasks-per-node=6", "--cpus-per-task=1", "jobs/shared_gpu.sh", "doctor", "runtime.device=cpu"
    )
    either = "COMPLETED", "FAILED"  # for doctor may complain of a machine with few cores
    _, gpus = ranks(cluster.wait(own, *either))
    assert gpus == {rank: (str(rank), "0,1,2,3") for rank in range(4)}
    _, gpus = ranks(cluster.wait(shared, *either))
    assert [gpus[rank][0] for rank in range(6)] == ["0", "1", "2", "3", "1", "2"]
    for job in (own, shared):
        assert cluster.about(job)["TresPerNode"].endswith("gpu:4")
    refused = cluster.submit("--ntasks-per-node=1", "--cpus-per-task=1", "jobs/gpu.sh", *FAST)
    assert "the job was given GPU 0,1,2,3, and torch cannot use it" in cluster.wait(refused, "FAILED")


@pytest.mark.slow
def test_the_bank_first_and_then_training(cluster, default, tmp_path):
    job = cluster.submit(
        "--ntasks-per-node=2",
        "--cpus-per-task=1",
        "--gpus-per-node=0",
        "jobs/bank.sh",
        *SHORT,
        "generation.bank=bank",
    )
    text = cluster.wait(job)
    assert (
        "made 20 images" in text and "3 runs in" in text and text.index("made 20") < text.index("round 1/2")
    )
    check(cluster.folder / "results/default", default)


@pytest.mark.slow
def test_a_sweep_in_one_allocation(cluster, default, bank):
    job = cluster.submit(
        "--ntasks-per-node=1", "--cpus-per-task=1", "jobs/allocation.sh", *SHORT, f"generation.bank={bank}"
    )
    assert "3 runs in" in cluster.wait(job)
    check(cluster.folder / "results/default", default)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "folders"),
    [("strong", ["1", "2"]), ("weak", ["1", "2"]), ("clients", ["100", "1000", "10000", "100000"])],
)
def test_scaling_studies(cluster, study, folders):
    job = cluster.submit(
        "--ntasks=2",
        "jobs/scaling.sh",
        study,
        "rounds=1",
        "partition.samples=20",
        "data.name=synthetic",
        "data.size=8",
    )
    cluster.wait(job, "COMPLETED" if "scaling" in COMMANDS else "FAILED")
    files = {
        folder: cluster.folder / f"results/scaling-{study}/{folder}/fedavg_seed1.h5" for folder in folders
    }
    assert all(reader.digests(path)[2] for path in files.values())
    cohorts = [
        reader.read_tables_until(reader.open_results(path), 1)["rounds"]["clients_trained"][0]
        for path in files.values()
    ]
    assert cohorts == {"strong": [8, 8], "weak": [4, 8], "clients": [4] * 4}[study]


def test_every_job_file_is_tried_here():
    tried = set(re.findall(r"jobs/(\w+)\.sh", Path(__file__).read_text()))
    assert {path.stem for path in JOBS.glob("*.sh")} - {"common", "summary"} <= tried


def test_job_files_are_valid_shell():
    for path in JOBS.glob("*.sh"):
        assert subprocess.run(["bash", "-n", path]).returncode == 0
        directives = Counter(re.findall(r"^#SBATCH --([\w-]+)", path.read_text(), re.M))
        assert not directives or max(directives.values()) == 1
