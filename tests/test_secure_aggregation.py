"""Secure aggregation: the masked run is the plain one, bit for bit, and hides the clients."""

import json
import sys

import numpy as np
import pytest
from conftest import FAST, interrupt, mpirun

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.edge.attendance import AGGREGATED, NOT_FINITE, VOID
from genfl_mpi.federation.secure_aggregation import SecureAggregation
from genfl_mpi.federation.worker import Worker
from genfl_mpi.privacy import masks, shamir
from genfl_mpi.privacy.protocol import Session, phase_bytes
from genfl_mpi.results import reader
from genfl_mpi.util import streams

DROPOUTS = ["world={}", "world.enforced=true", "world.dropout=0.3"]
COHORT = ["clients=8", "cohort=6", "rounds=3", "privacy.threshold=4"]
SECURE, PLAIN = ["privacy.secure_aggregation=true"], ["rho.over=selected", "privacy.threshold=null"]

# Runs one after another in one job: the arguments of each are a line of the file in the first argument.
MANY = """
import json, sys
from genfl_mpi.cli import main
for line in open(sys.argv[1]):
    status = main(json.loads(line))
    assert status == 0, (status, line)
"""


def run_all(ranks, runs, folder):
    (folder / "many.py").write_text(MANY)
    (folder / "runs").write_text("".join(json.dumps(run) + "\n" for run in runs))
    done = mpirun(ranks, str(folder / "many.py"), str(folder / "runs"))
    assert done.returncode == 0, done.stderr


def cases():
    """Yield (name, overrides) of the runs whose digest must not change.

    GenFL's images are those of the public pool, which need no generator.
    """
    genfl = [*FAST, "method=genfl", "composition.source=pool", "data.public_pool=20"]
    for drops in ([], DROPOUTS):
        name = "drop" if drops else "all"
        yield f"fedavg_{name}", [*FAST, *COHORT, *drops]
        yield f"genfl_{name}", [*genfl, *COHORT, *drops]
        for algorithm in ("fedprox", "fedavgm", "fedadam", "fedyogi"):
            yield f"{algorithm}_{name}", [*FAST, *COHORT, f"algorithm.name={algorithm}", *drops]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_secure_run_is_the_plain_run(ranks, tmp_path):
    """Bit for bit, with and without drop-outs; the plain run is on one rank, the secure one on `ranks`."""
    known = dict(cases())
    names = list(known) if ranks == 2 else ["fedavg_all", "genfl_drop"]
    for name in names:
        assert main([*known[name], *PLAIN, f"output={tmp_path}/plain/{name}"]) == 0
    run_all(ranks, [[*known[name], *SECURE, f"output={tmp_path}/secure/{name}"] for name in names], tmp_path)
    missing = 0
    for name in names:
        method = name.partition("_")[0] if name.startswith("genfl") else "fedavg"
        plain, secure = (tmp_path / kind / name / f"{method}_seed1.h5" for kind in ("plain", "secure"))
        assert reader.digests(plain) == reader.digests(secure), name
        with reader.open_results(secure) as file:
            rounds = reader.read_columns(file, "rounds")
            status = reader.read_columns(file, "clients", ["status"])["status"]
        missing += (status != AGGREGATED).sum()
        assert VOID not in status
        assert (rounds["masked_bytes"] > 0).all() and (rounds["mask_seconds"] > 0).all()
    assert missing >= 2


def test_without_drop_outs_selected_rho_is_aggregated_rho(fast, tmp_path):
    for name, more in (("default", []), ("selected", ["rho.over=selected"]), ("secure", SECURE)):
        assert main([*fast, "rounds=2", *more, f"output={tmp_path}/{name}"]) == 0
    one, *others = (
        reader.digests(tmp_path / name / "fedavg_seed1.h5") for name in ("default", "selected", "secure")
    )
    assert others == [one, one]


def test_the_reduced_sum_is_masked_until_the_survivors_help(fast, monkeypatch):
    seen = []
    unmask = SecureAggregation.unmask

    def watch(self, *arguments):
        before = self.messages.reduction.units.copy()
        columns = unmask(self, *arguments)
        seen.append((before, self.messages.reduction.units.copy()))
        return columns

    monkeypatch.setattr(SecureAggregation, "unmask", watch)
    list(Simulation(overrides=[*fast, *SECURE, "rounds=2"]))
    for masked, plain in seen:
        assert (masked != plain).mean() > 0.999 and np.abs(plain).max() < 2**50 < np.abs(masked).max()
    (first, first_plain), (second, second_plain) = seen
    assert ((first - first_plain) != (second - second_plain)).mean() > 0.999, "masks are used once"


def test_selected_rho_is_divided_by_that_of_the_survivors(fast):
    """Rho by size over all that begin the round; the clients' average is that over the survivors."""
    run = [*fast, *COHORT, *DROPOUTS, "rounds=1"]
    selected, aggregated = (Simulation(overrides=[*run, *more]) for more in (["rho.over=selected"], []))
    [one], [other] = list(selected), list(aggregated)
    assert (one.clients["status"] != AGGREGATED).any()
    np.testing.assert_allclose(one.clients["rho"], other.clients["rho"])
    np.testing.assert_allclose(selected.weights, aggregated.weights, atol=1e-6)


def test_a_client_that_is_not_finite_drops_out_before_it_uploads(fast, monkeypatch, tmp_path):
    train = Worker._train_stages

    def broken(self, client, *arguments):
        report = train(self, client, *arguments)
        if client.id == 2:
            self.model.weights[0] = float("nan")
        return report

    monkeypatch.setattr(Worker, "_train_stages", broken)
    run = [*fast, "cohort=6", "rounds=2", "privacy.threshold=4", "faults.nonfinite=drop"]
    for name, more in (("plain", PLAIN), ("secure", SECURE)):
        assert main([*run, *more, f"output={tmp_path}/{name}"]) == 0
    plain, secure = (tmp_path / name / "fedavg_seed1.h5" for name in ("plain", "secure"))
    assert reader.digests(plain) == reader.digests(secure)
    with reader.open_results(secure) as file:
        clients = reader.read_columns(file, "clients")
    assert set(clients["client"][clients["status"] == b"not finite"]) == {2}


@pytest.mark.parametrize("method", ["fedavg", "genfl"])
def test_a_round_below_the_threshold_is_void_and_keeps_the_weights(method, fast, capsys):
    run = (
        fast
        if method == "fedavg"
        else [*fast, "method=genfl", "composition.source=pool", "data.public_pool=20"]
    )
    world = ["world={}", "world.enforced=true", "world.dropout=0.6"]
    simulation = Simulation(overrides=[*run, *SECURE, "cohort=6", "privacy.threshold=6", "rounds=1", *world])
    before = simulation.weights.clone()
    [record] = simulation
    assert (record.clients["status"] == VOID).any() and AGGREGATED not in record.clients["status"]
    assert (simulation.weights == before).all()
    assert record.columns["clients_aggregated"] == 0 and record.columns["kappa2"] == 0
    assert not record.clients["rho"].any()
    assert main([*run, *SECURE, "cohort=6", "privacy.threshold=6", "rounds=1", *world]) == 0
    assert "void: client" in (said := capsys.readouterr().out) and "the weights stay unchanged" in said


def test_a_client_that_is_not_finite_is_not_aggregated_in_a_void_round(fast, monkeypatch):
    train = Worker._train_stages

    def spoil(self, client, *rest):
        report = train(self, client, *rest)
        if client.id == min(self.broadcast.plan["client"]):
            self.model.weights[7] = float("nan")
        return report

    monkeypatch.setattr(Worker, "_train_stages", spoil)
    run = [*fast, *SECURE, "cohort=6", "privacy.threshold=6", "rounds=1"]
    [record] = Simulation(overrides=run)
    assert sorted(record.clients["status"]) == [NOT_FINITE] + 5 * [VOID]
    assert record.columns["clients_aggregated"] == 0


def test_a_resumed_secure_run_has_the_same_digest(fast, tmp_path, monkeypatch):
    run = [*fast, *COHORT, *SECURE, *DROPOUTS, "checkpoint.keep=1"]
    assert main([*run, f"output={tmp_path}/whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        assert main([*run, f"output={tmp_path}/parts"]) == 1
    assert main([*run, f"output={tmp_path}/parts"]) == 0
    whole, parts = (tmp_path / name / "fedavg_seed1.h5" for name in ("whole", "parts"))
    assert reader.digests(whole) == reader.digests(parts)


def test_the_world_prices_dense_masked_uploads(fast):
    worlds = {}
    for name, more in (("plain", []), ("secure", SECURE)):
        simulation = Simulation(overrides=[*fast, "world={}", "world.enforced=true", "rounds=1", *more])
        worlds[name] = simulation.server.world.trace
        [record] = simulation
    weights = len(simulation.weights)
    one = phase_bytes(weights + 1, 3, None)
    assert worlds["plain"].upload_bytes == 4 * weights and worlds["plain"].protocol_bytes == 0
    assert (
        worlds["secure"].upload_bytes == one.up > 8 * weights and worlds["secure"].protocol_bytes == one.down
    )
    assert record.columns["masked_bytes"] == 3 * 8 * (weights + 1)
    phases = ("keys", "shares", "masked", "unmask")
    assert sum(record.columns[f"{phase}_bytes"] for phase in phases) == 3 * (one.up + one.down)


def test_policies_learn_nothing_about_single_clients(fast):
    simulation = Simulation(overrides=[*fast, *SECURE, "rounds=2"])
    list(simulation)
    assert np.isnan(simulation.server.losses).all() and np.isnan(simulation.server.norms).all()
    assert simulation.server.last.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["audit=true"], "which audit=true needs to know; set audit=false"),
        (["rho.policy=loss"], "which rho.policy=loss needs to know"),
        (
            ["rho.policy=shapley", "validation.source=pool", "data.public_pool=50"],
            "rho.policy: shapley weighs",
        ),
        (["selection.policy=power_of_choice"], "which selection.policy=power_of_choice needs to know"),
        (["validation.source=clients"], "which validation.source=clients needs to know"),
        (["faults.nonfinite=stop"], "which faults.nonfinite=stop needs to know"),
        (["rho.over=aggregated"], "which rho.over=aggregated needs to know"),
        (["privacy.threshold=4"], "privacy.threshold (4) must be more than half of the 3 clients"),
        (["privacy.threshold=1"], "privacy.threshold"),
        (["cohort=4", "privacy.threshold=2"], "set it to a number from 3 to 4"),
        (["cohort=6", "privacy.neighbours=2", "privacy.threshold=4"], "half of the 3 clients"),
        (["privacy.neighbours=3"], "privacy.neighbours"),
        (["cohort=1"], "protects nothing with cohort=1"),
    ],
)
def test_what_is_wrong_is_one_line(settings, message, fast, capsys):
    assert main([*fast, *SECURE, "rounds=1", *settings]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_missing_package_is_one_line(fast, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert main([*fast, *SECURE, "rounds=1"]) == 2
    said = capsys.readouterr().err
    assert "needs the package cryptography; pip install" in said and said.count("\n") == 1


@pytest.mark.parametrize(("neighbours", "dropped"), [(None, [2]), (None, [0, 5, 6]), (4, [0, 7])])
def test_masks_cancel_in_the_survivors_sum(neighbours, dropped):
    members = np.arange(10) * 3
    session = Session(1, 0, members, 3 if neighbours else None, neighbours)
    values = streams.generator(1, "test").integers(-(2**62), 2**62, (10, 43))
    survived = ~np.isin(np.arange(10), dropped)
    total = np.zeros(43, dtype=np.uint64)
    for place in np.flatnonzero(survived):
        masked = values[place].view(np.uint64).copy()
        masks.add_masks(masked, session.terms(place))
        assert (masked != values[place].view(np.uint64)).all()
        total += masked
    assert session.can_unmask(survived)
    terms = session.masks_to_remove(np.where(survived, 1, 2), session.recover(survived))
    for start, end in ((0, 16), (16, 43)):  # as on two ranks
        masks.add_masks(total[start:end], terms, start)
    assert (total.view(np.int64) == values[survived].sum(0)).all()


def test_one_secret_of_a_client_is_revealed_and_never_both():
    session = Session(1, 0, np.arange(6), 4, None)
    survived = np.array([True, True, False, True, True, True])
    for place, secret in enumerate(session.recover(survived)):
        private, self_mask = session.secrets(place)
        assert secret == (self_mask if survived[place] else private)
        given = session.shares(place, survived)
        assert len(given) == 4 and set(given) <= set(np.flatnonzero(survived) + 1)
    assert not session.can_unmask(np.array([True] * 3 + [False] * 3))


def test_secrets_and_masks_are_never_used_twice():
    drawn = [
        secret
        for seed, round in ((1, 0), (1, 1), (2, 0))
        for place in range(4)
        for secret in Session(seed, round, np.arange(4), None, None).secrets(place)
    ]
    pairwise = [
        seed
        for round in (0, 1)
        for place in range(4)
        for sign, seed in Session(1, round, np.arange(4), None, None).terms(place)[1:]
        if sign > 0
    ]
    assert len(set(drawn)) == len(drawn) == 24 and len(set(pairwise)) == len(pairwise) == 12


def test_neighbours_are_mutual_and_of_even_number():
    session = Session(1, 0, np.arange(9), None, 4)
    for place, around in enumerate(session.around):
        assert len(set(around)) == 4 and place not in around
        assert all(place in session.around[other] for other in around)
    other = Session(1, 1, np.arange(9), None, 4)
    assert any((one != two).any() for one, two in zip(session.around, other.around))


def test_fewer_shares_than_the_threshold_fit_every_secret():
    """Two of three shares belong to any secret: some polynomial of degree 2 goes through it and both."""
    secret = bytes(range(32))
    shares = shamir.split(secret, 3, [1, 2, 5, 7], streams.generator(1, "test"))
    for points in ((1, 2, 5), (7, 2, 1), (5, 1, 7)):
        assert shamir.recover({point: shares[point] for point in points}) == secret
    two = {point: shares[point] for point in (1, 2)}
    for other in (bytes(32), b"\xff" * 32):
        # The third share that makes the secret `other`: the value at 5 of the polynomial through 0, 1 and 2.
        known = {0: int.from_bytes(other, "little"), **two}
        third = 0
        for one in known:
            weight = 1
            for point in known:
                if point != one:
                    weight = weight * (5 - point) * pow(one - point, -1, shamir.PRIME) % shamir.PRIME
            third = (third + weight * known[one]) % shamir.PRIME
        assert shamir.recover({**two, 5: third}) == other


def test_the_stream_is_chacha20_of_rfc_8439():
    """The first block of the RFC's first test vector, with key, nonce and counter of zeros."""
    stream = np.zeros(8, dtype=np.uint64)
    masks.add_masks(stream, [(1, bytes(32))])
    assert (
        stream.tobytes().hex().startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    )


def joint_view(values, survived):
    """Count the server's views in a group of 8 bits, over all pairwise masks: int (256 ** survivors,).

    values: of three clients, their integers. survived: those that upload and stay until the masks are
    removed. The self masks of survivors and the keys of the others are revealed, so the view is, given those,
    what the survivors sent without self masks and without the masks that they share with the others.
    """
    survivors = [place for place in range(3) if survived[place]]
    pairs = [(0, 1), (0, 2), (1, 2)]
    hidden = [pair for pair in pairs if all(survived[place] for place in pair)]
    grids = np.meshgrid(*[np.arange(256, dtype=np.uint8)] * len(hidden), indexing="ij")
    streams_of = {bytes(pair): grid.reshape(-1) for pair, grid in zip(hidden, grids)}

    def expand(seed, start):
        position = start

        def fill(block):
            nonlocal position
            stream = streams_of.get(seed)
            block[:] = 0 if stream is None else stream[position : position + len(block)]
            position += len(block)

        return fill

    code = np.zeros(256 ** len(hidden), dtype=np.int64)
    for place in survivors:
        terms = [
            (1 if place < other else -1, bytes(sorted((place, other))))
            for other in range(3)
            if other != place
        ]
        sent = np.full(len(code), values[place] % 256, dtype=np.uint8)
        masks.add_masks(sent, terms, 0, expand)
        code = 256 * code + sent
    return np.bincount(code, minlength=256 ** len(survivors))


def test_views_of_equal_sums_are_equal_in_a_group_of_8_bits():
    """Exhaustive over all masks: the server learns the sum of three clients, or of two survivors, alone."""
    everyone = [True, True, True]
    view = joint_view((3, 5, 7), everyone)
    assert (view == joint_view((200, 100, 227), everyone)).all() and set(np.unique(view)) == {0, 256}
    assert (view != joint_view((3, 5, 8), everyone)).any(), "another sum gives another view"
    two = [True, True, False]
    view = joint_view((3, 5, 7), two)
    for first in range(256):
        for dropped in (0, 7):
            assert (joint_view((first, 8 - first, dropped), two) == view).all()
    assert (view != joint_view((3, 6, 7), two)).any()


def test_signs_of_the_protocol_are_those_of_the_exhaustive_test():
    """The lower place adds a shared mask, the higher one subtracts it, as in `joint_view`."""
    session = Session(1, 0, np.arange(3), None, None)
    terms = [session.terms(place) for place in range(3)]
    assert [[sign for sign, _ in one] for one in terms] == [[1, 1, 1], [1, -1, 1], [1, -1, -1]]
    assert terms[0][1][1] == terms[1][1][1] and terms[0][2][1] == terms[2][1][1]
    assert terms[1][2][1] == terms[2][2][1]


def test_an_upload_that_arrives_late_stays_hidden():
    """The key of a dropped client is revealed, its self mask is not: what it sends later is uniform."""
    session = Session(1, 0, np.arange(3), 2, None)
    survived = np.array([True, True, False])
    revealed = set(session.recover(survived))
    assert session.secrets(2).self_mask not in revealed
    own = np.arange(256, dtype=np.uint8)  # all self masks, in a group of 8 bits
    for value in (0, 1, 99):
        assert (np.sort(np.uint8(value) + own) == own).all()
