"""Hindsight: evaluate other mixes of a round's two models, and other kappa policies.

Everything is evaluated on the test set, in hindsight, and does not affect the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.config.functions import find
from genfl_mpi.federation.policies import mix, needs_of
from genfl_mpi.federation.policies.kappa import KAPPA
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.policies import Policy, ServerState


def find_compared_policies(config: Config) -> dict[str, Policy]:
    """Return the kappa policies that are compared with the run's, by name.

    These are config.hindsight.policies or, by default, all built-in ones whose needs the configuration meets.
    A policy with memory cannot be compared: its memory would follow from its own choices, not from the run's.
    Raises UserError.
    """
    settings = config.hindsight
    is_met = {"validation": config.validation.source != "none", "world": config.world is not None}
    met = {feature for feature in is_met if is_met[feature]}
    found = {name: find(name, KAPPA, "hindsight.policies") for name in settings.policies or KAPPA}
    for name, policy in list(found.items()):
        if missing := sorted(needs_of(policy) - met):
            if settings.policies:
                why = (
                    "which only the run's own policy has"
                    if missing[0] == "memory"
                    else "see docs/policies.md"
                )
                raise UserError(f"hindsight.policies: {name} needs {missing[0]}, {why}")
            del found[name]
    return found


def is_due(config: Config, round: int) -> bool:
    """Return whether a round is evaluated in hindsight. round: starts at 1."""
    every = config.hindsight.every
    return every is not None and round % every == 0


def compare(
    state: ServerState, policy_name: str, kappa2: float, test: Callable[[np.ndarray], tuple[float, float]]
) -> dict[str, np.ndarray]:
    """Return the columns of /hindsight for a round.

    The rows are points of the segment from omega_fl (kappa2 = 0) to omega_a (kappa2 = 1), without a name, and
    then one row a policy. state: the `ServerState` that the run's kappa policy, named `policy_name`, was
    called with; kappa2: its result; test: (float32 weights (size,)) -> (loss, accuracy) on the test set.
    """
    results: dict[float, tuple[float, float]] = {}

    def tested(kappa2: float) -> tuple[float, float]:
        if kappa2 not in results:
            results[kappa2] = test(mix(state, kappa2))
        return results[kappa2]

    others = {
        name: float(policy(state))
        for name, policy in find_compared_policies(state.config).items()
        if name != policy_name
    }
    rows = [(b"", point) for point in np.linspace(0, 1, state.config.hindsight.points)]
    rows += [(name.encode(), chosen) for name, chosen in {policy_name: kappa2, **others}.items()]
    loss, accuracy = np.array([tested(float(point)) for _, point in rows]).T
    return {
        "round": np.full(len(rows), state.round + 1),
        "policy": np.array([name for name, _ in rows], "S64"),
        "kappa2": np.array([point for _, point in rows]),
        "loss": loss,
        "accuracy": accuracy,
        "regret": loss - loss.min(),
    }
