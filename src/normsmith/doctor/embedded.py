"""The examination without arguments: a small net, trained on the digits for some seconds, with faults planted in it.

So that a newcomer sees what a report looks like, and what it finds.
"""

import textwrap
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith import data
from normsmith.doctor.examination import Examination

EPOCHS, BATCH = 5, 64
HELD_OUT = 512  # samples
WIDTHS = (8, 16, 16, 32)
MOMENTUM, EPS = 0.002, 0.1  # planted


@dataclass(frozen=True)
class Fault:
    """One that was planted."""

    layer: str
    code: str  # of the finding that should come of it
    what: str


@dataclass(frozen=True, eq=False)
class Patient:
    """The net, data it has not seen, and what is wrong with it."""

    model: nn.Module
    loader: list[tuple[Tensor, Tensor]]
    faults: tuple[Fault, ...]

    def told(self, exam: Examination) -> str:
        """What was planted and what was found, in words."""
        lines = [
            f"A convolutional net of {len(WIDTHS)} blocks, trained on scikit-learn's digits, with {len(self.faults)} faults planted. "
            f"In evaluation it is right about {self.accuracy():.0%} of the {HELD_OUT} digits it has not seen."
        ]
        found = {(f.code, layer): f for f in exam.findings for layer in f.layers}
        for fault in self.faults:
            finding = found.get((fault.code, fault.layer))
            seen = f"found: {finding.severity} {finding.code}, {finding.title}" if finding else "not found"
            lines.append(f"  {fault.layer}: {fault.what}; {seen}")
        lines.append("Layers behind a wrong one read what they were not trained on, so a finding may name these too.")
        return "\n".join([*(textwrap.fill(line, 110, subsequent_indent="    ") for line in lines), ""])

    def accuracy(self) -> float:
        """In evaluation, on the data held out; the model is left in evaluation."""
        self.model.eval()
        with torch.no_grad():
            right = [(self.model(x).argmax(1) == y).double().sum() for x, y in self.loader]
        return float(torch.stack(right).sum()) / sum(len(y) for _, y in self.loader)


def patient(seed: int = 0) -> Patient:
    """Train the net, and plant the faults; the random state outside stays as it is."""
    digits = data.load("digits")
    images = torch.cat([digits.train.inputs, digits.test.inputs])
    labels = torch.cat([digits.train.targets, digits.test.targets])
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        order = torch.randperm(len(images))
        held_out, learned = order[:HELD_OUT], order[HELD_OUT:]
        model = Net()
        _norm(model, 1).momentum = MOMENTUM
        _train(model, images[learned], labels[learned])
    used_to = _norm(model, 2).eps
    _norm(model, 2).eps = EPS
    _norm(model, 3).requires_grad_(False)
    faults = (
        Fault("blocks.1.norm", "NS102", f"a momentum of {MOMENTUM}, so that its running statistics hardly moved in training"),
        Fault("blocks.2.norm", "NS104", f"rebuilt with eps={EPS}, where it was trained with {used_to:g}"),
        Fault("blocks.3.norm", "NS207", "weight and bias kept from training, its statistics not"),
    )
    loader = list(zip(torch.split(images[held_out], BATCH), torch.split(labels[held_out], BATCH), strict=True))
    return Patient(model, loader, faults)


class Block(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, ...)."""
        return torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    """Blocks, the mean over positions, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        before = (1, *WIDTHS[:-1])
        self.blocks = nn.Sequential(*(Block(c, w, 1 + i % 2) for i, (c, w) in enumerate(zip(before, WIDTHS, strict=True))))
        self.head = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, 10)."""
        found: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return found


def _norm(model: Net, index: int) -> Any:
    return model.blocks[index].norm


def _train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Adam, its rate falling to zero, so that at the end statistics do not lag behind the weights."""
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(EPOCHS):
        for part in torch.split(torch.randperm(len(images)), BATCH):
            if len(part) == BATCH:
                optimizer.zero_grad()
                F.cross_entropy(model(images[part]), labels[part]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
