"""Probes: their figures are right on any number of ranks, and they do not change the run."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis.heterogeneity import heterogeneity
from genfl_mpi.cli import main
from genfl_mpi.data.clients import client_data
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation import probes
from genfl_mpi.learning.training import normalise
from genfl_mpi.results import reader

PROBED = ["probes.every=2", "probes.epochs=4", "rounds=4"]


def test_probing_does_not_change_the_run(fast, tmp_path):
    more = ["rounds=4", "algorithm.name=fedadam", "selection.policy=power_of_choice", "training.crop=1"]
    for folder, look in (("without", []), ("with", PROBED)):
        assert main([*fast, *more, *look, f"output={tmp_path}/{folder}"]) == 0
    results = [tmp_path / folder / "fedavg_seed1.h5" for folder in ("without", "with")]
    assert reader.digests(results[0])[0] == reader.digests(results[1])[0]
    with reader.open_results(results[0]) as one, reader.open_results(results[1]) as other:
        for column in (
            "rounds/loss",
            "rounds/cohort_emd",
            "rounds/update_alignment",
            "clients/client",
            "clients/update_norm",
        ):
            assert np.array_equal(one[column], other[column])
        assert not len(one["probes/probe"]) and other["probes/round"][:].tolist() == [2, 4]


def test_any_number_of_ranks_and_an_interruption(fast, tmp_path):
    assert mpirun(3, "-m", "genfl_mpi", *fast, *PROBED, f"output={tmp_path}/3").returncode == 0
    assert main([*fast, *PROBED, f"output={tmp_path}/1"]) == 0
    assert (
        main([*fast, *PROBED, "rounds=3", f"output={tmp_path}/cut"])
        == main([*fast, *PROBED, f"output={tmp_path}/cut"])
        == 0
    )
    assert len({reader.digests(tmp_path / folder / "fedavg_seed1.h5") for folder in ("1", "3", "cut")}) == 1


def test_gradients_are_those_of_the_clients_losses(fast):
    simulation = Simulation(overrides=[*fast, "rounds=1", "probes.every=1", "probes.clients=4"])
    omega = simulation.weights.clone()
    (record,) = simulation
    found, (whole,) = record.probes["probed_clients"], record.probes["probes"]["gradient_norm"]
    cohort = set(record.clients["client"].tolist())
    assert set(found["client"].tolist()) >= cohort and 4 <= len(found["client"]) <= 6
    # Computed directly for the same clients; a probe of six has all of them.
    everyone = Simulation(overrides=[*fast, "rounds=1", "probes.every=1"])
    (record,) = everyone
    found, (whole,) = record.probes["probed_clients"], record.probes["probes"]["gradient_norm"]
    model, gradients, sizes = everyone.model.module.eval(), [], []
    everyone.model.weights.copy_(omega)
    for client in range(6):
        images, labels = client_data(everyone.data, client, everyone.config)
        images = normalise(
            torch.from_numpy(images), everyone.about.mean, everyone.about.std, torch.device("cpu")
        )
        loss = F.cross_entropy(model(images), torch.from_numpy(labels))
        gradients.append(
            torch.cat(
                [
                    part.permute(0, 2, 3, 1).flatten() if part.dim() == 4 else part.flatten()
                    for part in torch.autograd.grad(loss, list(model.parameters()))
                ]
            ).double()
        )
        sizes.append(len(labels))
    mean = sum(size * gradient for size, gradient in zip(sizes, gradients)) / sum(sizes)
    assert found["client"].tolist() == list(range(6)) and found["samples"].tolist() == sizes
    assert whole == pytest.approx(mean.norm().item(), rel=1e-4)
    assert found["gradient_difference"] == pytest.approx(
        [(one - mean).norm().item() for one in gradients], rel=1e-4
    )
    assert np.isfinite(found["local_error"]).sum() == 3, "clients that did not train have no local error"


def test_skew_shows_in_every_measure(fast):
    measures = {}
    for scheme in ("iid", "classes"):
        split = [f"partition.scheme={scheme}", "partition.classes_per_client=1", "data.samples=600"]
        simulation = Simulation(
            overrides=[
                *fast,
                *split,
                "rounds=1",
                "training.epochs=3",
                "training.batch_size=16",
                "training.lr=0.05",
                *PROBED[1:2],
                "probes.every=1",
            ]
        )
        (record,) = simulation
        clients = record.probes["probed_clients"]
        measures[scheme] = (
            record.columns["cohort_emd"],
            record.columns["clients_emd"],
            -record.columns["cohort_labels"],
            -record.columns["update_alignment"],
            *record.probes["probes"]["weight_divergence"],
            clients["gradient_difference"].mean(),
            clients["label_emd"].mean(),
            -clients["labels"].mean(),
        )
        assert np.nanmin(clients["local_error"]) >= 0
        cohort = record.clients["client"]
        histograms = simulation.data["label_histograms"]
        pooled = earth_movers_distance(histograms[cohort].sum(0)[None], histograms.sum(0))[0]
        assert record.columns["cohort_emd"] == pytest.approx(pooled)
    assert all(even < skewed for even, skewed in zip(*measures.values())), measures


def test_one_step_on_all_is_the_mean_of_one_step_on_each(fast):
    """Then the clients' average equals the model trained on the pooled data."""
    big = ["training.batch_size=1000", "training.epochs=1", "probes.every=1", "rounds=1"]
    (record,) = Simulation(overrides=[*fast, *big])
    assert record.probes["probes"]["weight_divergence"][0] < 1e-5
    (record,) = Simulation(overrides=[*fast, *big, "training.epochs=8"])
    assert record.probes["probes"]["weight_divergence"][0] > 1e-5


def test_the_pooled_model_is_trained_for_as_many_epochs_as_the_clients(tiny, monkeypatch):
    train, passes = probes.train, []
    monkeypatch.setattr(
        probes,
        "train",
        lambda model, start, images, labels, settings, rng: (
            passes.append(settings.epochs) or train(model, start, images, labels, settings, rng)
        ),
    )
    simulation = Simulation(
        overrides=[*tiny, "method=matched", "rounds=1", "probes.every=1", "probes.epochs=1"]
    )
    (record,) = simulation
    assert (
        set(record.clients["epochs"]) <= set(passes)
        and record.clients["epochs"][0] > simulation.config.training.epochs
    )


def test_a_local_error_is_what_more_training_removes(fast):
    (record,) = Simulation(overrides=[*fast, "rounds=1", "probes.every=1", "probes.epochs=1"])
    (longer,) = Simulation(overrides=[*fast, "rounds=1", "probes.every=1", "probes.epochs=60"])
    few, many = (np.nan_to_num(one.probes["probed_clients"]["local_error"]) for one in (record, longer))
    assert (few <= many).all() and few.sum() < many.sum()


def test_heterogeneity_is_drawn_of_probed_runs_alone(fast, tmp_path, capsys):
    assert main([*fast, *PROBED, "rounds=2", f"output={tmp_path}/probed"]) == 0
    assert (
        main(["plot", str(tmp_path / "probed"), "--figure", "heterogeneity", "-o", str(tmp_path / "a.png")])
        == 0
    )
    assert (tmp_path / "a.png").exists()
    assert main([*fast, "rounds=1"]) == 0
    assert main(["plot", str(tmp_path / "results"), "--figure", "heterogeneity"]) == 2
    assert "has no probe data; make the run with probes.every=1" in capsys.readouterr().err


def test_the_figure_of_a_method_without_clients(tiny, tmp_path):
    """It has only gradient differences."""
    assert main([*tiny, *PROBED, "method=aigc"]) == 0
    picture = heterogeneity([tmp_path / "results/aigc_seed1.h5"])
    assert [len(axes.lines) for axes in picture.axes] == [0, 0, 1, 0]
    assert [text.get_text() for axes in picture.axes for text in axes.texts] == 3 * [
        "no values in these runs"
    ]


def test_probes_every_0_rounds_is_refused(fast, capsys):
    assert main([*fast, "probes.every=0"]) == 2
    assert "probes.every" in capsys.readouterr().err
