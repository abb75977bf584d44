"""Accuracy and loss on the test set, in fixed chunks that any rank can take."""

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.learning.batches import on_device
from genfl_mpi.learning.training import normalise
from genfl_mpi.learning.weights import fixed_point, from_fixed_point


def chunks(images, labels, size, about, device, first=0, every=1):
    """Chunks of at most `size` samples for `evaluate`, on `device`: number `first` and each `every`-th after it.

    images: uint8 (n, C, H, W), and labels: int64 (n,), read-only maybe; about: the data set's `Description`.
    """
    for start in range(first * size, len(labels), every * size):
        part = slice(start, start + size)
        yield (
            normalise(on_device(np.array(images[part]), device), about.mean, about.std, device),
            on_device(np.array(labels[part]), device),
        )


@torch.inference_mode()
def evaluate(model, chunks, classes, total):
    """Integer totals over chunks of the test set, which add up over ranks to the same result in any division.

    model: FlatModel; chunks: iterable of float32 images (n, C, H, W) and int64 labels (n,); total: number of chunks, all ranks'.
    Returns int64 (classes + 1,): correct predictions of each class, then the summed loss in fixed point.
    """
    model.module.eval()
    totals = np.zeros(classes + 1, dtype=np.int64)
    correct, losses = torch.zeros(classes, dtype=torch.int64, device=model.weights.device), []
    for images, labels in chunks:
        logits = model.module(images)
        correct.index_add_(0, labels, (logits.argmax(1) == labels).long())
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
    totals[:-1] = correct.cpu().numpy()  # looked at after the last chunk, so that none waits for the device
    totals[-1] = sum(fixed_point(loss, total) for loss in torch.stack(losses).tolist()) if losses else 0
    return totals


def accuracy_over_clients(accuracy_per_class, histograms):
    """What the clients would see on test data with their own mix of labels: the mean over clients, and over the worst tenth.

    accuracy_per_class: float64 (classes,); histograms: int (clients, classes).
    """
    known = histograms @ np.isfinite(accuracy_per_class)  # without classes of which the test set has nothing
    right = histograms @ np.nan_to_num(accuracy_per_class)
    accuracy = np.sort(right[known > 0] / known[known > 0])
    return {
        "clients_accuracy": accuracy.mean(),
        "clients_accuracy_worst_tenth": accuracy[: -(-len(accuracy) // 10)].mean(),
    }


def summarise(totals, class_sizes):
    """(accuracy, loss, per-class accuracy (classes,)) from the totals of all ranks and the test samples of each class; NaN for
    a class without."""
    accuracy_per_class = np.where(class_sizes > 0, totals[:-1] / np.maximum(class_sizes, 1), np.nan)
    return (
        totals[:-1].sum() / class_sizes.sum(),
        from_fixed_point(totals[-1]) / class_sizes.sum(),
        accuracy_per_class,
    )
