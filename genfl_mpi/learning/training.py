"""Local SGD: of a client on its data, and of the server on the generated images."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from genfl_mpi.learning.batches import augment, draw, memory_format, on_device
from genfl_mpi.learning.device_streams import seeded
from genfl_mpi.learning.steps import steps_of
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from genfl_mpi.config.sections.local_training import Training
    from genfl_mpi.learning.steps import Loss
    from genfl_mpi.learning.weights import FlatModel

Settings = TypeVar("Settings", bound="Training")


@dataclass(frozen=True)
class Report:
    """Metrics of one local training: samples, loss of the first and last epoch, accuracy of the last."""

    samples: int
    loss_first_epoch: float
    loss_last_epoch: float
    accuracy_last_epoch: float

    def check(self) -> None:
        """Raise FloatingPointError if a loss is not finite."""
        for loss in (self.loss_first_epoch, self.loss_last_epoch):
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is not finite: {loss}; a smaller learning rate may help")


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> torch.Tensor:
    """Normalise uint8 samples, such as images (n, C, H, W), to float32 on `device`.

    Scales values to [0, 1], subtracts `mean` and divides by `std`, both per channel. Without mean and std the
    values stay as they are. The result has the layout of the fastest kernels.
    """
    if not len(mean):
        return on_device(images, device).float()
    offset, scale = _channels(tuple(mean), device), _channels(tuple(std), device)
    pixels = on_device(images, device).to(torch.float32, memory_format=memory_format(images))
    return pixels.div_(255).sub_(offset).div_(scale)


@lru_cache
def _channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return a number for each channel on `device`, float32 (1, C, 1, 1)."""
    return on_device(np.array(values, dtype=np.float32), device).view(1, -1, 1, 1)


def settings_at_round(settings: Settings, round: int) -> Settings:
    """Return config.training with the learning rate of a round; rounds count from 0."""
    factor = {
        "constant": 1.0,
        "exponential": settings.decay**round,
        "step": settings.decay ** (round // settings.period),
        "cosine": (1 + math.cos(math.pi * min(round, settings.period - 1) / settings.period)) / 2,
    }[settings.schedule]
    return settings.model_copy(update={"lr": settings.lr * factor})


def train(
    model: FlatModel,
    start: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    settings: Training,
    rng: np.random.Generator,
    mu: float = 0.0,
    correction: torch.Tensor | None = None,
    anchor: torch.Tensor | None = None,
    loss_function: Loss | None = None,
) -> Report:
    """Run SGD from the weights `start`; leave the result in model.weights and return a `Report`.

    start: float32 (size,). images: float32 (n, C, H, W), and labels: int64 (n,), on the model's device.
    settings: config.training. rng: NumPy generator, for `draw`. mu: weight of a proximal term in the loss
    (FedProx, Li et al. 2020): mu / 2 times the squared distance of the parameters to those of `anchor`,
    float32 (size,), by default `start`. correction: float32 (parameters,), added to every gradient
    (SCAFFOLD). loss_function: (model, images, labels) -> (loss, logits), by default the cross-entropy; what
    it draws from the device's random stream is keyed, too.

    Does not synchronize with the device before the last step. Raises UserError if the model cannot train on a
    batch of one sample.
    """
    drawn, device = draw(len(images), settings, rng), images.device
    order = on_device(drawn.order, device).split(drawn.sizes)
    moves = repeat(None) if drawn.moves is None else on_device(drawn.moves, device).split(drawn.sizes, 1)
    last_epoch = len(order) - len(order) // settings.epochs  # index of its first step
    step = steps_of(model, settings, mu, correction is not None, loss_function is not None)
    losses, outputs, targets = [], [], []  # on the device; read after the last step
    with seeded(drawn.dropout_seed, device):
        step.begin(start, settings.lr, correction, anchor, loss_function)
        for number, (batch, move) in enumerate(zip(order, moves)):
            target = labels[batch]
            try:
                loss, logits = step(augment(images[batch], settings, move), target)
            except ValueError as error:
                if len(target) > 1:
                    raise
                raise UserError(
                    f"the model cannot be trained on a batch of one sample: {first_line(error)}; change "
                    "batch_size of `training` or `augmented`, or provide more images"
                ) from error
            losses.append(loss)
            if number >= last_epoch:
                outputs.append(logits)
                targets.append(target)
    model.gather()
    correct = (torch.cat(outputs).argmax(1) == torch.cat(targets)).sum(dtype=torch.float64)
    # The only synchronization with the device.
    *mean_losses, correct_predictions = torch.stack([*losses, correct]).tolist()
    return make_report(mean_losses, correct_predictions, drawn.sizes, settings.epochs)


def combine_reports(reports: Sequence[Report]) -> Report:
    """Return one `Report` of consecutive trainings: the first epoch of the first, all else of the last."""
    first, last = reports[0], reports[-1]
    return Report(last.samples, first.loss_first_epoch, last.loss_last_epoch, last.accuracy_last_epoch)


def make_report(losses: Sequence[float], correct: float, sizes: Sequence[int], epochs: int) -> Report:
    """Compute a `Report`.

    losses: mean loss of each step; correct: correct predictions in the last epoch; sizes: batch size of
    each step.
    """
    steps = len(losses) // epochs
    samples = sum(sizes[:steps])
    first, last = (
        sum(map(operator.mul, losses[part], sizes[part])) / samples
        for part in (slice(steps), slice(-steps, None))
    )
    return Report(samples, first, last, correct / samples)
