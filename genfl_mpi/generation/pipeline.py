"""Load text-to-image pipelines of diffusers, and generate images from prompts."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import re
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.nn.functional as F
from safetensors import safe_open

from genfl_mpi.generation.model_folder import digest
from genfl_mpi.generation.validation import ADAPTER, UNUSED, read_index
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from genfl_mpi.config.sections.images import Generation

ADAPTED = ("unet", "transformer")  # the parts of a pipeline that an adapter modifies
# What an adapter's file may set besides its tensors. All other settings must have peft's defaults, because
# some make peft import a module that the file names, or change the weights of the checkpoint.
LORA_SETTINGS = {
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
    "lora_bias",
    "bias",
    "lora_dropout",
    "peft_type",
    "task_type",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
}


def read(
    folder: Path,
    adapter: Path | None = None,
    scheduler: str | None = None,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    save_memory: Sequence[str] = (),
) -> Any:
    """Load the pipeline in `folder`, with the adapter in the folder `adapter`.

    Reads only safetensors and configuration files, and runs no code of the checkpoint. Raises UserError.
    """
    import diffusers  # here, because importing it takes seconds, and only ranks that generate need it

    silence()
    index = read_index(folder)
    with _guarded(), _loading(f"generation.checkpoint: {folder}"):
        parts = {
            part: origin and _read_part(folder / part, *origin, getattr(torch, dtype))
            for part, origin in index.parts.items()
        }
        kind = getattr(diffusers, index.pipeline)
        # No filter and no watermark: they would depend on other installed packages.
        given = {
            **dict.fromkeys(UNUSED),
            **index.options,
            **parts,
            "requires_safety_checker": False,
            "add_watermarker": False,
        }
        pipeline = kind(**{name: given[name] for name in inspect.signature(kind).parameters if name in given})
        if scheduler is not None:
            pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        if "attention_slicing" in save_memory:
            pipeline.enable_attention_slicing()
        if "vae_slicing" in save_memory:
            pipeline.vae.enable_slicing()
        if "vae_tiling" in save_memory:
            pipeline.vae.enable_tiling()
    if adapter is not None:
        file = adapter / ADAPTER
        with _guarded(), _loading(f"generation.adapter: {file} with generation.checkpoint {folder}"):
            _fuse(pipeline, folder, file)
    if "model_cpu_offload" in save_memory:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def _read_part(folder: Path, library: str, name: str, dtype: torch.dtype) -> Any:
    """Load the part of a pipeline in `folder`, an object of the library's class `name`. Raises UserError."""
    import diffusers
    import transformers

    kinds = (
        diffusers.ModelMixin,
        diffusers.SchedulerMixin,
        transformers.PreTrainedModel,
        transformers.PreTrainedTokenizerBase,
        transformers.ImageProcessingMixin,
        transformers.FeatureExtractionMixin,
        transformers.ProcessorMixin,
    )
    with _loading(f"generation.checkpoint: {folder}"):
        kind = getattr(importlib.import_module(library), name, None)
        if not isinstance(kind, type) or not issubclass(kind, kinds):
            raise UserError(f"generation.checkpoint: {folder}: a {name} is not a part of a pipeline")
        if not issubclass(kind, torch.nn.Module):
            _check_vocabulary(folder, getattr(kind, "vocab_files_names", {}))
            return kind.from_pretrained(folder, local_files_only=True)
        loader: Any = kind
        module, report = loader.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    _check_weights(folder, module, report, library)
    return module


def _check_vocabulary(folder: Path, files: dict[str, str]) -> None:
    """Raise UserError if a tokenizer's vocabulary is missing; transformers does not even warn.

    files: {key: file name} of the vocabulary, as transformers names them.
    """
    whole = files.get("tokenizer_file")
    if whole is None or not (folder / whole).is_file():
        for key, file in files.items():
            if key != "tokenizer_file" and not (folder / file).is_file():
                raise UserError(f"generation.checkpoint: {folder} is incomplete: {whole or file} is missing")


def _check_weights(folder: Path, module: torch.nn.Module, report: dict[str, Any], library: str) -> None:
    """Raise UserError if weights and config.json belong to different models; the libraries only warn.

    report: the library's loading info for `module`.
    """

    def form(name: str) -> str:
        return re.sub(r"\d+", "0", name)

    # A transformers model may be a part of the saved one, but it must have all of that part's layers.
    forms = {form(name) for name in module.state_dict()}
    extra = [name for name in report["unexpected_keys"] if library == "diffusers" or form(name) in forms]
    wrong = {"lack": report["missing_keys"], "have": extra, "have another size of": report["mismatched_keys"]}
    for what, names in wrong.items():
        if names:
            raise UserError(
                f"generation.checkpoint: {folder}: the weights do not fit config.json: "
                f"they {what} {min(map(str, names))}"
            )


def _fuse(pipeline: Any, folder: Path, file: Path) -> None:
    """Add the adapter in `file` to the weights of `folder`'s pipeline once, at no cost per image.

    Raises UserError if a tensor of it cannot be applied.
    """
    import peft
    from diffusers.utils import convert_unet_state_dict_to_peft

    name, adapted = "adapter", [part for part in ADAPTED if part in pipeline.components]
    if not adapted or not hasattr(pipeline, "load_lora_weights"):
        raise UserError(f"generation.adapter: a {type(pipeline).__name__} takes no LoRA adapter")
    _check_settings(file, peft.LoraConfig().to_dict())
    options = {"weight_name": file.name, "local_files_only": True, "use_safetensors": True}
    unet = getattr(pipeline, "unet", pipeline)  # some formats need its configuration
    found = pipeline.lora_state_dict(file.parent, unet_config=unet.config, **options)
    wanted = convert_unet_state_dict_to_peft(found[0] if isinstance(found, tuple) else found)
    layers = {f"{part}.{layer}" for part in adapted for layer, _ in pipeline.components[part].named_modules()}
    if stray := [tensor for tensor in wanted if tensor.partition(".lora_")[0] not in layers]:
        raise UserError(
            f"generation.adapter: {file}: {min(stray)} would not be applied: it belongs to no layer "
            f"of {folder}'s {' and '.join(adapted)}"
        )
    pipeline.load_lora_weights(file.parent, adapter_name=name, **options)
    applied = {
        f"{part}.{tensor}"
        for part in adapted
        if hasattr(pipeline.components[part], "peft_config")
        for tensor in peft.get_peft_model_state_dict(pipeline.components[part], adapter_name=name)
    }
    if unlike := wanted.keys() ^ applied:
        state = "missing" if min(unlike) in applied else "not applied"
        raise UserError(f"generation.adapter: {file}: {min(unlike)} is {state}")
    pipeline.fuse_lora(components=adapted)
    pipeline.unload_lora_weights()


def _check_settings(file: Path, default: dict[str, Any]) -> None:
    """Raise UserError if an adapter's file sets more than LORA_SETTINGS. default: peft's settings."""
    with safe_open(file, "pt") as tensors:
        text = (tensors.metadata() or {}).get("lora_adapter_metadata", "{}")
    for key, value in json.loads(text).items():
        setting = key.rpartition(".")[2]
        harmless = setting in LORA_SETTINGS or (setting, value) == ("init_lora_weights", "gaussian")
        if not harmless and value not in (None, default.get(setting)):
            raise UserError(f"generation.adapter: {file} sets {setting}, which is not supported")


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Turn any exception of a library about invalid files into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} cannot be loaded: {first_line(error)}") from error


@contextmanager
def _guarded() -> Iterator[None]:
    """Refuse to unpickle, whichever library tries, and restore torch's default dtype afterwards.

    Diffusers leaves the default dtype changed when it fails to load a model.
    """

    def refuse(file: Any, *_: Any, **__: Any) -> NoReturn:
        raise UserError(
            f"generation.checkpoint: {file} may hold code (a pickle); save the weights as safetensors"
        )

    torch_module: Any = torch
    load, torch_module.load = torch.load, refuse
    dtype = torch.get_default_dtype()
    try:
        yield
    finally:
        torch_module.load = load
        torch.set_default_dtype(dtype)


def silence() -> None:
    """Suppress progress bars and warnings of the libraries; we report errors ourselves."""
    import diffusers
    import transformers

    library: Any
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(logging.CRITICAL)
        library.utils.logging.disable_progress_bar()


@lru_cache(maxsize=1)
def _read_once(identity: tuple[str, str | None], folder: Path, adapter: Path | None, *options: Any) -> Any:
    """Read a pipeline, and cache the last one. Raises UserError if its files do not match `identity`."""
    loaded = read(folder, adapter, *options)
    # Images are stored under these digests, so the files that were read must have them.
    for setting, path, known in zip(("checkpoint", "adapter"), (folder, adapter), identity):
        if path is not None and digest(path) != known:
            raise UserError(
                f"generation.{setting}: {path} has changed since the run began; restore it, or start again"
            )
    return loaded


def load(folder: Path, adapter: Path | None, settings: Generation, identity: tuple[str, str | None]) -> Any:
    """Return the pipeline in `folder` with the options of config.generation, read once.

    adapter: its folder, or None. identity: `digest` of both, None without an adapter. Raises UserError if
    their digests have changed.
    """
    return _read_once(
        identity,
        folder,
        adapter,
        settings.scheduler,
        settings.dtype,
        _current_device(settings.device),
        tuple(settings.save_memory),
    )


def _current_device(kind: str) -> torch.device:
    """Return this rank's device of a kind. Offloading would take "cuda" for GPU 0 on every rank."""
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def generate_images(
    pipeline: Any,
    prompts: list[str],
    seeds: Sequence[int],
    settings: Generation,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Generate an image for each of `prompts`, from noise of its seed.

    settings: config.generation; shape: (C, H, W) of the data set. The pipeline's RGB is reduced to luminance
    for C = 1, and resized with antialiasing. Returns uint8 (n, C, H, W) on the CPU. Raises UserError if the
    pipeline fails, or its images are not finite.
    """
    # Noise is drawn on the CPU, whatever the device.
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    options: dict[str, Any] = {
        "negative_prompt": [settings.negative_prompt] * len(prompts),
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "height": settings.size,
        "width": settings.size,
        "generator": noise,
        "output_type": "pt",
    }
    unknown = options.keys() - inspect.signature(pipeline.__call__).parameters
    if "negative_prompt" in unknown and not settings.negative_prompt:
        unknown.remove("negative_prompt")
        del options["negative_prompt"]
    if unknown:
        raise UserError(f"generation.checkpoint: a {type(pipeline).__name__} takes no {unknown.pop()}")
    adapter = f" with generation.adapter {settings.adapter}" if settings.adapter else ""
    what = f"generation.checkpoint: {settings.checkpoint}{adapter}"
    try:
        images = pipeline(prompts, **options).images.float()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # for example an unsupported size, or mismatched parts
        raise UserError(f"{what} cannot generate images: {first_line(error)}") from error
    if not images.isfinite().all():
        advice = "" if settings.dtype == "float32" else ", or set generation.dtype=float32"
        raise UserError(f"{what} generates pixels that are not finite; restore its weights{advice}")
    channels, *size = shape
    if channels == 1:
        images = (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
