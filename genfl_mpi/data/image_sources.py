"""Data sets of image files and of Hugging Face, decoded image by image into arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line, suggestion

if TYPE_CHECKING:
    from genfl_mpi.config.sections.samples import Columns, Data

IMAGE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
TINY_IMAGENET = "tiny-imagenet-200"
CINIC10 = "CINIC-10"


class Part(NamedTuple):
    """The training or the test samples of a source.

    labels: int64 (n,). groups: str (n,), the client of each sample, or None. read: image of a sample, as
    PIL.Image or uint8 array (H, W).
    """

    labels: np.ndarray
    groups: np.ndarray | None
    read: Callable[[int], Any]


class Source(NamedTuple):
    """A data set before it is decoded.

    shape: (C, H, W) of a decoded image. mean, std: of each channel. train_samples: number of training
    samples. parts: returns the training and the test samples.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_samples: int
    parts: Callable[[], tuple[Part, Part]]


def decode(image: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """Convert an image to uint8 (C, H, W): grey or RGB, resized if it has another size."""
    from PIL import Image

    channels, height, width = shape
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_into(
    part: Part, images: np.ndarray, shape: tuple[int, int, int], note: Callable[[int, int], None]
) -> None:
    """Decode all images of a part into uint8 (n, C, H, W). note: called as note(done, of)."""
    for sample in range(len(part.labels)):
        images[sample] = decode(part.read(sample), shape)
        note(sample + 1, len(part.labels))


def group_codes(groups: np.ndarray) -> np.ndarray:
    """Number the clients of samples in the order of their names: int32 (n,)."""
    return np.unique(groups, return_inverse=True)[1].astype(np.int32)


def _list_images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_FILES)


def _list_folders(folder: Path, layout: str) -> list[Path]:
    found = sorted(path for path in folder.glob("*") if path.is_dir())
    if not found:
        raise UserError(f"no folders in {folder}; set data.root to a folder with {layout}")
    return found


def _file_part(files: Sequence[tuple[Path, int, str]], has_clients: bool = False) -> Part:
    """Make a `Part` of (path, label, client)."""
    labels = np.array([label for _, label, _ in files], dtype=np.int64)
    groups = np.array([client for *_, client in files]) if has_clients else None

    def read(sample: int) -> Any:
        from PIL import Image

        path = files[sample][0]
        try:
            with Image.open(path) as image:
                image.load()
                return image
        except OSError:
            raise UserError(f"{path} is not a readable image; remove it") from None

    return Part(labels, groups, read)


def _classes_below(folders: Sequence[Path]) -> tuple[str, ...]:
    return tuple(sorted({sub.name for folder in folders for sub in folder.iterdir() if sub.is_dir()}))


def client_folders(data: Data) -> Source:
    """Find images in data.root/train/CLIENT/CLASS and data.root/test/CLASS; each client is a folder."""
    layout = "train/CLIENT/CLASS and test/CLASS"
    clients = _list_folders(Path(data.root) / "train", layout)
    classes = _classes_below(clients)
    train = [
        (path, label, client.name)
        for client in clients
        for label, name in enumerate(classes)
        if (client / name).is_dir()
        for path in _list_images(client / name)
    ]
    if not train:
        raise UserError(f"no images in {data.root}/train; set data.root to a folder with {layout}")

    def parts() -> tuple[Part, Part]:
        test = []
        for folder in _list_folders(Path(data.root) / "test", layout):
            if folder.name not in classes:
                raise UserError(
                    f"class {folder.name} is in {data.root}/test, but no client of {data.root}/train has it; "
                    "remove it, or rename the folder"
                )
            test += [(path, classes.index(folder.name), "") for path in _list_images(folder)]
        return _file_part(train, has_clients=True), _file_part(test)

    shape = 3, data.size, data.size
    return Source(classes, shape, (0.5,) * 3, (0.25,) * 3, len(train), parts)


def cinic10(data: Data) -> Source:
    """Find CINIC-10 (Darlow et al. 2018): data.root/CINIC-10/{train,test}/CLASS/*.png."""
    return _cinic10(data.root)


@cache  # listing 180,000 files takes a second
def _cinic10(root: str) -> Source:
    folder = Path(root) / CINIC10
    classes = tuple(one.name for one in _list_folders(folder / "train", f"{CINIC10}/train/CLASS"))

    def files(part: str) -> list[tuple[Path, int, str]]:
        return [
            (path, label, "")
            for label, name in enumerate(classes)
            for path in _list_images(folder / part / name)
        ]

    train = files("train")
    mean, std = (0.4789, 0.4723, 0.4305), (0.2421, 0.2383, 0.2588)
    return Source(
        classes, (3, 32, 32), mean, std, len(train), lambda: (_file_part(train), _file_part(files("test")))
    )


def tiny_imagenet(data: Data) -> Source:
    """Find Tiny-ImageNet: data.root/tiny-imagenet-200, as published; its validation set is the test set."""
    return _tiny_imagenet(data.root)


@cache  # listing 100,000 files takes a second
def _tiny_imagenet(root: str) -> Source:
    folder = Path(root) / TINY_IMAGENET
    ids = [one.name for one in _list_folders(folder / "train", f"{TINY_IMAGENET}/train")]
    number = {name: label for label, name in enumerate(ids)}
    names = dict(line.split("\t", 1) for line in _text_lines(folder / "words.txt"))
    classes = tuple(names.get(one, one).partition(",")[0] for one in ids)
    classes = classes if len(set(classes)) == len(ids) else tuple(f"{a} {b}" for a, b in zip(classes, ids))
    train = [
        (path, label, "")
        for name, label in number.items()
        for path in _list_images(folder / "train" / name / "images")
    ]

    def parts() -> tuple[Part, Part]:
        rows = [line.split("\t")[:2] for line in _text_lines(folder / "val" / "val_annotations.txt")]
        test = [(folder / "val" / "images" / file, number[name], "") for file, name in sorted(rows)]
        return _file_part(train), _file_part(test)

    mean, std = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
    return Source(classes, (3, 64, 64), mean, std, len(train), parts)


def _text_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path} cannot be read; unpack the published archive again") from None


def huggingface(data: Data) -> Source:
    """Open a data set of Hugging Face: data.root is its folder, or its id on the hub."""
    return _huggingface(data.root, data.splits, data.columns, data.size, data.download)


def import_datasets() -> Any:
    """Return the module datasets. Raises UserError if it is not installed."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            "data.name=huggingface needs the package datasets: pip install 'genfl_mpi[datasets]'"
        ) from None
    datasets.disable_progress_bars()
    return datasets


def _open_huggingface(root: str, downloads: bool) -> Mapping[str, Any]:
    """Return the splits of a data set: from save_to_disk, from files in a folder, or from the hub's cache."""
    datasets = import_datasets()
    folder = Path(root)
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(root)
        local = None if folder.is_dir() or downloads else datasets.DownloadConfig(local_files_only=True)
        return datasets.load_dataset(root, download_config=local)
    except Exception as error:  # the library raises many kinds
        hint = (
            ""
            if folder.is_dir()
            else "; data.root is neither a folder nor in the cache: `prefetch` fetches it from the hub with "
            "data.download=true"
        )
        raise UserError(f"data.root={root}: not a readable data set: {first_line(error)}{hint}") from None


@cache
def _huggingface(root: str, splits: tuple[str, str], columns: Columns, size: int, downloads: bool) -> Source:
    found = _open_huggingface(root, downloads)
    for split in splits:
        if split not in found:
            raise UserError(
                f"data.splits: {root} has no split {split}; it has {', '.join(found)}: set data.splits to "
                "two of them, or to one of them twice"
            )
    train, test = (found[split] for split in splits)
    for key, column in columns:
        if column is not None and column not in train.column_names:
            raise UserError(
                f"data.columns.{key}={column}: {root} has no such "
                f"column{suggestion(column, train.column_names)}; "
                f"it has {', '.join(train.column_names)}"
            )
    if splits[0] == splits[1]:  # every tenth sample is for testing
        everyone = np.arange(len(train))
        test, train = train.select(everyone[9::10]), train.select(np.delete(everyone, slice(9, None, 10)))
    feature = train.features[columns.label]
    values = [np.asarray(part.with_format("numpy")[columns.label][:]) for part in (train, test)]
    names = getattr(feature, "names", None)
    if names is None:
        known = np.unique(values[0])
        if unknown := set(np.unique(values[1])) - set(known):
            raise UserError(
                f"data.columns.label={columns.label}: test label {unknown.pop()} is in no training sample"
            )
        names, values = [str(one) for one in known], [np.searchsorted(known, one) for one in values]
    first = _picture(train[0][columns.image], root, columns.image)
    channels = 1 if first.mode in ("1", "L", "I;16", "I") else 3

    def part(rows: Any, labels: np.ndarray, with_clients: bool) -> Part:
        pictures = rows.select_columns([columns.image])
        clients = None
        if columns.client is not None and with_clients:
            clients = np.array([str(one) for one in rows[columns.client][:]])
        return Part(
            labels.astype(np.int64),
            clients,
            lambda sample: _picture(pictures[sample][columns.image], root, columns.image),
        )

    return Source(
        tuple(names),
        (channels, size, size),
        (0.5,) * channels,
        (0.25,) * channels,
        len(train),
        lambda: (part(train, values[0], True), part(test, values[1], False)),
    )


def _picture(value: Any, root: str, column: str) -> Any:
    """Return a cell of the image column as a PIL image. Raises UserError."""
    from PIL import Image

    if isinstance(value, Image.Image):
        return value
    try:
        return Image.fromarray(np.asarray(value, dtype=np.uint8))
    except (TypeError, ValueError):
        raise UserError(f"data.columns.image={column}: the column of {root} has no images") from None
