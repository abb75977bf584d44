"""Exact moments of features by class: they have the same bits in any order of the summands.

A summand is rounded to multiples of 2^-24, and added as 64-bit integers. Of the products of features only
the upper triangle is kept.
"""

from __future__ import annotations

import numpy as np

FRACTION_BITS = 24
LIMIT = 2.0 ** (62 - FRACTION_BITS)


class ClassMoments:
    """Count, sum and sum of products of features for each class.

    units: int64, all of them one after another, so that they can be summed over ranks.
    """

    def __init__(self, classes: int, width: int) -> None:
        self.width, self.upper = width, np.triu_indices(width)
        self.units = np.zeros((classes, 1 + width + len(self.upper[0])), dtype=np.int64)

    def add(self, features: np.ndarray, labels: np.ndarray, parts: int) -> None:
        """Add the samples of one of at most `parts` contributors, as one summand.

        features: float (n, width); labels: int (n,). Raises FloatingPointError if the sum might overflow.
        """
        for label in np.unique(labels):
            mine = features[labels == label].astype(np.float64)
            values = np.concatenate([mine.sum(0), (mine.T @ mine)[self.upper]])
            if not np.abs(values).max() < LIMIT / parts:  # written so that NaN fails, too
                raise FloatingPointError(
                    f"the features are not finite or too large for their moments: {np.abs(values).max():g}; "
                    "a smaller learning rate may help"
                )
            self.units[label, 0] += len(mine)
            self.units[label, 1:] += np.rint(values * 2.0**FRACTION_BITS).astype(np.int64)

    def gaussians(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Return {class: (mean (width,), covariance (width, width))} of classes with at least 2 samples."""
        found = {}
        for label, (count, *_) in enumerate(self.units.tolist()):
            if count > 1:
                values = self.units[label, 1:] * 2.0**-FRACTION_BITS
                mean, product = values[: self.width] / count, np.empty((self.width, self.width))
                product[self.upper] = values[self.width :]
                product.T[self.upper] = values[self.width :]
                found[label] = mean, (product - count * np.outer(mean, mean)) / (count - 1)
        return found


def draw_features(
    mean: np.ndarray, covariance: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw `count` vectors of a normal distribution, float64 (count, width)."""
    values, vectors = np.linalg.eigh(covariance)
    spread = vectors * np.sqrt(np.maximum(values, 0))  # rounding may leave them slightly negative
    return mean + rng.standard_normal((count, len(mean))) @ spread.T
