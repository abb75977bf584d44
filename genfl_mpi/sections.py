"""Sections of a run's settings beside the paper's own: what clients generate themselves, and what is probed."""

from typing import Literal

from pydantic import Field

from genfl_mpi.fields import Count, Section, Share


class Filling(Section):
    """method=filled: what each client generates, for at most generation.cap images."""

    labels: Literal["rare", "missing"] = Field(
        "rare", description="rare: every label, up to as many samples as the client has of its most frequent one (Gen-FedSD, "
        "FAug); missing: only labels of which it has none")
    share: Share = Field(
        1.0, description="share u of the gap that is filled: with rare labels, a client's EMD to an even mix falls to 1 - u of it")


class Probes(Section):
    """A look at how the clients differ, in /probes and /probed_clients; the run is the same with and without."""

    every: Count | None = Field(None, description="rounds between two looks; none: never")
    clients: Count = Field(100, description="clients, drawn once, whose gradients stand for all clients' in F; all, if there are fewer")
    epochs: Count = Field(20, description="more passes over its data after which a client's loss is taken to be the least, F_n(w_n*)")
