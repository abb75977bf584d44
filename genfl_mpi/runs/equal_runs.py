"""Find a finished run whose rounds another run would only repeat.

If no client trains, as with method=aigc, settings of the clients' training have no effect, and the rounds
depend on the clients' data only by the images that the plan requests. Two runs of a sweep over
privacy.epsilon are then equal, and so are two of one over partition.alpha, except for how accurate the same
model is for the clients' labels.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from genfl_mpi.config.differences import flat_settings
from genfl_mpi.config.remarks import find_unused
from genfl_mpi.config.settings import is_free
from genfl_mpi.config.world import Incentive
from genfl_mpi.learning.evaluation import accuracy_over_clients
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.simulation import Simulation

# Sections that affect such a run by its plan of images alone, which is compared.
BY_PLAN = {"partition", "label_sharing", "selection", "rho"}
ROUNDED = {"hindsight", "audit"}  # free settings that add rows to the results


def find(
    simulation: Simulation, inputs: Mapping[str, str], others: Iterable[tuple[Path, Config]]
) -> tuple[Path, dict[str, Any], np.ndarray] | None:
    """Return the results file of an equal finished run, with its tables and weights for this run; else None.

    Call on rank 0. inputs: digests of this run's inputs. others: (results file, prepared `Config`) of runs
    that may be equal. Measured columns of the tables stay those of the other run.
    """
    config = simulation.config
    measures_clients = config.probes.every is not None or config.calibration.every is not None
    if config.trains_clients or measures_clients or config.world or config.incentive != Incentive():
        return None
    wanted, planned = _relevant(config), None
    for path, other in others:
        if _relevant(other) != wanted:
            continue
        with suppress(UserError), reader.open_results(path) as file, reader.report_damage(path):
            if not reader.is_finished(file) or reader.count_rounds(file) != config.rounds:
                continue
            stored = yaml.safe_load(file["config"].attrs["inputs"])
            if any(
                stored.get(name) != inputs[name] for name in inputs if name.partition(".")[0] not in BY_PLAN
            ):
                continue
            tables = reader.read_tables_until(file, config.rounds)
            planned = _planned(simulation) if planned is None else planned
            generated = tables["generated"]
            if list(dict.fromkeys(zip(generated["round"].tolist(), generated["batch"].tolist()))) == planned:
                _adapt(tables["rounds"], simulation.data["label_histograms"])
                return path, tables, reader.read_array(file, "weights")
    return None


def _relevant(config: Config) -> dict[str, Any]:
    """Return the settings that must be the same in an equal run."""
    settings = flat_settings(config.model_dump(mode="json"))
    unused = find_unused(settings, [config])
    return {
        key: value
        for key, value in settings.items()
        if key == "rounds"
        or key.partition(".")[0] in ROUNDED
        or not (is_free(key) or key in unused or key.partition(".")[0] in BY_PLAN)
    }


def _planned(simulation: Simulation) -> list[tuple[int, bytes]]:
    """Return (round, key in the bank) of each batch of the run, in order."""
    if simulation.server is None or not simulation.config.generates:
        return []
    images = simulation.server.images
    return [
        (round, images.generator.bank.key(batch).encode())
        for round, batches in enumerate(images.batches_from(simulation.server.state, 0), 1)
        for batch in batches
    ]


def _adapt(rounds: dict[str, np.ndarray], histograms: np.ndarray) -> None:
    """Replace the columns of /rounds that depend on the clients' data. histograms: int (clients, classes)."""
    rows = [accuracy_over_clients(accuracy, histograms) for accuracy in rounds["accuracy_per_class"]]
    for name in rows[0]:
        rounds[name] = np.array([row[name] for row in rows])
