"""Compare clients trained one by one with several as one batched computation (training.clients_per_batch).

    python benchmarks/batched_clients.py [--repeats 7] [--device cpu]

Prints milliseconds per client: median, minimum and maximum over alternating repeats. The jobs are R2's
network and client (50 images of 32x32 pixels, batches of 10), and small networks on small images, where
launching a kernel takes longer than running it. On a CPU this is processor time of one thread, which other
load affects less; on a GPU it is wall-clock time, measured after the device has finished.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import numpy as np
import torch

from genfl_mpi.config.sections.local_training import LocalTraining, Model
from genfl_mpi.learning import models
from genfl_mpi.learning.batched_clients import BatchedModel
from genfl_mpi.learning.training import train
from genfl_mpi.learning.weights import FlatModel

CLIENTS, TOGETHER = 20, (1, 2, 5, 10, 20)
JOBS = {
    "pfl_cnn, 32x32": ("pfl_cnn", (3, 32, 32)),
    "lenet5, 28x28": ("lenet5", (1, 28, 28)),
    "cnn, 8x8": ("cnn", (1, 8, 8)),
}


class Figures(NamedTuple):
    """Milliseconds per client of each repeat, and the largest difference of a weight from training alone."""

    milliseconds: list[float]
    difference: float


def measure(job, device, repeats, clients=CLIENTS, together=TOGETHER):
    """Return {clients trained together: `Figures`} of a job of JOBS. together: the first must be 1."""
    name, shape = JOBS[job]
    model = FlatModel(models.build(Model(name=name), 10, shape, seed=1), device)
    settings, start = LocalTraining(epochs=1, batch_size=10, lr=0.1), model.weights.clone()
    random = torch.Generator().manual_seed(0)
    data = [
        (
            torch.randn(50, *shape, generator=random)
            .to(device)
            .contiguous(memory_format=torch.channels_last),
            torch.randint(10, (50,), generator=random).to(device),
        )
        for _ in range(clients)
    ]
    twin = BatchedModel(model, shape, settings.model_copy(update={"clients_per_batch": 2}))
    found = {}

    def alone():
        for key, one in enumerate(data):
            train(model, start, *one, settings, np.random.default_rng(key))
            found[1, key] = model.weights.cpu().clone()

    def grouped(count):
        for first in range(0, clients, count):
            each = data[first : first + count]
            rngs = [np.random.default_rng(key) for key in range(first, first + len(each))]
            trained = twin.train(start, each, [settings] * len(each), rngs)
            for key, (weights, _) in enumerate(trained, first):
                found[count, key] = weights.cpu().clone()

    clock = time.process_time if device.type == "cpu" else time.perf_counter
    spent = {count: [] for count in together}
    for _ in range(repeats + 1):
        for count, milliseconds in spent.items():
            before = clock()
            alone() if count == 1 else grouped(count)
            if device.type == "cuda":
                torch.cuda.synchronize()
            milliseconds.append(1e3 * (clock() - before) / clients)
    return {
        count: Figures(
            milliseconds[1:],  # the first warms up
            max((found[count, key] - found[1, key]).abs().max().item() for key in range(clients)),
        )
        for count, milliseconds in spent.items()
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device(options.device)
    print("network           together  ms a client     min     max   largest difference of a weight")
    for job in JOBS:
        for count, (times, difference) in measure(job, device, options.repeats).items():
            middle, low, high = statistics.median(times), min(times), max(times)
            print(f"{job:17} {count:8} {middle:12.2f} {low:7.2f} {high:7.2f}   {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
