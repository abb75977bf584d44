"""The networks, by name or import path."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from genfl_mpi.config.functions import find
from genfl_mpi.learning import library_models
from genfl_mpi.learning.adaptation import adapt
from genfl_mpi.learning.heads import find_head
from genfl_mpi.learning.networks import resnet8, resnet20, vit
from genfl_mpi.learning.weights import buffers_of, restore, snapshot
from genfl_mpi.util.errors import UserError, user_line
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from genfl_mpi.config.sections.local_training import Model

Shape = tuple[int, ...]  # of a sample: (C, H, W) of an image
Constructor = Callable[..., nn.Module]


def build(settings: Model, classes: int, shape: Shape, seed: int) -> nn.Module:
    """Build a module whose initial weights depend on `seed` alone.

    settings: config.model; shape: (C, H, W) of an image. The module maps float32 (n, C, H, W) to logits (n,
    classes). Raises UserError if the network does not exist or does not fit the images.
    """
    check(settings, classes, shape)
    # torch's layers draw their weights from the global stream: the fork restores it afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _make(_constructor(settings), settings, classes, shape)
        if settings.name not in MODELS:
            with torch.no_grad():
                module.eval()(torch.zeros(2, *shape))  # lazy layers draw their weights now
        return module.train()


def check(settings: Model, classes: int, shape: Shape, samples: int = 2) -> None:
    """Raise UserError unless the network can be trained on images of this shape, in batches of `samples`.

    settings: config.model; shape: (C, H, W). Runs a forward and a backward pass on the CPU. (The meta device
    would cost nothing, but accepts shapes that the CPU refuses.)
    """
    _try_training(_constructor(settings), settings, classes, tuple(shape), samples)


def is_built_in(name: str) -> bool:
    """Return whether model.name is a network of this package or of a library, not the user's function."""
    return name in MODELS or library_models.is_library(name)


def _constructor(settings: Model) -> Constructor:
    """Return the function that builds the network of config.model. Raises UserError for an unknown name."""
    is_library = library_models.is_library(settings.name)
    return library_models.make if is_library else find(settings.name, MODELS, "model.name")


def check_deterministic(module: nn.Module, shape: Shape, device: torch.device) -> None:
    """Raise UserError, with the layer's name, if a training step cannot be computed deterministically.

    Runs a step of a copy of `module` on two images of `shape`, (C, H, W), on `device`. torch must have been
    set to refuse other operations.
    """
    layers: list[str] = []
    try:
        _try_step(module, shape, device, layers)
    except RuntimeError:
        torch.use_deterministic_algorithms(False)
        try:
            _try_step(module, shape, device, [])
        finally:
            torch.use_deterministic_algorithms(True)
        kind = type(module.get_submodule(layers[-1])).__name__
        raise UserError(
            f"model.name: layer {layers[-1] or 'model'} ({kind}) has no deterministic implementation on "
            f"{device.type}; replace it, or set runtime.deterministic=false, which marks the results as not "
            "reproducible"
        ) from None


def _try_step(module: nn.Module, shape: Shape, device: torch.device, layers: list[str]) -> None:
    """Run a forward and a backward pass of a copy; append the name of each layer that begins to `layers`."""
    module = copy.deepcopy(module).train()
    for name, layer in module.named_modules():
        layer.register_forward_pre_hook(lambda *_, name=name: layers.append(name))
        layer.register_full_backward_pre_hook(lambda *_, name=name: layers.append(name))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        module(torch.zeros(2, *shape, device=device)).sum().backward()


@cache  # every start of a run asks several times
def check_head(settings: Model, classes: int, shape: Shape, what: str) -> int:
    """Return the number of features that the network's output layer reads.

    Raises UserError, for the setting `what`, if the network has no such layer that computes its logits.
    """
    return find_head(build(settings, classes, shape, 0), shape, classes, what).in_features


def _make(function: Constructor, settings: Model, classes: int, shape: Shape) -> nn.Module:
    """Build the network, fitted to the settings and to the shape of a sample."""
    size, repeats = settings.input_size, 1
    if size is not None:
        if len(shape) != 3:
            raise UserError(
                f"model.input_size={size} resizes images, and samples have shape {shape}; remove it"
            )
        shape = (shape[0], size, size)
    if library_models.is_library(settings.name):
        if len(shape) != 3 or library_models.CHANNELS % shape[0]:
            raise UserError(
                f"model.name: {settings.name} takes images of {library_models.CHANNELS} channels, and "
                f"samples have shape {shape}; choose another model"
            )
        repeats = library_models.CHANNELS // shape[0]
    own = not is_built_in(settings.name)
    module = function(classes, shape) if own else function(classes, shape, settings)
    if not isinstance(module, nn.Module):  # a mistake of the user's, which `_try_training` reports
        return module
    # timm loads its pretrained weights itself: it knows how to convert old files.
    by_itself = settings.name.startswith("timm:")
    weights = None if by_itself else library_models.weights_file(settings)
    return adapt(module, settings, classes, weights, repeats)


@cache  # the runs of a sweep share their network
def _try_training(function: Constructor, settings: Model, classes: int, shape: Shape, samples: int) -> None:
    name, module, logits = settings.name, None, None
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of layers without inputs, for example: the errors they lead to are caught here
        try:
            module = _make(function, settings, classes, shape)
            if isinstance(module, nn.Module):
                logits = module.train()(torch.zeros(samples, *shape))
                if isinstance(logits, torch.Tensor) and logits.shape == (samples, classes):
                    F.cross_entropy(logits.float(), torch.zeros(samples, dtype=torch.int64)).backward()
                    if samples > 1 and not is_built_in(settings.name):
                        _refuse_hidden_state(module, shape, settings.name)
        except UserError:
            raise
        except Exception as error:  # any exception of a layer that does not fit
            what = "images" if len(shape) == 3 else "samples"
            meaning = " (channels, height, width)" if len(shape) == 3 else ""
            images = f"{what} of {' x '.join(map(str, shape))}{meaning}"
            in_batches = " in batches of one" if samples == 1 else ""
            reason = first_line(error) + user_line(error)
            raise UserError(
                f"model.name: {name} cannot be trained on {images}{in_batches}: {reason}; "
                f"{_remedy(name, samples)}, or choose another model"
            ) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"model.name: {name} must return a torch.nn.Module, not {type(module).__name__}")
    if not isinstance(logits, torch.Tensor) or logits.shape != (samples, classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"model.name: {name} must return logits (n, {classes}), but returns {found} for {samples} images"
        )


def _refuse_hidden_state(module: nn.Module, shape: Shape, name: str) -> None:
    """Raise UserError, with the layer's name, if a layer remembers something that is not a buffer.

    Runs the network twice on the same samples, from the same buffers and random stream. The first layer whose
    output differs has a state that no rank can reset.
    """
    before = snapshot(buffers_of(module))
    passes: list[list[tuple[str, nn.Module, torch.Tensor]]] = []
    for _ in range(2):
        outputs: list[tuple[str, nn.Module, torch.Tensor]] = []
        hooks = [
            layer.register_forward_hook(
                lambda layer, _, output, path=path: (
                    outputs.append((path, layer, output.detach().clone()))
                    if isinstance(output, torch.Tensor)
                    else None
                )
            )
            for path, layer in module.named_modules()
        ]
        restore(before)
        torch.manual_seed(0)
        with torch.no_grad():
            module((torch.arange(2 * math.prod(shape)) % 2).float().view(2, *shape))
        for hook in hooks:
            hook.remove()
        passes.append(outputs)
    restore(before)
    for (path, layer, first), (_, _, second) in zip(*passes):
        if first.shape != second.shape or not torch.equal(first.nan_to_num(), second.nan_to_num()):
            raise UserError(
                f"model.name: {name}: layer {path or 'model'} ({type(layer).__name__}) changes a hidden "
                "state in forward: its output differs for the same input; keep the state in a registered "
                "buffer, which is reset before each training"
            )


def _remedy(name: str, samples: int) -> str:
    if samples == 1:
        return (
            "avoid batches of one sample with a larger partition.min_samples or another training.batch_size"
        )
    if library_models.is_library(name):
        return (
            "set model.input_size to the side of the images that it takes, for example model.input_size=224"
        )
    return (
        "use images of another size (data.size for folder and synthetic, or model.input_size)"
        if name in MODELS
        else "correct its layers"
    )


def _cnn(classes: int, shape: Shape, settings: Model) -> nn.Module:
    """A small network for quick experiments: two convolutions and two dense layers."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),  # after pooling: the same function at a quarter of the work
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def _pfl_cnn(classes: int, shape: Shape, settings: Model) -> nn.Module:
    """The network of pfl-research's CIFAR-10 benchmark (Granqvist et al. 2024): 1,626,442 parameters."""
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 64, 3),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),  # after pooling, as in _cnn
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * (height // 2 - 2) * (width // 2 - 2), 128),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(128, classes),
    )


def _lenet5(classes: int, shape: Shape, settings: Model) -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling; smaller images are padded to 32x32."""
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


def _moon_cnn(classes: int, shape: Shape, settings: Model) -> nn.Module:
    """MOON's network for CIFAR-10 (Li et al. 2021): LeNet-5 with a projection head of 256 outputs."""
    *layers, _ = _lenet5(classes, shape, settings)
    return nn.Sequential(*layers, nn.Linear(84, 84), nn.ReLU(), nn.Linear(84, 256), nn.Linear(256, classes))


def _resnet18(classes: int, shape: Shape, settings: Model) -> nn.Module:
    """torchvision's ResNet-18; the `cifar` stem, a 3x3 convolution without max-pool, suits 32x32 images."""
    from torchvision.models import resnet18  # imported here: it takes seconds that other networks do not need

    module = resnet18(num_classes=classes)
    if settings.stem == "cifar":
        module.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        module.maxpool = nn.Identity()
    elif shape[0] != 3:
        module.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
    return module


FEATURE_BATCH = 16  # images whose filtered pixels stay in a CPU's cache


class _RandomFeatures(nn.Module):
    """Fixed random convolutions, and a trained linear head on their pooled outputs.

    The filters are the same for every seed. They are neither parameters nor buffers: nothing of them is
    trained, sent, averaged or noised.
    """

    filters: tuple[torch.Tensor, ...]

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        filters = torch.randn(64, channels, 5, 5, generator=rng)
        filters -= filters.mean((1, 2, 3), keepdim=True)
        self.filters = (filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1),)
        self.head = nn.Linear(4 * 64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, classes) of images (n, C, H, W)."""
        if self.filters[0].device != images.device:
            self.filters = (self.filters[0].to(images.device),)
        with torch.no_grad():
            features = torch.cat([self._features(part) for part in images.split(FEATURE_BATCH)])
        return self.head(features)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (n, 256) of images (n, C, H, W)."""
        filtered = F.conv2d(images, self.filters[0].to(images.dtype), padding=2)
        return F.adaptive_avg_pool2d(filtered.relu_(), 2).flatten(1)


def _random_features(classes: int, shape: Shape, settings: Model) -> nn.Module:
    """Fixed random 5x5 filters and a trained linear head of a few thousand weights."""
    return _RandomFeatures(classes, shape[0])


MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": _cnn,
    "pfl_cnn": _pfl_cnn,
    "lenet5": _lenet5,
    "moon_cnn": _moon_cnn,
    "resnet18": _resnet18,
    "random_features": _random_features,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "vit": vit,
}
