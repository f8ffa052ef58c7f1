"""What the tests of surgery share: small models, states to compare to the bit."""

import copy

import torch
from torch import nn


class ConvNet(nn.Module):
    """conv - norm - relu, twice, and a head with a norm of (N, C)."""

    def __init__(self, norm=nn.BatchNorm2d, channels=8):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3),
            norm(channels),
            nn.ReLU(),
        )
        self.head = nn.ModuleDict({"norm": nn.BatchNorm1d(channels), "linear": nn.Linear(channels, 4)})

    def forward(self, x):
        return self.head["linear"](self.head["norm"](self.backbone(x).mean((2, 3))))


def shaken(model, seed=1):
    """The model with all floating parameters and buffers moved away from their beginnings."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.5 * torch.rand(tensor.shape, generator=generator))
    return model


def everything(model):
    """All that a conversion could change, to compare before and after."""
    return {
        "modules": dict(model.named_modules(remove_duplicate=False)),
        "parameters": dict(model.named_parameters(remove_duplicate=False)),
        "state": copy.deepcopy(model.state_dict()),
        "modes": [m.training for m in model.modules()],
        "grads": [p.requires_grad for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
    }


def assert_untouched(model, before):
    """The model is, to the bit and object by object, what it was."""
    now = everything(model)
    for kind in ("modules", "parameters"):
        assert now[kind].keys() == before[kind].keys()
        assert all(now[kind][name] is before[kind][name] for name in now[kind])
    assert now["state"].keys() == before["state"].keys()
    for name, tensor in now["state"].items():
        assert torch.equal(tensor, before["state"][name]), name
    assert all(now[kind] == before[kind] for kind in ("modes", "grads", "hooks"))
