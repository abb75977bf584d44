"""Recognise finished runs, and how they were started, without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genfl_mpi.config.differences import differing_settings
from genfl_mpi.config.loading import validate
from genfl_mpi.config.settings import fill_in
from genfl_mpi.results import lock, progress, reader
from genfl_mpi.runs import inputs
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from genfl_mpi.config.sections.operation import Runtime
    from genfl_mpi.config.settings import Config


def are_finished(runs: Mapping[Path, Config]) -> bool:
    """Return whether all runs, {results file: configuration}, are finished and nothing is left to do.

    If anything is wrong with one of them, they are not: the ordinary start then reports it.
    """
    try:
        return all(_is_finished(path, config) for path, config in runs.items())
    except (UserError, OSError):
        return False


def _is_finished(path: Path, config: Config) -> bool:
    """Return whether the results file `path` holds all rounds of `config`, computed from today's inputs.

    Raises UserError for a damaged file or a missing input.
    """
    if not path.exists() or progress.read(path) or lock.is_held(path):
        return False
    with reader.open_results(path) as file, reader.report_damage(path):
        rounds = reader.read_columns(file, "rounds")["round"]  # all columns, to find damage
        if not reader.is_finished(file) or len(rounds) != config.rounds:
            return False
        stored = reader.read_config(file)
        config = with_first_runtime(config, stored, path)
        config = fill_in(config, config.runtime.threads or 1, config.runtime.device)
        if differing_settings(stored, config.model_dump(mode="json")):
            return False
        before = inputs.stored(file, config)
        reader.read_array(file, "weights")
        return all(before.get(name, now) == now for name, now in inputs.digests(config).items())


def with_first_runtime(config: Config, stored: dict[str, Any], path: Path) -> Config:
    """Fill threads and device, if `config` does not set them, with those of the run's first start.

    stored: the configuration in the results file `path`.
    """
    first: Runtime = validate(stored, str(path)).runtime
    now = config.runtime
    runtime = now.model_copy(
        update={
            "threads": now.threads or first.threads,
            "device": first.device if now.device == "auto" else now.device,
        }
    )
    return config.model_copy(update={"runtime": runtime})
