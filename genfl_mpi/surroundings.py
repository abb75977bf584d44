"""The configured world around a run: what the server's policies know of times, energies and batteries in it."""

from functools import cached_property

import numpy as np

from genfl_mpi.edge.devices import draw
from genfl_mpi.edge.forecast import forecast
from genfl_mpi.edge.rounds import image_seconds
from genfl_mpi.generation.flops import of_configured
from genfl_mpi.learning import models
from genfl_mpi.learning.flops import of_training
from genfl_mpi.learning.weights import FlatModel


class Surroundings:
    """config: `Config` with a world; about: the data set's `Description`; samples: int (clients,), of each client. Raises
    UserError if the world has fewer clients."""

    def __init__(self, config, about, samples):
        self.config, self.world, self.about, self.samples = config, config.world, about, samples
        self.devices = draw(config.world, config.clients)
        self.spent = np.zeros(config.clients)  # joules of each client so far

    def forecast(self, round):
        """The `Forecast` of a round, of which the first is 0."""
        flops = self._costs[0] * self.config.training.epochs * self.samples
        return forecast(self.world, self.devices, round, self.config.cohort, flops, self._costs[1], self.spent)

    def augmented_joules(self, made, images):
        """What the server takes to generate so many images and to train the augmented model on so many."""
        server, seconds = self.world.server, 0.0
        if made:
            seconds = made * image_seconds(server, of_configured(self.config.generation).image)
        return server.watts * (seconds + self._costs[0] * self.config.augmented.epochs * images / (server.tflops * 1e12))

    @cached_property
    def _costs(self):
        """FLOPs of training on a sample once, and bytes of a model."""
        model = FlatModel(models.build(self.config.model, len(self.about.classes), self.about.shape, 0))
        return of_training(model.module, self.about.shape), model.weights.numel() * model.weights.element_size()
