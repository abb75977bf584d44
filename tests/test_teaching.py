"""Making a generator, and fine-tuning one."""

import shutil

import numpy as np
import pytest
import yaml
from conftest import mpirun

from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.data import datasets
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.generation import model_folder
from genfl_mpi.generation.validation import read_record
from genfl_mpi.preparation import generator_training
from genfl_mpi.results import reader

SHORT = [
    "pretraining.autoencoder_steps=2",
    "pretraining.denoiser_steps=3",
    "pretraining.autoencoder_channels=[8,16]",
    "pretraining.denoiser_channels=[16,32]",
]
FEW = [
    "data.public_pool=100",
    "finetuning.per_class=2",
    "finetuning.rounds=2",
    "finetuning.epochs=1",
    "finetuning.rank=2",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A generator of a few steps, from a public pool of MNIST."""
    folder = tmp_path_factory.mktemp("made") / "generator"
    assert (
        main(
            [
                "pretrain",
                "method=genfl",
                *SHORT,
                "data.public_pool=200",
                "pretraining.images=public_pool",
                "runtime.threads=2",
                f"pretraining.output={folder}",
            ]
        )
        == 0
    )
    return folder


def test_the_same_generator_every_time(made, tmp_path):
    assert (
        main(
            [
                "pretrain",
                "method=genfl",
                *SHORT,
                "data.public_pool=200",
                "pretraining.images=public_pool",
                "runtime.threads=2",
                f"pretraining.output={tmp_path}/again",
            ]
        )
        == 0
    )
    assert model_folder.digest(tmp_path / "again") == model_folder.digest(made)
    assert (
        main(
            [
                "pretrain",
                "method=genfl",
                *SHORT,
                "data.public_pool=200",
                "pretraining.images=public_pool",
                "runtime.threads=2",
                "pretraining.mirror=true",
                "pretraining.prediction=v_prediction",
                f"pretraining.output={tmp_path}/other",
            ]
        )
        == 0
    )
    assert model_folder.digest(tmp_path / "other") != model_folder.digest(made)


@pytest.mark.slow
def test_a_run_with_a_generator_of_ones_own(made, tiny, tmp_path, capsys):
    arguments = [*tiny, f"generation.checkpoint={made}"]
    assert main(arguments) == 2
    record = read_record(made)
    assert record["data"] == "mnist5k" and record["classes"] == list("0123456789")
    assert (
        "was trained on 200 public images of mnist5k, which clients must not hold: set data.public_pool=200"
        in capsys.readouterr().err
    )
    assert main([*arguments, "data.public_pool=200"]) == 0
    with reader.open_results(tmp_path / "results/genfl_seed1.h5") as file:
        assert file["partition/label_histograms"][:].sum() == 3800
        assert file["generated/image"].shape == (20, 1, 28, 28)


def test_what_pretrain_cannot_do(made, capsys):
    arguments = ["pretrain", "method=genfl", *SHORT, f"pretraining.output={made}"]
    assert main([*arguments, "data.public_pool=200"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main([*arguments, "pretraining.images=public_pool"]) == 2
    assert "data.public_pool is 0" in capsys.readouterr().err
    assert main([*arguments, "pretraining.denoiser_channels=[20,32]"]) == 2
    assert "pretraining.denoiser_channels= needs a multiple of 16" in capsys.readouterr().err
    done = mpirun(2, "-m", "genfl_mpi", *arguments)
    assert done.returncode == 2 and done.stderr.count("pretrain runs on one rank, not 2") == 1


@pytest.mark.parametrize(
    ("steps", "message"),
    [(3, "the denoiser diverged, its loss is nan at step 2"), (1, "the trained weights are not finite")],
)
def test_a_diverging_pretraining_ends_in_one_line(tmp_path, capsys, steps, message):
    """An absurd learning rate spoils the weights at the first step, and the loss at the second."""
    arguments = ["pretrain", "method=genfl", *SHORT, "data.public_pool=100", "runtime.threads=1"]
    folder = tmp_path / "generator"
    more = ["pretraining.denoiser_lr=1e12", f"pretraining.denoiser_steps={steps}"]
    assert main([*arguments, *more, f"pretraining.output={folder}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said and "set a pretraining.denoiser_lr below 1e+12" in said
    assert not any(folder.iterdir()), "the folder is free for another attempt"


@pytest.mark.parametrize("at", ["server", "clients"])
def test_an_adapter_is_the_same_on_any_ranks(tiny, tmp_path, at):
    arguments = ["finetune", *tiny, *FEW, f"finetuning.at={at}"]
    assert main([*arguments, f"finetuning.output={tmp_path}/one"]) == 0
    done = mpirun(2, "-m", "genfl_mpi", *arguments, f"finetuning.output={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    assert model_folder.digest(tmp_path / "one") == model_folder.digest(tmp_path / "two")
    record = yaml.safe_load((tmp_path / "two/training.yaml").read_text())
    assert record["images"] == 20 and (record["bytes_sent"] > 0) == (at == "clients") == (
        record["holders"] > 1
    )


def test_a_sample_that_several_clients_hold_is_given_by_one():
    config = single(
        None,
        [
            "partition.scheme=iid",
            "partition.replacement=true",
            "partition.samples=300",
            "clients=40",
            "method=genfl",
            "finetuning.at=clients",
            "finetuning.per_class=10",
        ],
    )
    data, about = load_and_divide(config), datasets.describe(config.data)
    given = np.concatenate(generator_training._holders(config, about, data))
    assert np.bincount(data["train_labels"][given]).tolist() == [10] * 10


def test_a_run_with_an_adapter(tiny, tmp_path, capsys):
    assert (
        main(
            ["finetune", *tiny, *FEW, "finetuning.layers=attention", f"finetuning.output={tmp_path}/adapter"]
        )
        == 0
    )
    images = {}
    for name, more in (("plain", []), ("adapted", [f"generation.adapter={tmp_path}/adapter"])):
        assert main([*tiny, "data.public_pool=100", f"output={tmp_path}/{name}", *more]) == 0
        with reader.open_results(tmp_path / name / "genfl_seed1.h5") as file:
            images[name], keys = file["generated/image"][:].astype(int), set(file["generated/batch"][:])
            images[name + " keys"] = keys
    assert not images["plain keys"] & images["adapted keys"]
    assert 0 < np.abs(images["plain"] - images["adapted"]).mean() < 60, "the same digits, changed a little"
    capsys.readouterr()
    assert main([*tiny, f"generation.adapter={tmp_path}/adapter"]) == 2
    assert "adapter was trained on 20 public images of mnist5k" in capsys.readouterr().err


def test_adapters_that_cannot_be_used(made, tiny, tmp_path, capsys):
    folder = tmp_path / "adapter"
    assert main(["finetune", *tiny, *FEW, f"finetuning.output={folder}"]) == 0
    arguments = [*tiny, "data.public_pool=200"]
    for nowhere in (f"{tmp_path}/none", "''"):
        assert main([*arguments, f"generation.adapter={nowhere}"]) == 2
        assert "is not a folder with a file" in capsys.readouterr().err
    assert main([*arguments, f"generation.adapter={folder}", f"generation.checkpoint={made}"]) == 2
    assert "was trained for another checkpoint" in capsys.readouterr().err
    record = yaml.safe_load((folder / "training.yaml").read_text())
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other/training.yaml").write_text(yaml.safe_dump({**record, "classes": ["cat", "dog"]}))
    assert main([*arguments, f"generation.adapter={tmp_path}/other"]) == 2
    assert "generation.adapter: other draws ['cat', 'dog'], but not '0' of data" in capsys.readouterr().err
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken/pytorch_lora_weights.safetensors").write_bytes(b"\0" * 100)
    assert main([*arguments, f"generation.adapter={tmp_path}/broken"]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["data.public_pool=10"],
            "needs a public pool of 20 images at the server, not 10: set data.public_pool=20",
        ),
        (["finetuning.at=clients", "finetuning.per_class=2000"], "the clients hold 3"),
        (["generation.checkpoint=nowhere"], "folder nowhere does not exist"),
    ],
)
def test_what_finetune_cannot_do(tiny, tmp_path, capsys, change, message):
    assert main(["finetune", *tiny, *FEW, *change, f"finetuning.output={tmp_path}/adapter"]) == 2
    assert message in capsys.readouterr().err
