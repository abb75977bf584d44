"""Start a command: parse its arguments, read its configuration, and run it on every rank."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from genfl_mpi.mpi import launchers
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI

    Runs = dict[str, Config]
    Say = Callable[[str], None]
    Command = Callable[[MPI.Comm, argparse.Namespace, Runs, Say], int]


def command_parser(command: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of a command, without arguments."""
    return argparse.ArgumentParser(
        prog=f"python -m genfl_mpi {command}".strip(),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def config_parser(
    command: str, description: str, epilog: str | None = None, first: tuple[str, str] | None = None
) -> argparse.ArgumentParser:
    """Make the parser of a command that reads a configuration, optionally after another argument.

    first: name and help text of that argument.
    """
    parser = command_parser(command, description, epilog)
    if first:
        parser.add_argument(first[0], metavar=first[0].upper(), help=first[1])
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.yaml", help="configuration file (default: the embedded one)"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that replace those of the file, for example training.lr=0.01",
    )
    return parser


def results_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of a command that reads results files."""
    parser = command_parser(command, description)
    parser.add_argument("results", nargs="+", help="results files, or folders of results files")
    return parser


def add_figure(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option for a command's figure, by default the file `default`."""
    parser.add_argument(
        "-o",
        "--output",
        default=default,
        help="file of the figure, .png, .pdf or .svg (default: %(default)s in the current folder)",
    )


def parse_config_options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command that reads a configuration; its file is optional."""
    options = parse_once(parser, arguments)
    if options.config and "=" in options.config and not os.path.exists(options.config):
        options.config, options.overrides = None, [options.config, *options.overrides]
    return options


def on_config(options: argparse.Namespace, command: Command) -> int:
    """Read the configuration, and run `command(comm, options, runs, say)` on every rank."""
    from genfl_mpi.config import loading

    return on_all_ranks(
        lambda: loading.load(options.config, options.overrides),
        lambda comm, runs, say: command(comm, options, runs, say),
    )


def with_config(parser: argparse.ArgumentParser, arguments: Sequence[str], command: Command) -> int:
    """Parse, read the configuration, and run `command(comm, options, runs, say)` on every rank."""
    return on_config(parse_config_options(parser, arguments), command)


def print_with_config(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    lines: Callable[[MPI.Comm, argparse.Namespace, Runs], Iterable[str]],
) -> int:
    """Parse, read the configuration, and print the lines that `lines(comm, options, runs)` yields on rank 0.

    Every rank iterates over its lines.
    """

    def command(comm: MPI.Comm, options: argparse.Namespace, runs: Runs, say: Say) -> int:
        for line in lines(comm, options, runs):
            say(line)
        return 0

    return with_config(parser, arguments, command)


def on_all_ranks(load: Callable[[], Runs], command: Callable[[MPI.Comm, Runs, Say], int]) -> int:
    """Run `command(comm, runs, say)` on every rank, with the runs that `load()` returns on rank 0."""
    from genfl_mpi.mpi import collectives, failing

    comm = collectives.world()

    def say_on_rank0(text: str) -> None:
        if comm.rank == 0:
            say(text)

    def start() -> int:
        launchers.check_size(comm.size, os.environ)
        runs = collectives.from_rank0(comm, load)
        # Imported late: it imports torch, for which an error in the configuration need not wait.
        from genfl_mpi.mpi import devices

        devices.survey(comm)
        return command(comm, runs, say_on_rank0)

    return failing.exit_status(comm, start)


def parse_once(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse on every rank, and print help and errors on rank 0 only.

    MPI is not started: the rank is taken from the launcher's environment variables.
    """
    with ExitStack() as quiet:
        if not launchers.is_first(os.environ):
            nowhere = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
        return parser.parse_intermixed_args(arguments)


def print_lines(lines: Iterable[str]) -> int:
    """Print lines as they come, and return the exit status."""
    try:
        for line in lines:
            say(line)
    except UserError as error:
        print(f"genfl_mpi: {error}", file=sys.stderr)
        return 2
    return 0


def say(line: str) -> None:
    """Print a line immediately."""
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does; the work continues
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
