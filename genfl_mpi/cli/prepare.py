"""Commands to use before a run: check the setup, inspect data and prompts, generate images ahead of time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from genfl_mpi.cli import launch
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from genfl_mpi.mpi.collectives import MPI


@launch.config_command()
def doctor(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say) -> int:
    """Check the setup and suggest fixes.

    Check MPI, ranks, cores, GPUs, versions, files, messages, and the data set and
    generator of CONFIG. Print what to fix and how. Exit status 2 means that
    something must be fixed. Start it in the same way as the run. For example:
      mpirun -n 2 python -m genfl_mpi doctor
      sbatch jobs/gpu.sh doctor configs/cifar10.yaml data.root=/data
    """
    from genfl_mpi.preparation.doctor import doctor

    return doctor(comm, runs, say)


@launch.config_command()
def prefetch(
    comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say
) -> Iterator[str]:
    """Download data set, weights and checkpoint.

    Download what CONFIG needs, on a machine with network access: the data set into
    data.root, pretrained weights and the generator's checkpoint into their caches.
    For example:
      python -m genfl_mpi prefetch configs/cifar10.yaml data.download=true
    """
    from genfl_mpi.preparation.prefetch import prefetch

    if comm.rank == 0:
        yield from prefetch(runs.values())


def models(arguments: Sequence[str]) -> int:
    """List networks with parameters, bytes, FLOPs and seconds."""
    parser = launch.command_parser(
        "models",
        "List the networks that model.name takes, for the data set of the settings, with\n"
        "parameters, megabytes that a client sends, FLOPs of a training step on one\n"
        "sample, and seconds of a step on this machine. For a library, list the names of\n"
        "its networks.\n"
        "For example:\n"
        "  python -m genfl_mpi models\n"
        "  python -m genfl_mpi models torchvision\n"
        "  python -m genfl_mpi models torchvision:resnet18 model.trained=lora",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME|LIBRARY|key=value",
        help="networks (default: all of this package), torchvision or timm, or settings",
    )
    parser.add_argument("--no-measure", action="store_true", help="do not measure seconds of a step")
    options = launch.parse_once(parser, arguments)
    names = [one for one in options.names if "=" not in one]
    overrides = [one for one in options.names if "=" in one]

    from genfl_mpi.config import loading

    def command(comm: MPI.Comm, runs: launch.Runs, say: launch.Say) -> int:
        from genfl_mpi.preparation.model_table import describe

        if comm.rank == 0:
            for line in describe(next(iter(runs.values())), names, not options.no_measure):
                say(line)
        return 0

    return launch.on_all_ranks(lambda: loading.load(None, ["method=fedavg", *overrides]), command)


@launch.config_command(needs=())
def partition(
    comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say
) -> Iterator[str]:
    """Print and plot how the clients' data differ.

    Print the clients' sizes, labels and earth mover's distances, and plot the
    samples per client and class into output/partition.png. For example:
      python -m genfl_mpi partition partition.scheme=shards clients=50
    """
    from genfl_mpi.preparation.preview import partition

    yield from partition(comm, next(iter(runs.values())))


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="also list the prompt and seed of each image of the first round",
    )


@launch.config_command(_add_verbose)
def prompts(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say) -> Iterator[str]:
    """Print the prompts and the number of images per round.

    Print how many images and distinct prompts each class gets, with examples, and
    the number of images of each round.
    For example:
      python -m genfl_mpi prompts generation.plan=deficit
    """
    from genfl_mpi.preparation.preview import prompts

    generating = [run for run in runs.values() if run.generates]
    if not generating:
        raise UserError("these runs generate no images; choose method=genfl, aigc, sent or filled")
    yield from prompts(comm, generating[0], options.verbose)


@launch.config_command()
def generate(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say) -> int:
    """Fill the image bank ahead of time, on all ranks.

    Generate the images that the runs of CONFIG will need, and store them in the
    bank. When started again, it generates the missing images. For example:
      mpirun -n 2 python -m genfl_mpi generate
    """
    from genfl_mpi.mpi.signals import Signals
    from genfl_mpi.preparation.fill_bank import generate

    with Signals(comm) as signals:
        return generate(comm, [run for run in runs.values() if run.generates], say, signals)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that describe a cluster."""
    parser.add_argument("-n", "--ranks", type=int, required=True, help="number of ranks of the run")
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes (default: %(default)s)")
    parser.add_argument(
        "--cores",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="cores per node (default: %(default)s, as on this one)",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        help="GPUs per node whose memory use is predicted, even if this machine has none "
        "(default: this node's, if the run uses them)",
    )
    parser.add_argument(
        "--latency",
        type=float,
        default=2.0,
        help="latency of a message between nodes, microseconds (default: %(default)s)",
    )
    parser.add_argument(
        "--bandwidth",
        type=float,
        default=100.0,
        help="network bandwidth of a node, Gbit/s (default: %(default)s)",
    )

    parser.add_argument(
        "--sweep", action="store_true", help="predict all runs of CONFIG: hours, core-hours and energy"
    )
    parser.add_argument(
        "--watts",
        type=float,
        default=500.0,
        help="power of a node while it computes, W, for --sweep (default: %(default)s)",
    )


@launch.config_command(_add_cluster)
def plan(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say) -> Iterator[str]:
    """Predict time, memory and bytes of a run.

    Predict seconds, memory, bytes and the best number of ranks for the first run of
    CONFIG on RANKS ranks, after a few seconds of measurements on this machine.
    Under mpirun all ranks measure at once, as they would compute. With --sweep,
    predict the hours, core-hours and energy of all runs together. For example:
      mpirun -n 2 python -m genfl_mpi plan configs/cifar10.yaml -n 64 --nodes 4
      python -m genfl_mpi plan configs/fig5.yaml -n 64 --sweep --watts 400
    """
    from genfl_mpi.config.remarks import remarks
    from genfl_mpi.mpi.round_time import Cluster
    from genfl_mpi.preparation import plan as planning
    from genfl_mpi.preparation import sweep_plan

    for name in ("ranks", "nodes", "cores", "latency", "bandwidth", "gpus", "watts"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            raise UserError(f"--{name} {getattr(options, name)}: must be above 0")
    if options.nodes > options.ranks:
        raise UserError(f"--nodes {options.nodes}: more nodes than ranks ({options.ranks}); reduce --nodes")
    cluster = Cluster(
        options.ranks,
        options.nodes,
        options.cores,
        1,
        options.latency / 1e6,
        options.bandwidth * 1e9 / 8,
        0.0,
    )
    if comm.rank == 0:
        yield from remarks(options.config, options.overrides, runs)
    if options.sweep:
        yield from sweep_plan.describe(comm, runs, cluster, options.watts)
        return
    name, config = next(iter(runs.items()))
    if comm.rank == 0 and len(runs) > 1:
        yield f"the first of {len(runs)} runs; --sweep predicts all of them"
    yield from planning.describe(comm, config, cluster, name, options.gpus)
