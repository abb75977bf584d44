"""Settings of privacy: secure aggregation of what the clients send, and client-level differential privacy."""

from typing import Annotated, Literal

from pydantic import Field

from genfl_mpi.config.types import Count, Flag, Needs, NonNegative, Number, Positive, Section, Share

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
