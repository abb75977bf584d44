"""Describe figures of many runs as Plotly charts, for the report: hover for values, toggle runs."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from genfl_mpi.analysis.cost_figures import MESSAGES, present_phases
from genfl_mpi.analysis.curves import band, until_next_evaluation
from genfl_mpi.analysis.summary import Group
from genfl_mpi.util.plotting import COLOURS, LINE_STYLES, round_ticks, tinted

# title: above the panel. data, layout: Plotly's. height: pixels. views: which traces each button shows.
Chart = dict[str, Any]
DASHES = dict(zip(LINE_STYLES, ("solid", "dash", "dot", "dashdot")))
PATTERNS = "", "/", ".", "x"  # of bars, in place of line styles
ROW = 22  # pixels per class of a heat map
MIN_HEIGHT, MAX_HEIGHT = 240, 640  # pixels of a heat map


def library() -> str:
    """Return Plotly's JavaScript, as base64 of gzip: a third of its size, and the same bytes every time."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def describe(name: str, groups: Sequence[Group]) -> list[Chart]:
    """Return the charts of a figure, one per panel, or none for a figure without an interactive form."""
    draw: dict[str, Callable[[Sequence[Group]], list[Chart]]] = {
        "accuracy": lambda groups: _over_rounds(groups, "accuracy", "test accuracy (%)", 100),
        "loss": lambda groups: _over_rounds(groups, "loss", "test loss (nat)", 1),
        "classes": _classes,
        "costs": _costs,
    }
    return draw[name](groups) if name in draw else []


def _over_rounds(groups: Sequence[Group], name: str, label: str, unit: float) -> list[Chart]:
    """Return curves over the rounds: means with bands, and behind a button the single runs."""
    settings = list(dict.fromkeys(group.settings for group in groups))
    charts = []
    for panel in dict.fromkeys(group.panel for group in groups):
        means, singles = [], []
        drawn: dict[bytes, str] = {}
        for group in (group for group in groups if group.panel == panel):
            rounds, kind = group.evaluated(), settings.index(group.settings)
            curves = unit * group.column(name)[:, rounds]
            mean, about = curves.mean(0), _name(group.method, group.settings)
            line = {"color": _css(group.method, kind), "dash": DASHES[LINE_STYLES[kind % len(LINE_STYLES)]]}
            same = drawn.setdefault(mean.tobytes(), about)
            if same != about:
                line["dash"] = "dash"
                about += f" (same curve as {same})"
            x = rounds + 1
            several = len(curves) > 1
            deviation = curves.std(0, ddof=1) if several else np.zeros_like(mean)
            means.append(
                _trace(about, x, mean, line, legendgroup=about)
                | (
                    {"customdata": _rounded(deviation), "hovertemplate": "%{y:.2f} ± %{customdata:.2f}"}
                    if several
                    else {}
                )
            )
            if several:
                low, high = band(name, mean, deviation)
                means.append(
                    {
                        "x": [*x.tolist(), *x[::-1].tolist()],
                        "y": [*_rounded(high), *_rounded(low[::-1])],
                        "fill": "toself",
                        "fillcolor": line["color"],
                        "opacity": 0.15,
                        "line": {"width": 0},
                        "mode": "lines",
                        "hoverinfo": "skip",
                        "legendgroup": about,
                        "showlegend": False,
                    }
                )
            for run, title in zip(group.runs, group.names):
                values = unit * run[name].astype(np.float64)
                known = np.flatnonzero(np.isfinite(values))
                singles.append(_trace(title, known + 1, values[known], line | {"width": 1.2}))
        layout = _layout("round", label) | {"hovermode": "x unified", "hoverdistance": -1}
        layout["xaxis"] |= _mark_rounds(max(max(trace["x"], default=1) for trace in singles))
        layout["xaxis"] |= {
            "unifiedhovertitle": {"text": "round %{x}"},
            "spikecolor": "#888888",
            "spikedash": "solid",
            "spikethickness": 1,
        }
        views = {}
        if any(trace.get("fill") for trace in means):
            views = {
                "mean over seeds": [True] * len(means) + [False] * len(singles),
                "single runs": [False] * len(means) + [True] * len(singles),
            }
            means += [trace | {"visible": False} for trace in singles]
        charts.append({"title": panel, "data": means, "layout": layout, "height": 420, "views": views})
    return charts


def _classes(groups: Sequence[Group]) -> list[Chart]:
    """Return a heat map of the accuracy of each class per group."""
    charts = []
    for group in groups:
        mean = 100 * until_next_evaluation(group)
        layout = _layout("round", "class")
        layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
        layout["xaxis"] |= {"showgrid": False, **_mark_rounds(len(mean))}
        charts.append(
            {
                "title": _name(group.method, group.panel, group.settings),
                "data": [
                    {
                        "type": "heatmap",
                        "x": list(range(1, len(mean) + 1)),
                        "y": group.classes,
                        "z": [_rounded(row) for row in mean.T],
                        "zmin": 0,
                        "zmax": 100,
                        "colorscale": "Cividis",
                        "colorbar": {"title": {"text": "%"}, "thickness": 12},
                        "hovertemplate": "class %{y}, round %{x}: %{z:.1f} %<extra></extra>",
                    }
                ],
                "layout": layout,
                "height": min(MAX_HEIGHT, max(MIN_HEIGHT, 110 + ROW * len(group.classes))),
                "views": {},
            }
        )
    return charts


def _costs(groups: Sequence[Group]) -> list[Chart]:
    """Return bars of the seconds of each phase, and of the bytes of each message."""
    return [
        _bars(groups, present_phases(groups), "seconds", "seconds per round", "%{x:.4g} s"),
        _bars(groups, MESSAGES, "bytes", "bytes per round", "%{x:,} B"),
    ]


def _bars(groups: Sequence[Group], names: Sequence[str], unit: str, label: str, hover: str) -> Chart:
    """Return the means over the rounds of columns NAME_UNIT, one bar per group."""
    kinds = list(dict.fromkeys((group.panel, group.settings) for group in groups))
    data = []
    for group in groups:
        kind = kinds.index((group.panel, group.settings))
        per_run = np.array([group.column(f"{name}_{unit}").mean(1) for name in names])
        bar = {
            "type": "bar",
            "orientation": "h",
            "name": _name(group.method, group.panel, group.settings),
            "y": [name.replace("_", " ") for name in names],
            "x": _rounded(per_run.mean(1)),
            "marker": {
                "color": _css(group.method, kind),
                "pattern": {"shape": PATTERNS[kind % len(PATTERNS)]},
            },
            "hovertemplate": f"%{{y}}: {hover}",
        }
        if per_run.shape[1] > 1:
            deviations = _rounded(per_run.std(1, ddof=1))
            bar["error_x"] = {"array": deviations, "thickness": 1, "width": 2, "color": "#888888"}
        data.append(bar)
    layout = _layout(label, "") | {"barmode": "group", "hovermode": "y unified", "hoverdistance": -1}
    layout["xaxis"] |= {"rangemode": "nonnegative"}
    layout["yaxis"] |= {"autorange": "reversed"}
    height = 130 + len(names) * (16 + 10 * len(groups))
    return {"title": "", "data": data, "layout": layout, "height": height, "views": {}}


def _trace(name: str, x: np.ndarray, y: np.ndarray, line: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a curve. x: int (n,). y: float64 (n,)."""
    return {
        "name": name,
        "x": x.tolist(),
        "y": _rounded(y),
        "mode": "lines" if len(x) > 1 else "markers",
        "line": line,
        "hovertemplate": "%{y:.2f}",
        **more,
    }


def _layout(xlabel: str, ylabel: str) -> dict[str, Any]:
    """Return the layout that all charts share; the page adds colours."""
    return {
        "xaxis": {"title": {"text": xlabel}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": ylabel}, "automargin": True, "zeroline": False},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
    }


def _mark_rounds(rounds: int) -> dict[str, Any]:
    """Return settings of a horizontal axis with ticks at whole rounds, the first and the last included."""
    return {"tickvals": round_ticks(rounds)}


def _name(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _css(method: str, kind: int) -> str:
    """Return the colour of a group as CSS."""
    colour = tinted(COLOURS[method], kind)
    return (
        colour if isinstance(colour, str) else f"rgb({', '.join(str(round(255 * part)) for part in colour)})"
    )


def _rounded(values: np.ndarray) -> list[float | None]:
    """Return numbers with six digits; None for those that are not finite, which JSON has not."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]
