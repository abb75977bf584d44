"""Predict seconds on a GPU from counts alone: FLOPs, bytes and kernel launches; a part of gpu.py.

    python benchmarks/gpu.py --parts prediction --device cpu

Counts one SGD step of the reference jobs' networks on the meta device. Everything in RATES is assumed, for an
H100: what large kernels of good libraries reach, not the data sheet. A step takes the longest of its
arithmetic, its memory traffic and its launches. Convolutions of ten small images fill a fraction of the GPU,
so a step that these bounds call short is bounded by its launches.
"""

from collections import Counter

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from genfl_mpi.config.sections.images import Generation
from genfl_mpi.generation import image_flops
from genfl_mpi.learning.flops import training_flops
from genfl_mpi.learning.memory import activation_bytes
from jobs import JOBS, network

RATES = {
    "float32": 50e12,  # FLOP/s
    "tf32": 350e12,
    "float16": 700e12,
    "memory": 3e12,  # bytes/s, read and written
    "eager": 6e-6,  # seconds that the host needs for a launch, autograd and Python included
    "graph": 2.5e-6,  # seconds of the smallest kernel of a CUDA graph, and until the next
}
# Kernels of an operation that launches several: gradients of inputs, weights and biases.
KERNELS = {"convolution_backward": 3, "native_dropout": 2}
WEIGHT_PASSES = 6  # reads and writes of the weights' size: forward, backward, gradient twice, update twice
ACTIVATION_PASSES = 4  # activations are written and read forwards and backwards


class Launches(TorchDispatchMode):
    """Count the operations that launch kernels: all that are not views."""

    def __init__(self):
        super().__init__()
        self.operations = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        aliases = [argument.alias_info for argument in function._schema.arguments]
        if not any(alias and not alias.is_write for alias in aliases):
            self.operations[function.overloadpacket.__name__] += 1
        return function(*arguments, **(keywords or {}))

    def kernels(self):
        return sum(KERNELS.get(name, 1) * count for name, count in self.operations.items())


def count_step(name):
    """Count FLOPs, bytes and kernels of a reference job's SGD step, as a dict."""
    job = JOBS[name]
    module = network(job, "channels_last").to("meta")
    weights = list(module.parameters())
    with Launches() as launches:
        images = torch.empty(job.batch, 3, 32, 32, device="meta")
        labels = torch.empty(job.batch, dtype=torch.int64, device="meta")
        F.cross_entropy(module(images), labels).backward()
        with torch.no_grad():
            torch._foreach_add_(weights, [parameter.grad for parameter in weights], alpha=-job.lr)
    size = sum(parameter.nbytes for parameter in weights)
    kept = activation_bytes(module, (3, 32, 32), job.batch)
    return {
        "flops": job.batch * training_flops(module, (3, 32, 32)),
        "bytes": WEIGHT_PASSES * size + ACTIVATION_PASSES * kept,
        "kernels": launches.kernels(),
    }


def predict_steps(counts, steps, together=1):
    """Seconds of `steps` SGD steps of `together` models each, by what bounds them."""
    flops, traffic = together * counts["flops"], together * counts["bytes"]
    bounds = {
        "float32": flops / RATES["float32"],
        "tf32": flops / RATES["tf32"],
        "memory": traffic / RATES["memory"],
        "eager": counts["kernels"] * RATES["eager"],
        "graph": counts["kernels"] * RATES["graph"],
    }
    seconds = {f"{name}_s": steps * bound for name, bound in bounds.items()}
    for launches in ("eager", "graph"):
        longest = max(bounds[name] for name in ("float32", "memory", launches))
        seconds[f"predicted_{launches}_s"] = steps * longest
    return seconds


def prediction(setting):
    """Yield the counts of R1, R2 and the paper's round, and the seconds that they predict.

    R1: a round. R2: 1,500 rounds, one by one and 50 clients side by side. The paper's round: ten clients of
    500 images and as many steps as in R1, five epochs, the augmented model on 100 images, and 100 images of
    Stable Diffusion v1.5.
    """
    steps = {name: -(-JOBS[name].samples // JOBS[name].batch) * JOBS[name].cohort for name in ("R1", "R2")}
    counts = {name: count_step(name) for name in steps}
    cohort, rounds = JOBS["R2"].cohort, 1500
    cases = {
        "R1, a round": ("R1", steps["R1"], 1),
        "R2, 1,500 rounds": ("R2", rounds * steps["R2"], 1),
        f"R2, 1,500 rounds, {cohort} clients together": ("R2", rounds * steps["R2"] // cohort, cohort),
        "paper's round, clients and augmented model": ("R1", 5 * (steps["R1"] + 2), 1),
    }
    for what, (name, count, together) in cases.items():
        step = counts[name]
        yield {
            "what": what,
            "steps": count,
            "gflop_per_step": 1e-9 * together * step["flops"],
            "mb_per_step": 1e-6 * together * step["bytes"],
            "kernels_per_step": step["kernels"],
            "tflop": 1e-12 * count * together * step["flops"],
            **predict_steps(step, count, together),
        }
    flops = image_flops.count_stable_diffusion(Generation(steps=20, guidance=7.0))
    seconds = 100 * flops.image / RATES["float16"]
    yield {
        "what": "paper's round, 100 images",
        "tflop": 1e-12 * 100 * flops.image,
        "weights": flops.weights,
        "float16_s": seconds,
        "images_per_s": 100 / seconds,
    }
