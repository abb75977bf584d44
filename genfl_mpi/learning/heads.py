"""A network's output layer, and the features that it reads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.func import functional_call

from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from genfl_mpi.learning.weights import FlatModel


def find_head(module: nn.Module, shape: tuple[int, ...], classes: int, what: str) -> nn.Linear:
    """Return the layer that computes the logits, the last `nn.Linear` of a module.

    shape: of a sample, such as (C, H, W). what: the setting that needs it, for the message. Raises UserError
    if the logits are not the output of such a layer.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    device = next(module.parameters()).device
    if layers and layers[-1].out_features == classes:
        was_training = module.training
        with torch.no_grad():
            features, logits = features_and_logits(
                module.eval(), layers[-1], torch.zeros(2, *shape, device=device)
            )
            found = features.ndim == 2 and torch.equal(layers[-1](features), logits)
        module.train(was_training)
        if found:
            return layers[-1]
    raise UserError(
        f"{what} needs a network whose logits are the output of a torch.nn.Linear, its last one; "
        "choose another model.name"
    )


def head_of(module: nn.Module) -> nn.Linear:
    """Return the output layer of a module that `find_head` accepted."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]


def frozen_features(model: FlatModel, weights: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the features (n, features) of images at other weights, float32 (size,), without gradients.

    They are computed as in a test: without dropout, and with the BatchNorm statistics of these weights.
    """
    module, was_training = model.module, model.module.training
    with torch.no_grad():
        call = partial(functional_call, module.eval(), model.named(weights))
        features, _ = features_and_logits(call, head_of(module), images)
    module.train(was_training)
    return features


def features_and_logits(
    module: Callable[[torch.Tensor], torch.Tensor], head: nn.Linear, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs of the output layer (n, features), and the logits (n, classes).

    module: the network, or a function that calls it.
    """
    read: list[torch.Tensor] = [images]  # replaced; remains if the head is not called

    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        read[0] = inputs[0]

    hook = head.register_forward_pre_hook(note)
    try:
        logits = module(images)
    finally:
        hook.remove()
    return read[0], logits
