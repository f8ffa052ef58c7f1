"""What the two switchable norms share: the statistics that they blend, and in which proportions."""

import torch
from torch import Tensor

from normsmith.combined import Blend, blend
from normsmith.errors import OptionError
from normsmith.methods._running import RunningNormalizer
from normsmith.moments import Moments

Ratios = dict[str, dict[str, float]]


def blend_parts(
    cells: Moments,
    batch: Moments | None,
    mean_weights: Tensor,
    var_weights: Tensor,
    parts: tuple[str, ...],
    layer: Moments | None = None,
    *,
    softmax: bool = False,
) -> Blend:
    """Those of the three statistics that `parts` names, in proportions given or by their logits; the layer is pooled here unless given."""
    sources = {"instance": cells, "layer": layer or (cells.pool(1) if "layer" in parts else None), "batch": batch}
    return blend([m for m in map(sources.get, parts) if m is not None], mean_weights, var_weights, softmax=softmax)


def corrected(cells: Moments) -> Moments:
    """The cells with unbiased variances in the place of the biased ones."""
    return Moments(cells.mean, cells.unbiased(), cells.count)


def choose_parts(name: str, use_batch: bool, instance: bool) -> tuple[str, ...]:
    """The statistics that are blended, in the order of their logits."""
    if not use_batch and not instance:
        raise OptionError(f"{name} expects two statistics to blend: got use_batch=False and instance=False; or use LayerNorm")
    return ("instance",) * instance + ("layer",) + ("batch",) * use_batch


def running_part(layer: RunningNormalizer, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The running mean and variance, (1, C), where they stand for the batch."""
    single = layer.on_single == "running" and layer.process_group is None and x.numel() == layer.num_features
    if layer.running_mean is None or not (layer.uses_running_stats or single):
        return None, None
    mean, var = layer.constants()
    return mean.view(1, -1), var.view(1, -1)


def widened(logits: Tensor) -> Tensor:
    """In float32 at least, as all statistics."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def named(parts: tuple[str, ...], mean_ratios: Tensor, var_ratios: Tensor) -> Ratios:
    """The proportions as numbers by name."""
    both = {"mean": mean_ratios, "var": var_ratios}
    return {what: dict(zip(parts, ratios.tolist(), strict=True)) for what, ratios in both.items()}
