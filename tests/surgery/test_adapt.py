"""A classifier that meets shifted data, and gets back what it lost; and the way back to the bit."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_same
from ranks import run_ranks
from torch import nn

import normsmith as ns

CLASSES, CHANNELS = 4, 8


def samples(count, *, seed, shifted=False):
    """Gaussian clusters, the same for every seed; shifted: each channel scaled and moved."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, CHANNELS, generator=generator) * 1.5
    scale = torch.rand(CHANNELS, generator=generator) * 3 + 0.5
    offset = torch.randn(CHANNELS, generator=generator) * 4
    generator.manual_seed(seed)
    target = torch.randint(CLASSES, (count,), generator=generator)
    x = centers[target] + torch.randn(count, CHANNELS, generator=generator)
    return (x * scale + offset if shifted else x), target


def trained(norm):
    torch.manual_seed(1)
    model = nn.Sequential(norm(CHANNELS), nn.Linear(CHANNELS, 16), norm(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, target = samples(512, seed=1)
    for step in range(60):
        rows = torch.arange(step * 64, step * 64 + 64) % 512
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), target[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


NORMS = {"torch": nn.BatchNorm1d, "ours": ns.BatchNorm}


@pytest.fixture(scope="module", params=NORMS)
def source(request):
    with torch.random.fork_rng():
        return trained(NORMS[request.param])


@pytest.fixture
def model(source):
    return copy.deepcopy(source)


def accuracy(model, *, shifted=True):
    x, target = samples(1000, seed=3, shifted=shifted)
    with torch.no_grad():
        return float((model(x).argmax(1) == target).double().mean())


def target_data(count=512, batch=64):
    return samples(count, seed=2, shifted=True)[0].split(batch)


def photograph(model):
    """Everything that a reset must bring back."""
    return (
        copy.deepcopy(model.state_dict()),
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    )


def assert_photographs_equal(one, other):
    assert one[1:3] == other[1:3]
    for key, value in one[0].items():
        assert torch.equal(value, other[0][key]), key
    for a, b in zip(one[3], other[3], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


class TestItHelps:
    def test_the_shift_hurts(self, model):
        assert accuracy(model, shifted=False) > 0.92
        assert accuracy(model) < 0.85

    def test_adabn_gets_the_accuracy_back(self, model):
        ns.adapt(model, target_data())
        assert accuracy(model) > 0.92

    def test_alpha_for_few_samples_lies_between_or_better(self, model):
        x, target = samples(1000, seed=3, shifted=True)
        losses, accuracies = {}, {}
        for n_prior in (0, 8, 64, 1e9):
            adaptation = ns.adapt(model, target_data(24, 24), method="alpha", n_prior=n_prior)
            with torch.no_grad():
                losses[n_prior] = float(nn.functional.cross_entropy(model(x), target))
            accuracies[n_prior] = accuracy(model)
            adaptation.reset()
        assert accuracy(model) == accuracies[1e9] < accuracies[64] < accuracies[0]
        assert losses[8] < 0.95 * min(losses[0], losses[1e9]), "less than by either alone"

    def test_tent_lowers_the_entropy_and_keeps_the_accuracy(self, model):
        @torch.no_grad()
        def entropy():
            return float(torch.distributions.Categorical(logits=model(torch.cat(target_data()))).entropy().mean())

        adaptation = ns.adapt(model, target_data())
        by_statistics = entropy()
        adaptation.reset()
        done = ns.adapt(model, target_data(2048), method="tent", lr=1e-2)
        assert entropy() < 0.8 * by_statistics
        assert accuracy(model) > 0.92
        assert len(done.entropies) == done.batches == 32
        assert sum(done.entropies[-8:]) < 0.8 * sum(done.entropies[:8])


class TestReset:
    @pytest.mark.parametrize("method", ["adabn", "alpha", "tent"])
    def test_to_the_bit(self, model, method):
        model[1].weight.requires_grad_(False)
        model[0].weight.requires_grad_(False)
        model[2].weight.grad = torch.randn(16)
        model[4].train()
        before, state = photograph(model), torch.get_rng_state()
        adaptation = ns.adapt(model, target_data(), method=method)
        after = photograph(model)
        assert not torch.equal(after[0]["0.running_mean"], before[0]["0.running_mean"])
        assert before[1:3] == after[1:3], "gradients and modes are put back at once"
        assert torch.equal(torch.get_rng_state(), state)
        model.train()
        model.requires_grad_(True)
        adaptation.reset()
        assert_photographs_equal(photograph(model), before)
        again = ns.adapt(model, target_data(), method=method)
        assert_photographs_equal(photograph(model), after)
        again.reset()

    @pytest.mark.parametrize("method", ["adabn", "alpha", "tent"])
    @pytest.mark.parametrize("bad", [math.nan, None], ids=["nan", "raises"])
    def test_after_an_error(self, model, method, bad):
        before = photograph(model)
        batches = [*target_data(), torch.randn(5, CHANNELS) * bad if bad else torch.randn(5, CHANNELS + 1)]
        with pytest.raises((RuntimeError, ns.InputError)):
            ns.adapt(model, batches, method=method)
        assert_photographs_equal(photograph(model), before)
        assert not any(m._forward_pre_hooks for m in model.modules())

    def test_of_a_model_that_is_another_now(self, model):
        adaptation = ns.adapt(model, target_data())
        del model[0].running_mean
        model[0].running_mean = None
        with pytest.raises(ns.ModelError, match=r"the model as it was: got .* whose 'running_mean' has changed"):
            adaptation.reset()


class TestAlpha:
    def test_the_union_with_samples_of_the_source(self):
        """A prior of as many samples as there were gives the statistics of all."""
        source, target = torch.randn(30, 3).double() * 2 + 5, torch.randn(10, 3).double()
        layer = nn.BatchNorm1d(3).double()
        ns.recalibrate(layer, [source])
        ns.adapt(layer, target.split([7, 3]), method="alpha", n_prior=30)
        assert_same(layer.running_mean, torch.cat([source, target]).mean(0))
        within = 0.75 * source.var(0) + 0.25 * target.var(0)
        between = 0.75 * 0.25 * (source.mean(0) - target.mean(0)).square()
        assert_same(layer.running_var, within + between)

    @pytest.mark.parametrize("norm", [nn.InstanceNorm1d, ns.InstanceNorm])
    def test_instance_norm_has_no_term_between(self, norm):
        x, layer = torch.randn(6, 3, 9).double() + 4, norm(3, track_running_stats=True).double()
        ns.adapt(layer, [x], method="alpha", alpha=0.25)
        assert_same(layer.running_var, 0.25 + 0.75 * x.var(2).mean(0))

    def test_the_extremes(self, model):
        before = photograph(model)
        ns.adapt(model, target_data(), method="alpha", alpha=1.0)
        for index in (0, 2):
            assert_same(model[index].running_var, before[0][f"{index}.running_var"])
        ns.adapt(model, target_data(), method="alpha", alpha=0)
        by_zero = copy.deepcopy(model.state_dict())
        ns.adapt(model, target_data())
        assert all(torch.equal(v, by_zero[k]) for k, v in model.state_dict().items())

    def test_sixteen_samples_unless_said(self):
        x, layer = torch.randn(48, 3).double() + 1, nn.BatchNorm1d(3).double()
        (row,) = ns.adapt(layer, x.split(12), method="alpha").layers
        assert_same(layer.running_mean, 0.75 * x.mean(0))
        assert_same(row.mean, 0.75 * x.mean(0) / math.sqrt(1 + 1e-5))
        assert row.samples == 48

    def test_layer_by_layer(self, model):
        other = copy.deepcopy(model)
        ns.adapt(model, target_data(), method="alpha", alpha=0.0, layerwise=True)
        ns.recalibrate(other, target_data(), layerwise=True)
        assert_same(model[2].running_var, other[2].running_var)


class TestTent:
    def test_it_is_the_step_of_the_paper(self):
        """By hand: batch statistics with their gradients, Adam at 1e-3 on weight and bias, entropy of the softmax."""
        for norm in (nn.BatchNorm1d, ns.BatchNorm):
            torch.manual_seed(4)
            model = nn.Sequential(norm(CHANNELS), nn.Linear(CHANNELS, 16), norm(16), nn.Tanh(), nn.Linear(16, CLASSES)).double()
            x = torch.randn(20, CHANNELS).double() * 3
            twin = copy.deepcopy(model).train()
            optimizer = torch.optim.Adam([*twin[0].parameters(), *twin[2].parameters()], lr=1e-3)
            entropies = []
            for batch in x.split(10):
                probabilities = twin(batch).softmax(1)
                entropy = -(probabilities * probabilities.log()).sum(1).mean()
                optimizer.zero_grad()
                entropy.backward()
                optimizer.step()
                entropies.append(float(entropy.detach()))
            done = ns.adapt(model.eval(), x.split(10), method="tent")
            assert done.entropies == pytest.approx(entropies, rel=1e-9)
            assert done.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
            for name, p in model.named_parameters():
                assert_same(p, twin.get_parameter(name), name)
            assert_same(model[0].running_mean, x.mean(0))
            assert_same(model[0].running_var, x.var(0))
            assert not any(p.grad is not None for p in model.parameters())

    def test_what_is_trained(self, model):
        before = copy.deepcopy(model.state_dict())
        done = ns.adapt(
            model,
            target_data(),
            method="tent",
            where=lambda _, name: name == "2",
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            batches=3,
        )
        assert done.parameters == ("2.weight", "2.bias")
        assert done.batches == 3
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        assert changed == {"2.weight", "2.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked"}

    def test_frozen_layers_are_left_alone(self):
        model = nn.Sequential(ns.BatchNorm(CHANNELS), ns.BatchNorm(CHANNELS))
        ns.freeze(model, where=lambda _, name: name == "0")
        assert ns.adapt(model, target_data(), method="tent").parameters == ("1.weight", "1.bias")

    def test_a_norm_with_an_activation_inside_and_a_block_named_after_a_norm(self):
        class NormAct(nn.BatchNorm1d):
            def __init__(self):
                super().__init__(CHANNELS)
                self.act = nn.ReLU()

            def forward(self, x):
                return self.act(super().forward(x))

        class LinearNorm(nn.Sequential):
            pass

        model = LinearNorm(nn.Linear(CHANNELS, CHANNELS), NormAct())
        assert ns.adapt(model, target_data(), method="tent").parameters == ("1.weight", "1.bias")
        with pytest.raises(ns.ModelError, match="got LinearNorm without normalizers"):
            ns.adapt(model[:1], target_data(), method="tent")

    def test_a_model_without_running_statistics(self):
        model = nn.Sequential(nn.Linear(CHANNELS, 6), nn.LayerNorm(6), nn.Linear(6, 3))
        done = ns.adapt(model, target_data(), method="tent", lr=0.1)
        assert done.layers == ()
        assert done.entropies[-1] < done.entropies[0]
        assert str(done).startswith("adapted by tent: 2 parameters, entropy ")

    def test_where_the_logits_are(self, model):
        x = target_data()[0]
        for pack in (lambda y: y, lambda y: (y, 3), lambda y: {"loss": 0, "logits": y}, lambda y: SimpleNamespace(logits=y)):
            adaptation = ns.adapt(model, [x], method="tent", forward=lambda m, b, pack=pack: pack(m(b)))
            first = adaptation.entropies
            adaptation.reset()
            assert first == ns.adapt(copy.deepcopy(model), [x], method="tent").entropies

    @pytest.mark.parametrize(
        ("forward", "error", "match"),
        [
            (lambda m, x: m(x)[:, :1], ns.InputError, r"two classes or more: got shape \(64, 1\)"),
            (lambda m, x: None, ns.InputError, "got NoneType; return them"),
            (lambda m, x: m(x).detach(), ns.ModelError, "that do not; call the model with gradients"),
            (lambda m, x: m(x) * math.nan, ns.InputError, "got others for batch 0"),
        ],
    )
    def test_no_logits(self, model, forward, error, match):
        before = photograph(model)
        with pytest.raises(error, match=match):
            ns.adapt(model, target_data(), method="tent", forward=forward)
        assert_photographs_equal(photograph(model), before)


def test_the_table(model):
    text = str(ns.adapt(model, target_data()))
    assert text.startswith("adapted by adabn\n")
    assert "statistics of 8 batches" in text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "bn"}, "'adabn', 'alpha', 'tent'"),
        ({"alpha": 0.5}, "alpha only with method 'alpha': got it with 'adabn'"),
        ({"method": "alpha", "lr": 1.0}, "lr only with method 'tent'"),
        ({"method": "tent", "layerwise": True}, "layerwise only with method 'adabn' or 'alpha'"),
        ({"method": "alpha", "alpha": 0.5, "n_prior": 3}, "either alpha or n_prior: got both"),
        ({"method": "tent", "lr": 1.0, "optimizer": torch.optim.SGD}, "either lr or optimizer: got both"),
        ({"method": "alpha", "alpha": 2}, "from 0 to 1: got 2"),
        ({"method": "alpha", "n_prior": -1}, "0 or more: got -1"),
        ({"method": "tent", "lr": 0}, "lr above zero: got 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_bad_options(model, options, match):
    with pytest.raises(ns.OptionError, match=match):
        ns.adapt(model, target_data(), **options)


@pytest.mark.parametrize("method", ["adabn", "alpha", "tent"])
def test_nothing_to_do(model, method):
    with pytest.raises(ns.InputError, match="got an empty one"):
        ns.adapt(model, [], method=method)
    with pytest.raises(ns.ModelError, match="got Linear without normalizers"):
        ns.adapt(nn.Linear(2, 2), target_data(), method=method)


def alpha_on_a_rank(rank):
    layer, x = nn.BatchNorm1d(CHANNELS), torch.cat(target_data(40, 40))
    own = x[:30] if rank == 0 else x[30:]
    ns.adapt(layer, own.split(10), method="alpha", n_prior=40)
    with pytest.raises(ns.OptionError, match="tent expects one process"):
        ns.adapt(layer, [x], method="tent")
    return layer.running_mean, x.mean(0)


def test_ranks():
    for found, mean in run_ranks(2, alpha_on_a_rank):
        assert_same(found, mean / 2)
