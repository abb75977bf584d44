"""What a configuration names: one of ours, or module:function of the user's."""

import difflib
import importlib
import importlib.util
from pathlib import Path

from genfl_mpi.util.errors import UserError

# Settings that may name a function of the user's.
OWN = (
    "algorithm.name",
    "selection.policy",
    "rho.policy",
    "kappa.policy",
    "generation.plan",
    "generation.checkpoint",
    "data.name",
    "model.name",
    "partition.scheme",
)


def sources(settings):
    """Find the files of the user's functions that a dict of dotted settings names: {setting: Path}.

    What such a file imports is not seen, and a function without a file is left out.
    """
    found = {}
    for key in OWN:
        module, colon, _ = str(settings.get(key, "")).partition(":")
        if colon:
            try:
                path = Path(importlib.util.find_spec(module).origin)
                if path.is_file():
                    found[key] = path
            except (ImportError, AttributeError, TypeError, ValueError, OSError):
                pass  # `find` says what is wrong with it
    return found


def find(name, known, key, kind=None):
    """The function called `name` in the dict `known`, or the one that "module:function" points to. Raises UserError.

    key: the setting that names it, for the message. kind: the class that it is an instance of, if it is no function.
    """
    if name in known:
        return known[name]
    module, colon, function = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise UserError(
            f"{key}: there is no {name!r}; did you mean {near!r}? Your own is written module:function"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module does when it is imported
        raise UserError(f"{key}: {name} cannot be imported: {type(error).__name__}: {error}") from None
    if kind and not isinstance(found, kind):
        raise UserError(f"{key}: {name} is not an instance of {kind.__module__}.{kind.__name__}")
    if not kind and not callable(found):
        raise UserError(f"{key}: {name} is not a function")
    return found


def of(function):
    """What to call a function in a message."""
    return getattr(function, "__name__", function)
