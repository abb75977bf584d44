"""The ledger: what results files say of the paper's claims, and of the controls without which a gain proves little.

The statistics, their thresholds and the fewest rounds and seeds stand here, and stood here before the runs that they judge.
A verdict is drawn from paired seeds: the methods of a pair had the same partition, cohorts and batches.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from genfl_mpi.data import datasets
from genfl_mpi.generation import image_flops
from genfl_mpi.learning import flops, models
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

FEWEST_SEEDS = 6  # of five, all point one way by chance once in 16 times, which is more than 5 %
FEWEST_ROUNDS = 20
LEVEL = 0.95
LAST = 5  # rounds whose mean is tested where the paper says final accuracy; curves are smoothed over as many
AT_THE_END = f"accuracy of the last {LAST} rounds"
EARLY = 0.25  # of the rounds
NO_FASTER = 1.0  # percentage points: a lead that is no faster convergence
NEAR_ORTHOGONAL = 80  # degrees
MOST = 0.9  # of the cohorts
FEW_CLASSES, MANY_CLASSES = 10, 100


@dataclass(frozen=True)
class Row:
    """A statistic in one setting: values float64 (seeds,), one for each pair. The claim wants their mean above `threshold`.

    rounds: of the runs; 0 where a single value that has no chance in it decides.
    """

    setting: str
    statistic: str
    values: np.ndarray
    rounds: int
    threshold: float = 0.0

    @cached_property
    def interval(self):
        return interval(self.values)

    @cached_property
    def verdict(self):
        """(word, what an undecided one would need)."""
        if not self.rounds:
            return ("supported" if self.values[0] > self.threshold else "refuted"), ""
        if self.rounds < FEWEST_ROUNDS:
            return "undecided", f"{FEWEST_ROUNDS} rounds"
        if len(self.values) < FEWEST_SEEDS:
            return "undecided", f"{FEWEST_SEEDS} seeds"
        low, high = self.interval
        if low > self.threshold:
            return "supported", ""
        if high < self.threshold:
            return "refuted", ""
        return "undecided", seeds_needed(self.values - self.threshold)


@dataclass(frozen=True)
class Claim:
    """name: C1 to C10 as the paper makes them, K1 and K2 for the controls. rows: a function (Runs) -> list of `Row`; needs:
    what must have run for all of them; parts: how many statistics the claim has, each of which must be there to support it."""

    name: str
    statement: str
    needs: str
    rows: Callable
    parts: int = 1

    def lacks(self, rows):
        """Whether a part of the claim has no row."""
        return len({row.statistic for row in rows}) < self.parts


def verdict(claim, rows):
    """Of a claim that is to hold in every setting; skipped if the runs have nothing to say of it."""
    if not rows:
        return "skipped"
    words = {row.verdict[0] for row in rows}
    return (
        "refuted"
        if "refuted" in words
        else "supported"
        if words == {"supported"} and not claim.lacks(rows)
        else "undecided"
    )


def interval(values):
    """A bootstrap interval, (low, high), for the mean of float64 (n,): percentiles of resampled means, at the level that
    Student's t asks of so few values (the expanded percentile interval: Hesterberg 2015, section 4.2). NaN for one value."""
    n = len(values)
    if n < 2 or np.ptp(values) == 0:
        return (values[0], values[0]) if n > 1 else (np.nan, np.nan)
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf((1 + LEVEL) / 2, n - 1))
    return tuple(
        stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=1 - 2 * tail,
            n_resamples=99_999,
            batch=9_999,
            method="percentile",
            rng=streams.generator(0, "bootstrap"),
        ).confidence_interval
    )


def seeds_needed(differences):
    """How many seeds would tell a difference as large and as scattered as that of float64 (n,) from zero."""
    mean, deviation = abs(differences.mean()), differences.std(ddof=1)
    for n in range(len(differences) + 1, 1001):
        if stats.t.ppf((1 + LEVEL) / 2, n - 1) * deviation / np.sqrt(n) < mean:
            return f"about {n} seeds"
    return "more than 1,000 seeds"


# Measures of a run.


def final(run):
    """Mean accuracy of the last rounds, in percent."""
    return run.accuracy[-LAST:].mean()


def early(run):
    """Mean accuracy of the early rounds, in percent."""
    return run.accuracy[: max(1, round(EARLY * len(run.accuracy)))].mean()


def smoothed(run):
    """The running mean of the last rounds' accuracy, float64 (rounds,); at the beginning, of as many as there are."""
    return np.array(
        [run.accuracy[max(0, end - LAST) : end].mean() for end in range(1, len(run.accuracy) + 1)]
    )


def rounds_to(run, target):
    """The first round whose smoothed accuracy reaches `target`; one more than there are if none does."""
    reached = np.flatnonzero(smoothed(run) >= target)
    return reached[0] + 1 if len(reached) else len(run.accuracy) + 1


def saturation(run):
    """The share of its rounds after which a run has 95 % of its accuracy in the last ones."""
    return rounds_to(run, 0.95 * smoothed(run)[-1]) / len(run.accuracy)


def speed_up(fedavg, genfl):
    """log2 of how many times fewer rounds genfl needs to 0.9 times FedAvg's accuracy in the last ones."""
    target = 0.9 * smoothed(fedavg)[-1]
    return np.log2(rounds_to(fedavg, target) / rounds_to(genfl, target))


def cosine(run):
    """Mean over rounds of the mean cosine between two clients' updates."""
    return np.nanmean(run.update_cosine)


def covering(run):
    """The share of the rounds whose cohort holds every label."""
    return np.mean([(run.label_histograms[cohort].sum(0) > 0).all() for cohort in run.cohorts])


# Rows of the ledger.


def differences(runs, one, other, measure, what, threshold=0.0, settings=None):
    """measure(one) - measure(other), in every setting where both methods ran."""
    name = f"{what}, {one} - {other}"
    return _rows(runs, name, (one, other), lambda a, b: measure(a) - measure(b), threshold, settings)


def over_alphas(runs, methods, measure, what, sign=1):
    """The change of measure(*runs of methods) from one alpha to the next larger one; sign -1: to the next smaller one."""
    rows = []
    for small, large in runs.neighbours():
        before, after = runs.of(small, *methods), runs.of(large, *methods)
        values = [sign * (measure(*after[seed]) - measure(*before[seed])) for seed in before if seed in after]
        if values:
            here, there = (small, large) if sign > 0 else (large, small)
            rows.append(
                Row(
                    f"{small.data} α {here.alpha:g} to {there.alpha:g}",
                    what,
                    np.array(values),
                    runs.rounds[small.data],
                )
            )
    return rows


def _rows(runs, what, methods, measure, threshold=0.0, settings=None):
    rows = []
    for setting in runs.settings() if settings is None else settings:
        values = [measure(*found) for found in runs.of(setting, *methods).values()]
        if values:
            rows.append(Row(str(setting), what, np.array(values), runs.rounds[setting.data], threshold))
    return rows


def _with_classes(runs, fewest, most):
    """The settings of data sets with so many classes."""
    return sorted({run.setting for run in runs if fewest <= run.label_histograms.shape[1] <= most})


def _small_alphas(runs):
    """The smallest alpha of each data set."""
    smallest = {}
    for setting in runs.settings():
        smallest.setdefault(setting.data, setting)
    return list(smallest.values())


def best(runs):
    return [
        row for other in ("fedavg", "aigc") for row in differences(runs, "genfl", other, final, AT_THE_END)
    ]


def worst(runs):
    return [row for one in ("fedavg", "genfl") for row in differences(runs, one, "aigc", final, AT_THE_END)]


def early_lead(runs):
    many, few = _with_classes(runs, MANY_CLASSES, np.inf), _with_classes(runs, 0, FEW_CLASSES)
    return [
        *differences(runs, "aigc", "fedavg", early, "early accuracy", settings=many),
        *differences(runs, "fedavg", "aigc", early, "early accuracy", -NO_FASTER, settings=few),
    ]


def coverage(runs):
    return [
        *_rows(
            runs,
            "cohorts with every label, share",
            ("fedavg",),
            covering,
            MOST,
            _with_classes(runs, 0, FEW_CLASSES),
        ),
        *_rows(
            runs,
            "cohorts that lack a label, share",
            ("fedavg",),
            lambda run: 1 - covering(run),
            MOST,
            _with_classes(runs, MANY_CLASSES, np.inf),
        ),
    ]


def orthogonality(runs):
    limit = np.cos(np.deg2rad(NEAR_ORTHOGONAL))
    return [
        *_rows(
            runs,
            f"cos {NEAR_ORTHOGONAL}° - cosine of updates",
            ("fedavg",),
            lambda run: limit - cosine(run),
            0.0,
            _small_alphas(runs),
        ),
        *over_alphas(runs, ("fedavg",), cosine, "cosine of updates, its rise"),
    ]


def costs(runs):
    """For each data set, from its settings alone: what it takes a client to make its share of a round's images, as a multiple of
    its own training (on one device, energy goes with the operations); and what a round's images weigh, as a multiple of the
    weights that it is sent."""
    rows = []
    for run in {run.setting.data: run for run in runs if run.method == "genfl"}.values():
        config = run.resolved()
        about, settings = datasets.describe(config.data), config.generation
        classes, shape = len(about.classes), about.shape
        images = settings.per_round * (classes if settings.count == "class" else 1)
        samples = run.label_histograms.sum() / config.clients
        training = (
            samples
            * config.training.epochs
            * flops.of_training(models.build(config.model, classes, shape, 0), shape)
        )
        generators = {"Stable Diffusion v1.5": image_flops.of_stable_diffusion(settings)}
        with suppress(UserError):  # where the run's own checkpoint is not at hand
            generators |= {f"checkpoint {settings.checkpoint}": image_flops.of_configured(settings)}
        rows += [
            Row(
                f"{run.setting.data}, {name}",
                "energy to generate at a client / to train",
                np.array([images / config.cohort * one.image / training]),
                0,
                1.0,
            )
            for name, one in generators.items()
        ]
        rows += [
            Row(
                f"{run.setting.data}, {name}",
                "bytes of the images / of the weights",
                np.array([images * np.prod(size) / (4 * run.weights)]),
                0,
                1.0,
            )
            for name, size in (
                (f"images {shape[1]} x {shape[2]}", shape),
                ("images 512 x 512", (3, 512, 512)),
            )
        ]
    return sorted(rows, key=lambda row: row.statistic, reverse=True)


CLAIMS = (
    Claim("C1", "GenFL has the best accuracy in every setting", "genfl, fedavg and aigc", best, 2),
    Claim("C2", "AIGC-only has the worst final accuracy", "genfl, fedavg and aigc", worst, 2),
    Claim(
        "C3",
        "FedAvg improves with alpha",
        "fedavg at two alphas",
        lambda runs: over_alphas(runs, ("fedavg",), final, f"{AT_THE_END} of fedavg, its rise"),
    ),
    Claim(
        "C4",
        "GenFL's speed-up over FedAvg is larger at small alpha",
        "fedavg and genfl at two alphas",
        lambda runs: over_alphas(runs, ("fedavg", "genfl"), speed_up, "log2 of the speed-up, its rise", -1),
    ),
    Claim(
        "C5",
        "AIGC-only saturates early",
        "fedavg and aigc",
        lambda runs: differences(
            runs, "fedavg", "aigc", saturation, f"share of the rounds until 95 % of the last {LAST}"
        ),
    ),
    Claim(
        "C6",
        "FedAvg's final accuracy exceeds AIGC-only's",
        "fedavg and aigc",
        lambda runs: differences(runs, "fedavg", "aigc", final, AT_THE_END),
    ),
    Claim(
        "C7",
        "With many classes AIGC-only is faster than FedAvg in early rounds, with few it is not",
        "fedavg and aigc, on data sets of few and of many classes",
        early_lead,
        2,
    ),
    Claim(
        "C8",
        "With few classes a cohort holds all labels, with many it does not",
        "fedavg, on data sets of few and of many classes",
        coverage,
        2,
    ),
    Claim(
        "C9",
        "Under label skew the clients' updates are nearly orthogonal",
        "fedavg at two alphas",
        orthogonality,
        2,
    ),
    Claim(
        "C10",
        "Generating at clients costs too much energy, sending generated data too much bandwidth",
        "genfl",
        costs,
        2,
    ),
    Claim(
        "K1",
        "Control: GenFL ends above the same with the public pool in place of images",
        "genfl and pool",
        lambda runs: differences(runs, "genfl", "pool", final, AT_THE_END),
    ),
    Claim(
        "K2",
        "Control: GenFL ends above FedAvg with as many more local steps",
        "genfl and matched",
        lambda runs: differences(runs, "genfl", "matched", final, AT_THE_END),
    ),
)


def ledger(runs):
    """The claims judged: a list of (claim, rows, word)."""
    return [
        (claim, rows, verdict(claim, rows)) for claim, rows in ((claim, claim.rows(runs)) for claim in CLAIMS)
    ]


def note(runs):
    """What the figures mean, and of which runs they are."""
    left_out = f" Left out, because not finished: {', '.join(runs.left_out)}." if runs.left_out else ""
    counts = ", ".join(
        f"{sum(run.setting == setting for run in runs)} of {setting}" for setting in runs.settings()
    )
    return (
        f"{len(list(runs))} runs: {counts}.{left_out} An effect is the mean over paired seeds, with a {100 * LEVEL:.0f} % bootstrap interval (percentiles of "
        f"resampled means, widened for few seeds as Student's t is). A row is supported where the interval lies above its threshold, refuted where it lies "
        f"below, and undecided between, with fewer than {FEWEST_SEEDS} seeds or with fewer than {FEWEST_ROUNDS} rounds; a claim is supported where all its "
        f"rows are, refuted where one is, and skipped where these runs give it no row. Accuracies are in percentage points; where the paper says final "
        f"accuracy, the mean of the last {LAST} rounds is tested; early: mean of the first {100 * EARLY:.0f} %; curves are smoothed over {LAST} rounds. A "
        f"speed-up is in rounds to 0.9 times FedAvg's accuracy of the last {LAST}, a run that never gets there taking one round more than it has. Rows "
        "without seeds are computed from models and messages, without chance."
    )
