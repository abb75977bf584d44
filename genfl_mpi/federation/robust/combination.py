"""Combine the cohort's models coordinate by coordinate, in place of their sum.

Every rank aggregates its slice, and stores the result in its part of the exact sum; the round's reduction
then brings it to rank 0. Until then the models have the coefficient 0 in that sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.config.sections.adversity import CRAFTED
from genfl_mpi.federation.messages import MODEL, NO_RANK
from genfl_mpi.federation.policies import needs_of
from genfl_mpi.federation.robust.attacks import craft
from genfl_mpi.federation.robust.rules import COEFFICIENT_RULES, COORDINATE_RULES, ROOTED, Coefficients
from genfl_mpi.federation.robust.slices import Slices
from genfl_mpi.mpi import collectives
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.algorithms.interface import Algorithm
    from genfl_mpi.federation.parts import Messages
    from genfl_mpi.federation.server import Server
    from genfl_mpi.mpi.collectives import MPI


def check(config: Config, algorithm: Algorithm, rho_policy: Callable) -> None:
    """Raise UserError if the algorithm or the rho policy needs the sum that slices replace."""
    if not config.uses_slices:
        return
    name = config.defence.name
    what = f"defence.name={name}" if name != "none" else f"attack.kind={config.attack.kind}"
    if algorithm.arrays_of_kind("sum", 1, config) or not algorithm.averages_by_rho:
        raise UserError(
            f"{what} combines the clients' models, and algorithm.name={config.algorithm.name} needs their "
            "sum, or another one besides; choose another algorithm"
        )
    if "models" in needs_of(rho_policy):
        raise UserError(
            f"{what} combines the clients' models, and rho.policy={config.rho.policy} needs their sum; "
            "choose another policy"
        )


class Combination:
    """Collect a round's models and combine them. One on every rank.

    size: number of weights, `parameters` of them parameters; attackers: bool (clients,).

    bytes: sent by this rank in the last exchange.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        config: Config,
        size: int,
        parameters: int,
        messages: Messages,
        attackers: np.ndarray,
    ) -> None:
        self.comm, self.config, self.size, self.parameters = comm, config, size, parameters
        self.messages, self.attackers, self.bytes = messages, attackers, 0
        self.has_root = config.defence.name in ROOTED
        self.slices: Slices | None = None

    def put(self, place: int, weights: torch.Tensor) -> None:
        """Collect the model of the member at a place of the cohort. weights: float32 (size,)."""
        places = self._places()[self.comm.rank]
        self._open().put(places.index(place), weights)

    def combine(self, server: Server | None, omega_a: torch.Tensor | None, interrupted: bool) -> None:
        """Store the combined model in the sum, and the members' weights on rank 0. Collective.

        Does nothing in an incomplete round, or if no member's model is finite. server, omega_a: on rank 0;
        interrupted: whether this rank skipped work.
        """
        slices, self.slices = self._open(), None
        members = self._members(interrupted)
        if not len(members):
            return
        if self.has_root and self.comm.rank == 0:  # without a model its update is 0
            omega = torch.from_numpy(self.messages.broadcast.weights)
            slices.put(slices.rows[0] - 1, omega if omega_a is None else omega_a)
        rows, self.bytes = slices.exchange(), slices.bytes
        order = np.concatenate([*self._places(), []]).astype(np.int64)
        if self.has_root:  # the last row of rank 0
            order = np.insert(order, slices.rows[0] - 1, -1)
        row_of = {place: row for row, place in enumerate(order.tolist())}
        chosen = [row_of[place] for place in members.tolist()]
        self._craft(slices, rows, chosen, members)
        if self.config.defence.name in COORDINATE_RULES:
            shares = np.full(len(members), 1 / len(members))
            found = Coefficients(shares, shares)
        else:
            found = self._coefficients(server, slices, rows, chosen, members, row_of.get(-1))
        self._store(slices, rows, chosen, found)
        if server:
            rho = np.zeros(len(self.messages.broadcast.plan))
            rho[members] = found.rho
            server.cohort = server.cohort._replace(rho=rho)
            self.messages.broadcast.plan["rho"] = rho

    def _places(self) -> list[list[int]]:
        """Return the places in the cohort that each rank trains."""
        ranks = self.messages.broadcast.plan["rank"]
        return [np.flatnonzero(ranks == rank).tolist() for rank in range(self.comm.size)]

    def _open(self) -> Slices:
        """Return the slices of this round."""
        if self.slices is None:
            rows = [len(places) for places in self._places()]
            rows[0] += self.has_root
            self.slices = Slices(self.comm, self.size, rows)
        return self.slices

    def _members(self, interrupted: bool) -> np.ndarray:
        """Return the places of the members whose models are finite, in the order of their ids: int (K,).

        Empty if the round is incomplete. Collective.
        """
        plan, reduction = self.messages.broadcast.plan, self.messages.reduction
        own = plan["rank"] == self.comm.rank
        done = own & (reduction.client_column("samples") != 0)
        finite = done & np.isfinite(reduction.client_column("update_norm"))
        counts = np.concatenate([done, finite, [interrupted]]).astype(np.int64)
        collectives.sum_everywhere(self.comm, counts)
        done, finite = counts[: len(plan)] > 0, counts[len(plan) : -1] > 0
        if counts[-1] or not done[plan["rank"] != NO_RANK].all():
            return np.zeros(0, dtype=np.int64)
        places = np.flatnonzero(finite)
        return places[np.argsort(plan["client"][places], kind="stable")]

    def _craft(self, slices: Slices, rows: np.ndarray, chosen: list[int], members: np.ndarray) -> None:
        """Replace the parameters of attackers that know the other members' models."""
        attack = self.config.attack
        attacking = self.attackers[self.messages.broadcast.plan["client"][members]]
        if attack.kind not in CRAFTED or not attacking.any() or attacking.all():
            return
        honest, others = ([row for row, bad in zip(chosen, attacking) if bad == which] for which in (0, 1))
        for inside, here in slices.own_blocks():
            omega, here = self._omega(inside), slice(here.start, here.start + self._count(inside))
            updates = rows[honest, here].astype(np.float64) - omega[: here.stop - here.start]
            rows[others, here] = omega[: here.stop - here.start] + craft(updates, attack)

    def _coefficients(
        self,
        server: Server | None,
        slices: Slices,
        rows: np.ndarray,
        chosen: list[int],
        members: np.ndarray,
        root: int | None,
    ) -> Coefficients:
        """Return the members' coefficients, which rank 0 computes. Collective. root: its row, or None."""
        both = np.zeros((2, len(members)))
        name = self.config.defence.name
        if name == "none":
            if server:
                rho = server.cohort.rho[members]
                both[:] = rho / rho.sum() if rho.any() else rho
        else:
            grams = self._grams(slices, rows, chosen if root is None else [*chosen, root])
            gathered = collectives.gather_rows(self.comm, grams, slices.counts)
            if server:
                gram = np.zeros(gathered.shape[1:])
                for block in gathered:  # in the order of the coordinates
                    gram += block
                both[:] = COEFFICIENT_RULES[name](gram, self.config.defence)
        collectives.broadcast(self.comm, both)
        return Coefficients(*both)

    def _grams(self, slices: Slices, rows: np.ndarray, chosen: list[int]) -> np.ndarray:
        """Return the Gram matrix of the updates' parameters in each block of this rank: (blocks, K, K)."""
        found = np.zeros((slices.counts[self.comm.rank], len(chosen), len(chosen)))
        for gram, (inside, here) in zip(found, slices.own_blocks()):
            count = self._count(inside)
            if count:
                # As new tensors, whose alignment in memory is always the same.
                updates = torch.from_numpy(rows[chosen, here.start : here.start + count]).double()
                updates -= torch.from_numpy(self._omega(inside)[:count])
                gram[...] = (updates @ updates.T).numpy()
        return found

    def _store(self, slices: Slices, rows: np.ndarray, chosen: list[int], found: Coefficients) -> None:
        """Combine the rows of this rank's coordinates, and store the result in the sum."""
        defence = self.config.defence
        rule = COORDINATE_RULES.get(defence.name)
        total = self.messages.resident.sums[MODEL]
        for inside, here in slices.own_blocks():
            values, omega, count = rows[chosen, here].astype(np.float64), self._omega(inside), 0
            if rule:
                result = rule(values, defence)
            else:
                count = self._count(inside)
                result = omega * (not found.rho.any())
                result[:count] = omega[:count]
                for update, rho, row in zip(found.updates, found.rho, values):  # in the order of the ids
                    result[:count] += update * (row[:count] - omega[:count])
                    # Statistics are averaged as values: of differences a variance could be negative.
                    result[count:] += rho * row[count:]
            total.store(inside.start, torch.from_numpy(result))

    def _omega(self, inside: slice) -> np.ndarray:
        """Return these coordinates of omega^t, float64."""
        return self.messages.broadcast.weights[inside].astype(np.float64)

    def _count(self, inside: slice) -> int:
        """Return how many of these coordinates are parameters, which come first."""
        return max(0, min(self.parameters, inside.stop) - inside.start)
