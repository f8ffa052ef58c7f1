"""A model from its name: what is found, and one sentence for everything that is not."""

import json
import sys
import types

import pytest
import torch
from torch import nn

from normsmith.errors import DependencyError, ModelError, NormsmithError, OptionError
from normsmith.locate import load_model

FILE = """
import dataclasses
import sibling
from torch import nn

@dataclasses.dataclass
class Size:
    width: int = 4

def net(width=4, act="relu", sizes=()):
    import late
    return nn.Sequential(nn.Linear(width, width), nn.Identity())

class Nets:
    small = net

ready = nn.Linear(2, 2)
number = 3
def broken(): raise RuntimeError("first\\nsecond")
def nothing(): return None
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    for name in ("netfile", "sibling", "late"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "sibling.py").write_text("")
    (tmp_path / "late.py").write_text("")
    path = tmp_path / "netfile.py"
    path.write_text(FILE)
    yield path
    for name in ("netfile", "sibling", "late"):
        sys.modules.pop(name, None)


def test_a_file(file, monkeypatch):
    before = list(sys.path)
    assert load_model(f"{file}:net")[0].in_features == 4
    assert load_model(f"{file}:net(6, act='a:b(c', sizes=[1, (2, 3)])")[0].in_features == 6
    assert load_model(f"{file}:Nets.small")[0].in_features == 4
    assert isinstance(load_model(f"{file}:ready"), nn.Linear)
    assert sys.path == before
    monkeypatch.chdir(file.parent)
    assert load_model("netfile.py:net")[0].in_features == 4
    assert load_model("netfile:net(width=3)")[0].in_features == 3


def test_a_module():
    assert isinstance(load_model("torch.nn:Linear(2, 3)"), nn.Linear)


WRONG = {
    "net": (OptionError, "expected as package.module:factory"),
    ":net": (OptionError, "expected as"),
    "{file}:": (OptionError, "expected as"),
    "{file}:net(width=open('x'))": (OptionError, "with literals as arguments"),
    "{file}:net(**{{}})": (OptionError, "with literals as arguments"),
    "{file}:net(": (OptionError, "with literals as arguments"),
    "{file}:nett": (ModelError, "did you mean 'net'"),
    "{file}:zzzzzz": (ModelError, "got no such name"),
    "{file}:number": (ModelError, "name a factory: got a int"),
    "{file}:broken": (ModelError, "raised RuntimeError: first$"),
    "{file}:nothing": (ModelError, "got a NoneType"),
    "{file}:net(wide=3)": (ModelError, "raised TypeError"),
    "{folder}/none.py:net": (ModelError, "No such file"),
    "{folder}/bad.py:net": (ModelError, "raised SyntaxError"),
    "{folder}/needs.py:net": (ModelError, "needs 'not_there_at_all'"),
    "no_such_package.nets:net": (ModelError, "expected to be a module: there is none"),
    "torch.no_such:net": (ModelError, "expected to be a module: there is none"),
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_is_wrong_is_one_sentence(file, spec):
    (file.parent / "bad.py").write_text("def")
    (file.parent / "needs.py").write_text("import not_there_at_all")
    kind, message = WRONG[spec]
    before, modules = list(sys.path), set(sys.modules)
    with pytest.raises(kind, match=message) as caught:
        load_model(spec.format(file=file, folder=file.parent))
    assert "\n" not in str(caught.value)
    assert sys.path == before
    assert not {"bad", "needs"} & (set(sys.modules) - modules)


def test_hugging_face(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the environment was read at its import
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    config.save_pretrained(tmp_path / "bare")
    assert type(load_model(f"hf:{tmp_path / 'bare'}")) is transformers.ResNetModel
    config.architectures = ["ResNetForImageClassification"]
    config.save_pretrained(tmp_path / "headed")
    assert type(load_model(f"hf:{tmp_path / 'headed'}")) is transformers.ResNetForImageClassification
    model = transformers.ResNetForImageClassification(config)
    model.save_pretrained(tmp_path / "full")
    found = load_model(f"hf:{tmp_path / 'full'}")
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "no such"}))
    for name in (tmp_path / "nowhere", tmp_path / "odd", "surely/not-a-repository"):
        with pytest.raises(ModelError, match=r"repository with a config\.json") as caught:
            load_model(f"hf:{name}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_zoos(package, monkeypatch):
    """Against modules that have the three functions used: the real ones are seldom installed beside a CPU build of torch."""
    zoo = types.ModuleType("zoo")
    zoo.list_models = lambda: ["resnet18", "resnet50"]
    zoo.create_model = zoo.get_model = lambda name, num_classes=7: nn.Linear(int(name[6:]), num_classes)
    monkeypatch.setitem(sys.modules, package, zoo)
    monkeypatch.setitem(sys.modules, f"{package}.models", zoo)
    assert load_model(f"{package}:resnet18(num_classes=2)").out_features == 2
    assert load_model(f"{package}:resnet50").in_features == 50
    with pytest.raises(ModelError, match="did you mean 'resnet18'"):
        load_model(f"{package}:resnet19")
    with pytest.raises(ModelError, match="raised TypeError"):
        load_model(f"{package}:resnet18(classes=2)")


def test_a_zoo_that_is_not_there(monkeypatch):
    for package, module in (("timm", "timm"), ("torchvision", "torchvision.models"), ("hf", "transformers")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(DependencyError, match="pip install") as caught:
            load_model(f"{package}:resnet18")
        assert isinstance(caught.value, NormsmithError)
