"""Functions that a configuration names: built-in ones, or the user's as module:function."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from genfl_mpi.util.errors import UserError, user_line
from genfl_mpi.util.text import first_line, suggestion


class UserFunction(NamedTuple):
    """How a user's function is called, and what it returns, for messages and help."""

    parameters: tuple[str, ...]
    returns: str


# Settings that may name a function of the user's, and how it is called.
USER_FUNCTIONS = {
    "transforms": UserFunction(("trained", "omega", "client"), "the transformed parameters"),
    "composition.use": UserFunction(("omega", "tools", "config"), "the refined weights"),
    "selection.policy": UserFunction(("state",), "ids of the cohort"),
    "rho.policy": UserFunction(("state",), "weights of the cohort, with sum 1"),
    "kappa.policy": UserFunction(("state",), "kappa2 from 0 to 1"),
    "hindsight.policies": UserFunction(("state",), "kappa2 from 0 to 1"),
    "generation.plan": UserFunction(("state",), "images of each class"),
    "generation.checkpoint": UserFunction(("batch", "shape"), "images, uint8 (n, C, H, W)"),
    "data.name": UserFunction(("data",), "Description, function that reads the arrays"),
    "model.name": UserFunction(("classes", "shape"), "torch.nn.Module"),
    "partition.scheme": UserFunction(
        ("labels", "clients", "classes", "settings", "rng"), "client of each sample, or -1"
    ),
}
MODEL_LIBRARIES = ("torchvision", "timm")  # model.name=torchvision:NAME is no function of the user's
# Settings whose function, or Algorithm, a round depends on. (hindsight has no effect on the rounds.)
USER_FUNCTION_SETTINGS = ("algorithm.name", *(key for key in USER_FUNCTIONS if key != "hindsight.policies"))


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
            if colon and not (key == "model.name" and module in MODEL_LIBRARIES):
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
    instance; None for a function, which must take the parameters in USER_FUNCTIONS. Raises UserError.
    """
    if name in known:
        return known[name]
    module, colon, function = name.partition(":")
    if not colon:
        closest = suggestion(name, known) or "; write your own as module:function."
        raise UserError(f"{key}: {name} is unknown{closest} `python -m genfl_mpi help {key}` lists all names")
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # importing the user's module may raise anything
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == module
        hint = f"; start in the folder of {module}.py, or add that folder to PYTHONPATH" if is_missing else ""
        raise UserError(
            f"{key}: {name} cannot be imported: {type(error).__name__}: {first_line(error)}"
            f"{user_line(error)}{hint}"
        ) from None
    if not hasattr(imported, function):
        raise UserError(
            f"{key}: {name} cannot be imported: {module} has no {function}"
            f"{suggestion(function, vars(imported))}"
        )
    found = getattr(imported, function)
    if kind:
        if not isinstance(found, kind):
            raise UserError(f"{key}: {name} is not an instance of {kind.__module__}.{kind.__name__}")
    else:
        check_signature(found, USER_FUNCTIONS[key].parameters, f"{key}: {name}")
    return found


def check_signature(function: Any, parameters: tuple[str, ...], what: str) -> None:
    """Raise UserError unless `function` can be called with these positional arguments.

    what: the setting and the function's name, for the message.
    """
    expected = f"({', '.join(parameters)})"
    if not callable(function):
        raise UserError(f"{what} is not a function; write one with the parameters {expected}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a function in C without a signature
        return
    try:
        signature.bind(*parameters)
    except TypeError:
        plain = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
        given = signature.replace(parameters=plain, return_annotation=signature.empty)
        raise UserError(
            f"{what} has the parameters {given}, but is called with {expected}; change its parameters"
        ) from None


def name_of(function: Callable) -> str:
    """Return the name of a function for messages."""
    return getattr(function, "__name__", str(function))
