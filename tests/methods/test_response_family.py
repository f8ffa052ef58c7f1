"""Norms with an activation in them, over positions, under a condition, or of no statistics: what the battery does not know."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, example
from ranks import run_ranks

import normsmith as ns

SHAPE = (4, 12, 5, 6)
BACKENDS = ["auto", "cpu", "reference"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def randomized(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    return layer


def grads(y, tensors, seed=3):
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    return torch.autograd.grad(y, tensors, dy)


def assert_parity(layer, formula, x):
    """Output and every gradient, to 1e-6."""
    x = x.requires_grad_()
    leaves = [x, *layer.parameters()]
    y, expected = layer(x), formula(x, layer)
    assert_same(y, expected, "output", 1e-6)
    for one, other in zip(grads(y, leaves), grads(expected, leaves), strict=True):
        assert_same(one, other, "gradient", 1e-6)


def per_channel(t):
    return t.view(1, -1, 1, 1)


class TestFilterResponse:
    @every_backend
    @pytest.mark.parametrize("threshold", [True, False])
    def test_parity_with_the_formula_of_timm(self, backend, threshold):
        """timm's eps is 1e-5."""

        def formula(x, layer):
            y = x * (x.square().mean((2, 3), keepdim=True) + 1e-5).rsqrt()
            y = y * per_channel(layer.weight) + per_channel(layer.bias)
            return torch.maximum(y, per_channel(layer.tau)) if threshold else y

        layer = randomized(ns.FilterResponseNorm(12, eps=1e-5, threshold=threshold, dtype=torch.float64))
        with ns.backend(backend):
            assert_parity(layer, formula, example(SHAPE))

    def test_parameters(self):
        assert list(ns.FilterResponseNorm(12).state_dict()) == ["weight", "bias", "tau"]
        assert list(ns.FilterResponseNorm(12, threshold=False).state_dict()) == ["weight", "bias"]
        layer = ns.FilterResponseNorm(12, learn_eps=True)
        assert layer.learned_eps.shape == ()
        assert layer.learned_eps.item() == pytest.approx(1e-4)
        layer = randomized(layer)
        layer.reset_parameters()
        fresh = ns.FilterResponseNorm(12, learn_eps=True).state_dict()
        assert all(torch.equal(fresh[k], v) for k, v in layer.state_dict().items())

    @every_backend
    def test_the_threshold(self, backend):
        layer, x = ns.FilterResponseNorm(12, dtype=torch.float64), example(SHAPE).requires_grad_()
        with ns.backend(backend):
            y = layer(x)
            assert_same(y, ns.FilterResponseNorm(12, threshold=False, dtype=torch.float64)(x).relu(), "at the start, a ReLU")
            below = (y == 0).sum((0, 2, 3)).double()
            assert_same(torch.autograd.grad(y.sum(), layer.tau)[0], below, "gradient of tau: what lies below")

    def test_centered_cells_are_instance_norm(self):
        x = example(SHAPE)
        x = x - x.mean((2, 3), keepdim=True)
        layer = ns.FilterResponseNorm(12, threshold=False, eps=1e-5, dtype=torch.float64)
        assert_same(layer(x), ns.InstanceNorm(12, dtype=torch.float64)(x))

    def test_one_position(self):
        x = example((4, 12))
        with pytest.warns(UserWarning, match="got 1, so only the sign of x is left; say learn_eps=True"):
            y = ns.FilterResponseNorm(12, threshold=False, dtype=torch.float64)(x)
        assert_same(y.abs(), torch.ones_like(y), tolerance=1e-3)
        layer = ns.FilterResponseNorm(12, threshold=False, learn_eps=True, dtype=torch.float64)
        with torch.no_grad():
            layer.learned_eps.fill_(-3.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(layer(x), x / (x.square() + 3 + 1e-6).sqrt())


class TestEvo:
    @every_backend
    @pytest.mark.parametrize("groups", [1, 4, 6])
    def test_parity_with_the_formula_of_timm_s0(self, backend, groups):
        def formula(x, layer):
            grouped = x.reshape(4, groups, 12 // groups, 5, 6)
            std = (grouped.var((2, 3, 4), unbiased=False, keepdim=True) + 1e-5).sqrt().expand(grouped.shape).reshape(x.shape)
            return x * (x * per_channel(layer.v)).sigmoid() / std * per_channel(layer.weight) + per_channel(layer.bias)

        layer = randomized(ns.EvoNormS0(12, num_groups=groups, dtype=torch.float64))
        with ns.backend(backend):
            assert_parity(layer, formula, example(SHAPE))

    @every_backend
    @pytest.mark.parametrize("training", [True, False])
    def test_parity_with_the_formula_of_timm_b0(self, backend, training):
        """timm's eps is 1e-3; its running variance is unbiased."""
        running = []

        def formula(x, layer):
            var = x.var((0, 2, 3), unbiased=False)
            running.append(0.9 * old + 0.1 * x.detach().var((0, 2, 3)) if training else old)
            left = ((var if training else old) + 1e-3).sqrt().view(1, -1, 1, 1).expand_as(x)
            right = x * per_channel(layer.v) + (x.var((2, 3), unbiased=False, keepdim=True) + 1e-3).sqrt()
            return x / left.max(right) * per_channel(layer.weight) + per_channel(layer.bias)

        layer = randomized(ns.EvoNormB0(12, eps=1e-3, dtype=torch.float64)).train(training)
        layer.running_var.add_(torch.rand(12, dtype=torch.float64))
        old = layer.running_var.clone()
        with ns.backend(backend):
            assert_parity(layer, formula, example(SHAPE))
        assert_same(layer.running_var, running[0], "running variance", 1e-12)

    def test_state_of_timm_loads_but_for_what_only_we_keep(self):
        state = {"weight": torch.ones(12), "bias": torch.ones(12), "v": torch.ones(12), "running_var": torch.ones(12)}
        missing = ns.EvoNormB0(12).load_state_dict(state, strict=False)
        assert missing.missing_keys == ["running_mean"]  # the counter of so old a state starts anew
        assert not missing.unexpected_keys
        del state["running_var"]
        ns.EvoNormS0(12).load_state_dict(state, strict=True)

    def test_without_slope_only_deviations_are_left(self):
        x = example(SHAPE)
        for name in ("evo_s0", "evo_b0"):
            layer = ns.make(name, 12, dtype=torch.float64, eps=1e-5)
            torch.nn.init.zeros_(layer.v)
            if name == "evo_s0":
                deviation = (x.view(4, 6, -1).var(2, unbiased=False) + 1e-5).sqrt().repeat_interleave(2, 1)[..., None, None] * 2
            else:
                deviation = torch.maximum(
                    (x.var((0, 2, 3), unbiased=False) + 1e-5).sqrt().view(1, -1, 1, 1),
                    (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt(),
                )
            assert_same(layer(x), x / deviation)

    def test_evaluation_of_b0_does_not_read_the_running_mean(self):
        layer, x = ns.EvoNormB0(12).eval(), example(SHAPE, torch.float32)
        before = layer(x)
        layer.running_mean.fill_(100)
        assert torch.equal(layer(x), before)
        layer.running_var.fill_(100)
        assert not torch.equal(layer(x), before)

    def test_policies_of_b0(self):
        x = example((1, 12), torch.float32)
        with pytest.raises(ns.TooFewValuesError, match="EvoNormS0"):
            ns.EvoNormB0(12)(x)
        layer = ns.EvoNormB0(12, on_single="running")
        assert_same(layer(x), copy.deepcopy(layer).eval()(x))
        layer = ns.EvoNormB0(12, frozen=True)
        assert_same(layer(example(SHAPE, torch.float32)), layer.eval()(example(SHAPE, torch.float32)))
        assert layer.num_batches_tracked == 0

    def test_groups(self):
        assert ns.EvoNormS0(64).num_groups == 32
        with pytest.raises(ns.OptionError, match="EvoNormS0 expects a number of groups that divides"):
            ns.EvoNormS0(30, num_groups=4)
        with pytest.warns(UserWarning, match="its variance is zero"):
            ns.EvoNormS0(12, num_groups=12)(torch.randn(4, 12))


class TestDynamicTanh:
    def test_formula_and_start(self):
        layer, x = ns.DynamicTanh(12, dtype=torch.float64), example(SHAPE)
        assert_same(layer(x), torch.tanh(0.5 * x), tolerance=1e-14)
        assert layer.alpha.shape == ()
        assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {"weight": (12,), "bias": (12,), "alpha": ()}
        assert_same(ns.DynamicTanh(12, init_alpha=2.0, dtype=torch.float64)(x), torch.tanh(2 * x))

    def test_samples_are_independent_elements_too(self):
        layer, x = ns.DynamicTanh(12), example(SHAPE, torch.float32)
        assert torch.equal(layer(x)[:, :, 2:, 1:], layer(x[:, :, 2:, 1:].contiguous()))

    def test_bad_option(self):
        for wrong in (0.0, -1.0):
            with pytest.raises(ns.OptionError, match="init_alpha, a slope, above zero"):
                ns.DynamicTanh(12, init_alpha=wrong)


class TestLocalResponse:
    def test_the_paper_takes_a_sum(self):
        x = example(SHAPE)
        square = F.pad(x.square(), (0, 0, 0, 0, 2, 2))
        summed = torch.stack([square[:, c : c + 5].sum(1) for c in range(12)], 1)
        expected = x / (2 + 1e-2 * summed) ** 0.75
        assert_same(ns.LocalResponseNorm(12, size=5, alpha=5e-2, beta=0.75, k=2.0)(x), expected)

    def test_without_positions(self):
        layer, x = ns.LocalResponseNorm(12, alpha=1.0), example((4, 12))
        assert_same(layer(x), layer(x.view(4, 12, 1, 1)).view(4, 12))

    def test_has_nothing_to_learn(self):
        assert not ns.LocalResponseNorm(12).state_dict()

    def test_bad_options(self):
        for wrong in ({"size": 0}, {"size": 2.5}):
            with pytest.raises(ns.OptionError, match="size, a number of channels"):
                ns.LocalResponseNorm(12, **wrong)
        for wrong in ({"k": 0.0}, {"alpha": -1.0}):
            with pytest.raises(ns.OptionError, match="k above zero"):
                ns.LocalResponseNorm(12, **wrong)


class TestPosition:
    @pytest.mark.parametrize("backend", [*BACKENDS, "torch"])
    @pytest.mark.parametrize("shape", [SHAPE, (4, 12), (4, 12, 7), (2, 12, 3, 4, 5), (6, 12, 64, 64)], ids=str)
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("centered", [False, True])
    def test_equals_the_norm_of_torch_over_the_last_dimension(self, backend, shape, channels_last, centered):
        """The largest shape is past the size from which our kernels do the work."""
        layer = randomized(ns.PositionNorm(12, centered=centered, dtype=torch.float64))
        twin = layer.torch_twin(0).double()
        twin.load_state_dict(layer.state_dict(), strict=True)
        x = example(shape)
        if channels_last and x.dim() > 2:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        x.requires_grad_()
        with ns.backend(backend):
            y = layer(x)
            found = grads(y, [x, *layer.parameters()])
        assert y.stride() == x.stride()
        expected = twin(x.movedim(1, -1)).movedim(-1, 1)
        assert_same(y, expected, "output")
        for one, other in zip(found, grads(expected, [x, *twin.parameters()]), strict=True):
            assert_same(one, other, "gradient")

    @every_backend
    def test_moments_at_every_position(self, backend):
        with ns.backend(backend):
            y = ns.PositionNorm(12, dtype=torch.float64)(example(SHAPE) * 50)
        assert_same(y.mean(1), torch.zeros(4, 5, 6))
        assert_same(y.var(1, unbiased=False), torch.ones(4, 5, 6), tolerance=1e-6)

    @every_backend
    def test_statistics_bring_x_back(self, backend):
        layer, x = ns.PositionNorm(12, affine=False, dtype=torch.float64), example(SHAPE).requires_grad_()
        with ns.backend(backend):
            mean, std = layer.statistics(x)
            assert mean.shape == std.shape == (4, 1, 5, 6)
            assert_same(layer(x) * std + mean, x)
            expected = (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            assert_same(torch.autograd.grad(std.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])

    def test_pixel_norm(self):
        x = example(SHAPE)
        layer = ns.PositionNorm(12, centered=False, affine=False, eps=1e-8, dtype=torch.float64)
        assert_same(layer(x), x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt())
        assert list(ns.PositionNorm(12, centered=False).state_dict()) == ["weight"]

    def test_tokens_are_layer_norm(self):
        tokens = torch.randn(4, 7, 12)
        assert_same(ns.PositionNorm(12)(tokens.transpose(1, 2)).transpose(1, 2), ns.LayerNorm((12,))(tokens))

    def test_parameters_wider_than_the_input(self):
        x = example(SHAPE, torch.bfloat16)
        with ns.backend("torch"):
            y = ns.PositionNorm(12)(x)
        assert y.dtype == torch.bfloat16
        assert_same(y, ns.PositionNorm(12)(x.float()), tolerance=3e-2)

    def test_a_mask_of_channels(self):
        """Channels that do not count are in no statistic of their position."""
        layer, x = ns.PositionNorm(12, dtype=torch.float64), example(SHAPE)
        mask = torch.ones(SHAPE, dtype=torch.bool)
        mask[1, 8:] = False
        y = layer(x.masked_fill(~mask, torch.nan), mask=mask)
        assert_same(y[1, :8], ns.PositionNorm(8, dtype=torch.float64)(x[1:2, :8])[0])
        assert_same(y[0], layer(x)[0])
        assert (y[1, 8:] == 0).all()

    def test_one_channel(self):
        with pytest.warns(UserWarning, match="more than one element per position.*InstanceNorm"):
            ns.PositionNorm(1)(torch.randn(4, 1, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ns.PositionNorm(1, centered=False)(torch.randn(4, 1, 3))


FAMILY = ["filter_response", "evo_s0", "evo_b0", "position", "conditional", "conditional:statistics=condition"]


class TestMasks:
    @every_backend
    @pytest.mark.parametrize("name", [*FAMILY, "dynamic_tanh", "local_response"])
    @pytest.mark.parametrize("training", [True, False])
    def test_padding_counts_for_nothing(self, name, backend, training):
        x = example((4, 12, 9))
        padded = torch.cat([x, torch.full((4, 12, 3), torch.nan, dtype=x.dtype)], 2).requires_grad_()
        layer = randomized(ns.make(name, 12, dtype=torch.float64)).train(training)
        other = copy.deepcopy(layer)
        extra = layer.example_inputs(x)
        with ns.backend(backend):
            y = layer(padded, **extra, lengths=torch.full((4,), 9))
            expected = other(x.requires_grad_(), **extra)
            found, wanted = (grads(t[..., :9], [v])[0] for t, v in ((y, padded), (expected, x)))
        assert_same(y[..., :9], expected, "output")
        assert (y[..., 9:] == 0).all()
        assert_same(found[..., :9], wanted, "gradient")
        assert (found[..., 9:] == 0).all()
        for key, value in other.state_dict().items():
            assert_same(layer.state_dict()[key].double(), value.double(), key)

    @pytest.mark.parametrize("name", [*FAMILY, "dynamic_tanh", "local_response"])
    def test_a_sample_of_nothing_but_padding(self, name):
        layer, x = ns.make(name, 12), example((4, 12, 9), torch.float32).requires_grad_()
        y = layer(x, **layer.example_inputs(x), lengths=torch.tensor([9, 0, 3, 5]))
        y.square().sum().backward()
        assert (y[1] == 0).all()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()


class TestConditional:
    @every_backend
    @pytest.mark.parametrize("statistics", ["batch", "condition"])
    def test_one_condition_is_batch_norm(self, backend, statistics):
        layer = ns.ConditionalNorm(12, num_conditions=1, statistics=statistics, dtype=torch.float64)
        other = randomized(ns.BatchNorm(12, dtype=torch.float64))
        layer.load_state_dict({k: v.view(getattr(layer, k).shape) for k, v in other.state_dict().items()})
        x, ids = example(SHAPE).requires_grad_(), torch.zeros(4, dtype=torch.long)
        with ns.backend(backend):
            for _ in range(2):
                y, expected = layer(x, ids), other(x)
                assert_same(y, expected, "output")
                assert_same(grads(y, [x])[0], grads(expected, [x])[0], "gradient")
            for key, value in other.state_dict().items():
                assert_same(layer.state_dict()[key].flatten().double(), value.flatten().double(), key)
            assert_same(layer.eval()(x, ids), other.eval()(x), "evaluation")

    @every_backend
    def test_each_condition_is_a_batch_norm_of_its_own(self, backend):
        layer = randomized(ns.ConditionalNorm(12, num_conditions=3, statistics="condition", dtype=torch.float64))
        ids = torch.tensor([2, 0, 2, 0])
        with ns.backend(backend):
            y = layer(example(SHAPE), ids)
        for k in (0, 2):
            alone = ns.BatchNorm(12, dtype=torch.float64)
            with torch.no_grad():
                alone.weight.copy_(layer.weight[k])
                alone.bias.copy_(layer.bias[k])
            assert_same(y[ids == k], alone(example(SHAPE)[ids == k]), f"condition {k}")
            assert_same(layer.running_mean[k], alone.running_mean)
            assert_same(layer.running_var[k], alone.running_var)
        assert layer.num_batches_tracked.tolist() == [1, 0, 1]
        assert (layer.running_mean[1] == 0).all()
        assert (layer.running_var[1] == 1).all()

    def test_swapping_ids_swaps_statistics(self):
        one, other = (ns.ConditionalNorm(12, statistics="condition", dtype=torch.float64) for _ in range(2))
        x, ids = example(SHAPE), torch.tensor([0, 1, 1, 0])
        assert_same(one(x, ids), other(x, 1 - ids))
        assert_same(one.running_mean, other.running_mean.flip(0))
        assert_same(one.running_var, other.running_var.flip(0))
        assert not torch.allclose(one.running_mean, other.running_mean)

    def test_conditions_are_independent(self):
        x, ids = example(SHAPE), torch.tensor([0, 1, 1, 0])
        mates = torch.where((ids == 1).view(-1, 1, 1, 1), x * 3 + 5, x)
        layer = ns.ConditionalNorm(12, statistics="condition", dtype=torch.float64)
        assert torch.equal(layer(x, ids)[ids == 0], layer(mates, ids)[ids == 0])
        layer = ns.ConditionalNorm(12, dtype=torch.float64)
        assert not torch.allclose(layer(x, ids)[ids == 0], layer(mates, ids)[ids == 0])

    @every_backend
    @pytest.mark.parametrize("masked", [False, True])
    def test_a_single_element_takes_the_running_statistics_and_moves_none(self, backend, masked):
        layer = ns.ConditionalNorm(12, statistics="condition", dtype=torch.float64)
        layer.running_mean.add_(torch.rand(2, 12, dtype=torch.float64))
        before = copy.deepcopy(layer)
        ids = torch.tensor([0, 0, 1, 0])
        x = example((4, 12, 3) if masked else (4, 12))
        lengths = torch.tensor([3, 2, 1, 3]) if masked else None
        with ns.backend(backend):
            y = layer(x, ids, lengths=lengths)
            assert_same(y[2], before.eval()(x, ids, lengths=lengths)[2], "output")
        assert torch.equal(layer.running_mean[1], before.running_mean[1])
        assert torch.equal(layer.running_var[1], before.running_var[1])
        assert layer.num_batches_tracked.tolist() == [1, 0]

    def test_the_plain_average_is_one_of_each_condition(self):
        layer = ns.ConditionalNorm(12, statistics="condition", momentum=None, dtype=torch.float64)
        batches = [example((3, 12, 5), seed=seed) for seed in range(4)]
        for x, k in zip(batches, (0, 0, 1, 0), strict=True):
            layer(x, torch.full((3,), k))
        means = torch.stack([x.mean((0, 2)) for x in batches])
        assert_same(layer.running_mean, torch.stack([means[[0, 1, 3]].mean(0), means[2]]))

    def test_micro_batches_make_one_update(self):
        x, ids = example((6, 12, 5)), torch.tensor([0, 1, 1, 0, 0, 1])
        whole, parts = (ns.ConditionalNorm(12, statistics="condition", accumulate=k, dtype=torch.float64) for k in (1, 2))
        whole(x, ids)
        for half in (slice(0, 3), slice(3, 6)):
            parts(x[half], ids[half])
        for key, value in whole.state_dict().items():
            assert_same(parts.state_dict()[key].double(), value.double(), key)

    def test_frozen_and_skipped(self):
        x, ids = example(SHAPE, torch.float32), torch.tensor([0, 1, 1, 0])
        frozen = ns.ConditionalNorm(12, statistics="condition", frozen=True)
        assert_same(frozen(x, ids), frozen.eval()(x, ids))
        skips = ns.ConditionalNorm(12, statistics="condition", nonfinite="skip")
        x[0, 0, 0, 0] = torch.inf
        skips(x, ids)
        assert (skips.running_mean == 0).all()
        assert skips.num_batches_skipped == 1

    def test_film_starts_as_batch_norm_and_is_a_linear_map_of_the_condition(self):
        bn = randomized(ns.BatchNorm(12, dtype=torch.float64))
        layer = ns.ConditionalNorm(12, condition_features=3, dtype=torch.float64)
        missing = layer.load_state_dict(bn.state_dict(), strict=False)
        assert set(missing.missing_keys) == {"weight_map", "bias_map"}
        x, condition = example(SHAPE), torch.randn(4, 3, dtype=torch.float64)
        assert_same(layer(x, condition), bn(x))
        randomized(layer)
        standard = ns.BatchNorm(12, affine=False, dtype=torch.float64)(x)
        weight = layer.weight + condition @ layer.weight_map.T
        bias = layer.bias + condition @ layer.bias_map.T
        assert_same(layer(x, condition), standard * weight[..., None, None] + bias[..., None, None])

    def test_starts_as_batch_norm(self):
        x = example(SHAPE, torch.float32)
        assert_same(ns.ConditionalNorm(12, num_conditions=5)(x, torch.tensor([4, 0, 2, 4])), ns.BatchNorm(12)(x))

    @pytest.mark.parametrize(
        ("options", "condition", "sentence"),
        [
            ({}, torch.tensor([0, 1, 2, 0]), r"4 integers from 0 to 1: got 2; build"),
            ({}, torch.tensor([0, -1, 1, 0]), r"from 0 to 1: got -1"),
            ({}, torch.tensor([0, 1, 1]), r"got torch.int64 of shape \(3,\)"),
            ({}, torch.tensor(0), r"got torch.int64 of shape \(\)"),
            ({}, torch.zeros(4), r"got torch.float32 of shape \(4,\)"),
            ({}, torch.zeros(4, dtype=torch.bool), "got torch.bool"),
            ({"condition_features": 3}, torch.zeros(4, 2), r"floating-point numbers \(4, 3\): got"),
            ({"condition_features": 3}, torch.zeros(4, 3, dtype=torch.long), "floating-point numbers"),
        ],
    )
    def test_bad_condition(self, options, condition, sentence):
        layer = ns.ConditionalNorm(12, **options)
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(ns.InputError, match=sentence) as raised:
            layer(torch.randn(4, 12, 5), condition)
        assert "\n" not in str(raised.value)
        assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"num_conditions": 2, "condition_features": 2}, "either num_conditions"),
            ({"num_conditions": 0}, "num_conditions as a positive integer"),
            ({"condition_features": 1.5}, "condition_features as a positive integer"),
            ({"condition_features": 2, "statistics": "condition"}, "expects num_conditions with statistics"),
            ({"statistics": "sample"}, "one of 'batch', 'condition'"),
            ({"affine": False}, "that is BatchNorm"),
        ],
    )
    def test_bad_options(self, options, sentence):
        with pytest.raises(ns.OptionError, match=sentence) as raised:
            ns.ConditionalNorm(12, **options)
        assert "\n" not in str(raised.value)


def single_elements(rank, split):
    """Two ranks of samples without positions: condition 1 has one element on each, condition 2 one in all."""
    x, ids, own = example((6, 12)), torch.tensor([0, 1, 0, 0, 1, 2]), slice(sum(split[:rank]), sum(split[: rank + 1]))
    layer = ns.ConditionalNorm(12, num_conditions=4, statistics="condition", dtype=torch.float64)
    if len(split) > 1:
        ns.synchronize(layer)
    x = x[own].requires_grad_()
    y = layer(x, ids[own])
    return y.detach(), torch.autograd.grad(y, x, example((6, 12), seed=4)[own])[0], dict(layer.named_buffers())


def test_conditions_of_a_single_element_over_two_ranks():
    y, dx, buffers = single_elements(0, (6,))
    ranks = run_ranks(2, single_elements, (3, 3))
    assert_same(torch.cat([rank[0] for rank in ranks]), y, "output")
    assert_same(torch.cat([rank[1] for rank in ranks]), dx, "gradient")
    for rank in ranks:
        for key, buffer in buffers.items():
            assert_same(rank[2][key].double(), buffer.double(), key)
    assert buffers["num_batches_tracked"].tolist() == [1, 1, 0, 0]
