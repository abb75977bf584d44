"""The generator of a run: batches of images from the bank, or made and put there."""

import torch

from genfl_mpi.generation import checkpoint, pipeline
from genfl_mpi.generation.bank import Bank


class Generator:
    """config: `Config`, resolved; shape: (C, H, W) of the data set.

    Nothing heavy happens before the first image that the bank does not have.
    """

    def __init__(self, config, shape):
        self.settings, self.shape = config.generation, shape
        settings = self.settings
        self.folder = checkpoint.locate(settings.checkpoint)
        self.adapter = settings.adapter and checkpoint.locate_adapter(settings.adapter, self.folder)
        for folder in filter(None, (self.folder, self.adapter)):
            checkpoint.check_public(folder, config.data)
        pipeline.check(settings)
        # Everything but prompt and seed that an image's bits depend on.
        names = ("negative_prompt", "scheduler", "steps", "guidance", "size", "batch_size", "dtype", "device", "save_memory")
        self.bank = Bank(settings.bank, {
            "checkpoint": checkpoint.digest(self.folder), "adapter": self.adapter and checkpoint.digest(self.adapter), "shape": list(shape), "resize": "bilinear, antialiased",
            "threads": settings.threads if settings.device == "cpu" else None,
            **{name: getattr(settings, name) for name in names},
        })

    def ready(self, batch):
        return batch in self.bank

    def images(self, batch):
        """uint8 (n, C, H, W) of a `Batch`."""
        if batch not in self.bank:
            self.bank.write(batch, self._draw(batch))
        return self.bank.read(batch)

    def load(self):
        """Load the pipeline now, which otherwise waits for the first image to be made."""
        return pipeline.load(self.folder, self.adapter, self.settings)

    def _draw(self, batch):
        # A short batch is filled up, so that every image is computed in a batch of the same size.
        padding = self.settings.batch_size - len(batch)
        prompts, seeds = [*batch.prompt, *batch.prompt[-1:] * padding], [*batch.seed, *batch.seed[-1:] * padding]
        threads = torch.get_num_threads()
        torch.set_num_threads(self.settings.threads)
        try:
            return pipeline.draw(self.load(), prompts, seeds, self.settings, self.shape)[: len(batch)]
        finally:
            torch.set_num_threads(threads)
