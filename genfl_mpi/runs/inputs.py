"""Digests of a run's input files, stored at the first start and compared at every later start.

This covers every file and folder that a setting names and a round depends on. A test checks that no setting
is missing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from genfl_mpi.config import functions
from genfl_mpi.config.differences import flat_settings
from genfl_mpi.data import datasets
from genfl_mpi.generation import model_folder, prompts
from genfl_mpi.learning import library_models
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import h5py
    import numpy as np

    from genfl_mpi.config.settings import Config

FROZEN = "model.frozen"  # stands for the model's frozen parameters, which no checkpoint holds
DATA = "data"  # stands for the data set, for all settings on which it depends
FOLDERS = {"generation.checkpoint", "generation.adapter"}  # unless they name a function


def paths(config: Config) -> dict[str, Path]:
    """Find the files and folders that a resolved `config` names and uses: {setting: path}.

    Raises UserError for a missing checkpoint or adapter.
    """
    found = dict(functions.sources(flat_settings(config.model_dump())))
    split, generation = config.partition, config.generation
    if split.groups is not None and (split.scheme == "groups" or ":" in split.scheme):
        found["partition.groups"] = Path(split.groups)
    if config.time.trace is not None:
        found["time.trace"] = Path(config.time.trace)
    if (weights := library_models.weights_file(config.model)) is not None:
        found["model.weights"] = weights
    if config.generates:
        found["generation.prompts"] = prompts.prompt_file(generation.prompts)
        if not model_folder.is_function(generation.checkpoint):
            folder = found["generation.checkpoint"] = model_folder.locate(generation.checkpoint)
            if generation.adapter:
                found["generation.adapter"] = model_folder.locate_adapter(generation.adapter, folder)
    return found


def digests(
    config: Config, arrays: Mapping[str, np.ndarray] | None = None, frozen: str = ""
) -> dict[str, str]:
    """Hash all files that a resolved `config` names and uses: {setting: SHA-256}.

    arrays: those of the data set, to include it as "data". frozen: digest of the model's frozen parameters,
    or "". Checkpoints are read completely, once per process
    unless a file changes. Raises UserError for unreadable files.
    """
    found = {setting: _digest(setting, path) for setting, path in paths(config).items()}
    found |= {FROZEN: frozen} if frozen else {}
    return found if arrays is None else {**found, DATA: datasets.fingerprint(config.data, arrays)}


def stored(file: h5py.File, config: Config) -> dict[str, str]:
    """Read the digests in an open results file, except for settings that a fork's `config` changes."""
    before, now = flat_settings(reader.read_config(file)), flat_settings(config.model_dump(mode="json"))
    found = yaml.safe_load(file["config"].attrs.get("inputs", "{}"))
    keys = {name: name.partition("[")[0] for name in found}  # "transforms" of "transforms[0]"
    return {name: digest for name, digest in found.items() if before.get(keys[name]) == now.get(keys[name])}


def check(results: Path, config: Config, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise UserError if inputs of the run in the file `results` have changed.

    before, now: digests as in `digests`.
    """
    changed = [setting for setting in now if before.get(setting, now[setting]) != now[setting]]
    if not changed:
        return
    data = config.data
    names = {setting: f"{setting}: {path}" for setting, path in paths(config).items()}
    names[DATA] = f"{DATA}: the data set data.name={data.name} in data.root={data.root}"
    names[FROZEN] = f"{FROZEN}: the frozen parameters of model.name={config.model.name}"
    which, have = "; ".join(names[setting] for setting in changed), "has" if len(changed) == 1 else "have"
    raise UserError(
        f"{results}: {which} {have} changed since the run began; restore it, "
        "set another `output`, or start over with --fresh, which moves the old files aside"
    )


def _digest(setting: str, path: Path) -> str:
    """Hash a file, or the folder of a checkpoint or an adapter."""
    if setting in FOLDERS and path.is_dir():
        return model_folder.digest(path)
    if not path.is_file():  # for example a pipe, which can be read only once
        raise UserError(f"{setting}: {path} is not a file; give the path of one")
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror}") from None
