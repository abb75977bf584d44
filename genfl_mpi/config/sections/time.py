"""Settings of time: when clients' updates enter the global model. `edge/events.py` uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from genfl_mpi.config.sections.conditions import GENERATED_IMAGES
from genfl_mpi.config.types import Count, Natural, NonNegative, Positive, Section, Share, needs

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config

ASYNCHRONOUS = ("fedasync", "fedbuff", "semi_synchronous")


class Time(Section):
    """When the clients' updates enter the global model, on a virtual clock."""

    driver: Literal["synchronous", "fedasync", "fedbuff", "semi_synchronous", "tiers"] = Field(
        "synchronous",
        description="what ends a round; synchronous: all updates of its cohort; fedasync: one update, mixed "
        "into the model (Xie et al. 2019); fedbuff: the first `cohort` updates to arrive (Nguyen et al. "
        "2022); semi_synchronous: every period_s, with the updates that arrived by then; tiers: all updates, "
        "averaged by the edge server of each of world.cells (HierFAVG, Liu et al. 2020)",
    )
    cloud_every: Annotated[Count, needs("driver", "tiers")] = Field(
        1,
        description="tiers: rounds, averages at the edge servers, for each average of these at the cloud; "
        "`rounds` must be a multiple of it",
    )
    generators: Annotated[Literal["cloud", "edges"], needs("driver", "tiers"), GENERATED_IMAGES] = Field(
        "cloud",
        description="tiers: who generates images and trains an augmented model for Eq. (1); cloud: the "
        "cloud, for each of its averages; edges: each edge server, for the labels of its cell, in every "
        "round",
    )
    concurrency: Annotated[Count | None, needs("driver", *ASYNCHRONOUS)] = Field(
        None, description="clients that train at any time; null: as many as `cohort`"
    )
    mixing: Annotated[Share, Field(gt=0), needs("driver", "fedasync")] = Field(
        0.6, description="fedasync: alpha, the weight of an update that is not stale"
    )
    server_lr: Annotated[Positive, needs("driver", "fedbuff", "semi_synchronous")] = Field(
        1.0, description="fedbuff, semi_synchronous: eta, learning rate of the server"
    )
    power: Annotated[NonNegative, needs("driver", *ASYNCHRONOUS)] = Field(
        0.5,
        description="a: what is stale by tau rounds has the weight (1 + tau)^-a, updates and the augmented "
        "model alike",
    )
    max_staleness: Annotated[Natural, needs("driver", *ASYNCHRONOUS)] = Field(
        20,
        description="staler updates are discarded, in rounds; bounds how many versions of the model are kept",
    )
    period_s: Annotated[Positive | None, needs("driver", "semi_synchronous")] = Field(
        None, description="semi_synchronous: duration of a round on the virtual clock, s"
    )
    trace: Annotated[str | None, needs("driver", *ASYNCHRONOUS)] = Field(
        None,
        description="CSV file with the columns client, start and seconds: who trains when, instead of a "
        "random selection and the durations in `world`; rows of the client `server` are its work on images",
    )

    @property
    def is_asynchronous(self) -> bool:
        """Whether rounds end on a virtual clock."""
        return self.driver in ASYNCHRONOUS

    @model_validator(mode="after")
    def check_period(self) -> Time:
        """Refuse semi-synchronous rounds without a duration."""
        if self.driver == "semi_synchronous" and self.period_s is None:
            raise ValueError("time.driver=semi_synchronous needs time.period_s, the seconds of a round")
        return self


def check(config: Config) -> None:
    """Raise ValueError if a run has settings that its driver does not support."""
    time, world = config.time, config.world
    if world is not None and world.cells > 1 and time.driver != "tiers":
        raise ValueError(
            f"world.cells={world.cells} has edge servers, which only time.driver=tiers uses; set it (with "
            "time.cloud_every=1 it is FedAvg without tiers), or world.cells=1"
        )
    if time.is_asynchronous:
        _check_asynchronous(config)
    elif time.driver == "tiers":
        _check_tiers(config)


def _check_tiers(config: Config) -> None:
    time, world = config.time, config.world
    if world is None:
        raise ValueError(
            "time.driver=tiers needs a world with cells; set world, for example world={cells: 4}"
        )
    if config.rounds % time.cloud_every:
        raise ValueError(
            f"rounds ({config.rounds}) is not a multiple of time.cloud_every ({time.cloud_every}), so that "
            f"the last rounds would not reach the cloud; set "
            f"rounds={-(-config.rounds // time.cloud_every) * time.cloud_every}"
        )
    if time.generators == "edges" and not (config.generates and config.augments):
        raise ValueError(
            "time.generators=edges needs generated images at the server; set method=genfl, or remove it"
        )
    refused = {
        **_refused(config),
        "a selection.policy other than poisson": config.selection.policy == "poisson",
        "rho.over=aggregated": config.rho.over == "selected",
    }
    _refuse(time, refused)


def _check_asynchronous(config: Config) -> None:
    time, world = config.time, config.world
    concurrency = time.concurrency or config.cohort
    if world is None and time.trace is None:
        raise ValueError(
            f"time.driver={time.driver} needs a virtual clock; set world, for example "
            "world=configs/worlds/city.yaml, or time.trace to a file of measured times"
        )
    if time.driver == "fedasync" and config.cohort > 1:
        raise ValueError("time.driver=fedasync aggregates one update at a time; set cohort=1")
    if concurrency > config.clients:
        raise ValueError(
            f"time.concurrency ({concurrency}) is larger than clients ({config.clients}); reduce it"
        )
    if time.driver == "semi_synchronous" and concurrency > config.cohort:
        raise ValueError(
            f"with time.driver=semi_synchronous at most `cohort` clients train at any time; set "
            f"time.concurrency={config.cohort}, or cohort={concurrency}"
        )
    refused = {
        **_refused(config),
        "selection.policy=random": config.selection.policy != "random",
        "a generation.plan that does not depend on the cohort": config.generates
        and config.generation.plan == "cohort_deficit",
        "evaluation.every=1": config.evaluation.every > 1,
    }
    _refuse(time, refused)


def _refused(config: Config) -> dict[str, bool]:
    """Return what only synchronous rounds support: {what a run needs instead: whether it lacks that}."""
    return {
        "clients that train": not config.trains_clients,
        "images at the server or nowhere": config.sends or config.fills,
        "matched_steps=false": config.matches_steps,
        "training.clients_per_batch=1": config.training.clients_per_batch > 1,
        "validation.source=none": config.validation.source != "none",
        "audit=false": config.audit,
        "calibration.every=null": config.calibration.every is not None,
        "composition.use=[mix]": bool(config.refinements),
        "personal.method=none": config.personal.method != "none",
        "defence.name=none": config.defence.name != "none",
        "attack.share=0": config.attack.share > 0,
        "no privacy": config.privacy.secure_aggregation or config.privacy.clip is not None,
        "probes.every=null": config.probes.every is not None,
        "hindsight.every=null": config.hindsight.every is not None,
        "world.enforced=false": config.world is not None and config.world.enforced,
        "incentive.base=null": config.incentive.base is not None,
    }


def _refuse(time: Time, refused: dict[str, bool]) -> None:
    """Raise ValueError if a run lacks something. refused: as of `_refused`."""
    if missing := [what for what, lacks in refused.items() if lacks]:
        raise ValueError(f"time.driver={time.driver} needs {' and '.join(missing)}; change it")
