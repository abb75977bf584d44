"""The networks, by name or import path."""

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from genfl_mpi.config.functions import find
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line


def build(settings, classes, shape, seed):
    """Build a module with weights that depend on `seed` alone.

    settings: config.model; shape: (C, H, W) of an image. The module maps float32 (n, C, H, W) to logits (n, classes).
    Raises UserError.
    """
    check(settings, classes, shape)
    with torch.random.fork_rng(
        devices=[]
    ):  # torch's layers draw their weights from the global stream: lend it
        torch.manual_seed(seed)
        module = _make(find(settings.name, MODELS, "model.name"), settings, classes, shape)
        if settings.name not in MODELS:
            with torch.no_grad():
                module.eval()(torch.zeros(2, *shape))  # lazy layers draw their weights now
        return module.train()


def check(settings, classes, shape, samples=2):
    """Raise UserError unless the network is there and can be trained on such images, in batches of so many samples.

    settings: config.model; shape: (C, H, W). It is tried on the CPU. (The meta device would compute nothing, but accepts what the
    CPU refuses.)
    """
    _try(find(settings.name, MODELS, "model.name"), settings, classes, tuple(shape), samples)


def _make(function, settings, classes, shape):
    return function(classes, shape, settings) if settings.name in MODELS else function(classes, shape)


@cache  # the runs of a sweep share their network
def _try(function, settings, classes, shape, samples):
    name, module, logits = settings.name, None, None
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers without inputs, say: what they lead to is found here
        try:
            module = _make(function, settings, classes, shape)
            if isinstance(module, nn.Module):
                logits = module.train()(torch.zeros(samples, *shape))
                if isinstance(logits, torch.Tensor) and logits.shape == (samples, classes):
                    F.cross_entropy(logits.float(), torch.zeros(samples, dtype=torch.int64)).backward()
        except Exception as error:  # whatever a layer raises that does not fit
            images = f"images of {' x '.join(map(str, shape))} (channels, height, width)"
            reason = first_line(error)
            raise UserError(
                f"model.name: {name} cannot be trained on {images}{' one by one' * (samples == 1)}: {reason}; "
                f"{_remedy(name, samples)}, or choose another model"
            ) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"model.name: {name} must return a torch.nn.Module, not {type(module).__name__}")
    if not isinstance(logits, torch.Tensor) or logits.shape != (samples, classes):
        returned = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"model.name: {name} must return logits (n, {classes}), and of {samples} images returns {returned}"
        )


def _remedy(name, samples):
    if samples == 1:
        return "let no batch have a single sample, by a larger partition.min_samples or another training.batch_size"
    return (
        "use images of another size, which data.size sets for folder and synthetic"
        if name in MODELS
        else "mend its layers"
    )


def _cnn(classes, shape, settings):
    """Two convolutions and two dense layers, for trials."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),  # pooling first: the same function, less work
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def _pfl_cnn(classes, shape, settings):
    """The network of pfl-research's CIFAR-10 benchmark (Granqvist et al. 2024): 1,626,442 parameters there."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),  # as above
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * (height // 2 - 2) * (width // 2 - 2), 128),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(128, classes),
    )


def _lenet5(classes, shape, settings):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling; images smaller than its 32x32 get a margin."""
    channels, height, width = shape
    rows, columns = 32 - height, 32 - width
    return nn.Sequential(
        *([nn.ZeroPad2d((0, columns % 2, 0, rows % 2))] if rows % 2 or columns % 2 else []),
        nn.Conv2d(channels, 6, 5, padding=(rows // 2, columns // 2)),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(6, 16, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def _resnet18(classes, shape, settings):
    """torchvision's ResNet-18; the `cifar` stem keeps 32x32 images large: a 3x3 convolution and no max-pool."""
    from torchvision.models import (
        resnet18,
    )  # here, because importing it takes seconds that a CNN need not pay

    norm = {"batch": nn.BatchNorm2d, "group": lambda channels: nn.GroupNorm(32, channels)}[settings.norm]
    module = resnet18(num_classes=classes, norm_layer=norm)
    if settings.stem == "cifar":
        module.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        module.maxpool = nn.Identity()
    elif shape[0] != 3:
        module.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
    return module


MODELS = {"cnn": _cnn, "pfl_cnn": _pfl_cnn, "lenet5": _lenet5, "resnet18": _resnet18}
