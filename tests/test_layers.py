"""The fast CPU layers, compared with torch's own."""

import copy

import pytest
import torch
from torch import nn

from genfl_mpi.config.sections.local_training import Model
from genfl_mpi.learning import layers, models
from genfl_mpi.learning.layers import quicken
from genfl_mpi.learning.weights import FlatModel


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [
        ((1, 1), 3, 1, 1, 1),
        ((2, 2), 3, 2, 1, 1),
        ((2, 2), 3, 1, 1, 1),
        ((2, 2), 1, 2, 0, 1),
        ((1, 3), (1, 3), (1, 2), (0, 1), 1),
        ((3, 2), 2, 1, 0, 1),
        ((2, 1), 5, 3, 2, 1),
        ((1, 1), 3, 1, 2, 2),
        ((3, 3), 3, 2, 1, 2),
        ((4, 4), 3, 5, 1, 1),
        ((1, 1), 1, 1, 1, 1),
        ((1, 2), 2, 3, 1, 1),
    ],
)
def test_convolutions_of_small_images_match_torch(size, kernel, stride, padding, dilation, bias, monkeypatch):
    theirs = nn.Conv2d(5, 7, kernel, stride, padding, dilation, bias=bias).double()
    ours = quicken(copy.deepcopy(theirs))
    monkeypatch.setattr(layers, "SMALL_MAP", 9)
    add_product, products = layers._add_product, []
    monkeypatch.setattr(layers, "_add_product", lambda *given: products.append(1) or add_product(*given))
    results = []
    for layer in (theirs, ours):
        images = torch.randn(
            3, 5, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ).requires_grad_()
        output = layer(images)
        output.backward(
            torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        )
        results.append((output, images.grad, *(parameter.grad for parameter in layer.parameters())))
    assert products, "the convolution must be computed tap by tap"
    for one, other in zip(*results):
        assert one.shape == other.shape and torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_an_in_place_layer_may_follow_a_convolution():
    theirs = nn.Sequential(nn.Conv2d(5, 7, 3, padding=1, bias=False), nn.ReLU(inplace=True))
    ours = quicken(copy.deepcopy(theirs))
    images = torch.randn(3, 5, 2, 2)
    for network in (theirs, ours):
        network(images).sum().backward()
    assert torch.allclose(ours[0].weight.grad, theirs[0].weight.grad, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=9),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    ],
)
def test_unsupported_convolutions_use_torch(layer):
    images = torch.randn(2, 4, 2, 2)
    assert torch.equal(quicken(copy.deepcopy(layer))(images), layer(images))


def test_large_images_use_torch():
    layer = nn.Conv2d(3, 4, 3)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(quicken(copy.deepcopy(layer))(images), layer(images))


class Own(nn.Conv2d):
    pass


def test_only_torch_layers_are_replaced_and_state_names_stay():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), Own(2, 2, 3), nn.Dropout(), nn.Dropout2d())
    before = module.state_dict()
    quicken(module)
    assert [type(layer) for layer in module] == [layers.Conv2d, Own, layers.Dropout, nn.Dropout2d]
    assert module.state_dict().keys() == before.keys()
    assert quicken(module)[0] is module[0]


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_drops_with_its_probability_and_keeps_the_mean(p, inplace):
    layer = quicken(nn.Dropout(p, inplace))
    values = torch.ones(100, 3, 33, 31).contiguous(memory_format=torch.channels_last).requires_grad_()
    given = values.clone(memory_format=torch.preserve_format)
    dropped = layer(given)
    assert (dropped is given) == inplace
    zero = dropped == 0
    count = values.numel()
    assert abs(zero.float().mean().item() - p) < 5 * (p * (1 - p) / count) ** 0.5
    assert torch.allclose(dropped[~zero], torch.tensor(1 / (1 - p)))
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped), "the gradient must be masked and scaled like the values"
    assert layer.eval()(values) is values


def test_dropout_with_p_1_and_p_0():
    assert not quicken(nn.Dropout(1.0))(torch.ones(5)).any()
    assert torch.equal(quicken(nn.Dropout(0.0))(torch.ones(5)), torch.ones(5))


def test_resnet18_with_fast_layers_matches_torch():
    plain = models.build(Model(name="resnet18"), 10, (3, 32, 32), seed=1).double().train()
    quick = quicken(copy.deepcopy(plain))
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    one, other = plain(images), quick(images)
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)
    one.square().sum().backward()
    other.square().sum().backward()
    for p, q in zip(plain.parameters(), quick.parameters()):
        assert torch.allclose(p.grad, q.grad, rtol=1e-6, atol=1e-9)


def test_a_flat_model_uses_the_fast_layers():
    assert type(FlatModel(models.build(Model(), 10, (1, 28, 28), seed=1)).module[0]) is layers.Conv2d


def test_under_bfloat16_autocast_small_maps_use_float32():
    theirs = nn.Conv2d(5, 7, 3, padding=1)
    ours = quicken(copy.deepcopy(theirs))
    images = torch.randn(3, 5, 2, 2).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(images)
    assert output.dtype == torch.float32 and torch.allclose(output, theirs(images.float()), atol=1e-6)
    output.sum().backward()
    assert images.grad.dtype == torch.bfloat16 and ours.weight.grad.dtype == torch.float32
