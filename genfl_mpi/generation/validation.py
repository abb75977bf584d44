"""Check that the files of a checkpoint or adapter are complete and harmless, without importing diffusers.

A checkpoint is untrusted data. It may name only classes of diffusers and transformers: no module of its
choice is imported, no code in it is run, nothing is unpickled, and no file outside its folder is read.
`pipeline` loads only checkpoints that passed these checks.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from safetensors import SafetensorError, safe_open

from genfl_mpi.config.yaml_text import parse
from genfl_mpi.generation import catalogue
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "model_index.json"
ADAPTER = "pytorch_lora_weights.safetensors"
RECORD = "training.yaml"  # written by `pretrain` and `finetune` next to their output
DIGESTED = (".json", ".safetensors", ".txt", ".model")  # endings of the files that determine the images

# The libraries whose classes a checkpoint may name, and the file name of a model's weights in each.
WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
# Classes without weights, by the suffix of their names, and the configuration file that each needs.
CONFIGS = {
    "Scheduler": "scheduler_config.json",
    "Tokenizer": "tokenizer_config.json",
    "TokenizerFast": "tokenizer_config.json",
    "Processor": None,
    "Extractor": None,
}
WEIGHTLESS = re.compile(rf"({'|'.join(CONFIGS)})$")
# Parts that text-to-image generation does not need, and that are not loaded.
UNUSED = {"safety_checker", "feature_extractor", "image_encoder", "watermarker"}
# Keys that make a library run or download code, or expect other kinds of weights.
UNSUPPORTED = ("auto_map", "custom_pipeline", "trust_remote_code", "quantization_config")
ATTENTION = ("attn_implementation", "_attn_implementation")  # with a slash in the value, code to download

MAX_NAME = 100  # characters of a part's or a file's name
abbreviate = reprlib.Repr()  # abbreviates values of untrusted files in messages
abbreviate.maxstring = 80


class Index(NamedTuple):
    """The content of a model_index.json.

    pipeline: name of the pipeline's class; parts: {name: (library, class)}, with None for a part that is not
    loaded; options: {name: value}, the other arguments of the pipeline's class.
    """

    pipeline: str
    parts: dict[str, tuple[str, str] | None]
    options: dict[str, Any]


def read_index(folder: Path) -> Index:
    """Read the `Index` of the checkpoint in `folder`. Raises UserError."""
    file = folder / INDEX
    content = _json(file)
    _check_keys(file, content)
    pipeline = content.get("_class_name")
    parts: dict[str, tuple[str, str] | None] = {}
    options: dict[str, Any] = {}
    if not isinstance(pipeline, str):
        _refuse(
            file, f"_class_name must be the name of a pipeline of diffusers, not {abbreviate.repr(pipeline)}"
        )
    for name, value in content.items():
        if not name.isidentifier() or len(name) > MAX_NAME:
            _refuse(file, f"{abbreviate.repr(name)} does not name a part of a pipeline")
        if name.startswith("_"):
            continue
        if name in UNUSED or isinstance(value, list) and len(value) == 2 and value[0] is None:
            parts[name] = None
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value):
            library, kind = value
            if library not in WEIGHTS:
                _refuse(
                    file,
                    f"{name} is of {abbreviate.repr(library)}; a checkpoint may name only classes of "
                    f"{' and '.join(WEIGHTS)}; no other module is imported",
                )
            if not kind.isidentifier():
                _refuse(file, f"{name} must be [library, class], not {abbreviate.repr(value)}")
            parts[name] = library, kind
        elif (folder / name).is_dir() or isinstance(value, list) and not _is_numbers(value):
            _refuse(file, f"{name} must be [library, class], not {abbreviate.repr(value)}")
        else:
            options[name] = value
    if not any(parts.values()):
        _refuse(file, "it names no part of a pipeline")
    return Index(pipeline, parts, options)


def check_checkpoint(folder: Path) -> None:
    """Raise UserError unless `folder` holds a complete, harmless text-to-image pipeline."""
    index = read_index(folder)
    if index.pipeline not in catalogue.pipeline_names():
        _refuse(
            folder,
            f"it holds a {abbreviate.repr(index.pipeline)}, which is not among diffusers' text-to-image "
            "pipelines",
        )
    _check_files(folder)
    for part, origin in index.parts.items():
        if origin is not None:
            _check_part(folder / part, *origin)


def check_adapter(folder: Path) -> None:
    """Raise UserError if the LoRA adapter in `folder` is damaged, or would have no effect."""
    _check_files(folder)
    file = folder / ADAPTER
    with safe_open(file, "pt") as tensors:
        names = sorted(tensors.keys())
        if not any("lora" in name for name in names):
            raise UserError(f"generation.adapter: {file} has no LoRA tensor and would have no effect")
        for name in names:
            if "lora" not in name or "dora_scale" in name:
                raise UserError(
                    f"generation.adapter: {file}: {name} is not a LoRA tensor and would not be applied"
                )
            if not _is_finite(tensors, name):
                raise UserError(f"generation.adapter: {file}: {name} has values that are not finite floats")


def _is_finite(tensors: Any, name: str) -> bool:
    """Check that a tensor of an open safetensors file holds finite floating-point numbers."""
    try:
        tensor = tensors.get_tensor(name)
        return tensor.dtype.is_floating_point and bool(tensor.float().isfinite().all())
    except (SafetensorError, RuntimeError, ValueError, TypeError, AttributeError, KeyError):
        return False  # a dtype that torch does not have


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read what `pretrain` or `finetune` recorded in `folder`; None if neither made it. Raises UserError."""
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        record = parse(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{file} cannot be read; restore it") from None
    if not (
        isinstance(record, dict)
        and isinstance(record.get("data"), str)
        and type(record.get("public_pool")) is int
        and isinstance(record.get("checkpoint", ""), str)
        and isinstance(classes := record.get("classes", []), list)
        and all(isinstance(name, str) for name in classes)
    ):
        raise UserError(
            f"{file} is not what `pretrain` or `finetune` writes: it lacks a valid `data` or `public_pool`, "
            f"the training data of {folder.name}; restore it"
        )
    return record


def _refuse(where: Path, what: str) -> NoReturn:
    """Raise UserError about a file or folder of a checkpoint."""
    raise UserError(f"generation.checkpoint: {where}: {what}")


def _is_numbers(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, (int, float)) for value in values)


def _json(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file. Raises UserError."""
    if not file.exists():
        raise UserError(
            f"generation.checkpoint: {file} is missing: {file.parent} is incomplete, or not in "
            "diffusers' format"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(
            f"generation.checkpoint: {file} is damaged: it does not hold a JSON object; restore it"
        )
    return content


def _check_part(folder: Path, library: str, kind: str) -> None:
    """Raise UserError if `folder` cannot hold an object of the class `kind`."""
    if library == "diffusers" and kind not in catalogue.class_names():
        _refuse(folder.parent / INDEX, f"{folder.name} is a {abbreviate.repr(kind)}, which diffusers lacks")
    if folder.is_symlink():
        _refuse(folder, "it is a link to outside the checkpoint's folder; replace it by a copy")
    if not any(folder.glob("*")):
        _refuse(folder.parent, f"it is incomplete: {folder.name} is missing or empty")
    if (folder / "adapter_config.json").exists():  # transformers would load the weights that it names
        _refuse(folder, "it has an adapter_config.json, which names other weights; save the part without it")
    for file in folder.glob("*.json"):
        content = _json(file)
        if "config" in file.name:
            _check_keys(file, content)
        if file.name.endswith(".safetensors.index.json"):
            _check_shards(file, content)
    weightless = WEIGHTLESS.search(kind)
    config = CONFIGS[weightless[1]] if weightless else "config.json"
    if config and not (folder / config).is_file():
        _refuse(folder.parent, f"it is incomplete: {folder.name} has no {config}")
    weights = WEIGHTS[library]
    if not weightless and not any((folder / file).is_file() for file in (weights, f"{weights}.index.json")):
        _refuse(folder.parent, f"it is incomplete: {folder.name} has no safetensors file {weights}")


def _check_keys(file: Path, content: dict[str, Any]) -> None:
    """Raise UserError if a configuration file has unsupported keys, at any depth."""
    pending: list[Any] = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            for key in UNSUPPORTED:
                if value.get(key):
                    _refuse(file, f"it sets {key}, which is not supported")
            for key in ATTENTION:
                if "/" in str(value.get(key)):
                    _refuse(file, f"it requests a download with {key}, which is not supported")
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _check_shards(file: Path, content: dict[str, Any]) -> None:
    """Raise UserError if the index of sharded weights names other files than safetensors in its folder."""
    shards = content.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        _refuse(file, "weight_map must map each tensor to its file")
    for shard in sorted(set(shards.values())):
        if not re.fullmatch(rf"[\w-][\w.-]{{0,{MAX_NAME}}}\.safetensors", shard):
            _refuse(
                file, f"weight_map must name safetensors files in its folder, not {abbreviate.repr(shard)}"
            )
        if not (file.parent / shard).is_file():
            _refuse(file.parent.parent, f"it is incomplete: {file.parent.name} has no {shard}")


def _check_files(folder: Path) -> None:
    """Raise UserError if a file that enters the digest cannot be read, or if weights are truncated."""
    for file in folder.rglob("*"):
        if file.suffix in DIGESTED and not (file.is_file() and os.access(file, os.R_OK)):
            raise UserError(f"generation: {file} cannot be read: {folder} is incomplete, or a link is broken")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "np"):
                    pass  # opening compares the sizes in the header with the file size
            except (SafetensorError, OSError) as error:
                raise UserError(f"generation: {file} is damaged: {error}; restore it") from None
