"""The batches of a local training and their augmentation.

All of it is drawn before the first step and sent to the device at once, so that no step waits for random
numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from genfl_mpi.config.sections.local_training import Training

Counts = TypeVar("Counts", int, np.ndarray)


class Draws(NamedTuple):
    """The random draws of one local training.

    dropout_seed: seed of dropout. sizes: batch size of each step, all epochs in sequence. order: int64 (sum
    of sizes,), samples in the order of training. moves: int64 (3, sum of sizes), augmentation of each:
    whether it is mirrored, and its vertical and horizontal offset in the padded image, in pixels; None
    without augmentation.
    """

    dropout_seed: int
    sizes: list[int]
    order: np.ndarray
    moves: np.ndarray | None


def draw(count: int, settings: Training, rng: np.random.Generator) -> Draws:
    """Draw the `Draws` of a training on `count` samples.

    settings: config.training. rng: NumPy generator that seeds dropout and orders the batches; a child of it
    draws the augmentation.
    """
    dropout_seed = int(rng.integers(2**63))
    augmenting = rng.spawn(1)[0] if settings.crop or settings.flip else None
    order = np.concatenate([rng.permutation(count) for _ in range(settings.epochs)])
    sizes = settings.epochs * batch_sizes(count, settings.batch_size)
    moves = (
        np.concatenate([_draw_moves(size, settings, augmenting) for size in sizes], axis=1)
        if augmenting
        else None
    )
    return Draws(dropout_seed, sizes, order, moves)


def batches(count: int, batch_size: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Split 0..count-1, in random order, into index tensors of at most `batch_size`.

    Uses the minimum number of batches; their sizes differ by at most one sample. (A small remainder as the
    last batch would make the last step the noisiest: a remainder of 4 images cost ten percentage points of
    accuracy.)
    """
    return torch.from_numpy(rng.permutation(count)).split(batch_sizes(count, batch_size))


def batch_sizes(samples: int, batch_size: int) -> list[int]:
    """Return the size of each batch of an epoch, the larger ones first."""
    smallest, larger = divmod(samples, number := local_batches(samples, batch_size))
    return larger * [smallest + 1] + (number - larger) * [smallest]


def local_batches(samples: Counts, batch_size: int) -> Counts:
    """Return the number of steps in an epoch; samples: number of samples, an int or an array."""
    return -(-samples // batch_size)


def smallest_batch(samples: Counts, batch_size: int) -> Counts:
    """Return the size of the smallest batch in an epoch; samples: number of samples, an int or an array."""
    return samples // local_batches(samples, batch_size)


def _draw_moves(count: int, settings: Training, rng: np.random.Generator) -> np.ndarray:
    moves = np.zeros((3, count), dtype=np.int64)
    if settings.flip:
        moves[0] = rng.random(count) < 0.5
    if settings.crop:
        moves[1:] = rng.integers(0, 2 * settings.crop + 1, (2, count))
    return moves


def augment(images: torch.Tensor, settings: Training, moves: torch.Tensor | None) -> torch.Tensor:
    """Mirror and shift images.

    images: float32 (n, C, H, W), on any device. settings: config.training. moves: int64 (3, n) as in `Draws`,
    on the same device; None without augmentation.
    """
    if moves is None:
        return images
    count, channels, height, width = images.shape
    if settings.flip:
        images = torch.where(moves[0].bool()[:, None, None, None], images.flip(3), images)
    if settings.crop:
        padded = F.pad(images, (settings.crop,) * 4, mode="reflect")
        rows, columns = (
            offset[:, None] + torch.arange(size, device=images.device)
            for offset, size in zip(moves[1:], (height, width))
        )
        image, channel = (torch.arange(size, device=images.device) for size in (count, channels))
        images = padded[
            image[:, None, None, None],
            channel[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
    return images


def memory_format(samples: torch.Tensor) -> torch.memory_format:
    """Return the layout of the fastest kernels: for images (n, C, H, W) with the channels last."""
    return torch.channels_last if samples.dim() == 4 else torch.contiguous_format


def on_device(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy an array to `device`: to a GPU through page-locked memory, asynchronously."""
    tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
