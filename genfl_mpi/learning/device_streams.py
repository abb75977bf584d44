"""The global random stream of a device, from which dropout draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_of(device: torch.device) -> torch.Generator:
    """Return the device's global random stream; a GPU needs an index."""
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[device.index]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the device's global random stream for a `with` block; restore its state afterwards.

    (torch.manual_seed would seed the streams of all kinds of devices. Where there is no GPU, it also records
    the stack on each call, which takes as long as a step of a small network.)
    """
    stream = stream_of(device)
    state = stream.get_state()
    stream.manual_seed(seed)
    try:
        yield
    finally:
        stream.set_state(state)
