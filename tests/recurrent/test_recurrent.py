"""LSTM and GRU against torch's and against the oracle: outputs, states and every gradient, in all forms of input."""

import copy
import itertools
import warnings

import pytest
import torch
from helpers import assert_same
from oracles import recurrent as oracle
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import normsmith as ns

KINDS = {"lstm": (ns.LSTM, nn.LSTM), "gru": (ns.GRU, nn.GRU)}
LENGTHS = torch.tensor([3, 5, 2, 5])
every_kind = pytest.mark.parametrize("kind", KINDS)


def identity(_):
    return nn.Identity()


def sequences(steps=5, samples=4, numbers=3, dtype=torch.float64):
    return torch.randn(steps, samples, numbers, dtype=dtype, generator=torch.Generator().manual_seed(1))


def made(kind, *sizes, norm="layer", dtype=torch.float64, **options):
    """A layer whose parameters and buffers are moved away from where they begin."""
    layer = KINDS[kind][0](*(sizes or (3, 4)), norm=norm, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                low = 0.5 if "running_var" in key or "norm" in key else -0.5
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) + low)
    return layer


def flat(found):
    """The tensors of what a layer returns."""
    output, states = found
    output = output.data if isinstance(output, PackedSequence) else output
    return [output, *(states if isinstance(states, tuple) else (states,))]


def slopes(outputs, inputs):
    """The gradients of a sum that weighs every output differently."""
    total = sum((y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum() for y in outputs)
    return torch.autograd.grad(total, inputs)


@every_kind
@pytest.mark.parametrize("norm", [None, identity], ids=["none", "identity"])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "batch_first", "bias"),
    [(1, False, False, False), *itertools.product((1, 2), (False, True), (False, True), (True,))],
)
def test_without_a_norm_it_is_torchs(kind, norm, layers, bidirectional, batch_first, bias):
    options = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    ours = KINDS[kind][0](3, 4, layers, norm=norm, dtype=torch.float64, **options)
    theirs = KINDS[kind][1](3, 4, layers, **options).double()
    ours.load_state_dict(theirs.state_dict())
    x = sequences().transpose(0, 1).contiguous() if batch_first else sequences()
    packed = pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False)
    state = torch.rand(2, layers * (1 + bidirectional), 4, 4, dtype=torch.float64).unbind()
    state = state if kind == "lstm" else state[0]
    for given, hx in ((x, None), (x, state), (packed, state)):
        found, expected = flat(ours(given, hx)), flat(theirs(given, hx))
        names = list(theirs.state_dict())
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, tolerance=1e-14)
        grads = (
            slopes(result, [model.get_parameter(n) for n in names]) for result, model in ((found, ours), (expected, theirs))
        )
        for name, one, other in zip(names, *grads, strict=True):
            assert_same(one, other, name, tolerance=1e-13)
    assert isinstance(ours(packed)[0], PackedSequence)
    padded = pad_packed_sequence(theirs(packed, state)[0], batch_first)[0]
    assert_same(ours(x, state, lengths=LENGTHS)[0], padded, tolerance=1e-14)


@every_kind
@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["even", "lengths"])
def test_against_the_oracle(kind, norm, training, lengths):
    """Two layers in both directions; batch norm has statistics for three of the five steps."""
    layer = made(kind, 3, 4, 2, norm=norm, bidirectional=True, max_steps=3).train(training)
    state = {k: v.detach().clone().requires_grad_() for k, v in layer.named_parameters()}
    running = None
    if norm == "batch" and not training:
        norms = [name for name, module in layer.named_children() if isinstance(module, ns.BatchNorm)]
        running = {n: tuple(layer.get_buffer(f"{n}.running_{what}").clone() for what in ("mean", "var")) for n in norms}
    x = sequences().requires_grad_()
    y = x.detach().clone().requires_grad_()
    found = flat(layer(x, lengths=lengths))
    output, last, _ = oracle.forward(
        kind, y, state, norm, layers=2, bidirectional=True, lengths=lengths, running=running, max_steps=3
    )
    for one, other in zip(found, [output, *last], strict=True):
        assert_same(one, other)
    moved = [name for name, p in layer.named_parameters() if p.requires_grad]
    ours = slopes(found, [x, *(layer.get_parameter(n) for n in moved)])
    theirs = slopes([output, *last], [y, *(state[n] for n in moved)])
    for name, one, other in zip(["x", *moved], ours, theirs, strict=True):
        assert_same(one, other, name, tolerance=1e-8)


def test_statistics_of_each_step_are_of_the_sequences_that_go_on():
    layer = made("lstm", norm="batch", max_steps=3)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    lengths = torch.tensor([3, 5, 2, 5])
    layer(sequences(), lengths=lengths)
    state = {k: v.detach() for k, v in layer.named_parameters()}
    _, _, seen = oracle.forward("lstm", sequences(), state, "batch", lengths=lengths)
    for which in ("norm_ih", "norm_hh", "norm_c"):
        key = f"{which}_l0.running_"
        for step in range(3):
            rows = seen["_l0"][step][which]
            assert_same(layer.state_dict()[key + "mean"][step], 0.9 * before[key + "mean"][step] + 0.1 * rows.mean(0))
            assert_same(layer.state_dict()[key + "var"][step], 0.9 * before[key + "var"][step] + 0.1 * rows.var(0))
        assert layer.get_buffer(f"{which}_l0.num_batches_tracked").tolist() == [1, 1, 1]


def test_later_steps_have_the_statistics_of_the_last():
    short = made("lstm", norm="batch", max_steps=2).eval()
    long = made("lstm", norm="batch", max_steps=5).eval()
    for name, buffer in short.named_buffers():
        into = long.get_buffer(name)
        into[:2] = buffer
        into[2:] = buffer[1]
    long.load_state_dict({**dict(long.named_buffers()), **dict(short.named_parameters())})
    assert_same(short(sequences())[0], long(sequences())[0], tolerance=1e-14)
    x = sequences()
    short.get_buffer("norm_hh_l0.running_mean")[1] += 1
    assert not torch.equal(short(x)[0][2:], long(x)[0][2:])


@pytest.mark.parametrize("norm", ["layer", "rms", "group:num_groups=2", nn.LayerNorm])
@every_kind
def test_a_sample_does_not_depend_on_its_batch_mates(kind, norm):
    options = {"cell_norm": "layer"} if kind == "lstm" else {}
    layer, x = made(kind, norm=norm, bidirectional=True, **options), sequences()
    alone = [layer(x[: LENGTHS[n], n : n + 1])[0] for n in range(4)]
    together = layer(x, lengths=LENGTHS)[0]
    for n, output in enumerate(alone):
        assert_same(together[: LENGTHS[n], n], output[:, 0], tolerance=1e-13)
        assert not together[LENGTHS[n] :, n].any()
    x[3:, 0] = float("nan")  # padding has no part in anything
    assert_same(layer(x, lengths=LENGTHS)[0], together, tolerance=1e-13)


def test_a_single_sequence_that_goes_on_has_the_running_statistics():
    layer = made("lstm", norm="batch", max_steps=5)
    x, lengths = sequences(samples=3), torch.tensor([2, 5, 2])
    layer.norm_hh_l0.reset_running_stats()
    expected = layer.norm_hh_l0.running_mean[3].clone()
    before = layer(x, lengths=lengths)[0][3, 1]
    assert torch.equal(layer.norm_hh_l0.running_mean[3], expected)
    layer.norm_hh_l0.running_mean[3] += 1
    assert not torch.equal(layer(x, lengths=lengths)[0][3, 1], before)
    assert layer.norm_ih_l0.num_batches_tracked[:5].tolist() == [2, 2, 0, 0, 0]


def test_a_batch_of_one_is_refused_with_batch_norm():
    layer = made("gru", norm="batch")
    with pytest.raises(ns.TooFewValuesError, match="expects more than 1 value per channel"):
        layer(sequences(samples=1))
    layer.eval()(sequences(samples=1))


def test_noise_on_the_first_state():
    x = torch.ones(4, 6, 3, dtype=torch.float64)  # all alike: without noise every variance is zero
    layer = made("lstm", norm="batch", h0_noise=0.1)
    spread = layer(x)[0].std(1).detach()
    assert (spread > 0).all()
    layer.h0_noise = 0.0
    assert float(layer(x[:2])[0].detach().std(1).max()) < 1e-8
    layer = made("gru", h0_noise=5.0).eval()
    assert torch.equal(layer(x)[0], layer(x)[0])  # in training alone
    h = torch.zeros(1, 2000, 4, dtype=torch.float64)
    (noisy,) = layer.train()._start((h,), x, h.shape)
    assert 4.7 < float(noisy.std()) < 5.3


@every_kind
def test_derivatives_of_derivatives(kind):
    for norm in ("layer", "batch"):
        layer, x = made(kind, 2, 2, norm=norm), sequences(2, 3, 2).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, layer=layer: flat(layer(x))[0], x)
        assert torch.autograd.gradgradcheck(lambda x, layer=layer: flat(layer(x))[0], x, fast_mode=True)


@every_kind
@pytest.mark.parametrize("norm", ["layer", "batch", None])
def test_autocast(kind, norm):
    layer, x = KINDS[kind][0](3, 8, norm=norm), sequences(dtype=torch.float32)
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)[0]
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    found.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("norm", ["layer", pytest.param("batch", marks=pytest.mark.slow)])
def test_compiled(norm):
    layer, x = made("lstm", norm=norm, max_steps=1), sequences(2, 4)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        found, expected = flat(compiled(x)), flat(layer(x))
        for one, two in zip(found, expected, strict=True):
            assert_same(one, two)
        for one, two in zip(slopes(found, [other.weight_ih_l0]), slopes(expected, [layer.weight_ih_l0]), strict=True):
            assert_same(one, two)
    for key, buffer in layer.named_buffers():
        assert_same(other.get_buffer(key).double(), buffer.double(), key)


@pytest.mark.parametrize(("cell", "theirs", "layer"), [(ns.LSTMCell, nn.LSTMCell, ns.LSTM), (ns.GRUCell, nn.GRUCell, ns.GRU)])
def test_cells(cell, theirs, layer):
    plain, reference = cell(3, 4, norm=None, dtype=torch.float64), theirs(3, 4).double()
    plain.load_state_dict(reference.state_dict())
    x = sequences()
    state = tuple(torch.rand(2, 4, 4, dtype=torch.float64)) if cell is ns.LSTMCell else torch.rand(4, 4, dtype=torch.float64)
    for hx in (None, state):
        for one, other in zip(torch.stack([*plain(x[0], hx)]), torch.stack([*reference(x[0], hx)]), strict=True):
            assert_same(one, other, tolerance=1e-14)
    assert_same(torch.stack([*plain(x[0, 0])]), torch.stack([*reference(x[0, 0])]), tolerance=1e-14)
    for norm in ("layer", "batch"):
        whole, one = (
            layer(3, 4, norm=norm, dtype=torch.float64, max_steps=3),
            cell(3, 4, norm=norm, dtype=torch.float64, max_steps=3),
        )
        one.load_state_dict({key.replace("_l0", ""): value for key, value in whole.state_dict().items()})
        h, outputs = None, []
        for step in range(5):
            h = one(x[step], h, step)
            outputs.append(h[0] if cell is ns.LSTMCell else h)
        assert_same(torch.stack(outputs), whole(x)[0], tolerance=1e-13)
        for key, buffer in whole.named_buffers():
            assert_same(one.get_buffer(key.replace("_l0", "")).double(), buffer.double(), key)


def test_a_norm_for_each_gate_is_group_norm():
    layer = made("lstm", norm="group:num_groups=4", cell_norm="layer")
    x = sequences(1)
    products = (x[0] @ layer.weight_ih_l0.T).chunk(4, 1), torch.zeros(4, 16, dtype=torch.float64).chunk(4, 1)
    parts = [torch.cat([nn.functional.layer_norm(part, (4,)) for part in product], 1) for product in products]
    gates = parts[0] * layer.norm_ih_l0.weight + layer.bias_ih_l0 + layer.bias_hh_l0
    i, _, g, o = gates.chunk(4, 1)
    c = i.sigmoid() * g.tanh()
    seen = nn.functional.layer_norm(c, (4,), layer.norm_c_l0.weight, layer.norm_c_l0.bias)
    # the bias of a product's norm is fixed at zero, but `made` has moved it
    with torch.no_grad():
        layer.norm_ih_l0.bias.zero_()
        layer.norm_hh_l0.bias.zero_()
    output, (_, last) = layer(x)
    assert_same(last[0], c)
    assert_same(output[0], o.sigmoid() * seen.tanh())


@pytest.mark.parametrize(
    ("norm", "calls"), [("layer", 1), ("rms", 1), (nn.LayerNorm, 1), ("ghost", 5), ("noisy", 5), (nn.BatchNorm1d, 5)]
)
def test_rows_of_all_steps_come_together_where_each_is_by_itself(norm, calls):
    layer, seen = made("gru", norm=norm), []
    layer.norm_ih_l0.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    layer(sequences())
    assert seen == [20 // calls] * calls


def test_dropout_is_between_layers():
    torch.manual_seed(0)
    layer, x = made("lstm", 3, 4, 2, dropout=0.5), sequences()
    assert not torch.equal(layer(x)[0], layer(x)[0])
    assert torch.equal(layer.eval()(x)[0], layer(x)[0])
    only_second = made("lstm", 3, 4, 2, dropout=1.0)
    assert torch.equal(only_second(x)[0], only_second(x + 1)[0])  # nothing of the input is left


@pytest.mark.parametrize(
    "norm",
    [
        name
        for name, e in ns.catalog().items()
        if e.family not in ("adaptive", "chained") and name not in ("instance", "ibn", "batch_instance", "filter_response")
    ],
)
def test_methods_of_the_catalog(norm):
    layer = ns.LSTM(3, 8, norm=norm)
    assert type(layer.norm_hh_l0).__mro__[norm == "batch"] is ns.catalog()[norm].load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y, _ = layer(sequences(dtype=torch.float32))
    y.sum().backward()
    assert layer.norm_ih_l0.bias is None or not layer.norm_ih_l0.bias.requires_grad
    assert float(layer.weight_ih_l0.grad.abs().sum()) > 0
    assert layer.eval()(sequences(dtype=torch.float32))[0].isfinite().all()
