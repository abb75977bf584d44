"""The chain of transforms between a client's local training and the sum."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError, annotate_errors

if TYPE_CHECKING:
    import numpy as np

    from genfl_mpi.config.settings import Config


class Sender(NamedTuple):
    """The client whose model is transformed.

    round: 0 is the first. settings: the run's `Config`. rng: keyed by seed, round, client and place
    in the chain, so that no draw depends on the rank. own: {name: float32 (parameters,)}, the arrays that the
    transform `keeps` for this client, zeros before its first training; a new value replaces the old one.
    """

    id: int
    round: int
    settings: Config
    rng: np.random.Generator
    own: dict[str, torch.Tensor]


Transform = Callable[[torch.Tensor, torch.Tensor, Sender], torch.Tensor]


def compresses(
    size: Callable[[int, Config], float], keeps: Iterable[str] = ()
) -> Callable[[Transform], Transform]:
    """Decorate a transform that makes the upload smaller; it must be the last one.

    size: (parameters, config) -> bytes of the transformed parameters, which a world prices. keeps: names of
    arrays, float32 (parameters,), that each client keeps for the transform.
    """

    def decorated(transform: Transform) -> Transform:
        transform.size, transform.keeps = size, tuple(keeps)  # type: ignore[attr-defined]
        return transform

    return decorated


def arrays_of(name: str, transform: Transform) -> dict[str, str]:
    """Return the arrays that each client keeps for a transform, {name: its name among all arrays}."""
    return {array: f"{name}.{array}" for array in getattr(transform, "keeps", ())}


class Chain:
    """Apply transforms one after another.

    transforms: of `transforms.find`; parameters: how many of the weights are parameters, which come first.
    """

    def __init__(self, transforms: list[tuple[str, Transform]], config: Config, parameters: int) -> None:
        self.transforms, self.config, self.parameters = transforms, config, parameters

    def apply(
        self,
        weights: torch.Tensor,
        omega: torch.Tensor,
        round: int,
        client: int,
        own: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return a client's weights as they are summed, float32 (size,).

        weights, omega: float32 (size,), the trained weights and omega^t. `weights` itself is returned if
        nothing changes it, or if it is not finite: the sum then rejects it. own: all arrays of the client;
        those of the transforms are replaced by their new values. Raises UserError if a transform
        returns anything but float32 (parameters,) on the same device.
        """
        trained, start = weights[: self.parameters], omega[: self.parameters]
        if not self.transforms or not trained.isfinite().all():
            return weights
        sent = trained
        for place, (name, transform) in enumerate(self.transforms):
            rng = streams.generator(self.config.seed, "transform", round, client, place)
            names, all_arrays = arrays_of(name, transform), {} if own is None else own
            arrays = {array: all_arrays[known] for array, known in names.items()}
            with annotate_errors(f"the transform {name}"):
                sent = transform(sent, start, Sender(client, round, self.config, rng, arrays))
            all_arrays.update({known: arrays[array] for array, known in names.items()})
            if _form(sent) != _form(trained):
                raise UserError(
                    f"transforms: {name} must return {_form(trained)}, and returned {_form(sent)}"
                )
        return weights if sent is trained else torch.cat([sent, weights[self.parameters :]])


def _form(value: Any) -> str:
    """Describe a tensor by dtype, shape and device; anything else by its type."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)} on {value.device}"
