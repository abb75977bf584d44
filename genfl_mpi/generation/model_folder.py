"""Locate, fetch and identify text-to-image checkpoints in diffusers' format."""

from __future__ import annotations

import difflib
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from genfl_mpi.data import datasets
from genfl_mpi.generation import catalogue
from genfl_mpi.generation.validation import (
    ADAPTER,
    DIGESTED,
    INDEX,
    abbreviate,
    check_adapter,
    check_checkpoint,
    read_index,
    read_record,
)
from genfl_mpi.util import digest_cache
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line, suggestion

if TYPE_CHECKING:
    from genfl_mpi.config.sections.samples import Data

SHIPPED = Path(__file__).parent / "checkpoints"
ORIGINAL = "StableDiffusionPipeline"
STABLE_DIFFUSION_PARTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}


def shipped_names() -> list[str]:
    """List the names of the shipped checkpoints."""
    return sorted(folder.parent.name for folder in SHIPPED.glob(f"*/{INDEX}"))


def is_function(name: str) -> bool:
    """Check whether generation.checkpoint is a user's function, module:function, instead of a checkpoint."""
    return ":" in name


def locate(name: str) -> Path:
    """Find a checkpoint's folder: a shipped one, a path, or a hub id in the local cache. Raises UserError."""
    if is_function(name):
        raise UserError(f"generation.checkpoint: {name} is a function; set a checkpoint in diffusers' format")
    if name == "auto":
        raise UserError(
            "generation.checkpoint: no generator is shipped for this data set; set a folder in diffusers' "
            "format, or a hub id"
        )
    if (SHIPPED / name / INDEX).is_file() and "/" not in name:
        return _checked(SHIPPED / name)
    if Path(name).is_dir():
        return _checked(Path(name))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        remedy = suggestion(name, shipped_names()) or (
            f"; set one of {', '.join(shipped_names())}, a folder in diffusers' format, or a hub id"
        )
        raise UserError(f"generation.checkpoint: folder {name} does not exist{remedy}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return _checked(Path(snapshot_download(name, local_files_only=True)))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError):
        raise UserError(
            f"generation.checkpoint: {name} is neither a folder nor in the local cache; "
            "fetch it once, with network access: python -m genfl_mpi prefetch "
            f"generation.checkpoint={name}"
        ) from None


def locate_adapter(name: str, checkpoint: Path) -> Path:
    """Find the folder `name` of a LoRA adapter for the checkpoint in `checkpoint`. Raises UserError."""
    folder = Path(name)
    if not (folder / ADAPTER).is_file():
        raise UserError(f"generation.adapter: {name} is not a folder with a file {ADAPTER}")
    check_adapter(folder)
    record = read_record(folder)
    if record and (made_for := record.get("checkpoint", "none")) != digest(checkpoint):
        raise UserError(
            f"generation.adapter: {name} was trained for another checkpoint ({made_for[:12]}) than "
            f"{checkpoint} ({digest(checkpoint)[:12]}); set generation.checkpoint to that one"
        )
    return folder


def fetch(name: str) -> Path:
    """Download the files of a hub id that a run needs into the local cache, and return their folder.

    A folder or a shipped checkpoint needs no download. Raises UserError.
    """
    try:
        return locate(name)
    except UserError:
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise
    from huggingface_hub import snapshot_download

    try:
        # The pipeline's folders only: no single-file copies of all weights, no half-precision copies, no
        # pickles.
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


def check_classes(folder: Path, data: Data, setting: str) -> None:
    """Raise UserError if a checkpoint or adapter records other classes than those of the data set.

    data: config.data; setting: names the folder. Only `pretrain` and `finetune` record the classes.
    """
    drawn = (read_record(folder) or {}).get("classes")
    if drawn and (missing := [name for name in datasets.describe(data).classes if name not in drawn]):
        raise UserError(
            f"{setting}: {folder.name} draws {abbreviate.repr(drawn)}, but not {missing[0]!r} of "
            f"data.name={data.name}; remove the setting, or set one that draws all classes"
        )


def check_training_data(folder: Path, data: Data) -> None:
    """Raise UserError if a checkpoint or adapter was trained on clients' images. data: config.data."""
    record = read_record(folder)
    if record and record["data"] == data.name and record["public_pool"] > data.public_pool:
        raise UserError(
            f"generation: {folder.name} was trained on {record['public_pool']} public images of {data.name}, "
            f"which clients must not hold: set data.public_pool={record['public_pool']}"
        )


def require_stable_diffusion(folder: Path, purpose: str) -> None:
    """Raise UserError unless `folder` has the first Stable Diffusion architecture, which `purpose` needs."""
    index = read_index(folder)
    if index.pipeline != ORIGINAL:
        raise UserError(
            f"generation.checkpoint: {folder} holds a {index.pipeline}, but {purpose} supports only a "
            f"{ORIGINAL}; set such a checkpoint"
        )
    for part, origin in STABLE_DIFFUSION_PARTS.items():
        if index.parts.get(part) != origin:
            raise UserError(
                f"generation.checkpoint: {folder / INDEX}: {purpose} needs a {origin[1]} as {part}"
            )


def check_scheduler(name: str) -> None:
    """Raise UserError for an unknown scheduler of diffusers."""
    known = catalogue.class_names("Scheduler")
    if name not in known:
        closest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise UserError(f"generation.scheduler: diffusers has no {name}; did you mean {closest}?")


def _checked(folder: Path) -> Path:
    """Return `folder` if it holds a complete, harmless checkpoint. Raises UserError."""
    check_checkpoint(folder)
    return folder


def digest(folder: Path) -> str:
    """Hash names and contents of configuration and weight files, which determine a checkpoint's images."""
    total = hashlib.sha256()
    found = {*folder.rglob("*"), *folder.glob("*/*")}  # glob follows a part that is a link
    for file in sorted(path for path in found if path.suffix in DIGESTED):
        about = file.stat()
        version = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
        total.update(f"{file.relative_to(folder)} {_digest_of_file(file, version)}\n".encode())
    return total.hexdigest()


@cache
def _digest_of_file(path: Path, version: tuple[int, ...]) -> str:
    """Hash a file, once per process and `version`; every write changes the ctime in it.

    The digest of a large one is remembered beside it.
    """

    def compute() -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    return digest_cache.remembered(path.with_name(f".{path.name}.sha256"), [path], compute)
