"""Sections of the data: data set, partition, misbehaving clients, shared labels."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from genfl_mpi.config.types import (
    Count,
    Flag,
    Natural,
    Needs,
    NonNegative,
    OneOf,
    Positive,
    Section,
    Share,
    needs,
)


class Columns(Section):
    """Columns of a data set of Hugging Face."""

    image: str = Field("image", description="column of the images")
    label: str = Field("label", description="column of the labels")
    client: str | None = Field(
        None,
        description="column of the natural clients, such as writers or users, for partition.scheme=groups; "
        "null: none",
    )


class Data(Section):
    """The data set that is divided among the clients."""

    name: Annotated[
        str,
        AfterValidator(
            OneOf(
                *("mnist5k", "mnist", "fashion_mnist", "emnist", "cifar10", "cifar100", "svhn", "stl10"),
                *(
                    "cinic10",
                    "tiny_imagenet",
                    "femnist",
                    "huggingface",
                    "folder",
                    "client_folders",
                    "synthetic",
                ),
            )
        ),
    ] = Field(
        "mnist5k",
        description="data set; mnist5k: 5,000 of MNIST's digits, installed with the package; mnist: "
        "handwritten digits; fashion_mnist: articles of clothing; emnist: handwritten digits and letters, "
        "47 classes; cifar10: photographs of 10 classes; cifar100: photographs of 100 classes; svhn: house "
        "numbers; stl10: photographs of 10 classes, 96x96; cinic10: CIFAR-10's classes, 90,000 images; "
        "tiny_imagenet: photographs of 200 classes, 64x64; femnist: handwritten characters with their "
        "writers, in LEAF's format; huggingface: a data set of images in the folder data.root, or with "
        "this id on the hub; folder: images in data.root/train/CLASS and data.root/test/CLASS; "
        "client_folders: images in data.root/train/CLIENT/CLASS and data.root/test/CLASS; synthetic: a "
        "pattern per class under heavy noise",
    )
    root: Annotated[
        str, Needs("a data set in a folder", lambda _, data: data.name not in ("mnist5k", "synthetic"))
    ] = Field("data", description="folder of the data set, in the layout of torchvision's loaders")
    shared: Natural = Field(
        0,
        description="images of the public pool on which every client trains in addition to its private data "
        "(Zhao et al. 2018)",
    )
    columns: Annotated[Columns, needs("name", "huggingface")] = Columns()
    splits: Annotated[tuple[str, str], needs("name", "huggingface")] = Field(
        ("train", "test"),
        description="huggingface: splits for training and testing; the same twice: every tenth sample is for "
        "testing",
    )
    arrays: str | None = Field(
        None,
        description="folder for the decoded data set, made once and mapped into memory, for sets that are "
        "larger than memory; null: decoded in memory at every start",
    )
    size: Annotated[Count, needs("name", "folder", "client_folders", "huggingface", "synthetic")] = Field(
        32, description="folder, client_folders, huggingface, synthetic: side length of the images, pixels"
    )
    samples: Annotated[Count, needs("name", "synthetic")] = Field(
        10000, description="synthetic: number of training images; a fifth as many are generated for testing"
    )
    normalise: Flag | Literal["imagenet"] = Field(
        True,
        description="subtract each channel's mean and divide by its standard deviation; imagenet: by those "
        "of ImageNet, the default with model.weights=pretrained; false: pixels in [0, 1]",
    )
    download: Annotated[
        Flag,
        needs(
            "name", "mnist", "fashion_mnist", "emnist", "cifar10", "cifar100", "svhn", "stl10", "huggingface"
        ),
    ] = Field(False, description="download missing files, with torchvision or from Hugging Face's hub")
    public_pool: Natural = Field(
        0,
        description="training images, equally many of each class, that are withheld from all clients: "
        "a generator may learn from them",
    )

    @model_validator(mode="after")
    def check_pool(self) -> "Data":
        """Refuse to share more images than the public pool has."""
        if self.shared > self.public_pool:
            raise ValueError(
                f"data.shared={self.shared} exceeds data.public_pool={self.public_pool}, "
                "from which the shared images are taken; enlarge the pool"
            )
        return self


class Partition(Section):
    """How the training data are divided among the clients."""

    scheme: Annotated[
        str, AfterValidator(OneOf("dirichlet", "dirichlet_client", "iid", "shards", "classes", "groups"))
    ] = Field(
        "dirichlet",
        description="how the samples are divided",
    )
    alpha: Annotated[Positive, needs("scheme", "dirichlet", "dirichlet_client")] = Field(
        0.1, description="Dirichlet concentration; smaller is more skewed"
    )
    shards: Annotated[Count, needs("scheme", "shards")] = Field(
        2, description="scheme=shards: shards per client"
    )
    classes_per_client: Annotated[Count, needs("scheme", "classes")] = Field(
        2, description="scheme=classes: labels per client"
    )
    groups: Annotated[str | None, needs("scheme", "groups")] = Field(
        None,
        description="scheme=groups: text file with one line per training sample, the name of its group; "
        "each client is a group; null: the natural clients of femnist, client_folders or data.columns.client",
    )
    min_samples: Annotated[Count, needs("replacement", False)] = Field(
        10, description="minimum number of samples per client"
    )
    replacement: Flag = Field(
        False,
        description="draw each client's samples with replacement, so that clients may share samples: "
        "for more clients than samples",
    )
    samples: Annotated[Count, needs("replacement", True)] = Field(
        50, description="replacement=true: samples per client"
    )

    @model_validator(mode="after")
    def check_replacement(self) -> "Partition":
        """Refuse drawing with replacement in a scheme that deals out each sample once."""
        schemes = ("iid", "dirichlet_client", "classes")
        if self.replacement and self.scheme not in schemes:
            raise ValueError(
                f"partition.replacement is not available with partition.scheme={self.scheme}; "
                f"choose one of {', '.join(schemes)}"
            )
        return self


class MisbehavingClients(Section):
    """Clients with corrupted data, and misbehaving clients."""

    share: Share = Field(0.0, description="share of the clients")
    kind: Annotated[
        Literal["blurred", "noisy", "mislabelled", "free_rider", "disguised", "overclaiming"],
        Needs("misbehaving_clients.share above 0", lambda _, clients: clients.share > 0),
    ] = Field(
        "noisy",
        description="what these clients do; blurred: train on blurred images; noisy: train on noisy images; "
        "mislabelled: train with wrong labels; free_rider: return the global model "
        "unchanged; disguised: return it with added noise; overclaiming: report equal counts of all labels",
    )
    noise: Annotated[NonNegative, needs("kind", "disguised")] = Field(
        1e-3, description="disguised: standard deviation of the noise added to each weight"
    )


class LabelSharing(Section):
    """Label statistics that the clients share (III-A)."""

    payload: Literal["histogram", "presence"] = Field(
        "histogram",
        description="label statistics; histogram: number of samples of each label; presence: only which "
        "labels occur",
    )
    epsilon: Positive | None = Field(
        None,
        description="privacy budget of local differential privacy, per sample; null: exact statistics",
    )
    refusal_rate: Share = Field(0.0, description="share of the clients that share no label statistics")
