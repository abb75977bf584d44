"""Prompts, plans, the bank, the pipeline."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from genfl_mpi.config import loading
from genfl_mpi.data import datasets
from genfl_mpi.federation.policies import ServerState
from genfl_mpi.generation import model_folder
from genfl_mpi.generation.bank import Bank, Batch, batches_of_round
from genfl_mpi.generation.generator import Generator
from genfl_mpi.generation.plans import cohort_deficit, deficit, equal, inverse_frequency
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.learning.training import normalise, train
from genfl_mpi.util.errors import UserError


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    """A tiny checkpoint of Stable Diffusion XL's classes that has learned nothing."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from genfl_mpi.generation.pretraining import build_tokenizer

    words = build_tokenizer(["the digit zero one two"])
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        projection_dim=32,
        max_position_embeddings=16,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=64,
            attention_head_dim=(2, 4),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,
            transformer_layers_per_block=(1, 1),
        )
        vae = AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            sample_size=16,
        )
        pipeline = StableDiffusionXLPipeline(
            vae,
            CLIPTextModel(text),
            CLIPTextModelWithProjection(text),
            words,
            words,
            unet,
            EulerDiscreteScheduler(),
            add_watermarker=False,
        )
    folder = tmp_path_factory.mktemp("sdxl")
    pipeline.save_pretrained(folder)
    return folder


DIGITS = datasets.DESCRIPTIONS["mnist5k"].classes
PROMPTS = load_prompts("mnist", DIGITS)
CPU = torch.device("cpu")


def settings(folder, **changes):
    one = loading.single({"method": "genfl"})
    return one.model_copy(
        update={
            "generation": one.generation.model_copy(
                update={
                    "bank": str(folder),
                    "seed": 1,
                    "dtype": "float32",
                    "device": "cpu",
                    "threads": 1,
                    "steps": 4,
                    "batch_size": 5,
                    **changes,
                }
            )
        }
    )


def state(shared, **generation):
    one = loading.single({"method": "genfl", "generation": {"per_round": 3, "cap": 7, **generation}})
    shared = np.array(shared)
    return ServerState(0, one, shared.sum(1), shared, np.zeros(shared.shape[1], dtype=np.int64))


def test_equal_plan_asks_for_the_shared_labels_up_to_the_cap():
    plan = state([[5, 0, 0, 1], [1, 0, 0, 0]])
    assert equal(plan).tolist() == [3, 0, 0, 3]
    assert equal(replace(plan, generated=np.array([6, 0, 0, 7]))).tolist() == [1, 0, 0, 0]


def test_plans_by_hand():
    # m = (6, 0, 2): inverse frequency 1/7, 1, 1/3; deficit 0, 6, 4.
    plan = state([[5, 0, 1], [1, 0, 1]], per_round=10, cap=100, count="total")
    assert equal(plan).tolist() == [5, 0, 5]
    assert inverse_frequency(plan).tolist() == [1, 7, 2]  # 0.97, 6.77, 2.26
    assert deficit(plan).tolist() == [0, 6, 4]
    assert cohort_deficit(plan) is None
    assert cohort_deficit(replace(plan, cohort=np.array([1]))).tolist() == [
        0,
        10,
        0,
    ]  # m = (1, 0, 1): a deficit of 1 alone


def test_a_total_cap_is_for_all_classes_together():
    plan = state([[1, 1, 1]], per_round=4, cap=6, count="total")
    assert equal(plan).sum() == 4
    assert equal(replace(plan, generated=np.array([2, 1, 1]))).sum() == 2
    assert equal(replace(plan, generated=np.array([2, 2, 2]))).sum() == 0


def test_what_a_division_leaves_goes_round():
    """A few images of many labels: none is forgotten, whatever its number."""

    def after(rounds, shared, plan, **more):
        one = state(shared, count="total", **more)
        for _ in range(rounds):
            one = replace(one, generated=one.generated + plan(one))
        return one.generated.tolist()

    assert after(20, [[1] * 10], equal, per_round=15, cap=10_000) == [30] * 10
    assert after(7, [[1] * 21], equal, per_round=3, cap=100) == [1] * 21
    assert after(10, [[4, 1, 0]], deficit, per_round=1, cap=100) == [0, 4, 6]  # in proportion to 0, 3, 4


def test_nothing_lacking_or_nothing_shared_is_no_division_by_zero():
    assert deficit(state([[4, 4, 4]])).tolist() == [3, 3, 3]
    assert equal(state([[0, 0, 0]])).tolist() == [3, 3, 3]


def test_an_image_is_told_by_its_class_and_number_alone():
    at_once = batches_of_round([4] * 10, [0] * 10, PROMPTS, 1, 100)
    in_two = [
        *batches_of_round([2] * 10, [0] * 10, PROMPTS, 1, 7),
        *batches_of_round([2] * 10, [2] * 10, PROMPTS, 1, 7),
    ]

    def images(batches):
        return {(b.label[i], b.seed[i], b.prompt[i], b.template[i]) for b in batches for i in range(len(b))}

    assert images(at_once) == images(in_two) and len(images(at_once)) == 40
    assert max(map(len, in_two)) == 7
    assert len({seed for _, seed, _, _ in images(at_once)}) == 40
    assert images(at_once) != images(batches_of_round([4] * 10, [0] * 10, PROMPTS, 2, 100))


def test_images_are_made_once_and_are_the_same_when_made_again(tmp_path, monkeypatch):
    [batch] = batches_of_round([1, 1, 1] + [0] * 7, [0] * 10, PROMPTS, 1, 5)
    first = Generator(settings(tmp_path / "a"), (1, 28, 28))
    images = first.images(batch)
    assert images.shape == (3, 1, 28, 28) and images.dtype == np.uint8 and images.std() > 10
    again = Generator(settings(tmp_path / "b"), (1, 28, 28))
    assert np.array_equal(again.images(batch), images)
    monkeypatch.setattr(Generator, "_draw", lambda *_: pytest.fail("the bank has these images"))
    assert np.array_equal(Generator(settings(tmp_path / "a"), (1, 28, 28)).images(batch), images)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5},
        {"guidance": 3.0},
        {"batch_size": 6},
        {"dtype": "bfloat16"},
        {"negative_prompt": "x"},
        {"scheduler": "EulerDiscreteScheduler"},
        {"size": 40},
        {"threads": 2},
    ],
)
def test_other_settings_are_other_images(tmp_path, change):
    [batch] = batches_of_round([1] + [0] * 9, [0] * 10, PROMPTS, 1, 5)
    here, there = (
        Generator(one, (1, 28, 28)).bank for one in (settings(tmp_path), settings(tmp_path, **change))
    )
    here.write(batch, np.zeros((1, 1, 28, 28), np.uint8))
    assert batch in here and batch not in there


@pytest.mark.parametrize(
    "change",
    [
        {"scheduler": "DPMSolverMultistepScheduler"},
        {"size": 24},
        {"negative_prompt": "the digit one"},
        {"save_memory": ["attention_slicing", "vae_slicing", "vae_tiling"]},
        {"dtype": "bfloat16"},
    ],
)
def test_the_pipelines_options_work(tmp_path, change):
    [batch] = batches_of_round([1, 1] + [0] * 8, [0] * 10, PROMPTS, 1, 2)
    plain = Generator(settings(tmp_path, batch_size=2), (1, 28, 28)).images(batch)
    other = Generator(settings(tmp_path, batch_size=2, **change), (1, 28, 28)).images(batch)
    assert other.shape == plain.shape and other.std() > 10
    # What saves memory may round otherwise.
    assert (np.abs(other.astype(int) - plain).max() <= 1) == ("save_memory" in change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheduler": "DPMSolverMultistep"}, "did you mean DPMSolverMultistepScheduler"),
        ({"size": 30}, "not a multiple of 8"),
    ],
)
def test_options_that_the_pipeline_does_not_have(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        Generator(settings(tmp_path, **change), (1, 28, 28))


def test_other_architectures_than_stable_diffusions_first(tmp_path, sdxl):
    """Stable Diffusion XL's classes, with two text encoders; what knows one architecture alone says so."""
    from genfl_mpi.generation.image_flops import count_configured

    [batch] = batches_of_round([1, 1] + [0] * 8, [0] * 10, PROMPTS, 1, 2)
    one = settings(tmp_path, checkpoint=str(sdxl), batch_size=2, steps=2)
    images = Generator(one, (1, 28, 28)).images(batch)
    other = Generator(
        settings(tmp_path, checkpoint=str(sdxl), batch_size=2, steps=2, negative_prompt="zero"), (1, 28, 28)
    ).images(batch)
    assert images.shape == (2, 1, 28, 28) and images.std() > 1 and not np.array_equal(images, other)
    with pytest.raises(UserError, match="generation.size: 12 is not a multiple of 8"):
        Generator(settings(tmp_path, checkpoint=str(sdxl), size=12), (1, 28, 28)).images(batch)
    with pytest.raises(UserError, match="holds a StableDiffusionXLPipeline, but pricing supports"):
        count_configured(one.generation)


def test_a_pipeline_that_draws_from_no_text(tmp_path, sdxl):
    copy = shutil.copytree(sdxl, tmp_path / "copy")
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", "AudioLDMPipeline"))
    with pytest.raises(UserError, match="holds a 'AudioLDMPipeline', which is not among"):
        Generator(settings(tmp_path, checkpoint=str(copy)), (1, 28, 28))


FUNCTIONS = """
import numpy as np

def stripes(batch, shape):
    noise = [np.random.default_rng(seed).integers(0, 20, shape) for seed in batch.seed]
    return np.stack([one + 20 * label for one, label in zip(noise, batch.label)]).astype(np.uint8)

def too_large(batch, shape):
    return np.zeros((len(batch), 1, 64, 64), np.uint8)

def pictures(batch, shape):
    return "pictures"
"""


def test_a_generator_that_is_a_function(tmp_path, monkeypatch):
    """Its batches are padded like any other; a change of its file makes other images."""
    (tmp_path / "own_generator.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    [batch] = batches_of_round([2, 1] + [0] * 8, [0] * 10, PROMPTS, 1, 5)
    generator = Generator(settings(tmp_path / "bank", checkpoint="own_generator:stripes"), (1, 28, 28))
    images = generator.images(batch)
    assert images.shape == (3, 1, 28, 28) and [image.min() // 20 for image in images] == list(batch.label)
    for name, got in (("too_large", r"uint8 \(5, 1, 64, 64\)"), ("pictures", "str")):
        with pytest.raises(
            UserError, match=rf"{name} must return a NumPy array uint8 \(5, 1, 28, 28\), not {got}"
        ):
            Generator(settings(tmp_path / name, checkpoint=f"own_generator:{name}"), (1, 28, 28)).images(
                batch
            )
    (tmp_path / "own_generator.py").write_text(FUNCTIONS + "\n# revised\n")
    assert (
        batch
        not in Generator(settings(tmp_path / "bank", checkpoint="own_generator:stripes"), (1, 28, 28)).bank
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_generator:none", "own_generator:none cannot be imported"),
        ("builtins:print", "file of builtins:print cannot be read"),
    ],
)
def test_a_generator_that_is_no_function(tmp_path, name, message):
    with pytest.raises(UserError, match=f"generation.checkpoint: .*{message}"):
        Generator(settings(tmp_path, checkpoint=name), (1, 28, 28))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-300], lambda data: data.replace(b"\x07", b"\x08"), lambda data: b"no HDF5"]
)
def test_a_damaged_file_of_the_bank_is_named(tmp_path, damage):
    [batch] = batches_of_round([2] + [0] * 9, [0] * 10, PROMPTS, 1, 5)
    bank = Bank(tmp_path, {})
    bank.write(batch, np.full((2, 1, 28, 28), 7, np.uint8))
    bank.path(batch).write_bytes(damage(bank.path(batch).read_bytes()))
    with pytest.raises(UserError, match="damaged or not a file of a bank; remove it"):
        bank.read(batch)


def test_a_bank_of_another_checkpoint_is_reported(tmp_path):
    [batch] = batches_of_round([1] + [0] * 9, [0] * 10, PROMPTS, 1, 5)
    ours, other = (Bank(tmp_path, {"checkpoint": letter * 64, "adapter": None}) for letter in "ab")
    assert ours.describe_foreign_images() is None
    other.write(batch, np.zeros((1, 1, 28, 28), np.uint8))
    notice = f"the images in {tmp_path} are another generator's; this run adds its own"
    assert ours.describe_foreign_images() == notice
    assert batch not in ours and other.describe_foreign_images() is None
    ours.write(batch, np.ones((1, 1, 28, 28), np.uint8))
    assert ours.describe_foreign_images() is None and other.read(batch).max() == 0


def test_a_bank_that_cannot_be_written(tmp_path):
    [batch] = batches_of_round([1] + [0] * 9, [0] * 10, PROMPTS, 1, 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Bank(tmp_path / "file", {}).write(batch, np.zeros((1, 1, 28, 28), np.uint8))


def test_a_colour_data_set_gets_colour_images(tmp_path):
    [batch] = batches_of_round([1] + [0] * 9, [0] * 10, PROMPTS, 1, 1)
    images = Generator(settings(tmp_path, steps=1, batch_size=1), (3, 32, 32)).images(batch)
    assert images.shape == (1, 3, 32, 32)


def test_the_shipped_generator_draws_the_digits_it_is_asked_for(tmp_path):
    """A classifier of UCI digits, the generator's own training data, reads what was drawn."""
    from genfl_mpi.config.sections.local_training import Model, Training
    from genfl_mpi.data.public import uci_digits
    from genfl_mpi.learning import models
    from genfl_mpi.learning.weights import FlatModel

    [batch] = batches_of_round([2] * 10, [0] * 10, PROMPTS, 1, 20)
    drawn = Generator(settings(tmp_path, steps=20, batch_size=20), (1, 28, 28)).images(batch)
    real, labels = uci_digits()
    model = FlatModel(models.build(Model(), 10, (1, 28, 28), seed=1))
    train(
        model,
        model.weights.clone(),
        normalise((real * 255).byte(), (0.13,), (0.31,), CPU),
        torch.as_tensor(labels),
        Training(epochs=15, lr=0.1),
        np.random.default_rng(0),
    )
    model.module.eval()
    read = model.module(normalise(torch.from_numpy(drawn), (0.13,), (0.31,), CPU)).argmax(1)
    assert (read == torch.tensor(batch.label)).float().mean() >= 0.9


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "emnist", "cifar10", "cifar100"])
def test_every_class_has_a_description(name):
    prompts = load_prompts(name, datasets.DESCRIPTIONS[name].classes)
    assert prompts.text(0, 0).count("{") == 0 and prompts.descriptions[0] in prompts.text(0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates: [a photo]\ndescriptions: {}", "placeholder"),
        ("templates: []\ndescriptions: {}", "list of texts"),
        ("- 1", "must be YAML"),
        ("templates: ['{}']\ndescriptions: {'0': zero}", "no description of class '1'"),
        ("templates: ['{}']\ndescriptions: {'0': zero, '10': ten}", "'10', which is not a class"),
    ],
)
def test_bad_prompt_files(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_prompts(str(tmp_path / "mine.yaml"), DIGITS)


def test_a_bank_holds_what_it_was_given(tmp_path):
    import h5py

    [batch] = batches_of_round([1, 2] + [0] * 8, [0] * 10, PROMPTS, 1, 5)
    bank, images = (
        Bank(tmp_path, {"steps": 1}),
        np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8),
    )
    bank.write(batch, images)
    assert np.array_equal(bank.read(batch), images)
    with h5py.File(bank.path(batch)) as file:
        assert file["label"][:].tolist() == list(batch.label) and file["seed"][:].tolist() == list(batch.seed)
        assert [text.decode() for text in file["prompt"][:]] == list(batch.prompt)
    assert [file.name for file in tmp_path.iterdir()] == [bank.path(batch).name], "no unfinished file is left"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_shipped_cifar_generators(tmp_path, name):
    """They draw colour images, for runs that withhold what they learned from."""
    about = datasets.DESCRIPTIONS[name]
    one = settings(tmp_path, checkpoint=name, batch_size=2)
    [batch] = batches_of_round(
        [1] + [0] * (len(about.classes) - 1),
        [0] * len(about.classes),
        load_prompts(name, about.classes),
        1,
        2,
    )
    with pytest.raises(
        UserError, match=f"{name} was trained on 10000 public images of {name}, .* set data.public_pool=10000"
    ):
        Generator(
            one.model_copy(update={"data": one.data.model_copy(update={"name": name, "public_pool": 5000})}),
            about.shape,
        )
    withheld = one.model_copy(
        update={"data": one.data.model_copy(update={"name": name, "public_pool": 10000})}
    )
    images = Generator(withheld, about.shape).images(batch)
    assert images.shape == (1, 3, 32, 32) and images.std() > 10


def flip(file):
    """Flip the lowest bit of the last byte of a file."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_linked_part_of_a_checkpoint_counts(tmp_path):
    folder = shutil.copytree(model_folder.SHIPPED / "digits", tmp_path / "linked")
    digest = model_folder.digest(folder)
    (folder / "unet").rename(tmp_path / "unet")
    (folder / "unet").symlink_to(tmp_path / "unet")
    assert model_folder.digest(folder) == digest
    flip(tmp_path / "unet/diffusion_pytorch_model.safetensors")
    assert model_folder.digest(folder) != digest


def test_a_checkpoint_that_changes_before_it_is_loaded_is_refused(tmp_path):
    """Its images would be stored as those of the one before."""
    folder = shutil.copytree(model_folder.SHIPPED / "digits", tmp_path / "generator")
    generator = Generator(settings(tmp_path / "bank", checkpoint=str(folder)), (1, 28, 28))
    flip(folder / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match=f"generation.checkpoint: {folder} has changed since the run began"):
        generator.load()


def test_a_bank_file_under_another_name_is_refused(tmp_path):
    bank = Bank(tmp_path, {"checkpoint": "a"})
    batch, other = (Batch((1,), (0,), (seed,), ("one",)) for seed in (1, 2))
    bank.write(batch, np.full((1, 1, 8, 8), 7, np.uint8))
    bank.path(batch).rename(bank.path(other))
    refusal = (
        f"{bank.path(other)} holds other images than its name states; remove it, and its images are generated"
    )
    with pytest.raises(UserError, match=refusal):
        bank.read(other)
    bank.write(batch, np.full((1, 1, 8, 8), 7, np.uint8))
    foreign = Bank(tmp_path, {"checkpoint": "b"})
    shutil.copy(bank.path(batch), foreign.path(batch))
    with pytest.raises(UserError, match="holds other images than its name states"):
        foreign.read(batch)
