"""Generated images on disk: made once, reused by every method and run that asks for the same.

A bank is a folder with one HDF5 file for each batch of images made together, named by the SHA-256 of everything that
determines their bits. A file is written under another name and renamed, so it is there whole or not at all, and jobs
may share a bank.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from genfl_mpi import streams


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
    wanted = [(j, label) for label in range(len(counts)) for j in range(already[label], already[label] + counts[label])]
    images = []
    for j, label in sorted(wanted):
        template = int(streams.generator(seed, "template", label, j).integers(len(prompts.templates)))
        images.append((label, template, streams.integer(seed, "image", label, j), prompts.text(label, template)))
    return [Batch(*zip(*images[i : i + size])) for i in range(0, len(images), size)]


class Bank:
    """folder: of the bank. settings: dict of all that determines an image besides its prompt and seed."""

    def __init__(self, folder, settings):
        self.folder = Path(folder)
        self.settings = json.dumps(settings, sort_keys=True)

    def path(self, batch):
        key = json.dumps([self.settings, batch.prompt, batch.seed])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.h5"

    def __contains__(self, batch):
        return self.path(batch).is_file()

    def read(self, batch):
        """uint8 images (n, C, H, W) of a batch that is there."""
        with h5py.File(self.path(batch), "r") as file:
            return file["image"][:]

    def write(self, batch, images):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(batch)
        unfinished = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
        with h5py.File(unfinished, "w") as file:
            file.attrs["settings"] = self.settings
            file["image"] = images
            for name, values in asdict(batch).items():
                file[name] = np.array(values, dtype=h5py.string_dtype() if name == "prompt" else np.int64)
        os.replace(unfinished, path)
