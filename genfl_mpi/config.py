"""A configuration is a YAML file plus key=value, read whole and checked before anything starts."""

import difflib
import itertools
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import ValidationError

from genfl_mpi.errors import UserError
from genfl_mpi.settings import Config, keys
from genfl_mpi.world import World


def load(source=None, overrides=()):
    """Every run of a configuration: a dict from run name to `Config`, in the sweep's order.

    source: a YAML file's path, a dict, or None for the embedded default. overrides: strings "dotted.key=value".
    A `sweep` section maps dotted keys to lists; the runs are their product. An override of a swept key pins it.
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
            sweep.pop(key, None)
            _set(values, key, value)
            other = {"kappa.kappa1": "kappa2", "kappa.kappa2": "kappa1"}.get(key)
            if other and f"kappa.{other}" not in given:
                values["kappa"].pop(other, None)  # the one given decides
    for key, choices in sweep.items():
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{where}: sweep.{key} must be a list with at least one value")
    runs = {}
    for combination in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, combination))
        member = yaml.safe_load(yaml.safe_dump(values))
        for key, value in chosen.items():
            _set(member, key, value)
        config = validate(member, where)
        name = _run_name(config, chosen)
        if name in runs:
            raise UserError(f"{where}: two runs of the sweep would be called {name}; leave one of the equal or similar values out")
        runs[name] = config
    return runs


def single(source=None, overrides=()):
    """The one run of a configuration without a sweep, or with every swept key pinned. Raises UserError."""
    runs = load(source, overrides)
    if len(runs) > 1:
        raise UserError(f"the configuration is a sweep of {len(runs)} runs ({', '.join(list(runs)[:3])}, ...); pin the swept keys, for example method=genfl")
    return next(iter(runs.values()))


def validate(values, where="configuration", kind=Config):
    """`Config`, or another `kind` of section, from a nested dict. Raises UserError with a line that names the first wrong key."""
    try:
        return kind.model_validate({key: value for key, value in values.items() if value is not None})
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
        return "configuration", yaml.safe_load(yaml.safe_dump(source))
    where, text = str(source or "default.yaml"), text_of(source)
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be a mapping of keys to values")
    return where, values


def _split_override(text):
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!r} is not key=value; keys are dotted, for example training.lr=0.01")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"{text!r}: the value is not valid YAML") from None


def _set(values, key, value):
    *sections, leaf = str(key).split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(f"{key}: {section} is a value, not a section")
    values[leaf] = value


def _run_name(config, chosen):
    """method_seed, then the other swept keys: a file name without surprises."""
    leaves = Counter(key.rpartition(".")[2] for key in chosen)
    parts = [config.method, f"seed{config.seed}"]
    for key, value in chosen.items():
        if key not in ("method", "seed"):
            leaf = key.rpartition(".")[2]
            parts.append(f"{leaf if leaves[leaf] == 1 else key}{value}")
    return re.sub(r"[^\w.+-]", "-", "_".join(parts))


def _explain(error, kind):
    """One line from pydantic's account of one error."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = keys(kind)
        near = [k for k in known if k.rpartition(".")[2] == path[-1]] or difflib.get_close_matches(key, known, n=1, cutoff=0)
        return f"unknown key {key}; did you mean {near[0]}?"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] == "value_error" and "=" not in key:
        return f"{key + ': ' if key else ''}{message}"
    return f"{key}: {message}, not {error['input']!r}"


def flatten(values, prefix=""):
    """Nested dicts as one dict with dotted keys."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def text_of(source=None):
    """A configuration as the user wrote it. Raises UserError."""
    if source is None:
        return files("genfl_mpi").joinpath("default.yaml").read_text()
    try:
        return Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None
