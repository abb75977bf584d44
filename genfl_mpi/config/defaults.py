"""Values of settings that follow from others: from the method, a preset, or the data set."""

from typing import Any

from genfl_mpi.config.composition import METHODS
from genfl_mpi.config.sections.samples import Data

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
GENERATORS = {"mnist5k": "digits", "mnist": "digits", "cifar10": "cifar10", "cifar100": "cifar100"}
DEFAULT_DATA: str = Data.model_fields["name"].default


def inherit_composition(values: Any) -> Any:
    """Fill `composition` with the method's values."""
    if (
        isinstance(values, dict)
        and isinstance(values.get("composition", {}), dict)
        and isinstance(values.get("method", "genfl"), str)
    ):
        parts = METHODS.get(values.get("method", "genfl"), {})
        values = {**values, "composition": {**parts, **values.get("composition", {})}}
    return values


def inherit_training(values: Any) -> Any:
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


def inherit_normalisation(values: Any) -> Any:
    """Normalise images as pretrained weights expect it, if data.normalise is not set."""
    if not isinstance(values, dict):
        return values
    data, model = values.get("data", {}), values.get("model", {})
    if isinstance(data, dict) and isinstance(model, dict) and model.get("weights") == "pretrained":
        values = {**values, "data": {"normalise": "imagenet", **data}}
    return values


def inherit_generation(values: Any) -> Any:
    """Fill `generation` with what is shipped for the data set, if anything is."""
    if not isinstance(values, dict):
        return values
    data, generation = values.get("data", {}), values.get("generation", {})
    if isinstance(data, dict) and isinstance(generation, dict):
        name = str(data.get("name", DEFAULT_DATA))
        shipped = {"checkpoint": GENERATORS.get(name), "prompts": PROMPTS.get(name)}
        follows = {key: one for key, one in shipped.items() if one and generation.get(key, "auto") == "auto"}
        values = {**values, "generation": {**generation, **follows}}
    return values


def inherit_privacy(values: Any) -> Any:
    """Fix rho for secure sums, and weigh clients alike under differential privacy."""
    privacy = values.get("privacy") if isinstance(values, dict) else None
    if isinstance(privacy, dict):
        is_secure, is_private = privacy.get("secure_aggregation") is True, privacy.get("clip") is not None
        implied = ({"over": "selected"} if is_secure else {}) | ({"policy": "uniform"} if is_private else {})
        if isinstance(given := values.get("rho", {}), dict):
            values = {**values, "rho": {**implied, **given}}
    return values


def inherit_faults(values: Any) -> Any:
    """Drop clients whose weights are not finite under attack, where runs may diverge, and with privacy."""
    if not isinstance(values, dict) or not isinstance(given := values.get("faults", {}), dict):
        return values
    attack, privacy = (
        found if isinstance(found := values.get(name), dict) else {} for name in ("attack", "privacy")
    )
    is_protected = privacy.get("secure_aggregation") is True or privacy.get("clip") is not None
    if is_protected or attack.get("share") not in (None, 0):
        return {**values, "faults": {"nonfinite": "drop", **given}}
    return values


def inherit_pretraining(values: Any) -> Any:
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


def inherit(values: Any) -> Any:
    """Return the values of a `Config`, nested dicts, with those that follow from them.

    Invalid values stay as they are; their types are checked later.
    """
    for step in (
        inherit_composition,
        inherit_training,
        inherit_normalisation,
        inherit_generation,
        inherit_privacy,
        inherit_faults,
        inherit_pretraining,
    ):
        values = step(values)
    return values
