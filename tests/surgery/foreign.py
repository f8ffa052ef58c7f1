"""Layers as other libraries write them, whose names and formulas conversion must tell apart."""

import torch
import torch.nn.functional as F
from torch import nn


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: batch norm with the activation inside, its forward overridden."""

    def __init__(self, num_features, act_layer=nn.ReLU, drop_layer=None, inplace=False, **options):
        super().__init__(num_features, **options)
        self.drop = drop_layer() if drop_layer else nn.Identity()
        self.act = act_layer(inplace=inplace) if act_layer else nn.Identity()

    def forward(self, x):
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        use_batch = self.training or self.running_mean is None
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, use_batch, self.momentum, self.eps)
        return self.act(self.drop(x))


class GroupNormAct(nn.GroupNorm):
    def __init__(self, num_channels, num_groups=4, act_layer=nn.SiLU):
        super().__init__(num_groups, num_channels)
        self.drop, self.act = nn.Identity(), act_layer()

    def forward(self, x):
        return self.act(self.drop(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)))


class LayerNorm2d(nn.LayerNorm):
    """As timm's and ConvNeXt's: over the channels of (N, C, H, W)."""

    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's and detectron2's: nothing but buffers."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class LlamaRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        wide = hidden_states.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)).to(hidden_states)


class GemmaRMSNorm(LlamaRMSNorm):
    """Looks the same, and is not: multiplies by 1 + weight."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) / self.weight * (1 + self.weight)


class PlainSubclassNorm(nn.BatchNorm2d):
    """A subclass that changes nothing of what is computed."""


class BiasFreeNorm2d(nn.BatchNorm2d):
    """A subclass that computes something else: no mean is subtracted."""

    def forward(self, x):
        return x / (x.var((0, 2, 3), keepdim=True) + self.eps).sqrt() * self.weight[:, None, None]
