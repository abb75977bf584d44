"""All settings of a run, and what must fit together."""

import textwrap
from typing import Literal, get_args, get_origin

from pydantic import Field, model_validator

from genfl_mpi.config.sections import (
    Algorithm,
    Checkpoint,
    ClientGeneration,
    Data,
    Evaluation,
    Faults,
    Finetuning,
    Generation,
    Hindsight,
    Kappa,
    LabelSharing,
    LocalTraining,
    MisbehavingClients,
    Model,
    Partition,
    Pretraining,
    Probes,
    Rho,
    Runtime,
    Selection,
    Training,
    Validation,
)
from genfl_mpi.config.types import Count, Section, Seed
from genfl_mpi.config.world import Incentive, World

# Settings, and sections of them, that a finished round does not depend on: a run may be continued with others.
FREE = {
    "rounds",
    "output",
    "checkpoint",
    "generation.bank",
    "data.root",
    "data.download",
    "pretraining",
    "finetuning",
    "runtime.ranks_per_run",
    "hindsight",
    "probes",
    "audit",
}


# Settings that a run's first start fills in, and that its /environment tells.
MACHINES = {"runtime.threads", "runtime.device"}


def is_free(key):
    """Whether the dotted `key`, or its section, is one of FREE."""
    return not FREE.isdisjoint({key, key.partition(".")[0]})


# Values of `training` under a name. `practical` learns in tens of rounds what `paper` learns in thousands.
PRESETS = {
    "paper": {"epochs": 5, "batch_size": 64, "lr": 1e-4, "momentum": 0.0},
    "practical": {
        "epochs": 5,
        "batch_size": 64,
        "lr": 0.02,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "crop": 4,
        "flip": True,
    },
}


class Composition(Section):
    """What a round is made of. `method` gives these values, where they are not set."""

    local_training: bool = Field(True, description="whether clients train on their own data")
    images: Literal["server", "sent_to_clients", "made_by_clients", "nowhere"] = Field(
        "server",
        description="where images are used: server: it trains the augmented model on them; sent_to_clients: clients train on them, too; made_by_clients: each client generates what its labels lack, and trains on that, too; nowhere",
    )
    source: Literal["generator", "pool"] = Field(
        "generator", description="where images come from: the generator, or the public pool"
    )
    matched_steps: bool = Field(
        False,
        description="whether clients make as many local steps more as the server would make on generated images",
    )


# Compositions under a name: the paper's three methods, images in other places, and two controls.
METHODS = {
    "fedavg": {"images": "nowhere"},
    "aigc": {"local_training": False},
    "genfl": {},
    "sent": {"images": "sent_to_clients"},
    "filled": {"images": "made_by_clients"},
    "pool": {"source": "pool"},
    "matched": {"images": "nowhere", "matched_steps": True},
}
METHOD_TITLES = {
    "fedavg": "FedAvg",
    "genfl": "GenFL",
    "aigc": "AIGC-only",
    "sent": "images sent",
    "filled": "clients fill",
    "pool": "public pool",
    "matched": "FedAvg, more steps",
}  # of methods, in tables and figures


class Config(Section):
    preset: Literal["paper", "practical"] | None = Field(
        None,
        description="values for `training`, where it does not give its own: paper (plain SGD, lr 1e-4) or practical (momentum 0.9, lr 0.02, weight decay, crop and flip)",
    )
    method: Literal[*METHODS] = Field(
        "genfl",
        description="the paper's three: local data only, generated data only, both; the images elsewhere than at the server: sent to the clients, "
        "who train on them too, or made by the clients to fill what their labels lack; and two controls: genfl with the public pool in place of "
        "generated data, and fedavg with as many local steps more as genfl's server makes",
    )
    composition: Composition = Composition()
    seed: Seed = Field(1, description="the seed of everything random")
    rounds: Count = Field(30, description="rounds T")
    clients: Count = Field(20, description="clients N")
    cohort: Count = Field(5, description="clients selected in a round")
    data: Data = Data()
    partition: Partition = Partition()
    misbehaving_clients: MisbehavingClients = MisbehavingClients()
    model: Model = Model()
    training: LocalTraining = LocalTraining()
    algorithm: Algorithm = Algorithm()
    augmented: Training = Field(
        Training(), description="training of the augmented model; what is not given is taken from `training`"
    )
    label_sharing: LabelSharing = LabelSharing()
    incentive: Incentive = Incentive()
    generation: Generation = Generation()
    client_generation: ClientGeneration = ClientGeneration()
    pretraining: Pretraining = Pretraining()
    finetuning: Finetuning = Finetuning()
    kappa: Kappa = Kappa()
    rho: Rho = Rho()
    selection: Selection = Selection()
    validation: Validation = Validation()
    world: World | None = Field(
        None,
        description="a simulated edge for policies that ask for times and energies: a YAML file, or a section as `price` knows it; none: there is none",
    )
    hindsight: Hindsight = Hindsight()
    audit: bool = Field(
        False,
        description="keep what each client's model tells of the labels that it learned from, for the command `audit`",
    )
    probes: Probes = Probes()
    evaluation: Evaluation = Evaluation()
    runtime: Runtime = Runtime()
    output: str = Field("results/default", description="folder of the results files")
    checkpoint: Checkpoint = Checkpoint()
    faults: Faults = Faults()

    @model_validator(mode="before")
    @classmethod
    def inherit_composition(cls, values):
        """`composition` begins with the method's values."""
        if (
            isinstance(values, dict)
            and isinstance(values.get("composition", {}), dict)
            and isinstance(values.get("method", "genfl"), str)
        ):
            parts = METHODS.get(values.get("method", "genfl"), {})
            values = {**values, "composition": {**parts, **values.get("composition", {})}}
        return values

    @model_validator(mode="before")
    @classmethod
    def inherit_training(cls, values):
        """`training` begins with the preset's values, and `augmented` with those of `training`."""
        if (
            isinstance(values, dict)
            and values.get("preset") in list(PRESETS)
            and isinstance(values.get("training", {}), dict)
        ):
            values = {**values, "training": {**PRESETS[values["preset"]], **values.get("training", {})}}
        if isinstance(values, dict) and isinstance(values.get("training"), dict):
            augmented = values.get("augmented") or {}
            if isinstance(augmented, dict):
                inherited = {
                    key: value for key, value in values["training"].items() if key != "clients_per_batch"
                }
                values = {**values, "augmented": {**inherited, **augmented}}
        return values

    @model_validator(mode="after")
    def consistent(self):
        if self.cohort > self.clients:
            raise ValueError(f"cohort ({self.cohort}) is larger than clients ({self.clients})")
        if not self.trains_clients and not self.augments:
            raise ValueError(
                f"composition.local_training=false with composition.images={self.composition.images} trains no model; set composition.images=server"
            )
        if self.fills and self.composition.source == "pool":
            raise ValueError(
                "composition.source=pool is at the server, and with composition.images=made_by_clients the clients make images: take another source or place"
            )
        if self.matches_steps and self.composition.images != "nowhere":
            raise ValueError(
                "composition.matched_steps is a control without images; set composition.images=nowhere"
            )
        if not self.trains_clients and self.generation.plan == "cohort_deficit":
            raise ValueError(
                f"generation.plan=cohort_deficit needs a cohort, and method={self.method} has none"
            )
        if self.matches_steps and self.generation.plan == "cohort_deficit":
            raise ValueError(
                "generation.plan=cohort_deficit cannot tell ahead how many images there will be, which composition.matched_steps asks"
            )
        if (
            self.misbehaving_clients.kind in ("free_rider", "disguised")
            and self.training.clients_per_batch > 1
        ):
            raise ValueError(
                f"misbehaving_clients.kind={self.misbehaving_clients.kind} needs training.clients_per_batch=1: who does not train is not trained with others"
            )
        if self.source == "pool" and not self.data.public_pool:
            raise ValueError(
                f"method={self.method} needs data.public_pool, the images that take the place of generated ones"
            )
        if self.data.shared > self.data.public_pool:
            raise ValueError(
                f"data.shared={self.data.shared} images are given out, and data.public_pool={self.data.public_pool} has fewer"
            )
        if self.validation.source == "pool" and not self.data.public_pool:
            raise ValueError(
                "validation.source=pool needs data.public_pool, the real images that the server holds"
            )
        if self.validation.source == "pool" and self.source == "pool":
            raise ValueError(
                f"validation.source=pool with method={self.method} would judge the augmented model by what it learned from"
            )
        if self.validation.source == "clients" and not self.trains_clients:
            raise ValueError(f"validation.source=clients needs clients, and method={self.method} has none")
        if self.fills and self.generation.min_fidelity:
            raise ValueError(
                "generation.min_fidelity judges images at the server, and with method=filled the clients make them"
            )
        if self.validation.source == "generated" and (self.fills or not self.generates):
            raise ValueError(
                f"validation.source=generated needs generated images, and method={self.method} has none at the server"
            )
        if self.world is not None and self.world.clients is not None and self.world.clients < self.clients:
            raise ValueError(f"world.clients ({self.world.clients}) is less than clients ({self.clients})")
        if self.audit and (self.sends or self.fills):
            raise ValueError(
                f"audit compares what clients learned from with what they hold, and with method={self.method} they learn from generated images too"
            )
        if self.incentive.base is not None and self.world is None:
            raise ValueError(
                "incentive.base pays for energy: set world, to configs/worlds/city.yaml say, or to {}"
            )
        if self.incentive.price is not None and not self.fills:
            raise ValueError(
                f"incentive.price pays clients for the images that they make with method=filled, and method={self.method} has none"
            )
        if self.incentive.price is not None and self.world is None:
            raise ValueError(
                "incentive.price pays for energy: set world, to configs/worlds/city.yaml say, or to {}"
            )
        if self.incentive.price is not None and (
            self.client_generation.labels != "rare" or self.client_generation.share != 1
        ):
            raise ValueError(
                "incentive.price lets each client choose which share of the gap to an even mix it fills: leave client_generation.labels and client_generation.share out"
            )
        if self.generation.min_fidelity and not self.data.public_pool:
            raise ValueError(
                "generation.min_fidelity needs data.public_pool, the images that teach the filter's classifier"
            )
        if self.partition.replacement and self.partition.scheme not in ("iid", "dirichlet_client", "classes"):
            raise ValueError(
                f"partition.replacement goes with the schemes iid, dirichlet_client and classes, not with {self.partition.scheme}"
            )
        return self

    @property
    def trains_clients(self):
        return self.composition.local_training

    @property
    def source(self):
        """Where images come from: generator, pool, or None if there are none."""
        return None if self.composition.images == "nowhere" else self.composition.source

    @property
    def augments(self):
        """Whether the server trains an augmented model on images (placement P1)."""
        return self.composition.images == "server"

    @property
    def generates(self):
        return self.source == "generator"

    @property
    def sends(self):
        """Whether the server sends its images to the clients (placement P2)."""
        return self.composition.images == "sent_to_clients"

    @property
    def fills(self):
        """Whether the clients generate what they lack (placement P3)."""
        return self.composition.images == "made_by_clients"

    @property
    def matches_steps(self):
        return self.composition.matched_steps


def filled_in(config, threads, device):
    """`config` with what another setting decides, once it is known on how many threads and what kind of device it runs."""
    generation = config.generation
    where = device if generation.device == "auto" else generation.device
    filled = {
        "device": where,
        "dtype": generation.dtype
        if generation.dtype != "auto"
        else ("float32" if where == "cpu" else "float16"),
        "seed": config.seed if generation.seed is None else generation.seed,
        "threads": generation.threads or threads,
    }
    return config.model_copy(
        update={
            "runtime": config.runtime.model_copy(update={"threads": threads, "device": device}),
            "generation": generation.model_copy(update=filled),
        }
    )


def keys(section=Config, prefix=""):
    """All dotted keys."""
    found = []
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))  # of `World | None` too
        kinds = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        found += [prefix + name, *(key for kind in kinds for key in keys(kind, f"{prefix}{name}."))]
    return found


def describe():
    """Every setting with its default and meaning, as text of at most 80 columns."""
    lines = []

    def add(section, prefix):
        for name, info in section.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                add(info.annotation, f"{prefix}{name}.")
            else:
                choices = [
                    value
                    for kind in (info.annotation, *get_args(info.annotation))
                    if get_origin(kind) is Literal
                    for value in get_args(kind)
                ]
                told = all(str(value) in (info.description or "") for value in choices)
                about = "; ".join(
                    filter(None, (info.description, "" if told else f"one of {', '.join(map(str, choices))}"))
                )
                about = f"  ({about})" if about else ""
                lines.extend(
                    textwrap.wrap(
                        f"{prefix}{name}: {info.default}{about}",
                        80,
                        initial_indent="  ",
                        subsequent_indent=" " * 8,
                    )
                )

    add(Config, "")
    return "\n".join(lines)
