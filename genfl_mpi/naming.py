"""What a configuration names: one of ours, or module:function of the user's."""

import difflib
import importlib

from genfl_mpi.errors import UserError


def find(name, known, key):
    """The function called `name` in the dict `known`, or the one that "module:function" points to. Raises UserError.

    key: the setting that names it, for the message.
    """
    if name in known:
        return known[name]
    module, colon, function = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise UserError(f"{key}: there is no {name!r}; did you mean {near!r}? Your own is written module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module does when it is imported
        raise UserError(f"{key}: {name} cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise UserError(f"{key}: {name} is not a function")
    return found
