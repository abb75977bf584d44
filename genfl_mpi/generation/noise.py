"""Images of noise, a control: generation.checkpoint=genfl_mpi.generation.noise:noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from genfl_mpi.generation.bank import Batch


def noise(batch: Batch, shape: tuple[int, int, int]) -> np.ndarray:
    """Draw uniform pixels, whatever the label: uint8 (n, C, H, W). shape: (C, H, W)."""
    return np.stack(
        [np.random.Generator(np.random.Philox(seed)).integers(0, 256, shape, np.uint8) for seed in batch.seed]
    )
