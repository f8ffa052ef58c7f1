"""The tasks that are made here: scenes, boxes and moving digits, looked at pixel by pixel."""

import pytest
import torch
from data.helpers_data import mnist, one_sentence

import normsmith as ns
from normsmith.errors import InputError, OptionError

INK = 64


@pytest.mark.parametrize("name", ["scenes", "boxes", "moving", "moving:label=digit", "scenes:objects=2"])
def test_made_alike_each_time_and_otherwise_by_another_seed(name):
    more = "," if ":" in name else ":"
    one, two = (ns.data.load(f"{name}{more}train=20,test=20") for _ in range(2))
    other = ns.data.load(f"{name}{more}train=20,test=20,seed=1")
    assert (len(one.train), len(one.test)) == (20, 20)
    assert torch.equal(one.train.inputs, two.train.inputs)
    assert torch.equal(one.test.targets, two.test.targets)
    assert not torch.equal(one.train.inputs, other.train.inputs)
    assert one.train.inputs.dtype == torch.uint8
    assert not torch.equal(one.train.inputs, one.test.inputs)
    assert not torch.equal(one.train.targets, one.test.targets), "both splits were drawn alike"


def test_it_does_not_touch_the_random_state():
    state = torch.get_rng_state()
    ns.data.load("boxes:train=5,test=5")
    assert torch.equal(torch.get_rng_state(), state)


def test_scenes():
    data = ns.data.load("scenes:train=80,test=40,objects=1")
    digits = ns.data.load("digits")
    assert data.task == "segmentation"
    assert data.classes == ("background", *"0123456789")
    assert data.train.inputs.shape == (80, 1, 32, 32)
    assert data.train.targets.shape == (80, 32, 32)
    x, y = data.train.inputs[:, 0], data.train.targets
    assert torch.equal(y > 0, x >= INK), "with one digit, ink is what has a class"
    images = (digits.train.inputs * 255).round().to(torch.uint8)
    known = {bytes(i.flatten().numpy()): label for i, label in zip(images, digits.train.targets.tolist(), strict=True)}
    for image, classes in zip(x, y, strict=True):
        labels = classes.unique().tolist()
        assert len(labels) == 2
        windows = image.unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 64)
        total = int(image.sum())
        whole = [bytes(window.contiguous().numpy()) for window in windows if int(window.sum()) == total]
        assert any(known.get(window) == labels[1] - 1 for window in whole)
    assert int(torch.bincount(y[y > 0]).count_nonzero()) == 10


def test_more_digits_in_a_scene_overlap_with_the_later_on_top():
    data = ns.data.load("scenes:train=200,test=40,objects=5")
    x, y = data.train.inputs[:, 0], data.train.targets
    assert torch.equal(y > 0, x >= INK)
    assert max(len(classes.unique()) for classes in y) > 4


def test_boxes():
    data = ns.data.load("boxes:train=300,test=40,size=24")
    assert data.task == "localisation"
    assert data.train.targets.shape == (300, 5)
    widths = set()
    for image, (label, left, top, right, bottom) in zip(data.train.inputs[:, 0], data.train.targets, strict=True):
        ink = (image >= INK).nonzero()
        rows, columns = ink[:, 0], ink[:, 1]
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert torch.equal(torch.stack([left, top, right, bottom]), torch.stack(expected) / 24)
        assert 0 <= int(label) < 10
        widths.add(int(rows.max() - rows.min()))
    assert max(widths) > 11, "some digits are shown twice as large"
    assert min(widths) < 9


def test_moving():
    data = ns.data.load("moving:train=200,test=40")
    assert data.task == "clips"
    assert (data.channels, data.size) == (1, (8, 32, 32))
    assert data.classes[0] == "east"
    x, y = data.train.inputs[:, 0].double(), data.train.targets
    assert sorted(y.unique().tolist()) == list(range(8))
    mass = x.sum((2, 3))
    assert torch.equal(mass, mass[:, :1].expand(-1, 8)), "the digit stays whole"
    positions = torch.arange(32, dtype=torch.float64)
    centres = torch.stack([(x.sum(3) * positions).sum(2) / mass, (x.sum(2) * positions).sum(2) / mass], 2)
    steps = centres.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand(-1, 7, -1), rtol=0, atol=1e-9)
    courses = {"north": (-1, 0), "south": (1, 0), "east": (0, 1), "west": (0, -1)}
    for step, label in zip(steps[:, 0], y.tolist(), strict=True):
        name = data.classes[label]
        expected = torch.tensor([sum(way[i] for part, way in courses.items() if part in name) for i in (0, 1)])
        assert torch.equal(step.sign().long() * (step.abs() > 0.5), expected)


def test_the_same_clips_by_digit():
    data = ns.data.load("moving:train=100,test=10,frames=3")
    digit = ns.data.load("moving:train=100,test=10,frames=3,label=digit")
    assert torch.equal(data.train.inputs, digit.train.inputs)
    assert digit.classes == tuple("0123456789")
    assert len(digit.train.targets.unique()) == 10


def test_of_another_set(tmp_path):
    mnist(tmp_path / "mnist", end="")
    data = ns.data.load("scenes:of=mnist,train=5,test=5", tmp_path)
    assert data.size == (56, 56)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("scenes:of=nothing", OptionError, "got 'nothing'"),
        ("scenes:of=3", OptionError, "of=3"),
        ("scenes:of=moving", InputError, "grey images for classification"),
        ("boxes:size=7", OptionError, "at least the 8 of 'digits': got 7"),
        ("boxes:seed=x", OptionError, "seed='x'"),
        ("moving:frames=1", OptionError, "got 1 frames"),
        ("moving:frames=40", OptionError, "got 40 frames and room for 24 steps; give size="),
        ("moving:label=colour", OptionError, "'direction', 'digit': got 'colour'"),
        ("scenes:objects=0", OptionError, "objects as a positive integer: got 0"),
        ("scenes:train=many", OptionError, "positive integer: got 'many'"),
        ("scenes:channels=rgb", OptionError, "got 'channels'"),
    ],
)
def test_options_that_cannot_work(name, error, says):
    with pytest.raises(error) as raised:
        ns.data.load(name)
    assert says in one_sentence(raised)


def test_they_go_through_batches_with_augmentation():
    for name, augment in (("scenes", "crop:padding=2, flip"), ("boxes", "flip, cutout:size=4"), ("moving", "crop:padding=2")):
        data = ns.data.load(f"{name}:train=20,test=10")
        batches = ns.data.Batches(data.train, 8, augment=augment, mean=data.mean, std=data.std)
        x, y = next(iter(batches))
        assert x.shape == (8, *data.train.inputs.shape[1:])
        assert y.shape == (8, *data.train.targets.shape[1:])
        if name == "scenes":  # ink is still what has a class
            mean, std = data.mean[0], data.std[0]
            assert torch.equal(y > 0, ((x[:, 0] * std + mean) * 255).round() >= INK)
