"""Batches: every sample once, the same bits for the same seed, epoch and step, whatever came before."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import normsmith as ns
from normsmith.data.dataset import Split
from normsmith.errors import OptionError

AUGMENT = "crop:padding=2, flip, cutout:size=3, colour:brightness=0.3,contrast=0.2,saturation=0.4"


def split(number=23, channels=3, size=6, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randint(0, 256, (number, channels, size, size), generator=generator, dtype=torch.uint8)
    inputs = inputs if dtype == torch.uint8 else inputs.float() / 255
    return Split(inputs, torch.arange(number))


def same(ones, others):
    ones, others = list(ones), list(others)
    assert len(ones) == len(others)
    return all(torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in zip(ones, others, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3), st.booleans(), st.booleans(), st.booleans()
)
def test_an_epoch_has_every_sample_once(number, size, seed, epoch, shuffle, drop_last, augmented):
    drop_last = drop_last and size <= number
    augment = "crop:padding=1" if augmented else None
    batches = ns.data.Batches(split(number), size, seed=seed, shuffle=shuffle, drop_last=drop_last, augment=augment)
    found = list(batches.epoch(epoch))
    assert len(found) == len(batches)
    sizes = [len(y) for _, y in found]
    assert all(s == size for s in sizes[: len(found) if drop_last else -1])
    seen = torch.cat([y for _, y in found]).tolist()
    assert len(set(seen)) == len(seen) == (number // size * size if drop_last else number)
    if not shuffle:
        assert seen == sorted(seen)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 5), st.integers(0, 30), st.sampled_from([None, AUGMENT, "flip"]))
def test_it_goes_on_to_the_bit(number, size, epoch, start, augment):
    data = split(number)
    whole = list(ns.data.Batches(data, size, seed=3, augment=augment).epoch(epoch))
    start = min(start, len(whole))
    again = ns.data.Batches(data, size, seed=3, augment=augment)
    list(again.epoch(epoch + 1, start=0))
    assert same(again.epoch(epoch, start=start), whole[start:])


@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_small_and_many_samples_are_made_ready_alike(augment, monkeypatch):
    batches = ns.data.Batches(split(50), 2, augment=augment, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    ready_together = list(batches)
    monkeypatch.setattr("normsmith.data.batches._AT_ONCE", 1)
    assert same(ready_together, batches)


def test_seeds_and_epochs_differ_and_iteration_is_epoch_zero():
    data = split(50)
    batches = ns.data.Batches(data, 8, seed=1)
    orders = [ns.data.Batches(data, 8, seed=seed).order(epoch).tolist() for seed in range(3) for epoch in range(3)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert same(batches, batches.epoch(0))
    assert same(
        ns.data.Batches(data, 8, seed=1, augment=AUGMENT).epoch(2), ns.data.Batches(data, 8, seed=1, augment=AUGMENT).epoch(2)
    )
    assert not same(ns.data.Batches(data, 8, seed=1, augment=AUGMENT), ns.data.Batches(data, 8, seed=2, augment=AUGMENT))


def test_augmentation_differs_by_step_and_epoch():
    data = split(64)
    one = Split(data.inputs[:1].repeat(64, 1, 1, 1), data.targets)
    batches = ns.data.Batches(one, 32, augment="crop:padding=3", shuffle=False)
    (a, _), (b, _) = batches.epoch(0)
    (c, _), _ = batches.epoch(1)
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_order_is_uniform():
    """Over many epochs each sample comes first about equally often: chi-square of 5 places, 4 degrees of freedom, p = 0.001."""
    batches = ns.data.Batches(split(5), 1)
    counts = torch.bincount(torch.tensor([int(batches.order(epoch)[0]) for epoch in range(1000)]), minlength=5)
    assert float((counts - 200).square().sum() / 200) < 18.47


def test_no_random_numbers_but_its_own():
    state = torch.get_rng_state()
    list(ns.data.Batches(split(), 4, augment=AUGMENT).epoch(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    first = list(ns.data.Batches(split(), 4, augment=AUGMENT))
    torch.manual_seed(99)
    assert same(first, ns.data.Batches(split(), 4, augment=AUGMENT))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_scaled_and_standardised(dtype):
    data = split(30, dtype=dtype)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    [(x, y)] = ns.data.Batches(data, 30, shuffle=False, mean=mean, std=std)
    values = data.inputs.double() / (255 if dtype == torch.uint8 else 1)
    expected = (values - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-5)
    assert x.dtype == torch.float32
    assert torch.equal(y, data.targets)
    [(plain, _)] = ns.data.Batches(data, 30, shuffle=False)
    torch.testing.assert_close(plain.double(), values, rtol=1e-6, atol=0)
    before = data.inputs.clone()
    plain.zero_()
    assert torch.equal(data.inputs, before), "the set itself was changed"


def test_types_and_memory_formats():
    x, _ = next(iter(ns.data.Batches(split(), 4, dtype=torch.bfloat16, memory_format=torch.channels_last)))
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last)
    clips = Split(torch.zeros(6, 2, 3, 4, 5, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    x, _ = next(iter(ns.data.Batches(clips, 2, memory_format=torch.channels_last)))
    assert x.is_contiguous(memory_format=torch.channels_last_3d)


def test_bytes_stay_bytes():
    data = split()
    assert ns.data.Batches(data, 4, augment=AUGMENT).inputs.data_ptr() == data.inputs.data_ptr()


def test_a_loader_for_our_verbs():
    digits = ns.data.load("digits:train=64,test=32")
    loader = ns.data.Batches(digits.train, 16, mean=digits.mean, std=digits.std)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    assert ns.recalibrate(model, loader).batches == 4
    assert ns.examine(model, loader).samples == 64


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 0}, "positive integer: got 0"),
        ({"size": 24, "drop_last": True}, "at most the 23 samples"),
        ({"mean": (0.5,)}, "a number for each of 3 channels"),
        ({"std": (0.5, 0.0, 1.0)}, "deviations over zero"),
        ({"augment": "crp"}, "did you mean 'crop'"),
        ({"augment": "crop:pading=2"}, "did you mean 'padding'"),
        ({"augment": "crop:padding=0"}, "positive integer: got 0"),
        ({"augment": "flip:p=1"}, "got 'p'"),
        ({"augment": "colour"}, "over 0"),
        ({"augment": "colour:brightness=much"}, "from 0 to 1: got 'much'"),
        ({"augment": "cutout:size"}, "name:key=value"),
    ],
)
def test_options_that_cannot_work(options, says):
    with pytest.raises(OptionError, match=says):
        ns.data.Batches(split(), **{"size": 4, **options})


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 7)])
def test_steps_that_are_not_there(epoch, start):
    with pytest.raises(OptionError, match="start from 0 to 6"):
        ns.data.Batches(split(), 4).epoch(epoch, start)


@pytest.mark.gpu
def test_the_same_augmentation_on_a_gpu():
    here, there = (ns.data.Batches(split(), 8, augment=AUGMENT, device=device) for device in ("cpu", "cuda"))
    assert there.inputs.is_cuda
    for (x, y), (u, v) in zip(here, there, strict=True):
        assert torch.equal(y, v.cpu())
        torch.testing.assert_close(x, u.cpu(), rtol=1e-5, atol=1e-5)


def test_numpy_numbers_are_numbers():
    data = split()
    assert torch.equal(ns.data.Batches(data, 4, seed=np.int64(3)).order(np.int32(1)), ns.data.Batches(data, 4, seed=3).order(1))
