"""Settings of privacy: secure aggregation of what the clients send, and client-level differential privacy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from genfl_mpi.config.sections.conditions import SCHEDULED
from genfl_mpi.config.types import Count, Flag, Needs, NonNegative, Number, Positive, Section, Share, as_text

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config

SECURE = Needs(".secure_aggregation=true", lambda _, privacy: privacy.secure_aggregation)
CLIPPED = Needs("privacy.clip", lambda _, privacy: privacy.clip is not None)
ADAPTIVE = Needs("privacy.clip_quantile", lambda _, privacy: privacy.clip_quantile is not None)


class Privacy(Section):
    """Protection of what the clients send to the server."""

    secure_aggregation: Flag = Field(
        False,
        description="mask what each client sends, so that the server learns only the sum; the run is the "
        "same, bit for bit, as without and with rho.over=selected",
    )
    threshold: Annotated[Annotated[Count, Field(ge=2)] | None, SECURE] = Field(
        None,
        description="shares that recover a secret: with fewer surviving clients among its holders a round is "
        "void, and the weights stay; null: more than two thirds of the holders",
    )
    neighbours: Annotated[Annotated[Count, Field(multiple_of=2)] | None, SECURE] = Field(
        None,
        description="clients with which each client shares masks and secrets, drawn in each round (Bell et "
        "al. 2020); null: the whole cohort",
    )

    clip: Positive | None = Field(
        None,
        description="client-level differential privacy: largest Euclidean norm of a client's update; null: "
        "no differential privacy",
    )
    noise_multiplier: Annotated[NonNegative | None, CLIPPED] = Field(
        None,
        description="standard deviation of the noise on the sum of the updates, over the clip; null: what "
        "epsilon needs",
    )
    epsilon: Annotated[Positive | None, CLIPPED] = Field(
        None, description="epsilon after privacy.rounds, from which the noise follows"
    )
    delta: Annotated[Annotated[Number, Field(gt=0, lt=1)] | None, CLIPPED] = Field(
        None, description="delta at which epsilon is reported"
    )
    rounds: Annotated[
        Count | None, Needs("privacy.epsilon", lambda _, privacy: privacy.epsilon is not None)
    ] = Field(None, description="rounds over which epsilon is spent, at least the run's")
    noise: Annotated[Literal["central", "distributed"], CLIPPED] = Field(
        "central",
        description="who adds the noise; central: the server, to the sum; distributed: each client a share, "
        "inside the masked sum",
    )
    clip_quantile: Annotated[Share | None, CLIPPED] = Field(
        None,
        description="adapt the clip to this quantile of the norms (Andrew et al. 2021), beginning with clip; "
        "null: a fixed clip",
    )
    clip_lr: Annotated[Positive, ADAPTIVE] = Field(
        0.2, description="learning rate of the clip's logarithm, per round"
    )
    count_noise: Annotated[Positive | None, ADAPTIVE] = Field(
        None,
        description="standard deviation of the noise on the number of updates within the clip; null: a "
        "twentieth of the cohort",
    )


def combinations(config: Config) -> dict[str, tuple[bool, str]]:
    """Return what needs the clients' single models: {setting: (whether it does, remedy)}."""
    asking = [name for name in config.refinements if name != "fine_tune"]
    return {
        f"defence.name={config.defence.name}": (config.defence.name != "none", "set defence.name=none"),
        f"attack.kind={config.attack.kind}": (config.uses_slices, "choose another attack"),
        f"composition.use={as_text(config.composition.use)}": (bool(asking), f"remove {', '.join(asking)}"),
    }


def check_secure_aggregation(config: Config) -> None:
    """Refuse what needs single clients' models or reports, and thresholds that protect nothing."""
    privacy = config.privacy
    if not privacy.secure_aggregation:
        return
    refused = {
        "rho.over=aggregated": (config.rho.over == "aggregated", "set rho.over=selected"),
        "faults.nonfinite=stop": (config.faults.nonfinite == "stop", "set faults.nonfinite=drop"),
        "audit=true": (config.audit, "set audit=false"),
        "validation.source=clients": (config.validation.source == "clients", "choose another source"),
        f"rho.policy={config.rho.policy}": (config.rho.policy == "loss", "choose another policy"),
        **combinations(config),
        f"selection.policy={config.selection.policy}": (
            config.selection.policy in ("power_of_choice", "oort", "importance"),
            "choose another policy",
        ),
    }
    for setting, (is_set, remedy) in refused.items():
        if is_set:
            raise ValueError(
                f"privacy.secure_aggregation hides single clients from the server, which {setting} "
                f"needs to know; {remedy}"
            )
    holders = 1 + min(config.cohort - 1, privacy.neighbours or config.cohort)
    if privacy.threshold is not None and not holders / 2 < privacy.threshold <= holders:
        raise ValueError(
            f"privacy.threshold ({privacy.threshold}) must be more than half of the {holders} clients "
            f"that hold shares of a secret, and at most all of them; set it to a number from "
            f"{holders // 2 + 1} to {holders}"
        )
    if config.cohort < 2:
        raise ValueError(
            "privacy.secure_aggregation protects nothing with cohort=1, whose sum is the client's model; "
            "increase cohort"
        )


def check_poisson(config: Config) -> None:
    """Refuse what needs a cohort of fixed size."""
    if config.selection.policy == "poisson":
        for setting, is_set in {
            "validation.source=clients": config.validation.source == "clients",
            "incentive.base": config.incentive.base is not None,
            "composition.matched_steps=true": config.matches_steps,
            **{setting: needs for setting, (needs, _) in combinations(config).items()},
        }.items():
            if is_set:
                raise ValueError(
                    f"selection.policy=poisson draws cohorts of varying size, and {setting} needs a "
                    "fixed one; choose another"
                )


def check_differential_privacy(config: Config) -> None:
    """Refuse an incomplete privacy budget, and what its accounting does not cover."""
    privacy, world = config.privacy, config.world
    given = privacy.model_fields_set & {"noise_multiplier", "epsilon", "delta", "rounds", "clip_quantile"}
    if privacy.clip is None:
        if named := sorted(name for name in given if getattr(privacy, name) is not None):
            raise ValueError(f"privacy.{named[0]} needs privacy.clip, which bounds the updates; set it")
        return
    if privacy.delta is None:
        raise ValueError(
            "privacy.clip needs privacy.delta, at which epsilon is reported; set it below 1 / clients"
        )
    if (privacy.noise_multiplier is None) == (privacy.epsilon is None):
        raise ValueError(
            "privacy.clip needs either privacy.noise_multiplier or privacy.epsilon; set one of the two"
        )
    if privacy.epsilon is not None and privacy.rounds is None:
        raise ValueError("privacy.epsilon needs privacy.rounds, over which it is spent; set it")
    if privacy.rounds is not None and config.rounds > privacy.rounds:
        raise ValueError(
            f"rounds ({config.rounds}) exceeds privacy.rounds ({privacy.rounds}), over which epsilon is "
            "spent; reduce it"
        )
    if privacy.noise == "distributed" and not privacy.secure_aggregation:
        raise ValueError(
            "privacy.noise=distributed hides a client among others only in a masked sum; set "
            "privacy.secure_aggregation=true"
        )
    if privacy.noise == "distributed" and privacy.clip_quantile is not None:
        raise ValueError(
            "privacy.clip_quantile adds the server's noise to a count, and privacy.noise=distributed has "
            "no noise of the server; remove one of them"
        )
    validated = ("softmax_accuracy", "softmax_loss", "line_search", "bandit", "shapley")
    safe_kappas = ("fixed", *SCHEDULED, "alignment", *validated)
    enforced = world is not None and world.enforced
    refused = {
        f"rho.policy={config.rho.policy}": (config.rho.policy != "uniform", "set rho.policy=uniform"),
        "faults.nonfinite=stop": (config.faults.nonfinite == "stop", "set faults.nonfinite=drop"),
        f"selection.policy={config.selection.policy}": (
            config.selection.policy not in ("poisson", "random"),
            "set selection.policy=poisson or random",
        ),
        "validation.source=clients": (config.validation.source == "clients", "choose another source"),
        f"kappa.policy={config.kappa.policy}": (
            config.augments and config.kappa.policy not in safe_kappas,
            f"choose one of {', '.join(safe_kappas)}",
        ),
        "generation.plan=cohort_deficit": (
            config.generation.plan == "cohort_deficit",
            "choose another plan",
        ),
        "composition.matched_steps=true": (config.matches_steps, "choose another method"),
        "calibration.moments=clients": (
            config.calibration.every is not None and config.calibration.moments != "images",
            "set calibration.moments=images",
        ),
        **combinations(config),
        "incentive.base": (config.incentive.base is not None, "remove it"),
        "world.deadline_s": (
            enforced and world is not None and world.deadline_s is not None,
            "remove it, or set world.enforced=false",
        ),
        "world.channel.waterfall": (
            enforced and world is not None and world.channel.waterfall > 0,
            "set it to 0",
        ),
    }
    for setting, (is_set, remedy) in refused.items():
        if is_set:
            raise ValueError(
                f"{setting} lets a client's data or presence act on more than its own clipped update, "
                f"which privacy.clip does not account for; {remedy}"
            )
