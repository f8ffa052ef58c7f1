"""Exact statistics of a data set: ours and torch's layers, in one pass or layer by layer, whatever the batches and ranks."""

import copy
import io
import math

import pytest
import torch
from helpers import CHANNELS, VARIANTS, assert_same, example
from ranks import run_ranks
from rich.console import Console
from torch import nn

import normsmith as ns
from normsmith.surgery import _batches

SIZES = (7, 1, 4, 8)


def net(norm=nn.BatchNorm2d, **options):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm(4, **options), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 6, 1), norm(6, **options)
    ).double()


def data(samples=20):
    return example((samples, 3, 6, 5)) * 2 + 1


def statistics(layer):
    return layer.running_mean, layer.running_var


def of_all(x):
    """What running statistics are of data: mean and unbiased variance per channel."""
    dims = [0, *range(2, x.dim())]
    return x.mean(dims), x.var(dims)


def same_state(model, before):
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class TestOneLayer:
    """Unequal batches are merged to the statistics of all data."""

    @pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.SyncBatchNorm(3), ns.BatchNorm(3), ns.SwitchableNorm(3)], ids=str)
    @pytest.mark.parametrize("layerwise", [False, True])
    def test_unequal_batches(self, layer, layerwise):
        layer, x = layer.double(), data()
        layer.running_mean.add_(50)
        ns.recalibrate(nn.Sequential(layer), x.split(SIZES), layerwise=layerwise)
        for found, expected in zip(statistics(layer), of_all(x), strict=True):
            assert_same(found, expected)
        assert layer.num_batches_tracked == len(SIZES)

    @pytest.mark.parametrize("shape", [(9, 3), (9, 3, 4), (9, 3, 4, 2, 2)])
    def test_any_rank(self, shape):
        layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}[len(shape)](3).double()
        x = example(shape)
        ns.recalibrate(layer, x.split([5, 4]))
        assert_same(layer.running_var, of_all(x)[1])

    def test_float32_adds_up_in_float64(self):
        x = torch.randn(400, 3, 4, 2) + 100
        layer = nn.BatchNorm2d(3)
        ns.recalibrate(layer, x.split(1))
        assert_same(layer.running_var, of_all(x.double())[1], tolerance=1e-5)

    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, ns.BatchNorm])
    def test_the_mean_of_variances(self, norm):
        x, layer = data(), norm(3).double()
        ns.recalibrate(layer, x.split([8, 12]), variance="within")
        assert_same(layer.running_var, sum(len(b) * of_all(b)[1] for b in x.split([8, 12])) / 20)
        assert (layer.running_var < 0.9 * of_all(x)[1]).all(), "samples differ in mean here"

    @pytest.mark.parametrize("norm", [nn.InstanceNorm2d, ns.InstanceNorm])
    def test_instance_norm_averages_its_samples(self, norm):
        x, layer = data(), norm(3, track_running_stats=True).double()
        ns.recalibrate(layer, x.split([8, 12]))
        assert_same(layer.running_mean, x.mean((0, 2, 3)))
        assert_same(layer.running_var, x.var((2, 3)).mean(0))

    def test_an_unbatched_sample_of_instance_norm(self):
        x, layer = data(), nn.InstanceNorm2d(3, track_running_stats=True).double()
        ns.recalibrate(layer, list(x))
        assert_same(layer.running_var, x.var((2, 3)).mean(0))

    def test_a_layer_with_an_activation_of_its_own(self):
        class NormAct(nn.BatchNorm2d):
            def forward(self, x):
                return super().forward(x).relu()

        model, x = nn.Sequential(NormAct(3), nn.BatchNorm2d(3)).double(), data()
        ns.recalibrate(model, [x])
        normal = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        assert_same(model[1].running_mean, normal.relu().mean((0, 2, 3)))

    @pytest.mark.parametrize("case", [c for c in VARIANTS if c.entry.running], ids=str)
    def test_every_method_with_running_statistics(self, case):
        layer = case.make()
        if layer.running_mean is None or layer.frozen or layer.running_mean.numel() == 0:
            with pytest.raises(ns.ModelError, match=r"frozen|expects a model with running statistics"):
                ns.recalibrate(layer, [example((4, CHANNELS, 3, 5))])
            return
        x = example((8, CHANNELS, 3, 5))
        batches = [{"x": b, **layer.example_inputs(b)} for b in x.split([4, 4])]
        moved = ns.recalibrate(layer, batches)
        assert moved.layers[0].samples == 8
        twin = copy.deepcopy(layer)
        with ns.collecting(twin), torch.no_grad():
            for batch in batches:
                twin(**batch)
        if not (case.entry.random or case.entry.fitted):  # what is fitted goes on from what the first pass left
            for found, expected in zip(statistics(layer), statistics(twin), strict=True):
                assert_same(found, expected)


class TestInTheModel:
    """What the layers behind see."""

    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, ns.BatchNorm])
    def test_one_pass_is_as_in_training(self, norm):
        """torch's update_bn, with one batch, where both are exact."""
        model, twin, x = net(norm), net(), data()
        model[3].p = twin[3].p = 0.0
        ns.recalibrate(model, [x])
        torch.optim.swa_utils.update_bn([x], twin)
        for index in (1, 5):
            assert_same(model[index].running_mean, twin[index].running_mean)
            assert_same(model[index].running_var, twin[index].running_var)

    def test_one_pass_over_several_batches(self):
        model, x = net(), data()
        ns.recalibrate(model, x.split([9, 11]))
        twin = net()
        twin[3].eval()
        seen = [twin[:5](b) for b in x.split([9, 11])]
        assert_same(model[5].running_var, of_all(torch.cat(seen))[1])
        torch.optim.swa_utils.update_bn(x.split([9, 11]), twin)
        assert (twin[1].running_var - model[1].running_var).abs().max() > 0.1, "update_bn averages variances"

    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, ns.BatchNorm])
    def test_layer_by_layer_is_exact_for_evaluation(self, norm):
        model, x = net(norm), data()
        model[1].running_mean.add_(5)
        ns.recalibrate(model, x.split(SIZES), layerwise=True)
        with torch.no_grad():
            seen = model.eval()[:5](x)
        for found, expected in zip(statistics(model[5]), of_all(seen), strict=True):
            assert_same(found, expected)
        other = net(norm)
        ns.recalibrate(other, x.split(SIZES))
        assert (other[5].running_var - model[5].running_var).abs().max() > 1e-3, "one pass is another thing"

    def test_layer_by_layer_follows_the_forward_not_the_names(self):
        class Backwards(nn.Module):
            def __init__(self):
                super().__init__()
                self.second, self.first = nn.BatchNorm2d(3).double(), ns.BatchNorm(3, dtype=torch.float64)

            def forward(self, x):
                return self.second(self.first(x).relu())

        model, x = Backwards(), data()
        ns.recalibrate(model, x.split(SIZES), layerwise=True)
        with torch.no_grad():
            expected = of_all(model.eval().first(x).relu())
        assert_same(model.second.running_mean, expected[0])
        assert_same(model.second.running_var, expected[1])

    def test_layer_by_layer_ends_each_forward_behind_the_layer(self):
        model, x = net(), data()
        calls = []
        model[5].register_forward_hook(lambda *_: calls.append(1))
        ns.recalibrate(model, x.split([10, 10]), layerwise=True)
        assert len(calls) == 2 + 2, "to find the order, and for itself"

    @pytest.mark.parametrize("layerwise", [False, True])
    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, ns.BatchNorm])
    def test_a_layer_in_two_places_takes_the_union(self, norm, layerwise):
        shared, x = norm(3).double(), data()
        inputs = []
        shared.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
        ns.recalibrate(nn.Sequential(shared, nn.Tanh(), shared), [x], layerwise=layerwise)
        for found, expected in zip(statistics(shared), of_all(torch.cat(inputs[-2:])), strict=True):
            assert_same(found, expected)
        assert shared.num_batches_tracked == 2

    def test_beside_a_layer_whose_statistics_are_empty(self):
        """IBN with a ratio of 1 keeps buffers of no channel."""
        layer = ns.BatchNorm(3, dtype=torch.float64)
        model, x = nn.Sequential(layer, ns.IBN(3, ratio=1.0, dtype=torch.float64)), data()
        assert [row.name for row in ns.recalibrate(model, [x]).layers] == ["0"]
        layer.reset_running_stats()
        with ns.collecting(model), torch.no_grad():
            model(x)
        assert_same(layer.running_mean, of_all(x)[0])

    def test_what_stays_as_it_is(self):
        model = nn.ModuleDict(
            {
                "frozen": ns.BatchNorm(3, frozen=True),
                "out": nn.BatchNorm2d(3),
                "unseen": nn.BatchNorm2d(3),
                "used": nn.BatchNorm2d(3),
            }
        ).double()
        for layer in model.values():
            layer.running_mean.add_(3)
        before = copy.deepcopy(model.state_dict())
        done = ns.recalibrate(
            model,
            [data()],
            where=lambda _, name: name != "out",
            forward=lambda m, x: m["used"](m["out"](m["frozen"](x))),
        )
        changed = {k.partition(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        assert changed == {"used"}
        assert [(row.name, row.frozen, row.calls) for row in done.layers] == [
            ("frozen", True, 0),
            ("unseen", False, 0),
            ("used", False, 1),
        ]
        assert "frozen" in str(done)
        assert "not reached" in str(done)

    def test_modes_random_state_and_hooks_are_put_back(self):
        model = net(ns.BatchNorm).train()
        model[3].eval()
        modes, state = [m.training for m in model.modules()], torch.get_rng_state()
        loader = torch.utils.data.DataLoader(data(), batch_size=5, shuffle=True)
        ns.recalibrate(model, loader)
        ns.recalibrate(model, loader, layerwise=True)
        assert [m.training for m in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
        assert torch.is_grad_enabled()

    def test_synchronised_layers_get_their_group_back(self):
        layer = ns.BatchNorm(3)
        group = layer._group = copy.copy(layer._group)
        group.group = object()
        with pytest.raises(RuntimeError, match="broken"):
            ns.recalibrate(nn.Sequential(layer), [data()], forward=raising)
        assert layer.process_group is group.group


def raising(*_):
    raise RuntimeError("broken")


class TestLoader:
    """What a batch may be, and how many."""

    @pytest.mark.parametrize(
        "wrap",
        [lambda x: x, lambda x: (x, 0), lambda x: [x, torch.zeros(3)], lambda x: {"input": x}],
        ids=["x", "tuple", "list", "map"],
    )
    def test_batches(self, wrap):
        layer, x = nn.BatchNorm2d(3).double(), data()
        ns.recalibrate(layer, (wrap(b) for b in x.split(5)))
        assert_same(layer.running_mean, of_all(x)[0])

    def test_a_budget(self):
        layer, x = nn.BatchNorm2d(3).double(), data()
        taken = []

        def loader():
            for batch in x.split(4):
                taken.append(1)
                yield batch

        done = ns.recalibrate(layer, loader(), batches=2)
        assert len(taken) == done.batches == 2
        assert_same(layer.running_mean, of_all(x[:8])[0])

    def test_a_forward_of_ones_own(self):
        layer, x = nn.BatchNorm2d(3).double(), data()
        ns.recalibrate(layer, [{"image": x}], forward=lambda model, batch: model(batch["image"] + 1))
        assert_same(layer.running_mean, of_all(x + 1)[0])

    def test_a_bar_on_a_terminal_only(self, monkeypatch):
        shown = io.StringIO()
        for terminal in (False, True):
            monkeypatch.setattr(_batches, "Console", lambda stderr, t=terminal: Console(file=shown, force_terminal=t))
            ns.recalibrate(nn.BatchNorm2d(3).double(), data().split(5))
            assert ("recalibrating" in shown.getvalue()) == terminal


class TestReport:
    def test_how_far(self):
        layer, x = nn.BatchNorm2d(3, eps=1e-3).double(), data()
        layer.running_mean.fill_(2)
        layer.running_var.fill_(4)
        (row,) = ns.recalibrate(layer, x.split(SIZES)).layers
        mean, var = of_all(x)
        assert_same(row.mean, (mean - 2) / math.sqrt(4.001))
        assert_same(row.std, (var + 1e-3).sqrt() / math.sqrt(4.001) - 1)
        assert (row.name, row.method, row.calls, row.samples) == ("", "BatchNorm2d", 4, 20)

    def test_the_table(self):
        text = str(ns.recalibrate(net(), [data()]))
        assert "statistics of 1 batches" in text
        assert "BatchNorm2d" in text
        assert "\x1b" not in text


class TestErrors:
    """One sentence each, and nothing moved."""

    def fails(self, model, loader, error, match, **options):
        before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        with pytest.raises(error, match=match):
            ns.recalibrate(model, loader, **options)
        assert same_state(model, before)
        assert [m.training for m in model.modules()] == modes
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())

    @pytest.mark.parametrize("layerwise", [False, True])
    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, ns.BatchNorm, ns.SwitchableNorm])
    def test_a_model_or_loader_that_raises(self, norm, layerwise):
        def loader():
            yield data()
            raise KeyError("gone")

        class Twice(list):
            def __iter__(self):
                return loader()

        self.fails(net(norm), Twice(), KeyError, "gone", layerwise=layerwise)
        self.fails(net(norm), [data(), torch.ones(2, 5, 4, 4).double()], RuntimeError, "channels", layerwise=layerwise)

    @pytest.mark.parametrize("layerwise", [False, True])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, ns.BatchNorm])
    def test_a_batch_that_is_not_finite(self, norm, value, layerwise):
        bad = data()
        bad[3, 1, 2, 2] = value
        match = f"got NaN or infinity at {norm.__name__} '1' in batch 1, counted from 0"
        self.fails(net(norm), [data(), bad, data()], ns.InputError, match, layerwise=layerwise)

    def test_the_layer_that_is_met_first_is_named(self):
        model = nn.ModuleDict({"b": nn.BatchNorm2d(3), "a": nn.BatchNorm2d(3)}).double()
        bad = data() * math.nan
        self.fails(model, [bad], ns.InputError, "at BatchNorm2d 'a'", forward=lambda m, x: m["b"](m["a"](x)))

    def test_a_single_element(self):
        for norm in (nn.BatchNorm1d, ns.BatchNorm):
            self.fails(
                nn.Sequential(norm(3)), [torch.randn(4, 3), torch.randn(1, 3)], ns.TooFewValuesError, "more than 1 value"
            )
        layer = nn.BatchNorm1d(3)
        x = torch.randn(5, 3)
        ns.recalibrate(layer, x.split([4, 1]), layerwise=True)
        assert_same(layer.running_var, x.var(0))

    def test_nothing_to_do(self):
        self.fails(net(), [], ns.InputError, "at least one batch: got an empty one")
        self.fails(net(), [], ns.InputError, "at least one batch: got an empty one", layerwise=True)
        self.fails(net(), [data()], ns.InputError, "got 1 that reach none", forward=lambda *_: None)
        self.fails(nn.Sequential(nn.GroupNorm(1, 3)), [data()], ns.ModelError, "running statistics: got 1 GroupNorm$")
        self.fails(nn.Sequential(ns.FrozenNorm(3)), [data()], ns.ModelError, "ns.unfreeze")

    def test_bad_options(self):
        self.fails(net(), data(), ns.InputError, r"got a tensor; pass \[x\]")
        self.fails(net(), 3, ns.InputError, "got int; pass a list")
        self.fails(net(), iter([data()]), ns.InputError, "many times: got an iterator", layerwise=True)
        self.fails(net(), [data()], ns.OptionError, "batches, how many to use, .*: got 0", batches=0)
        self.fails(net(), [data()], ns.OptionError, "'total', 'within'", variance="all")
        self.fails(nn.DataParallel(net()), [data()], ns.ModelError, "inside DataParallel")

    def test_a_chain_layer_by_layer(self):
        first = ns.KalmanNorm(3)
        model = nn.Sequential(first, ns.KalmanNorm(3, previous=first)).double()
        self.fails(model, [data()], ns.ModelError, "got '1', which is linked", layerwise=True)
        ns.recalibrate(model, [data()])


PARTS = {"equal": (slice(0, 10), slice(10, 20)), "unequal": (slice(0, 3), slice(3, 20)), "none": (slice(0, 0), slice(0, 20))}
WAYS = [(False, "total", False), (False, "within", True), (True, "total", True)]  # layerwise, variance, synchronised


def of_every_kind(last):
    """Every kind of layer with running statistics."""
    instances = [norm(6, track_running_stats=True) for norm in (ns.InstanceNorm, nn.InstanceNorm2d)]
    return nn.Sequential(net(ns.BatchNorm), *instances, nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), last(6)).double()


def on_a_rank(rank):
    found = {}
    for key, parts in PARTS.items():
        for layerwise, variance, synchronised in WAYS:
            model = of_every_kind(nn.SyncBatchNorm)
            if synchronised:
                ns.synchronize(model)
            own = [b for b in data()[parts[rank]].split(4) if len(b)]
            done = ns.recalibrate(model, own, layerwise=layerwise, variance=variance)
            rows = [(row.samples, row.mean) for row in done.layers]
            found[key, layerwise, variance] = dict(model.named_buffers()), done.batches, rows
    return found


@pytest.fixture(scope="module")
def by_two_ranks():
    return run_ranks(2, on_a_rank)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("layerwise", "variance"), [way[:2] for way in WAYS])
def test_ranks_equal_one_process(parts, layerwise, variance, by_two_ranks):
    alone = of_every_kind(nn.BatchNorm2d)
    batches = [b for part in PARTS[parts] for b in data()[part].split(4) if len(b)]
    expected = ns.recalibrate(alone, batches, layerwise=layerwise, variance=variance)
    for rank in by_two_ranks:
        buffers, count, rows = rank[parts, layerwise, variance]
        assert count == len(batches)
        for name, buffer in alone.named_buffers():
            assert_same(buffers[name].double(), buffer.double(), name)
        for (samples, mean), row in zip(rows, expected.layers, strict=True):
            assert samples == row.samples == 20
            assert_same(mean, row.mean)


def one_rank_fails(rank, layerwise):
    model = net()
    before = copy.deepcopy(model.state_dict())
    batches = [data() * math.nan if rank == 1 else data()]
    try:
        ns.recalibrate(model, batches, layerwise=layerwise)
    except (ns.InputError, ns.SynchronizationError) as error:
        return str(error), same_state(model, before)
    return "went through", False


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_rank_that_fails_stops_all_at_once(layerwise):
    (first, untouched), (second, also) = run_ranks(2, one_rank_fails, layerwise)
    assert untouched
    assert also
    assert "got an error on rank 1" in first
    assert "at BatchNorm2d '1' in batch 0" in second


def all_empty(rank):
    with pytest.raises(ns.InputError, match="got an empty one"):
        ns.recalibrate(net(), [])


def test_ranks_without_any_data():
    run_ranks(2, all_empty)
