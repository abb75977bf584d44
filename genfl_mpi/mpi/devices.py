"""Which cores and which GPU a rank computes on: what the job was given on a node, divided over the ranks there."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from genfl_mpi.mpi import launchers
from genfl_mpi.mpi.collectives import MPI
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted


@dataclass(frozen=True)
class Place:
    """Where a rank is and what it may use there.

    cores: numbers in its affinity mask. group, quota: its control group, and the cores whose time that may take (None: all).
    granted: cores that Slurm gave the job on the node (None: no Slurm). gpus: names of the GPUs that it may use, of which torch
    can use `usable`. withheld: GPUs that torch finds, but that Slurm did not give to the job. serves: whether the rank is the
    server of its run.
    """

    rank: int
    host: str
    cores: frozenset
    group: str = ""
    quota: float | None = None
    granted: int | None = None
    gpus: tuple = ()
    usable: int = 0
    withheld: int = 0
    serves: bool = False


def place(rank, host, cores, quota, environ, found, serves=None):
    """`Place` from an affinity mask, (control group, its quota), a dict of environment variables and the number of GPUs that
    torch finds. The server is rank 0, unless it is said who is."""
    gpus = launchers.granted_gpus(environ)
    if gpus is None:
        gpus = tuple(map(str, range(found)))
    return Place(
        rank,
        host,
        frozenset(cores),
        *quota,
        launchers.granted_cores(environ),
        gpus,
        usable=min(found, len(gpus)),
        withheld=0 if gpus else found,
        serves=rank == 0 if serves is None else serves,
    )


def cores_of(places):
    """How many cores the ranks of one node may use together: the union of their masks, as far as Slurm's grant and the quotas of
    their control groups go. At least 1."""
    cores = len(frozenset().union(*(one.cores for one in places)))
    granted = [one.granted for one in places if one.granted is not None]
    quotas = {one.group: one.quota for one in places}  # ranks in one group share its quota
    if None not in quotas.values():
        cores = min(cores, int(sum(quotas.values())))
    return max(1, min([cores, *granted[:1]]))


def gpus_of(places):
    """Which of its `gpus` each rank of one node takes, as a list of indices, None where a rank has none. (Where torch can use
    none of them, which one it would be.)

    Ranks that see the same GPUs take them in turn, first those that serve, which generate images too. They keep a GPU for
    themselves where there are more GPUs than servers, however many ranks share the others. All ranks of the node count, whatever
    runs they work on.
    """
    taken = []
    for one in places:
        alike, count = [other for other in places if other.gpus == one.gpus], one.usable or len(one.gpus)
        servers = sum(other.serves for other in alike)
        position = sorted(alike, key=lambda other: not other.serves).index(one)
        if count == 0:
            taken.append(None)
        elif position >= servers and servers < count < len(alike):
            taken.append(servers + (position - servers) % (count - servers))
        else:
            taken.append(position % count)
    return taken


def oversubscription(places, threads):
    """A line if the ranks of one node have more threads than cores; else None."""
    cores, ranks = cores_of(places), len(places)
    if ranks * threads <= cores:
        return None
    return (
        f"{places[0].host}: {counted(ranks, 'rank')} of {counted(threads, 'thread')} on {counted(cores, 'core')}: "
        f"start at most {max(1, cores // threads)} there, or ask for more cores"
    )


def unused_gpus(places, kind):
    """A line if the ranks of one node compute on its cores because Slurm gave the job none of its GPUs; else None."""
    if kind == "cuda" or not places[0].withheld:
        return None
    return (
        f"{places[0].host}: Slurm gave the job none of the node's GPUs: ask with --gpus-per-node, or take them with "
        "runtime.device=cuda"
    )


_surveyed = None  # what `neighbours` returns, when all ranks of the job were asked


def survey(comm, serves=None):
    """Ask all ranks of the job where they are, before they part into groups that share a node without knowing, and again when it
    is known which of them will serve a group. Collective."""
    global _surveyed
    _surveyed = _ask(comm, serves)


def neighbours(comm):
    """The `Place` of each rank on this node, in their order, and which of them is this rank's. Collective, over `comm` unless
    there was a survey."""
    return _surveyed or _ask(comm)


def resolve(comm, runtime):
    """(threads, device kind) for settings config.runtime, the same on every rank. Collective. Raises UserError.

    Threads default to the smallest share that a rank has of its node's cores.
    """
    places, own = neighbours(comm)
    threads = comm.allreduce(max(1, cores_of(places) // len(places)), op=MPI.MIN)
    everywhere = comm.allgather(
        (places[own].host, places[own].gpus, places[own].usable, places[own].withheld)
    )
    if runtime.device == "cuda" and not all(usable or withheld for _, _, usable, withheld in everywhere):
        raise UserError(
            "runtime.device=cuda, but not every rank sees a GPU that torch can use; set runtime.device=cpu"
        )
    for host, gpus, usable, _ in everywhere:
        if runtime.device == "auto" and gpus and not usable:
            raise UserError(
                f"{host}: the job was given GPU {','.join(gpus)}, and torch cannot use it; install a torch for this "
                "GPU and its driver, or set runtime.device=cpu"
            )
    kind = "cuda" if all(usable for _, _, usable, _ in everywhere) else "cpu"
    return runtime.threads or threads, kind if runtime.device == "auto" else runtime.device


def remarks(comm, threads, kind):
    """Lines, on rank 0 alone, about what the user may have wanted otherwise: of the first node concerned. Collective."""
    places, own = neighbours(comm)
    said = (
        comm.gather(
            (oversubscription(places, threads), unused_gpus(places, kind)) if own == 0 else (None, None)
        )
        or []
    )
    return [min(lines) for column in zip(*said) if (lines := list(filter(None, column)))]


def use(comm, threads, kind):
    """Set this rank's threads and return its torch device. Collective."""
    torch.set_num_threads(threads)
    if kind == "cpu":
        return torch.device("cpu")
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # the same bits every time, as far as the library can
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    places, own = neighbours(comm)
    number = (
        gpus_of(places)[own] if places[own].usable else own % torch.cuda.device_count()
    )  # of what Slurm withholds
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def sharers(places, own):
    """How many ranks of a node have the same GPU as the one at index `own`, itself among them."""
    names = [None if number is None else one.gpus[number] for one, number in zip(places, gpus_of(places))]
    return names.count(names[own])


def cpu_quota(environment="/proc/self/cgroup", root="/sys/fs/cgroup"):
    """(control group, cores): the tightest limit of CPU time on this process and the group that it is set for, or ("", None).

    Control groups of version 2 have `cpu.max`, those of version 1 `cpu.cfs_quota_us`. In a container the group's path may not
    exist, and its root then has the limit.
    """
    found = []
    for line in _read(Path(environment)).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = Path(root) / controllers if controllers else Path(root)
        for folder in [top / path.lstrip("/"), *(top / path.lstrip("/")).parents]:
            if folder != top and top not in folder.parents:
                break
            quota, period = (
                (_read(folder / "cpu.max").split() or ["max", "1"])
                if not controllers
                else (
                    _read(folder / "cpu.cfs_quota_us").strip() or "-1",
                    _read(folder / "cpu.cfs_period_us").strip() or "1",
                )
            )
            if quota not in ("max", "-1"):
                found.append((int(quota) / int(period), str(folder)))
    return (min(found)[1], min(found)[0]) if found else ("", None)


def _read(path):
    try:
        return path.read_text()
    except OSError:
        return ""


def _ask(comm, serves=None):
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    places = node.allgather(
        place(
            comm.rank,
            os.uname().nodename,
            os.sched_getaffinity(0),
            cpu_quota(),
            os.environ,
            torch.cuda.device_count(),
            serves,
        )
    )
    own = node.rank
    node.Free()
    return places, own
