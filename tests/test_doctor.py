"""Run doctor on a healthy set-up, and on deliberately broken ones."""

import errno
import os
import re
from pathlib import Path

import h5py
import pytest
import torch
from conftest import mpirun

from genfl_mpi.cli import main
from genfl_mpi.preparation import doctor


@pytest.fixture
def examine(tmp_path, monkeypatch, capsys):
    """Run doctor with overrides and no threshold for slowness. Returns the exit status and the output."""
    for name, value in (("SLOW_START", 1e9), ("SLOW_FILE", 1e9), ("SLOW_DISK", 0), ("SLOW_NETWORK", 0)):
        monkeypatch.setattr(doctor, name, value)

    def examined(*overrides):
        status = main(
            [
                "doctor",
                "runtime.threads=1",
                f"output={tmp_path}/results",
                f"generation.bank={tmp_path}/bank",
                *overrides,
            ]
        )
        return status, re.sub(r"\s+", " ", capsys.readouterr().out)

    return examined


def test_a_healthy_set_up(examine, tmp_path):
    status, said = examine()
    assert status == 0 and said.endswith("nothing to fix ")
    for heading in (
        "MPI ",
        "ranks 1 on 1 host",
        "cores ",
        "GPUs ",
        "versions python ",
        "HDF5 ",
        "mnist5k: found",
        "digits: found",
        "messages none",
    ):
        assert heading in said
    assert list(tmp_path.iterdir()) == [], "no file is left behind"


def test_the_file_system_of_a_relative_path_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctor._file_system(Path("results/x")) == doctor._file_system(tmp_path)
    assert "unknown" not in doctor._file_system(Path("results"))


@pytest.mark.parametrize(
    ("overrides", "problem", "remedy"),
    [
        (
            ["data.name=cifar10", "data.root=/nowhere"],
            "/nowhere/cifar-10-batches-py does not exist",
            "set data.root",
        ),
        (["generation.checkpoint=no/such"], "no/such", "prefetch"),
        (["output=/proc/results"], "output: /proc/results cannot be written", "set another folder"),
        (
            [f"runtime.threads={os.cpu_count() + 1}"],
            f"more threads than cores (1 rank of {os.cpu_count() + 1} threads on ",
            "set runtime.threads to at most ",
        ),
    ],
)
def test_doctor_says_what_is_missing_and_its_remedy(examine, overrides, problem, remedy):
    status, said = examine(*overrides)
    assert (
        status == 2 and problem in said.partition("to fix:")[2] and remedy in said.partition("to fix:")[2]
    ), said


@pytest.mark.parametrize(
    ("threshold", "value", "problem"),
    [
        ("SLOW_FILE", 0, "is on a slow file system"),
        ("SLOW_DISK", 1e18, "checkpoint.every_rounds=10"),
        ("SLOW_START", 0, "to start: keep the Python environment"),
    ],
)
def test_doctor_says_what_is_slow(examine, monkeypatch, threshold, value, problem):
    monkeypatch.setattr(doctor, threshold, value)
    status, said = examine()
    assert status == 2 and problem in said.partition("to fix:")[2]


def test_a_file_system_without_locks(examine, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(h5py, "File", refuse)
    status, said = examine("method=fedavg")
    assert status == 2 and "HDF5_USE_FILE_LOCKING=FALSE" in said
    assert f"output:HDF5cannotuse{tmp_path}/results(" in said.replace(" ", ""), "wherever the line is broken"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_a_gpu_that_torch_cannot_use(examine, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    status, said = examine()
    assert (
        status == 2
        and "rank 0 uses GPU 3 of 3, which torch cannot use" in said
        and "set runtime.device=cpu" in said
    )
    assert examine("runtime.device=cpu")[0] == 0


def test_doctor_finds_ranks_that_differ(tmp_path):
    """One rank has other versions and does not see the folders."""
    script = tmp_path / "broken.py"
    script.write_text("""
import os, sys
from genfl_mpi.cli import main
from genfl_mpi.mpi import collectives
from genfl_mpi.preparation import doctor
if collectives.world().rank == 1:
    versions = doctor.environment.versions
    doctor.environment.versions = lambda: {**versions(), "torch": "0.4.1"}
    exists = os.path.exists
    os.path.exists = lambda path: "doctor" not in str(path) and exists(path)
sys.exit(main(sys.argv[1:]))
""")
    done = mpirun(2, script, "doctor", f"output={tmp_path}/results", f"generation.bank={tmp_path}/bank")
    said = re.sub(r"\s+", " ", done.stdout)
    assert done.returncode == 2, done.stderr
    assert (
        "torch is " in said
        and ", and 0.4.1 on " in said
        and "(rank 1): start all ranks from one environment" in said
    )
    assert (
        f"output: {tmp_path}/results is not the same folder on " in said
        and "a file system shared by all nodes" in said
    )
    assert "rank 0 to rank 1 on " in said and "a round's reduction of " in said


def test_a_model_and_data_that_cannot_be_are_to_be_fixed(fast, capsys):
    assert main(["doctor", *fast, "data.samples=2147483647"]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "the 2147483647 training images of data.name=synthetic with data.size=8 take 429 GB of memory" in said
    )
    assert main(["doctor", *fast, "data.size=2"]) == 2
    assert "to fix: - model.name: cnn cannot be trained on images of 3 x 2 x 2 " in " ".join(
        capsys.readouterr().out.split()
    )
