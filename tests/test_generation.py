"""Prompts, plans, the bank, the pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from genfl_mpi import config
from genfl_mpi.data import datasets
from genfl_mpi.errors import UserError
from genfl_mpi.generation.bank import Bank, batches_of_round
from genfl_mpi.generation.generator import Generator
from genfl_mpi.generation.planning import equal
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.learning.training import normalise, train
from genfl_mpi.policies import ServerState

DIGITS = datasets.DESCRIPTIONS["mnist5k"].classes
PROMPTS = load_prompts("mnist", DIGITS)
CPU = torch.device("cpu")


def settings(folder, **changes):
    one = config.single({"method": "genfl"}).generation
    return one.model_copy(update={"bank": str(folder), "seed": 1, "dtype": "float32", "steps": 4, "batch_size": 5, **changes})


def state(round, generated, held):
    one = config.single({"method": "genfl", "generation": {"per_round": 3, "cap": 7}})
    histograms = np.zeros((4, 10), dtype=np.int32)
    histograms[0, held] = 5
    return ServerState(round, one, histograms, np.array(generated))


def test_equal_plan_asks_for_the_shared_labels_up_to_the_cap():
    plan = state(0, [0] * 10, [0, 3])
    assert equal(plan).tolist() == [3, 0, 0, 3, 0, 0, 0, 0, 0, 0]
    assert equal(replace(plan, generated=np.array([6, 0, 0, 7, 0, 0, 0, 0, 0, 0]))).tolist() == [1] + [0] * 9


def test_an_image_is_told_by_its_class_and_number_alone():
    at_once = batches_of_round([4] * 10, [0] * 10, PROMPTS, 1, 100)
    in_two = [*batches_of_round([2] * 10, [0] * 10, PROMPTS, 1, 7), *batches_of_round([2] * 10, [2] * 10, PROMPTS, 1, 7)]

    def images(batches):
        return {(b.label[i], b.seed[i], b.prompt[i], b.template[i]) for b in batches for i in range(len(b))}

    assert images(at_once) == images(in_two) and len(images(at_once)) == 40
    assert max(map(len, in_two)) == 7
    assert len({seed for _, seed, _, _ in images(at_once)}) == 40
    assert images(at_once) != images(batches_of_round([4] * 10, [0] * 10, PROMPTS, 2, 100))


def test_images_are_made_once_and_are_the_same_when_made_again(tmp_path, monkeypatch):
    [batch] = batches_of_round([1, 1, 1] + [0] * 7, [0] * 10, PROMPTS, 1, 5)
    first = Generator(settings(tmp_path / "a"), (1, 28, 28), 1, CPU)
    images = first.images(batch)
    assert images.shape == (3, 1, 28, 28) and images.dtype == np.uint8 and images.std() > 10
    again = Generator(settings(tmp_path / "b"), (1, 28, 28), 1, CPU)
    assert np.array_equal(again.images(batch), images)
    monkeypatch.setattr(Generator, "_draw", lambda *_: pytest.fail("the bank has these images"))
    assert np.array_equal(Generator(settings(tmp_path / "a"), (1, 28, 28), 1, CPU).images(batch), images)


@pytest.mark.parametrize("change", [{"steps": 5}, {"guidance": 3.0}, {"batch_size": 6}, {"dtype": "bfloat16"}])
def test_other_settings_are_other_images(tmp_path, change):
    [batch] = batches_of_round([1] + [0] * 9, [0] * 10, PROMPTS, 1, 5)
    here, there = (Generator(one, (1, 28, 28), 1, CPU).bank for one in (settings(tmp_path), settings(tmp_path, **change)))
    here.write(batch, np.zeros((1, 1, 28, 28), np.uint8))
    assert batch in here and batch not in there


def test_a_colour_data_set_gets_colour_images(tmp_path):
    [batch] = batches_of_round([1] + [0] * 9, [0] * 10, PROMPTS, 1, 1)
    images = Generator(settings(tmp_path, steps=1, batch_size=1), (3, 32, 32), 1, CPU).images(batch)
    assert images.shape == (1, 3, 32, 32)


def test_the_shipped_generator_draws_the_digits_it_is_asked_for(tmp_path):
    """A classifier of UCI digits, the generator's own training data, reads what was drawn."""
    from genfl_mpi.config import Model, Training
    from genfl_mpi.generation.pretraining import framed_digits
    from genfl_mpi.learning import models
    from genfl_mpi.learning.weights import FlatModel

    [batch] = batches_of_round([2] * 10, [0] * 10, PROMPTS, 1, 20)
    drawn = Generator(settings(tmp_path, steps=20, batch_size=20), (1, 28, 28), 1, CPU).images(batch)
    real, labels = framed_digits()
    real = torch.nn.functional.interpolate(real[:, :1], 28, mode="bilinear", antialias=True) / 2 + 0.5
    model = FlatModel(models.build(Model(), 10, (1, 28, 28), seed=1))
    train(model, model.weights.clone(), normalise((real * 255).byte(), (0.13,), (0.31,), CPU), torch.as_tensor(labels),
          Training(epochs=15, lr=0.1), np.random.default_rng(0))
    model.module.eval()
    read = model.module(normalise(torch.from_numpy(drawn), (0.13,), (0.31,), CPU)).argmax(1)
    assert (read == torch.tensor(batch.label)).float().mean() >= 0.9


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_every_class_has_a_description(name):
    prompts = load_prompts(name, datasets.DESCRIPTIONS[name].classes)
    assert prompts.text(0, 0).count("{") == 0 and prompts.descriptions[0] in prompts.text(0, 0)


@pytest.mark.parametrize(("text", "message"), [
    ("templates: [a photo]\ndescriptions: {}", "placeholder"), ("templates: []\ndescriptions: {}", "list of texts"),
    ("- 1", "must be YAML"), ("templates: ['{}']\ndescriptions: {'0': zero}", "no text for class '1'")])
def test_bad_prompt_files(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_prompts(str(tmp_path / "mine.yaml"), DIGITS)


def test_a_bank_holds_what_it_was_given(tmp_path):
    import h5py

    [batch] = batches_of_round([1, 2] + [0] * 8, [0] * 10, PROMPTS, 1, 5)
    bank, images = Bank(tmp_path, {"steps": 1}), np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    bank.write(batch, images)
    assert np.array_equal(bank.read(batch), images)
    with h5py.File(bank.path(batch)) as file:
        assert file["label"][:].tolist() == list(batch.label) and file["seed"][:].tolist() == list(batch.seed)
        assert [text.decode() for text in file["prompt"][:]] == list(batch.prompt)
    assert [file.name for file in tmp_path.iterdir()] == [bank.path(batch).name], "no unfinished file is left"
