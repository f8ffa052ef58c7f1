"""y = P_T(sum_k q_k Sigma_k + eps I) (x - sum_k p_k mean_k) * weight + bias, per sample and group; p and q are softmaxes over parts k."""

import torch

from oracles import _whitening
from oracles.iterative_whitening import steps

VARIANTS = [
    {"parts": ("batch_whitening", "instance_whitening"), "group_size": 4},
    {"parts": ("instance_whitening", "layer"), "iterations": 3, "affine": False},
    {"momentum": None, "group_size": 6, "eps": 1e-3},
    {"track_running_stats": False},
]


def each(x, groups):
    """Mean (N, C) and covariance (N, G, g, g) of every sample."""
    found = [_whitening.moments(sample[None], groups) for sample in x]
    return torch.cat([mean for mean, _ in found]), torch.stack([cov for _, cov in found])


def only_diagonal(cov):
    return cov * torch.eye(cov.shape[-1], dtype=cov.dtype)


def forward(
    x,
    training,
    *,
    weight,
    bias,
    mean_weight,
    var_weight,
    running_mean,
    running_var,
    num_batches_tracked,
    parts,
    iterations,
    group_size,
    eps,
    momentum,
    affine,
    track_running_stats,
    running_cov=None,
):
    groups, buffers = _whitening.group_count(x.shape[1], group_size), {}
    mean, cov = each(x, groups)
    batch_mean, batch_cov = _whitening.moments(x, groups)
    m = x.numel() // x.shape[1]
    if track_running_stats and not training:
        batch_mean, batch_cov = running_mean[None], _whitening.running_covariance(running_cov, running_var)
    elif track_running_stats and m > 1:
        count = num_batches_tracked + 1
        step = momentum if momentum is not None else 1 / count.item()
        unbiased = batch_cov * (m / (m - 1))
        buffers = {
            "running_mean": _whitening.moved(running_mean, batch_mean.flatten(), step),
            "running_var": _whitening.moved(running_var, unbiased.diagonal(dim1=1, dim2=2).flatten(), step),
            "running_cov": _whitening.moved(running_cov, _whitening.as_rows(unbiased), step),
            "num_batches_tracked": count,
        }
    flat = x.reshape(x.shape[0], -1)
    layer_mean = flat.mean(1, keepdim=True)
    layer_var = ((flat - layer_mean) ** 2).mean(1)
    identity = torch.eye(cov.shape[-1], dtype=cov.dtype)
    known = {
        "batch_whitening": (batch_mean, batch_cov[None]),
        "instance_whitening": (mean, cov),
        "batch": (batch_mean, only_diagonal(batch_cov)[None]),
        "instance": (mean, only_diagonal(cov)),
        "layer": (layer_mean, layer_var[:, None, None, None] * identity),
    }
    p, q = (torch.exp(t) / torch.exp(t).sum() for t in (mean_weight, var_weight))
    center = sum(r * known[k][0] for r, k in zip(p, parts, strict=True)).expand(x.shape[:2])
    sigma = sum(r * known[k][1] for r, k in zip(q, parts, strict=True)).expand_as(cov)
    return _whitening.apply(x, center, steps(sigma, eps, iterations), weight, bias), buffers
