"""Internal covariate shift against closed forms, and against two gradients taken by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import normsmith as ns

a = ns.analysis
LR = 0.3


def half_square(output, target):
    return (output - target).square().sum() / 2


def linear_net():
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()


def data(samples=5):
    return torch.randn(samples, 3).double(), torch.randn(samples, 2).double()


def test_closed_form_of_two_linear_layers():
    model, (x, y) = linear_net(), data()
    A, B = (p.detach().clone() for p in model.parameters())
    error = x @ A.T @ B.T - y
    GA, GB = B.T @ error.T @ x, error.T @ (x @ A.T)
    A2 = A - LR * GA
    GB2 = (x @ A2.T @ B.T - y).T @ (x @ A2.T)
    found = a.covariate_shift(model, half_square, (x, y), lr=LR)
    assert list(found) == ["0", "1"]
    assert (found["0"].difference, found["0"].cosine) == (0.0, 1.0)
    assert found["0"].gradient == pytest.approx(GA.norm().item(), rel=1e-12)
    assert found["1"].gradient == pytest.approx(GB.norm().item(), rel=1e-12)
    assert found["1"].difference == pytest.approx((GB - GB2).norm().item(), rel=1e-12)
    assert found["1"].cosine == pytest.approx(((GB * GB2).sum() / GB.norm() / GB2.norm()).item(), rel=1e-12)
    assert found["1"].relative == pytest.approx(((GB - GB2).norm() / GB.norm()).item(), rel=1e-12)


def test_layers_before_have_moved_and_others_not():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)
    ).double()
    x, y = torch.randn(6, 3).double(), torch.tensor([0, 1, 0, 1, 0, 1])
    torch.manual_seed(1)
    found = a.covariate_shift(model, cross_entropy, (x, y), lr=LR)
    names = ["0", "1", "3", "5"]
    assert list(found) == names

    def slopes():
        torch.manual_seed(1)
        model.zero_grad()
        cross_entropy(model(x), y).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    old = slopes()
    for index, name in enumerate(names):
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        with torch.no_grad():
            for n, p in model.named_parameters():
                if n[0] in names[:index]:
                    p.sub_(LR * old[n])
        new = slopes()
        expected = sum((old[n] - new[n]).square().sum() for n in old if n[0] == name).sqrt().item()
        assert found[name].difference == pytest.approx(expected, rel=1e-10, abs=1e-15)
        assert (expected > 1e-6) == (index > 0)
        model.load_state_dict(start, strict=False)


def test_no_step_no_shift():
    model, batch = nn.Sequential(nn.Linear(3, 4), ns.BatchNorm(4), nn.Dropout(0.5), nn.Linear(4, 2)), data()
    batch = tuple(t.float() for t in batch)
    for shift in a.covariate_shift(model, mse_loss, batch, lr=0.0).values():
        assert shift.difference == 0
        assert shift.cosine == pytest.approx(1)


def test_an_optimizer_takes_its_own_next_step():
    model, (x, y) = linear_net(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # it wraps the step of this very optimizer
    for _ in range(2):
        optimizer.zero_grad()
        half_square(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    found = a.covariate_shift(model, half_square, (x, y), optimizer=optimizer)
    assert all(torch.equal(v, start[k]) for k, v in model.state_dict().items())
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], momentum)
    assert model[0].weight.grad is None

    half_square(model(x), y).backward()
    old = model[1].weight.grad.clone()
    kept = model[1].weight.detach().clone()
    optimizer.step()
    with torch.no_grad():
        model[1].weight.copy_(kept)
    model.zero_grad()
    half_square(model(x), y).backward()
    assert found["1"].difference == pytest.approx((old - model[1].weight.grad).norm().item(), rel=1e-12)
    plain = a.covariate_shift(model, half_square, (x, y), lr=0.05)["1"].difference
    assert plain != pytest.approx(found["1"].difference, rel=1e-3)


class Backwards(nn.Module):
    """Runs its layers in another order than it holds them; the weight of `used` without calling it."""

    def __init__(self):
        super().__init__()
        self.last, self.used, self.first = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.last(nn.functional.linear(self.first(x).tanh(), self.used.weight) * self.scale)


def test_layers_come_in_the_order_of_the_forward():
    model, (x, y) = Backwards().double(), data()
    found = a.covariate_shift(model, half_square, (x, y), lr=LR)
    assert list(found) == ["", "used", "first", "last"], "what the root uses itself counts as where the root begins"
    assert found["last"].difference > 0


def test_selected_layers_frozen_ones_and_unused_ones():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    batch = data()
    every = a.covariate_shift(model, half_square, batch, lr=LR)
    one = a.covariate_shift(model, half_square, batch, lr=LR, where=lambda module, name: name == "2")
    assert one == {"2": every["2"]}
    model[1].requires_grad_(False)
    assert list(a.covariate_shift(model, half_square, batch, lr=LR)) == ["0", "2"]
    zero = a.covariate_shift(model, lambda output, _: model[0].weight.sum(), batch, lr=LR)["2"]
    assert zero.difference == zero.gradient == 0
    assert math.isnan(zero.cosine)
    assert math.isnan(zero.relative)


def test_a_parametrised_layer_is_one():
    normed = [nn.utils.parametrizations.weight_norm(layer) for layer in linear_net()]
    assert list(a.covariate_shift(nn.Sequential(*normed), half_square, data(), lr=LR)) == ["0", "1"]
    assert list(a.covariate_shift(normed[0], lambda output, _: output.sum(), torch.randn(2, 3).double(), lr=LR)) == [""]


def test_options():
    model, batch = linear_net(), data()
    for wrong in ({}, {"lr": 0.1, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}):
        with pytest.raises(ns.OptionError, match="either lr= or optimizer=: got both or neither"):
            a.covariate_shift(model, half_square, batch, **wrong)
    with pytest.raises(ns.OptionError, match="lr as a finite number: got nan"):
        a.covariate_shift(model, half_square, batch, lr=math.nan)
    with pytest.raises(ns.OptionError, match="select a layer: got none of '0', '1'"):
        a.covariate_shift(model, half_square, batch, lr=0.1, where=lambda *_: False)
    with pytest.raises(ns.OptionError, match="got one that holds none of its trainable"):
        a.covariate_shift(model, half_square, batch, optimizer=torch.optim.SGD(linear_net().parameters(), lr=0.1))
    with pytest.raises(ns.OptionError, match=r"needs nothing but gradients: got LBFGS; pass lr="):
        a.covariate_shift(model, half_square, batch, optimizer=torch.optim.LBFGS(model.parameters()))
