"""Train a small text-to-image pipeline in Stable Diffusion's format.

The stages are those of latent diffusion (Rombach et al. 2022): first an autoencoder, then a text encoder and
a denoising UNet trained together. The classes and block types are Stable Diffusion v1.5's; only the widths
are small.
"""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from genfl_mpi.generation.denoising import diffusion_loss, embed, prompt_rows, prompt_texts
from genfl_mpi.generation.pipeline import silence
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.progress_bar import progress
from genfl_mpi.util.text import pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import numpy as np

    from genfl_mpi.config.sections.images import Pretraining
    from genfl_mpi.generation.prompts import Prompts

IMAGE_SIZE = 32  # pixels per side of the autoencoder's images
TEXT_WIDTH = 64
AUTOENCODER_LR = 4e-3  # peak learning rate of the one-cycle schedule


def pretrain(
    images: torch.Tensor,
    labels: np.ndarray,
    prompts: Prompts,
    settings: Pretraining,
    device: torch.device,
    out: Path,
    say: Callable[[str], object],
) -> None:
    """Train a pipeline and write it, in half precision, to the folder `out`.

    images: float32 (n, C, H, W) in [0, 1], C 1 or 3; labels: int (n,); prompts: for these labels; settings:
    config.pretraining; say: prints a line of progress. Random numbers are drawn on the CPU, whatever the
    device. Raises UserError if a loss or the final weights are not finite.
    """
    start = time.perf_counter()
    silence()
    # Without this, several threads accumulate some gradients in arbitrary order.
    torch.use_deterministic_algorithms(True, warn_only=True)

    def report(text: str) -> None:
        say(f"{time.perf_counter() - start:6.0f} s  {text}")

    generator = torch.Generator().manual_seed(settings.seed)
    tokenizer = build_tokenizer(prompt_texts(prompts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # diffusers and transformers initialize from the global stream
        vae, text_encoder, unet = (module.to(device) for module in _build_modules(tokenizer, settings))
    images = _to_rgb(images, settings.mirror).to(device)
    classes = torch.as_tensor(labels).repeat(len(images) // len(labels))
    _train_autoencoder(vae, images, settings.autoencoder_steps, generator, report)
    latents = _encode(vae, images)
    # Stable Diffusion v1.5's noise schedule.
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=settings.prediction,
    )
    unet, text_encoder = _train_denoiser(
        unet, text_encoder, tokenizer, scheduler, latents, classes, prompts, settings, generator, report
    )
    pipeline: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    if not all(
        weights.isfinite().all() for part in (vae, text_encoder, unet) for weights in part.parameters()
    ):
        raise UserError(
            "pretrain: the trained weights are not finite in half precision; "
            f"set a pretraining.denoiser_lr below {settings.denoiser_lr:g}"
        )
    pipeline.save_pretrained(out)
    report(f"wrote {out}")


def build_tokenizer(texts: Iterable[str]) -> CLIPTokenizer:
    """Build a CLIP tokenizer with a token for each word of `texts`; other words split into several tokens."""
    vocabulary = _byte_symbols()
    vocabulary += [symbol + "</w>" for symbol in vocabulary]
    merges: Any = []
    words = [re.findall(r"[a-z]+|[^\sa-z]+", text.lower()) for text in texts]
    for word in sorted(set().union(*words)):
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            if (pieces[0], pieces[1]) not in merges:
                merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            if pieces[0] not in vocabulary:
                vocabulary.append(pieces[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=max(16, 2 + max(map(len, words))))


def _byte_symbols() -> list[str]:
    """Return the 256 characters that represent bytes in byte-level BPE (Radford et al. 2019).

    Printable bytes of Latin-1 are represented by themselves, the others by the characters from U+0100 on.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [*map(chr, printable), *(chr(0x100 + i) for i in range(256 - len(printable)))]


def _build_modules(tokenizer: CLIPTokenizer, settings: Pretraining) -> tuple[Any, Any, Any]:
    """Build the untrained AutoencoderKL, CLIPTextModel and UNet2DConditionModel."""
    channels = settings.autoencoder_channels
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=IMAGE_SIZE,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    deeper = len(settings.denoiser_channels) - 1
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        sample_size=IMAGE_SIZE // 2 ** (len(channels) - 1),
        block_out_channels=settings.denoiser_channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * deeper),
        up_block_types=(*("CrossAttnUpBlock2D",) * deeper, "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return vae, text_encoder, unet


def _to_rgb(images: torch.Tensor, mirror: bool) -> torch.Tensor:
    """Convert images to RGB in [-1, 1] of the autoencoder's size; with `mirror`, append their mirrors."""
    images = F.interpolate(images, IMAGE_SIZE, mode="bilinear", align_corners=False)
    images = images.repeat(1, 3 // images.shape[1], 1, 1) * 2 - 1
    return torch.cat([images, images.flip(3)]) if mirror else images


def _minibatches(
    count: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield `steps` index tensors of `batch_size`, drawn with replacement."""
    for _ in range(steps):
        yield torch.randint(count, (batch_size,), generator=generator)


def _steps(
    stage: str, count: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterable[torch.Tensor]:
    """Return the minibatches of a stage, under a progress bar."""
    return progress(_minibatches(count, batch_size, steps, generator), stage, "steps", steps)


def _optimizer_with_schedule(
    parameters: Iterable[torch.nn.Parameter], rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW and its one-cycle schedule. rate: the peak."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)


def _check_finite(loss: float, step: int, stage: str, remedy: str) -> None:
    """Raise UserError if the loss of a stage is not finite. step: counted from 0."""
    if not math.isfinite(loss):
        raise UserError(f"pretrain: the {stage} diverged, its loss is {loss} at step {step + 1}; {remedy}")


def _train_autoencoder(
    vae: Any,
    images: torch.Tensor,
    steps: int,
    generator: torch.Generator,
    report: Callable[[str], object],
) -> None:
    """Minimize the reconstruction error plus a small penalty that pulls the latents towards a unit normal."""
    optimizer, schedule = _optimizer_with_schedule(vae.parameters(), AUTOENCODER_LR, steps)
    start = time.perf_counter()
    for step, batch in enumerate(_steps("autoencoder", len(images), 64, steps, generator)):
        posterior = vae.encode(images[batch]).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(images.device)
        error = F.mse_loss(vae.decode(posterior.mean + posterior.std * noise).sample, images[batch])
        loss = error + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            # A loss that is not finite stays so, because it spoils the weights.
            _check_finite(loss.item(), step, "autoencoder", "set another pretraining.seed")
            speed = pace(time.perf_counter() - start, step + 1, steps)
            report(f"autoencoder step {step + 1}/{steps}: mean squared error {error.item():.4f}{speed}")


@torch.no_grad()
def _encode(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Encode all images, and scale the latents to unit variance; sets the autoencoder's scaling factor."""
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in images.split(256)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return latents * vae.config.scaling_factor


def _train_denoiser(
    unet: torch.nn.Module,
    text_encoder: torch.nn.Module,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    labels: torch.Tensor,
    prompts: Prompts,
    settings: Pretraining,
    generator: torch.Generator,
    report: Callable[[str], object],
) -> Any:
    """Minimize the diffusion loss with a random template per image.

    Returns both modules, UNet first, with exponential moving averages of their weights, which generate better
    images than the last step's.
    """
    steps = settings.denoiser_steps
    modules = torch.nn.ModuleList([unet, text_encoder])
    average = torch.optim.swa_utils.AveragedModel(
        modules, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(max(0.0, 1 - 12.5 / steps))
    )
    optimizer, schedule = _optimizer_with_schedule(modules.parameters(), settings.denoiser_lr, steps)
    tokens = tokenizer(
        prompt_texts(prompts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids.to(latents.device)
    running, remedy = None, f"set a pretraining.denoiser_lr below {settings.denoiser_lr:g}"
    start = time.perf_counter()
    for step, batch in enumerate(_steps("denoiser", len(latents), 128, steps, generator)):
        condition = embed(text_encoder, tokens, prompt_rows(labels[batch], prompts, generator))
        loss = diffusion_loss(unet, scheduler, latents[batch], condition, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(modules)
        _check_finite(current := loss.item(), step, "denoiser", remedy)
        running = current if running is None else 0.98 * running + 0.02 * current
        if step % 100 == 0 or step == steps - 1:
            speed = pace(time.perf_counter() - start, step + 1, steps)
            report(f"denoiser step {step + 1}/{steps}: {settings.prediction} error {running:.4f}{speed}")
    return average.module
