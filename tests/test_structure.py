"""The rooms of the house: who may import whom."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import genfl_mpi
from genfl_mpi.util import streams

ROOT = Path(genfl_mpi.__file__).parent
ROOMS = {"mpi", "data", "learning", "generation", "policies", "edge", "results"}
FOUNDATION = {"__version__", "config", "settings", "fields", "world", "streams", "errors", "naming", "wording"}
ALSO = {("results", "data"), ("generation", "learning")}  # results read what data define; quality is judged by classifiers


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_import_the_foundation_only():
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0]
        if room in ROOMS:
            for name in imports(file):
                parts = name.split(".")
                if parts[0] == "genfl_mpi" and len(parts) > 1:
                    assert parts[1] in FOUNDATION | {room} or (room, parts[1]) in ALSO, f"{file} imports {name}"


def test_only_mpi_imports_mpi4py_and_only_generation_imports_diffusers():
    owners = {"mpi4py": "mpi", "diffusers": "generation", "transformers": "generation"}
    for file in ROOT.rglob("*.py"):
        for name in imports(file):
            owner = owners.get(name.split(".")[0])
            assert owner is None or file.relative_to(ROOT).parts[0] == owner, f"{file} imports {name}"


def test_every_purpose_of_a_random_draw_is_known():
    """A misspelt one would be a stream of its own, unnoticed."""
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("streams.generator", "streams.integer"):
                assert not isinstance(node.args[1], ast.Constant) or node.args[1].value in streams.PURPOSES, (file, node.args[1].value)


def test_edge_is_numpy_and_scipy_alone():
    for file in (ROOT / "edge").rglob("*.py"):
        outside = {name.split(".")[0] for name in imports(file)} - set(sys.stdlib_module_names)
        assert outside <= {"genfl_mpi", "numpy", "scipy"}, file


def test_a_worker_imports_neither_diffusers_nor_transformers():
    code = "import sys, genfl_mpi.runs.runner; print([m for m in ('diffusers', 'transformers', 'torchvision') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_help_needs_neither_torch_nor_mpi():
    code = "import sys\nfrom genfl_mpi.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    print([m for m in ('torch', 'mpi4py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]") and "generation.per_round" in done.stdout


def test_constraints_name_a_version_of_every_dependency_that_is_allowed():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    lines = (ROOT.parent / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(name): version for name, version in pins}
    for requirement in map(Requirement, sum(project["optional-dependencies"].values(), project["dependencies"])):
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_every_library_that_is_imported_is_a_dependency():
    """None is there only because another one needs it now."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["tables"], *extras["tensorboard"]]
    declared = {canonicalize_name(Requirement(one).name) for one in needed}
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    for file in ROOT.rglob("*.py"):
        modules = {name.split(".")[0] for name in imports(file)}
        for name in modules - set(sys.stdlib_module_names) - {"genfl_mpi"}:
            assert canonicalize_name(names.get(name, name)) in declared, f"{file} imports {name}"
