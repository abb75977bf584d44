"""The diffusion loss, which pretraining and fine-tuning share."""

import torch
import torch.nn.functional as F

UNCONDITIONAL = 0.1  # of the images are learned with the empty prompt, which guidance needs


def prompt_rows(labels, prompts, generator):
    """For each label a row of `prompt_texts`: a random template, or now and then the last row, the empty prompt."""
    templates = len(prompts.templates)
    rows = labels * templates + torch.randint(templates, labels.shape, generator=generator)
    rows[torch.rand(len(labels), generator=generator) < UNCONDITIONAL] = len(prompts.descriptions) * templates
    return rows


def prompt_texts(prompts):
    """Every prompt there is, once: text c * templates + k is class c in template k; the last is empty."""
    return [
        *(
            prompts.text(label, k)
            for label in range(len(prompts.descriptions))
            for k in range(len(prompts.templates))
        ),
        "",
    ]


def embed(text_encoder, tokens, rows):
    """The embeddings of rows of `tokens`, (len(rows), length, width); each prompt passes through the encoder once."""
    text, where = torch.unique(rows.to(tokens.device), return_inverse=True)
    return text_encoder(tokens[text])[0][where]


def diffusion_loss(unet, scheduler, clean, condition, generator):
    """Mean squared error of what the UNet tells of noised latents (Ho et al. 2020; velocity: Salimans and Ho 2022).

    clean: latents (n, c, h, w); condition: the embeddings of their prompts, (n, length, width); generator: of random
    numbers, on the CPU whatever the device.
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
