"""How loggers and exports group the columns of /rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

TAGS = {
    "accuracy": "test/accuracy",
    "loss": "test/loss",
    "train_accuracy": "train/accuracy",
    "train_loss": "train/loss",
    "augmented_loss": "train/augmented_loss",
}  # other columns are grouped by the last word of their name


def scalars(row: Mapping[str, Any], classes: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Yield (tag, value) of each number in a row of /rounds; a value per class has the class in its tag."""
    for name, value in row.items():
        array = np.asarray(value)
        if array.dtype.kind not in "iufb":
            continue
        if array.ndim == 1:
            yield from ((f"{name}/{one}", float(each)) for one, each in zip(classes, array))
        elif array.ndim == 0:
            yield TAGS.get(name) or _tag(name), float(array)


def _tag(name: str) -> str:
    kind = name.rpartition("_")[2]
    return f"{kind}/{name}" if kind in ("seconds", "bytes", "cosine") else f"round/{name}"
