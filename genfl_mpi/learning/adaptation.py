"""Fit a network to a run: loaded weights, GroupNorm, frozen layers, LoRA, size and channels of its input."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from genfl_mpi.config.sections.local_training import Model

MAX_GROUPS = 32  # of a GroupNorm (Wu and He 2018)


def adapt(module: nn.Module, settings: Model, classes: int, weights: Path | None, repeats: int) -> nn.Module:
    """Fit a new network to config.model; return it, or a module around it.

    classes: of the data set. weights: file of a state dict to load, or None. repeats: how often the channels
    of an image are repeated at the network's input. Raises UserError if weights or layers do not match.
    """
    if weights is not None:
        load_weights(module, weights, classes)
    if settings.norm == "group":
        replace_batch_norm(module)
    if settings.trained != "all":
        head = find_head(module, classes, settings)
        freeze(module, head)
        if settings.trained == "lora":
            add_lora(module, head, settings.lora_rank, settings.lora_alpha)
    if settings.input_size is not None or repeats > 1:
        return Resized(module, settings.input_size, repeats)
    return module


class Resized(nn.Module):
    """Resize images to `size` x `size` pixels, and repeat their channels, before a network."""

    def __init__(self, network: nn.Module, size: int | None, repeats: int) -> None:
        super().__init__()
        self.network, self.size, self.repeats = network, size, repeats

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return self.network(images.repeat(1, self.repeats, 1, 1) if self.repeats > 1 else images)


def load_weights(module: nn.Module, path: Path, classes: int) -> None:
    """Load a state dict; a last layer with another number of classes keeps its initial weights.

    path: .safetensors, or a file of torch.save that holds tensors alone, possibly below `state_dict` or
    `model`. Raises UserError if it is not readable or does not fit.
    """
    state, own = _read_state(path), module.state_dict()
    head = _last_layer(module, classes)
    prefix = f"{head[0]}." if head else ""
    for name in [name for name in state if head and name.startswith(prefix) and name in own]:
        if state[name].shape != own[name].shape:
            del state[name]
    wrong = [name for name in state if name in own and state[name].shape != own[name].shape]
    missing = [name for name in own if name not in state and not (head and name.startswith(prefix))]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if wrong or missing:
        name = (wrong or missing)[0]
        shapes = (
            f"has shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}" if wrong else "is missing"
        )
        raise UserError(f"model.weights: {path} does not fit the network: {name} {shapes}")
    module.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many kinds
        raise UserError(f"model.weights: {path} is not a readable state dict: {first_line(error)}") from None
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(one, torch.Tensor) for one in state.values()):
        raise UserError(f"model.weights: {path} holds no state dict, {{name: tensor}}")
    return dict(state)


def replace_batch_norm(module: nn.Module) -> None:
    """Replace each BatchNorm2d by a GroupNorm with its scale and shift, in place.

    The number of groups is the largest divisor of the channels that also divides 32.
    """
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                channels = layer.num_features
                norm = nn.GroupNorm(math.gcd(MAX_GROUPS, channels), channels, layer.eps, layer.affine)
                if layer.affine:
                    norm.weight, norm.bias = layer.weight, layer.bias
                setattr(parent, name, norm)


def _last_layer(module: nn.Module, classes: int) -> tuple[str, nn.Module] | None:
    """Return name and layer of the last dense layer or convolution with `classes` outputs, or None."""
    found = None
    for name, layer in module.named_modules():
        outputs = getattr(layer, "out_features", None) or getattr(layer, "out_channels", None)
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and outputs == classes:
            found = name, layer
    return found


def find_head(module: nn.Module, classes: int, settings: Model) -> nn.Module:
    """Return the layer that computes the logits. Raises UserError if there is none."""
    found = _last_layer(module, classes)
    if found is None:
        raise UserError(
            f"model.trained={settings.trained}: model.name={settings.name} has no last layer with "
            f"{classes} outputs; set model.trained=all"
        )
    return found[1]


class FrozenNorm(nn.Module):
    """A BatchNorm with fixed statistics: a scale and a shift of each channel, not trained."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        scale = (variance + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.detach())
        shift = -mean * scale + (0 if norm.bias is None else norm.bias.detach())
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.shift = nn.Parameter(shift, requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.scale.view(-1, 1, 1) + self.shift.view(-1, 1, 1)


def freeze(module: nn.Module, head: nn.Module) -> None:
    """Freeze all parameters but those of the head, and the statistics of BatchNorm layers, in place."""
    module.requires_grad_(False)
    head.requires_grad_(True)
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats:
                setattr(parent, name, FrozenNorm(layer))


class Lora(nn.Module):
    """A frozen dense layer or convolution plus a trained product of rank r (Hu et al. 2022).

    W x + alpha / r B A x; B begins at zero. Own code instead of peft's layers: those take 3 s to import on
    each rank, and their branches keep a GPU from replaying steps as graphs.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer, self.scale = layer, alpha / rank
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            where = layer.stride, layer.padding, layer.dilation
            self.down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, *where, bias=False)  # type: ignore[arg-type]
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)  # type: ignore[arg-type]

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layer(values) + self.scale * self.up(self.down(values))


def add_lora(module: nn.Module, head: nn.Module, rank: int, alpha: float) -> None:
    """Put `Lora` around all dense layers and ungrouped convolutions but the head, in place.

    Not inside nn.MultiheadAttention, which uses its layers' weights directly. Raises UserError if there is
    no such layer.
    """
    closed = {
        id(layer)
        for attention in module.modules()
        if isinstance(attention, nn.MultiheadAttention)
        for layer in attention.modules()
    }
    count = 0
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            fits = type(layer) is nn.Linear or (
                type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
            )
            if fits and layer is not head and id(parent) not in closed:
                setattr(parent, name, Lora(layer, rank, alpha))  # type: ignore[arg-type]
                count += 1
    if not count:
        raise UserError(
            "model.trained=lora: the network has no layer that LoRA can adapt; set model.trained=all"
        )
