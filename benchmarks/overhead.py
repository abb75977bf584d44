"""Measure a client's cost beyond its SGD steps, and the exact sum beside one step.

    python benchmarks/overhead.py [--repeats 20]

Prints milliseconds of processor time on one rank with one thread: a client with one batch of ten images as a
round trains it (its data, random streams, training, exact sum and row), less a bare SGD step on the same
batch. The networks are one of 1,023 weights, the same without BatchNorm, and those of the reference jobs; the
second also with `training.clients_per_batch=20`, as milliseconds for each of the 20 clients. The figures are
medians over alternating repeats; processor time, because other load affects it less.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from genfl_mpi import Simulation
from genfl_mpi.data.clients import client_data
from genfl_mpi.federation.messages import MODEL
from genfl_mpi.learning.steps import Steps
from genfl_mpi.learning.training import normalise
from genfl_mpi.util.timing import Clock


def plain(classes, shape):
    """8x8 pixels, pooled to 16 values of each of 3 channels: 1,013 weights for ten classes."""
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 17), nn.ReLU(), nn.Linear(17, classes))


def small(classes, shape):
    """Like `plain`, with BatchNorm instead of the last biases: 1,023 weights."""
    layers = plain(classes, shape)[:-1]
    return nn.Sequential(*layers, nn.Linear(17, classes, bias=False), nn.BatchNorm1d(classes, affine=False))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    print("network    weights  together  client  a step  beyond its step  of that the sum  (ms)")
    for name, size, together, times in (
        ("overhead:small", 8, 1, 50),
        ("overhead:plain", 8, 1, 50),
        ("overhead:plain", 8, 20, 10),
        ("pfl_cnn", 32, 1, 2),
        ("resnet18", 32, 1, 1),
    ):
        simulation = Simulation(
            overrides=[
                "method=fedavg",
                "data.name=synthetic",
                "data.samples=1000",
                f"data.size={size}",
                "clients=100",
                "cohort=20",
                f"training.clients_per_batch={together}",
                "partition.scheme=iid",
                f"model.name={name}",
                "training.epochs=1",
                "training.batch_size=10",
                "training.lr=0.001",
                "runtime.threads=1",
            ]
        )
        images, labels = client_data(simulation.data, 0, simulation.config)
        images = normalise(
            torch.from_numpy(images), simulation.about.mean, simulation.about.std, simulation.device
        )
        labels = torch.from_numpy(labels)
        steps, clock = Steps(simulation.model, simulation.config.training), Clock(lambda *_: None)
        worker = simulation.parts.worker
        for place in range(together):
            worker.broadcast.plan[place] = 0.01, place, 0, 0, 1

        def step():
            steps.compute(images, labels)

        def client():
            if together > 1:
                worker._train_group(worker.twin, list(range(together)), 0, clock)
            else:
                worker._train_client(0, 0, clock)

        def exact_sum():
            worker.resident.sums[MODEL].add(
                0.01, simulation.model.weights, simulation.weights[: simulation.model.parameters]
            )

        spent = {work: [] for work in (client, step, exact_sum)}
        for _ in range(options.repeats + 1):
            for work, found in spent.items():
                start = time.process_time()
                for _ in range(times):
                    work()
                found.append(1e3 * (time.process_time() - start) / times)
        whole, bare, summed = (statistics.median(found[1:]) for found in spent.values())
        whole /= together
        name, size = name.rpartition(":")[2], len(simulation.weights)
        print(
            f"{name:9} {size:9,} {together:9} {whole:7.2f} {bare:7.2f} {whole - bare:16.2f} {summed:16.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
