"""SGD steps: one function over fixed buffers, which a GPU replays as a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from genfl_mpi.learning.batches import memory_format, on_device
from genfl_mpi.learning.device_streams import stream_of
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from genfl_mpi.config.sections.local_training import Training
    from genfl_mpi.learning.weights import FlatModel

MAX_GRAPHS = 64  # batch shapes with a graph of their own; steps on further shapes run eagerly
MAX_CACHED_STEPS = 2  # `Steps` cached per model: of the clients, and of the augmented model
WARM_UP_STEPS = 3  # eager steps before a capture, in which libraries choose their kernels

Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]
# (model, images, labels) -> (loss, logits)
Loss = Callable[["FlatModel", torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def descend(
    parameters: Tensors,
    direction: Tensors,
    settings: Training,
    lr: float | torch.Tensor,
    velocity: Tensors = (),
    mu: float = 0.0,
    centre: Tensors = (),
    correction: Tensors = (),
) -> None:
    """Take an SGD step along gradients, with momentum and weight decay as in torch.optim.SGD.

    All sequences hold tensors of the same shapes. Updates parameters and velocity in place; overwrites
    direction, the gradients.

    lr: learning rate, a number, or a tensor () on the device for a CUDA graph to read. velocity: with
    momentum, zeros before the first step. mu, centre: strength and centre of FedProx's proximal term.
    correction: added to the gradients.

    Each weight is read and written as few times as possible. The private `torch._foreach_*` functions, which
    torch's own optimizers call, too, process all tensors in one launch; a loop over the tensors would launch
    a kernel for each.
    """
    if mu:
        torch._foreach_add_(direction, torch._foreach_sub(parameters, centre), alpha=mu)
    if correction:
        torch._foreach_add_(direction, correction)
    if settings.weight_decay:
        torch._foreach_add_(direction, parameters, alpha=settings.weight_decay)
    if settings.momentum:
        torch._foreach_mul_(velocity, settings.momentum)
        torch._foreach_add_(velocity, direction)
        direction = velocity
    if isinstance(lr, torch.Tensor):
        torch._foreach_sub_(parameters, torch._foreach_mul(direction, lr))
    else:
        torch._foreach_add_(parameters, direction, alpha=-lr)


class Steps:
    """Steps of a model under fixed settings: call `begin` for each training, then the object for each batch.

    model: `FlatModel`; settings: config.training; mu: of FedProx; corrected: whether gradients are corrected
    (SCAFFOLD); own_loss: whether trainings have a loss other than the cross-entropy, which disables graphs.

    On a GPU, a batch whose shape was seen before is copied to the address of the first one, and the whole
    step (forward, backward, update) is one launch of a CUDA graph. A graph is used only if its first replay
    equals the eager step bit for bit. Batches are padded to `batch_size` with samples that do not count, so
    that one graph serves all clients; not for models with BatchNorm, whose statistics padding would change.
    """

    def __init__(
        self,
        model: FlatModel,
        settings: Training,
        mu: float = 0.0,
        corrected: bool = False,
        own_loss: bool = False,
    ):
        self.model, self.settings, self.mu = model, settings, mu
        self.loss: Loss | None = None
        device = model.weights.device
        needed = {"velocity": settings.momentum, "centre": mu, "correction": corrected}
        self.buffers = {
            name: torch.zeros_like(model.weights[: model.parameters])
            for name, is_needed in needed.items()
            if is_needed
        }
        self.parameters: Sequence[torch.Tensor] = model.trained
        self.split = {name: model.split(buffer) for name, buffer in self.buffers.items()}
        self.graphs: dict[torch.Size, tuple] = {}
        self.pool: Any = None
        self.fixed = device.type == "cuda" and is_static(model.module) and not own_loss
        self.width = settings.batch_size if self.fixed and not has_batch_statistics(model.module) else 0
        self.shares: dict[int, torch.Tensor] = {}
        self.lr: float | torch.Tensor = torch.zeros((), device=device) if self.fixed else 0.0

    def begin(
        self,
        start: torch.Tensor,
        lr: float,
        correction: torch.Tensor | None = None,
        anchor: torch.Tensor | None = None,
        loss: Loss | None = None,
    ) -> None:
        """Begin a training.

        start: float32 (size,); lr: learning rate; correction: float32 (parameters,); anchor: float32 (size,),
        centre of the proximal term, by default `start`; loss: by default the cross-entropy.
        """
        self.loss = loss
        if isinstance(self.lr, torch.Tensor):
            self.lr.fill_(lr)
        else:
            self.lr = lr
        self.model.load(start)
        if not self.model.module.training:  # setting the mode of every layer takes as long as a small layer
            self.model.module.train()
        if "centre" in self.buffers:
            centre = (start if anchor is None else anchor)[: self.model.parameters]
            self.buffers["centre"].copy_(centre, non_blocking=True)
        if correction is not None:
            self.buffers["correction"].copy_(correction, non_blocking=True)
        if "velocity" in self.buffers:
            self.buffers["velocity"].zero_()

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a step on a batch. Return fresh copies of (loss, logits)."""
        count = len(labels)
        batch = self._pad(images, labels) if self.width else (images, labels)
        shape = batch[0].shape
        if self.fixed and shape not in self.graphs and len(self.graphs) < MAX_GRAPHS:
            self._prepare(batch)
        if not self.fixed or shape not in self.graphs:
            loss, logits = self.compute(*batch)
            return loss, logits[:count]
        replay, inputs, results = self.graphs[shape]
        for buffer, given in zip(inputs, batch):
            buffer.copy_(given)
        replay()
        loss, logits = results
        return loss.clone(), logits[:count].clone()

    def _pad(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return `width` images, labels, and shares in the loss; the shares of the added images are zero."""
        count, added = len(labels), self.width - len(labels)
        if count not in self.shares:
            share = torch.zeros(self.width)
            share[:count] = 1 / count
            self.shares[count] = on_device(share, images.device)
        if added:
            images = torch.cat([images, images.new_zeros(added, *images.shape[1:])])
            images = images.contiguous(memory_format=memory_format(images))
            labels = torch.cat([labels, labels.new_zeros(added)])
        return images, labels, self.shares[count]

    def compute(
        self, images: torch.Tensor, labels: torch.Tensor, share: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take an eager step on a batch; graphs capture this function. Return (loss, logits).

        share: float32 (n,), of each sample in the loss, by default 1 / n.
        """
        is_mixed = self.settings.dtype == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16) if is_mixed else nullcontext():
            if self.loss:
                loss, logits = self.loss(self.model, images, labels)
            else:
                logits = self.model.module(images)
        if not self.loss:
            loss = _cross_entropy(logits.float(), labels, share)
        loss.backward()
        with torch.no_grad():
            # Parameters that are unused have no gradient; the step leaves them unchanged.
            has_gradient = [parameter.grad is not None for parameter in self.parameters]
            buffers = {name: list(compress(parts, has_gradient)) for name, parts in self.split.items()}
            parameters = list(compress(self.parameters, has_gradient))
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            descend(parameters, gradients, self.settings, self.lr, mu=self.mu, **buffers)
        for parameter in self.parameters:
            # The next backward pass then writes new gradients: no zeroing, and no addition to old ones.
            parameter.grad = None
        return loss.detach(), logits.detach()

    def _prepare(self, batch: tuple[torch.Tensor, ...]) -> None:
        """Capture and check a graph of the step on batches of this shape; leave the model unchanged.

        If the capture fails, or the replay differs from the eager step, all further steps run eagerly.
        """
        images, inputs = batch[0], tuple(tensor.clone() for tensor in batch)
        state = self.model.weights, *self.model.other_buffers, *self.buffers.values()
        stream = stream_of(images.device)
        saved, stream_state = [tensor.clone() for tensor in state], stream.get_state()

        def restore() -> None:
            for tensor, value in zip(state, saved):
                tensor.copy_(value)
            stream.set_state(stream_state)

        def copy_outcome(results: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            return [tensor.clone() for tensor in (*state, *results)]

        problem = "graph replay differs from the eager step"
        try:
            replay, results = self._capture(lambda: self.compute(*inputs))
            restore()
            expected = copy_outcome(self.compute(*inputs))
            restore()
            replay()
            self.fixed = all(map(have_equal_bits, copy_outcome(results), expected))
        except RuntimeError as error:
            self.fixed, problem = False, first_line(error)
        for parameter in self.parameters:
            parameter.grad = None
        restore()
        if self.fixed:
            self.graphs[images.shape] = replay, inputs, results
        else:
            self.graphs.clear()
            warnings.warn(f"training steps run without CUDA graphs: {problem}", stacklevel=2)

    def _capture(self, function: Callable[[], tuple]) -> tuple[Callable[[], None], tuple]:
        """Return a function that replays `function` on the same memory, and the results in that memory."""
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            results = function()
        return graph.replay, results


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, share: torch.Tensor | None) -> torch.Tensor:
    """Return the loss of a batch. share: as of `Steps.compute`."""
    if share is None:
        return F.cross_entropy(logits, labels)
    return (F.cross_entropy(logits, labels, reduction="none") * share).sum()


def have_equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors of the same shape and dtype have the same bits; a NaN equals itself."""
    return torch.equal(*(tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)))


def has_batch_statistics(module: nn.Module) -> bool:
    """Return whether a layer's output for a sample depends on the other samples of the batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def is_static(module: nn.Module) -> bool:
    """Return whether a module runs the same operations on every batch.

    True if all layers are torch's, torchvision's or ours: these do not branch on their input.
    """
    return all(
        type(layer).__module__.partition(".")[0] in ("torch", "torchvision", "genfl_mpi")
        for layer in module.modules()
    )


def steps_of(
    model: FlatModel, settings: Training, mu: float = 0.0, corrected: bool = False, own_loss: bool = False
) -> Steps:
    """Return the `Steps` cached with the model for these settings, or new ones.

    Settings that differ only in epochs or learning rate share their `Steps`, so that a GPU does not capture
    the graphs again.
    """
    # A CUDA graph holds the gradients of the parameters that were trained when it was captured.
    trained = tuple(parameter.requires_grad for parameter in model.trained)
    kind = mu, corrected, own_loss, trained
    cached, last = model.cached_steps, model.last_steps
    if last and last[0] is settings and last[1] == kind:  # as for the clients of a round
        return last[2]
    steps = _cached_steps(cached, model, settings, kind)
    model.last_steps = settings, kind, steps
    return steps


def _cached_steps(
    cached: list[tuple], model: FlatModel, settings: Training, kind: tuple[float, bool, bool, tuple]
) -> Steps:
    """Return the `Steps` in `cached`, newest last, or new ones, for which the oldest may be removed."""
    key = settings.model_copy(update={"epochs": 1, "lr": 0.0}), kind
    for index, (known, steps) in enumerate(cached):
        if known == key:
            cached.append(cached.pop(index))
            return steps
    del cached[: len(cached) - MAX_CACHED_STEPS + 1]
    cached.append((key, Steps(model, settings, *kind[:3])))
    return cached[-1][1]
