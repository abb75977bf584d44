"""A model's weights as one flat float32 vector, and the exact sum of such vectors."""

import numpy as np
import torch

# The exact sum works in units of 2**-40 on 64-bit integers. It cannot overflow as long as sum rho_n max |w_n| < LIMIT, because
# the integer then stays below 2**62 (and roundings of half a unit a client would need 2**62 clients to matter). Each summand
# is held below LIMIT here; whoever adds some with a sum of rho above 1, as FedNova's may be, checks their `bound` too.
FRACTION_BITS = 40
LIMIT = 2.0**22


class FlatModel:
    """A module whose parameters and floating-point buffers (BatchNorm's mean and variance) are views of one vector.

    weights: float32 (size,), parameters first. gradient: float32 (parameters,), the parameters' .grad are its views.
    Integer buffers (BatchNorm's counters) stay outside: they are neither averaged nor sent.
    """

    def __init__(self, module, device="cpu"):
        self.module = module.to(device)
        parameters = list(module.parameters())
        buffers = [(owner, name) for owner in module.modules() for name, tensor in owner.named_buffers(recurse=False)
                   if tensor.is_floating_point()]
        values = [p.data for p in parameters] + [getattr(owner, name) for owner, name in buffers]
        self.weights = torch.empty(sum(value.numel() for value in values), device=device)
        self.parameters = sum(p.numel() for p in parameters)
        self.gradient = torch.zeros(self.parameters, device=device)
        views = self.weights.split([value.numel() for value in values])
        gradients = self.gradient.split([p.numel() for p in parameters])
        for parameter, view, gradient in zip(parameters, views, gradients):
            parameter.data = _shaped(view, parameter.shape).copy_(parameter.data)
            parameter.grad = _shaped(gradient, parameter.shape)
        for (owner, name), view, value in zip(buffers, views[len(parameters):], values[len(parameters):]):
            setattr(owner, name, view.view_as(value).copy_(value))


def _shaped(view, shape):
    """A vector as a tensor of `shape`; kernels of convolutions with their channels last, which CPUs and GPUs like best."""
    if len(shape) != 4:
        return view.view(shape)
    outputs, inputs, height, width = shape
    return view.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


class ExactSum:
    """sum_n rho_n w_n in 64-bit fixed point: the same bits in whatever order, and on however many ranks, it is added.

    units: int64 (size,), NumPy, where the sum is kept: part of a message, so that it need not be copied.
    """

    def __init__(self, units):
        self.units = torch.from_numpy(units)
        self.scratch = torch.empty(len(units), dtype=torch.float64)

    def add(self, rho, weights):
        """Add rho (>= 0) times weights (float32 (size,)), and return the largest weight's size. Raises ArithmeticError, with
        nothing added, on what it cannot represent."""
        largest = largest_weight(weights, rho)
        # A product of two float64 and its rounding to an integer depend on this client alone.
        torch.mul(weights.to("cpu", torch.float64), rho * 2.0**FRACTION_BITS, out=self.scratch)
        self.units += self.scratch.round_().long()
        return largest

    def value(self):
        """The sum as float64 (size,)."""
        return self.units.double().mul_(2.0**-FRACTION_BITS)


def largest_weight(weights, rho=1.0):
    """The largest size of float32 `weights` (size,). Raises ArithmeticError if rho times it cannot be summed exactly."""
    largest = weights.abs().max().item()
    if not max(1, rho) * largest < LIMIT:  # also true of NaN
        raise ArithmeticError(f"the trained weights are not finite or too large to be averaged: largest {largest:g}")
    return largest


def bound(rho, largest):
    """Raise ArithmeticError if the exact sum of weights with these largest sizes, float64 (n,), may have overflowed."""
    if not (total := float(rho @ largest)) < LIMIT:
        raise ArithmeticError(f"the clients' weights are too large to be summed: rho times their largest add up to {total:g}; "
                              "a smaller learning rate may help")


def fixed_point(value, summands):
    """A float as an integer number of 2**-20, for sums of losses that do not depend on their order.

    Raises ArithmeticError if it is not finite, or so large that a sum of so many might overflow 64 bits.
    """
    if not abs(value) < 2**42 / summands:
        raise ArithmeticError(f"the loss is not finite or too large to be summed: {value:g}; a smaller learning rate may help")
    return int(np.rint(value * 2**20))


def from_fixed_point(units):
    return units / 2**20
