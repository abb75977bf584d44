"""Checkpoints and adapters that are damaged or hostile: refused in one line, and nothing in them is run."""

import json
import os
import random
import shutil
import sys

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file

from genfl_mpi.cli import main
from genfl_mpi.config import loading
from genfl_mpi.generation import model_folder, pipeline
from genfl_mpi.generation.image_flops import count_pipeline
from genfl_mpi.util.errors import UserError

DIGITS = model_folder.SHIPPED / "digits"
CONFIG = loading.single({"method": "genfl"})
GENERATION = CONFIG.generation.model_copy(update={"steps": 1, "dtype": "float32", "device": "cpu"})
LAYER = "unet.down_blocks.0.resnets.0.conv1"  # of the shipped checkpoint; a convolution with 32 channels


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped checkpoint, to be spoiled."""
    return shutil.copytree(DIGITS, tmp_path / "copy")


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that shows that code was run: importing `trap`, which is on Python's path, makes it."""
    file = tmp_path / "marker"
    (tmp_path / "trap.py").write_text(trap(file))
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop("trap", None)


def trap(marker):
    """Code that leaves the file `marker`, and looks like a part of a pipeline."""
    return (
        f"open({str(marker)!r}, 'w').close()\n"
        "from diffusers import StableDiffusionPipeline as Trap, UNet2DConditionModel as UNet\n"
    )


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def prepared(folder, adapter=None):
    """What every start does, before a round: `folder`, or the UserError."""
    found = model_folder.locate(str(folder))
    model_folder.check_training_data(found, CONFIG.data)
    model_folder.digest(found)
    if adapter is not None:
        model_folder.locate_adapter(str(adapter), found)
    return found


def drawn(folder, adapter=None):
    """An image, as a run draws it."""
    loaded = pipeline.read(prepared(folder, adapter), adapter)
    settings = GENERATION.model_copy(update={"adapter": adapter and str(adapter)})
    return pipeline.generate_images(loaded, ["the digit one"], [1], settings, (1, 28, 28))


def names_module(folder, _):
    change(folder / "model_index.json", unet=["trap", "UNet"])


def names_module_of_tokenizer(folder, _):
    change(folder / "model_index.json", tokenizer=["trap", "UNet"])


def has_module_in_its_folder(folder, marker):
    (folder / "unet/other.py").write_text(trap(marker))
    change(folder / "model_index.json", unet=["other", "UNet"])


def names_pipeline_of_its_own(folder, marker):
    (folder / "pipeline.py").write_text(trap(marker))
    change(folder / "model_index.json", _class_name=["pipeline", "Trap"])


def names_community_pipeline(folder, marker):
    (folder / "pipeline.py").write_text(trap(marker))
    change(folder / "model_index.json", _class_name="Trap")


def asks_for_custom_pipeline(folder, marker):
    (folder / "pipeline.py").write_text(trap(marker))
    change(folder / "model_index.json", custom_pipeline=str(folder))


def trusts_itself(folder, _):
    change(folder / "unet/config.json", trust_remote_code=True, auto_map={"AutoModel": "trap.UNet"})


def maps_text_encoder(folder, marker):
    (folder / "text_encoder/other.py").write_text(trap(marker))
    change(folder / "text_encoder/config.json", text_config={"auto_map": {"AutoModel": "other.UNet"}})


def maps_tokenizer(folder, marker):
    (folder / "tokenizer/other.py").write_text(trap(marker))
    change(folder / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["other.UNet", None]})


def downloads_kernel(folder, _):
    change(folder / "text_encoder/config.json", _attn_implementation="somebody/kernel")


def nests_pipeline(folder, _):
    """A part that is a pipeline has an index of its own, which names a module."""
    shutil.copytree(DIGITS, folder / "unet", dirs_exist_ok=True)
    names_module(folder / "unet", _)
    change(folder / "model_index.json", unet=["diffusers", "StableDiffusionPipeline"])


def nests_auto_pipeline(folder, _):
    nests_pipeline(folder, _)
    change(folder / "model_index.json", unet=["diffusers", "DiffusionPipeline"])


def has_pickled_unet(folder, marker):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save(Bomb(marker), folder / "unet/diffusion_pytorch_model.bin")


def has_pickled_text_encoder(folder, marker):
    (folder / "text_encoder/model.safetensors").unlink()
    torch.save(Bomb(marker), folder / "text_encoder/pytorch_model.bin")


def has_pickled_shard(folder, marker):
    part = folder / "unet"
    torch.save(Bomb(marker), part / "shard.bin")
    names = load_file(part / "diffusion_pytorch_model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "shard.bin")}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def has_pickled_adapter(folder, marker):
    torch.save(Bomb(marker), folder / "text_encoder/adapter_model.bin")
    settings = {"peft_type": "LORA", "base_model_name_or_path": "x"}
    (folder / "text_encoder/adapter_config.json").write_text(json.dumps(settings))


ATTACKS = {
    names_module: "model_index.json: unet is of 'trap'",
    names_module_of_tokenizer: "model_index.json: tokenizer is of 'trap'",
    has_module_in_its_folder: "model_index.json: unet is of 'other'",
    names_pipeline_of_its_own: "model_index.json: _class_name must be",
    names_community_pipeline: "holds a 'Trap'",
    asks_for_custom_pipeline: "model_index.json: it sets custom_pipeline",
    trusts_itself: "unet/config.json: it sets auto_map",
    maps_text_encoder: "text_encoder/config.json: it sets auto_map",
    maps_tokenizer: "tokenizer_config.json: it sets auto_map",
    downloads_kernel: "it requests a download with _attn_implementation",
    nests_pipeline: "unet: a StableDiffusionPipeline is not a part of a pipeline",
    nests_auto_pipeline: "unet: a DiffusionPipeline is not a part of a pipeline",
    has_pickled_unet: "unet has no safetensors file diffusion_pytorch_model.safetensors",
    has_pickled_text_encoder: "text_encoder has no safetensors file model.safetensors",
    has_pickled_shard: "weight_map must name safetensors files in its folder, not 'shard.bin'",
    has_pickled_adapter: "text_encoder: it has an adapter_config.json",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_code_of_a_checkpoint_is_run(folder, marker, attack):
    """The loader refuses it too, or loads it without what is hostile in it, if the check is off."""
    attack(folder, marker)
    with pytest.raises(UserError, match=ATTACKS[attack]):
        pipeline.read(prepared(folder))
    try:
        pipeline.read(folder)
    except UserError as error:
        assert str(folder) in str(error)
    assert not marker.exists()


def test_code_and_pickles_beside_a_checkpoint_are_left_alone(folder, marker):
    """As in a clone of a repository: files that diffusers would run, were it asked to, do not matter."""
    for name in ("pipeline.py", "None.py", "unet/diffusers.py", "tokenizer/transformers.py"):
        (folder / name).write_text(trap(marker))
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"):
        torch.save(Bomb(marker), folder / name)
    unused = {"safety_checker": ["trap", "UNet"], "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    change(folder / "model_index.json", **unused)
    assert (drawn(folder) == drawn(DIGITS)).all()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("part", "origin"),
    [
        ("unet", ["diffusers", "AutoModel"]),
        ("unet", ["diffusers", "OnnxRuntimeModel"]),
        ("unet", ["diffusers", "NoSuchModel"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("text_encoder", ["transformers", "pipeline"]),
        ("text_encoder", ["transformers", "CLIPTextConfig"]),
        ("text_encoder", ["transformers", "NoSuchModel"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("scheduler", ["diffusers", "NoSuchScheduler"]),
    ],
)
def test_classes_that_are_no_parts_of_a_pipeline(folder, part, origin):
    change(folder / "model_index.json", **{part: origin})
    message = f"a {origin[1]} is not a part of a pipeline|is a '{origin[1]}', which diffusers lacks"
    with pytest.raises(UserError, match=message):
        pipeline.read(prepared(folder))


def test_nothing_is_unpickled_on_any_way(folder, marker, monkeypatch):
    """A class of a library that reads a pickle by itself is stopped; torch is then as it was before."""
    from diffusers import AutoencoderKL

    torch.save(Bomb(marker), folder / "vae/more.pt")
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", lambda path, **_: torch.load(path / "more.pt"))
    load = torch.load
    with pytest.raises(UserError, match="more.pt may hold code"):
        pipeline.read(folder, dtype="bfloat16")
    assert torch.load is load and torch.get_default_dtype() == torch.float32 and not marker.exists()


def test_no_file_outside_of_a_checkpoint_is_read(folder, tmp_path):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    names = list(load_file(weights))
    shutil.move(weights, tmp_path / "outside.safetensors")
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    for shard in ("../../outside.safetensors", str(tmp_path / "outside.safetensors"), "..", 5):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, shard)}))
        with pytest.raises(UserError, match="index.json: weight_map must"):
            prepared(folder)
    shutil.move(tmp_path / "outside.safetensors", folder / "unet/inside.safetensors")
    whole = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "inside.safetensors")}
    index.write_text(json.dumps(whole))
    assert (drawn(folder) == drawn(DIGITS)).all()
    for part in ("../copy", "unet/../vae", "/tmp"):
        change(folder / "model_index.json", **{part: ["diffusers", "AutoencoderKL"]})
        with pytest.raises(UserError, match="model_index.json: .* does not name a part of a pipeline"):
            prepared(folder)
        shutil.copy(DIGITS / "model_index.json", folder)
    shutil.move(folder / "vae", tmp_path / "vae")
    (folder / "vae").symlink_to(tmp_path / "vae")
    with pytest.raises(UserError, match="vae: it is a link to outside the checkpoint's folder"):
        prepared(folder)


INDEX = '{"_class_name": "StableDiffusionPipeline", "unet": %s}'
DAMAGED = [
    ("model_index.json", '{"_class_name": ["a", "b"], "unet": ["diffusers", "x"]}', "_class_name must be"),
    ("model_index.json", INDEX % '["diffusers", ["x"]]', "unet must be"),
    ("model_index.json", INDEX % '["diffusers"]', "unet must be"),
    ("model_index.json", INDEX % "5", "unet must be"),
    ("model_index.json", INDEX % '[["diffusers", "x"], "x"]', "unet must be"),
    ("model_index.json", INDEX % "[null, null]", "names no part"),
    ("model_index.json", "[]", "damaged"),
    ("model_index.json", "[" * 100_000, "damaged"),
    ("model_index.json", None, "missing"),
    ("unet/config.json", "null", "damaged"),
    ("unet/config.json", None, "unet has no config.json"),
    ("scheduler/scheduler_config.json", "5", "damaged"),
    ("tokenizer/tokenizer_config.json", "{", "damaged"),
    ("text_encoder/config.json", "\xff", "damaged"),
    ("vae/diffusion_pytorch_model.safetensors", "x", "damaged"),
    ("training.yaml", "!!python/object/apply:os.system [ls]", "not valid YAML"),
    ("training.yaml", "!!timestamp x", "not valid YAML"),
    ("training.yaml", "data: [", "not valid YAML"),
    ("training.yaml", "- 1", "not what"),
    ("training.yaml", "", "not what"),
    ("training.yaml", "data: mnist5k", "not what"),
    ("training.yaml", "{data: [mnist5k], public_pool: 1}", "not what"),
    ("training.yaml", "{data: mnist5k, public_pool: many}", "not what"),
    ("training.yaml", "{data: mnist5k, public_pool: 1, classes: [1]}", "not what"),
    ("training.yaml", "\xff", "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGED)
def test_a_damaged_checkpoint_ends_a_start_in_one_line(folder, tmp_path, capsys, name, content, message):
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content, encoding="latin-1")
    places = [f"output={tmp_path}/results", f"generation.bank={tmp_path}/bank"]
    assert main([*TINY, *places, f"generation.checkpoint={folder}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(folder) in said and name.rpartition("/")[2] in said, said
    assert message in said


def test_what_only_the_loader_finds_is_one_line(folder):
    """Files that are well-formed and do not belong together."""

    def spoiled(part, **values):
        name = f"{part}/{'scheduler_' if part == 'scheduler' else ''}config.json"
        original = (folder / name).read_bytes()
        change(folder / name, **values)
        with pytest.raises(UserError) as caught:
            drawn(folder)
        (folder / name).write_bytes(original)
        return str(caught.value)

    unfit = "the weights do not fit config.json: they"
    assert f"{folder}/unet" in spoiled("unet", block_out_channels=[32, 128])
    assert f"unet: {unfit} have" in spoiled("unet", down_block_types=["DownBlock2D", "DownBlock2D"])
    assert f"text_encoder: {unfit} have" in spoiled("text_encoder", num_hidden_layers=1)
    assert f"text_encoder: {unfit} lack" in spoiled("text_encoder", num_hidden_layers=3)
    assert f"{folder}/scheduler cannot be loaded" in spoiled("scheduler", beta_schedule=5)
    assert "cannot generate images" in spoiled("scheduler", prediction_type="none")
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer is incomplete: tokenizer.json is missing"):
        drawn(folder)
    shutil.copy(DIGITS / "tokenizer/tokenizer.json", folder / "tokenizer")
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"] *= torch.nan
    save_file(tensors, weights)
    with pytest.raises(UserError, match="generates pixels that are not finite"):
        drawn(folder)


def test_a_checkpoint_that_has_changed_is_read_again(folder):
    """In a process that goes on, the digest and the images are those of the files as they are."""

    def seen():
        loaded = pipeline.load(folder, None, GENERATION, (model_folder.digest(folder), None))
        return model_folder.digest(folder), pipeline.generate_images(
            loaded, ["the digit one"], [1], GENERATION, (1, 28, 28)
        )

    digest, images = seen()
    change(folder / "vae/config.json", scaling_factor=1.0)
    assert seen()[0] != digest and (seen()[1] != images).any()
    shutil.copy(DIGITS / "vae/config.json", folder / "vae")
    assert seen()[0] == digest and (seen()[1] == images).all()


JUNK = (
    None,
    True,
    -1,
    0,
    1,
    7,
    0.5,
    1e308,
    float("nan"),
    2**70,
    "",
    "x",
    "../x",
    "\0",
    "diffusers",
    "a" * 300,
    [],
    [None],
    [[]],
    {},
    {"a": 1},
    [1, 2],
    ["diffusers", ["x"]],
    ["diffusers", "DDIMScheduler"],
    ["transformers", "CLIPTextModel"],
)


def spoil(text, rng):
    """JSON with a value of another kind or without one, or cut off, or with other characters."""
    if rng.random() < 0.2:
        return text[: rng.randrange(len(text))]
    if rng.random() < 0.2:
        return "".join(chr(rng.randrange(1, 300)) if rng.random() < 0.01 else letter for letter in text)
    content = json.loads(text)
    if rng.random() < 0.05:
        return json.dumps(rng.choice(JUNK))
    place, key = content, rng.choice([*content])
    while isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.7:
        place = place[key]
        key = rng.choice([*place] if isinstance(place, dict) else range(len(place)))
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(JUNK)
    return json.dumps(content)


def refused(function, *arguments):
    """Whether it is refused, in one line; every other exception is a failure."""
    try:
        function(*arguments)
    except UserError as error:
        assert len(str(error)) < 1000
        return True
    return False


PARTS = [
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
]


def test_any_damage_to_json_or_yaml_is_refused_or_harmless(folder):
    """Of the index, the record and every configuration file, as at a start."""
    rng, found = random.Random(0), 0
    record = {"data": "cifar10", "public_pool": 100, "pretraining": {"images": "public_pool"}}
    (folder / "training.yaml").write_text(json.dumps(record))
    for name in ["model_index.json", "training.yaml"] * 50 + PARTS * 10:
        original = (folder / name).read_text()
        (folder / name).write_text(spoil(original, rng), encoding="utf-8")
        found += refused(prepared, folder)
        (folder / name).write_text(original)
    assert found > 75


@pytest.mark.parametrize("cases", [10, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.long])])
def test_any_damage_to_a_configuration_file_is_refused_or_harmless(folder, cases):
    """As a run meets it that draws, and as `plan` and `price` do that count operations."""
    rng, found = random.Random(cases), 0
    for case in range(cases):
        name = PARTS[case % len(PARTS)]
        original = (folder / name).read_text()
        (folder / name).write_text(spoil(original, rng), encoding="utf-8")
        found += refused(drawn, folder)
        refused(count_pipeline, folder, GENERATION)
        (folder / name).write_text(original)
    assert found > cases / 4


@pytest.fixture(scope="module")
def lora():
    """The tensors of a small adapter for the shipped checkpoint."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"{LAYER}.lora_A.weight": torch.randn(2, 32, 3, 3, generator=generator),
        f"{LAYER}.lora_B.weight": torch.randn(32, 2, 1, 1, generator=generator),
    }


def write(tmp_path, tensors, **metadata):
    folder = tmp_path / "adapter"
    folder.mkdir(exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / model_folder.ADAPTER, {"format": "pt", **metadata})
    return folder


def test_an_adapter_in_each_format_is_applied(lora, tmp_path):
    """peft's names of the tensors, diffusers' former ones, and those of most trainers, with a scale."""
    layer = LAYER.removeprefix("unet.")
    down, up = lora.values()
    older = {f"{LAYER}.lora.down.weight": down, f"{LAYER}.lora.up.weight": up}
    flat = f"lora_unet_{layer.replace('.', '_')}"
    kohya = {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
    kohya[f"{flat}.alpha"] = torch.tensor(2.0)
    settings = {"r": 2, "lora_alpha": 2, "target_modules": [layer], "init_lora_weights": "gaussian"}
    described = json.dumps({f"unet.{name}": value for name, value in settings.items()})
    images = [drawn(DIGITS, write(tmp_path, tensors)) for tensors in (lora, older, kohya)]
    images.append(drawn(DIGITS, write(tmp_path, lora, lora_adapter_metadata=described)))
    assert (images[0] != drawn(DIGITS)).any() and all((image == images[0]).all() for image in images)


STRAY = {"unet.x.lora_A.weight": torch.ones(2, 4), "unet.x.lora_B.weight": torch.ones(4, 2)}
SPOILED = {
    "no tensor": (lambda a, b: {}, "has no LoRA tensor and would have no effect"),
    "no LoRA tensor": (lambda a, b: {"x": a}, "has no LoRA tensor and would have no effect"),
    "another tensor": (
        lambda a, b: {**pair(a, b), "x": a + 1},
        "x is not a LoRA tensor and would not be applied",
    ),
    "infinite": (lambda a, b: pair(a / 0, b), "lora_A.weight has values that are not finite"),
    "integers": (lambda a, b: pair(a.int(), b.int()), "lora_A.weight has values that are not finite"),
    "of no layer": (lambda a, b: pair(a, b, "unet.x"), "would not be applied: it belongs to"),
    "of another part": (lambda a, b: pair(a, b, "text_encoder.x"), "would not be applied: it belongs to"),
    "one of no layer": (lambda a, b: {**pair(a, b), **STRAY}, "unet.x.lora_A.weight would not be applied"),
    "no B": (lambda a, b: {f"{LAYER}.lora_A.weight": a}, "lora_B.weight is missing|cannot be loaded"),
    "no A": (lambda a, b: {f"{LAYER}.lora_B.weight": b}, "lora_A.weight is missing"),
    "of another size": (lambda a, b: pair(torch.ones(2, 5), b), "safetensors .*cannot be loaded"),
    "too large": (lambda a, b: pair(a * 1e35, b * 1e35), "generates pixels that are not finite"),
}


def pair(a, b, layer=LAYER):
    return {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}


@pytest.mark.parametrize("case", SPOILED)
def test_an_adapter_that_cannot_be_applied_wholly_is_refused(lora, tmp_path, case):
    make, message = SPOILED[case]
    folder = write(tmp_path, make(*lora.values()))
    with pytest.raises(UserError, match=f"adapter.*{message}"):
        drawn(DIGITS, folder)


def test_no_code_of_an_adapter_is_run(lora, tmp_path, marker):
    """Settings in its file may name a module to import; a pickle beside it may be taken for it."""
    plain = {"unet.r": 2, "unet.target_modules": [LAYER.removeprefix("unet.")], "unet.megatron_core": "trap"}
    hostile = {"megatron_config": {"x": 1}, "init_lora_weights": "pissa", "corda_config": {"x": 1}}
    for name, value in hostile.items():
        described = json.dumps({f"unet.{name}": value, **plain})
        folder = write(tmp_path, lora, lora_adapter_metadata=described)
        with pytest.raises(UserError, match=f"safetensors sets {name}, which is not supported"):
            drawn(DIGITS, folder)
    for text in ("[]", "{", "5"):
        with pytest.raises(UserError, match="safetensors .*cannot be loaded"):
            drawn(DIGITS, write(tmp_path, lora, lora_adapter_metadata=text))
    torch.save(Bomb(marker), folder / "pytorch_lora_weights.bin")
    os.truncate(folder / model_folder.ADAPTER, 100)
    for function in (prepared, pipeline.read):
        with pytest.raises(UserError, match="lora_weights.safetensors .*(is damaged|cannot be loaded)"):
            function(DIGITS, folder)
    assert not marker.exists()
