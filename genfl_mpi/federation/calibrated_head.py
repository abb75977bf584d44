"""CCVR (Luo et al. 2021): calibrate the output layer on features drawn from a normal distribution per class.

After training, over all clients k, with the features z that the output layer of the global model reads:

    mu_c    = sum_k n_kc / N_c mu_kc
    Sigma_c = sum_k [(n_kc - 1) Sigma_kc + n_kc mu_kc mu_kc^T] / (N_c - 1)  -  N_c / (N_c - 1) mu_c mu_c^T

which are the moments of the pooled samples. They are computed from exact sums of the counts, of z and of
z z^T, 8 (1 + d + d (d + 1) / 2) bytes a class from every rank, for d features. For each class
calibration.features vectors are drawn from N(mu_c, Sigma_c), and the output layer alone is trained on them,
from its present weights. With calibration.moments=images the moments are those of the server's images, and
nothing is sent.

The calibrated model is tested and recorded in /calibrated. The run goes on from the uncalibrated weights, so
that a run that is continued for more rounds equals one that was started with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.learning.batches import batches
from genfl_mpi.learning.class_moments import ClassMoments, draw_features
from genfl_mpi.learning.heads import features_and_logits, find_head
from genfl_mpi.mpi import collectives
from genfl_mpi.util import streams
from genfl_mpi.util.errors import annotate_errors

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.federation.client_data import ClientData
    from genfl_mpi.federation.evaluator import Evaluator
    from genfl_mpi.federation.server_images import ServerImages
    from genfl_mpi.learning.weights import FlatModel
    from genfl_mpi.mpi.collectives import MPI

CHUNK = 512  # samples in one forward pass, which bounds the memory of activations


class CalibratedHead:
    """Calibrate and test the model after the rounds that calibration.every selects.

    model: the rank's `FlatModel`, which is overwritten. images: the server's, on rank 0. Raises
    UserError if the network has no suitable output layer.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        config: Config,
        about: Description,
        model: FlatModel,
        dataset: ClientData,
        images: ServerImages | None,
        note: Callable[..., object],
        evaluator: Evaluator,
    ) -> None:
        self.comm, self.config, self.model, self.dataset = comm, config, model, dataset
        self.images, self.note, self.evaluator = images, note, evaluator
        self.classes = len(about.classes)
        if config.calibration.every is not None:
            self.head = find_head(model.module, about.shape, self.classes, "calibration.every")

    def measure(self, round: int, omega: torch.Tensor) -> dict[str, dict[str, Any]]:
        """Calibrate after a complete round, and return new rows of /calibrated by table. Collective.

        Returns {} on other ranks than 0, and if the round is not due. round: starts at 1; omega: float32
        (size,) on the device, the global weights after it.
        """
        every = self.config.calibration.every
        if every is None or round % every:
            return {}
        self.note("calibrate")
        start = time.perf_counter()
        moments = self.moments(omega)
        weights = np.zeros(len(omega), dtype=np.float32)
        if self.comm.rank == 0:
            with annotate_errors("the calibration"):
                weights[:] = self._calibrate(moments, round, omega).cpu().numpy()
        collectives.broadcast(self.comm, weights)
        accuracy, loss, accuracy_per_class = self.evaluator.test(torch.from_numpy(weights))
        if self.comm.rank:
            return {}
        return {
            "calibrated": {
                "round": [round],
                "accuracy": [accuracy],
                "loss": [loss],
                "accuracy_per_class": accuracy_per_class[None],
                "seconds": [time.perf_counter() - start],
            }
        }

    def moments(self, omega: torch.Tensor) -> ClassMoments:
        """Return the moments of the features at omega, complete on rank 0. Collective."""
        self.model.load(omega)
        self.model.module.eval()
        total, source = ClassMoments(self.classes, self.head.in_features), self.config.calibration.moments
        parts = self.config.clients + 1
        if source != "images":
            for client in range(self.comm.rank, self.config.clients, self.comm.size):
                with annotate_errors(f"the moments of client {client}"):
                    total.add(*self._features(*self.dataset.load(client)), parts)
        if source != "clients" and self.images is not None and len(self.images):
            total.add(*self._features(*self.images.normalised()), parts)
        collectives.wait_for_all(self.comm)
        collectives.reduce_sum(self.comm, total.units)
        return total

    @torch.inference_mode()
    def _features(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the features of images, float32 (n, features), and their labels."""
        parts = [
            features_and_logits(self.model.module, self.head, part)[0].float().cpu()
            for part in images.split(CHUNK)
        ]
        return torch.cat(parts).numpy(), labels.cpu().numpy()

    def _calibrate(self, moments: ClassMoments, round: int, omega: torch.Tensor) -> torch.Tensor:
        """Train the output layer on drawn features. Returns float32 (size,). Only on rank 0.

        Classes with fewer than two samples are skipped.
        """
        settings, seed = self.config.calibration, self.config.seed
        drawn = {
            label: draw_features(
                *gaussian, settings.features, streams.generator(seed, "calibration", round, label)
            )
            for label, gaussian in moments.gaussians().items()
        }
        self.model.load(omega)
        if drawn:
            device = self.model.weights.device
            features = torch.from_numpy(np.concatenate(list(drawn.values()))).float().to(device)
            labels = torch.from_numpy(np.repeat(list(drawn), settings.features)).to(device)
            optimizer = torch.optim.SGD(self.head.parameters(), settings.lr, momentum=0.9)
            rng = streams.generator(seed, "calibration", round)
            for _ in range(settings.epochs):
                for batch in batches(len(labels), settings.batch_size, rng):
                    optimizer.zero_grad()
                    chosen = batch.to(device)
                    F.cross_entropy(self.head(features[chosen]), labels[chosen]).backward()
                    optimizer.step()
            optimizer.zero_grad()
        return self.model.weights
