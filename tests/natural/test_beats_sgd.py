import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normsmith as ns

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
STEPS = 60


def problem(seed):
    """Inputs with a mean, whose directions differ by a factor of 100, all of which matter."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(128, 8, generator=generator)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    x = factors * torch.logspace(0, -2, 8) @ turn + 0.5
    return x, torch.tanh(factors @ torch.randn(8, 2, generator=generator) / 2)


def final_loss(method, rate, seed):
    torch.manual_seed(seed)
    x, target = problem(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), rate)
    if method != "sgd":
        loss = F.mse_loss if method.startswith("eigennet") else None
        ns.reparametrize(model, method, data=(x, target), every=10, optimizer=optimizer, loss=loss)
    for step in range(STEPS):
        optimizer.zero_grad()
        F.mse_loss(model(x), target).backward()
        optimizer.step()
        ns.step_schedules(model, step + 1, STEPS)
    loss = F.mse_loss(model.eval()(x), target).item()
    return loss if loss < 10 else float("inf")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "share"),
    [("wnn", 0.5), ("wnn:basis=zca", 0.5), ("prong_plus", 0.5), ("gwnn_pre:energy=1.0", 0.5), ("eigennet", 0.7)],
)
def test_by_step_it_beats_sgd_at_its_best_rate_on_uneven_inputs(method, share):
    for seed in range(3):
        sgd = min(final_loss("sgd", rate, seed) for rate in RATES)
        assert min(final_loss(method, rate, seed) for rate in RATES) < share * sgd
