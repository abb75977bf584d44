"""MOON: a contrastive loss with the client's last model."""

import pytest
import torch
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.data import datasets
from genfl_mpi.federation.algorithms.interface import Client
from genfl_mpi.federation.algorithms.moon import MOON, contrastive_loss
from genfl_mpi.learning import heads, models
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.results import reader

FULL = ["method=fedavg", "cohort=6", "training.lr=0.02", "model.name=moon_cnn"]


def test_contrast_0_is_fedavg_and_so_is_the_first_round(tiny, tmp_path):
    for name, overrides in {
        "fedavg": [],
        "zero": ["algorithm.name=moon", "algorithm.contrast=0"],
        "moon": ["algorithm.name=moon"],
    }.items():
        assert main([*tiny, *FULL, *overrides, f"output={tmp_path}/{name}"]) == 0
    found = {
        name: reader.digests(tmp_path / f"{name}/fedavg_seed1.h5") for name in ("fedavg", "zero", "moon")
    }
    assert found["zero"] == found["fedavg"] != found["moon"]
    first = []
    for name in ("fedavg", "moon"):
        with reader.open_results(tmp_path / f"{name}/fedavg_seed1.h5") as file:
            first.append(reader.read_columns(file, "rounds", ["loss"])["loss"])
    assert first[0][0] == first[1][0] and first[0][1] != first[1][1]


def test_moon_has_the_same_bits_on_any_ranks_and_when_continued(tiny, tmp_path):
    run = [*tiny, *FULL, "algorithm.name=moon"]
    done = mpirun(2, "-m", "genfl_mpi", *run, f"output={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    for rounds in (1, 2):
        assert main([*run, f"rounds={rounds}", f"output={tmp_path}/parts"]) == 0
    assert reader.digests(tmp_path / "two/fedavg_seed1.h5") == reader.digests(
        tmp_path / "parts/fedavg_seed1.h5"
    )


def test_the_loss_is_that_of_the_paper(tiny):
    one = Simulation(overrides=[*tiny, *FULL, "algorithm.name=moon", "algorithm.contrast=2"])
    about, model = datasets.describe(one.config.data), one.model
    omega, rng = one.weights.clone(), torch.Generator().manual_seed(0)
    last = omega + 0.05 * torch.randn(omega.shape, generator=rng)
    now = omega + 0.05 * torch.randn(omega.shape, generator=rng)
    images = torch.randn(7, *about.shape, generator=rng)
    labels = torch.arange(7)
    client = Client(0, 7, 1, one.config.training, model.parameters, last=1)
    [stage] = MOON.stages(client, omega, {}, {"last_model": last}, one.config)
    model.load(now)
    loss, logits = stage.loss(model, images, labels)

    def features(weights):
        model.load(weights)
        return heads.features_and_logits(model.module, heads.head_of(model.module), images)

    (z, expected), (z_glob, _), (z_prev, _) = map(features, (now, omega, last))
    near, far = (torch.exp(torch.cosine_similarity(z, other) / 0.5) for other in (z_glob, z_prev))
    contrast = -torch.log(near / (near + far)).mean()
    assert z.shape == (7, 256) and torch.equal(logits, expected)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(expected, labels) + 2 * contrast)


def test_the_loss_pulls_features_to_the_global_models():
    z = torch.nn.Parameter(torch.tensor([[1.0, 1.0]]))
    contrastive_loss(z, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5).backward()
    assert -z.grad[0, 0] > 0 > -z.grad[0, 1]


def test_frozen_features_leave_the_model_unchanged_with_batchnorm():
    from genfl_mpi.config.sections.local_training import Model

    model = FlatModel(models.build(Model(name="resnet18"), 10, (3, 32, 32), 0))
    other = model.weights + 0.01
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = model.weights.clone()
    found = heads.frozen_features(model, other, images)
    assert torch.equal(model.weights, before) and model.module.training and found.shape == (4, 512)
    model.load(other)
    expected, _ = heads.features_and_logits(model.module.eval(), heads.head_of(model.module), images)
    torch.testing.assert_close(found, expected)


def test_an_unsuitable_network_is_refused(tiny, capsys):
    own = "model.name=test_calibration:without_head"
    assert main([*tiny, "method=fedavg", own, "algorithm.name=moon"]) == 2
    assert "algorithm.name=moon needs a network whose logits" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1


@pytest.mark.parametrize("name", ["moon_cnn", "lenet5"])
def test_networks_for_both_arms_have_a_head(name):
    from genfl_mpi.config.sections.local_training import Model

    assert models.check_head(Model(name=name), 10, (1, 28, 28), "x") == {"moon_cnn": 256, "lenet5": 84}[name]
