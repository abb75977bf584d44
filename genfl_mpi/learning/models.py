"""The networks, by name or import path."""

import torch
from torch import nn

from genfl_mpi.errors import UserError
from genfl_mpi.naming import find


def check(settings):
    """Raise UserError if config.model names a network that there is not."""
    find(settings.name, MODELS, "model.name")


def build(settings, classes, shape, seed):
    """A new module with weights that depend on `seed` alone.

    settings: config.model; shape: (C, H, W) of an image. The module maps float32 (n, C, H, W) to logits (n, classes).
    Raises UserError.
    """
    make = find(settings.name, MODELS, "model.name")
    with torch.random.fork_rng(devices=[]):  # torch's layers draw their weights from the global stream: lend it
        torch.manual_seed(seed)
        if settings.name in MODELS:
            return make(classes, shape, settings)
        module = make(classes, shape)
        _try(module, classes, shape, settings.name)
    return module


def _try(module, classes, shape, name):
    """Raise UserError if a module of the user's does not make `classes` logits of an image."""
    if not isinstance(module, nn.Module):
        raise UserError(f"model.name: {name} must return a torch.nn.Module, not {type(module).__name__}")
    module.eval()
    try:
        with torch.no_grad():
            logits = module(torch.zeros(2, *shape))
    except Exception as error:  # whatever a wrong layer raises
        raise UserError(f"model.name: {name} fails on images of {shape}: {str(error).splitlines()[0]}") from error
    module.train()
    if getattr(logits, "shape", None) != (2, classes):
        raise UserError(f"model.name: {name} must return logits (n, {classes}), and of 2 images returns "
                        f"{tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__}")


def _cnn(classes, shape, settings):
    """Two convolutions and two dense layers, for trials."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),  # pooling first: the same function, less work
        nn.Conv2d(16, 32, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 64), nn.ReLU(), nn.Linear(64, classes),
    )


def _pfl_cnn(classes, shape, settings):
    """The network of pfl-research's CIFAR-10 benchmark (Granqvist et al. 2024): 1,626,442 parameters there."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(inplace=True), nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True),  # as above
        nn.Dropout(0.25), nn.Flatten(), nn.Linear(64 * (height // 2 - 2) * (width // 2 - 2), 128), nn.ReLU(inplace=True),
        nn.Dropout(0.5), nn.Linear(128, classes),
    )


def _lenet5(classes, shape, settings):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling; images smaller than its 32x32 get a margin."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=((32 - height) // 2, (32 - width) // 2)), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )


def _resnet18(classes, shape, settings):
    """torchvision's ResNet-18; the `cifar` stem keeps 32x32 images large: a 3x3 convolution and no max-pool."""
    from torchvision.models import resnet18  # here, because importing it takes seconds that a CNN need not pay

    norm = {"batch": nn.BatchNorm2d, "group": lambda channels: nn.GroupNorm(32, channels)}[settings.norm]
    module = resnet18(num_classes=classes, norm_layer=norm)
    if settings.stem == "cifar":
        module.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        module.maxpool = nn.Identity()
    elif shape[0] != 3:
        module.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
    return module


MODELS = {"cnn": _cnn, "pfl_cnn": _pfl_cnn, "lenet5": _lenet5, "resnet18": _resnet18}
