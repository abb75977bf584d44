"""Commands that train generators and measure the quality of their images."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from genfl_mpi.cli import launch
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from genfl_mpi.mpi.collectives import MPI


def quality(arguments: Sequence[str]) -> int:
    """Measure the quality of the images in a bank."""
    parser = launch.config_parser(
        "quality",
        "Measure the quality of the images in the folder BANK against the real data set\n"
        "of CONFIG, and draw a labelled sheet of them, BANK/quality.png. For example:\n"
        "  python -m genfl_mpi quality results/bank",
        first=("bank", "folder of generated images"),
    )
    parser.add_argument(
        "--counts",
        default="10,100,300",
        help="images per class to measure with; counts that the bank does not have are skipped "
        "(default: %(default)s)",
    )

    def lines(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs) -> Iterator[str]:
        from genfl_mpi.preparation.image_quality import quality

        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", options.counts):
            raise UserError(f"--counts {options.counts}: must be numbers, for example 10,100,300")
        yield from quality(
            comm, options.bank, next(iter(runs.values())), [int(count) for count in options.counts.split(",")]
        )

    return launch.print_with_config(parser, arguments, lines)


def pretrain(arguments: Sequence[str]) -> int:
    """Train a small generator on public images."""
    parser = launch.config_parser(
        "pretrain",
        "Train a small text-to-image pipeline in Stable Diffusion's format on public\n"
        "images, which no client holds, and write it to pretraining.output. For example:\n"
        "  python -m genfl_mpi pretrain configs/cifar10_pool.yaml data.root=/data",
    )

    def command(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say) -> int:
        from genfl_mpi.preparation.generator_training import pretrain

        pretrain(comm, next(iter(runs.values())), say)
        return 0

    return launch.with_config(parser, arguments, command)


def finetune(arguments: Sequence[str]) -> int:
    """Train a LoRA adapter for a generator."""
    parser = launch.config_parser(
        "finetune",
        "Train a LoRA adapter for generation.checkpoint on a few real images per class,\n"
        "at the server or at the clients, on all ranks, and write it to\n"
        "finetuning.output. For example:\n"
        "  mpirun -n 2 python -m genfl_mpi finetune finetuning.at=clients",
    )

    def command(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say) -> int:
        from genfl_mpi.preparation.generator_training import finetune

        finetune(comm, next(iter(runs.values())), say)
        return 0

    return launch.with_config(parser, arguments, command)
