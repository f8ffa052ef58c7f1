"""Checks of how a model is trained, run and wrapped: each on a model with exactly its fault, and on one without."""

import copy

import pytest
import torch
from doctor.test_examine import Net, batches, codes, healthy
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import normsmith as ns


def finding(exam, code):
    (found,) = (f for f in exam.findings if f.code == code)
    return found


def trained(model, data, *, optimizer=None, forward=None, rate=0.01):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=rate)
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy((forward or (lambda m, b: m(b)))(model, x), y).backward()
        optimizer.step()
    return optimizer


# --- NS108: stale ---------------------------------------------------------------------------------------------------------------


def _left_behind():
    """Trained on with the first norm in eval(), while what feeds it moved."""
    model = Net()
    optimizer = trained(model, batches(4))
    ns.recalibrate(model, batches(4))
    model.norm.eval()
    with torch.no_grad():
        model.conv.weight.mul_(3)
    trained(model, batches(4), optimizer=optimizer)
    ns.recalibrate(model, batches(), where=lambda m, name: name == "deep.1")
    model.deep[1].num_batches_tracked.fill_(8)
    return model, optimizer


def test_weights_that_moved_on():
    model, optimizer = _left_behind()
    exam = ns.examine(model, batches(), optimizer=optimizer)
    assert codes(exam) == ["NS108"], str(exam)
    found = finding(exam, "NS108")
    assert found.severity in {"warning", "error"}
    assert "norm" in found.layers
    assert found.evidence["norm"]["steps"] == 8
    assert found.evidence["norm"]["batches in the statistics"] == 4
    assert codes(ns.examine(model, batches())) == ["NS102"], "without the optimizer nobody knows the reason"


def test_few_batches_are_no_fault_without_a_gap():
    model, optimizer = _left_behind()
    ns.recalibrate(model, batches(2, seed=3))
    exam = ns.examine(model, batches(), optimizer=optimizer)
    assert codes(exam) == [], str(exam)


def test_averaged_weights():
    model = healthy()
    average = AveragedModel(model)
    with torch.no_grad():
        average.n_averaged.fill_(3)
        average.module.conv.weight.mul_(3)
    exam = ns.examine(average, batches())
    assert codes(exam) == ["NS108"]
    assert finding(exam, "NS108").evidence["module.norm"]["models in the average"] == 3
    ns.recalibrate(average, batches())
    assert codes(ns.examine(average, batches())) == []


# --- NS109: updated more than once ----------------------------------------------------------------------------------------------


def _recomputing(model, x):
    y = torch.relu(model.norm(model.conv(x)))
    return model.head(checkpoint(model.deep, y, use_reentrant=False).mean((2, 3)))


def test_recomputed_statistics():
    model = Net()
    optimizer = trained(model, batches(5), forward=_recomputing, rate=1e-4)
    ns.recalibrate(model, batches())
    for layer, number in ((model.norm, 5), (model.deep[1], 10)):
        layer.num_batches_tracked.fill_(number)
    exam = ns.examine(model, batches(), optimizer=optimizer)
    assert codes(exam) == ["NS109"], str(exam)
    found = finding(exam, "NS109")
    assert found.layers == ("deep.1",)
    assert found.evidence["deep.1"] == {"updates per step": 2.0, "steps": 5.0}


def test_torch_counts_what_it_recomputes_and_ours_does_not():
    for norm, number in ((nn.BatchNorm2d, 10), (ns.BatchNorm, 5)):
        model = Net(norm=norm)
        trained(model, batches(5), forward=_recomputing)
        assert (int(model.norm.num_batches_tracked), int(model.deep[1].num_batches_tracked)) == (5, number)


def test_micro_batches_are_for_information():
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for index, (x, y) in enumerate(batches(8)):
        nn.functional.cross_entropy(model(x), y).backward()
        if index % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    tracked = int(model.norm.num_batches_tracked)
    ns.recalibrate(model, batches())
    for layer in (model.norm, model.deep[1]):
        layer.num_batches_tracked.fill_(tracked)
    exam = ns.examine(model, batches(), optimizer=optimizer)
    assert codes(exam) == []
    assert finding(exam, "NS109").evidence["norm"]["updates per step"] == 4


@pytest.mark.parametrize("kind", ["plain", "accumulate", "checkpoint of another training", "no count"])
def test_one_update_for_a_step(kind):
    model = Net(norm=lambda c: ns.BatchNorm(c, accumulate=2)) if kind == "accumulate" else Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    if kind == "no count":
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for index, (x, y) in enumerate(batches(8)):
        nn.functional.cross_entropy(model(x), y).backward()
        if kind != "accumulate" or index % 2:
            optimizer.step()
    tracked = int(model.norm.num_batches_tracked)
    assert tracked == (4 if kind == "accumulate" else 8)
    ns.recalibrate(model, batches())
    for layer in (model.norm, model.deep[1]):
        layer.num_batches_tracked.fill_(12345 if kind.startswith("checkpoint") else tracked)
    exam = ns.examine(model, batches(), optimizer=optimizer)
    assert "NS109" not in codes(exam, "info")
    assert any("keeps no count" in what for what in exam.missing) == (kind == "no count")


# --- NS110: shift ---------------------------------------------------------------------------------------------------------------


def _brighter(by):
    return [(x + by, y) for x, y in batches(seed=4)]


def test_a_small_shift_is_for_information_and_a_large_one_is_one_warning():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1))
    ns.recalibrate(model, batches(seed=1))
    same, near, far = (ns.examine(model, _brighter(by)) for by in (0, 0.4, 3.0))
    assert "NS110" not in codes(same, "info")
    assert codes(near) == []
    numbers = finding(near, "NS110").evidence["0"]
    assert numbers["gap"] == pytest.approx(0.2, abs=0.01)  # 0.4 of deviations of 2
    assert numbers["Wasserstein distance"] == pytest.approx(0.2, abs=0.01)
    assert numbers["KL divergence"] == pytest.approx(0.04, abs=0.005)
    assert codes(far, "info").count("NS102") == 1
    assert "NS110" not in codes(far, "info"), "one finding for one fault"
    assert finding(far, "NS102").evidence["0"]["Wasserstein distance"] == pytest.approx(1.5, abs=0.03)


def test_adapting_gains_what_was_said():
    model = nn.Sequential(nn.BatchNorm2d(3))
    ns.recalibrate(model, batches(seed=1))
    shifted = [(x * 1.5 + 2, y) for x, y in batches(4, seed=5)]
    before = ns.examine(model, shifted).table[0]
    ns.adapt(model, shifted)
    others = [(x * 1.5 + 2, y) for x, y in batches(40, seed=6)]
    after = ns.examine(model, others).table[0]["gap"]
    assert before["gap"] > 0.5
    assert before["gap if adapted"] / 3 < after < before["gap if adapted"] * 3
    assert after < before["gap"] / 20


# --- NS208: batch mates and padding ---------------------------------------------------------------------------------------------


class CenteringNorm(nn.Module):
    """A norm of someone's own, which normalizes by the batch whenever it is called."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return (x - x.mean((0, 2, 3), keepdim=True)) * self.weight.view(-1, 1, 1)


def test_a_norm_of_the_batch_is_found_by_its_output():
    model = Net()
    model.deep[1] = CenteringNorm(16)
    model.deep[0].bias = nn.Parameter(torch.randn(16) * 0.1)
    ns.recalibrate(model, batches(seed=1))
    exam = ns.examine(model, batches())
    assert codes(exam) == ["NS208"], str(exam)
    found = finding(exam, "NS208")
    assert (found.layers, found.severity) == (("deep.1",), "warning")
    assert found.evidence["deep.1"]["by other samples"] > 0.01


class Speech(nn.Module):
    """Frames with a mask: positions that it leaves out are zero in front of the norm."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(6, 8, 1), norm, nn.Linear(8, 3)

    def forward(self, x, attention_mask):
        mask = attention_mask.unsqueeze(1).to(x.dtype)
        y = self.conv(x.mT) * mask
        y = self.norm(y, mask=mask.bool()) if isinstance(self.norm, ns.GroupNorm) else self.norm(y)
        return self.head((y * mask).sum(2) / mask.sum(2))


def speech(number=4):
    generator = torch.Generator().manual_seed(2)
    return [
        {"x": torch.randn(8, 12, 6, generator=generator), "attention_mask": torch.ones(8, 12, dtype=torch.long)}
        for _ in range(number)
    ]


def test_padding_that_enters_statistics():
    torch.manual_seed(0)
    exam = ns.examine(Speech(nn.GroupNorm(2, 8)), speech())
    assert codes(exam) == ["NS208"], str(exam)
    assert list(finding(exam, "NS208").evidence["norm"]) == ["by padding"]
    assert exam.samples == 32


def test_padding_that_does_not():
    torch.manual_seed(0)
    for norm in (ns.GroupNorm(8, num_groups=2), nn.BatchNorm1d(8)):
        model = Speech(norm)
        if isinstance(norm, nn.BatchNorm1d):
            ns.recalibrate(model, speech())
        exam = ns.examine(model, speech())
        assert "NS208" not in codes(exam, "info")
        assert not exam.missing, exam.missing


def test_a_layer_behind_the_one_that_mixes_is_not_blamed():
    class Two(Speech):
        def forward(self, x, attention_mask):
            y = self.conv(x.mT)
            return self.norm(y + y.mean(2, keepdim=True))  # mixes padding in before the norm

    torch.manual_seed(0)
    assert codes(ns.examine(Two(nn.GroupNorm(2, 8)), speech())) == []


def test_a_model_that_cannot_be_padded_is_said():
    class Fixed(Speech):
        def forward(self, x, attention_mask):
            if x.shape[1] > 12:
                raise ValueError("at most 12 positions")
            return super().forward(x, attention_mask)

    exam = ns.examine(Fixed(nn.GroupNorm(2, 8)), speech())
    assert any("at most 12 positions" in what for what in exam.missing)
    assert exam.batches == 4


# --- NS209: memory formats ------------------------------------------------------------------------------------------------------


def test_memory_formats():
    last = [(x.to(memory_format=torch.channels_last), y) for x, y in batches()]
    model = healthy(data=last).to(memory_format=torch.channels_last)
    assert "NS209" not in codes(ns.examine(model, last), "info")
    handle = model.norm.register_forward_hook(lambda m, x, y: y.contiguous())
    exam = ns.examine(model, last)
    handle.remove()
    assert codes(exam) == []
    assert finding(exam, "NS209").evidence == {"norm": {"calls": 8.0, "of": 8.0, "format": "channels_last to contiguous"}}


# --- NS210: DistributedDataParallel ---------------------------------------------------------------------------------------------


def twice(model, batch):
    return model(batch[0]), model(batch[0].flip(0))


def wrapped(rank):
    kinds = (nn.BatchNorm2d, {}, None), (nn.BatchNorm2d, {"broadcast_buffers": False}, twice), (ns.BatchNorm, {}, twice)
    return [_wrapped(rank, *kind) for kind in (*kinds, (nn.BatchNorm2d, {}, twice))]


def _wrapped(rank, norm, options, forward):
    torch.manual_seed(0)
    model = DistributedDataParallel(healthy(Net(norm=norm)), **options).train()
    before = copy.deepcopy(model.state_dict())
    exam = ns.examine(model, batches(4 + rank), forward=forward)
    same = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    evidence = [(f.severity, dict(f.evidence)) for f in exam.findings if f.code == "NS210"]
    return same and model.training, codes(exam), evidence, [row["layer"] for row in exam.table], exam.batches


def test_a_model_in_ddp():
    each = zip(*run_ranks(2, wrapped), [1, 2, 2, 2], [[], [], [], ["NS210"]], strict=True)
    for first, second, forwards, expected in each:
        for untouched, warned, evidence, names, number in (first, second):
            assert untouched
            assert (warned, names, number) == (expected, ["norm", "deep.1"], 9), "and no rank waits for the other"
            ((severity, numbers),) = evidence
            assert severity == ("warning" if expected else "info")
            assert numbers["norm"]["forwards for a batch"] == forwards


def test_without_ddp_nothing_is_said_of_it():
    assert "NS210" not in codes(ns.examine(healthy(), batches(), forward=twice), "info")
