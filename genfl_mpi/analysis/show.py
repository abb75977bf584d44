"""Describe a results file as text of at most WIDTH columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from genfl_mpi.config.composition import Composition
from genfl_mpi.config.differences import chosen_settings
from genfl_mpi.config.settings import Config
from genfl_mpi.data.datasets import decode_texts
from genfl_mpi.results import checkpoint, progress
from genfl_mpi.results.reader import (
    is_finished,
    open_results,
    read_array,
    read_columns,
    read_config,
    read_run_id,
    report_damage,
)
from genfl_mpi.util.text import WIDTH, counted

MAX_ROWS = 20  # of the table of rounds
MAX_CHECKPOINTS = 6  # rounds that are listed
MAX_TEXTS = 6  # generated samples of a class


def show(path: str | Path) -> Iterator[str]:
    """Yield lines that describe a results file. Raises UserError."""
    ranks = list(_ranks(Path(path)))  # outside `report_damage`: progress is not part of the file
    with open_results(path) as file, report_damage(path):
        config, environment = read_config(file), file["environment"].attrs
        rounds = read_columns(file, "rounds")
        done, split = len(rounds["round"]), config["partition"]
        yield f"{path}"
        word = "finished" if is_finished(file) else "not finished"
        yield (
            f"  {word}: {done} of {config['rounds']} rounds, method {config['method']}, seed {config['seed']}"
        )
        yield f"  run {read_run_id(file)}"
        if origin := file["config"].attrs.get("origin"):
            yield f"  fork of {origin}"
        if source := file["config"].attrs.get("copy_of"):
            yield from _wrapped(f"rounds and measured times copied from {source}, an equal run")
        yield from ranks
        yield from _checkpoints(Path(path), is_finished(file))
        yield from _wrapped(f"policies: {', '.join(_policies(config))}")
        yield from _wrapped(
            "non-default settings: "
            + ", ".join(f"{key}={value}" for key, value in chosen_settings(config).items())
        )
        yield from _wrapped(environment["packages"])
        yield from _wrapped(
            f"{counted(environment['ranks'], 'rank')} x {counted(environment['threads'], 'thread')} on "
            f"{environment['device']}, {environment['processor']}, {environment['started']}"
        )
        yield from _wrapped(_devices(rounds))
        emd, sizes = read_array(file, "partition/emd"), np.diff(read_array(file, "partition/pointers"))
        scheme = f"Dirichlet({split['alpha']:g})" if split["scheme"] == "dirichlet" else split["scheme"]
        yield (
            f"  data {config['data']['name']}, {config['clients']} clients, {scheme}: {sizes.min()} to "
            f"{sizes.max()} samples, mean EMD {emd.mean():.2f}"
        )
        yield (
            f"  model {config['model']['name']}, {len(file['weights']):,} weights; "
            f"{len(file['generated/number']):,} generated images"
        )
        yield from _samples(file)
        yield ""
        yield from _table(rounds)
        if np.isfinite(rounds["subset_accuracy"]).any():
            yield f"  (accuracy) on {config['evaluation']['subset']} test samples between two evaluations"


def _samples(file: h5py.File) -> Iterator[str]:
    """Yield a few generated texts of each class, if samples are texts."""
    alphabet = file["config"].attrs.get("alphabet", "")
    if not alphabet:
        return
    names = yaml.safe_load(file["config"].attrs["class_names"])
    labels, samples = read_columns(file, "generated", ["label", "image"]).values()
    for label, name in enumerate(names):
        if texts := decode_texts(samples[labels == label][:MAX_TEXTS], alphabet):
            yield from _wrapped(f"generated, {name}: {', '.join(texts)}")


def _ranks(path: Path) -> Iterator[str]:
    """Yield what the ranks are doing, or were doing when they failed or were cut off."""
    if word := progress.read_state(path):
        yield f"  {word}:"
        for line in progress.describe_ranks(path):
            yield from textwrap.wrap(line, WIDTH, initial_indent="    ", subsequent_indent="      ")


def _devices(rounds: dict[str, np.ndarray]) -> str:
    """Describe from which round on the run was computed on which devices, if there were several."""
    names = rounds["device"]
    starts = [0, *(1 + np.flatnonzero(names[1:] != names[:-1]))] if len(names) else []
    found = [f"{names[one].decode() or 'unknown'} from round {one + 1}" for one in starts]
    return f"devices: {', '.join(found)}" if len(found) > 1 else ""


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _policies(config: dict[str, Any]) -> Iterator[str]:
    """Yield the policies that the run's method uses, and the algorithm."""
    method = Config.model_construct(composition=Composition(**config["composition"]))
    if method.trains_clients:
        yield from (f"selection {config['selection']['policy']}", f"rho {config['rho']['policy']}")
    if method.trains_clients and method.augments:
        kappa = config["kappa"]
        yield f"kappa {kappa['policy']}" + (
            f" (kappa2 {kappa['kappa2']:g})" if kappa["policy"] == "fixed" else ""
        )
    if method.generates and not method.fills:
        yield f"plan {config['generation']['plan']}"
    if method.trains_clients:
        yield f"algorithm {config['algorithm']['name']}"


def _checkpoints(path: Path, finished: bool) -> list[str]:
    """Return which rounds have checkpoints, and their use."""
    if rounds := checkpoint.list_rounds(path):
        use = "for more rounds, and for forks" if finished else "the same command continues from the last"
        return _wrapped(f"checkpoints in {checkpoint.path_for(path).name}/ of {_round_names(rounds)}: {use}")
    return []


def _round_names(numbers: Sequence[int]) -> str:
    """Return rounds as text, at most the last MAX_CHECKPOINTS."""
    prefix = "..., " if len(numbers) > MAX_CHECKPOINTS else ""
    names = prefix + ", ".join(map(str, numbers[-MAX_CHECKPOINTS:]))
    return f"round{'s' if len(numbers) > 1 else ''} {names}"


def _table(rounds: dict[str, np.ndarray]) -> Iterator[str]:
    yield " round  accuracy   loss  kappa2  images   train generate augment    wait   total"
    yield "             (%)  (nat)                     (s)      (s)     (s)     (s)     (s)"
    count = len(rounds["round"])
    for i in _selected_rows(count):
        row = {name: column[i] for name, column in rounds.items()}
        # The loss of a run that diverges must fit into 5 columns too.
        loss = f"{row['loss']:5.0e}" if row["loss"] >= 99 else f"{row['loss']:5.2f}".replace("nan", "  -")
        yield (
            f"{row['round']:6d}  {_accuracy(row)}  {loss}  {row['kappa2']:6.2f}"
            f"  {row['images']:6d}  {row['train_seconds']:6.2f} {row['generate_seconds']:8.2f}"
            f" {row['augment_seconds']:7.2f}"
            f"  {row['wait_seconds']:6.2f}  {row['round_seconds']:6.2f}"
        )
    if count > MAX_ROWS:
        yield f" ({MAX_ROWS} of {count} rounds)"


def _accuracy(row: dict[str, Any]) -> str:
    """Return the accuracy of a round, in percent: on the subset in brackets, or a dash without any."""
    if np.isfinite(row["accuracy"]):
        return f"{100 * row['accuracy']:8.2f}"
    subset = row["subset_accuracy"]
    return f"{f'({100 * subset:.2f})' if np.isfinite(subset) else '-':>8}"


def _selected_rows(count: int) -> Iterable[int]:
    """Return all rows, or at most MAX_ROWS of them, evenly spaced, with the first and the last."""
    if count <= MAX_ROWS:
        return range(count)
    return np.unique(np.linspace(0, count - 1, MAX_ROWS).round().astype(int))
