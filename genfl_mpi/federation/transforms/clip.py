"""Norm clipping of the clients' updates (McMahan et al. 2018, Sun et al. 2019).

    omega_n <- omega^t + (omega_n - omega^t) min(1, S / |omega_n - omega^t|)        S: clipping.norm

The norm is the Euclidean norm over all parameters. An update within the bound is returned unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.learning.geometry import distance

if TYPE_CHECKING:
    import torch

    from genfl_mpi.federation.transforms.chain import Sender


def clip(trained: torch.Tensor, omega: torch.Tensor, client: Sender) -> torch.Tensor:
    """Scale the update down to the norm `clipping.norm`, if it is longer."""
    bound, norm = client.settings.clipping.norm, distance(trained, omega, len(trained))
    return trained if norm <= bound else omega + (trained - omega) * (bound / norm)
