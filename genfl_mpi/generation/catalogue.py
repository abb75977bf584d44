"""What the installed diffusers has, read from its source: importing it takes seconds, and most ranks never do.

This is the only place that depends on how that source is written. tests/test_undocumented.py compares it with
what an import finds.
"""

import importlib.util
import re
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from genfl_mpi.util.errors import UserError


@lru_cache
def names(ending=""):
    """Return the names with this ending that diffusers exports, as a set. Raises UserError."""
    return _find("__init__.py", r"\A.*\Z", rf'"(\w+{ending})"')


@lru_cache
def text_to_image():
    """Return the names of diffusers' pipelines from text to images, as a set. Raises UserError."""
    table = r"^AUTO_TEXT2IMAGE_PIPELINES_MAPPING = OrderedDict\(.*?^\)"
    return _find("pipelines/auto_pipeline.py", table, r"\b(\w+Pipeline)\b")


def _find(file, part, pattern):
    """Return what `pattern` finds in the first `part` of a source file of diffusers, as a set.

    Raises UserError if that is nothing.
    """
    try:
        text = Path(importlib.util.find_spec("diffusers").submodule_search_locations[0], file).read_text()
    except OSError:
        text = ""
    table = re.search(part, text, re.DOTALL | re.MULTILINE)
    if found := set(re.findall(pattern, table[0] if table else "")):
        return found
    raise UserError(
        f"generation: diffusers {version('diffusers')} does not list in its {file} what genfl_mpi looks for; "
        "install the release that is named in constraints.txt"
    )
