"""What may be wrong with a set-up before a run finds out: each check says what there is, and what to mend and how."""

import os
import platform
import textwrap
import time
from contextlib import suppress
from pathlib import Path

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

SLOW_START = 60.0  # seconds until a process has imported everything
SLOW_FILE = 0.1  # seconds to write a file of 4 KB and bring it to the disk
SLOW_DISK = 20e6  # bytes a second, of a file of LARGE bytes
LARGE = 16 << 20
SLOW_NETWORK = 0.1e9  # bytes a second between hosts
MOST_PARTNERS = 8  # of rank 0 in the ping
MOST_LINES = 16  # of a check


def doctor(comm, runs, say):
    """Examine the set-up of the ranks for `runs`. Collective. Returns the exit status: 0, or 2 if there is something to mend."""
    configs, refused = zip(*(_resolved(comm, config) for config in runs.values()))
    checks = {
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
        lines, wrong = check(comm, configs)
        for line in [
            *lines[:MOST_LINES],
            *[f"and {len(lines) - MOST_LINES} more"] * (len(lines) > MOST_LINES),
        ]:
            say(textwrap.fill(line, 80, initial_indent=f"{heading:<11}", subsequent_indent=" " * 11))
            heading = ""
        problems += wrong
    say("\nto mend:" if problems else "\nnothing to mend")
    for problem in problems:
        say(textwrap.fill(problem, 80, initial_indent="- ", subsequent_indent="  "))
    return comm.bcast(2 if problems else 0)


def _resolved(comm, config):
    """`config` with threads and devices filled in, and None; or as it would be on cores, and what stands against the devices."""
    try:
        return resolve(config, comm), None
    except UserError as error:
        runtime = config.runtime.model_copy(update={"device": "cpu"})
        return resolve(config.model_copy(update={"runtime": runtime}), comm), str(error)


def _mpi(comm, configs):
    aware = {
        True: "sends from a GPU's memory",
        False: "does not send from a GPU's memory, which is not needed",
        None: "does not say whether it sends from a GPU's memory, which is not needed",
    }[measure.is_gpu_aware()]
    return [" ".join(collectives.library().split()), aware], []


def _ranks(comm, configs):
    nodes = _by_node(comm)
    hosts = {places[0].host for places in nodes}
    lines = [f"{comm.size} on {counted(len(hosts), 'host')}"]
    if len(nodes) > len(hosts) and nodes:
        lines.append(f"which MPI takes for {len(nodes)} nodes: the data set is in memory as often")
    return lines, []


def _cores(comm, configs):
    threads, lines = configs[0].runtime.threads, []
    problems = devices.remarks(comm, threads, "cuda")
    for places in _by_node(comm):
        cores, one = devices.cores_of(places), places[0]
        limits = [
            f"affinity {_spans(frozenset().union(*(place.cores for place in places)))} of {os.cpu_count()}"
        ]
        limits += [f"Slurm's grant {one.granted}"] if one.granted is not None else []
        limits += [f"quota {one.quota:g}"] if one.quota is not None else []
        lines.append(
            f"{one.host}: rank{'s' * (len(places) > 1)} {_spans(place.rank for place in places)} on "
            f"{counted(cores, 'core')} ({', '.join(limits)}), {counted(threads, 'thread')} each"
        )
        all_cores = one.granted or os.cpu_count()
        if "OMPI_COMM_WORLD_RANK" in os.environ and cores <= len(places) and 2 * cores <= all_cores:
            problems.append(
                f"{one.host}: Open MPI has bound each rank to one core of {all_cores}: mpirun --bind-to none, or "
                "--map-by slot:pe=THREADS"
            )
    return lines, problems


def _gpus(comm, configs):
    own = devices.neighbours(comm)[1]
    about = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [f"{one.name}, {getattr(one, 'uuid', '')}" for one in about]
    everyone = comm.gather(names if own == 0 else None)
    lines, problems = [], []
    for places, names in zip(_by_node(comm), filter(lambda names: names is not None, everyone or [])):
        lines += [f"{places[0].host}: GPU {i}: {name}" for i, name in enumerate(names)]
        for place, number in zip(places, devices.gpus_of(places)):
            if number is not None:
                lines.append(
                    f"{place.host}: rank {place.rank} takes GPU {place.gpus[number]} of {','.join(place.gpus)}"
                    + ("" if place.usable else ", which torch cannot use")
                )
    problems += filter(
        None, (devices.unused_gpus(places, configs[0].runtime.device) for places in _by_node(comm))
    )
    return lines or ["none: the cores compute"], problems[:1]


def _versions(comm, configs):
    mine = {
        "python": platform.python_version(),
        "MPI": collectives.library(),
        "HDF5": h5py.version.hdf5_version,
        "commit": environment.git_commit(),
        **environment.versions(),
    }
    found = comm.gather((os.uname().nodename, mine))
    if comm.rank:
        return [], []
    problems = []
    for name, version in mine.items():
        others = [
            (host, rank, theirs[name]) for rank, (host, theirs) in enumerate(found) if theirs[name] != version
        ]
        for host, rank, theirs in others[:1]:
            problems.append(
                f"{name} is {version} on rank 0, and {host} (rank {rank}) has {theirs}: start all ranks from one "
                "environment, on a file system that all nodes see"
            )
    return [", ".join(f"{name} {version}" for name, version in mine.items() if name != "MPI")], problems


def _files(comm, configs):
    """Where the results and the bank go: one folder for all hosts, locks, speed."""
    lines, problems = [], []
    folders = {config.output: "output" for config in configs} | {
        config.generation.bank: "generation.bank" for config in configs
    }
    for folder, setting in folders.items():
        found = collectives.from_rank0(comm, lambda: _probe(Path(folder), setting))
        seen = comm.gather(
            (os.uname().nodename, os.path.exists(found["marker"])) if "marker" in found else None
        )
        if comm.rank:
            continue
        if "marker" in found:
            os.unlink(found["marker"])
            lines.append(
                f"{folder}: {found['system']}, {found['rate'] / 1e6:.0f} MB/s, {1e3 * found['small']:.1f} ms for a "
                "small file"
            )
            if missing := [host for host, sees in seen if not sees]:
                problems.append(
                    f"{setting}: {folder} is not the same folder on {missing[0]} as on rank 0: choose one on a file "
                    "system that all nodes see"
                )
            if found["rate"] < SLOW_DISK or found["small"] > SLOW_FILE:
                problems.append(
                    f"{setting}: {folder} is on a slow file system: choose another, or write less often with "
                    "checkpoint.every_rounds=10"
                )
        problems += found["problems"]
    return lines, problems


def _probe(folder, setting):
    """What the folder of a setting, or the nearest one above it that exists, is good for. Leaves a file `marker` there."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    marker = there / f".genfl_mpi-doctor-{os.uname().nodename}-{os.getpid()}"
    try:
        rate = LARGE / _seconds_to_write(marker, LARGE)
        small = sorted(_seconds_to_write(marker, 4096) for _ in range(5))[2]
    except OSError as error:
        return {"problems": [f"{setting}: {folder} cannot be written: {error.strerror}; set another folder"]}
    found = {
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


def _seconds_to_write(path, size):
    """A file of so many bytes, until it is on the disk. Raises OSError."""
    start = time.perf_counter()
    path.write_bytes(b"\0" * size)
    disk.flush(path)
    return time.perf_counter() - start


def _file_system(path):
    """The kind of the file system that `path` is on: "nfs4" say."""
    best = ("", "unknown")
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split()
            if path.is_relative_to(mount) and len(mount) >= len(best[0]):
                best = mount, kind
    return best[1]


def _data(comm, configs):
    def missing(config):
        datasets.check(config.data, 0)
        check_memory(config)

    return _on_each_node(comm, {config.data.name: config for config in configs}, missing, "there")


def _generator(comm, configs):
    def missing(config):
        Generator(config, datasets.describe(config.data).shape)

    return _on_each_node(
        comm,
        {config.generation.checkpoint: config for config in configs if config.generates},
        missing,
        "there",
    )


def _on_each_node(comm, configs, check, word):
    """Whether `check(config)` raises no UserError on the first rank of each node, for {name: config}."""
    lines, problems = [], []
    for name, config in configs.items():
        complaint = None
        if devices.neighbours(comm)[1] == 0:
            try:
                check(config)
            except UserError as error:
                complaint = f"{os.uname().nodename}: {error}"
        complaints = list(filter(None, comm.gather(complaint) or []))
        lines.append(f"{name}: {'missing' if complaints else word}")
        problems += complaints[:1]
    return lines, problems


def _messages(comm, configs):
    """A ping to a rank of every host, and the reduction of a round."""
    hosts, problems, lines = comm.allgather(os.uname().nodename), [], []
    partners = sorted({hosts.index(host) for host in hosts} - {0} | ({1} if comm.size > 1 else set()))[
        :MOST_PARTNERS
    ]
    for partner in partners:
        if (result := measure.ping(comm, partner)) is not None and comm.rank == 0:
            seconds, rate = result
            lines.append(
                f"rank 0 to rank {partner} on {hosts[partner]}: {1e6 * seconds:.1f} us, {rate / 1e9:.2f} GB/s"
            )
            if hosts[partner] != hosts[0] and rate < SLOW_NETWORK:
                problems.append(
                    f"{hosts[0]} and {hosts[partner]} exchange {rate / 1e9:.3f} GB/s: MPI may have missed the fast "
                    "network; take the site's own MPI library, or ask for the variables that it wants"
                )
    model, about = configs[0].model, datasets.describe(configs[0].data)
    try:
        module = collectives.together(comm, lambda: models.build(model, len(about.classes), about.shape, 0))
    except UserError as error:
        return lines or ["of a round's weights: there is no model"], [*problems, str(error)]
    weights = sum(value.numel() for value in module.state_dict().values())
    seconds = measure.reduction(comm, weights)
    if comm.size > 1:
        lines.append(
            f"a round's reduction of {weights:,} weights of {model.name}, 8 bytes each: {1e3 * seconds:.1f} ms, "
            f"{8 * weights / seconds / 1e9:.2f} GB/s"
        )
    return lines or ["none: there is one rank"], problems


def _start(comm, configs):
    seconds = max(comm.gather(_age()) or [0])
    wrong = (
        f"a process took {seconds:.0f} s to start: keep the Python environment on a fast file system, the nodes' own say, "
        "or in a container"
    )
    return [f"{seconds:.0f} s from the start of a process to here, on the slowest rank"], [
        wrong
    ] if seconds > SLOW_START else []


def _age():
    """Seconds since this process began."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf(
            "SC_CLK_TCK"
        )
        return float(Path("/proc/uptime").read_text().split()[0]) - started
    except (OSError, ValueError, IndexError):
        return 0.0


def _by_node(comm):
    """On rank 0 the places of each node, else none. Collective."""
    places, own = devices.neighbours(comm)
    return [places for places in comm.gather(places if own == 0 else None) or [] if places]


def _spans(numbers):
    """Numbers in short: "0-3,8"."""
    spans = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)
