"""What settings and whole sections need to have an effect."""

from typing import Any

from genfl_mpi.config.types import Needs, needs

# What the marked settings need. TRAINING_CLIENTS and others of whole sections are also used in `settings`.
TRAINING_CLIENTS = Needs("clients that train", lambda config, _: config.trains_clients)


TWO_MODELS = Needs(
    "clients that train and an augmented model", lambda config, _: config.trains_clients and config.augments
)


PLANNED_IMAGES = Needs("generated images", lambda config, _: config.generates or config.matches_steps)


GENERATED_IMAGES = Needs("generated images", lambda config, _: config.generates)


SERVER_IMAGES = Needs("images generated at the server", lambda config, _: not config.fills)


PIPELINE = Needs("a pipeline as checkpoint", lambda _, generation: ":" not in generation.checkpoint)


WITH_BATCH_NORM = Needs(
    "a network with BatchNorm",
    lambda _, model: model.name not in ("cnn", "pfl_cnn", "lenet5", "moon_cnn", "random_features", "vit"),
)


DUE = Needs(
    "at least as many rounds", lambda config, section: section.every is None or section.every <= config.rounds
)


def transformed_by(*names: str) -> Needs:
    """Mark a setting of these transforms, which a user's own may use, too."""

    def holds(config: Any, _: Any) -> bool:
        return any(one in names or ":" in one for one in config.transforms)

    return Needs(f"transforms=[{' or '.join(names)}]", holds)


SCHEDULED = ("linear", "cosine", "exponential", "step")  # policies of kappa


def needs_policy(*names: str) -> Needs:
    """Mark a setting of kappa that these policies use, in the run or in hindsight."""
    what, by_policy = needs("policy", *names)
    return Needs(what, lambda config, kappa: by_policy(config, kappa) or config.hindsight.every is not None)
