"""What is true of each mixture method beyond its formula: limits, constraints, degenerate batches, and that EM does what EM does."""

import copy

import pytest
import torch
from helpers import CHANNELS, assert_same, example
from torch import nn

import normsmith as ns
from normsmith.methods import _em
from normsmith.methods.uan import FLOOR
from normsmith.mixture import log_evidence, weigh

SHAPE = (8, CHANNELS, 6)
BACKENDS = ("cpu", "reference")
CENTERS = (-8.0, 0.0, 10.0)


def clusters(samples=600, shares=(0.25, 0.25, 0.5), channels=2, scale=0.1):
    """Well separated clusters, alike in all channels, and the cluster of each sample."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor([int(s * samples) for s in shares]))
    ids = ids[torch.randperm(len(ids), generator=generator)]
    noise = torch.randn(len(ids), channels, generator=generator, dtype=torch.float64)
    return torch.tensor(CENTERS, dtype=torch.float64)[ids].unsqueeze(1) + scale * noise, ids


def mixture_at(**options):
    """A UAN whose components are where `clusters` are."""
    layer = ns.UAN(2, eps=1e-8, affine=False, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.mean.copy_(torch.tensor(CENTERS).view(3, 1).expand(3, 2))
        layer.raw_prior.copy_(torch.tensor([0.25, 0.25, 0.5]).log())
    return layer


ONE = {
    "uan": {"eps": 1e-5},
    "uan running": {"eps": 1e-5, "eval_stats": "running"},
    "mode": {},
    "mixture": {},
    "mixture channel": {"mixture": "channel", "iterations": 3},
}


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_component_is_batch_norm(name, backend):
    layer = ns.make(name.split()[0], CHANNELS, components=1, dtype=torch.float64, **ONE[name])
    twin = nn.BatchNorm1d(CHANNELS).double()
    with ns.backend(backend):
        for seed in range(3):
            x = example(SHAPE, seed=seed).requires_grad_()
            other = x.detach().clone().requires_grad_()
            y, expected = layer(x), twin(other)
            assert_same(y, expected, "output")
            y.square().sum().backward()
            expected.square().sum().backward()
            assert_same(x.grad, other.grad, "gradient")
            assert_same(layer.weight.grad, twin.weight.grad, "gradient of the weight")
    assert_same(layer.running_mean[0], twin.running_mean, "running mean")
    assert_same(layer.running_var[0], twin.running_var, "running variance")
    if name != "uan":
        assert_same(layer.eval()(x), twin.eval()(x), "evaluation")


class TestIdentities:
    """Of 1 / sqrt(prior), for UAN, whose mixture can be set."""

    @pytest.mark.parametrize("components", [2, 4])
    def test_equal_components_are_the_root_of_their_number_times_batch_norm(self, components):
        layer = ns.UAN(CHANNELS, components=components, dtype=torch.float64)
        with torch.no_grad():
            layer.mean.fill_(0.3)
            layer.raw_var.fill_(0.1)
            layer.raw_prior.zero_()
        expected = components**0.5 * nn.BatchNorm1d(CHANNELS, eps=1e-3).double()(example(SHAPE))
        assert_same(layer(example(SHAPE)), expected)

    def test_separated_clusters(self):
        x, ids = clusters()
        y = mixture_at()(x)
        for k, prior in enumerate((0.25, 0.25, 0.5)):
            assert y[ids == k].mean(0).abs().max() < 1e-6
            assert_same(y[ids == k].std(0, unbiased=False), torch.full((2,), prior**-0.5).double(), "deviation", 1e-5)
        assert_same(y.var(0, unbiased=False), torch.full((2,), 3.0).double(), "variance", 1e-5)

    def test_hard_shares_are_batch_norm_of_each_set(self):
        x, ids = clusters()
        sets = ns.ConditionalNorm(2, num_conditions=3, statistics="condition", eps=1e-8, affine=False, dtype=torch.float64)
        priors = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)[ids].unsqueeze(1)
        assert_same(mixture_at()(x), sets(x, ids) / priors.sqrt(), tolerance=1e-6)


class TestUAN:
    def test_parameters_of_the_batch_evaluate_as_training_does(self):
        x = example(SHAPE)
        layer = ns.UAN(CHANNELS, dtype=torch.float64)
        for _ in range(300):  # to where mu and var are the weighted moments of their own shares
            density = uan_density(layer)
            found = weigh(x, density)
            set_mixture(layer, found.mean, found.var.clamp_min(2 * FLOOR))
        assert_same(layer.eval()(x), layer.train()(x), tolerance=1e-4)

    def test_constraints_hold_after_rough_steps(self):
        layer, generator = ns.UAN(3), torch.Generator().manual_seed(0)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        for _ in range(1000):
            x = torch.randn(16, 3, generator=generator) * 3
            optimizer.zero_grad()
            (layer(x) * torch.randn(16, 3, generator=generator)).sum().backward()
            optimizer.step()
        density = uan_density(layer)
        assert all(p.isfinite().all() for p in layer.parameters())
        assert (1 / density.precision >= FLOOR * (1 - 1e-6)).all()
        assert abs(torch.softmax(layer.raw_prior, 0).sum() - 1) < 1e-6
        assert layer(torch.randn(16, 3)).isfinite().all()
        assert layer.eval()(torch.randn(16, 3)).isfinite().all()

    def test_the_means_get_a_gradient_only_from_company(self):
        for components in (1, 2):
            layer = ns.UAN(CHANNELS, components=components, dtype=torch.float64)
            layer(example(SHAPE)).square().sum().backward()
            assert bool(layer.mean.grad.abs().sum() > 1e-6) == (components > 1)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_component_that_is_nowhere_near(self, backend):
        layer, x = ns.UAN(CHANNELS), example(SHAPE, torch.float32).requires_grad_()
        with torch.no_grad():
            layer.mean[0].fill_(1e6)
            layer.raw_prior[1] = -200
        with ns.backend(backend):
            layer(x).square().sum().backward()
        assert x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in layer.parameters())
        assert (layer.running_mean[0] == 0).all(), "it has seen nothing"
        assert layer.num_batches_tracked.tolist()[0] == 0

    def test_the_batch_draws_the_mixture(self):
        x, _ = clusters()
        layer = mixture_at(match_weight=0.5)
        with torch.no_grad():
            layer.mean.add_(0.5)
        y = layer(x)
        y.square().sum().backward()  # of the mixture as it was
        assert_same(layer.mean, torch.tensor(CENTERS).double().view(3, 1).expand(3, 2) + 0.25, tolerance=5e-3)
        for _ in range(30):
            layer(x)
        assert_same(1 / uan_density(layer).precision, torch.full((3, 2), 0.01).double(), tolerance=2e-3)
        gaps = []
        for weight in (0.0, 0.5):
            other = mixture_at(match_weight=weight)
            for _ in range(30):
                other(x)
            gaps.append((other.eval()(x) - other.train()(x)).abs().max())
        assert gaps[1] < 0.1 * gaps[0], "evaluation by parameters comes near training"

    def test_the_draw_leaves_a_recomputed_or_frozen_layer(self):
        x = example(SHAPE).requires_grad_()
        once, twice = (ns.UAN(CHANNELS, match_weight=0.1, dtype=torch.float64) for _ in range(2))
        twice.load_state_dict(once.state_dict())
        once(x).sum().backward()
        torch.utils.checkpoint.checkpoint(twice, x, use_reentrant=False).sum().backward()
        assert torch.equal(once.mean, twice.mean)
        twice.frozen = True
        twice(x)
        assert torch.equal(once.mean, twice.mean)

    def test_options(self):
        for options, words in (
            ({"components": 0}, "components as a positive integer"),
            ({"eval_stats": "mean"}, "'parameters', 'running', 'batch'"),
            ({"match_weight": 2.0}, "from 0 to 1"),
            ({"eval_stats": "running", "track_running_stats": False}, "running statistics"),
        ):
            with pytest.raises(ns.OptionError, match=words):
                ns.UAN(3, **options)


def uan_density(layer):
    from normsmith.methods.uan import density

    with torch.no_grad():
        return density(layer.mean, layer.raw_var, layer.raw_prior)


def set_mixture(layer, mean, var):
    with torch.no_grad():
        layer.mean.copy_(mean)
        layer.raw_var.copy_(torch.log(torch.expm1(var - FLOOR)))


class TestMode:
    def test_equal_gates_are_batch_norm(self):
        layer = ns.ModeNorm(CHANNELS, dtype=torch.float64)
        with torch.no_grad():
            layer.gate_weight.zero_()
            layer.gate_bias.zero_()
        assert_same(layer(example(SHAPE)), nn.BatchNorm1d(CHANNELS).double()(example(SHAPE)))

    def test_hard_gates_are_batch_norm_of_each_mode(self):
        x = example(SHAPE)
        ids = torch.arange(8) % 2
        x[:, 0] += 100 * (2 * ids.view(-1, 1) - 1)
        layer = ns.ModeNorm(CHANNELS, components=2, affine=False, dtype=torch.float64)
        with torch.no_grad():
            layer.gate_weight.zero_()
            layer.gate_weight[1, 0], layer.gate_weight[0, 0] = 5.0, -5.0
        sets = ns.ConditionalNorm(CHANNELS, num_conditions=2, statistics="condition", affine=False, dtype=torch.float64)
        assert_same(layer(x), sets(x, ids))
        assert_same(layer.running_mean, sets.running_mean)
        assert_same(layer.running_var, sets.running_var)


class TestMixture:
    @pytest.mark.parametrize("mixture", ["joint", "channel"])
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_finds_separated_clusters(self, mixture, backend):
        x, ids = clusters()
        layer = ns.MixtureNorm(2, mixture=mixture, iterations=5, affine=False, dtype=torch.float64)
        with ns.backend(backend):
            for _ in range(3):
                y = layer(x)
        order = layer.running_mean[:, 0].argsort()
        assert_same(layer.running_mean[order, 0], torch.tensor(CENTERS, dtype=torch.float64), tolerance=5e-3)
        assert_same(layer.running_prior[order, 0], torch.tensor([0.25, 0.25, 0.5]).double(), tolerance=1e-6)
        assert_same(y.var(0, unbiased=False), torch.full((2,), 3.0).double(), "variance", 5e-3)
        for k, prior in enumerate((0.25, 0.25, 0.5)):
            assert_same(y[ids == k].std(0, unbiased=False), torch.full((2,), prior**-0.5).double(), "deviation", 5e-3)
        unit = ns.MixtureNorm(2, mixture=mixture, iterations=5, affine=False, unit_variance=True, dtype=torch.float64)
        assert_same(unit(x).var(0, unbiased=False), torch.ones(2).double(), "variance", 5e-3)

    @pytest.mark.parametrize("joint", [True, False])
    def test_the_likelihood_never_falls(self, joint):
        x = example((64, 3, 5))
        points = x.movedim(1, -1).flatten(0, 1)
        mixture, last = _em.seed(points, 4, joint), torch.tensor(-torch.inf)
        for _ in range(25):
            density = mixture.density(joint, 1.0)
            now = log_evidence(points, density).sum(0)
            assert (now >= last - 1e-9).all()
            mixture, last = _em.maximise(weigh(x, density), joint), now
        assert (now > log_evidence(points, _em.seed(points, 4, joint).density(joint, 1.0)).sum(0) + 1).all(), "it rose"

    @pytest.mark.parametrize("mixture", ["joint", "channel"])
    def test_a_dead_component_starts_anew(self, mixture):
        x, _ = clusters()
        layer = ns.MixtureNorm(2, mixture=mixture, iterations=5, momentum=0.9, dtype=torch.float64)
        layer(x)
        with torch.no_grad():
            layer.running_mean[1] = 1e5
            layer.running_var[1] = 1e-4
        y = layer(x)
        assert y.isfinite().all()
        for _ in range(12):
            y = layer(x)
        assert (layer.running_prior > 0.2).all()
        assert_same(layer.running_mean[:, 0].sort().values, torch.tensor(CENTERS, dtype=torch.float64), tolerance=2e-2)

    @pytest.mark.parametrize("mixture", ["joint", "channel"])
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_fewer_points_than_components_are_batch_norm(self, mixture, backend):
        x = example((3, CHANNELS)).requires_grad_()
        layer = ns.MixtureNorm(CHANNELS, components=5, mixture=mixture, unit_variance=True, dtype=torch.float64)
        with ns.backend(backend):
            y = layer(x)
            y.square().sum().backward()
        assert_same(y, nn.BatchNorm1d(CHANNELS).double()(x))
        assert x.grad.isfinite().all()
        layer(example((50, CHANNELS)))
        assert layer.running_mean.isfinite().all()

    @pytest.mark.parametrize("mixture", ["joint", "channel"])
    def test_points_that_are_all_alike(self, mixture):
        x = torch.full((8, 3, 4), 7.0, requires_grad=True)
        layer = ns.MixtureNorm(3, mixture=mixture)
        for _ in range(3):
            y = layer(x)
        y.sum().backward()
        assert (y == 0).all()
        assert x.grad.isfinite().all()
        assert layer.eval()(x).isfinite().all()

    @pytest.mark.parametrize("rows", [1, 2, 7, 64])
    def test_running_sums_by_additions_alone(self, rows):
        values = torch.rand(rows, 3, dtype=torch.float64)
        assert_same(_em._sum_by_doubling(values), values.cumsum(0))

    def test_em_every(self):
        x = example((64, CHANNELS, 5))
        layer = ns.MixtureNorm(CHANNELS, em_every=3, dtype=torch.float64)
        layer(x)
        between = copy.deepcopy(layer)
        between.em_every = 1000
        for _ in range(2):
            assert_same(layer(x + 1), between(x + 1))
        assert (layer(x + 1) - between(x + 1)).abs().max() > 1e-3, "the fourth batch is fitted again"

    def test_a_high_temperature_evens_out(self):
        x, _ = clusters()
        hot = ns.MixtureNorm(2, temperature=1e9, affine=False, dtype=torch.float64)
        assert_same(hot(x), 3**0.5 * nn.BatchNorm1d(2, affine=False).double()(x), tolerance=1e-5)

    def test_micro_batches_make_one_move(self):
        x = example((64, CHANNELS, 5))
        layer = ns.MixtureNorm(CHANNELS, accumulate=2, momentum=0.5, dtype=torch.float64)
        whole = ns.MixtureNorm(CHANNELS, momentum=0.5, dtype=torch.float64)
        for one in (layer, whole):
            one(x)
        layer(x)  # twice the same is the same
        for name in ("running_mean", "running_prior"):
            assert_same(getattr(layer, name), getattr(whole, name), name)
        assert layer.pending_counts.abs().sum() == 0

    def test_options(self):
        for options, words in (
            ({"components": True}, "components as a positive integer"),
            ({"mixture": "pixel"}, "'joint', 'channel'"),
            ({"iterations": 0}, "iterations as a positive integer"),
            ({"em_every": 1.5}, "em_every as a positive integer"),
            ({"temperature": 0.0}, "temperature above zero"),
        ):
            with pytest.raises(ns.OptionError, match=words):
                ns.MixtureNorm(3, **options)


@pytest.mark.parametrize("name", ["uan", "mode", "mixture"])
def test_nothing_as_large_as_all_copies_is_written(name):
    """Beside x, y, dy and dx at most one tensor of the size of x."""
    layer, x = ns.make(name, 8), torch.randn(16, 8, 64, 64, requires_grad=True)
    layer(x).sum().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        layer(x).sum().backward()
    size = x.numel() * 4
    large = sum(e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage >= 0.9 * size)
    assert large <= 4.2 * size, f"{large / size:.1f} times x"


@pytest.mark.parametrize("name", ["uan", "mode", "mixture"])
def test_converted_from_batch_norm(name):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).double()
    model(torch.randn(4, 3, 9, 9).double())
    mean = model[1].running_mean.clone()
    ns.convert(model, f"{name}:components=2")
    assert_same(model[1].running_mean, mean.expand(2, 6))
    assert model[1].components == 2
    model(torch.randn(4, 3, 9, 9).double()).sum().backward()
