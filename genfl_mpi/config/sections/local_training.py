"""Sections of the clients' training: model, optimizer, algorithm, transforms."""

from typing import Annotated, Literal

from pydantic import Field

from genfl_mpi.config.sections.conditions import TRAINING_CLIENTS, WITH_BATCH_NORM, transformed_by
from genfl_mpi.config.types import (
    Count,
    Epochs,
    Flag,
    Natural,
    NonNegative,
    Number,
    Positive,
    Section,
    Share,
    at_most,
    needs,
)


class Model(Section):
    """The network that is trained."""

    name: str = Field(
        "cnn", description="network; also torchvision:NAME or timm:NAME, which the command `models` lists"
    )
    stem: Annotated[Literal["imagenet", "cifar"], needs("name", "resnet18", own=False)] = Field(
        "imagenet",
        description="resnet18: first layers; imagenet: torchvision's; cifar: 3x3 convolution without "
        "max-pooling",
    )
    norm: Annotated[Literal["batch", "group"], WITH_BATCH_NORM] = Field(
        "batch",
        description="normalisation; batch: the network's BatchNorm; group: GroupNorm in its place, with as "
        "many groups as divide both 32 and the channels",
    )
    weights: str | None = Field(
        None,
        description="initial weights: a file (.safetensors or .pth), or pretrained, for those of "
        "torchvision or "
        "timm, which `prefetch` downloads; null: random",
    )
    input_size: Annotated[Count, at_most(4096, "all pixels of a batch are in memory at once")] | None = Field(
        None,
        description="side length, pixels, to which images are resized at the input; null: the data set's",
    )
    trained: Literal["all", "head", "lora"] = Field(
        "all",
        description="what is trained and sent; all: every parameter; head: the last layer, behind a frozen "
        "network; lora: the last layer, and an adapter of low rank at each dense layer and convolution",
    )
    lora_rank: Annotated[Count, needs("trained", "lora", own=False)] = Field(
        8, description="lora: rank of the adapters"
    )
    lora_alpha: Annotated[Positive, needs("trained", "lora", own=False)] = Field(
        16.0, description="lora: alpha; the adapters' output is multiplied by alpha / rank"
    )


class Training(Section):
    """Stochastic gradient descent (SGD) on one data set."""

    epochs: Epochs = Field(5, description="passes over the data per round")
    batch_size: Count = Field(64, description="samples per SGD step")
    lr: Positive = Field(0.1, description="learning rate")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(0.0, description="momentum of SGD")
    weight_decay: NonNegative = Field(0.0, description="weight decay (L2 penalty)")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="number format of activations and matrix products; with bfloat16, weights, SGD steps, "
        "sums and testing stay in float32",
    )
    schedule: Literal["constant", "exponential", "step", "cosine"] = Field(
        "constant",
        description="learning rate over the rounds; constant: the same in all; exponential: times `decay` "
        "every round; step: times `decay` every `period` rounds; cosine: half a cosine over `period` rounds",
    )
    decay: Annotated[Number, Field(gt=0, le=1), needs("schedule", "exponential", "step")] = Field(
        0.99, description="exponential: factor per round; step: factor per `period` rounds"
    )
    period: Annotated[Count, needs("schedule", "step", "cosine")] = Field(
        100,
        description="step: rounds between two reductions; cosine: rounds until the rate is almost 0, "
        "after which it stays constant",
    )
    crop: Natural = Field(
        0,
        description="augmentation: maximum random shift of an image in pixels; the border is filled by "
        "reflection",
    )
    flip: Flag = Field(False, description="augmentation: mirror each image with probability 1/2")


class LocalTraining(Training):
    """SGD of each client on its private data."""

    clients_per_batch: Annotated[
        Count, at_most(10_000, "the weights of all these clients are in memory at once"), TRAINING_CLIENTS
    ] = Field(
        1,
        description="clients of the cohort trained as one batched computation, for small networks on a GPU; "
        "changes the last digits of the result",
    )


class Algorithm(Section):
    """How the clients train and how their models are combined."""

    name: str = Field(
        "fedavg",
        description="federated algorithm",
    )
    mu: Annotated[NonNegative, needs("name", "fedprox")] = Field(
        0.01,
        description="fedprox: weight of half the squared distance to the global weights in a client's loss",
    )
    server_lr: Annotated[Positive, needs("name", "fedavgm", "fedadam", "fedyogi")] = Field(
        1.0, description="fedavgm, fedadam, fedyogi: learning rate of the server"
    )
    beta1: Annotated[Number, Field(ge=0, lt=1), needs("name", "fedavgm", "fedadam", "fedyogi")] = Field(
        0.9, description="fedavgm, fedadam, fedyogi: decay of the first moment"
    )
    beta2: Annotated[Number, Field(ge=0, lt=1), needs("name", "fedadam", "fedyogi")] = Field(
        0.99, description="fedadam, fedyogi: decay of the second moment"
    )
    contrast: Annotated[NonNegative, needs("name", "moon")] = Field(
        5.0, description="moon: weight of the contrastive loss"
    )
    temperature: Annotated[Positive, needs("name", "moon")] = Field(
        0.5, description="moon: divisor of the cosines in the contrastive loss"
    )
    generated_weight: Annotated[NonNegative, needs("name", "fedgen")] = Field(
        10.0,
        description="fedgen: weight of generated features in a client's loss, times 0.98 every round; "
        "0: FedAvg",
    )
    server_steps: Annotated[Natural, needs("name", "fedgen", "dense", "fedftg")] = Field(
        50,
        description="fedgen, dense, fedftg: steps of the server's generator per round; dense, fedftg: each "
        "is followed by 5 of the distilled model; 0: FedAvg",
    )
    server_batch: Annotated[
        Count,
        Field(ge=2),
        at_most(4096, "the distances of all pairs are in memory at once"),
        needs("name", "fedgen", "dense", "fedftg"),
    ] = Field(64, description="fedgen, dense, fedftg: samples that the generator makes per step")
    generator_lr: Annotated[Positive, needs("name", "fedgen", "dense", "fedftg")] = Field(
        1e-3, description="fedgen, dense, fedftg: learning rate of the generator, by Adam"
    )
    student_lr: Annotated[Positive, needs("name", "dense", "fedftg")] = Field(
        0.01, description="dense, fedftg: learning rate of the distilled model, by SGD with momentum 0.9"
    )
    tau: Annotated[Positive, needs("name", "fedadam", "fedyogi")] = Field(
        1e-3, description="fedadam, fedyogi: degree of adaptivity, added to the root of the second moment"
    )


class Clipping(Section):
    """What the transform `clip` uses."""

    norm: Positive = Field(1.0, description="largest Euclidean norm of a client's update of the parameters")


class Compression(Section):
    """What the transforms `qsgd` and `top_k` use."""

    bits: Annotated[Count, Field(ge=2, le=16), transformed_by("qsgd")] = Field(
        4, description="qsgd: bits of each parameter of an update, one of them for its sign"
    )
    share: Annotated[Share, Field(gt=0), transformed_by("top_k")] = Field(
        0.01, description="top_k: share of an update's parameters that a client sends; at least one"
    )
