"""The structure of the package: which room may import which, and the form of the round."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import genfl_mpi
from genfl_mpi.federation.algorithms import ALGORITHMS
from genfl_mpi.util import streams

ROOT = Path(genfl_mpi.__file__).parent
MAX_FLOORS = 8
# From the top down: a room imports only rooms on lower floors.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"runs", "analysis", "preparation"},
    {"federation"},
    {"generation"},
    {"learning", "data", "results", "edge"},
    {"config", "mpi", "privacy"},
    {"util"},
]


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(file):
    return file.relative_to(ROOT).with_suffix("").parts[0]


def test_rooms_import_downwards_only():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert len(FLOORS) <= MAX_FLOORS
    for file in ROOT.rglob("*.py"):
        for name in imports(file):
            parts = name.split(".")
            if (
                parts[0] == "genfl_mpi"
                and len(parts) > 1
                and parts[1] in floor
                and room_of(file) not in ("__init__", parts[1])
            ):
                assert floor[parts[1]] > floor[room_of(file)], f"{file} imports {name}"


def test_every_file_is_in_a_room_and_every_room_is_known():
    assert {room_of(file) for file in ROOT.rglob("*.py")} == {
        "__init__",
        *(room for rooms in FLOORS for room in rooms),
    }
    assert {file.name for file in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_no_two_files_share_a_name():
    names = Counter(file.stem for file in ROOT.rglob("*.py") if file.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == []


def test_the_round_is_short_and_rarely_branches_on_the_server():
    tree = ast.parse((ROOT / "federation/round.py").read_text())
    rounds = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "rounds")
    first = rounds.body[1].lineno  # after the docstring
    assert rounds.end_lineno - first + 1 <= 40
    assert (
        sum(isinstance(node, ast.If) and "server" in ast.unparse(node.test) for node in ast.walk(rounds)) <= 3
    )
    assert ast.unparse(rounds).count(
        "Eq. (1)"
    ) <= 1 and "weighted_sum((kappa1, this.omega_fl), (kappa2, this.omega_a)" in ast.unparse(rounds)


def test_algorithms_and_the_rest_of_the_package_are_independent():
    inside = ROOT / "federation/algorithms"
    for file in inside.glob("*.py"):
        assert not any(
            name
            and name.split(".")[:2] in (["genfl_mpi", "mpi"], ["genfl_mpi", "results"])
            or name == "pathlib"
            for name in imports(file)
        ), file
    for file in ROOT.rglob("*.py"):
        # Every setting of an algorithm declares, where all settings are, which algorithms use it.
        if inside not in file.parents and file.parent != ROOT / "config/sections":
            texts = {
                node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)
            }
            assert not texts & (set(ALGORITHMS) - {"fedavg"}), file  # fedavg is a method's name, too


def test_only_mpi_imports_mpi4py_and_only_generation_imports_diffusers():
    owners = {"mpi4py": "mpi", "diffusers": "generation", "transformers": "generation"}
    for file in ROOT.rglob("*.py"):
        for name in imports(file):
            owner = owners.get(name.split(".")[0])
            assert owner is None or file.relative_to(ROOT).parts[0] == owner, f"{file} imports {name}"


def test_every_purpose_of_a_random_draw_is_declared():
    """A misspelt purpose would silently be another stream."""
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "streams.generator",
                "streams.integer",
            ):
                assert not isinstance(node.args[1], ast.Constant) or node.args[1].value in streams.PURPOSES, (
                    file,
                    node.args[1].value,
                )


def test_edge_is_numpy_and_scipy_alone():
    for file in (ROOT / "edge").rglob("*.py"):
        outside = {name.split(".")[0] for name in imports(file)} - set(sys.stdlib_module_names)
        assert outside <= {"genfl_mpi", "numpy", "scipy"}, file


def test_a_worker_imports_neither_diffusers_nor_transformers():
    code = (
        "import sys, genfl_mpi.runs.runner\n"
        "print([m for m in ('diffusers', 'transformers', 'torchvision') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_help_needs_neither_torch_nor_mpi():
    code = (
        "import sys\nfrom genfl_mpi.cli import main\n"
        "main(['help'])\nmain(['help', 'generation'])\nmain(['--help'])\n"
        "print([m for m in ('torch', 'mpi4py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]") and "generation.per_round" in done.stdout


def test_constraints_pin_an_allowed_version_of_every_dependency():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    lines = (ROOT.parent / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(name): version for name, version in pins}
    for requirement in map(
        Requirement, sum(project["optional-dependencies"].values(), project["dependencies"])
    ):
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_every_imported_library_is_a_declared_dependency():
    """No import relies on a dependency of a dependency."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = ("privacy", "tables", "tensorboard", "wandb", "mlflow", "datasets", "timm")
    needed = project["dependencies"] + [one for name in optional for one in extras[name]]
    declared = {canonicalize_name(Requirement(one).name) for one in needed}
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "mlflow": "mlflow-skinny"}
    for file in ROOT.rglob("*.py"):
        modules = {name.split(".")[0] for name in imports(file)}
        for name in modules - set(sys.stdlib_module_names) - {"genfl_mpi"}:
            assert canonicalize_name(names.get(name, name)) in declared, f"{file} imports {name}"
