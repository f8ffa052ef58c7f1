"""The Fisher information of each linear and convolutional layer: how far a step along the gradient is from one along the natural gradient.

Formula: F = E[vec(dW) vec(dW)ᵀ] over samples and labels drawn from the model, with dW = dh oᵀ the gradient of a sample's negative
log-likelihood, flattened row by row: dh ⊗ o. Exact, or as if inputs o and gradients dh were independent: F ≈ G ⊗ A with
G = E[dh dhᵀ], A = E[o oᵀ] (K-FAC).
In a convolution o is the patch that the kernel sees, dW the sum over positions; in G ⊗ A positions are taken as uncorrelated and alike:
A is the mean over samples and positions, G the mean over samples of the sum over positions. A linear layer over tokens, and a layer that
runs several times in a forward, count as one with as many positions. Second moments are not centred. Layers are taken alone: for
what two of them have in common see `fisher_matrix`.
Differs from the lecture: it does not say whose labels are meant; those of the data give the empirical Fisher, which is no natural gradient.
Reference: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", ICML 2015; Grosse and Martens,
"A Kronecker-factored approximate Fisher matrix for convolution layers", ICML 2016.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normsmith.analysis._capture import LAYERS, Call, Capture, Layer, cannot_be_read
from normsmith.analysis._likelihood import Family, Likelihood, logits
from normsmith.analysis._still import Loss, Still, holding
from normsmith.analysis.blocks import LARGEST, Block, ExactBlock, KroneckerBlock
from normsmith.errors import InputError, ModelError, OptionError
from normsmith.surgery._batches import batches_of, check_loader
from normsmith.surgery._choice import Where
from normsmith.surgery._models import Forward

Kind = Literal["kronecker", "exact"]


@dataclass(frozen=True, eq=False)
class FisherBlocks:
    """The blocks by the names of their layers, and the layers left out with the reason."""

    blocks: dict[str, Block]
    left_out: dict[str, str]
    samples: int


def fisher_blocks(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    kind: Kind = "kronecker",
    likelihood: Family | Loss = "categorical",
    empirical: bool = False,
    draws: int | None = 1,
    homogeneous: bool = True,
    where: Where | None = None,
    batches: int | None = None,
    forward: Forward | None = None,
) -> FisherBlocks:
    """The Fisher block of every linear and convolutional layer, or of those that `where(module, name)` selects.

    `likelihood`: "categorical" for logits (N, K, *positions), "gaussian" for a mean of variance 1, "bernoulli" for logits of single
    elements; the loss is the negative log of it, summed within a sample. Labels are drawn from it, `draws` for each sample, or None for
    the expectation over all of them, exactly. With `empirical` the labels are those of the data, and `likelihood` may be a loss(output,
    target) that sums over samples. `homogeneous` gives the bias a column. `kind="exact"` leaves out layers with more than 10 000 weights.
    `forward(model, batch)` returns the output if model(input) does not.

    The model runs in evaluation, where each sample has a gradient of its own, over `batches` of the loader, or all: one forward each, and
    a backward for each draw. Norms without running statistics couple samples there too; dh is then of the loss of the whole batch. The
    model is afterwards as it was.
    """
    if kind not in ("kronecker", "exact"):
        raise OptionError(f"fisher_blocks expects kind as 'kronecker' or 'exact': got {kind!r}")
    check_loader(loader, batches, "fisher_blocks")
    family = Likelihood("fisher_blocks", likelihood, empirical, draws)
    with holding(model, "fisher_blocks", forward, evaluating=True) as still:
        sums = _chosen(model, where, homogeneous)
        samples = 0
        for batch in batches_of(loader, batches, "Fisher blocks"):
            samples += _take(still, batch, family, sums, kind)
    if samples == 0:
        raise InputError("fisher_blocks expects a loader that yields batches: got none; check its length")
    for own in sums.values():
        if not all(bool(total.isfinite().all()) for total in own.totals.values()):
            own.left_out = "met NaN or infinity"
    found = {s.name: s.block(kind, samples) for s in sums.values() if not s.left_out}
    left_out = {s.name: s.left_out for s in sums.values() if s.left_out}
    if not found:
        raise ModelError(f"fisher_blocks expects a layer it can take apart: got {left_out}")
    return FisherBlocks(found, left_out, samples)


@dataclass
class _Sums:
    """What is summed over samples for one layer."""

    name: str
    homogeneous: bool
    left_out: str = "did not run"
    totals: dict[str, Tensor] = field(default_factory=dict)
    positions: int = 0  # of all samples

    def add(self, key: str, rows: Tensor) -> None:
        """Add the outer products of some rows, (rows, size)."""
        product = rows.T @ rows
        self.totals[key] = self.totals[key] + product if key in self.totals else product

    def block(self, kind: Kind, samples: int) -> Block:
        """The mean."""
        if kind == "exact":
            return ExactBlock(self.totals["F"] / samples)
        return KroneckerBlock(self.totals["A"] / self.positions, self.totals["G"] / samples)


def _chosen(model: nn.Module, where: Where | None, homogeneous: bool) -> dict[nn.Module, _Sums]:
    found: dict[nn.Module, _Sums] = {
        module: _Sums(name, homogeneous)
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) and (where is None or where(module, name))
    }
    if not found:
        raise ModelError("fisher_blocks expects linear or convolutional layers: got none, or none that where() selects")
    return found


def _take(still: Still, batch: Any, family: Likelihood, sums: dict[nn.Module, _Sums], kind: Kind) -> int:
    """Add a batch, and return how many samples it has."""
    layers = [module for module in sums if isinstance(module, LAYERS)]
    weights = {name: p.detach().clone().requires_grad_() for name, p in still.model.named_parameters() if p.is_floating_point()}
    with Capture(layers) as capture:
        z = logits(still.call(lambda: still.output(batch), weights), still.verb)
    samples = z.shape[0]
    calls: dict[Layer, list[Call]] = {}
    for call in capture.calls:
        calls.setdefault(call.layer, []).append(call)
    for layer, runs in list(calls.items()):
        own = sums[layer]
        reason = next(filter(None, (cannot_be_read(call, samples) for call in runs)), "") or _too_large(layer, own, kind)
        if reason or own.left_out not in ("", "did not run"):
            own.left_out = reason or own.left_out
            del calls[layer]
            continue
        own.left_out = ""
    if calls:
        _sum(z, family.gradients(z, still.target(batch)), calls, sums, kind)
    return samples


def _sum(z: Tensor, slopes: Iterable[Tensor], calls: dict[Layer, list[Call]], sums: dict[nn.Module, _Sums], kind: Kind) -> None:
    inputs = {layer: [call.inputs(sums[layer].homogeneous) for call in runs] for layer, runs in calls.items()}
    if kind == "kronecker":
        for layer, os in inputs.items():
            for o in os:
                sums[layer].add("A", o.flatten(0, 1))
                sums[layer].positions += o.shape[0] * o.shape[1]
    outputs = [call.h for runs in calls.values() for call in runs]
    for u in slopes:
        back = iter(torch.autograd.grad(z, outputs, u, retain_graph=True, allow_unused=True, materialize_grads=True))
        for layer, runs in calls.items():
            dhs = [call.gradients(next(back)) for call in runs]
            if kind == "kronecker":
                for dh in dhs:
                    sums[layer].add("G", dh.flatten(0, 1))
            else:
                pairs = zip(dhs, inputs[layer], strict=True)
                whole = torch.stack([torch.einsum("nto,nti->noi", dh, o) for dh, o in pairs]).sum(0)
                sums[layer].add("F", whole.flatten(1))


def _too_large(layer: Layer, own: _Sums, kind: Kind) -> str:
    size = layer.weight.numel() + (layer.bias.numel() if own.homogeneous and layer.bias is not None else 0)
    if kind == "exact" and size > LARGEST:
        return f"has {size} weights, and an exact block at most {LARGEST}; kind='kronecker' takes it"
    return ""
