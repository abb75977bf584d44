"""The command line: each command is a function of its arguments, and only parses and prints."""

import sys
from collections.abc import Sequence
from importlib import import_module

# name: (file, summary in `python -m genfl_mpi --help`)
COMMANDS = {
    "run": ("run", ""),
    "fork": ("run", "continue from a round of a run with other settings"),
    "doctor": ("prepare", "check the setup and suggest fixes"),
    "prefetch": ("prepare", "download data set and checkpoint"),
    "partition": ("prepare", "print and plot how the clients' data differ"),
    "prompts": ("prepare", "print the prompts and the number of images per round"),
    "plan": ("prepare", "predict time, memory and bytes of a run"),
    "generate": ("prepare", "fill the image bank ahead of time, on all ranks"),
    "quality": ("generators", "measure the quality of the images in a bank"),
    "pretrain": ("generators", "train a small generator on public images"),
    "finetune": ("generators", "train a LoRA adapter for a generator"),
    "plot": ("files", "plot accuracy and other figures from results files"),
    "summary": ("files", "show the progress and accuracy of many runs"),
    "report": ("files", "write a report on runs as one HTML file"),
    "compare": ("files", "compare two groups of runs: settings, and results paired by seed"),
    "claims": ("files", "test the paper's claims on results files"),
    "price": ("files", "compute the seconds, joules and bytes of runs in simulated worlds"),
    "incentive": ("files", "compute payments to clients that generate missing labels"),
    "audit": ("files", "find misbehaving clients"),
    "hindsight": ("files", "find the best kappa and each policy's regret"),
    "scaling": ("files", "print and plot scaling with ranks, clients and cohort"),
    "export": ("files", "write results as CSV or for TensorBoard"),
    "watch": ("files", "follow the progress of runs"),
    "show": ("files", "print the contents of a results file"),
    "digest": ("files", "print the SHA-256 of results"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done. 1: failed. 2: an error that the user can fix. 75, or 130 after Ctrl-C: the run was interrupted by
    the batch system or the user, and the same command continues it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    named = bool(arguments) and arguments[0] in COMMANDS
    name = arguments[0] if named else "run"
    module, _ = COMMANDS[name]
    return getattr(import_module(f"genfl_mpi.cli.{module}"), name)(arguments[1:] if named else arguments)
