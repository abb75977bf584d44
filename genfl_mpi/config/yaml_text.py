"""YAML text of configurations, parsed safely."""

from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from genfl_mpi.config.settings import keys
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import file_suggestion

# Bounds on the input: a few lines of YAML may expand to gigabytes.
MAX_VALUES, MAX_DEPTH = 100_000, 50


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
        return copy_values(yaml.load(text, _Loader), where)
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


def copy_values(values: Any, where: str) -> Any:
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
