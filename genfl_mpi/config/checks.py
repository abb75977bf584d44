"""Checks of settings in different sections, which raise ValueError in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.config.composition import because
from genfl_mpi.config.sections import adversity, privacy, time
from genfl_mpi.config.types import as_text

if TYPE_CHECKING:
    from collections.abc import Collection

    from genfl_mpi.config.settings import Config


def check_composition(config: Config) -> None:
    """Refuse rounds that train no model, or whose images have no place."""
    parts = config.composition
    if not parts.local_training and parts.images != "server":
        raise ValueError(
            f"{because(config, 'local_training')} with {because(config, 'images')} trains no model; set "
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
            f"{because(config, 'local_training')} has none; remove distil"
        )
    if parts.images == "made_by_clients" and parts.source == "pool":
        raise ValueError(
            f"{because(config, 'source')} takes the images from the server's pool, but with "
            f"{because(config, 'images')} the clients generate them; change one of the two"
        )
    if parts.matched_steps and parts.images != "nowhere":
        raise ValueError(
            f"{because(config, 'matched_steps')} is a control without images, which "
            f"{because(config, 'images')} has; set composition.images=nowhere"
        )


def check_clients(config: Config) -> None:
    """Refuse a cohort or a world of the wrong size, and misbehaving clients that cannot be batched."""
    if config.cohort > config.clients:
        if "cohort" in config.model_fields_set:
            raise ValueError(f"cohort ({config.cohort}) is larger than clients ({config.clients}); reduce it")
        raise ValueError(
            f"clients ({config.clients}) is less than the default cohort ({config.cohort}); also set cohort"
        )
    if (
        config.world is not None
        and config.world.clients is not None
        and config.world.clients < config.clients
    ):
        raise ValueError(
            f"world.clients ({config.world.clients}) is less than clients ({config.clients}); increase it"
        )
    candidates = config.selection.candidates
    if candidates is not None and not config.cohort <= candidates <= config.clients:
        raise ValueError(
            f"selection.candidates ({candidates}) must lie between cohort ({config.cohort}), which is "
            f"selected from them, and clients ({config.clients}); change it"
        )
    kind = config.misbehaving_clients.kind
    if kind in ("free_rider", "disguised") and config.training.clients_per_batch > 1:
        raise ValueError(
            f"misbehaving_clients.kind={kind} needs training.clients_per_batch=1: "
            "a client that does not train cannot be batched with others"
        )


def check_images(config: Config) -> None:
    """Refuse settings of images that contradict the method."""
    if (
        config.calibration.every is not None
        and config.calibration.moments != "clients"
        and not (config.has_server_images or config.sends)
    ):
        raise ValueError(
            f"calibration.moments={config.calibration.moments} needs images at the server, and "
            f"{because(config, 'images')} has none; set calibration.moments=clients"
        )
    if config.generation.plan == "cohort_deficit" and not config.trains_clients:
        raise ValueError(
            "generation.plan=cohort_deficit needs a cohort, and "
            f"{because(config, 'local_training')} has none; choose another plan"
        )
    if config.generation.plan == "cohort_deficit" and config.matches_steps:
        raise ValueError(
            "generation.plan=cohort_deficit does not know the number of images in advance, which "
            f"{because(config, 'matched_steps')} needs; choose another plan"
        )
    if config.source == "pool" and not config.data.public_pool:
        raise ValueError(
            f"{because(config, 'source')} needs data.public_pool, the images that replace generated ones; "
            "set it to a number of images"
        )
    if config.generation.min_fidelity and config.fills:
        raise ValueError(
            "generation.min_fidelity filters images at the server, but with "
            f"{because(config, 'images')} the clients generate them; set generation.min_fidelity=0"
        )
    if config.generation.min_fidelity and not config.data.public_pool:
        raise ValueError(
            "generation.min_fidelity needs data.public_pool, the images on which the filter's classifier "
            "is trained; set it to a number of images"
        )
    if config.audit and (config.sends or config.fills):
        raise ValueError(
            "audit compares the labels that clients were trained on with those they hold, but with "
            f"{because(config, 'images')} they also train on other images; set audit=false"
        )


def check_evaluation(config: Config) -> None:
    """Refuse rounds whose last one would not be evaluated."""
    every = config.evaluation.every
    if config.rounds % every:
        raise ValueError(
            f"rounds ({config.rounds}) is not a multiple of evaluation.every ({every}), so that the last "
            f"round would not be evaluated; set rounds={-(-config.rounds // every) * every}, or another "
            "evaluation.every"
        )


def check_validation(config: Config) -> None:
    """Refuse a validation source that the run does not have, or on which a model was trained."""
    source = config.validation.source
    if source == "pool" and not config.data.public_pool:
        raise ValueError(
            "validation.source=pool needs data.public_pool, the real images at the server; "
            "set it to a number of images"
        )
    if source == "pool" and config.source == "pool":
        raise ValueError(
            f"validation.source=pool with {because(config, 'source')} would evaluate the augmented model "
            "on its training images; choose another source"
        )
    if source == "clients" and not config.trains_clients:
        raise ValueError(
            "validation.source=clients needs clients that train, and "
            f"{because(config, 'local_training')} has none; choose another source"
        )
    if source == "generated" and (config.fills or not config.generates):
        raise ValueError(
            "validation.source=generated needs generated images at the server, and "
            f"{because(config, 'source' if config.source == 'pool' else 'images')} has none; choose another "
            "source"
        )


def check_incentive(config: Config) -> None:
    """Refuse payments for what the run does not have."""
    set_world = "set world, for example world=configs/worlds/city.yaml, or world={} for the default world"
    if config.incentive.base is not None and config.world is None:
        raise ValueError(f"incentive.base pays for energy, which only a world defines; {set_world}")
    if config.incentive.price is None:
        return
    if not config.fills:
        raise ValueError(
            "incentive.price pays clients for images that they generate, and with "
            f"{because(config, 'images')} they generate none; set method=filled"
        )
    if config.world is None:
        raise ValueError(f"incentive.price pays for energy, which only a world defines; {set_world}")
    chosen = {
        "labels": config.client_generation.labels != "rare",
        "share": config.client_generation.share != 1,
    }
    if any(chosen.values()):
        raise ValueError(
            "with incentive.price each client chooses which share of the gap to a uniform mix it fills; "
            f"remove {' and '.join(f'client_generation.{key}' for key in chosen if chosen[key])}"
        )


def check_generator(config: Config, needs: Collection[str] | None) -> None:
    """Refuse to generate images for a data set without a shipped generator, unless one is given.

    needs: which of checkpoint and prompts the command needs; None: both.
    """
    needed = {
        "checkpoint": "generation.checkpoint to a generator of its classes (of your own: `pretrain`, or "
        "module:function)",
        "prompts": "generation.prompts to a YAML file that describes every class",
    }
    given = {key for key in needed if getattr(config.generation, key) != "auto"}
    missing = [key for key in needed if key not in given and (needs is None or key in needs)]
    if config.generates and missing:
        raise ValueError(
            f"the package has no {' or '.join(missing)} for data.name={config.data.name}; "
            f"set {' and '.join(needed[key] for key in missing)}"
        )


CHECKS = (
    check_composition,
    check_clients,
    adversity.check_defence,
    check_images,
    check_evaluation,
    check_validation,
    privacy.check_secure_aggregation,
    privacy.check_poisson,
    privacy.check_differential_privacy,
    check_incentive,
    time.check,
)
