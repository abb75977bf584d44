"""What the launchers and Slurm tell a process of itself, in its environment, and by their own command: known before MPI is started."""

import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from genfl_mpi.util.errors import UserError

# A launcher's own words, for the rank of a process and for how many there are.
RANKS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PALS_RANKID", "SLURM_PROCID")
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
LAUNCHERS = ("mpirun", "mpiexec", "orterun", "prterun")
GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


def is_first(environ):
    """Whether the process is rank 0, or no launcher has started it."""
    return all(environ.get(name, "0") == "0" for name in RANKS)


def parents():
    """(process, name) of this process's parents, the nearest first. Raises OSError or ValueError where the system does not tell."""
    pid = os.getppid()
    while pid > 1:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        yield pid, name
        pid = int(rest.split()[1])


def command(size, environ):
    """The line for a shell by which this process and the others of `size` ranks were started: as the launcher was called, if it is
    one of the parents, and else as one would be."""
    own = list(sys.orig_argv)
    if any(name in environ for name in RANKS):
        with suppress(OSError, ValueError, IndexError):
            for pid, name in parents():
                if name.startswith(LAUNCHERS):
                    return shlex.join(
                        Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
                    )
    if size > 1:
        own = ["srun" if "SLURM_STEP_ID" in environ else "mpirun", "-n", str(size), *own]
    return shlex.join(own).encode(errors="replace").decode()


def granted_cores(environ):
    """Cores that Slurm gave the job, or the step of it, on this node; None outside of Slurm."""
    cores = environ.get("SLURM_CPUS_ON_NODE", "")
    return int(cores) if cores.isdigit() and "SLURM_JOB_ID" in environ else None


def granted_gpus(environ):
    """Names of the GPUs that the process may use, as a tuple; None if nobody has said."""
    for name in GPUS:
        if name in environ:
            return tuple(
                part.strip()
                for part in environ[name].split(",")
                if part.strip() not in ("", "-1", "NoDevFiles")
            )
    return () if "SLURM_JOB_ID" in environ else None


def check_size(size, environ):
    """Raise UserError if MPI counts one rank where the launcher has started several: each would compute everything alone."""
    sizes = [int(environ[name]) for name in SIZES if environ.get(name, "").isdigit()]
    # Slurm counts the processes of its own; under mpirun these are mpirun's helpers.
    by_mpirun = sizes or "MPI_LOCALNRANKS" in environ or "OMPI_COMM_WORLD_RANK" in environ
    started = max(sizes) if sizes else 1 if by_mpirun else int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if size == 1 and started > 1:
        remedy = (
            "install mpi4py with the MPI library of that mpirun, or call the mpirun of mpi4py's library"
            if by_mpirun
            else "try srun --mpi=pmi2 or another kind of `srun --mpi=list`, or mpirun"
        )
        raise UserError(
            f"{started} processes were started that do not know of one another: the MPI library and what "
            f"started them do not fit; {remedy}"
        )
