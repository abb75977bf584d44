"""What the steps of a round are: named compositions, and their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from genfl_mpi.config.types import Flag, Needs, Section, as_text

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config


class Composition(Section):
    """The steps of a round. `method` provides the values that are not set."""

    local_training: Flag = Field(True, description="whether clients train on their private data")
    images: Literal["server", "sent_to_clients", "made_by_clients", "nowhere"] = Field(
        "server",
        description="where images are used; server: to train the augmented model; sent_to_clients: "
        "clients also train on the server's images; made_by_clients: each client generates "
        "what its labels lack and also trains on that; nowhere: no images",
    )
    use: Annotated[list[str], Needs("images at the server", lambda config, _: config.has_server_images)] = (
        Field(
            ["mix"],
            min_length=1,
            description="images=server: what the server does with its images, in this order; mix: it trains "
            "the augmented model, for Eq. (1); the others change the result of Eq. (1)",
        )
    )
    source: Literal["generator", "pool"] = Field(
        "generator",
        description="origin of the images; generator: generation.checkpoint; pool: the public pool",
    )
    matched_steps: Flag = Field(
        False,
        description="whether clients take as many additional local steps as the server would take on "
        "generated images",
    )


# Named compositions: the paper's three methods, two with images at the clients, two controls, and two other
# uses of the images at the server.
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"images": "nowhere"},
    "aigc": {"local_training": False},
    "genfl": {},
    "sent": {"images": "sent_to_clients"},
    "filled": {"images": "made_by_clients"},
    "pool": {"source": "pool"},
    "matched": {"images": "nowhere", "matched_steps": True},
    "finetuned": {"use": ["fine_tune"]},
    "distilled": {"use": ["distil"]},
}
METHOD_TITLES = {  # in tables and figures
    "fedavg": "FedAvg",
    "genfl": "GenFL",
    "aigc": "AIGC-only",
    "sent": "images sent",
    "filled": "clients fill",
    "pool": "public pool",
    "matched": "FedAvg, more steps",
    "finetuned": "fine-tuned on images",
    "distilled": "distilled on images",
}


def because(config: Config, part: str) -> str:
    """Return the setting to which a part of the composition is due, as key=value, for messages."""
    value = getattr(config.composition, part)
    by_method = METHODS[config.method].get(part, Composition.model_fields[part].default)
    return f"method={config.method}" if value == by_method else f"composition.{part}={as_text(value)}"
