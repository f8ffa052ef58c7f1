"""Gradients before the step against the formulas and whole optimizers written out, and the normalized discriminator."""

import math

import pytest
import torch
from helpers import assert_same
from torch import nn

import normsmith as ns


def model_with_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(75, 2)).double()
    model(torch.randn(5, 3, 6, 6, dtype=torch.float64)).square().sum().backward()
    return model


def copies(model):
    return [p.grad.clone() for p in model.parameters()]


def test_each_layer_by_itself():
    model = model_with_gradients()
    before, optimizer = copies(model), torch.optim.SGD(model.parameters(), 0.0)
    model[0].weight.requires_grad_(False)
    ns.normalize_gradients(optimizer, "layer")
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert_same(p.grad, old / old.norm(), tolerance=1e-7)
    after = copies(model)
    optimizer.step()  # what has norm 1 stays
    assert all(torch.allclose(p.grad, old, atol=1e-7) for p, old in zip(model.parameters(), after, strict=True))
    model[3].bias.grad.zero_()
    optimizer.step()
    assert not model[3].bias.grad.any()


@pytest.mark.parametrize("told", [True, False])
def test_centralized(told):
    model = model_with_gradients()
    before, optimizer = copies(model), torch.optim.Adam(model.parameters(), 0.1)
    ns.normalize_gradients(optimizer, "centralize", model=model if told else None)
    optimizer.step()
    conv, bias, transposed, _, linear, _ = (p.grad for p in model.parameters())
    assert_same(conv, before[0] - before[0].mean((1, 2, 3), keepdim=True))
    assert torch.equal(bias, before[1])
    assert_same(transposed, before[2] - before[2].mean((0, 2, 3) if told else (1, 2, 3), keepdim=True))
    assert_same(linear, before[4] - before[4].mean(1, keepdim=True))
    after = copies(model)
    optimizer.step()
    assert all(torch.allclose(p.grad, old, atol=1e-12) for p, old in zip(model.parameters(), after, strict=True))


def test_clipped_together():
    model = model_with_gradients()
    before, optimizer = copies(model), torch.optim.SGD(model.parameters(), 0.1)
    total = math.sqrt(sum(float(g.square().sum()) for g in before))
    hooked = ns.normalize_gradients(optimizer, "clip", max_norm=0.5)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert_same(p.grad, old * 0.5 / total, tolerance=1e-5)
    hooked.remove()
    model[0].weight.grad.fill_(7.0)
    optimizer.step()
    assert float(model[0].weight.grad.max()) == 7.0
    assert repr(hooked) == "<normalize_gradients 'clip', removed>"


@pytest.mark.parametrize("maximize", [False, True])
def test_with_sgd_the_trust_ratio_is_lars(maximize):
    torch.manual_seed(0)
    w, b = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((3, 4), (3,)))
    optimizer = torch.optim.SGD([w, b], 0.1, momentum=0.9, weight_decay=0.01, maximize=maximize)
    ns.normalize_gradients(optimizer, "trust_ratio", trust=0.02)
    theirs, momenta = [w.detach().clone(), b.detach().clone()], [torch.zeros(3, 4), torch.zeros(3)]
    for _ in range(3):
        for p, own in ((w, theirs[0]), (b, theirs[1])):
            p.grad = torch.randn_like(p)
            g = -p.grad if maximize else p.grad
            ratio = 0.02 * own.norm() / (g.norm() + 0.01 * own.norm()) if p is w else 1.0
            k = int(p is b)
            momenta[k] = 0.9 * momenta[k] + ratio * (g + 0.01 * own)
        optimizer.step()
        theirs = [own - 0.1 * m for own, m in zip(theirs, momenta, strict=True)]
        assert_same(w, theirs[0])
        assert_same(b, theirs[1])


def test_with_adamw_the_trust_ratio_is_lamb():
    torch.manual_seed(0)
    w, b = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((3, 4), (3,)))
    optimizer = torch.optim.AdamW([w, b], 0.1, weight_decay=0.01)
    hooked = ns.normalize_gradients(optimizer, "trust_ratio")
    own, m, v = w.detach().clone(), 0, 0
    for step in range(1, 4):
        w.grad, b.grad = torch.randn_like(w), torch.randn_like(b)
        m, v = 0.9 * m + 0.1 * w.grad, 0.999 * v + 0.001 * w.grad**2
        direction = m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8) + 0.01 * own
        own = own - 0.1 * own.norm() / direction.norm() * direction
        before = b.detach().clone()
        optimizer.step()
        assert_same(w, own)
        assert float((b - before).detach().abs().max()) < 0.3  # a vector, which is as AdamW has it
    hooked.remove()
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert float((w - own).detach().norm()) != pytest.approx(0.1 * float(own.norm()))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_nothing_is_divided_by_zero(kind):
    w = torch.zeros(2, 2, requires_grad=True)
    optimizer = kind([w], 0.1)
    ns.normalize_gradients(optimizer, "trust_ratio")
    for gradient in (torch.zeros(2, 2), torch.ones(2, 2)):
        w.grad = gradient
        optimizer.step()
        assert w.isfinite().all()
    assert w.detach().abs().max() > 0.05  # the step as it would have been


def test_what_cannot_work():
    w = torch.zeros(2, 2, requires_grad=True)
    optimizer = torch.optim.SGD([w], 0.1)
    for options, sentence in (
        ({"how": "lars"}, "expects how to be one of"),
        ({"how": "clip", "trust": 1.0}, "expects trust with 'trust_ratio' alone: got it with 'clip'"),
        ({"how": "clip", "max_norm": 0}, "expects max_norm above zero: got 0"),
        ({"how": "layer", "eps": 0}, "expects eps above zero"),
    ):
        with pytest.raises(ns.OptionError, match=sentence):
            ns.normalize_gradients(optimizer, **options)
    with pytest.raises(ns.OptionError, match=r"expects a torch\.optim\.Optimizer: got list"):
        ns.normalize_gradients([w], "layer")
    ns.normalize_gradients(optimizer, "layer")
    for call in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(ns.OptionError, match="expects step\\(\\) without a closure"):
            call()
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    sparse = torch.optim.SparseAdam(embedding.parameters(), 0.1)
    ns.normalize_gradients(sparse, "layer")
    with pytest.raises(ns.InputError, match="expects dense gradients: got a sparse one"):
        sparse.step()


def test_the_discriminator_of_a_line():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1)).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    f, size = network(x), network[1].weight.norm()
    discriminator = ns.GradNormDiscriminator(network)
    assert_same(discriminator(x), f / (size + f.abs()))
    with torch.no_grad():
        assert_same(discriminator(x), f / (size + f.abs()))
    with torch.inference_mode():
        assert_same(discriminator(x.clone()).clone(), f / (size + f.abs()))
    x.requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(x).sum(), x)
    expected = (size / (size + f.abs())).square().detach().view(-1)
    assert_same(slope.flatten(1).norm(dim=1), expected)
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.zero_()
    assert not discriminator(x).any()


def test_the_discriminators_gradients():
    torch.manual_seed(0)
    weights = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((4, 3), (1, 4))]
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    class Bent(nn.Module):
        def forward(self, x, w=None, u=None):
            return ((x @ weights[0].T).tanh() @ weights[1].T).squeeze(1)

    discriminator = ns.GradNormDiscriminator(Bent())

    def by_hand(x, w, u):
        inner = (x @ w.T).tanh()
        slope = ((1 - inner.square()) * u) @ w
        f = inner @ u[0]
        return f / (slope.square().sum(1).sqrt() + f.abs())

    assert_same(discriminator(x), by_hand(x, *weights))
    ours = torch.autograd.grad(discriminator(x).square().sum(), [x, *weights])
    theirs = torch.autograd.grad(by_hand(x, *weights).square().sum(), [x, *weights])
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other)
    with pytest.raises(ns.InputError, match="one output for each of 3 samples: got shape \\(3, 2\\)"):
        ns.GradNormDiscriminator(nn.Linear(3, 2).double())(x)
