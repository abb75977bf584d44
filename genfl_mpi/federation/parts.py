"""The parts that compute a round, as `Simulation` assembles them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.client_images import ClientImages
    from genfl_mpi.federation.messages import Broadcast, Reduction
    from genfl_mpi.federation.questions import Questions
    from genfl_mpi.federation.records import Recorder
    from genfl_mpi.federation.resident import Resident
    from genfl_mpi.federation.robust.combination import Combination
    from genfl_mpi.federation.server import Server
    from genfl_mpi.federation.shared_generation import SharedGeneration
    from genfl_mpi.federation.worker import Worker
    from genfl_mpi.mpi.collectives import MPI


class Messages(NamedTuple):
    """The two messages of a round, and the rank's resident buffers, which hold their arrays on its device."""

    broadcast: Broadcast
    reduction: Reduction
    resident: Resident


class Parts(NamedTuple):
    """Everything that `rounds` works with.

    server: None except on rank 0. combination: of the cohort's models by slices, or None if they are summed.
    note: called as note(phase, client, round=..., done=k, of=n) when this rank begins or continues something.
    leaving: returns an exit status if the ranks were asked to leave, else 0.
    """

    comm: MPI.Comm
    config: Config
    server: Server | None
    worker: Worker
    messages: Messages
    client_images: ClientImages
    questions: Questions
    combination: Combination | None
    recorder: Recorder
    note: Callable[..., None]
    leaving: Callable[[], int]
    generation: SharedGeneration
