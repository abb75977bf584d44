"""Policies: each changes a real run as its source predicts, and equals another where it should."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation import worker
from genfl_mpi.federation.policies import ServerState, kappa, selection
from genfl_mpi.federation.policies.kappa import KAPPA
from genfl_mpi.federation.policies.rho import RHO
from genfl_mpi.federation.policies.selection import SELECTION
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.results import reader

JUDGES = ("softmax_accuracy", "softmax_loss", "shapley", "cost_aware")
JUDGED = ["data.public_pool=200", "validation.source=pool"]
# Without fading and in a small cell, the world's clients differ only by their hardware.
WORLD = "world={hardware: {frequency_ghz: [0.5, 2]}, channel: {radius_m: 50, fading: none, shadowing_db: 0}}"


@pytest.fixture
def quick(tiny):
    """A tiny run on a tiny data set, for policies that do not depend on learning."""
    return [*tiny, "data.name=synthetic", "data.size=8", "data.samples=400"]


def run(*overrides, **policies):
    simulation = Simulation(overrides=overrides, **policies)
    records = list(simulation)
    return simulation, records


def weights(*overrides, **policies):
    return run(*overrides, **policies)[0].weights.numpy().copy()


def kappas(records):
    return [float(record.columns["kappa2"]) for record in records]


# --- kappa


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("linear", [0.5, 0.4, 0.3, 0.3]),
        ("cosine", [0.5, 0.4, 0.3, 0.3]),
        ("exponential", [0.5, 0.4, 0.35, 0.325]),
        ("step", [0.5, 0.5, 0.4, 0.4]),
    ],
)
def test_scheduled_kappa2_by_hand(quick, policy, expected):
    quick = [
        *quick,
        "rounds=4",
        f"kappa.policy={policy}",
        "kappa.kappa2=0.5",
        "kappa.horizon=2",
        "kappa.decay=0.5",
        "kappa.period=2",
    ]
    assert kappas(run(*quick, "kappa.end=0.3")[1]) == pytest.approx(expected)
    assert np.array_equal(weights(*quick, "kappa.end=0.5"), weights(*quick, "kappa.policy=fixed"))


def test_amount_weighs_images_against_samples(quick):
    simulation, records = run(*quick, "kappa.policy=amount", "kappa.quality=50")
    samples = [simulation.server.state.samples[record.clients["client"]].sum() for record in records]
    assert kappas(records) == pytest.approx([500 / (500 + samples[0]), 1000 / (1000 + samples[1])])
    assert np.array_equal(
        weights(*quick, "kappa.policy=amount", "kappa.quality=0"), weights(*quick, "method=fedavg")
    )


def test_alignment_is_the_cosine_of_the_updates(quick):
    records = run(*quick, "kappa.policy=alignment")[1]
    assert kappas(records) == pytest.approx(
        [max(0, record.columns["augmented_cosine"]) for record in records], rel=1e-3
    )
    zero, one = np.zeros(4, np.float32), np.array([1, 2, 3, 9], np.float32)
    state = ServerState(
        0,
        None,
        None,
        None,
        None,
        parameters=3,
        weights=zero,
        fl_weights=one,
        augmented_weights=np.array([2, 4, 6, -9], np.float32),
    )
    assert kappa.alignment(state) == pytest.approx(1)  # the fourth weight is not a parameter
    assert (
        kappa.alignment(replace(state, augmented_weights=-one)) == 0
        and kappa.alignment(replace(state, augmented_weights=zero)) == 0
    )


def test_bias_optimal_grows_with_skew_and_quality(quick):
    """kappa2 grows with the skew of the cohort and the quality of the generator."""
    quick = [*quick, "kappa.policy=bias_optimal"]
    skewed, iid, bad = (
        kappas(run(*quick, *more)[1]) for more in ([], ["partition.scheme=iid"], ["kappa.theta=1"])
    )
    assert max(iid) < min(skewed) and max(bad) < min(skewed) and max(bad) < 0.5
    assert np.array_equal(
        weights(*quick, "kappa.theta=0"), weights(*quick, "kappa.policy=fixed", "kappa.kappa2=1")
    )


def test_emd_is_half_the_clients_mean_distance_by_samples():
    """Distances to (1/2, 1/2): 1 for a client with one label, 0 for one with both, 1/2 in between."""
    state = ServerState(
        0, None, np.array([10, 30, 40, 99]), np.array([[10, 0], [15, 15], [30, 10], [0, 0]]), None
    )
    population = np.array([55, 25]) / 80
    distances = [np.abs(np.array(mix) - population).sum() for mix in ([1, 0], [0.5, 0.5], [0.75, 0.25])]
    expected = np.average(distances, weights=[10, 30, 40]) / 2
    assert kappa.emd(replace(state, cohort=np.arange(4))) == pytest.approx(expected)
    assert kappa.emd(replace(state, cohort=np.array([3]))) == 0


def test_catch_up_falls_once_the_average_is_ahead():
    settings = single(None, ["method=genfl", "kappa.policy=catch_up", "kappa.kappa2=0.6", "kappa.power=2"])
    for fl, augmented, expected in ((2.0, 1.0, 0.6), (1.0, 1.0, 0.6), (0.5, 1.0, 0.15), (0.5, 0.0, 0.6)):
        losses = iter([(fl, 0.0), (augmented, 0.0)])
        state = ServerState(0, settings, None, None, None, judge=lambda _, losses=losses: next(losses))
        assert kappa.KAPPA["catch_up"](state) == pytest.approx(expected)


@pytest.fixture(scope="module")
def lying(tmp_path_factory):
    """A prompts file with permuted digits: good images with wrong labels."""
    texts = load_prompts("mnist", tuple("0123456789"))
    file = tmp_path_factory.mktemp("prompts") / "lying.yaml"
    names = [texts.descriptions[(c + 1) % 10] for c in range(10)]
    file.write_text(
        yaml.safe_dump({"templates": list(texts.templates), "descriptions": dict(zip("0123456789", names))})
    )
    return file


@pytest.mark.parametrize(
    ("policy", "source"),
    [
        (JUDGES[0], "pool"),
        *(pytest.param(policy, "pool", marks=pytest.mark.slow) for policy in JUDGES[1:]),
        *(pytest.param(policy, "clients", marks=pytest.mark.slow) for policy in JUDGES),
        pytest.param("line_search", "pool", marks=pytest.mark.slow),
    ],
)  # the cohort's data favour the cohort's model: a search on them stays at 0
def test_a_useless_generator_drives_kappa2_down(tiny, lying, policy, source):
    # With even client data a line search does not use good images either.
    partition = "classes" if policy == "line_search" else "iid"
    tiny = [
        *tiny,
        *JUDGED,
        WORLD,
        f"kappa.policy={policy}",
        f"validation.source={source}",
        "rounds=3",
        "training.epochs=3",
        f"partition.scheme={partition}",
        "generation.per_round=5",
        "generation.cap=15",
        "generation.steps=10",
        "generation.batch_size=50",
    ]
    honest, useless = (kappas(run(*tiny, *more)[1]) for more in ([], [f"generation.prompts={lying}"]))
    assert np.mean(useless) < np.mean(honest) and useless[-1] < 0.2


@pytest.mark.slow
def test_a_bandit_learns_from_the_loss(tiny, lying):
    """With two arms, one of which uses only a lying generator, it learns to play the other."""
    tiny = [
        *tiny,
        *JUDGED,
        "kappa.policy=bandit",
        "kappa.grid=[0,1]",
        "rounds=12",
        "training.epochs=2",
        "partition.scheme=iid",
        "training.lr=0.02",
        "generation.per_round=5",
        "generation.cap=5",
        "generation.steps=10",
        "generation.batch_size=50",
        f"generation.prompts={lying}",
    ]
    simulation, records = run(*tiny)
    played = kappas(records)
    assert played[:2] == [0, 1] and played.count(0) > played.count(1)
    assert simulation.server.remembered["kappa"]["plays"].sum() == 11  # the last arm has no reward yet


def test_a_bandit_credits_an_arm_with_its_own_round(quick):
    """Rounds without a choice, and rounds with another grid, do not count."""
    memory, losses = {}, iter([3.0, 2.0, 1.5, 0.5, 0.25])

    def ask(round, grid):
        config = single(None, [*quick, *JUDGED, "kappa.policy=bandit", f"kappa.grid={grid}"])
        return kappa.KAPPA["bandit"](
            ServerState(
                round,
                config,
                None,
                None,
                None,
                memory=memory,
                weights=None,
                judge=lambda _: (next(losses), 0),
            )
        )

    assert [ask(0, [0, 0.5]), ask(1, [0, 0.5])] == [0, 0.5]
    assert memory["rewards"].tolist() == [1, 0] and memory["plays"].tolist() == [1, 0]
    assert ask(4, [0, 0.5]) == 0.5, "the policy was not called in the rounds before"
    assert memory["rewards"].tolist() == [1, 0] and memory["plays"].tolist() == [1, 0]
    ask(5, [0, 0.5])
    assert memory["rewards"].tolist() == [1, 1] and memory["plays"].tolist() == [1, 1]
    assert ask(6, [1, 0.3]) == 1 and not memory["plays"].any()


@pytest.mark.parametrize(
    ("overrides", "fixed"),
    [
        (["kappa.policy=line_search", "kappa.grid=[0.3]"], 0.3),
        (["kappa.policy=bandit", "kappa.grid=[0.3]"], 0.3),
        (["kappa.policy=softmax_loss", "kappa.temperature=1e30"], 0.5),
        (["kappa.policy=softmax_accuracy", "kappa.temperature=1e30"], 0.5),
    ],
)
def test_with_nothing_to_choose_kappa_is_fixed(quick, overrides, fixed):
    assert np.array_equal(
        weights(*quick, *JUDGED, *overrides), weights(*quick, *JUDGED, f"kappa.kappa2={fixed}")
    )


@pytest.mark.parametrize("policy", ["shapley", "cost_aware"])
def test_equal_models_get_equal_weights(policy):
    start, same = np.zeros(2, np.float32), np.ones(2, np.float32)

    class Costs:
        joules, augmented_joules = np.array([2.0, 3.0]), 5.0

    state = ServerState(
        0,
        single({"method": "genfl"}),
        None,
        None,
        None,
        cohort=np.array([0, 1]),
        forecast=Costs,
        weights=start,
        fl_weights=same,
        augmented_weights=same,
        judge=lambda weights: (2 - weights.sum() / 2, 0.5),
    )
    assert KAPPA[policy](state) == pytest.approx(0.5)
    assert KAPPA[policy](replace(state, augmented_weights=start)) == pytest.approx(0, abs=0.2)
    assert (
        KAPPA[policy](replace(state, augmented_weights=-same, fl_weights=-same)) == 0.2
    )  # neither lowers the loss: the configured kappa2


# --- rho


BAD = [
    "clients=6",
    "cohort=6",
    "partition.scheme=iid",
    "misbehaving_clients.share=0.34",
    "misbehaving_clients.kind=mislabelled",
    "method=fedavg",
    "rounds=3",
    "training.epochs=2",
]


@pytest.mark.parametrize("policy", ["loss", "similarity", "leave_one_out", "shapley"])
def test_a_mislabelled_client_loses_weight(tiny, policy):
    simulation, records = run(*tiny, *BAD, *JUDGED, f"rho.policy={policy}")
    bad, last = simulation.data["misbehaving"], records[-1]
    assert bad.sum() == 2 and last.clients["rho"].sum() == pytest.approx(1)
    samples = simulation.server.state.samples
    assert last.clients["rho"][bad].sum() < 0.8 * samples[bad].sum() / samples.sum()


def test_a_skewed_client_loses_weight(quick):
    simulation, records = run(*quick, "rho.policy=quality", "cohort=6", "rho.gamma=2")
    samples, distance = (
        simulation.server.state.samples,
        earth_movers_distance(simulation.data["shared_labels"]),
    )
    ratio = records[0].clients["rho"] / samples
    assert np.array_equal(np.argsort(-ratio), np.argsort(distance))
    refusing = run(*quick, "rho.policy=quality", "label_sharing.refusal_rate=1")[1]  # no client shared labels
    assert np.array_equal(refusing[0].clients["rho"], run(*quick)[1][0].clients["rho"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["rho.policy=quality", "rho.gamma=0"],
        ["rho.policy=loss", "rho.power=0"],
        ["rho.policy=similarity", "rho.alpha=0"],
        ["rho.policy=leave_one_out", "cohort=1"],
        ["rho.policy=shapley", "cohort=1"],
        ["rho.policy=uniform", "cohort=1"],
    ],
)
@pytest.mark.parametrize("algorithm", ["fedavg", "fednova"])
def test_rho_degenerates_to_the_papers(quick, overrides, algorithm):
    quick = [*quick, *JUDGED, f"algorithm.name={algorithm}", *overrides]
    assert np.array_equal(weights(*quick), weights(*quick, "rho.policy=size"))


@pytest.mark.parametrize(
    ("rho", "setting", "happens"),
    [
        ("loss", "power=1e+30", "overflow"),
        ("loss", "power=-1e+30", "vanish"),
        ("quality", "gamma=1e+30", "vanish"),
        ("similarity", "alpha=1e+30", "overflow"),
    ],
)
def test_a_rho_setting_that_overflows_is_named(fast, capsys, rho, setting, happens):
    """The message names the setting, not the policy, and NumPy does not warn."""
    assert main([*fast, f"rho.policy={rho}", f"rho.{setting}"]) == 2
    assert capsys.readouterr().err == (
        f"genfl_mpi: round 1, the rho policy {rho}: rho.{setting} makes the weights of rho.policy={rho} "
        f"{happens} in float64; set it nearer to 0\n"
    )


# --- selection


@pytest.mark.parametrize("policy", SELECTION)
def test_policies_that_select_all_clients_agree(quick, policy):
    quick = [*quick, "cohort=6", "method=fedavg", "world={deadline_s: 10}"]
    assert np.array_equal(weights(*quick, f"selection.policy={policy}"), weights(*quick))


@pytest.mark.parametrize("sharing", ["histogram", "presence"])
def test_label_cover_selects_cohorts_closer_to_the_population(quick, sharing):
    quick = [
        *quick,
        "method=fedavg",
        "rounds=5",
        "clients=20",
        "cohort=5",
        "partition.scheme=classes",
        f"label_sharing.payload={sharing}",
    ]
    distances = []
    for policy in ("label_cover", "random"):
        simulation, records = run(*quick, f"selection.policy={policy}")
        held = simulation.data["label_histograms"]
        distances.append(
            np.mean(
                [
                    earth_movers_distance(held[record.clients["client"]].sum(0, keepdims=True), held.sum(0))[
                        0
                    ]
                    for record in records
                ]
            )
        )
    assert distances[0] < 0.6 * distances[1]
    cohorts = {
        tuple(record.clients["client"])
        for record in run(*quick, "selection.policy=label_cover", "label_sharing.refusal_rate=1")[1]
    }
    assert len(cohorts) > 1  # with clients that share nothing the choice is random


def forecasts(simulation, rounds):
    return [simulation.server.world.forecast(round) for round in range(rounds)]


def test_a_slow_client_is_not_selected(quick):
    quick = [*quick, "method=fedavg", "rounds=4", "clients=12", "selection.policy=deadline"]
    seconds = forecasts(
        Simulation(overrides=[*quick, WORLD.replace("{hardware", "{deadline_s: 1, hardware")]), 1
    )[0].seconds
    limit = float(np.median(seconds))
    records = run(*quick, WORLD.replace("{hardware", f"{{deadline_s: {limit}, hardware"))[1]
    assert all((seconds[record.clients["client"]] <= limit).all() for record in records)
    fastest = run(*quick, WORLD.replace("{hardware", "{deadline_s: 1e-6, hardware"))[1]
    assert set(fastest[0].clients["client"]) == set(np.argsort(seconds)[:3])


def test_power_of_choice_takes_the_largest_losses(quick):
    simulation, records = run(*quick, "method=fedavg", "rounds=4", "selection.policy=power_of_choice")
    assert (
        len(set(np.concatenate([record.clients["client"] for record in records[:2]]))) == 6
    )  # clients that never trained come first
    losses = np.full(6, np.nan)
    for record in records[:2]:
        losses[record.clients["client"]] = record.clients["loss_first_epoch"]
    assert set(records[2].clients["client"]) == set(np.argsort(-losses)[:3])


def test_oort_prefers_useful_clients_and_avoids_slow_ones(quick):
    quick = [*quick, "method=fedavg", "rounds=8", "clients=12", "selection.policy=oort", WORLD]
    simulation, records = run(*quick, "selection.penalty=0")
    seconds = forecasts(simulation, 1)[0].seconds
    patient = np.mean([seconds[record.clients["client"]].mean() for record in records])
    hasty = np.mean(
        [seconds[record.clients["client"]].mean() for record in run(*quick, "selection.penalty=20")[1]]
    )
    assert hasty < patient
    # Among clients that differ only by their losses it selects the largest losses.
    state = replace(
        simulation.server.state, last=np.full(12, 3), losses=np.arange(12.0), samples=np.full(12, 10)
    )
    state = replace(state, forecast=replace(state.forecast, seconds=np.ones(12)))
    assert set(selection.oort(state)) == {9, 10, 11}


def test_energy_selects_the_cheapest_clients(quick):
    simulation, records = run(*quick, "method=fedavg", "selection.policy=energy", WORLD)
    for record, expected in zip(records, forecasts(simulation, 2)):
        assert set(record.clients["client"]) == set(np.argsort(expected.joules)[:3])


def test_an_empty_battery_is_spared(quick):
    world = WORLD.replace(
        "{frequency_ghz: [0.5, 2]}", "{frequency_ghz: [1, 1], transmit_watts: [0.1, 0.1], battery_kj: [1, 1]}"
    )
    quick = [*quick, "method=fedavg", "selection.policy=battery", "partition.scheme=iid", world]
    simulation, [one, two] = run(*quick)
    assert not set(one.clients["client"]) & set(two.clients["client"])
    assert (simulation.server.world.spent > 0).all()
    state = simulation.server.state
    charge = np.array(
        [1, 1, 1, 0, 0, 0.5]
    )  # the charge of two clients does not suffice for the round, which costs more than half a joule
    state = replace(state, forecast=replace(state.forecast, charge=charge * state.forecast.battery + 1e-9))
    assert set(selection.battery(state)) == {0, 1, 2}


def test_important_clients_are_drawn_more_often(quick):
    simulation, records = run(*quick, "method=fedavg", "rounds=3", "selection.policy=importance")
    state = simulation.server.state
    assert (state.norms[state.last > 0] > 0).all()
    state = replace(
        state, norms=np.array([8, 1, 1, 1, 1, 1.0]), samples=np.full(6, 10), last=np.ones(6, dtype=int)
    )
    drawn = np.bincount(
        np.concatenate([selection.importance(replace(state, round=round)) for round in range(300)]),
        minlength=6,
    )
    assert drawn[0] > 1.5 * drawn[1:].max()
    alike = replace(state, norms=np.ones(6))
    drawn = np.bincount(
        np.concatenate([selection.importance(replace(alike, round=round)) for round in range(300)]),
        minlength=6,
    )
    assert drawn.min() > 110  # of 150


# --- runs with such policies


ALL = [
    "kappa.policy=line_search",
    "rho.policy=shapley",
    "selection.policy=oort",
    "world={}",
    "algorithm.name=fednova",
    "validation.source=clients",
]


def test_any_number_of_ranks(quick, tmp_path):
    for ranks in (1, 3):
        done = mpirun(ranks, "-m", "genfl_mpi", *quick, *ALL, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
    assert reader.digests(tmp_path / "1/genfl_seed1.h5") == reader.digests(tmp_path / "3/genfl_seed1.h5")


@pytest.mark.parametrize(
    "overrides",
    [
        [*JUDGED, "kappa.policy=bandit", "kappa.grid=[0.1,0.6]", "selection.policy=battery", WORLD],
        [*JUDGED, "rho.policy=leave_one_out", "selection.policy=power_of_choice"],
    ],
)
def test_a_continued_run_equals_an_uninterrupted_one(quick, tmp_path, overrides):
    assert main([*quick, *overrides, "rounds=4", f"output={tmp_path}/whole"]) == 0
    assert main([*quick, *overrides, "rounds=2"]) == 0
    assert main([*quick, *overrides, "rounds=4"]) == 0
    assert reader.digests(tmp_path / "results/genfl_seed1.h5") == reader.digests(
        tmp_path / "whole/genfl_seed1.h5"
    )


def counting(state):
    """Select the next clients by the policy's memory."""
    state.memory["calls"] = state.memory.get("calls", np.zeros(1)) + 1
    return np.arange(3) + int(state.memory["calls"][0]) % 3


counting.needs = frozenset({"memory"})


def test_an_interrupted_round_does_not_change_the_memory_of_policies(quick):
    quick = [*quick, *JUDGED, "kappa.policy=bandit", "rho.policy=similarity", "rounds=4"]
    begun = []
    simulation = Simulation(
        overrides=quick,
        select=counting,
        leaving=lambda: 75 if 3 in begun else 0,
        note=lambda *_, round=None, **__: begun.append(round),
    )
    assert len(list(simulation)) == 2 and simulation.left == 75 and simulation.round == 2
    _, records = run(*[*quick, "rounds=2"], select=counting)
    memory = simulation.server.state_arrays()
    assert memory["policy.select.calls"] == [2] and memory["policy.kappa.plays"].sum() == 1
    rest = Simulation(overrides=quick, select=counting)
    tables = {
        "clients": {
            name: np.concatenate([record.clients[name] for record in records]) for name in records[0].clients
        },
        "generated": {
            "label": np.concatenate(
                [batch.label for record in records for _, batch, _, _ in record.generated]
            ),
            "image": np.concatenate([images for record in records for _, _, images, _ in record.generated]),
            "fidelity": np.concatenate([fidelity for record in records for *_, fidelity in record.generated]),
        },
    }
    rest.restore(2, simulation.weights.numpy(), memory, tables)
    list(rest)
    assert np.array_equal(rest.weights.numpy(), weights(*quick, select=counting))


def test_dropped_clients_get_no_weight(fast, monkeypatch):
    train = worker.train

    def poisoned(model, start, images, *rest):
        report = train(model, start, images, *rest)
        if len(images) == poisoned.samples:
            model.weights[0] = float("nan")
        return report

    monkeypatch.setattr(worker, "train", poisoned)
    fast = [*fast, "faults.nonfinite=drop", "cohort=5", "rounds=2"]
    poisoned.samples = int(Simulation(overrides=fast).server.state.samples.max())
    dropped, records = run(*fast, "rho.policy=loss", "rho.power=0")
    assert sum(np.isnan(record.clients["update_norm"]).sum() for record in records) >= 1
    assert np.allclose(dropped.weights, weights(*fast), atol=1e-6)
    assert run(*fast, "rho.policy=similarity", "data.public_pool=20", "validation.source=pool")[1][
        -1
    ].clients["rho"].sum() == pytest.approx(1)


def test_evaluating_models_does_not_change_a_run(quick):
    assert np.array_equal(weights(*quick, *JUDGED), weights(*quick, "data.public_pool=200"))


def test_every_policy_has_a_test():
    from pathlib import Path

    names = "test_policies", "test_differential_privacy", "test_vehicles"
    text = "".join(Path(__file__).with_name(f"{name}.py").read_text() for name in names)
    assert all(name in text for name in (*KAPPA, *RHO, *SELECTION))


def test_the_documented_policy_works(quick, tmp_path):
    """Run the code and the command of docs/policies.md."""
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs/policies.md").read_text()
    (tmp_path / "mine.py").write_text(page.split("```python\n")[1].split("```")[0])
    [line] = [
        line for line in page.splitlines() if line.startswith("    python -m genfl_mpi") and "mine:" in line
    ]
    given = [word for word in line.split()[3:] if not word.startswith("output=")]
    done = mpirun(2, "-m", "genfl_mpi", *quick, *given, PYTHONPATH=f"{Path(__file__).parents[1]}:{tmp_path}")
    assert done.returncode == 0, done.stderr
    with reader.open_results(tmp_path / "results/genfl_seed1.h5") as file:
        shared = file["partition/shared_labels"][:]
        rarest = np.argsort(-shared[:, shared.sum(0).argmin()], kind="stable")[:3]
        assert set(file["clients/client"][:3]) == set(rarest) and set(file["rounds/kappa2"][:]) <= {0, 1}
    names = page.partition("## Built-in policies")[2]
    assert all(f"`{name}`" in names for name in (*KAPPA, *RHO, *SELECTION))
