"""Networks against the tables of their papers: parameters, and shapes on the way; on the meta device, which computes nothing."""

import pytest
import torch
from torch import nn

import normsmith as ns

# Parameters for ImageNet (224×224, 1000 classes) or CIFAR-10, as published or as torchvision and timm, which follow the papers, have them.
IMAGENET = {
    "alexnet": (61_100_840, None),
    "vgg_a": (132_863_336, None),
    "vgg16": (138_357_544, None),
    "resnet18": (11_689_512, "batch"),
    "resnet50": (25_557_032, "batch"),
    "preresnet50": (25_549_352, "batch"),
    "ibn_resnet50_a": (25_557_032, "batch"),
    "ibn_resnet50_b": (25_558_568, "batch"),
    "resnext50": (25_028_904, "batch"),
    "se_resnet50": (28_088_024, "batch"),
    "densenet121": (7_978_856, "batch"),
    "vit:width=768,depth=12,heads=12,patch=16": (86_567_656, "layer"),
}
CIFAR = {
    "resnet20": 269_722,
    "resnet20:shortcut=project": 272_474,
    "resnet18": 11_173_962,
    "wide_resnet_28_2": 1_467_610,
    "resnext29": 34_426_698,
    "densenet40": 1_019_722,
    "densenet_bc_100": 769_162,
    "vgg16": 14_724_042,
}


def made(name, **options):
    with torch.device("meta"):
        return ns.models.make(name, **options)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", IMAGENET)
def test_parameters_for_imagenet(name):
    expected, norm = IMAGENET[name]
    assert parameters(made(name, num_classes=1000, image_size=224, norm=norm)) == expected


@pytest.mark.parametrize("name", CIFAR)
def test_parameters_for_cifar(name):
    assert parameters(made(name)) == CIFAR[name]


def shapes(model, wanted, size, channels=3, samples=2):
    """The (C, H, W) of what each module of those names gives."""
    found = {}
    for name in wanted:
        model.get_submodule(name).register_forward_hook(
            lambda module, x, y, name=name: found.__setitem__(name, tuple(y.shape[1:]))
        )
    device = next(model.parameters()).device
    model(torch.randn(samples, channels, size, size, device=device))
    return found


RESNET50 = {"stem": (64, 56, 56), "stages.0": (256, 56, 56), "stages.1": (512, 28, 28), "stages.2": (1024, 14, 14)}
TABLES = [
    ("resnet50", 224, {**RESNET50, "stages.3": (2048, 7, 7), "pool": (2048,)}),
    ("preresnet50", 224, {**RESNET50, "stages.3": (2048, 7, 7)}),
    ("resnext50", 224, {**RESNET50, "stages.1.0.branch.0": (256, 56, 56), "stages.1.0.branch.1": (256, 28, 28)}),
    ("se_resnet50", 224, RESNET50),
    ("resnet20", 32, {"stem": (16, 32, 32), "stages.0": (16, 32, 32), "stages.1": (32, 16, 16), "stages.2": (64, 8, 8)}),
    (
        "wide_resnet_28_2",
        32,
        {"stem": (16, 32, 32), "stages.0": (32, 32, 32), "stages.1": (64, 16, 16), "stages.2": (128, 8, 8)},
    ),
    (
        "vgg_a",
        32,
        {"backbone.1": (64, 16, 16), "backbone.3": (128, 8, 8), "backbone.6": (256, 4, 4), "backbone.12": (512, 1, 1)},
    ),
    ("vgg16", 224, {"backbone.2": (64, 112, 112), "backbone.17": (512, 7, 7)}),
    ("alexnet", 224, {"backbone.0": (64, 55, 55), "backbone.2": (192, 27, 27), "backbone.7": (256, 6, 6)}),
    (
        "alexnet",
        32,
        {"backbone.0": (64, 16, 16), "backbone.2": (192, 8, 8), "backbone.4": (384, 4, 4), "backbone.7": (256, 2, 2)},
    ),
    (
        "densenet121",
        224,
        {
            "stem": (64, 56, 56),
            "stages.0": (256, 56, 56),
            "stages.1": (128, 28, 28),
            "stages.2": (512, 28, 28),
            "stages.4": (1024, 14, 14),
            "stages.6": (1024, 7, 7),
        },
    ),
]


@pytest.mark.parametrize(("name", "size", "table"), TABLES, ids=lambda v: str(v) if not isinstance(v, dict) else "")
def test_shapes_at_each_stage(name, size, table):
    norm = None if name in {"alexnet", "vgg16"} else "batch"
    model = made(name, num_classes=1000, image_size=size, norm=norm)
    assert shapes(model, table, size) == table


SHALLOW = {
    "backbone.0": (64, 32, 32),
    "backbone.1": (64, 16, 16),
    "backbone.2": (128, 16, 16),
    "backbone.3": (128, 8, 8),
    "backbone.4": (128, 8, 8),
    "backbone.5": (128, 4, 4),
    "backbone.6": (256, 4, 4),
    "pool": (256,),
    "head": (10,),
}


@pytest.mark.parametrize("size", [32, 64])
def test_the_shallow_network_is_that_of_the_lecture(size):
    model = ns.models.make("shallow_cnn")
    assert shapes(model, SHALLOW, size) == SHALLOW
    kinds = [type(m) for m in model.backbone[0]]
    assert kinds == [nn.Conv2d, ns.BatchNorm, nn.ReLU]
    kernels = [m.kernel_size for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(5, 5), (5, 5), (5, 5), (3, 3)]


def test_a_large_image_is_scaled_down():
    model = ns.models.make("shallow_cnn:width=4").eval()
    small = torch.randn(2, 3, 32, 32)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    scaled = nn.functional.interpolate(large, size=(32, 32), mode="bilinear", antialias=True)
    assert torch.equal(model(large), model(scaled))
    assert torch.isfinite(model(torch.randn(2, 3, 8, 8))).all()


def test_where_the_norms_stand():
    """Norm behind each convolution, or before it."""
    behind = made("resnet20:depths=(1,1)")
    assert [n for n, m in behind.named_modules() if isinstance(m, ns.BatchNorm)] == [
        "stem.norm",
        "stages.0.0.branch.0.norm",
        "stages.0.0.branch.1.norm",
        "stages.1.0.branch.0.norm",
        "stages.1.0.branch.1.norm",
    ]
    first = made("preresnet20:depths=(1,1)")
    assert [(n, m.num_features) for n, m in first.named_modules() if isinstance(m, ns.BatchNorm)] == [
        ("stages.0.0.enter.norm", 16),
        ("stages.0.0.branch.1.norm", 16),
        ("stages.1.0.enter.norm", 16),
        ("stages.1.0.branch.1.norm", 32),
        ("last.norm", 32),
    ]


def test_norm_first_leaves_the_shortcut_alone():
    """The input of a block reaches its output as it is, or, where sizes change, behind the first norm (He et al., 2016b)."""
    model = ns.models.make("preresnet20:depths=(1,1),width=4,shortcut=project").double().eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    same, smaller = model.stages[0][0], model.stages[1][0]
    assert torch.equal(same(x), same.branch(same.enter(x)) + x)
    assert torch.equal(smaller(x), smaller.branch(smaller.enter(x)) + smaller.shortcut(smaller.enter(x)))
    assert smaller.shortcut.weight.shape == (8, 4, 1, 1)


def test_a_shortcut_without_parameters():
    block = ns.models.make("resnet20:depths=(1,1),width=2").stages[1][0]
    x = torch.randn(1, 2, 4, 4)
    out = block.shortcut(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert not out[:, 2:].any()


def test_squeeze_scales_channels_by_their_means():
    squeeze = ns.models.make("se_resnet20:depths=(1,),width=16").stages[0][0].branch[-1]
    x = torch.randn(2, 16, 3, 3)
    gates = squeeze.gate(x.mean((2, 3)))
    assert torch.allclose(squeeze(x), x * gates[..., None, None])
    assert squeeze.gate[0].out_features == 1


@pytest.mark.parametrize("variant", ["a", "b"])
def test_ibn_is_as_place_ibn_has_it_and_the_rest_as_asked(variant):
    model = ns.models.make(f"ibn_resnet20_{variant}:depths=(1,1,1),width=4", norm="group")
    ibn = [n for n, m in model.named_modules() if isinstance(m, ns.IBN)]
    instance = [n for n, m in model.named_modules() if isinstance(m, ns.InstanceNorm)]
    assert not [n for n, m in model.named_modules() if isinstance(m, ns.BatchNorm)]
    assert sum(isinstance(m, ns.GroupNorm) for m in model.modules()) == (5 if variant == "a" else 6)
    if variant == "a":
        assert ibn == ["stages.0.0.branch.0.norm", "stages.1.0.branch.0.norm"]
        assert not instance
    else:
        assert instance == ["stem.norm", "stages.0.0.after_addition", "stages.1.0.after_addition"]
        assert not ibn


@pytest.mark.parametrize("norm", [None, "rms", "batch"])
def test_ibn_has_biases_where_the_other_norms_have_none(norm):
    model = ns.models.make("ibn_resnet20_a:depths=(1,1),width=4", norm=norm)
    assert all((m.bias is None) == (norm == "batch") for m in model.modules() if isinstance(m, nn.Conv2d))
    assert sum(isinstance(m, ns.IBN) for m in model.modules()) == 1


def test_ibn_has_no_relu_behind_norms_that_include_one():
    model = ns.models.make("ibn_resnet20_a:depths=(1,1),width=4", norm="evo_s0")
    behind = {type(m.norm): type(m.act) for m in model.modules() if isinstance(m, nn.Sequential) and hasattr(m, "act")}
    assert behind == {ns.IBN: nn.ReLU, ns.EvoNormS0: nn.Identity}


@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize("name", ["vgg16", "alexnet", "shallow_cnn", "unet", "resnet20"])
def test_small_images_get_through(name, size):
    if name == "shallow_cnn" and size < 8:
        with pytest.raises(ns.InputError, match=r"at least 8×8.*got shape"):
            ns.models.make(name)(torch.randn(1, 3, size, size))
        return
    model = ns.models.make(f"{name}:width=2", image_size=size).eval()
    assert model(torch.randn(1, 3, size, size)).shape[:2] == (1, 10)


@pytest.mark.parametrize("size", [(16, 16), (17, 13)])
def test_a_segmentation_is_as_large_as_the_image(size):
    model = ns.models.make("unet:width=4", num_classes=3, in_channels=1)
    assert model(torch.randn(2, 1, *size)).shape == (2, 3, *size)


def test_a_u_net_passes_what_was_on_the_way_down():
    model = ns.models.make("unet:width=4,depth=2").double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    a = model.backbone[0](x)
    b = model.backbone[1](model.pool(a))
    c = model.backbone[2](model.pool(b))
    d = model.decoder[0](torch.cat([b, model.up[0](c)], 1))
    e = model.decoder[1](torch.cat([a, model.up[1](d)], 1))
    assert torch.equal(model(x), model.head(e))


def test_a_detector_gives_boxes_and_takes_two_norms():
    model = ns.models.make("detector:width=4,head_norm=switchable", num_classes=3, norm="frozen")
    logits, boxes = model(torch.randn(5, 3, 16, 16))
    assert logits.shape == (5, 3)
    assert boxes.shape == (5, 4)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert {type(m) for m in model.backbone.modules() if "Norm" in type(m).__name__} == {ns.FrozenNorm}
    assert {type(m) for m in model.head.modules() if "Norm" in type(m).__name__} == {ns.SwitchableNorm}


def test_clips_of_any_length():
    model = ns.models.make("clipnet:width=4", in_channels=1)
    for frames in (2, 5, 8):
        assert model(torch.randn(2, 1, frames, 16, 16)).shape == (2, 10)


def test_attention_is_torchs():
    torch.manual_seed(0)
    attention = ns.models.make("vit:depth=1,width=8,heads=2", image_size=8).double().encoders[0].attention
    torchs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        torchs.in_proj_weight.copy_(attention.queries_keys_values.weight)
        torchs.out_proj.weight.copy_(attention.out.weight)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.allclose(attention(x), torchs(x, x, x)[0])


def test_layer_norm_in_a_transformer_is_of_each_token():
    model = ns.models.make("vit:depth=1", norm="layer")
    assert model.last.num_features == (64,)
    assert ns.models.make("vit:depth=1", norm="group").last.norm.num_features == 64
    assert isinstance(ns.models.make("vit:depth=1", norm=nn.LayerNorm).last, nn.LayerNorm)
    with pytest.raises(ns.OptionError, match=r"patch that divides the image.*got 5 for 32"):
        ns.models.make("vit:patch=5")


def test_perceptrons():
    sigmoid, relu, linear = (ns.models.make(name, image_size=8) for name in ("mlp", "mlp_relu", "deep_linear"))
    assert sum(isinstance(m, nn.Sigmoid) for m in sigmoid.modules()) == 3
    assert sum(isinstance(m, nn.ReLU) for m in relu.modules()) == 3
    assert sum(isinstance(m, ns.BatchNorm) for m in linear.modules()) == 25
    linear.eval()
    zero = linear(torch.zeros(1, 3, 8, 8))
    x, y = torch.randn(2, 1, 3, 8, 8).unbind()
    assert torch.allclose(linear(x + y) - zero, linear(x) + linear(y) - 2 * zero, atol=1e-4)


def test_sizes_that_are_not_square():
    assert ns.models.make("resnet20", image_size=(32, 32)).head.in_features == 64
    assert ns.models.make("clipnet", image_size=(8, 16, 16)).head.out_features == 10
    assert ns.models.make("unet", image_size=(16, 24)).head.out_channels == 10
    with pytest.raises(ns.OptionError, match=r"mlp expects square images: got image_size=\(16, 24\); crop or scale"):
        ns.models.make("mlp", image_size=(16, 24))
