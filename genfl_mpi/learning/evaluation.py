"""Accuracy and loss on the test set, in fixed chunks that any rank can take."""

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.learning.training import normalise
from genfl_mpi.learning.weights import fixed_point, from_fixed_point


def chunks(images, labels, size, about, device, first=0, every=1):
    """Chunks of at most `size` samples for `evaluate`, on `device`: number `first` and each `every`-th after it.

    images: uint8 (n, C, H, W), and labels: int64 (n,), read-only maybe; about: the data set's `Description`.
    """
    for start in range(first * size, len(labels), every * size):
        part = slice(start, start + size)
        yield (normalise(torch.from_numpy(np.array(images[part])), about.mean, about.std, device),
               torch.from_numpy(np.array(labels[part])).to(device))


@torch.inference_mode()
def evaluate(model, chunks, classes, total):
    """Integer totals over chunks of the test set, which add up over ranks to the same result in any division.

    model: FlatModel; chunks: iterable of float32 images (n, C, H, W) and int64 labels (n,); total: number of chunks, all ranks'.
    Returns int64 (classes + 1,): correct predictions of each class, then the summed loss in fixed point.
    """
    model.module.eval()
    totals = np.zeros(classes + 1, dtype=np.int64)
    for images, labels in chunks:
        logits = model.module(images)
        correct = labels[logits.argmax(1) == labels]
        totals[:-1] += torch.bincount(correct, minlength=classes).cpu().numpy()
        totals[-1] += fixed_point(F.cross_entropy(logits, labels, reduction="sum").item(), total)
    return totals


def accuracy_over_clients(accuracy_per_class, histograms):
    """What the clients would see on test data with their own mix of labels: the mean over clients, and over the worst tenth.

    accuracy_per_class: float64 (classes,); histograms: int (clients, classes).
    """
    accuracy = np.sort(histograms @ accuracy_per_class / histograms.sum(1))
    return {"clients_accuracy": accuracy.mean(), "clients_accuracy_worst_tenth": accuracy[: -(-len(accuracy) // 10)].mean()}


def summarise(totals, class_sizes):
    """(accuracy, loss, per-class accuracy (classes,)) from the totals of all ranks and the test samples of each class."""
    accuracy_per_class = totals[:-1] / np.maximum(class_sizes, 1)
    return totals[:-1].sum() / class_sizes.sum(), from_fixed_point(totals[-1]) / class_sizes.sum(), accuracy_per_class
