"""kappa policies that evaluate models on the validation data set by config.validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.federation.policies import mix, needs

if TYPE_CHECKING:
    from genfl_mpi.federation.policies import Policy, ServerState

MIN_JOULES = 1e-9  # a world's powers may be 0


@needs("validation")
def softmax_accuracy(state: ServerState) -> float:
    """Return the augmented model's share in a softmax of both models' accuracies over kappa.temperature."""
    return _softmax(state, state.judge(state.augmented_weights)[1] - state.judge(state.fl_weights)[1])


@needs("validation")
def softmax_loss(state: ServerState) -> float:
    """Return the augmented model's share in a softmax of both negative losses over kappa.temperature."""
    return _softmax(state, state.judge(state.fl_weights)[0] - state.judge(state.augmented_weights)[0])


@needs("validation")
def catch_up(state: ServerState) -> float:
    """Reduce kappa2 as the clients' average catches up: kappa2 min(1, L_fl / L_a)^kappa.power.

    L_fl, L_a: losses of the clients' average and of the augmented model. Until the average has the lower
    loss, kappa2 stays as configured.
    """
    fl, augmented = (state.judge(weights)[0] for weights in (state.fl_weights, state.augmented_weights))
    settings = state.config.kappa
    return settings.kappa2 * (min(1.0, fl / augmented) if augmented else 1.0) ** settings.power


@needs("validation")
def line_search(state: ServerState) -> float:
    """Return the kappa2 of kappa.grid with the lowest loss of the mixed model."""
    grid = state.config.kappa.grid
    return grid[int(np.argmin([state.judge(mix(state, kappa2))[0] for kappa2 in grid]))]


@needs("validation", "memory")
def bandit(state: ServerState) -> float:
    """Choose kappa2 from kappa.grid by UCB1 (Auer et al. 2002).

    The reward of an arm is the decrease of the loss in the round that used it, divided by the largest change
    so far. A round does not count if the policy is not called in the round after it.
    """
    grid, memory, loss = np.array(state.config.kappa.grid), state.memory, state.judge(state.weights)[0]
    if not np.array_equal(memory.get("grid", ()), grid):  # also true when a run is forked with another grid
        memory |= {
            "grid": grid,
            "plays": np.zeros(len(grid)),
            "rewards": np.zeros(len(grid)),
            "largest": np.zeros(1),
        }
    elif memory["last"][2] == state.round - 1:
        arm, before = int(memory["last"][0]), memory["last"][1]
        memory["plays"][arm] += 1
        memory["rewards"][arm] += before - loss
        memory["largest"][0] = max(memory["largest"][0], abs(before - loss))
    plays = memory["plays"]
    if not plays.all():
        arm = int(plays.argmin())
    else:
        mean = memory["rewards"] / plays / (memory["largest"][0] or 1.0)
        arm = int(np.argmax(mean + np.sqrt(2 * np.log(plays.sum()) / plays)))
    memory["last"] = np.array([arm, loss, state.round])
    return grid[arm]


@needs("validation", "world")
def cost_aware(state: ServerState) -> float:
    """Weight each model by its decrease of the loss per joule.

    Joules are those of the clients' training and sending, and of the server's generation and training.
    Returns the configured kappa2 if neither model decreases the loss.
    """
    before = state.judge(state.weights)[0]
    gain_fl, gain_a = (
        max(0.0, before - state.judge(weights)[0]) for weights in (state.fl_weights, state.augmented_weights)
    )
    fl = gain_fl / max(MIN_JOULES, state.forecast.joules[state.cohort].sum())
    augmented = gain_a / max(MIN_JOULES, state.forecast.augmented_joules)
    return augmented / (fl + augmented) if fl + augmented else state.config.kappa.kappa2


@needs("validation")
def shapley(state: ServerState) -> float:
    """Return the augmented model's share of both models' Shapley values in lowering the loss.

    The coalition of both is their mix by the configured kappa2, which is also the result if neither value is
    positive.
    """
    before = state.judge(state.weights)[0]
    fl, augmented, both = (
        before - state.judge(weights)[0]
        for weights in (state.fl_weights, state.augmented_weights, mix(state, state.config.kappa.kappa2))
    )
    value_fl, value_a = (
        max(0.0, (alone + both - other) / 2) for alone, other in ((fl, augmented), (augmented, fl))
    )
    return value_a / (value_fl + value_a) if value_fl + value_a else state.config.kappa.kappa2


def _softmax(state: ServerState, lead: float) -> float:
    return 1 / (1 + np.exp(np.clip(-lead / state.config.kappa.temperature, -700, 700)))


KAPPA: dict[str, Policy] = {
    "softmax_accuracy": softmax_accuracy,
    "softmax_loss": softmax_loss,
    "line_search": line_search,
    "bandit": bandit,
    "catch_up": catch_up,
    "cost_aware": cost_aware,
    "shapley": shapley,
}
