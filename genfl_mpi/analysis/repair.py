"""Draw what images repair: accuracy on labels that a cohort lacks, and gains over FedAvg."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from genfl_mpi.analysis.claims import LAST_ROUNDS
from genfl_mpi.analysis.summary import METHOD_ORDER, distinguish
from genfl_mpi.config.composition import METHOD_TITLES
from genfl_mpi.edge.attendance import AGGREGATED
from genfl_mpi.results.reader import open_results, read_array, read_columns, read_config, report_damage
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.plotting import COLOURS, legend_below, panels, styled, tinted

RARE = 0.1  # a cohort lacks a label if it holds less than this share of an even mix


@dataclass(frozen=True)
class Run:
    """What the figures need of a results file.

    title: method and settings; kind: number of the settings among those of all runs. accuracy, images:
    float64 (rounds,), in percent, and the number of images in use. per_class: float64 (rounds, classes), in
    percent. held: int (rounds, classes), real samples of the cohort. fidelity: float64 (classes,), mean of
    the generated images of each class, NaN without.
    """

    method: str
    panel: str
    title: str
    kind: int
    seed: int
    is_baseline: bool
    accuracy: np.ndarray
    per_class: np.ndarray
    images: np.ndarray
    held: np.ndarray
    fidelity: np.ndarray


def read(paths: Sequence[Path]) -> list[Run]:
    """Return the runs in results files, in the order of METHOD_TITLES. Raises UserError."""
    configs, tables = [], []
    for path in paths:
        with open_results(path) as file, report_damage(path):
            configs.append(read_config(file))
            rounds = read_columns(file, "rounds", ["accuracy", "accuracy_per_class", "images_used"])
            clients = read_columns(file, "clients", ["round", "client", "status"])
            generated = read_columns(file, "generated", ["label", "fidelity"])
            histograms = read_array(file, "partition/label_histograms")
        aggregated = clients["status"] == AGGREGATED
        held = np.zeros((len(rounds["accuracy"]), histograms.shape[1]))
        np.add.at(held, clients["round"][aggregated] - 1, histograms[clients["client"][aggregated]])
        classes = range(histograms.shape[1])
        fidelity = [_mean(generated["fidelity"][generated["label"] == label]) for label in classes]
        tables.append((rounds, held, np.array(fidelity)))
    names, _ = distinguish(configs)
    kinds = list(dict.fromkeys(settings for _, settings in names))
    runs = [
        Run(
            config["method"],
            panel,
            ", ".join(filter(None, (METHOD_TITLES[config["method"]], settings))),
            kinds.index(settings),
            config["seed"],
            config["method"] == config["algorithm"]["name"] == "fedavg",
            100 * rounds["accuracy"],
            100 * rounds["accuracy_per_class"],
            rounds["images_used"],
            held,
            fidelity,
        )
        for config, (panel, settings), (rounds, held, fidelity) in zip(configs, names, tables)
    ]
    return sorted(runs, key=lambda run: METHOD_ORDER[METHOD_TITLES[run.method]])


def by_holding(per_class: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean accuracy on labels that each round's cohort holds, and on those that it lacks.

    per_class, held: (rounds, classes), as in `Run`. NaN in rounds without such labels.
    """
    lacks = held < RARE * held.mean(1, keepdims=True)
    holds, rare = (
        np.array([_mean(row[chosen]) for row, chosen in zip(per_class, which)]) for which in (~lacks, lacks)
    )
    return holds, rare


def gains(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """Yield every run with FedAvg's run of the same panel and seed. Raises UserError if there is none."""
    found = {(run.panel, run.seed): run for run in reversed(runs) if run.is_baseline}
    pairs = [
        (run, found[run.panel, run.seed])
        for run in runs
        if not run.is_baseline and (run.panel, run.seed) in found
    ]
    if not pairs:
        raise UserError("a gain needs a run of method=fedavg and one of another method with the same seed")
    yield from pairs


@styled
def labels(paths: Sequence[Path]) -> Figure:
    """Draw the accuracy on labels that each cohort holds (solid) and lacks (dashed), mean over seeds.

    Raises UserError.
    """
    runs = [run for run in read(paths) if run.held.any()]
    if not runs:
        raise UserError(f"{paths[0]}: no clients were aggregated, so there are no cohorts whose labels count")
    figure, axes_of = _panels(runs, "round", "test accuracy (%)")
    for title in dict.fromkeys((run.panel, run.title) for run in runs):
        same = [run for run in runs if (run.panel, run.title) == title]
        axes, colour = axes_of[title[0]], _colour(same[0])
        for style, curves in zip(("-", "--"), zip(*(by_holding(run.per_class, run.held) for run in same))):
            mean = _smooth(np.array([_mean(values) for values in zip(*_equally_long(curves))]))
            name = title[1] + (", lacking" if style == "--" else "")
            axes.plot(np.arange(1, len(mean) + 1), mean, style, color=colour, label=name)
    return _finish(figure, axes_of)


@styled
def fidelity(paths: Sequence[Path]) -> Figure:
    """Draw each class's gain over FedAvg against the fidelity of its images, mean over seeds.

    Raises UserError.
    """
    pairs = [(run, base) for run, base in gains(read(paths)) if np.isfinite(run.fidelity).any()]
    if not pairs:
        raise UserError(
            f"{paths[0]}: no run knows the fidelity of its images; make one with data.public_pool and a "
            "small generation.min_fidelity, for example 1e-6"
        )
    figure, axes_of = _panels([run for run, _ in pairs], "mean fidelity of a class's images", "gain (points)")
    for title in dict.fromkeys((run.panel, run.title) for run, _ in pairs):
        same = [pair for pair in pairs if (pair[0].panel, pair[0].title) == title]
        gain = np.mean(
            [
                run.per_class[-LAST_ROUNDS:].mean(0) - base.per_class[-LAST_ROUNDS:].mean(0)
                for run, base in same
            ],
            axis=0,
        )
        x = np.mean([run.fidelity for run, _ in same], axis=0)
        axes_of[title[0]].plot(x, gain, "o", markersize=3, color=_colour(same[0][0]), label=title[1])
    return _finish(figure, axes_of)


@styled
def gain(paths: Sequence[Path]) -> Figure:
    """Draw the gain over FedAvg against the number of images, each round a point, mean over seeds.

    Raises UserError.
    """
    pairs = [(run, base) for run, base in gains(read(paths)) if run.images.any()]
    if not pairs:
        raise UserError(f"{paths[0]}: no run uses images; give one of method=genfl with FedAvg's")
    figure, axes_of = _panels([run for run, _ in pairs], "images in use", "gain (points)")
    for title in dict.fromkeys((run.panel, run.title) for run, _ in pairs):
        same = [pair for pair in pairs if (pair[0].panel, pair[0].title) == title]
        curves = _equally_long(
            [a.accuracy[: len(b.accuracy)] - b.accuracy[: len(a.accuracy)] for a, b in same]
        )
        mean = _smooth(np.mean(curves, axis=0))
        axes_of[title[0]].plot(
            same[0][0].images[: len(mean)], mean, ".-", color=_colour(same[0][0]), label=title[1]
        )
    return _finish(figure, axes_of)


def _colour(run: Run) -> str | tuple[float, ...]:
    return tinted(COLOURS[METHOD_TITLES[run.method]], run.kind)


def _panels(runs: Sequence[Run], xlabel: str, ylabel: str) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure, and its axes by the runs' panels."""
    names = list(dict.fromkeys(run.panel for run in runs))
    figure, axes = panels(len(names), 2.2, xlabel, ylabel)
    for one, name in zip(axes, names):
        one.set_title(name)
        one.grid()
    return figure, dict(zip(names, axes))


def _finish(figure: Figure, axes_of: dict[str, Axes]) -> Figure:
    handles = {
        name: handle for axes in axes_of.values() for handle, name in zip(*axes.get_legend_handles_labels())
    }
    legend_below(figure, handles.values(), handles)
    return figure


def _equally_long(curves: Sequence[np.ndarray]) -> list[np.ndarray]:
    rounds = min(map(len, curves))
    return [curve[:rounds] for curve in curves]


def _smooth(curve: np.ndarray) -> np.ndarray:
    """Return the mean of the LAST_ROUNDS values up to each, without NaN."""
    return np.array([_mean(curve[max(0, end - LAST_ROUNDS) : end]) for end in range(1, len(curve) + 1)])


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmean(values)) if len(values) else np.nan
