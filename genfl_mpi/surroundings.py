"""The configured world around a run: what the server's policies know of times, energies and batteries in it, and who is heard."""

from functools import cached_property

import numpy as np

from genfl_mpi.edge.attendance import AGGREGATED, DECLINED, STATUS, attend
from genfl_mpi.edge.devices import draw
from genfl_mpi.edge.forecast import forecast
from genfl_mpi.edge.rounds import Work, image_seconds, meet, price
from genfl_mpi.edge.trace import value_of_labels
from genfl_mpi.errors import UserError
from genfl_mpi.generation.flops import of_configured
from genfl_mpi.learning import models
from genfl_mpi.learning.flops import of_training
from genfl_mpi.learning.weights import FlatModel


class Surroundings:
    """config: `Config` with a world; about: the data set's `Description`; samples: int (clients,), of each client; shared: int
    (clients, classes), what they told of their labels. Raises UserError if the world has fewer clients, or acts on the run and
    lets nobody be done by its deadline."""

    def __init__(self, config, about, samples, shared):
        self.config, self.world, self.about, self.samples = config, config.world, about, samples
        self.devices, self.value = draw(config.world, config.clients), value_of_labels(shared)
        self.spent = np.zeros(config.clients)  # joules of each client so far
        if self.world.acts and self.world.deadline_s and config.trains_clients:
            self._check_deadline()

    def forecast(self, round, cohort=None):
        """The `Forecast` of a round, of which the first is 0, for a cohort of so many, by default the configured one."""
        return forecast(self.world, self.devices, round, cohort or self.config.cohort, self._flops, self._costs[1], self.spent)

    def available(self, forecast):
        """Who takes part in a round for the pay, bool (clients,): whom it would not cost more; None if nobody is paid, and all
        do."""
        base = self.config.incentive.base
        return None if base is None else forecast.joules <= base

    def attend(self, round, cohort, asked, forecast):
        """What becomes of a cohort, int (K,), in a round: status, STATUS (K,), AGGREGATED for who is heard, and the joules that
        each spends, float64 (K,), which are those of the `forecast` in a world that does not act. asked: bool (K,), who does not
        decline."""
        status, joules = np.where(asked, AGGREGATED, DECLINED).astype(STATUS), np.where(asked, forecast.joules[cohort], 0.0)
        if self.world.acts:
            who = cohort[asked]
            work = Work(self._flops[who], self._costs[1], value=self.value[who])
            undisturbed = price(self.world, meet(self.world, self.devices, round, who), work)
            status[asked], spent = attend(self.world, self.devices.battery, round, undisturbed, self.spent)
            joules[asked] = sum(spent.client_joules.values())
        return status, joules

    def _check_deadline(self):
        quickest = np.inf
        for round in range(self.config.rounds):  # of which the first one settles it, as a rule
            quickest = min(quickest, self.forecast(round, cohort=1).seconds.min())
            if quickest <= self.world.deadline_s:
                return
        raise UserError(f"world.deadline_s={self.world.deadline_s:g} cannot be met: in no round is anybody done by then; the "
                        f"quickest, alone in the whole band, takes {quickest:.4g} s")

    def augmented_joules(self, made, images):
        """What the server takes to generate so many images and to train the augmented model on so many."""
        server, seconds = self.world.server, 0.0
        if made:
            seconds = made * image_seconds(server, of_configured(self.config.generation).image)
        return server.watts * (seconds + self._costs[0] * self.config.augmented.epochs * images / (server.tflops * 1e12))

    @cached_property
    def _flops(self):
        """Of each client's local training, float64 (clients,)."""
        return self._costs[0] * self.config.training.epochs * self.samples

    @cached_property
    def _costs(self):
        """FLOPs of training on a sample once, and bytes of a model."""
        model = FlatModel(models.build(self.config.model, len(self.about.classes), self.about.shape, 0))
        return of_training(model.module, self.about.shape), model.weights.numel() * model.weights.element_size()
