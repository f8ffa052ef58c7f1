"""Normalized weights against the oracle and torch, with every gradient, for every layer; and their properties."""

import math

import pytest
import torch
from helpers import assert_same
from oracles import weights as oracle
from torch import nn
from torch.nn.utils import parametrizations as torchs

import normsmith as ns

NAMES = tuple(ns.weights.catalog())
LAYERS = {
    "linear": lambda: nn.Linear(6, 4),
    "conv1": lambda: nn.Conv1d(4, 6, 3, groups=2, bias=False),
    "conv2": lambda: nn.Conv2d(3, 4, (2, 3)),
    "conv3": lambda: nn.Conv3d(2, 3, 2),
    "transposed1": lambda: nn.ConvTranspose1d(4, 3, 3),
    "transposed2": lambda: nn.ConvTranspose2d(4, 6, 2, groups=2),
    "transposed3": lambda: nn.ConvTranspose3d(2, 3, 2),
}
every_name, every_layer = pytest.mark.parametrize("name", NAMES), pytest.mark.parametrize("kind", LAYERS)


def made(kind):
    torch.manual_seed(0)
    return LAYERS[kind]().double()


def cut(layer, weight):
    return oracle.rows_of(
        weight, hasattr(layer, "output_padding") and "Transpose" in nn_name(layer), getattr(layer, "groups", 1)
    )


def nn_name(layer):
    return torch.nn.utils.parametrize.type_before_parametrizations(layer).__name__


def expected(layer, name, v, extra, **options):
    """The weight by the oracle, of v and the learned numbers."""
    transposed = "Transpose" in nn_name(layer)
    groups = layer.groups if transposed else 1
    rows = oracle.rows_of(v, transposed, groups)
    if name == "orthogonal":
        rows = list(oracle.orthogonal(torch.stack(rows)))
    else:
        learned = [] if extra is None else [extra.reshape(-1)]
        rows = [getattr(oracle, name)(row, *(e[i] for e in learned), **options) for i, row in enumerate(rows)]
    return oracle.assembled(rows, v.shape, transposed, groups)


@every_layer
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NAMES if name != "spectral"),
        ("weight_standardization", {"convention": "timm"}),
        ("scaled_weight_standardization", {"gamma": 1.7, "gain": 0.5}),
        ("centered_weight_norm", {"learn_gain": True, "gain": 2.0}),
    ],
)
def test_against_the_oracle(kind, name, options):
    layer = made(kind)
    ns.weights.place(layer, name, **options)
    tensors = dict(layer.parametrizations.weight.named_parameters())
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(0.1 * torch.rand_like(tensor))
    v = next(t for key, t in tensors.items() if key in ("original", "original1"))
    extra = next((t for t in tensors.values() if t is not v), None)
    copies = [t.detach().clone().requires_grad_() for t in (v, *([] if extra is None else [extra]))]
    known = {key: value for key, value in options.items() if key in ("convention", "gamma")}
    theirs = expected(layer, name, copies[0], copies[1] if extra is not None else None, **known)
    assert_same(layer.weight, theirs)
    slope = torch.linspace(-1, 2, v.numel(), dtype=torch.float64).view(v.shape)
    found = torch.autograd.grad((layer.weight * slope).sum(), [v, *([] if extra is None else [extra])])
    for one, other in zip(found, torch.autograd.grad((theirs * slope).sum(), copies), strict=True):
        assert_same(one, other, tolerance=1e-8)


@every_layer
def test_weight_norm_is_torchs_and_loads_its_state(kind):
    ours, theirs = made(kind), made(kind)
    if getattr(ours, "groups", 1) > 1 and "Transpose" in nn_name(ours):
        pytest.skip("torch ties rows of different groups together")
    torchs.weight_norm(theirs, dim=1 if "Transpose" in nn_name(theirs) else 0)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.mul_(2)
    ns.weights.place(ours, "weight_norm")
    ours.load_state_dict(theirs.state_dict())
    assert_same(ours.weight, theirs.weight)


@every_layer
@every_name
def test_second_derivatives(kind, name):
    layer = made(kind)
    ns.weights.place(layer, name)
    chain = layer.parametrizations.weight.eval()
    tensors = [p for key, p in chain.named_parameters() if key.startswith("original")]
    assert torch.autograd.gradcheck(chain[0], tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(chain[0], tensors, fast_mode=True)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_the_derivative_where_the_weight_is_orthogonal_already(shape):
    layer = nn.Linear(shape[1], shape[0]).double()
    nn.init.orthogonal_(layer.weight)
    before = layer.weight.detach().clone()
    ns.weights.place(layer, "orthogonal")
    assert_same(layer.weight, before, tolerance=1e-11)
    own = layer.parametrizations.weight[0]
    v = before.clone().requires_grad_()
    assert torch.autograd.gradcheck(own, v)
    assert torch.autograd.gradgradcheck(own, v)


@every_name
@every_layer
def test_properties(name, kind):
    layer = made(kind)
    ns.weights.place(layer, name, **({"power_iterations": 200} if name == "spectral" else {}))
    weight = layer.weight.detach()
    rows = torch.stack(cut(layer, weight))
    count = rows.shape[1]
    if name == "spectral":
        assert float(
            torch.linalg.matrix_norm(weight.transpose(0, int("Transpose" in nn_name(layer))).flatten(1), 2)
        ) == pytest.approx(1)
    elif name == "orthogonal":
        small = rows @ rows.T if len(rows) <= count else rows.T @ rows
        assert_same(small, torch.eye(len(small), dtype=torch.float64), tolerance=1e-10)
    elif name != "weight_norm":
        assert_same(rows.mean(1), torch.zeros(len(rows), dtype=torch.float64))
        size = {"centered_weight_norm": math.sqrt(2), "weight_standardization": math.sqrt(count - 1)}.get(name, 1.0)
        assert_same(rows.norm(dim=1), torch.full((len(rows),), size, dtype=torch.float64), tolerance=1e-4)


@pytest.mark.parametrize("name", ["weight_norm", "centered_weight_norm", "orthogonal", "weight_standardization"])
def test_of_the_weight_only_the_direction_counts(name):
    layer = made("conv2")
    ns.weights.place(layer, name)
    v = layer.parametrizations.weight[0](
        *([torch.ones(4, dtype=torch.float64)] if name == "weight_norm" else []), made("conv2").weight
    )
    u = layer.parametrizations.weight[0](
        *([torch.ones(4, dtype=torch.float64)] if name == "weight_norm" else []), 7 * made("conv2").weight
    )
    assert_same(v, u, tolerance=1e-4 if "standard" in name else 1e-9)
    original = next(p for key, p in layer.parametrizations.weight.named_parameters() if key in ("original", "original1"))
    y = (layer(torch.randn(2, 3, 5, 5, dtype=torch.float64)) ** 2).sum()
    (slope,) = torch.autograd.grad(y, original)
    across = (slope.flatten(1) * original.flatten(1)).sum(1) if name != "orthogonal" else (slope * original).sum().view(1)
    assert float(across.detach().abs().max()) < 1e-3 * float(slope.abs().max())  # the gradient is orthogonal to v


@every_name
def test_what_is_normalized_already_stays(name):
    layer = made("conv2")
    options = {"power_iterations": 200} if name == "spectral" else {"gamma": 1.0} if name.startswith("scaled") else {}
    ns.weights.place(layer, name, **options).fold()
    before = layer.weight.detach().clone()
    placement = ns.weights.place(layer, name, **options)
    assert_same(layer.weight, before, tolerance=1e-4)
    assert placement.rows[0].change < 1e-4


@pytest.mark.parametrize("name", [name for name in NAMES if name != "spectral"])
def test_rows_of_zeros(name):
    layer = made("conv2")
    with torch.no_grad():
        layer.weight[1] = 0
    ns.weights.place(layer, name)
    assert float(layer.weight[1].detach().abs().max()) < 1e-9
    layer(torch.randn(2, 3, 5, 5, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_half_precision_and_autocast():
    layer, x = made("conv2").float(), torch.randn(2, 3, 5, 5)
    for name in NAMES:
        placement = ns.weights.place(layer, name)
        expected_ = layer.eval()(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(layer(x).float(), expected_, rtol=0.05, atol=0.05)
        placement.undo()


@pytest.mark.parametrize("chosen", ["matrix_exp", "cayley", "householder"])
def test_torchs_orthogonal_maps(chosen):
    layer = made("linear")
    ns.weights.place(layer, "orthogonal", orthogonal_map=chosen)
    assert_same(layer.weight @ layer.weight.T, torch.eye(4, dtype=torch.float64))
    with pytest.raises(ns.OptionError, match="expects orthogonal_map='polar' for convolutions: got"):
        ns.weights.place(made("conv2"), "orthogonal", orthogonal_map=chosen)


def test_compiled():
    layer = made("conv2")
    ns.weights.place(layer, "weight_standardization")
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    assert_same(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
