"""Statistics by sets of samples that an integer tells apart: for every method whose statistics depend on what a sample belongs to."""

from functools import partial

import torch
from torch import Tensor

from normsmith.affine import Standardized, Triple
from normsmith.errors import InputError
from normsmith.measure import measure
from normsmith.methods._running import RunningNormalizer, mix_running
from normsmith.moments import Moments
from normsmith.normalize import normalize
from normsmith.surroundings import must_stay_plain


def mix_sets(
    cells: Moments,
    batch: None,
    ids: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    sets: int,
    eps: float,
    strangers: bool = False,
) -> Triple | Standardized:
    """Samples by the moments of their set; by `mean` and `var`, if given, where that is of one element, and in the last if `strangers`."""
    own = cells.pool_sets(ids, sets)
    if mean is None or var is None:
        return Standardized(own, weight, bias, eps)
    return Standardized(_settled(own, ids, mean, var, strangers), weight, bias, eps).triple()


def _settled(own: Moments, ids: Tensor, mean: Tensor, var: Tensor, strangers: bool) -> Moments:
    """The moments of each sample's set, or the constants of that set where they must serve."""
    constant = own.counts() < 2
    if strangers:
        constant = constant | (ids == len(mean) - 1).unsqueeze(1)
    mean, var = (rows(t, ids).to(own.mean) for t in (mean, var))
    return Moments(torch.where(constant, mean, own.mean), torch.where(constant, var, own.var), own.count)


def rows(table: Tensor, ids: Tensor) -> Tensor:
    """The row of each id; unlike with indices, an id below zero is an error on every device."""
    return table.index_select(0, ids)


def with_average(mean: Tensor, scale: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Centers and scales with a row more: the map of x that is the average, by these shares, of the maps of all rows."""
    parts = shares.to(scale).unsqueeze(1) * scale
    slope = parts.sum(0, keepdim=True)
    center = (parts / slope * mean).sum(0, keepdim=True)
    return torch.cat([mean, center]), torch.cat([scale, slope])


def by_sets(
    layer: RunningNormalizer,
    x: Tensor,
    ids: Tensor,
    sets: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    shares: Tensor | None = None,
) -> Tensor:
    """`x` by the statistics of each sample's set, which move the layer's running ones, a row for each set.

    With `shares` an id of -1 stands for a sample of no known set: it is normalized by the average of what the running statistics of all
    sets would make of it, and moves none.
    """
    eps, world = layer.eps, layer.world
    mean, var = (None, None) if layer.running_mean is None else layer.constants()
    held = sets
    if shares is not None and mean is not None and var is not None:
        precise = torch.promote_types(mean.dtype, torch.float32)
        mean, var = mean.to(precise), var.to(precise)
        mean, scale = with_average(mean, (var + eps).rsqrt(), shares)
        var = torch.cat([var, scale[-1:].square().reciprocal() - eps])
        held, ids = sets + 1, torch.where(ids < 0, sets, ids)
    constant = partial(mix_running, eps=eps)
    if layer.uses_running_stats and mean is not None and var is not None:
        return normalize(
            x, constant, rows(mean, ids), rows(var, ids), weight, bias, sees="nothing", mask=mask, act=layer.bend
        ).y
    strangers = held > sets
    if world is None:
        if not strangers and mask is None and x.dim() > 2 and x.numel() > x.shape[0] * x.shape[1]:
            mean = var = None  # no set can have a single element
        options = partial(mix_sets, sets=held, eps=eps, strangers=strangers)
        result = normalize(x, options, ids, mean, var, weight, bias, sees="cells", mask=mask, act=layer.bend)
        assert result.cells is not None
        y, merged = result.y, result.cells.of_sets(ids, held)
    else:
        cells, _ = measure(x, sees="cells", mask=mask)
        assert cells is not None
        row = world.merge(cells.of_sets(ids, held).map(lambda t: t.reshape(1, -1)))
        merged = row.map(lambda t: t.view(held, -1))
        own = merged.map(lambda t: rows(t, ids))
        own = own if mean is None or var is None else _settled(own, ids, mean, var, strangers)
        y = normalize(x, constant, own.mean, own.var, weight, bias, sees="nothing", mask=mask, act=layer.bend).y
    merged = merged.map(lambda t: t[:sets])
    count = merged.counts()
    layer.update(Moments(merged.mean, merged.var, torch.where(count > 1, count, 0)))
    return y


def checked_ids(layer: RunningNormalizer, x: Tensor, ids: Tensor, option: str, lowest: int = 0) -> Tensor:
    """The ids as int64, if they are one integer a sample, from `lowest` to one less than the option; on a GPU their range is not read."""
    highest = getattr(layer, option) - 1
    wrong = None  # not put into words before it is: a sentence with the number of samples would fix it in a compiled graph
    if ids.dim() != 1 or ids.shape[0] != x.shape[0] or ids.is_floating_point() or ids.dtype == torch.bool:
        wrong = f"{ids.dtype} of shape {tuple(ids.shape)} for an input of shape {tuple(x.shape)}"
    elif ids.device.type == "cpu" and not must_stay_plain((ids,)) and ids.numel() > 0:
        low, high = (int(t) for t in ids.aminmax())
        if low < lowest or high > highest:
            wrong = f"{low if low < lowest else high}; build the layer with {option} above the largest id"
    if wrong is not None:
        raise InputError(
            f"{type(layer).__name__} expects the {layer.condition_name} as {x.shape[0]} integers from {lowest} to {highest}: got {wrong}"
        )
    return ids.long()
