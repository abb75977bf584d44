"""Describe the software and hardware of a run, for its results file."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("genfl_mpi", "numpy", "torch", "torchvision", "diffusers", "transformers", "h5py", "mpi4py")
UNKNOWN = "unknown"


def describe(
    command: str, mpi_library: str, hosts: Sequence[str], cores: int, threads: int, device: str
) -> dict[str, str | int]:
    """Return the attributes of /environment.

    command: the command line that started all ranks; hosts: host of each rank; cores: number of cores that
    the ranks on rank 0's node may use together.
    """
    return {
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "packages": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "git_commit": git_commit(),
        "mpi": mpi_library,
        "ranks": len(hosts),
        "hosts": ", ".join(hosts),
        "cores": cores,
        "threads": threads,
        "device": device,
        "reproducible": device == "cpu" or not torch.is_deterministic_algorithms_warn_only_enabled(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
    }


def versions() -> dict[str, str]:
    """Return the versions of PACKAGES by name."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """Return the name of this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def git_commit() -> str:
    """Return the commit of the package's git checkout, or UNKNOWN."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return UNKNOWN
    return found.stdout.strip()
