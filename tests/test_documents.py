"""The documents: their code runs, their links resolve, and they describe the current layout."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import TINY

from genfl_mpi import cli
from genfl_mpi.cli import COMMANDS
from genfl_mpi.config import loading
from genfl_mpi.results.layout import DIMENSIONS, PARTITION, TABLES, VERSION

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Settings that make a command fast enough for a test.
FAST_SETTINGS = {
    "pretrain": ["pretraining.autoencoder_channels=[8,16]", "pretraining.denoiser_channels=[16,32]"]
}


KINDS = ("Tutorial", "How-to", "Reference", "Explanation")


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_a_page_begins_with_its_kind_and_is_linked_from_the_readme(page):
    title, _, kind = page.read_text().splitlines()[:3]
    assert title.startswith("# ") and re.fullmatch(rf"\*({'|'.join(KINDS)}): .*\*", kind)
    assert f"(docs/{page.name})" in PAGES[0].read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_with_settings_names_its_own_output(page):
    """Otherwise it meets the results of the README's main job, and is refused."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^    (?:mpirun -n \d+ )?python -m genfl_mpi (.*)$", text, re.MULTILINE):
        first = line.split()[0]
        if "=" in first and "..." not in line:
            assert "output=" in line or "--help" in line, line


def blocks(page):
    """Yield (line, language, text) of each fenced block."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        yield page.read_text()[: found.start()].count("\n") + 1, found[1], found[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory, bank):
    """Return a folder with the results of the README's commands, from runs of seconds."""
    folder = tmp_path_factory.mktemp("documents")
    overrides = [one for one in TINY if not one.startswith("method")]
    assert (
        cli.main([*overrides, "sweep.seed=[1,2,3]", f"output={folder}/seeds", f"generation.bank={bank}"]) == 0
    )
    shutil.copytree(folder / "seeds", folder / "default", ignore=shutil.ignore_patterns("*seed[23]*"))
    return folder


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page.stem == "tutorial"), id=page.stem)
        for page in PAGES
        if any(blocks(page))
    ],
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, results, bank, tmp_path, monkeypatch):
    """Execute a page's blocks: Python in one namespace, commands on one rank, and files.

    A block whose first line is a file name is written to that file. The default configuration is a tiny
    run here, unless the page overrides it.
    """
    load, matplotlib_backend = loading.load, matplotlib.get_backend()
    short = [*(one for one in TINY if not one.startswith("method")), f"generation.bank={bank}"]

    def load_short(source=None, overrides=(), settings=None, needs=None):
        return load(source, [*short, *overrides], settings, needs)

    monkeypatch.setattr(loading, "load", load_short)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(results, tmp_path / "results")
    matplotlib.use("Agg")
    names = {"__name__": "page"}
    for line, language, text in blocks(page):
        where = f"{page.name}, line {line}"
        if name := re.match(r"# (\S+\.(?:py|yaml))\n", text):
            Path(name[1]).write_text(text)
        elif language == "python":
            text = text.replace("rounds=15", "rounds=2")
            exec(compile("\n" * line + text, str(page), "exec"), names)
        elif language == "bash":
            for command in re.sub(r"\brounds=\d+", "rounds=2", text).splitlines():
                assert (words := shlex.split(command))[:3] == ["python", "-m", "genfl_mpi"], where
                assert cli.main([*words[3:], *FAST_SETTINGS.get(words[3], [])]) == 0, f"{where}: {command}"
        else:
            assert language == "yaml", f"{where}: nothing runs {language!r}"
    matplotlib.use(matplotlib_backend)
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


def test_the_examples_of_own_data_learn(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs/extending.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for _, _, text in blocks(page):
        if name := re.match(r"# (\S+\.(?:py|yaml))\n", text):
            Path(name[1]).write_text(text)
    for name in ("data", "halves"):
        [command] = re.findall(
            rf"^python -m genfl_mpi (method=.*output=results/{name})$", page.read_text(), re.M
        )
        assert cli.main([*shlex.split(command), "runtime.threads=1", "--quiet"]) == 0
        [row] = re.findall(r"^(?:FedAvg|GenFL) +(\S+)", capsys.readouterr().out, re.M)
        assert float(row) > 90
    for name in [name for name in sys.modules if name.startswith("my_")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short_and_has_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    for extras, command in (
        ("mpich", ".venv/bin/mpirun -n 2 .venv/bin/python -m genfl_mpi"),
        ("mpich,test", ".venv/bin/python -m pytest -n 2"),
    ):
        install = f'python3 -m venv .venv && .venv/bin/pip install -q ".[{extras}]"'
        assert f"\n\n    {install} && {command}\n\n" in text


def test_tests_named_in_the_documents_exist():
    tests = {file.name: file.read_text() for file in (ROOT / "tests").glob("*.py")}
    for page in PAGES:
        for name in re.findall(r"`((?:test|fuzz)_\w+)(?:\.py)?`", page.read_text()):
            assert f"{name}.py" in tests or any(f"def {name}(" in text for text in tests.values()), name


def test_commands_named_in_the_documents_exist():
    for page in PAGES:
        for word in re.findall(r"python -m genfl_mpi ([a-z]+)\b(?![=./])", page.read_text()):
            assert word in COMMANDS, f"{page.name}: {word}"


def test_results_page_has_every_column():
    text = (ROOT / "docs/results.md").read_text()
    assert f"this page describes layout {VERSION}." in text
    wanted = []
    for table, columns in {**TABLES, "partition": PARTITION}.items():
        rows = () if table == "partition" else (next(iter(columns)),)
        for name, column in columns.items():
            kind = np.dtype(column.dtype)
            dimensions = ", ".join(rows if name in rows else (*rows, *DIMENSIONS.get(name, ())))
            dtype = f"text, {kind.itemsize} bytes" if kind.kind == "S" else kind.name
            about = f"{column.description}{' (measured)' if column.measured else ''}"
            wanted.append(f"| `{name}` | {dimensions} | {dtype} | {column.unit} | {about} |")
    assert [line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 6] == wanted


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    assert cli.main([*([command] if command != "run" else []), "--help"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"(For example:|examples:).*python -m genfl_mpi" + (f" {command} " if command != "run" else ""),
        output,
    )
