"""Sections of the server's decisions: selection, rho, kappa, and data to validate them."""

from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from genfl_mpi.config.sections.conditions import SCHEDULED, needs_policy
from genfl_mpi.config.types import Count, NonNegative, Number, Positive, Section, Share, needs


class Kappa(Section):
    """Weights in Eq. (1): kappa1 of the federated model, kappa2 of the augmented model."""

    policy: str = Field("fixed", description="policy that returns kappa2 for each round")
    kappa1: Annotated[Share, needs_policy("fixed", *SCHEDULED, "catch_up", "cost_aware", "shapley")] = Field(
        0.8, description="weight of the federated model; must be 1 - kappa2"
    )
    kappa2: Annotated[Share, needs_policy("fixed", *SCHEDULED, "catch_up", "cost_aware", "shapley")] = Field(
        0.2, description="weight of the augmented model; setting one of the two is enough"
    )
    end: Annotated[Share, needs_policy(*SCHEDULED)] = Field(
        0.0, description="linear, cosine, exponential, step: final value of kappa2"
    )
    horizon: Annotated[Count, needs_policy("linear", "cosine")] = Field(
        30, description="linear, cosine: rounds until the final value"
    )
    decay: Annotated[Number, Field(gt=0, le=1), needs_policy("exponential", "step")] = Field(
        0.9,
        description="exponential: factor per round of the distance from the final value; "
        "step: factor per `period` rounds",
    )
    period: Annotated[Count, needs_policy("step")] = Field(10, description="step: rounds between two steps")
    quality: Annotated[NonNegative, needs_policy("amount")] = Field(
        1.0, description="amount: number of real samples that a generated image is worth"
    )
    theta: Annotated[NonNegative, needs_policy("bias_optimal")] = Field(
        0.04,
        description="bias_optimal: the generator's error relative to the error by label skew, as measured by "
        "the command `quality`",
    )
    temperature: Annotated[Positive, needs_policy("softmax_accuracy", "softmax_loss")] = Field(
        0.1,
        description="softmax_accuracy, softmax_loss: difference that weights one model e times the other",
    )
    power: Annotated[NonNegative, needs_policy("catch_up")] = Field(
        2.0, description="catch_up: exponent of the ratio of the two models' losses"
    )
    grid: Annotated[list[Share], needs_policy("line_search", "bandit")] = Field(
        [0.0, 0.1, 0.2, 0.4, 0.7, 1.0],
        min_length=1,
        description="line_search, bandit: candidate values of kappa2",
    )

    @model_validator(mode="before")
    @classmethod
    def complete(cls, values: Any) -> Any:
        """Derive a kappa that is not given from the other one."""
        if isinstance(values, dict) and ("kappa1" in values) != ("kappa2" in values):
            given, other = ("kappa1", "kappa2") if "kappa1" in values else ("kappa2", "kappa1")
            # The check of the given field, not of the derived one, reports a wrong type or range.
            with suppress(TypeError, ValueError, OverflowError):
                if 0 <= float(values[given]) <= 1:
                    values = {**values, other: round(1 - float(values[given]), 12)}
        return values

    @model_validator(mode="after")
    def check_sum(self) -> "Kappa":
        """Refuse weights that do not sum to 1."""
        if abs(self.kappa1 + self.kappa2 - 1) > 1e-9:
            raise ValueError(
                f"kappa.kappa1 + kappa.kappa2 must be 1, but {self.kappa1:g} + {self.kappa2:g} is "
                f"{self.kappa1 + self.kappa2:g}; set only one of them"
            )
        return self


class Rho(Section):
    """The clients' weights rho_n in Eq. (1)."""

    policy: str = Field("size", description="policy that returns the weights of the cohort")
    over: Literal["aggregated", "selected"] = Field(
        "aggregated",
        description="clients whose weights add up to 1; aggregated: those that a simulated world lets "
        "report; selected: all that begin the round; the server divides by the sum over those that report",
    )

    gamma: Annotated[NonNegative, needs("policy", "quality")] = Field(
        1.0, description="quality: exponent of 1 - EMD / 2"
    )
    power: Annotated[Number, needs("policy", "loss")] = Field(
        -1.0,
        description="loss: exponent of a client's loss; above 0, clients with a large loss get more weight",
    )
    alpha: Annotated[NonNegative, needs("policy", "similarity")] = Field(
        5.0, description="similarity: influence of the angle between a client's update and the mean update"
    )
    permutations: Annotated[Count, needs("policy", "shapley")] = Field(
        10, description="shapley: random orders in which the clients join"
    )


class Selection(Section):
    """How the cohort is selected."""

    policy: str = Field("random", description="policy that returns the cohort")

    candidates: Annotated[
        Count | None,
        needs("policy", "label_cover", "deadline", "power_of_choice", "oort", "sojourn", "energy", "battery"),
    ] = Field(
        None,
        description="number of clients drawn at random, from which the policy selects the cohort; null: all",
    )
    exploration: Annotated[Share, needs("policy", "oort")] = Field(
        0.3, description="oort: share of the cohort reserved for clients that have never trained"
    )
    penalty: Annotated[NonNegative, needs("policy", "oort")] = Field(
        2.0, description="oort: exponent of (preferred time / client's time) for slower clients"
    )


class Validation(Section):
    """Data on which policies evaluate models."""

    source: Literal["none", "pool", "clients", "generated"] = Field(
        "none",
        description="where the data are; none: no validation; pool: real images at the server, its public "
        "pool; clients: the cohort's private data, of which each client reports loss and accuracy; "
        "generated: the augmented model's training images",
    )
    samples: Annotated[Count, needs("source", "pool", "generated")] = Field(
        500, description="maximum number of pool or generated images, taken at regular intervals"
    )
