"""What networks are trained for: for each task the loss of a batch, and scores that add up over batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIGHT = 0.5  # the intersection over union from above which a box counts as found
_OF_SIDES, _OF_OVERLAP = 5.0, 2.0  # parts of the loss of a box, as in Carion et al., "End-to-End Object Detection", ECCV 2020

Score = Callable[[Any, Any], tuple[Tensor, int]]


class Located(NamedTuple):
    """What a network says of the one object in each image: logits of its class (N, classes), and its box (N, 4).

    A box is left, top, right, bottom, in shares of the width and height of the image. A target is the class and the box, (N, 5).
    """

    logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Task:
    """`loss(output, target)` is the mean over a batch; `score(output, target)` a sum over its samples and how many there are."""

    name: str
    loss: Callable[[Any, Any], Tensor]
    score: Score
    measure: str  # what the score's mean is called
    more: Mapping[str, Score] = field(default_factory=dict)  # other scores by what they are called


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Of logits (N, classes, ...) for indices (N, ...), in float32 also under autocast."""
    return F.cross_entropy(output.float(), target)


def accuracy(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    """How many samples have their class on top."""
    return (output.argmax(1) == target).sum(), len(target)


def pixel_accuracy(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    """How many pixels have their class on top."""
    return (output.argmax(1) == target).sum(), target.numel()


def mean_overlap(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    """The intersection over union of each class in an image, averaged over the classes in it or in its prediction; summed over images."""
    number, found = output.shape[1], output.argmax(1)
    classes = torch.arange(number, device=target.device).view(1, -1, 1)
    predicted, true = (t.flatten(1).unsqueeze(1) == classes for t in (found, target))
    both, either = (predicted & true).sum(2), (predicted | true).sum(2)
    present = either > 0
    each = torch.where(present, both / either.clamp_min(1), 0).sum(1) / present.sum(1).clamp_min(1)
    return each.sum(), len(target)


def overlap(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union of boxes pair by pair, and the same less the share of the hull that neither covers, (N,) each."""
    size = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp_min(0)
    hull = (torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])).prod(1)
    both = size.prod(1)
    either = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - both
    tiny = torch.finfo(both.dtype).tiny
    found = both / either.clamp_min(tiny)
    return found, found - (hull - either) / hull.clamp_min(tiny)


def localisation_loss(output: Located, target: Tensor) -> Tensor:
    """Cross entropy of the class, and of the box the distance of its sides and its generalised overlap (Rezatofighi et al., 2019)."""
    boxes = output.boxes.float()
    corners = target[:, 1:].to(boxes)
    box = _OF_SIDES * F.l1_loss(boxes, corners) + _OF_OVERLAP * (1 - overlap(boxes, corners)[1]).mean()
    return cross_entropy(output.logits, target[:, 0].long()) + box


def found(output: Located, target: Tensor) -> tuple[Tensor, int]:
    """How many objects have the right class and a box that overlaps with theirs by more than a half."""
    return (_right_class(output, target) & _right_box(output, target)).sum(), len(target)


def right_class(output: Located, target: Tensor) -> tuple[Tensor, int]:
    """How many objects have the right class."""
    return _right_class(output, target).sum(), len(target)


def right_box(output: Located, target: Tensor) -> tuple[Tensor, int]:
    """How many objects have a box that overlaps with theirs by more than a half."""
    return _right_box(output, target).sum(), len(target)


def _right_class(output: Located, target: Tensor) -> Tensor:
    return output.logits.argmax(1) == target[:, 0].long()


def _right_box(output: Located, target: Tensor) -> Tensor:
    boxes = output.boxes.float()
    return overlap(boxes, target[:, 1:].to(boxes))[0] > RIGHT


TASKS = {
    task.name: task
    for task in (
        Task("classification", cross_entropy, accuracy, "accuracy"),
        Task("segmentation", cross_entropy, mean_overlap, "mean IoU", {"pixel accuracy": pixel_accuracy}),
        Task(
            "localisation",
            localisation_loss,
            found,
            "class right and IoU > 0.5",
            {"accuracy": right_class, "IoU > 0.5": right_box},
        ),
        Task("clips", cross_entropy, accuracy, "accuracy"),
        Task("sequence", cross_entropy, accuracy, "accuracy"),
    )
}
