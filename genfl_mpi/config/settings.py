"""All settings of a run."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, model_validator

from genfl_mpi.config import checks, defaults
from genfl_mpi.config.composition import METHODS, Composition
from genfl_mpi.config.sections.adversity import Attack, Defence, uses_slices
from genfl_mpi.config.sections.conditions import PLANNED_IMAGES, TRAINING_CLIENTS, TWO_MODELS
from genfl_mpi.config.sections.decisions import Kappa, Rho, Selection, Validation
from genfl_mpi.config.sections.images import (
    ClientGeneration,
    Distillation,
    Finetuning,
    Generation,
    Pretraining,
)
from genfl_mpi.config.sections.local_training import (
    Algorithm,
    Clipping,
    Compression,
    LocalTraining,
    Model,
    Training,
)
from genfl_mpi.config.sections.observations import Calibration, Evaluation, Hindsight, Probes
from genfl_mpi.config.sections.operation import Checkpoint, Faults, Runtime
from genfl_mpi.config.sections.personalisation import Personal
from genfl_mpi.config.sections.privacy import Privacy
from genfl_mpi.config.sections.samples import Data, LabelSharing, MisbehavingClients, Partition
from genfl_mpi.config.sections.search import Search
from genfl_mpi.config.sections.time import Time
from genfl_mpi.config.types import Count, Flag, Needs, Section, Seed
from genfl_mpi.config.world import Incentive, World

# Settings and sections on which finished rounds do not depend: a run may be continued with other values.
FREE = {
    "rounds",
    "output",
    "checkpoint",
    "generation.bank",
    "generation.ranks",
    "data.root",
    "data.arrays",
    "data.download",
    "pretraining",
    "finetuning",
    "runtime.ranks_per_run",
    "runtime.same_device",
    "hindsight",
    "probes",
    "audit",
    "calibration",
    "logging",
    "search",
}

# Settings that a run's first start fills in and stores in /environment.
MACHINES = {"runtime.threads", "runtime.device"}


def is_free(key: str) -> bool:
    """Return whether the dotted `key` or its section is in FREE."""
    return not FREE.isdisjoint({key, key.partition(".")[0]})


# What whole sections need: without it their settings have no effect.
CLIPPED = Needs(
    "transforms=[clip]", lambda config, _: any(one == "clip" or ":" in one for one in config.transforms)
)
AUGMENTED = Needs(
    "a model that the server trains on images",
    lambda config, _: config.has_server_images or config.matches_steps,
)
DISTILLED = Needs(
    "composition.use=[distil]",
    lambda config, _: (
        config.has_server_images and any(one == "distil" or ":" in one for one in config.composition.use)
    ),
)
SUMMED = Needs("defence.name=none", lambda config, _: config.defence.name == "none")
SYNCHRONOUS = Needs("time.driver=synchronous or tiers", lambda config, _: not config.time.is_asynchronous)
FILLED = Needs("clients that generate", lambda config, _: config.fills)


class Config(Section):
    """All settings of a run."""

    preset: Literal["paper", "practical"] | None = Field(
        None,
        description="values of `training` that are not set there; paper: plain SGD with lr 1e-4; "
        "practical: lr 0.02, momentum 0.9, weight decay, crop and flip",
    )
    method: Literal[*METHODS] = Field(  # type: ignore[valid-type]
        "genfl",
        description="which models are trained on what, a named `composition`; fedavg: clients train on their "
        "private data; aigc: the server trains on generated images; genfl: both, the paper's "
        "method; sent: the server sends its images to the clients, who also train on "
        "them; filled: clients generate images to fill what their labels lack; pool: a "
        "control, genfl with the public pool instead of generated images; matched: a control, "
        "fedavg with as many additional local steps as genfl's server takes; finetuned: the server trains "
        "the clients' average on its images; distilled: it teaches the average the mean predictions of the "
        "clients' models on its images (FedDF)",
    )
    composition: Composition = Composition()
    seed: Seed = Field(1, description="seed of all random draws")
    rounds: Count = Field(25, description="number of rounds T")
    clients: Count = Field(20, description="number of clients N")
    cohort: Annotated[Count, TRAINING_CLIENTS] = Field(5, description="clients selected per round")
    data: Data = Data()
    partition: Partition = Partition()
    misbehaving_clients: MisbehavingClients = MisbehavingClients()
    model: Model = Model()
    training: LocalTraining = LocalTraining()
    algorithm: Annotated[Algorithm, TRAINING_CLIENTS] = Algorithm()
    transforms: Annotated[list[str], TRAINING_CLIENTS] = Field(
        [],
        description="changes to each client's trained model before the sum, in this order",
    )
    clipping: Annotated[Clipping, CLIPPED] = Clipping()
    compression: Compression = Compression()
    attack: Annotated[Attack, TRAINING_CLIENTS] = Attack()
    defence: Annotated[Defence, TRAINING_CLIENTS] = Defence()
    augmented: Annotated[Training, AUGMENTED] = Field(
        Training(), description="Training of the augmented model. Default: the values of `training`"
    )
    distillation: Annotated[Distillation, DISTILLED] = Distillation()
    personal: Annotated[Personal, TRAINING_CLIENTS] = Personal()
    privacy: Annotated[Privacy, TRAINING_CLIENTS] = Privacy()
    label_sharing: LabelSharing = LabelSharing()
    incentive: Incentive = Incentive()
    generation: Annotated[Generation, PLANNED_IMAGES] = Generation()
    client_generation: Annotated[ClientGeneration, FILLED] = ClientGeneration()
    pretraining: Pretraining = Pretraining()
    finetuning: Finetuning = Finetuning()
    kappa: Annotated[Kappa, TWO_MODELS] = Kappa()
    rho: Annotated[Rho, TRAINING_CLIENTS, SUMMED, SYNCHRONOUS] = Rho()
    selection: Annotated[Selection, TRAINING_CLIENTS] = Selection()
    validation: Validation = Validation()
    world: World | None = Field(
        None,
        description="simulated edge, which provides policies with times and energies: a YAML file, or a "
        "section of the settings below; null: no simulated edge",
    )
    time: Annotated[Time, TRAINING_CLIENTS] = Time()
    hindsight: Annotated[Hindsight, TWO_MODELS] = Hindsight()
    audit: Annotated[Flag, TRAINING_CLIENTS] = Field(
        False,
        description="store data for the command `audit`: what each client's model reveals about the labels "
        "that it was trained on",
    )
    probes: Probes = Probes()
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    runtime: Runtime = Runtime()
    output: str = Field("results/default", description="folder of the results files")
    search: Search | None = Field(
        None, description="search of settings with an equal budget for every method; null: none"
    )
    logging: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        [],
        description="tools that show the rounds while the run goes on, each an optional extra of the "
        "package; tensorboard: TensorBoard, in output/tensorboard; wandb: Weights & Biases, in "
        "output/wandb; mlflow: MLflow, in output/mlruns",
    )
    checkpoint: Checkpoint = Checkpoint()
    faults: Faults = Faults()

    @model_validator(mode="before")
    @classmethod
    def inherit(cls, values: Any) -> Any:
        """Fill in what follows from other settings."""
        return defaults.inherit(values)

    @model_validator(mode="after")
    def check(self, info: ValidationInfo) -> "Config":
        """Refuse settings that contradict each other.

        The context may restrict what a command needs: {"needs": some of `checkpoint` and `prompts`}.
        """
        for check in checks.CHECKS:
            check(self)
        checks.check_generator(self, (info.context or {}).get("needs"))
        return self

    @property
    def uses_slices(self) -> bool:
        """Whether the cohort's models are combined coordinate by coordinate, not summed."""
        return self.trains_clients and uses_slices(self.attack, self.defence)

    @property
    def trains_clients(self) -> bool:
        """Whether clients train."""
        return self.composition.local_training

    @property
    def source(self) -> str | None:
        """The origin of the images, generator or pool; None if the run has no images."""
        return None if self.composition.images == "nowhere" else self.composition.source

    @property
    def has_server_images(self) -> bool:
        """Whether the server uses images itself (placement P1)."""
        return self.composition.images == "server"

    @property
    def augments(self) -> bool:
        """Whether the server trains an augmented model on images, for Eq. (1)."""
        return self.has_server_images and "mix" in self.composition.use

    @property
    def refinements(self) -> list[str]:
        """What the server does with its images after Eq. (1), in order."""
        return [name for name in self.composition.use if name != "mix"] if self.has_server_images else []

    @property
    def generates(self) -> bool:
        """Whether images are generated."""
        return self.source == "generator"

    @property
    def sends(self) -> bool:
        """Whether the server sends its images to the clients (placement P2)."""
        return self.composition.images == "sent_to_clients"

    @property
    def fills(self) -> bool:
        """Whether the clients generate what their labels lack (placement P3)."""
        return self.composition.images == "made_by_clients"

    @property
    def cells(self) -> int:
        """How many cells have a model of their own."""
        return self.world.cells if self.world is not None and self.time.driver == "tiers" else 1

    @property
    def busy_ranks(self) -> int:
        """How many ranks the run keeps busy: one per client of the cohort and one for the server.

        runtime.ranks_per_run replaces this number.
        """
        cohort = self.cohort if self.trains_clients else 0
        return self.runtime.ranks_per_run or max(1, cohort + self.has_server_images)

    @property
    def matches_steps(self) -> bool:
        """Whether clients take additional local steps in place of the server's."""
        return self.composition.matched_steps


def fill_in(config: Config, threads: int, device: str) -> Config:
    """Return `config` with the values that follow from the number of threads and the kind of device."""
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


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section that a field's annotation, `X` or `X | None`, stands for; None for a setting."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def keys(section: type[Section] = Config, prefix: str = "") -> list[str]:
    """Return all dotted keys, those of sections included."""
    found = []
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        found += [prefix + name, *(keys(inner, f"{prefix}{name}.") if inner else ())]
    return found
