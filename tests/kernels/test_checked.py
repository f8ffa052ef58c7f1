"""torch's group norm of tensors whose channels are last: taken where it is to be believed, and only there."""

import pytest
import torch
from helpers import assert_same

import normsmith as ns
from normsmith.kernels.choose import checked_in_columns
from normsmith.kernels.cpu import checked

SHAPES = [(4, 32, 6, 7), (3, 32, 33, 35), (2, 32, 37), (2, 32, 3, 5, 7), (1, 32, 2, 1), (2, 32, 1, 9)]


def columns(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.fixture
def found(monkeypatch):
    """What torch's operator gave, and was believed or not."""
    calls, whole = [], checked.group_norm

    def spy(*arguments):
        calls.append(whole(*arguments))
        return calls[-1]

    monkeypatch.setattr(checked, "group_norm", spy)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 4])
def test_output_and_gradients_are_those_of_rows(found, shape, groups, dtype):
    x = columns(torch.randn(shape, dtype=dtype)).requires_grad_()
    layer = ns.GroupNorm(32, num_groups=groups, dtype=dtype)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    dy = columns(torch.randn(shape, dtype=dtype))
    y = layer(x)
    assert len(found) == 1
    assert y is found[0]
    assert y.stride() == x.stride()
    given = (x, layer.weight, layer.bias)
    grads = torch.autograd.grad(y, given, dy)
    wide = [t.detach().double().contiguous().requires_grad_() for t in given]
    expected = torch.group_norm(wide[0], groups, wide[1], wide[2], layer.eps)
    for got, want in zip((y, *grads), (expected, *torch.autograd.grad(expected, wide, dy.double())), strict=True):
        assert_same(got, want.to(dtype))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(found, dtype, own):
    x = columns(torch.randn(4, 32, 5, 5)).to(dtype)
    layer = ns.LayerNorm(32, dtype=dtype if own else None)
    y = layer(x)
    assert y is found[0]
    torch.testing.assert_close(y.float(), torch.group_norm(x.float().contiguous(), 1), atol=0.02, rtol=0.01)
    layer(x + 100)
    assert found[1] is None


@pytest.mark.parametrize("spoil", [lambda x: x + 1000, lambda x: x.index_fill(0, torch.tensor(1), float("nan"))])
@pytest.mark.parametrize("shape", [(4, 64, 8, 8), (8, 64, 40, 40)])
def test_what_it_cannot_do_is_done_over(found, shape, spoil):
    x = columns(spoil(torch.randn(shape)))
    layer = ns.LayerNorm(64)
    y = layer(x)
    assert found == [None]
    expected = torch.group_norm(x.double().contiguous(), 1, eps=layer.eps)
    torch.testing.assert_close(y.double(), expected, atol=3e-4, rtol=0, equal_nan=True)
    assert y.stride() == x.stride()


def test_one_constant_sample_is_enough(found):
    x = columns(torch.randn(4, 64, 8, 8))
    x[2] = 3
    y = ns.LayerNorm(64)(x)
    assert found == [None]
    assert y[2].abs().max() < 1e-4


@pytest.mark.parametrize(("channels", "additions", "positions"), [
    (32, 64, 16), (32, 1024, 1024), (32, 128**2, 128**2), (32, 190**2, 190**2), (2048, 49 * 256, 49), (768, 196 * 96, 196)
])  # fmt: skip
@pytest.mark.parametrize("away", [0.0, 0.5, 0.97])
def test_what_is_believed_is_right_to_a_hundred_thousandth(channels, positions, additions, away):
    limit = checked.BELIEVED / additions**0.5 - 1
    x = columns(torch.randn(2, channels, positions) + away * limit**0.5)
    y = checked.group_norm(x, 1, None, None, 1e-5)
    if y is None:  # by chance beyond the limit
        assert away > 0.9
        return
    expected = torch.group_norm(x.double().contiguous(), 1, eps=1e-5)
    slope = (y.double() * expected).sum((1, 2)) / expected.square().sum((1, 2))
    assert (slope - 1).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(1, 4, 201**2), (2, 2048, 31 * 31)])
def test_no_size_is_believed_whose_sums_are_too_long(shape):
    assert checked.group_norm(columns(torch.randn(shape)), 1, None, None, 1e-5) is None


@pytest.mark.parametrize(
    ("x", "groups", "taken"),
    [
        (columns(torch.randn(2, 64, 8, 8)), 32, True),
        (columns(torch.randn(2, 64, 8, 8)), 64, False),
        (columns(torch.randn(32, 64, 8, 8)), 16, False),
        (columns(torch.randn(2, 64, 32, 32)), 8, True),
        (columns(torch.randn(2, 64, 32, 32)), 16, False),
        (torch.randn(2, 64, 8, 8), 1, False),
        (columns(torch.randn(2, 128, 8, 8))[:, :64], 1, False),
        (columns(torch.randn(2, 64, 8, 8)).bfloat16(), 1, True),
    ],
)
def test_where_it_is_faster(x, groups, taken):
    assert (checked_in_columns(x, groups) is not None) == taken


def test_without_gradients_more_is_faster():
    x = columns(torch.randn(2, 64, 32, 32))
    with torch.no_grad():
        assert checked_in_columns(x, 64) is not None


@pytest.mark.parametrize("groups", [1, 64])
def test_tokens_are_rows_for_torch(groups):
    x = torch.randn(256, 512)
    assert torch.equal(ns.GroupNorm(512, num_groups=groups)(x), torch.group_norm(x, groups, torch.ones(512), torch.zeros(512)))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_forced_backend_is_not_torch(found, backend):
    with ns.backend(backend):
        ns.LayerNorm(64)(columns(torch.randn(2, 64, 8, 8)))
    assert not found


def test_a_weight_of_another_type_is_not_for_it(found):
    ns.LayerNorm(64, dtype=torch.float64)(columns(torch.randn(32, 64, 8, 8)))
    assert not found


def test_the_gradient_can_be_differentiated(found):
    x = columns(torch.randn(2, 8, 3, 3, dtype=torch.float64)).requires_grad_()
    layer = ns.GroupNorm(8, num_groups=2, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(layer, x)
    assert found
