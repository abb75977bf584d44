"""Compute the diffusion loss, for pretraining and fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from genfl_mpi.generation.prompts import Prompts

UNCONDITIONAL = 0.1  # share of the images trained with the empty prompt, which guidance needs


def prompt_rows(labels: torch.Tensor, prompts: Prompts, generator: torch.Generator) -> torch.Tensor:
    """Draw a row of `prompt_texts` for each label: a random template, or the empty prompt in the last row.

    labels: int64 (n,). Returns int64 (n,).
    """
    templates = len(prompts.templates)
    rows = labels * templates + torch.randint(templates, labels.shape, generator=generator)
    rows[torch.rand(len(labels), generator=generator) < UNCONDITIONAL] = len(prompts.descriptions) * templates
    return rows


def prompt_texts(prompts: Prompts) -> list[str]:
    """List every prompt once: text c * templates + k is class c in template k; the last is empty."""
    return [
        *(
            prompts.text(label, k)
            for label in range(len(prompts.descriptions))
            for k in range(len(prompts.templates))
        ),
        "",
    ]


def embed(text_encoder: torch.nn.Module, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Embed rows of `tokens`, as (len(rows), length, width). Each distinct prompt is encoded once."""
    text, where = torch.unique(rows.to(tokens.device), return_inverse=True)
    return text_encoder(tokens[text])[0][where]


def diffusion_loss(
    unet: torch.nn.Module,
    scheduler: Any,
    clean: torch.Tensor,
    condition: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Compute the mean squared error of the UNet's prediction for noised latents.

    The target is the noise (Ho et al. 2020) or the velocity (Salimans and Ho 2022). clean: latents (n, c, h,
    w); condition: the embeddings of their prompts, (n, length, width); generator: on the CPU, whatever the
    device.
    """
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    timestep = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), generator=generator).to(
        clean.device
    )
    noisy = scheduler.add_noise(clean, noise, timestep)
    target = (
        noise
        if scheduler.config.prediction_type == "epsilon"
        else scheduler.get_velocity(clean, noise, timestep)
    )
    return F.mse_loss(unet(noisy, timestep, condition).sample, target)
