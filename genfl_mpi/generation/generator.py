"""The server's generator: batches of images from the bank, or made and put there."""

from genfl_mpi.generation import checkpoint, pipeline
from genfl_mpi.generation.bank import Bank


class Generator:
    """settings: config.generation with dtype resolved; shape: (C, H, W) of the data set; threads: of this rank.

    Nothing heavy happens before the first image that the bank does not have.
    """

    def __init__(self, settings, shape, threads, device):
        self.settings, self.shape, self.device = settings, shape, device
        self.folder = checkpoint.locate(settings.checkpoint)
        # Everything but prompt and seed that an image's bits depend on.
        self.bank = Bank(settings.bank, {
            "checkpoint": checkpoint.digest(self.folder), "steps": settings.steps, "guidance": settings.guidance,
            "shape": list(shape), "batch_size": settings.batch_size, "dtype": settings.dtype, "device": device.type,
            "threads": threads if device.type == "cpu" else None,
        })

    def ready(self, batch):
        return batch in self.bank

    def images(self, batch):
        """uint8 (n, C, H, W) of a `Batch`."""
        if batch not in self.bank:
            self.bank.write(batch, self._draw(batch))
        return self.bank.read(batch)

    def _draw(self, batch):
        # A short batch is filled up, so that every image is computed in a batch of the same size.
        padding = self.settings.batch_size - len(batch)
        model = pipeline.load(self.folder, self.settings.dtype, self.device)
        images = pipeline.draw(model, [*batch.prompt, *batch.prompt[-1:] * padding], [*batch.seed, *batch.seed[-1:] * padding],
                               self.settings.steps, self.settings.guidance, self.shape)
        return images[: len(batch)]
