"""Which labels to generate in a round, and how many images of each.

A plan is a function (state) -> int (classes,), images of each class to be made in the round; or None if it cannot tell
yet, because it depends on a cohort that is not chosen. `state` is a `ServerState`.
"""

import numpy as np


def equal(state):
    """Every label that a client shared, equally."""
    return _divide(state, (state.shared_labels > 0).any(0))


def inverse_frequency(state):
    """q_c proportional to 1 / (m_c + 1), with m_c the clients' samples of label c, as shared."""
    return _divide(state, 1 / (state.shared_labels.sum(0) + 1))


def deficit(state):
    """q_c proportional to max_j m_j - m_c: what the labels lack to be as many as the commonest."""
    return _divide(state, _lack(state.shared_labels))


def cohort_deficit(state):
    """The deficit of this round's cohort."""
    return None if state.cohort is None else _divide(state, _lack(state.shared_labels[state.cohort]))


def _lack(shared):
    counts = shared.sum(0)
    return counts.max() - counts


def _divide(state, shares):
    """The round's images in proportion to `shares`; equally if all shares are zero. What the division leaves goes to the labels that
    are the furthest behind their share of all images, with the round's.

    With count=class the round makes per_round images for each class with a share, and no class gets more than cap; with
    count=total per_round and cap are of all classes together.
    """
    settings = state.config.generation
    shares = np.asarray(shares, dtype=np.float64)
    if not shares.any():
        shares = np.ones_like(shares)
    if settings.count == "class":
        images, room = settings.per_round * np.count_nonzero(shares), settings.cap - state.generated
    else:
        images = min(settings.per_round, settings.cap - state.generated.sum())
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
