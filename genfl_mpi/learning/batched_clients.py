"""Train several clients as one batched computation: one set of kernel launches per step.

For small networks, which leave most of a GPU idle when they run alone. Each client takes its own steps on its
own batches with its own random draws, as in `training.train`; only the order of summation inside matrix
products differs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from genfl_mpi.learning.batches import Draws, augment, draw, memory_format, on_device
from genfl_mpi.learning.device_streams import seeded, stream_of
from genfl_mpi.learning.layers import plain
from genfl_mpi.learning.steps import descend
from genfl_mpi.learning.training import Report, make_report
from genfl_mpi.learning.weights import FlatModel, buffers_of, restore, snapshot
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from genfl_mpi.config.sections.local_training import LocalTraining

# Layers that draw random numbers during training.
RANDOM_LAYERS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.RReLU,
)
# Layers that keep batch statistics.
BATCH_NORM_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _MaskedDropout(nn.Module):
    """A dropout layer that multiplies by a given mask, the buffer `mask`, instead of drawing one.

    The wrapped layer draws the masks, from ones of the right shape.
    """

    mask: torch.Tensor

    def __init__(self, dropout: nn.Dropout):
        super().__init__()
        self.wrapped = (dropout,)  # in a tuple, so that torch does not register it as a child
        self.register_buffer("mask", torch.ones(()), persistent=False)
        self.inputs: list[tuple] = []

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.mask

    def record_input(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Record shape, dtype and memory format of the layer's input; a forward pre-hook."""
        (values,) = inputs
        channels_last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.inputs.append((values.shape[1:], values.dtype, memory_format))

    def draw_mask(self, samples: int) -> torch.Tensor:
        """Draw the mask of a batch as the wrapped layer would draw it now."""
        shape, dtype, memory_format = self.inputs[0]
        ones = torch.empty(
            samples, *shape, dtype=dtype, device=self.mask.device, memory_format=memory_format
        ).fill_(1)
        return self.wrapped[0](ones)


class _Batch(NamedTuple):
    """One step of k clients, with smaller batches padded to the largest, b.

    samples: int64 (k, b), indices into the concatenated images of all clients. share: float32 (k, b), weight
    of a sample in its client's loss: 1 / batch size, or 0 for padding. moves: int64 (3, k, b), augmentation
    as in `Draws`, or None. sizes: batch size of each client.
    """

    samples: np.ndarray
    share: np.ndarray
    moves: np.ndarray | None
    sizes: list[int]


class BatchedModel:
    """The network of a `FlatModel`, evaluated for several weight vectors at once, with torch's own layers.

    shape: of a sample, such as (C, H, W) of an image; settings: config.training. Raises UserError if the
    network cannot be batched over clients.
    """

    def __init__(self, model: FlatModel, shape: tuple[int, ...], settings: LocalTraining):
        self.model, self.settings = model, settings
        self._refuse(
            [layer for layer in model.module.modules() if isinstance(layer, BATCH_NORM_LAYERS)],
            "BatchNorm's statistics belong to one client's batch",
            " or model.norm=group",
        )
        unsupported = [
            layer
            for layer in model.module.modules()
            if isinstance(layer, RANDOM_LAYERS) and not isinstance(layer, nn.Dropout)
        ]
        self._refuse(unsupported, "only the draws of Dropout can be kept separate for each client")
        self.module = plain(copy.deepcopy(model.module)).train()
        self.masked_layers: dict[str, _MaskedDropout] = {}
        for (name, layer), original in zip(list(self.module.named_modules()), model.module.modules()):
            if isinstance(original, nn.Dropout) and isinstance(layer, nn.Dropout):
                parent, _, child = name.rpartition(".")
                masked = _MaskedDropout(original).to(model.weights.device)
                self.masked_layers[f"{name}.mask"] = masked
                setattr(self.module.get_submodule(parent), child, masked)
        self.initial_buffers = snapshot(buffers_of(self.module))
        self.trained = [name for name, one in self.module.named_parameters() if one.requires_grad]
        self.gradients = vmap(grad_and_value(self._loss, has_aux=True))
        try:
            self._check_independence(shape)
        except UserError:
            raise
        except Exception as error:  # any exception of a layer that does not support vmap
            self._refuse([error], f"torch.func.vmap fails on it: {first_line(error)}")

    def _refuse(self, unsupported: Sequence[object], reason: str, alternative: str = "") -> None:
        """Raise UserError with `reason` if `unsupported` is not empty."""
        if unsupported:
            setting = f"training.clients_per_batch={self.settings.clients_per_batch}"
            raise UserError(
                f"{setting} does not support this network ({type(unsupported[0]).__name__}): {reason}; "
                f"set training.clients_per_batch=1{alternative}"
            )

    def _check_independence(self, shape: tuple[int, ...]) -> None:
        """Record the inputs of the dropout layers, and refuse a network that mixes the samples of a batch.

        A sample's contribution to the gradients must not depend on the other samples, because these may be
        padding.
        """
        device, module = self.model.weights.device, self.model.module.train()
        masked_layers = self.masked_layers
        images = torch.linspace(-1, 1, 4 * int(np.prod(shape)), device=device).view(4, *shape)
        images = images.contiguous(memory_format=memory_format(images))
        hooks = [
            masked.wrapped[0].register_forward_pre_hook(masked.record_input)
            for masked in masked_layers.values()
        ]
        with torch.no_grad(), seeded(0, device), self._autocast(device):
            module(images[:2].clone())
        for hook in hooks:
            hook.remove()
        self._refuse(
            [masked.wrapped[0] for masked in masked_layers.values() if len(masked.inputs) != 1],
            "it uses the layer more than once, or never",
        )
        parameters = self._by_name(self.model.weights.repeat(2, 1))
        masks = {
            name: masked.draw_mask(2).new_ones(2, 2, *masked.inputs[0][0])
            for name, masked in masked_layers.items()
        }
        labels = torch.zeros(2, 2, dtype=torch.int64, device=device)
        share = torch.tensor([[1.0, 0.0]] * 2, device=device)
        # Both clients train on image 0: first padded with image 0, then with image 3.
        same_padding = images[[0, 0, 1, 2]].view(2, 2, *shape)[[0, 0]]
        other_padding = images[[0, 3, 0, 3]].view(2, 2, *shape)
        first, _ = self.gradients(parameters, masks, same_padding, labels, share)
        other, _ = self.gradients(parameters, masks, other_padding, labels, share)
        independent = all(
            torch.allclose(one, two, rtol=1e-3, atol=1e-5) for one, two in zip(first.values(), other.values())
        )
        self._refuse(
            [] if independent else [module],
            "its output for a sample depends on the other samples of the batch",
        )

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16")

    def _by_name(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """View weights (k, size) as the module's parameters by name, each of shape (k, ...)."""
        return dict(zip(self.trained, self.model.split(weights[:, : self.model.parameters])))

    def _loss(
        self,
        parameters: dict[str, torch.Tensor],
        masks: dict[str, torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        share: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of one client's batch, and a tensor (2,): this loss and the correct predictions."""
        with self._autocast(images.device):
            logits = functional_call(self.module, {**parameters, **masks}, (images,))
        loss = (F.cross_entropy(logits.float(), labels, reduction="none") * share).sum()
        return loss, torch.stack([loss.detach(), ((logits.argmax(1) == labels) & (share > 0)).sum().float()])

    def train(
        self,
        start: torch.Tensor,
        data: Sequence[tuple[torch.Tensor, torch.Tensor]],
        settings: Sequence[LocalTraining],
        rngs: Sequence[np.random.Generator],
        mu: float = 0.0,
    ) -> list[tuple[torch.Tensor, Report]]:
        """Train several clients as `training.train` does; return (weights, `Report`) of each.

        Weights are float32 (size,). start: float32 (size,), common to all clients. data: (images, labels) of
        each, on the device. settings: config.training of each, which may differ in epochs alone. rngs: NumPy
        generator of each. mu: weight of FedProx's proximal term.
        """
        device, samples = self.model.weights.device, [len(labels) for _, labels in data]
        drawn = [draw(*one) for one in zip(samples, settings, rngs)]
        # Sort by number of steps, largest first: the clients still active always come first.
        order = sorted(range(len(data)), key=lambda client: -len(drawn[client].sizes))
        batches = _batches(
            [drawn[client] for client in order], np.cumsum([0, *(samples[client] for client in order[:-1])])
        )
        images, labels = (torch.cat([data[client][part] for client in order]) for part in (0, 1))
        weights = start.to(device).repeat(len(data), 1)
        velocity = torch.zeros_like(weights) if settings[0].momentum else None
        begun = self.model.split(start.to(device)[: self.model.parameters]) if mu else []
        stream, metrics, stream_states = stream_of(device), [], []
        self.model.module.train()
        restore(self.initial_buffers)
        with seeded(0, device):
            for client in order:
                stream_states.append(stream.manual_seed(drawn[client].dropout_seed).get_state())
            for batch in batches:
                count = len(batch.sizes)
                index, share = (on_device(part, device) for part in (batch.samples, batch.share))
                masks = self._draw_masks(stream, stream_states, batch)
                pixels, targets = images[index.flatten()], labels[index]
                if batch.moves is not None:
                    pixels = augment(pixels, settings[0], on_device(batch.moves.reshape(3, -1), device))
                parameters = self._by_name(weights[:count])
                gradients, (_, step_metrics) = self.gradients(
                    parameters, masks, pixels.unflatten(0, index.shape), targets, share
                )
                velocities = [] if velocity is None else self._by_name(velocity[:count]).values()
                with torch.no_grad():
                    descend(
                        list(parameters.values()),
                        list(gradients.values()),
                        settings[0],
                        settings[0].lr,
                        list(velocities),
                        mu,
                        begun,
                    )
                metrics.append(step_metrics)
        padded = torch.stack([F.pad(one, (0, 0, 0, len(data) - len(one))) for one in metrics])
        table = padded.double().cpu().numpy()  # the only synchronization with the device
        trained = {}
        for row, client in enumerate(order):
            sizes, epochs = drawn[client].sizes, settings[client].epochs
            losses, correct = table[: len(sizes), row].T
            last_epoch = correct[-(len(sizes) // epochs) :].sum().item()
            trained[client] = weights[row], make_report(losses.tolist(), last_epoch, sizes, epochs)
        return [trained[client] for client in range(len(data))]

    def _draw_masks(
        self, stream: torch.Generator, states: list[torch.Tensor], batch: _Batch
    ) -> dict[str, torch.Tensor]:
        """Draw the dropout masks of a step, by buffer name; each client continues its own random stream."""
        clients, width = batch.samples.shape
        masks: dict[str, torch.Tensor] = {}
        for row, size in enumerate(batch.sizes) if self.masked_layers else ():
            stream.set_state(states[row])
            for name, masked in self.masked_layers.items():
                mask = masked.draw_mask(size)
                if row == 0:
                    masks[name] = mask.new_ones(clients, width, *mask.shape[1:])
                masks[name][row, :size] = mask
            states[row] = stream.get_state()
        return masks


def _batches(drawn: Sequence[Draws], starts: np.ndarray) -> Iterator[_Batch]:
    """Yield the `_Batch` of each step.

    drawn: `Draws` of each client, in descending order of steps; starts: index of each client's first image
    among all images.
    """
    bounds = [np.cumsum([0, *one.sizes]) for one in drawn]
    for step in range(len(drawn[0].sizes)):
        active = [one for one in drawn if len(one.sizes) > step]
        sizes = [one.sizes[step] for one in active]
        shape = len(active), max(sizes)
        index, share = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        moves = None if drawn[0].moves is None else np.zeros((3, *shape), dtype=np.int64)
        for row, (one, size) in enumerate(zip(active, sizes)):
            part = slice(bounds[row][step], bounds[row][step + 1])
            index[row, :size], share[row, :size] = starts[row] + one.order[part], 1 / size
            if moves is not None and one.moves is not None:
                moves[:, row, :size] = one.moves[:, part]
        yield _Batch(index, share, moves, sizes)
