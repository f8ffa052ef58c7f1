"""Losses and scores of the tasks, against numbers made by hand."""

import math

import pytest
import torch

import normsmith as ns
from normsmith.models import TASKS, Located
from normsmith.models.tasks import overlap


def test_every_task_of_the_catalog_is_there():
    assert {entry.task for entry in ns.models.catalog().values()} == TASKS.keys()
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize("name", ["classification", "clips", "sequence"])
def test_classes(name):
    task = TASKS[name]
    logits = torch.tensor([[2.0, 0, 0], [0, 0, 3], [0, 1, 0]])
    target = torch.tensor([0, 1, 1])
    expected = -sum(row[t] - row.exp().sum().log() for row, t in zip(logits, target, strict=True)) / 3
    assert torch.isclose(task.loss(logits, target), expected)
    assert task.loss(logits.bfloat16(), target).dtype == torch.float32
    total, count = task.score(logits, target)
    assert (int(total), count) == (2, 3)
    assert task.measure == "accuracy"


def test_segmentation():
    found = torch.tensor([[[0, 0], [1, 1]], [[0, 0], [0, 0]]])
    logits = torch.nn.functional.one_hot(found, 4).movedim(-1, 1).float()
    target = torch.tensor([[[0, 1], [1, 2]], [[0, 0], [0, 0]]])
    task = TASKS["segmentation"]
    total, count = task.score(logits, target)
    # The first image: 1/2 of class 0, 1/3 of class 1, nothing of class 2, no class 3; the second is right.
    assert math.isclose(float(total), (1 / 2 + 1 / 3 + 0) / 3 + 1, rel_tol=1e-6)
    assert count == 2
    right, pixels = task.more["pixel accuracy"](logits, target)
    assert (int(right), pixels) == (6, 8)
    assert torch.isclose(task.loss(torch.zeros(2, 4, 2, 2), target), torch.tensor(math.log(4)))


BOX = torch.tensor([[0.0, 0.0, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("other", "iou", "generalised"),
    [
        ([0.0, 0.0, 0.5, 0.5], 1.0, 1.0),
        ([0.0, 0.0, 0.5, 1.0], 0.5, 0.5),
        ([0.25, 0.25, 0.75, 0.75], 1 / 7, 1 / 7 - 2 / 9),
        ([0.5, 0.5, 1.0, 1.0], 0.0, -0.5),
        ([0.25, 0.25, 0.25, 0.25], 0.0, 0.0),
        ([0.75, 0.75, 1.0, 1.0], 0.0, -0.6875),
    ],
)
def test_overlap_of_boxes(other, iou, generalised):
    pairs = torch.tensor([other])
    for found in (overlap(BOX, pairs), overlap(pairs, BOX)):
        assert torch.allclose(found[0], torch.tensor([iou]), atol=1e-6)
        assert torch.allclose(found[1], torch.tensor([generalised]), atol=1e-6)


def test_localisation():
    task = TASKS["localisation"]
    target = torch.tensor([[1.0, 0, 0, 0.5, 0.5]]).repeat(4, 1)
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0, 0, 0.5, 1.0], [0, 0, 0.5, 0.8]])
    logits = torch.tensor([[0.0, 5], [5, 0], [0, 5], [0, 5]])
    assert [int(v) for v in task.score(Located(logits, boxes), target)] == [2, 4]  # a half is not above a half
    assert [int(v) for v in task.more["accuracy"](Located(logits, boxes), target)] == [3, 4]
    assert [int(v) for v in task.more["IoU > 0.5"](Located(logits, boxes), target)] == [3, 4]
    one = Located(logits[2:3], boxes[2:3])
    expected = math.log(1 + math.exp(-5)) + 5 * 0.5 / 4 + 2 * (1 - 0.5)
    assert math.isclose(float(task.loss(one, target[:1])), expected, rel_tol=1e-5)


def test_a_box_of_no_size_has_a_finite_gradient():
    boxes = torch.zeros(1, 4, requires_grad=True)
    loss = TASKS["localisation"].loss(Located(torch.zeros(1, 2), boxes), torch.zeros(1, 5))
    loss.backward()
    assert boxes.grad.isfinite().all()


def test_a_detector_learns_where_a_square_is():
    torch.manual_seed(0)
    places = torch.randint(0, 12, (32, 2))
    images, target = torch.zeros(32, 1, 16, 16), torch.zeros(32, 5)
    for image, aim, (top, left) in zip(images, target, places.tolist(), strict=True):
        image[0, top : top + 4, left : left + 4] = 1
        aim[1:] = torch.tensor([left, top, left + 4, top + 4]) / 16
    model = ns.models.make("detector:width=4", num_classes=2, in_channels=1, norm="group")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    task = TASKS["localisation"]
    for _ in range(20):
        optimizer.zero_grad()
        task.loss(model(images), target).backward()
        optimizer.step()
    total, count = task.score(model(images), target)
    assert int(total) > 0.5 * count
