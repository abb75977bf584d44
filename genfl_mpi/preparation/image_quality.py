"""How good the images of a bank are: the `quality` command."""

import time
from pathlib import Path

import numpy as np

from genfl_mpi.data import datasets, public
from genfl_mpi.federation.server_images import read_pool
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.generation import bank
from genfl_mpi.generation.quality import MEASURES, Judge
from genfl_mpi.mpi import devices
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError

FORMATS = {
    "cas": "8.1f",
    "fidelity": "8.1f",
    "frechet": "8.2f",
    "diversity": "9.2f",
    "auc": "6.3f",
    "theta": "6.3f",
    "copies": "6.1f",
}


def quality(comm, folder, config, counts):
    """Judge the images in a bank's folder against the real data set of `config`; yields lines. Writes quality.png there.

    counts: numbers of images a class to judge by, the first of each class; each generator in the bank is judged apart,
    after the filter that `config` has, and beside the public images from which `config` would pretrain one.
    Raises UserError.
    """
    config = resolve(config, comm)
    device = devices.use(comm, config.runtime.threads, config.runtime.device)
    about = datasets.describe(config.data)
    sets = _sets(Path(folder), about, config.data.name)
    start = time.perf_counter()
    arrays = datasets.load(config.data)
    reader = read_pool(config, about, arrays, device) if config.generation.min_fidelity else None
    learned_from, labels_learned = _public(arrays, about, config)
    judge = Judge(arrays, about, config, device, learned_from)
    yield f"classifier: {config.model.name}; trained on the real {config.data.name} it reaches {judge.real_accuracy():.1f} %"
    yield from (f"  {name:<10} {meaning}" for name, meaning in MEASURES.items())
    if learned_from is not None:
        sets = {
            f"real: the public images, {len(learned_from)} in all": (learned_from, labels_learned),
            **sets,
        }
    for about_set, (images, labels) in sets.items():
        generated = images is not learned_from
        yield f"\n{about_set}"
        if generated and reader:
            passed = reader.fidelity(images, labels) >= config.generation.min_fidelity
            yield f"the filter keeps {passed.sum()} of {len(passed)} images"
            images, labels = images[passed], labels[passed]
        fewest = np.bincount(labels, minlength=len(about.classes)).min()
        if fewest < 2:
            raise UserError(
                f"{folder}: of some class the filter keeps {fewest} images, and two are needed to judge; lower generation.min_fidelity"
            )
        yield _header("images a class")
        for count in sorted({min(count, fewest) for count in counts}):
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
    yield f"\njudged in {time.perf_counter() - start:.0f} s on {device.type}, {config.runtime.threads} threads; a sheet of the last is in {picture}"


def _public(arrays, about, config):
    """The public images of `config`, as uint8 (n, C, H, W), with their labels, or (None, None) if it has none."""
    source = config.pretraining.images
    if source == "public_pool" and not config.data.public_pool:
        return None, None
    values, labels, _ = public.images(arrays, about, config.data, source)
    return (values * 255).round().byte().numpy(), labels


def _sets(folder, about, name):
    """Images and labels of each generator in a bank, by a description of the generator."""
    files = sorted(folder.glob("*.h5"))
    if not files:
        raise UserError(
            f"{folder}: there are no images; make some with: python -m genfl_mpi generate CONFIG generation.bank={folder}"
        )
    found = {}
    for file in map(bank.read, files):
        if file["image"].shape[1:] != about.shape:
            raise UserError(
                f"{folder}: its images are {file['image'].shape[1:]}, those of {name} {about.shape}; give the CONFIG of their data set"
            )
        if file["label"].max() >= len(about.classes):
            raise UserError(
                f"{folder}: label {file['label'].max()} is unknown; {name} has {len(about.classes)} classes"
            )
        settings = file["settings"]
        key = (
            f"{bank.maker(settings)}, {settings['steps']} steps, guidance {settings['guidance']:g}, "
            f"{settings['scheduler'] or 'own scheduler'}, {settings['dtype']} on {settings['device']}"
        )
        found.setdefault(key, []).append(file)
    for key, some in found.items():
        images, labels = (np.concatenate([file[name] for file in some]) for name in ("image", "label"))
        counts = np.bincount(labels, minlength=len(about.classes))
        if counts.min() < 2:
            raise UserError(
                f"{folder}: class {about.classes[counts.argmin()]!r} has {counts.min()} images of {key}; every class needs two to be judged"
            )
        found[key] = images, labels
    return found


def _header(first):
    return f"{first:<16}" + "".join(f"  {name:>{form.split('.')[0]}}" for name, form in FORMATS.items())


def _row(first, measured, which):
    return f"{first:<16}" + "".join(f"  {measured[name][which]:{form}}" for name, form in FORMATS.items())
