"""The command `help`: describe settings, with the names that each takes."""

from __future__ import annotations

import inspect
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from genfl_mpi.cli import COMMANDS, launch
from genfl_mpi.mpi import launchers
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Where the names of settings are defined, if not beside the setting: dicts, {name: function or Algorithm}.
REGISTRIES = {
    "algorithm.name": ("federation.algorithms", "ALGORITHMS"),
    "composition.use": ("federation.refinements", "REFINEMENTS"),
    "transforms": ("federation.transforms", "TRANSFORMS"),
    "selection.policy": ("federation.policies.selection", "SELECTION"),
    "rho.policy": ("federation.policies.rho", "RHO"),
    "kappa.policy": ("federation.policies.kappa", "KAPPA"),
    "hindsight.policies": ("federation.policies.kappa", "KAPPA"),
    "generation.plan": ("generation.plans", "PLANS"),
    "model.name": ("learning.models", "MODELS"),
    "partition.scheme": ("data.partition", "SCHEMES"),
    "world.channel.allocation": ("edge.bandwidth", "ALLOCATIONS"),
}


def help(arguments: Sequence[str]) -> int:
    """Describe settings, by section or key."""
    parser = launch.command_parser(
        "help",
        "List all settings and sections; or describe the settings of a section, or one\n"
        "setting, with default, range, meaning, and the names that it takes.\n"
        "For example:\n"
        "  python -m genfl_mpi help\n"
        "  python -m genfl_mpi help kappa\n"
        "  python -m genfl_mpi help kappa.policy",
    )
    parser.add_argument(
        "topic", nargs="?", metavar="SECTION|KEY|COMMAND", help="section, setting, or command"
    )
    topic = launch.parse_once(parser, arguments).topic
    if not launchers.is_first(os.environ):
        return 0
    return launch.print_lines(_overview() if topic is None else _describe(topic))


def _overview() -> Iterator[str]:
    from genfl_mpi.config.describe import overview

    yield "Give settings as key=value, or in a YAML file. In a section, write section.key:"
    yield "  python -m genfl_mpi configs/cifar10.yaml rounds=50 training.lr=0.01"
    yield "Details: python -m genfl_mpi help SECTION, or help KEY, for example help kappa."
    yield "A list under sweep makes one run per value, for example 'sweep.seed=[1,2,3]'."
    yield ""
    yield from overview()


def _describe(topic: str) -> Iterator[str]:
    """Describe a setting, a section, all settings whose last part is `topic`, or a command."""
    from genfl_mpi.config import describe
    from genfl_mpi.config.settings import keys

    known = keys()
    found = [topic] if topic in known else [key for key in known if key.rpartition(".")[2] == topic]
    for number, key in enumerate(found):
        lines = list(describe.describe(key, names))
        yield from lines if number or lines[0] else lines[1:]
    if topic in COMMANDS:
        yield f"{chr(10) * bool(found)}{topic} is a command: python -m genfl_mpi {topic} --help describes it"
    elif not found:
        raise UserError(
            f"{topic} is neither a setting nor a command{suggestion(topic, [*known, *COMMANDS]) or '.'} "
            "`python -m genfl_mpi help` lists the settings"
        )


def names(key: str) -> dict[str, str]:
    """Return the names that a setting takes and that are defined outside `config`: {name: meaning}."""
    if key == "generation.prompts":
        from genfl_mpi.generation import prompts

        texts = {name: prompts.prompt_file(name).read_text() for name in prompts.shipped_names()}
        return {name: text.removeprefix("# ").partition(".")[0] for name, text in texts.items()}
    if key == "generation.checkpoint":
        from genfl_mpi.generation.model_folder import SHIPPED, shipped_names

        texts = {name: (SHIPPED / name / "README.md").read_text() for name in shipped_names()}
        return {name: text.partition("\n")[0].partition(": ")[2] for name, text in texts.items()}
    if key not in REGISTRIES:
        return {}
    module, registry = REGISTRIES[key]
    found: dict[str, Any] = getattr(import_module(f"genfl_mpi.{module}"), registry)
    return {name: _meaning(entry) for name, entry in found.items()}


def _meaning(entry: Any) -> str:
    """Return the meaning of a built-in: an algorithm's summary, or the first line of a docstring."""
    return getattr(entry, "summary", None) or (inspect.getdoc(entry) or "").partition("\n")[0]
