import pytest
import torch

import normsmith as ns
from normsmith.methods._specs import written


def test_options_may_be_part_of_the_name():
    layer = ns.make("group:num_groups=4, eps=1e-3", 12)
    assert (layer.num_groups, layer.eps) == (4, 1e-3)
    assert ns.make("batch:momentum=None", 12).momentum is None
    assert ns.make("group:num_groups=auto", 12).num_groups == 6
    assert ns.make("group:num_groups=4", 12, num_groups=3).num_groups == 3


def test_classes_and_factories_pass_through():
    assert isinstance(ns.make(ns.BatchNorm, 12), ns.BatchNorm)
    assert isinstance(ns.make(torch.nn.BatchNorm2d, 12, eps=1e-3), torch.nn.BatchNorm2d)
    assert ns.make(lambda channels, **options: (channels, options), 12, a=1) == (12, {"a": 1})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("grup", "did you mean 'group'"),
        ("BatchNorm", "did you mean 'batch'"),
        ("qqqqq", "normsmith list"),
        ("group:groups=3", "did you mean 'num_groups'"),
        ("group:num_groups", "name:key=value"),
        ("group:=3", "name:key=value"),
        ("batch:num_features=3", "expects options among"),
    ],
)
def test_mistakes_are_named(name, sentence):
    with pytest.raises(ns.OptionError, match=sentence):
        ns.make(name, 12)


def test_the_catalog_is_a_copy():
    ns.catalog().clear()
    assert ns.catalog()


def test_words_and_brackets_in_a_name():
    assert ns.make("batch:affine=false,momentum=None", 4).options()["affine"] is False
    name, options = written("x:a=true,b=(1, 2),c=[3,4],d=word,e='false'")
    assert (name, options) == ("x", {"a": True, "b": (1, 2), "c": [3, 4], "d": "word", "e": "false"})
