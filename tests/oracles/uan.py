"""y = sum_k r_k / sqrt(prior_k) (x - alpha_k) / sqrt(delta_k² + eps) * weight + bias, by one loop over channels and one over components."""

import math

import torch

VARIANTS = [
    {"components": 2, "eval_stats": "running", "momentum": None},
    {"components": 5, "affine": False},
    {"eval_stats": "batch", "track_running_stats": False},
]


def forward(
    x,
    training,
    *,
    weight,
    bias,
    mean,
    raw_var,
    raw_prior,
    running_mean,
    running_var,
    num_batches_tracked,
    components,
    eval_stats,
    eps,
    momentum,
    track_running_stats,
    **rest,
):
    prior = torch.exp(raw_prior) / torch.exp(raw_prior).sum()
    var = torch.log(1 + torch.exp(raw_var)) + 1e-3
    flat = x.transpose(0, 1).flatten(1)
    logs = [
        torch.log(prior[k])
        - 0.5 * torch.log(2 * math.pi * var[k])[:, None]
        - (flat - mean[k][:, None]) ** 2 / (2 * var[k])[:, None]
        for k in range(components)
    ]
    evidence = torch.logsumexp(torch.stack(logs), 0)
    y, alphas, deltas, counts = 0.0, [], [], []
    for k in range(components):
        r = torch.exp(logs[k] - evidence)
        count = r.sum(1)
        alpha = (r * flat).sum(1) / count
        delta = (r * (flat - alpha[:, None]) ** 2).sum(1) / count
        alphas, deltas, counts = [*alphas, alpha], [*deltas, delta], [*counts, count]
        if not training and eval_stats == "parameters":
            alpha, delta = mean[k], var[k]
        elif not training and eval_stats == "running":
            alpha, delta = running_mean[k], running_var[k]
        y = y + r / torch.sqrt(prior[k]) * (flat - alpha[:, None]) / torch.sqrt(delta + eps)[:, None]
    if weight is not None:
        y = y * weight[:, None] + bias[:, None]
    buffers = {}
    if training and track_running_stats:
        alpha, delta, count = torch.stack(alphas), torch.stack(deltas), torch.stack(counts)
        unbiased = delta * (count / (count - 1).clamp_min(1)).clamp_min(1)
        tracked = num_batches_tracked + 1
        step = momentum if momentum is not None else 1 / tracked[:, None].double()
        buffers = {
            "running_mean": running_mean + step * (alpha - running_mean),
            "running_var": running_var + step * (unbiased - running_var),
            "num_batches_tracked": tracked,
        }
    return y.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1), buffers
