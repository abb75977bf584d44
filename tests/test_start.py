"""What a start does before the first round: recognise finished runs, import what it needs, hash inputs."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import FAST

from genfl_mpi.cli import main
from genfl_mpi.config.loading import load
from genfl_mpi.config.sections.samples import Data
from genfl_mpi.data import datasets
from genfl_mpi.results import progress, reader
from genfl_mpi.runs import finished
from genfl_mpi.util import digest_cache

HEAVY = ("torch", "scipy", "matplotlib", "diffusers")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Overrides of a finished sweep of two runs, and its folder."""
    folder = tmp_path_factory.mktemp("sweep")
    overrides = [*FAST, "rounds=2", "sweep.seed=[1,2]", f"output={folder}"]
    assert main(overrides) == 0
    return overrides, folder


def recognised(overrides):
    return finished.are_finished(
        {reader.Path(one.output) / f"{name}.h5": one for name, one in load(None, overrides).items()}
    )


def test_a_finished_sweep_is_recognised_without_heavy_imports(sweep):
    overrides, folder = sweep
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    code = (
        "import sys; from genfl_mpi.cli import main; status = main(sys.argv[1:]);"
        f"print(status, [name for name in {HEAVY} if name in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, *overrides], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said[-1] == "0 []"
    assert {"fedavg_seed1: already finished", "fedavg_seed2: already finished"} <= set(said)
    assert any(line.startswith("method ") for line in said) and "2 runs in " in said[-2]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_missing_figure_is_drawn_again(sweep):
    overrides, folder = sweep
    (folder / "accuracy.png").unlink()
    assert main(overrides) == 0 and (folder / "accuracy.png").exists()


def test_runs_with_something_left_to_do_are_not_recognised(sweep, tmp_path):
    overrides, folder = sweep
    assert recognised(overrides) and recognised([*overrides, "checkpoint.every_rounds=7"])
    for change in ("rounds=3", "training.lr=0.5", "runtime.threads=2", "sweep.seed=[1,2,3]"):
        assert not recognised([*overrides, change])
    note = progress.Progress(folder / "fedavg_seed1.h5", 1, 2)
    note("train", round=1)
    note.close()
    assert not recognised(overrides)
    progress.clear(folder / "fedavg_seed1.h5")
    assert recognised(overrides)


def test_a_damaged_file_is_not_recognised(tmp_path):
    overrides = [*FAST, "rounds=1", f"output={tmp_path}"]
    assert main(overrides) == 0 and recognised(overrides)
    with h5py.File(tmp_path / "fedavg_seed1.h5", "r+") as file:
        file["rounds/accuracy"][0] = 0.123
    assert not recognised(overrides) and main(overrides) == 2


def test_a_changed_input_is_not_recognised_and_reported(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text("def first(state):\n    return list(range(state.config.cohort))\n")
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [*FAST, "rounds=1", "selection.policy=mine:first", f"output={tmp_path}/results"]
    assert main(overrides) == 0 and recognised(overrides)
    (tmp_path / "mine.py").write_text(
        "def first(state):\n    return list(range(state.config.cohort))[::-1]\n"
    )
    assert not recognised(overrides) and main(overrides) == 2
    assert "changed since the run began" in capsys.readouterr().err


def test_scipy_is_imported_only_in_worlds():
    code = "import sys, genfl_mpi.runs.sweep, genfl_mpi.runs.display; print('scipy' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False"


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large and as old, with the place of its digest."""
    monkeypatch.setattr(digest_cache, "MIN_BYTES", 10)
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(100))
    monkeypatch.setattr(digest_cache, "SETTLED", -1e9)
    return path, tmp_path / ".data.sha256"


def counting(values):
    """Return a function that returns a digest for each call, and the list of calls."""
    calls = []

    def compute():
        calls.append(1)
        return f"{len(calls):064d}"

    return compute, calls


def test_a_digest_is_remembered_until_the_file_changes(large):
    path, place = large
    compute, calls = counting(path)
    first = digest_cache.remembered(place, [path], compute)
    assert digest_cache.remembered(place, [path], compute) == first and len(calls) == 1
    about = path.stat()
    path.write_bytes(bytes(99) + b"1")  # of the same size
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # and time
    assert digest_cache.remembered(place, [path], compute) != first and len(calls) == 2
    assert digest_cache.remembered(place, [path], compute, "another version") and len(calls) == 3


@pytest.mark.parametrize("content", ["", "{}", "[]", "x", '{"stamp": 1, "sha256": 2}'])
def test_a_damaged_memory_is_ignored(large, content):
    path, place = large
    compute, calls = counting(path)
    digest = digest_cache.remembered(place, [path], compute)
    place.write_text(content)
    assert digest_cache.remembered(place, [path], compute) != digest and len(calls) == 2
    assert len(json.loads(place.read_text())["sha256"]) == 64


def test_small_files_and_files_that_just_changed_are_hashed(large, monkeypatch):
    path, place = large
    for name, value in (("MIN_BYTES", 1000), ("SETTLED", 3600.0)):
        with monkeypatch.context() as patch:
            patch.setattr(digest_cache, name, value)
            compute, calls = counting(path)
            assert [digest_cache.remembered(place, [path], compute) for _ in range(2)] and len(calls) == 2
    assert not place.exists()


def test_the_digest_of_a_data_set_is_remembered_beside_it(tmp_path, monkeypatch):
    from PIL import Image

    for part in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            Image.new("RGB", (8, 8), label == "a" and "red").save(tmp_path / part / label / "1.png")
    data = Data(name="folder", root=str(tmp_path), size=8)
    arrays = datasets.load(data)
    digest = datasets.fingerprint(data, arrays)
    monkeypatch.setattr(digest_cache, "MIN_BYTES", 0)
    monkeypatch.setattr(digest_cache, "SETTLED", -1e9)
    assert datasets.fingerprint(data, arrays) == digest
    monkeypatch.setattr(datasets, "_hashed", None)
    assert datasets.fingerprint(data, arrays) == digest
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "train/a/1.png")
    with pytest.raises(TypeError):
        datasets.fingerprint(data, arrays)
    assert np.asarray(arrays["train_images"]).dtype == np.uint8


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, "None 10000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "0"}, "None 0"),
    ],
)
def test_waiting_threads_sleep_unless_the_user_decides(given, expected):
    code = "import os, genfl_mpi; print(*map(os.environ.get, ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"
    unset = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unset | given
    )
    assert done.stdout.strip() == expected
