"""Count the floating-point operations of generating an image.

Torch counts them from the pipeline's architecture; no weights are needed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from genfl_mpi.generation.model_folder import STABLE_DIFFUSION_PARTS, locate, require_stable_diffusion
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genfl_mpi.config.sections.images import Generation

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
# The values in Stable Diffusion v1.5's configuration files that differ from diffusers' defaults.
UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}


class Flops(NamedTuple):
    """FLOPs per image of encoding the prompt, all denoising steps and decoding; and the number of weights."""

    text: float
    denoising: float
    decoding: float
    weights: int

    @property
    def image(self) -> float:
        """Return all FLOPs of an image."""
        return self.text + self.denoising + self.decoding


def count_configured(settings: Generation) -> Flops:
    """Count for the generator of config.generation. Raises UserError.

    Stable Diffusion v1.5 need not be installed.
    """
    if settings.checkpoint == STABLE_DIFFUSION:
        return count_stable_diffusion(settings)
    return count_pipeline(locate(settings.checkpoint), settings)


def count_pipeline(folder: Path, settings: Generation) -> Flops:
    """Count for the pipeline in `folder`, with config.generation's steps, guidance and size.

    Raises UserError if it is not of Stable Diffusion's architecture, or its configuration files are invalid.
    """
    require_stable_diffusion(folder, "pricing")
    try:
        unet, vae, text = (
            json.loads((folder / part / "config.json").read_text()) for part in STABLE_DIFFUSION_PARTS
        )
        return _count(unet, vae, text, settings)
    except Exception as error:  # the libraries raise any exception for a wrong value
        raise UserError(
            f"generation.checkpoint: {folder}: config.json of {', '.join(STABLE_DIFFUSION_PARTS)} "
            f"do not describe a pipeline: {first_line(error)}"
        ) from error


def count_stable_diffusion(settings: Generation) -> Flops:
    """Count for Stable Diffusion v1.5, with config.generation's steps, guidance and size."""
    return _count(UNET, VAE, TEXT, settings)


def _count(
    unet_config: dict[str, Any], vae_config: dict[str, Any], text_config: dict[str, Any], settings: Generation
) -> Flops:
    """Count for a UNet2DConditionModel, AutoencoderKL and CLIPTextModel with these configurations."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(unet_config)
        vae: Any = AutoencoderKL.from_config(vae_config)
        encoder = CLIPTextModel(CLIPTextConfig(**text_config))
    prompts = 2 if settings.guidance > 1 else 1  # guidance runs the UNet with the prompt and without it
    halvings = len(vae.config.block_out_channels) - 1
    size = settings.size // 2**halvings if settings.size else unet.config.sample_size
    length = encoder.config.max_position_embeddings
    latents = torch.empty(1, vae.config.latent_channels, size, size, device="meta")
    condition = torch.empty(prompts, length, unet.config.cross_attention_dim, device="meta")
    step = _flops(unet, latents.expand(prompts, -1, -1, -1), torch.zeros((), device="meta"), condition)
    modules = (unet, vae, encoder)
    text = _flops(encoder, torch.zeros(prompts, length, dtype=torch.int64, device="meta"))
    return Flops(
        text,
        settings.steps * step,
        _flops(vae.decode, latents),
        sum(weights.numel() for module in modules for weights in module.parameters()),
    )


def _flops(function: Callable[..., Any], *arguments: torch.Tensor) -> int:
    """Count the FLOPs of a call."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        function(*arguments)
    return counter.get_total_flops()
