"""The package: sdist and wheel are complete, and an installed wheel runs from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from conftest import is_open_mpi, launcher

from genfl_mpi.results import reader

ROOT = Path(__file__).parent.parent
MIN_SETUPTOOLS = 77  # pyproject.toml's licence expression needs it


def run(*arguments, **options):
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def version(library):
    """Return the major version of an installed library, or 0."""
    try:
        return int(metadata.version(library).split(".")[0])
    except metadata.PackageNotFoundError:
        return 0


def tracked(folder):
    """Return the files of a folder that git tracks; without git, all that are not caches."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return set(listed.stdout.split("\n")) - {""}
    files = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build an sdist, and a wheel from it, of a copy of the source tree; returns the folder of both."""
    if not version("build"):  # an import would also find a folder build/
        pytest.skip("needs the package `build`: pip install build")
    folder = tmp_path_factory.mktemp("package")
    names = ("genfl_mpi", "tests", "docs", "configs", "jobs", "benchmarks")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in names:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, folder / "source")
    isolation = ["--no-isolation"] if version("setuptools") >= MIN_SETUPTOOLS else []
    run(sys.executable, "-m", "build", *isolation, "--outdir", folder / "dist", folder / "source")
    return folder / "dist"


@pytest.mark.slow
def test_sdist_and_wheel_contain_everything(built):
    package = tracked("genfl_mpi")
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    assert "genfl_mpi/py.typed" in package
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if not name.endswith("/")}
        assert package <= inside
        assert {name.split("/")[0] for name in inside} == {
            "genfl_mpi",
            f"{wheel.name.split('-py3')[0]}.dist-info",
        }
        assert any(name.endswith("licenses/LICENSE") for name in inside)
    with tarfile.open(sdist) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    others = set().union(*(tracked(name) for name in ("docs", "configs", "jobs", "benchmarks", "tests")))
    assert package | others | {"README.md", "LICENSE", "CITATION.cff", "constraints.txt"} <= inside


@pytest.mark.slow
def test_an_installed_wheel_runs_from_an_empty_folder(built, tmp_path):
    """The new environment sees this one's libraries, but not its genfl_mpi."""
    [wheel] = built.glob("*.whl")
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin/python"
    paths = [run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()]
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(paths[0]) / "libraries.pth").write_text("\n".join(sorted(libraries)))
    variables = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GENFL_DATA")
    }
    variables["LD_LIBRARY_PATH"] = (
        f"{sys.prefix}/lib:{variables.get('LD_LIBRARY_PATH', '')}"  # the extra [mpich]
    )
    # Else pip finds the one of this environment, of the same version, and installs nothing.
    options = ["--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    run(python, "-m", "pip", "install", *options, wheel, env=variables)
    where = run(python, "-c", "import genfl_mpi; print(genfl_mpi.__file__)", cwd=empty, env=variables)
    assert Path(where.strip()).is_relative_to(environment)

    extra = ["--allow-run-as-root", "--oversubscribe"] if is_open_mpi() else []
    run(launcher(), *extra, "-n", 2, python, "-m", "genfl_mpi", "rounds=1", cwd=empty, env=variables)
    assert sorted(path.name for path in (empty / "results/default").glob("*.h5")) == [
        "aigc_seed1.h5",
        "fedavg_seed1.h5",
        "genfl_seed1.h5",
    ]
    with reader.open_results(empty / "results/default/genfl_seed1.h5") as file:
        assert len(file["rounds/round"]) == 1 and len(file["generated/image"]) > 0
