"""Generators made and judged."""

import re

from genfl_mpi.cli import launch
from genfl_mpi.util.errors import UserError


def quality(arguments):
    parser = launch.parser_of_config(
        "quality",
        "Judge the images in the folder BANK against the real data set of CONFIG, and\n"
        "draw a labelled sheet of them, BANK/quality.png. For example:\n"
        "  python -m genfl_mpi quality results/bank",
        first="bank",
    )
    parser.add_argument(
        "--counts",
        default="10,100,300",
        help="images a class to judge by, as far as there are so many (default: %(default)s)",
    )

    def lines(comm, options, runs):
        from genfl_mpi.preparation.image_quality import quality

        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", options.counts):
            raise UserError(f"--counts {options.counts}: must be numbers, for example 10,100,300")
        yield from quality(
            comm, options.bank, next(iter(runs.values())), [int(count) for count in options.counts.split(",")]
        )

    return launch.print_of_config(parser, arguments, lines)


def pretrain(arguments):
    parser = launch.parser_of_config(
        "pretrain",
        "Train a small text-to-image pipeline in Stable Diffusion's format on public\n"
        "images, which no client holds, and write it to pretraining.output. For example:\n"
        "  python -m genfl_mpi pretrain configs/cifar10_pool.yaml data.root=/data",
    )

    def command(comm, options, runs, say):
        from genfl_mpi.preparation.generator_training import pretrain

        pretrain(comm, next(iter(runs.values())), say)
        return 0

    return launch.with_config(parser, arguments, command)


def finetune(arguments):
    parser = launch.parser_of_config(
        "finetune",
        "Train a LoRA adapter for generation.checkpoint on a few real images of each\n"
        "class, at the server or at the clients, over all ranks, and write it to\n"
        "finetuning.output. For example:\n"
        "  mpirun -n 2 python -m genfl_mpi finetune finetuning.at=clients",
    )

    def command(comm, options, runs, say):
        from genfl_mpi.preparation.generator_training import finetune

        finetune(comm, next(iter(runs.values())), say)
        return 0

    return launch.with_config(parser, arguments, command)
