"""The result is a function of the configuration: not of ranks, schedule or interruption."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.results import checkpoint, reader


def run(ranks, overrides):
    done = mpirun(ranks, "-m", "genfl_mpi", *overrides)
    assert done.returncode == 0, done.stderr
    return done.stdout


def digests(folder, name="genfl_seed1"):
    return reader.digests(folder / f"{name}.h5")


def test_any_number_of_ranks(tiny, tmp_path, capsys):
    for ranks in (1, 2, 4):
        # Each with a bank of its own: the images must not depend on the ranks either.
        run(ranks, [*tiny, f"output={tmp_path}/{ranks}", f"generation.bank={tmp_path}/{ranks}/bank"])
    first = digests(tmp_path / "1")
    assert digests(tmp_path / "2") == first
    assert digests(tmp_path / "4") == first
    assert main(["digest", str(tmp_path / "4/genfl_seed1.h5")]) == 0
    assert all(digest in capsys.readouterr().out for digest in first[:2])


def test_another_seed_gives_other_bits(tiny, tmp_path):
    assert main([*tiny]) == 0
    assert main([*tiny, "seed=2"]) == 0
    one, two = digests(tmp_path / "results"), digests(tmp_path / "results", "genfl_seed2")
    assert one[0] != two[0] and one[1] != two[1]


def test_interrupted_and_continued_on_other_ranks(tiny, tmp_path, monkeypatch):
    run(2, [*tiny, "rounds=4", f"output={tmp_path}/whole"])

    class Interrupted(Exception):
        pass

    advance = Simulation._advance

    def interrupted(self):
        if self.round == 2:
            raise Interrupted
        return advance(self)

    monkeypatch.setattr(Simulation, "_advance", interrupted)
    assert main([*tiny, "rounds=4", f"output={tmp_path}/cut"]) == 1
    assert checkpoint.load(tmp_path / "cut/genfl_seed1.h5")[0] == 2
    with reader.open_results(tmp_path / "cut/genfl_seed1.h5") as file:
        assert file["rounds/round"][:].tolist() == [1, 2] and not reader.is_finished(file)
    monkeypatch.undo()
    said = run(3, [*tiny, "rounds=4", f"output={tmp_path}/cut"])
    assert "continues after round 2" in said
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert not checkpoint.path_for(tmp_path / "cut/genfl_seed1.h5").exists()


def test_more_rounds_continue_a_finished_run(tiny, tmp_path, capsys):
    assert main([*tiny, "rounds=3", f"output={tmp_path}/whole"]) == 0
    assert main([*tiny, "rounds=1"]) == 0
    assert main([*tiny, "rounds=3"]) == 0
    assert digests(tmp_path / "results") == digests(tmp_path / "whole")
    capsys.readouterr()
    assert main([*tiny, "rounds=3"]) == 0
    assert "finished before" in capsys.readouterr().out


@pytest.mark.parametrize(("kappa", "method"), [("kappa.kappa1=1", "fedavg"), ("kappa.kappa2=1", "aigc")])
def test_kappa_at_its_ends_is_a_baseline(tiny, tmp_path, kappa, method):
    assert main([*tiny, kappa]) == 0
    assert main([*tiny, f"method={method}"]) == 0
    with h5py.File(tmp_path / "results/genfl_seed1.h5", swmr=True) as a, h5py.File(tmp_path / f"results/{method}_seed1.h5", swmr=True) as b:
        assert np.array_equal(a["weights"], b["weights"])
        assert np.array_equal(a["rounds/accuracy"], b["rounds/accuracy"])
        assert np.abs(a["weights"]).max() > 0


@pytest.mark.skipif("GENFL_DATA" not in os.environ, reason="set GENFL_DATA to a folder with CIFAR-10 and CIFAR-100")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_papers_configurations_on_real_cifar(name, tiny, tmp_path):
    config = Path(__file__).parents[1] / "configs" / f"{name}.yaml"
    # A small network instead of ResNet-18, and the generator of digits instead of Stable Diffusion.
    small = [*tiny, f"data.root={os.environ['GENFL_DATA']}", "rounds=1", "clients=100", "model.name=cnn", "training.lr=0.1",
             "generation.checkpoint=digits", "generation.batch_size=100"]
    for ranks in (1, 2):
        done = mpirun(ranks, "-m", "genfl_mpi", config, *small, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    with reader.open_results(tmp_path / "1/genfl_seed1.h5") as file:
        assert file["generated/image"].shape[1:] == (3, 32, 32)
        assert file["rounds/accuracy_per_class"].shape == (1, {"cifar10": 10, "cifar100": 100}[name])
