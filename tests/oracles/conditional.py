"""y = (x - mean) / sqrt(var + eps) * weight(condition) + bias(condition); the statistics of the batch, or of those of one condition."""

import torch

VARIANTS = [
    {"num_conditions": 3},
    {"num_conditions": 1, "momentum": None},
    {"condition_features": 5},
    {"condition_features": 2, "track_running_stats": False},
    {"statistics": "condition"},
    {"statistics": "condition", "num_conditions": 3, "momentum": None},
    {"statistics": "condition", "affine": False, "momentum": 0.3},
    {"statistics": "condition", "track_running_stats": False, "eps": 1e-3},
]


def _moments(rows):
    """Mean and biased variance per channel of (n, C, S)."""
    m = rows.shape[0] * rows.shape[2]
    mean = rows.sum((0, 2)) / m
    return mean, ((rows - mean.view(-1, 1)) ** 2).sum((0, 2)) / m, m


def forward(
    x,
    training,
    *,
    condition,
    weight,
    bias,
    weight_map,
    bias_map,
    running_mean,
    running_var,
    num_batches_tracked,
    eps,
    momentum,
    affine,
    track_running_stats,
    statistics,
    num_conditions=None,
    condition_features=None,
):
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    sets = num_conditions if statistics == "condition" else 1
    belongs = condition if statistics == "condition" else torch.zeros(x.shape[0], dtype=torch.long)
    buffers = {}
    if track_running_stats:
        old = [t.clone().reshape(sets, *t.shape[statistics == "condition" :]) for t in (running_mean, running_var)]
        new_mean, new_var = (t.reshape(sets, -1).clone() for t in old)
        counter = num_batches_tracked.clone().reshape(sets)
    standardized = torch.zeros_like(flat)
    for k in range(sets):
        where = (belongs == k).nonzero().flatten()
        if len(where) == 0:
            continue
        mean, var, m = _moments(flat[where])
        if track_running_stats and (not training or m == 1):
            mean, var = running_mean.reshape(sets, -1)[k], running_var.reshape(sets, -1)[k]
        elif track_running_stats:
            counter[k] += 1
            step = momentum if momentum is not None else 1 / counter[k].item()
            new_mean[k] = (1 - step) * new_mean[k] + step * mean.detach()
            new_var[k] = (1 - step) * new_var[k] + step * var.detach() * m / (m - 1)
        values = (flat[where] - mean.view(-1, 1)) / torch.sqrt(var.view(-1, 1) + eps)
        standardized = standardized.index_copy(0, where, values)
    if training and track_running_stats:
        buffers = {
            "running_mean": new_mean.reshape(running_mean.shape),
            "running_var": new_var.reshape(running_var.shape),
            "num_batches_tracked": counter.reshape(num_batches_tracked.shape),
        }
    if affine and condition_features is None:
        standardized = standardized * weight[condition].unsqueeze(2) + bias[condition].unsqueeze(2)
    elif affine:
        slope, offset = weight + condition @ weight_map.T, bias + condition @ bias_map.T
        standardized = standardized * slope.unsqueeze(2) + offset.unsqueeze(2)
    return standardized.reshape(x.shape), buffers
