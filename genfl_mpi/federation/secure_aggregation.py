"""Secure aggregation in the round: mask what this rank's clients contribute, and unmask the reduced sum."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.edge.attendance import STATUS_DTYPE, VOID
from genfl_mpi.federation.messages import NO_RANK
from genfl_mpi.mpi import collectives
from genfl_mpi.privacy import masks
from genfl_mpi.privacy.protocol import DROPPED, KEY_BYTES, OUTSIDE, SURVIVED, Session, phase_bytes

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.parts import Messages
    from genfl_mpi.federation.server import Server
    from genfl_mpi.mpi.collectives import MPI

# What the server asks for about each member of the cohort, and the secret that the answers give.
REQUEST = np.dtype([("state", "u1"), ("secret", "u1", KEY_BYTES)])
# Columns of /rounds without secure aggregation.
NOT_SECURED: dict[str, Any] = {
    "mask_seconds": 0.0,
    "keys_bytes": 0,
    "shares_bytes": 0,
    "masked_bytes": 0,
    "unmask_bytes": 0,
}


class SecureAggregation:
    """Run the protocol of `privacy.protocol` for the clients of this rank.

    All members of the cohort that do not decline share keys before they train. Those that a world excludes,
    and those whose loss or weights are not finite, drop out before they upload.
    """

    def __init__(self, config: Config, messages: Messages) -> None:
        self.config, self.messages = config, messages
        self.masks = np.zeros(len(messages.reduction.units), dtype=np.int64)
        self.members = np.zeros(0, dtype=np.int64)
        self.session: Session | None = None
        self.seconds = 0.0

    def begin(self, round: int) -> None:
        """Begin a round: its members share keys. round: 0 is the first."""
        plan, privacy = self.messages.broadcast.plan, self.config.privacy
        self.members = np.flatnonzero((plan["rho"] > 0) | (plan["rank"] != NO_RANK))
        ids = plan["client"][self.members]
        self.session = Session(self.config.seed, round, ids, privacy.threshold, privacy.neighbours)
        self.seconds = 0.0

    def mask(self, places: list[int]) -> None:
        """Mask what clients have added to this rank's sums. places: in the cohort.

        A client that dropped out has added nothing, and masks nothing.
        """
        assert self.session
        start, norms = time.perf_counter(), self.messages.reduction.client_column("update_norm")
        terms = [
            term
            for place in places
            if np.isfinite(norms[place])
            for term in self.session.terms(int(np.searchsorted(self.members, place)))
        ]
        self.masks[:] = 0
        masks.add_masks(self.masks.view(np.uint64), terms)
        self.messages.resident.add(self.masks)
        self.seconds += time.perf_counter() - start

    def unmask(self, comm: MPI.Comm, server: Server | None, interrupted: bool) -> dict[str, Any]:
        """Remove the survivors' masks from the reduced sum; rank 0 then has the plain one. Collective.

        Each rank computes the masks of its part of the vector. Without enough survivors the sum stays masked,
        and the server marks the survivors as VOID. Returns the columns of /rounds on rank 0.
        """
        assert self.session
        reduction, request = self.messages.reduction, np.zeros(len(self.messages.broadcast.plan), REQUEST)
        if server and reduction.is_complete() and not interrupted:
            self._ask(server, request)
        collectives.broadcast(comm, request)
        states = request["state"][self.members]
        if (states != OUTSIDE).all() and len(states):
            secrets = [secret.tobytes() for secret in request["secret"][self.members]]
            size = len(reduction.units)
            blocks = -(-size // masks.STREAM_BLOCK)
            start, end = (
                min(size, masks.STREAM_BLOCK * (blocks * rank // comm.size))
                for rank in (comm.rank, comm.rank + 1)
            )
            part = np.zeros(end - start, dtype=np.uint64)
            masks.add_masks(part, self.session.masks_to_remove(states, secrets), start)
            whole = self.masks.view(np.uint64)
            collectives.gather_parts(comm, part, whole)
            if server:
                reduction.units += self.masks
        microseconds = collectives.maximum(comm, round(1e6 * self.seconds))
        return {"mask_seconds": microseconds / 1e6, **self._bytes()}

    def _ask(self, server: Server, request: np.ndarray) -> None:
        """Let the survivors send shares, and recover a secret of each member from them."""
        assert self.session
        survived = np.isfinite(self.messages.reduction.client_column("update_norm"))
        if not self.session.can_unmask(survived[self.members]):
            server.status = np.where(survived, VOID, server.status).astype(STATUS_DTYPE)
            return
        request["state"][self.members] = np.where(survived[self.members], SURVIVED, DROPPED)
        for place, secret in zip(self.members, self.session.recover(survived[self.members])):
            request["secret"][place] = np.frombuffer(secret, np.uint8)

    def _bytes(self) -> dict[str, int]:
        """Count the bytes of the round's phases, of all members together."""
        survived = np.isfinite(self.messages.reduction.client_column("update_norm")[self.members]).sum()
        members, units = len(self.members), len(self.masks)
        one = phase_bytes(units, members, self.config.privacy.neighbours)
        return {
            "keys_bytes": members * sum(one.keys),
            "shares_bytes": members * sum(one.shares),
            "masked_bytes": int(survived) * sum(one.upload),
            "unmask_bytes": int(survived) * sum(one.unmask),
        }
