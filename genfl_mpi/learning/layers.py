"""Faster CPU forms of torch's layers. On other devices they call torch's own implementation."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

# Convolutions with at most this number of output pixels are computed tap by tap, as matrix products; measured
# for ResNet-18.
SMALL_MAP = 4

# Along one side: the size of the output, and for each tap its number, the slice of output pixels that it
# contributes to, and the slice of input pixels that it multiplies for them.
Taps = tuple[int, list[tuple[int, slice, slice]]]


def quicken(module: nn.Module) -> nn.Module:
    """Replace a module's layers by their faster forms, in place and with the same parameters.

    Only layers of exactly torch's classes are replaced, no subclasses.
    """
    for layer in module.modules():
        layer.__class__ = QUICK.get(type(layer), type(layer))
    return module


def plain(module: nn.Module) -> nn.Module:
    """Undo `quicken`, in place."""
    originals = {quick: original for original, quick in QUICK.items()}
    for layer in module.modules():
        layer.__class__ = originals.get(type(layer), type(layer))
    return module


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits per value, cheaper than torch's draws; p is off by at most 2^-17."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if (
            not self.training
            or not 0 < self.p < 1
            or values.device.type != "cpu"
            or not values.is_floating_point()
        ):
            return super().forward(values)
        mask = torch.empty_like(values)
        words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: values.numel()]
        in_memory = mask.as_strided(bits.shape, (1,))  # flat view in memory order, for any memory format
        torch.ge(bits, round(self.p * 2**16) - 2**15, out=in_memory).mul_(1 / (1 - self.p))
        return values.mul_(mask) if self.inplace else values * mask


class Conv2d(nn.Conv2d):
    """A convolution that, on small images, skips the taps of its kernel that only meet padding.

    In ResNet-18 on 32x32 pixels, the 3x3 kernels of the last layers see a single pixel: eight of nine weights
    are multiplied by zero.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        padding = self.padding
        supported = self.groups == 1 and self.padding_mode == "zeros" and images.dim() == 4
        same_dtype = images.dtype == self.weight.dtype or torch.is_autocast_enabled("cpu")
        if supported and same_dtype and images.device.type == "cpu" and not isinstance(padding, str):
            sides = zip(images.shape[2:], self.kernel_size, self.stride, padding, self.dilation)
            taps = [_taps(*side) for side in sides]
            if 0 < taps[0][0] * taps[1][0] <= SMALL_MAP:
                output = _ByTaps.apply(images, self.weight, *taps)
                return output if self.bias is None else output + self.bias.view(-1, 1, 1)
        return super().forward(images)


def _taps(size: int, kernel: int, stride: int, padding: int, dilation: int) -> Taps:
    """Return the `Taps` along one side: of the kernel's taps those that meet at least one pixel."""
    count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    found = []
    for tap in range(kernel):
        shift = tap * dilation - padding  # output pixel o meets input pixel o * stride + shift
        first, last = max(0, -(shift // stride)), min(count - 1, (size - 1 - shift) // stride)
        if first <= last:
            found.append(
                (
                    tap,
                    slice(first, last + 1),
                    slice(first * stride + shift, last * stride + shift + 1, stride),
                )
            )
    return count, found


class _ByTaps(torch.autograd.Function):
    """A convolution as a sum of matrix products, one for each tap of its kernel.

    Works in the memory order (n, H, W, C), and in float32 even under bfloat16 autocast, which gains little on
    so few pixels.
    """

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, rows: Taps, columns: Taps
    ) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        ctx.taps = rows[1], columns[1]
        shape = len(images), len(weight), rows[0], columns[0]
        output = torch.empty(
            shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last
        ).zero_()
        images, total = images.permute(0, 2, 3, 1), output.permute(0, 2, 3, 1)
        for (i, to_y, from_y), (j, to_x, from_x) in itertools.product(*ctx.taps):
            _add_product(total[:, to_y, to_x], images[:, from_y, from_x], weight[:, :, i, j].t())
        return output  # not a view: an in-place ReLU may follow

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        images, weight = ctx.saved_tensors
        images, gradient = images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        image_gradient = torch.zeros_like(images) if ctx.needs_input_grad[0] else None
        weight_gradient = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for (i, to_y, from_y), (j, to_x, from_x) in itertools.product(*ctx.taps):
            part = gradient[:, to_y, to_x]
            if weight_gradient is not None:
                inputs = images[:, from_y, from_x].reshape(-1, images.shape[-1])
                torch.mm(part.reshape(-1, part.shape[-1]).t(), inputs, out=weight_gradient[:, :, i, j])
            if image_gradient is not None:
                _add_product(image_gradient[:, from_y, from_x], part, weight[:, :, i, j])
        if image_gradient is not None:
            image_gradient = image_gradient.permute(0, 3, 1, 2)
        return image_gradient, weight_gradient, None, None


def _add_product(total: torch.Tensor, pixels: torch.Tensor, matrix: torch.Tensor) -> None:
    """Compute total += pixels @ matrix; total: (n, h, w, K), pixels: (n, h, w, I), matrix: (I, K)."""
    flat = pixels.reshape(-1, pixels.shape[-1])
    if total.is_contiguous():
        total.view(-1, total.shape[-1]).addmm_(flat, matrix)
    else:
        total += (flat @ matrix).view(total.shape)


QUICK: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: Conv2d, nn.Dropout: Dropout}
