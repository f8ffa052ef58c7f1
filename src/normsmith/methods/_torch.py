"""torch's own operators, where they need care, and its layers."""

import torch
from torch import Tensor, nn

from normsmith.kernels.choose import checked_in_columns, prefer_torch
from normsmith.methods._running import RunningNormalizer


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, activated: bool = False
) -> Tensor | None:
    """torch's group norm in the memory format of `x`, where it is faster than ours and right; an activation may follow.

    Its CPU kernel for channels_last takes the variance as E[x²] - E[x]²: at mean/std = 1000 the output is off by 1, on larger maps by
    1000, where the contiguous one is off by 1e-4. So it is taken where what it found can be checked; copying to rows and back is exact
    too, and for small tensors no slower.
    """
    in_rows = x.is_contiguous() or torch.compiler.is_compiling() or x.numel() == 0
    if not in_rows:
        checked = checked_in_columns(x, groups, activated=activated)
        if checked is not None and _is_of(weight, x) and _is_of(bias, x):
            y = checked(x, groups, weight, bias, eps)
            if y is not None:
                return y
    if not prefer_torch("group" if x.dim() > 2 else "group_of_tokens", x, activated=activated):
        return None
    if in_rows:
        return torch.group_norm(x, groups, weight, bias, eps)
    y = torch.group_norm(x.contiguous(), groups, weight, bias, eps)
    return torch.empty_like(x).copy_(y)


def _is_of(parameter: Tensor | None, x: Tensor) -> bool:
    """Whether torch's operator takes them together."""
    return parameter is None or parameter.dtype == x.dtype or (parameter.dtype == torch.float32 and x.dtype.itemsize == 2)


def numbered_twin(layer: RunningNormalizer, kind: str, spatial_dims: int) -> nn.Module | None:
    """torch.nn's `kind`1d, 2d or 3d with the options of `layer`; None if it has policies that torch has not."""
    options = layer.options()
    if options.keys() - {"eps", "momentum", "affine", "track_running_stats"}:
        return None
    twin: nn.Module = getattr(nn, f"{kind}{max(spatial_dims, 1)}d")(layer.num_features, **options)
    return twin
