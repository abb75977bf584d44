"""The command line."""

import sys
from importlib import import_module

from genfl_mpi.commands import COMMANDS


def main(arguments=None):
    """Run one command; returns the exit status: 0, 2 for what the user can mend, 1 for what failed, or 75 and 130 for a run that
    was asked to leave, by a batch system or by Ctrl-C, and that the same command continues."""
    arguments = sys.argv[1:] if arguments is None else arguments
    named = bool(arguments) and arguments[0] in COMMANDS
    name = arguments[0] if named else "run"
    module, _ = COMMANDS[name]
    return getattr(import_module(f"genfl_mpi.commands.{module}"), name)(arguments[1:] if named else arguments)
