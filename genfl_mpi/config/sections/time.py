"""Settings of time: when clients' updates enter the global model. `edge/events.py` uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from genfl_mpi.config.types import Count, Natural, NonNegative, Positive, Section, Share, needs

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config

ASYNCHRONOUS = ("fedasync", "fedbuff", "semi_synchronous")


class Time(Section):
    """When the clients' updates enter the global model, on a virtual clock."""

    driver: Literal["synchronous", "fedasync", "fedbuff", "semi_synchronous"] = Field(
        "synchronous",
        description="what ends a round; synchronous: all updates of its cohort; fedasync: one update, mixed "
        "into the model (Xie et al. 2019); fedbuff: the first `cohort` updates to arrive (Nguyen et al. "
        "2022); semi_synchronous: every period_s, with the updates that arrived by then",
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

    @model_validator(mode="after")
    def check_period(self) -> Time:
        """Refuse semi-synchronous rounds without a duration."""
        if self.driver == "semi_synchronous" and self.period_s is None:
            raise ValueError("time.driver=semi_synchronous needs time.period_s, the seconds of a round")
        return self


def check(config: Config) -> None:
    """Raise ValueError if an asynchronous run has settings that need synchronous rounds."""
    time = config.time
    if time.driver == "synchronous":
        return
    world, concurrency = config.world, time.concurrency or config.cohort
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
        "clients that train": not config.trains_clients,
        "images at the server or nowhere": config.sends or config.fills,
        "matched_steps=false": config.matches_steps,
        "selection.policy=random": config.selection.policy != "random",
        "a generation.plan that does not depend on the cohort": config.generates
        and config.generation.plan == "cohort_deficit",
        "training.clients_per_batch=1": config.training.clients_per_batch > 1,
        "validation.source=none": config.validation.source != "none",
        "audit=false": config.audit,
        "evaluation.every=1": config.evaluation.every > 1,
        "calibration.every=null": config.calibration.every is not None,
        "composition.use=[mix]": bool(config.refinements),
        "personal.method=none": config.personal.method != "none",
        "defence.name=none": config.defence.name != "none",
        "attack.share=0": config.attack.share > 0,
        "no privacy": config.privacy.secure_aggregation or config.privacy.clip is not None,
        "probes.every=null": config.probes.every is not None,
        "hindsight.every=null": config.hindsight.every is not None,
        "world.enforced=false": world is not None and world.enforced,
        "incentive.base=null": config.incentive.base is not None,
    }
    if missing := [what for what, lacks in refused.items() if lacks]:
        raise ValueError(f"time.driver={time.driver} needs {' and '.join(missing)}; change it")
