"""Generated images on disk: made once, reused by every method and run that asks for the same.

A bank is a folder with one HDF5 file for each batch of images made together, named by the SHA-256 of everything that
determines their bits. A file is written under another name and renamed, so it is there whole or not at all, and jobs
may share a bank.
"""

import hashlib
import io
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

# What reading damaged and foreign files raises.
UNREADABLE = OSError, KeyError, ValueError, TypeError, AttributeError


@dataclass(frozen=True)
class Batch:
    """Images to be made together: prompts and seeds, and for the record their labels and templates."""

    label: tuple[int, ...]
    template: tuple[int, ...]
    seed: tuple[int, ...]
    prompt: tuple[str, ...]

    def __len__(self):
        return len(self.label)


def batches_of_round(counts, already, prompts, seed, size):
    """The batches of a round.

    counts: int (classes,), images wanted of each class; already: int (classes,), how many there are: image j of a
    class has its template and noise from (seed, class, j) alone. The order is the first image of every class, the
    second of every class and so on.
    """
    wanted = [
        (j, label)
        for label in range(len(counts))
        for j in range(already[label], already[label] + counts[label])
    ]
    images = []
    for j, label in sorted(wanted):
        template = int(streams.generator(seed, "template", label, j).integers(len(prompts.templates)))
        images.append(
            (label, template, streams.integer(seed, "image", label, j), prompts.text(label, template))
        )
    return [Batch(*zip(*images[i : i + size])) for i in range(0, len(images), size)]


class Bank:
    """folder: of the bank. settings: dict of all that determines an image besides its prompt and seed."""

    def __init__(self, folder, settings):
        self.folder = Path(folder)
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise UserError(
                f"generation.bank: {self.folder} cannot be written: {there} is not a folder that you may write to"
            )
        self.settings = json.dumps(settings, sort_keys=True)

    def key(self, batch):
        """SHA-256, in hexadecimal, of everything that determines the images of a batch."""
        return _key(self.settings, batch.prompt, batch.seed)

    def path(self, batch):
        return self.folder / f"{self.key(batch)}.h5"

    def __contains__(self, batch):
        return self.path(batch).is_file()

    def read(self, batch):
        """Return the uint8 images (n, C, H, W) of a batch that is there.

        Raises UserError if its file is damaged, or is that of other images.
        """
        return read(self.path(batch))["image"]

    def write(self, batch, images):
        """Store the images of a batch in one step. Raises UserError if the folder cannot be written."""
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

    def made_by_others(self):
        """A line that says so if the bank has images, and none of them is of our checkpoint and adapter; else None."""
        ours, found = maker(json.loads(self.settings)), set()
        for path in self.folder.glob("*.h5"):
            with suppress(*UNREADABLE), h5py.File(path, "r") as file:
                found.add(maker(json.loads(file.attrs["settings"])))
            if ours in found:
                return None
        if found:
            return (
                f"generation.bank: {self.folder} holds images of {', '.join(sorted(found))}, and none of {ours}, this run's generator: "
                "new ones are made, the others stay"
            )
        return None


def maker(settings):
    """The checkpoint and adapter of a bank file's settings, in short."""
    adapter = settings.get("adapter")
    return f"checkpoint {settings.get('checkpoint', '?')[:12]}" + (
        f" with adapter {adapter[:12]}" if adapter else ""
    )


def read(path):
    """Return a file of a bank as a dict: image (n, C, H, W), label, template, seed, prompt, settings.

    Raises UserError if it is damaged, or if its name does not belong to its content.
    """
    try:
        if not _is_sealed(path):
            raise ValueError
        with h5py.File(path, "r") as file:
            batch = {name: file[name][:] for name in ("image", "label", "template", "seed")}
            batch["prompt"] = [text.decode() for text in file["prompt"][:]]
            batch["settings"] = json.loads(file.attrs["settings"])
            key = _key(file.attrs["settings"], batch["prompt"], batch["seed"].tolist())
            whole = file.attrs["sha256"] == _checksum(batch["image"])
    except UNREADABLE:
        whole = False
    if not whole:
        raise UserError(
            f"generation.bank: {path} is damaged or not a file of a bank; remove it, and its images are made again"
        )
    if path.stem != key:
        raise UserError(
            f"generation.bank: {path} holds other images than its name says; "
            "remove it, and its images are made again"
        )
    return batch


def _key(settings, prompts, seeds):
    """Hash what determines the images of a batch: settings, as JSON, prompts (texts) and seeds (ints)."""
    return hashlib.sha256(json.dumps([settings, prompts, seeds]).encode()).hexdigest()


def _seal(content):
    """What stands behind an HDF5 file's bytes, where HDF5 does not look: a damaged one may keep HDF5 busy for ever."""
    return b"\nsha256 " + hashlib.sha256(content).hexdigest().encode()


def _is_sealed(path):
    """Whether a file's bytes are those that were written; files from before there were seals have none."""
    content, seal = (everything := path.read_bytes())[:-72], everything[-72:]
    return not seal.startswith(b"\nsha256 ") or seal == _seal(content)


def _checksum(images):
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
