"""A classifier that reads images: what judges and filters generated ones."""

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.learning import models
from genfl_mpi.learning.training import normalise, train
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.util import streams

# Steps of SGD for every classifier trained here, whatever the number of images, in whole passes; few images, of which the last batch of
# a pass has fewest, take some more: 100 in batches of 64, 1,280.
STEPS = 1000
MAX_BATCH = 100  # times the images: a larger batch size is the same, and would ask for passes without end


class Reader:
    """The configured model, trained on images with the configured learning rate and batch size.

    images: uint8 (n, C, H, W); labels: int (n,); about: the data set's `Description`; config: `Config`.
    """

    def __init__(self, images, labels, about, config, device):
        self.about, self.device, settings = about, device, config.training
        self.model = untrained(about, config, device)
        epochs = max(1, round(STEPS * min(settings.batch_size, MAX_BATCH * len(images)) / len(images)))
        train(
            self.model,
            self.model.weights.clone(),
            self.prepared(images),
            torch.from_numpy(np.array(labels, dtype=np.int64)).to(device),
            settings.model_copy(update={"epochs": epochs}),
            streams.generator(config.seed, "quality"),
        )
        self.model.module.eval()

    def prepared(self, images):
        """uint8 (n, C, H, W), NumPy, as the model wants them."""
        return normalise(torch.from_numpy(np.array(images)), self.about.mean, self.about.std, self.device)

    @torch.no_grad()
    def read(self, images):
        """Features (what the last dense layer is given) and logits of uint8 images, float64 NumPy."""
        last = [layer for layer in self.model.module.modules() if isinstance(layer, torch.nn.Linear)][-1]
        seen = []
        hook = last.register_forward_hook(lambda layer, given, _: seen.append(given[0].double().cpu()))
        logits = torch.cat(
            [self.model.module(chunk).double().cpu() for chunk in self.prepared(images).split(500)]
        )
        hook.remove()
        return torch.cat(seen).numpy(), logits.numpy()

    def fidelity(self, images, labels):
        """The probability, float64 (n,), that the classifier gives to the label of each image."""
        logits = torch.from_numpy(self.read(images)[1])
        return F.softmax(logits, dim=1)[torch.arange(len(labels)), torch.as_tensor(labels)].numpy()


def untrained(about, config, device):
    return FlatModel(
        models.build(config.model, len(about.classes), about.shape, streams.integer(config.seed, "init")),
        device,
    )
