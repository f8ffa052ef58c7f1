"""What the oracles of the whitening family share: covariances of groups, matrices from eigenvectors, running statistics.

Eigenvectors and functions of them are differentiated by perturbation: with D and lambda taken as constants, E = D' Sigma D - lambda is zero
in value and carries the gradient, which is that of first order in E.
"""

import torch


def group_count(channels, group_size):
    if group_size is None:
        return 1
    return next(g for g in range(1, channels + 1) if channels % g == 0 and channels // g <= group_size)


def flat(x, groups):
    """(groups, channels of a group, elements)."""
    return x.transpose(0, 1).reshape(groups, x.shape[1] // groups, -1)


def moments(x, groups):
    data = flat(x, groups)
    mean = data.sum(2, keepdim=True) / data.shape[2]
    away = data - mean
    return mean.reshape(1, -1), torch.einsum("gim,gjm->gij", away, away) / data.shape[2]


def with_eps(cov, eps):
    return cov + eps * torch.eye(cov.shape[-1], dtype=cov.dtype)


def perturbed(sigma):
    values, vectors = torch.linalg.eigh(sigma.detach())
    return values, vectors, vectors.mT @ sigma @ vectors - torch.diag_embed(values)


def inverse_root(sigma):
    values, vectors, step = perturbed(sigma)
    roots = values.sqrt()
    one, other = roots[..., :, None], roots[..., None, :]
    inner = torch.diag_embed(1 / roots) - step / (one * other * (one + other))
    return vectors @ inner @ vectors.mT


def principal(sigma, scaled):
    values, vectors, step = perturbed(sigma)
    gaps = values[..., None, :] - values[..., :, None]
    apart = gaps.abs() > 1e-9 * values[..., -1, None, None]
    turn = torch.where(apart, step / torch.where(apart, gaps, 1), 0)
    moved = vectors + vectors @ turn
    rows = moved.mT / torch.sqrt(values + step.diagonal(dim1=-2, dim2=-1))[..., None] if scaled else moved.mT
    rows = torch.flip(rows, (-2,))
    signs = [[float(row[row.abs().argmax()].sign()) for row in group] for group in rows.detach()]
    return rows * torch.tensor(signs, dtype=rows.dtype)[..., None]


def as_rows(matrices):
    return torch.cat([m.T for m in matrices], 1)


def of_rows(rows):
    size = rows.shape[0]
    return torch.stack([rows[:, start : start + size].T for start in range(0, rows.shape[1], size)])


def running_covariance(rows, variances):
    cov = of_rows(rows)
    cov = (cov + cov.mT) / 2
    out = cov.clone()
    for k, group in enumerate(variances.reshape(len(cov), -1)):
        out[k] = cov[k] - torch.diag(cov[k].diagonal()) + torch.diag(group)
    return out


def moved(old, new, step):
    return (1 - step) * old + step * new


def apply(x, mean, matrix, weight, bias):
    """matrix @ (x - mean) for one matrix per group, or one per sample and group."""
    samples, channels = x.shape[:2]
    cells = [-1, channels] + [1] * (x.dim() - 2)
    away = (x - mean.reshape(cells)).reshape(samples, matrix.shape[-3], matrix.shape[-1], -1)
    y = torch.einsum("gij,ngjs->ngis" if matrix.dim() == 3 else "ngij,ngjs->ngis", matrix, away).reshape(x.shape)
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    return y if weight is None else y * weight.view(per_channel) + bias.view(per_channel)


def forward(
    x,
    training,
    matrix_of,
    *,
    weight,
    bias,
    running_mean,
    running_var,
    num_batches_tracked,
    momentum,
    affine,
    track_running_stats,
    group_size,
    running_cov=None,
    running_matrix=None,
    running="covariance",
):
    groups, buffers = group_count(x.shape[1], group_size), {}
    if not training and track_running_stats:
        mean = running_mean
        matrix = of_rows(running_matrix) if running == "matrix" else matrix_of(running_covariance(running_cov, running_var))
        return apply(x, mean, matrix, weight, bias), buffers
    mean, cov = moments(x, groups)
    matrix = matrix_of(cov)
    if training and track_running_stats:
        m, count = x.numel() // x.shape[1], num_batches_tracked + 1
        step = momentum if momentum is not None else 1 / count.item()
        unbiased = cov * (m / (m - 1))
        buffers = {
            "running_mean": moved(running_mean, mean.flatten(), step),
            "running_var": moved(running_var, unbiased.diagonal(dim1=1, dim2=2).flatten(), step),
            "num_batches_tracked": count,
        }
        if running == "matrix":
            buffers["running_matrix"] = moved(running_matrix, as_rows(matrix), step)
        else:
            buffers["running_cov"] = moved(running_cov, as_rows(unbiased), step)
    return apply(x, mean, matrix, weight, bias), buffers
