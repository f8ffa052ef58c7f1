"""y = sum_k r_k / sqrt(lambda_k) (x - alpha_k) / sqrt(delta_k² + eps) * weight + bias; the mixture by EM, in plain loops."""

import math

import torch

VARIANTS = [
    {"mixture": "channel"},
    {"components": 2, "iterations": 3, "momentum": None, "grad_through_posterior": True},
    {"mixture": "channel", "components": 4, "iterations": 2, "grad_through_posterior": True, "unit_variance": True},
    {"temperature": 4.0, "em_every": 2, "affine": False, "unit_variance": True},
    {"components": 1, "eps": 1e-3},
    {"track_running_stats": False},
]


def logs_of(points, prior, mean, var, joint, temperature):
    """The log of prior times density, (K, P, G): G is 1 for a joint mixture, C for separate ones."""
    rows = []
    for k in range(len(mean)):
        each = -0.5 * torch.log(2 * math.pi * var[k]) - (points - mean[k]) ** 2 / (2 * var[k])
        rows.append((torch.log(prior[k]) + (each.sum(1, keepdim=True) if joint else each)) / temperature)
    return torch.stack(rows)


def seeds(points, components, joint):
    """Far points, by medians of squared distance; one channel at a time, all channels at once where they are joint."""
    std = points.std(0, unbiased=False)
    parts = [range(points.shape[1])] if joint else [[c] for c in range(points.shape[1])]
    centers, var = torch.zeros(2, components, points.shape[1], dtype=points.dtype)
    for channels in parts:
        own = points[:, channels] / std[channels]
        rank = ((own - own.mean(0)) ** 2).sum(1).argsort(dim=0, stable=True)
        chosen = [rank[(len(rank) + 1) // 2 - 1]]
        while len(chosen) < components:
            nearest = torch.stack([((own - own[i]) ** 2).sum(1) for i in chosen]).min(0).values
            order = nearest.argsort(dim=0, stable=True)
            reached = nearest[order].cumsum(0) >= 0.5 * nearest[order].cumsum(0)[-1]
            chosen.append(order[reached.nonzero()[0, 0]])
        centers[:, channels] = points[torch.stack(chosen)][:, channels]
        label = torch.stack([((own - own[i]) ** 2).sum(1) for i in chosen]).argmin(0)
        var[:, channels] = ((points - centers[label]) ** 2).mean(0)[channels]
    prior = torch.full((components, 1 if joint else points.shape[1]), 1 / components, dtype=points.dtype)
    return prior, centers, var.clamp_min(1e-4)


def some(points):
    """Up to 1024 of them, evenly spaced."""
    return points[:: math.ceil(len(points) / 1024)]


def moments(points, r):
    count = r.expand(-1, -1, points.shape[1]).sum(1)
    safe = count.clamp_min(1e-300)
    alpha = (r * points).sum(1) / safe
    return count, alpha, (r * (points - alpha[:, None]) ** 2).sum(1) / safe


def fit(points, start, joint, iterations, temperature):
    prior, mean, var = start
    for _ in range(iterations):
        r = torch.softmax(logs_of(points, prior, mean, var.clamp_min(1e-4), joint, temperature), 0)
        count, mean, var = moments(points, r)
        prior, var = (count[:, :1] if joint else count) / len(points), var.clamp_min(1e-4)
    if len(points) < len(mean):
        prior = torch.zeros_like(prior)
        prior[0] = 1
    return prior, mean, var


def forward(
    x,
    training,
    *,
    weight,
    bias,
    running_prior,
    running_mean,
    running_var,
    num_batches_tracked,
    components,
    mixture,
    iterations,
    em_every,
    temperature,
    unit_variance,
    grad_through_posterior,
    eps,
    momentum,
    track_running_stats,
    **rest,
):
    joint, points = mixture == "joint", x.movedim(1, -1).flatten(0, -2)
    fixed = not training and track_running_stats
    with torch.no_grad():
        if fixed:
            prior, mean, var = running_prior, running_mean, running_var
        else:
            first = not track_running_stats or num_batches_tracked.max() == 0
            start = seeds(some(points), components, joint) if first else (running_prior, running_mean, running_var)
            run = not track_running_stats or num_batches_tracked.max() % em_every == 0
            prior, mean, var = fit(points, start, joint, iterations, temperature) if run else start
    with torch.set_grad_enabled(torch.is_grad_enabled() and grad_through_posterior):
        r = torch.softmax(logs_of(points, prior, mean, var.clamp_min(1e-4), joint, temperature), 0)
    count, alpha, delta = moments(points, r)
    if fixed:
        alpha, delta = mean, var
    least = max(1e-3 / components, 1e-4)
    y = 0.0
    for k in range(components):
        alive = prior[k] >= least
        share, root = torch.where(alive, r[k], 0), torch.sqrt(torch.where(alive, prior[k], 1))
        y = y + share / root * (points - alpha[k]) / torch.sqrt(delta[k] + eps)
    if unit_variance:
        y = y / torch.sqrt((prior >= least).sum(0).double())
    if weight is not None:
        y = y * weight + bias
    buffers = {}
    if training and track_running_stats:
        buffers = averaged(
            (running_prior, running_mean, running_var, num_batches_tracked), count, alpha, delta, joint, momentum, components
        )
        dead = buffers["running_prior"] < least
        if dead.any() and len(points) >= components:
            points = some(points)
            evidence = torch.logsumexp(logs_of(points, prior, mean, var.clamp_min(1e-4), joint, temperature), 0)
            far = points.gather(0, evidence.argsort(dim=0, stable=True)[:components].expand(-1, points.shape[1]))
            even = torch.where(dead, 1 / components, buffers["running_prior"])
            buffers["running_prior"] = even / even.sum(0)
            buffers["running_mean"] = torch.where(dead, far, buffers["running_mean"])
            spread = points.var(0, unbiased=False).clamp_min(1e-4)
            buffers["running_var"] = torch.where(dead, spread, buffers["running_var"])
    y = y.view(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)
    return y, buffers


def averaged(running, count, alpha, delta, joint, momentum, components):
    prior, mean, var, tracked = running
    tracked = tracked + (count > 0).any(1)

    def step(number):
        if momentum is None:
            return 1 / number.clamp_min(1).double()
        return torch.where(number <= 1, 1.0, momentum) if components > 1 else torch.tensor(momentum, dtype=torch.float64)

    own = step(tracked).double().view(-1, 1)
    unbiased = delta * (count / (count - 1).clamp_min(1)).clamp_min(1)
    new_prior = (count[:, :1] if joint else count) / count.sum(0)[: 1 if joint else None]
    return {
        "running_prior": prior + step(tracked.max()) * (new_prior - prior),
        "running_mean": torch.where(count > 0, mean + own * (alpha - mean), mean),
        "running_var": torch.where(count > 0, var + own * (unbiased - var), var),
        "num_batches_tracked": tracked,
    }
