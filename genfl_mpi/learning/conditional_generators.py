"""Small generators that a server trains without data: of features, and of images, for given labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

NOISE = 32  # values of noise that a generator reads beside the label
HIDDEN = 256
CHANNELS = 64


class FeatureGenerator(nn.Module):
    """FedGen's generator (Zhu et al. 2021): noise and label to the features that an output layer reads."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.layers = nn.Sequential(
            nn.Linear(NOISE + classes, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, width)
        )

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Generate features (n, width). noise: float32 (n, NOISE); labels: int64 (n,)."""
        return self.layers(torch.cat([noise, F.one_hot(labels, self.classes).to(noise.dtype)], 1))


class ImageGenerator(nn.Module):
    """A small convolutional generator like DENSE's (Zhang et al. 2022): noise and label to normalised images.

    shape: (C, H, W) of an image; mean, std: of each channel, by which the pixels are normalised.
    """

    def __init__(
        self, classes: int, shape: tuple[int, ...], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.classes, self.shape = classes, shape
        self.mean, self.std = mean, std
        self.side = -(-shape[1] // 4), -(-shape[2] // 4)
        self.first = nn.Linear(NOISE + classes, 2 * CHANNELS * self.side[0] * self.side[1])
        self.layers = nn.Sequential(
            nn.BatchNorm2d(2 * CHANNELS),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * CHANNELS, 2 * CHANNELS, 3, padding=1),
            nn.BatchNorm2d(2 * CHANNELS),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1),
            nn.BatchNorm2d(CHANNELS),
            nn.LeakyReLU(0.2),
            nn.Conv2d(CHANNELS, shape[0], 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Generate images (n, C, H, W). noise: float32 (n, NOISE); labels: int64 (n,)."""
        given = torch.cat([noise, F.one_hot(labels, self.classes).to(noise.dtype)], 1)
        maps = self.first(given).view(len(noise), 2 * CHANNELS, *self.side)
        pixels = self.layers(maps)[:, :, : self.shape[1], : self.shape[2]]
        mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def diversity_loss(noise: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return exp(mean over pairs of -|noise_i - noise_j|^2 |output_i - output_j|), means over values."""
    flat = outputs.flatten(1)
    far = (noise[:, None] - noise).square().mean(2)
    return torch.exp(-(far * (flat[:, None] - flat).abs().mean(2)).mean())
