"""Whether the files of a checkpoint or an adapter are whole and harmless, without importing diffusers.

A checkpoint is data that may come from anywhere. It may name classes of diffusers and transformers alone: no
module of its choice is imported, no code of its own is run, nothing is unpickled, and no file outside of its
folder is read. `pipeline` loads only what passed these checks.
"""

import json
import os
import re
import reprlib
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from genfl_mpi.config.loading import parse
from genfl_mpi.generation import catalogue
from genfl_mpi.util.errors import UserError

INDEX = "model_index.json"
ADAPTER = "pytorch_lora_weights.safetensors"
RECORD = "training.yaml"  # what `pretrain` and `finetune` write down beside what they made
DIGESTED = (".json", ".safetensors", ".txt", ".model")  # endings of the files that determine the images

# The libraries whose classes a checkpoint may name, and what each calls the weights of a model.
WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
# Classes without weights, by the end of their names, and the configuration file that they cannot do without.
CONFIGS = {
    "Scheduler": "scheduler_config.json",
    "Tokenizer": "tokenizer_config.json",
    "TokenizerFast": "tokenizer_config.json",
    "Processor": None,
    "Extractor": None,
}
WEIGHTLESS = re.compile(rf"({'|'.join(CONFIGS)})$")
# Parts that drawing from text can do without, and that are not loaded: filters, watermarks, image encoders.
UNUSED = {"safety_checker", "feature_extractor", "image_encoder", "watermarker"}
# Keys with which a configuration file makes a library run or download code, or expect other kinds of weights.
UNSUPPORTED = ("auto_map", "custom_pipeline", "trust_remote_code", "quantization_config")
ATTENTION = ("attn_implementation", "_attn_implementation")  # with a slash in it, code to download

MAX_NAME = 100  # characters of a part's or a file's name
quote = reprlib.Repr()  # how messages quote values of somebody else's files
quote.maxstring = 80


class Index(NamedTuple):
    """What a model_index.json says.

    pipeline: name of the pipeline's class; parts: {name: (library, class)}, with None for a part that is not
    loaded; options: {name: value}, the other arguments of the pipeline's class.
    """

    pipeline: str
    parts: dict
    options: dict


def read_index(folder):
    """The `Index` of the checkpoint in `folder`. Raises UserError."""
    file = folder / INDEX
    content = _json(file)
    _check_keys(file, content)
    pipeline, parts, options = content.get("_class_name"), {}, {}
    if not isinstance(pipeline, str):
        _refuse(file, f"_class_name must be the name of a pipeline of diffusers, not {quote.repr(pipeline)}")
    for name, value in content.items():
        if not name.isidentifier() or len(name) > MAX_NAME:
            _refuse(file, f"{quote.repr(name)} does not name a part of a pipeline")
        if name.startswith("_"):
            continue
        if name in UNUSED or isinstance(value, list) and len(value) == 2 and value[0] is None:
            parts[name] = None
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value):
            library, kind = value
            if library not in WEIGHTS:
                _refuse(
                    file,
                    f"{name} is of {quote.repr(library)}; a checkpoint may name classes of "
                    f"{' and '.join(WEIGHTS)} alone, and nothing else is imported for it",
                )
            if not kind.isidentifier():
                _refuse(file, f"{name} must be [library, class], not {quote.repr(value)}")
            parts[name] = library, kind
        elif (folder / name).is_dir() or isinstance(value, list) and not _is_numbers(value):
            _refuse(file, f"{name} must be [library, class], not {quote.repr(value)}")
        else:
            options[name] = value
    if not any(parts.values()):
        _refuse(file, "it names no part of a pipeline")
    return Index(pipeline, parts, options)


def check_checkpoint(folder):
    """Raise UserError if `folder` does not hold a whole, harmless pipeline from text to images."""
    index = read_index(folder)
    if index.pipeline not in catalogue.text_to_image():
        _refuse(
            folder,
            f"it holds a {quote.repr(index.pipeline)}, which is not among diffusers' pipelines "
            "from text to image",
        )
    _check_files(folder)
    for part, origin in index.parts.items():
        if origin is not None:
            _check_part(folder / part, *origin)


def check_adapter(folder):
    """Raise UserError if the LoRA adapter in `folder` is damaged, or would change nothing."""
    _check_files(folder)
    file = folder / ADAPTER
    with safe_open(file, "pt") as tensors:
        names = sorted(tensors.keys())
        if not any("lora" in name for name in names):
            raise UserError(f"generation.adapter: {file} has no LoRA tensor: it would change nothing")
        for name in names:
            if "lora" not in name or "dora_scale" in name:
                raise UserError(f"generation.adapter: {file}: {name}, no LoRA tensor, would not be applied")
            if not _is_finite(tensors, name):
                raise UserError(f"generation.adapter: {file}: {name} is not of finite floating-point numbers")


def _is_finite(tensors, name):
    try:
        tensor = tensors.get_tensor(name)
        return tensor.dtype.is_floating_point and bool(tensor.float().isfinite().all())
    except (SafetensorError, RuntimeError, ValueError, TypeError, AttributeError, KeyError):
        return False  # not a type of torch's


def read_record(folder):
    """What `pretrain` or `finetune` recorded about `folder`; None if neither made it. Raises UserError."""
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
    ):
        raise UserError(
            f"{file} is not what `pretrain` or `finetune` writes: `data` and `public_pool` must "
            f"say what {folder.name} learned from; restore it"
        )
    return record


def _refuse(where, what):
    raise UserError(f"generation.checkpoint: {where}: {what}")


def _is_numbers(values):
    return bool(values) and all(isinstance(value, (int, float)) for value in values)


def _json(file):
    """The JSON object in a file. Raises UserError."""
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
        raise UserError(f"generation.checkpoint: {file} is damaged: it does not hold a JSON object")
    return content


def _check_part(folder, library, kind):
    """Raise UserError if `folder` cannot hold an object of the class `kind`."""
    if library == "diffusers" and kind not in catalogue.names():
        _refuse(folder.parent / INDEX, f"{folder.name} is to be a {quote.repr(kind)}, which diffusers lacks")
    if folder.is_symlink():
        _refuse(folder, "it is a link to what is not in the checkpoint's folder; put a copy in its place")
    if not any(folder.glob("*")):
        _refuse(folder.parent, f"it is incomplete: {folder.name} is missing or empty")
    if (folder / "adapter_config.json").exists():  # transformers would load what it names
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


def _check_keys(file, content):
    """Raise UserError if a configuration file asks, at any depth, for what is not supported."""
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            for key in UNSUPPORTED:
                if value.get(key):
                    _refuse(file, f"it asks for {key}, which is not supported")
            for key in ATTENTION:
                if "/" in str(value.get(key)):
                    _refuse(file, f"it asks for a download with {key}, which is not supported")
            left += value.values()
        elif isinstance(value, list):
            left += value


def _check_shards(file, content):
    """Raise UserError if the index of weights in several files names anything but safetensors beside it."""
    shards = content.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        _refuse(file, "weight_map must say which file holds each tensor")
    for shard in sorted(set(shards.values())):
        if not re.fullmatch(rf"[\w-][\w.-]{{0,{MAX_NAME}}}\.safetensors", shard):
            _refuse(file, f"weight_map must name safetensors files beside it, not {quote.repr(shard)}")
        if not (file.parent / shard).is_file():
            _refuse(file.parent.parent, f"it is incomplete: {file.parent.name} has no {shard}")


def _check_files(folder):
    """Raise UserError if a file that a digest covers cannot be read, or if weights are truncated."""
    for file in folder.rglob("*"):
        if file.suffix in DIGESTED and not (file.is_file() and os.access(file, os.R_OK)):
            raise UserError(f"generation: {file} cannot be read: {folder} is incomplete, or a link is broken")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "np"):
                    pass  # reads the header and compares the sizes it names with the file's
            except (SafetensorError, OSError) as error:
                raise UserError(f"generation: {file} is damaged: {error}") from None
