"""Layers of torch that compute the same more quickly on a CPU. On other devices they are torch's own."""

import itertools

import torch
from torch import nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

SMALL_MAP = 4  # pixels of a convolution's output up to which its taps are products of matrices; measured for ResNet-18


def quicken(module):
    """Give a module's layers, where they are exactly torch's, their quicker forms: in place, with the same parameters."""
    for layer in module.modules():
        layer.__class__ = QUICK.get(type(layer), type(layer))
    return module


def plain(module):
    """Undo `quicken`, in place."""
    back = {quick: theirs for theirs, quick in QUICK.items()}
    for layer in module.modules():
        layer.__class__ = back.get(type(layer), type(layer))
    return module


class Dropout(nn.Dropout):
    """Dropout with 16 random bits a value, so that p is off by 2^-17 at most, where torch draws with more effort."""

    def forward(self, values):
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
        in_memory = mask.as_strided(bits.shape, (1,))  # whatever the order of the dimensions there
        torch.ge(bits, round(self.p * 2**16) - 2**15, out=in_memory).mul_(1 / (1 - self.p))
        return values.mul_(mask) if self.inplace else values * mask


class Conv2d(nn.Conv2d):
    """A convolution that leaves out what meets nothing but the margin, where the image has become small: in ResNet-18 on 32x32
    pixels, the last layers' kernels of 3x3 see a single pixel, and eight of nine weights are multiplied by zero."""

    def forward(self, images):
        usual = (
            self.groups == 1
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
            and images.dim() == 4
        )
        alike = images.dtype == self.weight.dtype or torch.is_autocast_enabled("cpu")
        if usual and alike and images.device.type == "cpu":
            sides = zip(images.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation)
            taps = [_taps(*side) for side in sides]
            if 0 < taps[0][0] * taps[1][0] <= SMALL_MAP:
                output = _ByTaps.apply(images, self.weight, *taps)
                return output if self.bias is None else output + self.bias.view(-1, 1, 1)
        return super().forward(images)


def _taps(size, kernel, stride, padding, dilation):
    """Along one side: the size of the output, and of each tap of the kernel that meets a pixel at all (tap, slice of the output's
    pixels, slice of the input's that it multiplies for them)."""
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
    """A convolution as a product of matrices for each tap of its kernel, added up. All in the order (n, H, W, C), and in float32
    also where autocast has bfloat16: there is little to gain on so few pixels."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx, images, weight, rows, columns):
        ctx.save_for_backward(images, weight)
        ctx.taps = rows[1], columns[1]
        shape = len(images), len(weight), rows[0], columns[0]
        output = torch.empty(
            shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last
        ).zero_()
        images, total = images.permute(0, 2, 3, 1), output.permute(0, 2, 3, 1)
        for (i, to_y, from_y), (j, to_x, from_x) in itertools.product(*ctx.taps):
            _add_product(total[:, to_y, to_x], images[:, from_y, from_x], weight[:, :, i, j].t())
        return output  # no view, so that a ReLU may work in place

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx, gradient):
        images, weight = ctx.saved_tensors
        images, gradient = images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        of_images = torch.zeros_like(images) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for (i, to_y, from_y), (j, to_x, from_x) in itertools.product(*ctx.taps):
            part = gradient[:, to_y, to_x]
            if of_weight is not None:
                seen = images[:, from_y, from_x].reshape(-1, images.shape[-1])
                torch.mm(part.reshape(-1, part.shape[-1]).t(), seen, out=of_weight[:, :, i, j])
            if of_images is not None:
                _add_product(of_images[:, from_y, from_x], part, weight[:, :, i, j])
        return of_images if of_images is None else of_images.permute(0, 3, 1, 2), of_weight, None, None


def _add_product(total, pixels, matrix):
    """total += pixels @ matrix, in place; total: (n, h, w, K), pixels: (n, h, w, I), matrix: (I, K)."""
    flat = pixels.reshape(-1, pixels.shape[-1])
    if total.is_contiguous():
        total.view(-1, total.shape[-1]).addmm_(flat, matrix)
    else:
        total += (flat @ matrix).view(total.shape)


QUICK = {nn.Conv2d: Conv2d, nn.Dropout: Dropout}
