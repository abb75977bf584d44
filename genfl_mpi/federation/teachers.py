"""The models that the clients trained in a round, as teachers of the server's model.

The ranks keep their clients' models until the next round (4 bytes a weight and client). Rank 0 asks for the
mean of their outputs on images. A question is a block of images, and its answer an exact sum over all models:
their bytes depend on the number of images, not on that of clients, and the bits of the mean not on the ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.federation.questions import Question
from genfl_mpi.learning.training import normalise
from genfl_mpi.learning.weights import ExactSum

if TYPE_CHECKING:
    from genfl_mpi.data.datasets import Description
    from genfl_mpi.federation.questions import Ask
    from genfl_mpi.learning.weights import FlatModel

BLOCK = 128  # images in a question


def message_type(about: Description, cohort: int) -> np.dtype:
    """Return the dtype of a question: images and their number, and each model's weight in the mean."""
    return np.dtype([("count", "i8"), ("share", "f8", (cohort,)), ("images", "u1", (BLOCK, *about.shape))])


def logits_question(
    model: FlatModel, about: Description, kept: dict[int, torch.Tensor], cohort: int
) -> Question:
    """Return the `Question` for the mean of the logits of the cohort's models on a block of images.

    model: the rank's `FlatModel`, which is overwritten. kept: {position in the cohort: float32 (size,)}, this
    rank's models.
    """
    total = ExactSum(np.zeros(BLOCK * len(about.classes), dtype=np.int64))

    @torch.inference_mode()
    def answer(message: np.ndarray) -> np.ndarray:
        total.units[:] = 0
        count, share = int(message["count"][0]), message["share"][0]
        device = model.weights.device
        images = normalise(torch.from_numpy(message["images"][0][:count]), about.mean, about.std, device)
        for place in [place for place in kept if share[place]]:
            model.load(kept[place].to(device))
            model.module.eval()
            logits = model.module(images).float().flatten()
            part = ExactSum(total.units[: len(logits)])
            part.add(share[place], logits)
        return total.units

    return Question(np.zeros(1, message_type(about, cohort)), answer)


class Teachers:
    """Ask the models of a round on rank 0.

    ask: from `Questions.session`; trained: bool (cohort,), the members with a model.

    count: number of models.
    """

    def __init__(self, ask: Ask, about: Description, trained: np.ndarray) -> None:
        self.ask, self.about, self.count = ask, about, int(trained.sum())
        self.share = trained / max(1, self.count)

    def mean_logits(self, images: np.ndarray) -> torch.Tensor:
        """Return the mean of the models' logits, float64 (n, classes). images: uint8 (n, C, H, W)."""
        classes, means = len(self.about.classes), []
        message = np.zeros(1, message_type(self.about, len(self.share)))
        message["share"] = self.share
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            message["count"], message["images"][0][: len(block)] = len(block), block
            total = ExactSum(self.ask("logits", message)).value()
            means.append(total.view(BLOCK, classes)[: len(block)].clone())
        return torch.cat(means)
