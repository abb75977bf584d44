"""Attacks on the global model, and robust aggregation of the cohort's models, on any number of ranks."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FAST, mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis.robustness import outcome, robustness
from genfl_mpi.cli import main
from genfl_mpi.config import loading
from genfl_mpi.config.loading import single
from genfl_mpi.config.sections.adversity import Attack, Defence
from genfl_mpi.data import datasets
from genfl_mpi.data.corruption import draw_attackers
from genfl_mpi.federation.robust import attacks
from genfl_mpi.federation.robust.rules import COEFFICIENT_RULES, COORDINATE_RULES, krum_order
from genfl_mpi.federation.robust.slices import Slices
from genfl_mpi.federation.transforms.chain import Chain
from genfl_mpi.learning.weights import BLOCK
from genfl_mpi.mpi import collectives
from genfl_mpi.preparation import plan
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

CONFIGS = Path(__file__).parent.parent / "configs"


def gram(updates):
    updates = np.asarray(updates, dtype=float)
    return updates @ updates.T


def combined(name, updates, **settings):
    """Return the combined update of a coefficient rule, and the members' weights."""
    found = COEFFICIENT_RULES[name](gram(updates), Defence(name=name, **settings))
    members = len(found.updates)
    return found.updates @ np.asarray(updates, dtype=float)[:members], found.rho


# Rules.


def test_median_of_identical_values_is_the_value_and_of_an_even_number_the_middle():
    same = np.full((4, 3), 0.7)
    assert (COORDINATE_RULES["median"](same, Defence()) == same[0]).all()
    assert COORDINATE_RULES["median"](np.array([[1.0], [9.0], [3.0], [5.0]]), Defence()) == 4
    assert COORDINATE_RULES["median"](np.array([[1.0], [1e6], [3.0]]), Defence()) == 3


def test_trimmed_mean_without_trimming_is_the_mean():
    values = np.random.default_rng(1).standard_normal((7, 50))
    trimmed = COORDINATE_RULES["trimmed_mean"]
    assert np.allclose(trimmed(values, Defence(share=0.0)), values.mean(0), rtol=0, atol=1e-15)
    one = np.array([[-100.0], [1.0], [2.0], [3.0], [100.0]])
    assert trimmed(one, Defence(share=0.2)) == 2
    assert trimmed(one[:2], Defence(share=0.4)) == -49.5, "a small cohort keeps at least one value"


SEVEN = [[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.4], [10, 10], [-8, 9]]  # by hand: f = 2, 3 neighbours


def test_krum_chooses_by_hand_for_seven_clients_in_the_plane():
    """(0.5, 0.4) has 0.41 + 0.41 + 0.61 = 1.43 to its three neighbours; (0, 0) has 0.41 + 1 + 1."""
    update, rho = combined("krum", SEVEN, share=2 / 7)
    assert update.tolist() == [0.5, 0.4] and rho.tolist() == [0, 0, 0, 0, 1, 0, 0]
    update, rho = combined("multi_krum", SEVEN, share=2 / 7)
    assert rho == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.2, 0, 0])
    assert update == pytest.approx([0.5, 0.48])


def test_ties_of_krum_go_to_the_lowest_member():
    square = [[0, 0], [1, 0], [0, 1], [1, 1], [9, 9]]
    assert krum_order(gram(square), 1).tolist()[0] == 0
    same = [[0.1, 0.2]] * 5
    assert krum_order(gram(same), 1).tolist() == [0, 1, 2, 3, 4]


def test_geometric_median_of_a_triangle_is_its_fermat_point_and_resists_one_outlier():
    triangle = [[1, 0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]]
    assert combined("geometric_median", triangle)[0] == pytest.approx([0, 0], abs=1e-9)
    near = [[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [0.1, 0.1], [1e6, -1e6]]
    update, rho = combined("geometric_median", near)
    assert np.linalg.norm(update) < 0.2 and rho[-1] < 1e-5 and rho.sum() == pytest.approx(1)


def test_norm_clipping_scales_long_updates_alone():
    update, rho = combined("norm_clipping", [[3, 4], [0.3, 0.4]], norm=1.0)
    assert update == pytest.approx([(0.6 + 0.3) / 2, (0.8 + 0.4) / 2])
    assert rho == pytest.approx([1 / 6, 5 / 6])
    whole, _ = combined("norm_clipping", [[3, 4], [0.3, 0.4]], norm=100.0)
    assert whole == pytest.approx([1.65, 2.2])


def test_centred_clipping_in_one_iteration_is_norm_clipping_and_in_many_the_mean():
    updates = np.random.default_rng(2).standard_normal((5, 3))
    one = combined("centred_clipping", updates, norm=0.5, iterations=1)[0]
    assert one == pytest.approx(combined("norm_clipping", updates, norm=0.5)[0])
    many = combined("centred_clipping", updates, norm=100.0, iterations=5)[0]
    assert many == pytest.approx(updates.mean(0))


def test_fltrust_with_all_clients_equal_to_the_root_is_their_update():
    root = [0.3, -0.4]
    update, rho = combined("fltrust", [root, root, root, root])
    assert update == pytest.approx(root) and rho == pytest.approx([1 / 3] * 3)


def test_fltrust_rescales_to_the_root_and_ignores_who_points_away():
    update, rho = combined("fltrust", [[30, 40], [-3, -4], [0, 0], [0.3, 0.4]])
    assert update == pytest.approx([0.3, 0.4]) and rho.tolist() == [1, 0, 0]
    for last in ([3, 4], [0, 0]):  # no client agrees, or there is no root
        update, rho = combined("fltrust", [[-3, -4], [-4, 3], last])
        assert not update.any() and not rho.any()


# Slices.


@pytest.mark.parametrize("size", [5, BLOCK, 2 * BLOCK + 7])
def test_slices_are_the_rows(size):
    rows = torch.arange(2 * size, dtype=torch.float32).reshape(2, size)
    slices = Slices(collectives.single(), size, [2])
    for number in (1, 0):
        slices.put(number, rows[number])
    received = slices.exchange()
    parts = [(inside, received[:, here]) for inside, here in slices.own_blocks()]
    assert sum(part.shape[1] for _, part in parts) == size
    assert all((part == rows[:, inside].numpy()).all() for inside, part in parts)


# Attacks.


def changed(kind, trained, omega, client=0, **settings):
    config = single(None, [*FAST, "attack.share=1", f"attack.kind={kind}"], {})
    config = config.model_copy(update={"attack": config.attack.model_copy(update=settings)})
    chain = Chain(attacks.find_transform(config, np.arange(6) < 3), config, 2)
    return chain.apply(torch.tensor(trained), torch.tensor(omega), 0, client).tolist()


def test_attacks_on_the_update_change_the_parameters_of_attackers_alone():
    assert changed("sign_flip", [1.0, 3.0, 7.0], [0.0, 2.0, 5.0], scale=2.0) == [-2.0, 0.0, 7.0]
    assert changed("sign_flip", [1.0, 3.0, 7.0], [0.0, 2.0, 5.0], client=3) == [1.0, 3.0, 7.0]
    assert changed("backdoor", [1.0, 3.0, 7.0], [0.0, 2.0, 5.0], boost=3.0) == [3.0, 5.0, 7.0]
    noisy = changed("gaussian", [1.0, 3.0, 7.0], [0.0, 2.0, 5.0], sigma=1e-3)
    assert (
        noisy[2] == 7
        and 0 < abs(noisy[0]) < 0.01
        and noisy == changed("gaussian", [9.0, 9.0, 7.0], [0.0, 2.0, 5.0], sigma=1e-3)
    )


def test_crafted_updates_follow_from_those_of_the_others():
    honest = np.array([[1.0, 0.0], [3.0, 0.0]])
    assert attacks.craft(honest, Attack(kind="alie", z=1.5)).tolist() == [0.5, 0]
    assert attacks.craft(honest, Attack(kind="inner_product", scale=2.0)).tolist() == [-4, 0]


def test_attackers_are_drawn_by_the_seed():
    drawn = [draw_attackers(50, Attack(share=0.2), seed) for seed in (1, 1, 2)]
    assert [one.sum() for one in drawn] == [10] * 3
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


def poisoned(**settings):
    config = single(None, [*FAST, "attack.share=1"], {})
    config = config.model_copy(update={"attack": config.attack.model_copy(update=settings)})
    about = datasets.describe(config.data)
    labels = torch.arange(8) % 4
    return attacks.poison(torch.zeros(8, *about.shape), labels, 0, config, about)


def test_label_flip_reverses_the_labels():
    images, labels = poisoned(kind="label_flip")
    assert not images.any() and labels.tolist() == [9, 8, 7, 6] * 2


def test_a_backdoor_marks_a_share_of_the_samples():
    images, labels = poisoned(kind="backdoor", target=3, trigger=2, poisoned=0.5)
    marked = images.flatten(1).any(1)
    assert marked.sum() == 4 and (labels[marked] == 3).all()
    assert (labels[~marked] == (torch.arange(8) % 4)[~marked]).all()
    assert images[marked][:, :, -2:, -2:].all() and not images[:, :, :-2].any()


# Runs.

ATTACKED = [*FAST, "rounds=3", "cohort=5", "attack.share=0.34"]
CASES = {
    "none-alie": ["attack.kind=alie"],
    "median": ["defence.name=median", "attack.kind=inner_product"],
    "trimmed_mean": ["defence.name=trimmed_mean", "attack.kind=gaussian"],
    "multi_krum": ["defence.name=multi_krum", "attack.kind=alie", "model.name=resnet18"],
    "geometric_median": ["defence.name=geometric_median", "attack.kind=backdoor"],
    "fltrust": [
        "defence.name=fltrust",
        "method=pool",
        "data.public_pool=20",
        "kappa.kappa2=0",
        "attack.kind=sign_flip",
    ],
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case == "multi_krum")) for case in CASES]
)
def test_results_do_not_depend_on_the_ranks(case, tmp_path):
    found = []
    for ranks in (1, 3) if case != "fltrust" else (1, 2, 3):
        run = [*ATTACKED, *CASES[case], "rounds=2", f"output={tmp_path}/{ranks}"]
        done = mpirun(ranks, "-m", "genfl_mpi", *run)
        assert done.returncode == 0, done.stderr
        [path] = (tmp_path / str(ranks)).glob("*.h5")
        found.append(reader.digests(path))
    assert all(one == found[0] for one in found)


def final(*overrides):
    *_, last = Simulation(overrides=[*FAST, *overrides])
    return last


def test_the_mean_of_a_defence_is_fedavg_up_to_rounding():
    """Without attackers, uniform rho, nothing trimmed, clipped or rejected."""
    runs = {
        name: Simulation(overrides=[*FAST, "rounds=1", *more])
        for name, more in {
            "fedavg": ["rho.policy=uniform"],
            "trimmed_mean": ["defence.name=trimmed_mean", "defence.share=0"],
            "norm_clipping": ["defence.name=norm_clipping", "defence.norm=1000"],
            "multi_krum": ["defence.name=multi_krum", "defence.share=0"],
        }.items()
    }
    for run in runs.values():
        list(run)
    for name, run in runs.items():
        assert torch.allclose(run.weights, runs["fedavg"].weights, rtol=0, atol=1e-6), name


@pytest.mark.slow
def test_fedavg_collapses_under_sign_flip_and_the_median_does_not():
    run = [
        "rounds=4",
        "clients=10",
        "cohort=10",
        "partition.scheme=iid",
        "data.name=mnist5k",
        "training.lr=0.1",
    ]
    attack = ["attack.share=0.2", "attack.kind=sign_flip", "attack.scale=10"]
    honest = final(*run).accuracy
    collapsed, robust = (final(*run, *attack, f"defence.name={name}").accuracy for name in ("none", "median"))
    assert honest > 0.5 and collapsed < 0.2 and robust > honest - 0.15


def test_a_run_that_diverges_under_attack_goes_on(tmp_path):
    run = [*FAST, "rounds=8", "cohort=5", "attack.share=0.5", "attack.kind=sign_flip", "attack.scale=1000"]
    records = list(Simulation(overrides=run))
    assert len(records) == 8 and records[-1].loss > 1e6 and records[-1].accuracy < 0.3
    assert any((record.clients["status"] == b"not finite").any() for record in records)
    with pytest.raises(ArithmeticError):
        list(Simulation(overrides=[*run, "faults.nonfinite=stop"]))


def test_a_round_reports_the_attackers_and_their_weight():
    records = list(Simulation(overrides=[*ATTACKED, "attack.kind=sign_flip", "defence.name=krum"]))
    for record in records:
        [attackers], [rho] = record.attacks["attackers"], record.attacks["attackers_rho"]
        assert 1 <= attackers <= 2 and rho == 0 and np.isnan(record.attacks["success"]).all()
        assert record.clients["rho"].max() == 1 and record.clients["rho"].sum() == 1


def test_the_success_of_a_backdoor_is_measured():
    attack = ["attack.kind=backdoor", "attack.poisoned=1", "attack.boost=5", "attack.target=2"]
    last = final("rounds=4", "cohort=6", "attack.share=0.5", *attack, "partition.scheme=iid")
    none = final("rounds=4", "cohort=6", "attack.share=0.01", *attack, "partition.scheme=iid")
    assert last.attacks["success"] > 0.9 and not none.attacks


def test_fltrust_without_trust_keeps_the_weights():
    run = ["method=pool", "data.public_pool=20", "kappa.kappa2=0", "defence.name=fltrust", "rounds=1"]
    flip = ["attack.share=1", "attack.kind=sign_flip", "partition.scheme=iid", "augmented.lr=0.01"]
    simulation = Simulation(overrides=[*FAST, *run, *flip])
    before = simulation.weights.clone()
    [record] = simulation
    assert record.clients["rho"].tolist() == [0, 0, 0]
    assert torch.allclose(simulation.weights, before, rtol=0, atol=2.0**-40)


def test_a_client_that_is_not_finite_is_left_out_of_a_defence():
    run = [*FAST, "rounds=2", "cohort=5", "faults.nonfinite=drop", "defence.name=median"]
    run += ["attack.share=0.34", "attack.kind=gaussian", "attack.sigma=1e30"]
    records = list(Simulation(overrides=run))
    assert all(np.isfinite(record.loss) for record in records)
    dropped = np.concatenate([record.clients["status"] == b"not finite" for record in records])
    rho = np.concatenate([record.clients["rho"] for record in records])
    assert dropped.any() and not rho[dropped].any() and (rho[~dropped] > 0).all()


def test_an_interrupted_attack_continues_with_the_same_bits(tmp_path):
    run = [*ATTACKED, "attack.kind=alie", "defence.name=geometric_median"]
    assert main([*run, f"output={tmp_path}/whole"]) == 0
    assert main([*run, "rounds=1", f"output={tmp_path}/parts"]) == 0
    assert main([*run, f"output={tmp_path}/parts"]) == 0
    whole, parts = (tmp_path / name / "fedavg_seed1.h5" for name in ("whole", "parts"))
    assert reader.digests(whole) == reader.digests(parts)


def test_tables_without_attackers_do_not_change_the_digest(tmp_path):
    import h5py

    assert main([*FAST, "rounds=1", f"output={tmp_path}"]) == 0
    path = tmp_path / "fedavg_seed1.h5"
    before = reader.digests(path)
    with h5py.File(path, "r+") as file:
        del file["attacks"], file["checksums/attacks"]
    assert reader.digests(path) == before


def test_the_heat_map_has_a_cell_for_each_attack_and_defence(tmp_path):
    run = [
        *FAST,
        "rounds=1",
        "attack.share=0.5",
        f"output={tmp_path}",
        "sweep.attack.kind=[sign_flip,backdoor]",
    ]
    assert main([*run, "sweep.defence.name=[none,median]", "--quiet"]) == 0
    paths = sorted(tmp_path.glob("*.h5"))
    assert len(paths) == 4
    figure = robustness(paths)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 4 and sum("(" in text for text in texts) == 2, "success of the backdoor"
    assert main(["plot", str(tmp_path), "--figure", "robustness", "-o", f"{tmp_path}/a.png"]) == 0
    with pytest.raises(UserError, match="has no attackers"):
        assert main([*FAST, "rounds=1", f"output={tmp_path}/none", "--quiet"]) == 0
        robustness(list((tmp_path / "none").glob("*.h5")))


def test_the_figure_averages_evaluated_rounds(tmp_path):
    assert main([*FAST, "rounds=4", "evaluation.every=2", "attack.share=0.5", f"output={tmp_path}"]) == 0
    [path] = tmp_path.glob("*.h5")
    with reader.open_results(path) as file:
        accuracy = reader.read_columns(file, "rounds", ["accuracy"])["accuracy"]
    assert outcome(path)[3] == pytest.approx(accuracy[[1, 3]].mean())


def test_the_study_crosses_every_attack_with_every_defence():
    runs = [
        run
        for name in ("robustness-small", "robustness-roots-small")
        for run in loading.load(CONFIGS / f"{name}.yaml").values()
    ]
    cells = {(run.attack.kind, run.attack.share, run.defence.name, run.method) for run in runs}
    assert len(cells) == len(runs) == 2 * 6 * (8 + 2)
    assert {run.output for run in runs} == {"results/robustness-small", "results/robustness-roots-small"}


def test_plan_counts_the_slices():
    config = single(None, [*FAST, "cohort=4", "defence.name=median"], {})
    costs = SimpleNamespace(broadcast_bytes=8_000_000)
    line = plan._slices(config, costs, 4)
    assert "4 models: 6 MB from every rank" in line and "16 MB memory per rank" in line


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            ["defence.name=krum", "cohort=3", "defence.share=0.4"],
            "defence.name=krum needs a cohort of at least 5",
        ),
        (["defence.name=trimmed_mean", "cohort=2"], "defence.share=0.2 trims all of a cohort of 2"),
        (["defence.name=fltrust"], "method=fedavg has none; set method=genfl, or method=pool"),
        (["defence.name=median", "algorithm.name=scaffold"], "algorithm.name=scaffold needs their sum"),
        (["defence.name=median", "algorithm.name=fednova"], "algorithm.name=fednova needs their sum"),
        (["defence.name=median", "rho.policy=shapley", "validation.source=clients"], "rho.policy=shapley"),
        (["attack.share=0.5", "attack.kind=backdoor", "attack.target=10"], "attack.target=10 must be less"),
        (
            ["attack.share=0.5", "attack.kind=backdoor", "attack.trigger=9"],
            "attack.trigger=9 must be at most",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(run, message, fast, capsys):
    assert main([*fast, *run]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said
    with pytest.raises(UserError, match=message.split("(")[0]):
        Simulation(overrides=[*FAST, *run])
