"""The section `search`: draw configurations from ranges of settings, equally many for every method."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from genfl_mpi.config.types import Count, Natural, Section, Seed
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import suggestion

RANGES = ("uniform", "log_uniform", "integer")


class Search(Section):
    """Search settings, with the same configurations for every method."""

    kind: Literal["random", "grid"] = Field(
        "random",
        description="how configurations are chosen; random: drawn from the ranges; grid: all combinations "
        "of lists",
    )
    runs: Count = Field(20, description="random: configurations of each method")
    seed: Seed = Field(1, description="random: seed of the draws; more runs keep the first ones")
    seeds: list[Seed] = Field(
        [1001], description="seeds of the runs; compare methods with others, on which nothing was tuned"
    )
    settings: dict[str, Any] = Field(
        {},
        exclude=True,
        description="dotted keys and what they may be: a list, or {uniform: [a, b]}, {log_uniform: [a, b]} "
        "or {integer: [a, b]}",
    )
    number: Natural | None = Field(None, description="number of the configuration, which the search fills in")


def expand(search: Search, known: Sequence[str], where: str) -> list[dict[str, Any]]:
    """Return the settings of each configuration, {dotted key: value}.

    known: all dotted keys; where: the configuration's file, for messages. Raises UserError for an unknown key
    or an invalid range.
    """
    space = _flatten(search.settings)
    for key, choices in space.items():
        if key not in known:
            raise UserError(f"{where}: unknown key search.settings.{key}{suggestion(key, known)}")
        _check(key, choices, search.kind, where)
    if search.kind == "grid":
        return [dict(zip(space, values)) for values in itertools.product(*space.values())]
    return [_draw(space, search.seed, number) for number in range(search.runs)]


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: list or range} of nested sections."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        is_section = isinstance(value, dict) and not set(value) & set(RANGES)
        flat |= _flatten(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return flat


def _check(key: str, choices: Any, kind: str, where: str) -> None:
    if isinstance(choices, list) and choices:
        return
    if kind == "random" and isinstance(choices, dict) and len(choices) == 1:
        [(name, ends)] = choices.items()
        numbers = isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
        if numbers and ends[0] < ends[1] and (name != "log_uniform" or ends[0] > 0):
            return
    ranges = "" if kind == "grid" else ", or a range, for example {log_uniform: [0.001, 1.0]}"
    raise UserError(f"{where}: search.settings.{key} needs a list of values{ranges} (got {choices})")


def _draw(space: Mapping[str, Any], seed: int, number: int) -> dict[str, Any]:
    """Draw a configuration; each setting has a stream of its own, in the order of their names."""
    drawn = {}
    for place, key in enumerate(sorted(space)):
        rng, choices = streams.generator(seed, "search", number, place), space[key]
        if isinstance(choices, list):
            drawn[key] = choices[rng.integers(len(choices))]
            continue
        [(name, (low, high))] = choices.items()
        if name == "integer":
            drawn[key] = int(rng.integers(low, high, endpoint=True))
        elif name == "uniform":
            drawn[key] = float(f"{rng.uniform(low, high):.4g}")
        else:
            drawn[key] = float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.4g}")
    return drawn
