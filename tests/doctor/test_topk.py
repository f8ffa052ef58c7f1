import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import normsmith as ns
from normsmith.doctor.topk import TopK
from normsmith.errors import InputError, OptionError


@pytest.fixture(autouse=True, params=["auto", "reference"])
def _backend(request):
    with ns.backend(request.param):
        yield


def topk_of(k, *batches):
    top = TopK(batches[0][0].shape[1], k)
    for scores, samples in batches:
        top.add(scores, samples)
    return top


def expected(k, scores):
    """By sorting pairs."""
    rows = [sorted(((-s, i) for i, s in enumerate(column) if not math.isnan(s)))[:k] for column in scores.T.tolist()]
    return [[i for _, i in row] + [-1] * (k - len(row)) for row in rows]


def test_the_largest_of_each_channel():
    scores = torch.randn(100, 6)
    scores[3:9, 0], scores[:, 1], scores[:97, 2] = 5.0, 0.0, torch.nan
    scores[::2, 1] = -0.0
    for sizes in (100, 7, 1):
        top = topk_of(4, *zip(scores.split(sizes), torch.arange(100).split(sizes), strict=True))
        assert top.samples.tolist() == expected(4, scores)
        kept = torch.where(top.samples < 0, -torch.inf, scores.T.gather(1, top.samples.clamp_min(0)))
        assert torch.equal(top.scores, kept)


def test_infinities_and_scores_below_zero():
    scores = torch.tensor([[-torch.inf], [-3.0], [torch.inf], [-1e-40]])
    top = topk_of(3, (scores, torch.tensor([10, 0, 2**32 - 1, 7])))
    assert top.samples.tolist() == [[2**32 - 1, 7, 0]]
    assert top.scores.tolist() == [[torch.inf, pytest.approx(-1e-40, rel=1e-4), -3.0]]


def test_a_sample_is_listed_once():
    first, again = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[0.5], [9.0], [2.0]])
    for order in ((first, again), (again, first)):
        top = topk_of(2, *((scores, torch.arange(3)) for scores in order))
        assert top.samples.tolist() == [[1, 0]]
        assert top.scores.tolist() == [[9.0, 3.0]]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from([0.0, 1.0, 1.5, -2.0]), max_size=5), st.integers(0, 3)), min_size=1, max_size=5
    ),
    st.randoms(),
)
def test_neither_order_nor_merging_matters(batches, random):
    def given_batch(scores, start):
        return torch.tensor(scores).view(-1, 1), torch.arange(start, start + len(scores))

    batches = [given_batch(*b) for b in batches]
    whole = topk_of(3, *batches)
    assert torch.equal(topk_of(3, *random.sample(batches, len(batches))).keys, whole.keys)
    merged = TopK(1, 3)
    for batch in random.sample(batches, len(batches)):
        merged = topk_of(3, batch).merge(merged)
    assert torch.equal(merged.keys, whole.keys)


def test_neither_backend_nor_layout_matters():
    scores, samples = torch.randn(50, 9).round(decimals=1), torch.randperm(200)[:50]
    one, two = topk_of(3, (scores, samples)), topk_of(3, (scores.T.contiguous().T.double(), samples.int()))
    with ns.backend("reference"):
        three = topk_of(3, (scores, samples))
    assert torch.equal(one.keys, two.keys)
    assert torch.equal(one.keys, three.keys)


def test_wrong_input():
    with pytest.raises(OptionError, match="k of at least 1: got 0"):
        TopK(3, 0)
    top = TopK(3, 2)
    for scores, samples in (
        (torch.randn(2, 4), torch.arange(2)),
        (torch.randn(2, 3), torch.arange(3)),
        (torch.randn(2, 3), torch.tensor([1, 1])),
        (torch.randn(2, 3), torch.tensor([-1, 1])),
        (torch.randn(2, 3), torch.tensor([2**32, 1])),
    ):
        with pytest.raises(InputError, match=r"TopK expects scores of shape \(N, 3\)"):
            top.add(scores, samples)
    top.add(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert (top.samples == -1).all()


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_are_one(zero):
    scores = torch.full((2, 1), zero)
    for order in ([5, 3], [3, 5]):
        assert topk_of(1, *((scores, torch.tensor([n, n + 10])) for n in order)).samples.tolist() == [[3]]
