"""Settings of privacy: secure aggregation of what the clients send."""

from typing import Annotated

from pydantic import Field

from genfl_mpi.config.types import Count, Flag, Needs, Section

SECURE = Needs(".secure_aggregation=true", lambda _, privacy: privacy.secure_aggregation)


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
