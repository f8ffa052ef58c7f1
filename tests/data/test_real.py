"""The real sets, where they are: the sizes and counts that are published, and a first image that can be recognised."""

import pytest
import torch
from data.helpers_data import real

import normsmith as ns


def counts(split):
    return torch.bincount(split.targets).tolist()


def test_mnist():
    data = ns.data.load("mnist", real("mnist"))
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert counts(data.train) == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts(data.test) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.mean == pytest.approx((0.1307,), abs=1e-4)
    assert data.std == pytest.approx((0.3081,), abs=1e-4)
    assert data.train.targets[:5].tolist() == [5, 0, 4, 1, 9]
    zero = data.train.inputs[1, 0]
    assert int(zero[14, 14]) == 0
    assert int((zero > 128).sum()) > 80


def test_cifar10_with_batches_that_are_missing():
    data = ns.data.load("cifar10", real("cifar10"))
    assert len(data.train) >= 20000
    assert counts(data.test) == [1000] * 10
    if len(data.train) == 20000:
        assert data.notes == ("cifar10 without data_batch_3, data_batch_4, data_batch_5: not there",)
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=2e-3)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=2e-3)
    assert [data.classes[i] for i in data.train.targets[:3].tolist()] == ["frog", "truck", "truck"]
    truck = data.train.inputs[1].float()
    assert float((truck[:, 0] - truck[:, 1]).abs().mean()) < 30, "rows that are next to each other are alike"


def test_usps():
    data = ns.data.load("usps", real("usps"))
    assert counts(data.train) == [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]
    assert counts(data.test) == [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    assert (float(data.train.inputs.min()), float(data.train.inputs.max())) == (0, 1)
    assert int(data.train.targets[0]) == 6


def test_mnist_m():
    data = ns.data.load("mnist-m:train=500,test=100", real("mnist-m"))
    assert counts(data.train) == [50] * 10
    assert counts(data.test) == [10] * 10
    assert (data.channels, data.size) == (3, (32, 32))


@pytest.mark.slow
def test_pacs_domains():
    data = ns.data.load("pacs:domain=sketch,size=32", real("pacs"))
    assert counts(data.train) == [24] * 7
    assert counts(data.test) == [6] * 7
    assert data.mean[0] > 0.9, "sketches are black on white"


def test_tiny_imagenet():
    data = ns.data.load("tiny-imagenet:train=200,test=100", real("tiny-imagenet"))
    assert len(data.classes) == 20
    assert data.classes[:3] == ("goldfish", "centipede", "black stork")
    assert counts(data.train) == [10] * 20
    assert counts(data.test) == [5] * 20
    goldfish = data.train.inputs[data.train.targets == 0].float().mean((0, 2, 3))
    assert goldfish[0] > goldfish[2] + 15, "goldfish are orange"


@pytest.mark.slow
def test_pairs():
    root = real("usps")
    real("mnist")
    source, target = ns.data.load_pair("mnist:train=1000,test=500", "usps", root)
    assert source.size == target.size == (28, 28)
    assert counts(target.train)[0] == 1194


@pytest.mark.slow
def test_whole_parts():
    assert len(ns.data.load("mnist-m", real("mnist-m")).train) == 6000
    assert len(ns.data.load("pacs:size=64", real("pacs")).train) == 672
    assert len(ns.data.load("tiny-imagenet", real("tiny-imagenet")).train) == 4000
