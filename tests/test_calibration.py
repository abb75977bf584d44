"""CCVR: exact class-wise moments, and an output layer calibrated with features drawn from them."""

import h5py
import numpy as np
import pytest
import torch
from conftest import mpirun
from torch import nn

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.learning.class_moments import ClassMoments, draw_features
from genfl_mpi.learning.heads import features_and_logits
from genfl_mpi.results import reader

SKEWED = ["method=fedavg", "rounds=3", "training.epochs=2", "partition.alpha=0.05", "calibration.every=3"]


def test_moments_are_those_of_the_pooled_samples_in_any_order():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 5)) * 3, rng.integers(0, 3, 60)
    labels[0] = 3  # a class with one sample
    parts = np.split(np.arange(60), [7, 20, 21, 45])
    sums = []
    for order in (parts, parts[::-1]):
        moments = ClassMoments(4, 5)
        for part in order:
            moments.add(features[part], labels[part], len(parts))
        sums.append(moments.units)
    assert (sums[0] == sums[1]).all() and sums[0].shape == (4, 1 + 5 + 15)
    found = moments.gaussians()
    assert sorted(found) == [0, 1, 2]
    for label, (mean, covariance) in found.items():
        mine = features[labels == label]
        np.testing.assert_allclose(mean, mine.mean(0), atol=1e-6)
        np.testing.assert_allclose(covariance, np.cov(mine.T), atol=1e-5)
    with pytest.raises(FloatingPointError, match="too large"):
        moments.add(np.full((1, 5), 1e6), np.zeros(1, int), 1)
    with pytest.raises(FloatingPointError, match="not finite"):
        moments.add(np.full((1, 5), np.nan), np.zeros(1, int), 1)


def test_drawn_features_have_the_given_moments():
    root = np.random.default_rng(1).normal(size=(4, 4))
    drawn = draw_features(np.arange(4.0), root @ root.T, 200_000, np.random.default_rng(2))
    np.testing.assert_allclose(drawn.mean(0), np.arange(4), atol=0.05)
    np.testing.assert_allclose(np.cov(drawn.T), root @ root.T, atol=0.1)


def test_the_run_uses_the_moments_of_all_clients(tiny):
    """Compare with the features of all clients' data at the final weights, pooled."""
    one = Simulation(overrides=[*tiny, *SKEWED])
    list(one)
    head = one.parts.recorder.calibrated_head
    gaussians = head.moments(one.parts.messages.resident.omega).gaussians()
    data = [one.parts.worker.dataset.load(client) for client in range(6)]
    images, labels = (torch.cat(part) for part in zip(*data))
    one.model.load(one.weights)
    with torch.no_grad():
        features, _ = features_and_logits(one.model.module.eval(), head.head, images)
    assert len(gaussians) == 10
    for label, (mean, covariance) in gaussians.items():
        mine = features[labels == label].double().numpy()
        np.testing.assert_allclose(mean, mine.mean(0), atol=1e-5)
        np.testing.assert_allclose(covariance, np.cov(mine.T), atol=1e-4)


def test_calibration_repairs_a_skewed_head_on_any_ranks_without_changing_the_run(tiny, tmp_path):
    without = [one for one in SKEWED if not one.startswith("calibration")]
    assert main([*tiny, *without, f"output={tmp_path}/plain"]) == 0
    digests = set()
    for ranks in (1, 3):
        done = mpirun(ranks, "-m", "genfl_mpi", *tiny, *SKEWED, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
        digests.add(reader.digests(path := tmp_path / f"{ranks}/fedavg_seed1.h5"))
    assert len(digests) == 1
    assert digests.pop()[0] == reader.digests(tmp_path / "plain/fedavg_seed1.h5")[0]
    with h5py.File(path) as file:
        rows = {name: file[f"calibrated/{name}"][:] for name in ("round", "accuracy", "accuracy_per_class")}
        plain = file["rounds/accuracy"][-1]
    assert rows["round"].tolist() == [3] and rows["accuracy"][0] > plain
    assert rows["accuracy_per_class"].shape == (1, 10)
    with reader.open_results(tmp_path / "plain/fedavg_seed1.h5") as file:
        assert not len(reader.read_columns(file, "calibrated")["round"])


def test_moments_of_images_need_images(tiny, capsys):
    one = Simulation(overrides=[*tiny, "calibration.every=1", "calibration.moments=images"])
    records = list(one)
    assert [record.probes["calibrated"]["round"] for record in records] == [[1], [2]]
    assert main([*tiny, "method=fedavg", "calibration.every=1", "calibration.moments=images"]) == 2
    assert "set calibration.moments=clients" in (line := capsys.readouterr().err) and line.count("\n") == 1


def without_head(classes, shape):
    return nn.Sequential(nn.Conv2d(shape[0], classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_network_without_an_output_layer_is_refused(tiny, capsys):
    own = "model.name=test_calibration:without_head"
    assert main([*tiny, "method=fedavg", own, "calibration.every=1"]) == 2
    assert "needs a network whose logits" in (line := capsys.readouterr().err) and line.count("\n") == 1
