"""The policies that a configuration names, and what they need of it."""

from genfl_mpi.config import functions
from genfl_mpi.federation import algorithms, hindsight
from genfl_mpi.federation.policies import needed
from genfl_mpi.federation.policies.kappa import KAPPA
from genfl_mpi.federation.policies.rho import RHO
from genfl_mpi.federation.policies.selection import SELECTION
from genfl_mpi.generation.plans import PLANS
from genfl_mpi.util.errors import UserError

# Policies, and where they are configured.
POLICIES = {
    "select": "selection.policy",
    "rho": "rho.policy",
    "kappa": "kappa.policy",
    "plan": "generation.plan",
}


def find_policies(config, given=None):
    """The configured select, rho, kappa and plan, or those `given` in their place, as functions by name. Raises UserError, also
    if one needs what the configuration does not have."""
    found = {
        "select": functions.find(config.selection.policy, SELECTION, "selection.policy"),
        "rho": functions.find(config.rho.policy, RHO, "rho.policy"),
        "kappa": functions.find(config.kappa.policy, KAPPA, "kappa.policy"),
        "plan": functions.find(config.generation.plan, PLANS, "generation.plan"),
    } | (given or {})
    for name, policy in found.items():
        what = f"{POLICIES[name]}: {functions.of(policy)}"
        if "validation" in needed(policy) and config.validation.source == "none":
            raise UserError(
                f"{what} tries models on validation data: set validation.source to pool, clients or generated"
            )
        if "world" in needed(policy) and config.world is None:
            raise UserError(
                f"{what} asks what a round would take: set world, to configs/worlds/city.yaml say, or to {{}}"
            )
    if found["select"] is SELECTION["deadline"] and config.world.deadline_s is None:
        raise UserError("selection.policy: deadline needs world.deadline_s")
    if config.hindsight.every:
        hindsight.policies(config)
    return found


def remembering(config):
    """What in this configuration remembers things from round to round, without which a run cannot go on: its name, or None."""
    if algorithms.find(config).remembers(config):
        return f"the server of {config.algorithm.name}"
    asked = {
        "select": config.trains_clients,
        "rho": config.trains_clients,
        "kappa": config.trains_clients and config.augments,
    }
    policies = find_policies(config)
    return next(
        (
            f"the policy of {POLICIES[name]}"
            for name in asked
            if asked[name] and "memory" in needed(policies[name])
        ),
        None,
    )
