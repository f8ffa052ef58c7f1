import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same
from torch import nn

import normsmith as ns
from normsmith.natural.post import PostWhitenedLayer


def network(inplace=False):
    torch.manual_seed(2)
    layers = (
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )
    return nn.Sequential(*layers).double()


def batch():
    x = torch.randn(96, 3, 5, 5, generator=torch.Generator().manual_seed(4)).double()
    return x, (x.mean((1, 2, 3)) * 8).round().clamp(-1, 1).long() + 1


def trained(model, optimizer, steps):
    x, target = batch()
    for step in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        ns.step_schedules(model, step + 1, 1000)
    return loss.item()


def evaluated(model, x):
    mode = model.training
    y = model.eval()(x).detach()
    model.train(mode)
    return y


@pytest.mark.parametrize("inplace", [True, False])
def test_widths_change_and_the_next_layer_is_fitted(inplace):
    model, (x, _) = network(inplace), batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    trained(model, optimizer, 20)
    y, state, modules = evaluated(model, x), copy.deepcopy(model.state_dict()), list(model)
    handle = ns.reparametrize(model, "gwnn_post:rank=6", data=x, optimizer=optimizer, every=5)
    assert [type(m) is PostWhitenedLayer for m in model] == [i in (0, 3, 7) for i in range(10)]
    assert isinstance(model[1], nn.Identity)
    assert model(x).shape == y.shape
    assert handle.output_error > 0
    assert {p for g in optimizer.param_groups for p in g["params"]} == set(model.parameters())
    assert "6 of 8 outputs" in str(handle)
    assert {r.layer: r.new for r in handle.rows}["9"] == "Linear"
    before = evaluated(model, x)
    trained(model, optimizer, 6)
    handle.refresh(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(evaluated(other, x), evaluated(model, x))
    assert not torch.equal(before, evaluated(model, x))
    handle.undo()
    assert list(model) == modules
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert {p for g in optimizer.param_groups for p in g["params"]} == set(model.parameters())


@pytest.mark.parametrize("options", ["energy=0.9", "rank=5,covariance=gaussian"])
def test_it_trains_over_refreshes_and_folds(options):
    model, (x, target) = network(), batch()
    handle = ns.reparametrize(model, f"gwnn_post:{options}", data=[(x, target)], every=10, window=3)
    first = F.cross_entropy(evaluated(model, x), target).item()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    trained(model, optimizer, 10)
    before = F.cross_entropy(evaluated(model, x), target)
    handle.refresh(x)
    assert (F.cross_entropy(evaluated(model, x), target) - before).abs() < 0.3  # a refresh moves the function, a little
    assert trained(model, optimizer, 50) < 0.8 * first
    y = evaluated(model, x)
    handle.fold()
    assert not any(isinstance(m, PostWhitenedLayer) for m in model)
    assert_same(evaluated(model, x), y, tolerance=1e-10)


def test_the_function_is_nearer_than_by_chance():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 2)).double().eval()
    x = torch.randn(500, 6).double()
    y = model(x).detach()
    ns.reparametrize(model, "gwnn_post:energy=0.99", data=x)
    assert (model(x) - y).norm() < 0.8 * (y - y.mean(0)).norm()
    assert (model(x).mean(0) - y.mean(0)).norm() < 1e-3 * y.mean(0).norm()


def test_all_directions_of_a_linear_chain_keep_the_function():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Identity(), nn.Linear(7, 2)).double().eval()
    x = torch.randn(60, 5).double()
    y = model(x).detach()
    ns.reparametrize(model, "gwnn_post:energy=1.0,eps=1e-3", data=x)
    assert_same(model(x), y, tolerance=1e-3)  # without an activation between, the fit is exact but for its ridge


def test_what_has_no_single_reader_is_left():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.four, self.relu, self.five = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)
            self.flat = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(12, 6))
            self.grouped = nn.Sequential(
                nn.Conv1d(1, 2, 1), nn.ReLU(), nn.Conv1d(2, 2, 1, groups=2), nn.ReLU(), nn.Conv1d(2, 1, 1)
            )

        def forward(self, x):
            x = self.grouped(x.unsqueeze(1)).squeeze(1)
            x = self.flat(x.unsqueeze(1))
            h = self.one(x)
            h = h + self.two(torch.relu(h))
            return self.five(self.relu(self.four(self.three(h))))

    handle = ns.reparametrize(Residual(), "gwnn_post", data=torch.randn(40, 6))
    why = {row.layer: row.reason for row in handle.rows if row.new is None}
    assert "one" not in why  # two read it, but it reads one itself
    assert "operation" in why["two"]
    assert "flattened" in why["flat.0"]
    assert "with groups" in why["grouped.0"]
    assert "has groups" in why["grouped.2"]
    assert handle.converted == ["flat.2", "one", "three", "four", "five"]


def test_bad_input_changes_nothing():
    model, (x, _) = network(), batch()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ns.OptionError, match="no loss"):
        ns.reparametrize(model, "gwnn_post", data=x, loss=F.cross_entropy)
    with pytest.raises(ns.ModelError, match="one other layer reads"):
        ns.reparametrize(model, "gwnn_post", data=x, where=lambda module, name: name == "9")
    with pytest.raises(ns.InputError, match="finite"):
        ns.reparametrize(model, "gwnn_post", data=[x, x * torch.nan])
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
