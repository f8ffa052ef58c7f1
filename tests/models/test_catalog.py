"""The catalog of networks, and making them by name."""

import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn

import normsmith as ns
from normsmith.errors import OptionError


def test_a_name_with_options_is_the_class_with_them():
    torch.manual_seed(0)
    by_name = ns.models.make("resnet20:norm_first=true,width=4,depths=(1,2)", num_classes=7, in_channels=1, norm="group")
    torch.manual_seed(0)
    by_class = ns.models.ResNet(7, in_channels=1, norm="group", norm_first=True, width=4, depths=(1, 2), shortcut="pad")
    assert str(by_name) == str(by_class)
    for (name, one), (_, other) in zip(by_name.state_dict().items(), by_class.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("resnet21", "did you mean 'resnet20'"),
        ("shallowcnn", "did you mean 'shallow_cnn'"),
        ("xyz", "they are shallow_cnn, mlp"),
        ("resnet20:widht=8", "resnet20 expects options among .*: got 'widht'; did you mean 'width'"),
        ("resnet20:norm='group'", "got 'norm'"),
        ("resnet20:width", "expected as name:key=value.*got 'width'"),
        ("resnet20:width=0", "ResNet expects width as a positive integer: got 0"),
        ("resnet20:depths=3", "ResNet expects depths.*got 3"),
        ("resnet20:depths=(3,0)", r"ResNet expects depths\[1\] as a positive integer: got 0"),
        ("resnet20:stem=large", "stem to be one of 'auto', 'cifar', 'imagenet': got 'large'"),
        ("resnet20:norm_first=no", "ResNet expects norm_first as true or false: got 'no'"),
        ("densenet40:bottleneck=1", "DenseNet expects bottleneck as true or false: got 1"),
        ("lstm:rows=0", "LSTMClassifier expects rows as true or false: got 0"),
        ("lstm:gain=0", "LSTM expects gamma.* above zero: got 0"),
        ("resnet20:groups=2", "ResNet expects groups in bottlenecks: got groups=2, group_width=64"),
        ("resnet20:group_width=4", "ResNet expects groups in bottlenecks: got groups=1, group_width=4"),
        ("se_resnet20:squeeze=-1", "ResNet expects squeeze as a positive integer: got -1"),
        ("densenet40:depths=()", r"DenseNet expects depths.*got \(\)"),
        ("mlp:activation=tanh", "activation to be one of"),
    ],
)
def test_what_is_wrong_is_said(wrong, sentence):
    with pytest.raises(OptionError, match=sentence):
        ns.models.make(wrong)


@pytest.mark.parametrize("size", ["num_classes", "in_channels", "image_size"])
def test_sizes_of_the_data_are_checked(size):
    with pytest.raises(OptionError, match=f"expects {size} as a positive integer: got 0"):
        ns.models.make("resnet20", **{size: 0})


@pytest.mark.parametrize("name", ns.models.catalog())
def test_one_line_one_network(name):
    entry = ns.models.catalog()[name]
    assert entry.name == name
    assert entry.summary
    assert entry.paper
    assert entry.load() is getattr(ns.models, entry.class_name)
    kinds = {key: p.kind for key, p in inspect.signature(entry.load()).parameters.items()}
    assert next(iter(kinds)) == "num_classes"
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for key, kind in kinds.items() if key != "num_classes")
    assert entry.options.keys() <= kinds.keys()
    assert len(entry.input_shape(2)) == entry.rank


def test_the_catalog_is_read_without_torch():
    code = "import sys, normsmith; normsmith.models.catalog()['resnet20']; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_of_the_room():
    for name in ns.models.__all__:
        assert getattr(ns.models, name) is not None
        assert name in dir(ns.models)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        ns.models.Nonsense  # noqa: B018


def test_a_normalizer_that_needs_more_than_x_is_refused():
    for norm in ("adain", ns.AdaIN):
        with pytest.raises(OptionError, match=r"of its input alone: got .*, which also takes style"):
            ns.models.make("mlp", norm=norm)


def test_norms_of_any_kind():
    for norm, kind in (
        (None, nn.Identity),
        (nn.BatchNorm2d, nn.BatchNorm2d),
        (lambda c: ns.GroupNorm(c, num_groups=2), ns.GroupNorm),
    ):
        net = ns.models.make("resnet20:depths=(1,),width=4", norm=norm)
        assert type(net.stem.norm) is kind
        assert (net.stem.conv.bias is None) == (norm is not None)


def test_check_name_is_what_make_asks_first():
    ns.models.check_name("resnet20:width=4")
    for wrong in ("resnet2000:width=4", "resnet20:widht=4"):
        with pytest.raises(OptionError):
            ns.models.check_name(wrong)
