"""The driver of tiers: edge servers average the clients of their cells, and the cloud the edge servers.

HierFAVG (Liu et al. 2020). A round is one average at every edge server, after k1 = training.epochs local
epochs; every k2-th round, k2 = time.cloud_every, ends with one at the cloud. Clients start from the model of
their cell:

    omega_c = sum_{n in c} rho_n omega_n / R_c,    R_c = sum_{n in c} rho_n         in every round
    omega   = sum_c a_c omega_c                                                     in every k2-th round

a_c is the cell's part of all rho since the last average at the cloud, which is its part of the samples that
its clients trained on. A cell without a participant keeps its model. With k2 = 1 a_c is R_c: the average at
the cloud is the exact sum of all rho_n omega_n, and the round that of FedAvg, to the bit. The same holds for
one cell and any k2.

With GenFL at the cloud, omega_a is trained from omega and enters the average at the cloud by Eq. (1). With
GenFL at the edges, each edge server trains an omega_a from its omega_c, on images for the labels of its
cell, and applies Eq. (1) in every round in which one of its clients participates.
"""

from __future__ import annotations

from copy import copy
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.edge import cells
from genfl_mpi.federation.aggregation import aggregate
from genfl_mpi.federation.algorithms.interface import Array, Cohort
from genfl_mpi.federation.augmentation import augment
from genfl_mpi.federation.edge_images import EdgeImages, cell_seed
from genfl_mpi.federation.messages import MODEL
from genfl_mpi.federation.parts import Messages
from genfl_mpi.federation.policies import UNSET
from genfl_mpi.federation.records import Round
from genfl_mpi.federation.round import broadcast_plan, generate, reduce_sums, train_clients, weighted_sum
from genfl_mpi.federation.trials import Trials
from genfl_mpi.learning.training import Report
from genfl_mpi.learning.weights import ExactSum
from genfl_mpi.util.errors import annotate_errors
from genfl_mpi.util.timing import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.parts import Parts
    from genfl_mpi.federation.records import Record
    from genfl_mpi.federation.server import Server

MODELS = "models"  # of the cells: in the broadcast, and in the checkpoint
CLOUD = 0  # the key of its augmented model; its seed is the first cell's
SHARES = "shares"  # their sums of rho since the last average at the cloud


def broadcast_arrays(config: Config, size: int) -> dict[str, Array]:
    """Return what the broadcast of a tiered run has besides the cloud's model. size: of a model."""
    return {MODELS: Array((config.cells, size), "broadcast")} if config.time.driver == "tiers" else {}


def state_arrays(messages: Messages) -> dict[str, np.ndarray]:
    """Return what rank 0 keeps of the cells: models, float32 (cells, size), and shares, float64 (cells,).

    The models are those of the broadcast.
    """
    models = messages.broadcast.arrays[MODELS]
    return {MODELS: models, SHARES: np.zeros(len(models))}


class Cells:
    """The cells on a rank.

    of_client: int (clients,). models: float32 (cells, size), on rank 0 those that the next broadcast sends;
    shares: float64 (cells,), on rank 0 alone.
    """

    def __init__(self, parts: Parts) -> None:
        config, messages, server = parts.config, parts.messages, parts.server
        assert config.world is not None
        self.of_client = cells.nearest(config.world, config.clients)[0]
        self.models = torch.from_numpy(messages.broadcast.arrays[MODELS])
        self.shares = server.cells[SHARES] if server else np.zeros(len(self.models))
        self._messages = [_of_cell(messages, cell) for cell in range(len(self.models))]

    def __len__(self) -> int:
        return len(self.models)

    def messages_of(self, client: int) -> Messages:
        """Return the messages with the model from which a client starts, and the sum of its cell."""
        return self._messages[self.of_client[client]]

    def begin(self, omega: torch.Tensor) -> None:
        """Begin the rounds after an average at the cloud: float32 (size,)."""
        self.models[:] = omega
        self.shares[:] = 0.0

    def mean(self, weights: np.ndarray) -> torch.Tensor:
        """Return the weighted mean of the cells' models, float64 (size,). weights: float64 (cells,)."""
        weights = weights / weights.sum()
        return sum(  # type: ignore[return-value]
            float(weights[cell]) * self.models[cell].double() for cell in np.flatnonzero(weights)
        )


def _of_cell(messages: Messages, cell: int) -> Messages:
    """Return messages whose omega and sum are a cell's parts of those of all cells."""
    resident, whole = copy(messages.resident), messages.resident.sums[MODEL]
    resident.omega = resident.arrays[MODELS][cell]
    size = len(resident.omega)
    units = whole.units[cell * size : (cell + 1) * size]
    resident.sums = {MODEL: type(whole)(units, whole.fraction_bits)}  # type: ignore[arg-type]
    return messages._replace(resident=resident)


def rounds(parts: Parts, t: int) -> Iterator[Record]:
    """Compute round t (0 is the first) and all later rounds, until the ranks are asked to leave. Collective.

    Yields the `Record` of each round, as `round.rounds` does. The model is tested after averages at the
    cloud.
    """
    comm, config, server, worker, messages, *_ = parts
    resident, every = messages.resident, config.time.cloud_every
    omega, clock, this = torch.from_numpy(messages.broadcast.weights), Clock(parts.note), None
    tiers = Cells(parts)
    worker.messages_of = tiers.messages_of
    while True:
        if server and t % every == 0:
            tiers.begin(omega)
        # III-A: every rank receives the cells' models, and who trains where with which rho
        with annotate_errors(f"round {t + 1}"), clock("broadcast"):
            t = broadcast_plan(comm, server, messages, config.rounds, t)
        if this and t > this.t:
            record = parts.recorder.record(this)
            clock = Clock(parts.note)
            yield record
        if t == config.rounds or messages.broadcast.head["leave"]:
            return
        this = Round(t, clock)
        with annotate_errors(f"round {t + 1}"):
            parts.note("begin", round=t + 1)
            resident.clear()
            parts.recorder.begin(t, omega)
            # III-B: images and augmented models, at the cloud or at the edges ...
            generate(this, parts)
            augmented = _augment(this, parts, server, tiers) if server else {}
            # III-C: ... while every rank trains its clients
            train_clients(this, comm, server, worker, messages, parts.note, parts.leaving)
            # III-D: the exact sum of each cell
            reduce_sums(this, parts)
            if server and messages.reduction.is_complete() and not this.interrupted:
                omega.copy_(_aggregate(this, parts, server, tiers, augmented))
                t += 1


def _augment(this: Round, parts: Parts, server: Server, tiers: Cells) -> dict[int, torch.Tensor]:
    """Train the augmented models on the images of their servers.

    Returns omega_a, float32 (size,), of each cell with a participant, or that of the cloud.
    """
    config, images, leaving = parts.config, server.images, parts.leaving
    model, resident = parts.worker.model, parts.messages.resident
    if not config.has_server_images:
        return {}
    if isinstance(images, EdgeImages):
        jobs = {
            cell: (resident.arrays[MODELS][cell], images.cells[cell])
            for cell in np.unique(tiers.of_client[server.cohort.ids]).tolist()
        }
        this.tables["made_in"] = images.made_in
    else:
        jobs = {CLOUD: (resident.omega, images)} if images.is_due(this.t) else {}
    augmented, reports = {}, []
    with this.clock("augment"):
        for cell, (start, its) in jobs.items():
            if this.interrupted or leaving():
                this.interrupted = True
                break
            seed = cell_seed(config.seed, cell)
            omega_a, report = augment(model, start, its, config.augmented, seed, this.t)
            if omega_a is not None and report is not None:
                augmented[cell] = omega_a
                reports.append(report)
    if reports:
        this.augmented = _combine(reports)
    return augmented


def _combine(reports: list[Report]) -> Report:
    """Return one `Report` of models trained on images of their own: all samples, and means over these."""
    if len(reports) == 1:
        return reports[0]
    samples, *measured = zip(*map(astuple, reports))
    return Report(sum(samples), *(float(np.average(values, weights=samples)) for values in measured))


def _aggregate(
    this: Round, parts: Parts, server: Server, tiers: Cells, augmented: dict[int, torch.Tensor]
) -> torch.Tensor:
    """Average each cell, and in every k2-th round the cells; store the round in its tables.

    augmented: of `_augment`. Returns the new omega, float64 (size,).
    """
    config, messages, parameters = parts.config, parts.messages, parts.worker.model.parameters
    plan, reduction, every = messages.broadcast.plan, messages.reduction, config.time.cloud_every
    omega, of_member = torch.from_numpy(messages.broadcast.weights), tiers.of_client[plan["client"]]
    kept = np.isfinite(reduction.client_column("update_norm"))
    summed = np.bincount(of_member, np.where(kept, plan["rho"], 0.0), len(tiers))
    units = reduction.sums[MODEL].reshape(len(tiers), -1)
    # All clients as one cohort: FedAvg's round, which the records describe.
    begun = omega if this.t % every == 0 or not summed.any() else tiers.mean(summed).float()
    this.average, omega_fl = aggregate(
        server, begun, parameters, messages, {MODEL: ExactSum(units.sum(0)).value()}
    )
    rho = np.bincount(of_member, plan["rho"], len(tiers))  # of dropped clients it is the others'
    alone = omega_fl if len(tiers) == 1 else None
    means = {
        cell: ExactSum(units[cell]).value() / summed[cell] if alone is None else alone
        for cell in np.flatnonzero(rho).tolist()
    }
    is_edge = isinstance(server.images, EdgeImages)
    if is_edge:
        means = _mix_at_edges(this, server, tiers, means, rho, augmented, parameters)
    elif every == 1:
        this.omega_a = augmented.get(CLOUD)
    for cell, mean in means.items():
        tiers.models[cell] = mean
    tiers.shares += rho
    new = omega.double()
    if (this.t + 1) % every == 0:
        # With k2 = 1 no cell's model is rounded before the average: the sum has FedAvg's bits.
        if every > 1 or is_edge:
            omega_fl = tiers.mean(tiers.shares) if tiers.shares.any() else None
        kappa2 = 0.0
        if not is_edge:
            kappa2, _ = server.kappa2(omega, omega_fl, augmented.get(CLOUD), parameters, Trials(UNSET))
            this.kappa2 = kappa2
        new = weighted_sum((1 - kappa2, omega_fl), (kappa2, augmented.get(CLOUD)), omega)
    parts.recorder.note(this, server, begun, Trials(UNSET))
    this.tables["clients"]["cell"] = of_member
    return new


def _mix_at_edges(
    this: Round,
    server: Server,
    tiers: Cells,
    means: dict[int, torch.Tensor],
    rho: np.ndarray,
    augmented: dict[int, torch.Tensor],
    parameters: int,
) -> dict[int, torch.Tensor]:
    """Return the cells' models after Eq. (1) at each edge server, {cell: float64 (size,)}.

    means: of the cells' clients; rho: float64 (cells,); augmented: of `_augment`. Stores kappa2 and
    the augmented model as means over the cells.
    """
    assert isinstance(server.images, EdgeImages)
    mixed, of_member = {}, tiers.of_client[server.cohort.ids]
    for cell, mean in means.items():
        edge, inside, omega, omega_a = (
            copy(server),
            of_member == cell,
            tiers.models[cell],
            augmented.get(cell),
        )
        edge.images, edge.state = server.images.cells[cell], server.images.state_of(cell, server.state)
        edge.world = None  # whose forecast is of the cloud
        edge.cohort = Cohort(*(column[inside] for column in server.cohort))
        edge.status = server.status[inside]
        kappa2, _ = edge.kappa2(omega, mean, omega_a, parameters, Trials(UNSET))
        mixed[cell] = weighted_sum((1 - kappa2, mean), (kappa2, omega_a), omega)
        this.kappa2 += float(rho[cell] / rho.sum()) * kappa2
    if present := [cell for cell in means if cell in augmented]:
        part = rho[present] / rho[present].sum()
        this.omega_a = sum(  # type: ignore[assignment]
            float(share) * augmented[cell].double() for share, cell in zip(part, present)
        )
    return mixed
