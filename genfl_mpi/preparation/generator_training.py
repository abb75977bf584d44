"""Teaching a generator: the commands `pretrain` and `finetune`."""

import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import yaml

from genfl_mpi.data import datasets, public
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.generation import model_folder, pipeline, validation
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.learning.weights import ExactSum
from genfl_mpi.mpi import collectives, devices, failing
from genfl_mpi.mpi.schedule import assign
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted


def pretrain(comm, config, say):
    """Train a generator as config.pretraining says, on public images, and write it to pretraining.output."""
    config, about = resolve(config, comm), datasets.describe(config.data)
    settings = config.pretraining

    def ready():
        if comm.size > 1:
            raise UserError("pretrain works on one rank; start it without mpirun, or with -n 1")
        prompts, arrays = load_prompts(config.generation.prompts, about.classes), datasets.load(config.data)
        return (
            prompts,
            public.images(arrays, about, config.data, settings.images),
            _new_folder("pretraining.output", settings.output),
        )

    prompts, (images, labels, tested), out = collectives.together(comm, ready)
    device = devices.use(comm, config.runtime.threads, config.runtime.device)
    say(
        f"{len(images)} public images to learn from; {tested} left out, which are byte for byte in the test set"
    )
    from genfl_mpi.generation import pretraining  # here, because diffusers takes seconds

    start = time.perf_counter()
    pretraining.pretrain(images, labels, prompts, settings, device, out, say)
    _record(
        out,
        config,
        {
            "data": config.data.name,
            "public_pool": config.data.public_pool if settings.images == "public_pool" else 0,
            "images": len(images),
            "left_out_as_test_images": tested,
            "pretraining": settings.model_dump(),
        },
        start,
    )


def finetune(comm, config, say):
    """Train an adapter as config.finetuning says, over all ranks, and write it to finetuning.output. Collective.

    The server or every client is a holder of images. In a round each holder trains from the same adapter on its own
    images; the new adapter is the holders' average, weighted by their numbers of images, in an exact sum: it does not
    depend on the ranks. (An adapter is a product of two factors, and the product of averages is not the average of
    products: what skewed holders learn is kept in part.)
    """
    config, about = resolve(config, comm), datasets.describe(config.data)
    settings = config.finetuning

    def ready():
        folder = model_folder.locate(config.generation.checkpoint)
        model_folder.require_original(folder, "fine-tuning")
        model_folder.check_public(folder, config.data)
        return folder, load_prompts(config.generation.prompts, about.classes)

    folder, prompts = collectives.together(comm, ready)
    out = collectives.from_rank0(comm, lambda: _new_folder("finetuning.output", settings.output))
    device = devices.use(comm, config.runtime.threads, config.runtime.device)
    data, window = collectives.node_shared(comm, lambda: load_and_divide(config))
    holders = collectives.together(comm, lambda: _holders(config, about, data))
    from genfl_mpi.generation.lora import Adapter  # here, because diffusers takes seconds

    start = time.perf_counter()
    adapter = Adapter(
        collectives.together(comm, lambda: pipeline.read(folder, device=device)), prompts, settings
    )
    sizes = np.array([len(samples) for samples in holders])
    ranks = assign(sizes, np.ones(comm.size), 0.0)
    own = {
        holder: (
            adapter.latents(data["train_images"][samples]),
            torch.from_numpy(data["train_labels"][samples]),
        )
        for holder, samples in enumerate(holders)
        if ranks[holder] == comm.rank
    }
    weights, units = adapter.weights.to("cpu", copy=True), np.zeros(len(adapter.weights), dtype=np.int64)
    total = ExactSum(units)
    for round in range(settings.rounds):
        collectives.broadcast(comm, weights.numpy())
        units[:] = 0
        for holder, (latents, labels) in own.items():
            with failing.named(f"fine-tuning round {round + 1}, {settings.at} {holder}"):
                adapter.train(
                    weights, latents, labels, streams.integer(settings.seed, "finetune", round, holder)
                )
                total.add(sizes[holder] / sizes.sum(), adapter.weights)
        collectives.arrive(comm)
        collectives.reduce_sum(comm, units)
        weights.copy_(total.value())
        if (round + 1) % max(1, settings.rounds // 5) == 0:
            say(f"{time.perf_counter() - start:6.0f} s  round {round + 1}/{settings.rounds}")
    if comm.rank == 0:
        adapter.weights.copy_(weights)
        size = adapter.save(out)
        seconds = time.perf_counter() - start
        sent = 2 * size * len(holders) * settings.rounds if settings.at == "clients" else 0
        _record(
            out,
            config,
            {
                "data": config.data.name,
                "public_pool": int(sizes.sum()) if settings.at == "server" else 0,
                "checkpoint": model_folder.digest(folder),
                "images": int(sizes.sum()),
                "holders": len(holders),
                "bytes": size,
                "bytes_sent": sent,
                "finetuning": settings.model_dump(),
            },
            start,
        )
        say(
            f"wrote {out}: an adapter of {size / 1e3:.0f} kB, from {sizes.sum()} images at {counted(len(holders), 'holder')}, "
            f"in {seconds:.0f} s on {comm.size} ranks; up- and downlinks of the clients carried {sent / 1e6:.1f} MB"
        )
    window.Free()


def _holders(config, about, data):
    """The samples, int64 arrays, on which each holder trains: per_class of each class, in the pool or among the clients."""
    settings, labels = config.finetuning, data["train_labels"]
    wanted = settings.per_class * len(about.classes)
    if settings.at == "server":
        if wanted > config.data.public_pool:
            raise UserError(
                f"finetuning.per_class={settings.per_class} needs a public pool of {wanted} images at the server: set data.public_pool={wanted}"
            )
        return [public.pool(labels, wanted, len(about.classes))]
    held = data["indices"]
    chosen = np.zeros(
        len(held), dtype=bool
    )  # with replacement several clients may hold a sample, and one of them gives it
    for label in range(len(about.classes)):
        places = np.flatnonzero(labels[held] == label)
        if len(places) < settings.per_class:
            raise UserError(
                f"finetuning.per_class={settings.per_class}: the clients hold {len(places)} images of {about.classes[label]}"
            )
        places = places[np.argsort(held[places], kind="stable")]
        chosen[
            streams.generator(settings.seed, "finetune", label).permutation(places)[: settings.per_class]
        ] = True
    clients = zip(*(np.split(part, data["pointers"][1:-1]) for part in (held, chosen)))
    return [samples[own] for samples, own in clients if own.any()]


def _new_folder(key, name):
    """Make the folder `name`, so that nobody waits for something that cannot be written. Raises UserError."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(
                f"{key}: {name} is there already and not empty; move it away, or set another folder"
            )
    except OSError as error:
        raise UserError(f"{key}: {name} cannot be written: {error.strerror}") from None
    return folder


def _record(out, config, what, start):
    """Write down what was made, how, and in what time."""
    record = {
        **what,
        "seconds": round(time.perf_counter() - start),
        "device": config.runtime.device,
        "threads": config.runtime.threads,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
    }
    (out / validation.RECORD).write_text(yaml.safe_dump(record, sort_keys=False))
