"""Sections of settings for clients that attack, and for the server's defence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from genfl_mpi.config.composition import because
from genfl_mpi.config.types import Count, Natural, Needs, Number, Positive, Section, Share, needs

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config

CRAFTED = ("alie", "inner_product")  # attacks that use the other members' models
ATTACKERS = Needs("attack.share above 0", lambda _, attack: attack.share > 0)


class Attack(Section):
    """Clients that attack the global model."""

    share: Share = Field(0.0, description="share of the clients that attack, drawn once")
    kind: Annotated[
        Literal["label_flip", "sign_flip", "gaussian", "alie", "inner_product", "backdoor"], ATTACKERS
    ] = Field(
        "sign_flip",
        description="what they do; label_flip: train with label C - 1 - y instead of y; sign_flip: send the "
        "reversed update, times `scale`; gaussian: send omega^t plus noise; alie: send the other members' "
        "mean minus `z` standard deviations, coordinate by coordinate (Baruch et al. 2019); inner_product: "
        "send the reversed mean update of the other members, times `scale` (Xie et al. 2019); backdoor: "
        "train part of the samples with a trigger and the label `target`",
    )
    scale: Annotated[Positive, needs("kind", "sign_flip", "inner_product", own=False)] = Field(
        5.0, description="sign_flip, inner_product: factor of the reversed update"
    )
    sigma: Annotated[Positive, needs("kind", "gaussian", own=False)] = Field(
        0.1, description="gaussian: standard deviation of the noise on each parameter"
    )
    z: Annotated[Number, needs("kind", "alie", own=False)] = Field(
        1.5, description="alie: standard deviations between the mean and what the attackers send"
    )
    target: Annotated[Natural, needs("kind", "backdoor", own=False)] = Field(
        0, description="backdoor: number of the class that images with the trigger should get"
    )
    trigger: Annotated[Count, needs("kind", "backdoor", own=False)] = Field(
        3, description="backdoor: side of the white square in the lower right corner, pixels"
    )
    poisoned: Annotated[Share, needs("kind", "backdoor", own=False)] = Field(
        0.5, description="backdoor: share of an attacker's samples that get the trigger"
    )
    boost: Annotated[Positive, needs("kind", "backdoor", own=False)] = Field(
        1.0, description="backdoor: factor of the attackers' updates (model replacement)"
    )


class Defence(Section):
    """How the server defends the global model against attacks."""

    name: Literal[
        "none",
        "norm_clipping",
        "centred_clipping",
        "median",
        "trimmed_mean",
        "krum",
        "multi_krum",
        "geometric_median",
        "fltrust",
    ] = Field(
        "none",
        description="robust aggregation; none: the mean, weighted by rho; norm_clipping: mean of updates "
        "scaled down to `norm`; centred_clipping: the same around the result, in `iterations` (Karimireddy "
        "et al. 2021); median: of each coordinate (Yin et al. 2018); trimmed_mean: mean of each coordinate "
        "without the share's largest and smallest values (Yin et al. 2018); krum: the model closest to its "
        "neighbours (Blanchard et al. 2017); multi_krum: the mean of the closest models; geometric_median: "
        "RFA (Pillutla et al. 2022); fltrust: mean of the updates that agree with the augmented model's "
        "(Cao et al. 2021)",
    )
    share: Annotated[
        Annotated[Number, Field(ge=0, lt=0.5)], needs("name", "trimmed_mean", "krum", "multi_krum", own=False)
    ] = Field(0.2, description="share of the cohort that is assumed to attack; rounded up to clients")
    norm: Annotated[Positive | None, needs("name", "norm_clipping", "centred_clipping", own=False)] = Field(
        None, description="largest norm of an update; null: the median of the cohort's norms"
    )
    iterations: Annotated[Count, needs("name", "centred_clipping", own=False)] = Field(
        3, description="times that the centre is moved, beginning at omega^t"
    )


def uses_slices(attack: Attack, defence: Defence) -> bool:
    """Return whether the cohort's models are combined coordinate by coordinate, not summed."""
    return defence.name != "none" or (attack.share > 0 and attack.kind in CRAFTED)


def assumed_attackers(defence: Defence, members: int) -> int:
    """Return how many of a cohort's members the defence assumes to attack, rounded up."""
    return math.ceil(defence.share * members - 1e-9)  # 0.2 * 15 is 3.0000000000000004


def check_defence(config: Config) -> None:
    """Refuse a defence that the cohort is too small for, or that has no root of trust."""
    name, cohort, assumed = (
        config.defence.name,
        config.cohort,
        assumed_attackers(config.defence, config.cohort),
    )
    if name == "trimmed_mean" and cohort <= 2 * assumed:
        raise ValueError(
            f"defence.share={config.defence.share:g} trims all of a cohort of {cohort}: {assumed} on each "
            "side; reduce it, or enlarge cohort"
        )
    if name in ("krum", "multi_krum") and cohort < assumed + 3:
        raise ValueError(
            f"defence.name={name} needs a cohort of at least {assumed + 3}, 3 more than the {assumed} of "
            "defence.share; enlarge cohort, or reduce the share"
        )
    if name == "fltrust" and not config.augments:
        raise ValueError(
            "defence.name=fltrust compares the clients with the augmented model, and "
            f"{because(config, 'images')} has none; set method=genfl, or method=pool for real images"
        )
