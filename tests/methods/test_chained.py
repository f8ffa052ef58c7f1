"""Kalman chains against plain torch written from the formula, and what a chain must survive: copies, threads, joins, graphs."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from helpers import assert_same, example
from ranks import run_ranks
from torch import nn
from torch.nn.functional import leaky_relu, softplus

import normsmith as ns
from normsmith.methods._predictors import analytic, sampled

X = (6, 3, 5, 5)


class Plain:
    """A chain of Kalman layers in plain torch: statistics, prediction, update, all by autograd."""

    def __init__(self, full=False, grouped=False):
        self.full, self.grouped = full, grouped

    def observe(self, x, layer):
        if self.grouped:
            cells = x.reshape(x.shape[0], layer.num_groups, -1)
            return cells.mean(2), cells.var(2, correction=0)
        flat = x.transpose(0, 1).flatten(1)
        mean = flat.mean(1)
        centered = flat - mean[:, None]
        cov = centered @ centered.T / flat.shape[1]
        return mean, cov if self.full else cov.diagonal()

    def predict(self, layer, state):
        mean, var = state
        matrix, noise = layer.filter.transition, softplus(layer.filter.raw_noise)
        if self.full:
            return matrix @ mean, matrix @ var @ matrix.T + torch.diag(noise)
        if self.grouped:
            return mean @ matrix.T, var @ matrix.square().T + noise
        return matrix @ mean, matrix.square() @ var + noise

    def __call__(self, layer, x, state=None):
        mean, var = self.observe(x, layer)
        if state is not None:
            prior_mean, prior_var = self.predict(layer, state)
            q, step = torch.sigmoid(layer.filter.raw_gain), mean - prior_mean
            between = torch.outer(step, step) if self.full else step**2
            mean, var = prior_mean + q * step, prior_var + q * (var - prior_var) + q * (1 - q) * between
        spread = var.diagonal() if self.full else var
        if self.grouped:
            each = x.shape[1] // layer.num_groups
            shape = (*x.shape[:2], 1, 1)
            center, spread = (t.repeat_interleave(each, 1).view(shape) for t in (mean, spread))
        else:
            center, spread = (t.view(1, -1, 1, 1) for t in (mean, spread))
        y = (x - center) / torch.sqrt(spread + layer.eps) * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)
        return y, (mean, var)


class Chain(nn.Module):
    """conv - norm - leaky ReLU, three times, of unlike sizes."""

    def __init__(self, name="kalman", **options):
        super().__init__()
        torch.manual_seed(0)
        sizes = (4, 6, 2)
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip((3, *sizes), sizes, strict=False))
        self.norms = nn.ModuleList(ns.make(name, size, **options) for size in sizes)
        self.double()
        with torch.no_grad():
            for parameter in self.norms.parameters():
                parameter.add_(torch.rand_like(parameter) * 0.5)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = norm(conv(x))
            x = leaky_relu(y, 0.2)
        return y

    def plain(self, x, step):
        state = None
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y, state = step(norm, conv(x), state)
            x = leaky_relu(y, 0.2)
        return y


def moved(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 0.2)
    return net


KINDS = {
    "kalman": ("kalman", {"gain": 0.3, "max_ratio": 1e9}, Plain()),
    "full": ("kalman", {"gain": 0.3, "max_ratio": 1e9, "covariance": "full"}, Plain(full=True)),
    "group": ("kalman_group", {"gain": 0.3, "max_ratio": 1e9, "num_groups": 2}, Plain(grouped=True)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equals_the_formula_in_outputs_and_all_gradients(kind, backend):
    name, options, plain = KINDS[kind]
    net, x = Chain(name, **options), example(X)
    assert ns.link(net, x) == {"norms.0": [], "norms.1": ["norms.0"], "norms.2": ["norms.1"]}
    moved(net)
    parameters = dict(net.named_parameters())
    assert {"norms.2.filter.transition", "norms.1.filter.raw_noise", "norms.1.filter.raw_gain"} <= parameters.keys()
    x.requires_grad_()
    with ns.backend(backend):
        y = net(x)
        found = torch.autograd.grad(y.square().sum(), [x, *parameters.values()])
    expected = net.plain(x, plain)
    assert_same(y, expected)
    grads = torch.autograd.grad(expected.square().sum(), [x, *parameters.values()])
    for what, one, other in zip(["x", *parameters], found, grads, strict=True):
        assert_same(one, other, f"gradient of {what}")
    assert found[1 + list(parameters).index("norms.1.filter.transition")].abs().sum() > 0


def test_the_gain_at_its_ends():
    x, net = example(X), Chain("kalman")
    ns.link(net, x)
    plain = Chain("batch")
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if "filter" not in k})
    for norm in net.norms[1:]:
        norm.filter.raw_gain.data.fill_(torch.inf)
    assert_same(net(x), plain(x), "with gain 1, batch norm")
    assert_same(net.eval()(x), plain.eval()(x), "in evaluation too")
    net.train().norms[1].filter.raw_gain.data.fill_(-torch.inf)
    net(x)
    states = net.norms[1].slot.get(), net.norms[0].slot.get()
    mean, var = net.norms[1].filter.predict(states[1].mean, states[1].var)
    assert_same(states[0].mean, mean, "with gain 0, the prediction")
    assert_same(states[0].var, var)


def test_the_update_is_a_mixture():
    """Exactly the moments of (1 - q) N(prediction) + q N(observation), by sampling; the variance is never negative."""
    chain = Chain("kalman")
    ns.link(chain, example(X))
    filter_ = chain.norms[1].filter
    filter_.raw_gain.data.fill_(0.4)
    q = filter_.gain.item()
    prior, seen = (torch.tensor([[1.0]]), torch.tensor([[2.0]])), (torch.tensor([[-1.0]]), torch.tensor([[0.5]]))
    mean, var = filter_.correct(prior, seen, 100.0)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(400_000, generator=generator)
    chosen = torch.rand(400_000, generator=generator) < q
    draws = torch.where(chosen, draws * seen[1].sqrt() + seen[0], draws * prior[1].sqrt() + prior[0])
    assert_same(mean.detach().float().view(()), draws.mean(), tolerance=0.01)
    assert_same(var.detach().float().view(()), draws.var(), tolerance=0.02)


def test_a_prediction_that_explodes_is_ignored():
    net, x = Chain("kalman", gain=0.1), example(X)
    ns.link(net, x)
    net.norms[1].filter.transition.data.mul_(1e4)
    observed = Plain().observe(net.convs[1](leaky_relu(net.norms[0](net.convs[0](x)), 0.2)), net.norms[1])
    net(x)
    assert_same(net.norms[1].slot.get().mean.view(-1), observed[0])


class Joined(nn.Module):
    """A residual block, and a dense one behind it."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.c = (nn.Conv2d(*sizes, 1) for sizes in ((3, 4), (4, 6), (6, 4), (10, 5)))
        self.n0, self.n1, self.n2, self.n3 = (ns.make("kalman", size) for size in (4, 6, 4, 5))

    def forward(self, x):
        x = torch.relu(self.n0(self.stem(x)))
        inner = torch.relu(self.n1(self.a(x)))
        x = x + self.n2(self.b(inner))
        return self.n3(self.c(torch.cat([torch.relu(x), inner], 1)))


def test_joins():
    net = Joined().double()
    found = ns.link(net, example(X))
    assert {k: sorted(v) for k, v in found.items()} == {"n0": [], "n1": ["n0"], "n2": ["n1"], "n3": ["n0", "n1", "n2"]}
    assert net.n3.join == "cat"
    by_hand = ns.KalmanNorm(5, previous=[net.n0, net.n1]).double()
    assert by_hand.filter.transition.shape == (5, 6)
    net(example(X))
    y = by_hand(example((6, 5, 2, 2)))
    zero, one = net.n0.slot.get(), net.n1.slot.get()
    padded = torch.nn.functional.pad
    prior = by_hand.filter.predict(padded(zero.mean, (0, 2)) + one.mean, padded(zero.var, (0, 2)) + one.var)
    x = example((6, 5, 2, 2))
    seen = x.mean((0, 2, 3)).view(1, -1), x.var((0, 2, 3), correction=0).view(1, -1)
    mean, var = by_hand.filter.correct(prior, seen, 100.0)
    assert_same(y, (x - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt())


def test_linking_leaves_the_model_as_it_was():
    net, x = Chain("kalman"), example(X)
    net.norms[1].eval()
    net.convs[0].weight.requires_grad_(False)
    before, modes = copy.deepcopy(net.state_dict()), {name: m.training for name, m in net.named_modules()}
    ns.link(net, x)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert modes.items() <= {name: m.training for name, m in net.named_modules()}.items()
    assert not net.convs[0].weight.requires_grad
    assert not net.convs[0]._forward_hooks
    assert x.grad_fn is None


def test_linking_what_cannot_be_linked():
    with pytest.raises(ns.OptionError, match="with Kalman layers: got none"):
        ns.link(nn.Linear(2, 2), torch.randn(2, 2))
    shared = ns.KalmanNorm(3)
    with pytest.raises(ns.OptionError, match="shared by several places"):
        ns.link(nn.Sequential(shared, shared), torch.randn(2, 3, 4))
    reached = nn.Sequential(nn.Identity(), ns.KalmanNorm(3))
    reached[0].aside = ns.KalmanNorm(3)
    with pytest.raises(ns.OptionError, match=r"leaves out '0\.aside'"):
        ns.link(reached, torch.randn(2, 3, 4))
    with pytest.raises(ns.OptionError, match="same covariance"):
        ns.KalmanNorm(3, previous=ns.KalmanNorm(3, covariance="full"))
    with pytest.raises(ns.OptionError, match="one convolution or linear layer"):
        ns.KalmanNorm(3, previous=ns.KalmanNorm(3), predictor="analytic")
    with pytest.raises(ns.OptionError, match="from 3 to 3 channels"):
        ns.KalmanNorm(3, previous=ns.KalmanNorm(3), predictor="sampled", between=nn.Linear(4, 3))
    alone = ns.KalmanNorm(3, previous=ns.KalmanNorm(3))
    with pytest.raises(ns.InputError, match="the layer before it to have run"):
        alone(torch.randn(4, 3))
    for wrong in ({"gain": 1.0}, {"max_ratio": 0}, {"predictor": "none"}, {"covariance": "full", "predictor": "analytic"}):
        with pytest.raises(ns.OptionError):
            ns.KalmanNorm(3, **wrong)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"])
def test_copies_are_linked_among_themselves(copied):
    net, x = Chain("kalman", gain=0.3), example(X)
    ns.link(net, x)
    other = copied(net)
    expected = net(x)
    for norm in net.norms:
        norm.slot._states.clear()  # a copy that looked here would fail
    assert_same(other(x), expected)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    averaged.update_parameters(net)
    assert_same(averaged(x), net(x))


def test_nothing_leaks():
    gc.collect()
    gc.disable()
    try:
        net, x = Chain("kalman"), example(X).requires_grad_()
        ns.link(net, x.detach())
        net(x).sum().backward()
        gone = weakref.ref(net.norms[0]), weakref.ref(net.norms[2].slot)
        del net
        assert all(ref() is None for ref in gone), "only a cycle would keep them"
    finally:
        gc.enable()


def test_threads_have_states_of_their_own():
    """As the replicas of DataParallel: they share slots and run at the same time."""
    net = Chain("kalman", gain=0.3)
    ns.link(net, example(X))
    inputs = [example(X, seed=seed) * (seed + 1) for seed in range(2)]
    expected = [net(x) for x in inputs]
    found, gate = {}, threading.Barrier(2)

    def meet(*_):
        gate.wait(20)

    net.norms[0].register_forward_hook(meet)  # both have passed the first layer before either goes on

    def work(i):
        found[i] = net(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, y in enumerate(expected):
        assert_same(found[i], y)


def test_compiled_in_one_graph():
    torch._dynamo.reset()
    for training in (True, False):
        net, x = Chain("kalman", gain=0.3).train(training), example(X)
        ns.link(net, x)
        expected = copy.deepcopy(net)(x)
        assert_same(torch.compile(net, fullgraph=True, backend="aot_eager")(x), expected)
    torch._dynamo.reset()


def test_detached_states_carry_no_gradient():
    first, x, other = ns.KalmanNorm(4).double(), example((6, 4, 5)), example((6, 4, 5), seed=1)
    for detach in (True, False):
        second = ns.KalmanNorm(4, previous=first, detach_state=detach, dtype=torch.float64)
        x.requires_grad_()
        first(x)
        (grad,) = torch.autograd.grad(second(other).square().mul(other).sum(), x, allow_unused=True)
        assert (grad is None) == detach


def state(size):
    torch.manual_seed(1)
    weight, bias = torch.rand(size, dtype=torch.float64) - 0.2, torch.randn(size, dtype=torch.float64)
    from normsmith.methods._chain import State

    return State(torch.randn(1, size, dtype=torch.float64), torch.rand(1, size, dtype=torch.float64), weight, bias)


@pytest.mark.parametrize("groups", [1, 2])
def test_predictors_against_samples_through_the_layer(groups):
    """Independent places, as both assume: the kernel is the whole input."""
    torch.manual_seed(0)
    before, conv = state(4), nn.Conv2d(4, 6, 3, groups=groups).double()

    def behind(mean, spread):
        x = torch.relu(mean.view(1, -1, 1, 1) + spread.view(1, -1, 1, 1) * torch.randn(40_000, 4, 3, 3, dtype=torch.float64))
        y = conv(x).view(40_000, 6)
        return y.mean(0, keepdim=True), y.var(0, keepdim=True)

    mean, var = analytic([before], "add", conv)
    expected = behind(before.bias, before.weight)
    assert_same(mean, expected[0], tolerance=0.03)
    assert_same(var, expected[1], tolerance=0.03)
    found = [sampled(before.mean, before.var, conv) for _ in range(100)]
    expected = behind(before.mean, before.var.sqrt())
    assert_same(torch.stack([m for m, _ in found]).mean(0), expected[0], tolerance=0.03)
    assert_same(torch.stack([v for _, v in found]).mean(0), expected[1], tolerance=0.03)


@pytest.mark.parametrize("predictor", ["sampled", "analytic"])
def test_chains_with_predictors_that_use_weights(predictor):
    net, x = Chain("kalman", predictor=predictor, gain=0.5), example(X)
    ns.link(net, x)
    assert net.norms[1]._between == (net.convs[1],)
    assert sum("convs" in name for name in net.state_dict()) == 6, "the layers between are not in the state twice"
    net(x).square().sum().backward()
    assert all(p.grad is not None for p in net.norms.parameters())
    assert net.norms[0].weight.grad.abs().sum() > 0


def one_rank(rank, covariance):
    net = Chain("kalman", gain=0.3, covariance=covariance)
    ns.link(net, example(X))
    ns.synchronize(net)
    own = example(X)[:4] if rank == 0 else example(X)[4:]
    y = net(own)
    y.square().sum().backward()
    return y.detach(), [p.grad for p in net.parameters()]


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_synchronised_chains(covariance):
    net = Chain("kalman", gain=0.3, covariance=covariance)
    ns.link(net, example(X))
    y = net(example(X))
    y.square().sum().backward()
    ranks = run_ranks(2, one_rank, covariance)
    assert_same(torch.cat([r[0] for r in ranks]), y)
    shared = {name for name, _ in net.named_parameters() if "filter" in name}
    for i, (name, parameter) in enumerate(net.named_parameters()):
        assert_same(ranks[0][1][i] + ranks[1][1][i], parameter.grad, f"gradient of {name}, shared: {name in shared}")
