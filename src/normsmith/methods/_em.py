"""Expectation and maximisation of a Gaussian mixture: where components start, what one step makes of weighted moments, which are dead."""

from typing import NamedTuple

import torch
from torch import Tensor

from normsmith.cells import cut
from normsmith.kernels.mixtures import Density
from normsmith.moments import Moments
from normsmith.world import World

POINTS = 1024  # that a rank offers for starting points, evenly spaced
FLOOR = 1e-4  # of the variance of a component


class Mixture(NamedTuple):
    """Share of all points, (K, 1) or for separate mixtures (K, C), mean and variance, (K, C)."""

    prior: Tensor
    mean: Tensor
    var: Tensor

    def density(self, joint: bool, temperature: float) -> Density:
        """The densities of its components."""
        return Density.of(self.prior.log(), self.mean, self.var.clamp_min(FLOOR), joint=joint, temperature=temperature)

    def where(self, condition: Tensor, other: "Mixture") -> "Mixture":
        """This one where the condition holds, else the other."""
        return Mixture(*(torch.where(condition, a, b) for a, b in zip(self, other, strict=True)))


def least_share(components: int) -> float:
    """A component of a smaller share is dead."""
    return max(1e-3 / components, 1e-4)


def per_mixture(counts: Tensor, joint: bool) -> Tensor:
    """How much each component counts: for all channels together, (K, 1), or for each, (K, C)."""
    return counts.mean(1, keepdim=True) if joint else counts


def shares_of(counts: Tensor) -> Tensor:
    """The priors that so much of each component makes."""
    return counts / counts.sum(0, keepdim=True)


def maximise(found: Moments, joint: bool) -> Mixture:
    """The mixture that weighted moments make."""
    prior = shares_of(per_mixture(found.counts(), joint))
    return Mixture(prior, found.mean, found.var.clamp_min(FLOOR))


def alone(mixture: Mixture) -> Mixture:
    """The same with all points in the first component."""
    prior = torch.zeros_like(mixture.prior)
    prior[0] = 1
    return mixture._replace(prior=prior)


def sample(x: Tensor, mask: Tensor | None, world: World | None) -> Tensor:
    """Some points of x, of all ranks', as (P, C), NaN where they do not count."""
    view = cut(x)
    positions = view.shape[0] * view.shape[2]
    at = torch.arange(positions, device=x.device)
    if positions > POINTS:
        at = at[:: -(-positions // POINTS)]
    rows, columns = at // max(view.shape[2], 1), at % max(view.shape[2], 1)
    points = view[rows, :, columns]
    if mask is not None:
        keep = mask.reshape(mask.shape[0], mask.shape[1], -1).expand(view.shape)[rows, :, columns]
        points = torch.where(keep, points, torch.nan)
    if world is not None:
        padded = points.new_full((POINTS, points.shape[1]), torch.nan)
        padded[: points.shape[0]] = points
        points = world.gather(padded.reshape(1, -1)).view(-1, points.shape[1])
    return points


def _described(points: Tensor, joint: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which points count, the points with zero for others, their mean and variance, (1, C)."""
    valid = points.isfinite()
    held = valid.all(1, keepdim=True) if joint else valid
    number = held.sum(0, keepdim=True).clamp_min(1)
    clean = torch.where(held, points, 0)
    mean = clean.sum(0, keepdim=True) / number
    return held, clean, mean, torch.where(held, clean - mean, 0).square().sum(0, keepdim=True) / number


def spread_of(points: Tensor, joint: bool) -> Tensor:
    """The variance of all points, (1, C)."""
    return _described(points, joint)[3].clamp_min(FLOOR)


def _running_sum(values: Tensor) -> Tensor:
    """The sums of all rows up to each; by additions alone where torch's own on a GPU would not repeat to the bit."""
    if not (values.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return values.cumsum(0)
    return _sum_by_doubling(values)


def _sum_by_doubling(values: Tensor) -> Tensor:
    reach = 1
    while reach < values.shape[0]:
        values = torch.cat([values[:reach], values[reach:] + values[:-reach]])
        reach *= 2
    return values


def seed(points: Tensor, components: int, joint: bool) -> Mixture:
    """Starting components on points far from each other, by k-means++ with the median in the place of each draw.

    The first is the point of median distance from the mean; each other that at which half of all squared distance to the nearest
    component so far is reached, nearer points first. Distances are in standard deviations of a channel. All start with the mean square
    distance from the nearest as their variance.
    """
    held, clean, mean, var = _described(points, joint)
    number = held.sum(0, keepdim=True)
    inverse = 1 / var.clamp_min(torch.finfo(var.dtype).tiny)

    def distance(center: Tensor) -> Tensor:
        squares = (clean - center).square() * inverse
        return squares.sum(1, keepdim=True) if joint else squares

    def pick(key: Tensor, weight: Tensor) -> Tensor:
        order = torch.where(held, key, torch.inf).argsort(dim=0, stable=True)
        mass = _running_sum(torch.where(held, weight, 0).gather(0, order))
        first = (mass < 0.5 * mass[-1:]).sum(0, keepdim=True)
        return clean.gather(0, order.gather(0, first).expand(1, clean.shape[1]))

    away = distance(mean)
    centers = [pick(away, torch.ones_like(away))]
    nearest, gaps = distance(centers[0]), (clean - centers[0]).square()
    for _ in range(components - 1):
        centers.append(pick(nearest, nearest))
        found = distance(centers[-1])
        gaps = torch.where(found < nearest, (clean - centers[-1]).square(), gaps)
        nearest = torch.minimum(nearest, found)
    prior = clean.new_full((components, 1 if joint else clean.shape[1]), 1 / components)
    within = torch.where(held, gaps, 0).sum(0, keepdim=True) / number.clamp_min(1)
    return Mixture(prior, torch.cat(centers), within.clamp_min(FLOOR).expand(components, -1))


def lowest(points: Tensor, evidence: Tensor, components: int) -> Tensor:
    """For every component another of the points that are the least likely, (K, C)."""
    score = torch.where(points.isfinite().all(1, keepdim=True), evidence, torch.inf)
    order = score.argsort(dim=0, stable=True)[:components]
    return points.gather(0, order.expand(-1, points.shape[1]))
