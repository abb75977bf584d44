"""Figures of what images repair."""

import numpy as np
import pytest

from genfl_mpi.analysis import repair
from genfl_mpi.cli import main


def test_accuracy_is_divided_by_what_the_cohort_holds():
    """A label with less than a tenth of an even share counts as lacking."""
    held = np.array([[100, 100, 0, 4], [1, 1, 1, 1]])
    holds, lacks = repair.by_holding(np.array([[60.0, 40, 10, 20], [1, 2, 3, 4]]), held)
    assert holds.tolist() == [50, 2.5] and lacks[0] == 15 and np.isnan(lacks[1])


@pytest.fixture(scope="module")
def swept(tmp_path_factory, bank):
    from conftest import TINY

    folder = tmp_path_factory.mktemp("repair")
    overrides = [one for one in TINY if not one.startswith("method")]
    overrides += ["partition.alpha=0.05", "data.public_pool=100", "generation.min_fidelity=1e-30"]
    for method in ("fedavg", "genfl"):
        own = overrides if method == "genfl" else overrides[:-1]
        assert main([*own, f"method={method}", f"output={folder}", f"generation.bank={bank}"]) == 0
    return folder


@pytest.mark.parametrize("name", ["repair", "fidelity", "gain"])
def test_figures_show_every_method(name, swept, tmp_path):
    assert main(["plot", str(swept), "--figure", name, "-o", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_gains_pair_runs_with_fedavg_of_the_same_seed(swept):
    runs = repair.read(sorted(swept.glob("*.h5")))
    [(run, base)] = repair.gains(runs)
    assert (run.method, base.method) == ("genfl", "fedavg") and run.images.tolist() == [10, 20]
    assert np.isfinite(run.fidelity).all() and np.isnan(base.fidelity).all()
    drawn = repair.gain(sorted(swept.glob("*.h5"))).axes[0].lines[0]
    gains = run.accuracy - base.accuracy
    assert drawn.get_ydata() == pytest.approx([gains[0], gains.mean()])


def test_a_gain_needs_fedavg(swept, capsys):
    assert main(["plot", str(swept / "genfl_seed1.h5"), "--figure", "gain"]) == 2
    assert "a gain needs a run of method=fedavg" in capsys.readouterr().err
