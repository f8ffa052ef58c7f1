"""The closer look: its findings on models with exactly that fault, its budget, its losses, and what it leaves behind, which is nothing."""

from types import SimpleNamespace

import pytest
import torch
from analysis.helpers_analysis import changed, everything, record
from doctor.test_examine import Meddles, Net, batches, codes, healthy
from surgery.helpers_surgery import assert_untouched
from surgery.helpers_surgery import everything as all_of
from torch import nn
from torch.nn.functional import cross_entropy

import normsmith as ns
from normsmith.doctor.full.clock import Clock


def full(model, data, **options):
    return ns.examine(model, data, depth="full", **options)


def learned(model, data, sharpness=60.0):
    """Labels that a model is right and sure about."""
    healthy(model, [x for x, _ in data]).eval()
    with torch.no_grad():
        model.head.weight.mul_(sharpness)
        model.head.bias -= model(torch.cat([x for x, _ in data])).mean(0)
        return [(x, model(x).argmax(1)) for x, _ in data]


def spread():
    """Images that differ as wholes, so that what the head reads does."""
    generator = torch.Generator().manual_seed(3)
    return [(x * (0.5 + torch.rand(len(x), 3, 1, 1, generator=generator)) + y.view(-1, 1, 1, 1) / 5, y) for x, y in batches()]


def sensitive():
    model = Net()
    data = learned(model, spread())
    with torch.no_grad():
        model.deep[1].running_mean += 0.25 * model.deep[1].running_var.sqrt()
    return model.train(), data


def deep(number=45, width=24):
    layers = []
    for _ in range(number):
        layers += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-3].weight, nonlinearity="relu")
    model = nn.Sequential(*layers, nn.Linear(width, 5))
    data = [(torch.randn(48, width), torch.randint(0, 5, (48,))) for _ in range(2)]
    ns.recalibrate(model, data, layerwise=True)
    return model, data


def unequal():
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    scales = torch.tensor([1.0, 1.0, 1.0, 1.0, 300.0, 300.0])
    return model, [(torch.randn(64, 6) * scales, torch.randint(0, 3, (64,))) for _ in range(4)]


# --- findings -------------------------------------------------------------------------------------------------------------------


def test_a_layer_that_makes_the_loss_of_evaluation_is_found():
    exam = full(*sensitive())
    assert codes(exam) == ["NS401"], str(exam)
    (finding,) = exam.at_least("warning")
    assert finding.layers[0] == "deep.1"
    assert finding.severity == "warning"
    assert finding.evidence["deep.1"]["gap from"] > 0
    shares = {row["layer"]: row["loss share"] for row in exam.table}
    assert shares["deep.1"] == pytest.approx(1, abs=0.3)
    assert abs(shares["norm"]) < 0.3


def test_the_cure_cures():
    model, data = sensitive()
    ns.recalibrate(model, data)
    assert codes(full(model, data)) == []


def test_where_it_is_warned_of_already_the_share_is_for_information():
    model, data = sensitive()
    with torch.no_grad():
        model.deep[1].running_mean += model.deep[1].running_var.sqrt()
    exam = full(model, data)
    assert codes(exam) == ["NS102"]
    assert "NS401" in codes(exam, "info")


def test_gradients_that_explode_are_found_and_do_not_without_batch_statistics():
    model, data = deep()
    exam = full(model, data, budget=4)
    assert codes(exam) == ["NS402"], str(exam)
    (finding,) = exam.at_least("warning")
    assert finding.title == "gradients explode"
    assert finding.layers[0] == "1"
    growth = finding.evidence["1"]["factor"] ** (1 / 44)
    assert growth == pytest.approx((torch.pi / (torch.pi - 1)) ** 0.5, abs=0.05), "Yang et al. 2019"
    ns.convert(model, "layer")
    assert "NS402" not in codes(full(model, data, budget=4))


def test_gradients_that_vanish_are_found():
    """Behind norms whose eps is far above the variance."""
    blocks = [part for _ in range(9) for part in (nn.Linear(16, 16, bias=False), nn.GroupNorm(1, 16, eps=4.0))]
    model = nn.Sequential(*blocks, nn.Linear(16, 3))
    exam = full(model, [(torch.randn(32, 16), torch.randint(0, 3, (32,))) for _ in range(4)])
    assert [f.title for f in exam.at_least("warning")] == ["gradients vanish"], str(exam)


def test_branches_that_are_nearly_switched_off_are_no_trend():
    """A residual net whose branches end in a weight near zero, as many are initialized."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16)) for _ in range(6)
            )
            self.head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))
            for branch in self.branches:
                nn.init.constant_(branch[2].weight, 1e-6)

        def forward(self, x):
            for branch in self.branches:
                x = x + branch(x)
            return self.head(x)

    exam = full(Residual(), [(torch.randn(32, 16), torch.randint(0, 3, (32,))) for _ in range(4)])
    gradients = [row["gradient"] for row in exam.table]
    assert max(gradients) > 1e3 * min(gradients)
    assert codes(exam) == [], str(exam)


def test_unequal_scales_are_for_information():
    model, data = unequal()
    ns.recalibrate(model, data)
    exam = full(model, data)
    (finding,) = (f for f in exam.findings if f.code == "NS403")
    assert finding.layers == ("0",)
    assert finding.severity == "info"
    assert finding.evidence["0"]["condition by scales"] > 1e4
    assert codes(exam) == []
    equal = [(x / x.std(0), y) for x, y in data]
    ns.recalibrate(model, equal)
    assert "NS403" not in codes(full(model, equal), "info")


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d, ns.SwitchableNorm, ns.IBN, lambda c: nn.GroupNorm(4, c), ns.FilterResponseNorm]
)
def test_a_healthy_model_is_clean(norm):
    model = Net(norm=norm)
    if any(getattr(m, "running_mean", None) is not None for m in model.modules()):
        healthy(model)
    exam = full(model, batches())
    assert codes(exam) == [], str(exam)
    assert exam.missing == ()
    for row in exam.table:
        assert row["gradient ratio"] > 0
        assert row["fisher condition"] >= 1
        assert (row["gain"] is None) == (row["gap"] is None)


# --- losses ---------------------------------------------------------------------------------------------------------------------


def test_without_labels_the_rest_is_examined():
    model = healthy()
    exam = full(model, [x for x, _ in batches()])
    assert any("labels missing for a loss-based check" in what for what in exam.missing)
    assert all(row["gain"] > 0 and row["gamma decay of mean"] > 0 for row in exam.table)
    assert all(row["gradient ratio"] is None and row["loss share"] is None for row in exam.table)
    assert exam.samples == 256
    assert "loss gap" not in exam.whole


@pytest.mark.parametrize("wrong", [torch.rand(32), torch.full((32,), 99), torch.zeros(31, dtype=torch.long), "cat"])
def test_what_is_no_label_is_said(wrong):
    exam = full(healthy(), [(x, wrong) for x, _ in batches()])
    assert any("labels missing" in what for what in exam.missing)


class Wordy(Net):
    """As models of Hugging Face: a mapping in, an output with loss and logits."""

    def forward(self, x, labels):
        z = super().forward(x)
        return SimpleNamespace(loss=cross_entropy(z, labels), logits=z)


def test_kinds_of_losses():
    model = healthy()
    expected = full(model, batches()).whole["loss by running statistics"]
    wordy = Wordy()
    wordy.load_state_dict(model.state_dict())
    found = full(wordy, [{"x": x, "labels": y} for x, y in batches()])
    assert found.whole["loss by running statistics"] == pytest.approx(expected, rel=1e-5)
    assert found.table[0]["fisher condition"] > 1
    own = full(model, batches(), loss=lambda output, batch: 3 * cross_entropy(output, batch[1]))
    assert own.whole["loss by running statistics"] == pytest.approx(3 * expected, rel=1e-5)
    assert any("Fisher" in what for what in own.missing)
    chosen = full(model, [{"a": batch} for batch in batches()], forward=lambda m, b: m(b["a"][0]),
                  loss=lambda output, batch: cross_entropy(output, batch["a"][1]))  # fmt: skip
    assert chosen.whole["loss by running statistics"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda output, batch: output, r"a tensor of shape (32, 10)"),
        (lambda output, batch: 3.0, "got float"),
        (lambda output, batch: output.sum() * torch.nan, "NaN or infinite"),
        (lambda output, batch: batch["none"], "TypeError"),
    ],
)
def test_losses_that_are_none_are_said(loss, says):
    exam = full(healthy(), batches(), loss=loss)
    assert any(says in what for what in exam.missing), exam.missing
    assert exam.batches == 8


# --- budget and bad input -------------------------------------------------------------------------------------------------------


def test_a_budget_is_kept_and_what_it_left_out_is_said():
    def slow(model, batch):
        torch.linalg.matrix_exp(torch.zeros(150, 150))
        return model(batch[0])

    exam = full(healthy(), batches(), forward=slow, budget=1e-3)
    for part in ("gradients", "the loss by layer swaps", "smoothness", "covariate shift", "Fisher"):
        assert any(part in what and "budget=0.001" in what for what in exam.missing), part
    assert exam.whole["expected seconds"] > 1e-3
    assert all(row["loss share"] is None for row in exam.table)
    assert codes(exam) == []


def test_swaps_stop_where_the_time_is_up(monkeypatch):
    """The clock is moved: the first layer has time, the second has not."""
    spent = iter([0.0] * 5 + [100.0] * 100)
    monkeypatch.setattr(Clock, "spent", property(lambda self: next(spent)))
    exam = full(healthy(), batches(), budget=50)
    assert any("of 2 layers" in what for what in exam.missing), exam.missing


def test_what_to_expect_is_said_if_it_takes_long(capsys):
    Clock(30).announce(12.3)
    assert capsys.readouterr().err == 'depth="full": about 12 s, stopped at 30 s\n'
    Clock(None).announce(0.5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": "fulll"}, "'default' or 'full'"),
        ({"budget": 3}, "leave it out"),
        ({"depth": "full", "budget": 0}, "above 0"),
        ({"depth": "full", "budget": "long"}, "above 0"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ns.OptionError, match=says):
        ns.examine(healthy(), batches(), **options)


def test_behind_statistics_of_no_data_nothing_is_looked_at():
    exam = full(Net(), batches())
    assert codes(exam) == ["NS101"]
    assert exam.whole == {}


# --- what is left behind --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail", [None, "model", "loader", "loss", "late"])
@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_is_changed(fail, frozen):
    model, (x, y) = everything(fails_at=6 if fail == "model" else None)
    if frozen:
        model.requires_grad_(False)
    for norm in (model.first, model.second, model.population, model.torchs):
        norm.running_mean += 0.01  # as after some steps
    model.head.weight.grad = None
    calls, kept = iter(range(10**6)), x.clone()
    before = record(model)

    def loader():
        for index in range(5):
            if fail == "loader" and index == 3:
                raise RuntimeError("no such file")
            yield x, y

    def loss(output, batch):
        if fail == "loss" or (fail == "late" and next(calls) > 12):
            raise ValueError("no such label")
        return cross_entropy(output, batch[1])

    exam = full(model, loader(), loss=loss)
    assert changed(before, record(model)) == []
    assert torch.equal(x, kept)
    if fail in ("loss", "late"):
        assert any("no such label" in what for what in exam.missing)
    if fail == "model":
        assert any("on purpose" in what for what in exam.missing)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it(mode):
    model, data = healthy(), batches()
    with mode():
        exam = full(model, data)
    assert all(row["gradient ratio"] > 0 and row["fisher condition"] > 0 for row in exam.table), exam.missing
    assert exam.whole["smoothness"] > 0


def test_a_model_that_meddles_is_put_back():
    model = Meddles().train()
    before = all_of(model)
    full(model, batches())
    assert_untouched(model, before)
