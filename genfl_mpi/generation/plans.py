"""Plan which labels to generate in a round, and how many images of each.

A plan is a function (state) -> int (classes,), the images of each class to generate in the round. It returns
None if it depends on a cohort that is not selected yet. `state` is a `ServerState`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config


class State(Protocol):
    """The fields of `ServerState` that plans read."""

    @property
    def config(self) -> Config: ...
    @property
    def shared_labels(self) -> np.ndarray: ...
    @property
    def generated(self) -> np.ndarray: ...
    @property
    def cohort(self) -> np.ndarray | None: ...


def equal(state: State) -> np.ndarray:
    """Divide the images equally among all labels that a client shared."""
    return _divide(state, np.any(state.shared_labels > 0, axis=0))


def inverse_frequency(state: State) -> np.ndarray:
    """Divide the images in proportion to 1 / (m_c + 1), with m_c the shared samples of label c."""
    return _divide(state, 1 / (state.shared_labels.sum(0) + 1))


def deficit(state: State) -> np.ndarray:
    """Divide the images in proportion to max_j m_j - m_c, each label's gap to the most frequent one."""
    return _divide(state, _gaps(state.shared_labels))


def cohort_deficit(state: State) -> np.ndarray | None:
    """Divide the images by the deficit of this round's cohort; None before it is selected."""
    return None if state.cohort is None else _divide(state, _gaps(state.shared_labels[state.cohort]))


def _gaps(shared: np.ndarray) -> np.ndarray:
    """Return max_j m_j - m_c for shared labels (clients, classes)."""
    counts = shared.sum(0)
    return counts.max() - counts


def _divide(state: State, shares: np.ndarray) -> np.ndarray:
    """Divide the round's images in proportion to `shares`, equally if all shares are zero.

    The remainder of the division goes to the labels that are furthest behind their share of all images, this
    round's included. With count=class the round has per_round images for each class with a share, and at most
    cap for any class; with count=total per_round and cap apply to all classes together.
    """
    settings = state.config.generation
    shares = np.asarray(shares, dtype=np.float64)
    if not shares.any():
        shares = np.ones_like(shares)
    if settings.count == "class":
        images, room = settings.per_round * int(np.count_nonzero(shares)), settings.cap - state.generated
    else:
        images = min(settings.per_round, settings.cap - int(state.generated.sum()))
        room = np.full(len(shares), images)
    exact = max(images, 0) * shares / shares.sum()
    counts = np.floor(exact).astype(np.int64)
    left = round(exact.sum()) - counts.sum()
    behind = (state.generated.sum() + max(images, 0)) * shares / shares.sum() - state.generated - counts
    counts[np.argsort(np.where(shares > 0, -behind, np.inf), kind="stable")[:left]] += 1
    return np.clip(counts, 0, np.maximum(room, 0))


PLANS = {
    "equal": equal,
    "inverse_frequency": inverse_frequency,
    "deficit": deficit,
    "cohort_deficit": cohort_deficit,
}
