"""The notebook, the API reference and the container's recipe."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import matplotlib
import pytest
import yaml

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "first_steps.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """Its cells in one namespace, as a notebook would execute them, with one round."""
    monkeypatch.chdir(tmp_path)
    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    names = {"__name__": "notebook"}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        text = "".join(cell["source"]).replace('"rounds": 4', '"rounds": 1, "runtime": {"threads": 1}')
        text = text.replace('"rounds=3"', '"rounds=1", "runtime.threads=1"')
        exec(compile(text, f"cell {number}", "exec"), names)
    matplotlib.use(backend)
    assert sorted(path.name for path in (tmp_path / "results/first_steps").glob("*.h5")) == [
        "fedavg_seed1.h5",
        "fedavg_seed2.h5",
    ]


@pytest.mark.slow
def test_the_notebook_runs_in_jupyter(tmp_path, monkeypatch):
    client, formats = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.chdir(tmp_path)
    notebook = formats.read(NOTEBOOK, as_version=4)
    client.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_a_notebook_shows_a_user_error_as_one_line(capsys):
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shell.run_cell(
        "from genfl_mpi import UserError\nraise UserError('rouds is unknown; did you mean rounds?')"
    )
    shown = "".join(capsys.readouterr())
    assert shown.strip() == "UserError: rouds is unknown; did you mean rounds?"


@pytest.mark.slow
def test_the_site_builds_with_the_api_reference(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "api" / "index.html").read_text()
    assert "sections of settings" in page and "read_results" in page


def test_everything_in_the_api_reference_exists():
    for name in re.findall(r"^::: (\S+)", (ROOT / "docs/api.md").read_text(), re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(module), attribute), name


def test_every_page_is_on_the_site_under_its_kind():
    sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = {}
    for section in sections:
        for kind, entries in section.items():
            pages = (
                [entries] if isinstance(entries, str) else [page for one in entries for page in one.values()]
            )
            listed |= dict.fromkeys(pages, kind)
    texts = {page.name: page.read_text() for page in (ROOT / "docs").glob("*.md")}
    kinds = {name: text.split("*", 2)[1].partition(":")[0] for name, text in texts.items()}
    assert listed == kinds


def test_the_container_installs_extras_that_exist():
    text, project = (ROOT / "Dockerfile").read_text(), (ROOT / "pyproject.toml").read_text()
    for extra in re.search(r"\.\[([\w,]+)\]", text)[1].split(","):
        assert f"\n{extra} = [" in project, extra
