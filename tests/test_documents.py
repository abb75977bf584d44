"""The documents: their code runs, their links lead somewhere, and they describe the layout that there is."""

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
SHORT = {
    "pretrain": ["pretraining.autoencoder_channels=[8,16]", "pretraining.denoiser_channels=[16,32]"]
}  # tests have little time


def blocks(page):
    """(line, language, text) of each fenced block."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        yield page.read_text()[: found.start()].count("\n") + 1, found[1], found[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory, bank):
    """What the README's commands leave, from runs of seconds."""
    folder = tmp_path_factory.mktemp("documents")
    overrides = [one for one in TINY if not one.startswith("method")]
    assert (
        cli.main([*overrides, "sweep.seed=[1,2,3]", f"output={folder}/seeds", f"generation.bank={bank}"]) == 0
    )
    shutil.copytree(folder / "seeds", folder / "default", ignore=shutil.ignore_patterns("*seed[23]*"))
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, results, bank, tmp_path, monkeypatch):
    """Python is run, in one namespace a page; commands are, on one rank; what begins with a file's name is that file. The default is a tiny
    run here, where the page does not say otherwise."""
    load, matplotlib_backend = loading.load, matplotlib.get_backend()
    short = [*(one for one in TINY if not one.startswith("method")), f"generation.bank={bank}"]
    monkeypatch.setattr(loading, "load", lambda source=None, overrides=(): load(source, [*short, *overrides]))
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
            exec(compile("\n" * line + text, str(page), "exec"), names)
        elif language == "bash":
            for command in text.splitlines():
                assert (words := shlex.split(command))[:3] == ["python", "-m", "genfl_mpi"], where
                assert cli.main([*words[3:], *SHORT.get(words[3], [])]) == 0, f"{where}: {command}"
        else:
            assert language == "yaml", f"{where}: nothing runs {language!r}"
    matplotlib.use(matplotlib_backend)
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


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
            wanted.append(
                f"| `{name}` | {dimensions} | {f'text, {kind.itemsize} bytes' if kind.kind == 'S' else kind.name} | {column.unit} | "
                f"{column.about}{' (measured)' if column.measured else ''} |"
            )
    assert [line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 6] == wanted


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([*([command] if command != "run" else []), "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"(For example:|examples:).*python -m genfl_mpi" + (f" {command} " if command != "run" else ""), said
    )
