"""Normalized weights from the formulas, row by row in a loop; a row is all that an output channel is summed over."""

import math

import torch


def rows_of(weight, transposed=False, groups=1):
    """The rows one by one, in the order of the output channels."""
    if not transposed:
        return [weight[i].reshape(-1) for i in range(weight.shape[0])]
    each = weight.shape[0] // groups
    return [weight[g * each : (g + 1) * each, o].reshape(-1) for g in range(groups) for o in range(weight.shape[1])]


def assembled(rows, shape, transposed=False, groups=1):
    """The weight of these rows."""
    if not transposed:
        return torch.stack(rows).reshape(shape)
    each, out = shape[0] // groups, shape[1]
    parts = [torch.stack([rows[g * out + o].reshape(each, *shape[2:]) for o in range(out)], 1) for g in range(groups)]
    return torch.cat(parts)


def weight_norm(v, g):
    return v * g / v.square().sum().sqrt()


def centered_weight_norm(v, g=2**0.5):
    away = v - v.mean()
    return g * away / away.square().sum().sqrt()


def weight_standardization(v, convention="readme"):
    if convention == "readme":
        return (v - v.mean()) / (v.std() + 1e-5)
    return (v - v.mean()) / (v.var(correction=0) + 1e-6).sqrt()


def scaled_weight_standardization(v, gain, gamma=1.0):
    return gain * gamma / math.sqrt(len(v)) * (v - v.mean()) / (v.var(correction=0) + 1e-6).sqrt()


def orthogonal(v):
    """U V^T of the singular value decomposition."""
    u, _, vh = torch.linalg.svd(v, full_matrices=False)
    return u @ vh
