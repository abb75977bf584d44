"""The section `search`: equal budgets, own seeds, reproducible draws, and the best configuration."""

import pytest
from conftest import FAST

from genfl_mpi.cli import main
from genfl_mpi.config import loading
from genfl_mpi.util.errors import UserError

SEARCH = {
    "sweep": {"method": ["fedavg", "genfl"]},
    "search": {
        "runs": 4,
        "seeds": [11, 12],
        "settings": {
            "training": {"lr": {"log_uniform": [0.01, 1.0]}, "epochs": [1, 2]},
            "clients": {"integer": [8, 9]},
        },
    },
}


def test_every_method_gets_the_same_configurations_on_the_searchs_seeds():
    runs = loading.load(SEARCH)
    assert len(runs) == 2 * 4 * 2
    drawn = {}
    for name, run in runs.items():
        assert name == f"{run.method}_seed{run.seed}_search{run.search.number:03d}" and run.seed in (11, 12)
        assert 0.01 <= run.training.lr <= 1 and run.training.epochs in (1, 2) and run.clients in (8, 9)
        same = (run.training.lr, run.training.epochs, run.clients)
        assert drawn.setdefault(run.search.number, same) == same
    assert len(set(drawn.values())) == 4


def test_more_runs_keep_the_first_ones():
    more = loading.load(SEARCH, ["search.runs=6"])
    assert {name: more[name].training.lr for name in loading.load(SEARCH)} == {
        name: run.training.lr for name, run in loading.load(SEARCH).items()
    }


def test_a_grid_has_all_combinations_and_an_override_pins_a_setting():
    grid = {"search": {"kind": "grid", "settings": {"training.lr": [0.1, 0.2], "training.epochs": [1, 2]}}}
    runs = list(loading.load(grid).values())
    assert [(run.training.lr, run.training.epochs) for run in runs] == [
        (0.1, 1),
        (0.1, 2),
        (0.2, 1),
        (0.2, 2),
    ]
    assert {run.training.lr for run in loading.load(grid, ["training.lr=0.5"]).values()} == {0.5}


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["search.settings.training.lrr=[1]"],
            "unknown key search.settings.training.lrr; did you mean training.lr",
        ),
        (["search.settings.training.lr={log_uniform: [0, 1]}"], r"needs a list of values, or a range, .*got"),
        (["search.kind=grid"], r"search.settings.training.lr needs a list of values \(got"),
        (["seed=1"], "a search has its own seeds.*; set search.seeds instead of seed"),
    ],
)
def test_an_invalid_search_is_one_line(overrides, message):
    with pytest.raises(UserError, match=message):
        loading.load(SEARCH, overrides)


def test_a_search_is_recorded_and_the_best_of_each_method_printed(tmp_path, capsys):
    one = [setting for setting in FAST if not setting.startswith("method")]
    space = ["search.settings.training.lr={log_uniform: [0.001, 1.0]}", "search.runs=3", "search.seeds=[5]"]
    assert main([*one, *space, "method=fedavg", "rounds=1", f"output={tmp_path}"]) == 0
    capsys.readouterr()
    assert main(["best", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "fedavg: search " in output and "3 configurations with 1 seed" in output
    assert "training.lr=" in output and "compare methods on other seeds" in output
    assert main(["best", *map(str, tmp_path.glob("*search000.h5"))]) == 0
    assert main(["show", *map(str, tmp_path.glob("*search001.h5"))]) == 0
    assert "search.number=1" in capsys.readouterr().out
