"""Every check on a small model with exactly its fault, and on one without; and what examination leaves behind, which is nothing."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from surgery.helpers_surgery import assert_untouched, everything
from torch import nn

import normsmith as ns
from normsmith.doctor.checks import CHECKS
from normsmith.doctor.checks._gap import gap
from normsmith.doctor.checks.small_batch import noise
from normsmith.doctor.observation import Layer
from normsmith.doctor.observe import observe
from normsmith.surgery._recognise import recognise


class Net(nn.Module):
    def __init__(self, channels=16, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, bias=False)
        self.norm = norm(channels)
        self.deep = nn.Sequential(nn.Conv2d(channels, channels, 3, bias=False), norm(channels), nn.ReLU())
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        return self.head(self.deep(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))


def batches(number=8, size=32, **kinds):
    generator = torch.Generator().manual_seed(kinds.get("seed", 0))
    return [
        (torch.randn(size, 3, 12, 12, generator=generator) * 2 + 1, torch.randint(0, 10, (size,), generator=generator))
        for _ in range(number)
    ]


def healthy(model=None, data=None):
    """A model whose statistics are those of the data."""
    model = model or Net()
    ns.recalibrate(model, data or batches(seed=1))
    return model


def codes(exam, severity="warning"):
    return [finding.code for finding in exam.at_least(severity)]


def _never():
    return Net(), batches()


def _gap():
    model = healthy()
    with torch.no_grad():
        model.deep[1].running_mean += 2
    return model, batches()


def _stale():
    model = healthy()
    with torch.no_grad():
        model.conv.weight.mul_(3)
    return model, batches()


def _poisoned():
    model = healthy()
    model.norm.running_var[3] = float("nan")
    return model, batches()


def _eps():
    model = healthy()
    with torch.no_grad():
        model.conv.weight[:2] *= 1e-3
    return healthy(model), batches()


def _dead():
    model = Net()
    with torch.no_grad():
        model.conv.weight[:4] = 0
    return healthy(model), batches()


def _half():
    data = [(x * 1e3, y) for x, y in batches()]
    return healthy(data=data), data


def _noisy():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 4)
    )
    data = batches(40, 4)
    return healthy(net, data), data


def _single():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 4)
    )
    data = batches(8, 64)
    return healthy(net, data), [*data, (data[0][0][:1], data[0][1][:1])]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x) + self.norm(x * 4 + 20)


def _shared():
    return healthy(Twice()), batches()


def _by_batch():
    bright = [(x + 3 * torch.randn(len(x), 3, 1, 1), y) for x, y in batches(20, 4)]
    return Net(norm=lambda c: nn.BatchNorm2d(c, track_running_stats=False)), bright


def _thawed():
    model = healthy()
    model.norm.requires_grad_(False)
    return model, batches()


FAULTS = {
    "never": (_never, "NS101", "error", {"norm", "deep.1"}),
    "gap": (_gap, "NS102", "error", {"deep.1"}),
    "poisoned": (_poisoned, "NS103", "error", {"norm"}),
    "eps": (_eps, "NS104", "warning", {"norm"}),
    "dead": (_dead, "NS105", "warning", {"norm"}),
    "half": (_half, "NS107", "warning", {"norm"}),
    "noisy": (_noisy, "NS201", "warning", {"3"}),
    "single": (_single, "NS202", "error", {"3"}),
    "by batch": (_by_batch, "NS204", "warning", {"norm"}),
    "thawed": (_thawed, "NS207", "warning", {"norm"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_nothing_else(fault):
    make, code, severity, layers = FAULTS[fault]
    exam = ns.examine(*make())
    assert codes(exam) == [code], str(exam)
    (finding,) = exam.at_least("warning")
    assert finding.severity == severity
    assert set(finding.layers) == layers
    assert finding.evidence.keys() == layers
    assert all(finding.evidence[name] for name in layers), "no finding without evidence"
    assert finding.explanation.endswith(".")
    assert "ns." in finding.cure or "layer." in finding.cure
    assert finding.title in str(exam)


def test_a_shared_layer_is_found_and_has_a_gap():
    exam = ns.examine(*_shared())
    assert "NS203" in codes(exam)


def test_behind_statistics_of_no_data_nothing_is_judged():
    model = _dead()[0]
    model.norm.reset_running_stats()
    exam = ns.examine(model, batches())
    assert codes(exam) == ["NS101"]
    assert any("examine again" in what for what in exam.missing)


def test_stale_statistics():
    exam = ns.examine(*_stale())
    (finding,) = exam.at_least("warning")
    assert finding.code == "NS102"
    assert "norm" in finding.layers


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d, ns.BatchNorm, ns.SwitchableNorm, ns.IBN, lambda c: nn.GroupNorm(4, c), ns.FrozenNorm]
)
def test_a_healthy_model_is_clean(norm):
    model = Net(norm=norm)
    if any(hasattr(m, "running_mean") and not getattr(m, "frozen", False) for m in model.modules()):
        healthy(model)
    elif isinstance(model.norm, ns.FrozenNorm):
        model = healthy(Net())
        ns.convert(model, "frozen")
    exam = ns.examine(model, batches())
    assert codes(exam) == [], str(exam)
    assert "nothing that needs a cure" in str(exam)


@pytest.mark.parametrize("seed", range(3))
def test_a_trained_model_is_clean(seed):
    torch.manual_seed(seed)
    model, data = Net(), batches(10, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(5):
        for x, y in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert codes(ns.examine(model, batches(seed=9))) == []


def test_habits_are_for_information():
    model = Net()
    model.conv = nn.Conv2d(3, 16, 3)
    healthy(model)
    model.norm.momentum = 0.01
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
    exam = ns.examine(model, batches(12), optimizer=optimizer)
    assert codes(exam) == []
    assert sorted(codes(exam, "info")) == ["NS106", "NS205", "NS206"]
    found = {finding.code: finding for finding in exam.findings}
    assert found["NS106"].layers == ("norm",)
    assert found["NS206"].evidence == {"norm": {"bias of": "conv"}}
    groups = torch.optim.SGD(ns.param_groups(model, 1e-3), lr=0.1)
    assert "NS205" not in codes(ns.examine(model, batches(), optimizer=groups), "info")


def test_outliers_are_for_information():
    model = nn.Sequential(nn.BatchNorm2d(3))
    data = [torch.randn(16, 3, 8, 8) for _ in range(4)]
    for x in data:
        x[0, 1, 0] = 30.0
    ns.recalibrate(model, data)
    exam = ns.examine(model, data)
    (finding,) = (f for f in exam.findings if f.code == "NS301")
    assert finding.evidence["0"]["worst channel"] == 1
    assert finding.evidence["0"]["share beyond 5"] == pytest.approx(8 / 1024, rel=1e-3)
    assert codes(exam) == []
    assert "NS301" not in codes(ns.examine(healthy(), batches()), "info")


def test_the_cures_cure():
    for make, cure in [
        (_never, ns.recalibrate),
        (_gap, ns.recalibrate),
        (_thawed, lambda m, d: ns.freeze(m, where=lambda layer, name: name == "norm")),
        (_noisy, lambda m, d: ns.convert(m, "group")),
        (_single, lambda m, d: ns.convert(m, {"3": "batch:on_single='running'"})),
        (_by_batch, lambda m, d: (ns.convert(m, "batch:track_running_stats=True"), ns.recalibrate(m, d))),
    ]:
        model, data = make()
        before = codes(ns.examine(model, data))
        cure(model, data)
        after = codes(ns.examine(model, data))
        assert set(before) - set(after) == set(before), (before, after)


def test_the_gap_is_the_distance_of_the_outputs():
    """By the formula from moments, and by running the layer in both modes on the same data."""
    model = nn.Sequential(nn.BatchNorm2d(5)).double()
    with torch.no_grad():
        for tensor in (*model.parameters(), model[0].running_mean, model[0].running_var):
            tensor.uniform_(0.5, 2)
    x = torch.randn(16, 5, 4, 4, dtype=torch.float64) * 3 + 1
    found = gap(observe(model, [x]).layers[0])
    evaluated, trained = model.eval()(x), copy.deepcopy(model).train()(x)
    centred = trained - model[0].bias.view(1, -1, 1, 1)
    assert found.size == pytest.approx(
        float(((evaluated - trained).square().sum() / centred.square().sum()).sqrt().detach()), rel=1e-4
    )


def test_what_each_call_alone_had():
    layer = Layer("norm", nn.BatchNorm2d(4), recognise(nn.BatchNorm2d(4)))
    calls = [
        torch.randn(size, 4, 3, 3, dtype=torch.float64) * scale + shift
        for size, scale, shift in ((3, 1, 0), (7, 5, 9), (2, 0.1, -4))
    ]
    for x in calls:
        layer.take(x)
    layer.end_forward()
    each, finite = layer.each.last(2)
    assert finite.all()
    for x, mean, var, count in zip(calls[1:], each.mean, each.var, each.count, strict=True):
        flat = x.movedim(1, 0).flatten(1)
        torch.testing.assert_close(mean, flat.mean(1))
        torch.testing.assert_close(var, flat.var(1, unbiased=False))
        assert set(count.tolist()) == {flat.shape[1]}


def test_the_noise_is_that_of_theory():
    model = nn.Sequential(nn.BatchNorm1d(200))
    data = [torch.randn(8, 200) * 5 + 2 for _ in range(50)]
    assert noise(observe(model, data).layers[0]) == pytest.approx(8**-0.5, rel=0.05)


def test_channels_in_the_last_dimension():
    tokens = [torch.randn(4, 7, 6) for _ in range(5)]
    seen = observe(nn.Sequential(nn.LayerNorm(6)), tokens)
    every = torch.cat([t.reshape(-1, 6) for t in tokens]).double()
    torch.testing.assert_close(seen.layers[0].moments.mean[0], every.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen.layers[0].moments.var[0], every.var(0, unbiased=False), rtol=1e-5, atol=1e-6)


# --- what is left behind, and what goes wrong -----------------------------------------------------------------------------------


class Meddles(Net):
    def forward(self, x):
        with torch.no_grad():
            self.norm.running_mean += 1
            self.head.weight += 1
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


@pytest.mark.parametrize("fail", [None, "model", "loader"])
def test_nothing_is_changed(fail):
    model = Meddles().train()
    model.deep.eval()
    before, drawn = everything(model), torch.get_rng_state()
    others = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    def loader():
        for index, batch in enumerate(batches()):
            if fail == "loader" and index == 3:
                raise RuntimeError("no such file")
            yield (batch[0][:, :2], batch[1]) if fail == "model" and index == 3 else batch

    exam = ns.examine(model, loader())
    assert_untouched(model, before)
    assert torch.equal(drawn, torch.get_rng_state())
    assert others == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert not hasattr(model, "calls")
    assert torch.is_grad_enabled()
    if fail:
        assert exam.batches == 3
        assert any("from 3 on" in what and fail in what for what in exam.missing)


def test_kinds_of_batches():
    model = healthy()
    x = batches()[0][0]
    for batch in (x, (x, 1), [x], {"x": x}):
        assert ns.examine(model, [batch]).samples == len(x)
    assert ns.examine(model, [3], forward=lambda m, b: m(x)).table[0]["calls"] == 1
    assert ns.examine(model, batches(), batches=2).batches == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_kinds_of_numbers(dtype):
    model, data = healthy(), [(x.to(dtype), y) for x, y in batches()]
    plain = ns.examine(model, batches()).table
    for row, expected in zip(ns.examine(model.to(dtype), data).table, plain, strict=True):
        for key in ("noise", "independent positions", "largest input"):
            assert row[key] == pytest.approx(expected[key], rel=0.1), key
        assert row["seconds"] > 0


def test_a_model_of_transformers():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    model = BertForSequenceClassification(config)
    batch = {
        "input_ids": torch.randint(0, 40, (6, 9)),
        "attention_mask": torch.ones(6, 9, dtype=torch.long),
        "labels": torch.tensor([0, 1] * 3),
    }
    exam = ns.examine(model, [batch] * 4)
    assert (exam.samples, exam.batches, len(exam.table)) == (24, 4, 5)
    assert codes(exam) == []
    assert all(row["noise"] is not None and row["calls"] == 4 for row in exam.table)


@pytest.mark.parametrize(
    ("model", "loader", "says"),
    [
        (nn.Sequential(nn.Linear(2, 2)), [torch.zeros(1, 2)], "without normalizers"),
        (Net(), [], "at least one batch"),
        (Net(), 3, "yields batches"),
        ("net", [1], "torch.nn.Module"),
    ],
)
def test_bad_input(model, loader, says):
    with pytest.raises((ns.ModelError, ns.InputError), match=says) as caught:
        ns.examine(model, loader)
    assert "\n" not in str(caught.value)


def test_too_few_batches_are_said():
    assert any("noise" in what for what in ns.examine(healthy(), batches(2)).missing)


def test_layers_that_no_batch_reaches_are_said():
    model = healthy()
    model.aside = nn.BatchNorm2d(3)
    exam = ns.examine(model, batches())
    assert "aside: no batch reached it" in exam.missing
    assert codes(exam) == []


def test_reports(tmp_path):
    exam = ns.examine(*_gap())
    data = json.loads(exam.save(tmp_path / "exam.json").read_text())
    assert (data["schema"], data["findings"][0]["code"], len(data["layers"])) == (1, "NS102", 2)
    sarif = json.loads(exam.save(tmp_path / "exam.sarif").read_text())
    result = sarif["runs"][0]["results"][0]
    assert (result["ruleId"], result["level"]) == ("NS102", "error")
    assert result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "deep.1"
    assert "NS102" in exam.save(tmp_path / "exam.txt").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exam.json", "exam.sarif", "exam.txt"]
    with pytest.raises(ns.OptionError, match=r"\.html, \.json, \.sarif"):
        exam.save(tmp_path / "exam.pdf")
    assert exam.worst == "error"


def test_codes_are_documented_and_of_one_room_each():
    found = [check.__module__.rsplit(".", 1)[1] for check in CHECKS]
    assert len(set(found)) == len(found)


def test_every_batch_with_something_not_finite():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    batches = [torch.randn(8, 3, 9, 9) for _ in range(2)]
    for x in batches:
        x[0, 0, 0, 0] = torch.nan
    assert ns.examine(model, batches).findings


class _Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.norm(self.norm(self.conv(x)))


def test_a_forward_in_inference_mode():
    """What is left to do of a call is done when that mode has ended."""

    def forward(model, batch):
        with torch.inference_mode():
            return model(batch)

    batches = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    for x in batches:
        x[2] *= 30
    with ns.backend("reference"):
        missing = ns.examine(_Twice(), batches, forward=forward).missing
    assert not [sentence for sentence in missing if "raised" in sentence]


def test_what_is_before_a_layer_may_show_late():
    class Late(_Twice):
        def forward(self, x):
            return self.norm(self.conv(x) if x.shape[1] == 3 else x)

    seen = observe(Late(), [torch.randn(8, 8, 8, 8), *(torch.randn(8, 3, 8, 8) for _ in range(3))])
    assert seen.layers[0].before == "conv"
