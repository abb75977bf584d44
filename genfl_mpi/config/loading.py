"""Read a configuration, a YAML file plus key=value, and check it completely before anything starts."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from genfl_mpi.config.differences import flatten
from genfl_mpi.config.explanations import explain, explain_unknown, short
from genfl_mpi.config.sections.search import Search, expand
from genfl_mpi.config.settings import Config, keys
from genfl_mpi.config.types import Section
from genfl_mpi.config.world import World
from genfl_mpi.config.yaml_text import copy_values, parse, read_text
from genfl_mpi.util.errors import UserError

MAX_RUNS, MAX_NAME_BYTES = 10_000, 200  # a few swept lists may expand to years of runs

S = TypeVar("S", bound=Section)


def load(
    source: str | Path | dict | None = None,
    overrides: Iterable[str] = (),
    settings: Mapping[str, Any] | None = None,
    needs: Sequence[str] | None = None,
) -> dict[str, Config]:
    """Return all runs of a configuration: {run name: Config}, in the order of the sweep.

    source: path of a YAML file, a dict, whose keys may be dotted, or None for the embedded default.
    overrides: "dotted.key=value". settings: further overrides, {dotted key: value}, in which a dict sets some
    of a section's settings. A `sweep` section maps dotted keys to lists; the runs are their product. An
    override of a swept key replaces its list. A choice that is a mapping sets several keys together, for
    example a method with its learning rate; the swept key is then only a label. A `search` section with
    `settings` adds its configurations to every run of the sweep. needs: which of checkpoint and prompts must
    be known where runs generate images; None: both. Raises UserError.
    """
    where, values = _read(source)
    sweep = values.pop("sweep", None) or {}
    if not isinstance(sweep, dict):
        raise UserError(f"{where}: sweep must map keys to lists, for example sweep: {{seed: [1, 2, 3]}}")
    given = dict(_split_override(override) for override in overrides)
    given |= _leaves(copy_values(settings or {}, "settings"))
    _apply_overrides(values, sweep, given)
    _check_sweep(sweep, given, where)
    searched = _expand_search(values, sweep, given, where)
    if (count := len(searched) * math.prod(map(len, sweep.values()))) > MAX_RUNS:
        raise UserError(f"{where}: the sweep has {count} runs; the maximum is {MAX_RUNS}")
    runs: dict[str, Config] = {}
    for found, *combination in itertools.product(searched, *sweep.values()):
        member = copy_values(values, where)
        named: dict[str, Any] = {}
        for key, value in found.items():
            _set(member, key, value)
        for (key, choices), value in zip(sweep.items(), combination):
            for name, one in value.items() if isinstance(value, dict) else [(key, value)]:
                _set(member, name, one)
            named |= _distinctive(value, choices) if isinstance(value, dict) else {key: value}
        if isinstance(member.get("world"), str):  # copied, so that later changes of the file have no effect
            member["world"] = load_world(member["world"]).model_dump()
        config: Config = validate(member, where, context={"needs": needs})
        name = _run_name(config, named)
        if name in runs:
            raise UserError(
                f"{where}: two runs of the sweep would have the name {name}; remove one of the equal or "
                "similar values"
            )
        if len(name.encode()) > MAX_NAME_BYTES:
            raise UserError(
                f"{where}: the run name {name[:50]}... is too long for a file name; sweep shorter values"
            )
        runs[name] = config
    return runs


def _apply_overrides(values: dict[str, Any], sweep: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Apply overrides to the settings of a file and to its sweep. given: {dotted key: value}."""
    for key, value in given.items():
        if key.startswith("sweep."):
            sweep[key.removeprefix("sweep.")] = value
            continue
        if not _mappings(sweep.get(key)):
            sweep.pop(key, None)
        _set(values, key, value)
        other = {"kappa.kappa1": "kappa2", "kappa.kappa2": "kappa1"}.get(key)
        if other and f"kappa.{other}" not in given:
            values["kappa"].pop(other, None)  # derived from the one that is given


def _check_sweep(sweep: dict[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Apply overrides to the mappings of a sweep. Raises UserError for an invalid list or unknown key."""
    known = keys()
    for key, choices in sweep.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(
                f"{where}: sweep.{key} must be a list with at least one value; write 'sweep.{key}=[A,B]'"
            )
        mappings = _mappings(choices)
        if not mappings and key not in known:
            raise UserError(f"{where}: {explain_unknown(key, prefix='sweep.')}")
        if not mappings:
            continue
        if len(mappings) < len(choices):
            raise UserError(f"{where}: sweep.{key} has mappings and other values; use one kind")
        # An override replaces the key in every mapping; mappings with another method are dropped.
        sweep[key] = [
            {name: given.get(name, value) for name, value in choice.items()}
            for choice in mappings
            if choice.get("method") == given.get("method", choice.get("method"))
        ]
        if not sweep[key]:
            raise UserError(
                f"{where}: sweep.{key} has no mapping with method={given.get('method')}; "
                "add one, or remove the override"
            )


def _expand_search(
    values: dict[str, Any], sweep: dict[str, Any], given: Mapping[str, Any], where: str
) -> list[dict[str, Any]]:
    """Return the settings of each configuration of the section `search`, one without any if there is none.

    Moves the section's seeds into the sweep. given: overrides, which pin searched settings.
    """
    search = values.get("search")
    if not isinstance(search, dict) or not search.get("settings"):
        return [{}]
    settings = validate(search, f"{where}: search", Search)
    if "seed" in {*values, *sweep, *given}:
        raise UserError(
            f"{where}: a search has its own seeds, on which nothing else is compared; set search.seeds "
            "instead of seed"
        )
    sweep["seed"] = list(settings.seeds)
    found = expand(settings, keys(), where)
    found = [{key: value for key, value in one.items() if key not in given} for one in found]
    values["search"] = {name: value for name, value in search.items() if name != "settings"}
    return [{**one, "search.number": number} for number, one in enumerate(found)]


def _mappings(choices: Any) -> list[dict]:
    """Return those choices of a swept key that set several keys together."""
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def single(
    source: str | Path | dict | None = None,
    overrides: Iterable[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Config:
    """Return the only run of a configuration, as in `load`. Raises UserError if it has several."""
    runs = load(source, overrides, settings)
    if len(runs) > 1:
        raise UserError(
            f"the configuration is a sweep of {len(runs)} runs ({', '.join(list(runs)[:3])}, ...); "
            "pin the swept keys, for example method=genfl"
        )
    return next(iter(runs.values()))


def given_settings(
    source: str | Path | dict | None, overrides: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that a configuration and its overrides give, {dotted key: value} each.

    source, overrides: as in `load`. A swept key has the list of its values. Raises UserError.
    """
    return _flat_given(_read(source)[1]), _flat_given(dict(map(_split_override, overrides)))


def _flat_given(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in flatten(values).items():
        for choice in _mappings(value) if key.startswith("sweep.") else ():
            found |= choice
        if not (key.startswith("sweep.") and _mappings(value)):
            found[key.removeprefix("sweep.")] = value
    return found


def validate(
    values: dict,
    where: str = "configuration",
    kind: type[S] = Config,  # type: ignore[assignment]
    context: dict[str, Any] | None = None,
) -> S:
    """Return a `Config`, or another `kind` of section, from a nested dict.

    context: for `Config.check_generator`. Raises UserError with one line about the first wrong key.
    """
    try:
        return kind.model_validate(
            {key: value for key, value in values.items() if value is not None or not _is_section(key, kind)},
            context=context,
        )
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error.errors()[0], kind)}") from None


def load_world(source: str | Path) -> World:
    """Read a `World` from a YAML file. Raises UserError."""
    where, values = _read(source)
    return validate(values, where, World)


def to_yaml(config: Section) -> str:
    """Return a configuration as YAML text."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def _read(source: str | Path | dict | None) -> tuple[str, dict]:
    if isinstance(source, dict):
        return "configuration", nested(copy_values(source, "configuration"))
    where = str(source or "settings")  # errors cannot be in the embedded default
    values = parse(read_text(source), where)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be a mapping of keys to values")
    return where, values


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to dotted keys; an empty dict, such as a world of defaults, stays a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_section = isinstance(value, dict) and value
        flat |= _leaves(value, f"{prefix}{key}.") if is_section else {prefix + key: value}
    return flat


def _is_section(key: str, kind: type[Section]) -> bool:
    field = kind.model_fields.get(key)
    return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _split_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r} is not key=value; keys are dotted, for example training.lr=0.01")
    return key, parse(value, short(text))


def _set(values: dict, key: str, value: Any) -> None:
    *sections, leaf = str(key).split(".")
    if sections[:1] == ["world"] and isinstance(
        values.get("world"), str
    ):  # a setting on top of a world's file
        values["world"] = load_world(values["world"]).model_dump()
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(f"{key}: {section} is a section of settings, but was set to {short(values)}")
    values[leaf] = value


def _distinctive(mapping: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of a swept mapping that others of the same method lack, or set differently."""
    same = [choice for choice in choices if choice.get("method") == mapping.get("method")]
    return {
        key: value
        for key, value in mapping.items()
        if any(key not in choice or choice[key] != value for choice in same)
    }


def _run_name(config: Config, chosen: dict[str, Any]) -> str:
    """Return method_seed followed by the other swept keys, in characters that are safe in file names."""
    leaves = {key: key.removesuffix(".policy").rpartition(".")[2] for key in chosen}
    count = Counter(leaves.values())
    parts = [config.method, f"seed{config.seed}"]
    for key, value in chosen.items():
        if key not in ("method", "seed"):
            parts.append(f"{leaves[key] if count[leaves[key]] == 1 else key}{value}")
    if config.search is not None and config.search.number is not None:
        parts.append(f"search{config.search.number:03d}")
    return re.sub(r"[^\w.+-]", "-", "_".join(parts))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict with dotted keys as nested dicts."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        _set(values, key, value)
    return values
