"""Use as a library: iterate over rounds, bring policies of one's own."""

import inspect
import re

import numpy as np
import pytest

from genfl_mpi import Simulation, UserError
from genfl_mpi.config import loading
from genfl_mpi.federation.records import Record


def test_iterating_gives_a_record_a_round(tiny):
    records = list(Simulation(overrides=tiny))
    assert [record.round for record in records] == [1, 2]
    assert 0 <= records[-1].accuracy <= 1 and records[-1].accuracy_per_class.shape == (10,)
    assert len(records[0].clients["client"]) == 3 and len(records[0].generated) == 1


def test_policies_of_ones_own_act(tiny):
    def first(state):
        return np.arange(state.config.cohort)

    def all_to_one(state):
        return np.eye(state.config.cohort)[1]

    def later(state):
        assert state.fl_weights.shape == state.augmented_weights.shape == state.weights.shape
        return 0.1 * state.round

    [one, two] = Simulation(overrides=tiny, select=first, rho=all_to_one, kappa=later)
    assert one.clients["client"].tolist() == [0, 1, 2] and one.clients["rho"].tolist() == [0, 1, 0]
    assert [one.columns["kappa2"], two.columns["kappa2"]] == [0, 0.1]


def test_a_plan_of_ones_own_and_by_import_path(tiny, tmp_path, monkeypatch):
    (tmp_path / "my_plans.py").write_text("def sevens(state):\n    return [0] * 7 + [2] + [0] * 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    [one, _] = Simulation(overrides=[*tiny, "generation.plan=my_plans:sevens"])
    assert one.generated[0][1].label == (7, 7)


@pytest.mark.parametrize("kappa2", [-0.1, 1.1, float("nan")])
def test_a_kappa_outside_its_range_is_refused(tiny, kappa2):
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
        list(Simulation(overrides=tiny, kappa=lambda state: kappa2))


def test_a_plan_that_begins_with_nothing_is_fedavg_until_it_asks(tiny):
    records = list(Simulation(overrides=tiny, plan=lambda state: [state.round] + [0] * 9))
    assert [(record.columns["images"], record.columns["kappa2"]) for record in records] == [(0, 0), (1, 0.2)]


@pytest.mark.parametrize("answer", [[1] * 11, [0.5] * 10, [-1] + [0] * 9, None])
@pytest.mark.parametrize("method", ["genfl", "aigc", "matched"])
def test_a_plan_that_is_no_number_of_images_is_refused(tiny, method, answer):
    with pytest.raises(UserError, match="plan"):
        list(Simulation(overrides=[*tiny, f"method={method}"], plan=lambda state: answer))


def test_overrides_do_not_go_with_a_config(tiny):
    from genfl_mpi.config.loading import single

    with pytest.raises(UserError, match="model_copy"):
        Simulation(single(overrides=tiny), ["rounds=1"])


def test_weights_that_are_not_finite_are_named(tiny):
    with pytest.raises(ArithmeticError, match="not finite") as caught:
        list(Simulation(overrides=[*tiny, "method=aigc", "training.lr=1e20"]))
    assert caught.value.__notes__ == ["round 1"]


@pytest.mark.parametrize("cohort", [[0, 1], [0, 1, 1], [0, 1, 6], [-1, 0, 1]])
def test_a_selection_that_is_no_cohort_is_refused(tiny, cohort):
    with pytest.raises(UserError, match="3 distinct clients of 6"):
        list(Simulation(overrides=tiny, select=lambda state: cohort))


@pytest.mark.parametrize("rho", [[0.5, 0.5], [0.5, 0.5, 0.5], [1.5, -0.5, 0], [float("nan")] * 3])
def test_a_rho_that_is_no_average_is_refused(tiny, rho):
    with pytest.raises(UserError, match="with sum 1"):
        list(Simulation(overrides=tiny, rho=lambda state: rho))


def test_a_function_under_the_name_of_a_setting_is_refused(tiny):
    with pytest.raises(UserError, match="selection is a function, not a setting; pass policies as select="):
        Simulation(overrides=tiny, selection=lambda state: 1)


def test_a_policy_with_wrong_parameters_is_refused_before_the_first_round(tiny):
    with pytest.raises(
        UserError, match=r"select: mine has the parameters \(\), but is called with \(state\)"
    ):

        def mine():
            return [0, 1, 2]

        Simulation(overrides=tiny, select=mine)


def test_settings_by_keyword_are_those_of_the_command_line(tiny):
    simulation = Simulation(
        overrides=tiny,
        rounds=1,
        training={"lr": 0.5},
        kappa={"policy": "linear", "kappa2": 0.4},
        **{"partition.alpha": 0.7},
    )
    plain = Simulation(
        overrides=[*tiny, "rounds=1", "training.lr=0.5", "kappa.policy=linear", "kappa.kappa2=0.4"]
        + ["partition.alpha=0.7"]
    )
    assert simulation.config == plain.config


def test_settings_by_keyword_replace_those_of_a_dict_with_dotted_names():
    config = loading.single({"method": "genfl", "training.lr": 0.5}, settings={"rounds": 3, "world": {}})
    assert (config.training.lr, config.rounds, config.world is not None) == (0.5, 3, True)
    with pytest.raises(UserError, match="unknown key ruonds; did you mean rounds?"):
        Simulation(method="genfl", ruonds=3)


def test_the_signature_of_a_simulation_names_the_policies():
    parameters = inspect.signature(Simulation).parameters
    assert {"source", "overrides", "select", "rho", "kappa", "plan", "settings"} <= parameters.keys()


def test_a_record_is_one_readable_line(tiny):
    record = next(iter(Simulation(overrides=tiny)))
    number = r"\d+\.\d+"
    assert re.fullmatch(
        rf"round 1: accuracy {number} %, loss {number}, 3 clients, \d+ images?, kappa2 0.20, {number} s",
        str(record),
    )
    assert repr(record) == str(record)
    elsewhere = Record(2, 0.5, 1.25, np.zeros(10))
    assert str(elsewhere) == "round 2: accuracy 50.00 %, loss 1.250"


def test_a_simulation_names_its_run(tiny):
    simulation = Simulation(overrides=[*tiny, "method=genfl"])
    next(iter(simulation))
    assert repr(simulation) == "<Simulation of genfl: 1 of 2 rounds, 6 clients, a cohort of 3>"


def test_nothing_touches_the_shared_memory_after_close(fast):
    """An iterator that was begun before is refused, too; an array that the caller still holds stays valid."""
    simulation = Simulation(overrides=[*fast, "rounds=3"])
    iterator, images = iter(simulation), simulation.data["train_images"][:5]
    next(iterator)
    parts, total = simulation.parts, images.sum()
    simulation.close()
    assert images.sum() == total and not simulation.data and not parts.recorder.evaluator.data
    for touch in (
        lambda: next(iterator),
        lambda: list(simulation),
        lambda: simulation.restore(0, None, {}, {}),
    ):
        with pytest.raises(UserError, match="this simulation is closed"):
            touch()
    simulation.close()


def test_close_releases_the_shared_memory(fast):
    simulation = Simulation(overrides=[*fast, "rounds=2"])
    windows = [window for window, _ in simulation._windows]
    for _ in simulation:
        pass
    assert len(windows) == 2 and all(windows)
    simulation.close()
    assert not any(windows), "a window that was freed is MPI.WIN_NULL"
