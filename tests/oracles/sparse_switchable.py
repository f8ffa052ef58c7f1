"""As switchable, with p and q by SparsestMax: the nearest point of the simplex to the logits, `radius` or more from its centre."""

import torch

VARIANTS = [{"momentum": None, "eps": 1e-3}, {"track_running_stats": False}, {"affine": False}]


def statistics(x):
    """Mean and variance of each of the three."""
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    positions = flat.shape[2]
    mean = flat.sum(2) / positions
    var = ((flat - mean[..., None]) ** 2).sum(2) / positions
    found = {"instance": (mean, var)}
    for what, dim in (("layer", 1), ("batch", 0)):
        middle = mean.mean(dim, keepdim=True)
        found[what] = (middle, var.mean(dim, keepdim=True) + ((mean - middle) ** 2).mean(dim, keepdim=True))
    return found


def blend(x, found, parts, mean_ratios, var_ratios, weight, bias, eps):
    mean = sum(r * found[k][0] for r, k in zip(mean_ratios, parts, strict=True))
    var = sum(r * found[k][1] for r, k in zip(var_ratios, parts, strict=True))
    cells = list(x.shape[:2]) + [1] * (x.dim() - 2)
    mean, var = (t.expand(x.shape[:2]).reshape(cells) for t in (mean, var))
    y = (x - mean) / torch.sqrt(var + eps)
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    return y if weight is None else y * weight.view(per_channel) + bias.view(per_channel)


def moved(x, found, running_mean, running_var, num_batches_tracked, momentum):
    m = x.numel() // x.shape[1]
    if m == 1:
        return {}
    count = num_batches_tracked + 1
    step = momentum if momentum is not None else 1 / count.item()
    mean, var = (t.flatten() for t in found["batch"])
    return {
        "running_mean": (1 - step) * running_mean + step * mean,
        "running_var": (1 - step) * running_var + step * var * m / (m - 1),
        "num_batches_tracked": count,
    }


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
    found = statistics(x)
    buffers = {}
    if use_batch and track_running_stats:
        if training:
            buffers = moved(x, found, running_mean, running_var, num_batches_tracked, momentum)
        else:
            found["batch"] = (running_mean[None], running_var[None])
    ratios = proportions(mean_weight, mean_fixed, radius), proportions(var_weight, var_fixed, radius)
    return blend(x, found, parts, *ratios, weight, bias, eps), buffers
