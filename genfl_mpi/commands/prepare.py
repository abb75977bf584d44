"""What may come before a run: the data fetched and looked at, and the images asked for and made."""

import os

from genfl_mpi.commands import launch
from genfl_mpi.errors import UserError


def doctor(arguments):
    parser = launch.parser_of_config(
        "doctor", "Examine the set-up: MPI, ranks, cores, GPUs, versions, files, data set and\n"
        "generator of CONFIG, messages; and say what to mend, and how. The exit status is\n"
        "2 if there is something. Start it as you would start the run. For example:\n"
        "  mpirun -n 2 python -m genfl_mpi doctor\n"
        "  sbatch jobs/gpu.sh doctor configs/cifar10.yaml data.root=/data")

    def command(comm, options, runs, say):
        from genfl_mpi.doctor import doctor

        return doctor(comm, runs, say)

    return launch.with_config(parser, arguments, command)


def prefetch(arguments):
    parser = launch.parser_of_config(
        "prefetch", "Download what CONFIG needs, on a machine with a network: the data set into\n"
        "data.root, and the generator's checkpoint into the local Hugging Face cache.\n"
        "For example:\n  python -m genfl_mpi prefetch configs/cifar10.yaml data.download=true")

    def lines(comm, options, runs):
        from genfl_mpi.ahead import prefetch

        if comm.rank == 0:
            yield from prefetch(runs.values())

    return launch.print_of_config(parser, arguments, lines)


def partition(arguments):
    parser = launch.parser_of_config(
        "partition", "Print how the clients' data differ: sizes, labels, earth mover's distances; and\n"
        "draw the client x class picture into output/partition.png. For example:\n"
        "  python -m genfl_mpi partition partition.scheme=shards clients=50")

    def lines(comm, options, runs):
        from genfl_mpi.ahead import partition

        yield from partition(comm, next(iter(runs.values())))

    return launch.print_of_config(parser, arguments, lines)


def prompts(arguments):
    parser = launch.parser_of_config(
        "prompts", "Print the prompts of the first round, and how many images each round asks for.\n"
        "For example:\n  python -m genfl_mpi prompts generation.plan=deficit")

    def lines(comm, options, runs):
        from genfl_mpi.ahead import prompts

        generating = [run for run in runs.values() if run.generates]
        if not generating:
            raise UserError("method=fedavg generates nothing; choose genfl or aigc")
        yield from prompts(comm, generating[0])

    return launch.print_of_config(parser, arguments, lines)


def generate(arguments):
    parser = launch.parser_of_config(
        "generate", "Make the images that the runs of CONFIG will need, over all ranks, and put them\n"
        "into the bank. Started again, it makes what is missing. For example:\n"
        "  mpirun -n 2 python -m genfl_mpi generate")

    def command(comm, options, runs, say):
        from genfl_mpi.ahead import generate
        from genfl_mpi.mpi.signals import Signals

        with Signals(comm) as signals:
            return generate(comm, [run for run in runs.values() if run.generates], say, signals)

    return launch.with_config(parser, arguments, command)


def plan(arguments):
    parser = launch.parser_of_config(
        "plan", "Predict what the first run of CONFIG takes on RANKS ranks: seconds, memory,\n"
        "bytes and the best number of ranks, after some seconds of measuring here. Under\n"
        "mpirun all ranks measure at once, as they would compute. For example:\n"
        "  mpirun -n 2 python -m genfl_mpi plan configs/cifar10.yaml -n 64 --nodes 4")
    parser.add_argument("-n", "--ranks", type=int, required=True, help="ranks of the run")
    parser.add_argument("--nodes", type=int, default=1, help="nodes that they are on (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="cores of a node (default: this one's, %(default)s)")
    parser.add_argument("--gpus", type=int,
                        help="GPUs of a node, of which to predict the memory, here or not (default: this one's, if the run is on them)")
    parser.add_argument("--latency", type=float, default=2.0, help="of a message between nodes, microseconds (default: %(default)s)")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="of a node's network, Gbit/s (default: %(default)s)")

    def lines(comm, options, runs):
        from genfl_mpi import plan as planning
        from genfl_mpi.prediction import Cluster

        for name in ("ranks", "nodes", "cores", "latency", "bandwidth", "gpus"):
            if getattr(options, name) is not None and not getattr(options, name) > 0:
                raise UserError(f"--{name} {getattr(options, name)}: must be above 0")
        if options.nodes > options.ranks:
            raise UserError(f"--nodes {options.nodes}: there are fewer ranks, {options.ranks}")
        cluster = Cluster(options.ranks, options.nodes, options.cores, 1, options.latency / 1e6, options.bandwidth * 1e9 / 8, 0.0)
        name, config = next(iter(runs.items()))
        yield from planning.command(comm, config, cluster, name, options.gpus)

    return launch.print_of_config(parser, arguments, lines)
