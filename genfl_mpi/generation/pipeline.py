"""From prompts to images with a text-to-image pipeline of diffusers."""

import inspect
from functools import lru_cache

import torch
import torch.nn.functional as F

from genfl_mpi.errors import UserError
from genfl_mpi.generation.checkpoint import ADAPTER, digest
from genfl_mpi.wording import first_line


def read(folder, adapter=None, scheduler=None, dtype="float32", device="cpu", save_memory=()):
    """The pipeline in `folder`, with the adapter in the folder `adapter`. Only safetensors are read, and no code. Raises UserError."""
    import diffusers  # here, because it takes seconds and only a rank that generates needs it

    silence()
    try:
        # Neither a filter nor a watermark, which would depend on what else is installed.
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True,
            safety_checker=None, requires_safety_checker=False, add_watermarker=False)
        if adapter is not None:
            pipeline.load_lora_weights(adapter, weight_name=ADAPTER)
            pipeline.fuse_lora(components=[part for part in ("unet", "transformer") if part in pipeline.components])  # added to the weights once, it costs an image nothing
            pipeline.unload_lora_weights()
        if scheduler is not None:
            pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    except Exception as error:
        what = f"generation.checkpoint: {folder}" + (f" with generation.adapter {adapter}" if adapter else "")
        raise UserError(f"{what} cannot be loaded: {first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    if "attention_slicing" in save_memory:
        pipeline.enable_attention_slicing()
    if "vae_slicing" in save_memory:
        pipeline.vae.enable_slicing()
    if "vae_tiling" in save_memory:
        pipeline.vae.enable_tiling()
    if "model_cpu_offload" in save_memory:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def silence():
    """No progress bars and no advice from the libraries: what can go wrong is said in our own words."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@lru_cache(maxsize=1)
def _read_once(identity, folder, adapter, *options):
    loaded = read(folder, adapter, *options)
    # Images are stored under the digests, so what was read must be what has them.
    for setting, path, known in zip(("checkpoint", "adapter"), (folder, adapter), identity):
        if path is not None and digest(path) != known:
            raise UserError(f"generation.{setting}: {path} has changed since the run began; "
                            "restore it, or start again")
    return loaded


def load(folder, adapter, settings, identity):
    """Return the pipeline in `folder` as config.generation wants it, read once; adapter: a folder or None.

    identity: `digest` of both, None without an adapter. Raises UserError if they have other digests now.
    """
    return _read_once(identity, folder, adapter, settings.scheduler, settings.dtype, settings.device,
                      tuple(settings.save_memory))


def draw(pipeline, prompts, seeds, settings, shape):
    """Images for `prompts` (list of texts), each from noise of its own seed.

    settings: config.generation; shape: (C, H, W) of the data set: the pipeline's RGB is reduced to luminance for C = 1,
    and resized with antialiasing. Returns uint8 (n, C, H, W) on the CPU.
    """
    # Noise is drawn on the CPU, whatever the device.
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    options = {"negative_prompt": [settings.negative_prompt] * len(prompts), "num_inference_steps": settings.steps,
               "guidance_scale": settings.guidance, "height": settings.size, "width": settings.size, "generator": noise, "output_type": "pt"}
    unknown = options.keys() - inspect.signature(pipeline.__call__).parameters
    if "negative_prompt" in unknown and not settings.negative_prompt:
        unknown.remove("negative_prompt")
        del options["negative_prompt"]
    if unknown:
        raise UserError(f"generation.checkpoint: a {type(pipeline).__name__} takes no {unknown.pop()}")
    try:
        images = pipeline(prompts, **options).images.float()
    except (ValueError, IndexError) as error:  # a size that it cannot draw, say, or more steps than it has
        raise UserError(f"generation: {type(pipeline).__name__}: {first_line(error)}") from error
    channels, *size = shape
    if channels == 1:
        images = (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
