"""Functions of each element, in blocks: the numbers of plain torch, whatever the block, keeping nothing but x."""

import pytest
import torch
from helpers import assert_same, example

import normsmith as ns
from normsmith import pointwise as module
from normsmith.pointwise import pointwise

SHAPE = (5, 12, 3, 4)


def function(x, slope, per_sample, number, absent):
    assert absent is None
    return torch.tanh(x * slope) * per_sample + number * x


def problem(dtype=torch.float64):
    x = example(SHAPE, dtype).requires_grad_()
    tensors = [torch.rand(12), torch.rand(5, 12), torch.rand(())]
    return x, [t.to(dtype).requires_grad_() for t in tensors]


def plain(x, tensors):
    slope, per_sample, number = tensors
    return function(x, slope.view(1, 12, 1, 1), per_sample.view(5, 12, 1, 1), number, None)


@pytest.mark.parametrize("block", [1, 2 * 144, 10**6], ids=["a sample", "two samples", "all"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("wanted", [[0, 1, 2, 3], [0], [2], [1, 3]], ids=str)
def test_equals_plain_torch(block, channels_last, wanted, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    x, tensors = problem()
    if channels_last:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    leaves = [t for i, t in enumerate((x, *tensors)) if i in wanted]
    for t in (x, *tensors):
        t.requires_grad_(any(t is leaf for leaf in leaves))
    y, expected = pointwise(x, function, *tensors, None), plain(x, tensors)
    assert y.stride() == x.stride()
    assert_same(y, expected, "output")
    dy = example(SHAPE, seed=4)
    for found, grad in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True):
        assert_same(found, grad, "gradient")


def test_a_single_sample_of_its_own_statistic():
    x, (slope, per_sample, number) = problem()
    y = pointwise(x[:1], function, slope, per_sample[:1], number, None)
    assert_same(torch.autograd.grad(y.sum(), per_sample)[0][1:], torch.zeros(4, 12))
    assert_same(y, plain(x, (slope, per_sample, number))[:1])


def test_second_derivatives():
    x, tensors = problem()
    assert torch.autograd.gradgradcheck(
        lambda x, *t: pointwise(x[:2, :, :1, :1], function, t[0], t[1][:2], t[2], None), (x, *tensors)
    )


def test_keeps_x_and_little_else():
    x, tensors = problem()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        pointwise(x, function, *tensors, None)
    assert sorted(kept) == [1, 12, 60, x.numel()]


def test_half_precision_is_widened():
    x, tensors = problem(torch.float32)
    y = pointwise(x.bfloat16(), function, *tensors, None)
    assert y.dtype == torch.bfloat16
    assert_same(y, plain(x.bfloat16().float(), tensors).bfloat16(), tolerance=1e-9)


def test_a_forced_backend_that_cannot_is_an_error():
    x, tensors = problem(torch.float32)
    with ns.backend("cpu"), pytest.raises(ns.BackendError, match="float32 or float64"):
        pointwise(x.bfloat16(), function, *tensors, None)


def test_many_gradients_at_once_are_refused_in_words():
    x, tensors = problem()
    y = pointwise(x, function, *tensors, None)
    with pytest.raises(ns.BackendError, match="one gradient at a time"):
        torch.autograd.grad(y, x, torch.randn(2, *y.shape, dtype=y.dtype), is_grads_batched=True)
