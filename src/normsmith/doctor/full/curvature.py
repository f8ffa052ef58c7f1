"""What the loss looks like around the model: Fisher blocks of the layers before normalizers, smoothness, internal covariate shift.

A Fisher block is G ⊗ A (`analysis.fisher_blocks`), A the second moments of what the layer reads. Of all that makes A ill-conditioned, a
normalizer before the layer can change the scales of single inputs: `scales` is how many times worse the condition of A is than that of A
with every input brought to a mean square of one (which is the best scaling up to a factor of their number; van der Sluis 1969).
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from normsmith.analysis._capture import LAYERS
from normsmith.analysis.blocks import ExactBlock, KroneckerBlock
from normsmith.analysis.covariate_shift import covariate_shift
from normsmith.analysis.fisher_blocks import fisher_blocks
from normsmith.analysis.smoothness import Smoothness, smoothness
from normsmith.doctor.full.clock import Clock
from normsmith.doctor.full.modes import by_batch
from normsmith.doctor.subject import Held, Subject

if TYPE_CHECKING:
    from normsmith.doctor.observation import Layer

DAMPING = 1e-6  # of the mean eigenvalue: what float32 activations can tell
LARGEST = 1024  # inputs of a layer whose second moments are taken apart: their eigenvalues take 0.2 s
ROOM = 64 << 20  # bytes of patches of one group of layers


@dataclass(frozen=True)
class Condition:
    """Of the layer before a normalizer."""

    layer: str
    block: float  # of G ⊗ A
    scales: float  # how much of that of A unequal scales of its inputs make


def conditions(
    subject: Subject, layers: Sequence["Layer"], batch: Any, clock: Clock, missing: list[str]
) -> dict[str, Condition]:
    """The condition of the Fisher block of the layer right before each normalizer, by the normalizer's name."""
    modules = dict(subject.model.named_modules())
    wanted: dict[str, Layer] = {}
    for layer in layers:
        module = modules.get(layer.before)
        if isinstance(module, LAYERS):
            size = module.weight[0].numel()
            room = layer.positions * size * 8 * (layer.samples[0] if layer.samples else 0)
            if size > LARGEST or room > ROOM:
                missing.append(
                    f"the Fisher block of {layer.before}: it reads {size} inputs at {layer.positions} positions; looked at are up to "
                    f"{LARGEST} inputs, in {ROOM >> 20} MB"
                )
            elif layer.before not in wanted:
                wanted[layer.before] = layer
    found = {}
    for group in _groups(wanted, modules):
        if not clock.has(2 * clock.backward, f"the Fisher blocks of {', '.join(group)}"):
            break
        chosen = partial(_is_among, group)
        blocks = fisher_blocks(subject.model, [Held(batch)], where=chosen, forward=subject.run)
        missing += [f"the Fisher block of {name}: it {reason}" for name, reason in blocks.left_out.items()]
        for name, block in blocks.blocks.items():
            assert isinstance(block, KroneckerBlock)
            found[wanted[name].name] = Condition(name, block.condition(DAMPING), _scales(block.A))
    return found


def _is_among(names: list[str], _: nn.Module, name: str) -> bool:
    return name in names


def _groups(wanted: "dict[str, Layer]", modules: dict[str, Any]) -> Iterator[list[str]]:
    """Layers that are looked at together, as many as there is room for."""
    group: list[str] = []
    room = 0
    for name, layer in wanted.items():
        own = layer.positions * modules[name].weight[0].numel() * 8 * layer.samples[0]
        if group and room + own > ROOM:
            yield group
            group, room = [], 0
        group.append(name)
        room += own
    if group:
        yield group


def _scales(second: Tensor) -> float:
    """The condition of second moments over that of those with a diagonal of ones, without inputs that are always zero."""
    live = second.diagonal() > 0
    second = second[live][:, live]
    if second.shape[0] < 2:
        return 1.0
    root = second.diagonal().rsqrt()
    whole, alike = (ExactBlock(m).condition(DAMPING) for m in (second, second * root * root.unsqueeze(1)))
    return whole / alike


def along_the_gradient(subject: Subject, layers: Sequence["Layer"], batch: Any, lr: float) -> Smoothness:
    """The smoothness of the loss in the statistics of training."""
    with _as_in_training(subject, layers):
        return smoothness(subject.model, subject.compare, Held(batch), lr=lr, forward=subject.run)


def shifts(subject: Subject, layers: Sequence["Layer"], batch: Any, lr: float) -> dict[str, float]:
    """The internal covariate shift of the layer before each normalizer, relative to its gradient, by the normalizer's name."""
    parameters = {name.rpartition(".")[0] for name, p in subject.model.named_parameters() if p.requires_grad}
    wanted = {layer.before: layer.name for layer in layers if layer.before in parameters}
    if not wanted:
        return {}
    with _as_in_training(subject, layers):
        found = covariate_shift(
            subject.model, subject.compare, Held(batch), lr=lr, where=lambda _, name: name in wanted, forward=subject.run
        )
    return {wanted[name]: shift.relative for name, shift in found.items()}


@contextlib.contextmanager
def _as_in_training(subject: Subject, layers: Sequence["Layer"]) -> Iterator[None]:
    """In this block normalizers work by the batch, and everything else is in evaluation."""
    modes = {module: module.training for module in subject.model.modules()}
    try:
        subject.model.eval()
        with by_batch(layer.module for layer in layers if layer.by_batch):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
