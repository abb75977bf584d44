"""Define the two reference jobs for all contestants: networks, data, and how a contestant prints its times.

R1 is the paper's: ResNet-18 with torchvision's stem on 32x32 pixels. R2 is pfl-research's CIFAR-10 benchmark,
whose network has 1,626,442 parameters. Both use plain SGD and one local epoch. The images are random, because
their content does not affect the times.
"""

import json
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

# Number of random images. Clients hold slices of them, so that a contestant's speed does not depend on
# memory.
POOL = 5000


class Job(NamedTuple):
    clients: int
    samples: int  # of each client
    cohort: int
    batch: int
    lr: float
    network: str  # genfl_mpi's name of it


JOBS = {
    "R1": Job(100, 500, 10, 64, 0.01, "resnet18"),
    "R2": Job(1000, 50, 50, 10, 0.1, "pfl_cnn"),
    "trial": Job(20, 20, 4, 10, 0.1, "pfl_cnn"),  # to see that every contestant works
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def network(job, memory_format, device="cpu"):
    """The job's network as its source has it."""
    torch.manual_seed(0)
    if job.network == "resnet18":
        from torchvision.models import resnet18

        module = resnet18(num_classes=10)
    else:
        module = nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(64 * 14 * 14, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, 10),
        )
    return module.to(device, memory_format=FORMATS[memory_format]).train()


def data(job, memory_format, device="cpu"):
    """Return a function that returns a client's data as views of one set of random images.

    The data are float32 images (samples, 3, 32, 32) and int64 labels (samples,) on `device`.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(POOL, 3, 32, 32, generator=generator).to(
        device, memory_format=FORMATS[memory_format]
    )
    labels = torch.randint(10, (POOL,), generator=generator).to(device)

    def of_client(client):
        start = client * job.samples % POOL
        return images[start : start + job.samples], labels[start : start + job.samples]

    return of_client


@cache
def resident(name, memory_format, device="cpu"):
    """What a process keeps from client to client: the job, its network, and its data."""
    job = JOBS[name]
    return job, network(job, memory_format, device), data(job, memory_format, device)


def tell(**figures):
    """A line of the contestant's output that the harness reads: of a round, its seconds by phase."""
    print("FIGURES " + json.dumps(figures), flush=True)
