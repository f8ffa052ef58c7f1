"""y = (x - mean) * weight + bias over (N, *spatial)."""

VARIANTS = [{"affine": False}, {"momentum": None}, {"track_running_stats": False}]


def forward(
    x, training, *, weight, bias, running_mean, running_var, num_batches_tracked, momentum, affine, track_running_stats
):
    dims = [d for d in range(x.dim()) if d != 1]
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    buffers = {}
    if training or not track_running_stats:
        m = x.numel() // x.shape[1]
        mean = x.sum(dims) / m
        var = ((x - mean.view(per_channel)) ** 2).sum(dims) / m
        if training and track_running_stats:
            count = num_batches_tracked + 1
            step = momentum if momentum is not None else 1 / count.item()
            buffers = {
                "running_mean": (1 - step) * running_mean + step * mean,
                "running_var": (1 - step) * running_var + step * var * m / (m - 1),
                "num_batches_tracked": count,
            }
    else:
        mean, var = running_mean, running_var
    y = x - mean.view(per_channel)
    if affine:
        y = y * weight.view(per_channel) + bias.view(per_channel)
    return y, buffers
