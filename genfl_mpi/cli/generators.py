"""Commands that train generators and measure the quality of their images."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from genfl_mpi.cli import launch
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from genfl_mpi.mpi.collectives import MPI


def _add_counts(parser: argparse.ArgumentParser) -> None:
    """Add the option for the numbers of images per class."""
    parser.add_argument(
        "--counts",
        default="10,100,300",
        help="images per class to measure with; counts that the bank does not have are skipped "
        "(default: %(default)s)",
    )


@launch.config_command(_add_counts, first=("bank", "folder of generated images"))
def quality(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say) -> Iterator[str]:
    """Measure the quality of the images in a bank.

    Compare the images in the folder BANK with the real data set of CONFIG, and draw
    a sheet of them with their labels, BANK/quality.png. For example:
      python -m genfl_mpi quality results/bank
    """
    from genfl_mpi.preparation.image_quality import quality

    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", options.counts):
        raise UserError(f"--counts {options.counts}: must be numbers, for example 10,100,300")
    counts = [int(count) for count in options.counts.split(",")]
    yield from quality(comm, options.bank, next(iter(runs.values())), counts)


@launch.config_command(needs=("prompts",))
def pretrain(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say) -> int:
    """Train a small generator on public images.

    Train a text-to-image pipeline in Stable Diffusion's format on public images,
    which no client holds, and write it to pretraining.output. For example:
      python -m genfl_mpi pretrain configs/cifar10_pool.yaml data.root=/data
    """
    from genfl_mpi.preparation.generator_training import pretrain

    pretrain(comm, next(iter(runs.values())), say)
    return 0


@launch.config_command()
def finetune(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say) -> int:
    """Train a LoRA adapter for a generator.

    Train an adapter for generation.checkpoint on a few real images per class, at
    the server or at the clients, on all ranks, and write it to finetuning.output.
    For example:
      mpirun -n 2 python -m genfl_mpi finetune finetuning.at=clients
    """
    from genfl_mpi.preparation.generator_training import finetune

    finetune(comm, next(iter(runs.values())), say)
    return 0
