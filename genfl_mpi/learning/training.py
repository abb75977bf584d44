"""Local SGD: what a client does with its data, and the server with the generated images."""

import math
import operator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F


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
    return images.to(device).float().div_(255).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def at_round(settings, round):
    """config.training with the learning rate of a round, of which the first is 0."""
    factor = {
        "constant": 1.0, "exponential": settings.decay**round, "step": settings.decay ** (round // settings.period),
        "cosine": (1 + math.cos(math.pi * min(round, settings.period - 1) / settings.period)) / 2,
    }[settings.schedule]
    return settings.model_copy(update={"lr": settings.lr * factor})


def batches(count, batch_size, rng):
    """Index tensors that cover 0..count-1 once in random order: as few as there can be of `batch_size`, equally large but for
    one sample. (A small rest at the end would make the last step the noisiest: a rest of 4 images cost ten points of accuracy.)"""
    order = torch.from_numpy(rng.permutation(count))
    return order.tensor_split(local_batches(count, batch_size))


def local_batches(samples, batch_size):
    """Steps of an epoch over each number of samples."""
    return -(-samples // batch_size)


def sgd(parameters, settings, mu=0.0, begun=(), correction=()):
    """A function that makes one step of SGD with the parameters' gradients, with momentum and weight decay as torch.optim.SGD has
    them, and takes the gradients away. It does nothing else to a weight, so that each is read and written once a step.

    parameters: a list of tensors. mu, begun: FedProx's pull towards `begun`; correction: is added to the gradients; both in lists
    like `parameters`.
    """
    parameters = list(parameters)
    velocity = [torch.zeros_like(parameter) for parameter in parameters] if settings.momentum else None

    @torch.no_grad()
    def step():
        direction = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
        if mu:
            torch._foreach_add_(direction, torch._foreach_sub(parameters, begun), alpha=mu)
        if correction:
            torch._foreach_add_(direction, correction)
        if settings.weight_decay:
            torch._foreach_add_(direction, parameters, alpha=settings.weight_decay)
        if velocity is not None:
            torch._foreach_mul_(velocity, settings.momentum)
            torch._foreach_add_(velocity, direction)
        torch._foreach_add_(parameters, direction if velocity is None else velocity, alpha=-settings.lr)
        for parameter in parameters:
            parameter.grad = None  # the next backward pass then writes its own, and nothing need be zeroed or added up

    return step


def augment(images, settings, rng):
    """Images mirrored and shifted at random, as settings (config.training) has it; float32 (n, C, H, W) on any device."""
    count, channels, height, width = images.shape

    def on_device(values):
        return torch.from_numpy(values).to(images.device)

    if settings.flip:
        mirrored = on_device(rng.random(count) < 0.5)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if settings.crop:
        padded = F.pad(images, (settings.crop,) * 4, mode="reflect")
        down, right = on_device(rng.integers(0, 2 * settings.crop + 1, (2, count)))
        rows, columns = (shift[:, None] + torch.arange(size, device=images.device) for shift, size in ((down, height), (right, width)))
        which, channel = (torch.arange(size, device=images.device) for size in (count, channels))
        images = padded[which[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
    return images


@contextmanager
def _lent(seed, device):
    """Lend the device's global stream, which dropout draws from, and give it back as it was. (torch.manual_seed would seed every
    kind of device and, where there is no GPU, write down the stack each time: as long as a step of a small network.)"""
    stream = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    before = stream.get_state()
    stream.manual_seed(seed)
    try:
        yield
    finally:
        stream.set_state(before)


def train(model, start, images, labels, settings, rng, mu=0.0, correction=None):
    """Run SGD from the weights `start`; the result is model.weights. Returns a `Report`.

    model: FlatModel; start: float32 (size,); images: float32 (n, C, H, W) and labels: int64 (n,) on the model's device;
    settings: config.training; rng: NumPy generator that orders the batches and seeds dropout, and whose child augments;
    mu: FedProx's pull (Li et al. 2020): mu / 2 times the squared distance of the parameters to `start` joins the loss;
    correction: float32 (parameters,), added to every gradient (SCAFFOLD).
    """
    model.weights.copy_(start)
    model.module.train()
    begun = model.split(start[: model.parameters].to(model.weights.device)) if mu else ()
    step = sgd(model.module.parameters(), settings, mu, begun, () if correction is None else model.split(correction))
    dropping, augmenting = int(rng.integers(2**63)), rng.spawn(1)[0] if settings.crop or settings.flip else None
    losses, sizes, outputs, targets = [], [], [], []  # looked at after the last step, so that none waits for the device
    with _lent(dropping, images.device):
        for epoch in range(settings.epochs):
            for batch in batches(len(images), settings.batch_size, rng):
                batch = batch.to(images.device)
                target = labels[batch]
                with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
                    logits = model.module(augment(images[batch], settings, augmenting))
                loss = F.cross_entropy(logits.float(), target)
                loss.backward()
                step()
                losses.append(loss.detach())
                sizes.append(len(batch))
                if epoch == settings.epochs - 1:
                    outputs.append(logits.detach())
                    targets.append(target)
    correct = (torch.cat(outputs).argmax(1) == torch.cat(targets)).sum()
    *losses, correct = torch.cat([torch.stack(losses).double(), correct[None]]).tolist()  # the one wait
    steps = len(losses) // settings.epochs
    first, last = (sum(map(operator.mul, losses[part], sizes[part])) / len(images) for part in (slice(steps), slice(-steps, None)))
    return Report(len(images), first, last, correct / len(images))
