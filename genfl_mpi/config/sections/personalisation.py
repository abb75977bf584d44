"""Section of settings for personal models of the clients."""

from typing import Annotated, Literal

from pydantic import Field

from genfl_mpi.config.types import Count, Epochs, Natural, Needs, NonNegative, Section, needs

EVALUATED = Needs("personal.method other than none", lambda _, personal: personal.method != "none")
SPLIT = ("fedper", "fedrep")  # methods whose clients keep the last layers


class Personal(Section):
    """Personal models of the clients, and their local accuracy."""

    method: Literal["none", "global", "finetune", "fedper", "fedrep", "ditto"] = Field(
        "none",
        description="how a client gets its model; none: no evaluation at the clients; global: all use the "
        "global model; finetune: each trains the global model on its data before it is evaluated; fedper: "
        "the last `layers` stay at the client (Arivazhagan et al. 2019); fedrep: as fedper, and a client "
        "trains these for `epochs` before the others (Collins et al. 2021); ditto: each also trains a model "
        "that a proximal term pulls to the global one (Li et al. 2021)",
    )
    layers: Annotated[Natural, needs("method", *SPLIT, own=False)] = Field(
        1, description="fedper, fedrep: last layers with parameters, which stay at the client; 0: none"
    )
    epochs: Annotated[Epochs, needs("method", "finetune", "fedrep", "ditto", own=False)] = Field(
        5,
        description="finetune: passes before an evaluation; fedrep: passes over the last layers; ditto: "
        "passes for the personal model",
    )
    pull: Annotated[NonNegative, needs("method", "ditto", own=False)] = Field(
        0.1, description="ditto: weight lambda of half the squared distance to the global model"
    )
    every: Annotated[Count, EVALUATED] = Field(
        5, description="rounds between two evaluations of all clients, into /personal"
    )

    @property
    def keeps_state(self) -> bool:
        """Whether clients keep a part of a model between rounds."""
        return self.method == "ditto" or (self.method in SPLIT and self.layers > 0)
