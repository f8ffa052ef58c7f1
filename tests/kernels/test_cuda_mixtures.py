"""The operations of mixtures in Triton: on a GPU where there is one, else on the CPU through Triton's interpreter."""

import math

import pytest
import torch
from helpers import Case, assert_same, by_oracle, example, tensors_of
from isolated import facts_of
from mixtures import a_density, every_result
from tiles import DEVICE, LAYOUTS, laid_out, pairs, random, use_small_tiles

import normsmith as ns
from normsmith.kernels import choose
from normsmith.kernels import mixtures_reference as reference
from normsmith.kernels.mixtures import Density, Draw
from normsmith.kernels.reference import statistics_type

pytest.importorskip("triton", reason="Triton is not installed: pip install 'normsmith[cuda]'")
from normsmith.kernels.cuda import geometry, launch
from normsmith.kernels.cuda import mixture as cuda

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|All-NaN slice):RuntimeWarning")  # of numpy, in the interpreter
# (N, C, S): a single number, channel, position; more channels than a tile; many samples; a long cell.
SIZES = [(1, 1, 1), (3, 1, 70), (5, 7, 1), (2, 20, 3), (9, 3, 2), (2, 3, 51)]
TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DENSITIES = ("channel", "joint")
MASKS = ("no mask", "masked")
LAYERS = [
    Case("uan"),
    Case("uan", {"components": 2, "eval_stats": "running"}),
    Case("mixture"),
    Case("mixture", {"components": 4, "mixture": "channel", "iterations": 2, "grad_through_posterior": True}),
    Case("mixture", {"components": 1}),
    Case("mode"),
]


@pytest.fixture(autouse=True)
def _small_tiles(request, monkeypatch):
    if "as_it_is" not in request.fixturenames:
        use_small_tiles(monkeypatch, 256)


@pytest.fixture
def as_it_is():
    """Tiles of the size they have on a GPU."""


def a_mixture(x, number, kind="channel"):
    """A density for x, its numbers in the type of statistics."""
    dtype = statistics_type(x)
    density = a_density(number, x.shape[1], kind == "joint")
    return Density(*(t.to(x.device, dtype) for t in density.tensors()), density.joint)


@pytest.mark.parametrize(
    ("size", "number", "density", "layout", "dtype", "mask"),
    pairs(SIZES, (1, 3, 5), DENSITIES, tuple(LAYOUTS), TYPES, MASKS),
    ids=str,
)
def test_every_operation_equals_the_reference(size, number, density, layout, dtype, mask):
    masked = mask == "masked"
    x, dy = (random(*size, seed=seed, dtype=dtype) for seed in (0, 9))
    x = torch.where(random(*size, seed=11) > 0.5, math.nan, x) if masked else x
    x, dy = laid_out(x, layout), laid_out(dy, layout)
    made = a_mixture(x, number, density)
    found, expected = (every_result(backend, x, dy, made, masked) for backend in (cuda, reference))
    for what, value in expected.items():
        assert found[what].dtype == value.dtype
        assert_same(found[what], value, what, 4e-4 if dtype == torch.float32 else None)
    if layout in {"rows", "columns"}:
        assert found["y"].stride() == found["dx True"].stride() == x.stride()


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.usefixtures("as_it_is")
def test_tiles_of_the_real_size(columns):
    x, dy = (laid_out(random(1, 70, 9, seed=seed).float(), "columns" if columns else "rows") for seed in (0, 9))
    for density in DENSITIES:
        found, expected = (every_result(backend, x, dy, a_mixture(x, 3, density), False) for backend in (cuda, reference))
        for what, value in expected.items():
            assert_same(found[what], value, what, 4e-4)


def test_components_in_any_number():
    x, dy = (random(1, 2, 17, seed=seed) for seed in (0, 9))
    found, expected = (every_result(backend, x, dy, a_mixture(x, 100), False) for backend in (cuda, reference))
    for what, value in expected.items():
        assert_same(found[what], value, what)


@pytest.mark.parametrize("kind", ["a number", "the other layout", "negative"])
def test_a_gradient_laid_out_otherwise(kind):
    n, c, s = size = (3, 2, 20)
    x = random(*size)
    dy = random(*((1, 1, 1) if kind == "a number" else size), seed=9)
    if kind == "negative":
        dy = torch.complex(dy, dy).conj().imag
        assert dy.is_neg()
    dy = laid_out(dy, "columns") if kind == "the other layout" else dy.expand(n, c, s)
    found = every_result(cuda, x, dy, a_mixture(x, 3), False)
    for what, value in every_result(reference, x, dy.clone(), a_mixture(x, 3), False).items():
        assert_same(found[what], value, what)


def test_shares_of_far_points_add_up_to_one():
    """Where every density has underflowed long before, the nearest component has all of the point."""
    x = torch.tensor([-1e6, 0.0, 1e6], device=DEVICE).view(3, 1, 1)
    mean = torch.tensor([[-1.0], [0.0], [1.0]], device=DEVICE)
    density = Density.of(torch.full_like(mean, -1.0), mean, torch.ones_like(mean))
    assert_same(cuda.weighted_moments(x, density).count.sum(0).cpu(), torch.tensor([3.0]), "sum of the shares")
    assert cuda.weighted_moments(x[2:], density).count[2] == 1
    assert cuda.weighted_affine(x, density, mean, mean * 0 + 1, mean[:1] * 0).isfinite().all()


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_clusters_far_from_each_other_and_from_zero_lose_nothing(layout):
    """Means 1e4 deviations apart, which take turns: sums of squares from one origin would lose the variance."""
    ids = torch.arange(1200, device=DEVICE) % 3
    x = laid_out((random(1200) + ids * 1e4 + 5e3).float().view(4, 1, 300), layout)
    mean = torch.tensor([[5e3], [1.5e4], [2.5e4]], device=DEVICE)
    found = cuda.weighted_moments(x, Density.of(torch.zeros_like(mean), mean, torch.ones_like(mean)))
    for k in range(3):
        own = x.double().view(-1)[ids == k]
        assert_same(found.var[k, 0], own.var(unbiased=False), "variance", 3e-4)
        assert abs(found.mean[k, 0] - own.mean()) < 4e-3  # two roundings there


@pytest.mark.parametrize("where", ["x", "dy", "mean"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_goes_where_it_goes_in_the_reference(where, value):
    x, dy = random(3, 2, 31, dtype=torch.float32), random(3, 2, 31, seed=9, dtype=torch.float32)
    density = a_mixture(x, 3)
    {"x": x[2], "dy": dy[2], "mean": density.mean}[where][1, 1:2] = value
    draw = Draw(*(random(3, 2, seed=seed, dtype=torch.float32) for seed in range(5)))
    for through in (False, True):
        results = []
        for backend in (cuda, reference):
            moments, sums = backend.weighted_moments(x, density), backend.weighted_grad_sums(dy, x, density, draw.center)
            dx, logits = backend.weighted_grad_input(dy, x, density, draw.offset, draw, through=through)
            y = backend.weighted_affine(x, density, draw.center, draw.offset, draw.slope[:1])
            mean = moments.mean.where(moments.count != 0, 0)  # of nothing, which is anything
            results.append((mean, moments.var, moments.count, sums.total, sums.product, y, dx, *(logits or ())))
        for i, (found, expected) in enumerate(zip(*results, strict=True)):
            torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-3, atol=1e-3, msg=lambda m, i=i: f"{i}: {m}")


def test_results_repeat_to_the_bit():
    x, dy = (random(3, 2, 51, seed=seed, dtype=torch.float32) for seed in (0, 9))
    first, second = (every_result(cuda, x, dy, a_mixture(x, 3), False) for _ in range(2))
    assert all(torch.equal(first[what], second[what]) for what in first)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("number", [1, 3, 100])
@pytest.mark.usefixtures("as_it_is")
def test_the_work_is_shared_out(number, rows):
    """Enough programs for a large shape, none with too much to add up, in tiles a few hundred bytes wide at least."""
    n, c, s = shape = (32, 64, 3136)
    x = torch.empty(shape if rows else (n, s, c), device="meta")
    x = x if rows else x.transpose(1, 2)
    for depth in (geometry.power(number), 2 * geometry.power(number)):
        tiles = geometry.Tiles.of(geometry.fold_samples(x)[0], depth)
        splits = geometry.Splits.of(tiles, True)
        assert tiles.height * tiles.width == max(geometry.TILE // depth, geometry.LEAST)
        assert splits.number * tiles.blocks >= geometry.PROGRAMS // 2
        assert splits.span <= geometry.LONGEST


@pytest.mark.parametrize(("size", "extra"), [((4, 12, 5), 0), ((9, 12, 2049), 1)])
@pytest.mark.usefixtures("as_it_is")
def test_how_many_kernels_a_layer_launches(size, extra, monkeypatch):
    """Moments, affine; sums, gradient; and where cells are cut a merge of each but the affine. None is run here."""
    launched = []
    monkeypatch.setattr(launch, "launch", lambda kernel, *rest, **more: launched.append(kernel))
    layer, x = ns.UAN(12).to(DEVICE), example(size, torch.float32).to(DEVICE).requires_grad_()
    with ns.backend("cuda"):
        y = layer(x)
        assert len(launched) == 2 + extra
        torch.autograd.grad(y.sum(), x)
    assert len(launched) == 4 + 3 * extra


@pytest.mark.parametrize("case", LAYERS, ids=str)
@pytest.mark.parametrize("columns", [False, True])
def test_a_layer_on_the_kernels_is_the_oracle(case, columns):
    """Outputs, all gradients and all buffers of a step of training, in float64."""
    x = example((3, 12, 2, 3)).to(DEVICE, memory_format=torch.channels_last if columns else torch.contiguous_format)
    x.requires_grad_()
    layer = case.make().to(DEVICE)
    tensors = tensors_of(layer)
    with ns.backend("cuda"):
        assert choose.mixtures_for(x) is cuda
        y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=DEVICE).view_as(y)
    found = torch.autograd.grad((y * weights).sum(), (x, *layer.parameters()))
    expected, buffers = by_oracle(layer, case.name, x, tensors, {})
    leaves = {"x": x, **{name: tensors[name] for name, _ in layer.named_parameters()}}
    grads = torch.autograd.grad((expected * weights).sum(), list(leaves.values()))
    assert_same(y, expected, "y")
    for name, a, b in zip(leaves, found, grads, strict=True):
        assert_same(a, b, name)
    for name, value in buffers.items():
        assert_same(getattr(layer, name).double(), value.double(), name)


COMPILE = """
    import itertools, json, triton, triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from normsmith.kernels.cuda import mixture_kernels as kernels

    TENSORS, TABLES = {"x", "y", "g", "d"}, {
        "given", "constant", "mean", "precision", "center", "scale", "bias", "offset", "slope", "pivot", "spread"
    }

    def ptx(kernel, element, by_rows, joint, capability, through):
        constants = {"BK": 4, "BC": 1 if by_rows else 64, "BS": 512 if by_rows else 8, "TYPE": tl.float32, "MASKED": joint}
        if kernel is not kernels.joint_shares:
            constants |= dict.fromkeys(("constant", "mean", "precision") if joint else ("given",))
        constants |= {tensor + ("s" if by_rows else "c"): 1 for tensor in TENSORS} | {"THROUGH": through}
        if kernel is kernels.grad_input and not through:
            constants["found"] = None
        signature, known, even = {}, {}, {}
        for i, name in enumerate(kernel.arg_names):
            if name in constants:
                signature[name], known[(i,)] = "constexpr", constants[name]
                continue
            found = {"found": "*fp32" if kernel is kernels.joint_shares else "*fp64"}
            signature[name] = "*" + element if name in TENSORS else "*fp32" if name in TABLES else found.get(name, "i32")
            if name in TENSORS | TABLES | {"size", "channels", "points"} or len(name) == 2:
                even[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=even)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]

    every = [kernels.joint_shares, kernels.moments, kernels.affine, kernels.grad_sums, kernels.grad_input]
    atomics = {}
    for i, (kernel, by_rows, joint) in enumerate(itertools.product(every, [True, False], [True, False])):
        code = ptx(kernel, ("fp32", "bf16", "fp16")[i % 3], by_rows, joint, (80, 90)[i // 3 % 2], not joint)
        atomics[f"{kernel.__name__} {by_rows} {joint}"] = "atom." in code or "red.global" in code
    print(json.dumps(atomics))
    """


@pytest.mark.slow
def test_the_kernels_compile_for_gpus(tmp_path):
    found = facts_of(COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert len(found) == 20
    assert not any(found.values())
