"""Test the paper's claims, and the controls without which a gain proves little, on results files.

Statistics, thresholds and the minimum numbers of rounds and seeds were fixed here before the runs they judge.
Verdicts use paired seeds: the methods of a pair had the same partition, cohorts and batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from genfl_mpi.data import datasets
from genfl_mpi.generation import image_flops
from genfl_mpi.learning import flops, models
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    from genfl_mpi.analysis.run_groups import Run, Runs, Setting

MIN_SEEDS = 6  # five all agree in sign by chance once in 16 times, more than 5 %
MIN_ROUNDS = 20
LEVEL = 0.95
LAST_ROUNDS = 5  # averaged where the paper says final accuracy; also the window that smooths curves
AT_THE_END = f"accuracy of the last {LAST_ROUNDS} rounds"
EARLY_SHARE = 0.25  # of the rounds
MAX_EARLY_LEAD = 1.0  # percentage points: a smaller lead does not count as faster convergence
MIN_ANGLE = 80  # degrees, between nearly orthogonal updates
MIN_COHORT_SHARE = 0.9  # of all cohorts
FEW_CLASSES, MANY_CLASSES = 10, 100


@dataclass(frozen=True)
class Row:
    """A statistic in one setting. The claim requires its mean above `threshold`.

    values: float64 (seeds,), one for each pair. rounds: of the runs; 0 if a single, deterministic value
    decides.
    """

    setting: str
    statistic: str
    values: np.ndarray
    rounds: int
    threshold: float = 0.0

    @cached_property
    def interval(self) -> tuple[float, float]:
        return interval(self.values)

    @property
    def is_computed(self) -> bool:
        """Whether the value follows from models and messages alone, not from results of the runs."""
        return not self.rounds

    @property
    def is_short(self) -> bool:
        """Whether the runs have too few rounds or seeds for any verdict."""
        return not self.is_computed and (self.rounds < MIN_ROUNDS or len(self.values) < MIN_SEEDS)

    @cached_property
    def verdict(self) -> tuple[str, str]:
        """The verdict, and how many seeds would decide an undecided one, unless it `is_short`."""
        if self.is_computed:
            return ("supported" if self.values[0] > self.threshold else "refuted"), ""
        if self.is_short:
            return "undecided", ""
        low, high = self.interval
        if low > self.threshold:
            return "supported", ""
        if high < self.threshold:
            return "refuted", ""
        return "undecided", seeds_needed(self.values - self.threshold)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper (C1 to C10), or a control (K1 to K4).

    needs: the runs that all its rows require. rows: computes them. parts: number of different statistics; the
    claim is supported only if rows of all of them exist.
    """

    name: str
    statement: str
    needs: str
    rows: Callable[[Runs], list[Row]]
    parts: int = 1

    def lacks(self, rows: list[Row]) -> bool:
        """Return whether a part of the claim has no row."""
        return len({row.statistic for row in rows}) < self.parts


def verdict(claim: Claim, rows: list[Row]) -> str:
    """Return the verdict on a claim, which must hold in every setting; skipped if the runs give no row."""
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


def shortage(rows: Iterable[Row]) -> str:
    """Return a sentence about the rounds and seeds that undecided rows lack, or an empty one."""
    measured = [row for row in rows if not row.is_computed]
    short = [row for row in measured if row.is_short]
    parts = [
        (
            counted(limit, noun),
            counted(min(found), noun)
            if len(set(found)) == 1
            else f"{min(found)} to {counted(max(found), noun)}",
        )
        for limit, noun, found in (
            (MIN_ROUNDS, "round", [row.rounds for row in short]),
            (MIN_SEEDS, "seed", [len(row.values) for row in short]),
        )
        if min(found, default=limit) < limit
    ]
    if not parts:
        return ""
    needed, present = (" and ".join(texts) for texts in zip(*parts))
    who = "these runs" if len(short) == len(measured) else "some of these runs"
    return f"A verdict needs {needed}; {who} have {present}."


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return a bootstrap interval, (low, high), for the mean of float64 (n,). NaN for one value.

    Percentiles of resampled means, at the level that Student's t requires for few values (the expanded
    percentile interval: Hesterberg 2015, section 4.2).
    """
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


def seeds_needed(differences: np.ndarray) -> str:
    """Return how many seeds would separate a mean with this spread from zero. differences: float64 (n,)."""
    mean, deviation = abs(differences.mean()), differences.std(ddof=1)
    for n in range(len(differences) + 1, 1001):
        if stats.t.ppf((1 + LEVEL) / 2, n - 1) * deviation / np.sqrt(n) < mean:
            return f"about {n} seeds"
    return "more than 1,000 seeds"


# Measures of a run.


def final(run: Run) -> float:
    """Return the mean accuracy of the last rounds, in percent."""
    return mean_of_evaluated(run.accuracy[-LAST_ROUNDS:])


def early(run: Run) -> float:
    """Return the mean accuracy of the early rounds, in percent; NaN if none of them was evaluated."""
    return mean_of_evaluated(run.accuracy[: max(1, round(EARLY_SHARE * len(run.accuracy)))])


def mean_of_evaluated(accuracy: np.ndarray) -> float:
    """Return the mean accuracy of the rounds that were evaluated; NaN if there are none."""
    known = accuracy[np.isfinite(accuracy)]
    return known.mean() if len(known) else np.nan


def smoothed(run: Run) -> np.ndarray:
    """Return the mean accuracy of the LAST_ROUNDS rounds up to each, float64 (rounds,).

    Only evaluated rounds count; NaN if a window has none.
    """
    return np.array(
        [
            mean_of_evaluated(run.accuracy[max(0, end - LAST_ROUNDS) : end])
            for end in range(1, len(run.accuracy) + 1)
        ]
    )


def rounds_to(run: Run, target: float) -> int:
    """Return the first round whose smoothed accuracy reaches `target`, or the number of rounds plus one."""
    reached = np.flatnonzero(smoothed(run) >= target)
    return reached[0] + 1 if len(reached) else len(run.accuracy) + 1


def saturation(run: Run) -> float:
    """Return the share of its rounds after which a run reaches 95 % of its final smoothed accuracy."""
    return rounds_to(run, 0.95 * smoothed(run)[-1]) / len(run.accuracy)


def speed_up(fedavg: Run, genfl: Run) -> float:
    """Return log2 of FedAvg's rounds over GenFL's to 0.9 times FedAvg's final smoothed accuracy."""
    target = 0.9 * smoothed(fedavg)[-1]
    return np.log2(rounds_to(fedavg, target) / rounds_to(genfl, target))


def cosine(run: Run) -> float:
    """Return the mean over rounds of the mean cosine between two clients' updates."""
    return np.nanmean(run.update_cosine)


def covering_share(run: Run) -> float:
    """Return the share of the rounds whose cohort holds every label."""
    return np.mean([(run.label_histograms[cohort].sum(0) > 0).all() for cohort in run.cohorts])


# Rows of the ledger.


def compare_methods(
    runs: Runs,
    one: str,
    other: str,
    measure: Callable[[Run], float],
    what: str,
    threshold: float = 0.0,
    settings: list[Setting] | None = None,
) -> list[Row]:
    """Return measure(one) - measure(other) in every setting in which both methods ran."""
    name = f"{what}, {one} - {other}"
    return _rows(runs, name, (one, other), lambda a, b: measure(a) - measure(b), threshold, settings)


def over_alphas(
    runs: Runs, methods: tuple[str, ...], measure: Callable[..., float], what: str, sign: int = 1
) -> list[Row]:
    """Return the change of measure(*runs of methods) from each alpha to the next larger one.

    sign -1: to the next smaller one.
    """
    rows = []
    for small, large in runs.neighbours():
        before, after = runs.paired_runs(small, *methods), runs.paired_runs(large, *methods)
        values = _known(
            sign * (measure(*after[seed]) - measure(*before[seed])) for seed in before if seed in after
        )
        if values:
            first, last = (small, large) if sign > 0 else (large, small)
            rows.append(
                Row(
                    f"{small.data} α {first.alpha:g} to {last.alpha:g}",
                    what,
                    np.array(values),
                    runs.rounds[small.data],
                )
            )
    return rows


def _rows(
    runs: Runs,
    what: str,
    methods: tuple[str, ...],
    measure: Callable[..., float],
    threshold: float = 0.0,
    settings: list[Setting] | None = None,
) -> list[Row]:
    rows = []
    for setting in runs.settings() if settings is None else settings:
        values = _known(measure(*found) for found in runs.paired_runs(setting, *methods).values())
        if values:
            rows.append(Row(str(setting), what, np.array(values), runs.rounds[setting.data], threshold))
    return rows


def _known(values: Iterable[float]) -> list[float]:
    """Return values without NaN, which a run has where none of the rounds that count was evaluated."""
    return [value for value in values if not np.isnan(value)]


def _settings_by_classes(runs: Runs, low: float, high: float) -> list[Setting]:
    """Return the settings of data sets with `low` to `high` classes."""
    return sorted({run.setting for run in runs if low <= run.label_histograms.shape[1] <= high})


def _smallest_alphas(runs: Runs) -> list[Setting]:
    """Return the setting of the smallest alpha of each data set."""
    smallest: dict[str, Setting] = {}
    for setting in runs.settings():
        smallest.setdefault(setting.data, setting)
    return list(smallest.values())


def best_method(runs: Runs) -> list[Row]:
    return [
        row
        for other in ("fedavg", "aigc")
        for row in compare_methods(runs, "genfl", other, final, AT_THE_END)
    ]


def worst_method(runs: Runs) -> list[Row]:
    return [
        row for one in ("fedavg", "genfl") for row in compare_methods(runs, one, "aigc", final, AT_THE_END)
    ]


def early_leads(runs: Runs) -> list[Row]:
    many, few = _settings_by_classes(runs, MANY_CLASSES, np.inf), _settings_by_classes(runs, 0, FEW_CLASSES)
    return [
        *compare_methods(runs, "aigc", "fedavg", early, "early accuracy", settings=many),
        *compare_methods(runs, "fedavg", "aigc", early, "early accuracy", -MAX_EARLY_LEAD, settings=few),
    ]


def coverage(runs: Runs) -> list[Row]:
    return [
        *_rows(
            runs,
            "share of cohorts with every label",
            ("fedavg",),
            covering_share,
            MIN_COHORT_SHARE,
            _settings_by_classes(runs, 0, FEW_CLASSES),
        ),
        *_rows(
            runs,
            "share of cohorts that lack a label",
            ("fedavg",),
            lambda run: 1 - covering_share(run),
            MIN_COHORT_SHARE,
            _settings_by_classes(runs, MANY_CLASSES, np.inf),
        ),
    ]


def orthogonality(runs: Runs) -> list[Row]:
    limit = np.cos(np.deg2rad(MIN_ANGLE))
    return [
        *_rows(
            runs,
            f"cos {MIN_ANGLE}° - cosine of updates",
            ("fedavg",),
            lambda run: limit - cosine(run),
            0.0,
            _smallest_alphas(runs),
        ),
        *over_alphas(runs, ("fedavg",), cosine, "rise of the cosine of updates"),
    ]


def costs(runs: Runs) -> list[Row]:
    """Return the relative costs of generation at clients and of sending images, for each data set.

    Computed from the settings alone: FLOPs for a client to generate its share of a round's images, as a
    multiple of its local training (on one processor, energy is proportional to FLOPs); and bytes of a round's
    images, as a multiple of the weights that a client receives.
    """
    rows: list[Row] = []
    for run in {run.setting.data: run for run in runs if run.method == "genfl"}.values():
        config = run.resolved()
        about, settings = datasets.describe(config.data), config.generation
        classes, shape = len(about.classes), about.shape
        images = settings.per_round * (classes if settings.count == "class" else 1)
        samples = run.label_histograms.sum() / config.clients
        training = (
            samples
            * config.training.epochs
            * flops.training_flops(models.build(config.model, classes, shape, 0), shape)
        )
        generators = {"Stable Diffusion v1.5": image_flops.count_stable_diffusion(settings)}
        with suppress(UserError):  # the run's checkpoint may be missing here
            generators |= {f"checkpoint {settings.checkpoint}": image_flops.count_configured(settings)}
        rows += [
            Row(
                f"{run.setting.data}, {name}",
                "energy of generation / of training at a client",
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


def list_rivals(runs: Runs) -> list[str]:
    """Return the methods among the runs that the other claims do not compare, in alphabetical order."""
    return sorted({run.method for run in runs} - {"fedavg", "genfl", "aigc", "pool", "matched"})


CLAIMS = (
    Claim("C1", "GenFL has the best accuracy in every setting", "genfl, fedavg and aigc", best_method, 2),
    Claim("C2", "AIGC-only has the worst final accuracy", "genfl, fedavg and aigc", worst_method, 2),
    Claim(
        "C3",
        "FedAvg improves with alpha",
        "fedavg at two alphas",
        lambda runs: over_alphas(runs, ("fedavg",), final, f"rise of the {AT_THE_END} of fedavg"),
    ),
    Claim(
        "C4",
        "GenFL's speed-up over FedAvg is larger at small alpha",
        "fedavg and genfl at two alphas",
        lambda runs: over_alphas(runs, ("fedavg", "genfl"), speed_up, "rise of the log2 of the speed-up", -1),
    ),
    Claim(
        "C5",
        "AIGC-only saturates early",
        "fedavg and aigc",
        lambda runs: compare_methods(
            runs,
            "fedavg",
            "aigc",
            saturation,
            "share of rounds to 95 % of final accuracy",
        ),
    ),
    Claim(
        "C6",
        "FedAvg's final accuracy exceeds AIGC-only's",
        "fedavg and aigc",
        lambda runs: compare_methods(runs, "fedavg", "aigc", final, AT_THE_END),
    ),
    Claim(
        "C7",
        "With many classes AIGC-only is faster than FedAvg in early rounds; with few it is not",
        "fedavg and aigc, on data sets with few and with many classes",
        early_leads,
        2,
    ),
    Claim(
        "C8",
        "With few classes a cohort holds all labels; with many it does not",
        "fedavg, on data sets with few and with many classes",
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
        "Generation at clients costs too much energy; sending generated data, too much bandwidth",
        "genfl",
        costs,
        2,
    ),
    Claim(
        "K1",
        "Control: GenFL ends above the same method with the public pool in place of generated images",
        "genfl and pool",
        lambda runs: compare_methods(runs, "genfl", "pool", final, AT_THE_END),
    ),
    Claim(
        "K2",
        "Control: GenFL ends above FedAvg with the same number of extra local steps",
        "genfl and matched",
        lambda runs: compare_methods(runs, "genfl", "matched", final, AT_THE_END),
    ),
    Claim(
        "K3",
        "Rivals: GenFL ends above each of them",
        "genfl and other methods, algorithms or kappa policies",
        lambda runs: [
            row
            for rival in list_rivals(runs)
            for row in compare_methods(runs, "genfl", rival, final, AT_THE_END)
        ],
    ),
    Claim(
        "K4",
        "Rivals: each of them ends above FedAvg",
        "fedavg and other methods, algorithms or kappa policies",
        lambda runs: [
            row
            for rival in list_rivals(runs)
            for row in compare_methods(runs, rival, "fedavg", final, AT_THE_END)
        ],
    ),
)


def ledger(runs: Runs) -> list[tuple[Claim, list[Row], str]]:
    """Judge all claims: a list of (claim, rows, verdict)."""
    return [
        (claim, rows, verdict(claim, rows)) for claim, rows in ((claim, claim.rows(runs)) for claim in CLAIMS)
    ]


def note(runs: Runs) -> str:
    """Explain what the numbers mean, and from which runs they are."""
    left_out = f" Skipped, because unfinished: {', '.join(runs.unfinished)}." if runs.unfinished else ""
    counts = ", ".join(
        f"{sum(run.setting == setting for run in runs)} of {setting}" for setting in runs.settings()
    )
    return (
        f"{len(list(runs))} runs: {counts}.{left_out} An effect is the mean over paired seeds, with a "
        f"{100 * LEVEL:.0f} % bootstrap interval (percentiles of resampled means, widened for few seeds "
        "like Student's t). A row is supported if the interval lies above its threshold, and refuted if it "
        f"lies below. Otherwise, or with fewer than {MIN_SEEDS} seeds or {MIN_ROUNDS} rounds, it is "
        "undecided. A claim is supported if all its rows are, refuted if one is, and skipped if these runs "
        "give it no row. A verdict by costs follows from models and messages, not from results of the runs. "
        "Accuracies are in percentage points. For final accuracy the "
        f"mean of the last {LAST_ROUNDS} rounds is tested, for early accuracy the mean of the first "
        f"{100 * EARLY_SHARE:.0f} %. Curves are smoothed over {LAST_ROUNDS} rounds. A speed-up compares the "
        f"rounds to 0.9 times FedAvg's accuracy of the last {LAST_ROUNDS} rounds; a run that never reaches "
        "it counts one round more than it has. Rounds that were not evaluated (evaluation.every) do not "
        "count."
    )
