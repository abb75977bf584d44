"""`compare`: what differs between two groups of runs, and paired differences worked by hand."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import FAST

from genfl_mpi.analysis import comparison, run_groups
from genfl_mpi.analysis.run_groups import Run, Setting
from genfl_mpi.cli import main
from genfl_mpi.config.differences import flatten
from genfl_mpi.config.loading import single
from genfl_mpi.util.errors import UserError

RISE = np.array([0, 10, 20, 30, 40, 40, 40, 40, 40, 40.0])


def made(accuracy, seed=1, alpha=0.1, **config):
    values = single({"seed": seed, "partition": {"alpha": alpha}, **config}).model_dump(mode="json")
    name = "_".join(map(str, (values["method"], seed, alpha, values["training"]["lr"])))
    empty = np.zeros((1, 1), dtype=int)
    return Run(
        Path(f"{name}.h5"),
        flatten(values),
        values["method"],
        seed,
        Setting("mnist5k", alpha),
        np.asarray(accuracy, dtype=float),
        np.zeros(len(accuracy)),
        empty,
        [],
        1000,
    )


@pytest.fixture
def compare(monkeypatch):
    """Compare made runs; the paths of groups name them."""

    def compared(first, second):
        runs = {run.path: run for run in (*first, *second) if isinstance(run, Run)}
        monkeypatch.setattr(comparison, "read_run", runs.get)
        monkeypatch.setattr(comparison, "find", lambda group: list(group))
        paths = [[run.path if isinstance(run, Run) else run for run in group] for group in (first, second)]
        return list(comparison.report_lines(paths))

    return compared


def row(lines, name):
    return next(line for line in lines if line.startswith(name)).removeprefix(name).split(maxsplit=3)


def test_differences_are_those_worked_by_hand(compare):
    """Compare a curve that rises to 40, and to 42, with constant ones of 44 and 43."""
    lines = compare(
        [made(RISE, 1, method="fedavg"), made(RISE + 2, 2, method="fedavg")],
        [made([43.0] * 10, 2, method="genfl"), made([44.0] * 10, 1, method="genfl")],
    )
    assert row(lines, "accuracy of the last 5 rounds (%)") == ["41.00", "43.50", "+2.50", "[+1.00, +4.00]"]
    assert row(lines, "first 25 % of rounds: accuracy (%)")[:3] == ["6.00", "43.50", "+37.50"]
    assert row(lines, "mean accuracy over all rounds (%)")[:3] == ["31.00", "43.50", "+12.50"]
    assert row(lines, "accuracy of the best round (%)")[:3] == ["41.00", "43.50", "+2.50"]
    # Means of 5 rounds end at 40, and reach 36 in round 8.
    assert row(lines, "rounds to 0.9 of A's final accuracy") == ["8.00", "1.00", "-7.00", "[-7.00, -7.00]"]
    assert [line.split() for line in lines if line.startswith("method")] == [["method", "fedavg", "genfl"]]
    assert "undecided in all rows: compare at least 6 seeds" in lines and max(map(len, lines)) <= 80


def test_settings_of_both_groups_are_compared_separately(compare):
    lines = compare(
        [made(RISE, seed, alpha, method="fedavg") for seed in (1, 2) for alpha in (0.1, 1.0)],
        [made(RISE + 10 * alpha, seed, alpha, method="genfl") for seed in (1, 2, 3) for alpha in (0.1, 1.0)],
    )
    gains = [line.split()[-3] for line in lines if line.startswith("mean accuracy over all rounds")]
    assert gains == ["+1.00", "+10.00"] and {"partition.alpha=0.1", "partition.alpha=1.0"} <= set(lines)
    assert any(line.startswith("skipped, because without a counterpart: genfl_3_0.1") for line in lines)


def test_runs_of_different_clients_are_no_true_pairs(compare):
    one = made(RISE, clients=10, rounds=10)
    other = replace(made(RISE[:8], clients=20, rounds=8), path=Path("other.h5"))
    text = " ".join(compare([one], [Path("open.h5"), other]))
    assert "A and B differ in clients: runs of one seed differ" in text and "A has 10 rounds and B 8" in text
    assert "one pair decides nothing" in text and "skipped, because not finished: open" in text


@pytest.mark.parametrize(
    ("gain", "conclusion"),
    [
        ([1, 2, 3, 2, 1, 2], "B has the higher accuracy of the last 5 rounds: the interval excludes 0"),
        ([-1, -2, -3, -2, -1, -2], "A has the higher accuracy of the last 5 rounds: the interval excludes 0"),
        ([1, -2, 3, -2, 1, 1], "undecided: the interval includes 0; about 137 seeds would decide"),
        ([0, 0], "the accuracy of the last 5 rounds is the same in every pair"),
    ],
)
def test_conclude_needs_an_interval_without_zero(gain, conclusion):
    assert comparison.conclude(np.array(gain, dtype=float)) == conclusion


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([made(RISE, 1)], [made(RISE, 2)], "no run of A has the seed of a run of B"),
        ([made(RISE, 1)], [made(RISE, 1)], "is in both groups"),
        ([Path("open.h5")], [made(RISE, 1)], "A: none of 1 run is finished"),
        (
            [made(RISE, method="fedavg")],
            [made(RISE, method="genfl"), made(RISE, method="aigc")],
            "B has runs with method=aigc and genfl",
        ),
    ],
)
def test_groups_that_cannot_be_compared(compare, first, second, message):
    with pytest.raises(UserError, match=message):
        compare(first, second)


def test_cohorts_of_different_sizes_can_be_compared(tiny, tmp_path, capsys):
    private = ["selection.policy=poisson", "privacy.clip=1", "privacy.delta=1e-3", "rounds=3"]
    free = ["label_sharing.refusal_rate=1", "method=fedavg", "sweep.privacy.noise_multiplier=[0.5,1]"]
    assert main([*tiny, *private, *free, "cohort=2", "--quiet"]) == 0
    paths = sorted((tmp_path / "results").glob("*.h5"))
    sizes = [len(cohort) for cohort in run_groups.read_run(paths[0]).cohorts]
    with h5py.File(paths[0]) as file:
        rounds = file["clients/round"][:]
    assert sizes == [(rounds == round).sum() for round in (1, 2, 3)] and len(set(sizes)) > 1
    assert main(["compare", *map(str, paths)]) == 0
    assert "privacy.noise_multiplier" in capsys.readouterr().out


def test_the_command_takes_files_folders_and_patterns(tmp_path, capsys):
    run = [*FAST, "rounds=2", "sweep.seed=[1,2]", f"output={tmp_path}/runs"]
    assert main([*run, "sweep.training.lr=[0.1,0.2]"]) == 0
    (tmp_path / "runs/fedavg_seed1_lr0.1.txt").touch()
    capsys.readouterr()
    slow, fast = (f"{tmp_path}/runs/*lr{rate}*" for rate in (0.1, 0.2))
    assert main(["compare", slow, fast]) == 0
    said = capsys.readouterr().out
    assert "2 pairs by seed" in said and ["training.lr", "0.1", "0.2"] in [
        line.split() for line in said.splitlines()
    ]
    assert (
        main(["compare", f"{tmp_path}/runs/fedavg_seed1_lr0.1.h5", f"{tmp_path}/runs/fedavg_seed1_lr0.2.h5"])
        == 0
    )
    assert "1 pair by seed" in capsys.readouterr().out
    assert main([*FAST, "rounds=3", "seed=1", f"output={tmp_path}/longer"]) == 0
    capsys.readouterr()
    assert main(["compare", f"{tmp_path}/runs/fedavg_seed1_lr0.1.h5", f"{tmp_path}/longer"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "A has 2 rounds and B 3" in said and "differ in partition" not in said
    assert main(["digest", f"{tmp_path}/runs", f"{tmp_path}/longer"]) == 0
    assert capsys.readouterr().out.count("weights") == 5
    for arguments, message in (
        ([slow], "needs two groups of runs, not 1"),
        ([slow, f"{tmp_path}/none*"], "matches no results file"),
        ([slow, f"{tmp_path}/runs"], "is in both groups"),
    ):
        assert main(["compare", *arguments]) == 2
        assert message in (error := capsys.readouterr().err) and error.count("\n") == 1
