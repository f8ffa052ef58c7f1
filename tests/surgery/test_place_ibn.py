"""IBN-Net's placement, in models by their structure: which layers, with which numbers, and nothing else."""

import copy
import pickle

import pytest
import torch
from helpers import assert_same
from surgery.lookalikes import BasicBlock, ChannelAttention, DenseNet, PreActivated, ResNet, Squeeze
from torch import nn

import normsmith as ns


def trained(model, size=16, channels=3, dims=2):
    """The model in float64 with statistics and affine parameters of its own."""
    model = model.double().train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        for _ in range(2):
            model(torch.randn(4, channels, *[size] * dims, dtype=torch.float64) + 1)
    return model


def huggingface(kind, **options):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        embedding_size=4, hidden_sizes=[8, 12, 16, 20], depths=[1, 2, 1, 1], num_labels=3, **options
    )
    return getattr(transformers, f"{kind}ForImageClassification")(config)


def monai_nets():
    nets = pytest.importorskip("monai.networks.nets")
    return {
        "resnet3d": nets.ResNet("basic", [1, 1, 1, 1], [4, 6, 8, 10], spatial_dims=3, n_input_channels=1, num_classes=2),
        "densenet": nets.DenseNet(2, 1, 2, init_features=4, growth_rate=2, block_config=(4, 2, 2, 2)),
    }


A = {
    "resnet": (ResNet, [f"layer{i}.{j}.bn1" for i in (1, 2, 3) for j in (0, 1)]),
    "resnext": (lambda: ResNet(groups=2), [f"layer{i}.{j}.bn1" for i in (1, 2, 3) for j in (0, 1)]),
    "se-resnet": (lambda: ResNet(attention=Squeeze), [f"layer{i}.{j}.bn1" for i in (1, 2, 3) for j in (0, 1)]),
    "pre-activated": (lambda: ResNet(PreActivated), [f"layer{i}.{j}.bn1" for i in (1, 2, 3) for j in (0, 1)]),
    "three stages": (lambda: ResNet(widths=(4, 6, 8), depth=1), ["layer1.0.bn1", "layer2.0.bn1"]),
    "densenet": (
        DenseNet,
        [f"features.denseblock{i}.denselayer{j}.norm1" for i, j in ((1, 1), (1, 4), (2, 1), (3, 1))],
    ),
    "transformers resnet": (
        lambda: huggingface("ResNet", layer_type="bottleneck"),
        [f"resnet.encoder.stages.{i}.layers.{j}.layer.0.normalization" for i, j in ((0, 0), (1, 0), (1, 1), (2, 0))],
    ),
    "transformers regnet": (
        lambda: huggingface("RegNet", groups_width=4),
        [f"regnet.encoder.stages.{i}.layers.{j}.layer.0.normalization" for i, j in ((0, 0), (1, 0), (1, 1), (2, 0))],
    ),
    "monai resnet": (lambda: monai_nets()["resnet3d"], [f"layer{i}.0.bn1" for i in (1, 2, 3)]),
    "monai densenet": (
        lambda: monai_nets()["densenet"],
        [f"features.denseblock{i}.denselayer{j}.layers.norm1" for i, j in ((1, 1), (1, 4), (2, 1), (3, 1))],
    ),
}


@pytest.mark.parametrize("case", A)
def test_a_stands_where_the_paper_has_it(case):
    build, expected = A[case]
    model = build()
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    assert ns.place_ibn(model, "a") == expected
    assert [name for name, module in model.named_modules() if isinstance(module, ns.IBN)] == expected
    assert [name for name, _ in model.named_parameters()] == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    ratios = {model.get_submodule(name).ratio for name in expected}
    assert ratios == ({0.4} if "densenet" in case else {0.5})
    x = torch.randn(3, *((1, 16, 16, 16) if case == "monai resnet" else (1, 32, 32) if "monai" in case else (3, 32, 32)))
    out = model(x)
    (out if isinstance(out, torch.Tensor) else out.logits).sum().backward()
    assert all(p.grad is not None for p in parameters)


class ByHand(nn.Module):
    """The authors' layer: two of torch's, side by side."""

    def __init__(self, norm, half):
        super().__init__()
        self.half = half
        self.first = nn.InstanceNorm2d(half, eps=norm.eps, affine=True).to(norm.weight)
        self.rest = nn.BatchNorm2d(norm.num_features - half, eps=norm.eps, momentum=norm.momentum).to(norm.weight)
        with torch.no_grad():
            for key in ("weight", "bias"):
                getattr(self.first, key).copy_(getattr(norm, key)[:half])
            for key in ("weight", "bias", "running_mean", "running_var"):
                getattr(self.rest, key).copy_(getattr(norm, key)[half:])

    def forward(self, x):
        return torch.cat((self.first(x[:, : self.half]), self.rest(x[:, self.half :])), 1)


def test_a_has_the_numbers_of_the_replaced_norms():
    model = trained(ResNet())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.3
    expected = copy.deepcopy(model)
    for i in (1, 2, 3):
        for block in getattr(expected, f"layer{i}"):
            block.bn1 = ByHand(block.bn1, block.bn1.num_features // 2)
    ns.place_ibn(model, "a")
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for training in (True, False):
        assert_same(model.train(training)(x), expected.train(training)(x))
    assert_same(model.layer1[0].bn1.running_var, expected.layer1[0].bn1.rest.running_var)
    assert model.layer1[0].bn1.num_batches_tracked == 3


def test_a_keeps_mode_type_freezing_and_hooks():
    model = ResNet().half()
    norm = model.layer1[0].bn1.eval()
    norm.weight.requires_grad_(False)
    seen = []
    norm.register_forward_hook(lambda *_: seen.append(1))
    ns.place_ibn(model, "a")
    new = model.layer1[0].bn1
    assert not new.training
    assert new.running_mean.dtype == new.weight.dtype == torch.float16
    assert not new.weight.requires_grad
    assert model.layer1[1].bn1.training
    new(torch.randn(2, 4, 8, 8, dtype=torch.float16))
    assert seen == [1]


def test_a_replaces_our_batch_norm_with_its_policies():
    model = ResNet(depth=1)
    model.layer1[0].bn1 = ns.BatchNorm(4, momentum=None, accumulate=2, affine=False)
    ns.place_ibn(model, "a")
    assert model.layer1[0].bn1.options().items() >= {"ratio": 0.5, "momentum": None, "accumulate": 2, "affine": False}.items()


def test_a_shared_block_stays_shared():
    model = ResNet(depth=1)
    model.layer2 = nn.Sequential(model.layer2[0], BasicBlock(6, 6), nn.Identity())
    model.layer2[2] = model.layer2[1]
    ns.place_ibn(model, "a")
    assert isinstance(model.layer2[1].bn1, ns.IBN)
    assert model.layer2[1] is model.layer2[2]


class WithInstance(nn.Module):
    """A block of `lookalikes` with the norm behind its addition, written out."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.norm = nn.InstanceNorm2d(block.conv2.out_channels, affine=True, dtype=torch.float64)

    def forward(self, x):
        b = self.block
        if isinstance(b, PreActivated):
            out = torch.relu(b.bn1(x))
            shortcut = x if b.shortcut is None else b.shortcut(out)
            return self.norm(b.conv2(torch.relu(b.bn2(b.conv1(out)))) + shortcut)
        out = b.bn2(b.conv2(torch.relu(b.bn1(b.conv1(x)))))
        out = out if b.se is None else b.se(out)
        return torch.relu(self.norm(out + (x if b.downsample is None else b.downsample(x))))


@pytest.mark.parametrize(
    "options", [{}, {"attention": Squeeze}, {"attention": ChannelAttention}, {"block": PreActivated}, {"depth": 1}]
)
def test_b_equals_a_net_written_by_hand(options):
    model = trained(ResNet(**options))
    expected = copy.deepcopy(model)
    stem = nn.InstanceNorm2d(4, affine=True, dtype=torch.float64)
    stem.load_state_dict({"weight": model.bn1.weight, "bias": model.bn1.bias})
    expected.bn1 = stem
    for layer in (expected.layer1, expected.layer2):
        layer[-1] = WithInstance(layer[-1])
    keys, parameters = set(model.state_dict()), set(model.parameters())
    placed = ns.place_ibn(model, "b")
    last = options.get("depth", 2) - 1
    assert placed == ["bn1", f"layer1.{last}.after_addition", f"layer2.{last}.after_addition"]
    added = {f"{name}.{key}" for name in placed[1:] for key in ("weight", "bias")}
    gone = {f"bn1.{key}" for key in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(model.state_dict()) == keys - gone | added
    assert parameters <= set(model.parameters())
    with torch.no_grad():
        for i in (1, 2):
            getattr(model, f"layer{i}")[last].after_addition.weight.uniform_(0.5, 1.5)
            getattr(expected, f"layer{i}")[last].norm.weight.copy_(getattr(model, f"layer{i}")[last].after_addition.weight)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for training in (True, False):
        assert_same(model.train(training)(x), expected.train(training)(x))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same(twin(x), model(x), tolerance=1e-15)
        assert twin.state_dict().keys() == model.state_dict().keys()


def test_b_in_models_of_others():
    model = huggingface("RegNet", groups_width=4)
    before = model.state_dict()
    assert ns.place_ibn(model, "b") == [
        "regnet.embedder.embedder.normalization",
        "regnet.encoder.stages.0.layers.0.after_addition",
        "regnet.encoder.stages.1.layers.1.after_addition",
    ]
    left = model.load_state_dict(before, strict=False)
    assert all("after_addition" in key for key in left.missing_keys)
    assert all("embedder.normalization" in key for key in left.unexpected_keys)
    assert model(torch.randn(2, 3, 32, 32)).logits.shape == (2, 3)
    model = monai_nets()["densenet"]
    assert ns.place_ibn(model, "b") == ["features.norm0", "features.transition1.norm", "features.transition2.norm"]
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 2)
    model = monai_nets()["resnet3d"]
    assert ns.place_ibn(model, "b") == ["bn1", "layer1.0.after_addition", "layer2.0.after_addition"]
    assert model(torch.randn(2, 1, 16, 16, 16)).shape == (2, 2)


def test_b_in_a_densenet_is_in_its_transitions():
    model = trained(DenseNet())
    expected = copy.deepcopy(model)
    for name in ("norm0", "transition1.0", "transition2.0"):
        parent, key = expected.features.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        old = getattr(parent, key)
        setattr(parent, key, nn.InstanceNorm2d(old.num_features, affine=True, dtype=torch.float64))
        getattr(parent, key).load_state_dict({"weight": old.weight, "bias": old.bias})
    parameters = list(model.parameters())
    assert ns.place_ibn(model, "b") == ["features.norm0", "features.transition1.0", "features.transition2.0"]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for training in (True, False):
        assert_same(model.train(training)(x), expected.train(training)(x))


def test_the_order_of_parameters_stays():
    model = ResNet(PreActivated, depth=1)  # it runs what it holds in another order
    names = [name for name, _ in model.named_parameters()]
    ns.place_ibn(model, "b")
    assert [name for name, _ in model.named_parameters() if "after_addition" not in name] == names


class Moody(BasicBlock):
    def forward(self, x):
        return super().forward(x if self.training else x * 2)


def flat():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4)))


def layered():
    model = ResNet()
    model.layer2[1].bn1 = nn.GroupNorm(2, 6)
    return model


def unjoined():
    """A dense network without norms in its transitions."""
    model = DenseNet()
    for i in (1, 2, 3):
        model.features.get_submodule(f"transition{i}")[0] = nn.Identity()
    return model


REFUSED = {
    "no blocks": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "a", "at least two stages: got none"),
    "one stage": (flat, "a", "at least two stages: got 2 blocks in a single one"),
    "dense b": (unjoined, "b", "a norm between dense stages: got none behind"),
    "other norm": (layered, "a", "got 'layer2.1.bn1', but it is GroupNorm"),
    "mode": (lambda: ResNet(Moody), "b", "same in both modes"),
    "wrapped": (lambda: nn.DataParallel(ResNet()), "a", "bare model"),
    "variant": (ResNet, "c", "variant to be one of 'a', 'b'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_leave_the_model_as_it_was(case):
    build, variant, message = REFUSED[case]
    model = build()
    before = list(model.named_modules())
    with pytest.raises(ns.NormsmithError, match=message):
        ns.place_ibn(model, variant)
    assert list(model.named_modules()) == before


def test_placing_twice_is_refused():
    model = ResNet()
    ns.place_ibn(model, "a")
    with pytest.raises(ns.ModelError, match="but it is IBN"):
        ns.place_ibn(model, "a")
