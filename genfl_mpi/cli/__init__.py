"""The command line: each command is a function of its arguments that only parses and prints."""

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

# Commands by purpose, {name: (file, summary in `python -m genfl_mpi --help`)}
PURPOSES = {
    "compute": {
        "run": ("run", "compute the runs of CONFIG; the default command"),
        "fork": ("run", "continue from a round of a run, with other settings"),
        "generate": ("prepare", "fill the image bank ahead of time, on all ranks"),
    },
    "before a run": {
        "help": ("help", "describe settings, by section or key"),
        "completion": ("completion", "print completions of commands and settings for the shell"),
        "doctor": ("prepare", "check the setup and suggest fixes"),
        "plan": ("prepare", "predict time, memory and bytes of a run"),
        "prefetch": ("prepare", "download data set, weights and checkpoint"),
        "models": ("prepare", "list networks with parameters, bytes, FLOPs and seconds"),
        "partition": ("prepare", "print and plot how the clients' data differ"),
        "prompts": ("prepare", "print the prompts and the number of images per round"),
    },
    "generators": {
        "pretrain": ("generators", "train a small generator on public images"),
        "finetune": ("generators", "train a LoRA adapter for a generator"),
        "quality": ("generators", "measure the quality of the images in a bank"),
    },
    "follow and inspect runs": {
        "watch": ("files", "follow the progress of runs"),
        "summary": ("files", "show the progress and accuracy of many runs"),
        "show": ("files", "print the contents of a results file"),
        "digest": ("files", "print the SHA-256 of results"),
    },
    "figures and tables": {
        "plot": ("files", "plot accuracy and other figures from results files"),
        "report": ("files", "write a report on runs as one HTML file"),
        "scaling": ("files", "print and plot scaling with ranks, clients and cohort"),
        "export": ("files", "write results as CSV or for TensorBoard"),
    },
    "evaluate": {
        "best": ("files", "print the best configuration of each method of a search"),
        "compare": ("files", "compare two groups of runs, paired by seed"),
        "claims": ("files", "test the paper's claims on results files"),
        "hindsight": ("files", "find the best kappa and each policy's regret"),
        "price": ("files", "compute the seconds, joules and bytes of runs in simulated worlds"),
        "incentive": ("files", "compute payments to clients that generate missing labels"),
        "audit": ("files", "find misbehaving clients"),
    },
}
COMMANDS = {name: entry for commands in PURPOSES.values() for name, entry in commands.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done. 1: failed. 2: an error that the user can fix. 75, or 130 after Ctrl-C: the run was interrupted by
    the batch system or the user, and the same command continues it.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        # As with `python -m`, the user's modules are found in the current folder.
        if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())
    named = bool(arguments) and arguments[0] in COMMANDS
    if arguments and not named and _is_misspelt(arguments[0]):
        return _refuse(arguments[0])
    name = arguments[0] if named else "run"
    module, _ = COMMANDS[name]
    command = getattr(import_module(f"genfl_mpi.cli.{module}"), name)
    try:
        return command(arguments[1:] if named else arguments)
    except SystemExit as left:  # of argparse: after --help, and for an unknown option
        return left.code if isinstance(left.code, int) else int(left.code is not None)


def _is_misspelt(word: str) -> bool:
    """Return whether the first argument can only be a command: not an option, a setting, or a file."""
    from genfl_mpi.config.settings import keys

    return bool(re.fullmatch(r"[A-Za-z]\w*", word)) and word not in keys() and not os.path.exists(word)


def _refuse(word: str) -> int:
    """Print on rank 0 that there is no such command, and return the exit status."""
    from genfl_mpi.mpi import launchers
    from genfl_mpi.util.text import suggestion

    if launchers.is_first(os.environ):
        print(
            f"genfl_mpi: {word} is neither a command nor a file{suggestion(word, COMMANDS) or '.'} "
            "`python -m genfl_mpi --help` lists the commands",
            file=sys.stderr,
        )
    return 2
