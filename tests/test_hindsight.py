"""Hindsight: its figures are right, and it does not change the run."""

import numpy as np
import pytest
from conftest import mpirun

from genfl_mpi.analysis import hindsight_figures
from genfl_mpi.cli import main
from genfl_mpi.results import reader

LOOK = ["hindsight.every=1", "hindsight.points=5"]


@pytest.fixture
def quick(tiny):
    return [*tiny, "data.name=synthetic", "data.size=8", "data.samples=400", "rounds=3"]


@pytest.mark.parametrize(
    "more", [[], ["kappa.policy=bandit", "validation.source=clients", "rho.policy=similarity"]]
)
def test_hindsight_does_not_change_the_run(quick, more, tmp_path):
    for folder, look in (("without", []), ("with", LOOK)):
        assert main([*quick, *more, *look, f"output={tmp_path}/{folder}"]) == 0
    results = [tmp_path / folder / "genfl_seed1.h5" for folder in ("without", "with")]
    assert reader.digests(results[0])[0] == reader.digests(results[1])[0]
    with reader.open_results(results[0]) as one, reader.open_results(results[1]) as other:
        assert np.array_equal(one["rounds/loss"], other["rounds/loss"]) and not len(
            one["hindsight/candidate"]
        )


def test_the_runs_kappa_has_the_runs_loss(quick, tmp_path):
    assert main([*quick, *LOOK, "kappa.kappa2=0.3", "world={}", "validation.source=clients"]) == 0
    with reader.open_results(tmp_path / "results/genfl_seed1.h5") as file:
        rows = reader.read_columns(file, "hindsight")
        own = rows["policy"] == b"fixed"
        assert rows["loss"][own] == pytest.approx(file["rounds/loss"][:], rel=1e-5)
        assert rows["accuracy"][own] == pytest.approx(file["rounds/accuracy"][:], abs=0.02)
    looks = hindsight_figures.read(tmp_path / "results/genfl_seed1.h5")
    # All policies are compared except the bandit, which has memory.
    assert set(looks.regret) == {
        "fixed",
        "catch_up",
        "linear",
        "cosine",
        "exponential",
        "step",
        "amount",
        "alignment",
        "bias_optimal",
        "emd",
        "softmax_accuracy",
        "softmax_loss",
        "line_search",
        "cost_aware",
        "shapley",
    }
    assert looks.kappa2["fixed"] == pytest.approx(0.3) and looks.segment.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert min(regret.min() for regret in looks.regret.values()) >= 0
    for round in range(3):
        assert looks.least[round] <= looks.loss[round].min()
        assert looks.regret["fixed"][round] == pytest.approx(rows["loss"][own][round] - looks.least[round])


def test_any_number_of_ranks_and_an_interruption(quick, tmp_path):
    for ranks in (1, 2):
        assert (
            mpirun(
                ranks, "-m", "genfl_mpi", *quick, *LOOK, "rounds=2", f"output={tmp_path}/{ranks}"
            ).returncode
            == 0
        )
    assert (
        main([*quick, *LOOK, "rounds=1", f"output={tmp_path}/cut"])
        == main([*quick, *LOOK, "rounds=2", f"output={tmp_path}/cut"])
        == 0
    )
    digests = [reader.digests(tmp_path / folder / "genfl_seed1.h5") for folder in ("1", "2", "cut")]
    assert digests[0] == digests[1] == digests[2]


def test_rounds_with_other_points_are_not_mixed(quick, tmp_path, capsys):
    assert main([*quick, *LOOK, "rounds=1"]) == main([*quick, *LOOK, "rounds=2", "hindsight.points=3"]) == 0
    capsys.readouterr()
    assert main(["hindsight", str(tmp_path / "results/genfl_seed1.h5")]) == 2
    assert "hindsight or kappa.policy changed in round 2" in capsys.readouterr().err


def test_a_barrier_is_the_rise_above_the_straight_line():
    segment = np.array([0, 0.5, 1])
    loss = np.array([[1, 3, 2], [1, 1.5, 2], [1, 1.2, 2]])
    assert hindsight_figures.barrier(segment, loss).tolist() == [1.5, 0, 0]


def test_hindsight_prints_a_row_for_each_policy_and_draws(quick, tmp_path, capsys):
    assert main([*quick, *LOOK, "hindsight.policies=[linear,amount]"]) == 0
    capsys.readouterr()
    assert main(["hindsight", str(tmp_path / "results/genfl_seed1.h5"), "-o", str(tmp_path / "lab.png")]) == 0
    said = capsys.readouterr().out.replace(str(tmp_path), "").splitlines()
    assert max(map(len, said)) <= 80 and (tmp_path / "lab.png").exists()
    assert {line.split()[0] for line in said[1:6]} == {"fixed", "linear", "amount", "never", "always"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["hindsight.policies=[linaer]"],
            "hindsight.policies: linaer is unknown; did you mean linear?",
        ),
        (["hindsight.policies=[line_search]"], "hindsight.policies: line_search needs validation"),
        (
            ["hindsight.policies=[bandit]", "validation.source=clients"],
            "bandit needs memory, which only the run's own policy has",
        ),
        (["hindsight.points=1"], "hindsight.points"),
    ],
)
def test_wrong_hindsight_settings_are_refused(quick, overrides, message, capsys):
    assert main([*quick, *LOOK, *overrides]) == 2
    assert message in capsys.readouterr().err


def test_hindsight_refuses_a_run_that_was_not_looked_at(quick, tmp_path, capsys):
    assert main([*quick, "rounds=1"]) == 0
    assert main(["hindsight", str(tmp_path / "results/genfl_seed1.h5")]) == 2
    assert "has no hindsight data" in capsys.readouterr().err
