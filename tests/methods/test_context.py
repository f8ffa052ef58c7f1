"""Context norm: one context is batch norm, several are domain-specific batch norm, tables are the authors' code; unknown contexts."""

import copy

import pytest
import torch
from helpers import assert_same, example
from ranks import run_ranks

import normsmith as ns
from normsmith.surgery.param_groups import param_groups

SHAPE = (6, 12, 5, 3)
IDS = torch.tensor([2, 0, 2, 0, 0, 2])


def layer_of(**options):
    layer = ns.ContextNorm(12, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for t in layer.state_dict().values():
            if t.is_floating_point():
                t.add_(torch.rand(t.shape, generator=generator, dtype=torch.float64))
    return layer


def grads(y, tensors):
    return torch.autograd.grad(y, tensors, example(tuple(y.shape), seed=4))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_one_context_is_batch_norm(backend):
    layer, other = layer_of(num_contexts=1), ns.BatchNorm(12, dtype=torch.float64)
    other.load_state_dict({k: v.view(getattr(other, k).shape) for k, v in layer.state_dict().items()})
    x, ids = example(SHAPE).requires_grad_(), torch.zeros(6, dtype=torch.long)
    with ns.backend(backend):
        for _ in range(2):
            y, expected = layer(x, ids), other(x)
            assert_same(y, expected, "output")
            found, wanted = (grads(t, [x, m.weight, m.bias]) for t, m in ((y, layer), (expected, other)))
            for one, two in zip(found, wanted, strict=True):
                assert_same(one, two, "gradient")
        for key, value in other.state_dict().items():
            assert_same(layer.state_dict()[key].flatten().double(), value.flatten().double(), key)
        assert_same(layer.eval()(x, ids), other.eval()(x), "evaluation")


@pytest.mark.parametrize("affine", [False, True])
def test_several_are_domain_specific_batch_norm_with_weight_and_bias_shared(affine):
    layer = layer_of(num_contexts=3, affine=affine)
    other = ns.ConditionalNorm(12, num_conditions=3, statistics="condition", affine=affine, dtype=torch.float64)
    other.load_state_dict({k: v.expand(getattr(other, k).shape) for k, v in layer.state_dict().items()})
    x = example(SHAPE)
    for training in (True, False, True):
        assert torch.equal(layer.train(training)(x, IDS), other.train(training)(x, IDS))
    for key, value in layer.named_buffers():
        assert torch.equal(value, getattr(other, key)), key


def test_an_absent_context_stays_and_swapping_ids_swaps_statistics():
    layer = layer_of(num_contexts=3)
    before = copy.deepcopy(layer.state_dict())
    layer(example(SHAPE), IDS)
    assert layer.num_batches_tracked.tolist() == [1, 0, 1]
    for key in ("running_mean", "running_var"):
        assert torch.equal(getattr(layer, key)[1], before[key][1])
        assert not torch.allclose(getattr(layer, key)[0], before[key][0])
    one, other = (ns.ContextNorm(12, num_contexts=3, dtype=torch.float64) for _ in range(2))
    assert_same(one(example(SHAPE), IDS), other(example(SHAPE), 2 - IDS))
    assert_same(one.running_var, other.running_var.flip(0))


def test_contexts_are_independent():
    x = example(SHAPE)
    mates = torch.where((IDS == 2).view(-1, 1, 1, 1), x * 3 + 5, x)
    layer = layer_of(num_contexts=3)
    assert torch.equal(layer(x, IDS)[IDS == 0], layer(mates, IDS)[IDS == 0])


def test_a_context_of_one_element_takes_its_running_statistics_and_moves_none():
    layer, ids = layer_of(), torch.tensor([0, 0, 1, 0])
    before = copy.deepcopy(layer)
    y = layer(example((4, 12)), ids)
    assert_same(y[2], before.eval()(example((4, 12)), ids)[2])
    assert torch.equal(layer.running_mean[1], before.running_mean[1])
    assert layer.num_batches_tracked.tolist() == [1, 0]


def test_tables_with_the_moments_of_the_data_standardise_each_context():
    x = example(SHAPE)
    layer = ns.ContextNorm(12, num_contexts=3, stats="parameters", eps=1e-12, dtype=torch.float64)
    assert_same(layer(x, IDS), x, "the identity at the start", 1e-9)
    with torch.no_grad():
        for k in (0, 2):
            layer.context_mean[k] = x[k == IDS].mean((0, 2, 3))
            layer.context_log_std[k] = x[k == IDS].std((0, 2, 3), correction=0).log()
    for y in (layer(x, IDS), layer.eval()(x, IDS)):
        for k in (0, 2):
            own = y[k == IDS]
            assert_same(own.mean((0, 2, 3)), torch.zeros(12))
            assert_same(own.var((0, 2, 3), correction=0), torch.ones(12))


def test_the_code_of_the_authors():
    """A linear layer without bias on one-hot contexts for the mean, the exponential of another for the deviation, eps beside it."""
    layer = ns.ContextNorm(
        12, num_contexts=3, stats="parameters", initial="xavier", eps_outside=True, eps=1e-3, affine=False, dtype=torch.float64
    )
    bound = (6 / 15) ** 0.5
    assert 0.5 * bound < float(layer.context_mean.detach().abs().max()) <= bound
    assert not torch.equal(layer.context_mean, layer.context_log_std)
    mean, log_std = (torch.nn.Linear(3, 12, bias=False, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        mean.weight.copy_(layer.context_mean.T)
        log_std.weight.copy_(layer.context_log_std.T)
    x, one_hot = example((6, 12)).requires_grad_(), torch.nn.functional.one_hot(IDS, 3).double()
    expected = (x - mean(one_hot)) / (log_std(one_hot).exp() + 1e-3)
    y = layer(x, IDS)
    assert_same(y, expected)
    found = grads(y, [x, layer.context_mean, layer.context_log_std])
    wanted = grads(expected, [x, mean.weight, log_std.weight])
    for one, two in zip(found, (wanted[0], wanted[1].T, wanted[2].T), strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("stats", ["batch", "parameters"])
@pytest.mark.parametrize("prior", [None, (1.0, 0.0, 3.0)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_unknown_context_gets_the_average_of_what_all_would_make_of_it(stats, prior, training, backend):
    layer = layer_of(num_contexts=3, stats=stats, unknown="average", prior=prior).train(training)
    known = copy.deepcopy(layer).eval()
    ids, x = torch.tensor([0, -1, 2, 0, -1, 2]), example(SHAPE).requires_grad_()
    with ns.backend(backend):
        y = layer(x, ids)
        outputs = torch.stack([known(x, torch.full_like(ids, k)) for k in range(3)])
    shares = torch.tensor(prior or (1.0, 1.0, 1.0)).double()
    expected = (outputs * (shares / shares.sum()).view(3, 1, 1, 1, 1)).sum(0)
    assert_same(y[ids == -1], expected[ids == -1], "output")
    assert_same(grads(y[ids == -1], [x])[0], grads(expected[ids == -1], [x])[0], "gradient")
    if stats == "batch":
        assert layer.num_batches_tracked.tolist() == ([1, 0, 1] if training else [0, 0, 0])
        mates = copy.deepcopy(known).train(training)(x[ids != -1], ids[ids != -1])
        assert_same(y[ids != -1], mates, "the others do not see them")


def test_a_batch_of_nothing_but_unknown_contexts():
    layer = layer_of(unknown="average")
    before = copy.deepcopy(layer.state_dict())
    x = example((4, 12, 5)).requires_grad_()
    layer(x, torch.full((4,), -1)).sum().backward()
    assert x.grad.isfinite().all()
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def unknown_over(rank, split):
    x, ids, own = example((6, 12, 2)), torch.tensor([0, -1, 1, -1, 1, 0]), slice(sum(split[:rank]), sum(split[: rank + 1]))
    layer = layer_of(unknown="average")
    if len(split) > 1:
        ns.synchronize(layer)
    x = x[own].requires_grad_()
    y = layer(x, ids[own])
    return y.detach(), torch.autograd.grad(y, x, example((6, 12, 2), seed=4)[own])[0], dict(layer.named_buffers())


def test_unknown_contexts_over_two_ranks():
    y, dx, buffers = unknown_over(0, (6,))
    ranks = run_ranks(2, unknown_over, (4, 2))
    assert_same(torch.cat([rank[0] for rank in ranks]), y, "output")
    assert_same(torch.cat([rank[1] for rank in ranks]), dx, "gradient")
    for rank in ranks:
        for key, buffer in buffers.items():
            assert_same(rank[2][key].double(), buffer.double(), key)


def test_tables_are_not_decayed():
    groups = param_groups(ns.ContextNorm(4, stats="parameters"), 0.1)
    assert sum(len(group["params"]) for group in groups if group["weight_decay"] == 0) == 4
    assert not any(group["params"] for group in groups if group["weight_decay"])


@pytest.mark.parametrize(
    ("options", "ids", "sentence"),
    [
        ({}, [0, 1, 2], "3 integers from 0 to 1: got 2; build the layer with num_contexts above the largest id"),
        ({}, [0, -1, 1], "from 0 to 1: got -1"),
        ({"unknown": "average"}, [0, -2, 1], "from -1 to 1: got -2"),
        ({"stats": "parameters"}, [0, -1, 1], "from 0 to 1: got -1"),
        ({}, [0, 1], r"got torch.int64 of shape \(2,\)"),
        ({}, [0.0, 1.0, 0.0], "got torch.float32"),
    ],
)
def test_bad_contexts(options, ids, sentence):
    with pytest.raises(ns.InputError, match=f"ContextNorm expects the context as .*{sentence}"):
        ns.ContextNorm(12, **options)(torch.randn(3, 12, 5), torch.tensor(ids))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_contexts": 0}, "num_contexts as a positive integer"),
        ({"stats": "both"}, "one of 'batch', 'parameters'"),
        ({"unknown": "skip"}, "one of 'error', 'average'"),
        ({"initial": "zero"}, "one of 'identity', 'xavier'"),
        ({"stats": "parameters", "momentum": 0.2}, 'expects momentum with stats="batch"'),
        ({"stats": "parameters", "frozen": False}, 'expects frozen with stats="batch"'),
        ({"eps_outside": True}, 'expects eps_outside with stats="parameters"'),
        ({"initial": "xavier"}, 'expects initial with stats="parameters"'),
        ({"unknown": "average", "track_running_stats": False}, "expects running statistics"),
        ({"prior": (1, 2)}, 'prior with unknown="average"'),
        ({"unknown": "average", "prior": (1,)}, "prior as 2 numbers"),
        ({"unknown": "average", "prior": (0, 0)}, "prior as 2 numbers"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(ns.OptionError, match=sentence) as raised:
        ns.ContextNorm(12, **options)
    assert "\n" not in str(raised.value)
