"""The numbers of the closer look, against the same by hand."""

import copy

import pytest
import torch
from doctor.test_examine import Net, batches, healthy
from torch import nn
from torch.nn.functional import cross_entropy

import normsmith as ns
from normsmith.doctor.checks import gradient_growth, loss_share
from normsmith.doctor.full.closer import Closer
from normsmith.doctor.full.curvature import _scales
from normsmith.doctor.full.look import Keep
from normsmith.doctor.full.slopes import Slope
from normsmith.doctor.full.swaps import Swaps, difference
from normsmith.doctor.observe import observe


def full(model, data, **options):
    return ns.examine(model, data, depth="full", **options)


def row(exam, name):
    return next(row for row in exam.table if row["layer"] == name)


def wrong(model=None):
    """A model with statistics that are off, differently in each layer."""
    model = model or healthy()
    with torch.no_grad():
        model.norm.running_mean += 0.5
        model.deep[1].running_var *= 3
        model.head.weight.mul_(5)
    return model.eval()


def loss_of(model, data, by_batch):
    model = copy.deepcopy(model).eval()
    for layer in by_batch:
        model.get_submodule(layer).train()
    with torch.no_grad():
        return torch.stack([cross_entropy(model(x), y) for x, y in data]).double()


def test_losses_with_swapped_statistics():
    model, data = wrong(), batches()
    exam = full(model, data)
    evaluation, batch = loss_of(model, data, []), loss_of(model, data, ["norm", "deep.1"])
    assert exam.whole["loss by running statistics"] == pytest.approx(evaluation.mean().item(), rel=1e-5)
    assert exam.whole["loss by batch statistics"] == pytest.approx(batch.mean().item(), rel=1e-5)
    gap = (evaluation - batch).mean()
    for name, other in (("norm", "deep.1"), ("deep.1", "norm")):
        alone = (evaluation - loss_of(model, data, [name])).mean() / gap
        back = (loss_of(model, data, [other]) - batch).mean() / gap
        assert row(exam, name)["loss share"] == pytest.approx(alone.item(), rel=1e-3)
        assert row(exam, name)["loss share back"] == pytest.approx(back.item(), rel=1e-3)


def test_a_share_of_no_gap_is_none():
    exam = full(healthy(data=batches()), batches())
    assert row(exam, "norm")["loss share"] is None


def test_losses_are_drawn_from_the_same_random_numbers():
    class Loud(Net):
        def forward(self, x):
            z = super().forward(x)
            return z + 3 * torch.randn_like(z)

    data = batches(1) * 4
    exam = full(healthy(Loud(), data), data)
    assert exam.whole["loss by running statistics"] == pytest.approx(exam.whole["loss by batch statistics"], rel=1e-3)


@pytest.mark.parametrize(
    ("evaluation", "found"), [([1.0, 3.0, 1.0, 3.0], False), ([2.5, 1.5, 2.6, 1.4], True), ([2.1, 1.1, 2.1, 1.1], False)]
)
def test_a_gap_that_may_be_chance_or_is_small_is_no_finding(evaluation, found):
    seen, batch = observe(healthy(), batches()), torch.tensor([2.0, 1.0, 2.0, 1.0]).double()
    assert list(loss_share.check(seen)) == []
    running = torch.tensor(evaluation).double()
    seen.closer = Closer(swaps=Swaps(running, batch, {"norm": batch, "deep.1": running}, {"norm": running, "deep.1": batch}))
    findings = list(loss_share.check(seen))
    assert [finding.layers for finding in findings] == ([("norm",)] if found else [])


@pytest.mark.parametrize(
    ("gradients", "title"),
    [
        ([10.0**-i for i in range(8)], "gradients explode"),
        ([10.0**i for i in range(8)], "gradients vanish"),
        ([10.0**-i for i in range(7)], None),  # too few to call it a trend
        ([1.0, 1.0, 1.0, 1.0, 1e-6, 1e-6, 1e-6, 1e-6], None),  # a step
        ([2.0**-i for i in range(9)], None),
    ],
)
def test_a_trend_of_gradients(gradients, title):
    seen = observe(healthy(), batches(1))
    slopes = {str(i): Slope(i, 1.0, 1.0, size**2) for i, size in enumerate(gradients)}
    seen.closer = Closer(slopes=dict(reversed(slopes.items())))
    assert [finding.title for finding in gradient_growth.check(seen)] == ([] if title is None else [title])


def test_what_is_kept_of_the_data():
    kept = Keep()
    for _ in range(12):
        kept.add((torch.zeros(4), "name"))
    assert len(kept.batches) == 8
    large = Keep()
    for _ in range(3):
        large.add(torch.zeros(10 << 20))  # 40 MB
    assert len(large.batches) == 1


def test_layers_that_do_not_normalize_by_the_batch_are_not_swapped():
    model = wrong()
    ns.freeze(model, where=lambda layer, name: name == "norm")
    exam = full(model, batches())
    assert row(exam, "norm")["loss share"] is None
    assert exam.whole["loss by batch statistics"] == pytest.approx(
        loss_of(model, batches(), ["deep.1"]).mean().item(), rel=1e-5
    )


def test_the_interval_is_students():
    one = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    found = difference(one, torch.zeros(4).double())
    half = 3.182446 * one.std().item() / 2
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-3)
    assert difference(one[:2], one[:2]).high == float("inf")


def test_the_gradient_ratio_is_that_of_the_jacobian():
    """A norm whose input is also used beside it: only what comes back through the norm counts."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 4)

        def forward(self, x):
            h = self.first(x)
            return self.head(h + torch.relu_(self.norm(h)))

    model = Beside().double()
    with torch.no_grad():
        model.norm.weight.uniform_(0.2, 3)
    x, y = torch.randn(32, 6).double(), torch.randint(0, 4, (32,))
    ns.recalibrate(model, [x])
    found = row(full(model, [(x, y)]), "norm")
    model.train()
    h = model.first(x).detach()
    out = model.norm(h).detach().requires_grad_()
    (dy,) = torch.autograd.grad(cross_entropy(model.head(h + torch.relu(out)), y), out)
    dx = ns.analysis.bn_vjp(h, dy, model.norm.weight)
    assert found["gradient ratio"] == pytest.approx((dx.norm() / dy.norm()).item(), rel=1e-6)
    assert found["gradient"] == pytest.approx((dy * model.norm.weight).norm().item(), rel=1e-6)
    gains = model.norm.weight.abs() / (h.var(0, unbiased=False) + 1e-5).sqrt()
    assert found["gain"] == pytest.approx(gains.median().item(), rel=1e-4)
    assert found["gradient ratio"] <= gains.max().item()


def test_a_layer_that_reads_the_data_and_channels_in_the_last_dimension():
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3), nn.Flatten(), nn.Linear(15, 4)).requires_grad_(False)
    with torch.no_grad():
        model[0].weight.uniform_(0.5, 2)
    x, y = torch.randn(16, 5, 8), torch.randint(0, 4, (16,))
    found = row(full(model, [(x, y)]), "0")
    inner = x.clone().requires_grad_()
    out = nn.functional.layer_norm(inner, (8,), model[0].weight, model[0].bias)
    loss = cross_entropy(model[1:](out), y)
    dx, dy = torch.autograd.grad(loss, (inner, out))
    assert found["gradient ratio"] == pytest.approx((dx.norm() / dy.norm()).item(), rel=1e-4)
    assert found["gradient"] == pytest.approx((dy * model[0].weight).norm().item(), rel=1e-4)


def test_gamma_decay_is_that_of_population_norm():
    x = torch.randn(64, 5, 3, 3).double() ** 2
    layer = nn.BatchNorm2d(5).double()
    twin = ns.PopulationNorm(5, emulate=64, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        twin.weight.copy_(layer.weight)
    twin(x)
    expected = ns.gamma_decay(nn.Sequential(twin)).layers["0"]
    ns.recalibrate(nn.Sequential(layer), [x])
    found = row(full(nn.Sequential(layer), [x]), "0")
    assert found["gamma decay of variance"] == pytest.approx(expected.from_var.mean().item(), rel=0.01)
    assert found["gamma decay of mean"] == pytest.approx(expected.from_mean.mean().item(), rel=0.01)


def test_smoothness_shift_and_fisher_are_those_of_analysis():
    model, data = healthy(), batches()
    exam = full(model, data, optimizer=torch.optim.SGD(model.parameters(), lr=0.03))
    assert exam.whole["lr"] == 0.03
    model.train()
    assert exam.whole["smoothness"] == pytest.approx(
        ns.analysis.smoothness(model, cross_entropy, data[0], lr=0.03).beta, rel=1e-4
    )
    shift = ns.analysis.covariate_shift(model, cross_entropy, data[0], lr=0.03)
    assert row(exam, "norm")["covariate shift"] == 0
    assert row(exam, "deep.1")["covariate shift"] == pytest.approx(shift["deep.0"].relative, rel=1e-3)
    blocks = ns.analysis.fisher_blocks(model, data[:1]).blocks
    for name, before in (("norm", "conv"), ("deep.1", "deep.0")):
        assert row(exam, name)["fisher condition"] == pytest.approx(blocks[before].condition(1e-6), rel=0.5)  # labels are drawn


def test_dropout_is_off():
    class Dropping(Net):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(super().forward(x))

    model, data = healthy(), batches(2)
    dropping = Dropping()
    dropping.load_state_dict(model.state_dict())
    one, other = full(model.train(), data), full(dropping.train(), data)
    assert other.whole["smoothness"] == pytest.approx(one.whole["smoothness"], rel=1e-4)
    assert row(other, "norm")["gradient"] == pytest.approx(row(one, "norm")["gradient"], rel=1e-4)
    assert row(other, "deep.1")["covariate shift"] == pytest.approx(row(one, "deep.1")["covariate shift"], rel=1e-3)


def test_the_condition_of_scales():
    spread = torch.diag(torch.tensor([1.0, 4.0, 100.0])).double()
    assert _scales(spread) == pytest.approx(100, rel=1e-3)
    mixed = torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double()
    assert _scales(mixed) == pytest.approx(1)
    with_silent = torch.zeros(3, 3).double()
    with_silent[:2, :2] = mixed
    assert _scales(with_silent) == pytest.approx(1)


def test_layers_too_large_for_the_fisher_block_are_said():
    model = nn.Sequential(nn.Linear(1100, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    data = [(torch.randn(16, 1100), torch.randint(0, 3, (16,)))]
    ns.recalibrate(model, data)
    exam = full(model, data)
    assert any("the Fisher block of 0" in what and "1100 inputs" in what for what in exam.missing)


def test_numbers_of_the_closer_look_are_plain_data():
    exam = full(Net(norm=lambda c: nn.GroupNorm(4, c)), batches())
    data = exam.to_dict()
    assert data["whole"]["seconds"] > 0
    assert data["layers"][0]["gradient ratio"] > 0
    assert "loss gap" not in data["whole"]
    assert "gain" not in ns.examine(healthy(), batches()).table[0]
    assert "_subject" not in str(data)
