"""Measured speeds steer work ahead in a wait."""

from pathlib import Path

import numpy as np
import pytest

from genfl_mpi import Simulation
from genfl_mpi.mpi import collectives
from genfl_mpi.mpi.schedule import Pace

PICTURES = """
import numpy as np

def pictures(batch, shape):
    return np.stack([np.full(shape, seed % 256, np.uint8) for seed in batch.seed])
"""


@pytest.fixture
def drawn(fast, tmp_path, monkeypatch):
    """A run of four rounds that generates a batch a round, at once, into a bank of its own."""
    (tmp_path / "pictures.py").write_text(PICTURES)
    monkeypatch.syspath_prepend(tmp_path)
    return [*fast, "method=genfl", "rounds=4", "generation.checkpoint=pictures:pictures",
            "generation.prompts=mnist", "generation.per_round=1", "generation.cap=4",
            "generation.batch_size=10", f"generation.bank={tmp_path}/bank"]


def made(overrides):
    """The number of batches in the bank."""
    return len(list(Path(overrides[-1].partition("=")[2]).glob("*.h5")))


def test_the_slowest_other_rank_is_predicted():
    pace, costs, ranks = Pace(3), np.array([100.0, 300, 200, 50]), np.array([1, 0, 2, 1])
    assert pace.seconds_of_others(costs, ranks) == 0, "nothing was measured"
    pace.measure(np.array([100, 100]), np.array([1.0, 2.0]), np.array([1, 2]))
    assert pace.seconds_of_others(costs, ranks) == pytest.approx(200 / 50)
    pace.measure(np.array([100, 100]), np.array([1.0, 0.5]), np.array([1, 2]))
    assert pace.seconds_of_others(costs, ranks) == pytest.approx(200 / (0.7 * 50 + 0.3 * 200))
    assert pace.seconds_of_others(costs, np.zeros(4, dtype=int)) == 0, "no other rank trains"
    assert Pace(1).seconds_of_others(costs, np.zeros(4, dtype=int)) == 0


def test_a_batch_that_does_not_fit_is_not_begun(drawn):
    server = Simulation(overrides=drawn).server
    server.generated.speed.rate = 0.5  # as after a restart
    assert not server.generated.ahead(server.state, 100.0) and made(drawn) == 0, "the generator is not loaded"
    server.generated.make(server.state, lambda: 0)
    server.generated.speed.rate = 0.5
    assert not server.generated.ahead(server.state, 1.9) and made(drawn) == 1
    assert server.generated.ahead(server.state, 2.0) and made(drawn) == 2


@pytest.mark.parametrize(("seconds", "batches"), [(0.0, [1, 2, 3, 4]), (1e9, [4, 4, 4, 4])])
def test_a_round_makes_ahead_what_fits_into_its_wait(drawn, monkeypatch, seconds, batches):
    """The wait is as long as the prediction says, and the barrier never hurries: no clock decides."""
    def arrive(comm, meanwhile=None, leaving=None):
        while meanwhile and meanwhile():
            pass
        return collectives.Waiting(0.0, 0.0)

    monkeypatch.setattr(collectives, "arrive", arrive)
    monkeypatch.setattr(Pace, "seconds_of_others", lambda *_: seconds)
    assert [made(drawn) for _ in Simulation(overrides=drawn)] == batches
