"""How a command starts: its arguments parsed, its configuration read, and the same done on every rank."""

import argparse
import os
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout

from genfl_mpi.mpi import launchers
from genfl_mpi.util.errors import UserError


def parser_of(command, description, epilog=None):
    """The parser of a command, without its arguments."""
    return argparse.ArgumentParser(
        prog=f"python -m genfl_mpi {command}".strip(),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parser_of_config(command, description, epilog=None, first=None):
    """The parser of a command that reads a configuration."""
    parser = parser_of(command, description, epilog)
    if first:
        parser.add_argument(first, metavar=first.upper())
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.yaml", help="configuration file; none: the embedded default"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that replace the file's, for example training.lr=0.01",
    )
    return parser


def parser_of_results(command, description):
    """The parser of a command that reads results files."""
    parser = parser_of(command, description)
    parser.add_argument("results", nargs="+", help="results files, or folders of them")
    return parser


def add_figure(parser, default):
    """Let a command's figure be put elsewhere than into the file `default`."""
    parser.add_argument(
        "-o",
        "--output",
        default=default,
        help="the figure: .png, .pdf or .svg (default: %(default)s in the folder where you are)",
    )


def options_of(parser, arguments):
    """Parse the arguments of a command that reads a configuration, the first of which may be its file."""
    options = parse_once(parser, arguments)
    if options.config and "=" in options.config and not os.path.exists(options.config):
        options.config, options.overrides = None, [options.config, *options.overrides]
    return options


def on_config(options, command):
    """Read the configuration of parsed `options`, and run `command(comm, options, runs, say)` on every rank."""
    from genfl_mpi.config import loading

    return on_all_ranks(
        lambda: loading.load(options.config, options.overrides),
        lambda comm, runs, say: command(comm, options, runs, say),
    )


def with_config(parser, arguments, command):
    """Parse, read the configuration, and run `command(comm, options, runs, say)` on every rank."""
    return on_config(options_of(parser, arguments), command)


def print_of_config(parser, arguments, lines):
    """Parse, read the configuration, and print, on rank 0, what `lines(comm, options, runs)` gives, which every rank goes through."""

    def command(comm, options, runs, say):
        for line in lines(comm, options, runs):
            say(line)
        return 0

    return with_config(parser, arguments, command)


def on_all_ranks(load, command):
    """Run `command(comm, runs, say)` on every rank, with the runs that the function `load` gives on rank 0."""
    from genfl_mpi.mpi import collectives, failing

    comm = collectives.world()

    def say_once(text):
        if comm.rank == 0:
            say(text)

    def start():
        launchers.check_size(comm.size, os.environ)
        runs = collectives.from_rank0(comm, load)
        from genfl_mpi.mpi import devices  # and torch, which a mistake in the configuration need not wait for

        devices.survey(comm)
        return command(comm, runs, say_once)

    return failing.exit_status(comm, start)


def parse_once(parser, arguments):
    """Parse on every rank, with help and complaints from rank 0 alone. MPI is not started for it: the launchers tell."""
    with ExitStack() as quiet:
        if not launchers.is_first(os.environ):
            nowhere = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(redirect_stdout(nowhere))
            quiet.enter_context(redirect_stderr(nowhere))
        return parser.parse_intermixed_args(arguments)


def print_lines(lines):
    """Print what an iterator gives, and return the exit status."""
    try:
        for line in lines:
            say(line)
    except UserError as error:
        print(f"genfl_mpi: {error}", file=sys.stderr)
        return 2
    return 0


def say(line):
    """Print a line now."""
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the reader, `head` say, has seen enough; the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
