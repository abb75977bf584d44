"""The commands: each a function of its arguments, in the file named here. Nothing is computed in them."""

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
    "laboratory": ("files", "which kappa would have been the best, and each policy's regret"),
    "scaling": ("files", "print and draw how runs scaled with ranks, clients and cohort"),
    "export": ("files", "write results as CSV or for TensorBoard"),
    "watch": ("files", "follow runs while they are computed"),
    "show": ("files", "print what is in a results file"),
    "digest": ("files", "print the SHA-256 of results"),
}
