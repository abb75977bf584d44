"""Transforms of the clients' models, between local training and the sum, on any number of ranks."""

import os
import sys

import numpy as np
import pytest
import torch
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.config.settings import Config
from genfl_mpi.federation.transforms import TRANSFORMS
from genfl_mpi.federation.transforms.chain import Chain
from genfl_mpi.results import reader

OWN = """
import torch


def half(trained, omega, client):
    return omega + (trained - omega) / 2


def nothing_learned(trained, omega, client):
    return omega.clone()


def noise(trained, omega, client):
    assert client.settings.clients == 6 and client.id in range(6) and client.round in range(3)
    return trained + 0.01 * torch.from_numpy(client.rng.standard_normal(len(trained), dtype="float32"))


def short(trained, omega, client):
    return trained[:-1]


def double(trained, omega, client):
    return trained.double()


def none(trained, omega, client):
    pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The file of the user's transforms."""
    (tmp_path / "my_transforms.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "my_transforms.py"
    sys.modules.pop("my_transforms", None)


def half(trained, omega, client):
    return omega + (trained - omega) / 2


def draw(trained, omega, client):
    return torch.full_like(trained, client.rng.random())


def applied(*transforms, weights=(3.0, 4.0, 9.0), round=0, client=0, **settings):
    """What a chain makes of two parameters and a statistic, from a global model of zeros."""
    chain = Chain([(one.__name__, one) for one in transforms], Config(**settings), 2)
    return chain.apply(torch.tensor(weights), torch.zeros(3), round, client)


def test_a_chain_works_in_order_on_the_parameters_alone():
    clip = TRANSFORMS["clip"]
    assert applied(clip).tolist() == pytest.approx([0.6, 0.8, 9.0])
    assert applied(clip, half).tolist() == pytest.approx([0.3, 0.4, 9.0])
    assert applied(half, clip).tolist() == pytest.approx([0.6, 0.8, 9.0])
    weights = torch.tensor([0.3, 0.4, 9.0])
    assert Chain([("clip", clip)], Config(), 2).apply(weights, torch.zeros(3), 0, 0) is weights
    broken = applied(clip, weights=(float("nan"), 1.0, 0.0))
    assert broken[0].isnan() and broken[1] == 1, "what is not finite is left to the sum"


def test_every_draw_has_a_key_of_its_own():
    first = applied(draw)
    assert torch.equal(applied(draw), first)
    others = [applied(draw, draw), applied(draw, round=1), applied(draw, client=1), applied(draw, seed=2)]
    assert len({one[0].item() for one in (first, *others)}) == 5


@pytest.mark.parametrize(
    "more",
    [[], ["training.clients_per_batch=2"], ["algorithm.name=fednova"]],
    ids=["one", "batch", "fednova"],
)
def test_clip_bounds_the_norm_of_what_is_summed(more, fast):
    plain, clipped = (
        np.concatenate([record.clients["update_norm"] for record in Simulation(overrides=[*run, *more])])
        for run in ([*fast, "rounds=2"], [*fast, "rounds=2", "transforms=[clip]", "clipping.norm=0.02"])
    )
    assert plain.min() > 0.04 and clipped == pytest.approx(np.full(6, 0.02), rel=1e-4)


def test_a_clip_that_is_never_reached_is_fedavg(fast, tmp_path):
    assert main([*fast, "rounds=2"]) == 0
    clip = ["transforms=[clip]", "clipping.norm=1000", f"output={tmp_path}/clip"]
    assert main([*fast, "rounds=2", *clip]) == 0
    paths = [tmp_path / folder / "fedavg_seed1.h5" for folder in ("results", "clip")]
    assert reader.digests(paths[0]) == reader.digests(paths[1])


def test_transforms_do_not_depend_on_the_ranks(fast, own, tmp_path):
    run = [*fast, "rounds=3", "transforms=[my_transforms:noise,clip]", "clipping.norm=0.5"]
    path = os.pathsep.join([str(own.parent), os.environ.get("PYTHONPATH", "")])
    for ranks in (1, 2):
        done = mpirun(ranks, "-m", "genfl_mpi", *run, f"output={tmp_path}/{ranks}", PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
    one, two = (tmp_path / f"{ranks}/fedavg_seed1.h5" for ranks in (1, 2))
    assert reader.digests(one) == reader.digests(two)


def test_what_an_algorithm_derives_is_of_the_transformed_model(fast, own, tmp_path):
    """SCAFFOLD's variates stay zero if no client moves; the loss is still that of the training."""
    run = [*fast, "rounds=2", "algorithm.name=scaffold", "transforms=[my_transforms:nothing_learned]"]
    simulation = Simulation(overrides=run, folder=tmp_path / "states")
    before = simulation.weights.clone()
    for record in simulation:
        assert not record.clients["update_norm"].any() and record.clients["loss_last_epoch"].all()
    assert not simulation.server.memory["control_mean"].any()
    assert torch.allclose(simulation.weights, before, atol=1e-6)


def test_a_transform_of_ones_own_acts_and_its_file_is_an_input(fast, own, tmp_path, capsys):
    plain, halved = (
        next(iter(Simulation(overrides=run))).clients["update_norm"]
        for run in (fast, [*fast, "transforms=[my_transforms:half]"])
    )
    assert halved == pytest.approx(plain / 2, rel=1e-4)
    run = [*fast, "transforms=[my_transforms:half]", "checkpoint.keep=1"]
    assert main([*run, "rounds=1"]) == 0
    own.write_text(OWN.replace("/ 2", "/ 3"))
    capsys.readouterr()
    assert main([*run, "rounds=2"]) == 2
    said = capsys.readouterr().err
    assert f"transforms[0]: {own} has changed since the run began" in said and said.count("\n") == 1
    results = tmp_path / "results/fedavg_seed1.h5"
    fork = ["fork", str(results), "--at", "1", "rounds=2", f"output={tmp_path}/fork"]
    assert main(fork) == 2 and main([*fork, "transforms=[]"]) == 0


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ("[clop]", "transforms: clop is unknown; did you mean clip?"),
        ("[my_transforms:short]", "transforms: my_transforms:short must return a float32 tensor"),
        ("[my_transforms:double]", "and returned a float64 tensor"),
        ("[clip,my_transforms:none]", "and returned a NoneType"),
    ],
)
def test_what_is_wrong_is_one_line(transforms, message, fast, own, capsys):
    assert main([*fast, "rounds=1", f"transforms={transforms}"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
