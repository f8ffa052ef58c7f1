import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same
from ranks import run_ranks
from surgery.helpers_surgery import shaken
from torch import nn
from torch.nn.utils import parametrizations

import normsmith as ns
from normsmith.natural.layer import NaturalLayer
from normsmith.natural.whitened import WhitenedLayer

EXACT = ["wnn", "wnn:basis=zca", "prong_plus", "gwnn_pre:energy=1.0", "eigennet", "eigennet:scale=fisher"]
ALL = [*EXACT, "gwnn_pre:energy=0.8"]


def network(dtype=torch.float64, bias=True):
    torch.manual_seed(3)
    layers = (
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 12, bias=bias),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(12, 4),
    )
    return shaken(nn.Sequential(*layers)).to(dtype)


def batch(dtype=torch.float64, samples=24):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(samples, 3, 4, 4, generator=generator).to(dtype) * 2 + 3
    return x, torch.randint(4, (samples,), generator=generator)


def place(model, name, data, **more):
    loss = F.cross_entropy if name.startswith("eigennet") else None
    return ns.reparametrize(model, name, data=data, loss=loss, **more)


def evaluated(model, x):
    mode = model.training
    y = model.eval()(x).detach()
    model.train(mode)
    return y


def train(model, optimizer, steps=1, total=100, first=0):
    x, target = batch()
    for step in range(first, first + steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
        ns.step_schedules(model, step + 1, total)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("bias", [True, False])
def test_placing_refreshing_and_folding_keep_the_function(name, bias):
    model, (x, target) = network(bias=bias), batch()
    y, before = evaluated(model, x), {key: b.clone() for key, b in model.named_buffers()}
    handle = place(model, name, (x, target))
    assert handle.model is model
    assert len(handle.converted) == 4
    assert_same(evaluated(model, x), y, tolerance=1e-12)
    assert all(torch.equal(b, before[key]) for key, b in model.named_buffers() if key in before)
    handle.refresh([(x * 2, target), (x[:3], target[:3])])
    assert_same(evaluated(model, x), y, tolerance=1e-12)
    handle.fold()
    assert not any(isinstance(m, NaturalLayer) for m in model.modules())
    assert [type(m) for m in model] == [type(m) for m in network()]
    assert_same(evaluated(model, x), y, tolerance=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_undo_gives_back_layers_and_optimizer(name):
    model, data = network(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    train(model, optimizer, 2)
    state, modules = copy.deepcopy(model.state_dict()), list(model)
    remembered = copy.deepcopy(optimizer.state_dict())
    handle = place(model, name, data, optimizer=optimizer)
    train(model, optimizer, 2)
    handle.undo()
    assert list(model) == modules
    for key, value in state.items():
        assert torch.equal(model.state_dict()[key], value) or key.startswith("1.")  # the norm was trained on
    after = optimizer.state_dict()
    assert after["param_groups"] == remembered["param_groups"]
    for index, entry in remembered["state"].items():
        if index not in (1, 2):
            assert all(torch.equal(after["state"][index][key], value) for key, value in entry.items())
    with pytest.raises(ns.ModelError, match="undone"):
        handle.refresh(data)
    with pytest.raises(ns.ModelError, match="undone"):
        handle.fold()


def test_the_table_says_what_was_done_and_left():
    model = nn.ModuleDict(
        {
            "one": nn.Linear(4, 4),
            "tied": nn.Linear(4, 4),
            "alias": nn.Linear(4, 4),
            "shared": nn.Linear(4, 4),
            "normed": parametrizations.weight_norm(nn.Linear(4, 4)),
            "never": nn.Linear(4, 4),
            "last": nn.Linear(4, 2),
        }
    )
    model["alias"].weight = model["tied"].weight
    model["again"] = model["shared"]
    model.add_module("up", nn.ConvTranspose1d(4, 4, 1))
    model["attention"] = nn.MultiheadAttention(4, 1)

    def forward(x):
        for name in ("one", "tied", "alias", "shared", "again", "normed"):
            x = model[name](x)
        return model["last"](model["attention"](x, x, x)[0])

    model.forward = forward
    handle = ns.reparametrize(model, "prong_plus", data=torch.randn(20, 4))
    rows = {row.layer: row for row in handle.rows}
    assert handle.converted == ["one", "last"]
    assert "norm" in rows["one"].fresh
    assert "norm" not in rows["last"].fresh  # the output of a model is not normed
    assert "tied weight: tied.weight, alias.weight" in rows["tied"].reason
    assert "shared: shared, again" in rows["shared"].reason
    assert "parametrization already" in rows["normed"].reason or "subclass" in rows["normed"].reason
    assert "does not reach" in rows["never"].reason
    assert "transposed" in rows["up"].reason
    assert "subclass" in rows["attention.out_proj"].reason
    assert "4 of 4 directions" in str(handle)
    assert "2 layers reparametrized" in str(handle)


def test_norms_come_where_none_is():
    model, data = network(), batch()
    place(model, "prong_plus", data)
    assert [m.norm is not None for m in model if isinstance(m, NaturalLayer)] == [False, True, True, False]
    model = network()
    place(model, "gwnn_pre:norm=all", data)
    assert all(m.norm is not None for m in model if isinstance(m, NaturalLayer))
    model = network()
    place(model, "gwnn_pre:norm=none", data)
    assert all(m.norm is None for m in model if isinstance(m, NaturalLayer))


def test_all_directions_and_no_norm_is_wnn():
    (x, target), states = batch(), []
    for name in ("wnn", "gwnn_pre:energy=1.0,norm=none"):
        model = network()
        place(model, name, (x, target))
        model.eval()
        F.cross_entropy(model(x), target).backward()
        states.append([p.grad for p in model.parameters()] + list(model.state_dict().values()))
    for one, other in zip(*states, strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)


def test_without_refreshes_and_data_that_is_white_it_trains_as_the_plain_net():
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(40, 5).double() - torch.randn(40, 5).double().mean(0))[0]
    x = torch.linalg.qr(x - x.mean(0))[0] * 40**0.5  # mean 0, covariance 1
    target = torch.randn(40, 2).double()
    plain = nn.Linear(5, 2).double()
    white = copy.deepcopy(plain)
    white = ns.reparametrize(white, "wnn:eps=0.0,basis=zca", data=x).model
    for model in (plain, white):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for step in range(10):
            optimizer.zero_grad()
            F.mse_loss(model(x), target).backward()
            optimizer.step()
            ns.step_schedules(model, step + 1, 10)
    assert_same(white.weight, plain.weight, tolerance=1e-9)


@pytest.mark.parametrize("name", ["wnn", "eigennet", "eigennet:energy=0.8", "gwnn_pre:energy=0.8", "prong_plus"])
def test_refreshes_come_every_so_many_steps_from_what_was_seen(name):
    model, data = network(), batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    handle = place(model, name, data, every=4, window=2, optimizer=optimizer)
    layer = model[6]
    kept = []
    for step in range(8):
        before = layer.whitening.clone()
        train(model, optimizer, first=step)
        kept.append(torch.equal(before, layer.whitening))
        evaluated(model, data[0] * 1e6)  # evaluation is not what is seen
        assert (layer.seen.spread is None) == (step % 4 != 2), "it looks in the two steps before"
    assert kept == [True, True, True, False] * 2
    again = copy.deepcopy(model)
    handle.refresh(data)
    assert all(m.steps == 8 for m in again.modules() if isinstance(m, NaturalLayer))


def test_a_step_with_an_overflow_leaves_the_coordinates():
    model, (x, target) = network(), batch()
    place(model, "wnn", (x, target), every=1)
    before = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor) and "1." not in k[:2]}
    model[6](torch.full((2, 24), torch.inf).double())
    ns.step_schedules(model, 1, 10)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    with pytest.raises(ns.InputError, match="finite"):
        ns.reparametrize(network(), "wnn", data=x * torch.nan)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), lambda p: torch.optim.Adam(p, 0.01)])
@pytest.mark.parametrize("name", ["wnn", "eigennet"])
def test_momenta_are_reset_or_carried_over(make, name):
    for moments in ("reset", "transform"):
        model, data = network(), batch()
        optimizer = make(model.parameters())
        train(model, optimizer, 3)
        handle = place(model, name, data, optimizer=optimizer, moments=moments)
        weight = model[6].whitened_weight
        if moments == "reset":
            assert weight not in optimizer.state
            assert model[1].weight in optimizer.state
        else:
            key = "momentum_buffer" if "momentum_buffer" in optimizer.state[weight] else "exp_avg"
            before = _in_function(model[6], optimizer, key)
            handle.refresh((data[0] * 2 + 1, data[1]))
            for one, other in zip(_in_function(model[6], optimizer, key), before, strict=True):
                assert_same(one, other, tolerance=1e-9)
            if key == "exp_avg":
                assert (optimizer.state[weight]["exp_avg_sq"] >= 0).all()
                assert optimizer.state[weight]["step"] == 3
        train(model, optimizer, 2)


def _in_function(layer, optimizer, key):
    """A momentum as the velocity, or the gradient, of W and b."""
    v, d = (optimizer.state[p][key] for p in (layer.whitened_weight, layer.whitened_bias))
    u, c = layer.whitening[0], layer.center
    r = torch.eye(len(v)).double() if layer.restoring is None else layer.restoring[0]
    if key == "momentum_buffer":
        return r @ v @ u, r @ d - r @ v @ u @ c
    db = torch.linalg.solve(r.T, d)
    return torch.linalg.solve(r.T, v) @ torch.linalg.inv(u).T + torch.outer(db, c), db


def test_transformed_squares_are_those_of_independent_entries():
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 2).double(), torch.randn(50, 3).double() @ torch.randn(3, 3).double()
    optimizer = torch.optim.Adam(layer.parameters())
    layer(x).square().mean().backward()
    optimizer.step()
    before = optimizer.state[layer.weight]["exp_avg_sq"].clone()
    made = ns.reparametrize(layer, "wnn", data=x, optimizer=optimizer, moments="transform").model
    expected = before @ made.whitening[0].T.square()  # g_new = g Uᵀ: variances of independent entries add up
    assert_same(optimizer.state[made.whitened_weight]["exp_avg_sq"], expected, tolerance=1e-12)


def test_an_optimizer_with_other_memories_is_reset():
    model, data = network(), batch()
    optimizer = torch.optim.Rprop(model.parameters())
    train(model, optimizer)
    place(model, "wnn", data, optimizer=optimizer, moments="transform")
    assert model[6].whitened_weight not in optimizer.state


def test_new_parameters_join_the_group_of_their_layer():
    model, data = network(), batch()
    groups = [{"params": list(model[:6].parameters()), "lr": 0.1}, {"params": list(model[6:].parameters()), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups)
    place(model, "gwnn_pre:energy=0.5", data, optimizer=optimizer)
    assert {p for g in optimizer.param_groups for p in g["params"]} == set(model.parameters())
    assert set(optimizer.param_groups[1]["params"]) == set(model[6:].parameters())
    train(model, optimizer, 2)


def test_groups_of_parameters_and_flags():
    model, data = network(), batch()
    model[6].weight.requires_grad_(False)
    model[6].bias.requires_grad_(False)
    hooked = []
    model[9].register_forward_hook(lambda *_: hooked.append(1))
    place(model, "prong_plus", data)
    assert not any(p.requires_grad for p in model[6].parameters())
    hooked.clear()
    model(data[0])
    assert hooked == [1]
    names = {p: n for n, p in model.named_parameters()}
    groups = {g["name"]: {names[p] for p in g["params"]} for g in ns.param_groups(model, 1e-2)}
    assert groups["weights"] == {f"{i}.whitened_weight" for i in (0, 3, 6, 9)}
    assert groups["biases"] == {"9.whitened_bias"}
    assert groups["affine"] == {"1.weight", "1.bias", "3.norm.weight", "3.norm.bias", "6.norm.weight", "6.norm.bias"}


@pytest.mark.parametrize("name", ALL)
def test_copies_checkpoints_and_pickles(name):
    model, data = network(), batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    place(model, name, data, every=3, window=3, optimizer=optimizer)
    train(model, optimizer, 2)
    y = evaluated(model, data[0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(evaluated(other, data[0]), y)
        train(other, torch.optim.SGD(other.parameters(), 0.01), first=2)  # a refresh of its own
        assert torch.equal(evaluated(model, data[0]), y)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = network()
    place(other, name, (data[0][:5] * 3 + 1, data[1][:5]), every=3)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(evaluated(other, data[0]), y)
    assert other[6].steps == 2


@pytest.mark.parametrize("name", ["prong_plus", "eigennet"])
def test_float32_and_autocast_are_near(name):
    model, (x, target) = network(torch.float32), batch(torch.float32)
    y = evaluated(model, x)
    place(model, name, (x, target), every=1)
    assert model[6].whitening.dtype == torch.float32
    assert_same(evaluated(model, x), y, tolerance=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x)
        F.cross_entropy(half, target).backward()
    assert model[6].seen.spread.mean.isfinite().all()
    y = evaluated(model, x)  # the norm of the network has moved
    ns.step_schedules(model, 1, 2)
    assert_same(evaluated(model, x), y, tolerance=1e-4)


def test_half_precision_weights():
    model, (x, target) = network(torch.bfloat16), batch(torch.bfloat16)
    y = evaluated(model, x)
    place(model, "wnn", (x, target))
    assert model[6].whitening.dtype == torch.float32
    assert (evaluated(model, x) - y).abs().max() < 0.05 * y.abs().max()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
@pytest.mark.parametrize("name", ["prong_plus", "eigennet"])
def test_compiled_as_a_whole(name):
    model, (x, target) = network(torch.float32), batch(torch.float32)
    place(model, name, (x, target), every=2, window=1)
    model[8].p = 0.0
    other = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for step in range(4):
        for one, run in ((model, compiled), (other, other)):
            one.zero_grad()
            F.cross_entropy(run(x), target).backward()
            with torch.no_grad():
                for p in one.parameters():
                    p.sub_(0.01 * p.grad)
            ns.step_schedules(one, step + 1, 4)
        assert_same(evaluated(model, x), evaluated(other, x), tolerance=1e-3)
    assert model[6].steps == 4


def test_a_model_that_is_one_layer_and_a_transformer_layer():
    x = torch.randn(20, 5).double()
    layer = nn.Linear(5, 3).double()
    y = layer(x).detach()
    handle = ns.reparametrize(layer, "wnn", data=x)
    assert isinstance(handle.model, WhitenedLayer)
    assert_same(handle.model(x), y, tolerance=1e-12)
    assert_same(handle.fold()(x), y, tolerance=1e-12)
    # Its fast path in evaluation reads weights of linear layers past their forward: it finds the plain ones.
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double().eval()
    tokens = torch.randn(4, 6, 8).double()
    with torch.no_grad():
        y = block(tokens)
        ns.reparametrize(block, "wnn", data=tokens)
        assert_same(block(tokens), y, tolerance=1e-10)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"to": "wn"}, ns.UnknownMethodError, "did you mean 'wnn'"),
        ({"to": "wnn:epps=1"}, ns.OptionError, "did you mean 'eps'"),
        ({"to": "wnn:energy=0.5"}, ns.OptionError, "expects options among"),
        ({"to": "wnn", "data": None}, ns.OptionError, "expects data"),
        ({"to": "wnn", "data": []}, ns.InputError, "at least one batch"),
        ({"to": "wnn", "every": 0}, ns.OptionError, "every"),
        ({"to": "wnn", "window": 1.5}, ns.OptionError, "window"),
        ({"to": "wnn", "moments": "keep"}, ns.OptionError, "moments"),
        ({"to": "wnn", "loss": F.cross_entropy}, ns.OptionError, "for it alone"),
        ({"to": "eigennet"}, ns.OptionError, "loss"),
        ({"to": "eigennet", "loss": F.cross_entropy}, ns.InputError, "without a target"),
        ({"to": "wnn", "where": lambda module, name: False}, ns.ModelError, "where"),
        ({"to": "wnn", "data": iter([1])}, ns.InputError, "iterator"),
        ({"to": "wnn", "optimizer": 3}, ns.OptionError, "reparametrize expects optimizer"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, match):
    model = network()
    before = copy.deepcopy(model.state_dict())
    to = arguments.pop("to")
    with pytest.raises(error, match=match):
        ns.reparametrize(model, to, **{"data": batch()[0], **arguments})
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_a_model_that_does_not_repeat_itself_is_put_back():
    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(4, 4), 0

        def forward(self, x):
            self.calls += 1
            return self.linear(x) * self.calls

    model = Restless()
    linear = model.linear
    with pytest.raises(ns.ModelError, match="stays what it is"):
        ns.reparametrize(model, "wnn", data=torch.randn(9, 4))
    assert model.linear is linear


def _rank(rank, world):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 4, generator=generator).double() @ torch.randn(4, 4, generator=generator).double() + 1
    own = x if world == 1 else [x[:21], x[21:]][rank]
    ns.reparametrize(model, "eigennet", data=(x, x[:, :2]), loss=F.mse_loss, every=1)
    wrapped = model if world == 1 else nn.parallel.DistributedDataParallel(model)
    loss = (wrapped(own).square().sum(1)).sum() / 30 * world
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.1 * p.grad)
    ns.step_schedules(wrapped, 1, 2)
    found = [b.clone() for b in (model[0].whitening, model[0].center, model[2].center)]
    return [*found, model(x).detach(), model[0].whitened_weight.detach()]


def test_ranks_refresh_by_all_they_have_seen():
    one, other = run_ranks(2, _rank, 2)
    alone = _rank(0, 1)
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)
    for mine, expected in zip(one[:4], alone[:4], strict=True):
        assert_same(mine, expected, tolerance=1e-9)


def test_the_mean_counts_where_more_than_a_batch_norm_reads():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)

        def forward(self, x):
            h = self.linear(x)
            return self.norm(h), h

    for model, normed in ((Two(), False), (nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)), True)):
        ns.reparametrize(model, "wnn", data=torch.randn(30, 4) + 5)
        assert [m.normed for m in model.modules() if isinstance(m, WhitenedLayer)] == [normed]


def test_two_handles_of_one_model_keep_apart():
    model, (x, target) = network(), batch()
    y = evaluated(model, x)
    first = place(model, "eigennet", (x, target), where=lambda module, name: name == "9")
    second = place(model, "wnn", x, where=lambda module, name: name in ("3", "6"))
    restoring = model[9].restoring.clone()
    second.refresh(x * 2)
    assert torch.equal(model[9].restoring, restoring)  # no gradients were seen
    first.fold()
    assert [isinstance(m, NaturalLayer) for m in (model[3], model[6], model[9])] == [True, True, False]
    assert_same(evaluated(model, x), y, tolerance=1e-12)


WEIGHTS = [
    "weight_norm",
    "centered_weight_norm:learn_gain=True",
    "weight_standardization:convention=timm",
    "spectral",
    "orthogonal",
]


@pytest.mark.parametrize("name", WEIGHTS)
def test_normalized_weights_are_placed_folded_and_undone_with_their_optimizer(name):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    train(model, optimizer)
    before, held = copy.deepcopy(model.state_dict()), list(model.parameters())
    group = list(optimizer.param_groups[0]["params"])
    handle = ns.reparametrize(model, name, optimizer=optimizer)
    assert handle.converted == ["0", "3", "6", "9"]
    assert set(optimizer.param_groups[0]["params"]) == set(model.parameters())
    train(model, optimizer)
    handle.undo()
    assert all(a is b for a, b in zip(model.parameters(), held, strict=True))
    assert optimizer.param_groups[0]["params"] == group
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if "0.weight" in key)
    handle = ns.reparametrize(model, name, optimizer=optimizer)
    train(model, optimizer)
    x, _ = batch()
    y = evaluated(model, x)
    handle.fold()
    assert_same(evaluated(model, x), y)
    assert set(optimizer.param_groups[0]["params"]) == set(model.parameters())
    train(model, optimizer)


def test_what_normalized_weights_do_not_take():
    model = network()
    with pytest.raises(ns.OptionError, match="expects no every"):
        ns.reparametrize(model, "weight_norm", every=5)
    with pytest.raises(ns.OptionError, match="expects options among eps, power_iterations: got 'gain'"):
        ns.reparametrize(model, "spectral:gain=2")
    with pytest.raises(ns.ModelError, match="refresh expects coordinates that depend on data"):
        ns.reparametrize(model, "spectral").refresh(batch())
    x, _ = batch()
    model = network()
    handle = ns.reparametrize(model, "weight_norm", data=(x, None))
    assert "rows of" in str(handle)
    y = model[0](x)
    assert_same(y.std((0, 2, 3), correction=0), torch.ones(4, dtype=y.dtype))
