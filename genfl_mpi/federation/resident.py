"""Resident buffers: what stays on a rank's device besides its model, namely omega^t, an algorithm's arrays, the rank's part of the
sums, and the training images. On a CPU the first three are the messages' own memory, and the images are those of the node."""

import numpy as np
import torch

from genfl_mpi.data.clients import client_data, client_samples, is_spoiled
from genfl_mpi.federation.messages import MODEL
from genfl_mpi.learning.batches import on_device
from genfl_mpi.learning.device_sum import DeviceSum
from genfl_mpi.learning.training import normalise
from genfl_mpi.learning.weights import FRACTION_BITS, ExactSum
from genfl_mpi.mpi import collectives, devices, measure, staging

IMAGES_SHARE = 0.25  # of a rank's share of a GPU's memory, that the training images may take


class Resident:
    """broadcast, reduction: the messages; declared: {name: Array} of their sums; images: uint8 (n, C, H, W), for training. Collective.

    omega: omega^t, float32 (size,) on the device. arrays: {name: float32} on the device, an algorithm's broadcast arrays. sums:
    {name: exact sum}, to which a rank adds what its clients contribute, before `reduce`.
    """

    def __init__(self, comm, device, broadcast, reduction, declared, images):
        self.device, self.reduction = device, reduction
        self.messages = {
            name: torch.from_numpy(array)
            for name, array in {MODEL: broadcast.weights, **broadcast.arrays}.items()
        }
        bits = {
            name: declared[name].fraction_bits if name in declared else FRACTION_BITS
            for name in reduction.sums
        }
        self.sums = {name: ExactSum(units.reshape(-1), bits[name]) for name, units in reduction.sums.items()}
        self.arrays, self.units, self.images, self.is_gpu_aware = dict(self.messages), None, None, False
        if device.type == "cuda":
            self._move(bits, collectives.largest(comm, int(not measure.is_gpu_aware())) == 0)
            memory = torch.cuda.mem_get_info(device)[1]
            if fits(images.nbytes, memory, devices.sharers(*devices.neighbours(comm))):
                self.images = torch.from_numpy(np.array(images)).to(device)
        self.omega = self.arrays.pop(MODEL)

    def _move(self, bits, is_gpu_aware):
        """Keep what is in the messages on the device, too. is_gpu_aware: whether the MPI library sends from a GPU's memory."""
        self.is_gpu_aware = is_gpu_aware
        self.arrays = {name: tensor.to(self.device, copy=True) for name, tensor in self.messages.items()}
        self.units = torch.zeros(
            len(self.reduction.buffer), dtype=torch.int64, device=self.device
        )  # like the message
        parts = self.units[: len(self.reduction.units)].split(
            [units.size for units in self.reduction.sums.values()]
        )
        self.sums = {name: DeviceSum(part, bits[name]) for name, part in zip(self.reduction.sums, parts)}

    def clear(self):
        """Begin new sums."""
        self.reduction.clear()
        if self.units is not None:
            self.units.zero_()

    def update(self):
        """Take over what was broadcast."""
        for name, tensor in {MODEL: self.omega, **self.arrays}.items():
            if tensor is not self.messages[name]:
                tensor.copy_(self.messages[name], non_blocking=True)

    def reduce(self, comm):
        """Sum the `Reduction` message over ranks, in place on rank 0's. Collective."""
        staging.reduce(comm, self.reduction, self.units, self.is_gpu_aware)

    def received(self):
        """The reduced sums, {name: float64 tensor of the declared shape}, on rank 0."""
        return {
            name: ExactSum(units.reshape(-1), self.sums[name].fraction_bits).value().reshape(units.shape)
            for name, units in self.reduction.sums.items()
        }

    def client_data(self, arrays, client, config, about):
        """What a client trains on: normalised float32 images (n, C, H, W) and int64 labels (n,) on the device. They are cut out
        there of the whole set, if that is there. arrays: of `load_and_divide`; about: the data set's `Description`."""
        if self.images is None or is_spoiled(arrays, client, config):
            images, labels = client_data(arrays, client, config)
            images = on_device(images, self.device)
        else:
            samples, labels = client_samples(arrays, client, config)
            images = self.images[on_device(samples.astype(np.int64), self.device)]
        return normalise(images, about.mean, about.std, self.device), on_device(labels, self.device)


def fits(size, memory, ranks):
    """Whether images of `size` bytes stay on a GPU of so many bytes, once for each of the ranks that share it."""
    return size <= IMAGES_SHARE * memory / ranks
