"""List the classes of the installed diffusers from its source.

Importing diffusers takes seconds, and most ranks never need it. Only this module depends on how that source
is written: tests/test_undocumented.py compares its lists with those of an import.
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from genfl_mpi.util.errors import UserError


@lru_cache
def class_names(ending: str = "") -> set[str]:
    """Return the names with this ending that diffusers exports. Raises UserError."""
    return _find("__init__.py", r"\A.*\Z", rf'"(\w+{ending})"')


@lru_cache
def pipeline_names() -> set[str]:
    """Return the names of diffusers' text-to-image pipelines. Raises UserError."""
    table = r"^AUTO_TEXT2IMAGE_PIPELINES_MAPPING = OrderedDict\(.*?^\)"
    return _find("pipelines/auto_pipeline.py", table, r"\b(\w+Pipeline)\b")


def _find(file: str, part: str, pattern: str) -> set[str]:
    """Return all matches of `pattern` in the first match of `part` in a source file of diffusers.

    Raises UserError if it finds none.
    """
    spec = importlib.util.find_spec("diffusers")
    folder = next(iter((spec and spec.submodule_search_locations) or [""]))
    try:
        text = Path(folder, file).read_text()
    except OSError:
        text = ""
    table = re.search(part, text, re.DOTALL | re.MULTILINE)
    if found := set(re.findall(pattern, table[0] if table else "")):
        return found
    raise UserError(
        f"generation: {file} of diffusers {version('diffusers')} does not have the expected form; "
        "install the version in constraints.txt"
    )
