"""What a run reads beside its configuration: digests, stored at the first start, compared at each later one.

Whatever file or folder a setting names and a round depends on belongs here. A test walks all settings and
fails for one that was forgotten.
"""

import hashlib
from pathlib import Path

import yaml

from genfl_mpi.config import functions
from genfl_mpi.config.loading import settings_of
from genfl_mpi.data import datasets
from genfl_mpi.generation import model_folder, prompts
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

DATA = "data"  # stands for the data set, whatever settings it depends on
FOLDERS = {"generation.checkpoint", "generation.adapter"}  # where they name no function


def paths(config):
    """Find the files and folders that a resolved `config` names and uses: {setting: Path}.

    Raises UserError for a checkpoint or adapter that is not there.
    """
    found = dict(functions.sources(settings_of(config.model_dump())))
    split, generation = config.partition, config.generation
    if split.groups is not None and (split.scheme == "groups" or ":" in split.scheme):
        found["partition.groups"] = Path(split.groups)
    if config.generates:
        found["generation.prompts"] = prompts.path_of(generation.prompts)
        if not model_folder.is_function(generation.checkpoint):
            folder = found["generation.checkpoint"] = model_folder.locate(generation.checkpoint)
            if generation.adapter:
                found["generation.adapter"] = model_folder.locate_adapter(generation.adapter, folder)
    return found


def digests(config, arrays=None):
    """Hash all that a resolved `config` names and uses: {setting: SHA-256}.

    arrays: the data set's, which adds "data". A checkpoint is read whole, each file once a process as long
    as it does not change. Raises UserError for what cannot be read.
    """
    found = {setting: _digest(setting, path) for setting, path in paths(config).items()}
    return found if arrays is None else {**found, DATA: datasets.fingerprint(arrays)}


def stored(file, config):
    """Read the digests in an open results file, but of settings that a fork's `config` changes."""
    before, now = settings_of(reader.config_of(file)), settings_of(config.model_dump(mode="json"))
    found = yaml.safe_load(file["config"].attrs.get("inputs", "{}"))
    return {setting: digest for setting, digest in found.items() if before.get(setting) == now.get(setting)}


def check(results, config, before, now):
    """Raise UserError if a digest `before`, of the run in the file `results`, is another `now`."""
    changed = [setting for setting in now if before.get(setting, now[setting]) != now[setting]]
    if not changed:
        return
    data = config.data
    names = {setting: f"{setting}: {path}" for setting, path in paths(config).items()}
    names[DATA] = f"{DATA}: what data.name={data.name} reads from data.root={data.root}"
    which, have = "; ".join(names[setting] for setting in changed), "has" if len(changed) == 1 else "have"
    raise UserError(
        f"{results}: {which} {have} changed since the run began; restore it, "
        "set another `output`, or start over with --fresh, which moves the old files aside"
    )


def _digest(setting, path):
    """Hash a file, or the folder of a checkpoint or an adapter."""
    if setting in FOLDERS and path.is_dir():
        return model_folder.digest(path)
    if not path.is_file():  # a pipe, say, which can be read but once
        raise UserError(f"{setting}: {path} is not a file")
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read: {error.strerror}") from None
