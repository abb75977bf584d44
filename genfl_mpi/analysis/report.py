"""Write one self-contained HTML file about runs: configuration, environment, results."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from genfl_mpi import __version__
from genfl_mpi.analysis import charts, claims, figures, ledger, summary, tables
from genfl_mpi.analysis.run_groups import Runs
from genfl_mpi.config.composition import METHOD_TITLES
from genfl_mpi.config.differences import chosen_settings, flat_settings
from genfl_mpi.results import reader
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError

# Title of each figure, with {of} for the run if it shows one of several; and an addition for several seeds.
TITLES = {
    "accuracy": ("Test accuracy over rounds", "; mean and standard deviation over seeds"),
    "loss": ("Test loss over rounds", "; mean and standard deviation over seeds"),
    "classes": ("Test accuracy of each class", "; mean over seeds"),
    "partition": ("Samples of each class at each client{of}", ""),
    "images": ("Generated and real images of each class{of}", ""),
    "heterogeneity": ("Client heterogeneity in the probed rounds", "; mean over seeds"),
    "costs": (
        "Seconds per phase, mean over rounds; phases on different ranks overlap. "
        "Size of the two messages per round",
        "; thin lines: standard deviation over seeds",
    ),
    "timeline": (
        "Last round{of} on all ranks; numbers are clients. write: rank 0 stores the previous round; "
        "aggregate: it applies Eq. (1) while the others wait",
        "",
    ),
}
KINDS = {
    "Learning": ("loss", "classes"),
    "Data and images": ("partition", "images", "heterogeneity"),
    "Time and messages": ("costs", "timeline"),
}  # of figures; the accuracy stands at the top
PAPER_DATA = {"cifar10", "cifar100"}  # on which the paper's claims are made
MAX_ROWS = 10  # of the table of rounds


def write(paths: Sequence[Path], out: str | Path) -> None:
    """Write the report of results files into the HTML file `out`. Raises UserError."""
    groups, _ = summary.groups(paths)  # raises for a run without a finished round
    runs = sorted(
        (_run(path) | {"settings": one} for path, one in zip(paths, tables.distinguish_runs(paths))),
        key=lambda run: summary.METHOD_ORDER[run["method"]],
    )
    flat = [flat_settings(run["config"]) for run in runs]
    common = {key: value for key, value in flat[0].items() if all(one.get(key) == value for one in flat)}
    figures_by_name = {figure["name"]: figure for figure in _figures(paths, groups)}
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(files("genfl_mpi").joinpath("analysis/report.html").read_text())
    text = page.render(
        title=runs[0]["name"] if len(runs) == 1 else Path(paths[0]).parent.name or "runs",
        version=__version__,
        experiment=_experiment(flat),
        runs=runs,
        varied=[key for key in runs[0]["settings"] if key not in ("run", "method", "seed")],
        groups=(compared_groups := _groups(groups)),
        generating=any(group["generating"] for group in compared_groups),
        from_bank=any(group["generating"] and group["generating"][1] for group in compared_groups),
        few_pairs=any(0 < one["pairs"] < claims.MIN_SEEDS for one in compared_groups),
        compared=_list_compared(runs, groups),
        several=summary.has_several_seeds(groups),
        lengths_differ=len({one["rounds"] for one in compared_groups}) > 1,
        min_seeds=claims.MIN_SEEDS,
        rounds=_rounds(groups),
        max_rows=MAX_ROWS,
        lead=figures_by_name.pop("accuracy"),
        kinds={
            kind: [figures_by_name[name] for name in names if name in figures_by_name]
            for kind, names in KINDS.items()
        },
        plotly=charts.library(),
        dark_colours=plotting.DARK_COLOURS,
        chosen={key: value for key, value in chosen_settings(runs[0]["config"]).items() if key in common},
        resolved=yaml.safe_dump(runs[0]["config"], sort_keys=False),
        environments=_environments(runs),
        ledger=_ledger(paths) if _are_the_papers(flat) else None,
    )
    try:
        Path(out).write_text(text)
    except OSError as error:
        raise UserError(f"{out}: the report cannot be written: {error.strerror}") from None


def _are_the_papers(flat: Sequence[dict[str, Any]]) -> bool:
    """Return whether these are runs that the paper's claims are about. flat: settings of each."""
    return {one["data.name"] for one in flat} <= PAPER_DATA and len(
        {(one["method"], one["partition.alpha"]) for one in flat}
    ) > 1


def _experiment(flat: Sequence[dict[str, Any]]) -> str:
    """Describe the runs in one line. flat: settings of each."""

    def values(key: str) -> str:
        return ", ".join(f"{value:g}" for value in sorted({one[key] for one in flat}))

    schemes = {one["partition.scheme"] for one in flat}
    partition = (
        f"Dirichlet({values('partition.alpha')})" if schemes == {"dirichlet"} else ", ".join(sorted(schemes))
    )
    used = {one["method"] for one in flat}
    methods = ", ".join(title for name, title in METHOD_TITLES.items() if name in used)
    seeds = values("seed")
    return (
        f"{', '.join(sorted({summary.data_name(one) for one in flat}))}: {values('clients')} clients, "
        f"{values('cohort')} in each round, {partition}; {values('rounds')} rounds; {methods}; "
        f"seed{'s' if ',' in seeds else ''} {seeds}."
    )


def _run(path: Path) -> dict[str, Any]:
    """Return what the report shows of one run."""
    with reader.open_results(path) as file, reader.report_damage(path):
        config, rounds = (
            reader.read_config(file),
            reader.read_columns(file, "rounds", ("accuracy", "images", "round_seconds")),
        )
        accuracy = 100 * rounds["accuracy"]
        return {
            "name": Path(path).stem,
            "config": config,
            "method": METHOD_TITLES[config["method"]],
            "rounds": len(accuracy),
            "finished": reader.is_finished(file),
            "origin": file["config"].attrs.get("origin", ""),
            "copy_of": file["config"].attrs.get("copy_of", ""),
            "environment": dict(file["environment"].attrs),
            "final": summary.last_evaluated(accuracy),
            "best": np.max(accuracy, initial=-np.inf, where=np.isfinite(accuracy)),
            "images": int(rounds["images"][-1]),
            "seconds": rounds["round_seconds"].sum(),
            "digest": reader.digests(path)[1],
        }


def _list_compared(runs: Sequence[dict[str, Any]], groups: Sequence[summary.Group]) -> list[str]:
    """Return what the groups of runs differ in: method, and settings."""
    if len(groups) < 2:
        return []
    varied = summary.list_varied([run["config"] for run in runs])
    return [*(["method"] if len({run["method"] for run in runs}) > 1 else []), *varied]


def _groups(groups: Sequence[summary.Group]) -> list[dict[str, Any]]:
    """Return what the report shows of groups of runs; each is compared with the first of its panel."""
    first: dict[str, summary.Group] = {}
    return [_group(group, first.setdefault(group.panel, group)) for group in groups]


def _group(group: summary.Group, reference: summary.Group) -> dict[str, Any]:
    """Return what the report shows of a group of runs. reference: the group that it is compared with."""
    final, best, seconds = group.outcome()
    ours, theirs = group.final_of_seed(), reference.final_of_seed()
    differences = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    compared = group is not reference and len(differences)
    return {
        "method": group.method,
        "colour": plotting.COLOURS[group.method],
        "settings": ", ".join(filter(None, (group.panel, group.settings))),
        "reference": ", ".join(filter(None, (reference.method, reference.settings))),
        "difference": differences.mean() if compared else None,
        "interval": claims.interval(differences) if compared and len(differences) > 1 else None,
        "pairs": len(differences) if compared else 0,
        "final": final.mean(),
        "deviation": final.std(ddof=1) if len(final) > 1 else None,
        "mean": 100 * group.column("accuracy")[:, group.evaluated()].mean(),
        "best": best,
        "seconds": seconds,
        "generating": group.generating() if group.column("images").any() else None,
        "seeds": len(final),
        "rounds": group.column("round").shape[1],
    }


def _rounds(groups: Sequence[summary.Group]) -> Iterator[tuple[int, list[tuple[float, float | None]]]]:
    """Yield (round, [(mean accuracy, deviation over seeds or None) per group]), up to MAX_ROWS rows.

    Of rounds in which all groups were evaluated.
    """
    common = 1 + np.array(
        sorted(set.intersection(*(set(group.evaluated().tolist()) for group in groups))), int
    )
    rows = min(MAX_ROWS, len(common))
    for round in common[np.unique(np.linspace(0, len(common) - 1, rows).round().astype(int))].tolist():
        values = [100 * group.column("accuracy")[:, round - 1] for group in groups]
        yield round, [(one.mean(), one.std(ddof=1) if len(one) > 1 else None) for one in values]


def _figures(paths: Sequence[Path], groups: Sequence[summary.Group]) -> Iterator[dict[str, Any]]:
    """Yield every figure that the runs support: its title, on light and on dark background, and as charts."""
    for name, (title, of_seeds) in TITLES.items():
        try:
            light, shown = figures.draw(name, paths)
            with plotting.on_dark():
                dark = plotting.svg(figures.draw(name, paths)[0])
        except UserError:  # for example, no images
            continue
        title = title.format(
            of=f" of {Path(shown[0]).stem}" if len(paths) > 1 and len(shown) == 1 else ""
        ) + (of_seeds if summary.has_several_seeds(groups) else "")
        if name in ("accuracy", "loss") and any(group.shorter_runs("round") for group in groups):
            title += "; thin lines: runs with fewer rounds"
        yield {
            "name": name,
            "title": f"{title}.",
            "light": _embedded(plotting.svg(light)),
            "dark": _embedded(dark),
            "charts": (described := charts.describe(name, groups)),
            "panels": max(1, len(described)),
        }


def _embedded(svg: bytes) -> str:
    """Return an SVG image as a data URL."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _environments(runs: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield (name, {value: number of runs}) of each entry of /environment."""
    for key in runs[0]["environment"]:
        values = [str(run["environment"].get(key, "")) for run in runs]
        if key == "started" and len(set(values)) > 1:
            values = [f"{min(values)} to {max(values)}"] * len(values)
        yield key.replace("_", " "), {value: values.count(value) for value in dict.fromkeys(values)}


def _ledger(paths: Sequence[Path]) -> dict[str, Any]:
    """Return all claims with verdicts and missing runs, and a note; or why no claim can be tested."""
    try:
        runs = Runs(paths)
    except UserError as error:
        return {"note": str(error), "claims": [], "shortage": ""}
    ledger_of_runs = claims.ledger(runs)
    judged = [
        (
            claim,
            [(row, ledger.effect(row), *row.verdict) for row in rows],
            word,
            ledger.name_verdict(rows, word),
            ledger.lacking(claim, rows) if claim.lacks(rows) else "",
        )
        for claim, rows, word in ledger_of_runs
    ]
    short = claims.shortage(row for _, rows, _ in ledger_of_runs for row in rows)
    return {"note": claims.note(runs), "claims": judged, "shortage": short}
