"""The models that the clients trained in a round, as teachers of what the server trains.

The ranks keep their clients' models until the next round (4 bytes a weight and client). Rank 0 asks for sums
of their outputs, or of gradients of their inputs. A question is a block of inputs, and its answer an exact
sum over all models: their bytes depend on the number of inputs and hardly on that of clients, and the bits of
the sum not on the ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.federation.questions import Question
from genfl_mpi.learning.heads import head_of
from genfl_mpi.learning.training import normalise
from genfl_mpi.learning.weights import ExactSum

if TYPE_CHECKING:
    from collections.abc import Callable

    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.federation.questions import Ask
    from genfl_mpi.learning.weights import FlatModel

BLOCK = 128  # images in a question
MADE_BLOCK = 64  # made inputs in a question
LOGITS, PULL_BACK, LOSS_GRADIENT = range(3)  # what is asked of made inputs


def image_message(about: Description, cohort: int) -> np.dtype:
    """Return the dtype of a question about images: their number, and each model's weight in the mean."""
    return np.dtype([("count", "i8"), ("share", "f8", (cohort,)), ("images", "u1", (BLOCK, *about.shape))])


def input_message(shape: tuple[int, ...], classes: int, cohort: int) -> np.dtype:
    """Return the dtype of a question about inputs of any `shape`.

    weights: of each model for the inputs of each label.
    """
    return np.dtype(
        [
            ("kind", "i8"),
            ("count", "i8"),
            ("weights", "f8", (cohort, classes)),
            ("labels", "i8", (MADE_BLOCK,)),
            ("inputs", "f4", (MADE_BLOCK, *shape)),
            ("upstream", "f4", (MADE_BLOCK, classes)),
        ]
    )


def questions(
    model: FlatModel,
    about: Description,
    kept: dict[int, torch.Tensor],
    cohort: int,
    shape: tuple[int, ...] | None = None,
) -> dict[str, Question]:
    """Return the questions to the models of a round by name.

    model: the rank's `FlatModel`, which is overwritten. kept: {position in the cohort: float32 (size,)}, this
    rank's models. shape: of an input of "made", the features of the output layer or an image; None: without
    that question.
    """
    classes, device = len(about.classes), model.weights.device

    def load(place: int) -> FlatModel:
        model.load(kept[place].to(device))
        model.module.eval()
        return model

    @torch.inference_mode()
    def answer_images(message: np.ndarray) -> np.ndarray:
        total = ExactSum(np.zeros(BLOCK * classes, dtype=np.int64))
        count, share = int(message["count"][0]), message["share"][0]
        images = normalise(torch.from_numpy(message["images"][0][:count]), about.mean, about.std, device)
        for place in [place for place in kept if share[place]]:
            logits = load(place).module(images).float().flatten()
            ExactSum(total.units[: len(logits)]).add(share[place], logits)
        return total.units

    def answer_made(message: np.ndarray) -> np.ndarray:
        assert shape is not None
        units = np.zeros(MADE_BLOCK * max(classes, int(np.prod(shape))), dtype=np.int64)
        count = int(message["count"][0])
        inputs, labels, upstream = (
            torch.from_numpy(message[name][0][:count].copy()).to(device)
            for name in ("inputs", "labels", "upstream")
        )
        for place in kept:
            rows = torch.from_numpy(message["weights"][0][place][message["labels"][0][:count]]).to(device)
            network: Callable[[torch.Tensor], torch.Tensor] = load(place).module
            if len(shape) == 1:
                network = head_of(model.module)
            values = _ask_one(network, int(message["kind"][0]), inputs, labels, upstream)
            weighted = (values.flatten(1).double() * rows[:, None]).float().flatten()
            ExactSum(units[: len(weighted)]).add(1.0, weighted)
        return units

    found = {"logits": Question(np.zeros(1, image_message(about, cohort)), answer_images)}
    if shape is not None:
        found["made"] = Question(np.zeros(1, input_message(shape, classes, cohort)), answer_made)
    return found


def _ask_one(
    network: Callable[[torch.Tensor], torch.Tensor],
    kind: int,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    upstream: torch.Tensor,
) -> torch.Tensor:
    """Return one model's logits of inputs, or a gradient of the inputs.

    The gradient is that of the logits times `upstream` (n, classes), or of the cross-entropy of each input.
    """
    inputs = inputs.requires_grad_(kind != LOGITS)
    with torch.set_grad_enabled(kind != LOGITS):
        logits = network(inputs)
        if kind == LOGITS:
            return logits
        value = (
            (logits * upstream).sum()
            if kind == PULL_BACK
            else F.cross_entropy(logits, labels, reduction="sum")
        )
        (gradient,) = torch.autograd.grad(value, inputs)
    return gradient


class Teachers:
    """Ask the models of a round on rank 0.

    ask: from `Questions.session`. trained: bool (cohort,), the members with a model. labels: int (cohort,
    classes), the label counts that they shared.

    count: number of models. labels: of the members with a model; 0 for the others.
    """

    def __init__(self, ask: Ask, about: Description, trained: np.ndarray, labels: np.ndarray) -> None:
        self.ask, self.about, self.count = ask, about, int(trained.sum())
        self.share = trained / max(1, self.count)
        self.labels = labels * trained[:, None]

    def mean_logits(self, images: np.ndarray) -> torch.Tensor:
        """Return the mean of the models' logits, float64 (n, classes). images: uint8 (n, C, H, W)."""
        classes, means = len(self.about.classes), []
        message = np.zeros(1, image_message(self.about, len(self.share)))
        message["share"] = self.share
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            message["count"], message["images"][0][: len(block)] = len(block), block
            total = ExactSum(self.ask("logits", message)).value()
            means.append(total.view(BLOCK, classes)[: len(block)].clone())
        return torch.cat(means)

    def logits(self, inputs: torch.Tensor, labels: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
        """Return sum_k weights[k, y_i] z_k(x_i), which can be differentiated by the inputs x.

        inputs: float32 (n, ...), features or images as the algorithm declares; labels: int64 (n,), y;
        weights: float64 (cohort, classes).
        """
        return _Logits.apply(inputs, self, labels, weights)

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
        """Return a scalar with the gradient of mean_i sum_k weights[k, y_i] CE(z_k(x_i), y_i) by the inputs.

        Its value has no meaning.
        """
        gradient = self._ask_made(LOSS_GRADIENT, inputs, labels, weights) / len(inputs)
        return (inputs * gradient).sum()

    def _ask_made(
        self,
        kind: int,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        weights: np.ndarray,
        upstream: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Ask about inputs block by block; return float32 (n, classes), or (n, ...) like the inputs."""
        classes, shape, answers = len(self.about.classes), tuple(inputs.shape[1:]), []
        message = np.zeros(1, input_message(shape, classes, len(self.share)))
        message["kind"], message["weights"] = kind, weights
        width = classes if kind == LOGITS else int(np.prod(shape))
        for start in range(0, len(inputs), MADE_BLOCK):
            part = slice(start, min(len(inputs), start + MADE_BLOCK))
            count = message["count"] = part.stop - start
            message["inputs"][0][:count] = inputs[part].detach().cpu().numpy()
            message["labels"][0][:count] = labels[part].cpu().numpy()
            if upstream is not None:
                message["upstream"][0][:count] = upstream[part].cpu().numpy()
            answers.append(ExactSum(self.ask("made", message)).value()[: count * width].view(count, width))
        found = torch.cat(answers).float().to(inputs.device)
        return found if kind == LOGITS else found.view(inputs.shape)


class _Logits(torch.autograd.Function):
    """The weighted sum of the models' logits, whose backward pass is another question."""

    @staticmethod
    def forward(ctx, inputs, teachers, labels, weights):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs, labels)
        ctx.teachers, ctx.weights = teachers, weights
        return teachers._ask_made(LOGITS, inputs, labels, weights)

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        inputs, labels = ctx.saved_tensors
        gradient = ctx.teachers._ask_made(PULL_BACK, inputs, labels, ctx.weights, upstream)
        return gradient, None, None, None
