"""Floating-point operations of generating an image, counted by torch from the pipeline's architecture: no weights are needed."""

import json
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from genfl_mpi.generation.model_folder import ORIGINAL_PARTS, locate, require_original
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
# Stable Diffusion v1.5: what its configuration files say and is not diffusers' default.
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
    """FLOPs of an image: of encoding its prompt, of all denoising steps, of decoding; and the pipeline's weights."""

    text: float
    denoising: float
    decoding: float
    weights: int

    @property
    def image(self):
        return self.text + self.denoising + self.decoding


def of_configured(settings):
    """`Flops` of the generator that config.generation names. Stable Diffusion v1.5 need not be there. Raises UserError."""
    if settings.checkpoint == STABLE_DIFFUSION:
        return of_stable_diffusion(settings)
    return of_pipeline(locate(settings.checkpoint), settings)


def of_pipeline(folder, settings):
    """`Flops` of the pipeline in `folder`, in diffusers' format, with the steps, guidance and size of config.generation. Raises
    UserError."""
    require_original(folder, "pricing")
    try:
        parts = [json.loads((folder / part / "config.json").read_text()) for part in ORIGINAL_PARTS]
        return _count(*parts, settings)
    except Exception as error:  # the libraries raise whatever a wrong value makes them meet
        raise UserError(
            f"generation.checkpoint: {folder}: config.json of {', '.join(ORIGINAL_PARTS)} "
            f"do not describe a pipeline: {first_line(error)}"
        ) from error


def of_stable_diffusion(settings):
    """`Flops` of Stable Diffusion v1.5 with the steps, guidance and size of config.generation."""
    return _count(UNET, VAE, TEXT, settings)


def _count(unet, vae, text, settings):
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(unet), AutoencoderKL.from_config(vae)
        encoder = CLIPTextModel(CLIPTextConfig(**text))
    prompts = 2 if settings.guidance > 1 else 1  # guidance asks with the prompt and without
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


def _flops(function, *arguments):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        function(*arguments)
    return counter.get_total_flops()
