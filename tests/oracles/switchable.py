"""y = (x - sum_k p_k mean_k) / sqrt(sum_k q_k var_k + eps) * weight + bias, k over instance, layer and batch; p and q are softmaxes."""

import torch

VARIANTS = [
    {"use_batch": False},
    {"instance": False},
    {"unbiased": True},
    {"unbiased": True, "use_batch": False, "affine": False},
    {"momentum": None, "eps": 1e-3},
    {"track_running_stats": False},
]


def statistics(x, unbiased):
    """Mean and variance of each of the three, all taken of x itself: that they can be pooled from cells is for the tests to find out."""
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    if unbiased:
        return as_the_authors(flat)
    found = {}
    for what, dims in (("instance", (2,)), ("layer", (1, 2)), ("batch", (0, 2))):
        mean = flat.mean(dims, keepdim=True)
        found[what] = mean.squeeze(2), ((flat - mean) ** 2).mean(dims, keepdim=True).squeeze(2)
    return found


def as_the_authors(flat):
    """The authors' form: the variance of an instance is unbiased, and so spoils the rest, which is pooled from it."""
    positions = flat.shape[2]
    mean = flat.mean(2)
    var = ((flat - mean[..., None]) ** 2).sum(2) / max(positions - 1, 1)
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


def moved(x, found, running_mean, running_var, num_batches_tracked, momentum, unbiased):
    m = x.numel() // x.shape[1]
    if m == 1:
        return {}
    count = num_batches_tracked + 1
    step = momentum if momentum is not None else 1 / count.item()
    mean, var = (t.flatten() for t in found["batch"])
    return {
        "running_mean": (1 - step) * running_mean + step * mean,
        "running_var": (1 - step) * running_var + step * (var if unbiased else var * m / (m - 1)),
        "num_batches_tracked": count,
    }


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
    eps,
    momentum,
    affine,
    track_running_stats,
    use_batch,
    instance,
    unbiased,
):
    parts = ["instance"] * instance + ["layer"] + ["batch"] * use_batch
    found = statistics(x, unbiased)
    buffers = {}
    if use_batch and track_running_stats:
        if training:
            buffers = moved(x, found, running_mean, running_var, num_batches_tracked, momentum, unbiased)
        else:
            found["batch"] = (running_mean[None], running_var[None])
    mean_ratios, var_ratios = (torch.exp(t) / torch.exp(t).sum() for t in (mean_weight, var_weight))
    return blend(x, found, parts, mean_ratios, var_ratios, weight, bias, eps), buffers
