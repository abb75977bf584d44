"""The configured world around a run: what the server's policies know of times, energies and batteries in it, and who is heard."""

from dataclasses import replace

import numpy as np

from genfl_mpi.edge.attendance import AGGREGATED, DECLINED, STATUS, attend
from genfl_mpi.edge.forecast import forecast
from genfl_mpi.edge.hardware import draw
from genfl_mpi.edge.placements import Holdings, asked
from genfl_mpi.edge.rounds import Work, image_joules, image_seconds, meet, price
from genfl_mpi.edge.trace import Trace, value_of_labels
from genfl_mpi.federation.workload import of_generator, of_model
from genfl_mpi.generation.image_flops import of_configured
from genfl_mpi.util.errors import UserError

ALL = slice(None)  # clients


class Surroundings:
    """config: `Config` with a world; about: the data set's `Description`; samples: int (clients,), of each client's own;
    shared: int (clients, classes), what they told of their labels. Raises UserError if the world has fewer clients, or acts on
    the run and lets nobody be done by its deadline.

    spent: float64 (clients,), joules of each client so far; holdings: the `Holdings` of all; owed: float64 (clients,), J that
    each will be paid for the images that it makes, once its model is aggregated.
    """

    def __init__(self, config, about, samples, shared):
        self.config, self.world, self.samples, self.wanted = config, config.world, samples, None
        self.devices, self.spent, self.owed = (
            draw(config.world, config.clients),
            *np.zeros((2, config.clients)),
        )
        self.holdings, self.begun = Holdings(config.clients, config.world), None
        generator = of_generator(config) if config.sends or config.fills else {}
        self.trace = Trace(
            **of_model(config, about),
            **generator,
            cohorts=[],
            samples=[],
            epochs=[],
            new_images=np.zeros(1),
            pool=np.zeros(1),
            value=value_of_labels(shared),
        )  # what all rounds have in common
        if self.world.enforced and self.world.deadline_s and config.trains_clients:
            self._check_deadline()

    @property
    def image_joules(self):
        """What an image takes the client that makes it, in J."""
        return image_joules(self.world.hardware, self.trace.image_flops)

    def fill(self, wanted, share):
        """With method=filled: how many images each client makes, int (clients,), and for which share of its gap, float64
        (clients,)."""
        self.wanted, self.owed = wanted, (self.config.incentive.price or 0.0) * share

    def forecast(self, round, epochs=None, pool=0, new=0):
        """The `Forecast` of a round, of which the first is 0. epochs: of the clients, by default the configured ones; pool,
        new: with method=sent, how many images there will be for the clients, and how many the server will make before they
        train."""
        work = self._work(ALL, epochs or self.config.training.epochs, pool, new)
        return forecast(self.world, self.devices, round, self.config.cohort, work, self.spent)

    def available(self, forecast):
        """Who takes part in a round for the pay, bool (clients,): whom it would not cost more; None if nobody is paid, and all
        do."""
        base = self.config.incentive.base
        return None if base is None else forecast.joules <= base + self.owed

    def attend(self, round, cohort, willing, epochs, pool=0, new=0):
        """What becomes of a cohort, int (K,), in a round: status, STATUS (K,), AGGREGATED for who is heard. willing: bool (K,),
        who does not decline; epochs: int (K,), of each; pool, new: as in `forecast`, and now known. What each spends, and then
        holds, is what `price` counts in a world that acts, and that of a forecast in one that does not; `note` takes it
        down."""
        status, who = np.where(willing, AGGREGATED, DECLINED).astype(STATUS), cohort[willing]
        work = self._work(who, epochs[willing], pool, new)
        if self.world.enforced:
            undisturbed = price(self.world, meet(self.world, self.devices, round, who), work)
            status[willing], found = attend(self.world, self.devices.battery, round, undisturbed, self.spent)
            self.begun = cohort, who, work, sum(found.client_joules.values()), found.parts
        else:
            found = forecast(self.world, self.devices, round, self.config.cohort, work, self.spent, who)
            self.begun = cohort, who, work, found.joules, None
        return status

    def note(self, status):
        """The round of the last `attend` was a whole one: its clients have spent what it took, hold what they got, and were
        paid for their images if they were aggregated. status: STATUS (K,), what became of its cohort at last."""
        cohort, who, work, joules, parts = self.begun
        self.owed[cohort[status == AGGREGATED]] = 0.0
        self.spent[who] += joules
        self.holdings.add(who, work, parts)

    def _work(self, clients, epochs, pool, new):
        made = None if self.wanted is None else [self.wanted[clients]]
        return asked(
            replace(
                self.trace,
                cohorts=[clients],
                samples=[self.samples[clients]],
                epochs=[epochs],
                made=made,
                pool=[pool],
                new_images=[new],
            ),
            self.world,
            0,
            self.holdings,
        )

    def _check_deadline(self):
        """Of training alone, on a client's own data: images that one round has no time for may be made, or sent, in several."""
        least = Work(
            self.trace.sample_flops * self.config.training.epochs * self.samples, self.trace.weights_bytes
        )
        quickest = np.inf
        for round in range(self.config.rounds):  # of which the first one settles it, as a rule
            quickest = min(
                quickest, forecast(self.world, self.devices, round, 1, least, self.spent).seconds.min()
            )
            if quickest <= self.world.deadline_s:
                return
        raise UserError(
            f"world.deadline_s={self.world.deadline_s:g} cannot be met: in no round is anybody done by then; the "
            f"quickest, alone in the whole band, takes {quickest:.4g} s"
        )

    def augmented_joules(self, made, images):
        """What the server takes to generate so many images and to train the augmented model on so many."""
        server, seconds = self.world.server, 0.0
        if made:
            seconds = made * image_seconds(server, of_configured(self.config.generation).image)
        flops = self.trace.sample_flops * self.trace.augmented_epochs * images
        return server.watts * (seconds + flops / (server.tflops * 1e12))
