"""Steps of SGD: one function over fixed buffers, which a GPU repeats as a CUDA graph."""

import warnings
from itertools import compress

import torch
import torch.nn.functional as F

from genfl_mpi.util.text import first_line

MOST_GRAPHS = 64  # shapes of a batch that have a graph; others are computed step by step
KEPT = 2  # `Steps` of a model that are kept: of the clients, and of the augmented model
WARM_UPS = 3  # steps before a capture, in which libraries choose their kernels


def descend(parameters, direction, settings, velocity=(), mu=0.0, begun=(), correction=()):
    """A step of SGD along gradients, with momentum and weight decay as torch.optim.SGD has them. All are lists of tensors alike;
    parameters and velocity are changed in place, and direction is used up.

    velocity: with momentum, zeros before the first step. mu, begun: FedProx's pull towards `begun`; correction: is added to the
    gradients. Nothing else is done to a weight, so that each is read and written once. torch's own optimizers
    call these private functions of lists, too; a loop over the tensors would launch a kernel for each.
    """
    if mu:
        torch._foreach_add_(direction, torch._foreach_sub(parameters, begun), alpha=mu)
    if correction:
        torch._foreach_add_(direction, correction)
    if settings.weight_decay:
        torch._foreach_add_(direction, parameters, alpha=settings.weight_decay)
    if settings.momentum:
        torch._foreach_mul_(velocity, settings.momentum)
        torch._foreach_add_(velocity, direction)
        direction = velocity
    torch._foreach_add_(parameters, direction, alpha=-settings.lr)


class Steps:
    """Steps of a model with the same settings: `begin` a training, then call it with each batch.

    model: `FlatModel`; settings: config.training; mu: of FedProx; corrected: whether gradients are corrected (SCAFFOLD).
    On a GPU a batch of a shape seen before is copied to where the last one lay, and the whole step (forwards, backwards, update)
    is one launch of a CUDA graph. A graph is used only if its first step has the same bits as the step by itself.
    """

    def __init__(self, model, settings, mu=0.0, corrected=False):
        self.model, self.settings, self.mu = model, settings, mu
        wanted = {"velocity": settings.momentum, "begun": mu, "correction": corrected}
        self.buffers = {
            name: torch.zeros_like(model.weights[: model.parameters])
            for name, needed in wanted.items()
            if needed
        }
        self.parameters = list(model.module.parameters())
        self.split = {name: model.split(buffer) for name, buffer in self.buffers.items()}
        self.graphs, self.pool = {}, None
        self.fixed = model.weights.device.type == "cuda" and is_static(model.module)

    def begin(self, start, correction=None, anchor=None):
        """Begin a training. start: float32 (size,); correction: float32 (parameters,); anchor: float32 (size,), of the proximal term, by
        default `start`."""
        self.model.load(start)
        self.model.module.train()
        for name, value in (
            ("begun", (start if anchor is None else anchor)[: self.model.parameters]),
            ("correction", correction),
        ):
            if name in self.buffers:
                self.buffers[name].copy_(value, non_blocking=True)
        if "velocity" in self.buffers:
            self.buffers["velocity"].zero_()

    def __call__(self, images, labels):
        """A step on a batch. Returns (loss, logits), nobody's but the caller's."""
        if self.fixed and images.shape not in self.graphs and len(self.graphs) < MOST_GRAPHS:
            self.graphs[images.shape] = self._prepare(images, labels)
        if not self.fixed or images.shape not in self.graphs:
            return self.compute(images, labels)
        replay, inputs, results = self.graphs[images.shape]
        for buffer, given in zip(inputs, (images, labels)):
            buffer.copy_(given)
        replay()
        return tuple(result.clone() for result in results)

    def compute(self, images, labels):
        """A step on whatever is in these tensors: what a graph repeats."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16"):
            logits = self.model.module(images)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        with torch.no_grad():
            has = [
                weights.grad is not None for weights in self.parameters
            ]  # what is frozen, or not used, stays as it is
            own = {name: list(compress(parts, has)) for name, parts in self.split.items()}
            learning = list(compress(self.parameters, has))
            descend(learning, [weights.grad for weights in learning], self.settings, mu=self.mu, **own)
        for parameter in self.parameters:
            parameter.grad = (
                None  # the next backward pass then writes its own, and nothing need be zeroed or added up
            )
        return loss.detach(), logits.detach()

    def _prepare(self, images, labels):
        """(replay, inputs, results) of a graph of the step on batches of this shape. The model is left as it was. Where there can
        be none, or it computes something else, no step of these is fixed any more."""
        inputs, state = (
            (images.clone(), labels.clone()),
            (self.model.weights, *self.model.others, *self.buffers.values()),
        )
        stream = (
            torch.cuda.default_generators[images.device.index]
            if images.device.type == "cuda"
            else torch.default_generator
        )
        before, drawn = [tensor.clone() for tensor in state], stream.get_state()

        def back():
            for tensor, value in zip(state, before):
                tensor.copy_(value)
            stream.set_state(drawn)

        def after(results):
            return [tensor.clone() for tensor in (*state, *results)]

        problem = "its first step had other bits"
        try:
            replay, results = self._capture(lambda: self.compute(*inputs))
            back()
            expected = after(self.compute(*inputs))
            back()
            replay()
            self.fixed = all(map(torch.equal, after(results), expected))
        except RuntimeError as error:
            self.fixed, problem = False, first_line(error)
        for parameter in self.parameters:
            parameter.grad = None
        back()
        if self.fixed:
            return replay, inputs, results
        self.graphs.clear()
        warnings.warn(f"steps of training are not repeated as a CUDA graph: {problem}", stacklevel=2)

    def _capture(self, function):
        """(a function that repeats `function` on the same memory, its results there)."""
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            results = function()
        return graph.replay, results


def is_static(module):
    """Whether a module does the same with every batch: all its layers are torch's or torchvision's own, which do not branch on
    what they see, or ours."""
    return all(
        type(layer).__module__.partition(".")[0] in ("torch", "torchvision", "genfl_mpi")
        for layer in module.modules()
    )


def steps_of(model, settings, mu=0.0, corrected=False):
    """`Steps`, kept with the model as long as nothing but epochs changes, so that a GPU captures no graph again."""
    key = settings.model_copy(update={"epochs": 1}), mu, corrected
    kept = model.kept
    for index, (known, steps) in enumerate(kept):
        if known == key:
            kept.append(kept.pop(index))
            return steps
    del kept[: len(kept) - KEPT + 1]
    kept.append((key, Steps(model, settings, mu, corrected)))
    return kept[-1][1]
