"""The ledger of the paper's claims: its statistics by hand, its verdicts, and what cannot be judged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from genfl_mpi.analysis import claims, ledger
from genfl_mpi.analysis import run_groups as of_results
from genfl_mpi.analysis.claims import Row
from genfl_mpi.analysis.run_groups import Run, Runs, Setting
from genfl_mpi.cli import main
from genfl_mpi.config import loading
from genfl_mpi.config.loading import single

CURVES = {
    "fedavg": np.linspace(0, 58, 30),
    "genfl": np.minimum(np.linspace(0, 116, 30), 60),
    "aigc": np.minimum(np.linspace(0, 145, 30), 30),
}


def made(method="fedavg", seed=1, alpha=0.1, data="cifar10", accuracy=None, cosine=0.1, classes=10, **config):
    """A run without a file: its curve is that of its method, shifted by the seed."""
    histograms = np.eye(classes, dtype=np.int32)
    curve = (CURVES[method] if accuracy is None else np.asarray(accuracy, dtype=float)) + 0.01 * seed
    common = {
        "method": method,
        "seed": seed,
        "data.name": data,
        "partition.alpha": alpha,
        "rounds": len(curve),
        "clients": classes,
        "training.lr": 0.1,
    }
    cohorts = (
        np.tile(np.arange(classes), (len(curve), 1))
        if classes == 10
        else np.zeros((len(curve), 1), dtype=int)
    )
    return Run(
        f"{method}_{data}_{alpha}_{seed}.h5",
        common | config,
        method,
        seed,
        Setting(data, alpha),
        curve,
        np.full(len(curve), cosine),
        histograms,
        cohorts,
        1000,
    )


@pytest.fixture
def runs(monkeypatch):
    """`Runs` of made ones."""

    def collect(*several):
        monkeypatch.setattr(of_results, "read_run", lambda path: path)
        monkeypatch.setattr(
            Run,
            "resolved",
            lambda run: single(
                {
                    "data": {"name": "cifar10"},
                    "training": {"epochs": 2},
                    "clients": 10,
                    "cohort": 5,
                    "generation": {"per_round": 3, "prompts": "cifar10"},
                }
            ),
        )
        return Runs(several)

    return collect


def of(rows):
    return {row.setting: row for row in rows}


def test_measures_by_hand():
    run = made(accuracy=[0, 10, 20, 30, 40, 40, 40, 40, 40, 40], seed=0)
    assert claims.final(run) == 40 and claims.early(run) == 5  # a quarter of ten rounds is two
    assert claims.smoothed(run).tolist() == [0, 5, 10, 15, 20, 28, 34, 38, 40, 40]
    assert claims.rounds_to(run, 34) == 7 and claims.rounds_to(run, 41) == 11
    assert claims.saturation(run) == 0.8  # 38 is reached in round 8 of 10
    faster = made(accuracy=[40] * 10, seed=0)
    assert claims.speed_up(run, faster) == 3  # 0.9 * 40 is reached in round 8 and in round 1


def test_an_interval_is_as_wide_as_few_values_ask():
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    low, high = claims.interval(values)
    half = 2.571 * values.std(ddof=1) / 6**0.5  # Student's t for six values
    assert low == pytest.approx(3.5 - half, abs=0.35) and high == pytest.approx(3.5 + half, abs=0.35)
    assert claims.interval(values) == (low, high), "the same every time"
    assert claims.interval(np.full(6, 2.0)) == (2, 2) and np.isnan(claims.interval(np.array([2.0]))).all()


@pytest.mark.parametrize(
    "values, rounds, verdict",
    [
        ([1, 2, 3, 2, 1, 2], 20, ("supported", "")),
        ([-1, -2, -3, -2, -1, -2], 20, ("refuted", "")),
        ([1, 2, 3, 2, 1], 20, ("undecided", "")),
        ([1, 2, 3, 2, 1, 2], 19, ("undecided", "")),
        ([1, -2, 3, -2, 1, 1], 20, ("undecided", "about 137 seeds")),
        ([2], 0, ("supported", "")),
        ([-2], 0, ("refuted", "")),
    ],
)
def test_an_interval_supports_refutes_or_leaves_undecided(values, rounds, verdict):
    assert Row("", "", np.array(values, dtype=float), rounds).verdict == verdict


def test_shortage_names_missing_rounds_and_seeds_once():
    def row(seeds, rounds):
        return Row("", "", np.arange(seeds, dtype=float), rounds)

    assert claims.shortage([row(6, 20), row(1, 0)]) == ""
    assert claims.shortage([row(2, 4), row(3, 4), row(1, 0)]) == (
        "A verdict needs 20 rounds and 6 seeds; these runs have 4 rounds and 2 to 3 seeds."
    )
    assert claims.shortage([row(5, 20), row(6, 20)]) == (
        "A verdict needs 6 seeds; some of these runs have 5 seeds."
    )


def test_a_claim_that_costs_alone_decide_says_so():
    computed, measured = Row("", "", np.array([-2.0]), 0), Row("", "", np.full(6, -2.0), 20)
    assert ledger.name_verdict([computed, computed], "refuted") == "refuted by costs"
    assert ledger.name_verdict([computed, measured], "refuted") == "refuted"
    assert ledger.name_verdict([], "skipped") == "skipped"


def test_a_claim_holds_where_it_holds_everywhere():
    good, bad, open_ = (
        Row("", "", np.array([value] * 6) + np.arange(6) * 0.1, 20) for value in (1.0, -2.0, -0.25)
    )
    claim = claims.Claim("", "", "", None)
    assert (
        claims.verdict(claim, [good, good]) == "supported"
        and claims.verdict(claim, [good, bad, open_]) == "refuted"
    )
    assert claims.verdict(claim, [good, open_]) == "undecided" and claims.verdict(claim, []) == "skipped"
    both = claims.Claim("", "", "", None, parts=2)
    assert (
        claims.verdict(both, [good, good]) == "undecided"
        and claims.verdict(both, [good, replace(good, statistic="other")]) == "supported"
    )


def test_claims_on_curves_that_are_known(runs):
    """Judge known curves.

    FedAvg rises to 58 %, GenFL twice as fast to 60 %, AIGC-only fastest, but only to 30 %. At alpha 1 all are
    equal.
    """
    every = [
        made(method, seed, alpha, accuracy=None if alpha == 0.1 else np.full(30, 70), cosine=alpha / 2)
        for method in CURVES
        for seed in range(1, 7)
        for alpha in (0.1, 1.0)
    ]
    words = {claim.name: (word, rows) for claim, rows, word in claims.ledger(runs(*every))}
    assert (
        words["C1"][0] == "undecided"
        and [row.verdict[0] for row in words["C1"][1]] == ["supported", "undecided"] * 2
    )
    assert of(words["C1"][1][:1])["cifar10 α 0.1"].values == pytest.approx([60 - 54] * 6)
    assert words["C3"][0] == "supported" and words["C3"][1][0].setting == "cifar10 α 0.1 to 1"
    assert words["C4"][0] == "supported" and words["C4"][1][0].setting == "cifar10 α 1 to 0.1"
    assert [row.verdict[0] for row in words["C5"][1]] == ["supported", "undecided"]
    assert of(words["C6"][1])["cifar10 α 0.1"].verdict == ("supported", "")
    assert of(words["C7"][1])["cifar10 α 0.1"].verdict == ("refuted", ""), (
        "AIGC-only leads by more than a point in the early rounds"
    )
    assert words["C8"][0] == "undecided", "of many classes nothing is known"
    assert words["C8"][1][0].values.tolist() == [1] * 6
    assert [row.values.mean() for row in words["C9"][1]] == pytest.approx(
        [np.cos(np.deg2rad(80)) - 0.05, 0.45]
    )
    assert words["K1"] == ("skipped", [])


def test_costs_by_hand(runs, monkeypatch):
    """30 images a round, 5 clients of one sample, 2 epochs; 1,000 weights."""
    monkeypatch.setattr(claims.flops, "training_flops", lambda module, shape: 4.0)
    for name, image in (("count_pipeline", 20.0), ("count_stable_diffusion", 200.0)):
        monkeypatch.setattr(
            claims.image_flops, name, lambda *_, image=image: claims.image_flops.Flops(0, image, 0, 0)
        )
    rows = {row.setting: row for row in claims.costs(runs(made("genfl"), made("fedavg")))}
    assert rows["cifar10, Stable Diffusion v1.5"].values == [6 * 200 / (1 * 2 * 4)] and rows[
        "cifar10, checkpoint cifar10"
    ].values == [6 * 20 / 8]
    assert rows["cifar10, images 32 x 32"].values == [30 * 3072 / 4000] and rows[
        "cifar10, images 512 x 512"
    ].values == [30 * 3 * 512**2 / 4000]
    assert {row.verdict[0] for row in rows.values()} == {"supported"} and claims.costs(
        runs(made("fedavg"))
    ) == []


def test_many_classes_are_not_covered(runs):
    rows = claims.coverage(runs(*(made(seed=seed, data="cifar100", classes=100) for seed in range(6))))
    assert [row.statistic for row in rows] == ["share of cohorts that lack a label"] and rows[0].verdict == (
        "supported",
        "",
    )


def test_only_pairs_are_compared(runs):
    """Seeds that one of the methods lacks do not count."""
    some = runs(*(made("fedavg", seed) for seed in (1, 2, 3)), *(made("aigc", seed) for seed in (2, 3, 4)))
    [row] = claims.compare_methods(some, "fedavg", "aigc", claims.final, claims.AT_THE_END)
    assert len(row.values) == 2 and row.verdict == ("undecided", "")


@pytest.mark.parametrize(
    "one, other, message",
    [
        ({}, {"method": "genfl", "clients": 20}, "clients is 10 in the one and 20 in the other"),
        ({}, {"seed": 2, "training.lr": 0.2}, "training.lr is 0.1 in the one and 0.2"),
        ({}, {"method": "genfl", "accuracy": [1] * 20}, "rounds is 30 in the one and 20"),
        ({}, {}, "are the same method, data set, alpha and seed"),
    ],
)
def test_runs_that_cannot_be_paired(runs, one, other, message):
    from genfl_mpi.util.errors import UserError

    with pytest.raises(UserError, match=message):
        runs(made(**one), made(**other))


def test_methods_may_have_learning_rates_of_their_own(runs):
    assert len(list(runs(made(), made("aigc", **{"training.lr": 0.2})))) == 2


def test_claims_prints_80_columns_and_writes_markdown(tiny, tmp_path, capsys):
    """On real runs: report too few seeds and rounds, leave out an unfinished run, write a Markdown table."""
    out = tmp_path / "ledger.md"
    run = [one for one in tiny if not one.startswith("method")]
    assert main([*run, "sweep.method=[fedavg,genfl,aigc,matched]", "sweep.partition.alpha=[0.1,1.0]"]) == 0
    capsys.readouterr()
    assert main(["claims", str(tmp_path / "results"), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "refuted by costs" in said and "\nA verdict needs 20 rounds and 6 seeds" in f"\n{said}"
    assert said.count("20 rounds") == 2, "at the top and in the note, not in every row"
    assert "mnist5k α 0.1 to 1" in said and "8 runs: 4 of mnist5k α 0.1" in said
    assert (longest := max(said.splitlines()[:-1], key=len)) and len(longest) <= 80, longest
    text = out.read_text()
    assert (
        text.count("| C1 |") == 4
        and "| K1 | needs runs of genfl and pool |" in text
        and "in place of generated images | skipped: needs runs" in text
    )
    assert (
        "skipped" in said
        and "in part needs runs of fedavg, on data sets with few and with many classes"
        in " ".join(said.split())
    )
    assert len({line.count("|") for line in text.splitlines() if line.startswith("| C")}) == 1, (
        "every row has all cells"
    )


def test_what_cannot_be_judged(tiny, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["claims", str(tmp_path / "empty")]) == 2
    assert "no results files in" in capsys.readouterr().err
    assert main([*tiny]) == 0
    capsys.readouterr()
    assert main(["claims", str(tmp_path / "results"), "-o", str(tmp_path / "none/x.md")]) == 2
    assert "the table cannot be written: " in capsys.readouterr().err


def test_variants_of_a_method_are_methods_of_their_own_and_rivals(tmp_path, bank):
    """Runs that differ in algorithm or kappa policy are compared; all of one algorithm keep their names."""
    overrides = [*(one for one in TINY if not one.startswith("method")), f"generation.bank={bank}"]
    variants = {
        "plain": ["method=fedavg"],
        "fedprox": ["method=fedavg", "algorithm.name=fedprox"],
        "genfl": ["method=genfl"],
        "emd": ["method=genfl", "kappa.policy=emd"],
    }
    for name, more in variants.items():
        assert main([*overrides, *more, "training.lr=0.05", f"output={tmp_path}/{name}"]) == 0
    files = sorted(tmp_path.glob("*/*.h5"))
    runs = Runs(files)
    assert sorted(run.method for run in runs) == ["fedavg", "fedavg fedprox", "genfl", "genfl emd"]
    rows = {claim.name: rows for claim, rows, _ in claims.ledger(runs)}
    assert [row.statistic.rpartition(", ")[2] for row in rows["K3"]] == [
        "genfl - fedavg fedprox",
        "genfl - genfl emd",
    ]
    assert len(rows["K4"]) == 2 and len(rows["C1"]) == 1
    [same] = Runs([file for file in files if file.parent.name == "fedprox"])
    assert same.method == "fedavg"


@pytest.mark.parametrize("name", ["rivals-small", "moon-small", "one-shot-small", "rivals-final"])
def test_studies_have_a_name_for_every_run(name):
    runs = loading.load(Path(__file__).parent.parent / f"configs/{name}.yaml")
    assert len(runs) in (90, 12, 36, 84) and all(len(run) < 120 for run in runs)
