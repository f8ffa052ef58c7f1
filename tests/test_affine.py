"""The derivative written by hand against the one autograd finds."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import assert_same

from normsmith.affine import Standardized, pull_triple, through
from normsmith.combined import blend, by_channels
from normsmith.moments import Moments, Pooled, Pull

CELLS = (4, 6)


def leaf(*shape):
    return (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_()


def pulled(pull, *sums):
    """The tensors that gradients arrive at."""
    to = Pull()
    pull(*sums, to)
    assert not to.pooled
    return to.tensors


def expected_gradients(triple, leaves, total, product):
    """By autograd, from what the sums say about center, scale and bias."""
    center, scale, bias = (t if isinstance(t, torch.Tensor) else torch.tensor(t, dtype=torch.float64) for t in triple)
    scale = scale.expand(CELLS)
    outputs = [(center, (-scale.detach() * total)), (scale, product), (bias, total)]
    value = sum((t * g).sum() for t, g in outputs if t.requires_grad)
    return torch.autograd.grad(value, leaves, allow_unused=True)


@pytest.mark.parametrize(
    ("shape", "weight", "bias"),
    list(itertools.product([CELLS, (1, 6), (4, 1)], [None, (6,), CELLS, (4, 1)], [None, (6,), CELLS])),
)
def test_the_derivative_of_standardizing(shape, weight, bias):
    mean, var = leaf(*shape), leaf(*shape)
    weight, bias = weight and leaf(*weight), bias and leaf(*bias)
    value = Standardized(Moments(mean, var, 7), weight, bias, 1e-3)
    total, product = torch.randn(CELLS, dtype=torch.float64), torch.randn(CELLS, dtype=torch.float64)
    leaves = [t for t in (mean, var, weight, bias) if t is not None]
    triple = value.triple()
    with torch.no_grad():
        found = through(pulled(value.pull, triple[1].detach().expand(CELLS), total, product), leaves)
    for one, other in zip(found, expected_gradients(triple, leaves, total, product), strict=True):
        assert_same(one, other)
    assert not value.is_closed(leaves), "moments of nobody knows what"
    of_x = replace(value, moments=Pooled(mean, var, 7))
    assert of_x.is_closed(leaves)
    if weight is not None:
        assert not of_x.is_closed([mean, var])


def test_what_comes_before_goes_through_autograd():
    mean, var, weight = leaf(*CELLS), leaf(*CELLS), leaf(6)
    pooled = Moments(mean, var, 5).pool(1)
    value = Standardized(pooled, weight, weight * 2, 1e-3)
    total, product = torch.randn(CELLS, dtype=torch.float64), torch.randn(CELLS, dtype=torch.float64)
    leaves = [mean, var, weight]
    triple = value.triple()
    with torch.no_grad():
        arrived = pulled(value.pull, triple[1], total, product)
    found = through(arrived, leaves)
    value = Standardized(Moments(mean, var, 5).pool(1), weight, weight * 2, 1e-3)
    triple = value.triple()
    for one, other in zip(found, expected_gradients(triple, leaves, total, product), strict=True):
        assert_same(one, other)


def test_a_triple_with_numbers_and_a_leaf_used_twice():
    scale = leaf(1, 6)
    total, product = torch.randn(CELLS, dtype=torch.float64), torch.randn(CELLS, dtype=torch.float64)
    (found,) = through(pulled(partial(pull_triple, (0.0, scale, scale)), scale.detach().expand(CELLS), total, product), [scale])
    assert_same(found, (product + total).sum(0, keepdim=True))
    assert through([], [scale]) == [None]
    frozen = torch.ones(1, 6)
    assert through([(scale * 2, total)], [frozen]) == [None]


def closed(moments, *tensors):
    return Standardized(moments, None, None, 1e-5).is_closed(tensors)


def test_only_what_is_made_of_moments_of_x_is_closed():
    """Whatever else is done to them, the short way of the derivative must not be taken."""
    x = torch.randn(4, 6, 5)
    weights, ids = torch.tensor([0.5, 0.5]), torch.tensor([0, 1, 1, 0])
    cells = Moments.of(x, 2)
    assert closed(cells)
    assert not closed(cells.map(lambda t: t.squeeze(2)))
    cells = Pooled(cells.mean[..., 0], cells.var[..., 0], 5)
    mixed = blend([cells, cells.pool(0)], weights, weights)
    halves = by_channels((cells, 2), (cells.pool(0), 4))
    for short in (cells.pool(0), cells.pool(1).pool(0), cells.pool_groups(2), cells.pool_sets(ids, 2), halves):
        assert closed(short)
    for long in (cells.detach(), cells.pool_groups(2).pool(0), cells.pool_sets(ids, 2).pool_groups(3), cells.merge(cells)):
        assert not closed(long)
    assert closed(mixed, weights)
    assert not closed(mixed), "the weights come from elsewhere"
    assert not closed(by_channels((cells, 2), (cells.detach(), 4)))
    world = Pooled(cells.mean, cells.var, 5, world=True)
    assert closed(world)
    assert not closed(world.pool(1)), "the gradients of all ranks come together at the batch, not behind it"
