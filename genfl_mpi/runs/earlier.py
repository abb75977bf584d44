"""Find what a run continues: the rounds of its earlier starts, or of the run that it forks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from genfl_mpi.config.differences import differing_settings, flat_settings, varied_settings
from genfl_mpi.config.loading import validate
from genfl_mpi.federation.policy_lookup import find_memory
from genfl_mpi.results import checkpoint, reader, sealed_files
from genfl_mpi.runs import equal_runs, inputs
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import h5py
    import numpy as np

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.simulation import Simulation

Fork: TypeAlias = tuple[Path, int]  # results file and round
Say: TypeAlias = Callable[[str], None]


@dataclass
class Earlier:
    """State from an earlier start of the run, or from the run of which it is a fork.

    finished: whether that run is complete. rounds: number of rounds after which to continue. weights: after
    those rounds. state: of the server. tables: stored rows of all finished rounds; rounds after `rounds` have
    no checkpoint and are recomputed and compared. origin: file and round of which the run is a fork, as text.
    source, source_run: that file and the id of its run, until the fork has a results file. inputs: digests of
    the inputs. run: id of the run, a new one at its first start. copy_of: results file of an equal run whose
    rounds it copied, as text.
    """

    finished: bool = False
    rounds: int = 0
    weights: np.ndarray | None = None
    state: dict[str, np.ndarray] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    source: Path | None = None
    source_run: str = ""
    inputs: dict = field(default_factory=dict)
    run: str = field(default_factory=sealed_files.new_run_id)
    copy_of: str = ""

    @property
    def stored(self) -> int:
        """The number of rounds in `tables`."""
        return len(self.tables["rounds"]["round"]) if self.tables else 0


def find_earlier(path: Path, config: Config, fork: Fork | None, say: Say) -> Earlier:
    """Return the state that `config` continues. Raises UserError if it cannot."""
    if not path.exists():
        return _read_forked(*fork, config, say) if fork else Earlier()
    with reader.open_results(path) as file, reader.report_damage(path):
        earlier = read_kept_rounds(path, file, config, fork, say)
        rows = reader.count_rounds(file)
        is_unfinished = rows and not (earlier.finished and earlier.rounds == config.rounds)
        return replace(earlier, tables=reader.read_tables_until(file, rows)) if is_unfinished else earlier


def read_kept_rounds(path: Path, file: h5py.File, config: Config, fork: Fork | None, say: Say) -> Earlier:
    """Return the state, without tables, in an open results file.

    Raises UserError if `config` cannot continue the run.
    """
    both = reader.read_config(file), config.model_dump(mode="json")
    stored, wanted = map(flat_settings, both)
    differing = differing_settings(*both)
    chosen = set(varied_settings(both)) if differing else set()  # settings that do not follow from others
    differences = [
        f"{key} was {stored.get(key)} and is {wanted.get(key)}"
        for key in ([key for key in differing if key in chosen] or differing)
    ]
    rows, finished, run = reader.count_rounds(file), reader.is_finished(file), reader.read_run_id(file)
    if differences and not rows:
        return Earlier()
    if differences:
        raise UserError(
            f"{path} holds a run of another configuration: {'; '.join(differences)}. "
            "Set another `output`, or start over with --fresh, which moves the old files aside"
        )
    before = inputs.stored(file, config)
    if rows:
        inputs.check(path, config, before, inputs.digests(config))
    origin = file["config"].attrs.get("origin", "")
    if fork and origin != describe_origin(*fork):
        raise UserError(
            f"{path} already exists and is not a fork of {describe_origin(*fork)}; set another `output`"
        )
    rounds, weights, state = checkpoint.load(path, run, say)
    _check_client_states(path, state)
    if finished and rounds != rows:
        rounds, weights, state = rows, reader.read_array(file, "weights"), {}
        if rows < config.rounds and (owner := find_memory(config)):
            raise UserError(
                f"{path}: the run cannot be continued without the memory of {owner}, which was in "
                f"the missing {checkpoint.path_for(path).name}; set another `output`, or start over with "
                "--fresh"
            )
    if rounds > rows:
        raise UserError(
            f"{checkpoint.path_for(path)}: a checkpoint of round {rounds}, but {path.name} has "
            f"only {counted(rows, 'round')}, like an older copy; move the checkpoint away"
        )
    if rows > config.rounds:
        raise UserError(
            f"{path} already holds {rows} rounds, more than rounds={config.rounds}; set another `output`"
        )
    copy_of = file["config"].attrs.get("copy_of", "")
    return Earlier(finished, rounds, weights, state, origin=origin, inputs=before, run=run, copy_of=copy_of)


def _read_forked(path: Path, round: int, config: Config, say: Say) -> Earlier:
    """Return the state after a round of the run in the results file `path`, for a fork with `config`.

    Raises UserError if the round has no checkpoint.
    """
    with reader.open_results(path) as file, reader.report_damage(path):
        run = reader.read_run_id(file)
        found, weights, state = checkpoint.load(path, run, say, round=round)
        _check_client_states(path, state)
        remembers = find_memory(validate(reader.read_config(file), str(path)))
        if not found and not remembers and reader.is_finished(file) and round == reader.count_rounds(file):
            weights = reader.read_array(file, "weights")
        elif not found:
            available = ", ".join(map(str, checkpoint.list_rounds(path))) or "none"
            raise UserError(
                f"{path} has no checkpoint of round {round} (available: {available}); "
                "a run with checkpoint.keep=1 keeps all"
            )
        return Earlier(
            False,
            round,
            weights,
            state,
            reader.read_tables_until(file, round),
            describe_origin(path, round),
            path,
            run,
            inputs.stored(file, config),
        )


def describe_origin(path: Path, round: int) -> str:
    """Describe the origin of a fork, as stored in its results file."""
    return f"{path} at round {round}"


def copy_equal_run(
    simulation: Simulation,
    digests: Mapping[str, str],
    earlier: Earlier,
    others: Sequence[tuple[Path, Config]],
) -> Earlier | None:
    """Return `earlier` with the rounds of an equal finished run, or None. On rank 0."""
    if earlier.stored or earlier.copy_of or not (found := equal_runs.find(simulation, digests, others)):
        return None
    source, tables, weights = found
    return replace(
        earlier, rounds=simulation.config.rounds, weights=weights, tables=tables, copy_of=str(source)
    )


def _check_client_states(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Raise UserError if a checkpoint does not say where the states of its clients are."""
    if "trained" in state and "locations" not in state:
        raise UserError(
            f"{path}: an older version stored the states of this run's clients in other files, with which it "
            "cannot be continued or forked; start over with --fresh"
        )
