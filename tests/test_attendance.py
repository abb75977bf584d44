"""Deadlines, outages, dropouts and empty batteries of a world that acts on the run."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis import pricing
from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.config.world import World
from genfl_mpi.edge import attendance
from genfl_mpi.edge.rounds import Work, draw_cohort, price_round
from genfl_mpi.federation import worker
from genfl_mpi.federation.policies.selection import SELECTION
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

# Without fading and with a small cell, the world's clients differ by their devices alone.
PLAIN = "channel: {radius_m: 50, fading: none, shadowing_db: 0, allocation: equal}"


def world(more, channel=PLAIN):
    return f"world={{enforced: true, {channel}, {more}}}"


def run(*overrides, **policies):
    made = Simulation(overrides=overrides, **policies)
    return made, list(made)


def weights(*overrides, **policies):
    return run(*overrides, **policies)[0].weights.numpy().copy()


def done(made, round, cohort):
    """Seconds until each client of a cohort would be done if nothing came in between."""
    around = made.server.world
    met = draw_cohort(around.world, around.devices, round, cohort)
    found = price_round(around.world, met, around._work(cohort, 1, 0, 0))
    return sum(found.client_seconds.values())


def statuses(records):
    return [record.clients["status"].tolist() for record in records]


@pytest.fixture
def everybody(fast):
    return [*fast, "cohort=6", "rounds=3"]


@pytest.mark.parametrize("algorithm", ["fedavg", "fednova", "scaffold"])
@pytest.mark.parametrize("more", ["deadline_s: 1.0e+9", "dropout: 0"])
def test_an_endless_deadline_is_no_world(fast, algorithm, more, tmp_path):
    fast = [*fast, "rounds=3", f"algorithm.name={algorithm}"]
    assert np.array_equal(
        weights(*fast, world(more), folder=tmp_path / "a"), weights(*fast, folder=tmp_path / "b")
    )


@pytest.mark.parametrize("algorithm", ["fedavg", "fednova"])
def test_a_late_client_is_as_if_it_had_not_been_chosen(everybody, algorithm, monkeypatch):
    everybody, train, trained = [*everybody, "rounds=1", f"algorithm.name={algorithm}"], worker.train, []
    free = Simulation(overrides=[*everybody, world("dropout: 0")])
    seconds = done(free, 0, np.arange(6))
    limit = float(np.sort(seconds)[3:5].mean())
    monkeypatch.setattr(worker, "train", lambda *given: trained.append(len(given[2])) or train(*given))
    made, [record] = run(*everybody, world(f"deadline_s: {limit}"))
    late, clients = seconds > limit, record.clients
    assert late.sum() == 2 and np.array_equal(clients["status"] == attendance.LATE, late)
    assert record.columns["clients_aggregated"] == 4
    assert sorted(trained) == sorted(made.server.state.samples[~late]), "who is late is not trained"
    assert np.isnan(clients["update_norm"][late]).all() and not clients["rho"][late].any()
    if algorithm == "fedavg":
        assert clients["rho"].sum() == pytest.approx(1)
    assert np.array_equal(
        made.weights,
        weights(
            *everybody[:-2],
            f"algorithm.name={algorithm}",
            "rounds=1",
            "cohort=4",
            select=lambda state: np.flatnonzero(~late),
        ),
    )


def test_who_was_never_heard_is_like_the_others(fast):
    """Not unknown, for then who can never be heard would be chosen first in every round; and not useless."""
    made, _ = run(*fast, "cohort=6", "rounds=1", world("dropout: 1"))
    state = made.server.state
    assert np.isnan(state.losses).all() and np.isnan(state.norms).all() and (state.last == 1).all()
    heard = run(*fast, "cohort=6", "rounds=1")[0].server.state.losses
    made, records = run(*fast, "cohort=6", "rounds=2", world("dropout: 0.5"))
    first = records[0].clients["status"] == attendance.AGGREGATED
    gone = first & (records[1].clients["status"] != attendance.AGGREGATED)
    assert gone.any() and np.array_equal(made.server.state.losses[gone], heard[gone]), (
        "what was known of it stays known"
    )
    # Client 0 was never chosen, and 1 never heard; the others' losses and changes are known.
    known = np.array([np.nan, np.nan, 1.0, 2.0, 3.0, 4.0])
    state = replace(
        state, losses=known, norms=known, last=np.array([0, 1, 1, 1, 1, 1]), samples=np.full(6, 10), round=1
    )
    config = state.config.model_copy(update={"cohort": 4})
    assert SELECTION["power_of_choice"](replace(state, config=config)).tolist() == [0, 5, 4, 1]
    one = state.config.model_copy(update={"cohort": 1})
    drawn = [SELECTION["importance"](replace(state, config=one, round=round))[0] for round in range(2000)]
    assert np.bincount(drawn, minlength=6) / 2000 == pytest.approx(
        np.array([2.5, 2.5, 1, 2, 3, 4]) / 15, abs=0.03
    )


def test_the_weights_stay_if_all_clients_drop_out(fast, tiny, capsys):
    assert main([*fast, "rounds=2", world("dropout: 1")]) == 0
    said = capsys.readouterr().out
    assert (
        said.count("dropout: client") == 2
        and said.count("no client is aggregated: the weights stay unchanged") == 2
    )
    assert "FedAvg: no client was aggregated in any round" in said
    still = Simulation(overrides=fast).weights.numpy()
    made, records = run(*fast, "rounds=2", world("dropout: 1"))
    assert np.array_equal(made.weights, still) and [
        record.columns["clients_aggregated"] for record in records
    ] == [0, 0]
    assert np.isnan(records[0].columns["train_loss"]) and not records[0].clients["rho"].any()
    # GenFL without clients is AIGC-only, whichever policy weighs them.
    alone = weights(*tiny, "method=aigc")
    for rho in ("size", "loss"):
        made, records = run(*tiny, world("dropout: 1"), f"rho.policy={rho}")
        assert np.array_equal(made.weights, alone) and records[0].columns["kappa2"] == 1
    main([*tiny, world("dropout: 1")])
    assert "no client is aggregated: the augmented model becomes the global model" in capsys.readouterr().out


def test_kappa_is_of_who_was_heard(tiny):
    tiny = [
        *tiny,
        "data.name=synthetic",
        "data.size=8",
        "data.samples=400",
        "rounds=1",
        "kappa.policy=amount",
        "kappa.quality=50",
    ]
    made, [record] = run(*tiny, "cohort=6", world("dropout: 0.5"))
    heard = record.clients["status"] == attendance.AGGREGATED
    assert 0 < heard.sum() < 6
    assert record.columns["kappa2"] == pytest.approx(500 / (500 + made.server.state.samples[heard].sum()))


def test_policies_that_try_models_hear_who_is_heard(tiny, tmp_path):
    """Votes and weights cover the trained clients only: with nothing to choose, rho is the paper's."""
    tiny = [
        *tiny,
        "data.name=synthetic",
        "data.size=8",
        "data.samples=400",
        "cohort=6",
        world("dropout: 0.3"),
    ]
    more = ["validation.source=clients", "kappa.policy=softmax_loss"]
    one, records = run(*tiny, *more, "rho.policy=loss", "rho.power=0")
    other, _ = run(*tiny, *more)
    assert np.allclose(one.weights, other.weights, atol=1e-6)
    assert all(record.clients["rho"].sum() == pytest.approx(1) for record in records)


def test_the_share_of_dropouts_is_as_said(everybody):
    made, records = run(*everybody[:-1], "rounds=60", world("dropout: 0.3"))
    share = np.mean([np.array(one) == attendance.DROPOUT for one in statuses(records)])
    assert 0.2 < share < 0.4  # of 360 draws
    assert statuses(records[:3]) == statuses(run(*everybody, world("dropout: 0.3"))[1]), (
        "a draw is of the round and the client"
    )
    other = run(*everybody, world("seed: 2, dropout: 0.3"))[1]
    assert statuses(records[:3]) != statuses(other)


def test_a_message_that_is_lost_every_time(everybody):
    bad = PLAIN.replace("radius_m: 50", "radius_m: 50, waterfall: 1.0e+9, max_transmissions: 2")
    made, records = run(*everybody, world("dropout: 0", bad))
    assert all(one == attendance.OUTAGE for status in statuses(records) for one in status)
    assert (made.server.world.spent > 0).all(), "it was sent all the same"


def test_an_empty_battery_keeps_a_client_away_for_good(everybody):
    free = run(*everybody[:-1], "rounds=1", world("dropout: 0"))[0].server.world.spent
    limit = float(2.5 * free.max())  # J: enough for two rounds of any
    made, records = run(
        *everybody[:-1], "rounds=12", world(f"hardware: {{battery_kj: [{limit / 1e3}, {limit / 1e3}]}}")
    )
    status = np.array(statuses(records))
    assert (status[:2] == attendance.AGGREGATED).all() and (status == attendance.BATTERY).any()
    empty = status == attendance.BATTERY
    assert (empty[1:] >= empty[:-1]).all(), "clients without battery stay away"
    assert (made.server.world.spent <= limit * (1 + 1e-12)).all()
    assert made.server.world.spent[empty[-1]] == pytest.approx(limit)


def test_what_is_spent_until_then_by_hand():
    """Two phases of 2 and 3 s that take 4 and 30 J: until 4 s that is 4 + 20 J."""
    priced = price_round(
        World(),
        SimpleNamespace(
            clients=np.arange(0),
            power=np.empty(0),
            frequency=np.empty(0),
            up=np.empty(0),
            down=np.empty(0),
            luck=np.empty(0),
        ),
        Work(),
    )
    phases = ("wait", "down", "receive", "make", "compute", "up")
    seconds, joules = (
        {name: np.full(3, values.get(name, 0.0)) for name in phases}
        for values in ({"compute": 2.0, "up": 3.0}, {"compute": 4.0, "up": 30.0})
    )
    priced = replace(
        priced,
        clients=np.arange(3),
        client_seconds=seconds,
        client_joules=joules,
        sent=np.full(3, 9.0),
        lost=np.array([False, True, False]),
    )
    battery = np.array([100.0, 100.0, 14.0])
    status, found = attendance.simulate_attendance(World(enforced=True), battery, 0, priced, np.zeros(3))
    assert status.tolist() == [attendance.AGGREGATED, attendance.OUTAGE, attendance.BATTERY]
    assert sum(found.client_joules.values()) == pytest.approx([34, 34, 14])
    assert sum(found.client_seconds.values()) == pytest.approx([5, 5, 3])
    assert (
        found.sent == pytest.approx([9, 9, 3])
        and found.seconds == pytest.approx(5)
        and found.bytes["up"] == pytest.approx(21)
    )
    status, found = attendance.simulate_attendance(
        World(enforced=True, deadline_s=4), battery, 0, priced, np.zeros(3)
    )
    assert status.tolist() == [attendance.LATE, attendance.LATE, attendance.BATTERY]
    assert sum(found.client_joules.values()) == pytest.approx(
        [24, 24, 14]
    ) and found.seconds == pytest.approx(4)
    status, found = attendance.simulate_attendance(
        World(enforced=True, deadline_s=9), battery, 0, priced, np.array([0, 0, 14.0])
    )
    assert status.tolist() == [attendance.AGGREGATED, attendance.OUTAGE, attendance.BATTERY]
    assert sum(found.client_joules.values())[2] == 0
    assert found.seconds == pytest.approx(9), "who is missing is waited for until the deadline"


MISSING = [
    world("deadline_s: 0.0104, dropout: 0.2, hardware: {battery_kj: [1.0e-6, 5.0e-6]}"),
    "rounds=4",
    "cohort=5",
]


def test_any_number_of_ranks_and_a_continued_run(fast, tmp_path, capsys):
    for ranks in (1, 3):
        found = mpirun(ranks, "-m", "genfl_mpi", *fast, *MISSING, f"output={tmp_path}/{ranks}", timeout=600)
        assert found.returncode == 0, found.stderr
    assert main([*fast, *MISSING, "rounds=2"]) == 0 and main([*fast, *MISSING]) == 0
    first = reader.digests(tmp_path / "1/fedavg_seed1.h5")
    assert (
        first
        == reader.digests(tmp_path / "3/fedavg_seed1.h5")
        == reader.digests(tmp_path / "results/fedavg_seed1.h5")
    )
    with reader.open_results(tmp_path / "1/fedavg_seed1.h5") as file:
        assert set(file["clients/status"][:].tolist()) == {b"aggregated", b"late", b"dropout", b"battery"}


def test_its_price_counts_what_the_missing_have_spent(fast, tmp_path, capsys):
    assert main([*fast, *MISSING, "checkpoint.keep=1"]) == 0
    path = tmp_path / "results/fedavg_seed1.h5"
    priced = pricing.read(path)
    [found] = pricing.in_worlds([priced], pricing.worlds_for([priced], []))
    assert [one.tolist() for one in found.bill.status] == [one.tolist() for one in priced.status]
    made, _ = run(*fast, *MISSING)
    assert (
        found.bill.client_joules == pytest.approx(made.server.world.spent, rel=1e-12)
        and found.bill.client_joules.sum() > 0
    )
    assert (found.bill.seconds <= 0.0104 * (1 + 1e-6)).all()
    arguments = ["-o", str(tmp_path / "price.png")]
    (tmp_path / "other.yaml").write_text("{}")
    (tmp_path / "acting.yaml").write_text("enforced: true")
    assert main(["price", str(path), *arguments]) == 0
    capsys.readouterr()
    assert main(["price", str(path), "--world", str(tmp_path / "other.yaml"), *arguments]) == 2
    assert "a world acted on this run" in capsys.readouterr().err
    assert main([*fast, f"output={tmp_path}/free"]) == 0
    assert main(["price", f"{tmp_path}/free", "--world", str(tmp_path / "acting.yaml"), *arguments]) == 2
    assert "world acting acts on runs" in (said := capsys.readouterr().err) and said.count("\n") == 1
    # A fork into another world has first rounds that its own world does not explain.
    assert (
        main(
            [
                "fork",
                str(path),
                "--at",
                "2",
                "world.dropout=0",
                "world.deadline_s=50",
                f"output={tmp_path}/fork",
            ]
        )
        == 0
    )
    assert main(["price", f"{tmp_path}/fork", *arguments]) == 2
    assert (
        "other clients participated than in its world" in (said := capsys.readouterr().err)
        and said.count("\n") == 1
    )


BAD = {
    "a dropout that does not act": (
        "world={dropout: 0.1}",
        "world.dropout has an effect only with world.enforced=true",
    ),
    "an allocation without late ones": (
        "world={enforced: true, deadline_s: 9, channel: {allocation: least_energy}}",
        "least_energy makes every client meet the deadline",
    ),
    "more than all": ("world={enforced: true, dropout: 1.5}", "world.dropout= "),
    "negative power": (
        "world={enforced: true, hardware: {receive_watts: -1}}",
        "world.hardware.receive_watts= ",
    ),
    "a deadline in the past": ("world={enforced: true, deadline_s: -3}", "world.deadline_s= "),
    "a deadline for nobody": (
        "world={enforced: true, deadline_s: 1.0e-6}",
        "world.deadline_s=1e-06 cannot be met: in every round all clients need longer",
    ),
    "too small a world": ("world={enforced: true, clients: 3}", "world.clients (3) is less than clients (6)"),
}


@pytest.mark.parametrize(("override", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_status_2(override, message, fast, capsys):
    assert main([*fast, override]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("genfl_mpi: ") and said.count("\n") == 1


def test_a_deadline_is_checked_before_anything_is_trained(fast):
    with pytest.raises(UserError, match="cannot be met"):
        Simulation(single(None, [*fast, "world={enforced: true, deadline_s: 1.0e-6}"]))
