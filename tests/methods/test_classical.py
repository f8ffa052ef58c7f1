"""What the battery does not know: the limits in which one method equals another, torch's conventions, and each one's own errors."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, example

import normsmith as ns

SHAPE = (4, 12, 5, 6)


def randomized(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    return layer


def paired(one, other):
    """Both layers with the same weights."""
    other.load_state_dict(randomized(one).state_dict(), strict=False)
    return one, other


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
class TestEquivalences:
    """Section 24 of the methods' specification: each limit pins two methods at once."""

    def test_group_norm_with_one_channel_a_group_is_instance_norm(self, backend):
        one, other = paired(ns.GroupNorm(12, num_groups=12), ns.InstanceNorm(12, affine=True))
        x = example(SHAPE, torch.float32)
        with ns.backend(backend):
            assert_same(one(x), other(x))

    def test_group_norm_with_one_group_is_layer_norm(self, backend):
        one, other = paired(ns.GroupNorm(12, num_groups=1), ns.LayerNorm(12))
        x = example(SHAPE, torch.float32)
        with ns.backend(backend):
            assert_same(one(x), other(x))

    def test_batch_norm_of_one_sample_is_instance_norm(self, backend):
        one, other = paired(ns.BatchNorm(12), ns.InstanceNorm(12, affine=True))
        x = example((1, *SHAPE[1:]), torch.float32)
        with ns.backend(backend):
            assert_same(one(x), other(x))

    def test_adain_with_a_standard_style_is_instance_norm(self, backend):
        x = example(SHAPE)
        with ns.backend(backend):
            y = ns.adain(x, style_mean=torch.zeros(12, dtype=x.dtype), style_std=torch.ones(12, dtype=x.dtype))
            assert_same(y, ns.InstanceNorm(12, dtype=x.dtype)(x))

    def test_layer_norm_without_affine_equals_that_of_torch(self, backend):
        x = example(SHAPE)
        with ns.backend(backend):
            assert_same(ns.LayerNorm(12, affine=False)(x), F.layer_norm(x, x.shape[1:]))

    def test_centered_rms_norm_is_layer_norm(self, backend):
        x = example(SHAPE)
        x = x - x.mean((1, 2, 3), keepdim=True)
        with ns.backend(backend):
            assert_same(ns.RMSNorm(12, eps=1e-5, dtype=x.dtype)(x), ns.LayerNorm(12, dtype=x.dtype)(x))


class TestBatch:
    @pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
    def test_output_has_the_moments_of_the_affine_map(self, backend):
        layer, x = randomized(ns.BatchNorm(12, dtype=torch.float64)), example(SHAPE)
        with ns.backend(backend):
            y = layer(x)
        var = x.var((0, 2, 3), unbiased=False)
        assert_same(y.mean((0, 2, 3)), layer.bias)
        assert_same(y.var((0, 2, 3), unbiased=False), layer.weight**2 * var / (var + layer.eps))

    @pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
    def test_the_gradient_of_a_sum_is_zero(self, backend):
        x = example(SHAPE).requires_grad_()
        with ns.backend(backend):
            ns.BatchNorm(12, dtype=torch.float64)(x).sum().backward()
        assert x.grad.abs().max() < 1e-12

    @pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
    @pytest.mark.parametrize("backend", ["auto", "torch", "cpu", "reference"])
    def test_running_statistics_over_several_batches_are_those_of_torch(self, momentum, backend):
        ours, torchs = ns.BatchNorm(12, momentum=momentum).double(), torch.nn.BatchNorm2d(12, momentum=momentum).double()
        for seed, samples in enumerate((4, 2, 7)):
            x = example((samples, *SHAPE[1:]), seed=seed)
            with ns.backend(backend):
                assert_same(ours(x), torchs(x))
        for name, value in torchs.state_dict().items():
            assert_same(ours.state_dict()[name].double(), value.double(), name)
        assert_same(ours.eval()(x), torchs.eval()(x))

    def test_one_value_per_channel(self):
        layer = ns.BatchNorm(12)
        before = copy.deepcopy(layer.state_dict())
        for shape in ((1, 12), (1, 12, 1, 1)):
            with pytest.raises(ns.TooFewValuesError, match=r"more than 1 value per channel when training.*larger batch"):
                layer(torch.randn(shape))
        assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
        layer(torch.randn(1, 12, 2))
        layer.eval()(torch.randn(1, 12))

    def test_checkpoints_from_before_the_counter_load(self):
        old = torch.nn.BatchNorm2d(12).state_dict()
        del old["num_batches_tracked"]
        old._metadata[""]["version"] = 1
        ns.BatchNorm(12).load_state_dict(old, strict=True)
        new = torch.nn.BatchNorm2d(12).state_dict()
        del new["num_batches_tracked"]
        with pytest.raises(RuntimeError, match="num_batches_tracked"):
            ns.BatchNorm(12).load_state_dict(new, strict=True)

    def test_reset(self):
        layer = randomized(ns.BatchNorm(12))
        layer(torch.randn(8, 12))
        layer.reset_running_stats()
        layer.reset_parameters()
        fresh = ns.BatchNorm(12).state_dict()
        assert all(torch.equal(fresh[k], v) for k, v in layer.state_dict().items())


class TestInstance:
    def test_one_position(self):
        for layer in (ns.InstanceNorm(12), ns.InstanceNorm(12).eval()):
            with pytest.raises(ns.TooFewValuesError, match="LayerNorm"):
                layer(torch.randn(4, 12, 1, 1))

    def test_memory_format_and_numbers_in_channels_last(self):
        x = example(SHAPE, torch.float32).contiguous(memory_format=torch.channels_last)
        y = ns.InstanceNorm(12)(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_same(y, F.instance_norm(x))


class TestGroup:
    @pytest.mark.parametrize(
        ("channels", "groups"), [(64, 32), (256, 32), (48, 24), (30, 15), (16, 8), (37, 1), (2, 1), (1, 1), (6, 3)]
    )
    def test_the_automatic_rule(self, channels, groups):
        assert ns.GroupNorm(channels).num_groups == groups

    def test_groups_that_do_not_divide(self):
        with pytest.raises(ns.OptionError, match=r"got 30 channels, num_groups=4; try num_groups=3 or 5"):
            ns.GroupNorm(30, num_groups=4)
        for wrong in (0, -1, 31):
            with pytest.raises(ns.OptionError, match="divides the channels"):
                ns.GroupNorm(30, num_groups=wrong)

    def test_a_group_of_a_single_number_warns(self):
        with pytest.warns(UserWarning, match="the output is the bias whatever the input; use fewer groups"):
            y = ns.GroupNorm(12, num_groups=12)(torch.randn(4, 12))
        assert_same(y, torch.zeros(4, 12))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ns.GroupNorm(12)(torch.randn(4, 12))

    @pytest.mark.parametrize("layer", [ns.GroupNorm(64), ns.LayerNorm(64), ns.InstanceNorm(64)], ids=repr)
    @pytest.mark.parametrize("shape", [(8, 64, 8, 8), (8, 64, 33, 33)], ids=str)
    def test_accurate_in_channels_last_far_from_zero(self, layer, shape):
        """torch's own operator is off by 1 and more here."""
        x = (torch.randn(shape, dtype=torch.float64) + 1000).float().contiguous(memory_format=torch.channels_last)
        expected = copy.deepcopy(layer).double()(x.double())
        assert (layer(x).double() - expected).abs().max() < 3e-4


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["columns", "sliced columns", "three dimensions"])
def test_a_small_layer_norm_in_columns(kind, affine):
    shape, like = (
        ((4, 12, 2, 3, 5), torch.channels_last_3d) if kind == "three dimensions" else ((4, 12, 3, 5), torch.channels_last)
    )
    x, dy = (example((8, *shape[1:]), torch.float32, seed=seed).contiguous(memory_format=like) for seed in (0, 9))
    x, dy = (t[:, :6] if kind == "sliced columns" else t[:4] for t in (x, dy))
    layer = randomized(ns.LayerNorm(x.shape[1], affine=affine))
    wide = copy.deepcopy(layer).double()
    results = []
    for made, leaf in ((layer, x.requires_grad_()), (wide, x.detach().double().contiguous().requires_grad_())):
        y = made(leaf)
        results.append([y, *torch.autograd.grad(y, (leaf, *made.parameters()), dy.to(y.dtype))])
    assert results[0][0].is_contiguous(memory_format=like)
    for found, expected in zip(*results, strict=True):
        assert_same(found, expected)


class TestTrailingShapes:
    """LayerNorm and RMSNorm with a sequence of sizes are torch's layers."""

    @pytest.mark.parametrize("shape", [(12,), (5, 6), [3, 5, 6]], ids=str)
    @pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 1e-3}], ids=str)
    @pytest.mark.parametrize("name", ["layer", "rms"])
    def test_equal_torch(self, name, shape, options):
        layer = randomized(ns.make(name, shape, dtype=torch.float64, **options))
        twin = layer.torch_twin().double()
        twin.load_state_dict(layer.state_dict(), strict=True)
        x = example((4, 7, *shape))
        assert_same(layer(x), twin(x))
        assert str(tuple(shape)) in repr(layer)

    def test_without_bias(self):
        layer = ns.LayerNorm((12,), bias=False)
        assert list(layer.state_dict()) == ["weight"]
        layer.torch_twin().load_state_dict(layer.state_dict(), strict=True)

    def test_wrong_trailing_shape(self):
        with pytest.raises(ns.InputError, match=r"ends in the dimensions \(12,\).*num_features as an integer"):
            ns.LayerNorm((12,))(torch.randn(4, 12, 5))
        for wrong in ((), (0,), (3, -1), (2.0,)):
            with pytest.raises(ns.OptionError, match="or a sequence"):
                ns.RMSNorm(wrong)

    def test_others_take_no_shape(self):
        with pytest.raises(ns.OptionError, match="positive integer: got"):
            ns.BatchNorm((3, 4))

    def test_a_sample_of_a_single_number_warns(self):
        with pytest.warns(UserWarning, match="more than one element per sample"):
            ns.LayerNorm(1)(torch.randn(4, 1))


class TestAdaIN:
    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_of_itself_is_itself(self, backend):
        x = example(SHAPE)
        with ns.backend(backend):
            assert_same(ns.adain(x, x), x, tolerance=1e-14)

    def test_takes_mean_and_deviation_of_the_style(self):
        x, style = example(SHAPE), example((1, 12, 9, 2), seed=5) * 3
        y = ns.adain(x, style)
        assert_same(y.mean((2, 3)), style.mean((2, 3)).expand(4, 12))
        expected = (style.var((2, 3), unbiased=False) + 1e-5) * (
            x.var((2, 3), unbiased=False) / (x.var((2, 3), unbiased=False) + 1e-5)
        )
        assert_same(y.var((2, 3), unbiased=False), expected)

    def test_strength(self):
        x, style = example(SHAPE), example(SHAPE, seed=5)
        assert_same(ns.adain(x, style, alpha=0), x)
        assert_same(ns.adain(x, style, alpha=0.3), 0.3 * ns.adain(x, style) + 0.7 * x)

    def test_several_styles_are_a_convex_combination_of_their_outputs(self):
        x, styles = example(SHAPE), [example((1, 12, 3, 3), seed=5), example((4, 12, 8, 2), seed=6) * 2]
        expected = 0.25 * ns.adain(x, styles[0]) + 0.75 * ns.adain(x, styles[1])
        assert_same(ns.adain(x, styles, weights=[0.25, 0.75]), expected)
        assert_same(ns.adain(x, styles), ns.adain(x, styles, weights=torch.tensor([0.5, 0.5])))
        assert_same(ns.AdaIN(12)(x, styles, weights=[0.25, 0.75]), expected)

    def test_parameter_form_and_its_gradients(self):
        x, style = example(SHAPE).requires_grad_(), example(SHAPE, seed=5).requires_grad_()
        mean, std = style.mean((2, 3)), (style.var((2, 3), unbiased=False) + 1e-5).sqrt()
        by_style = torch.autograd.grad(ns.adain(x, style).square().sum(), (x, style))
        by_value = torch.autograd.grad(ns.adain(x, style_mean=mean, style_std=std).square().sum(), (x, style))
        for one, other in zip(by_style, by_value, strict=True):
            assert_same(one, other)

    @pytest.mark.parametrize("unbiased", [False, True])
    def test_one_position_gives_the_mean_of_the_style(self, unbiased):
        style = example((4, 12, 1), seed=5)
        assert_same(ns.adain(example((4, 12, 1)), style, unbiased=unbiased), style)

    def test_a_style_computed_from_the_content(self):
        x = example((2, 3, 4)).requires_grad_()
        for backend in ("cpu", "reference"):
            with ns.backend(backend):
                assert torch.autograd.gradcheck(lambda x: ns.adain(x, (x * 2).sin()), (x,))
                assert torch.autograd.gradgradcheck(lambda x: ns.adain(x, (x * 2).sin()), (x,))

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({}, "expects a style, or both"),
            ({"style_mean": torch.zeros(12)}, "expects a style, or both"),
            ({"style": torch.ones(4, 12, 3), "style_mean": torch.zeros(12)}, "either a style, or"),
            ({"style": torch.ones(4, 11, 3)}, "style of 12 channels"),
            ({"style": torch.ones(3, 12, 3)}, "of batch 1 or 4"),
            ({"style": torch.ones(4, 12, 3), "alpha": 1.5}, "from 0 .none. to 1"),
            ({"style": [torch.ones(4, 12, 3)] * 2, "weights": [0.5]}, "one weight per style"),
            ({"style": [torch.ones(4, 12, 3)] * 2, "weights": [0.5, 0.6]}, "their sum 1"),
            ({"style": [torch.ones(4, 12, 3)] * 2, "weights": [-1.0, 2.0]}, "none negative"),
            ({"style": []}, "one weight per style"),
            ({"style_mean": torch.zeros(12), "style_std": torch.ones(12), "weights": [1.0]}, "only with a sequence"),
        ],
    )
    def test_bad_input(self, arguments, sentence):
        with pytest.raises(ValueError, match=sentence) as raised:
            ns.adain(torch.randn(4, 12, 5), **arguments)
        assert "\n" not in str(raised.value)


def test_integer_and_complex_inputs_are_refused():
    for dtype in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(ns.InputError, match="floating-point"):
            ns.BatchNorm(3)(torch.ones(2, 3, 4, dtype=dtype))


@pytest.mark.parametrize("layer", [ns.BatchNorm(12, on_single="batch"), ns.InstanceNorm(12, on_single="batch")], ids=str)
def test_a_statistic_of_a_single_value_is_done_if_asked_for(layer):
    for backend in ("auto", "torch", "reference"):
        with ns.backend(backend):
            assert layer(torch.randn(1, 12, 1)).abs().max() == 0
