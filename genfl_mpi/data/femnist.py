"""FEMNIST in the format of LEAF (Caldas et al. 2018): handwritten characters with their writers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.data.image_sources import Part, Source
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from genfl_mpi.config.sections.samples import Data

CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
SIDE = 28
HEAD_BYTES = 1 << 20  # read at a time until the list of samples ends


def femnist(data: Data) -> Source:
    """Find LEAF's files, data.root/femnist/{train,test}/*.json; each client is a writer."""
    return _femnist(data.root)


@cache
def _femnist(root: str) -> Source:
    folder = Path(root) / "femnist"
    files = {part: sorted((folder / part).glob("*.json")) for part in ("train", "test")}
    if not all(files.values()):
        raise UserError(
            f"no JSON files in {folder}/train and {folder}/test; set data.root to the folder that contains "
            "femnist, with the files that LEAF's preprocess.sh writes"
        )
    return Source(
        CLASSES,
        (1, SIDE, SIDE),
        (0.9637,),
        (0.1592,),
        sum(map(_count_samples, files["train"])),
        lambda: (_read(files["train"]), _read(files["test"])),
    )


def _count_samples(path: Path) -> int:
    """Sum num_samples, which LEAF writes before the samples themselves."""
    head = ""
    with path.open() as file:
        while (piece := file.read(HEAD_BYTES)) and '"user_data"' not in head:
            head += piece
    before, found, _ = (head + piece).partition('"user_data"')
    try:
        return sum(json.loads(before.rstrip().rstrip(",") + "}" * bool(found))["num_samples"])
    except (ValueError, KeyError, TypeError):  # in another order
        return sum(_load(path)["num_samples"])


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open() as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not one of LEAF's files: {first_line(error)}") from None


def _read(files: list[Path]) -> Part:
    """Read pixels, labels and writers; LEAF's pixels lie in [0, 1], on white."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    writers: list[str] = []
    for path in files:
        content = _load(path)
        try:
            for writer in content["users"]:
                samples = content["user_data"][writer]
                pixels = np.rint(255 * np.asarray(samples["x"], dtype=np.float64)).astype(np.uint8)
                images.append(pixels.reshape(-1, SIDE, SIDE))
                labels += samples["y"]
                writers += [writer] * len(samples["y"])
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not one of LEAF's files: {first_line(error)}") from None
    every = np.concatenate(images)
    return Part(np.array(labels, dtype=np.int64), np.array(writers), lambda sample: every[sample])
