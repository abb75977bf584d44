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

import numpy as np
import torch

from genfl_mpi.config.sections import LocalTraining, Model
from genfl_mpi.learning import models
from genfl_mpi.learning.batched_clients import BatchedModel
from genfl_mpi.learning.training import train
from genfl_mpi.learning.weights import FlatModel

CLIENTS = 20
JOBS = {
    "pfl_cnn, 32x32": ("pfl_cnn", (3, 32, 32)),
    "lenet5, 28x28": ("lenet5", (1, 28, 28)),
    "cnn, 8x8": ("cnn", (1, 8, 8)),
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
    print("network           together  ms a client   least    most   largest difference of a weight")
    for job, (name, shape) in JOBS.items():
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
            for _ in range(CLIENTS)
        ]
        twin = BatchedModel(model, shape, settings.model_copy(update={"clients_per_batch": 2}))
        found = {}

        def rngs(first, count):
            return [np.random.default_rng(key) for key in range(first, first + count)]

        def alone():
            for key, one in enumerate(data):
                train(model, start, *one, settings, np.random.default_rng(key))
                found[1, key] = model.weights.cpu().clone()

        def grouped(count):
            for first in range(0, CLIENTS, count):
                each = data[first : first + count]
                trained = twin.train(start, each, [settings] * len(each), rngs(first, len(each)))
                for key, (weights, _) in enumerate(trained, first):
                    found[count, key] = weights.cpu().clone()

        works = {1: alone, **{count: lambda count=count: grouped(count) for count in (2, 5, 10, 20)}}
        spent = {count: [] for count in works}
        for _ in range(options.repeats + 1):
            for count, work in works.items():
                clock = time.process_time if device.type == "cpu" else time.perf_counter
                before = clock()
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                spent[count].append(1e3 * (clock() - before) / CLIENTS)
        for count, times in spent.items():
            times = times[1:]  # the first warms up
            apart = max((found[count, key] - found[1, key]).abs().max().item() for key in range(CLIENTS))
            middle, low, high = statistics.median(times), min(times), max(times)
            print(
                f"{job:17} {count:8} {middle:12.2f} {low:7.2f} {high:7.2f}   {apart:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
