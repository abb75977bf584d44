"""Text-to-image checkpoints in diffusers' format: where they are, and what identifies them."""

import difflib
import hashlib
from functools import cache
from pathlib import Path

from genfl_mpi.generation import catalogue
from genfl_mpi.generation.validation import (
    ADAPTER,
    DIGESTED,
    INDEX,
    check_adapter,
    check_checkpoint,
    read_index,
    read_record,
)
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

SHIPPED = Path(__file__).parent / "checkpoints"
ORIGINAL = "StableDiffusionPipeline"
ORIGINAL_PARTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}


def is_function(name):
    """Whether generation.checkpoint names a function of the user's, module:function, in a checkpoint's place."""
    return ":" in name


def locate(name):
    """The folder of a checkpoint: one that we ship, a folder, or a hub id that is in the local cache. Raises UserError."""
    if is_function(name):
        raise UserError(
            f"generation.checkpoint: {name} is a function; this needs a checkpoint in diffusers' format"
        )
    if (SHIPPED / name / INDEX).is_file() and "/" not in name:
        return _checked(SHIPPED / name)
    if Path(name).is_dir():
        return _checked(Path(name))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"generation.checkpoint: there is no folder {name}; give a folder in diffusers' format, or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return _checked(Path(snapshot_download(name, local_files_only=True)))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        raise UserError(
            f"generation.checkpoint: {name} is neither a folder nor in the local cache; "
            f"fetch it once, where there is a network, with: python -m genfl_mpi prefetch generation.checkpoint={name}"
        ) from None


def locate_adapter(name, checkpoint):
    """The folder `name` of a LoRA adapter for the checkpoint in the folder `checkpoint`. Raises UserError."""
    folder = Path(name)
    if not (folder / ADAPTER).is_file():
        raise UserError(f"generation.adapter: {name} is not a folder with a file {ADAPTER}")
    check_adapter(folder)
    record = read_record(folder)
    if record and (made_for := record.get("checkpoint", "none")) != digest(checkpoint):
        raise UserError(
            f"generation.adapter: {name} was made for another checkpoint ({made_for[:12]}) than "
            f"{checkpoint} ({digest(checkpoint)[:12]})"
        )
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
        snapshot_download(
            name,
            allow_patterns=[
                "model_index.json",
                *(f"*/*.{kind}" for kind in ("json", "txt", "model", "safetensors")),
            ],
            ignore_patterns=["*.fp16.safetensors", "*non_ema*", "safety_checker/*"],
        )
    except Exception as error:  # a download fails in many ways
        raise UserError(f"generation.checkpoint: {name} cannot be fetched: {first_line(error)}") from error
    return locate(name)


def check_public(folder, data):
    """Raise UserError if a checkpoint, or an adapter, learned from images that clients hold. data: config.data."""
    record = read_record(folder)
    if record and record["data"] == data.name and record["public_pool"] > data.public_pool:
        raise UserError(
            f"{folder.name} learned from {record['public_pool']} public images of {data.name}, which clients must not hold: "
            f"set data.public_pool={record['public_pool']}"
        )


def require_original(folder, who):
    """Raise UserError if `folder` is no checkpoint of Stable Diffusion's first architecture, which `who` needs."""
    index = read_index(folder)
    if index.pipeline != ORIGINAL:
        raise UserError(
            f"generation.checkpoint: {folder} holds a {index.pipeline}, and {who} knows the "
            f"architecture of a {ORIGINAL} alone"
        )
    for part, origin in ORIGINAL_PARTS.items():
        if index.parts.get(part) != origin:
            raise UserError(f"generation.checkpoint: {folder / INDEX}: {who} needs a {origin[1]} as {part}")


def check_scheduler(name):
    """Raise UserError for a scheduler that diffusers does not have."""
    known = catalogue.names("Scheduler")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise UserError(f"generation.scheduler: diffusers has no {name}; did you mean {near}?")


def _checked(folder):
    check_checkpoint(folder)
    return folder


def digest(folder):
    """Hash a checkpoint's configuration and weight files and their names: what determines its images."""
    total = hashlib.sha256()
    found = {*folder.rglob("*"), *folder.glob("*/*")}  # the second follows a part that is a link
    for file in sorted(path for path in found if path.suffix in DIGESTED):
        about = file.stat()
        version = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
        total.update(f"{file.relative_to(folder)} {_digest_of_file(file, version)}\n".encode())
    return total.hexdigest()


@cache
def _digest_of_file(path, version):
    """Hash a file, once a process for each `version`, of which every write changes the ctime."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
