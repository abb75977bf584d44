"""Sections of generated images and of what the server does with them."""

from typing import Annotated, Literal

from pydantic import Field

from genfl_mpi.config.sections.conditions import GENERATED_IMAGES, PIPELINE, SERVER_IMAGES
from genfl_mpi.config.types import (
    Count,
    Flag,
    NonNegative,
    Positive,
    Section,
    Seed,
    Share,
    Threads,
    at_most,
)


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
    ranks: Annotated[Literal["all", "server"] | Count, GENERATED_IMAGES] = Field(
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
