"""Live logging of finished rounds to TensorBoard, Weights & Biases and MLflow, on rank 0."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from genfl_mpi.config.differences import flatten
from genfl_mpi.results.scalars import scalars
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from types import ModuleType

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.records import Record

PROJECT = "genfl_mpi"  # of Weights & Biases, and experiment of MLflow, unless their variables say otherwise
MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Logger(Protocol):
    """One tool: receives {tag: value} of each round, and is closed at the end."""

    def log(self, values: Mapping[str, float], round: int) -> None:
        """Log the numbers of a round."""

    def close(self) -> None:
        """Write everything."""


def check_installed(names: Sequence[str]) -> None:
    """Raise UserError if a package of the setting `logging` is not installed."""
    for name in names:
        _import(name)


def _import(name: str) -> ModuleType:
    try:
        return import_module(MODULES[name])
    except ImportError:
        raise UserError(
            f"logging: {name} is not installed: pip install 'genfl_mpi[{name}]', or remove it from `logging`"
        ) from None


class _TensorBoard:
    """Write events to OUTPUT/tensorboard/RUN; a continued run replaces the rounds that it computes again."""

    def __init__(self, path: Path, config: Config, run: str, begun: int) -> None:
        _import("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(path.parent / "tensorboard" / path.stem), purge_step=begun + 1)

    def log(self, values: Mapping[str, float], round: int) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, round)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    """Log a run of Weights & Biases below OUTPUT; WANDB_MODE=offline keeps it there."""

    def __init__(self, path: Path, config: Config, run: str, begun: int) -> None:
        wandb = _import("wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=path.stem,
            id=run,
            resume="allow",
            dir=str(path.parent),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True),
        )

    def log(self, values: Mapping[str, float], round: int) -> None:
        self.run.log(dict(values), step=round)

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    """Log a run of MLflow, by default below OUTPUT/mlruns; MLFLOW_TRACKING_URI names a server."""

    def __init__(self, path: Path, config: Config, run: str, begun: int) -> None:
        mlflow = _import("mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (path.parent / "mlruns").resolve().as_uri()
        self.client = mlflow.MlflowClient(tracking_uri=uri)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self.client.create_experiment(experiment)
        found = self.client.search_runs([number], f"tags.genfl_run = '{run}'")
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        begun_run = self.client.create_run(number, tags={"genfl_run": run}, run_name=path.stem)
        self.id = begun_run.info.run_id
        for key, value in flatten(config.model_dump(mode="json")).items():
            self.client.log_param(self.id, key, value)

    def log(self, values: Mapping[str, float], round: int) -> None:
        for tag, value in values.items():
            self.client.log_metric(self.id, tag.replace(":", "-"), value, step=round)

    def close(self) -> None:
        self.client.set_terminated(self.id)


LOGGERS: dict[str, Callable[..., Logger]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
}


class Loggers:
    """All tools of config.logging, for one run. A tool that fails is dropped with a warning.

    path: the results file. run: id of the run, under which it continues after an interruption. begun: number
    of rounds that were finished before. say: prints a line.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        run: str,
        begun: int,
        classes: Sequence[str],
        say: Callable[[str], object],
    ) -> None:
        self.name, self.classes, self.say = path.stem, classes, say
        self.loggers: dict[str, Logger] = {}
        for name in config.logging:
            self._try(name, partial(self._open, name, path, config, run, begun))

    def _open(self, name: str, *about: Any) -> None:
        self.loggers[name] = LOGGERS[name](*about)

    def close(self) -> None:
        """Close all tools."""
        for name, logger in list(self.loggers.items()):
            self._try(name, logger.close)

    def log(self, record: Record) -> None:
        """Log a round's columns of /rounds."""
        row = {
            "accuracy": record.accuracy,
            "loss": record.loss,
            **record.columns,
            "accuracy_per_class": record.accuracy_per_class,
        }
        values = dict(scalars(row, self.classes)) if self.loggers else {}
        for name, logger in list(self.loggers.items()):
            self._try(name, partial(logger.log, values, record.round))

    def _try(self, name: str, action: Callable[[], object]) -> None:
        """Call a tool; it may fail in many ways, none of which may end the run."""
        try:
            action()
        except Exception as error:
            self.loggers.pop(name, None)
            self.say(
                f"{self.name}: warning: logging to {name} ends: {type(error).__name__}: {first_line(error)}"
            )
