"""Sections of a run's settings: type, default, bounds and description of each."""

from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from genfl_mpi.config.types import (
    Count,
    Epochs,
    Flag,
    Natural,
    Needs,
    NonNegative,
    Number,
    OneOf,
    Positive,
    Section,
    Seed,
    Share,
    Threads,
    at_most,
    needs,
)

# What the marked settings need. TRAINING_CLIENTS and others of whole sections are also used in `settings`.
TRAINING_CLIENTS = Needs("clients that train", lambda config, _: config.trains_clients)
TWO_MODELS = Needs(
    "clients that train and an augmented model", lambda config, _: config.trains_clients and config.augments
)
PLANNED_IMAGES = Needs("generated images", lambda config, _: config.generates or config.matches_steps)
SERVER_IMAGES = Needs("images generated at the server", lambda config, _: not config.fills)
PIPELINE = Needs("a pipeline as checkpoint", lambda _, generation: ":" not in generation.checkpoint)
WITH_BATCH_NORM = Needs(
    "a network with BatchNorm", lambda _, model: model.name not in ("cnn", "pfl_cnn", "lenet5", "vit")
)
DUE = Needs(
    "at least as many rounds", lambda config, section: section.every is None or section.every <= config.rounds
)


def transformed_by(*names: str) -> Needs:
    """Mark a setting of these transforms, which a user's own may use, too."""

    def holds(config: Any, _: Any) -> bool:
        return any(one in names or ":" in one for one in config.transforms)

    return Needs(f"transforms=[{' or '.join(names)}]", holds)


SCHEDULED = ("linear", "cosine", "exponential", "step")  # policies of kappa


def needs_policy(*names: str) -> Needs:
    """Mark a setting of kappa that these policies use, in the run or in hindsight."""
    what, by_policy = needs("policy", *names)
    return Needs(what, lambda config, kappa: by_policy(config, kappa) or config.hindsight.every is not None)


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
        "writers, in "
        "LEAF's format; huggingface: a data set of images in the folder data.root, or with this id on the "
        "hub; "
        "folder: images in data.root/train/CLASS and data.root/test/CLASS; client_folders: images in "
        "data.root/train/CLIENT/CLASS and data.root/test/CLASS; synthetic: a pattern per class under "
        "heavy noise",
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
        "larger "
        "than memory; null: decoded in memory at every start",
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
        "of "
        "ImageNet, the default with model.weights=pretrained; false: pixels in [0, 1]",
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
        "many "
        "groups as divide both 32 and the channels",
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
        "network; "
        "lora: the last layer, and an adapter of low rank at each dense layer and convolution",
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


class Distillation(Section):
    """Teach the server's model the clients' mean logits, by Adam (FedDF)."""

    batches: Annotated[Count, at_most(1_000_000, "all are drawn before the first step")] = Field(
        200, description="steps per round"
    )
    batch_size: Count = Field(128, description="images per step, all of them if there are fewer")
    lr: Positive = Field(1e-3, description="learning rate, which falls to 0 along half a cosine every round")
    temperature: Positive = Field(
        1.0, description="divisor of the clients' mean logits; above 1 the targets are softer"
    )


class Compression(Section):
    """What the transforms `qsgd` and `top_k` use."""

    bits: Annotated[Count, Field(ge=2, le=16), transformed_by("qsgd")] = Field(
        4, description="qsgd: bits of each parameter of an update, one of them for its sign"
    )
    share: Annotated[Share, Field(gt=0), transformed_by("top_k")] = Field(
        0.01, description="top_k: share of an update's parameters that a client sends; at least one"
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


class Generation(Section):
    """How images are generated."""

    checkpoint: str = Field(
        "auto",
        description="a shipped generator, or a text-to-image pipeline of diffusers as folder or hub id; "
        "auto: the shipped generator of the data set",
    )
    adapter: Annotated[str | None, PIPELINE] = Field(
        None, description="folder of a LoRA adapter for the checkpoint, written by `finetune`"
    )
    prompts: str = Field(
        "auto",
        description="shipped prompts, or a YAML file of templates and class descriptions; auto: the shipped "
        "prompts of the data set",
    )
    negative_prompt: Annotated[str, PIPELINE] = Field("", description="what the images should not show")
    plan: Annotated[str, SERVER_IMAGES] = Field(
        "equal", description="policy that decides which labels to generate"
    )
    count: Literal["class", "total"] = Field(
        "class",
        description="what per_round and cap count; class: images of each class; total: images of all classes",
    )
    per_round: Annotated[Count, SERVER_IMAGES] = Field(10, description="images per round")
    cap: Count = Field(300, description="maximum number of images in the whole run")
    scheduler: Annotated[str | None, PIPELINE] = Field(
        None,
        description="scheduler class of diffusers, for example DPMSolverMultistepScheduler; "
        "null: the checkpoint's",
    )
    steps: Annotated[Count, PIPELINE] = Field(20, description="denoising steps")
    guidance: Annotated[NonNegative, PIPELINE] = Field(7.0, description="classifier-free guidance scale")
    size: Annotated[
        Annotated[Count, at_most(4096, "all pixels of a batch are in memory at once")] | None, PIPELINE
    ] = Field(
        None,
        description="side length of the generated images in pixels, before they are resized to the data "
        "set's; null: the checkpoint's",
    )
    batch_size: Annotated[Count, at_most(10_000, "every batch is filled up to that many images")] = Field(
        50,
        description="images generated as one batch; part of an image's identity, because it changes the "
        "images",
    )
    save_memory: Annotated[
        list[Literal["attention_slicing", "vae_slicing", "vae_tiling", "model_cpu_offload"]], PIPELINE
    ] = Field([], description="memory-saving options of diffusers")
    min_fidelity: Share = Field(
        0.0,
        description="skip images whose label has a lower probability than this, according to a classifier "
        "trained on the public pool",
    )
    threads: Threads | None = Field(
        None, description="threads for generation on a CPU; null: runtime.threads"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device; auto: runtime.device")
    dtype: Annotated[Literal["auto", "float32", "float16", "bfloat16"], PIPELINE] = Field(
        "auto", description="number format; auto: float16 on a GPU, float32 on a CPU"
    )
    seed: Seed | None = Field(None, description="seed of the images; null: the run's seed")
    bank: str = Field("results/bank", description="folder of generated images, shared by all runs")
    ranks: Annotated[
        Literal["all", "server"] | Count, Needs("generated images", lambda config, _: config.generates)
    ] = Field(
        "all",
        description="ranks that generate a round's images; all: all with cores and memory for it share the "
        "missing ones, if that is predicted to be faster, and then train the clients; server: rank 0 alone, "
        "while the others train; a number: the first ranks. No result depends on it",
    )


class ClientGeneration(Section):
    """What each client generates with method=filled, at most generation.cap images of a label."""

    labels: Literal["rare", "missing"] = Field(
        "rare",
        description="which labels; rare: fill every label up to the count of the client's most frequent "
        "one (Gen-FedSD, FAug); missing: only labels of which the client has no sample",
    )
    share: Share = Field(
        1.0,
        description="share u of the gap that is filled: with labels=rare, a client's EMD to a uniform mix "
        "falls to 1 - u of its value",
    )


class Pretraining(Section):
    """A small pipeline in Stable Diffusion's format, trained by the command `pretrain`."""

    images: Literal["auto", "public_pool", "uci_digits"] = Field(
        "auto",
        description="training images; public_pool: the data set's public pool; uci_digits: scikit-learn's "
        "UCI digits; auto: the pool, or without one the UCI digits for mnist and mnist5k",
    )
    autoencoder_channels: list[Annotated[int, Field(ge=8, le=4096, multiple_of=8)]] = Field(
        [16, 24, 32],
        min_length=2,
        max_length=6,
        description="the autoencoder's channels per level; every level but the first halves the side length",
    )
    autoencoder_steps: Count = Field(800, description="training steps of 64 images")
    denoiser_channels: list[Annotated[int, Field(ge=16, le=4096, multiple_of=16)]] = Field(
        [32, 64], min_length=2, max_length=6, description="the UNet's channels per level"
    )
    denoiser_steps: Count = Field(2500, description="training steps of 128 images")
    denoiser_lr: Positive = Field(2e-3, description="peak learning rate of a one-cycle schedule")
    prediction: Literal["epsilon", "v_prediction"] = Field(
        "epsilon", description="what the UNet predicts; epsilon: the noise; v_prediction: the velocity"
    )
    mirror: Flag = Field(False, description="also train on mirrored images")
    seed: Seed = Field(0, description="seed of the weights and batches")
    output: str = Field("results/checkpoint", description="folder of the checkpoint")


class Finetuning(Section):
    """Low-rank adapters (LoRA) of the generator, trained by the command `finetune`."""

    per_class: Count = Field(10, description="real training images per class, k")
    at: Literal["server", "clients"] = Field(
        "server",
        description="where to train; server: on images of the public pool; clients: each client trains on "
        "its private images, and the adapters are averaged every round",
    )
    layers: Literal["attention", "all"] = Field(
        "all",
        description="layers with an adapter; attention: the attention projections; all: also convolutions "
        "and dense layers",
    )
    rank: Annotated[Count, at_most(1024, "the layers of a pipeline have no higher rank")] = Field(
        8, description="rank of the adapters"
    )
    rounds: Count = Field(20, description="rounds of averaging")
    epochs: Count = Field(5, description="passes over the images per round")
    batch_size: Count = Field(32, description="images per step")
    lr: Positive = Field(1e-3, description="learning rate of AdamW, which is reset every round")
    seed: Seed = Field(0, description="seed of the adapters and batches")
    output: str = Field("results/adapter", description="folder of the adapter, for generation.adapter")


class Kappa(Section):
    """Weights in Eq. (1): kappa1 of the federated model, kappa2 of the augmented model."""

    policy: str = Field("fixed", description="policy that returns kappa2 for each round")
    kappa1: Annotated[Share, needs_policy("fixed", *SCHEDULED, "catch_up", "cost_aware", "shapley")] = Field(
        0.8, description="weight of the federated model; must be 1 - kappa2"
    )
    kappa2: Annotated[Share, needs_policy("fixed", *SCHEDULED, "catch_up", "cost_aware", "shapley")] = Field(
        0.2, description="weight of the augmented model; setting one of the two is enough"
    )
    end: Annotated[Share, needs_policy(*SCHEDULED)] = Field(
        0.0, description="linear, cosine, exponential, step: final value of kappa2"
    )
    horizon: Annotated[Count, needs_policy("linear", "cosine")] = Field(
        30, description="linear, cosine: rounds until the final value"
    )
    decay: Annotated[Number, Field(gt=0, le=1), needs_policy("exponential", "step")] = Field(
        0.9,
        description="exponential: factor per round of the distance from the final value; "
        "step: factor per `period` rounds",
    )
    period: Annotated[Count, needs_policy("step")] = Field(10, description="step: rounds between two steps")
    quality: Annotated[NonNegative, needs_policy("amount")] = Field(
        1.0, description="amount: number of real samples that a generated image is worth"
    )
    theta: Annotated[NonNegative, needs_policy("bias_optimal")] = Field(
        0.04,
        description="bias_optimal: the generator's error relative to the error by label skew, as measured by "
        "the command `quality`",
    )
    temperature: Annotated[Positive, needs_policy("softmax_accuracy", "softmax_loss")] = Field(
        0.1,
        description="softmax_accuracy, softmax_loss: difference that weights one model e times the other",
    )
    power: Annotated[NonNegative, needs_policy("catch_up")] = Field(
        2.0, description="catch_up: exponent of the ratio of the two models' losses"
    )
    grid: Annotated[list[Share], needs_policy("line_search", "bandit")] = Field(
        [0.0, 0.1, 0.2, 0.4, 0.7, 1.0],
        min_length=1,
        description="line_search, bandit: candidate values of kappa2",
    )

    @model_validator(mode="before")
    @classmethod
    def complete(cls, values: Any) -> Any:
        """Derive a kappa that is not given from the other one."""
        if isinstance(values, dict) and ("kappa1" in values) != ("kappa2" in values):
            given, other = ("kappa1", "kappa2") if "kappa1" in values else ("kappa2", "kappa1")
            # The check of the given field, not of the derived one, reports a wrong type or range.
            with suppress(TypeError, ValueError, OverflowError):
                if 0 <= float(values[given]) <= 1:
                    values = {**values, other: round(1 - float(values[given]), 12)}
        return values

    @model_validator(mode="after")
    def check_sum(self) -> "Kappa":
        """Refuse weights that do not sum to 1."""
        if abs(self.kappa1 + self.kappa2 - 1) > 1e-9:
            raise ValueError(
                f"kappa.kappa1 + kappa.kappa2 must be 1, but {self.kappa1:g} + {self.kappa2:g} is "
                f"{self.kappa1 + self.kappa2:g}; set only one of them"
            )
        return self


class Rho(Section):
    """The clients' weights rho_n in Eq. (1)."""

    policy: str = Field("size", description="policy that returns the weights of the cohort")
    over: Literal["aggregated", "selected"] = Field(
        "aggregated",
        description="clients whose weights add up to 1; aggregated: those that a simulated world lets "
        "report; selected: all that begin the round; the server divides by the sum over those that report",
    )

    gamma: Annotated[NonNegative, needs("policy", "quality")] = Field(
        1.0, description="quality: exponent of 1 - EMD / 2"
    )
    power: Annotated[Number, needs("policy", "loss")] = Field(
        -1.0,
        description="loss: exponent of a client's loss; above 0, clients with a large loss get more weight",
    )
    alpha: Annotated[NonNegative, needs("policy", "similarity")] = Field(
        5.0, description="similarity: influence of the angle between a client's update and the mean update"
    )
    permutations: Annotated[Count, needs("policy", "shapley")] = Field(
        10, description="shapley: random orders in which the clients join"
    )


class Selection(Section):
    """How the cohort is selected."""

    policy: str = Field("random", description="policy that returns the cohort")

    candidates: Annotated[
        Count | None,
        needs("policy", "label_cover", "deadline", "power_of_choice", "oort", "sojourn", "energy", "battery"),
    ] = Field(
        None,
        description="number of clients drawn at random, from which the policy selects the cohort; null: all",
    )
    exploration: Annotated[Share, needs("policy", "oort")] = Field(
        0.3, description="oort: share of the cohort reserved for clients that have never trained"
    )
    penalty: Annotated[NonNegative, needs("policy", "oort")] = Field(
        2.0, description="oort: exponent of (preferred time / client's time) for slower clients"
    )


class Validation(Section):
    """Data on which policies evaluate models."""

    source: Literal["none", "pool", "clients", "generated"] = Field(
        "none",
        description="where the data are; none: no validation; pool: real images at the server, its public "
        "pool; clients: the cohort's private data, of which each client reports loss and accuracy; "
        "generated: the augmented model's training images",
    )
    samples: Annotated[Count, needs("source", "pool", "generated")] = Field(
        500, description="maximum number of pool or generated images, taken at regular intervals"
    )


class Hindsight(Section):
    """Test models between the round's two models, without effect on the run."""

    every: Annotated[Count | None, DUE] = Field(
        None, description="rounds between two evaluations; null: never"
    )
    points: Annotated[
        Count,
        Field(ge=2),
        at_most(10_000, "each is a model that is evaluated on the whole test set"),
        Needs("hindsight.every", lambda _, hindsight: hindsight.every is not None),
    ] = Field(11, description="models evaluated along the segment, including both ends")
    policies: Annotated[
        list[str], Needs("hindsight.every", lambda _, hindsight: hindsight.every is not None)
    ] = Field(
        [],
        description="kappa policies to evaluate in addition to the run's; "
        "an empty list: all that this configuration supports",
    )


CALIBRATED = Needs("calibration.every", lambda _, calibration: calibration.every is not None)


class Calibration(Section):
    """Test the model with a calibrated output layer (CCVR), into /calibrated, without effect on the run."""

    every: Annotated[Count | None, DUE] = Field(
        None, description="rounds between two calibrations; null: never"
    )
    moments: Annotated[Literal["clients", "images", "both"], CALIBRATED] = Field(
        "clients",
        description="whose features' means and covariances are used; clients: of all clients' private data; "
        "images: of the server's images; both: of both together",
    )
    features: Annotated[Count, at_most(100_000, "those of all classes are in memory at once"), CALIBRATED] = (
        Field(1000, description="features drawn of each class, to train the output layer")
    )
    epochs: Annotated[Epochs, CALIBRATED] = Field(10, description="passes over them")
    batch_size: Annotated[Count, CALIBRATED] = Field(64, description="features per SGD step")
    lr: Annotated[Positive, CALIBRATED] = Field(0.01, description="learning rate, with momentum 0.9")


class Probes(Section):
    """Measure how the clients differ, into /probes and /probed_clients, without effect on the run."""

    every: Annotated[Count | None, DUE] = Field(
        None, description="rounds between two measurements; null: never"
    )
    clients: Annotated[Count, Needs("probes.every", lambda _, probes: probes.every is not None)] = Field(
        100,
        description="clients, drawn once, whose gradients represent all clients in F; "
        "all clients if the run has fewer",
    )
    epochs: Annotated[Epochs, Needs("probes.every", lambda _, probes: probes.every is not None)] = Field(
        20,
        description="additional passes over a client's data after which its loss counts as the minimum, "
        "F_n(w_n*)",
    )


class Evaluation(Section):
    """Evaluation of the global model on the test set."""

    every: Count = Field(
        1,
        description="rounds between two evaluations on the whole test set; `rounds` must be a multiple of it",
    )
    subset: Annotated[Natural, Needs(".every above 1", lambda _, evaluation: evaluation.every > 1)] = Field(
        0,
        description="test samples, drawn once and the same for all seeds, that are evaluated in every round, "
        "for the progress between two evaluations; 0: none",
    )
    batch_size: Count = Field(
        100,
        description="test samples per chunk, which should fit in the cache; chunks are divided over the "
        "ranks",
    )


class Checkpoint(Section):
    """When to write checkpoints, from which interrupted runs continue and `fork` starts."""

    every_rounds: Count | None = Field(
        1, description="rounds between checkpoints; null: no checkpoints by rounds"
    )
    every_seconds: Positive | None = Field(
        None,
        description="also write a checkpoint at the end of a round if the last one is older than this, s",
    )
    keep: Count | Literal["auto"] | None = Field(
        "auto",
        description="keep the checkpoint of every keep-th round, for `fork`; auto: as many as fit into "
        "max_megabytes, at most 25, at equal distances; null: only the newest two",
    )
    max_megabytes: Positive = Field(
        100.0,
        description="keep=auto: limit of a run's kept checkpoints, with the clients' state files that "
        "they need, MB; the newest two come on top",
    )


class Faults(Section):
    """How to handle faults during training."""

    nonfinite: Literal["stop", "drop"] = Field(
        "stop",
        description="if a client's loss or weights are not finite; stop: end the run; drop: exclude the "
        "client from the round and divide its rho among the other clients; if all are dropped, the weights "
        "stay unchanged",
    )


class Runtime(Section):
    """Resources of the ranks."""

    threads: Threads | None = Field(
        None,
        description="threads per rank; null: the rank's share of the cores, regardless of OMP_NUM_THREADS. "
        "Fixed at a run's first start",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device, fixed at a run's first start; auto: a GPU if one is available"
    )
    ranks_per_run: Count | None = Field(
        None,
        description="ranks per run of a sweep: with enough ranks for several, runs are computed "
        "concurrently, each on a separate group of ranks; null: as many as a run keeps busy, "
        "one per client of the cohort and one for the server",
    )
    same_device: Flag = Field(
        False,
        description="refuse to continue a run on another model of GPU, or another instruction set of CPU, "
        "than it began with; false: go on with a warning",
    )
    deterministic: Flag = Field(
        True,
        description="on a GPU: refuse operations without a deterministic implementation; false: run them "
        "with a warning, and mark the results as not reproducible",
    )
    tf32: Flag = Field(
        False,
        description="on a GPU: compute float32 products in TensorFloat-32, which is faster and has a 10-bit "
        "mantissa",
    )
