"""Train an image classifier that judges and filters generated images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.learning import models
from genfl_mpi.learning.training import normalise, train
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.util import streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description

# Steps of SGD for every classifier, whatever the number of images, rounded to whole epochs. With few images
# the last batch of an epoch is small, which adds steps: 100 images in batches of 64 take 1,280 steps.
STEPS = 1000
# Batch size, in multiples of the number of images, beyond which the number of epochs no longer grows.
MAX_BATCH_RATIO = 100


class ImageClassifier:
    """The configured model, trained on images with the configured learning rate and batch size.

    images: uint8 (n, C, H, W); labels: int (n,); about: the data set.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int] | np.ndarray,
        about: Description,
        config: Config,
        device: torch.device,
    ) -> None:
        self.about, self.device, settings = about, device, config.training
        self.model = build_untrained(about, config, device)
        epochs = max(1, round(STEPS * min(settings.batch_size, MAX_BATCH_RATIO * len(images)) / len(images)))
        train(
            self.model,
            self.model.weights.clone(),
            self.normalised(images),
            torch.from_numpy(np.array(labels, dtype=np.int64)).to(device),
            settings.model_copy(update={"epochs": epochs}),
            streams.generator(config.seed, "quality"),
        )
        self.model.module.eval()

    def normalised(self, images: np.ndarray) -> torch.Tensor:
        """Normalise uint8 images (n, C, H, W) for the model, on its device."""
        return normalise(torch.from_numpy(np.array(images)), self.about.mean, self.about.std, self.device)

    @torch.no_grad()
    def features_and_logits(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute features (inputs of the last dense layer) and logits of uint8 images, float64 (n, ...)."""
        last = [layer for layer in self.model.module.modules() if isinstance(layer, torch.nn.Linear)][-1]
        features: list[torch.Tensor] = []
        hook = last.register_forward_hook(lambda layer, inputs, _: features.append(inputs[0].double().cpu()))
        logits = torch.cat(
            [self.model.module(chunk).double().cpu() for chunk in self.normalised(images).split(500)]
        )
        hook.remove()
        return torch.cat(features).numpy(), logits.numpy()

    def fidelity(self, images: np.ndarray, labels: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the probability, float64 (n,), that the classifier assigns to the label of each image."""
        logits = torch.from_numpy(self.features_and_logits(images)[1])
        return F.softmax(logits, dim=1)[torch.arange(len(labels)), torch.as_tensor(labels)].numpy()


def build_untrained(about: Description, config: Config, device: torch.device) -> FlatModel:
    """Build the configured model with its initial weights."""
    return FlatModel(
        models.build(config.model, len(about.classes), about.shape, streams.integer(config.seed, "init")),
        device,
    )
