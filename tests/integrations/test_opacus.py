"""Opacus: fixing keeps weights, per-sample gradients of our layers are right, what mixes samples is refused."""

import sys
import warnings

import pytest
import torch
from helpers import assert_same
from torch import nn

import normsmith as ns
from normsmith.integrations.opacus import register_with_opacus


@pytest.fixture
def opacus(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on import
        opacus = pytest.importorskip("opacus")
    from opacus.validators import ModuleValidator

    for table in ("FIXERS", "VALIDATORS"):
        monkeypatch.setattr(ModuleValidator, table, dict(getattr(ModuleValidator, table)))
    return opacus


def net(norm=None):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        norm or nn.BatchNorm2d(8, eps=1e-3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    with torch.no_grad():
        for tensor in model[1].state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    return model


X, Y = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 0, 1, 1, 0])


def test_fixing_keeps_weight_bias_and_eps(opacus):
    register_with_opacus()
    validator = opacus.validators.ModuleValidator
    for norm in (None, ns.BatchNorm(8, eps=1e-3)):
        model = net(norm)
        assert not validator.is_valid(model)
        fixed = validator.fix(model)
        assert type(fixed[1]) is ns.GroupNorm
        assert fixed[1].eps == 1e-3
        assert torch.equal(fixed[1].weight, model[1].weight)
        assert torch.equal(fixed[1].bias, model[1].bias)
        assert fixed[1].weight is not model[1].weight
        assert validator.is_valid(fixed)
    assert validator.fix(model, num_groups=2)[1].num_groups == 2


def test_fixing_to_frozen_keeps_the_function(opacus):
    register_with_opacus(frozen=True)
    validator = opacus.validators.ModuleValidator
    model = net()
    fixed = validator.fix(model)
    assert type(fixed[1]) is ns.FrozenNorm
    assert_same(fixed.train()(X), model.eval()(X))
    assert validator.is_valid(fixed)
    assert not any(p.requires_grad for p in fixed[1].parameters())
    opacus.GradSampleModule(fixed)  # which refuses trainable layers with buffers
    register_with_opacus()
    assert type(validator.fix(model, frozen=True)[1]) is ns.FrozenNorm
    with pytest.raises(ns.OptionError, match="got both"):
        validator.fix(model, frozen=True, num_groups=2)
    with pytest.raises(ns.OptionError, match="running statistics to freeze"):
        validator.fix(net(nn.BatchNorm2d(8, track_running_stats=False)), frozen=True)


def test_batch_statistics_of_ours_are_refused(opacus):
    register_with_opacus()
    validator = opacus.validators.ModuleValidator
    for name, entry in ns.catalog().items():
        if entry.batch_dependent:
            assert validator.validate(nn.Sequential(ns.make(name, 8))), name
    assert not validator.validate(net(ns.BatchNorm(8, frozen=True)).requires_grad_(False))
    with pytest.raises(Exception, match="SwitchableNorm uses statistics of the batch"):
        validator.validate(net(ns.SwitchableNorm(8)), strict=True)


FREE = [name for name, entry in ns.catalog().items() if not entry.running and name != "adain"]


@pytest.mark.parametrize("name", FREE)
def test_gradients_per_sample(opacus, name):
    model = net(ns.make(name, 8))
    expected = []
    for x, y in zip(X, Y, strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        expected.append(torch.autograd.grad(loss, model.parameters(), allow_unused=True))
    wrapped = opacus.GradSampleModule(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of full backward hooks
        nn.functional.cross_entropy(wrapped(X), Y).backward()
    for i, parameter in enumerate(model.parameters()):
        assert_same(parameter.grad_sample, torch.stack([grads[i] for grads in expected]), str(i))


def test_a_private_step(opacus):
    register_with_opacus()
    model = opacus.validators.ModuleValidator.fix(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer, loader = opacus.PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
        )
        before = [p.detach().clone() for p in model.parameters()]
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_without_opacus(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.setitem(sys.modules, "opacus.validators", None)
    with pytest.raises(ns.DependencyError, match="register_with_opacus expects opacus"):
        register_with_opacus()
