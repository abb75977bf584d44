"""What a run reads beside its configuration: no start goes on with what has changed since the run began."""

import os
import shutil
import sys
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
import yaml
from conftest import FAST
from PIL import Image
from safetensors.numpy import save_file

from genfl_mpi.cli import main
from genfl_mpi.config import functions, loading
from genfl_mpi.config.sections.local_training import Model
from genfl_mpi.config.settings import Config
from genfl_mpi.config.types import Section
from genfl_mpi.generation import model_folder
from genfl_mpi.generation.generator import Generator
from genfl_mpi.generation.prompts import FOLDER
from genfl_mpi.learning import models
from genfl_mpi.results import reader
from genfl_mpi.runs import inputs


@pytest.fixture
def named(tmp_path, monkeypatch):
    """A run of milliseconds that names a file or folder wherever it can, and {setting: a file of it}."""
    monkeypatch.setattr(Generator, "has", lambda *_: True)
    monkeypatch.setattr(Generator, "images", lambda one, batch: np.zeros((len(batch), *one.shape), np.uint8))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_choice", raising=False)
    (tmp_path / "own_choice.py").write_text(
        "from genfl_mpi.federation.policies.selection import random as choose\n"
    )
    (tmp_path / "groups.txt").write_text("\n".join(f"writer {sample % 8}" for sample in range(200)))
    shutil.copy(FOLDER / "mnist.yaml", tmp_path / "prompts.yaml")
    shutil.copytree(model_folder.SHIPPED / "digits", tmp_path / "generator")
    (tmp_path / "adapter").mkdir()
    layer, weights = "unet.mid_block.attentions.0.to_q", np.ones((2, 2), np.float32)
    save_file(
        {f"{layer}.lora_{side}.weight": weights for side in "AB"}, tmp_path / "adapter" / model_folder.ADAPTER
    )
    network = models.build(Model(), 10, (3, 8, 8), 0).state_dict()
    save_file({name: one.numpy() for name, one in network.items()}, tmp_path / "weights.safetensors")
    files = {
        "model.weights": tmp_path / "weights.safetensors",
        "selection.policy": tmp_path / "own_choice.py",
        "partition.groups": tmp_path / "groups.txt",
        "generation.prompts": tmp_path / "prompts.yaml",
        "generation.adapter": tmp_path / "adapter" / model_folder.ADAPTER,
        "generation.checkpoint": tmp_path / "generator/unet/diffusion_pytorch_model.safetensors",
    }
    return [
        *FAST,
        "method=genfl",
        "generation.per_round=1",
        "checkpoint.keep=1",
        f"output={tmp_path}/results",
        f"generation.bank={tmp_path}/bank",
        f"model.weights={tmp_path}/weights.safetensors",
        "selection.policy=own_choice:choose",
        "partition.scheme=groups",
        f"partition.groups={tmp_path}/groups.txt",
        f"generation.prompts={tmp_path}/prompts.yaml",
        f"generation.checkpoint={tmp_path}/generator",
        f"generation.adapter={tmp_path}/adapter",
    ], files


def change(file):
    """Change one bit: of the last letter or digit of a text, of the last number of an array."""
    content = bytearray(file.read_bytes())
    is_text = file.suffix != ".safetensors"
    place = next(i for i in reversed(range(len(content))) if not is_text or chr(content[i]).isalnum())
    content[place] ^= 1
    file.write_bytes(content)


def test_every_changed_input_is_refused_and_named(named, tmp_path, capsys):
    """Whether the run is finished, gets more rounds, or a fork; and with all as it was, it goes on."""
    run, files = named
    results = tmp_path / "results/genfl_seed1.h5"
    assert main([*run, "rounds=2"]) == 0
    with reader.open_results(results) as file:
        assert yaml.safe_load(file["config"].attrs["inputs"]).keys() == {"data", *files}
    before = results.read_bytes()
    fork = ["fork", str(results), "--at", "1", "training.lr=0.01", f"output={tmp_path}/fork"]
    for setting, file in files.items():
        original, place = file.read_bytes(), tmp_path / file.relative_to(tmp_path).parts[0]
        change(file)
        for arguments in ([*run, "rounds=2"], [*run, "rounds=3"], fork):
            capsys.readouterr()
            assert main(arguments) == 2, (setting, arguments)
            said = capsys.readouterr().err
            assert f"{results}: {setting}: {place} has changed since the run began; restore it" in said
            assert said.count("\n") == 1
        file.write_bytes(original)
    assert results.read_bytes() == before and not (tmp_path / "fork").exists()
    assert main([*run, "rounds=3"]) == 0 and "continues after round 2" in capsys.readouterr().out


def test_a_fork_may_name_another_file(named, tmp_path, capsys):
    """What the run read in its place does not matter then; the fork is held to its own."""
    run, files = named
    other, prompts = tmp_path / "other.yaml", files["generation.prompts"]
    assert main([*run, "rounds=2"]) == 0
    shutil.copy(prompts, other)
    change(prompts)
    change(other)
    fork = [
        "fork",
        f"{tmp_path}/results/genfl_seed1.h5",
        "--at",
        "1",
        f"generation.prompts={other}",
        f"output={tmp_path}/fork",
    ]
    assert main(fork) == 0
    assert main(fork) == 0 and "already finished" in capsys.readouterr().out
    change(other)
    assert main(fork) == 2
    assert f"fork/genfl_seed1.h5: generation.prompts: {other} has changed" in capsys.readouterr().err


def test_a_run_without_a_round_binds_nobody_to_its_inputs(named, tmp_path, capsys):
    run, files = named
    files["selection.policy"].write_text("def choose(state):\n    return []\n")
    assert main([*run, "rounds=1"]) == 2
    change(files["generation.adapter"])
    files["selection.policy"].write_text(
        "from genfl_mpi.federation.policies.selection import random as choose\n# mended\n"
    )
    del sys.modules["own_choice"]
    assert main([*run, "rounds=1"]) == 0


def test_an_input_that_cannot_be_read_is_one_line(named, tmp_path, capsys):
    run, files = named
    files["partition.groups"].unlink()
    files["partition.groups"].mkdir()
    assert main([*run, "rounds=1"]) == 2
    assert f"partition.groups: {tmp_path}/groups.txt is not a file" in capsys.readouterr().err


def pictures(folder, classes):
    for part in ("train", "test"):
        for number, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(12):
                Image.new("RGB", (8, 8), (60 * number, 20 * i, 9)).save(folder / part / name / f"{i}.png")


def test_a_folder_with_another_class_is_refused_before_anything_is_restored(fast, tmp_path, capsys):
    """The model no longer has as many weights as the checkpoint."""
    images = tmp_path / "images"
    run = [*fast, "data.name=folder", f"data.root={images}", "data.size=8", "partition.min_samples=1"]
    pictures(images, ["cat", "dog"])
    assert main([*run, "rounds=1"]) == 0
    before = (tmp_path / "results/fedavg_seed1.h5").read_bytes()
    pictures(images, ["fox"])
    assert main([*run, "rounds=2"]) == 2
    said = capsys.readouterr().err
    assert f"data: the data set data.name=folder in data.root={images} has changed since" in said
    assert said.count("\n") == 1 and (tmp_path / "results/fedavg_seed1.h5").read_bytes() == before


def texts(section=Config, prefix=""):
    """Dotted keys of all settings that may be any text."""
    for name, field in section.model_fields.items():
        for kind in parts(field.annotation):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from texts(kind, f"{prefix}{name}.")
            elif kind is Any or isinstance(kind, type) and issubclass(kind, str | dict | os.PathLike):
                yield prefix + name


def parts(kind):
    """What a type is made of: str and NoneType of `list[str] | None`."""
    inner = () if get_origin(kind) is Literal else get_args(kind)
    return {part for one in inner for part in parts(one)} if inner else {kind}


# Texts that name no input: what is written, what no round depends on, the data set's folder, as the data set
# has a digest of its own, and what is taken as it stands.
OTHERS = {
    "output",
    "pretraining.output",
    "finetuning.output",
    "generation.bank",
    "hindsight.policies",
    "data.root",
    "data.arrays",
    "search.settings",
    "data.columns.image",
    "data.columns.label",
    "data.columns.client",
    "data.splits",
    "generation.negative_prompt",
    "generation.scheduler",
}


def test_every_setting_that_may_name_an_input_is_watched(named, tmp_path):
    """A new one needs a digest in `inputs`, or to be among the others above."""
    run, _ = named
    own = [key for key in functions.USER_FUNCTION_SETTINGS if key != "generation.checkpoint"]
    lists = "transforms", "composition.use"
    named = [f"{key}={'[own_choice:choose]' if key in lists else 'own_choice:choose'}" for key in own]
    found = inputs.digests(loading.single(overrides=[*run, *named]))
    asynchronous = ["method=fedavg", "time.driver=fedbuff", f"time.trace={tmp_path}/trace.csv"]
    (tmp_path / "trace.csv").write_text("client,start,seconds\n")
    found |= inputs.digests(loading.single(overrides=[*run, "selection.policy=random", *asynchronous]))
    assert sorted(set(texts())) == sorted({*(name.removesuffix("[0]") for name in found), *OTHERS})


def test_what_a_run_does_not_read_is_none_of_its_inputs(named):
    run, _ = named
    found = inputs.digests(loading.single(overrides=[*run, "method=fedavg", "partition.scheme=iid"]))
    assert found.keys() == {"selection.policy", "model.weights"}


@pytest.mark.parametrize("refuses", [False, True])
def test_another_device_is_a_warning_and_recorded_or_refused(refuses, fast, tmp_path, monkeypatch, capsys):
    run = [*fast, "method=fedavg", f"output={tmp_path}/results"]
    assert main([*run, "rounds=1"]) == 0
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "of another kind")
    capsys.readouterr()
    assert main([*run, "rounds=2", f"runtime.same_device={refuses}"]) == 2 * refuses
    said = "".join(capsys.readouterr())
    assert "the run began on CPU " in said and "continues on CPU of another kind" in said
    [path] = (tmp_path / "results").glob("*.h5")
    with reader.open_results(path) as file:
        names = reader.read_columns(file, "rounds", ["device"])["device"]
    assert len(names) == 2 - refuses and len(set(names)) == len(names)
    if not refuses:
        assert main(["show", str(path)]) == 0
        assert "CPU of another kind from round 2" in capsys.readouterr().out
