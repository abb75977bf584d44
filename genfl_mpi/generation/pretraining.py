"""Train a small text-to-image pipeline in Stable Diffusion's format on public images.

    python -m genfl_mpi.generation.pretraining OUT

trains the digits checkpoint that the package ships, on scikit-learn's UCI digits (1,797 images of 8x8, by
other writers, with another scanner than MNIST), so that its images differ from the clients' data as
Stable Diffusion's differ from CIFAR. The three stages are those of latent diffusion (Rombach et al. 2022):
an autoencoder, then a text encoder and a denoising UNet trained together with the noise-prediction loss.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from genfl_mpi.generation.prompts import load_prompts

IMAGE_SIZE = 32  # the autoencoder's input; its latents are a quarter of that
PROMPT_TOKENS = 16


def framed_digits():
    """scikit-learn's UCI digits framed as MNIST frames its own: 20x20 in the middle of 28x28.

    Returns float32 images (1797, 3, 32, 32) in [-1, 1] and int labels (1797,).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, 20, mode="bicubic", align_corners=False).clamp(0, 1)
    images = F.interpolate(F.pad(images, (4,) * 4), IMAGE_SIZE, mode="bilinear", align_corners=False)
    return images.repeat(1, 3, 1, 1) * 2 - 1, digits.target


def build_tokenizer(words):
    """A CLIP tokenizer whose byte-pair merges make one token of each of `words`; other words fall to pieces."""
    vocabulary = list(bytes_to_unicode().values())
    vocabulary += [symbol + "</w>" for symbol in vocabulary]
    merges = []
    for word in sorted(words):
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            if (pieces[0], pieces[1]) not in merges:
                merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            if pieces[0] not in vocabulary:
                vocabulary.append(pieces[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=PROMPT_TOKENS)


def build_modules(tokenizer):
    """The autoencoder, text encoder and UNet, untrained: classes and block types are Stable Diffusion v1.5's."""
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=IMAGE_SIZE, block_out_channels=(16, 24, 32),
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1, norm_num_groups=8, mid_block_add_attention=False,
    )
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, projection_dim=64,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=PROMPT_TOKENS,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))
    unet = UNet2DConditionModel(
        in_channels=4, out_channels=4, sample_size=IMAGE_SIZE // 4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=4, norm_num_groups=16,
    )
    return vae, text_encoder, unet


def minibatches(count, batch_size, steps, generator):
    """`steps` index tensors of `batch_size`, drawn with replacement."""
    for _ in range(steps):
        yield torch.randint(count, (batch_size,), generator=generator)


def optimizer_with_schedule(parameters, rate, steps):
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)


def train_autoencoder(vae, images, steps, generator, say):
    """Minimise reconstruction error plus a light pull of the latents towards a unit normal."""
    optimizer, schedule = optimizer_with_schedule(vae.parameters(), 4e-3, steps)
    for step, batch in enumerate(minibatches(len(images), 64, steps, generator)):
        posterior = vae.encode(images[batch]).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        error = F.mse_loss(vae.decode(latents).sample, images[batch])
        loss = error + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            say(f"autoencoder step {step}: mean squared error {error.item():.4f}")


@torch.no_grad()
def encode(vae, images):
    """Latents (n, 4, 8, 8) of all images, scaled to unit variance; sets the autoencoder's scaling factor."""
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in images.split(256)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return latents * vae.config.scaling_factor


def train_denoiser(unet, text_encoder, tokenizer, scheduler, latents, labels, prompts, steps, generator, say):
    """Noise prediction under a random template per image; one prompt in ten is empty, for guidance.

    Returns the exponential moving averages of both modules' weights, which draw better than the last step's.
    """
    modules = torch.nn.ModuleList([unet, text_encoder])
    average = torch.optim.swa_utils.AveragedModel(
        modules, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    optimizer, schedule = optimizer_with_schedule(modules.parameters(), 2e-3, steps)
    # Every prompt there is, once: row c * templates + k; the last row is the empty prompt.
    texts = [template.replace("{}", name) for name in prompts.descriptions for template in prompts.templates]
    tokens = tokenizer([*texts, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    labels = torch.as_tensor(labels)
    running = None
    for step, batch in enumerate(minibatches(len(latents), 128, steps, generator)):
        template = torch.randint(len(prompts.templates), (len(batch),), generator=generator)
        row = labels[batch] * len(prompts.templates) + template
        row[torch.rand(len(batch), generator=generator) < 0.1] = len(texts)
        noise = torch.randn(latents[batch].shape, generator=generator)
        timestep = torch.randint(scheduler.config.num_train_timesteps, (len(batch),), generator=generator)
        noisy = scheduler.add_noise(latents[batch], noise, timestep)
        text, where = torch.unique(row, return_inverse=True)
        condition = text_encoder(tokens[text])[0][where]
        loss = F.mse_loss(unet(noisy, timestep, condition).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(modules)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            say(f"denoiser step {step}: noise error {running:.4f}")
    return average.module


def pretrain(images, labels, prompts, out, autoencoder_steps, denoiser_steps, seed=0):
    """Train on float32 images (n, 3, 32, 32) in [-1, 1] and write a pipeline in half precision to folder `out`."""
    start = time.perf_counter()

    def say(text):
        print(f"{time.perf_counter() - start:6.0f} s  {text}", flush=True)

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # diffusers and transformers initialise their modules from the global stream
        tokenizer = build_tokenizer({w for t in [*prompts.templates, *prompts.descriptions]
                                     for w in t.replace("{}", "").split()})
        vae, text_encoder, unet = build_modules(tokenizer)
    train_autoencoder(vae, images, autoencoder_steps, generator, say)
    latents = encode(vae, images)
    # Stable Diffusion v1.5's noise schedule.
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)
    unet, text_encoder = train_denoiser(unet, text_encoder, tokenizer, scheduler, latents, labels, prompts,
                                        denoiser_steps, generator, say)
    pipeline = StableDiffusionPipeline(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
                                       scheduler=scheduler, safety_checker=None, feature_extractor=None,
                                       requires_safety_checker=False)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(out)
    say(f"wrote {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the pipeline to")
    parser.add_argument("--autoencoder-steps", type=int, default=800)
    parser.add_argument("--denoiser-steps", type=int, default=2500)
    arguments = parser.parse_args()
    images, labels = framed_digits()
    pretrain(images, labels, load_prompts("mnist", [str(digit) for digit in range(10)]), arguments.out, arguments.autoencoder_steps, arguments.denoiser_steps)


if __name__ == "__main__":
    main()
