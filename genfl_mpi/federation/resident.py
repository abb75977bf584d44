"""What is on a rank's device besides its model: omega^t, the rank's part of the sum, and the training images. On a CPU the first
two are in the messages, and the images are those of the node."""

import numpy as np
import torch

from genfl_mpi.data.clients import client_data, client_samples, is_spoiled
from genfl_mpi.learning.batches import on_device
from genfl_mpi.learning.device_sum import DeviceSum
from genfl_mpi.learning.training import normalise
from genfl_mpi.mpi import collectives, devices, measure, staging

PART = 0.25  # of a rank's share of a GPU's memory, that the training images may take


class Resident:
    """weights: float32 (size,), of the `Down` message; up: the `Up` message, and total: the `ExactSum` in it; images: uint8
    (n, C, H, W), for training. Collective.

    start: omega^t, float32 (size,) on the device. partial: what a rank's trained weights are added to, before `reduce`.
    """

    def __init__(self, comm, device, weights, up, total, images):
        self.device, self.weights, self.start, self.partial = device, weights, weights, total
        self.summed = self.images = None
        self.aware = False
        if device.type == "cuda":
            self._move(up, collectives.largest(comm, int(not measure.is_gpu_aware())) == 0)
            memory = torch.cuda.mem_get_info(device)[1]
            if fits(images.nbytes, memory, devices.sharers(*devices.neighbours(comm))):
                self.images = torch.from_numpy(np.array(images)).to(device)

    def _move(self, up, aware):
        """Keep what is in the messages on the device, too. aware: whether the MPI library sends from a GPU's memory."""
        self.aware, self.start = aware, self.weights.to(self.device, copy=True)
        self.summed = torch.zeros(len(up.buffer), dtype=torch.int64, device=self.device)  # like the message
        self.partial = DeviceSum(self.summed[: len(up.units)])

    def clear(self):
        """Begin a new sum."""
        if self.summed is not None:
            self.summed.zero_()

    def received(self):
        """There are new weights in the message."""
        if self.start is not self.weights:
            self.start.copy_(self.weights, non_blocking=True)

    def reduce(self, comm, up):
        """The sum over ranks of the `Up` message, in place on rank 0's. Collective."""
        staging.reduce(comm, up, self.summed, self.aware)

    def data(self, arrays, client, config, about):
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
    return size <= PART * memory / ranks
