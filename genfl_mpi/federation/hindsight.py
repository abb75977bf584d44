"""The kappa laboratory: what else a round's two models could have been made into, and what each kappa policy would have lost.

Everything is tried on the test set, in hindsight, and nothing of it reaches the run.
"""

import numpy as np

from genfl_mpi.config.functions import find
from genfl_mpi.federation.policies import mixed, needed
from genfl_mpi.federation.policies.kappa import KAPPA
from genfl_mpi.util.errors import UserError


def policies(config):
    """The kappa policies, by name, that are asked beside the run's own: config.hindsight.policies, or all of ours for which
    the configuration has what they need. A policy that remembers cannot be asked: what it did on another way is not what
    happened on the run's. Raises UserError."""
    settings = config.hindsight
    has = {"validation": config.validation.source != "none", "world": config.world is not None}
    there = {word for word in has if has[word]}
    found = {name: find(name, KAPPA, "hindsight.policies") for name in settings.policies or KAPPA}
    for name, policy in list(found.items()):
        if missing := sorted(needed(policy) - there):
            if settings.policies:
                why = (
                    "which only the run's own policy has"
                    if missing[0] == "memory"
                    else "see docs/policies.md"
                )
                raise UserError(f"hindsight.policies: {name} needs {missing[0]}, {why}")
            del found[name]
    return found


def is_due(config, round):
    """Whether the laboratory looks at a round, of which the first is 1."""
    every = config.hindsight.every
    return every is not None and round % every == 0


def look(state, own, kappa2, test):
    """Columns of /hindsight for a round: arrays, a row for each point of the segment from omega_fl (kappa2 = 0) to omega_a
    (kappa2 = 1), with no name, and then for each policy.

    state: the `ServerState` of which the kappa policy, called `own`, was asked; kappa2: what it said; test: (float32 weights
    (size,)) -> (loss, accuracy) on the test set.
    """
    config, tried = state.config, {}

    def measured(kappa2):
        if kappa2 not in tried:
            tried[kappa2] = test(mixed(state, kappa2))
        return tried[kappa2]

    asked = {name: float(policy(state)) for name, policy in policies(config).items() if name != own}
    rows = [(b"", point) for point in np.linspace(0, 1, config.hindsight.points)]
    rows += [(name.encode(), chosen) for name, chosen in {own: kappa2, **asked}.items()]
    loss, accuracy = np.array([measured(float(point)) for _, point in rows]).T
    return {
        "round": np.full(len(rows), state.round + 1),
        "policy": np.array([name for name, _ in rows], "S64"),
        "kappa2": np.array([point for _, point in rows]),
        "loss": loss,
        "accuracy": accuracy,
        "regret": loss - loss.min(),
    }
