"""Checkpoints, from which an interrupted run continues: the global weights and the server's memory.

Checkpoints lie in a folder beside the results file, one sealed file (`sealed_files`) for each checkpointed
round, named after the round. A kill or a power cut at any moment leaves the previous one intact; it is kept
until two newer ones exist, in case the newest is damaged. Other files in the folder are not touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from genfl_mpi.results import disk, sealed_files
from genfl_mpi.util.errors import UserError

KEPT_NEWEST = 2  # checkpoints that are never removed before the run ends
MAX_KEPT = 25  # older checkpoints that are kept by default


def keep_interval(rounds: int, every: int | None, size: int, limit: float) -> int | None:
    """Return k, so that the checkpoints of every k-th round take at most `limit` bytes; None: keep none.

    rounds: of the run; every: rounds between checkpoints, or None if they are not regular; size: bytes of a
    checkpoint. At most MAX_KEPT are kept.
    """
    count = int(min(MAX_KEPT, limit / size))
    if not every or not count:
        return None
    interval = every * -(-rounds // (count * every))
    return interval if interval <= rounds else None


def path_for(results: Path) -> Path:
    """Return the folder of a results file's checkpoints."""
    return results.with_suffix(".checkpoint")


def save(
    results: Path,
    run: str,
    round: int,
    weights: np.ndarray,
    state: Mapping[str, np.ndarray],
    keep: int | None = None,
) -> None:
    """Add a checkpoint beside a results file atomically, and remove those that are no longer needed.

    run: the run's id; weights: float32 (size,); state: other arrays by name; keep: keep the checkpoint of
    every keep-th round. Raises UserError.
    """
    path = _path(results, round)
    sealed_files.write(path, _identity(run, round), {"weights": np.asarray(weights), **state})
    try:
        disk.flush(path.parent)
        stored = list_rounds(results)
        newest = [old for old in stored if old <= round][-KEPT_NEWEST:]
        for old in stored:  # newer ones are damaged, else the run would have continued from them
            if old > round or (old not in newest and (keep is None or old % keep)):
                _path(results, old).unlink()
    except OSError as error:
        raise disk.write_error(path, error) from None


def list_rounds(results: Path) -> list[int]:
    """Return the checkpointed rounds in ascending order, including damaged ones."""
    return sorted(
        int(path.stem)
        for path in path_for(results).glob("*.safetensors")
        if re.fullmatch(r"[1-9][0-9]*", path.stem, re.ASCII) and path.is_file()
    )


def load(
    results: Path, run: str, warn: Callable[[str], object], round: int | None = None
) -> tuple[int, np.ndarray | None, dict[str, np.ndarray]]:
    """Return (round, weights, state) of the newest intact checkpoint, or of the one of `round`.

    Returns (0, None, {}) if none exists. run: the expected run id; warn: called with a line for each damaged
    checkpoint. Raises UserError if checkpoints exist but none is intact, or if one is of another run.
    """
    found = [one for one in list_rounds(results) if round in (None, one)]
    for one in reversed(found):
        path = _path(results, one)
        with suppress(sealed_files.Damaged, FileNotFoundError):
            identity, state = sealed_files.read(path)
            if identity.get("run", run) != run:
                raise UserError(
                    f"{path}: a checkpoint of run {identity['run']}, but {results.name} is of "
                    f"run {run}; move the checkpoint away"
                )
            if identity == _identity(run, one) and "weights" in state:
                return one, state.pop("weights"), state
        warn(f"{path}: the checkpoint is damaged")
    if found:
        raise UserError(
            f"{path_for(results)}: all checkpoints are damaged; start over with --fresh, which moves the old "
            "files aside"
        )
    return 0, None, {}


def read_locations(results: Path) -> list[np.ndarray]:
    """Return where each client's state lies, int64 (clients, 4), for each checkpoint, oldest first.

    Only checkpoints of algorithms with client arrays (SCAFFOLD) store it. Unreadable checkpoints are skipped:
    no run can continue from them.
    """
    found = []
    for round in list_rounds(results):
        with suppress(OSError, SafetensorError), safe_open(_path(results, round), "np") as file:
            found.append(file.get_tensor("locations"))
    return found


def remove(results: Path, keep: int | None = None) -> None:
    """Remove all checkpoints except those of every keep-th round, and the folder if it is empty.

    Raises UserError.
    """
    for round in list_rounds(results):
        if keep is None or round % keep:
            try:
                _path(results, round).unlink()
            except OSError as error:
                raise disk.write_error(_path(results, round), error) from None
    with suppress(OSError):
        path_for(results).rmdir()


def _path(results: Path, round: int) -> Path:
    return path_for(results) / f"{round}.safetensors"


def _identity(run: str, round: int) -> dict[str, str]:
    return {"run": run, "round": str(round)}
