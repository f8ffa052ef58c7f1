"""`Split` and `Dataset`: samples and targets as tensors in memory, with what a network and a table need to know of them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from normsmith.errors import InputError

Task = Literal["classification", "segmentation", "localisation", "clips"]


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their targets.

    `inputs` are (N, C, H, W), clips (N, C, T, H, W): uint8, where 255 is 1, or float32, where 1 is 1. `targets` are int64 (N,), the class;
    of a segmentation int64 (N, H, W), the class of each pixel; of a localisation float32 (N, 5), the class and its box as left, top, right,
    bottom, in shares of width and height.
    """

    inputs: Tensor
    targets: Tensor
    names: tuple[str, ...] | None = None  # of the samples, where they have any

    def __post_init__(self) -> None:
        counts = {len(self.inputs), len(self.targets), len(self.inputs if self.names is None else self.names)}
        if len(counts) > 1:
            raise InputError(
                f"a split expects as many targets and names as inputs: got {len(self.inputs)} inputs, {len(self.targets)} targets"
                + ("" if self.names is None else f", {len(self.names)} names")
            )
        if self.inputs.dtype not in {torch.uint8, torch.float32} or self.inputs.ndim not in {4, 5}:
            raise InputError(
                "a split expects inputs as uint8 or float32 of shape (N, C, H, W) or (N, C, T, H, W): "
                f"got {self.inputs.dtype} of shape {tuple(self.inputs.shape)}"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, indices: Tensor) -> "Split":
        """The samples at these places, in this order."""
        names = None if self.names is None else tuple(self.names[i] for i in indices.tolist())
        return Split(self.inputs[indices], self.targets[indices], names)

    def divided(self, share: float, seed: int = 0) -> tuple["Split", "Split"]:
        """Two parts without a sample in common, drawn by the seed; the second has `share` of the samples."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        kept = len(self) - max(round(share * len(self)), 1)
        return self.select(order[:kept].sort().values), self.select(order[kept:].sort().values)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A set of data: what to train on, what to test on, and their task."""

    name: str
    task: Task
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # of each channel of `train`, on the scale where 255 of a uint8 is 1
    std: tuple[float, ...]  # a channel that is constant has 1 here
    notes: tuple[str, ...] = ()  # what a reader of results should know, such as batches that were missing

    @property
    def channels(self) -> int:
        """How many channels a sample has."""
        return self.train.inputs.shape[1]

    @property
    def size(self) -> tuple[int, ...]:
        """The positions of a sample: height and width; of clips the frames before them."""
        return tuple(self.train.inputs.shape[2:])


def assemble(
    name: str, task: Task, train: Split, test: Split, classes: tuple[str, ...], notes: tuple[str, ...] = ()
) -> Dataset:
    """The data set of two splits, checked, with the statistics of its channels."""
    for title, split in (("train", train), ("test", test)):
        if not len(split):
            raise InputError(f"{name} is expected to have samples to {title} with: got none")
        labels = split.targets[:, 0] if task == "localisation" else split.targets
        if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
            raise InputError(
                f"{name} is expected to have labels from 0 to {len(classes) - 1} in its {title} split: "
                f"got {int(labels.min())} to {int(labels.max())}"
            )
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise InputError(
            f"{name} is expected to have samples of one shape: got {tuple(train.inputs.shape[1:])} to train and "
            f"{tuple(test.inputs.shape[1:])} to test with; add size= and channels="
        )
    mean, std = statistics(train.inputs)
    return Dataset(name, task, train, test, classes, mean, std, notes)


def statistics(inputs: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, exact up to rounding; the deviation of a constant channel is given as 1."""
    moments = [_of_bytes(c) if inputs.dtype == torch.uint8 else _of_floats(c) for c in inputs.unbind(1)]
    return tuple(mean for mean, _ in moments), tuple(var**0.5 or 1.0 for _, var in moments)


def _of_bytes(values: Tensor) -> tuple[float, float]:
    """From how often each of the 256 values occurs."""
    shares = torch.bincount(values.flatten(), minlength=256).double() / values.numel()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (shares * levels).sum()
    return float(mean), float((shares * (levels - mean).square()).sum())


def _of_floats(values: Tensor) -> tuple[float, float]:
    var, mean = torch.var_mean(values.double(), correction=0)
    return float(mean), float(var)
