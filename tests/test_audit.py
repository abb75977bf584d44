"""The audit: who does not do what it claims fails, and who does passes."""

import h5py
import numpy as np
import pytest
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis import audit
from genfl_mpi.cli import main
from genfl_mpi.data.corruption import draw_misbehaving
from genfl_mpi.results import reader


@pytest.fixture
def looked(fast):
    """A run of real digits in which every client is heard three times; skewed, so that each lacks labels."""
    return [*fast, "data.name=mnist5k", "clients=8", "cohort=8", "rounds=3", "audit=true"]


def failed(path):
    """(who of the clients fails by each rule, who is bad): {rule: bool (n,)}, bool (n,)."""
    config, found = audit.read(path)
    assert found.rounds.tolist() == [3] * 8
    return audit.failures(found), draw_misbehaving(8, config.misbehaving_clients, config.seed)


@pytest.mark.slow
def test_honest_clients_pass(looked, tmp_path, capsys):
    variants = (
        [],
        ["partition.alpha=1"],
        ["partition.scheme=iid"],
        ["label_sharing.payload=presence"],
        ["label_sharing.refusal_rate=0.5"],
        ["training.momentum=0.9", "training.weight_decay=5e-4"],
        ["algorithm.name=fedprox", "algorithm.mu=1"],
    )
    for number, more in enumerate(variants):
        assert main([*looked, *more, f"output={tmp_path}/{number}"]) == 0
        found, _ = failed(tmp_path / f"{number}/fedavg_seed1.h5")
        assert not np.any(list(found.values())), (more, found)


@pytest.mark.parametrize(
    ("kind", "rules", "more"),
    [
        ("free_rider", {"length"}, []),
        ("disguised", {"balance", "unclaimed"}, []),
        ("overclaiming", {"unseen"}, []),
        ("overclaiming", {"unseen"}, ["label_sharing.payload=presence"]),
    ],
)
def test_who_does_not_do_what_it_claims_fails(kind, rules, more, looked, tmp_path, capsys):
    assert main([*looked, *more, "misbehaving_clients.share=0.25", f"misbehaving_clients.kind={kind}"]) == 0
    path = tmp_path / "results/fedavg_seed1.h5"
    found, bad = failed(path)
    assert bad.sum() == 2 and np.array_equal(np.any(list(found.values()), axis=0), bad)
    assert {name for name in found if found[name][bad].all()} >= rules
    capsys.readouterr()
    assert main(["audit", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"2 of 2 {kind} clients fail, and 0 of 6 others" in said and max(map(len, said.splitlines())) <= 80


def test_what_a_free_rider_returns(looked):
    common = [*looked, "rounds=1"]
    one = ["misbehaving_clients.share=1", "misbehaving_clients.kind=free_rider"]
    made = Simulation(overrides=[*common, *one])
    before = made.weights.numpy().copy()
    [record] = made
    assert np.abs(made.weights.numpy() - before).max() <= 2**-20 and not record.clients["update_norm"].any()
    assert np.array_equal(record.clients["loss_first_epoch"], record.clients["loss_last_epoch"])
    noise = Simulation(
        overrides=[*common, *one[:1], "misbehaving_clients.kind=disguised", "misbehaving_clients.noise=0.01"]
    )
    [record] = noise
    assert record.clients["update_norm"] == pytest.approx(0.01 * np.sqrt(noise.model.parameters), rel=0.02)


def test_overclaiming_is_told_alone(looked):
    made = Simulation(
        overrides=[*looked, "misbehaving_clients.share=0.25", "misbehaving_clients.kind=overclaiming"]
    )
    data, honest = made.data, Simulation(overrides=looked).data
    bad = data["misbehaving"]
    assert np.array_equal(data["label_histograms"], honest["label_histograms"])
    assert np.array_equal(data["shared_labels"][~bad], honest["shared_labels"][~bad])
    none_bad = Simulation(overrides=[*looked, "misbehaving_clients.kind=overclaiming"]).data
    assert np.array_equal(none_bad["shared_labels"], honest["shared_labels"])
    assert (data["shared_labels"][bad] > 0).all() and (np.ptp(data["shared_labels"][bad], axis=1) == 0).all()


@pytest.mark.slow
def test_looking_changes_nothing_and_does_not_depend_on_the_ranks(looked, tmp_path):
    *without, _ = looked
    a, b = Simulation(overrides=without), Simulation(overrides=looked)
    list(a), list(b)
    assert np.array_equal(a.weights, b.weights)
    assert main([*looked, f"output={tmp_path}/1"]) == 0
    found = mpirun(3, "-m", "genfl_mpi", *looked, f"output={tmp_path}/3", timeout=600)
    assert found.returncode == 0, found.stderr
    assert reader.digests(tmp_path / "1/fedavg_seed1.h5") == reader.digests(tmp_path / "3/fedavg_seed1.h5")
    with h5py.File(tmp_path / "1/fedavg_seed1.h5") as file:
        assert file["audit/bias_change"].shape == (24, 10)


def test_bad_input_is_one_line_and_status_2(fast, looked, tmp_path, capsys, monkeypatch):
    assert main([*fast, "rounds=1"]) == 0
    (tmp_path / "headless.py").write_text(
        "from torch import nn\ndef net(classes, shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes, bias=False))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main([*looked, "rounds=1", "label_sharing.epsilon=1", f"output={tmp_path}/private"]) == 0
    capsys.readouterr()
    for arguments, message in (
        (["audit", str(tmp_path / "results/fedavg_seed1.h5")], "make the run with audit=true"),
        (["audit", str(tmp_path / "private/fedavg_seed1.h5")], "under differential privacy"),
        (["audit", str(tmp_path / "none.h5")], "no such results file"),
        (
            [*fast, "audit=true", "algorithm.name=scaffold"],
            "algorithm.name=scaffold, which corrects the clients",
        ),
        ([*fast, "audit=true", "model.name=headless:net", f"output={tmp_path}/net"], "does not end in them"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
