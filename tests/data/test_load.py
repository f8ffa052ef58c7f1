"""Names, options, and the set that needs no file."""

import sys

import pytest
import torch
from data.helpers_data import image, mnist, one_sentence, pixels, place
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import normsmith as ns
from normsmith.commands.models import examine
from normsmith.data._fit import evenly, in_channels, resized
from normsmith.data.dataset import Split, assemble, statistics
from normsmith.data.load import cut
from normsmith.errors import DependencyError, InputError, OptionError


def test_trained_on_one_domain_tested_on_another():
    both = ns.data.load("digits:channels=rgb,size=16 -> digits:test=50")
    source, target = ns.data.load_pair("digits:channels=rgb,size=16", "digits:test=50")
    assert torch.equal(both.train.inputs, source.train.inputs)
    assert torch.equal(both.test.inputs, target.test.inputs)
    assert len(both.test) == 50
    assert both.mean == source.mean
    with pytest.raises(OptionError, match="did you mean 'digits'"):
        ns.data.load("digits -> digit")


def test_digits():
    digits = ns.data.load("digits")
    assert (digits.name, digits.task, digits.channels, digits.size) == ("digits", "classification", 1, (8, 8))
    assert digits.classes == tuple("0123456789")
    assert (len(digits.train), len(digits.test)) == (1442, 355)
    loaded = load_digits()
    whole = torch.cat([digits.train.inputs, digits.test.inputs])[:, 0] * 16
    assert sorted(map(bytes, whole.to(torch.uint8).numpy())) == sorted(map(bytes, loaded.images.astype("uint8")))
    for label in range(10):
        mine = torch.from_numpy(loaded.images[loaded.target == label]).float() / 16
        test = digits.test.inputs[digits.test.targets == label][:, 0]
        assert len(test) == len(mine) // 5
        assert torch.equal(test, mine[-len(test) :])
    assert digits.mean == pytest.approx([float(digits.train.inputs.double().mean())], rel=1e-12)
    assert digits.std == pytest.approx([float(digits.train.inputs.double().std(correction=0))], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_statistics(dtype):
    inputs = torch.from_numpy(pixels(50, 3, 5, 4))
    inputs[:, 2] = 51
    values = inputs.double() / 255
    mean, std = statistics(inputs if dtype == torch.uint8 else values.float())
    tolerance = 1e-12 if dtype == torch.uint8 else 1e-6
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=tolerance)
    assert std[:2] == pytest.approx(values.std((0, 2, 3), correction=0).tolist()[:2], rel=tolerance)
    assert std[2] == pytest.approx(1.0) if dtype == torch.uint8 else std[2] > 0


def test_a_subset_is_stratified_and_always_the_same():
    one, two = (ns.data.load("digits:train=100,test=37") for _ in range(2))
    assert torch.equal(one.train.inputs, two.train.inputs)
    assert torch.bincount(one.train.targets).tolist() == [10] * 10
    assert len(one.test) == 37
    assert set(torch.bincount(one.test.targets).tolist()) == {3, 4}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_evenly(labels, data):
    labels = torch.tensor(labels)
    number = data.draw(st.integers(1, len(labels)))
    places = evenly(labels, number, "it")
    assert len(set(places.tolist())) == number
    assert places.tolist() == sorted(places.tolist())
    counts, chosen = torch.bincount(labels, minlength=5), torch.bincount(labels[places], minlength=5)
    assert float((chosen - counts * number / len(labels)).abs().max()) < 1


def test_resized_keeps_the_middle():
    wide = torch.zeros(1, 1, 4, 12, dtype=torch.uint8)
    wide[..., 4:8] = 200
    assert torch.equal(resized(wide, 4), torch.full((1, 1, 4, 4), 200, dtype=torch.uint8))
    images = torch.from_numpy(pixels(3, 3, 8, 8))
    halved = resized(images, 4).float()
    assert halved.shape == (3, 3, 4, 4)
    assert float((halved.mean((2, 3)) - images.float().mean((2, 3))).abs().max()) < 20
    assert resized(images, 8) is images
    assert resized(images.float() / 255, 16).shape == (3, 3, 16, 16)
    assert resized(images.float() / 255, 16).dtype == torch.float32


def test_channels():
    grey = torch.from_numpy(pixels(5, 1, 4, 4))
    coloured = in_channels(grey, 3, "it")
    assert coloured.shape == (5, 3, 4, 4)
    assert torch.equal(in_channels(coloured, 1, "it"), grey)
    assert torch.equal(in_channels(coloured, 3, "it"), coloured)
    red = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    red[:, 0] = 200
    assert in_channels(red, 1, "it").unique().tolist() == [60]
    digits = ns.data.load("digits:size=12,channels=rgb,train=20,test=10")
    assert digits.train.inputs.shape == (20, 3, 12, 12)
    assert len(digits.mean) == 3


def test_a_pair_is_brought_together(tmp_path):
    mnist(tmp_path / "mnist")
    source, target = ns.data.load_pair("digits:channels=rgb", "mnist:check=False", tmp_path)
    assert source.size == target.size == (28, 28)
    assert source.channels == target.channels == 3
    assert target.mean != source.mean
    assert target.mean == pytest.approx([float(target.train.inputs[:, 0].double().mean()) / 255] * 3, rel=1e-9)


def test_a_pair_of_other_problems(tmp_path):
    with pytest.raises(InputError, match="the same classes") as error:
        ns.data.load_pair("digits", "scenes", tmp_path)
    assert "11 classes (background, 0, 1, ...)" in one_sentence(error)
    place(tmp_path / "two", {f"{name}/{i}.png": image(pixels(8, 8)) for name in "ab" for i in range(5)})
    with pytest.raises(InputError, match="the same classes"):
        ns.data.load_pair("digits", str(tmp_path / "two"))
    with pytest.raises(InputError, match="two sets for classification: got localisation"):
        ns.data.load_pair("boxes:train=4,test=4", "boxes:train=4,test=4")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("digts", "did you mean 'digits'"),
        ("cifar", "'cifar10'"),
        ("", "by its name or path"),
        ("nowhere/at/all", "known are digits"),
        ("digits:train=0", "positive integer: got 0"),
        ("digits:train=lots", "positive integer: got 'lots'"),
        ("digits:train=5000", "at most the 1442 samples"),
        ("digits:sise=8", "did you mean 'size'"),
        ("digits:domain=sketch", "got 'domain'"),
        ("digits:channels=4", "grey, rgb, 1 or 3: got 4"),
        ("digits:size=8,train", "name:key=value"),
    ],
)
def test_names_and_options_that_cannot_work(name, says):
    with pytest.raises(OptionError) as error:
        ns.data.load(name)
    assert says in one_sentence(error)


def test_where_a_name_ends_and_options_begin(tmp_path):
    assert cut("cifar10:train=5,size=8")[2] == {"train": 5, "size": 8}
    assert cut("hf:user/name:train=5")[1:] == ("hf:user/name", {"train": 5})
    assert cut("hf:user/name")[1:] == ("hf:user/name", {})
    folder = tmp_path / "a:b=c"
    folder.mkdir()
    assert cut(str(folder))[1:] == (str(folder), {})
    assert cut(f"{folder}:size=4")[1:] == (str(folder), {"size": 4})
    assert cut(str(tmp_path))[0].name == "folder"


def test_known_names_are_all_read_by_somebody():
    for name, entry in ns.data.known().items():
        assert entry.name == name
        assert entry.summary
        assert entry.known_options
        __import__(f"normsmith.data.{entry.reader}")
    assert ns.data.known()["pacs"].domains == ("art_painting", "cartoon", "photo", "sketch")


def test_where_data_are(tmp_path, monkeypatch):
    monkeypatch.delenv("NORMSMITH_DATA", raising=False)
    with pytest.raises(OptionError, match="set NORMSMITH_DATA") as error:
        ns.data.load("mnist")
    one_sentence(error)
    with pytest.raises(InputError, match="a root that is there"):
        ns.data.load("mnist", tmp_path / "nowhere")
    with pytest.raises(InputError, match="got neither") as error:
        ns.data.load("mnist", tmp_path)
    assert str(tmp_path / "mnist") in one_sentence(error)
    mnist(tmp_path / "mnist")
    monkeypatch.setenv("NORMSMITH_DATA", str(tmp_path))
    above = ns.data.load("mnist:check=False")
    inside = ns.data.load("mnist:check=False", str(tmp_path / "mnist"))
    assert torch.equal(above.train.inputs, inside.train.inputs)


def test_a_package_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DependencyError, match=r"digits needs scikit-learn.*pip install 'normsmith\[data\]'"):
        ns.data.load("digits")


def test_splits_and_sets_are_checked():
    ones = torch.ones(3, 1, 2, 2)
    with pytest.raises(InputError, match="3 inputs, 2 targets"):
        Split(ones, torch.zeros(2))
    with pytest.raises(InputError, match="1 names"):
        Split(ones, torch.zeros(3), ("a",))
    with pytest.raises(InputError, match="float64"):
        Split(ones.double(), torch.zeros(3))
    good, bad = Split(ones, torch.zeros(3).long()), Split(ones, torch.tensor([0, 2, 1]))
    with pytest.raises(InputError, match="from 0 to 1 in its test split: got 0 to 2"):
        assemble("it", "classification", good, bad, ("a", "b"))
    with pytest.raises(InputError, match="samples of one shape"):
        assemble("it", "classification", good, Split(torch.ones(3, 1, 2, 3), torch.zeros(3).long()), ("a", "b"))
    with pytest.raises(InputError, match="got none"):
        assemble("it", "classification", good, good.select(torch.tensor([], dtype=torch.int64)), ("a", "b"))


def test_examine_from_the_command_line(tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))\n"
    )
    examine(f"{tmp_path}/net.py:net", data="digits:test=48", batch_size=16)
    assert "3 batches, 48 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data": "digts"}, "did you mean 'digits'"),
        ({}, "batches are from: got neither"),
        ({"data": "digits", "loader": "x:y"}, "got both"),
        ({"loader": "x:y", "batch_size": 4}, "--root and --batch-size with --data"),
        ({"data": "digits", "batch_size": 0}, "positive integer: got 0"),
    ],
)
def test_examine_with_options_that_cannot_work(given, says):
    with pytest.raises(OptionError, match=says):
        examine("nets.py:net", **given)
