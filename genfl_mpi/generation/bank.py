"""Store generated images on disk, so that every method and run that needs the same images reuses them.

A bank is a folder with one HDF5 file per batch of images generated together, named by the SHA-256 of
everything that determines their bits. A file is written under a temporary name and renamed: it exists
completely or not at all, and jobs may share a bank.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genfl_mpi.generation.prompts import Prompts

# Exceptions that damaged and foreign files cause when they are read.
READ_ERRORS = OSError, KeyError, ValueError, TypeError, AttributeError


@dataclass(frozen=True)
class Batch:
    """Images to generate together: prompts and seeds determine them, labels and templates are recorded."""

    label: tuple[int, ...]
    template: tuple[int, ...]
    seed: tuple[int, ...]
    prompt: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label)


def batches_of_round(
    counts: Sequence[int] | np.ndarray,
    already: Sequence[int] | np.ndarray,
    prompts: Prompts,
    seed: int,
    size: int,
) -> list[Batch]:
    """Divide the images of a round into batches of `size`.

    counts: int (classes,), images to generate of each class; already: int (classes,), images generated
    before. The template and noise of image j of a class depend on (seed, class, j) alone. The images are
    ordered by j, then by class.
    """
    wanted = [
        (j, label)
        for label in range(len(counts))
        for j in range(already[label], already[label] + counts[label])
    ]
    images: list[tuple[int, int, int, str]] = []
    for j, label in sorted(wanted):
        template = int(streams.generator(seed, "template", label, j).integers(len(prompts.templates)))
        images.append(
            (label, template, streams.integer(seed, "image", label, j), prompts.text(label, template))
        )
    return [Batch(*zip(*images[i : i + size])) for i in range(0, len(images), size)]


class Bank:
    """A folder of generated images.

    folder: of the bank, created when the first batch is written. settings: everything that determines an
    image besides its prompt and seed.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        self.folder = Path(folder)
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UserError(
                f"generation.bank: {self.folder} cannot be written: {existing} is not a writable folder; "
                "set another folder"
            )
        self.settings = json.dumps(settings, sort_keys=True)

    def key(self, batch: Batch) -> str:
        """Return the SHA-256, in hexadecimal, of everything that determines the images of a batch."""
        return _key(self.settings, batch.prompt, batch.seed)

    def path(self, batch: Batch) -> Path:
        return self.folder / f"{self.key(batch)}.h5"

    def __contains__(self, batch: Batch) -> bool:
        return self.path(batch).is_file()

    def read(self, batch: Batch) -> np.ndarray:
        """Return the uint8 images (n, C, H, W) of a stored batch.

        Raises UserError if its file is damaged or holds other images.
        """
        return read_batch(self.path(batch))["image"]

    def write(self, batch: Batch, images: np.ndarray) -> None:
        """Store the uint8 images (n, C, H, W) of a batch atomically.

        Raises UserError if the folder cannot be written.
        """
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            file.attrs["settings"] = self.settings
            file.attrs["sha256"] = _checksum(images)
            file["image"] = images
            for name, values in asdict(batch).items():
                file[name] = np.array(values, dtype=h5py.string_dtype() if name == "prompt" else np.int64)
        path = self.path(batch)
        unfinished = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(content.getvalue() + _seal(content.getvalue()))
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            failed = UserError(f"generation.bank: {self.folder} cannot be written: {error.strerror}")
            failed.unclean = True
            raise failed from None

    def describe_foreign_images(self) -> str | None:
        """Return a notice if the bank has images, but none of our checkpoint and adapter; else None."""
        ours, found = describe_generator(json.loads(self.settings)), set()
        for path in self.folder.glob("*.h5"):
            with suppress(*READ_ERRORS), h5py.File(path, "r") as file:
                found.add(describe_generator(json.loads(file.attrs["settings"])))
            if ours in found:
                return None
        if found:
            return f"the images in {self.folder} are another generator's; this run adds its own"
        return None


def describe_generator(settings: dict[str, Any]) -> str:
    """Describe the checkpoint and adapter of a bank file's settings, with abbreviated digests."""
    adapter = settings.get("adapter")
    return f"checkpoint {settings.get('checkpoint', '?')[:12]}" + (
        f" with adapter {adapter[:12]}" if adapter else ""
    )


def read_batch(path: Path) -> dict[str, Any]:
    """Read a file of a bank.

    Returns image, uint8 (n, C, H, W); label, template, seed, int64 (n,); prompt, a list of texts; settings, a
    dict. Raises UserError if the file is damaged, or if its name does not match its content.
    """
    key = None
    try:
        if not _is_sealed(path):
            raise ValueError
        with h5py.File(path, "r") as file:
            batch = {name: file[name][:] for name in ("image", "label", "template", "seed")}
            batch["prompt"] = [text.decode() for text in file["prompt"][:]]
            batch["settings"] = json.loads(file.attrs["settings"])
            key = _key(file.attrs["settings"], batch["prompt"], batch["seed"].tolist())
            whole = file.attrs["sha256"] == _checksum(batch["image"])
    except READ_ERRORS:
        whole = False
    if not whole:
        raise UserError(
            f"generation.bank: {path} is damaged or not a file of a bank; "
            "remove it, and its images are generated again"
        )
    if path.stem != key:
        raise UserError(
            f"generation.bank: {path} holds other images than its name states; "
            "remove it, and its images are generated again"
        )
    return batch


def _key(settings: str, prompts: Sequence[str], seeds: Sequence[int]) -> str:
    """Hash what determines the images of a batch. settings: as JSON."""
    return hashlib.sha256(json.dumps([settings, prompts, seeds]).encode()).hexdigest()


def _seal(content: bytes) -> bytes:
    """Return the checksum that is appended to an HDF5 file, where HDF5 ignores it.

    It is checked before HDF5 opens the file, because a damaged file may make HDF5 loop for ever.
    """
    return b"\nsha256 " + hashlib.sha256(content).hexdigest().encode()


def _is_sealed(path: Path) -> bool:
    """Check a file's bytes against its seal. Files of older versions have no seal, and pass."""
    content, seal = (everything := path.read_bytes())[:-72], everything[-72:]
    return not seal.startswith(b"\nsha256 ") or seal == _seal(content)


def _checksum(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
