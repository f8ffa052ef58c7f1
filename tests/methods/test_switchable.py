"""Switchable norms: their limits, the authors' form, the exact average over batches, and choices that nothing moves."""

import copy
import itertools
import math

import pytest
import torch
from helpers import CHANNELS, assert_same, example
from torch import nn

import normsmith as ns

SHAPE = (4, CHANNELS, 5, 6)
PARTS = ["instance", "layer", "batch"]


def with_logits(layer, mean, var=None):
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor(mean))
        layer.var_weight.copy_(torch.tensor(mean if var is None else var))
    return layer


def one_hot(name, part, **options):
    """A layer that has chosen one of its parts, as far as its logits can say so."""
    layer = ns.make(name, CHANNELS, dtype=torch.float64, **options)
    return with_logits(layer, [40.0 * (p == part) for p in layer.parts])


def single(part):
    """The norm of that part alone; instance norm with an affine map, as the others have."""
    kinds = {"instance": ns.InstanceNorm, "layer": ns.LayerNorm, "batch": ns.BatchNorm}
    return kinds[part](CHANNELS, dtype=torch.float64, affine=True)


def results(layer, x):
    """Output, and the gradients of input, weight and bias."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), example(tuple(y.shape), seed=5))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["switchable", "sparse_switchable"])
@pytest.mark.parametrize("part", PARTS)
class TestLimits:
    """Section 24: one-hot logits are instance, layer and batch norm."""

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_one_hot_logits(self, name, backend, part, training):
        layer, other = one_hot(name, part), single(part)
        with ns.backend(backend):
            for seed in (1, 2):  # so that running statistics count
                layer(example(SHAPE, seed=seed)), other(example(SHAPE, seed=seed))
            for one, expected in zip(
                results(layer.train(training), example(SHAPE)), results(other.train(training), example(SHAPE)), strict=True
            ):
                assert_same(one, expected)

    def test_mean_and_variance_are_chosen_apart(self, name, backend, part):
        x = example(SHAPE)
        layer = with_logits(one_hot(name, "instance"), [40.0, 0.0, 0.0], [40.0 * (p == part) for p in PARTS])
        dims = {"instance": (2, 3), "layer": (1, 2, 3), "batch": (0, 2, 3)}[part]
        expected = (x - x.mean((2, 3), keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
        with ns.backend(backend):
            assert_same(layer(x), expected)


class AuthorsSwitchNorm(nn.Module):
    """The arithmetic of the authors' SwitchNorm2d: E[x²] - E[x]², and an unbiased instance variance that goes on as if biased."""

    def __init__(self, channels, eps=1e-5, momentum=0.9, using_bn=True):
        super().__init__()
        size = 3 if using_bn else 2
        self.eps, self.momentum, self.using_bn = eps, momentum, using_bn
        self.weight, self.bias = nn.Parameter(torch.ones(1, channels, 1, 1)), nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.mean_weight, self.var_weight = nn.Parameter(torch.ones(size)), nn.Parameter(torch.ones(size))
        self.register_buffer("running_mean", torch.zeros(1, channels, 1))
        self.register_buffer("running_var", torch.zeros(1, channels, 1))

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.view(n, c, -1)
        mean_in, var_in = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
        power = var_in + mean_in**2
        mean_ln = mean_in.mean(1, keepdim=True)
        means, variances = [mean_in, mean_ln], [var_in, power.mean(1, keepdim=True) - mean_ln**2]
        if self.using_bn:
            if self.training:
                mean_bn = mean_in.mean(0, keepdim=True)
                var_bn = power.mean(0, keepdim=True) - mean_bn**2
                self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean_bn.data)
                self.running_var.mul_(self.momentum).add_((1 - self.momentum) * var_bn.data)
            else:
                mean_bn, var_bn = self.running_mean, self.running_var
            means.append(mean_bn), variances.append(var_bn)
        mean = sum(p * m for p, m in zip(self.mean_weight.softmax(0), means, strict=True))
        var = sum(p * v for p, v in zip(self.var_weight.softmax(0), variances, strict=True))
        return ((x - mean) / (var + self.eps).sqrt()).view(n, c, h, w) * self.weight + self.bias


@pytest.mark.parametrize("use_batch", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_unbiased_form_is_that_of_the_authors(backend, use_batch):
    theirs = AuthorsSwitchNorm(CHANNELS, using_bn=use_batch).double()
    ours = ns.SwitchableNorm(CHANNELS, unbiased=True, use_batch=use_batch, dtype=torch.float64)
    biased = ns.SwitchableNorm(CHANNELS, use_batch=use_batch, dtype=torch.float64)
    own = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.add_(torch.randn_like(parameter))
            own[name].copy_(parameter.view_as(own[name]))
            dict(biased.named_parameters())[name].copy_(parameter)
    if use_batch:
        ours.running_var.zero_()  # where theirs starts
    with ns.backend(backend):
        for seed in (1, 2):
            x = example(SHAPE, seed=seed).requires_grad_()
            y, expected = ours(x), theirs(x)
            assert_same(y, expected, "output", 1e-9)
            assert (biased(x) - expected).abs().max() > 1e-3, "the two forms differ"
            dy = example(SHAPE, seed=9)
            grads = torch.autograd.grad(y, [x, *ours.parameters()], dy)
            wanted = torch.autograd.grad(expected, [x, *(own[name] for name, _ in ours.named_parameters())], dy)
            for found, grad in zip(grads, wanted, strict=True):
                assert_same(found, grad.view_as(found), "gradient", 1e-9)
        assert_same(ours.eval()(x), theirs.eval()(x), "evaluation", 1e-9)


class TestSmall:
    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    @pytest.mark.parametrize("name", ["switchable", "sparse_switchable"])
    @pytest.mark.parametrize(
        "shape", [(1, CHANNELS, 5, 6), (4, CHANNELS, 1, 1), (4, CHANNELS), (1, CHANNELS), (1, CHANNELS, 1)]
    )
    def test_one_sample_or_position_is_legal(self, name, backend, shape):
        layer, x = ns.make(name, CHANNELS, dtype=torch.float64), example(shape).requires_grad_()
        with ns.backend(backend):
            y = layer(x)
            y.square().sum().backward()
        assert all(torch.isfinite(t).all() for t in (y, x.grad, layer.running_var, layer.mean_weight.grad))

    def test_one_element_per_channel_moves_no_running_statistics(self):
        for policy in ("error", "batch", "running"):
            layer = ns.SwitchableNorm(CHANNELS, on_single=policy)
            before = copy.deepcopy(layer.state_dict())
            layer(torch.randn(1, CHANNELS))
            assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
            layer(torch.randn(1, CHANNELS, 2))
            assert layer.num_batches_tracked == 1

    def test_one_element_by_the_running_statistics(self):
        layer, x = ns.SwitchableNorm(CHANNELS, on_single="running"), example((1, CHANNELS), torch.float32)
        layer(example((4, CHANNELS), torch.float32, seed=3))
        assert torch.equal(layer(x), layer.eval()(x))

    def test_instance_statistics_of_a_single_number_are_itself(self):
        """The layer over (N, C): the instance's part is mean x and variance 0."""
        x = example((4, CHANNELS))
        layer = with_logits(ns.SwitchableNorm(CHANNELS, dtype=torch.float64), [0.0, -40.0, -40.0], [-40.0, -40.0, 0.0])
        assert_same(layer(x), torch.zeros_like(x))
        for unbiased in (False, True):
            assert_same(ns.SwitchableNorm(CHANNELS, unbiased=unbiased).double()(x), ns.SwitchableNorm(CHANNELS).double()(x))

    def test_without_instance_it_blends_layer_and_batch(self):
        layer = ns.SwitchableNorm(CHANNELS, instance=False)
        assert layer.mean_weight.shape == layer.var_weight.shape == (2,)
        assert list(layer.ratios()["mean"]) == ["layer", "batch"]
        for part in ("layer", "batch"):
            assert_same(
                one_hot("switchable", part, instance=False)(example((5, CHANNELS))), single(part)(example((5, CHANNELS)))
            )

    def test_without_batch_it_keeps_no_statistics(self):
        layer = ns.SwitchableNorm(CHANNELS, use_batch=False, dtype=torch.float64)
        assert list(layer.ratios()["var"]) == ["instance", "layer"]
        assert not list(layer.buffers())
        x = example(SHAPE)
        assert torch.equal(layer(x), layer.eval()(x))
        assert_same(layer(x)[:1], layer(x[:1]))


def test_masked_elements_do_not_enter():
    """A padded batch gives what its parts give, cut to length; checked through the choice of each statistic."""
    x, lengths = example((3, CHANNELS, 8)), torch.tensor([8, 5, 2])
    layer = ns.SwitchableNorm(CHANNELS, dtype=torch.float64)
    y = layer(x, lengths=lengths)
    other = x.clone()
    for n, length in enumerate(lengths):
        other[n, :, length:] = 1e6
        assert torch.equal(y[n, :, length:], torch.zeros_like(y[n, :, length:]))
    fresh = ns.SwitchableNorm(CHANNELS, dtype=torch.float64)
    assert_same(fresh(other, lengths=lengths), y)
    every = torch.cat([x[n, :, :length] for n, length in enumerate(lengths)], 1)
    assert_same(layer.running_mean, 0.1 * every.mean(1))
    short = with_logits(ns.SwitchableNorm(CHANNELS, dtype=torch.float64), [0.0, 0.0, -40.0])
    alone = with_logits(ns.SwitchableNorm(CHANNELS, dtype=torch.float64), [0.0, 0.0, -40.0])
    assert_same(short(x, lengths=lengths)[1, :, :5], alone(x[1:2, :, :5])[0])


def test_frozen_takes_the_running_statistics_in_training():
    layer = ns.SwitchableNorm(CHANNELS, dtype=torch.float64)
    layer(example(SHAPE, seed=2))
    layer.frozen = True
    before, x = copy.deepcopy(layer.state_dict()), example(SHAPE)
    assert torch.equal(layer(x), copy.deepcopy(layer).eval()(x))
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items() if k in before)


def test_accumulated_micro_batches_are_one_batch():
    x = example((8, *SHAPE[1:]))
    whole, parts = ns.SwitchableNorm(CHANNELS).double(), ns.SwitchableNorm(CHANNELS, accumulate=2).double()
    whole(x), parts(x[:3]), parts(x[3:])
    assert_same(parts.running_mean, whole.running_mean)
    assert_same(parts.running_var, whole.running_var)


def test_ratios():
    layer = with_logits(ns.SwitchableNorm(CHANNELS), [0.0, math.log(2.0), 0.0], [0.0, 0.0, math.log(8.0)])
    found = layer.ratios()
    assert found["mean"] == pytest.approx({"instance": 0.25, "layer": 0.5, "batch": 0.25})
    assert found["var"] == pytest.approx({"instance": 0.1, "layer": 0.1, "batch": 0.8})


@pytest.mark.parametrize("name", ["switchable", "sparse_switchable"])
def test_bad_options(name):
    with pytest.raises(ns.OptionError, match=r"two statistics to blend.*or use LayerNorm"):
        ns.make(name, CHANNELS, use_batch=False, instance=False)


class TestCollecting:
    """Running statistics as the exact average over the batches of a block."""

    def layer(self, **options):
        return ns.SwitchableNorm(CHANNELS, dtype=torch.float64, **options)

    def test_identical_batches_give_the_statistics_of_one(self):
        layer, x = self.layer(), example(SHAPE)
        with ns.collecting(layer):
            for _ in range(7):
                layer(x)
        count = 7 * 4 * 30
        assert_same(layer.running_mean, x.mean((0, 2, 3)))
        assert_same(layer.running_var * (count - 1) / count, x.var((0, 2, 3), correction=0))
        assert layer.num_batches_tracked == 7

    @pytest.mark.parametrize("method", ["batch", "switchable", "sparse_switchable"])
    @pytest.mark.parametrize("options", [{}, {"momentum": None}, {"accumulate": 3}, {"nonfinite": "skip"}], ids=str)
    def test_a_whole_data_set_in_unequal_batches_gives_its_mean_and_variance(self, method, options):
        x = example((20, *SHAPE[1:]))
        layer = ns.make(method, CHANNELS, dtype=torch.float64, **options)
        layer(x * 3 + 1)  # what was before does not count
        with ns.collecting(layer), torch.no_grad():
            for batch in x.split([7, 1, 4, 8]):
                layer(batch)
        assert_same(layer.running_mean, x.mean((0, 2, 3)))
        assert_same(layer.running_var, x.var((0, 2, 3)))

    def test_float32_layers_add_up_in_float64(self):
        x = torch.randn(400, CHANNELS, 8) + 100
        layer = ns.BatchNorm(CHANNELS)
        with ns.collecting(layer), torch.no_grad():
            for batch in x.split(1):
                layer(batch)
        assert_same(layer.running_var, x.double().var((0, 2)), tolerance=1e-5)

    def test_within_is_the_average_of_the_variances(self):
        x = example((12, *SHAPE[1:]))
        layer = self.layer()
        with ns.collecting(layer, variance="within"):
            for batch in x.split([2, 4, 6]):
                layer(batch)
        expected = sum(len(b) * b.var((0, 2, 3)) for b in x.split([2, 4, 6])) / 12
        assert_same(layer.running_var, expected)
        assert_same(layer.running_mean, x.mean((0, 2, 3)))
        assert (layer.running_var < 0.9 * x.var((0, 2, 3))).all(), "samples differ in mean here"

    def test_layers_in_sequence_take_one_pass(self):
        """The second layer sees what the first gives by batch statistics, as in training."""
        first, second = self.layer(), ns.BatchNorm(CHANNELS, dtype=torch.float64)
        model, batches = (
            nn.Sequential(first, nn.ReLU(), second, nn.Dropout(0.5)).eval(),
            example((12, *SHAPE[1:])).split([5, 7]),
        )
        with ns.collecting(model):
            for batch in batches:
                model(batch)
            assert not model[3].training
        assert not any(m.training for m in model.modules())
        plain = copy.deepcopy(first).train()
        seen = torch.cat([torch.relu(plain(batch)) for batch in batches])
        assert_same(second.running_mean, seen.mean((0, 2, 3)))
        assert_same(second.running_var, seen.var((0, 2, 3)))

    def test_instance_norm_averages_its_samples(self):
        layer, x = ns.InstanceNorm(CHANNELS, track_running_stats=True, dtype=torch.float64), example((12, *SHAPE[1:]))
        with ns.collecting(layer):
            for batch in x.split([5, 7]):
                layer(batch)
        assert_same(layer.running_mean, x.mean((0, 2, 3)))
        assert_same(layer.running_var, x.var((2, 3)).mean(0))

    def test_what_stays(self):
        frozen, unseen, plain = self.layer(frozen=True), self.layer(), ns.SwitchableNorm(CHANNELS, use_batch=False)
        model = nn.ModuleList([frozen, unseen, plain])
        before = copy.deepcopy(model.state_dict())
        with ns.collecting(model):
            frozen(example(SHAPE))
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    def test_masked_and_not_finite_batches(self):
        layer, x = self.layer(nonfinite="skip"), example((4, CHANNELS, 6))
        with ns.collecting(layer):
            layer(x, lengths=torch.tensor([6, 2, 0, 4]))
            layer(x * math.nan)
            layer(x[:2])
        every = torch.cat([x[0], x[1, :, :2], x[3, :, :4], x[0], x[1]], 1)
        assert_same(layer.running_mean, every.mean(1))
        assert_same(layer.running_var, every.var(1))
        assert layer.num_batches_skipped == 1

    def test_an_error_leaves_everything_as_it_was(self):
        layer = self.layer().eval()
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(ns.InputError), ns.collecting(layer):  # noqa: PT012
            layer(example(SHAPE))
            layer(example((4, CHANNELS + 1)))
        assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
        assert not layer.training
        layer.train()(example(SHAPE))
        assert layer.num_batches_tracked == 1

    def test_in_one_graph(self):
        torch._dynamo.reset()
        layer, x = self.layer(), example((9, *SHAPE[1:]))
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
        with ns.collecting(layer):
            compiled(x[:5]), compiled(x[5:])
        assert_same(layer.running_var, x.var((0, 2, 3)))
        compiled(x)
        assert layer.num_batches_tracked == 3

    def test_bad_use(self):
        layer = self.layer()
        with pytest.raises(ns.OptionError, match="'total', 'within'"), ns.collecting(layer, variance="all"):
            pass
        with ns.collecting(layer), pytest.raises(ns.OptionError, match="collecting already"), ns.collecting(layer):
            pass


def simplex(size, steps):
    """All points of the simplex whose coordinates are multiples of 1 / steps."""
    cuts = itertools.combinations(range(steps + size - 1), size - 1)
    edges = [(-1, *cut, steps + size - 1) for cut in cuts]
    return (torch.tensor(edges, dtype=torch.float64).diff() - 1) / steps


def problems(size, count=300):
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(count, size, generator=generator, dtype=torch.float64) * 0.7
    radii = torch.rand(count, generator=generator, dtype=torch.float64) * math.sqrt((size - 1) / size)
    return logits, radii


class TestSparsestMax:
    @pytest.mark.parametrize(("size", "steps"), [(2, 1000), (3, 300), (4, 60)])
    def test_no_point_of_a_grid_is_nearer(self, size, steps):
        grid = simplex(size, steps)
        centre = (grid - 1 / size).norm(dim=1)
        logits, radii = problems(size, 300 // (size - 1))
        for z, radius, p in zip(logits, radii, ns.sparsestmax(logits, radii), strict=True):
            assert p.min() >= 0
            assert p.sum() == pytest.approx(1, abs=1e-12)
            assert (p - 1 / size).norm() >= radius - 1e-9
            nearest = (grid[centre >= radius] - z).square().sum(1).min()
            assert (p - z).square().sum() <= nearest + 1e-9
            assert p.argmax() == z.argmax()

    @pytest.mark.parametrize(
        ("logits", "radius", "expected"),
        [
            ([1.2, 1.0, 0.9], 0.3, [0.5648, 0.2870, 0.1482]),
            ([1.2, 1.0, 0.9], 0.6, [0.8109, 0.1891, 0.0]),
            ([1.2, 1.0, 0.9], 0.82, [1.0, 0.0, 0.0]),
            ([-0.255, -0.006, -0.743], 0.324, [0.3755, 0.6245, 0.0]),
            ([0.365, 0.403, -0.238], 0.33, [0.481, 0.519, 0.0]),
        ],
    )
    def test_values(self, logits, radius, expected):
        """The last two are where the authors' code is not the arg-min."""
        assert_same(ns.sparsestmax(torch.tensor(logits), radius), torch.tensor(expected), tolerance=6e-4)

    def test_without_a_radius_it_is_sparsemax(self):
        logits, _ = problems(3)
        grid = simplex(3, 300)
        for z, p in zip(logits[:50], ns.sparsestmax(logits, 0.0), strict=False):
            assert (p - z).square().sum() <= (grid - z).square().sum(1).min() + 1e-12
        assert_same(ns.sparsestmax(torch.tensor([0.5, 0.3, 0.2]), 0.0), torch.tensor([0.5, 0.3, 0.2]))

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
    def test_from_the_largest_radius_on_it_is_one_hot(self, size):
        logits, _ = problems(size)
        for radius in (math.sqrt((size - 1) / size), 1.0):
            p = ns.sparsestmax(logits, radius)
            assert_same(p, torch.nn.functional.one_hot(logits.argmax(1), size).double(), tolerance=1e-6)

    def test_equal_logits_have_no_direction(self):
        third = torch.full((3,), 1 / 3, dtype=torch.float64)
        for radius in (0.0, 0.3, 1.0):
            assert_same(ns.sparsestmax(torch.ones(3, dtype=torch.float64), radius), third, tolerance=1e-15)
        assert_same(ns.sparsestmax(torch.tensor([1.0, 1.0, 0.0]), 1.0), torch.tensor([0.5, 0.5, 0.0]))
        z = torch.ones(3, requires_grad=True)
        ns.sparsestmax(z, 0.5)[0].backward()
        assert torch.isfinite(z.grad).all()

    @pytest.mark.parametrize("size", [2, 3, 4, 6])
    def test_gradcheck(self, size):
        logits, radii = problems(size, 40)
        logits.requires_grad_()
        assert torch.autograd.gradcheck(lambda z: ns.sparsestmax(z, radii), (logits,))
        assert torch.autograd.gradgradcheck(lambda z: ns.sparsestmax(z, radii), (logits,))

    def test_leading_dimensions_and_types(self):
        logits, _ = problems(3, 24)
        together = ns.sparsestmax(logits.view(2, 3, 4, 3), 0.4)
        assert torch.equal(together.view(24, 3), torch.stack([ns.sparsestmax(z, 0.4) for z in logits]))
        for dtype in (torch.float32, torch.bfloat16):
            assert ns.sparsestmax(logits.to(dtype), torch.tensor(0.4)).dtype == dtype
        assert torch.isnan(ns.sparsestmax(torch.tensor([1.0, math.nan, 0.0]), 0.3)).any()

    def test_bad_input(self):
        for wrong in (-0.1, math.nan):
            with pytest.raises(ns.OptionError, match="radius of at least 0"):
                ns.sparsestmax(torch.ones(3), wrong)
        for wrong in (torch.ones(3, dtype=torch.long), torch.tensor(1.0), torch.ones(2, 0)):
            with pytest.raises(ns.InputError, match="floating-point logits"):
                ns.sparsestmax(wrong, 0.3)


class TestChoices:
    def layer(self, mean=(1.2, 1.0, 0.9), var=(0.9, 1.0, 1.2), **options):
        layer = ns.SparseSwitchableNorm(CHANNELS, **options)
        return with_logits(layer, list(mean[: len(layer.parts)]), list(var[: len(layer.parts)]))

    def test_the_radius_follows_the_progress(self):
        layer = self.layer()
        model = nn.Sequential(nn.Sequential(layer))
        for step, expected in ((0, 0.0), (30, 0.3), (60, 0.6)):
            ns.step_schedules(model, step, 100)
            assert layer.radius == pytest.approx(expected)
        assert list(layer.ratios()["mean"].values()) == pytest.approx([0.8109, 0.1891, 0.0], abs=1e-4)
        assert not layer.mean_fixed.any()
        ns.step_schedules(model, 82, 100)
        assert layer.mean_fixed.tolist() == [True, False, False]
        assert layer.var_fixed.tolist() == [False, False, True]
        assert layer.mean_weight.tolist() == [1.0, 0.0, 0.0]

    @pytest.mark.parametrize(
        "optimizer",
        [
            lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, lr=0.5, weight_decay=0.5),
        ],
        ids=["SGD", "AdamW"],
    )
    @pytest.mark.parametrize("scheduled", [True, False])
    def test_no_optimizer_moves_a_choice(self, optimizer, scheduled):
        torch.manual_seed(0)
        layer = self.layer()
        stepper = optimizer(layer.parameters())

        def step():
            stepper.zero_grad(set_to_none=False)  # zeros are gradients: momentum and decay go on
            x = torch.randn(4, CHANNELS, 5) * torch.rand(4, 1, 1) + torch.randn(1, CHANNELS, 1)
            (layer(x) - torch.randn(4, CHANNELS, 5)).square().sum().backward()
            stepper.step()

        first = layer.ratios()
        for _ in range(5):  # so that there is momentum
            step()
        assert layer.ratios() != first
        ns.step_schedules(layer, 1, 1)
        chosen, frozen_state = layer.ratios(), copy.deepcopy(layer.state_dict())
        assert sorted(chosen["mean"].values()) == [0.0, 0.0, 1.0]
        for number in range(100):
            step()
            assert layer.ratios() == chosen
            if scheduled:
                ns.step_schedules(layer, number, 100)
                assert torch.equal(layer.mean_weight, frozen_state["mean_weight"])
        assert layer.ratios() == chosen
        for key in ("mean_fixed", "var_fixed"):
            assert torch.equal(layer.state_dict()[key], frozen_state[key])

    def test_a_choice_is_in_the_state(self):
        layer = self.layer()
        ns.step_schedules(layer, 9, 10)
        other = ns.SparseSwitchableNorm(CHANNELS)
        other.load_state_dict(layer.state_dict(), strict=True)
        assert other.ratios() == layer.ratios()
        assert other.radius == layer.radius
        layer.reset_parameters()
        assert list(layer.ratios()["var"].values()) == pytest.approx([1 / 3] * 3)

    def test_a_choice_gets_no_gradient_and_the_rest_does(self):
        layer, x = self.layer(mean=(5.0, 0.0, 0.0)), example(SHAPE, torch.float32)
        ns.step_schedules(layer, 1, 10)
        layer(x).mul(example(SHAPE, torch.float32, seed=7)).sum().backward()
        assert torch.equal(layer.mean_weight.grad, torch.zeros(3))
        assert layer.var_weight.grad.abs().sum() > 0

    def test_ties_last_to_the_end_and_go_to_the_first(self):
        layer = self.layer(mean=(1.0, 1.0, 1.0), var=(0.0, 1.0, 1.0))
        ns.step_schedules(layer, 99, 100)
        assert list(layer.ratios()["mean"].values()) == pytest.approx([1 / 3] * 3)
        assert list(layer.ratios()["var"].values()) == pytest.approx([0.0, 0.5, 0.5])
        ns.step_schedules(layer, 100, 100)
        assert layer.ratios()["mean"] == {"instance": 1.0, "layer": 0.0, "batch": 0.0}
        assert layer.ratios()["var"] == {"instance": 0.0, "layer": 1.0, "batch": 0.0}

    @pytest.mark.parametrize("options", [{"use_batch": False}, {"instance": False}], ids=str)
    def test_of_two_statistics(self, options):
        layer = self.layer(dtype=torch.float64, **options)
        ns.step_schedules(layer, 1, 2)
        assert sum(layer.ratios()["mean"].values()) == pytest.approx(1)
        ns.step_schedules(layer, 3, 4)
        chosen = layer.parts[0], layer.parts[1]
        assert [layer.ratios()[what][part] for what, part in zip(("mean", "var"), chosen, strict=True)] == [1.0, 1.0]
        layer(example(SHAPE)).sum().backward()

    @pytest.mark.parametrize("part", PARTS)
    def test_a_choice_is_one_of_the_three_norms(self, part):
        layer = with_logits(ns.SparseSwitchableNorm(CHANNELS, dtype=torch.float64), [0.3 * (p == part) for p in PARTS])
        ns.step_schedules(layer, 9, 10)
        other, x = single(part), example(SHAPE)
        assert_same(layer(x), other(x))
        assert_same(layer.eval()(x), other.eval()(x))

    def test_one_graph_for_the_whole_schedule(self):
        torch._dynamo.reset()
        from torch._dynamo.testing import CompileCounterWithBackend

        counter = CompileCounterWithBackend("aot_eager")
        layer, eager, x = self.layer(), self.layer(), example(SHAPE, torch.float32)
        compiled = torch.compile(layer, fullgraph=True, backend=counter)
        for step in range(11):
            for model in (layer, eager):
                ns.step_schedules(model, step, 10)
            assert_same(compiled(x), eager(x))
        assert counter.frame_count == 1

    def test_a_module_of_the_user_has_a_schedule_too(self):
        class Own(nn.Module):
            seen = ()

            def step_schedule(self, progress):
                self.seen = (*self.seen, progress)

        own = Own()
        for step in (0, 1, 4):
            ns.step_schedules(nn.Sequential(nn.Linear(2, 2), own), step, 4)
        assert own.seen == (0.0, 0.25, 1.0)

    @pytest.mark.parametrize(("step", "total"), [(-1, 10), (11, 10), (0, 0), (1.0, 10), (1, 10.0), (True, 10)])
    def test_steps_that_cannot_be(self, step, total):
        with pytest.raises(ns.OptionError, match="from 0 to total"):
            ns.step_schedules(nn.Linear(2, 2), step, total)
