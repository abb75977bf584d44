"""The command line: each command is a function of its arguments, in the file named here. Nothing is computed in this room."""

import sys
from importlib import import_module

# name: (file, what `python -m genfl_mpi --help` says of it)
COMMANDS = {
    "run": ("run", ""),
    "fork": ("run", "go on from a round of a finished run in another way"),
    "doctor": ("prepare", "examine the set-up, and say what to mend"),
    "prefetch": ("prepare", "download data set and checkpoint"),
    "partition": ("prepare", "print and draw how the clients' data differ"),
    "prompts": ("prepare", "print what the generator would be asked"),
    "plan": ("prepare", "predict what a run will take on so many ranks"),
    "generate": ("prepare", "fill the bank of images ahead of time, over all ranks"),
    "quality": ("generators", "judge the images of a bank"),
    "pretrain": ("generators", "train a small generator on public images"),
    "finetune": ("generators", "train a LoRA adapter for a generator"),
    "plot": ("files", "draw accuracy and other figures from results files"),
    "summary": ("files", "many runs at a glance, while some still run"),
    "report": ("files", "write all about runs into one HTML file"),
    "claims": ("files", "test the paper's claims on results files"),
    "price": ("files", "what runs take in seconds, joules and bytes, in simulated worlds"),
    "incentive": ("files", "what to pay clients for generating what their labels lack"),
    "audit": ("files", "which clients did not do what they claim"),
    "hindsight": ("files", "which kappa would have been the best, and each policy's regret"),
    "scaling": ("files", "print and draw how runs scaled with ranks, clients and cohort"),
    "export": ("files", "write results as CSV or for TensorBoard"),
    "watch": ("files", "follow runs while they are computed"),
    "show": ("files", "print what is in a results file"),
    "digest": ("files", "print the SHA-256 of results"),
}


def main(arguments=None):
    """Run one command; returns the exit status: 0, 2 for what the user can mend, 1 for what failed, or 75 and 130 for a run that
    was asked to leave, by a batch system or by Ctrl-C, and that the same command continues."""
    arguments = sys.argv[1:] if arguments is None else arguments
    named = bool(arguments) and arguments[0] in COMMANDS
    name = arguments[0] if named else "run"
    module, _ = COMMANDS[name]
    return getattr(import_module(f"genfl_mpi.cli.{module}"), name)(arguments[1:] if named else arguments)
