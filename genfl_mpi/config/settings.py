"""All settings of a run, and checks across sections."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, model_validator

from genfl_mpi.config import time as virtual_time
from genfl_mpi.config.adversity import Attack, Defence, assumed_attackers, uses_slices
from genfl_mpi.config.personalisation import Personal
from genfl_mpi.config.privacy import Privacy
from genfl_mpi.config.search import Search
from genfl_mpi.config.sections import (
    PLANNED_IMAGES,
    SCHEDULED,
    TRAINING_CLIENTS,
    TWO_MODELS,
    Algorithm,
    Calibration,
    Checkpoint,
    ClientGeneration,
    Clipping,
    Compression,
    Data,
    Distillation,
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
from genfl_mpi.config.time import Time
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


# Named values of `training`. `practical` learns in tens of rounds what takes thousands with `paper`.
PRESETS: dict[str, dict[str, Any]] = {
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

# What is shipped for a data set: prompts of its classes, and a generator that learned these classes.
PROMPTS = {
    "mnist5k": "mnist",
    "mnist": "mnist",
    "fashion_mnist": "fashion_mnist",
    "emnist": "emnist",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
}
DEFAULT_DATA: str = Data.model_fields["name"].default
GENERATORS = {"mnist5k": "digits", "mnist": "digits", "cifar10": "cifar10", "cifar100": "cifar100"}


class Composition(Section):
    """The steps of a round. `method` provides the values that are not set."""

    local_training: Flag = Field(True, description="whether clients train on their private data")
    images: Literal["server", "sent_to_clients", "made_by_clients", "nowhere"] = Field(
        "server",
        description="where images are used; server: to train the augmented model; sent_to_clients: "
        "clients also train on the server's images; made_by_clients: each client generates "
        "what its labels lack and also trains on that; nowhere: no images",
    )
    use: Annotated[list[str], Needs("images at the server", lambda config, _: config.has_server_images)] = (
        Field(
            ["mix"],
            min_length=1,
            description="images=server: what the server does with its images, in this order; mix: it trains "
            "the augmented model, for Eq. (1); the others change the result of Eq. (1)",
        )
    )
    source: Literal["generator", "pool"] = Field(
        "generator",
        description="origin of the images; generator: generation.checkpoint; pool: the public pool",
    )
    matched_steps: Flag = Field(
        False,
        description="whether clients take as many additional local steps as the server would take on "
        "generated images",
    )


# Named compositions: the paper's three methods, two with images at the clients, and two controls.
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"images": "nowhere"},
    "aigc": {"local_training": False},
    "genfl": {},
    "sent": {"images": "sent_to_clients"},
    "filled": {"images": "made_by_clients"},
    "pool": {"source": "pool"},
    "matched": {"images": "nowhere", "matched_steps": True},
    "finetuned": {"use": ["fine_tune"]},
    "distilled": {"use": ["distil"]},
}
METHOD_TITLES = {  # in tables and figures
    "fedavg": "FedAvg",
    "genfl": "GenFL",
    "aigc": "AIGC-only",
    "sent": "images sent",
    "filled": "clients fill",
    "pool": "public pool",
    "matched": "FedAvg, more steps",
    "finetuned": "fine-tuned on images",
    "distilled": "distilled on images",
}

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
        "package; "
        "tensorboard: TensorBoard, in output/tensorboard; wandb: Weights & Biases, in output/wandb; "
        "mlflow: MLflow, "
        "in output/mlruns",
    )
    checkpoint: Checkpoint = Checkpoint()
    faults: Faults = Faults()

    @model_validator(mode="before")
    @classmethod
    def inherit_composition(cls, values: Any) -> Any:
        """Fill `composition` with the method's values."""
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
    def inherit_training(cls, values: Any) -> Any:
        """Fill `training` with the preset's values, then `augmented` with those of `training`."""
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

    @model_validator(mode="before")
    @classmethod
    def inherit_normalisation(cls, values: Any) -> Any:
        """Normalise images as pretrained weights expect it, if data.normalise is not set."""
        if not isinstance(values, dict):
            return values
        data, model = values.get("data", {}), values.get("model", {})
        if isinstance(data, dict) and isinstance(model, dict) and model.get("weights") == "pretrained":
            values = {**values, "data": {"normalise": "imagenet", **data}}
        return values

    @model_validator(mode="before")
    @classmethod
    def inherit_generation(cls, values: Any) -> Any:
        """Fill `generation` with what is shipped for the data set, if anything is."""
        if not isinstance(values, dict):
            return values
        data, generation = values.get("data", {}), values.get("generation", {})
        if isinstance(data, dict) and isinstance(generation, dict):
            name = str(data.get("name", DEFAULT_DATA))
            shipped = {"checkpoint": GENERATORS.get(name), "prompts": PROMPTS.get(name)}
            follows = {
                key: one for key, one in shipped.items() if one and generation.get(key, "auto") == "auto"
            }
            values = {**values, "generation": {**generation, **follows}}
        return values

    @model_validator(mode="before")
    @classmethod
    def inherit_privacy(cls, values: Any) -> Any:
        """Fix rho for secure sums, weigh clients alike under differential privacy, and drop bad weights."""
        privacy = values.get("privacy") if isinstance(values, dict) else None
        if isinstance(privacy, dict):
            is_secure, is_private = privacy.get("secure_aggregation") is True, privacy.get("clip") is not None
            rho = ({"over": "selected"} if is_secure else {}) | ({"policy": "uniform"} if is_private else {})
            faults = {"nonfinite": "drop"} if is_secure or is_private else {}
            for section, implied in (("rho", rho), ("faults", faults)):
                if isinstance(given := values.get(section, {}), dict):
                    values = {**values, section: {**implied, **given}}
        return values

    def _because(self, part: str) -> str:
        """Return the setting to which a part of the composition is due, as key=value, for messages."""
        value = getattr(self.composition, part)
        by_method = METHODS[self.method].get(part, Composition.model_fields[part].default)
        return f"method={self.method}" if value == by_method else f"composition.{part}={as_text(value)}"

    @model_validator(mode="before")
    @classmethod
    def inherit_pretraining(cls, values: Any) -> Any:
        """Let `pretraining` use the public pool, or without one the UCI digits for MNIST's classes."""
        if not isinstance(values, dict):
            return values
        data, pretraining = values.get("data", {}), values.get("pretraining", {})
        if (
            isinstance(data, dict)
            and isinstance(pretraining, dict)
            and pretraining.get("images", "auto") == "auto"
        ):
            is_digits = GENERATORS.get(str(data.get("name", DEFAULT_DATA))) == "digits"
            images = "uci_digits" if is_digits and not data.get("public_pool") else "public_pool"
            values = {**values, "pretraining": {**pretraining, "images": images}}
        return values

    @model_validator(mode="after")
    def check_composition(self) -> "Config":
        """Refuse rounds that train no model, or whose images have no place."""
        parts = self.composition
        if not parts.local_training and parts.images != "server":
            raise ValueError(
                f"{self._because('local_training')} with {self._because('images')} trains no model; set "
                "composition.images=server"
            )
        if "mix" in parts.use[1:]:
            raise ValueError(
                f"composition.use={as_text(parts.use)}: mix is Eq. (1), on which all others build; name it "
                "once, and first"
            )
        if parts.images == "server" and "distil" in parts.use and not parts.local_training:
            raise ValueError(
                f"composition.use={as_text(parts.use)} distils the clients' models, and "
                f"{self._because('local_training')} has none; remove distil"
            )
        if parts.images == "made_by_clients" and parts.source == "pool":
            raise ValueError(
                f"{self._because('source')} takes the images from the server's pool, but with "
                f"{self._because('images')} the clients generate them; change one of the two"
            )
        if parts.matched_steps and parts.images != "nowhere":
            raise ValueError(
                f"{self._because('matched_steps')} is a control without images, which "
                f"{self._because('images')} has; set composition.images=nowhere"
            )
        return self

    @model_validator(mode="after")
    def check_clients(self) -> "Config":
        """Refuse a cohort or a world of the wrong size, and misbehaving clients that cannot be batched."""
        if self.cohort > self.clients:
            if "cohort" in self.model_fields_set:
                raise ValueError(f"cohort ({self.cohort}) is larger than clients ({self.clients}); reduce it")
            raise ValueError(
                f"clients ({self.clients}) is less than the default cohort ({self.cohort}); also set cohort"
            )
        if self.world is not None and self.world.clients is not None and self.world.clients < self.clients:
            raise ValueError(
                f"world.clients ({self.world.clients}) is less than clients ({self.clients}); increase it"
            )
        candidates = self.selection.candidates
        if candidates is not None and not self.cohort <= candidates <= self.clients:
            raise ValueError(
                f"selection.candidates ({candidates}) must lie between cohort ({self.cohort}), which is "
                f"selected from them, and clients ({self.clients}); change it"
            )
        kind = self.misbehaving_clients.kind
        if kind in ("free_rider", "disguised") and self.training.clients_per_batch > 1:
            raise ValueError(
                f"misbehaving_clients.kind={kind} needs training.clients_per_batch=1: "
                "a client that does not train cannot be batched with others"
            )
        return self

    @model_validator(mode="after")
    def check_defence(self) -> "Config":
        """Refuse a defence that the cohort is too small for, or that has no root of trust."""
        name, cohort, assumed = self.defence.name, self.cohort, assumed_attackers(self.defence, self.cohort)
        if name == "trimmed_mean" and cohort <= 2 * assumed:
            raise ValueError(
                f"defence.share={self.defence.share:g} trims all of a cohort of {cohort}: {assumed} on each "
                "side; reduce it, or enlarge cohort"
            )
        if name in ("krum", "multi_krum") and cohort < assumed + 3:
            raise ValueError(
                f"defence.name={name} needs a cohort of at least {assumed + 3}, 3 more than the {assumed} of "
                "defence.share; enlarge cohort, or reduce the share"
            )
        if name == "fltrust" and not self.augments:
            raise ValueError(
                "defence.name=fltrust compares the clients with the augmented model, and "
                f"{self._because('images')} has none; set method=genfl, or method=pool for real images"
            )
        return self

    @property
    def uses_slices(self) -> bool:
        """Whether the cohort's models are combined coordinate by coordinate, not summed."""
        return self.trains_clients and uses_slices(self.attack, self.defence)

    @model_validator(mode="after")
    def check_images(self) -> "Config":
        """Refuse settings of images that contradict the method."""
        if (
            self.calibration.every is not None
            and self.calibration.moments != "clients"
            and not (self.has_server_images or self.sends)
        ):
            raise ValueError(
                f"calibration.moments={self.calibration.moments} needs images at the server, and "
                f"{self._because('images')} has none; set calibration.moments=clients"
            )
        if self.generation.plan == "cohort_deficit" and not self.trains_clients:
            raise ValueError(
                "generation.plan=cohort_deficit needs a cohort, and "
                f"{self._because('local_training')} has none; choose another plan"
            )
        if self.generation.plan == "cohort_deficit" and self.matches_steps:
            raise ValueError(
                "generation.plan=cohort_deficit does not know the number of images in advance, which "
                f"{self._because('matched_steps')} needs; choose another plan"
            )
        if self.source == "pool" and not self.data.public_pool:
            raise ValueError(
                f"{self._because('source')} needs data.public_pool, the images that replace generated ones; "
                "set it to a number of images"
            )
        if self.generation.min_fidelity and self.fills:
            raise ValueError(
                "generation.min_fidelity filters images at the server, but with "
                f"{self._because('images')} the clients generate them; set generation.min_fidelity=0"
            )
        if self.generation.min_fidelity and not self.data.public_pool:
            raise ValueError(
                "generation.min_fidelity needs data.public_pool, the images on which the filter's classifier "
                "is trained; set it to a number of images"
            )
        if self.audit and (self.sends or self.fills):
            raise ValueError(
                "audit compares the labels that clients were trained on with those they hold, but with "
                f"{self._because('images')} they also train on other images; set audit=false"
            )
        return self

    @model_validator(mode="after")
    def check_evaluation(self) -> "Config":
        """Refuse rounds whose last one would not be evaluated."""
        every = self.evaluation.every
        if self.rounds % every:
            raise ValueError(
                f"rounds ({self.rounds}) is not a multiple of evaluation.every ({every}), so that the last "
                f"round would not be evaluated; set rounds={-(-self.rounds // every) * every}, or another "
                "evaluation.every"
            )
        return self

    @model_validator(mode="after")
    def check_validation(self) -> "Config":
        """Refuse a validation source that the run does not have, or on which a model was trained."""
        source = self.validation.source
        if source == "pool" and not self.data.public_pool:
            raise ValueError(
                "validation.source=pool needs data.public_pool, the real images at the server; "
                "set it to a number of images"
            )
        if source == "pool" and self.source == "pool":
            raise ValueError(
                f"validation.source=pool with {self._because('source')} would evaluate the augmented model "
                "on its training images; choose another source"
            )
        if source == "clients" and not self.trains_clients:
            raise ValueError(
                "validation.source=clients needs clients that train, and "
                f"{self._because('local_training')} has none; choose another source"
            )
        if source == "generated" and (self.fills or not self.generates):
            raise ValueError(
                "validation.source=generated needs generated images at the server, and "
                f"{self._because('source' if self.source == 'pool' else 'images')} has none; choose another "
                "source"
            )
        return self

    @model_validator(mode="after")
    def check_secure_aggregation(self) -> "Config":
        """Refuse what needs single clients' models or reports, and thresholds that protect nothing."""
        privacy = self.privacy
        if not privacy.secure_aggregation:
            return self
        refused = {
            "rho.over=aggregated": (self.rho.over == "aggregated", "set rho.over=selected"),
            "faults.nonfinite=stop": (self.faults.nonfinite == "stop", "set faults.nonfinite=drop"),
            "audit=true": (self.audit, "set audit=false"),
            "validation.source=clients": (self.validation.source == "clients", "choose another source"),
            f"rho.policy={self.rho.policy}": (self.rho.policy == "loss", "choose another policy"),
            **self._combinations(),
            f"selection.policy={self.selection.policy}": (
                self.selection.policy in ("power_of_choice", "oort", "importance"),
                "choose another policy",
            ),
        }
        for setting, (is_set, remedy) in refused.items():
            if is_set:
                raise ValueError(
                    f"privacy.secure_aggregation hides single clients from the server, which {setting} "
                    f"needs to know; {remedy}"
                )
        holders = 1 + min(self.cohort - 1, privacy.neighbours or self.cohort)
        if privacy.threshold is not None and not holders / 2 < privacy.threshold <= holders:
            raise ValueError(
                f"privacy.threshold ({privacy.threshold}) must be more than half of the {holders} clients "
                f"that hold shares of a secret, and at most all of them; set it to a number from "
                f"{holders // 2 + 1} to {holders}"
            )
        if self.cohort < 2:
            raise ValueError(
                "privacy.secure_aggregation protects nothing with cohort=1, whose sum is the client's model; "
                "increase cohort"
            )
        return self

    def _combinations(self) -> dict[str, tuple[bool, str]]:
        """Return what needs the clients' single models: {setting: (whether it does, remedy)}."""
        asking = [name for name in self.refinements if name != "fine_tune"]
        return {
            f"defence.name={self.defence.name}": (self.defence.name != "none", "set defence.name=none"),
            f"attack.kind={self.attack.kind}": (self.uses_slices, "choose another attack"),
            f"composition.use={as_text(self.composition.use)}": (bool(asking), f"remove {', '.join(asking)}"),
        }

    @model_validator(mode="after")
    def check_poisson(self) -> "Config":
        """Refuse what needs a cohort of fixed size."""
        if self.selection.policy == "poisson":
            for setting, is_set in {
                "validation.source=clients": self.validation.source == "clients",
                "incentive.base": self.incentive.base is not None,
                "composition.matched_steps=true": self.matches_steps,
                **{setting: needs for setting, (needs, _) in self._combinations().items()},
            }.items():
                if is_set:
                    raise ValueError(
                        f"selection.policy=poisson draws cohorts of varying size, and {setting} needs a "
                        "fixed one; choose another"
                    )
        return self

    @model_validator(mode="after")
    def check_differential_privacy(self) -> "Config":
        """Refuse an incomplete privacy budget, and what its accounting does not cover."""
        privacy, world = self.privacy, self.world
        given = privacy.model_fields_set & {"noise_multiplier", "epsilon", "delta", "rounds", "clip_quantile"}
        if privacy.clip is None:
            if named := sorted(name for name in given if getattr(privacy, name) is not None):
                raise ValueError(f"privacy.{named[0]} needs privacy.clip, which bounds the updates; set it")
            return self
        if privacy.delta is None:
            raise ValueError(
                "privacy.clip needs privacy.delta, at which epsilon is reported; set it below 1 / clients"
            )
        if (privacy.noise_multiplier is None) == (privacy.epsilon is None):
            raise ValueError(
                "privacy.clip needs either privacy.noise_multiplier or privacy.epsilon; set one of the two"
            )
        if privacy.epsilon is not None and privacy.rounds is None:
            raise ValueError("privacy.epsilon needs privacy.rounds, over which it is spent; set it")
        if privacy.rounds is not None and self.rounds > privacy.rounds:
            raise ValueError(
                f"rounds ({self.rounds}) exceeds privacy.rounds ({privacy.rounds}), over which epsilon is "
                "spent; reduce it"
            )
        if privacy.noise == "distributed" and not privacy.secure_aggregation:
            raise ValueError(
                "privacy.noise=distributed hides a client among others only in a masked sum; set "
                "privacy.secure_aggregation=true"
            )
        if privacy.noise == "distributed" and privacy.clip_quantile is not None:
            raise ValueError(
                "privacy.clip_quantile adds the server's noise to a count, and privacy.noise=distributed has "
                "no noise of the server; remove one of them"
            )
        validated = ("softmax_accuracy", "softmax_loss", "line_search", "bandit", "shapley")
        safe_kappas = ("fixed", *SCHEDULED, "alignment", *validated)
        enforced = world is not None and world.enforced
        refused = {
            f"rho.policy={self.rho.policy}": (self.rho.policy != "uniform", "set rho.policy=uniform"),
            "faults.nonfinite=stop": (self.faults.nonfinite == "stop", "set faults.nonfinite=drop"),
            f"selection.policy={self.selection.policy}": (
                self.selection.policy not in ("poisson", "random"),
                "set selection.policy=poisson or random",
            ),
            "validation.source=clients": (self.validation.source == "clients", "choose another source"),
            f"kappa.policy={self.kappa.policy}": (
                self.augments and self.kappa.policy not in safe_kappas,
                f"choose one of {', '.join(safe_kappas)}",
            ),
            "generation.plan=cohort_deficit": (
                self.generation.plan == "cohort_deficit",
                "choose another plan",
            ),
            "composition.matched_steps=true": (self.matches_steps, "choose another method"),
            "calibration.moments=clients": (
                self.calibration.every is not None and self.calibration.moments != "images",
                "set calibration.moments=images",
            ),
            **self._combinations(),
            "incentive.base": (self.incentive.base is not None, "remove it"),
            "world.deadline_s": (
                enforced and world is not None and world.deadline_s is not None,
                "remove it, or set world.enforced=false",
            ),
            "world.channel.waterfall": (
                enforced and world is not None and world.channel.waterfall > 0,
                "set it to 0",
            ),
        }
        for setting, (is_set, remedy) in refused.items():
            if is_set:
                raise ValueError(
                    f"{setting} lets a client's data or presence act on more than its own clipped update, "
                    f"which privacy.clip does not account for; {remedy}"
                )
        return self

    @model_validator(mode="after")
    def check_incentive(self) -> "Config":
        """Refuse payments for what the run does not have."""
        set_world = "set world, for example world=configs/worlds/city.yaml, or world={} for the default world"
        if self.incentive.base is not None and self.world is None:
            raise ValueError(f"incentive.base pays for energy, which only a world defines; {set_world}")
        if self.incentive.price is None:
            return self
        if not self.fills:
            raise ValueError(
                "incentive.price pays clients for images that they generate, and with "
                f"{self._because('images')} they generate none; set method=filled"
            )
        if self.world is None:
            raise ValueError(f"incentive.price pays for energy, which only a world defines; {set_world}")
        chosen = {
            "labels": self.client_generation.labels != "rare",
            "share": self.client_generation.share != 1,
        }
        if any(chosen.values()):
            raise ValueError(
                "with incentive.price each client chooses which share of the gap to a uniform mix it fills; "
                f"remove {' and '.join(f'client_generation.{key}' for key in chosen if chosen[key])}"
            )
        return self

    @model_validator(mode="after")
    def check_time(self) -> "Config":
        """Refuse asynchronous and tiered runs with what needs synchronous rounds."""
        virtual_time.check(self)
        return self

    @model_validator(mode="after")
    def check_generator(self, info: ValidationInfo) -> "Config":
        """Refuse to generate images for a data set without a shipped generator, unless one is given.

        The context may restrict what a command needs: {"needs": some of `checkpoint` and `prompts`}.
        """
        needed = {
            "checkpoint": "generation.checkpoint to a generator of its classes (of your own: `pretrain`, or "
            "module:function)",
            "prompts": "generation.prompts to a YAML file that describes every class",
        }
        given = {key for key in needed if getattr(self.generation, key) != "auto"}
        wanted = (info.context or {}).get("needs")
        missing = [key for key in needed if key not in given and (wanted is None or key in wanted)]
        if self.generates and missing:
            raise ValueError(
                f"the package has no {' or '.join(missing)} for data.name={self.data.name}; "
                f"set {' and '.join(needed[key] for key in missing)}"
            )
        return self

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


def as_text(value: Any) -> str:
    """Return the value of a setting as text for key=value."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(as_text, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
