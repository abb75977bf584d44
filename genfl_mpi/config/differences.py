"""Resolved configurations as flat settings: which were chosen, and in which two configurations differ."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from genfl_mpi.config.settings import MACHINES, Config, fill_in, is_free


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def flat_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a configuration of nested dicts; `world` becomes "default" if the run has one, else None."""
    return flatten(values) | ({"world": "default"} if values.get("world") is not None else {})


def differing_settings(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two resolved configurations differ and on which rounds depend.

    stored, wanted: nested dicts.
    """
    before, now = _comparable((stored, wanted))
    return [key for key in before if not is_free(key) and before[key] != now[key]]


def _comparable(configs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return `flat_settings` of resolved configurations, all with the same keys.

    A setting that a configuration lacks, because it is newer than the results file, has its default. A
    setting that no longer exists is None in configurations without it.
    """
    flats = list(map(flat_settings, configs))
    known = {key: None for flat in flats for key in flat}
    if any(len(flat) < len(known) for flat in flats):
        known.update(flatten(Config().model_dump(mode="json")))
    return [{key: flat.get(key, known[key]) for key in known} for flat in flats]


def chosen_settings(values: dict, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the settings of a resolved configuration that were chosen by the user.

    These are a minimal set from which all others follow: as defaults, or from a preset, another setting or
    the machine. values: nested dicts. keys: the dotted keys to examine; None for all. The result is a flat
    dict in the order of the settings; a world of defaults is {}.
    """
    flat, left, found = flatten(values), values, {}
    try:
        wanted = _resolved(left, values)
    except ValidationError:  # written by a version with other settings
        defaults = flatten(Config().model_dump(mode="json"))
        return {key: flat[key] for key in keys or flat if key in flat and flat[key] != defaults.get(key)}
    for key in keys or flat:
        if key not in flat:
            continue
        try:
            without = _without(left, *key.split("."))
            follows = _resolved(without, values) == wanted
        except ValidationError:
            follows = False
        if follows:
            left = without
        else:
            found[key] = flat[key]
    if (
        values.get("world") is not None
        and (not keys or "world" in keys)
        and not any(key.startswith("world.") for key in found)
    ):
        found["world"] = {}
    return found


def varied_settings(configs: Iterable[dict]) -> list[str]:
    """Return the dotted keys in which resolved configurations, nested dicts, differ by choice or by machine.

    Keys on which no round depends are omitted.
    """
    configs = list(configs)
    flats = _comparable(configs)
    keys = [
        key
        for key in (flats[0] if flats else ())
        if not is_free(key) and any(flat[key] != flats[0][key] for flat in flats)
    ]
    wanted = {key for config in configs for key in chosen_settings(config, keys)} if keys else set()
    return [key for key in keys if key in wanted or key in MACHINES]


def _resolved(values: dict, whole: dict) -> Config:
    """Return the `Config` of a part of the resolved configuration `whole`, for the same machine."""
    return fill_in(Config.model_validate(values), whole["runtime"]["threads"], whole["runtime"]["device"])


def _without(values: dict, key: str, *inner: str) -> dict:
    """Return nested dicts without a key, or without a key in the section `key`."""
    if inner:
        return {**values, key: _without(values[key], *inner)}
    return {name: value for name, value in values.items() if name != key}
