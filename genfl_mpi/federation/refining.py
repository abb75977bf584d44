"""Refinement of the global weights at the server, after Eq. (1)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.federation.algorithms.fedavg import FEDAVG
from genfl_mpi.federation.messages import NO_RANK
from genfl_mpi.federation.refinements.tools import Tools
from genfl_mpi.federation.teachers import Teachers
from genfl_mpi.util.errors import UserError, annotate_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from genfl_mpi.federation.parts import Messages
    from genfl_mpi.federation.questions import Ask
    from genfl_mpi.federation.records import Round
    from genfl_mpi.federation.server import Server
    from genfl_mpi.learning.weights import FlatModel


def refine(
    this: Round, server: Server, omega: torch.Tensor, model: FlatModel, messages: Messages, ask: Ask
) -> torch.Tensor:
    """Return the weights of Eq. (1), float64 (size,), as the algorithm and the refinements leave them.

    omega: float64 (size,); model: rank 0's `FlatModel`, which is overwritten; messages: as reduced; ask: from
    `Questions.session`. Raises UserError if a refinement returns something else, and ArithmeticError if a
    weight is not finite.
    """
    algorithm, plan = server.algorithm, messages.broadcast.plan
    if not server.refinements and algorithm.refine is FEDAVG.refine:
        return omega
    trained = plan["rank"] != NO_RANK
    trained &= np.isfinite(messages.reduction.client_column("update_norm"))
    teachers = Teachers(ask, server.about, trained, server.state.shared_labels[plan["client"]])
    tools = Tools(this.t, model, server.images, teachers)
    steps: list[tuple[str, str, Callable[..., torch.Tensor]]] = [
        ("algorithm.name", algorithm.name, partial(algorithm.refine, server.memory))
    ]
    steps += [("composition.use", name, function) for name, function in server.refinements]
    with this.clock("refine"):
        for setting, name, function in steps:
            with annotate_errors(f"{setting}: {name}"):
                refined = function(omega, tools, server.config)
            shape = getattr(refined, "shape", None)
            if shape != omega.shape:
                raise UserError(f"{setting}: {name} must return {len(omega)} weights, not {shape}")
            if not refined.sum().isfinite():
                raise FloatingPointError(
                    f"{setting}: the weights are not finite after {name}; a smaller learning rate may help"
                )
            omega = refined.double().cpu()
    return omega
