"""The whitening family as functions of a tensor: by the statistics of that very batch, differentiable, nothing kept."""

from typing import Any, Literal

from torch import Tensor

from normsmith.errors import OptionError
from normsmith.methods._base import Normalizer, one_of
from normsmith.methods.batch import BatchNorm
from normsmith.methods.centering import Centering
from normsmith.methods.cholesky_whitening import CholeskyWhitening
from normsmith.methods.decorrelating import Decorrelating
from normsmith.methods.iterative_whitening import IterativeWhitening
from normsmith.methods.pca_whitening import PCAWhitening
from normsmith.methods.scaling import Scaling
from normsmith.methods.zca_whitening import ZCAWhitening

_WHITENING = {"zca": ZCAWhitening, "pca": PCAWhitening, "cholesky": CholeskyWhitening, "iterative": IterativeWhitening}


def center(x: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """`x` (N, C, *spatial) minus the mean of each channel, of the elements where `mask` (N, *spatial) is true."""
    return _once(Centering, x, mask)


def scale(x: Tensor, *, eps: float = 1e-5, mask: Tensor | None = None) -> Tensor:
    """`x` (N, C, *spatial) divided by the standard deviation of each channel, whose mean stays, divided with it."""
    return _once(Scaling, x, mask, eps=eps)


def standardize(x: Tensor, *, eps: float = 1e-5, mask: Tensor | None = None) -> Tensor:
    """`x` (N, C, *spatial) with mean 0 and variance 1 in each channel."""
    return _once(BatchNorm, x, mask, eps=eps)


def decorrelate(x: Tensor, *, group_size: int | None = None, mask: Tensor | None = None) -> Tensor:
    """`x` (N, C, *spatial) turned into its principal axes, the strongest first: a diagonal covariance."""
    return _once(Decorrelating, x, mask, group_size=group_size)


def whiten(
    x: Tensor,
    method: Literal["zca", "pca", "cholesky", "iterative"] = "zca",
    *,
    group_size: int | None = None,
    eps: float = 1e-5,
    iterations: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """`x` (N, C, *spatial) with covariance I over (N, *spatial), among all channels or within groups of `group_size`.

    `"zca"` moves the channels least, `"pca"` turns them into principal axes, `"cholesky"` takes from each what those before it explain,
    `"iterative"` is nearly zca, by Newton-Schulz steps, of which `iterations` is the number, 5 unless given.
    """
    one_of("whiten", "method", method, tuple(_WHITENING))
    options: dict[str, Any] = {"group_size": group_size, "eps": eps}
    if method == "iterative":
        options["iterations"] = 5 if iterations is None else iterations
    elif iterations is not None:
        raise OptionError(f'whiten expects iterations only with method "iterative": got it with {method!r}; leave it out')
    return _once(_WHITENING[method], x, mask, **options)


def _once(layer: type[Normalizer], x: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    channels = x.shape[1] if x.dim() > 1 and x.shape[1] > 0 else 1  # the layer has the words for a wrong shape
    made: Any = layer(channels, affine=False, track_running_stats=False, **options)  # type: ignore[call-arg]
    found: Tensor = made(x, mask=mask)
    return found
