"""Adaptive instance norm: every channel of every sample takes the mean and the standard deviation of the same channel of a style.

Formula: y = s_style * (x - m_x) / s_x + m_style, with m and s = sqrt(var + eps) per sample and channel over the positions, biased
variance for both; then alpha * y + (1 - alpha) * x. Several styles are mixed by a convex combination of their outputs, which is that of
their m and s. Sizes of x and style may differ; a style of batch 1 serves all samples. Gradients flow to x and to the style.

Differs from batch norm: statistics per sample, no parameters and no buffers, the same in training and evaluation.
eps stands in both roots, so that adain(x, x) = x. A lecture prints no eps. The authors' code has unbiased variances (`unbiased=True`):
the two differ only where x and style differ in size, and theirs is NaN at a single position; here that gives m_style.
Cost: 2 passes over x forward, 2 over x and dy backward, and one over the style.
Fails when: a style is more than the mean and spread of its channels.
Reference: Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", ICCV 2017.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from normsmith.errors import InputError, OptionError
from normsmith.measure import measure
from normsmith.methods._base import Normalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(
    cells: Moments, batch: None, style_mean: Tensor, style_std: Tensor, *, alpha: float, eps: float, unbiased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    scale = style_std * _deviation(cells, eps, unbiased).reciprocal()
    return cells.mean, alpha * scale + (1 - alpha), alpha * style_mean + (1 - alpha) * cells.mean


def _deviation(moments: Moments, eps: float, unbiased: bool) -> Tensor:
    return ((moments.unbiased() if unbiased else moments.var) + eps).sqrt()


def adain(
    x: Tensor,
    style: Tensor | Sequence[Tensor] | None = None,
    *,
    style_mean: Tensor | None = None,
    style_std: Tensor | None = None,
    weights: Sequence[float] | Tensor | None = None,
    alpha: float = 1.0,
    eps: float = 1e-5,
    unbiased: bool = False,
) -> Tensor:
    """`x` with the channel statistics of `style`, given as features, as several features with `weights`, or as mean and std.

    `style_mean` and `style_std` have shape (N, C), (1, C) or (C,). `weights` of several styles sum to 1 (default: equal).
    """
    if not 0 <= alpha <= 1:
        raise OptionError(f"adain expects alpha, the strength of the style, from 0 (none) to 1: got {alpha!r}")
    if style is None:
        if style_mean is None or style_std is None:
            raise OptionError("adain expects a style, or both style_mean and style_std: got neither; pass style=features")
        if weights is not None:
            raise OptionError("adain expects weights only with a sequence of styles: got them with style_mean and style_std")
        mean, std = style_mean, style_std
    elif style_mean is not None or style_std is not None:
        raise OptionError("adain expects either a style, or style_mean and style_std: got both; leave one out")
    else:
        styles = [style] if isinstance(style, Tensor) else list(style)
        mean, std = _combined(x, styles, _weights(weights, len(styles)), eps, unbiased)
    return normalize(x, partial(mix, alpha=alpha, eps=eps, unbiased=unbiased), mean, std, sees="cells").y


def _weights(weights: Sequence[float] | Tensor | None, styles: int) -> list[float]:
    values = [1 / max(styles, 1)] * styles if weights is None else [float(w) for w in weights]
    if styles == 0 or len(values) != styles or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise OptionError(
            f"adain expects one weight per style, none negative, their sum 1: got {values} for {styles} styles; "
            "divide them by their sum"
        )
    return values


def _combined(x: Tensor, styles: list[Tensor], weights: list[float], eps: float, unbiased: bool) -> tuple[Tensor, Tensor]:
    """The weighted mean and standard deviation of the styles, each (N, C) or (1, C)."""
    means, stds = [], []
    for style, weight in zip(styles, weights, strict=True):
        if style.dim() < 2 or style.shape[1] != x.shape[1] or style.shape[0] not in (1, x.shape[0]):
            raise InputError(
                f"adain expects a style of {x.shape[1]} channels and of batch 1 or {x.shape[0]}: got shape {tuple(style.shape)} "
                f"for an input of shape {tuple(x.shape)}; take both from the same layer of the encoder"
            )
        moments, _ = measure(style, sees="cells")
        assert moments is not None
        means.append(weight * moments.mean)
        stds.append(weight * _deviation(moments, eps, unbiased))
    return reduce(torch.add, means), reduce(torch.add, stds)


class AdaIN(Normalizer):
    """Adaptive instance norm as a layer, `layer(content, style)`; the card is `normsmith show adain`.

    It has no parameters; `device` and `dtype` are accepted as by every other layer, for factories that pass them to all.
    """

    num_features: int
    eps: float

    def __init__(
        self,
        num_features: int,
        *,
        alpha: float = 1.0,
        eps: float = 1e-5,
        unbiased: bool = False,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=False, act=act, device=device, dtype=dtype)
        self.alpha = alpha
        self.unbiased = unbiased

    def forward(
        self,
        x: Tensor,
        style: Tensor | Sequence[Tensor] | None = None,
        *,
        style_mean: Tensor | None = None,
        style_std: Tensor | None = None,
        weights: Sequence[float] | Tensor | None = None,
    ) -> Tensor:
        self.check_input(x)
        y = adain(
            x,
            style,
            style_mean=style_mean,
            style_std=style_std,
            weights=weights,
            alpha=self.alpha,
            eps=self.eps,
            unbiased=self.unbiased,
        )
        return self.activated(y)

    def example_inputs(self, x: Tensor) -> dict[str, Tensor]:
        return {"style": x.detach().flip(0) * 2 + 1}

    def options(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "eps": self.eps, "unbiased": self.unbiased, **self.own_activation()}
