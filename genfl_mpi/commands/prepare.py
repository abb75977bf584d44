"""What may come before a run: the data fetched and looked at, and the images asked for and made."""

from genfl_mpi.commands import launch
from genfl_mpi.errors import UserError


def prefetch(arguments):
    parser = launch.parser_of(
        "prefetch", "Download what CONFIG needs, on a machine with a network: the data set into\n"
        "data.root, and the generator's checkpoint into the local Hugging Face cache.\n"
        "For example:\n  python -m genfl_mpi prefetch configs/cifar10.yaml data.download=true")

    def command(comm, options, runs, say):
        from genfl_mpi.ahead import prefetch

        if comm.rank == 0:
            for line in prefetch(runs.values()):
                say(line)
        return 0

    return launch.with_config(parser, arguments, command)


def partition(arguments):
    parser = launch.parser_of(
        "partition", "Print how the clients' data differ: sizes, labels, earth mover's distances; and\n"
        "draw the client x class picture into output/partition.png. For example:\n"
        "  python -m genfl_mpi partition partition.scheme=shards clients=50")

    def command(comm, options, runs, say):
        from genfl_mpi.ahead import partition

        for line in partition(comm, next(iter(runs.values()))):
            say(line)
        return 0

    return launch.with_config(parser, arguments, command)


def prompts(arguments):
    parser = launch.parser_of(
        "prompts", "Print the prompts of the first round, and how many images each round asks for.\n"
        "For example:\n  python -m genfl_mpi prompts generation.plan=deficit")

    def command(comm, options, runs, say):
        from genfl_mpi.ahead import prompts

        generating = [run for run in runs.values() if run.generates]
        if not generating:
            raise UserError("method=fedavg generates nothing; choose genfl or aigc")
        for line in prompts(comm, generating[0]):
            say(line)
        return 0

    return launch.with_config(parser, arguments, command)


def generate(arguments):
    parser = launch.parser_of(
        "generate", "Make the images that the runs of CONFIG will need, over all ranks, and put them\n"
        "into the bank. Started again, it makes what is missing. For example:\n"
        "  mpirun -n 2 python -m genfl_mpi generate")

    def command(comm, options, runs, say):
        from genfl_mpi.ahead import generate

        generate(comm, [run for run in runs.values() if run.generates], say)
        return 0

    return launch.with_config(parser, arguments, command)
