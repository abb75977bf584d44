"""The cores and the GPU of each rank: a node's share of the job, divided over the ranks on that node."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from genfl_mpi.mpi import launchers
from genfl_mpi.mpi.collectives import MPI
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted

MAX_NAME = 64  # the width of /rounds/device


class Runtime(Protocol):
    """The part of config.runtime used here."""

    @property
    def threads(self) -> int | None: ...

    @property
    def device(self) -> str: ...

    @property
    def tf32(self) -> bool: ...

    @property
    def deterministic(self) -> bool: ...


@dataclass(frozen=True)
class Place:
    """The host of a rank, and the resources available to it there.

    cores: core numbers in its affinity mask. group, quota: its control group, and the CPU quota of this
    group, in cores (None: unlimited). granted: cores that Slurm granted the job on the node (None: no Slurm).
    gpus: names of the GPUs that the rank may use; torch can use `usable` of them. withheld: number of GPUs
    that torch finds, but Slurm did not grant. serves: whether the rank is the server of its run.
    """

    rank: int
    host: str
    cores: frozenset[int]
    group: str = ""
    quota: float | None = None
    granted: int | None = None
    gpus: tuple[str, ...] = ()
    usable: int = 0
    withheld: int = 0
    serves: bool = False


def make_place(
    rank: int,
    host: str,
    cores: Iterable[int],
    quota: tuple[str, float | None],
    environ: Mapping[str, str],
    found: int,
    serves: bool | None = None,
) -> Place:
    """Build a `Place`.

    cores: affinity mask; quota: (control group, its quota), as of `cpu_quota`; environ: environment
    variables; found: number of GPUs that torch finds; serves: whether the rank is a server, by default
    whether it is rank 0.
    """
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


def count_cores(places: Sequence[Place]) -> int:
    """Return the number of cores available to the ranks of one node together, at least 1.

    This is the size of the union of their affinity masks, limited by Slurm's grant and by the quotas of their
    control groups.
    """
    cores = len(frozenset().union(*(one.cores for one in places)))
    granted = [one.granted for one in places if one.granted is not None]
    quotas = {one.group: one.quota for one in places}  # by group, because its ranks share one quota
    limits = [quota for quota in quotas.values() if quota is not None]
    if len(limits) == len(quotas):
        cores = min(cores, int(sum(limits)))
    return max(1, min([cores, *granted[:1]]))


def assign_gpus(places: Sequence[Place]) -> list[int | None]:
    """Assign a GPU to each rank of one node: an index into the rank's `gpus`, or None if it has none.

    (If torch can use none of them, the index that it would get.) Ranks that see the same GPUs take them in
    turn, servers first, since these generate images, too. With more GPUs than servers, each server has a GPU
    to itself, and the other ranks share the rest. All ranks of the node count, whatever run they belong to.
    """
    taken: list[int | None] = []
    for one in places:
        rivals, count = [other for other in places if other.gpus == one.gpus], one.usable or len(one.gpus)
        servers = sum(other.serves for other in rivals)
        position = sorted(rivals, key=lambda other: not other.serves).index(one)
        if count == 0:
            taken.append(None)
        elif position >= servers and servers < count < len(rivals):
            taken.append(servers + (position - servers) % (count - servers))
        else:
            taken.append(position % count)
    return taken


def oversubscription(places: Sequence[Place], threads: int) -> str | None:
    """Return a warning if the ranks of one node have more threads than cores, else None."""
    cores, ranks = count_cores(places), len(places)
    if ranks * threads <= cores:
        return None
    most = f"start at most {counted(cores // threads, 'rank')} on this host"
    remedy = most if cores >= threads else f"set runtime.threads to at most {cores}"
    return (
        f"{places[0].host}: more threads than cores ({counted(ranks, 'rank')} of "
        f"{counted(threads, 'thread')} on {counted(cores, 'core')}); {remedy}, or request more cores"
    )


def unused_gpus(places: Sequence[Place], kind: str) -> str | None:
    """Return a warning if one node's ranks compute on CPUs because Slurm granted no GPU there, else None."""
    if kind == "cuda" or not places[0].withheld:
        return None
    return (
        f"{places[0].host}: Slurm granted the job none of the node's GPUs: request them with "
        "--gpus-per-node, or use them without a grant by runtime.device=cuda"
    )


_surveyed: tuple[list[Place], int] | None = None  # result of the last `survey`


def survey(comm: MPI.Comm, serves: bool | None = None) -> None:
    """Collect the `Place` of every rank of the job, for `neighbours`. Collective.

    Call it before ranks are split into groups, which may share a node without knowing, and again when the
    groups' servers are known.
    """
    global _surveyed
    _surveyed = _gather_places(comm, serves)


def neighbours(comm: MPI.Comm) -> tuple[list[Place], int]:
    """Return the `Place` of each rank on this node, in order of ranks, and this rank's index among them.

    Collective over `comm`, unless `survey` was called before.
    """
    return _surveyed or _gather_places(comm)


def resolve(comm: MPI.Comm, runtime: Runtime) -> tuple[int, str]:
    """Return (threads, device kind) for config.runtime, the same on every rank. Collective.

    Threads default to the smallest share that any rank has of its node's cores. Raises UserError if the GPUs
    requested or granted cannot be used.
    """
    places, index = neighbours(comm)
    threads = comm.allreduce(max(1, count_cores(places) // len(places)), op=MPI.MIN)
    everywhere = comm.allgather(
        (places[index].host, places[index].gpus, places[index].usable, places[index].withheld)
    )
    if runtime.device == "cuda" and not all(usable or withheld for _, _, usable, withheld in everywhere):
        raise UserError(
            "runtime.device=cuda: torch finds no GPU on at least one rank; set runtime.device=cpu, or start "
            "ranks only where there is a GPU"
        )
    for host, gpus, usable, _ in everywhere:
        if runtime.device == "auto" and gpus and not usable:
            raise UserError(
                f"{host}: the job was given GPU {','.join(gpus)}, and torch cannot use it; install a build "
                "of torch for this GPU and its driver, or set runtime.device=cpu"
            )
    kind = "cuda" if all(usable for _, _, usable, _ in everywhere) else "cpu"
    return runtime.threads or threads, kind if runtime.device == "auto" else runtime.device


def warn(comm: MPI.Comm, threads: int, kind: str) -> list[str]:
    """Return warnings about cores and GPUs, each for the first node concerned. Collective.

    The list is empty on ranks other than 0.
    """
    places, index = neighbours(comm)
    found = (oversubscription(places, threads), unused_gpus(places, kind)) if index == 0 else (None, None)
    by_node = comm.gather(found) or []
    return [min(lines) for column in zip(*by_node) if (lines := list(filter(None, column)))]


def set_up(comm: MPI.Comm, runtime: Runtime, kind: str | None = None) -> torch.device:
    """Set this rank's threads and torch's global flags, and return its device. Collective.

    Every command that computes calls it, so that the same settings give the same bits. runtime:
    config.runtime; threads=None, before it is resolved, keeps torch's number. kind: cpu or cuda, by default
    runtime.device.
    """
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    kind = kind or runtime.device
    if kind == "cpu":
        return torch.device("cpu")
    # Makes cuBLAS deterministic, as far as the library can be.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=not runtime.deterministic)
    memory: Any = torch.utils.deterministic
    memory.fill_uninitialized_memory = False  # it would write all new memory twice
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = runtime.tf32
    places, index = neighbours(comm)
    number = assign_gpus(places)[index] if places[index].usable else None
    if number is None:  # take one of the GPUs that Slurm withholds
        number = index % torch.cuda.device_count()
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def describe_models(comm: MPI.Comm, device: torch.device) -> str:
    """Return the models of the ranks' devices, which their bits depend on. Collective.

    A GPU's name, or the instruction set of a CPU; several are joined by " + ", up to MAX_NAME characters.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU {torch.backends.cpu.get_cpu_capability()}"
    return " + ".join(sorted(set(comm.allgather(name))))[:MAX_NAME]


def count_gpu_sharers(places: Sequence[Place], index: int) -> int:
    """Return how many ranks of a node use the GPU of the rank at `index`, that rank included."""
    names = _gpu_names(places)
    return names.count(names[index])


def is_first_on_gpu(places: Sequence[Place], index: int) -> bool:
    """Return whether no rank of a node before the one at `index` uses the same GPU."""
    names = _gpu_names(places)
    return names.index(names[index]) == index


def _gpu_names(places: Sequence[Place]) -> list[str | None]:
    """Return the name of the GPU that each rank of a node uses, or None."""
    return [None if number is None else one.gpus[number] for one, number in zip(places, assign_gpus(places))]


def cpu_quota(
    environment: str | Path = "/proc/self/cgroup", root: str | Path = "/sys/fs/cgroup"
) -> tuple[str, float | None]:
    """Return (control group, cores) of the tightest CPU quota on this process, or ("", None).

    Control groups of version 2 have `cpu.max`, those of version 1 `cpu.cfs_quota_us`. In a container the path
    of the group may not exist; the root then has the limit.
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
            if controllers:  # version 1
                quota = _read(folder / "cpu.cfs_quota_us").strip() or "-1"
                period = _read(folder / "cpu.cfs_period_us").strip() or "1"
            else:
                quota, period = _read(folder / "cpu.max").split() or ["max", "1"]
            if quota not in ("max", "-1"):
                found.append((int(quota) / int(period), str(folder)))
    return (min(found)[1], min(found)[0]) if found else ("", None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _gather_places(comm: MPI.Comm, serves: bool | None = None) -> tuple[list[Place], int]:
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    places = node.allgather(
        make_place(
            comm.rank,
            os.uname().nodename,
            os.sched_getaffinity(0),
            cpu_quota(),
            os.environ,
            torch.cuda.device_count(),
            serves,
        )
    )
    index = node.rank
    node.Free()
    return places, index
