"""Train a generator: the `pretrain` and `finetune` commands."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from genfl_mpi.data import datasets, public
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.generation import model_folder, pipeline, validation
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.learning.weights import ExactSum
from genfl_mpi.mpi import collectives, devices
from genfl_mpi.mpi.schedule import assign
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError, annotate_errors
from genfl_mpi.util.progress_bar import progress
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from genfl_mpi.config.sections.images import Finetuning
    from genfl_mpi.config.settings import Config
    from genfl_mpi.generation.lora import Adapter
    from genfl_mpi.generation.prompts import Prompts
    from genfl_mpi.mpi.collectives import MPI


def pretrain(comm: MPI.Comm, config: Config, say: Callable[[str], object]) -> None:
    """Train a generator on public images by config.pretraining, and write it to pretraining.output.

    Raises UserError on more than one rank, without public images, if the folder cannot be written, or if the
    training diverges.
    """
    config, about = resolve(config, comm), datasets.describe(config.data)
    settings = config.pretraining

    def prepare() -> tuple[Prompts, tuple[torch.Tensor, np.ndarray, int], Path]:
        if comm.size > 1:
            raise UserError(
                f"pretrain runs on one rank, not {comm.size}; start it without mpirun, or with -n 1"
            )
        prompts, arrays = load_prompts(config.generation.prompts, about.classes), datasets.load(config.data)
        images = public.public_images(arrays, about, config.data, settings.images)
        return prompts, images, _create_folder("pretraining.output", settings.output)

    prompts, (images, labels, excluded), out = collectives.call_on_all(comm, prepare)
    device = devices.set_up(comm, config.runtime)
    say(
        f"training on {len(images)} public images; {excluded} excluded because they are byte for byte in the "
        "test set"
    )
    from genfl_mpi.generation import pretraining  # here, because importing diffusers takes seconds

    start = time.perf_counter()
    pretraining.pretrain(images, labels, prompts, settings, device, out, say)
    _record(
        out,
        config,
        {
            "data": config.data.name,
            "classes": list(about.classes),
            "public_pool": config.data.public_pool if settings.images == "public_pool" else 0,
            "images": len(images),
            "left_out_as_test_images": excluded,
            "pretraining": settings.model_dump(),
        },
        start,
    )


def finetune(comm: MPI.Comm, config: Config, say: Callable[[str], object]) -> None:
    """Train an adapter on all ranks by config.finetuning, and write it to finetuning.output. Collective.

    The holders of images are the server, or all clients. In each round every holder trains the same adapter
    on its images, and the new adapter is the average of the holders', weighted by their numbers of images.
    The sum is exact, so that the adapter does not depend on the ranks. (An adapter is a product of two
    factors, and the product of averages is not the average of products. What holders with skewed labels learn
    is only partly kept.)
    """
    config, about = resolve(config, comm), datasets.describe(config.data)
    settings = config.finetuning

    def prepare() -> tuple[Path, Prompts]:
        folder = model_folder.locate(config.generation.checkpoint)
        model_folder.require_stable_diffusion(folder, "fine-tuning")
        model_folder.check_training_data(folder, config.data)
        return folder, load_prompts(config.generation.prompts, about.classes)

    folder, prompts = collectives.call_on_all(comm, prepare)
    out = collectives.from_rank0(comm, lambda: _create_folder("finetuning.output", settings.output))
    device = devices.set_up(comm, config.runtime)
    data, window = collectives.node_shared(comm, lambda: load_and_divide(config))
    holders = collectives.call_on_all(comm, lambda: _holders(config, about, data))
    from genfl_mpi.generation.lora import Adapter  # here, because importing diffusers takes seconds

    start = time.perf_counter()
    adapter = Adapter(
        collectives.call_on_all(comm, lambda: pipeline.read(folder, device=device)), prompts, settings
    )
    sizes = np.array([len(samples) for samples in holders])
    ranks = assign(sizes, np.ones(comm.size), 0.0)
    assigned = {
        holder: (
            adapter.latents(data["train_images"][samples]),
            torch.from_numpy(data["train_labels"][samples]),
        )
        for holder, samples in enumerate(holders)
        if ranks[holder] == comm.rank
    }
    weights = _train_rounds(comm, adapter, assigned, sizes, settings, say)
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
                "classes": list(about.classes),
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
            f"wrote {out}: an adapter of {size / 1e3:.0f} kB from {sizes.sum()} images of "
            f"{counted(len(holders), 'holder')}, in {seconds:.0f} s on {counted(comm.size, 'rank')}; the "
            f"clients received and sent {sent / 1e6:.1f} MB"
        )
    window.Free()


def _train_rounds(
    comm: MPI.Comm,
    adapter: Adapter,
    assigned: dict[int, tuple[torch.Tensor, torch.Tensor]],
    sizes: np.ndarray,
    settings: Finetuning,
    say: Callable[[str], object],
) -> torch.Tensor:
    """Train the adapter in all rounds, and return its weights on rank 0. Collective.

    assigned: {holder: (latents, labels)} of this rank; sizes: int (holders,), images of each holder.
    """
    start = time.perf_counter()
    weights, units = adapter.weights.to("cpu", copy=True), np.zeros(len(adapter.weights), dtype=np.int64)
    total = ExactSum(units)
    for round in progress(range(settings.rounds), "fine-tuning", "rounds"):
        collectives.broadcast(comm, weights.numpy())
        units[:] = 0
        for holder, (latents, labels) in assigned.items():
            with annotate_errors(f"fine-tuning round {round + 1}, {settings.at} {holder}"):
                seed = streams.integer(settings.seed, "finetune", round, holder)
                adapter.train(weights, latents, labels, seed)
                total.add(sizes[holder] / sizes.sum(), adapter.weights)
        collectives.wait_for_all(comm)
        collectives.reduce_sum(comm, units)
        weights.copy_(total.value())
        if (round + 1) % max(1, settings.rounds // 5) == 0:
            say(f"{time.perf_counter() - start:6.0f} s  round {round + 1}/{settings.rounds}")
    return weights


def _holders(config: Config, about: datasets.Description, data: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Choose the samples, int64 (n,), of each holder: per_class of each class, from the pool or the clients.

    Raises UserError if these hold too few.
    """
    settings, labels = config.finetuning, data["train_labels"]
    wanted = settings.per_class * len(about.classes)
    if settings.at == "server":
        if wanted > config.data.public_pool:
            raise UserError(
                f"finetuning.per_class={settings.per_class} needs a public pool of {wanted} images at the "
                f"server, not {config.data.public_pool}: set data.public_pool={wanted}"
            )
        return [public.public_pool(labels, wanted, len(about.classes))]
    held = data["indices"]
    # With replacement several clients may hold a sample: it is chosen at one of them.
    chosen = np.zeros(len(held), dtype=bool)
    for label in range(len(about.classes)):
        places = np.flatnonzero(labels[held] == label)
        if len(places) < settings.per_class:
            raise UserError(
                f"finetuning.per_class={settings.per_class}: the clients hold {len(places)} images of "
                f"{about.classes[label]}; set at most that"
            )
        places = places[np.argsort(held[places], kind="stable")]
        rng = streams.generator(settings.seed, "finetune", label)
        chosen[rng.permutation(places)[: settings.per_class]] = True
    clients = zip(*(np.split(part, data["pointers"][1:-1]) for part in (held, chosen)))
    return [samples[mask] for samples, mask in clients if mask.any()]


def _create_folder(key: str, name: str) -> Path:
    """Create the folder `name` before the training, so that it does not fail after hours.

    key: the setting that names it. Raises UserError if it cannot be created or is not empty.
    """
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{key}: {name} exists and is not empty; move it away, or set another folder")
    except OSError as error:
        raise UserError(f"{key}: {name} cannot be written: {error.strerror}; set another folder") from None
    return folder


def _record(out: Path, config: Config, facts: dict[str, Any], start: float) -> None:
    """Record in `out` how its model was made. start: of the training, by time.perf_counter."""
    record = {
        **facts,
        "seconds": round(time.perf_counter() - start),
        "device": config.runtime.device,
        "threads": config.runtime.threads,
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
    }
    (out / validation.RECORD).write_text(yaml.safe_dump(record, sort_keys=False))
