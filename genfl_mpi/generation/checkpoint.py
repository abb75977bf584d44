"""Text-to-image checkpoints in diffusers' format: where they are, whether they are whole, what identifies them."""

import difflib
import hashlib
import json
import re
from functools import cache
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open

from genfl_mpi.errors import UserError
from genfl_mpi.generation import catalogue
from genfl_mpi.wording import first_line

SHIPPED = Path(__file__).parent / "checkpoints"
ADAPTER = "pytorch_lora_weights.safetensors"
RECORD = "training.yaml"  # what `pretrain` and `finetune` write down beside what they made
ORIGINAL = "StableDiffusionPipeline"
UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}  # parts of a pipeline that drawing from text can do without
WEIGHTLESS = re.compile(r"(Scheduler|Tokenizer|TokenizerFast|Processor|Extractor)$")


def is_function(name):
    """Whether generation.checkpoint names a function of the user's, module:function, in a checkpoint's place."""
    return ":" in name


def locate(name):
    """The folder of a checkpoint: one that we ship, a folder, or a hub id that is in the local cache. Raises UserError."""
    if is_function(name):
        raise UserError(f"generation.checkpoint: {name} is a function; this needs a checkpoint in diffusers' format")
    if (SHIPPED / name / "model_index.json").is_file() and "/" not in name:
        return _checked(SHIPPED / name)
    if Path(name).is_dir():
        return _checked(Path(name))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"generation.checkpoint: there is no folder {name}; give a folder in diffusers' format, or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return _checked(Path(snapshot_download(name, local_files_only=True)))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        raise UserError(f"generation.checkpoint: {name} is neither a folder nor in the local cache; "
                        f"fetch it once, where there is a network, with: python -m genfl_mpi prefetch generation.checkpoint={name}") from None


def locate_adapter(name, checkpoint):
    """The folder `name` of a LoRA adapter for the checkpoint in the folder `checkpoint`. Raises UserError."""
    folder = Path(name)
    if not (folder / ADAPTER).is_file():
        raise UserError(f"generation.adapter: {name} is not a folder with a file {ADAPTER}")
    _check_weights(folder)
    if record := _record(folder):
        if record["checkpoint"] != digest(checkpoint):
            raise UserError(f"generation.adapter: {name} was made for another checkpoint ({record['checkpoint'][:12]}) than {checkpoint} ({digest(checkpoint)[:12]})")
    return folder


def fetch(name):
    """Download what a run needs of a hub id into the local cache; nothing to do for a folder or a shipped checkpoint."""
    try:
        return locate(name)
    except UserError:
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise
    from huggingface_hub import snapshot_download

    try:
        # Folders of the pipeline only: no single-file copies of all weights, no half-precision twins, nothing pickled.
        snapshot_download(name, allow_patterns=["model_index.json", *(f"*/*.{kind}" for kind in ("json", "txt", "model", "safetensors"))],
                          ignore_patterns=["*.fp16.safetensors", "*non_ema*", "safety_checker/*"])
    except Exception as error:  # a download fails in many ways
        raise UserError(f"generation.checkpoint: {name} cannot be fetched: {first_line(error)}") from error
    return locate(name)


def check_public(folder, data):
    """Raise UserError if a checkpoint, or an adapter, learned from images that clients hold. data: config.data."""
    record = _record(folder)
    if record and record["data"] == data.name and record["public_pool"] > data.public_pool:
        raise UserError(f"{folder.name} learned from {record['public_pool']} public images of {data.name}, which clients must not hold: "
                        f"set data.public_pool={record['public_pool']}")


def _record(folder):
    """What `pretrain` or `finetune` wrote down about `folder`; None if it is not of our making."""
    file = folder / RECORD
    return yaml.safe_load(file.read_text()) if file.is_file() else None


def _index(folder):
    """What the pipeline in `folder` is made of, and the name of its class. Raises UserError."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        return index, index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"generation.checkpoint: {folder} is not a diffusers pipeline: model_index.json is missing or unreadable") from None


def require_original(folder, who):
    """Raise UserError if `folder` is no checkpoint of Stable Diffusion's first architecture, which `who` needs."""
    _, name = _index(folder)
    if name != ORIGINAL:
        raise UserError(f"generation.checkpoint: {folder} holds a {name}, and {who} knows the architecture of a {ORIGINAL} alone")


def check_scheduler(name):
    """Raise UserError for a scheduler that diffusers does not have."""
    known = catalogue.names("Scheduler")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise UserError(f"generation.scheduler: diffusers has no {name}; did you mean {near}?")


def _checked(folder):
    index, name = _index(folder)
    if name not in catalogue.text_to_image():
        raise UserError(f"generation.checkpoint: {folder} holds a {name}, which is not among diffusers' pipelines from text to image")
    parts = {part: of[1] for part, of in index.items() if isinstance(of, list) and len(of) == 2 and of[0] is not None}
    for part in parts.keys() - UNUSED:
        if not any((folder / part).glob("*")):
            raise UserError(f"generation.checkpoint: {folder} is incomplete: {part} is missing or empty")
        if not WEIGHTLESS.search(parts[part]) and not any((folder / part).glob("*.safetensors")):
            raise UserError(f"generation.checkpoint: {folder} is incomplete: {part} has no safetensors file")
    _check_weights(folder)
    return folder


def _check_weights(folder):
    for file in folder.rglob("*.safetensors"):
        try:
            with safe_open(file, "np"):
                pass  # reads the header and compares the sizes it names with the file's
        except (SafetensorError, OSError) as error:
            raise UserError(f"generation: {file} is damaged: {error}") from None


def digest(folder):
    """Hash a checkpoint's configuration and weight files and their names: what determines its images."""
    total = hashlib.sha256()
    found = {*folder.rglob("*"), *folder.glob("*/*")}  # the second follows a part that is a link
    for file in sorted(path for path in found if path.suffix in (".json", ".safetensors", ".txt", ".model")):
        about = file.stat()
        version = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
        total.update(f"{file.relative_to(folder)} {_digest_of_file(file, version)}\n".encode())
    return total.hexdigest()


@cache
def _digest_of_file(path, version):
    """Hash a file, once a process for each `version`, of which every write changes the ctime."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
