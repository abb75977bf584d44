"""A model's weights as one flat float32 vector, and the exact sum of such vectors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from genfl_mpi.learning.layers import quicken

# The exact sum adds 64-bit integers in units of 2**-40, or as declared. It cannot overflow as long as sum
# rho_n max |w_n| < 2**(62 - bits), where bits is the length of the fraction: the integer then stays below
# 2**62. (Rounding adds half a unit per client, and would need 2**62 clients to matter.) `ExactSum.add` keeps
# each summand below this limit. Where the sum of rho may exceed 1, as in FedNova, the caller checks all
# summands together, with `check_sum`.
FRACTION_BITS = 40
LIMIT = 2.0 ** (62 - FRACTION_BITS)
BLOCK = 32768  # weights processed at a time: 256 KiB as float64, and 256 KiB as integers


class FlatModel:
    """A module whose trained parameters and floating-point buffers are views of one vector.

    Such buffers are BatchNorm's mean and variance. Frozen parameters, with requires_grad=False, stay as they
    were built: they are neither sent nor averaged. The module's layers are replaced by those of
    `layers.quicken`.

    weights: float32 (size,), parameters first. trained: those parameters. parameters: their number.
    other_buffers: the other buffers, such as BatchNorm's counters; these are neither sent nor averaged, and
    `load` resets them. cached_steps, last_steps: cache of `steps.steps_of`.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu"):
        self.module = quicken(module.to(device))
        self.cached_steps: list[tuple] = []
        self.last_steps: tuple = ()
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        buffers = [(owner, name) for owner, name, tensor in buffers_of(module) if tensor.is_floating_point()]
        self._initial = snapshot(entry for entry in buffers_of(module) if not entry[2].is_floating_point())
        self.other_buffers = [buffer for _, _, buffer, _ in self._initial]
        self._views: list[tuple[nn.Module, str, torch.Tensor]] = []
        self._shapes = [p.shape for p in self.trained]
        self._names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._names += [
            name
            for name, tensor in module.named_buffers(remove_duplicate=False)
            if tensor.is_floating_point()
        ]
        self.parameters = sum(p.numel() for p in self.trained)
        size = self.parameters + sum(getattr(owner, name).numel() for owner, name in buffers)
        self.weights = torch.empty(size, device=device)
        for parameter, view in zip(self.trained, self.split(self.weights[: self.parameters])):
            parameter.data = view.copy_(parameter.data)
        for parameter in module.parameters():
            if not parameter.requires_grad and parameter.dim() == 4:  # as in `_reshape`
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        start = self.parameters
        for owner, name in buffers:
            value = getattr(owner, name)
            view = self.weights[start : start + value.numel()].view_as(value).copy_(value)
            setattr(owner, name, view)
            self._views.append((owner, name, view))
            start += value.numel()

    def load(self, weights: torch.Tensor) -> None:
        """Set the weights to float32 (size,), and reset all other buffers to their values at construction.

        The model's outputs then depend on these weights alone, not on what this rank trained or tested
        before.
        """
        for owner, name, view in self._views:
            _bind(owner, name, view)
        self.weights.copy_(weights, non_blocking=True)
        restore(self._initial)

    def gather(self) -> None:
        """Copy buffers that a layer replaced, instead of updating them in place, back into the weights."""
        for owner, name, view in self._views:
            if (replaced := getattr(owner, name)) is not view:
                view.copy_(replaced)
                _bind(owner, name, view)

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """View a vector (parameters,) as the module's parameters; a matrix (k, parameters) as (k, ...)."""
        parts = vector.split([shape.numel() for shape in self._shapes], -1)
        return [_reshape(part, shape) for part, shape in zip(parts, self._shapes)]

    def named(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """View weights (size,) as the module's parameters and floating-point buffers, by their names."""
        parts = dict(zip(self._names, self.split(vector[: self.parameters])))
        start = self.parameters
        for name, (_, _, view) in zip(self._names[len(parts) :], self._views):
            parts[name] = vector[start : start + view.numel()].view_as(view)
            start += view.numel()
        return parts

    def output_biases(self, classes: int) -> slice | None:
        """Return the slice of the weights that holds the last layer's biases, one per class.

        None if the module's last parameter is not such a bias.
        """
        ends_in_biases = bool(self._shapes) and self._shapes[-1] == (classes,)
        return slice(self.parameters - classes, self.parameters) if ends_in_biases else None

    def frozen_digest(self) -> str:
        """Compute the SHA-256, in hexadecimal, of the frozen parameters; "" if there are none."""
        frozen = [one for one in self.module.parameters() if not one.requires_grad]
        digest = hashlib.sha256()
        for parameter in frozen:
            digest.update(parameter.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest() if frozen else ""

    def gradient(self) -> torch.Tensor:
        """Return the gradients as one vector (parameters,) on their device, and reset them to None."""
        vector = torch.zeros_like(self.weights[: self.parameters])
        for parameter, part in zip(self.trained, self.split(vector)):
            if parameter.grad is not None:
                part.copy_(parameter.grad)
                parameter.grad = None
        return vector


def buffers_of(module: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Yield (owner, name, tensor) for every buffer of a module, persistent or not."""
    for owner in module.modules():
        for name, tensor in owner.named_buffers(recurse=False):
            yield owner, name, tensor


def snapshot(
    buffers: Iterable[tuple[nn.Module, str, torch.Tensor]],
) -> list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]:
    """Copy buffers, given as (owner, name, tensor), for `restore`."""
    return [(owner, name, tensor, tensor.clone()) for owner, name, tensor in buffers]


def restore(initial: Iterable[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]) -> None:
    """Reset the buffers of a `snapshot` in place: a CUDA graph keeps using their addresses."""
    for owner, name, buffer, value in initial:
        buffer.copy_(value)
        _bind(owner, name, buffer)


def _bind(owner: nn.Module, name: str, buffer: torch.Tensor) -> None:
    if getattr(owner, name) is not buffer:
        setattr(owner, name, buffer)


def _reshape(vector: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """View a vector (..., n) as a tensor (..., *shape).

    Convolution kernels have their channels last in memory, the fastest layout on CPUs and GPUs.
    """
    leading = vector.shape[:-1]
    if len(shape) != 4:
        return vector.view(*leading, *shape)
    outputs, inputs, height, width = shape
    return vector.view(*leading, outputs, height, width, inputs).movedim(-1, -3)


class ExactSum:
    """sum_n rho_n w_n in 64-bit fixed point: the same bits in any order and on any number of ranks.

    units: int64 (size,), NumPy, the accumulator: part of a message, so that it need not be copied.
    fraction_bits: bits of the fraction; a unit is 2**-fraction_bits.
    """

    def __init__(self, units: np.ndarray, fraction_bits: int = FRACTION_BITS):
        self.units, self.fraction_bits = units, fraction_bits
        self.scratch = torch.empty(2, min(BLOCK, len(units)), dtype=torch.float64)

    def add(
        self, rho: float, weights: torch.Tensor, reference: torch.Tensor | None = None
    ) -> tuple[float, float]:
        """Add rho (>= 0) times weights (float32 (size,)).

        Returns the largest absolute weight and, computed in float64, the Euclidean distance of the first
        weights to `reference` (float32 (parameters,)); 0 without it. Raises FloatingPointError, with nothing
        added, if the sum cannot represent the weights. Works block by block, so that each block stays in the
        cache.
        """
        values = weights.cpu().numpy()
        before = np.empty(0, dtype=np.float32) if reference is None else reference.numpy()
        blocks = [slice(start, start + BLOCK) for start in range(0, len(values), BLOCK)]
        largest = np.float32(0)
        for block in blocks:
            largest = np.maximum(largest, np.maximum(values[block].max(), -values[block].min()))
        check_summand(rho, float(largest), self.fraction_bits)
        square, scale = 0.0, rho * 2.0**self.fraction_bits
        for block in blocks:
            scaled, change = (row[: len(values[block])] for row in self.scratch.numpy())
            np.copyto(scaled, values[block])
            if count := len(before[block]):
                np.copyto(change[:count], before[block])
                change[:count] -= scaled[:count]
                square += torch.dot(self.scratch[1, :count], self.scratch[1, :count]).item()
            # The float64 product and its rounding to an integer depend on this client alone; integer sums
            # have no order.
            scaled *= scale
            np.rint(scaled, out=scaled)
            rounded = change.view(np.int64)
            np.copyto(rounded, scaled, casting="unsafe")
            self.units[block] += rounded
        return float(largest), math.sqrt(square)

    def store(self, start: int, values: torch.Tensor) -> None:
        """Set the sum's values from `start` on to float64 (n,). Raises FloatingPointError if it cannot."""
        check_summand(1.0, values.abs().max().item(), self.fraction_bits)
        units = (values * 2.0**self.fraction_bits).round_().long()
        self.units[start : start + len(values)] = units.numpy()

    def value(self) -> torch.Tensor:
        """Return the sum as float64 (size,)."""
        return torch.from_numpy(np.multiply(self.units, 2.0**-self.fraction_bits))


def check_summand(rho: float, largest: float, fraction_bits: int = FRACTION_BITS) -> float:
    """Raise FloatingPointError if the exact sum cannot hold a summand; else return `largest`.

    largest: largest absolute weight of the summand, before the factor rho.
    """
    # Written so that NaN fails, too: it propagates through minimum and maximum.
    if not max(1, rho) * largest < 2.0 ** (62 - fraction_bits):
        raise FloatingPointError(
            f"the trained weights are not finite or too large to be averaged: largest {largest:g}; a smaller "
            "learning rate may help"
        )
    return largest


def check_sum(rho: np.ndarray, largest: np.ndarray) -> None:
    """Raise FloatingPointError if the exact sum may have overflowed.

    rho: float64 (n,); largest: float64 (n,), the largest absolute weight of each summand.
    """
    if not (total := float(rho @ largest)) < LIMIT:
        raise FloatingPointError(
            f"the clients' weights are too large to be summed: rho times their largest add up to {total:g}; "
            "a smaller learning rate may help"
        )


def fixed_point(value: float, summands: int, capped: bool = False) -> int:
    """Convert a float to an integer number of 2**-20, so that sums of losses do not depend on their order.

    If it is not finite, or so large that a sum of `summands` such values might overflow 64 bits, returns the
    largest value that fits if `capped`, else raises FloatingPointError.
    """
    if not abs(value) < 2**42 / summands:
        if capped:
            return 2**62 // summands
        raise FloatingPointError(
            f"the loss is not finite or too large to be summed: {value:g}; a smaller learning rate may help"
        )
    return int(np.rint(value * 2**20))


def from_fixed_point(units: int) -> float:
    """Convert a sum of `fixed_point` values back to a float."""
    return units / 2**20
