"""Which samples each step of a local training sees, and how they are augmented: all drawn before the first step, so that no
step waits for a random number, and sent to the device at once."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


class Draws(NamedTuple):
    """What a local training draws.

    dropping: the seed of dropout. sizes: samples of each step, epoch after epoch. order: int64 (sum of sizes,), the samples
    themselves. moves: int64 (3, sum of sizes), whether each is mirrored, and its shifts down and right, in pixels; None without
    augmentation.
    """

    dropping: int
    sizes: list
    order: np.ndarray
    moves: np.ndarray | None


def draw(count, settings, rng):
    """The `Draws` of a training on so many samples. settings: config.training; rng: NumPy generator that orders the batches and
    seeds dropout, and whose child augments."""
    dropping, augmenting = (
        int(rng.integers(2**63)),
        rng.spawn(1)[0] if settings.crop or settings.flip else None,
    )
    steps = [
        batch.numpy() for _ in range(settings.epochs) for batch in batches(count, settings.batch_size, rng)
    ]
    sizes = list(map(len, steps))
    moves = (
        np.concatenate([_moves(size, settings, augmenting) for size in sizes], axis=1) if augmenting else None
    )
    return Draws(dropping, sizes, np.concatenate(steps), moves)


def batches(count, batch_size, rng):
    """Index tensors that cover 0..count-1 once in random order: as few as there can be of `batch_size`, equally large but for
    one sample. (A small rest at the end would make the last step the noisiest: a rest of 4 images cost ten points of accuracy.)"""
    order = torch.from_numpy(rng.permutation(count))
    return order.tensor_split(local_batches(count, batch_size))


def local_batches(samples, batch_size):
    """Steps of an epoch over each number of samples."""
    return -(-samples // batch_size)


def smallest_batch(samples, batch_size):
    """Samples of the smallest batch of an epoch over each number of samples."""
    return samples // local_batches(samples, batch_size)


def _moves(count, settings, rng):
    moves = np.zeros((3, count), dtype=np.int64)
    if settings.flip:
        moves[0] = rng.random(count) < 0.5
    if settings.crop:
        moves[1:] = rng.integers(0, 2 * settings.crop + 1, (2, count))
    return moves


def augment(images, settings, moves):
    """Images mirrored and shifted, as settings (config.training) has it; float32 (n, C, H, W) on any device, like moves, int64
    (3, n) of a `Draws` (or None without augmentation)."""
    count, channels, height, width = images.shape
    if settings.flip:
        images = torch.where(moves[0].bool()[:, None, None, None], images.flip(3), images)
    if settings.crop:
        padded = F.pad(images, (settings.crop,) * 4, mode="reflect")
        rows, columns = (
            shift[:, None] + torch.arange(size, device=images.device)
            for shift, size in zip(moves[1:], (height, width))
        )
        which, channel = (torch.arange(size, device=images.device) for size in (count, channels))
        images = padded[
            which[:, None, None, None],
            channel[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
    return images


def on_device(array, device):
    """A NumPy array as a tensor there: onto a GPU through page-locked memory, and nobody waits for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
