"""Check a set-up before a run fails on it: the `doctor` command.

Each check reports what it finds on all ranks, and for every problem what to fix and how.
"""

from __future__ import annotations

import os
import platform
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import torch

from genfl_mpi.data import datasets
from genfl_mpi.data.clients import check_memory
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.generation.generator import Generator
from genfl_mpi.learning import models
from genfl_mpi.mpi import collectives, devices, measure
from genfl_mpi.results import disk, environment
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI

    # The lines to print, and the problems to fix.
    Findings = tuple[list[str], list[str]]

SLOW_START = 60.0  # seconds until a process has imported everything
SLOW_FILE = 0.1  # seconds to write a file of 4 KB and flush it to disk
SLOW_DISK = 20e6  # bytes per second, of a file of LARGE bytes
LARGE = 16 << 20
SLOW_NETWORK = 0.1e9  # bytes per second between hosts
MAX_PINGED_RANKS = 8
MAX_LINES_PER_CHECK = 16


def doctor(comm: MPI.Comm, runs: dict[str, Config], say: Callable[[str], object]) -> int:
    """Check the set-up of all ranks for `runs`. Collective.

    Returns the exit status: 0, or 2 if a check finds a problem.
    """
    configs, refused = zip(*(_resolved(comm, config) for config in runs.values()))
    checks: dict[str, Callable[[MPI.Comm, Sequence[Config]], Findings]] = {
        "MPI": _mpi,
        "ranks": _ranks,
        "cores": _cores,
        "GPUs": _gpus,
        "versions": _versions,
        "files": _files,
        "data": _data,
        "generator": _generator,
        "messages": _messages,
        "start": _start,
    }
    problems = list(dict.fromkeys(filter(None, refused)))
    for heading, check in checks.items():
        lines, found = check(comm, configs)
        hidden = len(lines) - MAX_LINES_PER_CHECK
        for line in [*lines[:MAX_LINES_PER_CHECK], *[f"and {hidden} more"] * (hidden > 0)]:
            say(_fill(line, f"{heading:<11}", " " * 11))
            heading = ""
        problems += found
    say("\nto fix:" if problems else "\nnothing to fix")
    for problem in problems:
        say(_fill(problem, "- ", "  "))
    return comm.bcast(2 if problems else 0)


def _fill(text: str, first: str, other: str) -> str:
    """Wrap a text at 80 columns, but never inside a path."""
    return textwrap.fill(
        text,
        80,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _resolved(comm: MPI.Comm, config: Config) -> tuple[Config, str | None]:
    """Fill in threads and devices.

    Returns the config and None; if that fails, the config for the CPU and the reason.
    """
    try:
        return resolve(config, comm), None
    except UserError as error:
        runtime = config.runtime.model_copy(update={"device": "cpu"})
        return resolve(config.model_copy(update={"runtime": runtime}), comm), str(error)


def _mpi(comm: MPI.Comm, configs: Sequence[Config]) -> Findings:
    """Report the MPI library, and whether it is GPU-aware."""
    aware = {
        True: "sends from GPU memory",
        False: "does not send from GPU memory, which is not required",
        None: "does not report whether it sends from GPU memory, which is not required",
    }[measure.is_gpu_aware()]
    return [" ".join(collectives.library().split()), aware], []


def _ranks(comm: MPI.Comm, configs: Sequence[Config]) -> Findings:
    """Report ranks and hosts."""
    nodes = _by_node(comm)
    hosts = {places[0].host for places in nodes}
    lines = [f"{comm.size} on {counted(len(hosts), 'host')}"]
    if len(nodes) > len(hosts) and nodes:
        lines.append(
            f"MPI treats them as {len(nodes)} nodes, each with its own copy of the data set in memory"
        )
    return lines, []


def _cores(comm: MPI.Comm, configs: Sequence[Config]) -> Findings:
    """Report the cores of each node and their limits; oversubscription and bad binding are problems."""
    threads, lines = configs[0].runtime.threads or 1, []
    problems = devices.warn(comm, threads, "cuda")
    for places in _by_node(comm):
        cores, one = devices.count_cores(places), places[0]
        affinity = _spans(frozenset().union(*(place.cores for place in places)))
        limits = [f"affinity {affinity} of {os.cpu_count()}"]
        limits += [f"Slurm's grant {one.granted}"] if one.granted is not None else []
        limits += [f"quota {one.quota:g}"] if one.quota is not None else []
        lines.append(
            f"{one.host}: rank{'s' * (len(places) > 1)} {_spans(place.rank for place in places)} on "
            f"{counted(cores, 'core')} ({', '.join(limits)}), {counted(threads, 'thread')} each"
        )
        all_cores = one.granted or os.cpu_count() or cores
        if "OMPI_COMM_WORLD_RANK" in os.environ and cores <= len(places) and 2 * cores <= all_cores:
            problems.append(
                f"{one.host}: Open MPI has bound each rank to one core of {all_cores}: use "
                "mpirun --bind-to none, or --map-by slot:pe=THREADS"
            )
    return lines, problems


def _gpus(comm: MPI.Comm, configs: Sequence[Config]) -> Findings:
    """Report the GPUs of each node and the one that each rank uses; unused GPUs are a problem."""
    local_rank = devices.neighbours(comm)[1]
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [f"{one.name}, {getattr(one, 'uuid', '')}" for one in properties]
    gathered = comm.gather(names if local_rank == 0 else None)
    lines: list[str] = []
    for places, names in zip(_by_node(comm), filter(lambda names: names is not None, gathered or [])):
        lines += [f"{places[0].host}: GPU {i}: {name}" for i, name in enumerate(names)]
        for place, number in zip(places, devices.assign_gpus(places)):
            if number is not None:
                lines.append(
                    f"{place.host}: rank {place.rank} uses GPU {place.gpus[number]} "
                    f"of {','.join(place.gpus)}" + ("" if place.usable else ", which torch cannot use")
                )
    problems = [devices.unused_gpus(places, configs[0].runtime.device) for places in _by_node(comm)]
    return lines or ["none: computing on the CPU"], list(filter(None, problems))[:1]


def _versions(comm: MPI.Comm, configs: Sequence[Config]) -> Findings:
    """Report rank 0's versions; a rank with another one is a problem."""
    mine = {
        "python": platform.python_version(),
        "MPI": collectives.library(),
        "HDF5": h5py.version.hdf5_version,
        "commit": environment.git_commit(),
        **environment.versions(),
    }
    found = comm.gather((os.uname().nodename, mine))
    if found is None:  # every rank but 0
        return [], []
    problems = []
    for name, version in mine.items():
        others = [
            (host, rank, theirs[name]) for rank, (host, theirs) in enumerate(found) if theirs[name] != version
        ]
        for host, rank, theirs in others[:1]:
            problems.append(
                f"{name} is {version} on rank 0, and {theirs} on {host} (rank {rank}): start all ranks "
                "from one environment, on a file system shared by all nodes"
            )
    return [
        ", ".join(
            f"{name} {version}"
            for name, version in mine.items()
            if name != "MPI" and version != environment.UNKNOWN
        )
    ], problems


def _files(comm: MPI.Comm, configs: Sequence[Config]) -> Findings:
    """Report the folders of results and bank; one that is not shared, without locks or slow is a problem."""
    lines: list[str] = []
    problems: list[str] = []
    folders = {config.output: "output" for config in configs} | {
        config.generation.bank: "generation.bank" for config in configs
    }
    for folder, setting in folders.items():
        found = collectives.from_rank0(comm, lambda: _probe(Path(folder), setting))
        visible = comm.gather(
            (os.uname().nodename, os.path.exists(found["marker"])) if "marker" in found else None
        )
        if visible is None:  # every rank but 0
            continue
        if "marker" in found:
            os.unlink(found["marker"])
            lines.append(
                f"{folder}: {found['system']}, {found['rate'] / 1e6:.0f} MB/s, "
                f"{1e3 * found['small']:.1f} ms per small file"
            )
            if missing := [host for host, is_visible in visible if not is_visible]:
                problems.append(
                    f"{setting}: {folder} is not the same folder on {missing[0]} as on rank 0: choose one "
                    "on a file system shared by all nodes"
                )
            if found["rate"] < SLOW_DISK or found["small"] > SLOW_FILE:
                problems.append(
                    f"{setting}: {folder} is on a slow file system: choose another, or write less often with "
                    "checkpoint.every_rounds=10"
                )
        problems += found["problems"]
    return lines, problems


def _probe(folder: Path, setting: str) -> dict[str, Any]:
    """Measure the folder of a setting, or its nearest existing parent.

    Returns problems, and if the folder can be written: marker, the path of a file left there; system; rate,
    bytes per second of a large file; small, seconds per small file.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    marker = existing / f".genfl_mpi-doctor-{os.uname().nodename}-{os.getpid()}"
    try:
        rate = LARGE / _seconds_to_write(marker, LARGE)
        small = sorted(_seconds_to_write(marker, 4096) for _ in range(5))[2]
    except OSError as error:
        return {"problems": [f"{setting}: {folder} cannot be written: {error.strerror}; set another folder"]}
    found: dict[str, Any] = {
        "marker": str(marker),
        "system": _file_system(marker),
        "rate": rate,
        "small": small,
        "problems": [],
    }
    try:
        with h5py.File(marker, "w", libver="v110") as file:
            file.swmr_mode = True
            h5py.File(marker, "r", libver="latest", swmr=True).close()
    except OSError as error:
        found["problems"] = [
            f"{setting}: HDF5 cannot use {folder} ({first_line(error)}): export "
            "HDF5_USE_FILE_LOCKING=FALSE, or choose another file system"
        ]
    return found


def _seconds_to_write(path: Path, size: int) -> float:
    """Time writing a file of `size` bytes, until it is on the disk. Raises OSError."""
    start = time.perf_counter()
    path.write_bytes(b"\0" * size)
    disk.flush(path)
    return time.perf_counter() - start


def _file_system(path: Path) -> str:
    """Return the type of the file system that `path` is on, for example "nfs4"."""
    path, best = path.absolute(), ("", "unknown type of file system")
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split()
            if path.is_relative_to(mount) and len(mount) >= len(best[0]):
                best = mount, kind
    return best[1]


def _data(comm: MPI.Comm, configs: Sequence[Config]) -> Findings:
    """Report the data sets; one that a node cannot read or hold is a problem."""

    def check(config: Config) -> None:
        datasets.check_available(config.data, 0)
        check_memory(config)

    return _on_each_node(comm, {config.data.name: config for config in configs}, check)


def _generator(comm: MPI.Comm, configs: Sequence[Config]) -> Findings:
    """Report the generators; one that a node cannot read is a problem."""

    def check(config: Config) -> None:
        Generator(config, datasets.describe(config.data).shape)

    return _on_each_node(
        comm, {config.generation.checkpoint: config for config in configs if config.generates}, check
    )


def _on_each_node(comm: MPI.Comm, configs: dict[str, Config], check: Callable[[Config], None]) -> Findings:
    """Run `check` on the first rank of each node, for {name: config}; a UserError is a problem."""
    lines: list[str] = []
    problems: list[str] = []
    for name, config in configs.items():
        problem = None
        if devices.neighbours(comm)[1] == 0:
            try:
                check(config)
            except UserError as error:
                problem = f"{os.uname().nodename}: {error}"
        found = list(filter(None, comm.gather(problem) or []))
        lines.append(f"{name}: {'missing' if found else 'found'}")
        problems += found[:1]
    return lines, problems


def _messages(comm: MPI.Comm, configs: Sequence[Config]) -> Findings:
    """Ping a rank of every host, and time the reduction of a round; a slow network is a problem."""
    hosts, problems, lines = comm.allgather(os.uname().nodename), [], []
    first_ranks = {hosts.index(host) for host in hosts} - {0}
    partners = sorted(first_ranks | ({1} if comm.size > 1 else set()))[:MAX_PINGED_RANKS]
    for partner in partners:
        if (result := measure.ping(comm, partner)) is not None and comm.rank == 0:
            seconds, rate = result
            lines.append(
                f"rank 0 to rank {partner} on {hosts[partner]}: {1e6 * seconds:.1f} us, {rate / 1e9:.2f} GB/s"
            )
            if hosts[partner] != hosts[0] and rate < SLOW_NETWORK:
                problems.append(
                    f"{hosts[0]} and {hosts[partner]} exchange {rate / 1e9:.3f} GB/s: MPI may have missed "
                    "the fast network; use the site's MPI library, or set the variables that it documents"
                )
    model, about = configs[0].model, datasets.describe(configs[0].data)
    try:
        module = collectives.call_on_all(
            comm, lambda: models.build(model, len(about.classes), about.shape, 0)
        )
    except UserError as error:
        return lines or ["no reduction measured: the model cannot be built"], [*problems, str(error)]
    weights = sum(value.numel() for value in module.state_dict().values())
    seconds = measure.reduction(comm, weights)
    if comm.size > 1:
        lines.append(
            f"a round's reduction of {weights:,} weights of {model.name}, 8 bytes each: "
            f"{1e3 * seconds:.1f} ms, {8 * weights / seconds / 1e9:.2f} GB/s"
        )
    return lines or ["none: a single rank"], problems


def _start(comm: MPI.Comm, configs: Sequence[Config]) -> Findings:
    """Report how long the slowest process took to start; a slow start is a problem."""
    seconds = max(comm.gather(_process_age()) or [0.0])
    problem = (
        f"a process took {seconds:.0f} s to start: keep the Python environment on a fast file system, "
        "for example the nodes' local disks, or in a container"
    )
    line = f"{seconds:.0f} s from the start of a process to this check, on the slowest rank"
    return [line], [problem] if seconds > SLOW_START else []


def _process_age() -> float:
    """Return the seconds since this process began; 0 if unknown."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _by_node(comm: MPI.Comm) -> list[list[devices.Place]]:
    """Gather the places of each node on rank 0; other ranks get an empty list. Collective."""
    places, local_rank = devices.neighbours(comm)
    return [places for places in comm.gather(places if local_rank == 0 else None) or [] if places]


def _spans(numbers: Iterable[int]) -> str:
    """Abbreviate a list of numbers, as in "0-3,8"."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)
