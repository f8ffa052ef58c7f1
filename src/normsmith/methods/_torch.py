"""torch's own operators, where they need care, and its layers."""

import torch
from torch import Tensor, nn

from normsmith.methods._running import RunningNormalizer


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """torch's group norm in the memory format of `x`, always by its kernel for contiguous tensors.

    Its CPU kernel for channels_last takes the variance as E[x²] - E[x]²: at mean/std = 1000 the output is off by 1, on larger maps by
    1000, where the contiguous one is off by 1e-4. Copying there and back is exact, and for small tensors no slower.
    """
    if x.is_contiguous() or torch.compiler.is_compiling() or x.numel() == 0:
        return torch.group_norm(x, groups, weight, bias, eps)
    y = torch.group_norm(x.contiguous(), groups, weight, bias, eps)
    return torch.empty_like(x).copy_(y)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """One group over all channels and positions, with a weight and a bias per channel.

    Where channels are last in memory this is torch's layer norm over the dimensions as they lie there, which neither copies nor cancels.
    """
    if x.is_contiguous() or torch.compiler.is_compiling() or x.numel() == 0:
        return group_norm(x, 1, weight, bias, eps)
    turned = x.movedim(1, -1)
    same = all(t is None or t.dtype == x.dtype for t in (weight, bias))
    if not (same and turned.is_contiguous()):
        return group_norm(x, 1, weight, bias, eps)
    sizes = turned.shape[1:]
    factor, shift = (None if t is None else t.expand(sizes) for t in (weight, bias))
    return torch.layer_norm(turned, sizes, factor, shift, eps).movedim(-1, 1)


def numbered_twin(layer: RunningNormalizer, kind: str, spatial_dims: int) -> nn.Module | None:
    """torch.nn's `kind`1d, 2d or 3d with the options of `layer`; None if it has policies that torch has not."""
    options = layer.options()
    if options.keys() - {"eps", "momentum", "affine", "track_running_stats"}:
        return None
    twin: nn.Module = getattr(nn, f"{kind}{max(spatial_dims, 1)}d")(layer.num_features, **options)
    return twin
