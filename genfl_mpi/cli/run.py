"""Runs, and forks of them."""

import time
from pathlib import Path

from genfl_mpi import __version__
from genfl_mpi.cli import COMMANDS, launch
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted

EXAMPLES = """\
examples:
  mpirun -n 4 python -m genfl_mpi                       the default
  mpirun -n 4 python -m genfl_mpi 'sweep.seed=[1,2,3]'  with three seeds
  mpirun -n 2 python -m genfl_mpi generate              its images ahead of time
  mpirun -n 8 python -m genfl_mpi configs/cifar10.yaml data.root=/data rounds=50
  python -m genfl_mpi show results/default/genfl_seed1.h5
  python -m genfl_mpi digest results/default/*.h5

settings (key: default, meaning):
"""


def run(arguments):
    from genfl_mpi.config import loading
    from genfl_mpi.config.settings import describe

    parser = launch.parser_of_config(
        "",
        "Simulate generative federated learning (GenFL) over MPI: by default the paper's\n"
        "three methods on real handwritten digits. Started again, it skips the runs that\n"
        "are finished and continues the others. Their files and the closing figure, named\n"
        "after CONFIG.yaml or else accuracy.png, are in the folder `output`.\n"
        "Other commands, each with --help:\n"
        + "\n".join(f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items() if about),
        epilog=EXAMPLES + describe(),
    )
    parser.add_argument("--version", action="version", version=f"genfl_mpi {__version__}")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start over; what there is of the runs is moved aside, into OUTPUT/aside-1 and so on",
    )
    parser.add_argument(
        "--members",
        action="store_true",
        help="print the results file of each run of the sweep, a line each, and compute nothing",
    )
    parser.add_argument(
        "--member",
        type=int,
        metavar="K",
        help="compute the K-th of them alone, counted from 0: for a batch system's job array",
    )
    _verbosity(parser)
    options = launch.options_of(parser, arguments)

    def members():
        for name, one in loading.load(options.config, options.overrides).items():
            yield str(_results(one, name))

    if options.members:
        return launch.print_lines(members())

    def command(comm, options, runs, say):
        given = "\n".join(
            [loading.text_of(options.config), *(f"# {override}" for override in options.overrides)]
        )
        picture = f"{Path(options.config).stem}.png" if options.config else "accuracy.png"
        if options.member is not None:
            runs, picture = _member(runs, options.member), None
        return _run_all(comm, runs, given, say, options, options.fresh, picture=picture)

    return launch.on_config(options, command)


def _results(config, name):
    """The results file of a run."""
    return Path(config.output) / f"{name}.h5"


def _member(runs, number):
    """The run with that number, alone. Raises UserError."""
    if not 0 <= number < len(runs):
        raise UserError(f"--member {number}: the configuration has {len(runs)} runs, numbered from 0")
    return dict([list(runs.items())[number]])


def fork(arguments):
    parser = launch.parser_of(
        "fork",
        "Go on from a checkpointed round of the run in FILE with other settings: a\n"
        "counterfactual. The new results file begins with the rounds before, and records\n"
        "where it comes from. For example:\n"
        "  python -m genfl_mpi fork FILE --at 10 kappa.kappa2=0.5",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--at",
        type=int,
        required=True,
        metavar="ROUND",
        help="the round after which it begins; a run with checkpoint.keep=1 keeps all",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings from then on; by default output=FILE_forkROUND",
    )
    _verbosity(parser)
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.runs import fork as forks

    def command(comm, runs, say):
        given = "\n".join(
            [f"# fork {options.file} --at {options.at}", *(f"# {override}" for override in options.overrides)]
        )
        return _run_all(comm, runs, given, say, options, fork=(options.file, options.at))

    return launch.on_all_ranks(lambda: forks.runs(options.file, options.at, options.overrides), command)


def _verbosity(parser):
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--quiet",
        dest="level",
        action="store_const",
        const="quiet",
        default="normal",
        help="no word of each round",
    )
    how.add_argument(
        "--verbose", dest="level", action="store_const", const="verbose", help="what each round took, too"
    )


def _run_all(comm, runs, given, say, options, fresh=False, fork=None, picture="accuracy.png"):
    from genfl_mpi.mpi import collectives, devices
    from genfl_mpi.mpi.signals import Signals
    from genfl_mpi.runs import display as live
    from genfl_mpi.runs import runner, sweep
    from genfl_mpi.runs.fork import move_aside

    start = time.perf_counter()
    paths = [_results(one, name) for name, one in runs.items()]
    alone = (
        comm.rank == 0 and sweep.groups(comm.size, runs.values()) == 1
    )  # else several ranks have lines to say
    with Signals(comm) as signals, live.view(say, len(runs), options.level, alone) as view:
        signals.tell = getattr(view, "tell", signals.tell)
        # All of a sweep is checked before its first run.
        configs = [runner.prepare(comm, path, one, fresh, fork) for path, one in zip(paths, runs.values())]
        for line in devices.remarks(
            comm, max(one.runtime.threads for one in configs), configs[0].runtime.device
        ):
            view.say(line)
        held = {}
        if fresh:
            held = collectives.together(comm, lambda: move_aside(paths, view.say) if comm.rank == 0 else {})
        try:
            if status := sweep.run(comm, paths, configs, given, view, launch.say, signals, fork, held):
                return status
        finally:
            for lock in held.values():  # of runs that were not begun
                lock.release()
    if comm.rank == 0 and picture:
        from genfl_mpi.analysis import curves, summary
        from genfl_mpi.util import plotting

        picture = paths[0].parent / picture
        plotting.save(curves.accuracy(paths), picture)
        say("")
        for line in summary.table(paths):
            say(line)
        say(
            f"\n{counted(len(paths), 'run')} in {time.perf_counter() - start:.0f} s; files in {paths[0].parent}/, curves in {picture}"
        )
    return 0
