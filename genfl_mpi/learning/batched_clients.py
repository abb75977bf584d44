"""Several clients trained as one batched computation: their models side by side, a step of all in the launches of one.

For small networks, of which one alone leaves most of a GPU idle. Each client makes its own steps on its own batches, with its own
draws, as `training.train` would; only the order in which a product is summed differs.
"""

import copy
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from genfl_mpi.learning.batches import augment, draw, on_device
from genfl_mpi.learning.layers import plain
from genfl_mpi.learning.steps import descend
from genfl_mpi.learning.training import lent, report, stream_of
from genfl_mpi.learning.weights import buffers_of, restore, snapshot
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

# Layers that draw in training, and those that keep statistics of the batch.
RANDOM = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.RReLU,
)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Masked(nn.Module):
    """A dropout layer whose mask is given, as the buffer `mask`, drawn by the layer itself from ones of the right shape."""

    def __init__(self, dropout):
        super().__init__()
        self.dropout = (dropout,)  # no child
        self.register_buffer("mask", torch.ones(()), persistent=False)
        self.seen = []

    def forward(self, values):
        return values * self.mask

    def note(self, layer, inputs):
        """Remember the shape, type and order in memory of what the layer sees."""
        (values,) = inputs
        channels_last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
        self.seen.append(
            (
                values.shape[1:],
                values.dtype,
                torch.channels_last if channels_last else torch.contiguous_format,
            )
        )

    def draw(self, count):
        """The mask of so many samples, as the layer would draw it now."""
        shape, dtype, order = self.seen[0]
        return self.dropout[0](
            torch.empty(count, *shape, dtype=dtype, device=self.mask.device, memory_format=order).fill_(1)
        )


class Batch(NamedTuple):
    """A step of k clients, of which the smaller batches are filled up to the largest, b. index: int64 (k, b), samples of all
    clients' images; share: float32 (k, b), what each counts in its client's loss: 1 over the samples, or 0 for what fills up; moves: int64
    (3, k, b), how it is augmented, or None; sizes: samples of each."""

    index: np.ndarray
    share: np.ndarray
    moves: np.ndarray | None
    sizes: list


class Twin:
    """A `FlatModel`'s network for several weights at once, with torch's own layers. shape: (C, H, W) of an image; settings:
    config.training. Raises UserError if its clients cannot be trained together."""

    def __init__(self, model, shape, settings):
        self.model, self.settings = model, settings
        self._refuse(
            [layer for layer in model.module.modules() if isinstance(layer, BATCH_NORM)],
            "BatchNorm's statistics are those of one client's batch; model.norm=group has none",
        )
        drawing = [
            layer
            for layer in model.module.modules()
            if isinstance(layer, RANDOM) and not isinstance(layer, nn.Dropout)
        ]
        self._refuse(drawing, "only Dropout's draws can be kept apart")
        self.module = plain(copy.deepcopy(model.module)).train()
        self.masks = {}
        for (name, layer), own in zip(list(self.module.named_modules()), model.module.modules()):
            if isinstance(layer, nn.Dropout):
                parent, _, child = name.rpartition(".")
                self.masks[f"{name}.mask"] = masked = Masked(own).to(model.weights.device)
                setattr(self.module.get_submodule(parent), child, masked)
        self.initial = snapshot(buffers_of(self.module))
        self.trained = {name: parameter.requires_grad for name, parameter in self.module.named_parameters()}
        self.gradients = vmap(grad_and_value(self._loss, has_aux=True))
        try:
            self._try(shape)
        except UserError:
            raise
        except Exception as error:  # whatever a layer raises when it is computed for several clients
            self._refuse([error], f"torch.func.vmap fails on it: {first_line(error)}")

    def _refuse(self, found, why):
        if found:
            where = f"training.clients_per_batch={self.settings.clients_per_batch} is not for this network ({type(found[0]).__name__})"
            raise UserError(f"{where}: {why}")

    def _try(self, shape):
        """See what the dropout layers see, and whether a sample's part in the gradients depends on others of its batch, which may
        be there to fill it up."""
        device, module = self.model.weights.device, self.model.module.train()
        images = torch.linspace(-1, 1, 4 * int(np.prod(shape)), device=device).view(4, *shape)
        images = images.contiguous(memory_format=torch.channels_last)
        noting = [masked.dropout[0].register_forward_pre_hook(masked.note) for masked in self.masks.values()]
        with torch.no_grad(), lent(0, device), self._autocast(device):
            module(images[:2].clone())
        for hook in noting:
            hook.remove()
        self._refuse(
            [masked.dropout[0] for masked in self.masks.values() if len(masked.seen) != 1],
            "a layer is used more than once, or not at all",
        )
        weights = self.model.weights.repeat(2, 1)
        masks = {
            name: masked.draw(2).new_ones(2, 2, *masked.seen[0][0]) for name, masked in self.masks.items()
        }
        labels, share = (
            torch.zeros(2, 2, dtype=torch.int64, device=device),
            torch.tensor([[1.0, 0.0]] * 2, device=device),
        )
        first, _ = self.gradients(
            self._named(weights), masks, images[[0, 0, 1, 2]].view(2, 2, *shape)[[0, 0]], labels, share
        )
        other, _ = self.gradients(
            self._named(weights), masks, images[[0, 3, 0, 3]].view(2, 2, *shape), labels, share
        )
        alike = all(
            torch.allclose(one, two, rtol=1e-3, atol=1e-5) for one, two in zip(first.values(), other.values())
        )
        self._refuse(
            [] if alike else [module], "what it makes of a sample depends on the others of the batch"
        )

    def _autocast(self, device):
        return torch.autocast(device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16")

    def _named(self, weights):
        """Weights (k, size) as the module's parameters by name, views of (k, ...)."""
        return dict(zip(self.trained, self.model.split(weights[:, : self.model.parameters])))

    def _loss(self, parameters, masks, images, labels, share):
        """Of one client: its batch's loss, and (that, how many of its samples the model told right)."""
        parameters = {
            name: value if self.trained[name] else value.detach() for name, value in parameters.items()
        }
        with self._autocast(images.device):
            logits = functional_call(self.module, {**parameters, **masks}, (images,))
        loss = (F.cross_entropy(logits.float(), labels, reduction="none") * share).sum()
        return loss, torch.stack([loss.detach(), ((logits.argmax(1) == labels) & (share > 0)).sum().float()])

    def train(self, start, data, settings, rngs, mu=0.0):
        """As `training.train`, of several clients: returns the weights, float32 (size,), and the `Report` of each, in a list.

        start: float32 (size,), of all of them; data: (images, labels) of each, on the device; settings: config.training of each,
        which may differ in epochs; rngs: NumPy generators, of each.
        """
        device, samples = self.model.weights.device, [len(labels) for _, labels in data]
        drawn = [draw(*one) for one in zip(samples, settings, rngs)]
        # The one with the most steps first: those that go on are always the first ones.
        order = sorted(range(len(data)), key=lambda client: -len(drawn[client].sizes))
        batches = _batches(
            [drawn[client] for client in order], np.cumsum([0, *(samples[client] for client in order[:-1])])
        )
        images, labels = (torch.cat([data[client][part] for client in order]) for part in (0, 1))
        weights = start.to(device).repeat(len(data), 1)
        buffers = {"velocity": torch.zeros_like(weights)} if settings[0].momentum else {}
        begun = self.model.split(start.to(device)[: self.model.parameters]) if mu else ()
        stream, told, streams = stream_of(device), [], []
        self.model.module.train()
        restore(self.initial)
        with lent(0, device):
            for client in order:
                streams.append(stream.manual_seed(drawn[client].dropping).get_state())
            for batch in batches:
                count = len(batch.sizes)
                index, share = (on_device(part, device) for part in (batch.index, batch.share))
                masks = self._draw(stream, streams, batch)
                pixels, targets = images[index.flatten()], labels[index]
                if batch.moves is not None:
                    pixels = augment(pixels, settings[0], on_device(batch.moves.reshape(3, -1), device))
                parameters = self._named(weights[:count])
                gradients, (_, figures) = self.gradients(
                    parameters, masks, pixels.unflatten(0, index.shape), targets, share
                )
                velocity = self._named(buffers["velocity"][:count]).values() if buffers else ()
                learning = (
                    list(compress(parts, self.trained.values()))
                    for parts in (parameters.values(), gradients.values())
                )
                with torch.no_grad():
                    descend(
                        *learning,
                        settings[0],
                        list(compress(velocity, self.trained.values())),
                        mu,
                        list(compress(begun, self.trained.values())),
                    )
                told.append(figures)
        told = (
            torch.stack([F.pad(one, (0, 0, 0, len(data) - len(one))) for one in told]).double().cpu().numpy()
        )  # the one wait
        found = [None] * len(data)
        for row, client in enumerate(order):
            sizes, epochs = drawn[client].sizes, settings[client].epochs
            losses, right = told[: len(sizes), row].T
            found[client] = (
                weights[row],
                report(losses.tolist(), right[-(len(sizes) // epochs) :].sum().item(), sizes, epochs),
            )
        return found

    def _draw(self, stream, states, batch):
        """The masks of a step, by name: each client's drawn from its own state of the device's generator."""
        count, most = batch.index.shape
        masks = {}
        for row, size in enumerate(batch.sizes) if self.masks else ():
            stream.set_state(states[row])
            for name, masked in self.masks.items():
                mask = masked.draw(size)
                if row == 0:
                    masks[name] = mask.new_ones(count, most, *mask.shape[1:])
                masks[name][row, :size] = mask
            states[row] = stream.get_state()
        return masks


def _batches(drawn, starts):
    """Yields the `Batch` of each step. drawn: `Draws` of each client, those with more steps first; starts: of its images
    among all."""
    places = [np.cumsum([0, *one.sizes]) for one in drawn]
    for step in range(len(drawn[0].sizes)):
        going = [one for one in drawn if len(one.sizes) > step]
        sizes = [one.sizes[step] for one in going]
        shape = len(going), max(sizes)
        index, share = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        moves = None if drawn[0].moves is None else np.zeros((3, *shape), dtype=np.int64)
        for row, (one, size) in enumerate(zip(going, sizes)):
            part = slice(places[row][step], places[row][step + 1])
            index[row, :size], share[row, :size] = starts[row] + one.order[part], 1 / size
            if moves is not None:
                moves[:, row, :size] = one.moves[:, part]
        yield Batch(index, share, moves, sizes)
