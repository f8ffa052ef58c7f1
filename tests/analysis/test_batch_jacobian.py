"""The Jacobian of batch norm against autograd, and the properties of its formula."""

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.nn.functional import batch_norm

import normsmith as ns

a = ns.analysis
SHAPES = [(7, 3), (4, 2, 5), (3, 2, 2, 3)]


def data(shape):
    return torch.randn(shape, dtype=torch.float64) * 3 + 5, torch.randn(shape[1], dtype=torch.float64)


def blocks(x, weight, eps):
    """The Jacobian of torch's batch norm by autograd, a matrix for each channel; nothing lies between channels."""
    size = x.numel() // x.shape[1]

    def norm(flat):
        y = batch_norm(
            flat.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1), None, None, weight, None, True, 0.0, eps
        )
        return y.transpose(0, 1).reshape(x.shape[1], -1)

    whole = jacobian(norm, x.transpose(0, 1).reshape(x.shape[1], size))
    for channel in range(x.shape[1]):
        rest = whole[channel].clone()
        rest[:, channel] = 0
        assert rest.abs().max() == 0
    return torch.stack([whole[c, :, c] for c in range(x.shape[1])])


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_to_autograd(shape, eps):
    x, weight = data(shape)
    expected = blocks(x, weight, eps)
    found = a.bn_jacobian(x, weight, eps=eps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(a.bn_jacobian_trace(x, weight, eps=eps), expected.diagonal(dim1=1, dim2=2).sum(1))
    g = torch.randn_like(x)
    flat = g.transpose(0, 1).reshape(shape[1], -1)
    product = torch.einsum("cij,cj->ci", expected, flat)
    ours = a.bn_vjp(x, g, weight, eps=eps)
    assert ours.shape == x.shape
    torch.testing.assert_close(ours.transpose(0, 1).reshape(shape[1], -1), product, rtol=0, atol=1e-13)
    torch.testing.assert_close(a.bn_jacobian(x, eps=eps), blocks(x, None, eps), rtol=0, atol=1e-13)


def test_properties():
    x, weight = data((12, 2))
    for eps in (0.0, 0.1):
        J = a.bn_jacobian(x, weight, eps=eps)
        torch.testing.assert_close(J, J.mT)
        assert (J.sum(2)).abs().max() < 1e-13
        var = x.var(0, correction=0)
        gain = weight / (var + eps).sqrt()
        expected = torch.cat([torch.zeros(2, 1), (gain * eps / (var + eps)).unsqueeze(1), gain.unsqueeze(1).expand(2, 10)], 1)
        torch.testing.assert_close(torch.linalg.eigvalsh(J), expected.double().sort(1).values, rtol=0, atol=1e-13)
        assert (torch.linalg.matrix_norm(J, 2) <= gain.abs() + 1e-13).all()
        assert (torch.linalg.matrix_rank(J) == (10 if eps == 0 else 11)).all()


def test_a_single_channel():
    x = torch.randn(6, dtype=torch.float64)
    weight = torch.tensor([2.0], dtype=torch.float64)
    assert a.bn_jacobian(x, weight).shape == (6, 6)
    torch.testing.assert_close(a.bn_jacobian(x, weight), a.bn_jacobian(x.unsqueeze(1), weight)[0])
    torch.testing.assert_close(a.bn_jacobian_trace(x, weight), a.bn_jacobian(x, weight).trace())
    g = torch.randn_like(x)
    torch.testing.assert_close(a.bn_vjp(x, g, weight), a.bn_jacobian(x, weight) @ g)


def test_few_elements():
    one, two = torch.randn(1, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    assert a.bn_jacobian(one).tolist() == [[[0.0]]] * 3
    assert a.bn_jacobian_trace(one).tolist() == [0.0] * 3
    assert a.bn_vjp(one, torch.ones_like(one)).tolist() == [[0.0] * 3]
    assert a.bn_jacobian(two, eps=0).abs().max() < 1e-12
    assert a.bn_jacobian_trace(two, eps=0).abs().max() < 1e-12


def test_a_constant_channel_is_finite():
    x = torch.full((4, 1), 3.0, dtype=torch.float64)
    gain = 1e-5**-0.5
    torch.testing.assert_close(a.bn_jacobian(x)[0], gain * (torch.eye(4).double() - 0.25))
    assert a.bn_jacobian_trace(x).item() == pytest.approx(3 * gain)
    with pytest.raises(ns.InputError, match="vary where eps is 0"):
        a.bn_jacobian(x, eps=0.0)


def test_far_from_zero_and_in_half_precision():
    x = torch.randn(64, 2, dtype=torch.float64)
    torch.testing.assert_close(a.bn_jacobian_trace((x + 1000).float()), a.bn_jacobian_trace(x).float(), rtol=1e-3, atol=0)
    half = a.bn_vjp(x.half(), torch.ones(64, 2).half())
    assert half.isfinite().all()


def test_what_cannot_be():
    x = torch.randn(3, 2)
    with pytest.raises(ns.InputError, match="at most 4096 elements per channel: got 4097; use bn_vjp"):
        a.bn_jacobian(torch.randn(4097, 1))
    with pytest.raises(ns.InputError, match=r"grad_output of the shape of x, \(3, 2\): got \(2, 3\)"):
        a.bn_vjp(x, x.T)
    with pytest.raises(ns.InputError, match=r"weight of shape \(2,\): got \(3,\)"):
        a.bn_jacobian(x, torch.ones(3))
    with pytest.raises(ns.OptionError, match="eps as a number from 0: got -1"):
        a.bn_jacobian_trace(x, eps=-1)
    for wrong in (torch.empty(0, 2), torch.ones(3, 2, dtype=torch.long)):
        with pytest.raises(ns.InputError, match="floating x with elements"):
            a.bn_jacobian(wrong)
