"""Turn labels into prompts, by templates and class descriptions in YAML files that users can edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genfl_mpi.config.yaml_text import parse
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import suggestion

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Prompts:
    """templates: texts with one {} each; descriptions: what replaces it, in the order of the classes."""

    templates: list[str]
    descriptions: list[str]

    def text(self, label: int, template: int) -> str:
        """Return the prompt of a label in a template."""
        return self.templates[template].replace("{}", self.descriptions[label])


def prompt_file(name: str) -> Path:
    """Return the YAML file of the prompts `name`, shipped or a file."""
    return FOLDER / f"{name}.yaml" if name in shipped_names() else Path(name)


def load_prompts(name: str, classes: Sequence[str]) -> Prompts:
    """Read the prompts `name`, shipped or a YAML file, for a data set with `classes`. Raises UserError."""
    path = prompt_file(name)
    try:
        content = parse(path.read_text(), str(path))
        templates, descriptions = (
            content["templates"],
            {str(k): v for k, v in content["descriptions"].items()},
        )
    except OSError:
        if name == "auto":
            raise UserError(
                "generation.prompts: none are shipped for this data set; set a YAML file that describes its "
                "classes"
            ) from None
        raise UserError(
            f"generation.prompts: {name} is neither a file nor one of {', '.join(shipped_names())}"
            f"{suggestion(name, shipped_names())}"
        ) from None
    except (UnicodeDecodeError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path}: must be YAML with a list `templates` and a mapping `descriptions`"
        ) from None
    if not isinstance(templates, list) or not templates:
        raise UserError(f"{path}: templates must be a list of texts")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise UserError(f"{path}: template {template!r} must contain the placeholder {{}} once")
    if name not in shipped_names() and (unknown := [label for label in descriptions if label not in classes]):
        raise UserError(f"{path}: descriptions has {unknown[0]!r}, which is not a class of the data set")
    for label in classes:
        if not isinstance(descriptions.get(label), str):
            raise UserError(
                f"generation.prompts: {name} has no description of class {label!r}; "
                "set a file that describes every class"
            )
    return Prompts(templates, [descriptions[label] for label in classes])


def shipped_names() -> list[str]:
    """List the names of the shipped prompts."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))
