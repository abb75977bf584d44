"""The commands: each a function of its arguments, in the file named here. Nothing is computed in them."""

# name: (file, what `python -m genfl_mpi --help` says of it)
COMMANDS = {
    "run": ("run", ""),
    "fork": ("run", "go on from a round of a finished run in another way"),
    "prefetch": ("prepare", "download data set and checkpoint"),
    "partition": ("prepare", "print and draw how the clients' data differ"),
    "prompts": ("prepare", "print what the generator would be asked"),
    "generate": ("prepare", "fill the bank of images ahead of time, over all ranks"),
    "quality": ("generators", "judge the images of a bank"),
    "pretrain": ("generators", "train a small generator on public images"),
    "finetune": ("generators", "train a LoRA adapter for a generator"),
    "plot": ("files", "draw accuracy against rounds, from results files"),
    "claims": ("files", "test the paper's claims on results files"),
    "price": ("files", "what runs take in seconds, joules and bytes, in simulated worlds"),
    "incentive": ("files", "what to pay clients for generating what their labels lack"),
    "laboratory": ("files", "which kappa would have been the best, and each policy's regret"),
    "show": ("files", "print what is in a results file"),
    "digest": ("files", "print the SHA-256 of results"),
}
