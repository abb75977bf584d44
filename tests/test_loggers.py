"""Live logging to TensorBoard, Weights & Biases and MLflow."""

import sys
import types

import pytest
from conftest import FAST

from genfl_mpi.cli import main
from genfl_mpi.runs import loggers


@pytest.fixture
def run(tmp_path):
    return [*FAST, f"output={tmp_path}"]


def test_a_logger_that_is_not_installed_is_one_line(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([*run, "logging=[wandb]"]) == 2
    error = capsys.readouterr().err
    assert "wandb is not installed: pip install 'genfl_mpi[wandb]'" in error and error.count("\n") == 1


def test_tensorboard_has_every_round_of_an_extended_run(run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for rounds in (1, 3):  # the second start continues the first
        assert main([*run, f"rounds={rounds}", "logging=[tensorboard]"]) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard" / "fedavg_seed1"))
    events.Reload()
    assert [one.step for one in events.Scalars("test/accuracy")] == [1, 2, 3]
    assert "accuracy_per_class/0" in events.Tags()["scalars"]


def test_mlflow_has_every_round_and_setting(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for rounds in (1, 2):
        assert main([*run, f"rounds={rounds}", "logging=[mlflow]"]) == 0
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    [found] = client.search_runs([client.get_experiment_by_name("genfl_mpi").experiment_id])
    assert found.data.params["training.epochs"] == "1" and found.info.status == "FINISHED"
    assert [one.step for one in client.get_metric_history(found.info.run_id, "test/accuracy")] == [1, 2]


class FakeRun:
    def __init__(self, fails):
        self.logged, self.finished, self.fails = {}, False, fails

    def log(self, values, step):
        if self.fails:
            raise ConnectionError("no network")
        self.logged[step] = values

    def finish(self):
        self.finished = True


@pytest.mark.parametrize("fails", [False, True])
def test_wandb_continues_under_the_id_of_the_run_and_its_faults_do_not_end_the_run(
    fails, run, tmp_path, monkeypatch, capsys
):
    fake, given = FakeRun(fails), {}
    module = types.ModuleType("wandb")
    module.Settings = dict
    module.init = lambda **settings: given.update(settings) or fake
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert main([*run, "rounds=2", "logging=[wandb]"]) == 0
    assert given["name"] == "fedavg_seed1" and given["resume"] == "allow" and len(given["id"]) > 8
    assert given["config"]["training"]["epochs"] == 1 and given["dir"] == str(tmp_path)
    if fails:
        assert "warning: logging to wandb ends: ConnectionError: no network" in capsys.readouterr().out
    else:
        assert set(fake.logged) == {1, 2} and "test/accuracy" in fake.logged[2] and fake.finished


@pytest.mark.slow
def test_wandb_writes_offline(run, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([*run, "rounds=2", "logging=[wandb]"]) == 0
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_every_tool_of_the_setting_has_a_logger():
    from genfl_mpi.config.settings import Config

    [choices] = Config.model_fields["logging"].annotation.__args__
    assert set(choices.__args__) == set(loggers.LOGGERS) == set(loggers.MODULES)
