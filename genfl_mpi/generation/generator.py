"""Provide a run's images: read batches from the bank, or generate and store them."""

from __future__ import annotations

import hashlib
from dataclasses import astuple
from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.config.functions import find, sources
from genfl_mpi.generation import model_folder, pipeline
from genfl_mpi.generation.bank import Bank, Batch
from genfl_mpi.util.errors import UserError, annotate_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from genfl_mpi.config.settings import Config

    Drawer = Callable[[Batch, tuple[int, ...]], np.ndarray]


class Generator:
    """The generator of a run, with its bank.

    config: resolved; shape: of a sample of the data set, such as (C, H, W). The model is loaded only when the
    bank lacks a batch.
    """

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        self.settings, self.shape = config.generation, shape
        settings = self.settings
        self.function: Drawer | None = None
        self.folder: Path | None = None
        self.adapter: Path | None = None
        if model_folder.is_function(settings.checkpoint):
            self.function = find(settings.checkpoint, {}, "generation.checkpoint")
            path = sources({"generation.checkpoint": settings.checkpoint}).get("generation.checkpoint")
            if path is None:
                raise UserError(
                    f"generation.checkpoint: the source file of {settings.checkpoint} cannot be read; "
                    "define the function in a Python file"
                )
            # The function's source file is taken to determine its images.
            self.identity: tuple[str, str | None] = hashlib.sha256(path.read_bytes()).hexdigest(), None
        elif len(shape) != 3:
            raise UserError(
                f"generation.checkpoint: {settings.checkpoint} generates images, and the samples of "
                f"data.name={config.data.name} are none; name a function of your own"
            )
        else:
            self.folder = model_folder.locate(settings.checkpoint)
            if settings.adapter is not None:
                self.adapter = model_folder.locate_adapter(settings.adapter, self.folder)
            for folder in filter(None, (self.folder, self.adapter)):
                model_folder.check_training_data(folder, config.data)
            if self.adapter:  # it may teach the checkpoint other classes
                model_folder.check_classes(self.adapter, config.data, "generation.adapter")
            else:
                model_folder.check_classes(self.folder, config.data, "generation.checkpoint")
            self.identity = (
                model_folder.digest(self.folder),
                model_folder.digest(self.adapter) if self.adapter else None,
            )
        if settings.scheduler is not None:
            model_folder.check_scheduler(settings.scheduler)
        if settings.size is not None and settings.size % 8:
            raise UserError(
                f"generation.size: {settings.size} is not a multiple of 8, which the latents need; "
                "set one that is"
            )
        # Everything besides prompt and seed that determines the bits of an image.
        names = (
            "negative_prompt",
            "scheduler",
            "steps",
            "guidance",
            "size",
            "batch_size",
            "dtype",
            "device",
            "save_memory",
        )
        on_gpu = settings.device == "cuda"
        self.bank = Bank(
            settings.bank,
            {
                "checkpoint": self.identity[0],
                "adapter": self.identity[1],
                "shape": list(shape),
                "resize": "bilinear, antialiased",
                "threads": None if on_gpu else settings.threads,
                **({"tf32": config.runtime.tf32} if on_gpu else {}),
                **{name: getattr(settings, name) for name in names},
            },
        )

    def has(self, batch: Batch) -> bool:
        """Check whether the bank holds a batch."""
        return batch in self.bank

    def images(self, batch: Batch) -> np.ndarray:
        """Return the images of a batch, uint8 (n, C, H, W), from the bank or generated now."""
        if batch in self.bank:
            return self.bank.read(batch)
        images = self._draw(batch)
        self.bank.write(batch, images)
        return images

    def load(self) -> Drawer:
        """Load the model now instead of at the first missing batch.

        Returns a function of (batch, shape) that generates images, uint8 (n, C, H, W). Raises UserError if
        checkpoint or adapter have changed since this object was constructed.
        """
        if self.function:
            return self._call_function
        assert self.folder is not None
        loaded = pipeline.load(self.folder, self.adapter, self.settings, self.identity)
        return lambda batch, shape: pipeline.generate_images(
            loaded, list(batch.prompt), batch.seed, self.settings, shape
        )

    def _draw(self, batch: Batch) -> np.ndarray:
        # Pad a short batch, so that every image is computed in a batch of the same size.
        full = Batch(
            *(values + values[-1:] * (self.settings.batch_size - len(batch)) for values in astuple(batch))
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(self.settings.threads or threads)
        try:
            return self.load()(full, self.shape)[: len(batch)]
        finally:
            torch.set_num_threads(threads)

    def _call_function(self, batch: Batch, shape: tuple[int, ...]) -> np.ndarray:
        """Generate images with the user's function. Raises UserError if it returns anything else."""
        assert self.function is not None
        with annotate_errors(f"generation.checkpoint {self.settings.checkpoint}"):
            images = self.function(batch, shape)
        wanted = (len(batch), *shape)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != wanted:
            got = (
                f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            )
            raise UserError(
                f"generation.checkpoint: {self.settings.checkpoint} must return a NumPy array uint8 "
                f"{wanted}, not {got}"
            )
        return images
