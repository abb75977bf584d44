"""Small residual networks and a vision transformer, as used in the literature on federated learning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from genfl_mpi.config.sections.local_training import Model

VIT_WIDTH, VIT_DEPTH, VIT_HEADS = 192, 6, 3


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shortcut = images
        if self.added:  # every second pixel, and channels of zeros on both sides
            half = self.added // 2
            shortcut = F.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        hidden = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(hidden)) + shortcut)


def _cifar_resnet(classes: int, channels: int, blocks: int) -> nn.Module:
    """Build a ResNet of 6 * blocks + 2 layers in three stages of 16, 32 and 64 channels."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        for number in range(blocks):
            first = number == 0
            layers.append(
                _Block(inputs if first else outputs, outputs, 2 if first and inputs < outputs else 1)
            )
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet8(classes: int, shape: tuple[int, ...], settings: Model) -> nn.Module:
    """ResNet-8 for small images: 16, 32 and 64 channels, one block each (as in He et al. 2020, FedGKT)."""
    return _cifar_resnet(classes, shape[0], 1)


def resnet20(classes: int, shape: tuple[int, ...], settings: Model) -> nn.Module:
    """ResNet-20 for small images, with shortcuts without parameters (He et al. 2016)."""
    return _cifar_resnet(classes, shape[0], 3)


class _Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: vmap has no rule for torch's fused attention, which gains nothing on 64 tokens.
        scores = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
        return self.projection((scores @ value).transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """A transformer layer with normalisation before attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _VisionTransformer(nn.Module):
    """Patches as tokens, learned positions, and the mean of the tokens instead of a class token."""

    def __init__(self, classes: int, shape: tuple[int, ...], patch: int) -> None:
        super().__init__()
        channels, height, width = shape
        tokens = (height // patch) * (width // patch)
        self.patches = nn.Conv2d(channels, VIT_WIDTH, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, VIT_WIDTH))
        self.layers = nn.Sequential(*(_Layer(VIT_WIDTH, VIT_HEADS) for _ in range(VIT_DEPTH)))
        self.norm = nn.LayerNorm(VIT_WIDTH)
        self.head = nn.Linear(VIT_WIDTH, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(tokens)).mean(1))


def vit(classes: int, shape: tuple[int, ...], settings: Model) -> nn.Module:
    """A small vision transformer, 6 layers of width 192, at most 8x8 patches (Dosovitskiy et al. 2021)."""
    return _VisionTransformer(classes, shape, max(1, -(-max(shape[1:]) // 8)))
