"""A model's weights as one flat float32 vector, and the exact sum of such vectors."""

import math

import numpy as np
import torch

from genfl_mpi.learning.layers import quicken

# The exact sum works in units of 2**-40, or as declared, on 64-bit integers. With so many bits of the fraction it cannot overflow
# as long as sum rho_n max |w_n| < 2**(62 - bits), because the integer then stays below 2**62 (and roundings of half a unit a client
# would need 2**62 clients to matter). Each summand is held below that here; whoever adds some with a sum of rho above 1, as
# FedNova's may be, checks their `bound` too.
FRACTION_BITS = 40
LIMIT = 2.0 ** (62 - FRACTION_BITS)
BLOCK = 32768  # weights that the sum takes in at a time: as float64 and as integers, twice 256 KiB


class FlatModel:
    """A module whose parameters and floating-point buffers (BatchNorm's mean and variance) are views of one vector.

    weights: float32 (size,), parameters first. parameters: how many of them are parameters. Other buffers, such as BatchNorm's
    counters, are neither sent nor averaged: `load` resets them. others: these tensors. The module's layers become those of
    `layers.quicken`. kept: the `steps.Steps` of its last trainings.
    """

    def __init__(self, module, device="cpu"):
        self.module, self.kept = quicken(module.to(device)), []
        parameters = list(module.parameters())
        buffers = [(owner, name) for owner, name, tensor in buffers_of(module) if tensor.is_floating_point()]
        self._initial = snapshot(owned for owned in buffers_of(module) if not owned[2].is_floating_point())
        self.others = [buffer for _, _, buffer, _ in self._initial]
        self._views = []
        self._shapes = [p.shape for p in parameters]
        self.parameters = sum(p.numel() for p in parameters)
        size = self.parameters + sum(getattr(owner, name).numel() for owner, name in buffers)
        self.weights = torch.empty(size, device=device)
        for parameter, view in zip(parameters, self.split(self.weights[: self.parameters])):
            parameter.data = view.copy_(parameter.data)
        start = self.parameters
        for owner, name in buffers:
            value = getattr(owner, name)
            view = self.weights[start : start + value.numel()].view_as(value).copy_(value)
            setattr(owner, name, view)
            self._views.append((owner, name, view))
            start += value.numel()

    def load(self, weights):
        """Set the weights to float32 (size,), and reset all other buffers to what they were when the model was built.

        What a model computes then depends on these weights alone, not on what was trained or tested on this rank before.
        """
        for owner, name, view in self._views:
            _bind(owner, name, view)
        self.weights.copy_(weights, non_blocking=True)
        restore(self._initial)

    def gather(self):
        """Copy buffers that a layer has replaced by new tensors, instead of changing them in place, back into the weights."""
        for owner, name, view in self._views:
            if (replaced := getattr(owner, name)) is not view:
                view.copy_(replaced)
                _bind(owner, name, view)

    def split(self, vector):
        """A vector (parameters,) as a list of tensors like the module's parameters; or several, (k, parameters), as (k, ...)."""
        parts = vector.split([shape.numel() for shape in self._shapes], -1)
        return [_shaped(part, shape) for part, shape in zip(parts, self._shapes)]

    def outputs(self, classes):
        """The slice of the weights with the biases of the last layer, one for each of the classes; None if the module ends
        otherwise."""
        return slice(self.parameters - classes, self.parameters) if self._shapes[-1] == (classes,) else None

    def gradient(self):
        """The parameters' gradients as one vector (parameters,) on their device, taken away from them."""
        vector = torch.zeros_like(self.weights[: self.parameters])
        for parameter, part in zip(self.module.parameters(), self.split(vector)):
            if parameter.grad is not None:
                part.copy_(parameter.grad)
                parameter.grad = None
        return vector


def buffers_of(module):
    """Yield (owner, name, tensor) for every buffer of a module, persistent or not."""
    for owner in module.modules():
        for name, tensor in owner.named_buffers(recurse=False):
            yield owner, name, tensor


def snapshot(buffers):
    """Copy buffers, given as (owner, name, tensor), for `restore`."""
    return [(owner, name, tensor, tensor.clone()) for owner, name, tensor in buffers]


def restore(initial):
    """Reset the buffers of a `snapshot`, in the same memory, because a CUDA graph keeps its addresses."""
    for owner, name, buffer, value in initial:
        buffer.copy_(value)
        _bind(owner, name, buffer)


def _bind(owner, name, buffer):
    if getattr(owner, name) is not buffer:
        setattr(owner, name, buffer)


def _shaped(view, shape):
    """A vector as a tensor of `shape`; kernels of convolutions with their channels last, which CPUs and GPUs like best."""
    several = view.shape[:-1]
    if len(shape) != 4:
        return view.view(*several, *shape)
    outputs, inputs, height, width = shape
    return view.view(*several, outputs, height, width, inputs).movedim(-1, -3)


class ExactSum:
    """sum_n rho_n w_n in 64-bit fixed point: the same bits in whatever order, and on however many ranks, it is added.

    units: int64 (size,), NumPy, where the sum is kept: part of a message, so that it need not be copied. fraction_bits: of a unit.
    """

    def __init__(self, units, fraction_bits=FRACTION_BITS):
        self.units, self.fraction_bits = units, fraction_bits
        self.scratch = torch.empty(2, min(BLOCK, len(units)), dtype=torch.float64)

    def add(self, rho, weights, since=None):
        """Add rho (>= 0) times weights (float32 (size,)). Returns the largest weight's size and, in float64, the Euclidean
        distance of the first weights to `since` (float32 (parameters,)), if that is given. Raises ArithmeticError, with
        nothing added, on what it cannot represent.

        All of it is done block by block, while a cache holds the block.
        """
        weights = weights.cpu().numpy()
        since = np.empty(0, dtype=np.float32) if since is None else since.numpy()
        blocks = [slice(start, start + BLOCK) for start in range(0, len(weights), BLOCK)]
        largest = float(np.max([(weights[block].max(), -weights[block].min()) for block in blocks]))
        check_size(rho, largest, self.fraction_bits)
        square, scale = 0.0, rho * 2.0**self.fraction_bits
        for block in blocks:
            values, change = (row[: len(weights[block])] for row in self.scratch.numpy())
            np.copyto(values, weights[block])
            if count := len(since[block]):
                np.copyto(change[:count], since[block])
                change[:count] -= values[:count]
                square += torch.dot(self.scratch[1, :count], self.scratch[1, :count]).item()
            # A product of two float64 and its rounding to an integer depend on this client alone.
            values *= scale
            np.rint(values, out=values)
            whole = change.view(np.int64)
            np.copyto(whole, values, casting="unsafe")
            self.units[block] += whole
        return largest, math.sqrt(square)

    def value(self):
        """The sum as float64 (size,)."""
        return torch.from_numpy(np.multiply(self.units, 2.0**-self.fraction_bits))


def check_size(rho, largest, fraction_bits=FRACTION_BITS):
    """The size of the largest weight of a summand, if the exact sum can hold it; else raise ArithmeticError."""
    if not max(1, rho) * largest < 2.0 ** (62 - fraction_bits):  # also true of NaN, which extremes pass on
        raise FloatingPointError(
            f"the trained weights are not finite or too large to be averaged: largest {largest:g}"
        )
    return largest


def bound(rho, largest):
    """Raise ArithmeticError if the exact sum of weights with these largest sizes, float64 (n,), may have overflowed."""
    if not (total := float(rho @ largest)) < LIMIT:
        raise FloatingPointError(
            f"the clients' weights are too large to be summed: rho times their largest add up to {total:g}; "
            "a smaller learning rate may help"
        )


def fixed_point(value, summands):
    """A float as an integer number of 2**-20, for sums of losses that do not depend on their order.

    Raises ArithmeticError if it is not finite, or so large that a sum of so many might overflow 64 bits.
    """
    if not abs(value) < 2**42 / summands:
        raise FloatingPointError(
            f"the loss is not finite or too large to be summed: {value:g}; a smaller learning rate may help"
        )
    return int(np.rint(value * 2**20))


def from_fixed_point(units):
    return units / 2**20
