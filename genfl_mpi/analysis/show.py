"""What is in a results file, as text of at most 80 columns."""

import textwrap
from pathlib import Path

import numpy as np

from genfl_mpi.config.loading import decided
from genfl_mpi.config.settings import Composition, Config
from genfl_mpi.results import checkpoint, progress
from genfl_mpi.results.reader import (
    array_of,
    columns_of,
    config_of,
    damage,
    is_finished,
    open_results,
    run_of,
)
from genfl_mpi.util.text import counted


def show(path):
    """Lines that describe a results file."""
    ranks = list(_ranks(Path(path)))  # no part of the file, which is not to blame for it
    with open_results(path) as file, damage(path):
        config, environment = config_of(file), file["environment"].attrs
        rounds = columns_of(file, "rounds")
        done, split = len(rounds["round"]), config["partition"]
        yield f"{path}"
        yield f"  {'finished' if is_finished(file) else 'not finished'}: {done} of {config['rounds']} rounds, method {config['method']}, seed {config['seed']}"
        yield f"  run {run_of(file)}"
        if origin := file["config"].attrs.get("origin"):
            yield f"  fork of {origin}"
        yield from ranks
        yield from _checkpoints(Path(path), is_finished(file))
        yield from _wrapped(f"policies: {', '.join(_policies(config))}")
        yield from _wrapped(
            "settings that are no default: "
            + ", ".join(f"{key}={value}" for key, value in decided(config).items())
        )
        yield from _wrapped(environment["packages"])
        where = (
            f"{counted(environment['ranks'], 'rank')} x {counted(environment['threads'], 'thread')} on {environment['device']}, "
            f"{environment['processor']}, {environment['started']}"
        )
        yield from _wrapped(where)
        emd, sizes = array_of(file, "partition/emd"), np.diff(array_of(file, "partition/pointers"))
        how = f"Dirichlet({split['alpha']:g})" if split["scheme"] == "dirichlet" else split["scheme"]
        yield (
            f"  data {config['data']['name']}, {config['clients']} clients, {how}: {sizes.min()} to {sizes.max()} samples, "
            f"mean EMD {emd.mean():.2f}"
        )
        yield f"  model {config['model']['name']}, {len(file['weights']):,} weights; {len(file['generated/number']):,} generated images"
        yield ""
        yield from _table(rounds)


def _ranks(path):
    """What the ranks are doing, or were doing when they failed or were cut off."""
    if word := progress.state(path):
        yield f"  {word}:"
        for line in progress.lines(path):
            yield from textwrap.wrap(line, 80, initial_indent="    ", subsequent_indent="      ")


def _wrapped(text):
    return textwrap.wrap(text, 80, initial_indent="  ", subsequent_indent="    ")


def _policies(config):
    """Who decides in the run: its policies, as far as its method asks them, and the algorithm."""
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


def _checkpoints(path, finished):
    """Of which rounds there are checkpoints, and what for."""
    if there := checkpoint.rounds(path):
        use = "for more rounds, and for forks" if finished else "the same command continues from the last"
        yield from _wrapped(f"checkpoints in {checkpoint.path_for(path).name}/ of {_rounds(there)}: {use}")


def _rounds(numbers, most=6):
    """Numbers of rounds as text, of many the last ones."""
    return f"round{'s' if len(numbers) > 1 else ''} {'..., ' if len(numbers) > most else ''}{', '.join(map(str, numbers[-most:]))}"


def _table(rounds):
    yield " round  accuracy   loss  kappa2  images   train generate augment    wait   total"
    yield "             (%)  (nat)                     (s)      (s)     (s)     (s)     (s)"
    for i in _some(len(rounds["round"])):
        row = {name: column[i] for name, column in rounds.items()}
        loss = (
            f"{row['loss']:5.2f}" if row["loss"] < 99 else f"{row['loss']:5.0e}"
        )  # a run that diverges has 5 columns too
        yield (
            f"{row['round']:6d}  {100 * row['accuracy']:8.2f}  {loss}  {row['kappa2']:6.2f}  {row['images']:6d}"
            f"  {row['train_seconds']:6.2f} {row['generate_seconds']:8.2f} {row['augment_seconds']:7.2f}"
            f"  {row['wait_seconds']:6.2f}  {row['round_seconds']:6.2f}"
        )


def _some(count, most=20):
    """All rows, or about `most` of them, evenly, with the first and the last."""
    return range(count) if count <= most else np.unique(np.linspace(0, count - 1, most).round().astype(int))
