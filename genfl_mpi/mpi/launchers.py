"""What launchers and Slurm reveal about a process before MPI starts: environment variables, command lines."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from genfl_mpi.util.errors import UserError

# Environment variables of the launchers: rank of the process, number of ranks, and visible GPUs.
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PALS_RANKID", "SLURM_PROCID")
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
LAUNCHERS = ("mpirun", "mpiexec", "orterun", "prterun")


def is_first(environ: Mapping[str, str]) -> bool:
    """Return whether the process is rank 0, or was started without a launcher."""
    return all(environ.get(name, "0") == "0" for name in RANK_VARIABLES)


def ancestors() -> Iterator[tuple[int, str]]:
    """Yield (process, name) of this process's ancestors, the nearest first.

    Raises OSError or ValueError where /proc does not have them.
    """
    pid = os.getppid()
    while pid > 1:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        yield pid, name
        pid = int(rest.split()[1])


def command(size: int, environ: Mapping[str, str]) -> str:
    """Return the shell command that started this job of `size` ranks.

    The launcher's own command line, if a parent process is one; else a command line that would start the same
    job.
    """
    arguments = list(sys.orig_argv)
    if any(name in environ for name in RANK_VARIABLES):
        with suppress(OSError, ValueError, IndexError):
            for pid, name in ancestors():
                if name.startswith(LAUNCHERS):
                    return shlex.join(
                        Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
                    )
    if size > 1:
        arguments = ["srun" if "SLURM_STEP_ID" in environ else "mpirun", "-n", str(size), *arguments]
    return shlex.join(arguments).encode(errors="replace").decode()


def granted_cores(environ: Mapping[str, str]) -> int | None:
    """Return the cores that Slurm granted the job, or the job step, on this node; None outside Slurm."""
    cores = environ.get("SLURM_CPUS_ON_NODE", "")
    return int(cores) if cores.isdigit() and "SLURM_JOB_ID" in environ else None


def granted_gpus(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the names of the GPUs that the process may use; None if the environment sets no limit."""
    for name in GPUS:
        if name in environ:
            return tuple(
                part.strip()
                for part in environ[name].split(",")
                if part.strip() not in ("", "-1", "NoDevFiles")
            )
    return () if "SLURM_JOB_ID" in environ else None


def check_size(size: int, environ: Mapping[str, str]) -> None:
    """Raise UserError if MPI reports one rank where the launcher started several.

    Each of them would compute everything alone.
    """
    sizes = [int(environ[name]) for name in SIZES if environ.get(name, "").isdigit()]
    # Slurm's variables count its own processes; under mpirun these are mpirun's helper processes.
    by_mpirun = sizes or "MPI_LOCALNRANKS" in environ or "OMPI_COMM_WORLD_RANK" in environ
    started = max(sizes) if sizes else 1 if by_mpirun else int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if size == 1 and started > 1:
        remedy = (
            "install mpi4py with the MPI library of this mpirun, or use the mpirun of mpi4py's library"
            if by_mpirun
            else "try srun --mpi=pmi2 or another kind listed by `srun --mpi=list`, or use mpirun"
        )
        raise UserError(
            f"{started} processes were started, but each is the only rank: the MPI library does not match "
            f"the launcher; {remedy}"
        )
