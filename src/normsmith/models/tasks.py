"""What networks are trained for: for each task the loss of a batch, and scores that add up over batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIGHT = 0.5  # the intersection over union from above which a box counts as found
_OF_CORNERS, _OF_OVERLAP = 5.0, 2.0  # parts of the loss of a box, as in Carion et al., "End-to-End Object Detection", ECCV 2020

Score = Callable[[Any, Any], tuple[Tensor, int]]


class Located(NamedTuple):
    """What a localisation gives and what it is compared with: of one object per image its class and its box.

    As output: logits (N, classes). As target: indices (N,). Boxes are (N, 4): left, top, right, bottom, in parts of the image.
    """

    classes: Tensor
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
    """Of logits (N, classes, ...) for indices (N, ...), in at least float32."""
    return F.cross_entropy(output if output.dtype == torch.float64 else output.float(), target)


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


def localisation_loss(output: Located, target: Located) -> Tensor:
    """Cross entropy of the class, and of the box the distance of its corners and its generalised overlap (Rezatofighi et al., 2019)."""
    logits, boxes = output
    labels, corners = target
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    corners = corners.to(boxes.dtype)
    box = _OF_CORNERS * F.l1_loss(boxes, corners) + _OF_OVERLAP * (1 - overlap(boxes, corners)[1]).mean()
    return cross_entropy(logits, labels) + box


def found(output: Located, target: Located) -> tuple[Tensor, int]:
    """How many objects have the right class and a box that overlaps with theirs by more than a half."""
    return (_right_class(output, target) & _right_box(output, target)).sum(), len(target[0])


def _right_class(output: Located, target: Located) -> Tensor:
    return output[0].argmax(1) == target[0]


def _right_box(output: Located, target: Located) -> Tensor:
    return overlap(output[1].float(), target[1].float())[0] > RIGHT


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
            {
                "accuracy": lambda output, target: accuracy(output[0], target[0]),
                "IoU > 0.5": lambda output, target: (_right_box(output, target).sum(), len(target[0])),
            },
        ),
        Task("clips", cross_entropy, accuracy, "accuracy"),
        Task("sequence", cross_entropy, accuracy, "accuracy"),
    )
}
