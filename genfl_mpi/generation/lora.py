"""Fine-tune a checkpoint with low-rank adapters of its UNet (LoRA; Hu et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline

from genfl_mpi.generation.denoising import diffusion_loss, embed, prompt_rows, prompt_texts
from genfl_mpi.learning.batches import batches
from genfl_mpi.learning.weights import FlatModel

if TYPE_CHECKING:
    from pathlib import Path

    from genfl_mpi.config.sections.images import Finetuning
    from genfl_mpi.generation.prompts import Prompts

ATTENTION = r"to_q|to_k|to_v|to_out\.0"
LAYERS = {
    "attention": ATTENTION,
    "all": rf"{ATTENTION}|conv1|conv2|conv_shortcut|proj_in|proj_out|time_emb_proj"
    r"|ff\.net\.0\.proj|ff\.net\.2",
}


class Adapter:
    """The adapters of a pipeline's UNet as one vector, which the holders of images train in turn.

    weights: float32 (size,), of all adapters. pipeline: a StableDiffusionPipeline in float32 on its device;
    settings: config.finetuning.
    """

    def __init__(self, pipeline: Any, prompts: Prompts, settings: Finetuning) -> None:
        self.pipeline, self.prompts, self.settings = pipeline, prompts, settings
        # The checkpoint's noise schedule, whatever scheduler it generates images with.
        self.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            part.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)  # peft initializes adapters from the global stream
            pipeline.unet.add_adapter(
                peft.LoraConfig(
                    r=settings.rank,
                    lora_alpha=settings.rank,
                    target_modules=rf".*\.({LAYERS[settings.layers]})",
                )
            )
        pipeline.unet.train()
        self._flat = FlatModel(
            torch.nn.ParameterList(p for p in pipeline.unet.parameters() if p.requires_grad), pipeline.device
        )
        self.weights = self._flat.weights
        self._tokens = pipeline.tokenizer(
            prompt_texts(prompts), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids.to(pipeline.device)

    @torch.no_grad()
    def latents(self, images: np.ndarray) -> torch.Tensor:
        """Encode uint8 images (n, C, H, W), resized to the pipeline's size."""
        size = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        pixels = torch.from_numpy(images).float() / 255
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        pixels = pixels.repeat(1, 3 // pixels.shape[1], 1, 1) * 2 - 1
        vae, chunks = self.pipeline.vae, pixels.split(self.settings.batch_size)
        means = [vae.encode(chunk.to(vae.device)).latent_dist.mean for chunk in chunks]
        return torch.cat(means) * vae.config.scaling_factor

    def train(self, start: torch.Tensor, latents: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
        """Train for a round from the weights `start`; the result is in `weights`. labels: int64 (n,)."""
        settings, pipeline = self.settings, self.pipeline
        self.weights.copy_(start)
        whole = torch.nn.Parameter(self.weights)
        optimizer = torch.optim.AdamW([whole], lr=settings.lr, weight_decay=0.0)
        generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        for _ in range(settings.epochs):
            for batch in batches(len(latents), settings.batch_size, rng):
                with torch.no_grad():
                    condition = embed(
                        pipeline.text_encoder,
                        self._tokens,
                        prompt_rows(labels[batch], self.prompts, generator),
                    )
                loss = diffusion_loss(pipeline.unet, self.scheduler, latents[batch], condition, generator)
                loss.backward()
                whole.grad = self._flat.gradient()
                optimizer.step()

    def save(self, folder: Path) -> int:
        """Write the adapters in diffusers' format. Returns their bytes."""
        adapters = peft.get_peft_model_state_dict(self.pipeline.unet)
        state = {name: value.contiguous() for name, value in adapters.items()}
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state)
        return sum(value.numel() * value.element_size() for value in state.values())
