"""A model with something of everything that a run can move, and a record of all of it."""

import random

import numpy as np
import torch
from torch import nn

import normsmith as ns


class Everything(nn.Module):
    """Running statistics of ours and torch's, dropout, a counter, hooks, linked layers, random numbers of three libraries."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second = ns.KalmanNorm(4), ns.KalmanNorm(4)
        self.middle = nn.Conv2d(4, 4, 1, bias=False)
        self.population = ns.PopulationNorm(4, emulate=8, fisher="empirical")
        self.torchs, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.3)
        self.head = nn.Linear(4, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.calls, self.fails_at, self.log = 0, None, []
        self.second.link([self.first])
        self.second.eval()

    def forward(self, x):
        self.calls += 1
        self.log.append(self.calls)
        if self.calls == self.fails_at:
            raise RuntimeError("on purpose")
        x = self.second(self.middle(torch.relu_(self.first(self.conv(x)))))
        x = self.drop(self.torchs(self.population(x))) * (1 + 0.1 * random.random() + 0.1 * np.random.rand())  # noqa: NPY002
        return self.frozen(self.head(x.mean((2, 3))))


def everything(fails_at=None):
    torch.manual_seed(3)
    model = Everything()
    model.conv.register_forward_hook(lambda *_: None)
    x, y = torch.randn(6, 3, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    for _ in range(2):
        nn.functional.cross_entropy(model(x), y).backward()
    model.calls, model.fails_at = 0, fails_at
    return model, (x, y)


def record(model):
    """All that has to be the same again."""
    return {
        "tensors": {k: (id(t), t._version, t.detach().clone()) for k, t in model.state_dict(keep_vars=True).items()},
        "grads": {k: (p.requires_grad, None if p.grad is None else p.grad.clone()) for k, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "hooks": [[len(getattr(m, key)) for key in vars(m) if key.endswith("hooks")] for m in model.modules()],
        "attributes": [set(vars(m)) for m in model.modules()],
        "own": (model.calls, list(model.log)),
        "memory": (model.population._watched.rows, {k: (v, tuple(map(id, v))) for k, v in model.first.slot._states.items()}),
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),  # noqa: NPY002
        "grad mode": torch.is_grad_enabled(),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one is other or torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def changed(before, after):
    return [key for key in before if not same(before[key], after[key])]
