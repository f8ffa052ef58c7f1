"""Fisher blocks and the natural step against the Fisher matrix from a gradient of each sample and label, written out."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

import normsmith as ns

a = ns.analysis


def half_square(output, target):
    return (output - target).square().sum() / 2


def binary(output, target):
    return binary_cross_entropy_with_logits(output, target, reduction="sum")


def summed(output, target):
    return cross_entropy(output, target, reduction="sum")


def rows(model, x, targets, loss):
    """The gradient of the loss of each sample by itself, of each parameter: (N, parameter)."""
    model.eval()
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    found = [
        grad(lambda p, one, target: loss(functional_call(model, p, (one.unsqueeze(0),)), target.unsqueeze(0)))(
            parameters, one, target
        )
        for one, target in zip(x, targets, strict=True)
    ]
    return {n: torch.stack([f[n] for f in found]) for n in parameters}


def layer_rows(found, name):
    """The gradients of a layer with the bias as the last column, row by row."""
    weight = found[f"{name}.weight"].flatten(2)
    bias = [found[f"{name}.bias"].unsqueeze(2)] if f"{name}.bias" in found else []
    return torch.cat([weight, *bias], 2).flatten(1)


def classes(model, x, names):
    """The Fisher matrix of a classifier: the expectation over the labels of the model's own distribution."""
    p = model.eval()(x).detach().softmax(1)
    total = 0
    for label in range(p.shape[1]):
        found = rows(model, x, torch.full((len(x),), label), cross_entropy)
        g = names(found) * p[:, label : label + 1].sqrt()
        total = total + g.T @ g / len(x)
    return total


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 3, (2, 3), padding="same", padding_mode="circular", bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 4),
    ).double()


def pictures(model, samples=5):
    x = torch.randn(samples, 2, 6, 6, dtype=torch.float64)
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return x


class TestExact:
    def test_convolutions_and_linear_layers(self):
        model = convolutional()
        x = pictures(model)
        found = a.fisher_blocks(model, [x[:2], x[2:]], kind="exact", draws=None)
        assert list(found.blocks) == ["0", "2", "7"]
        assert found.samples == 5
        assert found.left_out == {}
        for name, block in found.blocks.items():
            expected = classes(model, x, lambda f, name=name: layer_rows(f, name))
            torch.testing.assert_close(block.matrix, expected, rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize(("kind", "size"), [("Conv1d", (7,)), ("Conv3d", (4, 3, 4))])
    def test_other_ranks_and_labels_of_the_data(self, kind, size):
        conv = getattr(nn, kind)(2, 2, 2, padding=1, padding_mode="replicate")
        model = nn.Sequential(
            conv, nn.Tanh(), nn.AdaptiveAvgPool1d(1) if kind == "Conv1d" else nn.AdaptiveAvgPool3d(1), nn.Flatten()
        )
        model = model.double()
        x, y = torch.randn(6, 2, *size).double(), torch.tensor([0, 1, 1, 0, 0, 1])
        block = a.fisher_blocks(model, [(x, y)], kind="exact", empirical=True).blocks["0"]
        g = layer_rows(rows(model, x, y, summed), "0")
        torch.testing.assert_close(block.matrix, g.T @ g / 6, rtol=1e-10, atol=1e-14)

    def test_a_layer_that_runs_twice_and_over_tokens(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

            def forward(self, x):
                return self.head(self.layer(self.layer(x[:, :2]).tanh()).sum(1) + self.layer(x).relu_().mean(1))

        model, x = Twice().double(), torch.randn(5, 4, 3).double()
        found = a.fisher_blocks(model, [x], kind="exact", draws=None)
        for name in ("layer", "head"):
            expected = classes(model, x, lambda f, name=name: layer_rows(f, name))
            torch.testing.assert_close(found.blocks[name].matrix, expected, rtol=1e-10, atol=1e-14)

    def test_scaling_the_loss_scales_the_block_by_the_square(self):
        model, x, y = nn.Linear(3, 2).double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
        one = a.fisher_blocks(model, [(x, y)], kind="exact", likelihood=half_square, empirical=True).blocks[""]
        named = a.fisher_blocks(model, [(x, y)], kind="exact", likelihood="gaussian", empirical=True).blocks[""]
        three = a.fisher_blocks(model, [(x, y)], kind="exact", likelihood=lambda z, t: 3 * half_square(z, t), empirical=True)
        torch.testing.assert_close(one.matrix, named.matrix)
        torch.testing.assert_close(three.blocks[""].matrix, 9 * one.matrix)

    @pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
    def test_drawn_labels_come_to_the_expectation(self, likelihood):
        model, x = nn.Linear(2, 3).double(), torch.randn(400, 2).double()
        exact = a.fisher_blocks(model, [x], kind="exact", likelihood=likelihood, draws=None).blocks[""].matrix
        drawn = a.fisher_blocks(model, [x], kind="exact", likelihood=likelihood, draws=200).blocks[""].matrix
        assert (drawn - exact).norm() / exact.norm() < 0.03
        assert not torch.equal(drawn, exact)

    def test_expectations_of_each_likelihood(self):
        model, x = nn.Linear(2, 3).double(), torch.randn(6, 2).double()
        o = nn.functional.pad(x, (0, 1), value=1.0)
        z = model(x).detach()
        p = z.sigmoid()
        spreads = {
            "gaussian": torch.eye(3).double().expand(6, 3, 3),
            "bernoulli": torch.diag_embed(p * (1 - p)),
            "categorical": torch.diag_embed(z.softmax(1)) - z.softmax(1).unsqueeze(2) * z.softmax(1).unsqueeze(1),
        }
        for likelihood, spread in spreads.items():
            block = a.fisher_blocks(model, [x], kind="exact", likelihood=likelihood, draws=None).blocks[""]
            expected = torch.stack([torch.kron(s, torch.outer(one, one)) for s, one in zip(spread, o, strict=True)]).mean(0)
            torch.testing.assert_close(block.matrix, expected)

    def test_labels_of_each_position(self):
        """Segmentation: a label is drawn at each position, and a sample's log-likelihood is their sum."""
        model, x = nn.Conv2d(2, 3, 1).double(), torch.randn(300, 2, 2, 2).double()
        block = a.fisher_blocks(model, [x], kind="exact", draws=40).blocks[""].matrix
        o = nn.functional.pad(x.flatten(2).transpose(1, 2), (0, 1), value=1.0)
        p = model(x).detach().softmax(1).flatten(2).transpose(1, 2)
        spread = torch.diag_embed(p) - p.unsqueeze(3) * p.unsqueeze(2)
        expected = torch.einsum("ntab,ntij->aibj", spread, torch.einsum("nti,ntj->ntij", o, o)).reshape(9, 9) / 300
        assert (block - expected).norm() / expected.norm() < 0.05
        with pytest.raises(ns.OptionError, match="draws=None takes all labels"):
            a.fisher_blocks(model, [x], draws=None)


class TestKronecker:
    def test_exact_in_a_linear_gaussian_model(self):
        model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double(), torch.randn(7, 4).double()
        kronecker = a.fisher_blocks(model, [x], likelihood="gaussian", draws=None).blocks
        exact = a.fisher_blocks(model, [x], kind="exact", likelihood="gaussian", draws=None).blocks
        for name in ("0", "1"):
            torch.testing.assert_close(kronecker[name].matrix, exact[name].matrix)

    def test_not_exact_in_general(self):
        model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double(), torch.randn(7, 4).double() * 2
        kronecker = a.fisher_blocks(model, [x], draws=None).blocks["0"]
        exact = a.fisher_blocks(model, [x], kind="exact", draws=None).blocks["0"]
        assert (kronecker.matrix - exact.matrix).norm() / exact.matrix.norm() > 0.05

    def test_factors_of_a_convolution(self):
        model = convolutional()
        x = pictures(model)
        block = a.fisher_blocks(model, [x[:1], x[1:]], draws=None).blocks["0"]
        conv = model[0]
        patches = nn.functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride).transpose(1, 2)
        o = nn.functional.pad(patches, (0, 1), value=1.0)
        torch.testing.assert_close(block.A, torch.einsum("nti,ntj->ij", o, o) / (o.shape[0] * o.shape[1]))

        model.eval()
        h = conv(x).detach().requires_grad_()
        z = model[2:](h.relu())
        p = z.detach().softmax(1)
        G = 0
        for label in range(4):
            loss = (p[:, label].sqrt() * cross_entropy(z, torch.full((5,), label), reduction="none")).sum()
            dh = torch.autograd.grad(loss, h, retain_graph=True)[0].flatten(2)
            G = G + torch.einsum("nat,nbt->ab", dh, dh) / 5
        torch.testing.assert_close(block.G, G)

    def test_whitened_inputs(self):
        """Behind a reparametrisation by the eigenvectors of the inputs' covariance, A is Λ / (Λ + eps)."""
        x = torch.randn(50, 3).double() * torch.tensor([5.0, 1.0, 0.1]) + 2
        mean, eps = x.mean(0), 0.01
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / 50)
        U = ((values + eps).rsqrt().unsqueeze(1)) * vectors.T
        white = nn.Linear(3, 3).double()
        with torch.no_grad():
            white.weight.copy_(U)
            white.bias.copy_(-U @ mean)
        model = nn.Sequential(white, nn.Linear(3, 2).double())
        block = a.fisher_blocks(model, [x], homogeneous=False, where=lambda _, name: name == "1").blocks["1"]
        torch.testing.assert_close(block.A, torch.diag(values / (values + eps)), rtol=0, atol=1e-12)
        before = a.fisher_blocks(model, [x], homogeneous=False).blocks["0"]
        assert a.ExactBlock(before.A).condition() > 30 * a.ExactBlock(block.A).condition(), "which is what whitening is for"

    def test_repeatable_and_at_any_precision(self):
        model = convolutional()
        x = pictures(model)
        one, two = (a.fisher_blocks(model, [x]).blocks["2"].G for _ in range(2))
        assert torch.equal(one, two)
        half = a.fisher_blocks(model.bfloat16(), [x.bfloat16()]).blocks["2"]
        assert half.A.dtype == half.G.dtype == torch.float64


class TestNumbers:
    def spread(self, *values):
        q = torch.linalg.qr(torch.randn(len(values), len(values)).double()).Q
        return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T

    def test_exact(self):
        block = a.ExactBlock(self.spread(1.0, 4.0, 10.0))
        assert block.eigenvalues.tolist() == pytest.approx([1, 4, 10])
        assert block.condition() == pytest.approx(10)
        assert block.condition(0.2) == pytest.approx(11 / 2)
        assert block.rank == 3
        assert block.distance_to_identity == pytest.approx(math.sqrt((9 + 81) / 3))

    def test_singular(self):
        block = a.ExactBlock(self.spread(0.0, 0.0, 3.0))
        assert (block.rank, block.condition()) == (1, math.inf)
        assert block.condition(0.1) == pytest.approx(3.1 / 0.1)
        nothing = a.ExactBlock(torch.zeros(2, 2).double())
        assert (nothing.rank, nothing.condition(), nothing.condition(1.0)) == (0, math.inf, math.inf)
        with pytest.raises(ns.OptionError, match="damping as a number from 0"):
            block.condition(-1)

    def test_kronecker(self):
        block = a.KroneckerBlock(self.spread(1.0, 2.0, 6.0), self.spread(0.5, 2.0))
        whole = a.ExactBlock(block.matrix)
        torch.testing.assert_close(block.eigenvalues, whole.eigenvalues)
        assert block.condition() == pytest.approx(24)
        assert block.condition() == pytest.approx(whole.condition())
        assert block.condition(1.0) == pytest.approx((9 / 4) * (3.25 / 1.75))
        assert block.distance_to_identity == pytest.approx(whole.distance_to_identity)
        assert a.KroneckerBlock(self.spread(0.0, 1.0), self.spread(0.0, 1.0, 2.0)).rank == 2
        with pytest.raises(ns.InputError, match="at most 10000 rows: got 10201; work with A and G"):
            _ = a.KroneckerBlock(torch.eye(101), torch.eye(101)).matrix

    def test_positive_and_symmetric(self):
        model = convolutional()
        x = pictures(model)
        for kind in ("exact", "kronecker"):
            for block in a.fisher_blocks(model, [x], kind=kind).blocks.values():
                torch.testing.assert_close(block.matrix, block.matrix.T)
                assert torch.linalg.eigvalsh(block.matrix)[0] > -1e-12 * block.eigenvalues[-1]


class TestWhatIsLeftOut:
    def test_reasons(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.depthwise = nn.Conv2d(2, 4, 1, groups=2)
                self.folded, self.idle, self.wide = nn.Linear(4, 4), nn.Linear(3, 3), nn.Linear(4, 2600)
                self.head = nn.Linear(4, 2)

            def forward(self, x):
                h = self.depthwise(x).flatten(2).transpose(1, 2)
                h = self.folded(h.reshape(-1, 4)).view(h.shape).mean(1)
                with torch.no_grad():
                    self.wide(h)
                return self.head(h)

        found = a.fisher_blocks(Odd(), [torch.randn(3, 2, 2, 2)], kind="exact")
        assert list(found.blocks) == ["head"]
        assert found.left_out == {
            "depthwise": "has 2 groups, each of which would be a block of its own",
            "folded": "is given (12, 4), which does not begin with the 3 samples",
            "idle": "did not run",
            "wide": "has no gradient at its output",
        }
        wide = nn.Sequential(nn.Linear(4, 2600), nn.Linear(2600, 2))
        reasons = a.fisher_blocks(wide, [torch.randn(3, 4)], kind="exact", where=lambda *_: True).left_out
        assert reasons["0"] == "has 13000 weights, and an exact block at most 10000; kind='kronecker' takes it"
        assert list(a.fisher_blocks(wide, [torch.randn(3, 4)]).blocks) == ["0", "1"]

    def test_what_is_not_finite(self):
        model, x = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), torch.randn(3, 3)
        x[0, 0] = math.inf
        with pytest.raises(ns.ModelError, match="'0': 'met NaN or infinity', '1': 'met NaN or infinity'"):
            a.fisher_blocks(model, [x], likelihood="gaussian")
        with pytest.raises(ns.InputError, match="natural_step expects finite gradients"):
            a.natural_step(model, (x, torch.zeros(3, 2)), likelihood="gaussian")

    def test_outputs(self):
        class Named(nn.Linear):
            def forward(self, x):
                return {"loss": torch.ones(()), "logits": super().forward(x)}

        x = torch.randn(3, 3)
        named = Named(3, 2)
        plain = nn.Linear(3, 2)
        plain.load_state_dict(named.state_dict())
        torch.testing.assert_close(a.fisher_matrix(named, x).matrix, a.fisher_matrix(plain, x).matrix)
        recurrent, x = nn.LSTM(3, 2, batch_first=True), torch.randn(3, 4, 3)
        with pytest.raises(ns.ModelError, match="linear or convolutional layers: got none"):
            a.fisher_blocks(recurrent, [x])
        with pytest.raises(ns.InputError, match=r"returns one tensor \(N, K, ...\): got tuple with .* pass forward="):
            a.fisher_matrix(recurrent, x)
        last = a.fisher_matrix(recurrent, x, forward=lambda model, batch: model(batch)[0][:, -1])
        assert last.matrix.shape == (56, 56)

    def test_options(self):
        model, x = nn.Linear(3, 2), torch.randn(3, 3)
        for options, words in (
            ({"kind": "diagonal"}, "kind as 'kronecker' or 'exact': got 'diagonal'"),
            ({"likelihood": "poisson"}, "likelihood as 'categorical', 'gaussian', 'bernoulli' or loss"),
            ({"likelihood": mse_loss}, "say empirical=True"),
            ({"draws": 0}, "draws as a positive number of labels"),
            ({"batches": 0}, "batches, how many to use"),
        ):
            with pytest.raises(ns.OptionError, match=words):
                a.fisher_blocks(model, [x], **options)
        with pytest.raises(ns.InputError, match=r"got a tensor; pass \[x\]"):
            a.fisher_blocks(model, x)
        with pytest.raises(ns.InputError, match="loader that yields batches: got none"):
            a.fisher_blocks(model, [])
        with pytest.raises(ns.ModelError, match="a layer it can take apart"):
            a.fisher_blocks(nn.Conv1d(2, 2, 1, groups=2), [torch.randn(3, 2, 2)])
        assert a.fisher_blocks(model.requires_grad_(False), [x, x], batches=1).samples == 3


class TestNaturalStep:
    def test_fisher_matrix(self):
        model = convolutional()
        x = pictures(model)
        fisher = a.fisher_matrix(model, x)
        names = [n for n, _ in model.named_parameters()]
        expected = classes(model, x, lambda f: torch.cat([f[n].flatten(1) for n in names], 1))
        torch.testing.assert_close(fisher.matrix, expected, rtol=1e-10, atol=1e-14)
        assert fisher.block("0.bias", "7.bias").shape == (3, 4)
        torch.testing.assert_close(fisher.block("0.bias", "7.bias"), expected[36:39, -4:])
        assert fisher.mass.shape == (len(names), len(names))
        assert fisher.mass.sum().item() == pytest.approx(1)
        one = fisher.block("7.weight", "0.weight").square().sum() / fisher.matrix.square().sum()
        assert fisher.mass[names.index("7.weight"), names.index("0.weight")].item() == pytest.approx(one.item())
        assert fisher.whole.rank <= 15, "five samples of three free labels"

    def test_a_least_squares_problem_is_solved_in_one_step(self):
        model, x, y = nn.Linear(3, 2).double(), torch.randn(20, 3).double(), torch.randn(20, 2).double()
        found = a.natural_step(model, (x, y), likelihood="gaussian", damping=0.0)
        start = half_square(model(x), y) / 20
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(found.step[name])
        solution = torch.linalg.lstsq(nn.functional.pad(x, (0, 1), value=1.0), y).solution.T
        torch.testing.assert_close(model.weight.detach(), solution[:, :3])
        torch.testing.assert_close(model.bias.detach(), solution[:, 3])
        assert found.decrease == pytest.approx((start - half_square(model(x), y) / 20).item())

    def test_formula_with_damping(self):
        model, x, y = nn.Linear(3, 2).double(), torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
        found = a.natural_step(model, (x, y), damping=0.1)
        cross_entropy(model(x), y).backward()
        gradient = torch.cat([model.weight.grad.flatten(), model.bias.grad])
        torch.testing.assert_close(found.gradient["weight"], model.weight.grad)
        expected = -torch.linalg.solve(found.fisher.matrix + 0.1 * torch.eye(8), gradient)
        torch.testing.assert_close(torch.cat([found.step["weight"].flatten(), found.step["bias"]]), expected)
        wide = nn.Linear(3, 3).double()
        few = a.natural_step(wide, (x, y), damping=0.1, draws=1)
        assert few.fisher.whole.rank == 4, "a label for each sample"
        gradient = torch.cat([g.flatten() for g in few.gradient.values()])
        expected = -torch.linalg.solve(few.fisher.matrix + 0.1 * torch.eye(12), gradient)
        torch.testing.assert_close(torch.cat([s.flatten() for s in few.step.values()]), expected)

    def test_without_damping_directions_of_no_curvature_are_left_alone(self):
        model, x, y = nn.Linear(3, 2).double(), torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
        cross_entropy(model(x), y).backward()
        gradient = torch.cat([model.weight.grad.flatten(), model.bias.grad])
        free = a.natural_step(model, (x, y), damping=0.0)
        pseudo = -torch.linalg.pinv(free.fisher.matrix, hermitian=True, rtol=1e-12) @ gradient
        torch.testing.assert_close(torch.cat([free.step["weight"].flatten(), free.step["bias"]]), pseudo)

    def test_invariant_to_the_scale_of_a_layer(self):
        """A reparametrisation does not change where the network goes: the point of it."""
        x, y = torch.randn(30, 2).double(), torch.tensor([[0, 1], [1, 1], [1, 0]] * 10)
        plain = nn.Linear(2, 2).double()
        scaled = nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2, bias=False).double().requires_grad_(False))
        with torch.no_grad():
            scaled[1].weight.copy_(torch.diag(torch.tensor([7.0, 0.2])))
            scaled[0].weight.copy_(torch.linalg.inv(scaled[1].weight) @ plain.weight)
            scaled[0].bias.copy_(torch.linalg.inv(scaled[1].weight) @ plain.bias)
        one, two = (a.natural_step(m, (x, y), damping=0.0, likelihood="bernoulli") for m in (plain, scaled))
        torch.testing.assert_close(scaled[1].weight @ two.step["0.weight"], one.step["weight"])

    def test_limits(self):
        model, x = nn.Linear(3, 2), torch.randn(3, 3)
        with pytest.raises(ns.InputError, match="at most 10000 trainable parameters: got 10100"):
            a.natural_step(nn.Linear(100, 100), (torch.randn(2, 100), torch.tensor([0, 1])))
        with pytest.raises(ns.OptionError, match="damping as a number from 0: got nan"):
            a.natural_step(model, (x, torch.tensor([0, 1, 0])), damping=math.nan)
        with pytest.raises(ns.OptionError, match="named likelihood"):
            a.fisher_matrix(model, x, likelihood=mse_loss)
