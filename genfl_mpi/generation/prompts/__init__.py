"""Prompts: from a label to a text. Templates and class descriptions are YAML files that a user edits."""

from dataclasses import dataclass
from pathlib import Path

from genfl_mpi.config.loading import parse
from genfl_mpi.util.errors import UserError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Prompts:
    """templates: texts with a {} each; descriptions: what stands there, in the order of the class numbers."""

    templates: list[str]
    descriptions: list[str]

    def text(self, label, template):
        return self.templates[template].replace("{}", self.descriptions[label])


def path_of(name):
    """Return the YAML file of the prompts `name`, one of ours or a file."""
    return FOLDER / f"{name}.yaml" if name in ours() else Path(name)


def load_prompts(name, classes):
    """Read the prompts `name`, one of ours or a YAML file, for a data set with these class names. Raises UserError."""
    path = path_of(name)
    try:
        content = parse(path.read_text(), str(path))
        templates, descriptions = (
            content["templates"],
            {str(k): v for k, v in content["descriptions"].items()},
        )
    except OSError:
        raise UserError(
            f"generation.prompts: {name} is neither a file nor one of {', '.join(ours())}"
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
    if name not in ours() and (unknown := [label for label in descriptions if label not in classes]):
        raise UserError(f"{path}: descriptions has {unknown[0]!r}, which is no class of the data set")
    for label in classes:
        if not isinstance(descriptions.get(label), str):
            raise UserError(
                f"generation.prompts: {name} has no description of class {label!r}; give a file that has one for each class"
            )
    return Prompts(templates, [descriptions[label] for label in classes])


def ours():
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))
