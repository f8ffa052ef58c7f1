"""`match_colours`: the colours of one picture given to another, by mean and covariance."""

import torch
from torch import Tensor

from normsmith.errors import InputError

_FLAT = 1e-4  # a direction with so little of the largest variance is rounding of bytes, and has no colour to stretch


def match_colours(picture: Tensor, like: Tensor) -> Tensor:
    """`picture` with the mean and covariance of the colours of `like`, both (N, 3, H, W), their sizes free; either may have N = 1.

    y = Σ_like^½ Σ^-½ (x - m) + m_like, per sample (CORAL; Sun, Feng and Saenko, 2016). Where a picture has no variance, as across the
    greys of a grey one, there is nothing to stretch, and none comes in. Values may leave the range of the input.
    """
    for name, x in (("picture", picture), ("like", like)):
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point() or not x.numel():
            raise InputError(
                f"match_colours expects {name} as floats of shape (N, 3, H, W): got {x.dtype} of shape {tuple(x.shape)}"
            )
    if len(picture) != len(like) and 1 not in {len(picture), len(like)}:
        raise InputError(f"match_colours expects batches of one size, or of 1: got {len(picture)} and {len(like)}")
    (mean, values, axes), (like_mean, like_values, like_axes) = _principal(picture), _principal(like)
    whole = values > _FLAT * values.amax(-1, keepdim=True)
    shrink = torch.where(whole, values, 1).rsqrt() * whole
    stretch = like_values.clamp(min=0).sqrt()
    matrix = (like_axes * stretch[:, None]) @ like_axes.mT @ (axes * shrink[:, None]) @ axes.mT
    centred = picture.flatten(2) - mean.to(picture)
    y: Tensor = matrix.to(picture) @ centred + like_mean.to(picture)
    return y.view(len(y), 3, *picture.shape[2:])


def _principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (N, 3, 1), variances (N, 3) along the principal axes, and these (N, 3, 3), in float64."""
    points = x.flatten(2).double()
    mean = points.mean(2, keepdim=True)
    centred = points - mean
    values, axes = torch.linalg.eigh(centred @ centred.mT / points.shape[2])
    return mean, values, axes
