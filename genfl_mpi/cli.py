"""The commands. Nothing is computed here."""

import argparse
import os
import re
import sys
import time
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path

from genfl_mpi import __version__
from genfl_mpi.errors import UserError

EPILOG = """\
examples:
  mpirun -n 4 python -m genfl_mpi                       the default
  mpirun -n 4 python -m genfl_mpi 'sweep.seed=[1,2,3]'  with three seeds
  mpirun -n 2 python -m genfl_mpi generate              its images ahead of time
  mpirun -n 8 python -m genfl_mpi configs/cifar10.yaml data.root=/data rounds=50
  python -m genfl_mpi show results/default/genfl_seed1.h5
  python -m genfl_mpi digest results/default/*.h5

settings (key: default, meaning):
"""


def main(arguments=None):
    """Run one command; returns the exit status: 0, 2 for what the user can mend, 1 for what failed, or 75 and 130 for a run that
    was asked to leave, by a batch system or by Ctrl-C, and that the same command continues."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {
        "run": _run, "fork": _fork, "prefetch": _prefetch, "partition": _partition, "prompts": _prompts, "generate": _generate,
        "quality": _quality, "pretrain": _pretrain, "finetune": _finetune, "plot": _plot, "claims": _claims, "price": _price,
        "show": _show, "digest": _digest}
    verb = arguments[0] if arguments and arguments[0] in commands else None
    return commands[verb or "run"](arguments[1:] if verb else arguments)


def _run(arguments):
    parser = _parser(
        "", "Simulate generative federated learning (GenFL) over MPI: by default the paper's\n"
        "three methods on real handwritten digits. Started again, it skips the runs that\n"
        "are finished and continues the others. Other commands, each with --help:\n"
        "  fork       go on from a round of a finished run in another way\n"
        "  prefetch   download data set and checkpoint\n"
        "  partition  print and draw how the clients' data differ\n"
        "  prompts    print what the generator would be asked\n"
        "  generate   fill the bank of images ahead of time, over all ranks\n"
        "  quality    judge the images of a bank\n"
        "  pretrain   train a small generator on public images\n"
        "  finetune   train a LoRA adapter for a generator\n"
        "  plot       draw accuracy against rounds, from results files\n"
        "  claims     test the paper's claims on results files\n"
        "  price      what runs take in seconds, joules and bytes, in simulated worlds\n"
        "  show       print what is in a results file\n"
        "  digest     print the SHA-256 of results",
        epilog=EPILOG + _settings())
    parser.add_argument("--version", action="version", version=f"genfl_mpi {__version__}")
    parser.add_argument("--fresh", action="store_true",
                        help="start over; what there is of the runs is moved aside, into OUTPUT/aside-1 and so on")

    def command(comm, options, runs, say):
        given = "\n".join([config.text_of(options.config), *(f"# {override}" for override in options.overrides)])
        return _run_all(comm, runs, given, say, options.fresh, picture=f"{Path(options.config).stem}.png" if options.config else "accuracy.png")

    from genfl_mpi import config

    return _with_config(parser, arguments, command)


def _fork(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m genfl_mpi fork", description="Go on from a checkpointed round of the run in FILE with other settings: a "
        "counterfactual. The new results file begins with the rounds before, and records where it comes from. For example: "
        "python -m genfl_mpi fork results/default/genfl_seed1.h5 --at 10 kappa.kappa2=0.5")
    parser.add_argument("file", type=Path)
    parser.add_argument("--at", type=int, required=True, metavar="ROUND",
                        help="the round after which it begins; a run with checkpoint.keep=1 keeps all")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="settings from then on; by default output=FILE_forkROUND")
    options = _parse_once(parser, arguments)

    from genfl_mpi import fork

    def command(comm, runs, say):
        given = "\n".join([f"# fork {options.file} --at {options.at}", *(f"# {override}" for override in options.overrides)])
        return _run_all(comm, runs, given, say, fork=(options.file, options.at))

    return _on_all_ranks(lambda: fork.runs(options.file, options.at, options.overrides), command)


def _prefetch(arguments):
    parser = _parser("prefetch", "Download what CONFIG needs, on a machine with a network: the data set into\n"
                     "data.root, and the generator's checkpoint into the local Hugging Face cache.")

    def command(comm, options, runs, say):
        from genfl_mpi.ahead import prefetch

        if comm.rank == 0:
            for line in prefetch(runs.values()):
                say(line)
        return 0

    return _with_config(parser, arguments, command)


def _partition(arguments):
    parser = _parser("partition", "Print how the clients' data differ: sizes, labels, earth mover's distances; and\n"
                     "draw the client x class picture into output/partition.png.")

    def command(comm, options, runs, say):
        from genfl_mpi.ahead import partition

        for line in partition(comm, next(iter(runs.values()))):
            say(line)
        return 0

    return _with_config(parser, arguments, command)


def _prompts(arguments):
    parser = _parser("prompts", "Print the prompts of the first round, and how many images each round asks for.")

    def command(comm, options, runs, say):
        from genfl_mpi.ahead import prompts

        generating = [run for run in runs.values() if run.generates]
        if not generating:
            raise UserError("method=fedavg generates nothing; choose genfl or aigc")
        for line in prompts(comm, generating[0]):
            say(line)
        return 0

    return _with_config(parser, arguments, command)


def _generate(arguments):
    parser = _parser("generate", "Make the images that the runs of CONFIG will need, over all ranks, and put them\n"
                     "into the bank. Started again, it makes what is missing. For example:\n"
                     "  mpirun -n 2 python -m genfl_mpi generate")

    def command(comm, options, runs, say):
        from genfl_mpi.ahead import generate

        generate(comm, [run for run in runs.values() if run.generates], say)
        return 0

    return _with_config(parser, arguments, command)


def _quality(arguments):
    parser = _parser("quality", "Judge the images in the folder BANK against the real data set of CONFIG, and\n"
                     "draw a labelled sheet of them, BANK/quality.png. For example:\n"
                     "  python -m genfl_mpi quality results/bank", first="bank")
    parser.add_argument("--counts", default="10,100,300", help="images a class to judge by, as far as there are so many (default: %(default)s)")

    def command(comm, options, runs, say):
        from genfl_mpi.appraisal import quality

        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", options.counts):
            raise UserError(f"--counts {options.counts}: must be numbers, for example 10,100,300")
        for line in quality(comm, options.bank, next(iter(runs.values())), [int(count) for count in options.counts.split(",")]):
            say(line)
        return 0

    return _with_config(parser, arguments, command)


def _pretrain(arguments):
    parser = _parser("pretrain", "Train a small text-to-image pipeline in Stable Diffusion's format on public\n"
                     "images, which no client holds, and write it to pretraining.output. For example:\n"
                     "  python -m genfl_mpi pretrain configs/cifar10_pool.yaml data.root=/data")

    def command(comm, options, runs, say):
        from genfl_mpi.teaching import pretrain

        pretrain(comm, next(iter(runs.values())), say)
        return 0

    return _with_config(parser, arguments, command)


def _finetune(arguments):
    parser = _parser("finetune", "Train a LoRA adapter for generation.checkpoint on a few real images of each\n"
                     "class, at the server or at the clients, over all ranks, and write it to\n"
                     "finetuning.output. For example:\n"
                     "  mpirun -n 2 python -m genfl_mpi finetune finetuning.at=clients")

    def command(comm, options, runs, say):
        from genfl_mpi.teaching import finetune

        finetune(comm, next(iter(runs.values())), say)
        return 0

    return _with_config(parser, arguments, command)


def _parser(command, description, epilog=None, first=None):
    parser = argparse.ArgumentParser(prog=f"python -m genfl_mpi {command}".strip(), description=description, epilog=epilog,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    if first:
        parser.add_argument(first, metavar=first.upper())
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="configuration file; none: the embedded default")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's, for example training.lr=0.01")
    return parser


def _with_config(parser, arguments, command):
    """Parse, read the configuration, and run `command(comm, options, runs, say)` on every rank."""
    options = _parse_once(parser, arguments)
    if options.config and "=" in options.config and not os.path.exists(options.config):
        options.config, options.overrides = None, [options.config, *options.overrides]

    from genfl_mpi import config

    return _on_all_ranks(lambda: config.load(options.config, options.overrides),
                         lambda comm, runs, say: command(comm, options, runs, say))


def _on_all_ranks(load, command):
    """Run `command(comm, runs, say)` on every rank, with the runs that the function `load` gives on rank 0."""
    from genfl_mpi.mpi import collectives, failing

    comm = collectives.world()

    def say(text):
        if comm.rank == 0:
            _say(text)

    return failing.exit_status(comm, lambda: command(comm, collectives.from_rank0(comm, load), say))


def _run_all(comm, runs, given, say, fresh=False, fork=None, picture="accuracy.png"):
    from genfl_mpi.fork import move_aside
    from genfl_mpi.mpi import collectives
    from genfl_mpi.mpi.signals import Signals
    from genfl_mpi.runner import prepare, run

    start = time.perf_counter()
    paths = [Path(one.output) / f"{name}.h5" for name, one in runs.items()]
    with Signals(comm) as signals:
        # All of a sweep is checked before its first run.
        configs = [prepare(comm, path, one, fresh, fork) for path, one in zip(paths, runs.values())]
        if fresh:
            collectives.together(comm, lambda: comm.rank == 0 and move_aside(paths, say))
        for path, one in zip(paths, configs):
            if status := run(comm, path, one, given, say, signals, fork):
                return status
    if comm.rank == 0:
        from genfl_mpi.results import plots, summary

        picture = paths[0].parent / picture
        plots.accuracy(paths, picture)
        say("")
        for line in summary.table(paths):
            say(line)
        say(f"\n{len(paths)} runs in {time.perf_counter() - start:.0f} s; files in {paths[0].parent}/, curves in {picture}")
    return 0


def _plot(arguments):
    parser = argparse.ArgumentParser(prog="python -m genfl_mpi plot", description="Draw test accuracy against rounds from results files: a panel for each data set "
                                     "and alpha, a curve for each method, mean and standard deviation over seeds; and print the final accuracies.")
    parser.add_argument("results", nargs="+", help="results files, or folders of them")
    parser.add_argument("-o", "--output", default="accuracy.png", help="the figure: .png, .pdf or .svg (default: %(default)s)")
    options = parser.parse_args(arguments)

    def lines():
        from genfl_mpi.results import plots, reader, summary

        paths = reader.find(options.results)
        plots.accuracy(paths, options.output)
        yield from summary.table(paths)
        yield f"{len(paths)} runs; figure in {options.output}"

    return _print(lines())


def _claims(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m genfl_mpi claims", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Test the paper's claims on results files of several methods, alphas and seeds,\n"
        "and write the ledger as a table. For example:\n"
        "  python -m genfl_mpi claims results/fig5-small results/fig6-small")
    parser.add_argument("results", nargs="+", help="results files, or folders of them")
    parser.add_argument("-o", "--output", default="claims.md", help="the table, in Markdown (default: %(default)s)")
    options = parser.parse_args(arguments)

    def lines():
        from genfl_mpi import claims
        from genfl_mpi.results import ledger, reader
        from genfl_mpi.results.runs import Runs

        runs = Runs(reader.find(options.results))
        judged, note = claims.ledger(runs), claims.note(runs)
        ledger.write(judged, note, options.output)
        yield from ledger.text(judged, note)
        yield f"table in {options.output}"

    return _print(lines())


def _price(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m genfl_mpi price", description="What finished runs take in seconds, joules and bytes in simulated worlds, without training: a table, and accuracy against each of the three. "
        "A setting of model.* or of the generator, as key=value, prices the run as if it had had that model or generator.")
    parser.add_argument("results", nargs="+", metavar="RESULTS|key=value", help="results files, or folders of them")
    parser.add_argument("--world", action="append", default=[], metavar="FILE", help="YAML file of a world, see configs/worlds; may be given several times; none: the default world")
    parser.add_argument("--target", type=float, help="price the rounds until the test accuracy, between 0 and 1, is this")
    parser.add_argument("--placements", action="store_true", help="compare the placements of AIGC, P0 to P5, on the first run that generated images, and draw them into OUTPUT_placements")
    parser.add_argument("--csv", metavar="FILE", help="write seconds and joules of each client, round and entity")
    parser.add_argument("-o", "--output", default="price.png", help="the figure: .png, .pdf or .svg (default: %(default)s)")
    options = parser.parse_args(arguments)

    def lines():
        from genfl_mpi import pricing

        yield from pricing.command(options)

    return _print(lines())


def _show(arguments):
    parser = argparse.ArgumentParser(prog="python -m genfl_mpi show", description="Print what is in a results file.")
    parser.add_argument("file")
    options = parser.parse_args(arguments)
    from genfl_mpi.results.show import show

    return _print(show(options.file))


def _digest(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m genfl_mpi digest", description="Print the SHA-256 of the final weights and of the results without clocks, "
        "hosts and bytes: equal for equal runs on any number of ranks.")
    parser.add_argument("file", nargs="+")
    options = parser.parse_args(arguments)
    from genfl_mpi.results.reader import digests

    def lines():
        for file in options.file:
            weights, results, finished = digests(file)
            yield f"{file}{'' if finished else '  (not finished)'}\n  weights {weights}\n  results {results}"

    return _print(lines())


def _parse_once(parser, arguments):
    """Parse on every rank, with help and complaints from rank 0 alone. MPI is not started for it: the launchers tell."""
    variables = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    silent = any(os.environ.get(name, "0") != "0" for name in variables)
    with ExitStack() as quiet:
        if silent:
            nowhere = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
        return parser.parse_intermixed_args(arguments)


def _print(lines):
    try:
        for line in lines:
            _say(line)
    except UserError as error:
        print(f"genfl_mpi: {error}", file=sys.stderr)
        return 2
    return 0


def _say(line):
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the reader, `head` say, has seen enough; the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _settings():
    from genfl_mpi.settings import describe

    return describe()
