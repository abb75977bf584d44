"""What a user should know about a configuration before its runs start."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from genfl_mpi.config.differences import flatten
from genfl_mpi.config.loading import given_settings, load
from genfl_mpi.config.settings import Config
from genfl_mpi.config.types import Needs, Section, as_text
from genfl_mpi.config.yaml_text import parse, read_text
from genfl_mpi.util.errors import UserError


def remarks(
    source: str | Path | dict | None, overrides: Iterable[str], runs: Mapping[str, Config]
) -> Iterator[str]:
    """Yield what the default study sets, if it is used, and a warning of given settings without effect.

    source, overrides: of the configuration, as in `load`. runs: those of `load`.
    """
    configs = list(runs.values())
    in_file, by_hand = given_settings(source, overrides)
    unused, in_file = find_unused(by_hand, configs), find_unused(in_file, configs)
    if source is None:
        left = [
            f"{key}={as_text(value)}"
            for key, value in flatten(parse(read_text(), "the default study")).items()
            if key.removeprefix("sweep.") not in {**by_hand, **in_file}
        ]
        if left:
            yield f"default study, without a configuration file: {' '.join(left)}"
    elif in_file:
        # An override that leaves one of the file's methods does not make the other settings a mistake.
        unused |= find_unused(in_file, _runs_of_file(source) or configs)
    if unused:
        yield f"warning: settings without effect: {_describe(unused)}"


def find_unused(keys: Iterable[str], configs: Collection[Config]) -> dict[str, str]:
    """Find settings that have no effect in any of the runs: {dotted key: what they need}."""
    found = {}
    for key in keys:
        lacks = list(takewhile(bool, (_missing(config, key) for config in configs)))
        if lacks and len(lacks) == len(configs):
            found[key] = lacks[0]
    return found


def _missing(config: Config, key: str) -> str:
    """Return what a run lacks for the setting `key` to have an effect; "" if nothing."""
    section: Any = config
    path = key.split(".")
    for depth, name in enumerate(path):
        field = type(section).model_fields.get(name) if isinstance(section, Section) else None
        if field is None:
            break
        for mark in field.metadata:
            if isinstance(mark, Needs) and not mark.holds(config, section):
                return f"{'.'.join(path[:depth])}{mark.what}" if mark.what.startswith(".") else mark.what
        section = getattr(section, name)
    return ""


def _runs_of_file(source: str | Path | dict | None) -> list[Config]:
    """Return the runs of a configuration without overrides; none if it needs them."""
    try:
        return list(load(source).values())
    except UserError:
        return []


def _describe(unused: Mapping[str, str]) -> str:
    """List settings by what they need."""
    by_need: dict[str, list[str]] = {}
    for key, need in unused.items():
        by_need.setdefault(need, []).append(key)
    return "; ".join(
        f"{', '.join(keys)} ({'need' if len(keys) > 1 else 'needs'} {need})" for need, keys in by_need.items()
    )
