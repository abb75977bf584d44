"""A configuration is a YAML file plus key=value, read whole and checked before anything starts."""

import difflib
import itertools
import math
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import ValidationError

from genfl_mpi.config.renamed import new_name
from genfl_mpi.config.settings import MACHINES, Config, filled_in, is_free, keys
from genfl_mpi.config.types import Section
from genfl_mpi.config.world import World
from genfl_mpi.util.errors import UserError

# Bounds on what is read: a YAML file of a few lines may stand for gigabytes, and a sweep of a few lists for years.
MOST_VALUES, DEEPEST, MOST_RUNS, LONGEST_NAME = 100_000, 50, 10_000, 200


def load(source=None, overrides=()):
    """Every run of a configuration: a dict from run name to `Config`, in the sweep's order.

    source: a YAML file's path, a dict, or None for the embedded default. overrides: strings "dotted.key=value".
    A `sweep` section maps dotted keys to lists; the runs are their product. An override of a swept key pins it. A choice that
    is a mapping sets several keys together, a method with its learning rate, say; then the swept key is a name only.
    Raises UserError.
    """
    where, values = _read(source)
    sweep = values.pop("sweep", None) or {}
    if not isinstance(sweep, dict):
        raise UserError(f"{where}: sweep must map keys to lists, for example sweep: {{seed: [1, 2, 3]}}")
    given = dict(_split_override(override) for override in overrides)
    for key, value in given.items():
        if key.startswith("sweep."):
            sweep[key.removeprefix("sweep.")] = value
        else:
            if not _together(sweep.get(key)):
                sweep.pop(key, None)
            _set(values, key, value)
            other = {"kappa.kappa1": "kappa2", "kappa.kappa2": "kappa1"}.get(key)
            if other and f"kappa.{other}" not in given:
                values["kappa"].pop(other, None)  # the one given decides
    for key, choices in sweep.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{where}: sweep.{key} must be a list with at least one value")
        if together := _together(choices):
            # An override pins a key in all of them, and leaves those out that were to have another method.
            sweep[key] = [
                {name: given.get(name, value) for name, value in choice.items()}
                for choice in together
                if choice.get("method") == given.get("method", choice.get("method"))
            ]
            if len(together) < len(choices) or not sweep[key]:
                raise UserError(
                    f"{where}: sweep.{key} must be mappings of settings, all of them, and one at least of method={given.get('method')}"
                )
    if (count := math.prod(map(len, sweep.values()))) > MOST_RUNS:
        raise UserError(f"{where}: the sweep has {count} runs, and {MOST_RUNS} are the most")
    runs = {}
    for combination in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, combination))
        member = _copied(values, where)
        for key, value in chosen.items():
            for name, one in value.items() if isinstance(value, dict) else [(key, value)]:
                _set(member, name, one)
        if isinstance(
            member.get("world"), str
        ):  # its settings become the run's, whatever happens to the file
            member["world"] = load_world(member["world"]).model_dump()
        config = validate(member, where)
        name = _run_name(config, {key: value for key, value in chosen.items() if not isinstance(value, dict)})
        if name in runs:
            raise UserError(
                f"{where}: two runs of the sweep would be called {name}; leave one of the equal or similar values out"
            )
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(
                f"{where}: a run of the sweep would be called {name[:50]}..., which is too long for a file; "
                "sweep shorter values"
            )
        runs[name] = config
    return runs


def _together(choices):
    """Those of a swept key's choices that set several keys together."""
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def single(source=None, overrides=()):
    """The one run of a configuration without a sweep, or with every swept key pinned. Raises UserError."""
    runs = load(source, overrides)
    if len(runs) > 1:
        raise UserError(
            f"the configuration is a sweep of {len(runs)} runs ({', '.join(list(runs)[:3])}, ...); pin the swept keys, for example method=genfl"
        )
    return next(iter(runs.values()))


def validate(values, where="configuration", kind=Config):
    """`Config`, or another `kind` of section, from a nested dict. Raises UserError with a line that names the first wrong key."""
    try:
        return kind.model_validate(
            {key: value for key, value in values.items() if value is not None or not _is_section(key, kind)}
        )
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error.errors()[0], kind)}") from None


def load_world(source):
    """The `World` in a YAML file. Raises UserError."""
    where, values = _read(source)
    return validate(values, where, World)


def to_yaml(config):
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def _read(source):
    if isinstance(source, dict):
        return "configuration", _copied(source, "configuration")
    where = str(source or "the settings given")  # what is wrong is not in our default
    values = parse(text_of(source), where)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be a mapping of keys to values")
    return where, values


class _Loader(yaml.SafeLoader):
    """YAML's plain values, and no key twice: of two, one would go unheard."""

    def construct_mapping(self, node, deep=False):
        seen = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for key, count in Counter(seen).items() if count > 1), None):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def parse(text, where):
    """Values from YAML text, of types that YAML has by itself. Raises UserError."""
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
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
    ) as error:  # "2001-99-99" say, or "!!int x"
        raise UserError(f"{where}: not valid YAML: {error}") from None


def _copied(values, where):
    """Nested dicts and lists of which no part is shared with another, as YAML's aliases have it. Raises UserError if they are
    too many, too deep, or contain what cannot be a file's name or a key."""
    left = MOST_VALUES

    def copied(value, depth):
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise UserError(f"{where}: too many values, or too deeply nested")
        if isinstance(value, dict):
            if wrong := [key for key in value if type(key) not in (str, int)]:
                raise UserError(f"{where}: {wrong[0]!r} cannot be a key: write it in quotes")
            return {copied(str(key), depth + 1): copied(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [copied(item, depth + 1) for item in value]
        if isinstance(value, str) and (
            "\0" in value or not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)
        ):
            raise UserError(f"{where}: {value!r} has a character that no text may have")
        return value

    return copied(values, 0)


def _is_section(key, kind):
    field = kind.model_fields.get(key)
    return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _split_override(text):
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r} is not key=value; keys are dotted, for example training.lr=0.01")
    return key, parse(value, _short(text))


def _set(values, key, value):
    *sections, leaf = str(key).split(".")
    if sections[:1] == ["world"] and isinstance(
        values.get("world"), str
    ):  # a file's world, and what is another in it
        values["world"] = load_world(values["world"]).model_dump()
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(
                f"{key}: {section} is a section of settings, and {_short(values)} was set in its place"
            )
    values[leaf] = value


def _run_name(config, chosen):
    """method_seed, then the other swept keys: a file name without surprises."""
    leaves = {key: key.removesuffix(".policy").rpartition(".")[2] for key in chosen}
    count = Counter(leaves.values())
    parts = [config.method, f"seed{config.seed}"]
    for key, value in chosen.items():
        if key not in ("method", "seed"):
            parts.append(f"{leaves[key] if count[leaves[key]] == 1 else key}{value}")
    return re.sub(r"[^\w.+-]", "-", "_".join(parts))


def _explain(error, kind):
    """One line from pydantic's account of one error."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known, prefix = keys(kind), "world." if kind is World else ""
        if now := new_name(prefix + key):
            return f"{key} is called {now.removeprefix(prefix)} now"
        near = [k for k in known if k.rpartition(".")[2] == path[-1]] or difflib.get_close_matches(
            key, known, n=1, cutoff=0
        )
        return f"unknown key {key}; did you mean {near[0]}?"
    if error["type"] == "model_type":
        example = next(known for known in keys(kind) if known.startswith(f"{key}."))
        return f"{key} is a section, and {_short(error['input'])} a value; set for example {example}"
    message = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    message = message[:1].lower() + message[1:]
    if error["type"] == "value_error" and "=" not in key:
        return f"{key + ': ' if key else ''}{message}"
    return f"{key}: {message}, not {_short(error['input'])}"


def _short(value, length=80):
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def flatten(values, prefix=""):
    """Nested dicts as one dict with dotted keys."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def settings_of(values):
    """A configuration, nested dicts, as a flat one, in which `world` says whether there is one: None, or else default."""
    return flatten(values) | ({"world": "default"} if values.get("world") is not None else {})


def nested(flat):
    """Dotted keys as nested dicts again."""
    values = {}
    for key, value in flat.items():
        _set(values, key, value)
    return values


def decided(values, keys=None):
    """What somebody decided of a resolved configuration, nested dicts: the fewest settings from which all others follow, as defaults, by
    a preset, from another setting or from the machine. A flat dict in the order of the settings; a world of defaults is {}.

    keys: the dotted keys of which to ask, by default all.
    """
    flat, left, found = flatten(values), values, {}
    try:
        wanted = _resolved(left, values)
    except ValidationError:  # of a version with other settings
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


def varied(configs):
    """The dotted keys in which resolved configurations, nested dicts, differ because somebody decided so, or ran them on other machines;
    without those that no round depends on."""
    flats = list(map(settings_of, configs))
    keys = [
        key
        for key in dict.fromkeys(itertools.chain(*flats))
        if not is_free(key) and any(flat.get(key) != flats[0].get(key) for flat in flats)
    ]
    wanted = {key for config in configs for key in decided(config, keys)} if keys else set()
    return [key for key in keys if key in wanted or key in MACHINES]


def _resolved(values, whole):
    """`Config`, from a part of a resolved configuration that ran on the machine of the `whole`."""
    return filled_in(Config.model_validate(values), whole["runtime"]["threads"], whole["runtime"]["device"])


def _without(values, key, *inner):
    """Nested dicts without a key, or without one in the section `key`."""
    if inner:
        return {**values, key: _without(values[key], *inner)}
    return {name: value for name, value in values.items() if name != key}


def text_of(source=None):
    """A configuration as the user wrote it. Raises UserError."""
    if source is None:
        return files("genfl_mpi").joinpath("default.yaml").read_text()
    try:
        return Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        hint = f"; a setting is written {source}=value" if str(source) in keys() else ""
        raise UserError(
            f"{source}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}{hint}"
        ) from None
