"""Incentives: best responses, the server's price, and what follows, against brute force."""

import numpy as np
import pytest

from genfl_mpi.cli import main
from genfl_mpi.edge import incentive
from genfl_mpi.util.errors import UserError

HISTOGRAMS = np.array(
    [[30, 10, 0, 0], [5, 5, 5, 5], [0, 0, 0, 12], [20, 1, 1, 8], [7, 7, 0, 0], [40, 40, 39, 41]]
)
CLIENTS = incentive.describe_clients(
    HISTOGRAMS, np.array([1.0, 2, 0.5, 4, 3, 1]), np.array([0.1, 0.2, 0.05, 0.1, 0.3, 0.02])
)


def test_the_formulas_by_hand():
    # The first client has 40 samples. With as many of each label as of its largest it would have 4 * 30 =
    # 120: gamma = 1 - 40 / 120.
    assert CLIENTS.gap[0] == pytest.approx(2 / 3) and CLIENTS.gap[1] == 0
    assert incentive.images(CLIENTS, np.ones(6))[0] == pytest.approx(80)  # all that lacks
    assert incentive.cost(CLIENTS, np.ones(6))[0] == pytest.approx(1 + 0.1 * 80)
    # An even mix of 0.5: with half of the gap repaired, the mix is half way to even.
    u = 0.5
    made = incentive.images(CLIENTS, np.full(6, u))[0]
    lacks = 30 - HISTOGRAMS[0]
    mixed = HISTOGRAMS[0] + made * lacks / lacks.sum()
    assert np.abs(mixed / mixed.sum() - 0.25).sum() == pytest.approx((1 - u) * CLIENTS.emd[0])


@pytest.mark.parametrize("price", [0, 0.5, 1, 3, 8, 30, 200])
def test_best_responses_are_the_best_of_many(price):
    shares = np.linspace(0, 1, 10001)
    grid = np.array([incentive.utility(CLIENTS, 1.0, price, np.full(6, u)) for u in shares])
    share = incentive.best_response(CLIENTS, price)
    has_gap = CLIENTS.gap > 0
    assert incentive.utility(CLIENTS, 1.0, price, share)[has_gap] == pytest.approx(
        grid.max(0)[has_gap], abs=1e-6
    )
    assert np.abs(share - shares[grid.argmax(0)])[has_gap].max() < 1e-3
    found = incentive.equilibrium(CLIENTS, 1.0, price, 10.0)
    assert (found.utility >= 0).all() and not found.share[~found.joins].any()  # individual rationality


@pytest.mark.parametrize("base", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("value", [0.0, 5.0, 40.0, 400.0])
@pytest.mark.parametrize("budget", [12.0, 30.0, 1e9])
def test_the_servers_price_is_the_best_of_many(base, value, budget):
    if incentive.equilibrium(CLIENTS, base, 0.0, value).payments > budget:
        with pytest.raises(UserError, match="does not cover the base pay"):
            incentive.best_price(CLIENTS, base, value, budget)
        return
    found = incentive.best_price(CLIENTS, base, value, budget)
    brute = [
        incentive.equilibrium(CLIENTS, base, price, value)
        for price in np.concatenate([[0], np.geomspace(1e-2, 1e3, 4000)])
    ]
    least = min(one.objective for one in brute if one.payments <= budget)
    assert found.payments <= budget * (1 + 1e-12)
    assert least - 1e-2 * max(1, least) < found.objective <= least + 1e-6


def test_the_price_takes_as_few_evaluations_for_many_clients_as_for_few(monkeypatch):
    rng, calls, evaluate = np.random.default_rng(0), [], incentive.equilibrium
    monkeypatch.setattr(incentive, "equilibrium", lambda *given: calls.append(1) or evaluate(*given))
    many = incentive.describe_clients(rng.integers(1, 100, (300, 10)), rng.uniform(0.5, 3, 300), 0.001)
    found = incentive.best_price(many, 1.0, 1000.0, 1e4)
    assert found.price > 0 and found.payments <= 1e4
    assert len(calls) < 200  # a search of each of the 900 pieces would take thousands


def test_what_follows_adds_up():
    found = incentive.equilibrium(CLIENTS, 2.0, 6.0, 50.0)
    costs = incentive.cost(CLIENTS, found.share)[found.joins].sum()
    assert found.utility.sum() == pytest.approx(found.payments - costs)  # payments are a transfer
    before = CLIENTS.weight @ CLIENTS.emd
    assert found.welfare == pytest.approx(50 * (before - found.emd) - found.payments + found.utility.sum())


def test_misreporting_gains_something_only_where_it_moves_the_price():
    gains = incentive.misreporting(CLIENTS, 2.0, 40.0, 1e9, range(6))
    assert (gains >= 0).all() and gains.max() > 0
    assert incentive.misreporting(CLIENTS, 2.0, 0.0, 1e9, range(6)) == pytest.approx(
        np.zeros(6)
    )  # the server pays nobody, whatever they say


def test_incentive_prints_draws_and_refuses_a_small_budget(tiny, tmp_path, capsys):
    assert main([*tiny, "rounds=1"]) == 0
    results = str(tmp_path / "results/genfl_seed1.h5")
    capsys.readouterr()
    assert main(["incentive", results, "-o", str(tmp_path / "incentive.png")]) == 0
    said = capsys.readouterr().out.replace(str(tmp_path), "")
    assert "generating clients" in said and max(map(len, said.splitlines())) <= 80
    assert (tmp_path / "incentive.png").read_bytes().startswith(b"\x89PNG")
    assert main(["incentive", results, "--budget", "1e-9"]) == 2
    assert "does not cover the base pay" in capsys.readouterr().err
    assert main(["incentive", results, "--value", "-1"]) == 2
    assert "--value must be" in capsys.readouterr().err
