"""Run the floor of a reference job: the same SGD steps in a bare PyTorch loop on resident tensors.

    python benchmarks/floor.py R2 [--processes 2] [--threads 1] [--formats channels_last] [--optimizers fused]

Draws, sends, resets, averages, tests and writes nothing. The clients of a round are divided over the
processes, which start the round together; it lasts until the last process finishes. Uses no layer, kernel or
optimization of genfl_mpi. The code of this file is frozen, so that anything faster than the floor is faster
than plain PyTorch.
"""

import argparse
import itertools
import time

import torch
import torch.nn.functional as F

from jobs import FORMATS, JOBS, data, network, tell

OPTIMIZERS = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "flat": None,  # gradients are views of one vector, and a step is one operation on the whole
}


def flat_step(module, lr):
    """The step of SGD on one vector: (a function that prepares a backward pass, one that makes the step)."""
    parameters = list(module.parameters())
    weights = torch.cat(
        [
            p.detach().permute(0, 2, 3, 1).flatten() if p.dim() == 4 else p.detach().flatten()
            for p in parameters
        ]
    )
    gradient, start = torch.zeros_like(weights), 0
    for parameter in parameters:
        views = [vector[start : start + parameter.numel()] for vector in (weights, gradient)]
        if parameter.dim() == 4:
            outputs, inputs, height, width = parameter.shape
            views = [view.view(outputs, height, width, inputs).permute(0, 3, 1, 2) for view in views]
        parameter.data, parameter.grad = (
            view.view(parameter.shape) if parameter.dim() != 4 else view for view in views
        )
        start += parameter.numel()
    return gradient.zero_, lambda: weights.sub_(gradient, alpha=lr)


def work(process, options, barrier):
    torch.set_num_threads(options.threads)
    job = JOBS[options.job]
    for memory_format, name in itertools.product(options.formats, options.optimizers):
        torch.manual_seed(process)
        module, of_client = network(job, memory_format), data(job, memory_format)
        if name == "flat":
            prepare, step = flat_step(module, job.lr)
        else:
            optimizer = torch.optim.SGD(module.parameters(), job.lr, **OPTIMIZERS[name])
            prepare, step = optimizer.zero_grad, optimizer.step
        for round in range(-1, options.rounds):  # the first warms up
            barrier.wait()
            start = time.perf_counter()
            for client in range(process, options.clients or job.cohort, options.processes):
                images, labels = of_client(client)
                for batch in torch.randperm(job.samples).tensor_split(-(-job.samples // job.batch)):
                    prepare()
                    F.cross_entropy(module(images[batch]), labels[batch]).backward()
                    step()
            barrier.wait()
            if process == 0 and round >= 0:
                tell(round=time.perf_counter() - start, format=memory_format, optimizer=name)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--clients", type=int, help="of a round; default: the job's cohort")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    spawn = torch.multiprocessing.get_context("spawn")
    torch.multiprocessing.spawn(work, (options, spawn.Barrier(options.processes)), nprocs=options.processes)


if __name__ == "__main__":
    main()
