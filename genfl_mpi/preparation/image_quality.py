"""Judge the images of a bank: the `quality` command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.data import datasets, public
from genfl_mpi.federation.server_images import train_pool_classifier
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.generation import bank
from genfl_mpi.generation.quality import MEASURES, Judge
from genfl_mpi.mpi import devices
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.progress_bar import progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI

FORMATS = {
    "cas": "8.1f",
    "fidelity": "8.1f",
    "frechet": "8.2f",
    "diversity": "9.2f",
    "auc": "6.3f",
    "theta": "6.3f",
    "copies": "6.1f",
}


def quality(comm: MPI.Comm, folder: str, config: Config, counts: list[int]) -> Iterator[str]:
    """Judge the images in a bank's folder against the real data set of `config`; yield lines.

    counts: numbers of images per class to judge by, the first of each class. Each generator in the bank is
    judged separately, after the filter of `config` if it has one, and compared with the public images on
    which `config` would pretrain a generator. Writes quality.png to the folder. Raises UserError.
    """
    config = resolve(config, comm)
    device = devices.set_up(comm, config.runtime)
    about = datasets.describe(config.data)
    if len(about.shape) != 3:
        raise UserError(f"quality measures images, and the samples of data.name={config.data.name} are none")
    sets = _read_sets(Path(folder), about, config.data.name)
    start = time.perf_counter()
    arrays = datasets.load(config.data)
    classifier = (
        train_pool_classifier(config, about, arrays, device) if config.generation.min_fidelity else None
    )
    real = _public(arrays, about, config)
    judge = Judge(arrays, about, config, device, real and real[0])
    yield (
        f"classifier: {config.model.name}; trained on the real {config.data.name} it reaches "
        f"{judge.real_accuracy():.1f} %"
    )
    yield from (f"  {name:<10} {meaning}" for name, meaning in MEASURES.items())
    if real:
        sets = {f"real: the {len(real[0])} public images": real, **sets}
    for title, one in sets.items():
        (images, labels), generated = one, one is not real
        yield f"\n{title}"
        if generated and classifier:
            passed = classifier.fidelity(images, labels) >= config.generation.min_fidelity
            yield f"the filter keeps {passed.sum()} of {len(passed)} images"
            images, labels = images[passed], labels[passed]
        smallest = np.bincount(labels, minlength=len(about.classes)).min()
        if smallest < 2:
            raise UserError(
                f"{folder}: the filter keeps {smallest} images of a class, and at least two are needed; "
                "lower generation.min_fidelity"
            )
        yield _header("images per class")
        for count in progress(sorted({min(count, smallest) for count in counts}), "measure", "counts"):
            chosen = np.sort(
                np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(len(about.classes))])
            )
            measured = judge.measure(images[chosen], labels[chosen], generated)
            yield _row(f"{count}", measured, -1)
        if not generated:
            yield _row("all", judge.measure(images, labels, generated), -1)
            continue
        yield _header(f"class, of {count}")
        yield from (_row(name, measured, c) for c, name in enumerate(about.classes))
    picture = Path(folder) / "quality.png"
    plotting.save(plotting.sheet({"generated": (images, labels)}, about.classes, columns=12), picture)
    yield (
        f"\njudged in {time.perf_counter() - start:.0f} s on {device.type} with {config.runtime.threads} "
        f"threads; sample images of the last set: {picture}"
    )


def _public(
    arrays: dict[str, np.ndarray], about: datasets.Description, config: Config
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the public images of `config`, uint8 (n, C, H, W), and their labels; None without a pool."""
    source = config.pretraining.images
    if source == "public_pool" and not config.data.public_pool:
        return None
    values, labels, _ = public.public_images(arrays, about, config.data, source)
    return (values * 255).round().byte().numpy(), labels


def _read_sets(
    folder: Path, about: datasets.Description, name: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the images and labels of each generator in a bank, keyed by a description of the generator."""
    files = sorted(folder.glob("*.h5"))
    if not files:
        raise UserError(
            f"{folder}: it contains no images; generate some with: python -m genfl_mpi generate CONFIG "
            f"generation.bank={folder}"
        )
    files_of: dict[str, list[dict[str, Any]]] = {}
    for file in map(bank.read_batch, files):
        if file["image"].shape[1:] != about.shape:
            raise UserError(
                f"{folder}: its images have shape {file['image'].shape[1:]}, those of {name} {about.shape}; "
                "give the CONFIG of their data set"
            )
        if file["label"].max() >= len(about.classes):
            raise UserError(
                f"{folder}: label {file['label'].max()} is unknown; {name} has {len(about.classes)} classes; "
                "give the CONFIG of their data set"
            )
        settings = file["settings"]
        key = (
            f"{bank.describe_generator(settings)}, {settings['steps']} steps, guidance "
            f"{settings['guidance']:g}, {settings['scheduler'] or 'default scheduler'}, "
            f"{settings['dtype']} on {settings['device']}"
        )
        files_of.setdefault(key, []).append(file)
    sets = {}
    for key, batches in files_of.items():
        images, labels = (np.concatenate([batch[part] for batch in batches]) for part in ("image", "label"))
        counts = np.bincount(labels, minlength=len(about.classes))
        if counts.min() < 2:
            raise UserError(
                f"{folder}: class {about.classes[counts.argmin()]!r} has {counts.min()} images of {key}; "
                "every class needs two to be judged; generate more"
            )
        sets[key] = images, labels
    return sets


def _header(first: str) -> str:
    return f"{first:<16}" + "".join(f"  {name:>{form.split('.')[0]}}" for name, form in FORMATS.items())


def _row(first: str, measured: dict[str, np.ndarray], column: int) -> str:
    return f"{first:<16}" + "".join(f"  {measured[name][column]:{form}}" for name, form in FORMATS.items())
