"""Read a configuration, a YAML file plus key=value, and check it completely before anything starts."""

import difflib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from genfl_mpi.config.renamed import new_name
from genfl_mpi.config.sections.search import Search, expand
from genfl_mpi.config.settings import MACHINES, Config, fill_in, is_free, keys, section_in
from genfl_mpi.config.types import Section, as_text
from genfl_mpi.config.world import World
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import file_suggestion, suggestion

# Bounds on the input: a few lines of YAML may expand to gigabytes, and a few swept lists to years of runs.
MAX_VALUES, MAX_DEPTH, MAX_RUNS, MAX_NAME_BYTES = 100_000, 50, 10_000, 200

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
    given |= _leaves(_copied(settings or {}, "settings"))
    _apply_overrides(values, sweep, given)
    _check_sweep(sweep, given, where)
    searched = _expand_search(values, sweep, given, where)
    if (count := len(searched) * math.prod(map(len, sweep.values()))) > MAX_RUNS:
        raise UserError(f"{where}: the sweep has {count} runs; the maximum is {MAX_RUNS}")
    runs: dict[str, Config] = {}
    for found, *combination in itertools.product(searched, *sweep.values()):
        member = _copied(values, where)
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
            raise UserError(f"{where}: {_explain_unknown(key, prefix='sweep.')}")
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
        raise UserError(f"{where}: {_explain(error.errors()[0], kind)}") from None


def load_world(source: str | Path) -> World:
    """Read a `World` from a YAML file. Raises UserError."""
    where, values = _read(source)
    return validate(values, where, World)


def to_yaml(config: Section) -> str:
    """Return a configuration as YAML text."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def _read(source: str | Path | dict | None) -> tuple[str, dict]:
    if isinstance(source, dict):
        return "configuration", nested(_copied(source, "configuration"))
    where = str(source or "settings")  # errors cannot be in the embedded default
    values = parse(read_text(source), where)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be a mapping of keys to values")
    return where, values


class _Loader(yaml.SafeLoader):
    """Load plain YAML values, and refuse duplicate keys, of which YAML would silently drop one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Return a mapping. Raises ConstructorError for a duplicate key."""
        seen = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for key, count in Counter(seen).items() if count > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice} occurs twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def parse(text: str, where: str) -> Any:
    """Parse YAML text into values of YAML's basic types. Raises UserError."""
    try:
        return _copied(yaml.load(text, _Loader), where)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}"
        ) from None
    except RecursionError:
        raise UserError(f"{where}: too deeply nested") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # Values that match a type's pattern but do not exist, for example 2001-99-99 or "!!int x".
        raise UserError(f"{where}: not valid YAML: {error}") from None


def _copied(values: Any, where: str) -> Any:
    """Return a deep copy of nested dicts and lists in which no part is shared, unlike with YAML's aliases.

    Raises UserError for too many values, too deep nesting, and text that cannot be a key or a file name.
    """
    left = MAX_VALUES

    def copied(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise UserError(f"{where}: too many values, or too deeply nested")
        if isinstance(value, dict):
            if wrong := [key for key in value if type(key) not in (str, int)]:
                raise UserError(f"{where}: {wrong[0]!r} cannot be a key; put it in quotes")
            return {copied(str(key), depth + 1): copied(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [copied(item, depth + 1) for item in value]
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, bytes):
            raise UserError(f"{where}: {value!r:.80} is binary data, which no setting takes; write text")
        if isinstance(value, str) and (
            "\0" in value or not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)
        ):
            raise UserError(f"{where}: {value!r} contains a character that is not allowed in text")
        return value

    return copied(values, 0)


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
    return key, parse(value, _short(text))


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
            raise UserError(f"{key}: {section} is a section of settings, but was set to {_short(values)}")
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


# By pydantic's type of error: what a setting needs, and an example for settings without a default.
NEEDS = {
    "int": ("an integer", 1),
    "float": ("a number", 1.0),
    "finite_number": ("a finite number", 1.0),
    "bool": ("true or false", True),
    "string": ("text", ""),
    "list": ("a list", []),
    "tuple": ("a list of two numbers", [1.0, 2.0]),
    "missing": ("a list of two numbers", [1.0, 2.0]),
    "literal_error": ("one of {expected}", ""),
    "greater_than": ("a number above {gt}", 1.0),
    "greater_than_equal": ("a number of at least {ge}", 1),
    "less_than": ("a number below {lt}", 0.5),
    "less_than_equal": ("a number of at most {le}", 1),
    "multiple_of": ("a multiple of {multiple_of}", ""),
    "too_short": ("at least {min_length} value(s)", ""),
    "too_long": ("at most {max_length} value(s)", ""),
}


def _explain(error: Mapping[str, Any], kind: type[Section]) -> str:
    """Describe one error of pydantic's in one line."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return _explain_unknown(key, kind)
    if error["type"] == "model_type":
        example = next(known for known in keys(kind) if known.startswith(f"{key}."))
        return f"{key} is a section of settings, not a value; set one of them, for example {example}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        field = _field(kind, path)
        if field is None or section_in(field.annotation):  # a check across settings, which names them
            return message
        return f"{_setting(kind, path)}= {message} (got {_short(error['input'])})"
    return _explain_value(error, kind, path)


def _explain_unknown(key: str, kind: type[Section] = Config, prefix: str = "") -> str:
    """Describe an unknown dotted key, which was given behind `prefix`, with the key that was meant."""
    known, section = keys(kind), "world." if kind is World else ""
    if renamed := new_name(section + key):
        return f"{prefix}{key} was renamed to {prefix}{renamed.removeprefix(section)}; use the new name"
    near = [one for one in known if one.rpartition(".")[2] == key.rpartition(".")[2]]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0)
    return f"unknown key {prefix}{key}; did you mean {prefix}{near[0]}?"


def _explain_value(error: Mapping[str, Any], kind: type[Section], path: Sequence[str]) -> str:
    """Describe a value of the wrong type, or out of its range, with an example of a right one."""
    what = re.sub(r"_(type|parsing|parsing_size|from_float)$", "", error["type"])
    field, key, got = _field(kind, path), _setting(kind, path), f"(got {_short(error['input'])})"
    if what not in NEEDS:
        return f"{key}= {error['msg'][:1].lower()}{error['msg'][1:]} {got}"
    needs, example = NEEDS[what]
    context = error.get("ctx", {})
    if what == "literal_error":
        names = re.findall(r"'([^']*)'", context["expected"])
        context = {"expected": context["expected"].replace("'", "")}
        if near := suggestion(str(error["input"]), names):
            return f"{key}= needs {needs.format(**context)}{near} {got}"
    if field is not None and field.default is not None:
        example = field.default
    text = as_text(example)
    wanted = needs.format(**context) + (f", for example {key}={text}" if text else "")
    swept = ""
    if isinstance(values := error["input"], list) and values and what not in ("list", "tuple"):
        swept = f"; for a run of each value write 'sweep.{key}=[{','.join(map(as_text, values))}]'"
    return f"{key}= needs {wanted} {got}{swept}"


def _setting(kind: type[Section], path: Sequence[str]) -> str:
    """Return the dotted key of the setting at a place in a configuration, which may be a list item."""
    key = ".".join(path)
    known = set(keys(kind))
    while key not in known and "." in key:
        key = key.rpartition(".")[0]
    return key


def _field(kind: type[Section], path: Sequence[str]) -> FieldInfo | None:
    """Return the innermost field at a place in a configuration, None for the root."""
    field: FieldInfo | None = None
    section: type[Section] | None = kind
    for name in path:
        if section is None or name not in section.model_fields:
            break
        field = section.model_fields[name]
        section = section_in(field.annotation)
    return field


def _short(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


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


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict with dotted keys as nested dicts."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        _set(values, key, value)
    return values


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


def read_text(source: str | Path | None = None) -> str:
    """Return the text of a configuration file, by default the embedded one. Raises UserError."""
    if source is None:
        return files("genfl_mpi").joinpath("default.yaml").read_text()
    try:
        return Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        hint = ""
        if str(source) in keys():
            hint = f"; write a setting as {source}=value"
        elif isinstance(error, FileNotFoundError):
            hint = file_suggestion(source, "*.yaml", "configs", "configs/worlds")
        raise UserError(
            f"{source}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}{hint}"
        ) from None
