"""Start a command: parse its arguments, read its configuration, and run it on every rank."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import wraps
from typing import TYPE_CHECKING, NoReturn

from genfl_mpi.mpi import launchers
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import suggestion

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI

    Runs = dict[str, Config]
    Say = Callable[[str], None]
    Shortcut = Callable[[Runs, Say], bool]
    Command = Callable[[MPI.Comm, argparse.Namespace, Runs, Say], int | Iterable[str]]


class _Parser(argparse.ArgumentParser):
    """A parser that explains unknown options: a setting with dashes, or a misspelt option."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        from genfl_mpi.config.settings import keys

        if found := re.search(r"unrecognized arguments: (--([\w.-]+))(=\S*)?", message):
            option, key, value = found[1], found[2].replace("-", "_"), found[3] or "=VALUE"
            if key in keys():
                message += f"; settings have no dashes: write {key}{value}"
            else:
                message += suggestion(option, self._option_string_actions)
        elif re.search(r"unrecognized arguments: -n", message):
            message += "; ranks are the launcher's: write mpirun -n RANKS python -m genfl_mpi ..."
        super().error(message)


def command_parser(command: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Make the parser of a command, without arguments."""
    return _Parser(
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


def add_choice(
    parser: argparse.ArgumentParser, option: str, choices: Iterable[str], default: str, text: str
) -> None:
    """Add an option that takes one of `choices`, and suggests the closest one for a misspelt name."""

    def choice(name: str) -> str:
        if name not in choices:
            raise argparse.ArgumentTypeError(
                f"{name} is not one of {', '.join(choices)}{suggestion(name, choices)}"
            )
        return name

    parser.add_argument(
        option, type=choice, default=default, metavar="NAME", help=f"{text} (default: %(default)s)"
    )


def add_output(parser: argparse.ArgumentParser, name: str, what: str = "figure, .png, .pdf or .svg") -> None:
    """Add the option for the file that a command writes, by default `name` beside the results."""
    parser.add_argument(
        "-o", "--output", help=f"file of the {what} (default: {name} beside the first results file)"
    )


def parse_config_options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command that reads a configuration; its file is optional."""
    options = parse_once(parser, arguments)
    if options.config and "=" in options.config and not os.path.exists(options.config):
        options.config, options.overrides = None, [options.config, *options.overrides]
    return options


def on_config(
    options: argparse.Namespace,
    command: Callable[[MPI.Comm, argparse.Namespace, Runs, Say], int],
    needs: Sequence[str] | None = None,
    shortcut: Shortcut | None = None,
) -> int:
    """Read the configuration, and run `command(comm, options, runs, say)` on every rank.

    needs: as in `loading.load`. shortcut: as in `on_all_ranks`.
    """
    from genfl_mpi.config import loading

    return on_all_ranks(
        lambda: loading.load(options.config, options.overrides, needs=needs),
        lambda comm, runs, say: command(comm, options, runs, say),
        shortcut,
    )


def config_command(
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    first: tuple[str, str] | None = None,
    needs: Sequence[str] | None = None,
) -> Callable[[Command], Callable[[Sequence[str]], int]]:
    """Make a command of a function (comm, options, runs, say) -> exit status, or lines to print on rank 0.

    It runs on every rank. Its name is the command's, and its docstring the description. add_arguments: adds
    further arguments to the parser; first: as in `config_parser`; needs: as in `loading.load`.
    """

    def decorated(function: Command) -> Callable[[Sequence[str]], int]:
        def run(comm: MPI.Comm, options: argparse.Namespace, runs: Runs, say: Say) -> int:
            result = function(comm, options, runs, say)
            if isinstance(result, int):
                return result
            for line in result:
                say(line)
            return 0

        @wraps(function)
        def command(arguments: Sequence[str]) -> int:
            parser = config_parser(function.__name__, inspect.getdoc(function) or "", first=first)
            add_arguments(parser)
            return on_config(parse_config_options(parser, arguments), run, needs)

        return command

    return decorated


def on_all_ranks(
    load: Callable[[], Runs],
    command: Callable[[MPI.Comm, Runs, Say], int],
    shortcut: Shortcut | None = None,
) -> int:
    """Run `command(comm, runs, say)` on every rank, with the runs that `load()` returns on rank 0.

    shortcut: called as shortcut(runs, say) on rank 0; if it returns true, everything is done, and no rank
    imports torch.
    """
    try:
        from genfl_mpi.mpi import collectives, failing
    except UserError as error:  # no MPI library
        if launchers.is_first(os.environ):
            print(f"genfl_mpi: {error}", file=sys.stderr)
        return 2
    comm = collectives.world()

    def say_on_rank0(text: str) -> None:
        if comm.rank == 0:
            say(text)

    def start() -> int:
        launchers.check_size(comm.size, os.environ)
        runs = collectives.from_rank0(comm, load)
        if shortcut and collectives.from_rank0(comm, lambda: shortcut(runs, say)):
            return 0
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
