"""Describe settings as text of at most 80 columns: default, range, meaning, and the names that each takes."""

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from genfl_mpi.config.functions import USER_FUNCTIONS
from genfl_mpi.config.settings import Config, section_in
from genfl_mpi.config.types import AtMost, Needs, OneOf, Section, as_text
from genfl_mpi.util.text import WIDTH

# Returns the names that a setting takes and that are defined outside this room: {name: one-line meaning}.
Names = Callable[[str], Mapping[str, str]]

LARGE = 2**31 - 1  # bounds from here on are those of the number format
WORDS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "in steps of"}
TYPES = {
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "mapping",
}


def overview() -> Iterator[str]:
    """Yield a line for each setting of the run that is not in a section, and for each section."""
    fields = Config.model_fields
    settings = {f"{key}={_default(field)}": field for key, field in fields.items() if not _section(field)}
    yield "settings of the run:"
    for text, field in settings.items():
        yield _row(text, (field.description or "").partition("; ")[0])
    yield ""
    yield "sections:"
    yield from _section_rows(Config, "")


def describe(key: str, names: Names) -> Iterator[str]:
    """Describe a setting or, of a section, each of its settings. key: dotted, of an existing setting."""
    *path, name = key.split(".")
    owner: type[Section] = Config
    for part in path:
        owner = _section(owner.model_fields[part]) or owner
    field = owner.model_fields[name]
    section = _section(field)
    if section is None:
        yield from _setting(owner, key, names)
        return
    yield from textwrap.wrap(" ".join((section.__doc__ or "").split()), WIDTH)
    if field.default is None:
        yield from _setting(owner, key, names)
    for name, inner in section.model_fields.items():
        if not _section(inner):
            yield from _setting(section, f"{key}.{name}", names)
    if rows := list(_section_rows(section, f"{key}.")):
        yield from ("", "sections:", *rows)


def choices(section: type[Section], key: str, names: Names) -> dict[str, str]:
    """Return the names that a setting takes, with their meanings, "" for those that need none.

    section: the one that holds the setting; key: its dotted key. The meaning is that of the function or file
    that the name stands for, or else a clause "NAME: meaning" of the setting's description.
    """
    field, schema = section.model_fields[key.rpartition(".")[2]], _schema(section, key)
    builtin = [name for mark in _marks(field) if isinstance(mark, OneOf) for name in mark.names]
    known = dict.fromkeys([*_literals(schema), *builtin], "") | dict(names(key))
    return known | {name: text for name, text in _clauses(field, known)[1].items() if not known.get(name)}


def _setting(section: type[Section], key: str, names: Names) -> Iterator[str]:
    """Describe one setting of a section."""
    field, known = section.model_fields[key.rpartition(".")[2]], choices(section, key, names)
    about, _ = _clauses(field, known)
    schema = _schema(section, key)
    kind = "" if known and all(known.values()) else f"  ({_kind(field, schema)})"
    if known and schema.get("type") == "array":
        kind = "  (list of names)"
    yield ""
    yield from _wrapped(f"{key}={_default(field)}{kind}", 0, 4)
    yield from _wrapped(about, 4, 4)
    for mark in _marks(field):
        if isinstance(mark, Needs):
            place = key.rpartition(".")[0] if mark.what.startswith(".") else ""
            yield from _wrapped(f"has an effect only with {place}{mark.what}", 4, 4)
    own = _own(key)
    width = max(map(len, [*known, *own]), default=0) + 2
    for name, meaning in (known | own).items():
        if meaning:
            yield from _wrapped(f"{name:<{width}}{meaning}", 6, 6 + width)


def _own(key: str) -> dict[str, str]:
    """Return what may stand for the user's function in a setting, and how it is called."""
    if key == "algorithm.name":
        return {"module:NAME": "an Algorithm of your own"}
    if key not in USER_FUNCTIONS:
        return {}
    function = USER_FUNCTIONS[key]
    return {"module:function": f"your own: function({', '.join(function.parameters)}) -> {function.returns}"}


def _clauses(field: FieldInfo, known: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Split a description into what the setting is, and {name: meaning} from its clauses "name: meaning"."""
    about: list[str] = []
    meanings: dict[str, str] = {}
    last: list[str] = []
    for clause in (field.description or "").split("; "):
        head, colon, text = clause.partition(": ")
        named = head.split(", ")
        if colon and known and set(named) <= {*known, "null", "auto"}:
            meanings |= dict.fromkeys(named, text)
            last = named
        elif last:
            meanings |= {name: f"{meanings[name]}; {clause}" for name in last}
        else:
            about.append(clause)
    return "; ".join(about), meanings


def _section(field: FieldInfo) -> type[Section] | None:
    return section_in(field.annotation)


def _section_rows(section: type[Section], prefix: str) -> Iterator[str]:
    """Yield a line for each section in a section."""
    for name, field in section.model_fields.items():
        if inner := _section(field):
            about = field.description if "Default:" in (field.description or "") else inner.__doc__
            yield _row(f"{prefix}{name}", (about or "").strip().splitlines()[0])


def _row(name: str, about: str) -> str:
    """Return a line of two columns: of a text, its first sentence, and of that what fits up to a comma."""
    room = WIDTH - 25
    about = re.split(r"\.(?: (?=[A-Z`])|$)", about)[0]
    if len(about) > room:
        ends = [found.start() for found in re.finditer("[,:] ", about[: room + 1])]
        about = about[: ends[-1]] if ends else textwrap.shorten(about, room, placeholder=" ...")
    return f"  {name:<22} {about}"


def _default(field: FieldInfo) -> str:
    return as_text(field.default) or '""'


def _schema(section: type[Section], key: str) -> dict[str, Any]:
    """Return the JSON schema of a setting."""
    return section.model_json_schema()["properties"][key.rpartition(".")[2]]


def _literals(schema: Mapping[str, Any]) -> list[str]:
    """Return the names in a JSON schema."""
    found = schema.get("enum", [schema["const"]] if "const" in schema else [])
    for inner in (*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else [])):
        found = [*found, *_literals(inner)]
    return [name for name in found if isinstance(name, str)]


def _kind(field: FieldInfo, schema: Mapping[str, Any]) -> str:
    """Return type and range of a setting, for example "number from 0 to 1"."""
    if "anyOf" in schema:
        return " or ".join(
            "null" if one.get("type") == "null" else _kind(field, one) for one in schema["anyOf"]
        )
    if "$ref" in schema:
        return "section"
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if schema.get("type") == "array":
        inner = schema.get("items") or schema["prefixItems"][0]
        return f"{'two values' if 'prefixItems' in schema else 'list'}, each {_kind(field, inner)}"
    return TYPES[schema["type"]] + _range(field)


def _range(field: FieldInfo) -> str:
    """Return the bounds of a number as text."""
    bounds: dict[str, float] = {}
    for mark in _marks(field):
        for name in ("ge", "gt", "le", "lt", "multiple_of"):
            if hasattr(mark, name):
                bounds[name] = getattr(mark, name)
        if isinstance(mark, AtMost):
            bounds["le"] = mark.limit
    if bounds.get("le", 0) >= LARGE:
        del bounds["le"]
    if {"ge", "le"} <= bounds.keys():
        bounds = {"from": bounds.pop("ge"), "to": bounds.pop("le"), **bounds}
    text = " ".join(f"{WORDS.get(name, name)} {bound:g}" for name, bound in bounds.items())
    return f" {text}" if text else ""


def _marks(field: FieldInfo) -> Iterator[Any]:
    """Yield the bounds and validators of a setting, those of the parts of its type included."""

    def inside(annotation: Any) -> Iterator[Any]:
        for part in get_args(annotation):
            yield part
            yield from inside(part)

    for mark in (*field.metadata, *inside(field.annotation)):
        if isinstance(mark, FieldInfo):
            yield from mark.metadata
        else:
            yield mark.func if isinstance(mark, AfterValidator) else mark


def _wrapped(text: str, indent: int, hanging: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * hanging,
        break_on_hyphens=False,
    )
