"""Share what the parts of gpu.py have in common: device, sizes, clocks and memory."""

import resource
import statistics
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import torch

from genfl_mpi.config.sections.operation import Runtime
from genfl_mpi.mpi import collectives, devices


class Setting(NamedTuple):
    """What a part may depend on.

    toy: measure tiny things; kind: cpu or cuda; folder: scratch, common to all parts of a command; peers:
    folder of the peers' environment, as in reference_jobs.py.
    """

    toy: bool
    kind: str
    folder: Path
    peers: Path

    @property
    def device(self):
        return torch.device(self.kind, 0) if self.kind == "cuda" else torch.device(self.kind)

    @property
    def overrides(self):
        """genfl_mpi's settings for the device."""
        return [f"runtime.device={self.kind}", *self.choose([], ["runtime.threads=1"])]

    def choose(self, full, toy):
        """Return a size of the full measurement, or of the toy."""
        return toy if self.toy else full

    def set_up(self, tf32=False):
        """Set torch's global flags as a run does."""
        runtime = Runtime(device=self.kind, threads=self.choose(None, 1), tf32=tf32)
        return devices.set_up(collectives.single(), runtime)


def set_tf32(allowed):
    """Set whether float32 products may be computed in TensorFloat-32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(function, device, seconds, repeats=5):
    """Return the mean seconds of a call in each repeat; each repeat takes at least `seconds` / `repeats`.

    Three calls warm up.
    """

    def spend(calls):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            function()
        synchronize(device)
        return time.perf_counter() - start

    calls = 1
    spend(3)
    while (spent := spend(calls)) < seconds / repeats:
        calls = max(2 * calls, int(1.2 * calls * seconds / repeats / spent))
    return [spend(calls) / calls for _ in range(repeats)]


def attempt(row, function):
    """Return `row` with the figures that `function` returns, or with the reason of its failure."""
    try:
        return row | function()
    except Exception as error:  # whatever a library raises: the next rows are measured all the same
        traceback.print_exc()
        return row | {"failed": f"{type(error).__name__}: {error}"}


def spread(name, values):
    """Median, minimum and maximum as figures of a row."""
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def reset_peak(device):
    """Begin to measure the peak of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device):
    """Return MB since `reset_peak`: allocated by torch, reserved by torch, and used by the whole process.

    The last is of the whole GPU, on which nothing else must run. On a CPU it is the process's maximum since
    its start, and stands for all three.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        taken = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device), total - free
    else:
        taken = (1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,) * 3
    return dict(zip(("allocated_mb", "reserved_mb", "used_mb"), (size / 1e6 for size in taken)))
