"""One line about a wrong setting: what is wrong, where, and what to do."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from genfl_mpi.config.renamed import new_name
from genfl_mpi.config.settings import Config, keys, section_in
from genfl_mpi.config.types import Section, as_text
from genfl_mpi.config.world import World
from genfl_mpi.util.text import suggestion

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


def explain(error: Mapping[str, Any], kind: type[Section]) -> str:
    """Describe one error of pydantic's in one line."""
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return explain_unknown(key, kind)
    if error["type"] == "model_type":
        example = next(known for known in keys(kind) if known.startswith(f"{key}."))
        return f"{key} is a section of settings, not a value; set one of them, for example {example}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        field = _field(kind, path)
        if field is None or section_in(field.annotation):  # a check across settings, which names them
            return message
        return f"{_setting(kind, path)}= {message} (got {short(error['input'])})"
    return _explain_value(error, kind, path)


def explain_unknown(key: str, kind: type[Section] = Config, prefix: str = "") -> str:
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
    field, key, got = _field(kind, path), _setting(kind, path), f"(got {short(error['input'])})"
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


def short(value: Any, length: int = 80) -> str:
    """Return the representation of a value, at most `length` characters of it."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
