"""Evaluation in some rounds only, and on a subset of the test set in between."""

import re

import numpy as np
import pytest
from conftest import FAST, mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis import claims, comparison, curves, report, show, summary
from genfl_mpi.analysis.run_groups import read_run
from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.preparation.prediction import evaluation_seconds
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

SPARSE = [*FAST, "rounds=6", "evaluation.every=3", "evaluation.subset=15"]


def rounds_of(path):
    with reader.open_results(path) as file:
        return reader.read_columns(file, "rounds")


def test_only_every_kth_round_is_evaluated_and_weights_stay_the_same(tmp_path):
    for name, every in (("all", 1), ("some", 3)):
        assert main([*FAST, "rounds=6", f"evaluation.every={every}", f"output={tmp_path}/{name}"]) == 0
    paths = [tmp_path / name / "fedavg_seed1.h5" for name in ("all", "some")]
    every, some = map(rounds_of, paths)
    assert reader.digests(paths[0])[0] == reader.digests(paths[1])[0]
    for name in (
        "accuracy",
        "loss",
        "accuracy_per_class",
        "clients_accuracy",
        "clients_accuracy_worst_tenth",
    ):
        assert np.isnan(some[name][[0, 1, 3, 4]]).all()
        assert (some[name][[2, 5]] == every[name][[2, 5]]).all()
    assert np.isnan(some["subset_accuracy"]).all() and np.isnan(every["subset_loss"]).all()


def test_the_subset_is_fixed_and_the_same_for_all_seeds():
    chosen = []
    for seed in (1, 2):
        simulation = Simulation(None, [*SPARSE, f"seed={seed}"])
        chosen.append(simulation.parts.recorder.evaluator.subset.tolist())
        record = next(iter(simulation))
        assert np.isnan(record.accuracy) and np.isnan(record.accuracy_per_class).all()
        assert 15 * record.subset_accuracy == pytest.approx(round(15 * record.subset_accuracy))
        assert f"accuracy of subset {100 * record.subset_accuracy:5.2f} %" in repr(record)
        simulation.close()
    assert chosen[0] == chosen[1] == sorted(set(chosen[0])) and len(chosen[0]) == 15


def test_the_whole_test_set_as_subset_has_the_accuracy_of_the_test_set():
    simulation = Simulation(None, [*FAST, "rounds=2", "evaluation.every=2", "evaluation.subset=1000"])
    first, last = simulation
    assert (last.subset_accuracy, last.subset_loss) == (last.accuracy, last.loss)
    assert np.isfinite(first.subset_loss)
    simulation.close()


def test_results_do_not_depend_on_ranks_or_interruptions(tmp_path):
    whole, parts = ([*SPARSE, f"output={tmp_path}/{name}"] for name in ("whole", "parts"))
    assert main(whole) == 0
    assert mpirun(3, "-m", "genfl_mpi", *parts, "rounds=3").returncode == 0
    assert mpirun(2, "-m", "genfl_mpi", *parts).returncode == 0
    digests = [reader.digests(tmp_path / name / "fedavg_seed1.h5") for name in ("whole", "parts")]
    assert digests[0] == digests[1]


def test_columns_of_the_subset_enter_the_digest_only_with_values(tmp_path):
    import h5py

    assert main([*FAST, "rounds=2", f"output={tmp_path}"]) == 0
    path = tmp_path / "fedavg_seed1.h5"
    before = reader.digests(path)
    with h5py.File(path, "r+") as file:  # as written before these columns
        del file["rounds/subset_accuracy"], file["rounds/subset_loss"]
    assert reader.digests(path) == before


def test_rounds_must_be_a_multiple_of_every():
    with pytest.raises(UserError, match=r"rounds \(7\) is not a multiple .* set rounds=9, or another"):
        single(None, ["method=fedavg", "rounds=7", "evaluation.every=3"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs of each of two methods, of 12 rounds of which every third is evaluated."""
    folder = tmp_path_factory.mktemp("sparse")
    overrides = [*FAST[1:], "rounds=12", "evaluation.every=3", "evaluation.subset=15"]
    overrides += ["sweep.seed=[1,2]", "sweep.algorithm.name=[fedavg,fedavgm]"]
    assert main(["method=fedavg", *overrides, f"output={folder}"]) == 0
    return folder


def test_figures_and_tables_show_evaluated_rounds_only(pair, tmp_path):
    paths = sorted(pair.glob("*.h5"))
    figure = curves.accuracy(paths)
    assert {tuple(line.get_xdata()) for line in figure.axes[0].lines} == {(3, 6, 9, 12)}
    lines = list(summary.table(paths))
    assert not any("nan" in line for line in lines)
    assert any("evaluated" in line for line in lines) and any(
        line.startswith("evaluation: ") for line in lines
    )
    curves.classes(paths)
    report.write(paths, tmp_path / "report.html")
    assert "nan" not in re.sub(
        r"<script.*?</script>|data:[^\"]*", "", (tmp_path / "report.html").read_text(), flags=re.S
    )
    [group, *_], _ = summary.groups(paths)
    filled = curves.until_next_evaluation(group)
    assert np.isnan(filled[:2]).all() and (filled[2] == filled[4]).all() and np.isfinite(filled[2:]).all()


def test_show_marks_the_accuracy_of_the_subset(pair):
    path = sorted(pair.glob("*.h5"))[0]
    lines, rounds = list(show.show(path)), rounds_of(path)
    table = [line.split() for line in lines if re.match(r" +\d+  ", line)]
    assert table[0][1:3] == [f"({100 * rounds['subset_accuracy'][0]:.2f})", "-"]
    assert table[2][1] == f"{100 * rounds['accuracy'][2]:.2f}"


def test_claims_and_comparison_use_evaluated_rounds(pair):
    runs = [read_run(path) for path in sorted(pair.glob("*.h5"))]
    run = runs[0]
    assert claims.final(run) == run.accuracy[[8, 11]].mean() and claims.early(run) == run.accuracy[2]
    smooth = claims.smoothed(run)
    assert np.isnan(smooth[:2]).all() and smooth[2] == run.accuracy[2]
    assert claims.rounds_to(run, -1.0) == 3 and claims.rounds_to(run, 101.0) == 13
    lines = list(comparison.report_lines([f"{pair}/*fedavg.h5", f"{pair}/*fedavgm.h5"]))
    assert not any("nan" in line for line in lines)


def test_live_lines_show_the_subset(fast, capsys):
    assert main([*fast, "rounds=2", "evaluation.every=2", "evaluation.subset=10"]) == 0
    first, second, *_ = [line for line in capsys.readouterr().out.splitlines() if "  round " in line]
    assert "accuracy of subset" in first and "loss" not in first
    assert "accuracy" in second and "subset" not in second and "loss" in second


def test_plan_predicts_the_share_of_testing():
    config = single(None, ["method=fedavg", "rounds=10", "evaluation.every=5", "evaluation.subset=150"])
    assert evaluation_seconds(config, 1000, 10.0, 1, 5) == pytest.approx(12.0)
    assert evaluation_seconds(config, 1000, 10.0, 1, 6) == pytest.approx(2.0)
    assert evaluation_seconds(config, 1000, 10.0, 4, 10) == pytest.approx(4.0)
    usual = single(None, ["method=fedavg", "rounds=10"])
    assert evaluation_seconds(usual, 1000, 10.0, 1, 1) == pytest.approx(10.0)
