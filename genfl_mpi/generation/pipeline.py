"""From prompts to images with diffusers' StableDiffusionPipeline."""

from functools import lru_cache

import torch
import torch.nn.functional as F

from genfl_mpi.errors import UserError


@lru_cache(maxsize=1)
def load(folder, dtype, device):
    """The pipeline in `folder` on a torch device, its weights in `dtype` ("float32", ...). Only safetensors are read."""
    import diffusers  # here, because it takes seconds and only a rank that generates needs it
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True,
            safety_checker=None, requires_safety_checker=False)
    except Exception as error:
        raise UserError(f"generation.checkpoint: {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def draw(pipeline, prompts, seeds, steps, guidance, shape):
    """Images for `prompts` (list of texts), each from noise of its own seed.

    shape: (C, H, W) of the data set; the pipeline's RGB is reduced to luminance for C = 1, and resized with
    antialiasing. Returns uint8 (n, C, H, W) on the CPU.
    """
    # Noise is drawn on the CPU, whatever the device.
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    images = pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance, generator=noise,
                      output_type="pt").images.float()
    channels, *size = shape
    if channels == 1:
        images = (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
