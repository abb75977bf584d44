"""Networks of torchvision and timm by name, and their pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genfl_mpi.config.functions import MODEL_LIBRARIES
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line, suggestion

if TYPE_CHECKING:
    from torch import nn

    from genfl_mpi.config.sections.local_training import Model

PRETRAINED = "pretrained"  # as model.weights: the library's weights, from its cache
CHANNELS = 3  # of the images that these networks take
# Networks with auxiliary outputs, which are left out.
AUXILIARY = {"googlenet", "inception_v3"}


def is_library(name: str) -> bool:
    """Return whether `name` is LIBRARY:NETWORK, and not a function of the user's."""
    return name.partition(":")[0] in MODEL_LIBRARIES


def make(classes: int, shape: tuple[int, ...], settings: Model) -> nn.Module:
    """Build the network LIBRARY:NETWORK of config.model for images of three channels.

    With model.weights=pretrained it has the library's weights, except for the last layer if its number of
    classes differs. Raises UserError for an unknown name, or weights that are not in the cache.
    """
    library, _, name = settings.name.partition(":")
    return (
        _torchvision(name, classes, settings) if library == "torchvision" else _timm(name, classes, settings)
    )


def _torchvision(name: str, classes: int, settings: Model) -> nn.Module:
    from torchvision import models  # imported here: it takes seconds that other networks do not need

    _check_name("torchvision", name, models.list_models(module=models))
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    return models.get_model(name, weights=None, num_classes=classes, **options)


def _timm(name: str, classes: int, settings: Model) -> nn.Module:
    timm = import_timm()
    _check_name("timm", name, timm.list_models())
    path = weights_file(settings)
    if path is None:
        return timm.create_model(name, pretrained=False, num_classes=classes)
    try:
        return timm.create_model(
            name, pretrained=True, num_classes=classes, pretrained_cfg_overlay={"file": str(path)}
        )
    except (RuntimeError, OSError, KeyError) as error:
        raise UserError(f"model.weights: {path} does not fit timm:{name}: {first_line(error)}") from None


def import_timm() -> Any:
    """Return the module timm. Raises UserError if it is not installed."""
    try:
        import timm
    except ImportError:
        raise UserError(
            "model.name=timm:NAME needs the package timm: pip install 'genfl_mpi[timm]'"
        ) from None
    return timm


def _check_name(library: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise UserError(
            f"model.name: {library} has no classification model {name}{suggestion(name, known) or '.'} "
            f"`python -m genfl_mpi models {library}` lists all"
        )


def list_names(library: str) -> list[str]:
    """Return the names of a library's classification networks. Raises UserError if it is not installed."""
    if library == "torchvision":
        from torchvision import models

        return models.list_models(module=models)
    return import_timm().list_models()


def weights_file(settings: Model) -> Path | None:
    """Return the file of config.model.weights, or None without one. Raises UserError if it is missing."""
    if settings.weights is None:
        return None
    if settings.weights != PRETRAINED:
        path = Path(settings.weights)
        if not path.is_file():
            raise UserError(
                f"model.weights: {path} does not exist; give a state dict (.safetensors, .pth), or "
                f"{PRETRAINED} for the weights of torchvision or timm"
            )
        return path
    library, _, name = settings.name.partition(":")
    if library not in MODEL_LIBRARIES:
        raise UserError(
            f"model.weights={PRETRAINED}: there are none for model.name={settings.name}; give a file, or "
            "choose a network of torchvision or timm"
        )
    cached = _cached_torchvision(name) if library == "torchvision" else _cached_timm(name)
    if cached is None or not cached.is_file():
        raise UserError(
            f"model.weights={PRETRAINED}: the weights of {settings.name} are not on this machine; "
            "run `python -m genfl_mpi prefetch` with the same settings where the network is reachable"
        )
    return cached


def _torchvision_weights(name: str) -> Any:
    from torchvision import models

    _check_name("torchvision", name, models.list_models(module=models))
    return models.get_model_weights(name).DEFAULT


def _cached_torchvision(name: str) -> Path:
    import torch  # imported late: a finished sweep is recognised without it

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return folder / _torchvision_weights(name).url.rpartition("/")[2]


def _timm_repository(name: str) -> str:
    timm = import_timm()
    _check_name("timm", name.partition(".")[0], timm.list_models())
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UserError(f"model.weights={PRETRAINED}: timm publishes no weights for {name}; give a file")
    return config.hf_hub_id


def _cached_timm(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(_timm_repository(name), "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def fetch(settings: Model) -> str | None:
    """Download the pretrained weights of config.model into the library's cache; return a line about them.

    None if the model needs none.
    """
    if settings.weights != PRETRAINED:
        return None
    library, _, name = settings.name.partition(":")
    try:
        if library == "torchvision":
            _torchvision_weights(name).get_state_dict(progress=True)
        elif library == "timm":
            from huggingface_hub import hf_hub_download

            hf_hub_download(_timm_repository(name), "model.safetensors")
    except OSError as error:
        raise UserError(
            f"model.weights={PRETRAINED}: {settings.name} cannot be downloaded: {first_line(error)}"
        ) from None
    return f"weights of {settings.name}: in {weights_file(settings)}"
