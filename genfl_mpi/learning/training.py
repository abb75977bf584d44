"""Local SGD: what a client does with its data, and the server with the generated images."""

import math
import operator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat

import torch

from genfl_mpi.learning.batches import augment, draw, on_device
from genfl_mpi.learning.steps import steps_of
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line


@dataclass(frozen=True)
class Report:
    """Of one local training: mean loss over its first and its last epoch, the accuracy during the last, and the samples."""

    samples: int
    loss_first_epoch: float
    loss_last_epoch: float
    accuracy_last_epoch: float

    def check(self):
        """Raise ArithmeticError if a loss is not finite."""
        for loss in (self.loss_first_epoch, self.loss_last_epoch):
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is not finite: {loss}; a smaller learning rate may help")


def normalise(images, mean, std, device):
    """uint8 (n, C, H, W) to float32 on `device`: pixels in [0, 1], then less the mean and over the deviation; in memory with
    the channels last, as the kernels have them."""
    mean, std = (torch.tensor(x, device=device).view(1, -1, 1, 1) for x in (mean, std))
    return (
        images.to(device).float().div_(255).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
    )


def at_round(settings, round):
    """config.training with the learning rate of a round, of which the first is 0."""
    factor = {
        "constant": 1.0,
        "exponential": settings.decay**round,
        "step": settings.decay ** (round // settings.period),
        "cosine": (1 + math.cos(math.pi * min(round, settings.period - 1) / settings.period)) / 2,
    }[settings.schedule]
    return settings.model_copy(update={"lr": settings.lr * factor})


def stream_of(device):
    """The device's global `torch.Generator`."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator


@contextmanager
def lent(seed, device):
    """Lend the device's global stream, which dropout draws from, and give it back as it was. (torch.manual_seed would seed every
    kind of device and, where there is no GPU, write down the stack each time: as long as a step of a small network.)"""
    stream = stream_of(device)
    before = stream.get_state()
    stream.manual_seed(seed)
    try:
        yield
    finally:
        stream.set_state(before)


def train(model, start, images, labels, settings, rng, mu=0.0, correction=None, anchor=None):
    """Run SGD from the weights `start`; the result is model.weights. Returns a `Report`.

    model: FlatModel; start: float32 (size,); images: float32 (n, C, H, W) and labels: int64 (n,) on the model's device;
    settings: config.training; rng: NumPy generator, for `draw`;
    mu: of a proximal term (FedProx, Li et al. 2020): mu / 2 times the squared distance of the parameters to those of `anchor`,
    float32 (size,), by default `start`, joins the loss; correction: float32 (parameters,), added to every gradient (SCAFFOLD).
    """
    drawn, device = draw(len(images), settings, rng), images.device
    order = on_device(drawn.order, device).split(drawn.sizes)
    moves = repeat(None) if drawn.moves is None else on_device(drawn.moves, device).split(drawn.sizes, 1)
    last = len(order) - len(order) // settings.epochs  # the first step of the last epoch
    step = steps_of(model, settings, mu, correction is not None)
    losses, outputs, targets = [], [], []  # looked at after the last step, so that none waits for the device
    with lent(drawn.dropping, device):
        step.begin(start, correction, anchor)
        for number, (batch, move) in enumerate(zip(order, moves)):
            target = labels[batch]
            try:
                loss, logits = step(augment(images[batch], settings, move), target)
            except ValueError as error:
                if len(target) > 1:
                    raise
                raise UserError(
                    f"the model cannot be trained on a batch of a single sample: {first_line(error)}; set another "
                    "batch_size, of `training` or `augmented`, or let there be more images"
                ) from error
            losses.append(loss)
            if number >= last:
                outputs.append(logits)
                targets.append(target)
    model.gather()
    correct = (torch.cat(outputs).argmax(1) == torch.cat(targets)).sum()
    *losses, correct = torch.cat([torch.stack(losses).double(), correct[None]]).tolist()  # the one wait
    return report(losses, correct, drawn.sizes, settings.epochs)


def combined(reports):
    """The `Report` of local trainings that followed one another: the first epoch of the first, the last of the last."""
    first, last = reports[0], reports[-1]
    return Report(last.samples, first.loss_first_epoch, last.loss_last_epoch, last.accuracy_last_epoch)


def report(losses, correct, sizes, epochs):
    """A `Report` from the mean loss and the samples of each step, and the correct predictions of the last epoch."""
    steps = len(losses) // epochs
    samples = sum(sizes[:steps])
    first, last = (
        sum(map(operator.mul, losses[part], sizes[part])) / samples
        for part in (slice(steps), slice(-steps, None))
    )
    return Report(samples, first, last, correct / samples)
