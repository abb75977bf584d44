"""Look up the configured policies, and check that the configuration meets their needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from genfl_mpi.config import functions
from genfl_mpi.federation import algorithms, differential_privacy, hindsight, transforms
from genfl_mpi.federation.policies import needs_of
from genfl_mpi.federation.policies.kappa import KAPPA
from genfl_mpi.federation.policies.rho import RHO
from genfl_mpi.federation.policies.selection import SELECTION
from genfl_mpi.generation.plans import PLANS
from genfl_mpi.privacy import masks
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config

# Policies, and the settings that name them.
POLICIES = {
    "select": "selection.policy",
    "rho": "rho.policy",
    "kappa": "kappa.policy",
    "plan": "generation.plan",
}


def find_policies(
    config: Config, given: dict[str, Callable[..., Any]] | None = None
) -> dict[str, Callable[..., Any]]:
    """Return the configured select, rho, kappa and plan policies by name. `given` policies replace them.

    Raises UserError if a policy is unknown, or needs what the configuration does not have.
    """
    found = {
        "select": functions.find(config.selection.policy, SELECTION, "selection.policy"),
        "rho": functions.find(config.rho.policy, RHO, "rho.policy"),
        "kappa": functions.find(config.kappa.policy, KAPPA, "kappa.policy"),
        "plan": functions.find(config.generation.plan, PLANS, "generation.plan"),
    } | (given or {})
    for name, policy in (given or {}).items():
        parameters = functions.USER_FUNCTIONS[POLICIES[name]].parameters
        functions.check_signature(policy, parameters, f"{name}: {functions.name_of(policy)}")
    _check_policies(config, found)
    _check_algorithm(config)
    if config.hindsight.every:
        hindsight.find_compared_policies(config)
    return found


def _check_policies(config: Config, found: dict[str, Callable[..., Any]]) -> None:
    """Raise UserError if a policy needs what the configuration does not have."""
    for name, policy in found.items():
        what = f"{POLICIES[name]}: {functions.name_of(policy)}"
        if "validation" in needs_of(policy) and config.validation.source == "none":
            raise UserError(
                f"{what} needs validation data; set validation.source to pool, clients or generated"
            )
        if "world" in needs_of(policy) and config.world is None:
            raise UserError(
                f"{what} needs a world; set world=configs/worlds/city.yaml, or world={{}} for the "
                "default world"
            )
    if found["select"] is SELECTION["deadline"] and (config.world is None or config.world.deadline_s is None):
        raise UserError("selection.policy: deadline needs world.deadline_s")
    if "models" in needs_of(found["rho"]):
        what = f"rho.policy: {functions.name_of(found['rho'])}"
        if config.rho.over == "selected":
            raise UserError(
                f"{what} weighs trained models, and with rho.over=selected the weights are fixed before "
                "training; choose another policy"
            )
        if config.selection.policy == "poisson":
            raise UserError(
                f"{what} needs cohorts of a fixed size; choose another policy, or selection.policy=random"
            )
        if config.time.driver == "tiers":
            raise UserError(
                f"{what} weighs trained models, and with time.driver=tiers those of a cell are averaged at "
                "its edge server; choose another policy"
            )
    if config.time.driver != "synchronous" and needs_of(found["kappa"]):
        name, lacks = functions.name_of(found["kappa"]), ", ".join(sorted(needs_of(found["kappa"])))
        raise UserError(
            f"kappa.policy: {name} needs {lacks}, which only time.driver=synchronous has; choose another one"
        )


def _check_algorithm(config: Config) -> None:
    """Raise UserError if the algorithm does not fit the clients' protection, or a package is missing."""
    if config.privacy.clip is not None:
        differential_privacy.check(config)
    if config.privacy.secure_aggregation:
        masks.check_installed()
    if algorithms.find(config).asks(config) is not None:
        for setting, is_set in {
            "privacy.secure_aggregation": config.privacy.secure_aggregation,
            "privacy.clip": config.privacy.clip is not None,
            "selection.policy=poisson": config.selection.policy == "poisson",
        }.items():
            if is_set:
                raise UserError(
                    f"algorithm.name={config.algorithm.name} asks the clients' single models, which "
                    f"{setting} does not allow; choose another algorithm"
                )


def find_memory(config: Config) -> str | None:
    """Return the name of a part with memory between rounds, which a resumed run needs, or None."""
    if algorithms.find(config).has_memory(config):
        return f"the server of {config.algorithm.name}"
    if config.personal.keeps_state:
        return f"the clients' models of personal.method={config.personal.method}"
    if config.privacy.clip is not None:
        return "the privacy account"
    if config.time.driver != "synchronous":
        return f"time.driver={config.time.driver}"
    if transforms.client_arrays(config, 1):
        return f"the transform {config.transforms[-1]}"
    is_called = {
        "select": config.trains_clients,
        "rho": config.trains_clients,
        "kappa": config.trains_clients and config.augments,
    }
    policies = find_policies(config)
    return next(
        (
            f"the policy of {POLICIES[name]}"
            for name in is_called
            if is_called[name] and "memory" in needs_of(policies[name])
        ),
        None,
    )
