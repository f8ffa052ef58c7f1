"""As switchable, with p and q by SparsestMax: the nearest point of the simplex to the logits, `radius` or more from its centre."""

import torch

from oracles.switchable import blend, moved, statistics

VARIANTS = [{"momentum": None, "eps": 1e-3}, {"track_running_stats": False}, {"affine": False}]


def sparsemax(z):
    for size in range(len(z), 0, -1):  # the largest support whose threshold leaves all of it above zero
        top = torch.sort(z, descending=True).values[:size]
        tau = (top.sum() - 1) / size
        if top[-1] > tau or size == 1:
            return torch.clamp(z - tau, min=0)
    raise AssertionError


def sparsestmax(z, radius):
    p, center = sparsemax(z), torch.full_like(z, 1 / len(z)).detach()
    while True:
        distance = (p - center).norm()
        if (p > 0).sum() == 1 or distance >= radius or distance < 1e-6:
            return p
        out = center + radius * (p - center) / distance
        if (out >= 0).all():
            return out
        p = sparsemax(out)
        support = (p > 0).to(z.dtype)
        nearer = support / support.sum()
        radius = max(radius**2 - float((center - nearer).square().sum()), 0.0) ** 0.5
        center = nearer


def proportions(logits, fixed, radius):
    return fixed.to(logits.dtype) + 0 * logits if fixed.any() else sparsestmax(logits, float(radius))


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
    radius,
    mean_fixed,
    var_fixed,
    eps,
    momentum,
    affine,
    track_running_stats,
    use_batch,
    instance,
):
    parts = ["instance"] * instance + ["layer"] + ["batch"] * use_batch
    found = statistics(x, unbiased=False)
    buffers = {}
    if use_batch and track_running_stats:
        if training:
            buffers = moved(x, found, running_mean, running_var, num_batches_tracked, momentum, unbiased=False)
        else:
            found["batch"] = (running_mean[None], running_var[None])
    ratios = proportions(mean_weight, mean_fixed, radius), proportions(var_weight, var_fixed, radius)
    return blend(x, found, parts, *ratios, weight, bias, eps), buffers
