"""The configured world around a run: times, energies and batteries, and which clients are aggregated."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.edge.attendance import AGGREGATED, DECLINED, STATUS_DTYPE, simulate_attendance
from genfl_mpi.edge.forecast import forecast
from genfl_mpi.edge.hardware import draw_hardware
from genfl_mpi.edge.placements import Holdings, required_work
from genfl_mpi.edge.rounds import Work, draw_cohort, image_joules, image_seconds, price_round
from genfl_mpi.edge.trace import Trace, label_value
from genfl_mpi.federation.workload import generator_fields, has_known_costs, model_fields
from genfl_mpi.generation.image_flops import count_configured
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.config.world import World
    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.edge.forecast import Forecast

ALL = slice(None)  # clients


class SimulatedWorld:
    """Simulate the configured world during a run.

    config: `Config` with a world; about: the data set's `Description`; samples: int (clients,), real samples
    of each client; shared: int (clients, classes), the labels that clients shared. Raises UserError if the
    world has fewer clients, or acts on the run and no client can meet its deadline.

    spent: float64 (clients,), joules of each client so far; holdings: the `Holdings` of all clients; owed:
    float64 (clients,), J that each client gets for the images that it makes, once its model is aggregated.
    """

    def __init__(self, config: Config, about: Description, samples: np.ndarray, shared: np.ndarray) -> None:
        assert config.world is not None
        self.config, self.samples = config, samples
        self.world: World = config.world
        self.wanted: np.ndarray | None = None
        self.devices = draw_hardware(config.world, config.clients)
        self.spent, self.owed = np.zeros((2, config.clients))
        self.holdings = Holdings(config.clients, config.world)
        self.begun: tuple[Any, ...] = ()  # the round of the last `attend`
        # Holds what all rounds have in common.
        self.trace = Trace(
            **model_fields(config, about),
            **(generator_fields(config) if config.sends or config.fills else {}),
            cohorts=[],
            samples=[],
            epochs=[],
            new_images=np.zeros(1),
            pool=np.zeros(1),
            value=label_value(shared, earth_movers_distance(shared)),
        )
        # The kappa policies learn what images and augmented model cost.
        is_counted = config.trains_clients and config.augments and config.time.generators == "cloud"
        if is_counted and not has_known_costs(config) and self.world.server.image_seconds is None:
            raise UserError(
                f"generation.checkpoint={config.generation.checkpoint} is a function, whose costs a world "
                "cannot count; set world.server.image_seconds, the seconds in which the server makes an image"
            )
        if self.world.enforced and self.world.deadline_s and config.trains_clients:
            self._check_deadline()

    @property
    def image_joules(self) -> float:
        """Return the energy a client needs to make an image, in J."""
        return image_joules(self.world.hardware, self.trace.image_flops)

    def set_wanted_images(self, wanted: np.ndarray, share: np.ndarray) -> None:
        """Set each client's images with method=filled.

        wanted: int (clients,), images that each client makes. share: float64 (clients,), share of its gap
        that they fill.
        """
        self.wanted, self.owed = wanted, (self.config.incentive.price or 0.0) * share

    def forecast(
        self, round: int, epochs: np.ndarray | int | None = None, pool: int = 0, new: int = 0
    ) -> Forecast:
        """Return the `Forecast` of a round. round: starts at 0.

        epochs: of the clients, by default the configured ones. pool, new: with method=sent, the images that
        clients will have, and those that the server will make before they train.
        """
        work = self._work(ALL, epochs or self.config.training.epochs, pool, new)
        return forecast(self.world, self.devices, round, self.config.cohort, work, self.spent)

    def available(self, forecast: Forecast) -> np.ndarray | None:
        """Return the clients that participate in a round for the payment, bool (clients,).

        A client participates if the payment covers its cost. None if clients are not paid and all
        participate.
        """
        base = self.config.incentive.base
        return None if base is None else forecast.joules <= base + self.owed

    def attend(
        self,
        round: int,
        cohort: np.ndarray,
        willing: np.ndarray,
        epochs: np.ndarray,
        pool: int = 0,
        new: int = 0,
    ) -> np.ndarray:
        """Return the status of each client of a cohort, STATUS (K,); AGGREGATED if it reports in time.

        cohort: int (K,). willing: bool (K,), clients that do not decline. epochs: int (K,). pool, new: as in
        `forecast`, but final. Energy spent and images held are those of `price` in a world that acts on the
        run, and those of a forecast otherwise; `commit` adds them to the clients' totals.
        """
        status, members = np.where(willing, AGGREGATED, DECLINED).astype(STATUS_DTYPE), cohort[willing]
        work = self._work(members, epochs[willing], pool, new)
        if self.world.enforced:
            undisturbed = price_round(self.world, draw_cohort(self.world, self.devices, round, members), work)
            status[willing], found = simulate_attendance(
                self.world, self.devices.battery, round, undisturbed, self.spent
            )
            self.begun = cohort, members, work, sum(found.client_joules.values()), found.parts
        else:
            expected = forecast(
                self.world, self.devices, round, self.config.cohort, work, self.spent, members
            )
            self.begun = cohort, members, work, expected.joules, None
        return status

    def commit(self, status: np.ndarray) -> None:
        """Commit the round of the last `attend`: add energy and images, and pay the aggregated clients.

        status: STATUS (K,), final status of the cohort.
        """
        cohort, members, work, joules, parts = self.begun
        self.owed[cohort[status == AGGREGATED]] = 0.0
        self.spent[members] += joules
        self.holdings.add(members, work, parts)

    def _work(self, clients: np.ndarray | slice, epochs: np.ndarray | int, pool: int, new: int) -> Work:
        """Return the `Work` of these clients in a round."""
        made = None if self.wanted is None else [self.wanted[clients]]
        return required_work(
            replace(
                self.trace,
                cohorts=[clients],
                samples=[self.samples[clients]],
                epochs=[epochs],
                made=made,
                pool=np.array([pool]),
                new_images=np.array([new]),
            ),
            self.world,
            0,
            self.holdings,
        )

    def _check_deadline(self) -> None:
        """Raise UserError if no client can meet the deadline in any round.

        Counts only training on a client's real samples: making or receiving images may take several rounds.
        """
        least = Work(
            self.trace.sample_flops * self.config.training.epochs * self.samples,
            self.trace.weights_bytes,
            self.trace.upload_bytes,
            self.trace.protocol_bytes,
        )
        quickest = np.inf
        for round in range(self.config.rounds):  # the first round usually decides
            quickest = min(
                quickest, forecast(self.world, self.devices, round, 1, least, self.spent).seconds.min()
            )
            if quickest <= self.world.deadline_s:
                return
        raise UserError(
            f"world.deadline_s={self.world.deadline_s:g} cannot be met: "
            f"in every round all clients need longer; the fastest, with the whole band, takes {quickest:.4g} "
            "s; set a longer deadline"
        )

    def augmented_joules(self, made: int, images: int) -> float:
        """Return the server's energy to generate `made` images and to train omega_a on `images`, in J."""
        return self.world.server.watts * self.augmented_seconds(made, images)

    def augmented_seconds(self, made: int, images: int) -> float:
        """Return how long the server generates `made` images and trains omega_a on `images`, in s."""
        server, seconds = self.world.server, 0.0
        if made:
            flops = 0.0 if server.image_seconds else count_configured(self.config.generation).image
            seconds = made * image_seconds(server, flops)
        flops = self.trace.sample_flops * self.trace.augmented_epochs * images
        return seconds + flops / (server.tflops * 1e12)

    def seconds_in_flight(self, version: int, concurrency: int) -> np.ndarray:
        """Return how long each client takes from receiving a version to its update's arrival, s (clients,).

        The channel is that of round `version`, and `concurrency` clients share the bandwidth equally.
        """
        work = self._work(ALL, self.config.training.epochs, 0, 0)
        return forecast(self.world, self.devices, version, concurrency, work, self.spent).seconds
