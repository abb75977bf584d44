"""Data sets as plain arrays: uint8 samples, such as images (n, C, H, W), int64 labels (n,), class names."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.config.functions import check_signature, find
from genfl_mpi.data import array_sources, image_sources, label_files, mapped
from genfl_mpi.data.descriptions import DESCRIPTIONS, DIGITS, Description
from genfl_mpi.data.femnist import femnist
from genfl_mpi.data.image_sources import Source
from genfl_mpi.util import digest_cache
from genfl_mpi.util.errors import UserError, annotate_errors

if TYPE_CHECKING:
    from genfl_mpi.config.sections.samples import Data
    from genfl_mpi.config.settings import Config

Arrays = dict[str, np.ndarray]


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of its channels
# Data sets that are decoded image by image.
SOURCES: dict[str, Callable[[Data], Source]] = {
    "client_folders": image_sources.client_folders,
    "huggingface": image_sources.huggingface,
    "cinic10": image_sources.cinic10,
    "tiny_imagenet": image_sources.tiny_imagenet,
    "femnist": femnist,
}


def describe(data: Data) -> Description:
    """Return the `Description` of config.data.

    With data.normalise=false, mean 0 and std 1 keep pixels in [0, 1]. Raises UserError if the data set is a
    folder without images, or the user's and invalid.
    """
    if data.name == "folder":
        files_of_class = {
            name: len(found) for name, found in array_sources.image_files(Path(data.root) / "train").items()
        }
        about = Description(
            tuple(files_of_class),
            (3, data.size, data.size),
            sum(files_of_class.values()),
            (0.5,) * 3,
            (0.25,) * 3,
        )
    elif data.name in SOURCES:
        source = SOURCES[data.name](data)
        about = Description(source.classes, source.shape, source.train_samples, source.mean, source.std)
    elif data.name == "synthetic":
        about = Description(DIGITS, (3, data.size, data.size), data.samples, (0.5,) * 3, (0.25,) * 3)
    else:
        about = DESCRIPTIONS[data.name] if data.name in DESCRIPTIONS else _find_own(data)[0]
    channels = len(about.mean)
    if data.normalise == "imagenet" and channels:
        mean, std = IMAGENET if channels == 3 else [(float(np.mean(one)),) * channels for one in IMAGENET]
        return replace(about, mean=mean, std=std)
    if data.normalise:
        return about
    return replace(about, mean=(0.0,) * channels, std=(1.0,) * channels)


def check_available(data: Data, samples: int) -> None:
    """Raise UserError if the data set is missing and must not be downloaded, or is too small.

    data: config.data; samples: number of training samples needed besides the public pool.
    """
    about = describe(data)
    folder = about.folder and Path(data.root) / about.folder
    if folder and not data.download and not folder.exists():
        raise UserError(
            f"data set {data.name}: {folder} does not exist; set data.root to the folder that contains "
            f"{folder.name}, or let torchvision download it once, on a machine with network access, by "
            "data.download=true"
        )
    if data.public_pool >= about.train_samples:
        raise UserError(
            f"data.public_pool: {data.public_pool} images leave none of the {about.train_samples} training "
            f"samples of {data.name} for the clients; use a smaller pool"
        )
    if samples > about.train_samples - data.public_pool:
        besides = f" besides the public pool of {data.public_pool}" if data.public_pool else ""
        raise UserError(
            f"clients times partition.min_samples is {samples}, but {data.name} has "
            f"{about.train_samples - data.public_pool} training samples{besides}; use fewer clients or a "
            "smaller minimum, or draw with replacement: partition.replacement=true"
        )


def check_augmentation(config: Config, about: Description) -> None:
    """Raise UserError if settings shift, mirror or degrade images, and samples are none, or too small."""
    kind = config.misbehaving_clients.kind
    if len(about.shape) != 3 and config.misbehaving_clients.share and kind in ("blurred", "noisy"):
        raise UserError(f"misbehaving_clients.kind={kind} degrades images, which {config.data.name} has not")
    for section, settings in (("training", config.training), ("augmented", config.augmented)):
        if len(about.shape) != 3 and (settings.crop or settings.flip):
            raise UserError(
                f"{section}.crop and {section}.flip change images, and the samples of {config.data.name} are "
                f"none; set {section}.crop=0 and {section}.flip=false"
            )
        if settings.crop and settings.crop >= (side := min(about.shape[1:])):
            raise UserError(f"{section}.crop={settings.crop} must be less than the images' side, {side}")


def decode_texts(samples: np.ndarray, alphabet: str) -> list[str]:
    """Return the texts that uint8 samples (n, length) stand for, without trailing characters 0."""
    return ["".join(alphabet[code] for code in np.trim_zeros(sample, "b")) for sample in samples]


def cache_key(data: Data) -> tuple:
    """Return the settings of config.data on which the arrays of `load` depend."""
    return data.name, data.root, data.size, data.samples, data.splits, data.columns, data.arrays


def download(data: Data) -> None:
    """Download what is missing, with torchvision or from the hub. Call on one rank, before others read."""
    if describe(data).folder:  # Hugging Face's are downloaded by `describe`
        for is_train in (True, False):
            array_sources.torchvision_arrays(data, is_train, download=True)


def load(data: Data, note: Callable[[int, int], None] = lambda done, of: None) -> Arrays:
    """Read the data set of config.data.

    note: called as note(done, of) while images are decoded one by one. Returns arrays by name: train_images,
    train_labels, test_images, test_labels; also train_groups, int32 (n,), if its samples belong to natural
    clients. With data.arrays they are mapped to files, which are made if they are missing. Raises UserError
    if the data set is missing or invalid.
    """
    if data.arrays is not None:
        make_arrays(data, note)
        return mapped.open_arrays(Path(data.arrays))
    if data.name in SOURCES:
        return _load_source(SOURCES[data.name](data), lambda _, shape: np.empty(shape, dtype=np.uint8), note)
    return _load_whole(data)


def make_arrays(data: Data, note: Callable[[int, int], None] = lambda done, of: None) -> None:
    """Write the decoded data set to the folder data.arrays, unless it is there. Raises UserError.

    Data sets of image files are never in memory as a whole.
    """
    folder, key = Path(data.arrays or ""), arrays_key(data)
    if mapped.is_made(folder):
        mapped.check(folder, key)
        return

    def write(folder: Path) -> None:
        if data.name in SOURCES:
            arrays = _load_source(
                SOURCES[data.name](data), lambda name, shape: mapped.allocate(folder, name, shape), note
            )
        else:
            arrays = _load_whole(data)
        for name, array in arrays.items():
            if not isinstance(array, np.memmap):
                np.save(folder / f"{name}.npy", array)

    mapped.make(folder, key, write)


def arrays_key(data: Data) -> dict[str, Any]:
    """Return the settings of config.data on which the files in data.arrays depend."""
    return {
        "data.name": data.name,
        "data.size": data.size,
        "data.samples": data.samples,
        "data.splits": list(data.splits),
        "data.columns": data.columns.model_dump(),
    }


def _load_source(
    source: Source,
    allocate: Callable[[str, tuple[int, ...]], np.ndarray],
    note: Callable[[int, int], None],
) -> Arrays:
    """Decode a source. allocate: returns a uint8 array of a name and a shape."""
    arrays: Arrays = {}
    for name, part in zip(("train", "test"), source.parts()):
        images = allocate(f"{name}_images", (len(part.labels), *source.shape))
        image_sources.decode_into(part, images, source.shape, note)
        arrays |= {f"{name}_images": images, f"{name}_labels": part.labels}
        if part.groups is not None and name == "train":
            arrays["train_groups"] = image_sources.group_codes(part.groups)
    return arrays


def _load_whole(data: Data) -> Arrays:
    """Read a data set that is not decoded image by image."""
    if data.name == "mnist5k":
        return array_sources.mnist5k()
    if data.name == "folder":
        return array_sources.image_folder(data, describe(data).classes)
    if data.name == "synthetic":
        return array_sources.synthetic(data)
    if data.name not in DESCRIPTIONS:
        return _read_own(data.name, *_find_own(data))
    check_available(data, 0)
    arrays = {}
    for part, is_train in (("train", True), ("test", False)):
        images, labels = array_sources.torchvision_arrays(data, is_train, download=False)
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        arrays[f"{part}_images"] = np.ascontiguousarray(images, dtype=np.uint8)
        arrays[f"{part}_labels"] = labels
    return arrays


def load_train_labels(data: Data) -> np.ndarray:
    """Read the training labels of config.data, int64 (n,), without its images where that is faster.

    Raises UserError if the data set is missing or invalid.
    """
    if data.name == "synthetic":
        return array_sources.synthetic_labels(data.samples)
    if data.name == "folder":
        sizes = [len(paths) for paths in array_sources.image_files(Path(data.root) / "train").values()]
        return np.arange(len(sizes)).repeat(sizes)
    if data.arrays is None and data.name in SOURCES:
        return SOURCES[data.name](data).parts()[0].labels
    if data.arrays is None and data.name in DESCRIPTIONS:
        check_available(data, 0)
        labels = label_files.read_train_labels(data)
        if labels is not None and len(labels) == DESCRIPTIONS[data.name].train_samples:
            return labels
    return load(data)["train_labels"]


def load_train_groups(data: Data) -> np.ndarray | None:
    """Read the natural client of each training sample, int32 (n,); None if the data set has none."""
    if data.arrays is not None:
        return load(data).get("train_groups")
    groups = SOURCES[data.name](data).parts()[0].groups if data.name in SOURCES else None
    return None if groups is None else image_sources.group_codes(groups)


def fingerprint(data: Data, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256, in hexadecimal, of a data set as returned by `load`.

    That of a large one in files is remembered beside these, in data.root. data: config.data.
    """
    if not (files := _files_below_root(data)):
        return _hashed(arrays)
    place = Path(data.root) / f".{data.name}-{data.size}.sha256"
    about = f"{version('numpy')} {version('pillow')} {version('torchvision')} {data.name} {data.size}"
    return digest_cache.remembered(place, files, lambda: _hashed(arrays), about)


def _files_below_root(data: Data) -> list[Path]:
    """Return the files from which `load` reads a data set in data.root; none for other data sets."""
    if data.name == "folder":
        parts = [Path(data.root) / part for part in ("train", "test")]
        return [
            path for part in parts for paths in array_sources.image_files(part).values() for path in paths
        ]
    folder = describe(data).folder if data.name in DESCRIPTIONS else None
    if folder is None:
        return []
    return sorted(path for path in (Path(data.root) / folder).rglob("*") if path.is_file())


def _hashed(arrays: Mapping[str, np.ndarray]) -> str:
    """Compute the SHA-256, in hexadecimal, of the arrays of a data set."""
    digest = hashlib.sha256()
    for part, kind in itertools.product(("train", "test"), ("images", "labels")):
        array = np.ascontiguousarray(arrays[f"{part}_{kind}"])
        digest.update(f"{part} {kind} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).reshape(-1))  # type: ignore[arg-type]
    if "train_groups" in arrays:
        digest.update(np.ascontiguousarray(arrays["train_groups"]).data)
    return digest.hexdigest()


def _find_own(data: Data) -> tuple[Description, Callable[[], Arrays]]:
    """Return a user's `Description` of a data set, and the function that reads its arrays."""
    with annotate_errors(f"data.name {data.name}"):
        found = find(data.name, DESCRIPTIONS, "data.name")(data)
    if not (
        isinstance(found, tuple)
        and len(found) == 2
        and isinstance(found[0], Description)
        and callable(found[1])
    ):
        raise UserError(
            f"data.name: {data.name} must return a genfl_mpi.data.descriptions.Description and a function "
            "that reads the arrays"
        )
    check_signature(found[1], (), f"data.name: the function that reads the arrays of {data.name}")
    return found


def _read_own(name: str, about: Description, read: Callable[[], Arrays]) -> Arrays:
    """Read a user's data set; raise UserError unless it matches its description.

    train_groups, the client of each training sample, is optional.
    """
    with annotate_errors(f"data.name {name}"):
        arrays = read()
    if "train_groups" in arrays:
        arrays["train_groups"] = image_sources.group_codes(np.asarray(arrays["train_groups"]))
    for part in ("train", "test"):
        images, labels = (np.asarray(arrays.get(f"{part}_{kind}", ())) for kind in ("images", "labels"))
        if images.dtype != np.uint8 or images.shape != (len(images), *about.shape):
            raise UserError(
                f"data.name: {part}_images of {name} must be uint8 (n, {', '.join(map(str, about.shape))}), "
                f"not {images.dtype} {images.shape}"
            )
        is_valid = labels.dtype.kind in "iu" and labels.shape == (len(images),) and len(labels)
        if not is_valid or labels.min() < 0 or labels.max() >= len(about.classes):
            raise UserError(
                f"data.name: {part}_labels of {name} must be an integer from 0 to {len(about.classes) - 1} "
                f"for each of the {len(images)} images"
            )
        arrays[f"{part}_labels"] = labels.astype(np.int64)
    if len(arrays["train_labels"]) != about.train_samples:
        raise UserError(
            f"data.name: {name} has {len(arrays['train_labels'])} training images, but its description says "
            f"{about.train_samples}"
        )
    return arrays
