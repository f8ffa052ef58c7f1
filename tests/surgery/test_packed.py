"""Convolutions whose weights are packed compute what they did, notice new weights, and are ordinary ones wherever they must be."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import normsmith as ns
from normsmith.surgery._packed import PackedConv2d, PackedConv3d


def net(dims=2, **options):
    conv = nn.Conv2d if dims == 2 else nn.Conv3d
    norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
    model = nn.Sequential(conv(4, 8, 3, **options), norm(8), nn.ReLU(), conv(8, 6, 1, bias=False), nn.Flatten(2))
    model(torch.randn(9, 4, *[9] * dims))
    return model.eval()


def of_size(dims=2, size=9):
    return torch.randn(3, 4, *[size] * dims)


@torch.no_grad()
def out(model, x):
    return model(x).clone()


def near(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "groups": 2, "bias": False}, {"groups": 4, "padding": (2,)}]
)
@pytest.mark.parametrize("last", [False, True])
def test_output_stays_and_comes_in_channels_last(dims, options, last):
    if options.get("padding") == (2,):
        options = options | {"padding": (2,) * dims}
    model, x = net(dims, **options), of_size(dims)
    form = torch.channels_last if dims == 2 else torch.channels_last_3d
    if last:
        x = x.contiguous(memory_format=form)
    before = out(model, x)
    result = ns.fold(model, x, pack=True)
    assert result.packed == ("0", "3")
    assert result.folded == ["1"]
    assert result.unpacked == {}
    near(out(model, x), before)
    assert out(model[:1], x).is_contiguous(memory_format=form)
    for other in (of_size(dims, 7), x[:1], x[:, :, 1:, :-1], x[0], x[:0]):
        expected = nn.Sequential(*(copy.deepcopy(layer) for layer in model))
        for k, kind in ((0, "Conv"), (3, "Conv")):
            expected[k].__class__ = getattr(nn, f"{kind}{dims}d")
        if other.dim() == x.dim():
            near(out(model, other), out(expected, other))
        else:
            near(out(model[:4], other), out(expected[:4], other))


def test_undo_brings_every_bit_back():
    model, x = net(), of_size()
    layers, state, before = list(model), {k: v.clone() for k, v in model.state_dict().items()}, out(model, x)
    result = ns.fold(model, x, pack=True)
    model.train()
    result.undo()
    assert all(one is other for one, other in zip(model, layers, strict=True))
    assert all(layer.training for layer in model)
    model.eval()
    assert torch.equal(out(model, x), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(ns.ModelError, match="undo expects the model as fold left it"):
        result.undo()


def test_parameters_names_and_state_are_those_of_the_convolution():
    model, x = net(), of_size()
    weight = model[0].weight
    ns.fold(model, x, pack=True)
    assert isinstance(model[0], PackedConv2d)
    assert model[0].weight is weight
    assert list(model.state_dict()) == ["0.weight", "0.bias", "3.weight"]


@pytest.mark.parametrize("how", ["copy", "step", "fused", "parameter", "load", "assign", "data"])
def test_new_weights_are_seen(how):
    model, x = net(), of_size()
    ns.fold(model, x, pack=True)
    first = out(model, x)
    if how == "copy":
        with torch.no_grad():
            model[0].weight.mul_(2)
    elif how in {"step", "fused"}:
        optimizer = torch.optim.AdamW(model.parameters(), 0.5, fused=how == "fused")
        model(x).square().sum().backward()
        optimizer.step()
    elif how == "parameter":
        model[0].weight = nn.Parameter(model[0].weight.detach() * 2)
    elif how == "data":
        for _ in range(9):  # the memory of one may become that of the next
            model[0].weight.data = torch.randn(model[0].weight.shape)
            near(out(model, x), model(x))
    else:
        model.load_state_dict({key: value * 2 for key, value in model.state_dict().items()}, assign=how == "assign")
    found = out(model, x)
    assert (found - first).abs().max() > 0.01
    near(found, model(x))  # with gradients, by torch's own


def test_gradients_are_those_of_the_folded_model():
    model, x = net(), of_size()
    other = copy.deepcopy(model)
    ns.fold(model, x, pack=True)
    ns.fold(other, x)
    for one in (model, other):
        one(x).square().sum().backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_copies_and_files_work_on():
    model, x = net(), of_size()
    ns.fold(model, x, pack=True)
    expected = out(model, x)
    for other in (copy.deepcopy(model), copy.copy(model)):
        near(out(other, x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with torch.serialization.safe_globals([PackedConv2d, nn.Sequential, nn.Identity, nn.ReLU, nn.Flatten, type(net()[0]), set]):
        near(out(torch.load(file, weights_only=True), x), expected)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_other_types_and_surroundings_get_torchs_own():
    model, x = net(), of_size()
    ns.fold(model, x, pack=True)
    expected = out(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert out(model, x).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        near(out(model, x), expected)
    with torch.inference_mode():
        near(model(x).clone(), expected)
    near(torch.vmap(model[:4])(x[None])[0].flatten(2), expected)
    near(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
    near(torch.export.export(model, (x,)).module()(x), expected)
    near(out(copy.deepcopy(model).double(), x.double()).float(), expected)


def test_a_model_that_needs_another_memory_format_is_left():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()[:4]

        def forward(self, x):
            return self.inner(x).view(len(x), -1)

    model, x = Viewing().eval(), of_size()
    before = out(model, x)
    with torch.autocast("cpu"):  # under which nothing would be seen of it
        result = ns.fold(model, x, pack=True)
    assert result.packed == ()
    assert list(result.unpacked) == ["inner.0", "inner.3"]
    assert "packed the model raises RuntimeError: view size" in result.unpacked["inner.0"]
    assert "not packed: 2 (packed the model raises" in " ".join(str(result).split())
    assert result.folded == ["inner.1"]
    assert type(model.inner[0]) is nn.Conv2d
    near(out(model, x), before)


def test_what_cannot_be_packed_is_left_with_the_reason():
    class Own(nn.Conv2d):
        pass

    kinds = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")]
    model = nn.Sequential(*kinds, Own(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    model[0].register_forward_hook(lambda *_: None)
    result = ns.fold(model, of_size(), pack=True)
    assert result.packed == ("4",)
    assert result.unpacked == {
        "0": "has hooks",
        "1": "pads by 'same'",
        "2": "pads by 'reflect'",
        "3": "is a Own, not an nn.Conv2d or nn.Conv3d itself",
    }
    again = ns.fold(model, of_size(), pack=True)
    assert again.packed == ("4",)
    again.undo()
    assert isinstance(model[4], PackedConv2d)
    assert "torch.float64 on cpu" in ns.fold(net().double(), of_size().double(), pack=True).unpacked["0"]
    alone = ns.fold(nn.Conv2d(4, 4, 3), of_size(), pack=True)
    assert (alone.packed, alone.unpacked) == ((), {"": "is the model itself, which nothing holds"})


def test_undo_wants_the_layers_it_left():
    model, x = net(), of_size()
    result = ns.fold(model, x, pack=True)
    prune.l1_unstructured(model[0], "weight", 3)
    with pytest.raises(ns.ModelError, match="edited, or moved since"):
        result.undo()


def test_a_hook_that_came_later_stays():
    model, x, heard = net(), of_size(), []
    result = ns.fold(model, x, pack=True)
    model[0].register_full_backward_hook(lambda *_: heard.append(1))
    result.undo()
    model(x.requires_grad_()).sum().backward()
    assert heard == [1]


def test_without_norms_there_is_still_something_to_pack():
    model, x = nn.Sequential(nn.Conv3d(4, 4, 3)), of_size(3)
    before = out(model, x)
    with pytest.raises(ns.ModelError, match="nothing to fold"):
        ns.fold(model, x)
    result = ns.fold(model, x, pack=True)
    assert isinstance(model[0], PackedConv3d)
    assert "0 of 0 norms folded, 1 convolutions packed" in " ".join(str(result).split())
    near(out(model, x), before)


def test_a_torch_without_onednn_is_told(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = net()
    with pytest.raises(ns.DependencyError, match="pack=True expects a torch with oneDNN, switched on"):
        ns.fold(model, of_size(), pack=True)
    assert type(model[1]) is nn.BatchNorm2d
