"""Functions that a configuration names: built-in ones, or the user's as module:function."""

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from genfl_mpi.util.errors import UserError

# Settings that may name a function of the user's.
USER_FUNCTION_SETTINGS = (
    "algorithm.name",
    "transforms",
    "selection.policy",
    "rho.policy",
    "kappa.policy",
    "generation.plan",
    "generation.checkpoint",
    "data.name",
    "model.name",
    "partition.scheme",
)


def sources(settings: Mapping[str, Any]) -> dict[str, Path]:
    """Find the source files of the user's functions that a dict of dotted settings names: {setting: path}.

    The entries of a list are "setting[0]", "setting[1]" and so on. Modules that such a file imports are not
    followed. Functions without a source file are omitted.
    """
    found = {}
    for key in USER_FUNCTION_SETTINGS:
        given = settings.get(key, "")
        names = (
            {f"{key}[{n}]": one for n, one in enumerate(given)} if isinstance(given, list) else {key: given}
        )
        for place, name in names.items():
            module, colon, _ = str(name).partition(":")
            if colon:
                try:
                    path = Path(importlib.util.find_spec(module).origin)  # type: ignore[union-attr, arg-type]
                    if path.is_file():
                        found[place] = path
                except (ImportError, AttributeError, TypeError, ValueError, OSError):
                    pass  # `find` reports the reason
    return found


def find(name: str, known: Mapping[str, Any], key: str, kind: type | None = None) -> Any:
    """Return the entry `name` of the dict `known`, or the object that "module:function" refers to.

    key: the setting that holds the name, for messages. kind: the class of which the object must be an
    instance; None for a function. Raises UserError.
    """
    if name in known:
        return known[name]
    module, colon, function = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise UserError(
            f"{key}: {name!r} is unknown; did you mean {near!r}? Write your own as module:function"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing the user's module may raise anything
        raise UserError(f"{key}: {name} cannot be imported: {type(error).__name__}: {error}") from None
    if kind and not isinstance(found, kind):
        raise UserError(f"{key}: {name} is not an instance of {kind.__module__}.{kind.__name__}")
    if not kind and not callable(found):
        raise UserError(f"{key}: {name} is not a function")
    return found


def name_of(function: Callable) -> str:
    """Return the name of a function for messages."""
    return getattr(function, "__name__", str(function))
