"""A price for repairs: each client generates the images that are best for it, and is paid for them once."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis import pricing
from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.edge.attendance import AGGREGATED, DECLINED, LATE
from genfl_mpi.federation.client_images import ClientImages
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

CELL = "channel: {radius_m: 50, allocation: equal, fading: none, shadowing_db: 0}, images: {installed: true}"
DEVICES = "hardware: {accelerator_tflops: 0.5, accelerator_watts: 5}"


@pytest.fixture
def quick(tmp_path, bank):
    return [
        *TINY,
        "method=filled",
        "data.name=synthetic",
        "data.size=8",
        "data.samples=400",
        "partition.alpha=0.5",
        "rounds=3",
        "generation.cap=200",
        f"world={{{CELL}, {DEVICES}}}",
        f"output={tmp_path}/results",
        f"generation.bank={bank}",
    ]


def run(*overrides):
    made = Simulation(overrides=overrides)
    return made, list(made)


def gaps(quick):
    """(n, gamma) of each client, and c, what an image takes it in J."""
    simulation = Simulation(overrides=quick)
    held = simulation.data["label_histograms"]
    return (
        held.sum(1),
        1 - held.sum(1) / (10 * held.max(1)),
        simulation.server.world.trace.image_flops / 0.5e12 * 5,
    )


def middle(quick):
    """A price at which some repair all of their gap, and others a part."""
    samples, gamma, joules = gaps(quick)
    return float(np.median(joules * samples * gamma / (1 - gamma) ** 2))


def test_a_share_by_hand():
    # With 50 samples, and 4 * 40 in an even mix, gamma is 11/16. At r = 4 c n gamma the best share is
    # (1 - 1/2) / gamma = 8/11, for which n gamma u / (1 - gamma u) = 50 images are generated.
    config = single(
        None,
        [
            "method=filled",
            "clients=2",
            "cohort=1",
            "generation.cap=1000",
            "world={}",
            "incentive.price=137.5",
        ],
    )
    held = np.array([[40, 10, 0, 0], [7, 7, 7, 7]])
    about = SimpleNamespace(classes=range(4), shape=(3, 8, 8))
    placement = ClientImages(config, about, {"label_histograms": held}, image_joules=1.0)
    assert placement.share(np.arange(2)) == pytest.approx([8 / 11, 0])
    each, most, share = placement.demand()
    assert (
        each.tolist() == [50, 0] and most.tolist() == [0, 14, 18, 18] and share == pytest.approx([8 / 11, 0])
    )
    for count, enough in (("class", 18), ("total", 50)):
        for cap in (enough, enough - 1):
            generation = config.generation.model_copy(update={"count": count, "cap": cap})
            placement.config = config.model_copy(update={"generation": generation})
            if cap == enough:
                assert placement.demand()[0].tolist() == [50, 0]
            else:
                with pytest.raises(UserError, match=f"generation.cap={cap} keeps clients from the images"):
                    placement.demand()


def test_a_price_that_is_enough_for_all_and_one_that_is_for_nobody(quick):
    samples, gamma, joules = gaps(quick)
    enough, little = (
        float((joules * samples * gamma / (1 - gamma) ** 2).max() * 1.001),
        float((joules * samples * gamma).min()),
    )
    whole, records = run(*quick, f"incentive.price={enough}")
    assert np.array_equal(whole.weights, run(*quick)[0].weights)
    assert all((record.clients["share"] == 1).all() for record in records)
    none, records = run(*quick, f"incentive.price={little}")
    assert np.array_equal(none.weights, run(*quick, "method=fedavg")[0].weights)
    assert not any(record.clients["images"].any() or record.columns["payments"] for record in records)


def test_each_does_what_is_best_for_it_and_is_paid_once(quick):
    price = middle(quick)
    samples, gamma, joules = gaps(quick)
    _, records = run(*quick, f"incentive.price={price}", "rounds=4")
    best = np.clip((1 - np.sqrt(joules * samples * gamma / price)) / gamma, 0, 1)
    assert ((best > 0) & (best < 1)).any() and (best == 1).any()
    paid = set()
    for record in records:
        clients = record.clients["client"]
        assert record.clients["share"] == pytest.approx(best[clients])
        made = samples * gamma * best / (1 - gamma * best)
        assert np.abs(record.clients["images"] - made[clients]).max() <= 5  # each of ten labels is rounded
        new = [client for client in clients.tolist() if client not in paid]
        assert record.columns["payments"] == pytest.approx(price * best[new].sum())
        paid |= set(new)
    assert len(paid) < 4 * len(clients), "nobody was there twice"


def test_who_would_lose_declines(quick):
    """Without base pay the price for the images is worth a round in which they are made, and no other."""
    price = 2 * middle(quick)
    made, records = run(*quick, f"incentive.price={price}", "incentive.base=0", "cohort=6")
    around, first = made.server.world, Simulation(overrides=[*quick, f"incentive.price={price}"]).server.world
    assert (first.forecast(0).joules > 0).all()
    willing = first.forecast(0).joules <= first.owed
    assert willing.any() and np.array_equal(records[0].clients["status"] == AGGREGATED, willing)
    assert records[0].columns["clients_available"] == willing.sum()
    assert records[0].columns["payments"] == pytest.approx(first.owed[willing].sum())
    assert (records[1].clients["status"] == DECLINED).all() and not records[1].columns["payments"]
    assert np.array_equal(around.owed == 0, willing | (first.owed == 0))


def test_who_is_late_is_not_paid_yet_on_any_number_of_ranks_and_after_a_pause(quick, tmp_path):
    limit = float(np.median(Simulation(overrides=quick).server.world.forecast(0).seconds))
    late = [
        *quick,
        f"incentive.price={middle(quick)}",
        "rounds=4",
        f"world={{enforced: true, deadline_s: {limit}, {CELL}, {DEVICES}}}",
    ]
    assert main([*late, "rounds=2"]) == 0 and main(late) == 0
    done = mpirun(2, "-m", "genfl_mpi", *late, f"output={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "results/filled_seed1.h5"
    assert reader.digests(path) == reader.digests(tmp_path / "two/filled_seed1.h5")
    with reader.open_results(path) as file:
        columns, payments = reader.read_columns(file, "clients"), file["rounds/payments"][:]
    heard = columns["status"] == AGGREGATED
    assert set(columns["status"].tolist()) == {AGGREGATED, LATE}
    share = dict(zip(columns["client"][heard].tolist(), columns["share"][heard]))
    priced = pricing.read(path)
    pricing.in_worlds([priced], pricing.worlds_for([priced], []))  # and finds the same clients heard
    assert payments.sum() == pytest.approx(middle(quick) * sum(share.values()))


BAD = {
    "another method": (
        "method=fedavg incentive.price=3",
        "incentive.price pays clients for images that they generate",
    ),
    "no world": (
        "world=null incentive.price=3",
        "incentive.price pays for energy, which only a world defines",
    ),
    "a share that is given": (
        "incentive.price=3 client_generation.share=0.5",
        "it fills; remove client_generation.share\n",
    ),
    "missing labels alone": (
        "incentive.price=3 client_generation.labels=missing",
        "it fills; remove client_generation.labels\n",
    ),
    "a negative price": ("incentive.price=-3", "incentive.price= "),
    "a cap": ("incentive.price=1e9 generation.cap=3", "generation.cap=3 keeps clients from the images"),
}


@pytest.mark.parametrize(("overrides", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_status_2(overrides, message, quick, capsys):
    assert main([*quick, *overrides.split()]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
