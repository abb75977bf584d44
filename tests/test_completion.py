"""Completions for the shell."""

import shutil
import subprocess

import pytest

from genfl_mpi.cli import main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    from contextlib import redirect_stdout

    path = tmp_path_factory.mktemp("completion") / "script.bash"
    with path.open("w") as file, redirect_stdout(file):
        assert main(["completion"]) == 0
    return path


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    "words, expected",
    [
        (["doc"], {"doctor"}),
        (["training.dt"], {"training.dtype="}),
        (["training.dtype", "=", "b"], {"bfloat16"}),
        (["training.flip", "="], {"true", "false"}),
        (["algorithm.name", "=", "fedp"], {"fedprox"}),
    ],
)
def test_bash_completes_commands_settings_and_values(words, expected, script):
    line = " ".join(f"'{word}'" for word in ["genfl_mpi", *words])
    code = f'. {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _genfl_mpi; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=script.parent)
    assert set(done.stdout.split()) == expected, done.stderr
