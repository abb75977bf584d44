"""Measure generation with a random checkpoint of Stable Diffusion v1.5's size: a part of gpu.py."""

import gc
import time

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from gpu_setting import attempt, peak_memory, reset_peak, synchronize
from gpu_training import product_rates
from transformers import CLIPTextConfig, CLIPTextModel

from genfl_mpi.config.sections.images import Generation
from genfl_mpi.generation import image_flops, pipeline
from genfl_mpi.generation.pretraining import build_tokenizer
from genfl_mpi.generation.prompts import load_prompts

# Of the same classes as Stable Diffusion v1.5's parts: what differs from image_flops.UNET, VAE and TEXT.
TOY_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
}
TOY_VAE = {"sample_size": 64, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
TOY_TEXT = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# Stable Diffusion v1.5's scheduler.
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
CLASSES = tuple("0123456789")
# Settings of each row, in order of importance; "vae_slicing" decodes one image at a time.
ROWS = (
    {"batch_size": 50, "save_memory": ["vae_slicing"]},
    {"batch_size": 10},
    {"batch_size": 50, "save_memory": ["vae_slicing"], "size": 256},
    {
        "batch_size": 50,
        "save_memory": ["vae_slicing"],
        "scheduler": "DPMSolverMultistepScheduler",
        "steps": 10,
    },
    {
        "batch_size": 50,
        "save_memory": ["vae_slicing"],
        "scheduler": "LCMScheduler",
        "steps": 4,
        "guidance": 1.0,
    },
    {"batch_size": 1},
    {"batch_size": 20},
    {"batch_size": 100, "save_memory": ["vae_slicing"]},
)
TOY_ROWS = (
    {"batch_size": 2, "save_memory": ["vae_slicing"], "steps": 2},
    {"batch_size": 2, "scheduler": "DPMSolverMultistepScheduler", "steps": 2},
    {"batch_size": 2, "scheduler": "LCMScheduler", "steps": 2, "guidance": 1.0, "dtype": "bfloat16"},
)


def build_modules(toy, device):
    """Build UNet, autoencoder and text encoder with random weights on `device`."""
    unet, vae, text = ({}, {}, {}) if not toy else (TOY_UNET, TOY_VAE, TOY_TEXT)
    with torch.device(device):
        return (
            UNet2DConditionModel.from_config(image_flops.UNET | unet),
            AutoencoderKL.from_config(image_flops.VAE | vae),
            CLIPTextModel(CLIPTextConfig(**image_flops.TEXT | text)),
        )


def make_checkpoint(setting):
    """Return the folder of a checkpoint with random weights, written in half precision if it is not there.

    The architecture and scheduler are Stable Diffusion v1.5's, or tiny. Only the tokenizer is another: it
    knows the words of the prompts alone, and gives as many tokens as the original.
    """
    folder, partial = setting.folder / "checkpoint", setting.folder / "partial"
    if folder.exists():
        return folder
    pipeline.silence()
    prompts = load_prompts("mnist", CLASSES)
    tokenizer = build_tokenizer(
        prompts.text(label, template)
        for label in range(len(CLASSES))
        for template in range(len(prompts.templates))
    )
    tokenizer.model_max_length = image_flops.TEXT["max_position_embeddings"]
    torch.manual_seed(0)
    unet, vae, text_encoder = build_modules(setting.toy, setting.device)
    whole = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    whole.to(dtype=torch.float16).save_pretrained(partial)
    partial.rename(folder)
    return folder


def generation(setting):
    """Yield images per second for batch sizes, schedulers and sizes; 20 steps with guidance 7 by default."""
    setting.set_up()
    folder = make_checkpoint(setting)
    count = sum(
        sum(weights.numel() for weights in part.parameters()) for part in build_modules(setting.toy, "meta")
    )
    yield {"weights": count}
    half = max(product_rates(setting, "float16"))
    setting.set_up()
    dtype = setting.choose("float16", "float32")
    for settings in setting.choose(ROWS, TOY_ROWS):
        row = {"batch_size": settings["batch_size"], "dtype": dtype, "steps": 20, "guidance": 7.0, **settings}
        row["save_memory"] = ", ".join(settings.get("save_memory", []))
        options = Generation(**{"dtype": dtype, **settings})
        yield attempt(row, lambda: _figures(setting, folder, options, half))


def _figures(setting, folder, settings, half):
    """Generate a batch with two steps, to warm up, and then one that is timed.

    half: TFLOP/s of a large product in float16.
    """
    gc.collect()  # pipelines have cycles
    reset_peak(setting.device)
    loaded = pipeline.read(
        folder, None, settings.scheduler, settings.dtype, setting.device, tuple(settings.save_memory)
    )
    prompts = load_prompts("mnist", CLASSES)
    texts = [prompts.text(i % len(CLASSES), 0) for i in range(settings.batch_size)]

    def generate(steps):
        start = time.perf_counter()
        pipeline.generate_images(
            loaded,
            texts,
            range(settings.batch_size),
            settings.model_copy(update={"steps": steps}),
            (3, 32, 32),
        )
        synchronize(setting.device)
        return time.perf_counter() - start

    warm_up = generate(2)
    seconds = generate(settings.steps)
    flops = settings.batch_size * image_flops.count_pipeline(folder, settings).image
    return {
        "warm_up_s": warm_up,
        "batch_s": seconds,
        "images_per_s": settings.batch_size / seconds,
        "tflops": 1e-12 * flops / seconds,
        "of_float16_product": 1e-12 * flops / seconds / half,
        **peak_memory(setting.device),
    }
