"""Smoothness along the gradient against the closed form of quadratic and linear losses; training side by side against plain loops."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import normsmith as ns

a = ns.analysis


class Point(nn.Module):
    """A point in space: the loss is a function of it alone."""

    def __init__(self, *theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x):
        return self.theta * x


def quadratic():
    root = torch.randn(3, 3).double()
    return root @ root.T


class TestSmoothness:
    def test_quadratic(self):
        H, model = quadratic(), Point(1.0, -2.0, 0.5)
        g = H @ model.theta.detach()
        found = a.smoothness(model, lambda t, _: t @ H @ t / 2, torch.ones(3).double(), lr=0.1)
        assert found.steps.tolist() == pytest.approx([0.1 * 2 ** (k * 3 / 8 - 1) for k in range(9)])
        assert (found.steps[0].item(), found.steps[-1].item()) == (0.05, pytest.approx(0.4))
        assert found.gradient == pytest.approx(g.norm().item())
        exact = (H @ g).norm() / g.norm()
        torch.testing.assert_close(found.betas, exact.expand(9), rtol=1e-10, atol=0)
        assert found.beta == pytest.approx(exact.item())
        where = [model.theta.detach() - step * g for step in found.steps]
        torch.testing.assert_close(found.losses, torch.stack([t @ H @ t / 2 for t in where]))
        assert found.loss == pytest.approx((model.theta @ H @ model.theta / 2).item())
        assert found.loss_band == (found.losses.min(), found.losses.max())
        changes = found.steps * (H @ g).norm()
        assert found.change_band == pytest.approx((changes[0].item(), changes[-1].item()))

    def test_linear(self):
        found = a.smoothness(Point(1.0, 2.0), lambda t, _: (3 * t).sum(), torch.ones(2).double(), steps=[0.5, -2])
        assert found.beta == 0
        assert found.change_band == (0.0, 0.0)
        assert found.losses.tolist() == pytest.approx([9 - 0.5 * 18, 9 + 2 * 18])

    def test_at_a_minimum_there_is_no_direction(self):
        found = a.smoothness(Point(0.0), lambda t, _: t.square().sum(), torch.ones(1).double(), lr=0.1)
        assert found.gradient == 0
        assert math.isnan(found.beta)

    def test_one_batch_the_same_noise_and_the_same_buffers(self):
        """Dropout, and a norm that normalizes in training by what it has seen, give a loss that depends on weights alone."""
        model = nn.Sequential(nn.Linear(3, 8), ns.PopulationNorm(8, momentum=0.5), nn.Dropout(0.5), nn.Linear(8, 2)).double()
        x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
        model(x * 3)
        found = a.smoothness(model, mse_loss, (x, y), steps=[1e-30, 1e-30])
        assert found.losses.tolist() == [found.loss] * 2
        assert found.change_band == (0.0, 0.0)

    def test_in_half_precision_and_frozen_parts(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).bfloat16()
        model[0].requires_grad_(False)
        found = a.smoothness(model, mse_loss, (torch.randn(4, 3).bfloat16(), torch.randn(4, 2).bfloat16()), lr=0.1)
        assert found.losses.dtype == found.changes.dtype == torch.float64

    def test_options(self):
        for wrong in ({}, {"lr": 0.1, "steps": [1]}):
            with pytest.raises(ns.OptionError, match="either lr= or steps=: got both or neither"):
                a.smoothness(Point(1.0), mse_loss, torch.ones(1), **wrong)
        for wrong in ({"lr": 0.0}, {"steps": []}, {"steps": [math.inf]}):
            with pytest.raises(ns.OptionError, match="steps that are finite and not zero"):
                a.smoothness(Point(1.0), mse_loss, torch.ones(1), **wrong)


class TestAcrossRuns:
    def net(self):
        return nn.Sequential(nn.Linear(3, 4), ns.PopulationNorm(4, momentum=0.5), nn.Tanh(), nn.Linear(4, 2)).double()

    def batches(self, number=4):
        return [(torch.randn(6, 3).double(), torch.randn(6, 2).double()) for _ in range(number)]

    @pytest.mark.parametrize("steps", [None, 2, 7])
    def test_equal_to_plain_training(self, steps):
        model, batches = self.net(), self.batches()
        rates = (0.5, 0.1)
        found = a.across_runs(model, mse_loss, batches, rates=rates, steps=steps)
        for run, rate in enumerate(rates):
            twin = copy.deepcopy(model)
            optimizer = torch.optim.SGD(twin.parameters(), lr=rate)
            losses, slopes = [], []
            for x, y in (batches * 2)[: steps or 4]:
                optimizer.zero_grad()
                loss = mse_loss(twin(x), y)
                loss.backward()
                losses.append(loss.item())
                slopes.append(torch.cat([p.grad.flatten() for p in twin.parameters()]))
                optimizer.step()
            assert found.losses[run].tolist() == pytest.approx(losses, rel=1e-12)
            changes = [(one - two).norm().item() for one, two in itertools.pairwise(slopes)]
            assert found.changes[run].tolist() == pytest.approx(changes, rel=1e-10)
            for name, p in twin.named_parameters():
                torch.testing.assert_close(found.weights[run][name], p.detach())
        low, high = found.loss_band
        assert torch.equal(low, found.losses.min(0).values)
        assert torch.equal(high, found.losses.max(0).values)
        assert all((one <= two).all() for one, two in (found.loss_band, found.change_band))

    def test_runs_share_batches_and_noise(self):
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
        data = torch.utils.data.TensorDataset(torch.randn(12, 3).double(), torch.randn(12, 2).double())
        loader = torch.utils.data.DataLoader(data, batch_size=3, shuffle=True)
        found = a.across_runs(model, mse_loss, loader, rates=(0.1, 0.1), steps=9)
        assert found.losses.shape == (2, 9)
        assert found.changes.shape == (2, 8)
        assert torch.equal(found.losses[0], found.losses[1])
        assert found.losses[0].unique().numel() == 9

    def test_each_step_has_noise_of_its_own(self):
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
        found = a.across_runs(model, mse_loss, self.batches(1), rates=(0.0, 0.0), steps=5)
        assert torch.equal(found.losses[0], found.losses[1])
        assert found.losses[0].unique().numel() == 5

    def test_an_optimizer_of_choice(self):
        model, batches = self.net(), self.batches()
        plain = a.across_runs(model, mse_loss, batches, rates=(0.1,))
        adam = a.across_runs(model, mse_loss, iter(batches), rates=(0.1,), optimizer=torch.optim.AdamW)
        assert plain.losses[0, 0] == adam.losses[0, 0]
        assert plain.losses[0, 1] != adam.losses[0, 1]

    def test_a_single_step_has_no_change(self):
        found = a.across_runs(self.net(), mse_loss, self.batches(1), rates=(0.1, 0.2))
        assert found.changes.shape == (2, 0)

    def test_options(self):
        for wrong in ((), (-1.0,), (math.nan,)):
            with pytest.raises(ns.OptionError, match="rates as finite numbers from 0"):
                a.across_runs(self.net(), mse_loss, self.batches(), rates=wrong)
        with pytest.raises(ns.OptionError, match="steps as a positive integer"):
            a.across_runs(self.net(), mse_loss, self.batches(), steps=0)
        with pytest.raises(ns.InputError, match="loader that yields batches: got none"):
            a.across_runs(self.net(), mse_loss, [])
        with pytest.raises(ns.InputError, match="got a tensor"):
            a.across_runs(self.net(), mse_loss, torch.ones(3))
