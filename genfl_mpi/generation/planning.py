"""Which labels to generate in a round, and how many images of each."""

import numpy as np


def equal(state):
    """Every label that a client shared, equally: per_round images of each, until there are cap.

    A plan returns the number of images of each class, int64 (classes,); or None if it cannot tell yet, because it
    depends on a cohort that is not chosen.
    """
    settings = state.config.generation
    wanted = np.minimum(settings.per_round, settings.cap - state.generated)
    return np.where(state.label_histograms.any(0), np.maximum(wanted, 0), 0)


PLANS = {"equal": equal}
