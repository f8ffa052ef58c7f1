"""The node against plain torch: mixes that see what no single method sees, gradients of all orders, and what is kept in between."""

import contextlib
import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import assert_same, example
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import normsmith as ns
from normsmith.affine import Standardized
from normsmith.combined import blend, by_channels
from normsmith.kernels import reference
from normsmith.measure import measure
from normsmith.moments import Moments, Pooled
from normsmith.normalize import normalize
from normsmith.plan import Plan

N, C = 4, 6
SHAPE = (N, C, 5, 7)
EPS = 1e-3
SEES = ("cells", "batch", "both", "nothing")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def per_channel(t: Tensor) -> Tensor:
    """(C,), (1, C), (N, 1) or (N, C) against (N, C, S)."""
    return t.unsqueeze(-1)


def statistics(x: Tensor, dims: tuple[int, ...], mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the elements under the mask, by plain torch."""
    count = mask.sum(dims, keepdim=True)
    mean = (x * mask).sum(dims, keepdim=True) / count
    return mean, ((x - mean).square() * mask).sum(dims, keepdim=True) / count


def by_formula(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x - mean) / (var + EPS).sqrt() * per_channel(weight) + per_channel(bias)


def mix_batch(cells, batch, weight, bias):
    return Standardized(batch, weight, bias, EPS)


def plain_batch(x, mask, weight, bias):
    return by_formula(x, *statistics(x, (0, 2), mask), weight, bias)


def mix_batch_around_one(cells, batch, weight, bias):
    return Standardized(batch, 1 + weight, -bias, EPS)


def plain_batch_around_one(x, mask, weight, bias):
    return plain_batch(x, mask, 1 + weight, -bias)


def mix_instance(cells, batch, weight, bias):
    center, scale = cells.standardize(EPS)
    return center, scale * weight, bias


def plain_instance(x, mask, weight, bias):
    return by_formula(x, *statistics(x, (2,), mask), weight, bias)


def mix_root_mean_square(cells, batch, weight):
    sample = cells.pool(1)
    return 0.0, (sample.var + sample.mean.square() + EPS).rsqrt() * weight, 0.5


def plain_root_mean_square(x, mask, weight):
    return x / (x.square().mean((1, 2), keepdim=True) + EPS).sqrt() * per_channel(weight) + 0.5


def mix_constants(cells, batch, mean, var, weight, bias):
    return Standardized(Moments(mean, var, 1), weight, bias, EPS)


def plain_constants(x, mask, mean, var, weight, bias):
    return by_formula(x, per_channel(mean), per_channel(var), weight, bias)


def mix_switchable(cells, batch, mean_weights, var_weights, weight, bias):
    sources = (cells, cells.pool(1), batch)
    return Standardized(blend(sources, mean_weights.softmax(0), var_weights.softmax(0)), weight, bias, EPS)


def plain_switchable(x, mask, mean_weights, var_weights, weight, bias):
    found = [statistics(x, dims, mask) for dims in ((2,), (1, 2), (0, 2))]
    mean = sum(w * m for w, (m, _) in zip(mean_weights.softmax(0), found, strict=True))
    var = sum(w * v for w, (_, v) in zip(var_weights.softmax(0), found, strict=True))
    return by_formula(x, mean, var, weight, bias)


def around_batch(x: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of every channel, a little more than a standard deviation from its mean."""
    var, mean = torch.var_mean(x, (0, 2, 3))
    return (mean - 1.2 * var.sqrt()).unsqueeze(0), (mean + 1.2 * var.sqrt()).unsqueeze(0)


def around_cells(x: Tensor) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, (2, 3))
    return mean - 1.2 * var.sqrt(), mean + 1.3 * var.sqrt()


@dataclass(frozen=True)
class Method:
    """A mix, the same in plain torch, the shapes of its tensors, and the bounds of its moments."""

    sees: str
    mix: Callable
    plain: Callable
    shapes: tuple[tuple[int, ...], ...]
    bounds: Callable | None = None

    def tensors(self) -> list[Tensor]:
        return [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(self.shapes)]

    def run(self, x: Tensor, *tensors: Tensor) -> Tensor:
        within = self.bounds and self.bounds(x.detach())
        return normalize(x, self.mix, *tensors, sees=self.sees, within=within).y

    def expected(self, x: Tensor, *tensors: Tensor) -> Tensor:
        cells, mask = x.flatten(2), torch.ones_like(x.flatten(2))
        if self.bounds:
            low, high = (per_channel(bound) for bound in self.bounds(x.detach()))
            mask = ((low < cells) & (cells < high)).double()
        return self.plain(cells, mask, *tensors).view(x.shape)


PLAIN = ((C,), (C,))
BLENDED = ((3,), (3,), (C,), (C,))
METHODS = {
    "batch": Method("batch", mix_batch, plain_batch, PLAIN),
    "batch around one": Method("batch", mix_batch_around_one, plain_batch_around_one, PLAIN),
    "instance": Method("cells", mix_instance, plain_instance, PLAIN),
    "root mean square": Method("cells", mix_root_mean_square, plain_root_mean_square, ((C,),)),
    "constants": Method("nothing", mix_constants, plain_constants, ((C,), (C,), (C,), (C,))),
    "switchable": Method("both", mix_switchable, plain_switchable, BLENDED),
    "batch, cells unused": Method("both", mix_batch, plain_batch, PLAIN),
    "filtered batch": Method("batch", mix_batch, plain_batch, PLAIN, around_batch),
    "filtered instance": Method("cells", mix_instance, plain_instance, PLAIN, around_cells),
    "filtered by channel": Method("cells", mix_instance, plain_instance, PLAIN, around_batch),
    "filtered by cell": Method("batch", mix_batch, plain_batch, PLAIN, around_cells),
    "filtered switchable": Method("both", mix_switchable, plain_switchable, BLENDED, around_cells),
}
FORMATS = {"rows": torch.contiguous_format, "columns": torch.channels_last}

every_method = pytest.mark.parametrize("name", METHODS)
every_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])
every_format = pytest.mark.parametrize("layout", FORMATS)


def inputs(method: Method, layout: str = "rows") -> tuple[Tensor, list[Tensor], Tensor]:
    """x, the tensors of the mix, and a gradient of the output."""
    x = example(SHAPE).contiguous(memory_format=FORMATS[layout]).requires_grad_()
    return x, method.tensors(), example(SHAPE, seed=7)


def assert_all_same(found, expected, what):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert_same(a, b, f"{what} {i}")


@every_method
@every_backend
@every_format
def test_equals_plain_torch(name, backend, layout):
    method = METHODS[name]
    x, tensors, dy = inputs(method, layout)
    with ns.backend(backend):
        y = method.run(x, *tensors)
        found = torch.autograd.grad(y, (x, *tensors), dy)
    expected = method.expected(x, *tensors)
    assert_same(y, expected, "output")
    assert_all_same(found, torch.autograd.grad(expected, (x, *tensors), dy), "gradient")


@every_backend
@every_format
@pytest.mark.parametrize("name", ["filtered batch", "filtered instance", "filtered switchable"])
def test_bounds_that_leave_nothing_give_zeros(name, backend, layout):
    """Mean 0 and variance 0, which pass no gradient on."""
    method = METHODS[name]
    x, tensors, dy = inputs(method, layout)
    nothing = torch.zeros(1, C, dtype=torch.float64)
    with ns.backend(backend):
        y = normalize(x, method.mix, *tensors, sees=method.sees, within=(nothing, nothing)).y
    weight, bias = (t[:, None, None] for t in tensors[-2:])
    assert_same(y, x / EPS**0.5 * weight + bias)
    assert_same(torch.autograd.grad(y, x, dy)[0], dy / EPS**0.5 * weight)


@every_method
@every_backend
def test_without_a_graph_the_output_is_the_same(name, backend):
    method = METHODS[name]
    x, tensors, _ = inputs(method)
    with ns.backend(backend):
        y = method.run(x, *tensors)
        with torch.no_grad():
            assert torch.equal(method.run(x, *tensors), y)
        assert torch.equal(method.run(x.detach(), *(t.detach() for t in tensors)), y)


@every_method
@every_backend
@pytest.mark.parametrize("around", [contextlib.nullcontext, forward_ad.dual_level], ids=["free", "plain"])
def test_moments_come_with_the_output_and_without_a_graph(name, backend, around):
    method = METHODS[name]
    x, tensors, _ = inputs(method)
    with ns.backend(backend), around():
        found = normalize(x, method.mix, *tensors, sees=method.sees)
    assert (found.cells is not None) == (method.sees in {"cells", "both"})
    assert (found.batch is not None) == (method.sees in {"batch", "both"})
    for moments, dims in ((found.cells, (2,)), (found.batch, (0, 2))):
        if moments is not None:
            mean, var = statistics(x.flatten(2), dims, torch.ones_like(x.flatten(2)))
            assert_same(moments.mean, mean.squeeze(2))
            assert_same(moments.var, var.squeeze(2))
            assert moments.count == x.numel() // mean.numel()
            assert not moments.mean.requires_grad


@every_method
@pytest.mark.parametrize("frozen", ["x", "tensors", "first tensor", "all but first tensor"])
def test_what_requires_no_gradient_gets_none(name, frozen):
    method = METHODS[name]
    x, tensors, dy = inputs(method)
    free = {"x": [x], "tensors": tensors, "first tensor": tensors[:1], "all but first tensor": [x, *tensors[1:]]}[frozen]
    every = [x, *tensors]
    expected = torch.autograd.grad(method.expected(x, *tensors), every, dy)
    for t in free:
        t.requires_grad_(False)
    if any(t.requires_grad for t in every):
        with ns.backend("cpu"):
            method.run(x, *tensors).backward(dy)
    for t, grad in zip(every, expected, strict=True):
        if t.requires_grad:
            assert_same(t.grad, grad)
        else:
            assert t.grad is None


@every_backend
def test_absent_tensors_are_none_for_the_mix(backend):
    def mix(cells, batch, weight, bias, shift):
        assert weight is None
        assert shift is None
        return Standardized(batch, weight, bias, EPS)

    x, bias, dy = example(SHAPE).requires_grad_(), random(C).requires_grad_(), example(SHAPE, seed=7)
    with ns.backend(backend):
        y = normalize(x, mix, None, bias, None, sees="batch").y
    expected = METHODS["batch"].expected(x, torch.ones(C), bias)
    assert_same(y, expected)
    for a, b in zip(torch.autograd.grad(y, (x, bias), dy), torch.autograd.grad(expected, (x, bias), dy), strict=True):
        assert_same(a, b)


VALUES = {"a number": None, "()": (), "(1,)": (1,), "(C,)": (C,), "(1, C)": (1, C), "(N, 1)": (N, 1), "(N, C)": (N, C)}


@pytest.mark.parametrize("center", VALUES)
@pytest.mark.parametrize("scale", [key for key in VALUES if key != "a number"])
@pytest.mark.parametrize("bias", VALUES)
def test_center_scale_and_bias_of_any_shape(center, scale, bias):
    """They are spread over samples and channels, and their gradients summed back."""
    wanted = [VALUES[key] for key in (center, scale, bias)]
    given = [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(wanted) if shape is not None]

    def triple(tensors):
        rest = iter(tensors)
        return [0.5 if shape is None else next(rest) for shape in wanted]

    x, dy = example(SHAPE).requires_grad_(), example(SHAPE, seed=7)
    with ns.backend("cpu"):
        y = normalize(x, lambda cells, batch, *tensors: tuple(triple(tensors)), *given, sees="nothing").y
    m, s, b = (v if isinstance(v, float) else v.expand(N, C)[:, :, None, None] for v in triple(given))
    expected = (x - m) * s + b
    assert_same(y, expected)
    found = torch.autograd.grad(y, (x, *given), dy)
    assert_all_same(found, torch.autograd.grad(expected, (x, *given), dy), "gradient")


@pytest.mark.parametrize("shift", [lambda mean: mean, torch.square, torch.neg], ids=["itself", "its square", "its negative"])
def test_moments_may_be_used_more_than_once(shift):
    def mix(cells, batch, weight):
        return cells.mean, cells.var * weight, shift(cells.mean)

    x, weight, dy = example(SHAPE).requires_grad_(), random(C).requires_grad_(), example(SHAPE, seed=7)
    with ns.backend("cpu"):
        y = normalize(x, mix, weight, sees="cells").y
    var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    expected = (x - mean) * var * weight[:, None, None] + shift(mean)
    assert_same(y, expected)
    found = torch.autograd.grad(y, (x, weight), dy)
    assert_all_same(found, torch.autograd.grad(expected, (x, weight), dy), "gradient")


def test_one_tensor_may_be_two_arguments():
    x, both, dy = example(SHAPE).requires_grad_(), random(C).requires_grad_(), example(SHAPE, seed=7)
    with ns.backend("cpu"):
        y = normalize(x, mix_batch, both, both, sees="batch").y
    expected = METHODS["batch"].expected(x, both, both)
    found = torch.autograd.grad(y, (x, both), dy)
    assert_all_same(found, torch.autograd.grad(expected, (x, both), dy), "gradient")


def capturing(captured: Tensor) -> Callable:
    def mix(cells, batch, *tensors):
        moments = batch or cells
        return moments.mean if moments else 0.0, captured, 0.0

    return mix


@pytest.mark.parametrize("sees", SEES)
@every_backend
@pytest.mark.parametrize("others", [True, False], ids=["others require a gradient", "only the captured one"])
def test_a_captured_parameter_is_an_error(sees, backend, others):
    captured = torch.nn.Parameter(torch.ones(1, C, dtype=torch.float64))
    x = example(SHAPE).requires_grad_(others)
    with ns.backend(backend), pytest.raises(ns.CaptureError, match="pass the captured parameter"):
        normalize(x, capturing(captured), sees=sees)


@pytest.mark.parametrize("sees", ["cells", "batch", "both"])
def test_a_parameter_captured_by_what_is_standardized_is_an_error(sees):
    captured = torch.nn.Parameter(torch.ones(C, dtype=torch.float64))
    with pytest.raises(ns.CaptureError):
        normalize(example(SHAPE), lambda cells, batch: Standardized(batch or cells, captured, None, EPS), sees=sees)


@pytest.mark.parametrize("sees", SEES)
def test_a_captured_function_of_x_is_an_error(sees):
    x = example(SHAPE).requires_grad_()
    with pytest.raises(ns.CaptureError):
        normalize(x, capturing(x.mean((0, 2, 3)).unsqueeze(0)), sees=sees)


@pytest.mark.parametrize("sees", SEES)
def test_a_captured_constant_is_none(sees):
    x = example(SHAPE).requires_grad_()
    normalize(x, capturing(torch.full((1, C), 2.0, dtype=torch.float64)), sees=sees).y.sum().backward()


def second_derivatives(run, x, tensors, dy):
    """The gradients, and the gradients of a random projection of these with respect to everything."""
    every = (x, *tensors)
    first = torch.autograd.grad(run(x, *tensors), every, dy, create_graph=True)
    projection = sum((g * torch.sin(torch.arange(g.numel()).double()).view(g.shape)).sum() for g in first)
    return first, torch.autograd.grad(projection, (*every, dy), allow_unused=True, materialize_grads=True)


@every_method
@every_format
def test_second_derivatives_equal_plain_torch(name, layout):
    method = METHODS[name]
    x, tensors, dy = inputs(method, layout)
    dy.requires_grad_()
    with ns.backend("cpu"):
        first, second = second_derivatives(method.run, x, tensors, dy)
    expected_first, expected_second = second_derivatives(method.expected, x, tensors, dy)
    assert_all_same(first, expected_first, "gradient")
    assert_all_same(second, expected_second, "second derivative")


@pytest.mark.parametrize("name", ["batch", "instance", "switchable", "filtered batch"])
def test_a_tensor_computed_from_x_counts_once(name):
    method = METHODS[name]
    x, tensors, dy = inputs(method)
    dy.requires_grad_()

    def through(run):
        def whole(x, *tensors):
            return run(x, *tensors[:-2], tensors[-2] * x.mean((0, 2, 3)).sin(), tensors[-1] * x.square().mean())

        return whole

    with ns.backend("cpu"):
        first, second = second_derivatives(through(method.run), x, tensors, dy)
    expected_first, expected_second = second_derivatives(through(method.expected), x, tensors, dy)
    assert_all_same(first, expected_first, "gradient")
    assert_all_same(second, expected_second, "second derivative")


@every_method
def test_the_graph_can_be_used_again(name):
    method = METHODS[name]
    x, tensors, dy = inputs(method)
    every = (x, *tensors)
    with ns.backend("cpu"):
        y = method.run(x, *tensors)
        first = torch.autograd.grad(y, every, dy, retain_graph=True)
        again = torch.autograd.grad(y, every, dy, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        twice = torch.autograd.grad(y, every, dy, create_graph=True)
        assert_all_same(twice, first, "differentiable gradient")
        after = torch.autograd.grad(y, every, dy)
        assert_all_same(after, first, "gradient after a differentiable one")


@every_method
def test_two_passes_over_one_input_do_not_mix(name):
    method = METHODS[name]
    x, tensors, dy = inputs(method)
    other = (x.detach() * 2 + 1).requires_grad_()
    with ns.backend("cpu"):
        alone = torch.autograd.grad(method.run(x, *tensors), (x, *tensors), dy)
        y = method.run(x, *tensors)
        method.run(other, *tensors)
        assert all(torch.equal(a, b) for a, b in zip(alone, torch.autograd.grad(y, (x, *tensors), dy), strict=True))


@every_method
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(name, reentrant):
    method = METHODS[name]
    x, tensors, dy = inputs(method)
    with ns.backend("cpu"):
        expected = torch.autograd.grad(method.run(x, *tensors), (x, *tensors), dy)
        y = checkpoint(method.run, x, *tensors, use_reentrant=reentrant)
        y.backward(dy)
    assert all(torch.equal(t.grad, grad) for t, grad in zip((x, *tensors), expected, strict=True))


@every_method
@every_backend
def test_autocast_around_the_backward_changes_no_number(name, backend):
    method = METHODS[name]
    x, tensors, dy = (inputs(method)[0].detach().float().requires_grad_(), *inputs(method)[1:])
    tensors, dy = [t.detach().float().requires_grad_() for t in tensors], dy.float()
    with ns.backend(backend):
        expected = torch.autograd.grad(method.run(x, *tensors), (x, *tensors), dy)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = torch.autograd.grad(method.run(x, *tensors), (x, *tensors), dy)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def mix_with_a_product(cells, batch, matrix):
    return batch.mean @ matrix, (batch.var + EPS).rsqrt() @ matrix.abs(), 0.0


def for_autocast():
    return example(SHAPE, torch.float32).requires_grad_(), random(C, C).float().requires_grad_()


@every_backend
@pytest.mark.parametrize("around", [contextlib.nullcontext, forward_ad.dual_level], ids=["free", "plain"])
def test_autocast_reaches_no_product_of_a_mix(backend, around):
    x, matrix = for_autocast()
    with ns.backend(backend), around():
        expected = normalize(x, mix_with_a_product, matrix, sees="batch").y
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = normalize(x, mix_with_a_product, matrix, sees="batch").y
    assert torch.equal(found, expected)


@every_backend
@pytest.mark.parametrize("differentiable", [False, True])
def test_autocast_around_the_backward_reaches_no_product_of_a_mix(backend, differentiable):
    x, matrix = for_autocast()
    dy = example(SHAPE, torch.float32, seed=7)
    with ns.backend(backend):
        y = normalize(x, mix_with_a_product, matrix, sees="batch").y
        expected = torch.autograd.grad(y, (x, matrix), dy, create_graph=differentiable, retain_graph=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = torch.autograd.grad(y, (x, matrix), dy, create_graph=differentiable)
    assert_all_same(found, expected, "gradient")


@every_backend
def test_an_input_changed_in_between_is_an_error(backend):
    for changed in (0, 1):
        method = METHODS["batch"]
        x, tensors, dy = inputs(method)
        whole = [x * 1, tensors[0] * 1, tensors[1] * 1]
        with ns.backend(backend):
            y = method.run(*whole)
        with torch.no_grad():
            whole[changed].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward(dy)


@every_method
@every_backend
def test_x_is_freed_with_the_graph(name, backend):
    """By reference counting alone: a cycle would keep every activation until the garbage collector comes by."""
    method = METHODS[name]
    x, tensors, dy = inputs(method)
    gc.disable()
    try:
        for use in (lambda y: None, lambda y: y.backward(dy), lambda y: torch.autograd.grad(y, x, dy, create_graph=True)):
            big = x * 1
            gone = weakref.ref(big)
            with ns.backend(backend):
                y = method.run(big, *tensors)
            del big
            assert gone() is not None, "the graph keeps it"
            use(y)
            del y
            x.grad = None
            assert gone() is None
    finally:
        gc.enable()


@every_method
@every_backend
def test_without_a_graph_x_is_not_kept(name, backend):
    method = METHODS[name]
    x, tensors, _ = inputs(method)
    big = x.detach() * 1
    gone = weakref.ref(big)
    with ns.backend(backend), torch.no_grad():
        found = normalize(big, method.mix, *tensors, sees=method.sees)
    del big
    assert gone() is None
    assert found.y.shape == SHAPE


def storages(size: int) -> set[int]:
    """Where the tensors of at least that size live; `type`, because some objects answer `isinstance` with a warning.

    Fake and functional tensors, left behind by a compilation, live nowhere: asking them is an error.
    """
    found = set()
    for tensor in (t for t in gc.get_objects() if issubclass(type(t), Tensor)):
        with contextlib.suppress(RuntimeError, ValueError):  # ValueError: a lazy layer's
            if tensor.numel() >= size:
                found.add(tensor.untyped_storage().data_ptr())
    return found


@every_method
def test_x_and_a_few_numbers_are_saved(name):
    method = METHODS[name]
    x, tensors, _ = inputs(method)
    before, saved = storages(x.numel()), []

    def note(tensor):
        saved.append(tensor)
        return tensor

    with ns.backend("cpu"), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = method.run(x, *tensors)
    large = [t for t in saved if t.numel() >= x.numel()]
    assert [t.untyped_storage().data_ptr() for t in large] == [x.untyped_storage().data_ptr()]
    assert sum(t.numel() for t in saved) - x.numel() <= 4 * N * C
    assert storages(x.numel()) - before == {y.untyped_storage().data_ptr()}, "more is held than hooks see"


IDS = torch.tensor([0, 2, 0, 2])
COMBINED = {
    "blended": lambda cells, batch, *weights: blend([cells, cells.pool(1), batch], *weights),
    "by channels": lambda cells, batch, *_: by_channels((cells, 2), (batch, 4)),
    "pooled in sets": lambda cells, batch, *_: cells.pool_sets(IDS, 3),
    "pooled in groups": lambda cells, batch, *_: cells.pool_groups(3),
    "pooled": lambda cells, batch, *_: cells.pool(1),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("floored", [False, True])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("kind", COMBINED)
def test_derivatives_by_hand_of_every_combination(backend, masked, floored, centered, kind):
    """Against finite differences, and against autograd through plain operations."""
    x, weight, bias = random(N, C, 3, 4).requires_grad_(), random(C).requires_grad_(), random(C).requires_grad_()
    shares = [random(3, seed=seed).requires_grad_() for seed in (1, 2)] if kind == "blended" else []
    floor = [(random(C, seed=3) - 0.2).requires_grad_()] if floored else []
    mask = random(N, 1, 3, 4, seed=4) > 0.8
    mask[2] = False

    def mix(cells, batch, weight, bias, *shares):
        return Standardized(COMBINED[kind](cells, batch, *shares), weight, bias, EPS, centered)

    def run(x, *tensors):
        level = tensors[-1] if floored else None
        rest = tensors[:-1] if floored else tensors
        return normalize(x, mix, *rest, sees="both", mask=mask if masked else None, floor=level).y

    leaves = [x, weight, bias, *shares, *floor]
    with ns.backend(backend):
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)  # in random directions: every entry is compared below
        by_hand = torch.autograd.grad(run(*leaves).square().sum(), leaves)
        plain = torch.autograd.grad(run(*leaves).square().sum(), leaves, create_graph=True)
    for one, other in zip(by_hand, plain, strict=True):
        assert_same(one, other)
    if masked:
        assert (run(*leaves)[~mask.expand(N, C, 3, 4)] == 0).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sees", ["cells", "batch", "both"])
def test_measured_moments_are_differentiable_twice(backend, masked, sees):
    x = random(N, C, 3, 4).requires_grad_()
    mask = random(N, 1, 3, 4, seed=4) > 0.8 if masked else None

    def run(x):
        return tuple(t for m in measure(x, sees=sees, mask=mask) if m is not None for t in (m.mean, m.var))

    with ns.backend(backend):
        assert torch.autograd.gradcheck(run, (x,))
        assert torch.autograd.gradgradcheck(run, (x,), fast_mode=True)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_nan_under_the_mask_is_not_taken_for_padding(backend):
    x = random(N, C, 12)
    mask = torch.arange(12).expand(N, 1, 12) < torch.tensor([12, 5, 0, 7]).view(N, 1, 1)
    x[1, 2, 3], x[1, 3, 6] = float("nan"), float("nan")
    with ns.backend(backend):
        cells, batch = measure(x, sees="both", mask=mask)
    assert cells.mean.isnan().nonzero().tolist() == [[1, 2]], "the other one is padding"
    assert batch.var.isnan().nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("sees", ["cells", "batch", "both"])
def test_bounds_that_are_nan_give_moments_that_are(backend, sees):
    x = torch.randn(3, 4, 5)
    low, high = torch.full((3, 4), -9.0), torch.full((3, 4), 9.0)
    high[1, 2] = math.nan
    with ns.backend(backend):
        cells, batch = measure(x, sees=sees, within=(low, high))
    if cells is not None:
        assert cells.mean.isnan().equal(high.isnan())
        assert_same(cells.var[0], x.var(2, unbiased=False)[0])
    if batch is not None:
        assert batch.var.isnan().tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("masked", [False, True])
def test_an_empty_rank_sends_as_many_numbers_as_the_others(masked):
    """A collective of unequal sizes ends the process: the count must be one number for all ranks, or one a channel."""

    class Heard:
        counts = ()

        def merge(self, batch):
            self.counts = (*self.counts, batch.count)
            return Pooled(batch.mean, batch.var, batch.count, world=True)

    world = Heard()
    for samples in (3, 0):
        x = torch.randn(samples, 4, 5)
        mask = torch.ones(samples, 1, 5, dtype=torch.bool) if masked else None
        Plan("batch", mask=mask, world=world).moments(reference, x)
    full, empty = world.counts
    assert type(full) is type(empty)
    assert getattr(full, "shape", ()) == getattr(empty, "shape", ())
