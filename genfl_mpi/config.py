"""One typed tree of settings: a YAML file plus key=value, checked whole before anything starts."""

import difflib
import itertools
import re
import textwrap
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from genfl_mpi.errors import UserError

# Settings that a finished round does not depend on: a run may be continued with others.
FREE = {"rounds", "output", "checkpoint_every", "generation.bank", "data.root", "data.download"}


def _no_bool(value):
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Number = Annotated[float, BeforeValidator(_no_bool)]  # also of "1e-4", which YAML takes for a text
Positive = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Data(Section):
    name: Literal["mnist5k", "mnist", "cifar10", "cifar100"] = Field("mnist5k", description="data set; mnist5k is installed with the package")
    root: str = Field("data", description="folder that torchvision's loaders read")
    download: bool = Field(False, description="let torchvision download what is missing")


class Partition(Section):
    scheme: Literal["dirichlet", "iid"] = Field("dirichlet", description="how the training data are divided over the clients")
    alpha: Positive = Field(0.1, description="Dirichlet concentration; smaller is more skewed")
    min_samples: Count = Field(10, description="fewest samples a client may hold")


class Model(Section):
    name: Literal["cnn", "resnet18"] = Field("cnn", description="network")
    stem: Literal["imagenet", "cifar"] = Field("imagenet", description="resnet18's first layers: torchvision's own, or 3x3 without max-pool")


class Training(Section):
    epochs: Count = Field(5, description="passes over the data in a round")
    batch_size: Count = Field(64, description="samples in a step of SGD")
    lr: Positive = Field(0.05, description="learning rate")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    weight_decay: NonNegative = 0.0


class LabelSharing(Section):
    """What the clients tell the server of their labels (III-A)."""

    payload: Literal["histogram", "presence"] = Field("histogram", description="samples of each label, or only which labels there are")
    epsilon: Positive | None = Field(None, description="local differential privacy of one sample; none: the truth")
    refusing: Share = Field(0.0, description="share of the clients that tell nothing")


class Generation(Section):
    checkpoint: str = Field("digits", description="`digits` (shipped), a folder in diffusers' format, or a hub id")
    prompts: str = Field("mnist", description="`mnist`, `cifar10`, `cifar100`, or a YAML file of templates and descriptions")
    negative_prompt: str = Field("", description="what the images should not show")
    plan: str = Field("equal", description="which labels to generate: equal, inverse_frequency, deficit, cohort_deficit, or module:function")
    count: Literal["class", "total"] = Field("class", description="whether per_round and cap are meant for each class or for all together")
    per_round: Count = Field(10, description="images a round")
    cap: Count = Field(300, description="most images")
    scheduler: str | None = Field(None, description="a scheduler class of diffusers, for example DPMSolverMultistepScheduler; none: the checkpoint's")
    steps: Count = Field(20, description="denoising steps")
    guidance: NonNegative = Field(7.0, description="classifier-free guidance scale")
    size: Count | None = Field(None, description="pixels of a side as generated, before resizing to the data set's; none: the checkpoint's")
    batch_size: Count = Field(50, description="images made together; part of an image's identity")
    save_memory: list[Literal["attention_slicing", "vae_slicing", "vae_tiling", "model_cpu_offload"]] = Field([], description="diffusers' ways to need less memory")
    threads: Count | None = Field(None, description="threads while generating on a CPU; none: runtime.threads")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: runtime.device")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="auto: float16 on a GPU, float32 on a CPU")
    seed: Seed | None = Field(None, description="seed of the images; none: the run's seed")
    bank: str = Field("results/bank", description="folder of generated images, shared by all runs")


class Kappa(Section):
    """Weights of Eq. (1): kappa1 for the federated model, kappa2 for the augmented one."""

    policy: str = Field("fixed", description="a name or module:function that returns kappa2 for a round")
    kappa1: Share = 0.8
    kappa2: Share = 0.2

    @model_validator(mode="before")
    @classmethod
    def complete(cls, values):
        """A kappa given alone fixes the other one."""
        if isinstance(values, dict) and ("kappa1" in values) != ("kappa2" in values):
            given, other = ("kappa1", "kappa2") if "kappa1" in values else ("kappa2", "kappa1")
            try:
                values = {**values, other: round(1 - float(values[given]), 12)}
            except (TypeError, ValueError):
                pass  # the field's own check names the wrong type
        return values

    @model_validator(mode="after")
    def sum_to_one(self):
        if abs(self.kappa1 + self.kappa2 - 1) > 1e-9:
            raise ValueError(f"kappa1 + kappa2 must be 1, and {self.kappa1:g} + {self.kappa2:g} is {self.kappa1 + self.kappa2:g}; give one of them alone")
        return self


class Evaluation(Section):
    batch_size: Count = Field(500, description="test samples in a chunk; chunks are divided over the ranks")


class Runtime(Section):
    threads: Count | None = Field(None, description="threads a rank; none: the rank's share of the cores. Fixed at a run's first start")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="kind of device; auto: a GPU where there is one. Fixed at a run's first start")


class Config(Section):
    method: Literal["fedavg", "aigc", "genfl"] = Field("genfl", description="the paper's three: local data only, generated data only, both")
    seed: Seed = Field(1, description="the seed of everything random")
    rounds: Count = Field(30, description="rounds T")
    clients: Count = Field(20, description="clients N")
    cohort: Count = Field(5, description="clients selected in a round")
    selection: str = Field("random", description="how the cohort is chosen: a name or module:function")
    rho: str = Field("size", description="the clients' weights in Eq. (1): a name or module:function")
    data: Data = Data()
    partition: Partition = Partition()
    model: Model = Model()
    training: Training = Training()
    augmented: Training = Field(Training(), description="training of the augmented model; what is not given is taken from `training`")
    label_sharing: LabelSharing = LabelSharing()
    generation: Generation = Generation()
    kappa: Kappa = Kappa()
    evaluation: Evaluation = Evaluation()
    runtime: Runtime = Runtime()
    output: str = Field("results/default", description="folder of the results files")
    checkpoint_every: Count = Field(1, description="rounds between checkpoints, from which an interrupted run continues")

    @model_validator(mode="before")
    @classmethod
    def inherit_training(cls, values):
        if isinstance(values, dict) and isinstance(values.get("training"), dict):
            augmented = values.get("augmented") or {}
            if isinstance(augmented, dict):
                values = {**values, "augmented": {**values["training"], **augmented}}
        return values

    @model_validator(mode="after")
    def consistent(self):
        if self.cohort > self.clients:
            raise ValueError(f"cohort ({self.cohort}) is larger than clients ({self.clients})")
        if self.method == "aigc" and self.generation.plan == "cohort_deficit":
            raise ValueError("generation.plan=cohort_deficit needs a cohort, and method=aigc has none")
        return self

    @property
    def trains_clients(self):
        return self.method != "aigc"

    @property
    def generates(self):
        return self.method != "fedavg"


def load(source=None, overrides=()):
    """Every run of a configuration: a dict from run name to `Config`, in the sweep's order.

    source: a YAML file's path, a dict, or None for the embedded default. overrides: strings "dotted.key=value".
    A `sweep` section maps dotted keys to lists; the runs are their product. An override of a swept key pins it.
    Raises UserError.
    """
    where, values = _read(source)
    sweep = values.pop("sweep", None) or {}
    if not isinstance(sweep, dict):
        raise UserError(f"{where}: sweep must map keys to lists, for example sweep: {{seed: [1, 2, 3]}}")
    given = dict(_split_override(override) for override in overrides)
    for key, value in given.items():
        if key.startswith("sweep."):
            sweep[key.removeprefix("sweep.")] = value
        else:
            sweep.pop(key, None)
            _set(values, key, value)
            other = {"kappa.kappa1": "kappa2", "kappa.kappa2": "kappa1"}.get(key)
            if other and f"kappa.{other}" not in given:
                values["kappa"].pop(other, None)  # the one given decides
    for key, choices in sweep.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{where}: sweep.{key} must be a list with at least one value")
    runs = {}
    for combination in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, combination))
        member = yaml.safe_load(yaml.safe_dump(values))
        for key, value in chosen.items():
            _set(member, key, value)
        config = validate(member, where)
        name = _run_name(config, chosen)
        if name in runs:
            raise UserError(f"{where}: two runs of the sweep would be called {name}; leave one of the equal or similar values out")
        runs[name] = config
    return runs


def single(source=None, overrides=()):
    """The one run of a configuration without a sweep, or with every swept key pinned. Raises UserError."""
    runs = load(source, overrides)
    if len(runs) > 1:
        raise UserError(f"the configuration is a sweep of {len(runs)} runs ({', '.join(list(runs)[:3])}, ...); pin the swept keys, for example method=genfl")
    return next(iter(runs.values()))


def validate(values, where="configuration"):
    """`Config` from a nested dict. Raises UserError with one line that names the first wrong key."""
    try:
        return Config.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error.errors()[0])}") from None


def to_yaml(config):
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def _read(source):
    if isinstance(source, dict):
        return "configuration", yaml.safe_load(yaml.safe_dump(source))
    where, text = str(source or "default.yaml"), text_of(source)
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be a mapping of keys to values")
    return where, values


def _split_override(text):
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r} is not key=value; keys are dotted, for example training.lr=0.01")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{text!r}: the value is not valid YAML") from None


def _set(values, key, value):
    *sections, leaf = str(key).split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(f"{key}: {section} is a value, not a section")
    values[leaf] = value


def _run_name(config, chosen):
    """method_seed, then the other swept keys: a file name without surprises."""
    leaves = Counter(key.rpartition(".")[2] for key in chosen)
    parts = [config.method, f"seed{config.seed}"]
    for key, value in chosen.items():
        if key not in ("method", "seed"):
            leaf = key.rpartition(".")[2]
            parts.append(f"{leaf if leaves[leaf] == 1 else key}{value}")
    return re.sub(r"[^\w.+-]", "-", "_".join(parts))


def _explain(error):
    """One line from pydantic's account of one error."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        keys = _keys(Config)
        near = [k for k in keys if k.rpartition(".")[2] == path[-1]] or difflib.get_close_matches(key, keys, n=1, cutoff=0)
        return f"unknown key {key}; did you mean {near[0]}?"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] == "value_error" and "=" not in key:
        return f"{key + ': ' if key else ''}{message}"
    return f"{key}: {message}, not {error['input']!r}"


def _keys(section, prefix=""):
    """All dotted keys."""
    keys = []
    for name, field in section.model_fields.items():
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        keys += [prefix + name, *(_keys(field.annotation, f"{prefix}{name}.") if nested else [])]
    return keys


def flatten(values, prefix=""):
    """Nested dicts as one dict with dotted keys."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def text_of(source=None):
    """A configuration as the user wrote it. Raises UserError."""
    if source is None:
        return files("genfl_mpi").joinpath("default.yaml").read_text()
    try:
        return Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None


def describe():
    """Every setting with its default and meaning, as text of at most 80 columns."""
    lines = []

    def add(section, prefix):
        for name, info in section.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                add(info.annotation, f"{prefix}{name}.")
            else:
                about = f"  ({info.description})" if info.description else ""
                lines.extend(textwrap.wrap(f"{prefix}{name}: {info.default}{about}", 80, initial_indent="  ", subsequent_indent=" " * 8))

    add(Config, "")
    return "\n".join(lines)
