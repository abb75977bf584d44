"""Cores and GPUs of a rank, from affinity masks, control groups, and variables of Slurm and the launchers."""

import os
import subprocess
import sys

import pytest
from conftest import FAST, mpirun

from genfl_mpi.mpi import devices, launchers
from genfl_mpi.util.errors import UserError

ALL = ("", None)
SLURM = {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "4"}


def node(ranks, cores=range(64), quota=ALL, environ=None, found=0, first=0):
    """Return the places of a node's ranks; environ: a dict for all ranks, or a function of the rank."""
    of = environ if callable(environ) else lambda rank: environ or {}
    return [
        devices.make_place(rank, "node", cores, quota, of(rank), found)
        for rank in range(first, first + ranks)
    ]


def test_cores_are_the_union_of_the_masks():
    bound = [devices.make_place(rank, "node", {2 * rank, 2 * rank + 1}, ALL, {}, 0) for rank in range(3)]
    assert devices.count_cores(node(3)) == 64
    assert devices.count_cores(bound) == 6


def test_slurms_grant_limits_the_cores():
    assert devices.count_cores(node(2, environ=SLURM)) == 4
    assert devices.count_cores(node(2, cores=range(2), environ=SLURM)) == 2
    assert devices.count_cores(node(2, environ={"SLURM_CPUS_ON_NODE": "4"})) == 64, (
        "outside a job the variable has no effect"
    )


@pytest.mark.parametrize(
    ("quotas", "cores"),
    [
        ([("/a", 3.0), ("/a", 3.0)], 3),
        ([("/a", 1.5), ("/b", 1.5)], 3),
        ([("/a", 0.5)], 1),
        ([("/a", 3.0), ALL], 64),
    ],
)
def test_quotas_of_one_group_count_once(quotas, cores):
    assert (
        devices.count_cores(
            [devices.make_place(rank, "node", range(64), quota, {}, 0) for rank, quota in enumerate(quotas)]
        )
        == cores
    )


def test_ranks_take_the_gpus_of_their_node_in_turn():
    assert devices.assign_gpus(node(4, found=4)) == [0, 1, 2, 3]
    assert devices.assign_gpus(node(2, found=4)) == [0, 1]
    assert devices.assign_gpus(node(3, found=1)) == [0, 0, 0]
    assert devices.assign_gpus(node(3)) == [None, None, None]


def test_rank_0_gets_a_gpu_to_itself_if_possible():
    assert devices.assign_gpus(node(7, found=4)) == [0, 1, 2, 3, 1, 2, 3]
    assert devices.assign_gpus(node(3, found=2)) == [0, 1, 1]
    assert devices.assign_gpus(node(6, found=4, first=8)) == [0, 1, 2, 3, 0, 1], (
        "a node without rank 0 shares evenly"
    )


def test_groups_of_ranks_share_the_gpus_of_their_node():
    """Eight ranks in groups, each with a server, on a node with several GPUs."""

    def of(servers, found):
        return devices.assign_gpus(
            [
                devices.make_place(rank, "node", range(64), ALL, {}, found, rank in servers)
                for rank in range(8)
            ]
        )

    assert of({0, 4}, 4) == [0, 2, 3, 2, 1, 3, 2, 3], "a GPU for each server, and two for the six others"
    assert of({0, 2, 4, 6}, 4) == [0, 0, 1, 1, 2, 2, 3, 3], (
        "as many servers as GPUs: two ranks each, servers apart"
    )
    assert of({0, 2, 4, 6}, 2) == [0, 0, 1, 1, 0, 0, 1, 1] and of({0, 2, 4, 6}, 1) == [0] * 8
    assert of(set(range(8)), 4) == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_rank_knows_how_many_share_its_gpu():
    assert [devices.count_gpu_sharers(node(7, found=4), own) for own in range(7)] == [1, 2, 2, 2, 2, 2, 2]
    first = [devices.is_first_on_gpu(node(7, found=4), own) for own in range(7)]
    assert first == [True] * 4 + [False] * 3
    apart = node(4, environ=lambda rank: {"CUDA_VISIBLE_DEVICES": "0,1" if rank < 2 else "2,3"}, found=2)
    assert [devices.count_gpu_sharers(apart, own) for own in range(4)] == [1, 1, 1, 1]


GROUPS = """
import sys
import torch
from genfl_mpi.cli import main
from genfl_mpi.config.sections.operation import Runtime
from genfl_mpi.runs import runner
from genfl_mpi.mpi import collectives, devices
torch.cuda.device_count, torch.cuda.set_device = lambda: 2, lambda device: None
run = runner.run
def report_device(comm, *arguments, **more):
    device = devices.set_up(comm, Runtime(threads=1, device="cuda"))
    print(f"{collectives.world().rank} takes {device.index}\\n", end="", flush=True)
    torch.use_deterministic_algorithms(False)
    return run(comm, *arguments, **more)
runner.run = report_device
sys.exit(main(sys.argv[1:]))
"""


def test_gpus_are_assigned_over_all_groups_of_a_node(tmp_path):
    (tmp_path / "groups.py").write_text(GROUPS)
    done = mpirun(
        4,
        tmp_path / "groups.py",
        *FAST,
        "rounds=1",
        "sweep.seed=[1,2]",
        "runtime.ranks_per_run=2",
        "runtime.device=cpu",
        f"output={tmp_path}/results",
        CUDA_VISIBLE_DEVICES="0,1",
    )
    assert done.returncode == 0, done.stderr
    assert {line for line in done.stdout.splitlines() if " takes " in line} == {
        "0 takes 0",
        "1 takes 0",
        "2 takes 1",
        "3 takes 1",
    }


def test_ranks_that_see_different_gpus_do_not_share():
    """As after srun --gpus-per-task."""
    apart = node(4, environ=lambda rank: {"CUDA_VISIBLE_DEVICES": "0,1" if rank < 2 else "2,3"}, found=2)
    assert devices.assign_gpus(apart) == [0, 1, 0, 1]
    assert [one.gpus[i] for one, i in zip(apart, devices.assign_gpus(apart))] == ["0", "1", "2", "3"]
    assert devices.assign_gpus(
        node(2, environ=lambda rank: {"CUDA_VISIBLE_DEVICES": str(rank)}, found=1)
    ) == [
        0,
        0,
    ]


def test_gpus_that_slurm_did_not_grant_are_not_used():
    (without,) = node(1, environ=SLURM, found=4)
    assert without.gpus == () and without.usable == 0 and without.withheld == 4
    assert (
        "none of the node's GPUs" in devices.unused_gpus([without], "cpu")
        and devices.unused_gpus([without], "cuda") is None
    )
    (some,) = node(1, environ={**SLURM, "CUDA_VISIBLE_DEVICES": "2,3"}, found=2)
    assert some.gpus == ("2", "3") and some.usable == 2 and some.withheld == 0
    (unusable,) = node(1, environ={**SLURM, "CUDA_VISIBLE_DEVICES": "2,3"})
    assert unusable.gpus == ("2", "3") and unusable.usable == 0
    (hidden,) = node(1, environ={"CUDA_VISIBLE_DEVICES": ""}, found=0)
    assert hidden.gpus == ()


def test_oversubscription_is_reported_in_one_line():
    assert devices.oversubscription(node(2, cores=range(4)), 2) is None
    line = devices.oversubscription(node(3, cores=range(4)), 2)
    assert line == (
        "node: more threads than cores (3 ranks of 2 threads on 4 cores); start at most 2 ranks on this "
        "host, or request more cores"
    )


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_quota_of_control_groups_version_2(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/job/step\n")
    write(tmp_path / "sys/job/step", cpu__max="max 100000\n")
    write(tmp_path / "sys/job", cpu__max="250000 100000\n")
    write(tmp_path / "sys")
    assert devices.cpu_quota(own, tmp_path / "sys") == (str(tmp_path / "sys/job"), 2.5)
    own.write_text("0::/elsewhere\n")
    assert devices.cpu_quota(own, tmp_path / "sys") == ALL
    write(tmp_path / "sys", cpu__max="100000 100000\n")
    assert devices.cpu_quota(own, tmp_path / "sys") == (str(tmp_path / "sys"), 1.0), (
        "a container's root has the limit"
    )


def test_quota_of_control_groups_version_1(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("5:memory:/job\n4:cpu,cpuacct:/job\n")
    write(tmp_path / "sys/cpu,cpuacct/job", cpu__cfs_quota_us="300000\n", cpu__cfs_period_us="100000\n")
    write(tmp_path / "sys/cpu,cpuacct", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert devices.cpu_quota(own, tmp_path / "sys") == (str(tmp_path / "sys/cpu,cpuacct/job"), 3.0)
    assert devices.cpu_quota(tmp_path / "none", tmp_path / "sys") == ALL


@pytest.mark.parametrize(
    ("environ", "remedy"),
    [
        ({"PMI_RANK": "0", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "4"}, "mpi4py"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, "mpi4py"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, "srun --mpi=pmi2"),
    ],
)
def test_ranks_without_a_common_communicator_are_refused(environ, remedy):
    with pytest.raises(UserError, match="4 processes were started, but each is the only rank") as caught:
        launchers.check_size(1, environ)
    assert remedy in str(caught.value)
    launchers.check_size(4, environ)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
        {"PMI_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"},
    ],
)
def test_a_single_rank_is_allowed(environ):
    launchers.check_size(1, environ)


def test_an_oversubscribed_run_warns_and_computes(tmp_path):
    threads = os.cpu_count()
    done = mpirun(2, "-m", "genfl_mpi", *FAST, "rounds=1", f"runtime.threads={threads}", f"output={tmp_path}")
    assert done.returncode == 0 and done.stdout.count(f"2 ranks of {threads} thread") == 1, (
        done.stdout + done.stderr
    )


def test_a_run_started_with_the_wrong_launcher_is_refused(tmp_path):
    """As with the launcher of another MPI library, each process would be the only rank."""
    done = subprocess.run(
        [sys.executable, "-m", "genfl_mpi", f"output={tmp_path}"],
        capture_output=True,
        text=True,
        env={**os.environ, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"},
    )
    assert (
        done.returncode == 2 and "2 processes were started" in done.stderr and not list(tmp_path.iterdir())
    ), done.stderr
