"""Settings that were tested one by one, many at once: the result is a function of all of them."""

import json
from pathlib import Path

import pytest
from conftest import mpirun


def came(folder, ranks, how, first, last):
    done = mpirun(ranks, Path(__file__).with_name("random_runs.py"), folder, how, first, last, timeout=3000)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    "first, last, others",
    [
        pytest.param(1, 8, [(3, "extended")], marks=pytest.mark.slow),
        pytest.param(
            9, 100, [(3, "whole"), (2, "extended"), (2, "forked")], marks=[pytest.mark.slow, pytest.mark.long]
        ),
    ],
    ids=["few", "many"],
)
def test_ranks_and_interruptions_change_nothing(tmp_path, first, last, others):
    expected = came(tmp_path / "whole1", 1, "whole", first, last)
    finished = [seed for seed, (status, _) in expected.items() if status == 0]
    assert len(finished) >= len(expected) / 3 and {status for status, _ in expected.values()} == {0, 2}
    for ranks, how in others:
        found = came(tmp_path / f"{how}{ranks}", ranks, how, first, last)
        assert [seed for seed in expected if found[seed] != expected[seed]] == []
