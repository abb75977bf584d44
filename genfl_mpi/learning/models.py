"""The networks, by name."""

import torch
from torch import nn


def build(settings, classes, shape, seed):
    """A new module with weights that depend on `seed` alone.

    settings: config.model; shape: (C, H, W) of an image. The module maps float32 (n, C, H, W) to logits (n, classes).
    """
    with torch.random.fork_rng(devices=[]):  # torch's layers draw their weights from the global stream: lend it
        torch.manual_seed(seed)
        if settings.name == "resnet18":
            return _resnet18(classes, shape[0], settings.stem)
        return _cnn(classes, shape)


def _cnn(classes, shape):
    """Two convolutions and two dense layers."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),  # pooling first: the same function, less work
        nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 64), nn.ReLU(), nn.Linear(64, classes),
    )


def _resnet18(classes, channels, stem):
    """torchvision's ResNet-18; the `cifar` stem keeps 32x32 images large: a 3x3 convolution and no max-pool."""
    from torchvision.models import resnet18  # here, because importing it takes seconds that a CNN need not pay

    module = resnet18(num_classes=classes)
    if stem == "cifar":
        module.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        module.maxpool = nn.Identity()
    elif channels != 3:
        module.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return module
