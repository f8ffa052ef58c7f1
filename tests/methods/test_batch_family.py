"""Filtered, IBN, ghost, renorm, frozen, noisy and batch-instance norm: the limits in which they equal another, and their own promises."""

import copy
import math

import pytest
import torch
from helpers import assert_same, example, oracle_of

import normsmith as ns
from normsmith.methods.filtered import gaussian_factor

SHAPE = (6, 12, 5, 6)
BOTH = pytest.mark.parametrize("backend", ["cpu", "reference"])
F64 = torch.float64


def paired(one, other):
    """Both layers with the same weights and buffers, away from ones and zeros."""
    with torch.no_grad():
        for name, tensor in one.state_dict().items():
            if tensor.is_floating_point() and name != "rho":
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            if name in other.state_dict() and other.state_dict()[name].shape == tensor.shape:
                other.state_dict()[name].copy_(tensor)
    return one, other


def assert_equal_layers(one, other, x, backend="cpu", skip=()):
    """The same outputs, gradients and buffers in two steps of training, the same output in evaluation."""
    for seed in range(2):
        dy = example(tuple(x.shape), seed=9)
        results = []
        for layer in (one, other):
            given = (x + seed).requires_grad_()
            with ns.backend(backend):
                y = layer(given)
                grads = torch.autograd.grad(y, [given, layer.weight, layer.bias], dy)
            results.append((y, *grads))
        for found, expected in zip(*results, strict=True):
            assert_same(found, expected, "output or gradient")
    for name, buffer in other.named_buffers():
        if name not in skip:
            assert_same(dict(one.named_buffers())[name].double(), buffer.double(), name)
    with ns.backend(backend):
        assert_same(one.eval()(x), other.eval()(x), "output in evaluation")


@BOTH
class TestEquivalences:
    """Section 24 of the methods' specification."""

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("filtered", {"threshold": math.inf}),
            ("filtered", {"threshold": 100.0}),
            ("ibn", {"ratio": 0.0}),
            ("ghost", {"batch_size": 6}),
            ("renorm", {"r_max": 1.0, "d_max": 0.0}),
            ("noisy", {"mean_range": 0.0, "std_range": 1.0, "mean_jitter": 0.0, "std_jitter": 0.0}),
            ("noisy", {"mean_range": 0.0, "std_range": 1.0, "mean_jitter": 0.0, "std_jitter": 0.0, "per": "cell"}),
            ("frozen", {"frozen": False}),
            ("batch_instance", {}),
        ],
    )
    def test_is_batch_norm(self, backend, name, options):
        one, other = paired(ns.make(name, 12, dtype=F64, **options), ns.BatchNorm(12, dtype=F64))
        assert_equal_layers(one, other, example(SHAPE), backend)

    @pytest.mark.parametrize(("name", "options"), [("ibn", {"ratio": 1.0}), ("batch_instance", {"initial": 0.0})])
    def test_is_instance_norm(self, backend, name, options):
        one, other = paired(ns.make(name, 12, dtype=F64, **options), ns.InstanceNorm(12, affine=True, dtype=F64))
        assert_equal_layers(one, other, example(SHAPE), backend)

    def test_filtered_group_norm_that_filters_nothing_is_group_norm(self, backend):
        for options in ({"threshold": math.inf}, {"threshold": 100.0}, {"num_groups": 12, "threshold": 6.0}):
            groups = options.get("num_groups", 6)
            one, other = paired(ns.FilteredGroupNorm(12, dtype=F64, **options), ns.GroupNorm(12, num_groups=groups, dtype=F64))
            assert_equal_layers(one, other, example(SHAPE), backend)

    def test_filtered_group_norm_of_single_channels_is_filtered_batch_norm_of_one_sample(self, backend):
        one, other = paired(
            ns.FilteredGroupNorm(12, num_groups=12, threshold=1.3, dtype=F64), ns.FilteredNorm(12, threshold=1.3, dtype=F64)
        )
        x = example((1, 12, 5, 6))
        with ns.backend(backend):
            assert_same(one(x), other(x))

    def test_seventeen_elements_have_no_outlier_beyond_four(self, backend):
        x = torch.zeros(17, 12)
        x[3] = 1e6 * torch.rand(12)
        assert_equal_layers(*paired(ns.FilteredNorm(12, eps=1e-12), ns.BatchNorm(12, eps=1e-12)), x, backend)


@BOTH
class TestFiltered:
    def test_an_outlier_moves_no_statistic_and_is_not_clipped(self, backend):
        layer, x = ns.FilteredNorm(3, momentum=1.0), torch.randn(16, 3, 16, 16)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        x[3, 1, 2, 4] = 1e6
        with ns.backend(backend):
            y = layer(x)
        assert_same(layer.running_mean, mean, tolerance=1e-2)
        assert_same(layer.running_var, var, tolerance=1e-2)
        assert y[3, 1, 2, 4].item() == pytest.approx(1e6, rel=0.05)
        assert ns.BatchNorm(3)(x)[3, 1, 2, 4] < 100

    def test_without_outliers_it_is_batch_norm_to_the_bit(self, backend):
        x = torch.rand(16, 3, 64, 64)  # a smaller tensor would be batch-normalized in one call, which may round differently
        with ns.backend(backend):
            assert torch.equal(ns.FilteredNorm(3)(x), ns.BatchNorm(3)(x))

    def test_channels_are_independent(self, backend):
        x = torch.randn(16, 3, 16, 16)
        with ns.backend(backend):
            y = ns.FilteredNorm(3, threshold=1.5)(x)
            x[:, 1] = x[:, 1] ** 3 + 7
            moved = ns.FilteredNorm(3, threshold=1.5)(x)
        assert torch.equal(y[:, [0, 2]], moved[:, [0, 2]])
        assert not torch.allclose(y[:, 1], moved[:, 1])

    @pytest.mark.parametrize("threshold", [0.3, 1.0])
    def test_where_nothing_is_selected_nothing_is_filtered(self, backend, threshold):
        x = torch.tensor([-1.0, 1.0]).repeat(30).view(60, 1) * torch.tensor([1.0, 5.0]) + torch.tensor([0.0, 3.0])
        x.requires_grad_()
        one, other = ns.FilteredNorm(2, threshold=threshold, eps=1e-12), ns.BatchNorm(2, eps=1e-12)
        with ns.backend(backend):
            assert_equal_layers(one, other, x.detach(), backend)
            group = ns.FilteredGroupNorm(2, num_groups=2, threshold=threshold)(x.view(1, 60, 2).mT)
        assert_same(group, ns.InstanceNorm(2)(x.view(1, 60, 2).mT))

    @pytest.mark.parametrize("value", [1e6, -3e7])
    def test_a_constant_channel_far_from_zero_gives_the_bias(self, backend, value):
        x = torch.randn(8, 4, 10)
        x[:, 1] = value
        for layer in (ns.FilteredNorm(4), ns.FilteredGroupNorm(4, num_groups=4)):
            torch.nn.init.constant_(layer.bias, 0.5)
            with ns.backend(backend):
                assert_same(layer(x)[:, 1], torch.full((8, 10), 0.5))

    def test_the_mean_of_what_is_kept_is_the_bias(self, backend):
        x = torch.randn(16, 3, 16, 16, dtype=F64)
        x[0] += 30
        with ns.backend(backend):
            y = ns.FilteredNorm(3, threshold=3.0, dtype=F64)(x)[1:]
        assert y.mean((0, 2, 3)).abs().max() < 1e-3
        assert (y.var((0, 2, 3)) - 1).abs().max() < 0.05

    def test_a_mask_leaves_out_and_bounds_leave_out(self, backend):
        x, lengths = example((5, 12, 9)), torch.tensor([9, 4, 7, 1, 5])
        x[0, :, 3] += 40
        real = torch.cat([sample[:, :length] for sample, length in zip(x, lengths, strict=True)], 1).unsqueeze(0)
        padded = x.clone()
        for sample, length in zip(padded, lengths, strict=True):
            sample[:, length:] = 1e9
        for threshold in (1.5, 0.6):
            masked, whole = (ns.FilteredNorm(12, threshold=threshold, dtype=F64) for _ in range(2))
            with ns.backend(backend):
                y, expected = masked(padded, lengths=lengths), whole(real)
            found = torch.cat([sample[:, :length] for sample, length in zip(y, lengths, strict=True)], 1)
            assert_same(found, expected[0])
            assert_same(masked.running_var, whole.running_var)
            group = ns.FilteredGroupNorm(12, num_groups=3, threshold=threshold, dtype=F64)
            with ns.backend(backend):
                assert_same(group(padded, lengths=lengths)[1, :, :4], group(x[1:2, :, :4])[0])

    def test_a_nan_spoils_its_channel_and_no_other(self, backend):
        x = torch.randn(8, 4, 30)
        clean = ns.FilteredNorm(4, threshold=2.0)(x)
        for value in (math.nan, math.inf):
            x[2, 1, 5] = value
            layer, skipping = ns.FilteredNorm(4, threshold=2.0), ns.FilteredNorm(4, threshold=2.0, nonfinite="skip")
            with ns.backend(backend):
                y, _ = layer(x), skipping(x)
                group = ns.FilteredGroupNorm(4, num_groups=2, threshold=2.0)(x)
            assert y[:, 1].isnan().all()
            assert_same(y[:, [0, 2, 3]], clean[:, [0, 2, 3]])
            assert layer.running_mean.isnan().tolist() == [False, True, False, False]
            assert skipping.running_mean.eq(0).all()
            assert skipping.num_batches_skipped == 1
            assert group[2, :2].isnan().all()
            assert group.isnan().sum() == 60

    def test_the_correction_for_gaussian_data(self, backend):
        assert 1 / gaussian_factor(4.0) == pytest.approx(0.99893, abs=1e-5)
        assert gaussian_factor(math.inf) == 1
        layer = ns.FilteredNorm(2, threshold=1.5, gaussian_correction=True, momentum=1.0)
        with ns.backend(backend):
            layer(torch.randn(400, 2, 500) * 3)
        assert_same(layer.running_var, torch.full((2,), 9.0), tolerance=0.1)

    def test_the_literal_reading_of_the_lecture(self, backend):
        x = torch.randn(4, 12, 9, 9)
        layer, plain = ns.FilteredGroupNorm(12, threshold=1.5, filter_in_eval=False), ns.GroupNorm(12)
        with ns.backend(backend):
            assert not torch.allclose(layer(x), plain(x))
            assert_same(layer.eval()(x), plain(x))


class TestIBN:
    def test_the_first_channels_lose_their_style_and_the_rest_keep_it(self):
        layer, x = ns.IBN(12, dtype=F64, ratio=0.3), example(SHAPE) * 50
        styled = x * (torch.rand(6, 12, 1, 1, dtype=F64) + 0.5) + torch.randn(6, 12, 1, 1, dtype=F64)
        y, moved = layer(x), layer(styled)
        assert_same(moved[:, :3], y[:, :3], tolerance=1e-4)
        assert ((moved - y)[:, 3:].abs().amax((0, 2, 3)) > 1e-2).all()

    @pytest.mark.parametrize(("channels", "ratio", "half"), [(5, 0.5, 2), (7, 0.9, 6), (1, 0.5, 0), (3, 1.0, 3)])
    def test_any_ratio_and_any_channels(self, channels, ratio, half):
        layer, x = ns.IBN(channels, ratio=ratio), torch.randn(4, channels, 6)
        y = layer(x)
        assert layer.running_mean.shape == (channels - half,)
        assert_same(y[:, :half], torch.nn.functional.instance_norm(x)[:, :half])
        assert_same(y[:, half:], torch.nn.functional.batch_norm(x, None, None, training=True)[:, half:])

    def test_one_position(self):
        layer, x = ns.IBN(12), torch.randn(6, 12, 1)
        with pytest.raises(ns.TooFewValuesError, match="sample and channel"):
            layer(x)
        assert_same(layer.eval()(x)[:, :6], torch.zeros(6, 6, 1))
        for on_single, samples in (("running", 6), ("running", 1), ("batch", 6), ("batch", 1)):
            layer = ns.IBN(12, on_single=on_single)
            y = layer(x[:samples])
            assert_same(y[:, :6], torch.zeros(samples, 6, 1))
            alone = ns.BatchNorm(6, on_single=on_single)
            assert_same(y[:, 6:], alone(x[:samples, 6:]))
            assert_same(layer.running_mean, alone.running_mean)
        ns.IBN(12, ratio=0.0)(x)


@BOTH
class TestGhost:
    @pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
    def test_is_batch_norm_of_one_chunk_after_the_other(self, backend, momentum):
        one, other = paired(
            ns.GhostNorm(12, batch_size=4, momentum=momentum, dtype=F64), ns.BatchNorm(12, momentum=momentum, dtype=F64)
        )
        for seed, samples in enumerate((11, 4, 8, 3)):
            x = example((samples, 12, 5), seed=seed)
            with ns.backend(backend):
                assert_same(one(x), torch.cat([other(chunk) for chunk in x.split(4)]))
        for name, buffer in other.named_buffers():
            assert_same(dict(one.named_buffers())[name].double(), buffer.double(), name)

    def test_a_chunk_that_is_masked_moves_nothing(self, backend):
        x, mask = example((6, 12, 5)), torch.ones(6, 5, dtype=torch.bool)
        mask[2:4] = False
        mask[0, 3:] = False
        one, other = ns.GhostNorm(12, batch_size=2, dtype=F64), ns.BatchNorm(12, dtype=F64)
        with ns.backend(backend):
            y = one(x, mask=mask)
            for i in (0, 4):
                assert_same(y[i : i + 2], other(x[i : i + 2], mask=mask[i : i + 2]))
        assert_same(one.running_var, other.running_var)
        assert one.num_batches_tracked == 2

    def test_accumulation_averages_all_chunks(self, backend):
        one = ns.GhostNorm(12, batch_size=2, accumulate=2, momentum=0.3, dtype=F64)
        x, chunks = example((10, 12, 5)), []
        with ns.backend(backend):
            for part in (x[:6], x[6:]):
                one(part)
                chunks += part.split(2)
        mean = torch.stack([chunk.mean((0, 2)) for chunk in chunks]).mean(0)
        var = torch.stack([chunk.var((0, 2)) for chunk in chunks]).mean(0)
        assert_same(one.running_mean, 0.3 * mean)
        assert_same(one.running_var, 0.7 + 0.3 * var)
        assert one.num_batches_tracked == 1

    def test_a_bad_chunk_skips_the_forward(self, backend):
        layer, x = ns.GhostNorm(12, batch_size=2, nonfinite="skip"), torch.randn(6, 12, 5)
        x[3, 4, 1] = math.nan
        with ns.backend(backend):
            layer(x)
            assert (layer.num_batches_tracked, layer.num_batches_skipped) == (0, 1)
            assert layer.running_mean.eq(0).all()
            layer(torch.randn(6, 12, 5))
        assert (layer.num_batches_tracked, layer.num_batches_skipped) == (3, 1)

    def test_a_chunk_of_one_value(self, backend):
        with ns.backend(backend):
            for samples, batch_size in ((5, 2), (1, 2), (3, 1)):
                with pytest.raises(ns.TooFewValuesError, match="channel and chunk"):
                    ns.GhostNorm(12, batch_size=batch_size)(torch.randn(samples, 12))
            ns.GhostNorm(12, batch_size=2)(torch.randn(6, 12))
            ns.GhostNorm(12, batch_size=2)(torch.randn(5, 12, 3))


@BOTH
class TestRenorm:
    def test_unclipped_it_is_the_evaluation_before_this_batch(self, backend):
        layer, x = ns.BatchRenorm(12, r_max=1e9, d_max=1e9, dtype=F64), example(SHAPE)
        layer(example(SHAPE, seed=4))
        with ns.backend(backend):
            expected = copy.deepcopy(layer).eval()(x)
            assert_same(layer(x), expected)

    def test_a_schedule_may_move_the_clips(self, backend):
        layer, plain, x = ns.BatchRenorm(12, r_max=1.0, d_max=0.0), ns.BatchNorm(12), torch.randn(SHAPE) * 3 + 1
        with ns.backend(backend):
            assert_same(layer(x), plain(x))
            layer.r_max, layer.d_max = 2.0, 1.5
            assert not torch.allclose(layer(x), plain(x))
        assert layer.options()["r_max"] == 2.0

    def test_the_clips(self, backend):
        x = torch.randn(64, 12, 50) * torch.tensor([0.01, 1.0, 100.0]).repeat(4).view(-1, 1)
        layer = ns.BatchRenorm(12, r_max=4.0, d_max=2.0)
        with ns.backend(backend):
            assert_same(layer(x).std((0, 2)), torch.tensor([0.25, 1.0, 4.0]).repeat(4), tolerance=0.02)
            shifted = ns.BatchRenorm(12, r_max=1.0, d_max=2.0)(x + torch.tensor([-50.0, 0.5, 5000.0]).repeat(4).view(-1, 1))
        assert_same(shifted.mean((0, 2)), torch.tensor([-2.0, 0.5, 2.0]).repeat(4), tolerance=0.05)

    @pytest.mark.parametrize(("r_max", "d_max"), [(1.4, 0.8), (100.0, 100.0)])
    def test_derivatives_take_the_corrections_as_constants(self, backend, r_max, d_max):
        x, dy, direction = (example((4, 12, 5), seed=seed) for seed in (0, 1, 2))
        layer = ns.BatchRenorm(12, dtype=F64, r_max=r_max, d_max=d_max)
        slots = {k: v.detach().clone() for k, v in layer.state_dict().items()}
        results = []
        for run in (layer, lambda x: oracle_of("renorm").forward(x, True, **slots, **layer.options())[0]):
            given = x.clone().requires_grad_()
            with ns.backend(backend):
                grad = torch.autograd.grad(run(given), given, dy, create_graph=True)[0]
                results.append((grad, torch.autograd.grad(grad, given, direction)[0]))
        for found, expected in zip(*results, strict=True):
            assert_same(found, expected)

    def test_an_update_between_forward_and_backward_changes_no_gradient(self, backend):
        layer, x = ns.BatchRenorm(12, dtype=F64), example(SHAPE).requires_grad_()
        with ns.backend(backend):
            expected = torch.autograd.grad(copy.deepcopy(layer)(x).square().sum(), x)[0]
            y = layer(x)
            layer(x.detach() * 5)
            assert_same(torch.autograd.grad(y.square().sum(), x)[0], expected)


@BOTH
class TestFrozen:
    def test_is_the_evaluation_of_batch_norm_in_training_too(self, backend):
        one, other = paired(ns.BatchNorm(12, dtype=F64), ns.FrozenNorm(12, dtype=F64))
        one, other = one.eval(), other.train()
        before = copy.deepcopy(other.state_dict())
        assert_equal_layers(other, one, example(SHAPE), backend)
        assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())
        assert len(list(other.parameters())) == 2

    def test_checkpoints_of_torch_load_both_ways(self, backend):
        torchs = torch.nn.BatchNorm2d(12)
        torchs(torch.randn(SHAPE) + 3)
        layer = ns.FrozenNorm(12)
        layer.load_state_dict(torchs.state_dict(), strict=True)
        assert layer.frozen
        with ns.backend(backend):
            assert_same(layer(torch.ones(SHAPE)), torchs.eval()(torch.ones(SHAPE)))
        torch.nn.BatchNorm2d(12).load_state_dict(layer.state_dict(), strict=True)
        ns.BatchNorm(12).load_state_dict(layer.state_dict(), strict=True)

    def test_thawed_it_learns_and_its_state_says_so(self, backend):
        layer = ns.FrozenNorm(12)
        layer.frozen = False
        with ns.backend(backend):
            layer(torch.randn(SHAPE))
        assert layer.num_batches_tracked == 1
        fresh = ns.FrozenNorm(12)
        fresh.load_state_dict(layer.state_dict(), strict=True)
        assert not fresh.frozen
        assert fresh.train()(torch.randn(1, 12, 4)).shape == (1, 12, 4)

    def test_a_single_value_is_no_statistic(self, backend):
        with ns.backend(backend):
            assert ns.FrozenNorm(12)(torch.randn(1, 12)).shape == (1, 12)


class TestNoisy:
    def test_the_laws_of_the_noise(self):
        layer, x = ns.NoisyNorm(2000), torch.randn(4, 2000, 30)
        y, plain = layer(x), ns.BatchNorm(2000)(x)
        mean = y.mean((0, 2))
        assert mean.min() < -0.45
        assert mean.max() > 0.45
        assert mean.abs().max() < 0.56
        assert mean.mean().abs() < 0.03
        shifted = (y - mean.view(1, -1, 1)) / plain
        assert shifted.median().item() == pytest.approx(1.125, abs=0.02)
        assert not torch.allclose(layer(x), y)

    @pytest.mark.parametrize(("per", "constant"), [("element", False), ("cell", True)])
    def test_noise_per_element_or_per_cell(self, per, constant):
        layer, x = ns.NoisyNorm(12, per=per, affine=False), torch.zeros(4, 12, 30)
        spread = layer(x).std(2)
        assert (spread < 1e-6).all() if constant else (spread > 0.01).all()
        assert layer(x).std((0, 2)).min() > 0.01, "samples differ"

    def test_evaluation_and_a_mask_stay_clean(self):
        layer, x = ns.NoisyNorm(12), torch.randn(4, 12, 30)
        y = layer(x, lengths=torch.tensor([30, 3, 7, 20]))
        assert y[1, :, 3:].eq(0).all()
        assert torch.equal(layer.eval()(x), layer(x))

    def test_noise_on_frozen_statistics(self):
        layer, x = ns.NoisyNorm(12, frozen=True), torch.randn(4, 12, 30)
        assert not torch.allclose(layer(x), x)
        assert_same(layer.eval()(x), x, tolerance=1e-4)
        assert layer.num_batches_tracked == 0


@BOTH
class TestBatchInstance:
    def test_is_the_mix_of_the_two(self, backend):
        layer, x = ns.BatchInstanceNorm(12, dtype=F64, initial=0.3), example(SHAPE)
        with ns.backend(backend):
            y = layer(x)
        assert_same(y, 0.3 * ns.BatchNorm(12, dtype=F64)(x) + 0.7 * ns.InstanceNorm(12, dtype=F64)(x))

    def test_a_share_that_was_pushed_out_comes_back(self, backend):
        layer, x = ns.BatchInstanceNorm(12), torch.randn(SHAPE) * (1 + torch.arange(6.0).view(-1, 1, 1, 1))
        torch.nn.init.constant_(layer.rho, 1.4)
        optimizer = torch.optim.SGD([layer.rho], lr=0.5)
        target = ns.InstanceNorm(12)(x)
        for _ in range(40):
            with ns.backend(backend):
                loss = (layer(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert layer.rho.max() < 0.9


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("filtered", {"threshold": 0.0}, "above zero"),
        ("filtered", {"threshold": math.nan}, "above zero"),
        ("filtered", {"unbiased": True}, "'none', 'first', 'both'"),
        ("filtered_group", {"threshold": -1.0}, "above zero"),
        ("filtered_group", {"num_groups": 5}, "FilteredGroupNorm expects a number of groups that divides"),
        ("ibn", {"ratio": 1.5}, "from 0 to 1"),
        ("ghost", {"batch_size": 0}, "positive integer"),
        ("ghost", {"batch_size": 2.0}, "positive integer"),
        ("renorm", {"r_max": 0.5}, "r_max of 1 or more"),
        ("renorm", {"d_max": -1.0}, "d_max of 0 or more"),
        ("renorm", {"track_running_stats": False}, "use BatchNorm"),
        ("frozen", {"track_running_stats": False}, "to freeze"),
        ("noisy", {"std_range": 0.5}, "std_range of 1 or more"),
        ("noisy", {"mean_jitter": -0.1}, "mean_jitter of 0 or more"),
        ("noisy", {"per": "sample"}, "'element', 'cell'"),
        ("batch_instance", {"initial": 2.0}, "from 0"),
    ],
)
def test_bad_options(name, options, sentence):
    with pytest.raises(ns.OptionError, match=sentence):
        ns.make(name, 12, **options)
