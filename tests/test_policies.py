"""The policies of running statistics: each failure shown with torch's batch norm first, then ours right, for every method that has it."""

import copy
import inspect
import io

import pytest
import torch
from helpers import CASES, CHANNELS, Case, assert_same, example, floating, with_backends
from pairwise import pairwise
from torch import nn
from torch.utils.checkpoint import checkpoint

import normsmith as ns

RUNNING = [case for case in CASES if case.entry.running]
MASKED = [case for case in CASES if "mask" in inspect.signature(case.entry.load().forward).parameters]
every_running = pytest.mark.parametrize("case", RUNNING, ids=str)
every_masked = pytest.mark.parametrize("case", MASKED, ids=str)
SHAPE = (8, CHANNELS, 6)
ON_BACKENDS = [(case, backend) for case, backend in with_backends(RUNNING) if backend != "torch"]


def few(*axes):
    """Every method on every backend that differs for it, with every value of each axis; the pairs of those spread over the methods."""
    differs = {(str(case), backend) for case, backend in ON_BACKENDS}
    return pairwise(
        RUNNING, ["auto", "cpu", "reference"], *axes, allowed=lambda case, backend, *_: (str(case), backend) in differs
    )


def tracking(case, **options):
    """A layer that keeps and moves running statistics."""
    layer = Case(case.name, {"track_running_stats": True, **options}).make()
    layer.frozen = False
    return layer


def buffers(layer):
    return {k: v.clone() for k, v in layer.named_buffers() if k.startswith(("running", "num_batches_tracked"))}


def run(layer, x):
    return layer(x, **layer.example_inputs(x))


def assert_unmoved(layer, before):
    assert all(torch.equal(before[k], v) for k, v in buffers(layer).items())


def gradient(layer, x, between=lambda: None):
    x = x.clone().requires_grad_()
    y = run(layer, x)
    between()
    return torch.autograd.grad(y.square().sum(), x)[0]


class TestFrozen:
    def test_torch_moves(self):
        model = nn.Sequential(nn.BatchNorm1d(CHANNELS).eval())
        model.train()(example(SHAPE).float())
        assert model[0].running_mean.abs().sum() > 0

    @every_running
    def test_survives_train_and_is_saved(self, case):
        layer, x = tracking(case), example(SHAPE)
        layer.eval()
        expected = gradient(layer, x)
        layer.frozen = True
        layer.train()
        before = buffers(layer)
        if not case.entry.random:
            assert_same(gradient(layer, x), expected, "the gradient of evaluation")
        else:
            run(layer, x)
        assert_unmoved(layer, before)
        stored = io.BytesIO()
        torch.save(layer.state_dict(), stored)
        stored.seek(0)
        other = Case(case.name, {"track_running_stats": True}).make().train()
        other.load_state_dict(torch.load(stored, weights_only=True), strict=True)
        assert other.frozen
        assert copy.deepcopy(layer).frozen
        layer.frozen = False
        run(layer, x)
        assert not torch.equal(before["running_mean"], layer.running_mean)

    def test_a_checkpoint_of_torch_leaves_the_flag(self):
        layer = ns.BatchNorm(3, frozen=True)
        layer.load_state_dict(nn.BatchNorm1d(3).state_dict())
        assert layer.frozen
        with pytest.raises(ns.OptionError, match="running statistics to freeze"):
            ns.BatchNorm(3, frozen=True, track_running_stats=False)


class TestAccumulate:
    def parts(self, x):
        return x[:2], x[2:3], x[3:]

    def test_torch_averages_the_parts(self):
        x, layer, whole = example(SHAPE), nn.BatchNorm1d(CHANNELS).double(), nn.BatchNorm1d(CHANNELS).double()
        whole(x)
        for part in self.parts(x):
            layer(part)
        assert (layer.running_var - whole.running_var).abs().max() > 0.1

    @pytest.mark.parametrize(("case", "backend", "momentum"), few([0.3, None]), ids=str)
    def test_micro_batches_make_the_one_batch_they_are(self, case, momentum, backend):
        if case.entry.ordered or case.entry.fitted:
            pytest.skip("cuts its batches itself, or fits them one by one")
        layer, whole = (tracking(case, momentum=momentum, accumulate=k) for k in (3, 1))
        if case.entry.random or not hasattr(layer, "pending"):
            pytest.skip("no batch to put together")
        with ns.backend(backend):
            for seed in range(2):
                x = example(SHAPE, seed=seed) + 1000
                extra = layer.example_inputs(x)
                before = buffers(layer)
                rows = (slice(0, 2), slice(2, 3), slice(3, None))
                for own in rows:
                    assert_unmoved(layer, before)
                    layer(x[own], **{k: v[own] for k, v in extra.items()})
                whole(x, **extra)
                for key, value in buffers(whole).items():
                    assert_same(buffers(layer)[key].double(), value.double(), key)

    def test_unfinished_steps_are_no_part_of_the_state(self):
        layer = ns.BatchNorm(3, accumulate=2)
        layer(torch.randn(4, 3, 5))
        assert set(layer.state_dict()) == set(nn.BatchNorm1d(3).state_dict())
        layer.reset_running_stats()
        assert layer.pending.abs().sum() == 0
        for wrong in (0, 1.5, True):
            with pytest.raises(ns.OptionError, match="positive integer"):
                ns.BatchNorm(3, accumulate=wrong)


class TestRecomputed:
    @pytest.mark.parametrize("reentrant", [True, False])
    def test_torch_updates_twice(self, reentrant):
        layer = nn.BatchNorm1d(CHANNELS).double()
        checkpoint(layer, example(SHAPE).requires_grad_(), use_reentrant=reentrant).sum().backward()
        assert layer.num_batches_tracked == 2

    @pytest.mark.parametrize(("case", "backend", "reentrant"), few([True, False]), ids=str)
    def test_updates_once(self, case, reentrant, backend):
        layer, x = tracking(case), example(SHAPE).requires_grad_()
        plain = tracking(case)
        with ns.backend(backend):
            checkpoint(lambda x: run(layer, x), x, use_reentrant=reentrant).square().sum().backward()
            expected = gradient(plain, x.detach())
        if not case.entry.detached:  # running statistics in training have moved when they are looked at again
            assert_same(x.grad, expected, "gradient")
        for key, value in buffers(plain).items():
            assert_same(buffers(layer)[key].double(), value.double(), key)

    def test_nested(self):
        layer, x = ns.BatchNorm(CHANNELS).double(), example(SHAPE).requires_grad_()

        def inner(x):
            return checkpoint(layer, x, use_reentrant=False)

        checkpoint(inner, x, use_reentrant=False).sum().backward()
        assert layer.num_batches_tracked == 1


class TestNonfinite:
    def test_torch_is_poisoned(self):
        layer, x = nn.BatchNorm1d(CHANNELS), example(SHAPE, torch.float32)
        x[0, 3, 0] = float("inf")
        layer(x)
        layer(example(SHAPE, torch.float32))
        assert layer.running_var[3].isnan()

    @pytest.mark.parametrize(("case", "backend", "value", "accumulate"), few([float("nan"), float("inf")], [1, 2]), ids=str)
    def test_such_a_batch_is_skipped_and_counted(self, case, backend, value, accumulate):
        layer = tracking(case, nonfinite="skip", accumulate=accumulate)
        skipped = layer.num_batches_skipped
        assert "num_batches_skipped" in layer.state_dict()
        with ns.backend(backend):
            before = buffers(layer)
            for _ in range(accumulate):
                x = example(SHAPE)
                x[0, CHANNELS - 1, 0] = value
                run(layer, x)
            assert_unmoved(layer, before)
            assert skipped >= accumulate
            for _ in range(accumulate):
                run(layer, example(SHAPE))
        assert layer.running_var.isfinite().all()
        assert not torch.equal(layer.running_mean, before["running_mean"])


class TestSingle:
    def test_torch_raises(self):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            nn.BatchNorm1d(3)(torch.randn(1, 3))

    def test_as_chosen(self):
        x = torch.randn(1, 3)
        with pytest.raises(ns.TooFewValuesError, match="on_single"):
            ns.BatchNorm(3)(x)
        layer = ns.BatchNorm(3, on_single="running")
        layer.running_mean.fill_(2)
        before = buffers(layer)
        assert_same(layer(x), layer.eval()(x))
        assert_unmoved(layer, before)
        layer = ns.BatchNorm(3, on_single="batch")
        assert_same(layer(x), torch.zeros(1, 3))
        assert layer.running_mean.isfinite().all()
        with pytest.raises(ns.TooFewValuesError):
            ns.BatchNorm(3, on_single="running", track_running_stats=False)(x)
        with pytest.raises(ns.OptionError, match="'error', 'running', 'batch'"):
            ns.BatchNorm(3, on_single="nothing")


class TestWhatTheNextForwardWrites:
    """Two forwards before one backward: the gradient is that of what was computed."""

    def test_torch_is_silently_wrong(self):
        layer, x = nn.BatchNorm1d(CHANNELS).double().eval(), example(SHAPE)

        def forward(x):
            return layer(x)

        def gradient(between):
            y_in = x.clone().requires_grad_()
            y = forward(y_in)
            between()
            return torch.autograd.grad(y.square().sum(), y_in)[0]

        def train_once():
            layer.train()(example(SHAPE, seed=1) * 9)
            layer.eval()

        expected = gradient(lambda: None)
        assert (gradient(train_once) - expected).abs().max() > 0.1

    @pytest.mark.parametrize(("case", "backend"), ON_BACKENDS, ids=str)
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_does_not_reach_an_earlier_backward(self, case, training, backend):
        layer, x = tracking(case).train(training), example(SHAPE)

        def train_once():
            run(layer.train(), example(SHAPE, seed=1) * 9)
            for buffer in (layer.running_mean, layer.running_var):
                buffer.mul_(2)  # as DistributedDataParallel does, when it broadcasts buffers
            layer.train(training)

        with ns.backend(backend):
            expected = gradient(copy.deepcopy(layer), x)
            assert_same(gradient(layer, x, train_once), expected)


LENGTHS = torch.tensor([6, 2, 5, 6, 3, 6, 4, 6])


def padded(x, value):
    x = x.clone()
    for row, length in zip(x, LENGTHS, strict=True):
        row[:, length:] = value
    return x


class TestMasked:
    def test_torch_takes_padding_for_data(self):
        x, layer, other = example(SHAPE), nn.BatchNorm1d(CHANNELS).double(), nn.BatchNorm1d(CHANNELS).double()
        layer(padded(x, 0.0))
        other(padded(x, 9.0))
        assert (layer.running_mean - other.running_mean).abs().max() > 0.1

    @every_masked
    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_padding_never_enters(self, case, backend, training):
        results = []
        for value in (0.0, 1e3, float("nan")):
            layer, x = case.make().train(training), padded(example(SHAPE), value).requires_grad_()
            extra = floating(layer.example_inputs(example(SHAPE)), torch.Tensor.detach)
            with ns.backend(backend):
                y = layer(x, **extra, lengths=LENGTHS)
                (grad,) = torch.autograd.grad((y * example(SHAPE, seed=3)).sum(), x)
            outside = torch.arange(6) >= LENGTHS.view(-1, 1, 1)
            assert (y[outside.expand_as(y)] == 0).all()
            assert (grad[outside.expand_as(y)] == 0).all()
            results.append((y, grad, buffers(layer)))
        for y, grad, moved in results[1:]:
            assert_same(y, results[0][0])
            assert_same(grad, results[0][1])
            for key, value in moved.items():
                assert_same(value.double(), results[0][2][key].double(), key)

    @every_masked
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_padding_alike_equals_no_padding(self, case, training):
        if case.entry.random and training:
            pytest.skip("draws by the size of the input")
        layer, other, x = case.make().train(training), case.make().train(training), example(SHAPE)
        short = x[:, :, :4]
        extra = layer.example_inputs(short)
        y = layer(x, **extra, lengths=torch.full((8,), 4))
        assert_same(y[:, :, :4], other(short, **extra), "output")
        for key, value in buffers(other).items():
            assert_same(buffers(layer)[key].double(), value.double(), key)

    @every_masked
    def test_evaluation_does_not_depend_on_batch_mates(self, case):
        layer, x = case.make().eval(), example(SHAPE)
        extra = layer.example_inputs(x)
        together = layer(x, **extra, lengths=LENGTHS)
        for i, length in enumerate(LENGTHS):
            alone = layer(x[i : i + 1, :, :length], **{k: v[i : i + 1] for k, v in extra.items()})
            assert_same(together[i : i + 1, :, :length], alone)

    @every_masked
    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_a_fully_masked_sample_is_no_sample(self, case, training, backend):
        if case.entry.random and training:
            pytest.skip("draws by the size of the input")
        layer, other, x = case.make().train(training), case.make().train(training), example(SHAPE).requires_grad_()
        mask = torch.ones(8, 6, dtype=torch.bool)
        mask[-1] = False
        extra = layer.example_inputs(x.detach())
        with ns.backend(backend):
            y = layer(x, **extra, mask=mask)
            (grad,) = torch.autograd.grad(y.square().sum(), x)
            expected = other(x.detach()[:-1], **{k: v[:-1] for k, v in extra.items()})
        assert_same(y[:-1], expected)
        assert (y[-1] == 0).all()
        assert grad.isfinite().all()
        for key, value in buffers(other).items():
            assert_same(buffers(layer)[key].double(), value.double(), key)

    def test_wrong_masks(self):
        layer, x = ns.BatchNorm(3), torch.randn(4, 3, 5)
        for wrong in (torch.ones(4, 5), torch.ones(4, 6, dtype=torch.bool), torch.ones(3, 5, dtype=torch.bool)):
            with pytest.raises(ns.InputError, match="mask as booleans"):
                layer(x, mask=wrong)
        with pytest.raises(ns.InputError, match="lengths as 4 integers"):
            layer(x, lengths=torch.ones(3, dtype=torch.long))
        with pytest.raises(ns.InputError, match="either mask or lengths"):
            layer(x, mask=torch.ones(4, 5, dtype=torch.bool), lengths=torch.ones(4, dtype=torch.long))
