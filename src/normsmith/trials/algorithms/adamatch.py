"""AdaMatch: a network learns from one domain with labels, and from another by the labels that it is itself sure of.

A step has a batch of the source, weakly and strongly augmented, and one of the target, `unlabelled_ratio` times as large, likewise. The
logits of the source are drawn between those it has in a forward with the target and those in one alone: the network is to say the same
whichever batch its statistics are of. Running statistics move in the first of these alone, so once a step. What the network says of the
weak target samples is aligned with how often the source has each class, and is a label where it is sure enough, measured by how sure the
network is of the source; the strong samples learn these labels. No gradient goes through labels, alignment or threshold.

Source and target are both standardised by the source's statistics. An epoch is one pass over the source's training set; the target goes
on from one to the next. The first test set is the target's. A search of learning rates, which must not see its labels, is judged on
held-out samples of the source.
Conditional and context norms get the domain as their condition, 0 for the source, 1 for the target.

Berthelot et al., "AdaMatch: A Unified Approach to Semi-Supervised Learning and Domain Adaptation", ICLR 2022; averages as in the authors'
code.
"""

import contextlib
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normsmith import data
from normsmith.data.load import ends
from normsmith.surgery.conditioned import conditioned, conditions_of
from normsmith.trials.algorithm_settings import AdaMatchSettings
from normsmith.trials.algorithms import Batch, Sets, Test, batching, precision
from normsmith.trials.algorithms.matching import Alignment, interpolated, rise, source_loss, target_loss
from normsmith.trials.plan import Trial
from normsmith.trials.share import ALONE, Share

SOURCE, TARGET = 0, 1  # as conditions
_RECORDED = ("source loss", "target loss", "mask share", "threshold")


class AdaMatch:
    """Two data sets of the same classes, of which the second's labels are for evaluation alone."""

    gives_conditions: ClassVar[bool] = True

    def __init__(self, trial: Trial, sets: Sets, share: Share = ALONE) -> None:
        self.trial, self.sets, self.share = trial, sets, share
        self.settings = AdaMatchSettings(**dict(trial.algorithm))
        source, target = sets
        labelled = source.train
        batches = batching(trial, source)
        test = partial(batches, size=256, shuffle=False)
        if trial.searching:
            labelled, held_out = labelled.divided(float(trial.option("validation")), seed=0)
            self.tests: tuple[Test, ...] = (Test("", test(held_out), partial(told, domain=SOURCE)),)
        else:
            self.tests = (
                Test("", test(target.test), partial(told, domain=TARGET)),
                Test("source ", test(source.test), partial(told, domain=SOURCE)),
            )
        weak, strong = augmentations(self.settings, source)
        common = {"seed": trial.seed, "drop_last": True}
        size = min(trial.batch, len(labelled))
        self._source = [
            batches(labelled, size, augment=weak, **common),
            batches(labelled, size, augment=strong, view="strong", **common),
        ]
        size = trial.batch * self.settings.unlabelled_ratio
        self._target = [
            batches(target.train, size, augment=weak, **common),
            batches(target.train, size, augment=strong, view="strong", **common),
        ]
        self.steps = len(self._source[0])
        device = torch.device(trial.option("device"))
        self.alignment = Alignment(len(source.classes), self.settings.source_decay, self.settings.target_batches, device)
        self._seen: list[Tensor] = []  # of every step of the epoch, what is recorded

    @staticmethod
    def load(name: str, root: str | None) -> Sets:
        """Source and target."""
        return data.load_pair(*ends(name), root)

    @staticmethod
    def fault(trial: Trial, sets: Sets) -> str:
        """Too few samples for a batch of either."""
        ratio = int(dict(trial.algorithm)["unlabelled_ratio"])
        for dataset, samples, what in zip(sets, (trial.batch, trial.batch * ratio), ("source", "target"), strict=True):
            if len(dataset.train) < samples:
                return f"{samples} samples of the {what} for a batch, its training set has {len(dataset.train)}"
        return ""

    @staticmethod
    def forward(model: nn.Module, x: Tensor) -> Any:
        """What the model says of samples of the source."""
        return told(model, x, domain=SOURCE)

    def batches(self, epoch: int, step: int) -> Iterator[Batch]:
        """Weak and strong samples of the source around their labels, weak and strong ones of the target."""
        source = zip(*(batches.epoch(epoch) for batches in self._source), strict=True)
        for ((weak, labels), (strong, _)), others in zip(source, self._of_target(step), strict=False):
            yield weak, labels, strong, *others

    def _of_target(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the target from a step on, without end."""
        epoch, start = divmod(step, len(self._target[0]))
        for number in itertools.count(epoch):
            views = (batches.epoch(number, start if number == epoch else 0) for batches in self._target)
            yield from (tuple(x for x, _ in each) for each in zip(*views, strict=True))

    def gradients(self, model: nn.Module, batch: Batch, progress: float) -> Iterator[Tensor]:
        """Those of the source's loss and of the target's, which counts the more the longer the training goes on."""
        weak, labels, strong, other_weak, other_strong = (self.share.part(t) for t in batch)
        source, shown = torch.cat([weak, strong]), 2 * len(weak)
        own, other_own = len(weak) / len(batch[0]), len(other_weak) / len(batch[3])
        whole = torch.cat([source, other_weak, other_strong])
        domains = torch.full((len(whole),), TARGET, device=whole.device)
        domains[:shown] = SOURCE
        with precision(self.trial, whole.device):
            with spared(model):
                alone = told(model, source, domain=domains[:shown]).float()
            together = told(model, whole, domain=domains).float()
        of_source, of_target = together[:shown], together[shown:]
        of_source = interpolated(of_source, alone, torch.rand_like(alone))
        of_weak, of_strong = of_target.chunk(2)
        found, sure, threshold = self._labels(of_source[: len(weak)], of_weak, len(batch[0]), len(batch[3]))
        losses = source_loss(of_source, labels) * own, target_loss(of_strong, found, sure) * other_own
        loss = losses[0] + self.settings.mu * rise(progress) * losses[1]
        loss.backward()  # type: ignore[no-untyped-call]
        seen = torch.stack([*losses, sure.float().mean() * other_own, threshold * own])
        self._seen.append(seen.detach())
        yield loss.detach()

    @torch.no_grad()
    def _labels(self, source: Tensor, target: Tensor, samples: int, others: int) -> tuple[Tensor, Tensor, Tensor]:
        """From the logits of weak samples: the label of each sample of the target, whether it counts, and the threshold.

        Means are over all `samples` and `others` of the batch, on all ranks.
        """
        of_source, of_target = source.softmax(1), target.softmax(1)
        sums = torch.cat([of_source.sum(0), of_target.sum(0), of_source.amax(1).sum().view(1)])
        classes = source.shape[1]
        mean, other_mean, peak = torch.split(self.share.sum(sums), [classes, classes, 1])
        self.alignment.update(mean / samples, other_mean / others)
        certainty, labels = self.alignment(of_target).max(1)
        threshold = self.settings.threshold * peak[0] / samples
        return labels, certainty >= threshold, threshold

    def values(self) -> dict[str, float]:
        """Both losses, how many samples of the target had a label, and how sure the network had to be of it: means over the epoch."""
        means = self.share.sum(torch.stack(self._seen).mean(0)).tolist()
        self._seen.clear()
        return dict(zip(_RECORDED, means, strict=True))

    def state(self) -> dict[str, Any]:
        """The averages of the alignment."""
        return self.alignment.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The averages of the alignment."""
        self.alignment.load(state)


@contextlib.contextmanager
def spared(model: nn.Module) -> Iterator[None]:
    """Within it a forward moves copies of the model's buffers; its own are not written to, as a backward may still want to read them."""
    own = [(m, key, buffer) for m in model.modules() for key, buffer in m._buffers.items() if buffer is not None]
    for module, key, buffer in own:
        module._buffers[key] = buffer.clone()
    try:
        yield
    finally:
        for module, key, buffer in own:
            module._buffers[key] = buffer


def told(model: nn.Module, x: Tensor, *, domain: int | Tensor) -> Any:
    """What the model says of samples, its normalizers told of which domain each is, if they want to know."""
    if not conditions_of(model):
        return model(x)
    ids = domain if isinstance(domain, Tensor) else torch.full((len(x),), domain, device=x.device)
    with conditioned(model, ids):
        return model(x)


def augmentations(settings: AdaMatchSettings, dataset: data.Dataset) -> tuple[str, str]:
    """The weak and the strong one; where the recipe has none, such as keep the class of a digit and of an object."""
    side = min(dataset.size)
    moved = f"crop:padding={max(side // 8, 1)}"
    colour = "colour:brightness=0.5,contrast=0.5" + (",saturation=0.5" if dataset.channels == 3 else "")
    bent = "affine:degrees=30,scale=0.2,shear=0.2"
    return settings.weak or moved, settings.strong or f"{moved}, {bent}, {colour}, cutout:size={max(side // 3, 1)}"
