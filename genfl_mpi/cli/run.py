"""Commands that compute runs and forks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from genfl_mpi import __version__
from genfl_mpi.cli import PURPOSES, launch
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI

DESCRIPTION = """\
Simulate generative federated learning (GenFL) over MPI, by default the paper's
three methods on real handwritten digits. When started again, it skips finished
runs and continues interrupted ones. It writes results files and a figure of the
accuracy, named after CONFIG.yaml or else accuracy.png, to the folder `output`.
The installed script `genfl_mpi` is the same program as `python -m genfl_mpi`.
"""
EXAMPLES = """\
examples:
  mpirun -n 2 python -m genfl_mpi                       the default runs
  mpirun -n 2 python -m genfl_mpi 'sweep.seed=[1,2,3]'  with three seeds
  mpirun -n 8 python -m genfl_mpi configs/cifar10.yaml data.root=/data rounds=50
  python -m genfl_mpi show results/default/genfl_seed1.h5

further help:
  python -m genfl_mpi help              all settings and sections
  python -m genfl_mpi help kappa        the settings of a section
  python -m genfl_mpi help kappa.policy one setting, and the names that it takes
  python -m genfl_mpi plot --help       a command
"""


def run(arguments: Sequence[str]) -> int:
    """Compute the runs of a configuration."""
    from genfl_mpi.config import loading, yaml_text
    from genfl_mpi.config.remarks import remarks

    parser = launch.config_parser("", DESCRIPTION, epilog="\n".join(_commands()) + "\n" + EXAMPLES)
    parser.add_argument("--version", action="version", version=f"genfl_mpi {__version__}")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start over; existing files of the runs are moved to OUTPUT/aside-1, aside-2, ...",
    )
    parser.add_argument(
        "--members",
        action="store_true",
        help="only print the path of each run's results file, one per line",
    )
    parser.add_argument(
        "--member",
        type=int,
        metavar="K",
        help="compute only the K-th run of the sweep, counted from 0, for a batch system's job array",
    )
    _verbosity(parser)
    options = launch.parse_config_options(parser, arguments)

    def members() -> Iterator[str]:
        for name, one in loading.load(options.config, options.overrides).items():
            yield str(_results(one, name))

    if options.members:
        return launch.print_lines(members())

    def command(comm: MPI.Comm, options: argparse.Namespace, runs: launch.Runs, say: launch.Say) -> int:
        given = "\n".join(
            [yaml_text.read_text(options.config), *(f"# {override}" for override in options.overrides)]
        )
        figure = _figure(options)
        notes = remarks(options.config, options.overrides, runs)
        if options.member is not None:
            runs, figure = _member(runs, options.member), ""
        return _run_all(comm, runs, given, say, options, notes, options.fresh, figure=figure)

    def shortcut(runs: launch.Runs, say: launch.Say) -> bool:
        """Return whether all runs are finished; if so, print that and the closing table."""
        from genfl_mpi.runs import finished

        start = time.perf_counter()
        selected = runs if options.member is None else _member(runs, options.member)
        paths = {_results(one, name): one for name, one in selected.items()}
        if options.fresh or not finished.are_finished(paths):
            return False
        for line in remarks(options.config, options.overrides, runs):
            say(line)
        for path in paths:
            say(f"{path.stem}: already finished")
        if options.member is None:
            _close(list(paths), _figure(options), start, say, has_changed=False)
        return True

    return launch.on_config(options, command, shortcut=shortcut)


def _figure(options: argparse.Namespace) -> str:
    """Return the name of the closing figure."""
    return f"{Path(options.config).stem}.png" if options.config else "accuracy.png"


def _commands() -> Iterator[str]:
    """List all commands by purpose."""
    for purpose, commands in PURPOSES.items():
        yield f"{purpose}:"
        yield from (f"  {name:<10} {about}" for name, (_, about) in commands.items())
        yield ""


def _results(config: Config, name: str) -> Path:
    """Return the path of a run's results file."""
    return Path(config.output) / f"{name}.h5"


def _member(runs: launch.Runs, number: int) -> launch.Runs:
    """Return only the run with this number. Raises UserError."""
    if not 0 <= number < len(runs):
        raise UserError(f"--member {number}: the configuration has runs 0 to {len(runs) - 1}")
    return dict([list(runs.items())[number]])


def fork(arguments: Sequence[str]) -> int:
    """Continue from a round of a run, with other settings."""
    parser = launch.command_parser(
        "fork",
        "Continue from a checkpointed round of the run in FILE, with other settings. The\n"
        "new results file begins with the rounds up to the fork and records its origin.\n"
        "For example:\n"
        "  python -m genfl_mpi fork FILE --at 10 kappa.kappa2=0.5",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="results file of the run")
    parser.add_argument(
        "--at",
        type=int,
        required=True,
        metavar="ROUND",
        help="last round that both runs share; it needs a checkpoint. A run lists these rounds at its end; "
        "checkpoint.keep=1 keeps all",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of the following rounds; output defaults to FILE_forkROUND",
    )
    _verbosity(parser)
    options = launch.parse_once(parser, arguments)

    from genfl_mpi.config.remarks import remarks
    from genfl_mpi.runs import fork as forks

    def command(comm: MPI.Comm, runs: launch.Runs, say: launch.Say) -> int:
        given = "\n".join(
            [f"# fork {options.file} --at {options.at}", *(f"# {override}" for override in options.overrides)]
        )
        notes = remarks({}, options.overrides, runs)
        return _run_all(comm, runs, given, say, options, notes, fork=(options.file, options.at))

    return launch.on_all_ranks(lambda: forks.runs(options.file, options.at, options.overrides), command)


def _verbosity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--quiet",
        dest="level",
        action="store_const",
        const="quiet",
        default="normal",
        help="suppress per-round output",
    )
    group.add_argument(
        "--verbose",
        dest="level",
        action="store_const",
        const="verbose",
        help="also print the time of each phase of a round",
    )


def _run_all(
    comm: MPI.Comm,
    runs: launch.Runs,
    given: str,
    say: launch.Say,
    options: argparse.Namespace,
    notes: Iterable[str],
    fresh: bool = False,
    fork: tuple[Path, int] | None = None,
    figure: str = "accuracy.png",
) -> int:
    """Compute `runs` and draw their accuracy into `figure` beside the results, unless it is empty.

    notes: lines to print before the first run, used on rank 0.
    """
    from genfl_mpi.mpi import collectives, devices
    from genfl_mpi.mpi.signals import Signals
    from genfl_mpi.runs import display, runner, sweep
    from genfl_mpi.runs.fork import move_aside

    start = time.perf_counter()
    paths = [_results(one, name) for name, one in runs.items()]
    # With several groups of ranks several ranks print, which a live view cannot show.
    alone = comm.rank == 0 and sweep.groups(comm.size, runs.values()) == 1
    with Signals(comm) as signals, display.view(say, len(runs), options.level, alone) as view:
        signals.announce = getattr(view, "announce", signals.announce)
        # All runs of a sweep are checked before the first one starts.
        configs = [runner.prepare(comm, path, one, fresh, fork) for path, one in zip(paths, runs.values())]
        for line in notes if comm.rank == 0 else ():
            view.say(line)
        for line in devices.warn(
            comm, max(one.runtime.threads or 1 for one in configs), configs[0].runtime.device
        ):
            view.say(line)
        held = {}
        if fresh:
            held = collectives.call_on_all(
                comm, lambda: move_aside(paths, view.say) if comm.rank == 0 else {}
            )
        try:
            if status := sweep.run(comm, paths, configs, given, view, launch.say, signals, fork, held):
                return status
        finally:
            for lock in held.values():  # of runs that were not started
                lock.release()
    if comm.rank == 0 and figure:
        _close(paths, figure, start, say)
    return 0


def _close(
    paths: Sequence[Path], figure: str, start: float, say: launch.Say, has_changed: bool = True
) -> None:
    """Print the closing table of runs, and draw their accuracy into `figure` beside them.

    start: of the command, as of `time.perf_counter`. has_changed: whether a round was computed; otherwise a
    figure that is newer than the results is kept.
    """
    from genfl_mpi.analysis import summary

    output = paths[0].parent / figure
    newest = max(path.stat().st_mtime for path in paths)
    if has_changed or not output.exists() or output.stat().st_mtime < newest:
        from genfl_mpi.analysis import curves
        from genfl_mpi.util import plotting

        plotting.save(curves.accuracy(paths), output)
    say("")
    for line in summary.table(paths):
        say(line)
    say(
        f"\n{counted(len(paths), 'run')} in {time.perf_counter() - start:.0f} s; "
        f"files in {paths[0].parent}/, curves in {output}"
    )
