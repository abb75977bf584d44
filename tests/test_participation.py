"""Incentives in the loop: who takes part, and who tells its labels, for what the server pays."""

import numpy as np
import pytest
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis import pricing
from genfl_mpi.cli import main
from genfl_mpi.edge.attendance import AGGREGATED, DECLINED
from genfl_mpi.federation.policies.selection import SELECTION
from genfl_mpi.results import reader

PLAIN = "world={channel: {radius_m: 50, fading: none, shadowing_db: 0}}"


def run(*overrides, **policies):
    made = Simulation(overrides=overrides, **policies)
    return made, list(made)


@pytest.fixture
def twelve(fast):
    return [*fast, "clients=12", "cohort=3", "rounds=6", PLAIN]


def joules(twelve):
    """What a round takes each client: the same in all rounds."""
    return Simulation(overrides=twelve).server.world.forecast(0).joules


@pytest.mark.parametrize("policy", [name for name in SELECTION if name != "poisson"])  # fixed cohorts
def test_when_the_pay_is_enough_for_all_nothing_changes(policy, twelve):
    twelve = [*twelve, f"selection.policy={policy}", "rounds=3", "world.deadline_s=10"]
    free, _ = run(*twelve)
    paid, records = run(*twelve, "incentive.base=1e9", "incentive.labels=10")
    assert np.array_equal(free.weights, paid.weights)
    assert [record.columns["clients_available"] for record in records] == [12] * 3


@pytest.mark.parametrize("policy", [name for name in SELECTION if name != "poisson"])  # fixed cohorts
def test_whom_a_round_would_cost_more_is_not_selected(policy, twelve):
    costs = joules(twelve)
    base = float(np.median(costs))
    _, records = run(
        *twelve,
        f"selection.policy={policy}",
        "selection.candidates=9",
        "world.deadline_s=10",
        f"incentive.base={base}",
    )
    for record in records:
        assert (costs[record.clients["client"]] <= base).all() and record.columns["clients_available"] == 6
        assert record.columns["payments"] == pytest.approx(3 * base)


def test_too_low_a_pay_leaves_too_few(twelve, tmp_path, capsys):
    costs = joules(twelve)
    base = float(np.sort(costs)[1])
    assert main([*twelve, f"incentive.base={base}"]) == 0
    assert "declined: client" in capsys.readouterr().out
    made, records = run(*twelve, f"incentive.base={base}")
    two = set(np.argsort(costs)[:2])
    for record in records:
        clients = record.clients
        assert (
            set(clients["client"][clients["status"] == AGGREGATED]) == two
            and (clients["status"] == DECLINED).sum() == 1
        )
        assert record.columns["clients_available"] == 2 and clients["rho"].sum() == pytest.approx(1)
    assert np.array_equal(made.weights, run(*twelve, "cohort=2", select=lambda state: sorted(two))[0].weights)
    assert set(np.flatnonzero(made.server.world.spent)) == two, "who declines spends nothing"
    still, records = run(*twelve, "incentive.base=0")
    assert np.array_equal(still.weights, Simulation(overrides=twelve).weights)
    assert not any(record.columns["payments"] for record in records)
    # Its price has who trained, and nobody else.
    priced = pricing.read(tmp_path / "results/fedavg_seed1.h5")
    assert all(set(cohort) == two for cohort in priced.trace.cohorts)
    [found] = pricing.in_worlds([priced], pricing.worlds_for([priced], []))
    assert set(np.flatnonzero(found.bill.client_joules)) == two


def test_labels_are_told_for_pay(twelve):
    def told(pay):
        overrides = [*twelve, f"incentive.labels={pay}", "incentive.label_cost=[2,4]"]
        return Simulation(overrides=overrides).data["shared_labels"].any(1)

    assert not told(1.9).any() and told(4).all()
    some, more = told(2.7), told(3.3)
    assert 0 < some.sum() < more.sum() < 12 and not (some & ~more).any(), "who tells for less tells for more"
    _, records = run(*twelve, "incentive.labels=3.3", "incentive.label_cost=[2,4]", "rounds=2")
    assert [record.columns["payments"] for record in records] == pytest.approx([3.3 * more.sum(), 0])


def test_with_a_world_that_acts_and_on_any_number_of_ranks(twelve, tmp_path):
    base = float(np.median(joules(twelve)))
    twelve = [
        *twelve,
        f"incentive.base={base}",
        "incentive.labels=5",
        "world.enforced=true",
        "world.dropout=0.3",
        "cohort=7",
    ]
    for ranks in (1, 3):
        found = mpirun(ranks, "-m", "genfl_mpi", *twelve, f"output={tmp_path}/{ranks}", timeout=600)
        assert found.returncode == 0, found.stderr
    first = reader.digests(tmp_path / "1/fedavg_seed1.h5")
    assert first == reader.digests(tmp_path / "3/fedavg_seed1.h5")
    assert main([*twelve, "rounds=3"]) == 0 and main(twelve) == 0
    assert first == reader.digests(tmp_path / "results/fedavg_seed1.h5"), "a continued run"
    with reader.open_results(tmp_path / "1/fedavg_seed1.h5") as file:
        assert set(file["clients/status"][:]) == {b"aggregated", b"declined", b"dropout"}
    priced = pricing.read(tmp_path / "1/fedavg_seed1.h5")
    pricing.in_worlds([priced], pricing.worlds_for([priced], []))  # and finds the same clients heard


def everybody(state):
    return np.arange(3)


def test_bad_input_is_one_line_and_status_2(fast, twelve, capsys):
    base = float(np.median(joules(twelve)))
    for arguments, message in (
        ([*fast, "incentive.base=3"], "incentive.base pays for energy, which only a world defines"),
        ([*twelve, "incentive.base=-1"], "incentive.base= "),
        (
            [*twelve, "incentive.labels=3", "incentive.label_cost=[5,1]"],
            "must be the smallest value followed by the largest",
        ),
        (
            [*twelve, f"incentive.base={base}", f"selection.policy={__name__}:everybody"],
            "which does not participate for the payment",
        ),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
