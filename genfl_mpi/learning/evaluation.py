"""Accuracy and loss on the test set, in fixed chunks that any rank can evaluate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.learning.batches import on_device
from genfl_mpi.learning.training import normalise
from genfl_mpi.learning.weights import fixed_point, from_fixed_point

if TYPE_CHECKING:
    from genfl_mpi.learning.weights import FlatModel


class Normalisation(Protocol):
    """The part of a data set's `Description` used here: mean and standard deviation of each channel."""

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...


def chunks(
    images: np.ndarray | torch.Tensor,
    labels: np.ndarray,
    size: int,
    about: Normalisation,
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield chunks of at most `size` samples for `evaluate`.

    images: uint8 (n, C, H, W), in NumPy, possibly read-only, or on the device; labels: int64 (n,); device: of
    the result; about: the data set's `Description`.
    """
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        pixels = images[part]
        yield (
            normalise(
                torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels,
                about.mean,
                about.std,
                device,
            ),
            on_device(np.array(labels[part]), device),
        )


@torch.inference_mode()
def evaluate(
    model: FlatModel,
    chunks: Iterable[tuple[torch.Tensor, torch.Tensor]],
    classes: int,
    total: int,
    capped: bool = False,
) -> np.ndarray:
    """Compute integer totals over chunks of the test set; their sum over ranks is the same for any division.

    chunks: float32 images (n, C, H, W) and int64 labels (n,); total: number of chunks on all ranks; capped:
    whether a loss that is not finite counts as the largest that can be summed, instead of an error.
    Returns int64 (classes + 1,): correct predictions of each class, then the summed loss in fixed point.
    """
    model.module.eval()
    totals = np.zeros(classes + 1, dtype=np.int64)
    correct, losses = torch.zeros(classes, dtype=torch.int64, device=model.weights.device), []
    for images, labels in chunks:
        logits = model.module(images)
        correct.index_add_(0, labels, (logits.argmax(1) == labels).long())
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
    # Read after the last chunk: no chunk synchronizes with the device.
    totals[:-1] = correct.cpu().numpy()
    values = torch.stack(losses).tolist() if losses else []
    totals[-1] = sum(fixed_point(loss, total, capped) for loss in values)
    return totals


def accuracy_over_clients(accuracy_per_class: np.ndarray, histograms: np.ndarray) -> dict[str, float]:
    """Estimate clients' accuracy on test data with their own label mix: mean, and mean of the worst tenth.

    accuracy_per_class: float64 (classes,), NaN for classes without test samples, which do not count;
    histograms: int (clients, classes).
    """
    known = histograms @ np.isfinite(accuracy_per_class)
    correct = histograms @ np.nan_to_num(accuracy_per_class)
    accuracy = np.sort(correct[known > 0] / known[known > 0])
    if not len(accuracy):  # the round has no evaluation on the test set
        accuracy = np.array([np.nan])
    return {
        "clients_accuracy": accuracy.mean(),
        "clients_accuracy_worst_tenth": accuracy[: -(-len(accuracy) // 10)].mean(),
    }


def summarise(totals: np.ndarray, class_sizes: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Compute (accuracy, loss, accuracy of each class (classes,)) from the totals of all ranks.

    class_sizes: test samples of each class; the accuracy of a class without any is NaN.
    """
    accuracy_per_class = np.where(class_sizes > 0, totals[:-1] / np.maximum(class_sizes, 1), np.nan)
    return (
        totals[:-1].sum() / class_sizes.sum(),
        from_fixed_point(totals[-1]) / class_sizes.sum(),
        accuracy_per_class,
    )
