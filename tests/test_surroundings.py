"""Whoever traces, transforms or intercepts operations must see them: one test a line of `must_stay_plain`, then every method."""

import pytest
import torch
from helpers import CASES, CHANNELS, assert_same, example
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import normsmith as ns
from normsmith.surroundings import must_stay_plain

X = torch.ones(3)
SHAPE = (3, CHANNELS, 5, 6)
# torch's own operators, where a method has one, and the node where it would run the kernels.
both_paths = pytest.mark.parametrize("backend", ["auto", "cpu"])


def every_mode(test):
    return pytest.mark.parametrize("case", CASES, ids=str)(
        pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])(test)
    )


class Noted(TorchDispatchMode):
    """Writes down the operations that pass by."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(str(function))
        return function(*arguments, **(options or {}))


class Labelled(Tensor):
    """A subclass as users write them."""


def is_plain_inside(transform):
    """What `must_stay_plain` says of an ordinary tensor while the transform is active."""
    seen = []

    def look(x):
        seen.append(must_stay_plain((X,)))
        return x.sum()

    transform(look)
    return seen == [True]


def test_ordinary_tensors_are_free():
    assert not must_stay_plain((X, torch.nn.Parameter(X), torch.nn.Buffer(X)))
    with torch.no_grad(), torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not must_stay_plain((X,))
    with torch.inference_mode():
        assert not must_stay_plain((torch.ones(3),))


def test_compiling(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert must_stay_plain((X,))


@pytest.mark.parametrize("transform", ["grad", "vmap", "functionalize"])
def test_torch_func(transform):
    assert is_plain_inside(lambda look: getattr(torch.func, transform)(look)(torch.ones(2)))
    assert not must_stay_plain((X,))


def test_forward_ad():
    with forward_ad.dual_level():
        assert must_stay_plain((X,))
    assert not must_stay_plain((X,))


@pytest.mark.parametrize("mode", [Noted, FakeTensorMode, lambda: FlopCounterMode(display=False)])
def test_dispatch_modes(mode):
    with mode():
        assert must_stay_plain((X,))
    assert not must_stay_plain((X,))


def test_tracing(monkeypatch):
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    assert must_stay_plain((X,))


def test_subclasses():
    with FakeTensorMode():
        fake = torch.ones(3)
    for other in (fake, X.as_subclass(Labelled)):
        assert must_stay_plain((other,))
        assert must_stay_plain((X, other))


class Problem:
    """A layer, an input and what else it takes, and the plain numbers: output, and gradient of a random projection."""

    def __init__(self, case, training, backend):
        self.case, self.training, self.backend = case, training, backend
        self.layer = case.make().train(training)
        self.x, self.dy = example(SHAPE), example(SHAPE, seed=5)
        self.extra = self.layer.example_inputs(self.x)

    def run(self, x, **extra):
        with ns.backend(self.backend):
            return self.layer(x, **(extra or self.extra))

    def loss(self, x):
        return (self.run(x) * self.dy).sum()

    def plain(self):
        x = self.x.clone().requires_grad_()
        with ns.backend("reference"):
            y = self.case.make().train(self.training)(x, **self.extra)
        return y.detach(), torch.autograd.grad(y, x, self.dy)[0]


def assert_by_plain_operations(y):
    assert "_Node" not in type(y.grad_fn).__name__, "hidden in a node of our own"


def problem(case, training, backend):
    """Skips a transform over buffers that are updated in place, which torch forbids to all layers alike."""
    found = Problem(case, training, backend)
    if training and getattr(found.layer, "running_mean", None) is not None:
        pytest.skip("running buffers are updated in place")
    if training and case.entry.random:
        pytest.skip("random")
    return found


@every_mode
@both_paths
def test_func_grad(case, training, backend):
    p = problem(case, training, backend)
    assert_same(torch.func.grad(p.loss)(p.x), p.plain()[1], "gradient")


@every_mode
@both_paths
def test_func_grad_of_parameters(case, training, backend):
    p = problem(case, training, backend)
    parameters = {name: t.detach() for name, t in p.layer.named_parameters()}
    if not parameters:
        pytest.skip("no parameters")

    def loss(parameters):
        with ns.backend(backend):
            return (torch.func.functional_call(p.layer, parameters, (p.x,), p.extra) * p.dy).sum()

    expected = torch.autograd.grad(p.loss(p.x), list(p.layer.parameters()))
    for found, grad in zip(torch.func.grad(loss)(parameters).values(), expected, strict=True):
        assert_same(found, grad)


@every_mode
@both_paths
def test_vmap(case, training, backend):
    p = problem(case, training, backend)
    stack = torch.stack([example(SHAPE, seed=seed) for seed in range(3)])
    extras = [p.layer.example_inputs(x) for x in stack]
    together = {key: torch.stack([extra[key] for extra in extras]) for key in extras[0]}
    found = torch.func.vmap(lambda x, extra: p.run(x, **extra))(stack, together)
    assert_same(found, torch.stack([p.run(x, **extra) for x, extra in zip(stack, extras, strict=True)]), "output")


@every_mode
@both_paths
def test_per_sample_gradients(case, training, backend):
    p = problem(case, training, backend)
    stack = torch.stack([example(SHAPE, seed=seed) for seed in range(2)])
    found = torch.func.vmap(torch.func.grad(p.loss))(stack)
    assert_same(found, torch.stack([torch.func.grad(p.loss)(x) for x in stack]), "gradient")


@every_mode
@both_paths
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch scripts its own forward-mode formulas
def test_forward_mode(case, training, backend):
    p = problem(case, training, backend)
    y, dx = p.plain()
    tangent = example(SHAPE, seed=6)
    found, moved = torch.func.jvp(p.run, (p.x,), (tangent,))
    with forward_ad.dual_level():
        by_dual = forward_ad.unpack_dual(p.run(forward_ad.make_dual(p.x, tangent)))
    assert_same(found, y, "output")
    assert_same(by_dual.primal, y, "output")
    assert_same((moved * p.dy).sum(), (dx * tangent).sum(), "<J v, w> against <v, J'w>")
    assert_same(by_dual.tangent, moved, "tangent")


@every_mode
@both_paths
def test_fake_tensors(case, training, backend):
    with FakeTensorMode(), ns.backend(backend):
        layer = ns.make(case.name, CHANNELS, **case.options).train(training)
        x = torch.empty(SHAPE, requires_grad=True).contiguous(memory_format=torch.channels_last)
        y = layer(x, **layer.example_inputs(x))
        dx = torch.autograd.grad(y.sum(), x)[0]
    assert type(y) is type(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert dx.shape == x.shape


@every_mode
@both_paths
def test_a_dispatch_mode_sees_the_operations(case, training, backend):
    p = Problem(case, training, backend)
    x = p.x.clone().requires_grad_()
    with Noted() as mode:
        y = p.run(x)
        assert_by_plain_operations(y)
        y.backward(p.dy)
    expected, dx = p.plain()
    assert_same(y, expected, "output")
    assert_same(x.grad, dx, "gradient")
    assert mode.names


@every_mode
@both_paths
def test_counting_flops_changes_no_number(case, training, backend):
    p = Problem(case, training, backend)
    x = p.x.clone().requires_grad_()
    with FlopCounterMode(display=False):
        y = p.run(x)
        y.backward(p.dy)
    expected, dx = p.plain()
    assert_same(y, expected, "output")
    assert_same(x.grad, dx, "gradient")


@every_mode
@both_paths
def test_a_subclass_goes_in_and_comes_out(case, training, backend):
    p = Problem(case, training, backend)
    x = p.x.as_subclass(Labelled).requires_grad_()
    found = p.run(x)
    assert isinstance(found, Labelled)
    assert_by_plain_operations(found)
    assert_same(found.as_subclass(Tensor), p.plain()[0], "output")


@every_mode
@both_paths
def test_tracing_sees_the_operations(case, training, backend, monkeypatch):
    """A real trace warns that it is deprecated; what it asks of us is only that nothing is hidden in a node."""
    p = Problem(case, training, backend)
    x = p.x.clone().requires_grad_()
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    y = p.run(x)
    assert_by_plain_operations(y)
    assert_same(y, p.plain()[0], "output")


def test_many_gradients_at_once_are_refused_in_words():
    x = torch.randn(4, 3, 5, requires_grad=True)
    for backend in ("cpu", "reference"):
        with ns.backend(backend):
            y = ns.BatchNorm(3)(x)
            with pytest.raises(ns.BackendError, match="one gradient at a time"):
                torch.autograd.grad(y, x, torch.randn(2, *y.shape), is_grads_batched=True)
