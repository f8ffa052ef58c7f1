"""y = (x - mean_k) / sqrt(var_k + eps) * weight + bias for a sample of context k; or (x - mean_k) / (exp(log_std_k) + eps), from tables."""

import torch

VARIANTS = [
    {"num_contexts": 1},
    {"num_contexts": 3, "momentum": None},
    {"affine": False, "momentum": 0.3, "eps": 1e-3},
    {"track_running_stats": False},
    {"num_contexts": 3, "unknown": "average", "prior": (0.5, 0.25, 1.0)},
    {"stats": "parameters", "num_contexts": 3},
    {"stats": "parameters", "eps_outside": True, "eps": 1e-3, "affine": False},
    {"stats": "parameters", "unknown": "average"},
]


def _unknown(x, means, scales, prior):
    """The output of every context for each sample, averaged."""
    every = [(x - mean.view(-1, 1)) * scale.view(-1, 1) for mean, scale in zip(means, scales, strict=True)]
    return sum(share * y for share, y in zip(prior, every, strict=True)) / sum(prior)


def _moments(samples):
    m = samples.shape[0] * samples.shape[2]
    mean = samples.sum((0, 2)) / m
    return mean, ((samples - mean.view(-1, 1)) ** 2).sum((0, 2)) / m, m


def forward(
    x,
    training,
    *,
    context,
    num_contexts,
    stats,
    unknown,
    eps,
    affine,
    weight,
    bias,
    prior=None,
    initial=None,
    eps_outside=False,
    momentum=None,
    track_running_stats=False,
    context_mean,
    context_log_std,
    shares,
    running_mean,
    running_var,
    num_batches_tracked,
):
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    prior = [1.0] * num_contexts if prior is None else prior
    parts, buffers = {}, {}
    new = [running_mean.clone(), running_var.clone(), num_batches_tracked.clone()] if track_running_stats else None
    if stats == "parameters":
        std = torch.exp(context_log_std)
        scales = 1 / (std + eps) if eps_outside else 1 / torch.sqrt(std**2 + eps)
        means = context_mean
    elif track_running_stats:
        means, scales = running_mean, 1 / torch.sqrt(running_var + eps)
    for k in context.unique().tolist():
        where = (context == k).nonzero().flatten()
        samples = flat[where]
        if k == -1:
            parts[k] = where, _unknown(samples, means, scales, prior)
            continue
        m = samples.shape[0] * samples.shape[2]
        if stats == "parameters" or (track_running_stats and (not training or m == 1)):
            parts[k] = where, (samples - means[k].view(-1, 1)) * scales[k].view(-1, 1)
            continue
        mean, var, m = _moments(samples)
        parts[k] = where, (samples - mean.view(-1, 1)) / torch.sqrt(var.view(-1, 1) + eps)
        if new is not None:
            new[2][k] += 1
            step = momentum if momentum is not None else 1 / new[2][k].item()
            new[0][k] = (1 - step) * new[0][k] + step * mean.detach()
            new[1][k] = (1 - step) * new[1][k] + step * var.detach() * m / (m - 1)
    y = torch.zeros_like(flat)
    for where, values in parts.values():
        y = y.index_copy(0, where, values)
    if training and new is not None:
        buffers = dict(zip(("running_mean", "running_var", "num_batches_tracked"), new, strict=True))
    if affine:
        y = y * weight.view(-1, 1) + bias.view(-1, 1)
    return y.reshape(x.shape), buffers
