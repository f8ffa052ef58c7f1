"""Checkpoints of one kind of normalizers in models with another: what goes where, and that nothing else moves."""

import copy
import warnings
import zipfile

import pytest
import torch
from helpers import assert_same
from surgery.lookalikes import ResNet
from torch import nn

import normsmith as ns


def net(norm, names=("conv", "bn1", "fc")):
    """A small network; `norm` makes its normalizer of a number of channels."""
    conv, layer, head = names
    model = nn.Sequential()
    model.add_module(conv, nn.Conv2d(3, 6, 3))
    model.add_module(layer, norm(6))
    model.add_module("relu", nn.ReLU(inplace=True))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    model.add_module(head, nn.Linear(6, 2))
    return model


def shaken(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor))
            else:
                tensor.fill_(7)
    return model


TRAINED = shaken(net(nn.BatchNorm2d))
X = torch.randn(4, 3, 9, 9)


@pytest.mark.parametrize("method", [name for name, entry in ns.catalog().items() if name not in {"conditional", "context"}])
def test_batch_norm_into_every_method(method):
    model = net(lambda c: ns.make(method, c))
    fresh = copy.deepcopy(model.bn1.state_dict())
    bridge = ns.load_bridged(model, TRAINED.state_dict())
    (layer,) = bridge.layers
    new, given = model.bn1.state_dict(), TRAINED.bn1.state_dict()
    assert set(layer.loaded) == given.keys() & new.keys()
    assert set(layer.initial) == new.keys() - given.keys()
    assert set(layer.dropped) == given.keys() - new.keys()
    for key in layer.loaded:
        expected = given[key][3:] if method == "ibn" and key.startswith("running") else given[key]
        assert torch.equal(new[key], expected), key
    for key in layer.initial:
        assert torch.equal(new[key], fresh[key]), key
    assert torch.equal(model.fc.weight, TRAINED.fc.weight)
    assert bridge.others == {key: key for key in ("conv.weight", "conv.bias", "fc.weight", "fc.bias")}


@pytest.mark.parametrize("method", ["conditional:num_conditions=3,statistics=condition", "context:num_contexts=3"])
def test_every_condition_gets_the_statistics(method):
    model = net(lambda c: ns.make(method, c))
    ns.load_bridged(model, TRAINED.state_dict())
    for key, value in TRAINED.bn1.state_dict().items():
        own = getattr(model.bn1, key)
        assert torch.equal(own, value.expand(own.shape))
        assert own.dim() == value.dim() + (method.startswith("conditional") or "running" in key or "num" in key)


def test_the_outputs_are_those_of_the_checkpoint_where_the_method_has_batch_statistics():
    for method in ("batch", "frozen", "ghost", "renorm", "kalman"):
        model = net(lambda c, method=method: ns.make(method, c)).eval()
        ns.load_bridged(model, TRAINED.state_dict())
        assert_same(model(X), copy.deepcopy(TRAINED).eval()(X))


class Replica(nn.Module):
    """What SwitchNorm2d of github.com/switchablenorms/Switchable-Normalization computes and keeps, 1d and 3d by `dims`.

    Written anew: its names, shapes, starting values, and its arithmetic with E[x²] - E[x]² and unbiased instance variances.
    """

    def __init__(self, channels, dims=2, batch=True):
        super().__init__()
        self.keep = 0.9 if dims == 2 else 0.997
        logits = 3 if batch and dims else 2
        shape = (1, channels, *[1] * dims)
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.mean_weight, self.var_weight = nn.Parameter(torch.ones(logits)), nn.Parameter(torch.ones(logits))
        if batch:
            for name in ("running_mean", "running_var"):
                self.register_buffer(name, torch.zeros((1, channels, 1) if dims else (1, channels)))
        self.batch = batch

    def forward(self, x):
        flat = x.flatten(2) if x.dim() > 2 else x
        if x.dim() > 2:
            mean, var = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True)
            raw = var + mean**2
            found = [(mean, var), (mean.mean(1, keepdim=True), raw.mean(1, keepdim=True) - mean.mean(1, keepdim=True) ** 2)]
            whole = (mean.mean(0, keepdim=True), raw.mean(0, keepdim=True) - mean.mean(0, keepdim=True) ** 2)
        else:
            found = [(x.mean(1, keepdim=True), x.var(1, keepdim=True))]
            whole = (x.mean(0, keepdim=True), x.var(0, keepdim=True))
        if self.batch and self.training:
            for buffer, new in zip((self.running_mean, self.running_var), whole, strict=True):
                buffer.mul_(self.keep).add_((1 - self.keep) * new.detach())
            found.append(whole)
        elif self.batch:
            found.append((self.running_mean, self.running_var))
        mean = sum(p * m for p, (m, _) in zip(self.mean_weight.softmax(0), found, strict=True))
        var = sum(p * v for p, (_, v) in zip(self.var_weight.softmax(0), found, strict=True))
        return ((flat - mean) / (var + 1e-5).sqrt()).view(x.shape) * self.weight + self.bias


@pytest.mark.parametrize(
    ("dims", "batch", "options"),
    [(2, True, {}), (3, True, {}), (2, False, {"use_batch": False}), (0, True, {"instance": False})],
)
def test_official_switchable_norm_gives_its_outputs(dims, batch, options):
    theirs = shaken(Replica(6, dims, batch)).double()
    ours = ns.SwitchableNorm(6, eps=1e-3, dtype=torch.float64, **options)
    layer = ns.load_bridged(ours, theirs.state_dict()).layers[0]
    momentum = 0.1 if dims == 2 else 0.003
    assert set(layer.changed) == {"unbiased=True", "eps=1e-05", *([] if dims == 2 else ["momentum=0.003"])}
    assert (ours.momentum, ours.unbiased, ours.eps) == (momentum, True, 1e-5)
    x = torch.randn(5, 6, *[4] * dims, dtype=torch.float64) + 1
    assert_same(ours.eval()(x), theirs.eval()(x))
    assert_same(ours.train()(x), theirs.train()(x))
    if batch:  # and goes on as theirs would
        assert_same(ours.running_mean, theirs.running_mean.flatten())
        assert_same(ours.running_var, theirs.running_var.flatten())


def test_official_weights_into_a_model_with_other_names_and_a_container():
    theirs = shaken(net(Replica, ("conv", "sn1", "fc")))
    model = net(ns.SwitchableNorm)
    bridge = ns.load_bridged(model, {"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}, "epoch": 3})
    assert bridge.layers[0].source == "sn1"
    assert_same(model.eval()(X), theirs.eval()(X))


def test_official_logits_of_other_statistics_are_refused():
    rows, images = Replica(6, dims=0), Replica(6, batch=False)
    with pytest.raises(ns.InputError, match="mean_weight"):
        ns.load_bridged(ns.SwitchableNorm(6, use_batch=False), rows.state_dict())
    with pytest.raises(ns.InputError, match="mean_weight"):
        ns.load_bridged(ns.SwitchableNorm(6, instance=False), images.state_dict())


def test_official_weights_into_batch_norm_leave_the_logits_out():
    model = net(ns.BatchNorm)
    theirs = shaken(net(Replica))
    (layer,) = ns.load_bridged(model, theirs.state_dict()).layers
    assert layer.dropped == ("mean_weight", "var_weight")
    assert_same(model.bn1.running_var, theirs.bn1.running_var.flatten())
    assert layer.initial == ("num_batches_tracked",)


def test_another_name_is_taken_only_where_it_is_free():
    model = net(ns.GroupNorm)
    model.add_module("sn1", ns.GroupNorm(6))
    with pytest.raises(ns.InputError, match=r"sn1\.\* missing"):
        ns.load_bridged(model, TRAINED.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers(prefix):
    model = net(ns.GroupNorm)
    ns.load_bridged(model, {prefix + key: value for key, value in TRAINED.state_dict().items()})
    assert torch.equal(model.bn1.weight, TRAINED.bn1.weight)


def test_a_compiled_part():
    model = net(ns.GroupNorm)
    ns.load_bridged(model, {key.replace("bn1.", "bn1._orig_mod."): value for key, value in TRAINED.state_dict().items()})
    assert torch.equal(model.bn1.weight, TRAINED.bn1.weight)


def test_frozen_batch_norm_has_no_counter():
    state = {
        key: value for key, value in TRAINED.state_dict().items() if "num_batches" not in key
    }  # torchvision's, detectron2's
    model = net(ns.FrozenNorm)
    (layer,) = ns.load_bridged(model, state).layers
    assert layer.initial == ("num_batches_tracked",)
    assert_same(model.train()(X), copy.deepcopy(TRAINED).eval()(X))


class Wrapped(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = ns.BatchNorm(channels)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.norm(x)


def test_wrapped_layers_in_the_model_and_in_the_checkpoint():
    model = net(Wrapped)
    bridge = ns.load_bridged(model, TRAINED.state_dict())
    assert bridge.layers[0].source == "bn1"
    assert_same(model.eval()(X), copy.deepcopy(TRAINED).eval()(X))
    back = net(nn.BatchNorm2d)
    assert ns.load_bridged(back, model.state_dict()).layers[0].dropped == ("alpha",)
    assert_same(back.eval()(X), model(X))


def test_our_own_frozen_flag_comes_along():
    source = net(ns.BatchNorm)
    source.bn1.frozen = True
    model = net(ns.SwitchableNorm)
    ns.load_bridged(model, source.state_dict())
    assert model.bn1.frozen


def test_files(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    torch.save({"model": TRAINED.state_dict()}, tmp_path / "net.pt")
    safetensors.save_file(TRAINED.state_dict(), tmp_path / "net.safetensors")
    for file in (tmp_path / "net.pt", str(tmp_path / "net.safetensors")):
        model = net(ns.GroupNorm)
        ns.load_bridged(model, file)
        assert torch.equal(model.bn1.weight, TRAINED.bn1.weight)


class Code:
    """What runs when unpickled."""

    def __reduce__(self):
        return (warnings.warn, ("ran",))


def test_bad_files_are_one_sentence(tmp_path):
    torch.save({"state_dict": TRAINED.state_dict(), "x": Code()}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "noise.safetensors").write_bytes(b"not a checkpoint")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a", "b")
    model = net(ns.GroupNorm)
    before = copy.deepcopy(model.state_dict())
    for name, message in {
        "code.pt": "without code",
        "list.pt": "with a list",
        "noise.pt": "without code",
        "empty.pt": "without code",
        "zip.pt": "without code",
        "noise.safetensors": "which is not",
        "nowhere.pt": "which is no file",
    }.items():
        with pytest.raises(ns.InputError, match=message) as caught:
            ns.load_bridged(model, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_does_not_fit_is_listed_and_changes_nothing():
    state = TRAINED.state_dict()
    model = net(ns.GroupNorm)
    before = copy.deepcopy(model.state_dict())
    bad = [
        (
            {**state, "fc.weight": torch.zeros(3, 6), "bn1.weight": torch.zeros(7)},
            True,
            r"bn1.weight \(7,\) for bn1.weight \(6,\)",
        ),
        ({**state, "fc.weight": torch.zeros(3, 6)}, False, r"fc.weight \(3, 6\) for fc.weight \(2, 6\)"),
        ({k: v for k, v in state.items() if "fc" not in k}, True, "fc.weight, fc.bias missing"),
        ({k: v for k, v in state.items() if "bn1" not in k}, True, r"bn1\.\* missing"),
        ({**state, "head.weight": torch.zeros(1)}, True, "head.weight for which there is no place"),
        ({}, True, "got nothing and no tensors"),
        ({"epoch": 3}, True, "got 'epoch' and no tensors"),
    ]
    for given, strict, message in bad:
        with pytest.raises(ns.InputError, match=message):
            ns.load_bridged(model, given, strict=strict)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    bridge = ns.load_bridged(model, {**bad[2][0], "head.weight": torch.zeros(1)}, strict=False)
    assert (bridge.missing, bridge.unexpected) == (("fc.weight", "fc.bias"), ("head.weight",))
    assert torch.equal(model.fc.weight, before["fc.weight"])


def test_a_wrapped_model_is_refused():
    with pytest.raises(ns.ModelError, match="bare model"):
        ns.load_bridged(nn.DataParallel(net(ns.GroupNorm)), TRAINED.state_dict())


def test_the_table():
    text = str(ns.load_bridged(net(ns.SwitchableNorm), shaken(net(Replica)).state_dict()))
    assert "bn1 (SwitchableNorm)" in text
    assert "unbiased=True" in text
    assert "and 4 tensors of other layers" in text
    text = str(ns.load_bridged(net(ns.GroupNorm), {**TRAINED.state_dict(), "more": torch.zeros(1)}, strict=False))
    assert "running_mean" in text
    assert "unexpected: more" in text


def test_a_shared_layer_is_loaded_under_all_its_names():
    def twice(norm):
        return nn.Sequential(norm, nn.ReLU(), norm)

    trained = shaken(twice(nn.BatchNorm2d(6)))
    model = twice(ns.GroupNorm(6))
    ns.load_bridged(model, trained.state_dict())
    assert torch.equal(model[2].weight, trained[0].weight)


class AuthorsIBN(nn.Module):
    """The layer of IBN-Net's repository."""

    def __init__(self, planes):
        super().__init__()
        self.half = planes // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = nn.BatchNorm2d(planes - self.half)

    def forward(self, x):
        return torch.cat((self.IN(x[:, : self.half].contiguous()), self.BN(x[:, self.half :].contiguous())), 1)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_authors_ibn_a(wrapped):
    theirs = ResNet()
    for i in (1, 2, 3):
        for block in getattr(theirs, f"layer{i}"):
            block.bn1 = AuthorsIBN(block.bn1.num_features)
    shaken(theirs)
    ours = ResNet()
    placed = ns.place_ibn(ours, "a")
    state = {f"module.{key}" if wrapped else key: value for key, value in theirs.state_dict().items()}
    bridge = ns.load_bridged(ours, {"state_dict": state} if wrapped else state)
    found = {layer.name: layer for layer in bridge.layers}
    assert all(not found[name].initial and not found[name].dropped and found[name].source == name for name in placed)
    x = torch.randn(2, 3, 16, 16)
    assert_same(ours.eval()(x), theirs.eval()(x), tolerance=1e-5)
    with pytest.raises(ns.InputError, match=r"tensors of the model's shapes: got layer1.0.bn1.running_mean \(2,\)"):
        ns.load_bridged(ResNet(), state)


def test_the_authors_ibn_b():
    theirs = ResNet()
    theirs.bn1 = nn.InstanceNorm2d(4, affine=True)
    ours = ResNet()
    for layer in ("layer1", "layer2"):
        block = getattr(theirs, layer)[-1]
        block.IN = nn.InstanceNorm2d(block.conv2.out_channels, affine=True)
    shaken(theirs)
    placed = ns.place_ibn(ours, "b")
    assert placed == ["bn1", "layer1.1.after_addition", "layer2.1.after_addition"]
    bridge = ns.load_bridged(ours, theirs.state_dict())
    assert {layer.source for layer in bridge.layers} >= {"layer1.1.IN", "layer2.1.IN"}
    for name, key in (("layer1", "weight"), ("layer2", "bias")):
        assert torch.equal(getattr(getattr(ours, name)[-1].after_addition, key), getattr(getattr(theirs, name)[-1].IN, key))
    left = theirs.state_dict()
    left.pop("layer1.1.IN.bias")
    assert next(x for x in ns.load_bridged(ours, left).layers if x.name == placed[1]).initial == ("bias",)
