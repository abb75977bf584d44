"""The sections of a run's settings: each setting with its type, default and meaning."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from genfl_mpi.config.types import (
    Count,
    Epochs,
    Natural,
    NonNegative,
    Number,
    Positive,
    Section,
    Seed,
    Share,
    Threads,
    at_most,
    one_of,
)


class Data(Section):
    name: one_of(
        "mnist5k", "mnist", "fashion_mnist", "emnist", "cifar10", "cifar100", "folder", "synthetic"
    ) = Field(
        "mnist5k",
        description="data set: mnist5k (installed with the package), mnist, fashion_mnist, emnist, cifar10, cifar100, folder (data.root/train/CLASS and "
        "data.root/test/CLASS), synthetic (made), or module:function",
    )
    root: str = Field("data", description="folder that torchvision's loaders read")
    shared: Natural = Field(
        0,
        description="images of the public pool that every client trains on beside its own (Zhao et al. 2018)",
    )
    size: Count = Field(32, description="pixels of a side, of folder and synthetic")
    samples: Count = Field(
        10000, description="training images of synthetic, which has a fifth as many for testing"
    )
    normalise: bool = Field(
        True,
        description="subtract the mean of each channel and divide by its deviation; false: pixels in [0, 1]",
    )
    download: bool = Field(False, description="let torchvision download what is missing")
    public_pool: Natural = Field(
        0,
        description="training images, as many of each class, that no client holds: a generator may learn from them",
    )


class Partition(Section):
    scheme: one_of("dirichlet", "dirichlet_client", "iid", "shards", "classes", "groups") = Field(
        "dirichlet",
        description="how the training data are divided over the clients: dirichlet divides each class, dirichlet_client draws each client's labels, "
        "iid, shards, classes, groups, or module:function",
    )
    alpha: Positive = Field(0.1, description="Dirichlet concentration; smaller is more skewed")
    shards: Count = Field(2, description="scheme=shards: pieces, sorted by label, of each client")
    classes_per_client: Count = Field(2, description="scheme=classes: labels of each client")
    groups: str | None = Field(
        None,
        description="scheme=groups: a text file with the group of each training sample, a line each; a client is a group",
    )
    min_samples: Count = Field(10, description="fewest samples a client may hold")
    replacement: bool = Field(
        False,
        description="clients draw with replacement, so that samples may have several: for more clients than samples",
    )
    samples: Count = Field(50, description="with replacement: samples of each client")


class MisbehavingClients(Section):
    """Clients whose data are bad, or who do not what they say."""

    share: Share = Field(0.0, description="share of the clients")
    kind: Literal["blurred", "noisy", "mislabelled", "free_rider", "disguised", "overclaiming"] = Field(
        "noisy",
        description="data: blurred, noisy, mislabelled; a free_rider returns the global model as it is, a disguised one under noise; overclaiming tells of all labels alike",
    )
    noise: NonNegative = Field(
        1e-3, description="disguised: standard deviation of what is added to each weight"
    )


class Model(Section):
    name: str = Field(
        "cnn", description="network: cnn, pfl_cnn, lenet5, resnet18, or module:function of (classes, shape)"
    )
    stem: Literal["imagenet", "cifar"] = Field(
        "imagenet", description="resnet18's first layers: torchvision's own, or 3x3 without max-pool"
    )
    norm: Literal["batch", "group"] = Field(
        "batch", description="resnet18's normalisation: BatchNorm, or GroupNorm of 32 groups"
    )


class Training(Section):
    epochs: Epochs = Field(5, description="passes over the data in a round")
    batch_size: Count = Field(64, description="samples in a step of SGD")
    lr: Positive = Field(0.05, description="learning rate")
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    weight_decay: NonNegative = 0.0
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of activations and products; with bfloat16, weights, steps of SGD, sums and testing stay in float32",
    )
    schedule: Literal["constant", "exponential", "step", "cosine"] = Field(
        "constant", description="how the learning rate falls with the rounds"
    )
    decay: Annotated[Number, Field(gt=0, le=1)] = Field(
        0.99, description="exponential: factor of a round; step: factor of every `period` rounds"
    )
    period: Count = Field(
        100,
        description="step: rounds between two falls; cosine: rounds in which it falls almost to nothing, and then stays",
    )
    crop: Natural = Field(
        0, description="augmentation: pixels by which images are shifted at most, mirrored at the border"
    )
    flip: bool = Field(False, description="augmentation: every other image mirrored, at random")


class LocalTraining(Training):
    clients_per_batch: Annotated[
        Count, at_most(10_000, "the weights of all these clients are in memory at once")
    ] = Field(
        1,
        description="clients of the cohort that are trained as one batched computation, for small networks on a GPU; the result differs in its last digits",
    )


class Algorithm(Section):
    """How the clients' models become one."""

    name: str = Field(
        "fedavg",
        description="fedavg, fedprox, fednova, fedavgm, fedadam, fedyogi, scaffold, or module:name of an Algorithm of yours; scaffold keeps 4 bytes a parameter for every client that has trained, in files that all ranks see, and doubles the messages",
    )
    mu: NonNegative = Field(
        0.01,
        description="fedprox: weight of half the squared distance to the global weights in a client's loss",
    )
    server_lr: Positive = Field(1.0, description="fedavgm, fedadam, fedyogi: learning rate of the server")
    beta1: Annotated[Number, Field(ge=0, lt=1)] = Field(0.9, description="these: decay of the first moment")
    beta2: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.99, description="fedadam, fedyogi: decay of the second moment"
    )
    tau: Positive = Field(
        1e-3, description="fedadam, fedyogi: degree of adaptivity, added to the root of the second moment"
    )


class LabelSharing(Section):
    """What the clients tell the server of their labels (III-A)."""

    payload: Literal["histogram", "presence"] = Field(
        "histogram", description="samples of each label, or only which labels there are"
    )
    epsilon: Positive | None = Field(
        None, description="local differential privacy of one sample; none: the truth"
    )
    refusal_rate: Share = Field(0.0, description="share of the clients that tell nothing")


class Generation(Section):
    checkpoint: str = Field(
        "digits",
        description="`digits`, `cifar10`, `cifar100` (shipped), a text-to-image pipeline of diffusers as a folder or hub id, or module:function",
    )
    adapter: str | None = Field(
        None, description="folder of a LoRA adapter for the checkpoint, as `finetune` makes it"
    )
    prompts: str = Field(
        "mnist",
        description="`mnist`, `fashion_mnist`, `emnist`, `cifar10`, `cifar100`, or a YAML file of templates and descriptions",
    )
    negative_prompt: str = Field("", description="what the images should not show")
    plan: str = Field(
        "equal",
        description="which labels to generate: equal, inverse_frequency, deficit, cohort_deficit, or module:function",
    )
    count: Literal["class", "total"] = Field(
        "class", description="whether per_round and cap are meant for each class or for all together"
    )
    per_round: Count = Field(10, description="images a round")
    cap: Count = Field(300, description="most images")
    scheduler: str | None = Field(
        None,
        description="a scheduler class of diffusers, for example DPMSolverMultistepScheduler; none: the checkpoint's",
    )
    steps: Count = Field(20, description="denoising steps")
    guidance: NonNegative = Field(7.0, description="classifier-free guidance scale")
    size: Annotated[Count, at_most(4096, "all pixels of a batch are in memory at once")] | None = Field(
        None,
        description="pixels of a side as generated, before resizing to the data set's; none: the checkpoint's",
    )
    batch_size: Annotated[Count, at_most(10_000, "every batch is filled up to that many images")] = Field(
        50, description="images made together; part of an image's identity"
    )
    save_memory: list[Literal["attention_slicing", "vae_slicing", "vae_tiling", "model_cpu_offload"]] = Field(
        [], description="diffusers' ways to need less memory"
    )
    min_fidelity: Share = Field(
        0.0,
        description="images whose label a classifier of the public pool finds less probable than this are not used",
    )
    threads: Threads | None = Field(
        None, description="threads while generating on a CPU; none: runtime.threads"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: runtime.device")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="auto: float16 on a GPU, float32 on a CPU"
    )
    seed: Seed | None = Field(None, description="seed of the images; none: the run's seed")
    bank: str = Field("results/bank", description="folder of generated images, shared by all runs")


class ClientGeneration(Section):
    """method=filled: what each client generates, for at most generation.cap images."""

    labels: Literal["rare", "missing"] = Field(
        "rare",
        description="rare: every label, up to as many samples as the client has of its most frequent one (Gen-FedSD, "
        "FAug); missing: only labels of which it has none",
    )
    share: Share = Field(
        1.0,
        description="share u of the gap that is filled: with rare labels, a client's EMD to an even mix falls to 1 - u of it",
    )


class Pretraining(Section):
    """A small pipeline in Stable Diffusion's format, which the command `pretrain` makes."""

    images: Literal["public_pool", "uci_digits"] = Field(
        "public_pool",
        description="what it learns from: the data set's public pool, or scikit-learn's UCI digits",
    )
    autoencoder_channels: list[Annotated[int, Field(ge=8, le=4096, multiple_of=8)]] = Field(
        [16, 24, 32],
        min_length=2,
        max_length=6,
        description="channels of each level; every level but the first halves the side",
    )
    autoencoder_steps: Count = Field(800, description="steps of 64 images")
    denoiser_channels: list[Annotated[int, Field(ge=16, le=4096, multiple_of=16)]] = Field(
        [32, 64], min_length=2, max_length=6, description="the UNet's channels of each level"
    )
    denoiser_steps: Count = Field(2500, description="steps of 128 images")
    denoiser_lr: Positive = Field(2e-3, description="largest learning rate of a one-cycle schedule")
    prediction: Literal["epsilon", "v_prediction"] = Field(
        "epsilon", description="what the UNet learns to tell: the noise, or the velocity"
    )
    mirror: bool = Field(False, description="learn from mirrored images too")
    seed: Seed = Field(0, description="seed of the weights and batches")
    output: str = Field("results/checkpoint", description="folder of the checkpoint")


class Finetuning(Section):
    """Low-rank adapters (LoRA) for the UNet of generation.checkpoint, which the command `finetune` trains."""

    per_class: Count = Field(10, description="real images of each class to learn from, k")
    at: Literal["server", "clients"] = Field(
        "server",
        description="who trains: the server, on images of the public pool, or the clients, each on the images it holds, with their adapters averaged every round",
    )
    layers: Literal["attention", "all"] = Field(
        "all",
        description="layers with an adapter: the attention's projections, or convolutions and dense layers too",
    )
    rank: Annotated[Count, at_most(1024, "the layers of a pipeline have no higher rank")] = Field(
        8, description="rank of the adapters"
    )
    rounds: Count = Field(20, description="rounds of averaging")
    epochs: Count = Field(5, description="passes over the images in a round")
    batch_size: Count = Field(32, description="images in a step")
    lr: Positive = Field(1e-3, description="learning rate of AdamW, which starts anew each round")
    seed: Seed = Field(0, description="seed of the adapters and batches")
    output: str = Field("results/adapter", description="folder of the adapter, for generation.adapter")


class Kappa(Section):
    """Weights of Eq. (1): kappa1 for the federated model, kappa2 for the augmented one."""

    policy: str = Field("fixed", description="a name or module:function that returns kappa2 for a round")
    kappa1: Share = 0.8
    kappa2: Share = 0.2
    end: Share = Field(0.0, description="linear, cosine, exponential, step: kappa2 in the end")
    horizon: Count = Field(30, description="linear, cosine: rounds until the end")
    decay: Annotated[Number, Field(gt=0, le=1)] = Field(
        0.9, description="exponential, step: factor of the distance from the end"
    )
    period: Count = Field(10, description="step: rounds between two steps")
    quality: NonNegative = Field(1.0, description="amount: how many real samples a generated image is worth")
    theta: NonNegative = Field(
        0.04, description="bias_optimal: the generator's error against label skew, as `quality` measures it"
    )
    temperature: Positive = Field(
        0.1,
        description="softmax_accuracy, softmax_loss: difference that makes one model count e times the other",
    )
    grid: list[Share] = Field(
        [0.0, 0.1, 0.2, 0.4, 0.7, 1.0],
        min_length=1,
        description="line_search, bandit: values of kappa2 that are tried",
    )

    @model_validator(mode="before")
    @classmethod
    def complete(cls, values):
        """A kappa given alone fixes the other one."""
        if isinstance(values, dict) and ("kappa1" in values) != ("kappa2" in values):
            given, other = ("kappa1", "kappa2") if "kappa1" in values else ("kappa2", "kappa1")
            try:
                values = {**values, other: round(1 - float(values[given]), 12)}
            except (TypeError, ValueError, OverflowError):
                pass  # the field's own check names the wrong type
        return values

    @model_validator(mode="after")
    def sum_to_one(self):
        if abs(self.kappa1 + self.kappa2 - 1) > 1e-9:
            raise ValueError(
                f"kappa1 + kappa2 must be 1, and {self.kappa1:g} + {self.kappa2:g} is {self.kappa1 + self.kappa2:g}; give one of them alone"
            )
        return self


class Rho(Section):
    """The clients' weights rho_n in Eq. (1): the policy, and what policies use."""

    policy: str = Field("size", description="a name or module:function")

    gamma: NonNegative = Field(1.0, description="quality: exponent of 1 - EMD / 2")
    power: Number = Field(
        -1.0, description="loss: exponent of a client's loss; above 0 favours who fits badly"
    )
    alpha: NonNegative = Field(5.0, description="similarity: how much the angle to the mean change counts")
    permutations: Count = Field(10, description="shapley: orders in which the clients join")


class Selection(Section):
    """How the cohort is chosen: the policy, and what policies use."""

    policy: str = Field("random", description="a name or module:function")

    candidates: Count | None = Field(
        None, description="clients drawn at random, of which the policy chooses; none: all"
    )
    exploration: Share = Field(0.3, description="oort: share of the cohort that never trained before")
    penalty: NonNegative = Field(2.0, description="oort: exponent of the wanted time over a slower client's")


class Validation(Section):
    """Data on which policies try models."""

    source: Literal["none", "pool", "clients", "generated"] = Field(
        "none",
        description="pool: real images at the server, its public pool; clients: the cohort's own data, of which each client tells loss and accuracy; generated: the images of the augmented model",
    )
    samples: Count = Field(500, description="most images of the pool, or generated ones, every so many")


class Hindsight(Section):
    """A look at the segment between a round's two models, on the test set; the run is the same with and without."""

    every: Count | None = Field(None, description="rounds between two looks; none: never")
    points: Annotated[
        Count, Field(ge=2), at_most(10_000, "each is a model that is tried on the whole test set")
    ] = Field(11, description="models of the segment that are tried, with both ends")
    policies: list[str] = Field(
        [],
        description="kappa policies that are asked beside the run's own; none: all that this configuration can ask",
    )


class Probes(Section):
    """A look at how the clients differ, in /probes and /probed_clients; the run is the same with and without."""

    every: Count | None = Field(None, description="rounds between two looks; none: never")
    clients: Count = Field(
        100,
        description="clients, drawn once, whose gradients stand for all clients' in F; all, if there are fewer",
    )
    epochs: Epochs = Field(
        20,
        description="more passes over its data after which a client's loss is taken to be the least, F_n(w_n*)",
    )


class Evaluation(Section):
    batch_size: Count = Field(
        100, description="test samples in a chunk, which a cache holds; chunks are divided over the ranks"
    )


class Checkpoint(Section):
    """From where an interrupted run continues, and where `fork` may begin."""

    every_rounds: Count | None = Field(1, description="rounds between checkpoints; none: not by rounds")
    every_seconds: Positive | None = Field(
        None, description="also at the end of a round, when the last checkpoint is so old"
    )
    keep: Count | None = Field(
        None, description="the checkpoint of every keep-th round stays, for `fork`; none: the newest two"
    )


class Faults(Section):
    nonfinite: Literal["stop", "drop"] = Field(
        "stop",
        description="a client whose loss or weights are no longer finite: stop the run, or drop the client from the round, "
        "whose other clients share its rho; without any left, the weights stay",
    )


class Runtime(Section):
    threads: Threads | None = Field(
        None,
        description="threads a rank; none: the rank's share of the cores, whatever OMP_NUM_THREADS says. Fixed at a run's first start",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="kind of device; auto: a GPU where there is one. Fixed at a run's first start"
    )
    ranks_per_run: Count | None = Field(
        None,
        description="on so many ranks, or more, a sweep computes several runs at once, each on a group of ranks of its own; "
        "none: as many as a run keeps busy, one for each client of the cohort and one for the server",
    )
    tf32: bool = Field(
        False, description="on a GPU: products of float32 with TensorFloat-32's ten bits, which are faster"
    )
