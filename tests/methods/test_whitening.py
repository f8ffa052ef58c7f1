"""The whitening family beyond the battery: what the matrices are, near ties and when singular, running matrices, monitor, functions."""

import pytest
import torch
from helpers import assert_same, example
from torch import nn

import normsmith as ns
from normsmith.covariance import Covariance, in_rows, of_groups
from normsmith.methods import _matrices as matrices

WHITENING = ("pca_whitening", "zca_whitening", "cholesky_whitening")
MATRICES = {"zca": matrices.zca, "pca": matrices.pca, "cholesky": matrices.cholesky}
EPS = 1e-5


def data(samples=200, channels=6, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, channels, generator=generator, dtype=torch.float64)
    return x @ torch.randn(channels, channels, generator=generator, dtype=torch.float64) * spread + 3


def cov_of(y):
    return torch.cov(y.detach().transpose(0, 1).flatten(1), correction=0)


def covariance(x):
    return cov_of(x).unsqueeze(0)


def by(name, x, **options):
    return ns.make(name, x.shape[1], affine=False, dtype=torch.float64, **options)(x)


@pytest.mark.parametrize("name", WHITENING)
def test_the_covariance_is_that_of_the_formula(name):
    x = data()
    values, vectors = torch.linalg.eigh(cov_of(x))
    expected = torch.diag(values / (values + EPS))
    found = cov_of(by(name, x))
    if name == "pca_whitening":
        assert_same(found, expected.flip(0, 1))
    elif name == "zca_whitening":
        assert_same(found, vectors @ expected @ vectors.mT)
    else:
        sigma = cov_of(x) + EPS * torch.eye(6, dtype=torch.float64)
        lower = torch.linalg.cholesky(sigma)
        assert_same(lower @ found @ lower.mT, cov_of(x))


def test_the_matrices():
    cov = covariance(data())
    sigma, identity = cov + EPS * torch.eye(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64).unsqueeze(0)
    zca = matrices.zca(cov, EPS)
    assert_same(zca, zca.mT)
    assert (torch.linalg.eigvalsh(zca) > 0).all()
    assert_same(zca @ sigma @ zca, identity)
    lower = matrices.cholesky(cov, EPS)
    assert_same(lower, lower.tril())
    assert_same(lower @ sigma @ lower.mT, identity)
    pca = matrices.pca(cov, EPS)
    rows = pca @ pca.mT
    assert_same(rows, torch.diag_embed(rows.diagonal(dim1=1, dim2=2)))
    variances = cov_of(by("decorrelating", data()))
    assert_same(variances, torch.diag(variances.diagonal()))
    assert (variances.diagonal().diff() < 0).all()


def test_newton_schulz_goes_to_zca_and_stays_below():
    x = data()
    errors = [float((by("iterative_whitening", x, iterations=t) - by("zca_whitening", x)).abs().max()) for t in (3, 10, 40)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-8
    scaled = torch.diag(torch.tensor([0.23, 1, 4, 26.0], dtype=torch.float64).sqrt())
    values = torch.linalg.eigvalsh(cov_of(by("iterative_whitening", by("zca_whitening", data(channels=4)) @ scaled)))
    assert (values > 0).all()
    assert (values <= 1).all()
    assert abs(float(values[0]) - 0.34) < 0.005


def test_zca_turns_with_the_data():
    x = data()
    q = torch.linalg.qr(data(6, 6, seed=3))[0]
    assert_same(by("zca_whitening", x @ q.mT), by("zca_whitening", x) @ q.mT)


@pytest.mark.parametrize("name", [*WHITENING, "switchable_whitening", "iterative_whitening"])
def test_groups_of_one_are_batch_norm(name):
    if name == "switchable_whitening":
        options = {"parts": ("batch_whitening",), "group_size": 1, "iterations": 1}
    else:
        options = {"group_size": 1, **({"iterations": 1} if name == "iterative_whitening" else {})}
    layer, norm, x = ns.make(name, 6, dtype=torch.float64, **options), nn.BatchNorm2d(6).double(), example((4, 6, 5, 3))
    for _ in range(2):
        assert_same(layer(x), norm(x))
    assert_same(layer.eval()(x), norm.eval()(x))
    assert_same(layer.running_var, norm.running_var)


def test_switchable_parts_are_the_norms_of_these_names():
    x = example((4, 6, 5, 3))
    twins = {"batch": nn.BatchNorm2d(6), "instance": nn.InstanceNorm2d(6), "layer": nn.GroupNorm(1, 6)}
    for part, twin in twins.items():
        layer = ns.SwitchableWhitening(6, parts=(part,), iterations=60, dtype=torch.float64)
        assert_same(layer(x), twin.double()(x), part, tolerance=1e-7)
    one = ns.SwitchableWhitening(6, parts=("instance_whitening",), iterations=60, dtype=torch.float64)(x)
    assert_same(one[1:2], by("zca_whitening", x[1:2]), tolerance=1e-7)
    with pytest.raises(ns.OptionError, match="different names of"):
        ns.SwitchableWhitening(6, parts=("batch", "nonsense"))
    assert ns.SwitchableWhitening(6).ratios()["mean"]["layer"] == pytest.approx(0.2)


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-6, 1e-2])
@pytest.mark.parametrize("name", ["zca", "cholesky"])
def test_gradients_near_ties_are_right(name, gap):
    """Where autograd of an eigendecomposition is infinite or noise."""
    q = torch.linalg.qr(data(4, 4, seed=5))[0]
    sigma = (q * torch.tensor([1, 1 + gap, 1 + 2 * gap, 3], dtype=torch.float64)) @ q.mT
    start = sigma.unsqueeze(0).requires_grad_()

    def run(s):
        return MATRICES[name]((s + s.mT) / 2, EPS)

    assert torch.autograd.gradcheck(run, (start,))
    assert torch.autograd.gradgradcheck(run, (start,))


def test_autograd_of_eigenvectors_is_not():
    values, vectors = torch.linalg.eigh(torch.eye(3, dtype=torch.float64).requires_grad_())
    out = (vectors / values.sqrt()) @ vectors.mT
    (grad,) = torch.autograd.grad(out[0, 1], vectors, retain_graph=True)
    assert grad.isfinite().all()
    leaf = torch.eye(3, dtype=torch.float64).requires_grad_()
    values, vectors = torch.linalg.eigh(leaf)
    (grad,) = torch.autograd.grad(((vectors / values.sqrt()) @ vectors.mT)[0, 1], leaf)
    assert not grad.isfinite().all()


@pytest.mark.parametrize("name", [*WHITENING, "decorrelating", "iterative_whitening", "switchable_whitening"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["few", "copies", "constant", "large"])
def test_singular_covariances_leave_all_finite(name, dtype, kind):
    x = data(5 if kind == "few" else 40).to(dtype)
    if kind == "copies":
        x = x[:, :1].expand(-1, 6)
    if kind == "constant":
        x = torch.full_like(x, 7.0)
    if kind == "large":
        x = torch.cat([x[:, :3], x[:, :3]], 1) * 1e6
    x = x.clone().requires_grad_()
    layer = ns.make(name, 6, dtype=dtype)
    y = layer(x)
    (y * y.detach().cos()).sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert layer.eval()(x).isfinite().all()
    if kind == "few" and dtype == torch.float64 and name in WHITENING:
        assert torch.linalg.eigvalsh(cov_of(y)).max() < 1 + 1e-6


def test_zca_gradient_of_a_singular_batch():
    x = data(4, 6).requires_grad_()  # 3 directions of 6
    assert torch.autograd.gradcheck(lambda x: by("zca_whitening", x, eps=1e-2), (x,))


@pytest.mark.parametrize("shape", [(60000, 4, 2, 2), (30000, 4, 3), (9, 4, 60, 60)])
def test_many_small_maps_far_from_zero(shape):
    x = torch.randn(shape) + 1e4
    layer = ns.make("zca_whitening", 4, momentum=None)
    y = layer(x).double()
    flat = y.transpose(0, 1).flatten(1)
    assert flat.mean(1).abs().max() < 4e-3  # 1e4 is itself known to 5e-4
    assert (flat @ flat.T / flat.shape[1] - torch.eye(4)).abs().max() < 1e-3
    assert (layer.running_mean - x.double().transpose(0, 1).flatten(1).mean(1)).abs().max() < 4e-3


@pytest.mark.parametrize("name", ["batch", "switchable", "zca_whitening", "switchable_whitening"])
def test_a_count_that_is_a_tensor_fits_running_statistics_of_half_precision(name):
    layer = ns.make(name, 6, dtype=torch.bfloat16)
    layer(torch.randn(8, 6, 5, dtype=torch.bfloat16), mask=torch.rand(8, 1, 5) > 0.3)
    assert layer.running_var.dtype == torch.bfloat16
    assert layer.running_var.isfinite().all()


@pytest.mark.parametrize("name", ["zca_whitening", "pca_whitening", "decorrelating"])
def test_a_step_takes_one_eigendecomposition(name, monkeypatch):
    made, own = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda sigma: made.append(1) or own(sigma))
    layer, x = ns.make(name, 6), torch.randn(5, 6, 4, requires_grad=True)
    for steps in (1, 2):
        layer(x).square().sum().backward()
        assert len(made) == steps


def test_a_single_sample_with_positions():
    x = example((1, 6, 9, 4))
    assert_same(cov_of(by("zca_whitening", x)), torch.eye(6, dtype=torch.float64), tolerance=1e-4)
    with pytest.raises(ns.TooFewValuesError):
        ns.ZCAWhitening(6)(torch.randn(1, 6))


def test_nan_stays_in_its_group():
    x = example((4, 6, 5))
    x[0, 0, 0] = float("nan")
    for name in WHITENING:
        y = by(name, x, group_size=3)
        assert y[:, :3].isnan().all()
        assert y[:, 3:].isfinite().all()


def test_the_running_matrix_is_the_average_of_matrices():
    layer, x = ns.IterativeWhitening(6, running="matrix", dtype=torch.float64), data()
    expected = 0.9 * torch.eye(6, dtype=torch.float64) + 0.1 * layer.whitener(covariance(x))[0]
    layer(x)
    assert_same(of_groups(layer.running_matrix)[0], expected)
    with pytest.raises(ns.OptionError, match="flip"):
        ns.PCAWhitening(6, running="matrix")
    with pytest.raises(ns.OptionError, match="to know a covariance"):
        layer.covariance()


def test_evaluation_follows_whatever_is_written():
    layer, x = ns.ZCAWhitening(6, dtype=torch.float64), data()
    layer(x)
    first = layer.eval()(x)
    assert torch.equal(layer(x), first)
    layer.running_cov.mul_(0.5)
    assert not torch.equal(layer(x), first)
    layer.train()(x * 2)
    again = ns.ZCAWhitening(6, dtype=torch.float64).eval()
    again.load_state_dict(layer.state_dict())
    assert_same(again(x), layer.eval()(x))


def test_condition():
    x = data()
    values = torch.linalg.eigvalsh(cov_of(x)) + EPS
    layer = ns.ZCAWhitening(6, group_size=6, momentum=1.0, dtype=torch.float64)
    assert_same(layer.condition(x), (values[-1] / values[0]).view(1), tolerance=1e-6)
    assert layer.condition().item() == pytest.approx(1)
    layer(x)
    assert layer.condition().item() == pytest.approx(float(values[-1] / values[0]), rel=1e-4)
    assert ns.ZCAWhitening(12, group_size=5).condition().shape == (3,)


def test_groups():
    sizes = {(96, 64): 48, (64, 64): 64, (7, 4): 1, (12, None): 12, (128, 16): 16}
    for (channels, wanted), size in sizes.items():
        layer = ns.ZCAWhitening(channels, group_size=wanted)
        assert channels // layer.groups == size
    for wrong in (0, 2.0, True):
        with pytest.raises(ns.OptionError, match="group_size as a positive integer"):
            ns.ZCAWhitening(8, group_size=wrong)
    with pytest.raises(ns.OptionError, match="steps of Newton-Schulz"):
        ns.IterativeWhitening(8, iterations=0)
    rows = torch.arange(24.0).view(2, 12)
    assert torch.equal(in_rows(of_groups(rows)), rows)


def test_the_law_of_total_covariance():
    x = data(30)
    parts = [x[:4], x[4:5], x[5:]]
    means, covs = torch.stack([p.mean(0) for p in parts]), torch.cat([covariance(p) for p in parts]).unsqueeze(1)
    counts = torch.tensor([[4.0], [1], [25]], dtype=torch.float64)
    whole = Covariance.made(means, covs, counts).pool(0)
    assert_same(whole.cov[0], covariance(x))
    assert_same(whole.mean[0], x.mean(0))


def test_as_functions():
    x = data()
    assert_same(ns.center(x), x - x.mean(0))
    deviation = (x.var(0, correction=0) + EPS).sqrt()
    assert_same(ns.scale(x), x / deviation)
    assert_same(ns.standardize(x), (x - x.mean(0)) / deviation)
    assert_same(ns.decorrelate(x), by("decorrelating", x))
    for short, name in {"zca": "zca_whitening", "pca": "pca_whitening", "cholesky": "cholesky_whitening"}.items():
        assert_same(ns.whiten(x, short), by(name, x))
    assert_same(ns.whiten(x, "iterative", iterations=3, group_size=2), by("iterative_whitening", x, iterations=3, group_size=2))
    mask = torch.arange(len(x)) < 100
    assert_same(ns.whiten(x, mask=mask)[:100], ns.whiten(x[:100]))
    with pytest.raises(ns.OptionError, match="iterations only with"):
        ns.whiten(x, "zca", iterations=3)
    with pytest.raises(ns.OptionError, match="'zca', 'pca'"):
        ns.whiten(x, "nonsense")
    with pytest.raises(ns.InputError, match="mask for all channels alike"):
        ns.whiten(x, mask=torch.ones(200, 6, dtype=torch.bool))


@pytest.mark.parametrize("name", ["zca_whitening", "cholesky_whitening"])
def test_a_conversion_of_batch_norm_evaluates_as_before(name):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    x = torch.randn(16, 3, 9, 9)
    net(x)
    expected = net.eval()(x)
    ns.convert(net, name)
    assert_same(net.eval()(x), expected)


def test_recalibration_is_exact():
    x, net = example((12, 6, 5, 3)), nn.Sequential(ns.ZCAWhitening(6, dtype=torch.float64))
    ns.recalibrate(net, [x[:5], x[5:6], x[6:]])
    assert_same(net[0].covariance()[0], cov_of(x) * (180 / 179))
    assert_same(net[0].running_mean, x.mean((0, 2, 3)))
    matrix = nn.Sequential(ns.ZCAWhitening(6, running="matrix", dtype=torch.float64))
    ns.recalibrate(matrix, [x[:5], x[5:]])
    assert_same(of_groups(matrix[0].running_matrix), matrices.zca(covariance(x), EPS))


def test_adaptation_by_a_mixture_of_statistics_is_refused():
    net = nn.Sequential(ns.ZCAWhitening(6))
    with pytest.raises(ns.ModelError, match="which has covariances"):
        ns.adapt(net, [torch.randn(8, 6)], method="alpha")
    ns.adapt(net, [torch.randn(8, 6)])


@pytest.mark.parametrize("layer", [ns.Centering, ns.Decorrelating])
def test_what_divides_by_nothing_takes_no_eps(layer):
    with pytest.raises(ns.OptionError, match=r"expects no eps, as it divides by nothing: got eps=0.1"):
        layer(4, eps=0.1)
