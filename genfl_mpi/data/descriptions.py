"""Data sets that are known by name: their classes, shapes and channels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Description:
    """Facts about a data set that need no reading of its images.

    shape: of a sample: (C, H, W) of an image, (length,) of a text. mean, std: of each channel, for pixels in
    [0, 1]; empty if models get the values as they are. folder: name of its folder or file below data.root, in
    torchvision's layout; None if it is installed with a package, synthetic, or in a layout of the user's.
    alphabet: of texts, the characters that the values 0, 1, ... stand for; "" for images.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    train_samples: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folder: str | None = None
    alphabet: str = ""


DIGITS = tuple("0123456789")
FASHION = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# Letters with the same shape in upper and lower case form one class.
EMNIST = (*DIGITS, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"abdefghnqrt")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = (
    "apple",
    "aquarium_fish",
    "baby",
    "bear",
    "beaver",
    "bed",
    "bee",
    "beetle",
    "bicycle",
    "bottle",
    "bowl",
    "boy",
    "bridge",
    "bus",
    "butterfly",
    "camel",
    "can",
    "castle",
    "caterpillar",
    "cattle",
    "chair",
    "chimpanzee",
    "clock",
    "cloud",
    "cockroach",
    "couch",
    "crab",
    "crocodile",
    "cup",
    "dinosaur",
    "dolphin",
    "elephant",
    "flatfish",
    "forest",
    "fox",
    "girl",
    "hamster",
    "house",
    "kangaroo",
    "keyboard",
    "lamp",
    "lawn_mower",
    "leopard",
    "lion",
    "lizard",
    "lobster",
    "man",
    "maple_tree",
    "motorcycle",
    "mountain",
    "mouse",
    "mushroom",
    "oak_tree",
    "orange",
    "orchid",
    "otter",
    "palm_tree",
    "pear",
    "pickup_truck",
    "pine_tree",
    "plain",
    "plate",
    "poppy",
    "porcupine",
    "possum",
    "rabbit",
    "raccoon",
    "ray",
    "road",
    "rocket",
    "rose",
    "sea",
    "seal",
    "shark",
    "shrew",
    "skunk",
    "skyscraper",
    "snail",
    "snake",
    "spider",
    "squirrel",
    "streetcar",
    "sunflower",
    "sweet_pepper",
    "table",
    "tank",
    "telephone",
    "television",
    "tiger",
    "tractor",
    "train",
    "trout",
    "tulip",
    "turtle",
    "wardrobe",
    "whale",
    "willow_tree",
    "wolf",
    "woman",
    "worm",
)

DESCRIPTIONS = {
    "mnist5k": Description(DIGITS, (1, 28, 28), 4000, (0.1307,), (0.3081,)),
    "mnist": Description(DIGITS, (1, 28, 28), 60000, (0.1307,), (0.3081,), "MNIST"),
    "fashion_mnist": Description(FASHION, (1, 28, 28), 60000, (0.2860,), (0.3530,), "FashionMNIST"),
    "emnist": Description(EMNIST, (1, 28, 28), 112800, (0.1751,), (0.3332,), "EMNIST"),
    "cifar10": Description(
        CIFAR10, (3, 32, 32), 50000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "cifar-10-batches-py"
    ),
    "svhn": Description(
        DIGITS, (3, 32, 32), 73257, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), "train_32x32.mat"
    ),
    "stl10": Description(
        STL10, (3, 96, 96), 5000, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), "stl10_binary"
    ),
    "cifar100": Description(
        CIFAR100, (3, 32, 32), 50000, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "cifar-100-python"
    ),
}
