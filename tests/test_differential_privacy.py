"""Client-level differential privacy: sensitivity, the noise's variance, and what the rounds have spent."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import interrupt, mpirun
from scipy import stats

from genfl_mpi import Simulation
from genfl_mpi.analysis import privacy_figure
from genfl_mpi.cli import main
from genfl_mpi.config.sections.local_training import Model
from genfl_mpi.config.settings import Config
from genfl_mpi.federation import differential_privacy
from genfl_mpi.federation.messages import MODEL
from genfl_mpi.federation.policies.selection import largest_cohort, poisson
from genfl_mpi.federation.worker import Worker
from genfl_mpi.learning import models
from genfl_mpi.learning.weights import ExactSum
from genfl_mpi.privacy import accounting
from genfl_mpi.privacy.accounting import Release
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

NOISE = ["privacy.noise_multiplier=0.5", "privacy.delta=1e-3"]
PRIVATE = ["privacy.clip=0.1", *NOISE, "label_sharing.refusal_rate=1"]
POISSON = ["selection.policy=poisson"]
DISTRIBUTED = ["privacy.secure_aggregation=true", "privacy.noise=distributed"]


def config(*overrides):
    from genfl_mpi.config.loading import single

    return single({}, ["method=fedavg", *overrides], {})


@pytest.mark.parametrize(
    ("release", "delta", "expected"),
    [
        (Release(True, 100, 25, 1.0, 25), 1e-3, 6.1202),
        (Release(True, 100, 25, 2.0, 25), 1e-3, 2.0650),
        (Release(True, 100, 10, 1.0, 100), 1e-5, 7.0466),
        (Release(True, 100, 1, 1.0, 1000), 1e-5, 1.8282),
        (Release(False, 100, 25, 2.0, 25), 1e-3, 12.8342),  # of twice the clip: sigma / 2
    ],
)
def test_epsilon_has_the_reference_values(release, delta, expected):
    assert accounting.epsilon((release,), delta) == pytest.approx(expected, abs=1e-4)


def test_epsilon_of_rounds_without_noise_is_infinite_and_of_none_is_zero():
    assert accounting.epsilon((), 1e-5) == 0
    assert accounting.epsilon((Release(False, 10, 2, 0.0, 1), Release(False, 10, 2, 5.0, 1)), 1e-5) == np.inf


def test_the_noise_follows_from_epsilon():
    release = Release(False, 100, 25, 0.0, 25)
    found = accounting.noise_multiplier(release, 12.8342, 1e-3)
    assert found == pytest.approx(2.0, rel=1e-3)
    assert accounting.epsilon((release._replace(noise_multiplier=found),), 1e-3) <= 12.8342


def test_rounds_of_equal_noise_are_one_release():
    one = Release(True, 10, 2, 1.0, 1)
    other = one._replace(noise_multiplier=2.0)
    releases = []
    for each in (one, one, other):
        releases = accounting.add_round(releases, each)
    assert releases == [one._replace(rounds=2), other]


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("length", [0.1, 0.4, 0.4000001, 5.0, 1e20])
def test_the_integers_of_an_adversarial_client_stay_within_the_clip(size, length):
    direction = torch.randn(size, generator=torch.Generator().manual_seed(1))
    change = direction * (length / direction.norm())
    clipped, is_within = differential_privacy.clip(change, 0.4)
    assert is_within == (length < 0.4)
    total = ExactSum(np.zeros(size, dtype=np.int64))
    total.add(1 / 10, clipped)
    norm = 10 * np.linalg.norm(total.units / 2.0**40)
    assert norm <= 0.4 and (is_within or norm > 0.4 * (1 - 1e-5))


def test_one_client_moves_the_sum_by_at_most_the_clip(fast, monkeypatch):
    """Client 3 sends anything: the global weights move by clip / cohort at most, with the same noise."""
    train, weights = Worker._train_stages, []
    run = [*fast, *PRIVATE, "cohort=6", "rounds=1"]
    for scale in (1.0, -1e6):

        def attack(self, client, *arguments, scale=scale):
            report = train(self, client, *arguments)
            if client.id == 3:
                self.model.weights.mul_(scale)
            return report

        monkeypatch.setattr(Worker, "_train_stages", attack)
        simulation = Simulation(overrides=run)
        list(simulation)
        weights.append(simulation.weights.double().clone())
    assert 0 < (weights[0] - weights[1]).norm() <= 2 * 0.1 / 6 * (1 + 1e-5)


def test_central_noise_has_its_variance(fast):
    """Within the 99.9 % confidence interval of a variance; without noise the mean is that of the clipped."""
    noisy, plain = (
        Simulation(overrides=[*fast, *PRIVATE, "rounds=1", *more])
        for more in ([], ["privacy.noise_multiplier=0"])
    )
    [record], [exact] = list(noisy), list(plain)
    noise = (noisy.weights - plain.weights).double().numpy()
    expected = (0.5 * 0.1 / 3) ** 2
    low, high = stats.chi2.interval(0.999, len(noise))
    assert low < (noise**2).sum() / expected < high
    assert exact.columns["epsilon"] == np.inf and np.isfinite(record.columns["epsilon"])
    assert record.columns["noise_to_update"] == pytest.approx(
        math.sqrt(len(noise) * expected) / float((plain.weights - Simulation(overrides=fast).weights).norm()),
        rel=1e-3,
    )


def test_the_survivors_noise_shares_have_the_variance_of_the_whole():
    settings = config(*PRIVATE, *DISTRIBUTED, "cohort=5", "privacy.threshold=4")
    shares = [differential_privacy.noise_share(settings, 0, n, 0.1, 0.5, 20_000) for n in range(4)]
    total = sum(shares) / 2.0**40
    low, high = stats.chi2.interval(0.999, len(total))
    assert low < (total**2).sum() / (0.5 * 0.1 / 5) ** 2 < high
    assert (shares[0] != shares[1]).mean() > 0.99
    other = differential_privacy.noise_share(settings, 1, 0, 0.1, 0.5, 20_000)
    assert (other != shares[0]).mean() > 0.99


def test_distributed_noise_is_in_the_masked_sum(fast):
    run = [*fast, *PRIVATE, "cohort=6", "rounds=1"]
    noisy, plain = (
        Simulation(overrides=[*run, *more]) for more in (DISTRIBUTED, ["privacy.noise_multiplier=0"])
    )
    list(noisy), list(plain)
    noise = (noisy.weights - plain.weights).double().numpy()
    expected = (0.5 * 0.1 / 6) ** 2 * 6 / 5  # six survivors; the shares are sized for five
    low, high = stats.chi2.interval(0.999, len(noise))
    assert low < (noise**2).sum() / expected < high


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([*POISSON], marks=pytest.mark.slow, id="poisson"),
        pytest.param(["privacy.secure_aggregation=true", *POISSON], id="secure"),
        pytest.param(DISTRIBUTED, marks=pytest.mark.slow, id="distributed"),
    ],
)
def test_a_private_run_does_not_depend_on_the_ranks(more, fast, tmp_path):
    run = [*fast, *PRIVATE, *more, "rounds=2"]
    for ranks in (1, 2):
        done = mpirun(ranks, "-m", "genfl_mpi", *run, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
    one, two = (tmp_path / f"{ranks}/fedavg_seed1.h5" for ranks in (1, 2))
    assert reader.digests(one) == reader.digests(two)


def test_masks_change_nothing_in_a_private_run(fast, tmp_path):
    secure = ["privacy.secure_aggregation=true"]
    for name, more in (("plain", []), ("secure", secure)):
        assert main([*fast, *PRIVATE, *more, "rounds=2", f"output={tmp_path}/{name}"]) == 0
    plain, masked = (tmp_path / name / "fedavg_seed1.h5" for name in ("plain", "secure"))
    assert reader.digests(plain) == reader.digests(masked)


def test_poisson_cohorts_vary_and_are_never_cut_off():
    settings = config("clients=1000", "cohort=50", "rounds=40", *POISSON)
    cohorts = [poisson(SimpleNamespace(config=settings, round=round)) for round in range(40)]
    sizes = np.array([len(cohort) for cohort in cohorts])
    assert sizes.max() == largest_cohort(settings) > 50 > sizes.min()
    assert abs(sizes.mean() - 50) < 4 * math.sqrt(50 * 0.95 / 40)
    assert all((np.diff(cohort) > 0).all() for cohort in cohorts)
    assert largest_cohort(config("clients=10", "cohort=5")) == 5


def test_an_empty_round_releases_noise_and_is_accounted(fast):
    simulation = Simulation(overrides=[*fast, *PRIVATE, *POISSON, "cohort=1", "rounds=4"])
    before, sizes, epsilons = simulation.weights.clone(), [], []
    for record in simulation:
        sizes.append(len(record.clients["client"]))
        epsilons.append(record.columns["epsilon"])
        assert (simulation.weights != before).any()
        before = simulation.weights.clone()
    assert 0 in sizes and len(set(sizes)) > 1 and (np.diff(epsilons) > 0).all()


def test_a_poisson_cohort_needs_no_privacy(fast, tmp_path):
    run = [*fast, *POISSON, "cohort=1", "rounds=5"]
    assert main([*run, f"output={tmp_path}/one"]) == 0
    with reader.open_results(tmp_path / "one/fedavg_seed1.h5") as file:
        assert 0 in reader.read_columns(file, "rounds", ["clients_trained"])["clients_trained"]


def test_the_clip_moves_towards_the_quantile(fast):
    """Every update is longer than the first clip of one run, and shorter than that of the other."""
    adaptive = ["privacy.clip_quantile=0.5", "privacy.clip_lr=1", "privacy.count_noise=0.4"]
    for clip, sign in ((1e-3, 1), (100, -1)):
        run = [*fast, *PRIVATE, *adaptive, f"privacy.clip={clip}", "cohort=6", "rounds=2"]
        clips = [record.columns["clip"] for record in Simulation(overrides=run)]
        assert clips[0] == clip and sign * (clips[1] - clips[0]) > 0
    settings = config(*PRIVATE, *adaptive, "cohort=6")
    multiplier = differential_privacy.update_multiplier(settings, 0.5)
    assert multiplier**-2 + (2 * 0.4) ** -2 == pytest.approx(0.5**-2) and multiplier > 0.5


def columns(path):
    with reader.open_results(path) as file:
        return reader.read_columns(file, "rounds", ["epsilon", "clip"])


def test_resumed_and_forked_runs_keep_epsilon(fast, tmp_path, monkeypatch):
    adaptive = ["privacy.clip_quantile=0.5", "privacy.count_noise=1"]
    run = [*fast, *PRIVATE, *adaptive, "rounds=3", "checkpoint.keep=1"]
    assert main([*run, f"output={tmp_path}/whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        assert main([*run, f"output={tmp_path}/parts"]) == 1
    assert main([*run, f"output={tmp_path}/parts"]) == 0
    whole, parts = (tmp_path / name / "fedavg_seed1.h5" for name in ("whole", "parts"))
    assert reader.digests(whole) == reader.digests(parts)
    fork = ["fork", str(whole), "--at", "2", "privacy.noise_multiplier=0.8", f"output={tmp_path}/fork"]
    assert main(fork) == 0
    forked, before = columns(tmp_path / "fork/fedavg_seed1.h5"), columns(whole)
    assert (forked["epsilon"][:2] == before["epsilon"][:2]).all()
    releases = (Release(False, 6, 3, 0.5, 2), Release(False, 6, 3, 0.8, 1))
    assert forked["epsilon"][2] == accounting.epsilon(releases, 1e-3) < before["epsilon"][2]
    assert forked["clip"][2] == before["clip"][2], "the adapted clip is kept, too"


def test_a_fork_of_a_run_without_noise_has_no_epsilon(fast, tmp_path):
    assert main([*fast, "rounds=2", "checkpoint.keep=1", f"output={tmp_path}/plain"]) == 0
    fork = ["fork", f"{tmp_path}/plain/fedavg_seed1.h5", "--at", "1", *PRIVATE, f"output={tmp_path}/fork"]
    assert main(fork) == 0
    epsilon = columns(tmp_path / "fork/fedavg_seed1.h5")["epsilon"]
    assert np.isnan(epsilon[0]) and epsilon[1] == np.inf


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [
        ([], np.inf),
        (["label_sharing.refusal_rate=1"], 0.0),
        (["label_sharing.epsilon=0.5"], 0.5 * 9),
    ],
)
def test_shared_labels_are_composed(sharing, expected):
    settings = config(*sharing)
    share = np.zeros(3) if settings.label_sharing.refusal_rate else np.ones(3)
    found = differential_privacy.labels_epsilon(settings, np.array([4, 9, 5]), share.astype(bool))
    assert found == expected


def test_genfl_and_server_optimizers_work_on_the_noisy_mean(fast):
    """All that follows the noisy sum is post-processing: the same epsilon."""
    pool = ["method=genfl", "composition.source=pool", "data.public_pool=20"]
    epsilons = {
        [record.columns["epsilon"] for record in Simulation(overrides=[*fast, *PRIVATE, "rounds=1", *more])][
            0
        ]
        for more in ([], pool, ["algorithm.name=fedadam"], ["algorithm.name=fedprox"])
    }
    assert len(epsilons) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["privacy.epsilon=1"], "privacy.epsilon needs privacy.clip"),
        (["privacy.clip=0", *NOISE], "privacy.clip"),
        (["privacy.clip=1", "privacy.epsilon=1"], "privacy.clip needs privacy.delta"),
        (["privacy.clip=1", "privacy.delta=1e-3"], "either privacy.noise_multiplier or privacy.epsilon"),
        (
            ["privacy.clip=1", "privacy.epsilon=1", "privacy.delta=1e-3"],
            "privacy.epsilon needs privacy.rounds",
        ),
        (
            ["privacy.clip=1", "privacy.epsilon=1", "privacy.delta=1e-3", "privacy.rounds=1", "rounds=2"],
            "rounds (2) exceeds privacy.rounds (1)",
        ),
        ([*PRIVATE, "privacy.noise=distributed"], "set privacy.secure_aggregation=true"),
        ([*PRIVATE, "rho.policy=size"], "set rho.policy=uniform"),
        ([*PRIVATE, "algorithm.name=fednova"], "algorithm.name=fednova sums more"),
        ([*PRIVATE, "algorithm.name=scaffold"], "algorithm.name=scaffold sums more"),
        ([*PRIVATE, "selection.policy=power_of_choice"], "set selection.policy=poisson or random"),
        ([*PRIVATE, "validation.source=clients"], "choose another source"),
        ([*PRIVATE, "faults.nonfinite=stop"], "set faults.nonfinite=drop"),
        ([*PRIVATE, "method=genfl", "kappa.policy=amount"], "kappa.policy=amount lets a client's data"),
        ([*PRIVATE, "model.name=resnet18"], "BatchNorm"),
        ([*PRIVATE, "world={}", "world.enforced=true", "world.deadline_s=9"], "world.deadline_s lets"),
        ([*PRIVATE, "privacy.clip=1e-9"], "too small for"),
        ([*PRIVATE, *DISTRIBUTED, "privacy.noise_multiplier=1e-7"], "too little for a discrete Gaussian"),
        ([*PRIVATE, "privacy.clip_quantile=0.5", "privacy.count_noise=0.2"], "privacy.count_noise (0.2)"),
        ([*POISSON, "validation.source=clients"], "selection.policy=poisson draws cohorts of varying size"),
    ],
)
def test_what_is_wrong_is_one_line(settings, message, fast, capsys):
    rounds = [] if any(one.startswith("rounds=") for one in settings) else ["rounds=1"]
    assert main([*fast, *rounds, *settings]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_missing_package_is_one_line(fast, capsys, monkeypatch):
    monkeypatch.setattr(accounting.importlib.util, "find_spec", lambda name: None)
    assert main([*fast, *PRIVATE, "rounds=1"]) == 2
    said = capsys.readouterr().err
    assert "needs the package dp-accounting; pip install" in said and said.count("\n") == 1


def test_plain_runs_have_no_epsilon_and_their_digest_ignores_it(fast, tmp_path):
    assert main([*fast, "rounds=1"]) == 0
    assert np.isnan(columns(tmp_path / "results/fedavg_seed1.h5")["epsilon"]).all()
    assert MODEL not in differential_privacy.sums(Config())


def test_random_features_train_a_head_of_few_weights(fast):
    simulation = Simulation(overrides=[*fast, *PRIVATE, "model.name=random_features", "rounds=1"])
    before = simulation.weights.clone()
    list(simulation)
    assert len(before) == 256 * 10 + 10 and (simulation.weights != before).any()
    built = [models.build(Model(name="random_features"), 10, (3, 32, 32), seed) for seed in (1, 2)]
    assert torch.equal(built[0].filters[0], built[1].filters[0])
    assert not torch.equal(built[0].head.weight, built[1].head.weight)


def test_the_figure_has_a_point_for_each_epsilon(tiny, tmp_path):
    overrides = [one for one in tiny if not one.startswith(("method", "output"))]
    for name, extra in (
        ("private", [*PRIVATE, "sweep.privacy.noise_multiplier=[0.5,2]", "sweep.seed=[1,2]"]),
        ("plain", []),
    ):
        assert main([*overrides, "method=fedavg", *extra, f"output={tmp_path}/{name}", "--quiet"]) == 0
    assert main([*overrides, "method=aigc", "label_sharing.refusal_rate=1", f"output={tmp_path}/aigc"]) == 0
    paths = sorted(tmp_path.rglob("*_seed*.h5"))
    found = [privacy_figure.outcome(path)[:2] for path in paths]
    assert len(found) == 6 and found[0] == ("AIGC-only", 0.0) and found[1] == ("FedAvg", np.inf)
    assert all(0 < epsilon < np.inf for _, epsilon in found[2:])
    axes = privacy_figure.privacy(paths).axes[0]
    assert [line.get_linestyle() for line in axes.get_lines() if len(line.get_xdata()) == 2][-2:] == [
        "--",
        ":",
    ]
    assert main(["plot", *map(str, paths), "--figure", "privacy", "-o", f"{tmp_path}/a.png"]) == 0
    with pytest.raises(UserError, match="has no differential privacy"):
        privacy_figure.privacy(paths[:2])
