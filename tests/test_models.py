"""Networks by name, pretrained weights, GroupNorm, frozen networks and adapters, input size, and refusals."""

import re
import sys
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import FAST, mpirun
from torch import nn

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.config.sections.local_training import Model
from genfl_mpi.data import datasets
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.learning import models
from genfl_mpi.learning.adaptation import FrozenNorm, Lora
from genfl_mpi.learning.flops import training_flops
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.preparation.gpu_memory import rank_bytes
from genfl_mpi.util.errors import UserError

SHAPE = (3, 32, 32)


def build(name, shape=SHAPE, classes=10, **settings):
    return models.build(Model(name=name, **settings), classes, shape, 1)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# He et al. 2016 give 0.27 M for ResNet-20.
@pytest.mark.parametrize("name, parameters", [("resnet8", 75_290), ("resnet20", 269_722), ("vit", 2_693_194)])
def test_small_networks_have_their_published_size(name, parameters):
    assert count(build(name)) == parameters


@pytest.mark.parametrize("name", ["resnet8", "vit"])
def test_small_networks_take_grey_images_of_other_sizes(name):
    assert build(name, (1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_torchvision_network_takes_grey_images_and_depends_on_the_seed_alone():
    name = "torchvision:squeezenet1_1"
    one, other = (build(name, (1, 28, 28), input_size=64) for _ in range(2))
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert one(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_timm_network_by_name():
    pytest.importorskip("timm")
    assert build("timm:test_resnet", input_size=64)(torch.zeros(2, *SHAPE)).shape == (2, 10)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "torchvision:resnet19"}, "torchvision has no classification model resnet19; did you mean"),
        (
            {"name": "torchvision:vit_b_32"},
            r"Wrong image height! Expected 224 but got 32!; set model.input_size",
        ),
        ({"name": "resnet8", "weights": "pretrained"}, "there are none for model.name=resnet8; give a file"),
        ({"name": "resnet8", "weights": "none.pth"}, "model.weights: none.pth does not exist"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        models.check(Model(**settings), 10, SHAPE)
    assert "\n" not in str(error.value)


def test_timm_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs the package timm: pip install 'genfl_mpi\[timm\]'"):
        models.check(Model(name="timm:resnet10t"), 10, SHAPE)


def test_pretrained_weights_come_from_the_cache_or_are_refused(tmp_path, monkeypatch):
    """The file in torchvision's cache has 1,000 classes: all but the last layer is loaded."""
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    settings = {"weights": "pretrained", "input_size": 64}
    with pytest.raises(UserError, match="are not on this machine; run `python -m genfl_mpi prefetch`"):
        build("torchvision:squeezenet1_1", **settings)
    published = squeezenet1_1()
    file = tmp_path / "checkpoints" / SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir()
    torch.save(published.state_dict(), file)
    built = build("torchvision:squeezenet1_1", **settings).network
    assert torch.equal(built.features[0].weight, published.features[0].weight)
    assert built.classifier[1].out_channels == 10
    config = single({"method": "fedavg", "data": {"name": "mnist5k"}, "model": {"weights": "pretrained"}})
    assert datasets.describe(config.data).mean == pytest.approx((np.mean([0.485, 0.456, 0.406]),))


def test_weights_from_a_file_must_fit(tmp_path):
    torch.save({"state_dict": build("resnet8").state_dict()}, tmp_path / "weights.pth")
    loaded = build("resnet8", classes=7, weights=str(tmp_path / "weights.pth"))
    assert torch.equal(loaded[0].weight, build("resnet8")[0].weight)
    with pytest.raises(UserError, match=r"does not fit the network: 4\.conv1\.weight has shape"):
        build("resnet20", weights=str(tmp_path / "weights.pth"))
    (tmp_path / "weights.pth").write_text("text")
    with pytest.raises(UserError, match="is not a readable state dict"):
        build("resnet8", weights=str(tmp_path / "weights.pth"))


def test_group_norm_replaces_every_batch_norm():
    layers = list(build("torchvision:shufflenet_v2_x0_5", norm="group").modules())
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
    assert {32 % layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)} == {0}


@pytest.mark.parametrize("trained", ["head", "lora"])
def test_only_what_is_trained_is_in_the_weights(trained):
    """Batch statistics are frozen, too."""
    module = build("resnet8", trained=trained, lora_rank=4)
    model = FlatModel(module)
    adapters = [layer for layer in module.modules() if isinstance(layer, Lora)]
    expected = 650 + sum(count(layer.down) + count(layer.up) for layer in adapters)
    assert len(model.weights) == model.parameters == expected
    assert bool(adapters) == (trained == "lora") and count(module) > expected
    assert sum(isinstance(layer, FrozenNorm) for layer in module.modules()) == 7


def test_a_frozen_norm_computes_what_batch_norm_computes_in_evaluation():
    norm = nn.BatchNorm2d(3).eval()
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        tensor.data.uniform_(0.5, 2)
    images = torch.randn(2, 3, 4, 4)
    assert torch.allclose(FrozenNorm(norm)(images), norm(images), atol=1e-6)


def test_an_adapter_begins_as_the_network_itself():
    plain, adapted = build("vit"), build("vit", trained="lora")
    images = torch.randn(2, *SHAPE)
    assert torch.allclose(plain.eval()(images), adapted.eval()(images), atol=1e-6)


SHORT = [*FAST, "rounds=2"]
SETTINGS = [*SHORT, "model.name=resnet8", "model.trained=lora", "model.lora_rank=2"]


def test_the_messages_of_an_adapter_are_small_and_no_frozen_parameter_changes():
    full = Simulation(overrides=[*SHORT, "model.name=resnet8"])
    adapted = Simulation(overrides=SETTINGS)
    before = adapted.model.frozen_digest()
    assert before and adapted.message_bytes[0] < full.message_bytes[0] / 8
    weights = adapted.weights.clone()
    list(adapted)
    assert adapted.model.frozen_digest() == before and not torch.equal(adapted.weights, weights)


def test_an_adapter_has_the_same_digest_on_any_number_of_ranks_and_its_network_is_an_input(tmp_path, capsys):
    one, three = tmp_path / "one", tmp_path / "three"
    assert main([*SETTINGS, f"output={one}"]) == 0
    assert mpirun(3, "-m", "genfl_mpi", *SETTINGS, f"output={three}").returncode == 0
    capsys.readouterr()
    assert main(["digest", *map(str, [next(one.glob("*.h5")), next(three.glob("*.h5"))])]) == 0
    digests = [line for line in capsys.readouterr().out.splitlines() if ".h5" not in line]
    assert digests and digests[: len(digests) // 2] == digests[len(digests) // 2 :]
    with h5py.File(next(one.glob("*.h5"))) as file:
        assert "model.frozen:" in file["config"].attrs["inputs"]


def test_clients_of_a_frozen_network_can_be_batched():
    overrides = [*SHORT, "model.name=vit", "model.trained=head", "training.clients_per_batch=2"]
    assert [record.round for record in Simulation(overrides=overrides)] == [1, 2]


def test_frozen_parameters_count_as_memory_of_a_gpu():
    config = single(overrides=[*SETTINGS, "model.trained=head"])
    found = rank_bytes(config, load_and_divide(config))
    assert found["frozen parameters"] == 4 * (75_290 - 650)


class Counting(nn.Module):
    """Has a state that is no buffer."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, values):
        self.calls += 1
        return values / self.calls


def test_a_hidden_state_is_refused_by_name(tmp_path, monkeypatch):
    own = types.ModuleType("own_network")
    own.build = lambda classes, shape: nn.Sequential(nn.Flatten(), Counting(), nn.Linear(3072, classes))
    monkeypatch.setitem(sys.modules, "own_network", own)
    with pytest.raises(UserError, match=r"layer 1 \(Counting\) changes a hidden state in forward"):
        models.check(Model(name="own_network:build"), 10, SHAPE)


def test_the_command_lists_networks_with_reasons(capsys):
    settings = ["data.name=synthetic", "model.trained=head", "--no-measure"]
    assert main(["models", "resnet8", "torchvision:vit_b_32", *settings]) == 0
    table = capsys.readouterr().out
    assert "resnet8" in table and "75,290" in table and "650" in table and "model.input_size=224" in table
    assert main(["models", "torchvision"]) == 0
    assert "torchvision:mobilenet_v3_small" in capsys.readouterr().out.split()


def test_the_table_of_the_page_is_right():
    page = (Path(__file__).parent.parent / "docs/models.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) \|", page, re.MULTILINE)
    assert [name for name, *_ in rows] == list(models.MODELS)
    for name, parameters, megaflops in rows:
        module = build(name)
        assert f"{count(module):,}" == parameters
        assert f"{training_flops(module, SHAPE) / 1e6:.1f}" == megaflops
