"""One HTML file that says what runs are, on what they ran and what came of them; it needs no network and nothing beside it."""

import base64
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
import yaml

from genfl_mpi import __version__
from genfl_mpi.analysis import claims, figures, ledger, summary, tables
from genfl_mpi.analysis.run_groups import Runs
from genfl_mpi.config.loading import decided, settings_of
from genfl_mpi.config.settings import METHOD_TITLES
from genfl_mpi.results import reader
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError

# Of each figure, what it shows, {of} which run if of one alone; and, where there are several seeds, what becomes of them.
TITLES = {
    "accuracy": ("Test accuracy against rounds", ": mean over seeds, in a band of a standard deviation"),
    "loss": ("Test loss against rounds", ": mean over seeds, in a band of a standard deviation"),
    "classes": ("Test accuracy of each class", ", mean over seeds"),
    "costs": (
        "Seconds of each phase, mean over rounds; phases of different ranks go on at the same time. Size of the two messages of a round",
        "; the thin lines are the standard deviation over seeds",
    ),
    "heterogeneity": ("How the clients differ, in the rounds that were probed", ": mean over seeds"),
    "partition": ("Samples of each class that each client holds{of}", ""),
    "timeline": (
        "What each rank did in the last round{of}; the numbers are clients. Rank 0 first writes what the round before came to; "
        "aggregate: it applies Eq. (1), and the others wait",
        "",
    ),
    "images": ("Generated images of each class{of}, and real ones", ""),
}
MOST_ROWS = 10  # of the table of rounds


def write(paths, out):
    """The report of results files, into the HTML file `out`. Raises UserError."""
    groups, _ = summary.groups(paths)  # complains of a run without a finished round
    runs = [_run(path) | {"told": told} for path, told in zip(paths, tables.varied(paths))]
    settings = [settings_of(run["config"]) for run in runs]
    common = {
        key: value for key, value in settings[0].items() if all(one.get(key) == value for one in settings)
    }
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(files("genfl_mpi").joinpath("analysis/report.html").read_text())
    text = page.render(
        title=runs[0]["name"] if len(runs) == 1 else Path(paths[0]).parent.name or "runs",
        version=__version__,
        runs=runs,
        varied=[key for key in runs[0]["told"] if key not in ("run", "method", "seed")],
        groups=[_group(group) for group in groups],
        several=summary.several(groups),
        rounds=_rounds(groups),
        figures=list(_figures(paths, groups)),
        chosen={key: value for key, value in decided(runs[0]["config"]).items() if key in common},
        resolved=yaml.safe_dump(runs[0]["config"], sort_keys=False),
        environments=_environments(runs),
        ledger=_ledger(paths)
        if len({(one["method"], one["partition.alpha"]) for one in settings}) > 1
        else None,
    )
    try:
        Path(out).write_text(text)
    except OSError as error:
        raise UserError(f"{out}: the report cannot be written: {error.strerror}") from None


def _run(path):
    """What is said of one run."""
    with reader.open_results(path) as file, reader.damage(path):
        config, rounds = (
            reader.config_of(file),
            reader.columns_of(file, "rounds", ("accuracy", "images", "round_seconds")),
        )
        accuracy = 100 * rounds["accuracy"]
        return {
            "name": Path(path).stem,
            "config": config,
            "method": METHOD_TITLES[config["method"]],
            "rounds": len(accuracy),
            "finished": reader.is_finished(file),
            "origin": file["config"].attrs.get("origin", ""),
            "environment": dict(file["environment"].attrs),
            "final": accuracy[-1],
            "best": accuracy.max(),
            "images": int(rounds["images"][-1]),
            "seconds": rounds["round_seconds"].sum(),
            "digest": reader.digests(path)[1],
        }


def _group(group):
    final, best, seconds = group.outcome()
    return {
        "method": group.method,
        "colour": plotting.COLOURS[group.method],
        "settings": ", ".join(filter(None, (group.panel, group.settings))),
        "final": final.mean(),
        "deviation": final.std(ddof=1) if len(final) > 1 else None,
        "mean": 100 * group.of("accuracy").mean(),
        "best": best,
        "seconds": seconds,
        "seeds": len(final),
    }


def _rounds(groups):
    """Rows of the mean accuracy of each group at some of the rounds, with their deviations over seeds."""
    last = min(group.of("accuracy").shape[1] for group in groups)
    for round in np.unique(np.linspace(1, last, min(MOST_ROWS, last)).round().astype(int)):
        values = [100 * group.of("accuracy")[:, round - 1] for group in groups]
        yield round, [(one.mean(), one.std(ddof=1) if len(one) > 1 else None) for one in values]


def _figures(paths, groups):
    """Every figure that the runs have, on light and on dark ground, with what is drawn."""
    for name, (title, of_seeds) in TITLES.items():
        try:
            light, shown = figures.draw(name, paths)
            with plotting.on_dark():
                dark, _ = figures.draw(name, paths)
                dark = plotting.svg(dark)
        except UserError:  # no images, say
            continue
        title = title.format(
            of=f" of {Path(shown[0]).stem}" if len(paths) > 1 and len(shown) == 1 else ""
        ) + (of_seeds if summary.several(groups) else "")
        if name in ("accuracy", "loss") and any(group.behind("round") for group in groups):
            title += "; thin lines: runs with fewer rounds"
        yield {
            "name": name,
            "title": f"{title}.",
            "light": _embedded(plotting.svg(light)),
            "dark": _embedded(dark),
        }


def _embedded(svg):
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _environments(runs):
    """(what, {value: how many runs have it}) of each entry of /environment."""
    for key in runs[0]["environment"]:
        values = [str(run["environment"].get(key, "")) for run in runs]
        if key == "started" and len(set(values)) > 1:
            values = [f"{min(values)} to {max(values)}"] * len(values)
        yield key.replace("_", " "), {value: values.count(value) for value in dict.fromkeys(values)}


def _ledger(paths):
    """All claims with their verdicts, and what those need of which the runs say too little; or why there are none."""
    try:
        runs = Runs(paths)
    except UserError as error:
        return {"why": str(error), "claims": []}
    judged = [
        (
            claim,
            [(row, ledger.effect(row), *row.verdict) for row in rows],
            word,
            ledger.lacking(claim, rows) if claim.lacks(rows) else "",
        )
        for claim, rows, word in claims.ledger(runs)
    ]
    return {"why": claims.note(runs), "claims": judged}
