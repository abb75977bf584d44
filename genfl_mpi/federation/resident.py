"""Resident buffers: what stays on a rank's device besides its model.

They are omega^t, an algorithm's arrays, the rank's part of the sums, and the training images. On a CPU the
first three share the memory of the messages, and the images are those of the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.data.clients import client_data, client_samples, is_degraded
from genfl_mpi.federation.messages import MODEL
from genfl_mpi.learning.batches import on_device
from genfl_mpi.learning.device_sum import DeviceSum
from genfl_mpi.learning.training import normalise
from genfl_mpi.learning.weights import FRACTION_BITS, ExactSum
from genfl_mpi.mpi import collectives, devices, measure, staging

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.federation.algorithms.interface import Array
    from genfl_mpi.federation.messages import Broadcast, Reduction
    from genfl_mpi.mpi.collectives import MPI

MAX_IMAGES_SHARE = 0.25  # bounds the data set's images, as a share of a rank's part of a GPU's memory


class Resident:
    """Keep the contents of the messages, and the data set's images, on the device. Collective.

    broadcast, reduction: the messages; declared: {name: Array} of their sums; data: the run's arrays.

    omega: omega^t, float32 (size,) on the device. arrays: {name: float32} on the device, an algorithm's
    broadcast arrays. images, test_images: uint8 (n, C, H, W) on a GPU where they fit, otherwise None. sums:
    {name: exact sum}; a rank adds its clients' contributions to them before `reduce`.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        device: torch.device,
        broadcast: Broadcast,
        reduction: Reduction,
        declared: Mapping[str, Array],
        data: Mapping[str, np.ndarray],
    ) -> None:
        self.device, self.reduction = device, reduction
        self.messages = {
            name: torch.from_numpy(array)
            for name, array in {MODEL: broadcast.weights, **broadcast.arrays}.items()
        }
        bits = {
            name: declared[name].fraction_bits if name in declared else FRACTION_BITS
            for name in reduction.sums
        }
        self.sums: dict[str, ExactSum | DeviceSum] = {
            name: ExactSum(units.reshape(-1), bits[name]) for name, units in reduction.sums.items()
        }
        self.arrays, self.is_gpu_aware = dict(self.messages), False
        self.units: torch.Tensor | None = None
        self.images: torch.Tensor | None = None
        self.test_images: torch.Tensor | None = None
        if device.type == "cuda":
            self._move(bits, collectives.maximum(comm, int(not measure.is_gpu_aware())) == 0)
            memory = torch.cuda.mem_get_info(device)[1]
            images = data["train_images"], data["test_images"]
            sharers = devices.count_gpu_sharers(*devices.neighbours(comm))
            if fits(sum(one.nbytes for one in images), memory, sharers):
                self.images, self.test_images = (torch.from_numpy(np.array(one)).to(device) for one in images)
        self.omega = self.arrays.pop(MODEL)

    def _move(self, bits: Mapping[str, int], is_gpu_aware: bool) -> None:
        """Allocate copies of the messages' contents on the device.

        is_gpu_aware: whether the MPI library sends from a GPU's memory.
        """
        self.is_gpu_aware = is_gpu_aware
        self.arrays = {name: tensor.to(self.device, copy=True) for name, tensor in self.messages.items()}
        # Laid out like the message.
        self.units = torch.zeros(len(self.reduction.buffer), dtype=torch.int64, device=self.device)
        parts = self.units[: len(self.reduction.units)].split(
            [units.size for units in self.reduction.sums.values()]
        )
        self.sums = {name: DeviceSum(part, bits[name]) for name, part in zip(self.reduction.sums, parts)}

    def with_sums(self, reduction: Reduction, declared: Mapping[str, Array]) -> Resident:
        """Return resident buffers that share all but the sums, which are those of another message."""
        other = copy(self)
        other.reduction, other.units, bits = reduction, None, dict.fromkeys(reduction.sums, FRACTION_BITS)
        bits |= {name: declared[name].fraction_bits for name in declared}
        other.sums = {name: ExactSum(units.reshape(-1), bits[name]) for name, units in reduction.sums.items()}
        if self.device.type == "cuda":
            other.units = torch.zeros(len(reduction.units), dtype=torch.int64, device=self.device)
            parts = other.units.split([units.size for units in reduction.sums.values()])
            other.sums = {name: DeviceSum(part, bits[name]) for name, part in zip(reduction.sums, parts)}
        return other

    def collect(self) -> None:
        """Add the sums on the device to those in the message."""
        if self.units is not None:
            self.reduction.units += self.units.cpu().numpy()

    def clear(self) -> None:
        """Set all sums to zero."""
        self.reduction.clear()
        if self.units is not None:
            self.units.zero_()

    def update(self) -> None:
        """Copy the broadcast arrays to the device."""
        for name, tensor in {MODEL: self.omega, **self.arrays}.items():
            if tensor is not self.messages[name]:
                tensor.copy_(self.messages[name], non_blocking=True)

    def reduce(self, comm: MPI.Comm) -> None:
        """Sum the `Reduction` message over ranks, in place on rank 0. Collective."""
        staging.reduce(comm, self.reduction, self.units, self.is_gpu_aware)

    def add(self, units: np.ndarray) -> None:
        """Add integers to all sums, modulo 2**64. units: int64, shaped like the message's."""
        if self.units is None:
            self.reduction.units += units
        else:
            self.units[: len(units)] += torch.from_numpy(units).to(self.device)

    def received(self) -> dict[str, torch.Tensor]:
        """Return the reduced sums on rank 0, {name: float64 tensor of the declared shape}."""
        return {
            name: ExactSum(units.reshape(-1), self.sums[name].fraction_bits).value().reshape(units.shape)
            for name, units in self.reduction.sums.items()
        }

    def client_data(
        self, arrays: dict[str, np.ndarray], client: int, config: Config, about: Description
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a client's training data on the device.

        These are normalised float32 images (n, C, H, W) and int64 labels (n,). Images are gathered on the
        device if the whole set is there. arrays: from `load_and_divide`; about: the data set's `Description`.
        """
        if self.images is None or is_degraded(arrays, client, config):
            pixels, labels = client_data(arrays, client, config)
            images = on_device(pixels, self.device)
        else:
            samples, labels = client_samples(arrays, client, config)
            images = self.images[on_device(samples.astype(np.int64), self.device)]
        return normalise(images, about.mean, about.std, self.device), on_device(labels, self.device)


def fits(size: int, memory: int, ranks: int) -> bool:
    """Return whether `size` bytes of images fit on a GPU, once for each rank that shares its `memory`."""
    return size <= MAX_IMAGES_SHARE * memory / ranks
