"""What a channel looks at and looks for: where both are known exactly, and what they leave behind."""

import pytest
import torch
from analysis.helpers_analysis import changed, everything, record
from helpers import assert_same
from torch import nn

import normsmith as ns

a = ns.analysis


def small():
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 3)).double()


def test_saliency_of_a_linear_layer_is_its_weight():
    layer = nn.Linear(5, 3).double()
    found = a.saliency(nn.Sequential(layer), torch.randn(4, 5).double(), "0", 1)
    assert_same(found, layer.weight[1].detach().expand(4, 5))


@pytest.mark.parametrize("layer", ["0", "1", "3"])
def test_saliency_is_the_gradient(layer):
    """Against finite differences, in evaluation, for a model that is in training."""
    model = small().train()
    x = torch.randn(2, 2, 6, 6).double()
    found = a.saliency(model, x, layer, 2)
    part = model[: int(layer) + 1].eval()

    def activation(x):
        return part(x)[:, 2].mean((1, 2))

    direction, step = torch.randn_like(x), 1e-6
    with torch.no_grad():
        slope = (activation(x + step * direction) - activation(x - step * direction)) / (2 * step)
    assert_same((found * direction).sum((1, 2, 3)), slope, tolerance=1e-6)


def test_an_activation_in_place_behind_the_layer_does_not_count():
    layer = nn.Conv2d(1, 2, 1)
    before = a.saliency(nn.Sequential(layer), torch.full((1, 1, 3, 3), -5.0), "0", 0)
    after = a.saliency(nn.Sequential(layer, nn.ReLU(inplace=True)), torch.full((1, 1, 3, 3), -5.0), "0", 0)
    assert torch.equal(before, after)
    assert bool(before.any())


def test_channels_in_the_last_dimension():
    norm = nn.LayerNorm(6).double()
    x = torch.randn(2, 5, 6).double()
    found = a.saliency(nn.Sequential(norm), x, norm, 4)
    start = x.clone().requires_grad_()
    norm(start)[..., 4].mean(1).sum().backward()
    assert_same(found, start.grad)


def test_the_maximum_of_a_linear_layer_is_a_corner():
    layer = nn.Linear(6, 2)
    with torch.no_grad():
        layer.weight.add_(layer.weight.sign())
    found = a.activation_maximum(nn.Sequential(layer), "0", 1, (2, 6), steps=60, bounds=(-1, 3))
    weight, bias = layer.weight[1].detach(), layer.bias[1].detach()
    corner = torch.where(weight > 0, 3.0, -1.0)
    assert_same(found.x, corner.expand(2, 6))
    assert float(found.activations[-1]) == pytest.approx(float(weight @ corner + bias), rel=1e-5)


def test_a_matched_filter_finds_its_pattern():
    """A convolution as large as the input is a template: the input that drives it has its signs."""
    layer = nn.Conv2d(1, 2, 5, bias=False)
    found = a.activation_maximum(layer, "", 0, (1, 1, 5, 5), steps=40, jitter=0, blur=0, variation=0)
    assert torch.equal(found.x.sign(), layer.weight[:1].sign())


def test_shifts_are_taken_back():
    """A layer that looks at one place: what drives it stays there."""
    layer = nn.Linear(81, 1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()[0, 2 * 9 + 3] = 1
    model = nn.Sequential(nn.Flatten(), layer)
    found = a.activation_maximum(model, "1", 0, (1, 1, 9, 9), steps=60, jitter=1, blur=0, variation=0)
    bright = (found.x[0, 0] > 1).nonzero()
    assert len(bright) > 0
    assert int((bright - torch.tensor([2, 3])).abs().max()) <= 1


def test_it_climbs_and_repeats_itself():
    model = small().eval()
    one = a.activation_maximum(model, "1", 2, (2, 2, 8, 8), steps=24, seed=3)
    assert one.activations.shape == (25,)
    assert one.activations[-1] > one.activations[0] + 0.5
    assert one.x.dtype == torch.float64
    assert torch.equal(one.x, a.activation_maximum(model, "1", 2, (2, 2, 8, 8), steps=24, seed=3).x)
    assert not torch.equal(one.x, a.activation_maximum(model, "1", 2, (2, 2, 8, 8), steps=24, seed=4).x)
    assert float(one.x.abs().max()) <= 2
    with torch.no_grad():
        assert float(model[:2](one.x)[:, 2].mean()) == pytest.approx(float(one.activations[-1]), rel=1e-6)


@pytest.mark.parametrize("option", ["blur", "variation"])
def test_regularisers_smooth(option):
    """Of a filter that likes stripes they leave less."""
    layer = nn.Conv2d(1, 1, (1, 2), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[[1.0, -1.0]]]]))
    model = nn.Sequential(layer, nn.Tanh(), nn.MaxPool2d((1, 2)))

    def roughness(**more):
        options = {"blur": 0.0, "variation": 0.0, "jitter": 0, "steps": 8, **more}
        return float(a.activation_maximum(model, "2", 0, (1, 1, 4, 32), **options).x.diff(dim=3).abs().mean())

    assert roughness(**{option: 1.0}) < 0.8 * roughness()


ASKED = {
    "saliency": lambda model, batch: a.saliency(model, batch[0], "middle", 1),
    "activation_maximum": lambda model, batch: a.activation_maximum(model, "middle", 1, (2, 3, 5, 5), steps=3),
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("fails_at", [None, 1])
def test_no_trace(name, fails_at):
    model, batch = everything(fails_at=fails_at)
    before = record(model)
    if fails_at:
        with pytest.raises(RuntimeError, match="on purpose"):
            ASKED[name](model, batch)
    else:
        with torch.no_grad():
            ASKED[name](model, batch)
    assert changed(before, record(model)) == []


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: a.saliency(m, x, "4.norm", 0), ns.ModelError, "name of a layer: got '4.norm'"),
        (lambda m, x: a.saliency(m, x, nn.Linear(2, 2), 0), ns.ModelError, "a layer of the model: got a Linear"),
        (lambda m, x: a.saliency(m, x, "1", 4), ns.OptionError, "from 0 to 3: got 4"),
        (lambda m, x: a.saliency(m, x.long(), "1", 0), ns.InputError, "got torch.int64"),
        (lambda m, x: a.saliency(m, [x], "1", 0), ns.InputError, "got list"),
        (lambda m, x: a.activation_maximum(m, "1", 0, (1, 2, 6, 6), steps=-1), ns.OptionError, "steps from 0: got -1"),
        (lambda m, x: a.activation_maximum(m, "1", 0, (1, 2, 6, 6), bounds=(1, 0)), ns.OptionError, "bounds as"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call(small(), torch.randn(1, 2, 6, 6).double())
    assert "\n" not in str(caught.value)


def test_a_layer_that_is_not_reached():
    model = small()
    model[3].aside = nn.Linear(2, 2)
    with pytest.raises(ns.ModelError, match=r"'3\.aside' was not reached"):
        a.saliency(model, torch.randn(1, 2, 6, 6).double(), "3.aside", 0)
