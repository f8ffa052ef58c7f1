"""The battery: every line of the catalog, without a test of its own. Exceptions are traits of the catalog, never names in here."""

import contextlib
import copy
import io
import pickle
from itertools import product

import pytest
import torch
from helpers import (
    BACKENDS,
    CASES,
    CHANNELS,
    ODD_SHAPES,
    SHAPES,
    VARIANTS,
    accepts,
    assert_same,
    backends_of,
    by_oracle,
    example,
    floating,
    is_singular,
    tensors_of,
    twins_of,
    with_backends,
)
from pairwise import pairwise
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

import normsmith as ns

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_variant = pytest.mark.parametrize("case", VARIANTS, ids=str)
every_case_and_backend = pytest.mark.parametrize(("case", "backend"), with_backends(CASES), ids=str)
BACKENDS_OF = {str(case): backends_of(case) for case in VARIANTS}


def possible(case, shape, training=True, dtype=torch.float64):
    """A statistic of a single element is an error of its own, and a singular covariance has tests of its own."""
    layer, x = case.make(dtype).train(training), example(shape, dtype)
    with ns.backend("reference"):
        return accepts(layer, x) and not is_singular(case, layer, x)


def few(cases, *axes, allowed=lambda case, *row: True):
    """Every case with every backend that differs for it and every value of each axis, the pairs of those spread over the cases."""
    return pairwise(
        cases, BACKENDS, *axes, allowed=lambda case, backend, *row: backend in BACKENDS_OF[str(case)] and allowed(case, *row)
    )


def named(value):
    return ("eval", "train")[value] if isinstance(value, bool) else str(value)


def outputs_and_gradients(run, tensors, seed=3):
    """The output, and the gradient of a random projection of it with respect to everything that requires one."""
    y = run()
    wanted = {name: t for name, t in tensors.items() if t is not None and t.requires_grad}
    projection = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(y.dtype)
    found = torch.autograd.grad(y, list(wanted.values()), projection, allow_unused=True, materialize_grads=True)
    return y, dict(zip(wanted, found, strict=True))


def compare_with_oracle(case, layer, x, tolerance=None):
    extra = floating(layer.example_inputs(x), Tensor.requires_grad_)
    before = tensors_of(layer)
    ours_in = {"x": x.detach().clone(memory_format=torch.preserve_format).requires_grad_(), **extra}
    y, grads = outputs_and_gradients(lambda: layer(ours_in["x"], **extra), {**ours_in, **dict(layer.named_parameters())})
    wide = {
        k: v if v is None or not v.is_floating_point() else v.detach().double().requires_grad_(v.requires_grad)
        for k, v in before.items()
    }
    inputs = floating(ours_in, lambda v: v.detach().double().requires_grad_())
    result = {}

    def oracle():
        expected, result["buffers"] = by_oracle(layer, case.name, inputs["x"], wide, {k: inputs[k] for k in extra})
        return expected

    expected, expected_grads = outputs_and_gradients(oracle, {**inputs, **wide})
    assert y.dtype == x.dtype
    assert_same(y, expected, "output", tolerance)
    for name, grad in grads.items():
        assert_same(grad, expected_grads[name], f"gradient of {name}", tolerance)
    buffers = dict(layer.named_buffers())
    for name, old in ((k, v) for k, v in before.items() if k in buffers and v is not None):
        new = result["buffers"].get(name, old)
        assert_same(buffers[name].double(), new.double(), f"buffer {name}", 1e-6 if tolerance is None else tolerance)


def with_oracle():
    """Methods as they are by default in full; with options, both modes of every backend, and every shape once."""
    found = {(str(case), t, s): possible(case, s, t) for case, t, s in product(VARIANTS, (True, False), SHAPES)}
    modes = list(product(BACKENDS, (True, False)))

    def allowed(case, mode, shape):
        return mode[0] in BACKENDS_OF[str(case)] and found[str(case), mode[1], shape]

    default = [row for row in product(CASES, modes, SHAPES) if allowed(*row)]
    rows = default + pairwise(VARIANTS[len(CASES) :], modes, SHAPES, allowed=allowed)
    return [(case, *mode, shape) for case, mode, shape in rows]


@pytest.mark.parametrize(("case", "backend", "training", "shape"), with_oracle(), ids=named)
def test_equals_the_oracle(case, backend, training, shape):
    with ns.backend(backend):
        compare_with_oracle(case, case.make().train(training), example(shape))


LAID_OUT = [(shape, "contiguous") for shape in ODD_SHAPES] + [
    (shape, "channels_last") for shape in ODD_SHAPES if len(shape) == 4
]
ODD = few(CASES, LAID_OUT, allowed=lambda case, laid_out: possible(case, laid_out[0], dtype=torch.float32))


@pytest.mark.parametrize(("case", "backend", "shape", "kind"), [(c, b, *laid_out) for c, b, laid_out in ODD], ids=str)
def test_odd_sizes_in_float32(case, backend, shape, kind):
    layer, x = case.make(torch.float32), example(shape, torch.float32)
    if kind == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    with ns.backend(backend):
        compare_with_oracle(case, layer, x, tolerance=2e-3)


LARGE = (6, CHANNELS, 64, 33)  # past one block of the kernels, and enough for several cores


KINDS = ["contiguous", "channels_last", "sliced", "transposed", "every other", "expanded"]


@pytest.mark.parametrize(("case", "backend", "kind"), few(CASES, KINDS), ids=str)
def test_any_strides(case, backend, kind):
    layer = case.make(torch.float32)
    wide = example((LARGE[0] + 2, CHANNELS, *LARGE[2:]), torch.float32)
    views = {
        "contiguous": lambda: wide[:6] * 1,
        "channels_last": lambda: wide[:6].contiguous(memory_format=torch.channels_last),
        "sliced": lambda: torch.cat([wide, wide], 1)[1:7, 5 : 5 + CHANNELS],
        "transposed": lambda: wide.transpose(2, 3)[2:],
        "every other": lambda: torch.cat([wide, wide], 3)[::2, :, :, ::2],
        "expanded": lambda: wide[:1].expand(3, -1, -1, -1),
    }
    x = views[kind]()
    with ns.backend(backend):
        y = layer(x, **layer.example_inputs(x))
        if kind in {"contiguous", "channels_last"}:
            assert y.stride() == x.stride(), "the memory format of the input is kept"
        assert_same(y, layer_on_copy(case, x), "output")
        compare_with_oracle(case, case.make(torch.float32), x, tolerance=2e-3)


def layer_on_copy(case, x):
    layer = case.make(torch.float32)
    dense = x.contiguous().clone()
    with ns.backend("reference"):
        return layer(dense, **layer.example_inputs(dense))


@every_case_and_backend
def test_a_gradient_in_another_memory_format(case, backend):
    results = []
    for grad_format in (torch.contiguous_format, torch.channels_last):
        layer, x = case.make(), example((3, CHANNELS, 5, 6)).requires_grad_()
        with ns.backend(backend):
            y = layer(x, **layer.example_inputs(x))
            dy = example(tuple(y.shape), seed=4).contiguous(memory_format=grad_format)
            results.append(torch.autograd.grad(y, x, dy)[0])
            expanded = torch.autograd.grad(layer(x, **layer.example_inputs(x)).sum(), x)[0]
            dense = torch.autograd.grad(layer(x, **layer.example_inputs(x)), x, torch.ones_like(y))[0]
            assert_same(expanded, dense, "gradient of a sum")
    assert_same(results[0], results[1], "gradient")


def restore(layer, before):
    """The buffers as they were, so that a function evaluated often is one function."""
    with torch.no_grad():
        for name, buffer in layer.named_buffers():
            buffer.copy_(before[name])


def as_declared(case):
    """Numerical derivatives see what a gradient leaves out on purpose; options may leave nothing to leave out."""
    if case.entry.detached and case.options:
        pytest.skip("the gradient is not the derivative")
    return pytest.raises(GradcheckError) if case.entry.detached else contextlib.nullcontext()


@every_variant
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("directions", ["random", pytest.param("every", marks=pytest.mark.slow)])
def test_gradcheck(case, backend, directions):
    if directions == "every" and case.options and case.entry.across:
        pytest.skip("each entry costs a factorization")
    layer, x = case.make(), example((3, CHANNELS, 2, 2)).requires_grad_()
    extra = floating(layer.example_inputs(x), Tensor.requires_grad_)
    with ns.backend(backend):
        numbers = {k: v for k, v in extra.items() if v.is_floating_point()}
        rest = {k: v for k, v in extra.items() if k not in numbers}
        before = tensors_of(layer)

        def run(x, *e):
            restore(layer, before)
            return layer(x, **dict(zip(numbers, e, strict=True)), **rest)

        with as_declared(case):
            assert torch.autograd.gradcheck(run, (x, *numbers.values()), fast_mode=directions == "random")


@every_case
@pytest.mark.parametrize("directions", ["random", pytest.param("every", marks=pytest.mark.slow)])
def test_second_derivatives(case, directions):
    if case.entry.fitted:
        pytest.skip("whether second derivatives miss anything depends on how even the shares are")
    layer, x = case.make(), example((2, CHANNELS, 3)).requires_grad_()
    if is_singular(case, layer, x):
        if directions == "every":
            pytest.skip("each entry costs a factorization")
        x = example((5, CHANNELS, 3)).requires_grad_()
    extra = layer.example_inputs(x)
    before = tensors_of(layer)

    def run(x):
        restore(layer, before)
        return layer(x, **extra)

    with ns.backend("cpu"), as_declared(case):
        assert torch.autograd.gradgradcheck(run, (x,), fast_mode=directions == "random")


@every_variant
def test_every_parameter_gets_a_gradient(case):
    layer, x = case.make(), example((3, CHANNELS, 5, 6))
    if not any(p.requires_grad for p in layer.parameters()):
        pytest.skip("no parameters")
    with ns.backend("cpu"):
        layer(x, **layer.example_inputs(x)).mul(example((3, CHANNELS, 5, 6), seed=7)).sum().backward()
    for name, parameter in ((n, p) for n, p in layer.named_parameters() if p.requires_grad):
        assert parameter.grad is not None, f"{name} got no gradient"
        assert parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero"


def _change(kind: str, x: Tensor) -> Tensor:
    sizes = {"cell": x.shape[:2], "sample": (x.shape[0], 1), "channel": (1, x.shape[1])}[kind.split(maxsplit=1)[0]]
    value = (
        torch.rand(sizes, generator=torch.Generator().manual_seed(9), dtype=x.dtype).view(*sizes, *[1] * (x.dim() - 2)) + 0.5
    )
    return x * value if kind.endswith("scale") else x + 300 * value


@every_case
@pytest.mark.parametrize("kind", ["cell scale", "cell shift", "sample scale", "sample shift", "channel scale", "channel shift"])
def test_declared_invariances_hold_and_undeclared_fail(case, kind):
    layer, x = case.make(), example((4, CHANNELS, 5, 6))
    if kind in case.entry.invariances:
        x = x * 50  # large, so that eps does not count
    extra = layer.example_inputs(x)
    change = (case.make()(_change(kind, x), **extra) - layer(x, **extra)).abs().max().item()
    if kind in case.entry.invariances:
        assert change < 1e-4, f"declared invariant to {kind}, but the output moves by {change}"
    else:
        assert change > 1e-2, f"not declared invariant to {kind}, but the output stays"


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batch_dependence_is_as_declared(case, training):
    layer, x = case.make().train(training), example((4, CHANNELS, 5, 6))
    extra = layer.example_inputs(x)
    mates = x.clone()
    mates[1:] = mates[1:] * 2 + 1
    moved = (layer(x, **extra)[0] - layer(mates, **extra)[0]).abs().max().item()
    if case.entry.batch_dependent and training:
        assert moved > 1e-3
    else:
        assert moved < 1e-12


@every_case
def test_what_acts_across_channels_is_as_declared(case):
    x = example((4, CHANNELS, 5, 6))
    other = x.clone()
    other[:, 0] = x[:, 0].flip(1)  # the same numbers of each sample and channel, beside others
    layer, again = case.make(), case.make()
    extra = layer.example_inputs(x)
    moved = (layer(x, **extra) - again(other, **extra))[:, 1:].abs().max().item()
    assert moved > 1e-6 if case.entry.across else moved < 1e-9


@every_case
def test_running_statistics_are_as_declared(case):
    every = [c for c in VARIANTS if c.name == case.name]
    assert any("running_mean" in dict(c.make().named_buffers()) for c in every) == case.entry.running
    for variant in every:
        layer, x = variant.make().eval(), example((4, CHANNELS, 5, 6))
        before = copy.deepcopy(layer.state_dict())
        layer(x, **layer.example_inputs(x))
        assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items()), "evaluation changed the state"


@every_case
def test_permuting_samples_permutes_outputs(case):
    if case.entry.random:
        pytest.skip("random")
    order = torch.tensor([3, 0, 4, 1, 2])
    x = example((5, CHANNELS, 4))
    moved = []
    for variant in (c for c in VARIANTS if c.name == case.name):
        layer = variant.make()
        extra = layer.example_inputs(x)
        shuffled = variant.make()(x[order], **{k: v[order] for k, v in extra.items()})
        expected = layer(x, **extra)[order]
        if case.entry.ordered:
            moved.append(not torch.allclose(shuffled, expected))
        else:
            assert_same(shuffled, expected, "output")
    assert any(moved) == case.entry.ordered, "declared ordered, but no option makes it so"


@every_variant
def test_round_trips(case):
    layer, x = case.make(), example((3, CHANNELS, 5, 6))
    extra = layer.example_inputs(x)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    fresh = ns.make(case.name, CHANNELS, dtype=torch.float64, **case.options)
    fresh.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    averaged.update_parameters(layer)
    others = [fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), averaged]
    expected = layer.eval()(x, **extra)
    for other in others:
        assert torch.equal(other.eval()(x, **extra), expected)
    rebuilt = type(layer)(CHANNELS, dtype=torch.float64, **layer.options())
    assert repr(rebuilt) == repr(layer)
    assert str(CHANNELS) in repr(layer)


@pytest.mark.parametrize(("case", "spatial_dims"), [(c, dims) for c in VARIANTS for dims in twins_of(c)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_swaps_with_the_twin_of_torch(case, spatial_dims, training):
    layer = case.make().train(training)
    twin = layer.torch_twin(spatial_dims)
    x = example(SHAPES[spatial_dims])
    if not accepts(case.make().train(training), x):
        pytest.skip("a statistic of a single element is an error of its own")
    twin = twin.double().train(training)
    twin.load_state_dict(layer.state_dict(), strict=True)
    assert_same(layer(x), twin(x), "output")
    back = ns.make(case.name, CHANNELS, dtype=torch.float64, **case.options).train(training)
    back.load_state_dict(twin.state_dict(), strict=True)
    assert_same(back.eval()(x), twin.eval()(x), "output after loading back")


@pytest.mark.parametrize(("case", "backend", "dtype"), few(CASES, [torch.bfloat16, torch.float16]), ids=str)
def test_half_precision_input(case, backend, dtype):
    layer, x = case.make(torch.float32), example((4, CHANNELS, 8, 8), dtype)
    if backend == "cpu":
        with ns.backend("cpu"), pytest.raises(ns.BackendError, match="float32 or float64"):
            layer(x, **layer.example_inputs(x))
        return
    with ns.backend(backend):
        compare_with_oracle(case, layer, x, tolerance=0.06)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_far_from_zero_stays_finite(case, dtype):
    layer = case.make(torch.float32)
    x = (example((4, CHANNELS, 8, 8)) + 1000).to(dtype)
    assert torch.isfinite(layer(x, **layer.example_inputs(x))).all()


AUTOCAST = pairwise(CASES, ["auto", "reference"], [torch.bfloat16, torch.float16])


@pytest.mark.parametrize(("case", "backend", "low"), AUTOCAST, ids=str)
def test_autocast_keeps_the_type_of_the_input(case, backend, low):
    x = example((4, CHANNELS, 8, 8), torch.float32)
    with ns.backend(backend):
        for dtype in (torch.float32, low):
            layer, cast = case.make(torch.float32), x.to(dtype).requires_grad_()
            extra = layer.example_inputs(cast)
            with torch.autocast("cpu", dtype=low):
                y = layer(cast, **extra)
            assert y.dtype == dtype
            y.float().sum().backward()
            assert_same(y, case.make(torch.float32)(cast.detach(), **extra), "output under autocast")


@every_case_and_backend
def test_constant_channels(case, backend):
    layer = case.make()
    x = example((4, CHANNELS, 5, 6))
    x[:, 3] = 7.0
    x.requires_grad_()
    with ns.backend(backend):
        y = layer(x, **layer.example_inputs(x))
        y.square().sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(("case", "backend", "channels_last"), few(CASES, [False, True]), ids=str)
def test_far_from_zero(case, backend, channels_last):
    """Mean 1e4 times the standard deviation: the error is that of a center in float32, or at most twice that of torch's operator.

    Where nothing is centered, an error of the center is one of the scale, and counts relative to the output; over few elements, the
    standard deviation is less than 1. What is fitted, or mixes channels, has several centers in an element, whose errors add up.
    """
    x = torch.randn((8, CHANNELS, 16, 16), dtype=torch.float64) + 1e4
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x = x.float()
    layer, wide = case.make(torch.float32), case.make(torch.float64)
    wide.load_state_dict(layer.state_dict())
    extra = layer.example_inputs(x)
    expected = wide(x.double(), **floating(extra, Tensor.double))
    absolute, relative = (6e-3, 1e-4)
    if case.entry.affine and not (case.entry.fitted or case.entry.across):
        absolute, relative = 2e-3, 1e-6
    allowed = absolute + relative * expected.abs().max()
    twin = layer.torch_twin()
    if backend in {"auto", "torch"} and twin is not None:
        twin.load_state_dict(layer.state_dict())
        allowed = max(allowed, 2 * (twin(x).double() - expected).abs().max())
    with ns.backend(backend):
        assert (layer(x, **extra).double() - expected).abs().max() < allowed


@every_case_and_backend
def test_nan_goes_in_and_comes_out(case, backend):
    layer, x = case.make(torch.float32), example((4, CHANNELS, 8, 8), torch.float32)
    extra = layer.example_inputs(x)
    x[1, 2, 3, 4] = float("nan")
    with ns.backend(backend):
        y = layer(x, **extra)
    assert torch.isnan(y[1, 2]).all() or torch.isnan(y[1, 2, 3, 4])


@every_case
def test_one_step_of_training(case):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = (
                torch.nn.Conv2d(3, CHANNELS, 3),
                case.make(torch.float32),
                torch.nn.Linear(CHANNELS, 2),
            )

        def forward(self, x):
            h = self.conv(x)
            return self.head(torch.relu(self.norm(h, **self.norm.example_inputs(h))).mean((2, 3)))

    net, x, target = Net(), torch.randn(8, 3, 9, 9), torch.randint(0, 2, (8,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@every_case_and_backend
def test_what_follows_may_write_to_the_output(case, backend):
    layer = case.make()
    again = copy.deepcopy(layer)
    x = example((4, CHANNELS, 5, 6)).requires_grad_()
    extra = layer.example_inputs(x)
    with ns.backend(backend):
        torch.relu(layer(x, **extra)).sum().backward()
        expected, x.grad = x.grad, None
        torch.relu_(again(x, **extra)).sum().backward()  # nn.ReLU(inplace=True), as in most residual networks
    assert_same(x.grad, expected)


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_on_the_meta_device(case, training):
    with torch.device("meta"):
        layer = ns.make(case.name, CHANNELS, **case.options).train(training)
        x = torch.empty(4, CHANNELS, 5, 6)
    y = layer(x, **layer.example_inputs(x))
    assert y.is_meta
    assert y.shape == x.shape
    skipped = torch.nn.utils.skip_init(case.entry.load(), CHANNELS, **case.options)
    assert all(not t.is_meta for t in skipped.state_dict().values())


@every_case
def test_saves_x_and_little_else(case):
    layer, x = case.make(torch.float32), example((8, CHANNELS, 32, 32), torch.float32).requires_grad_()
    extra = layer.example_inputs(x)
    sizes = {}

    def note(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with ns.backend("cpu"), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        layer(x, **extra)
    if not case.entry.affine:
        pytest.skip("not affine in x")
    large = [size for size in sizes.values() if size >= x.numel()]
    assert len(large) <= 1
    assert sum(sizes.values()) - sum(large) <= 16 * x.shape[0] * CHANNELS


WRONG = {
    "channels": (lambda: torch.randn(4, CHANNELS + 1, 5), "channels in dimension 1"),
    "last": (lambda: torch.randn(4, 5, CHANNELS), "movedim"),
    "rank 1": (lambda: torch.randn(CHANNELS), "rank 2 to 5"),
    "rank 6": (lambda: torch.randn(2, CHANNELS, 2, 2, 2, 2), "rank 2 to 5"),
    "integers": (lambda: torch.ones(4, CHANNELS, 5, dtype=torch.long), "floating-point"),
    "empty": (lambda: torch.randn(0, CHANNELS, 5), "at least one element"),
    "no positions": (lambda: torch.randn(4, CHANNELS, 0), "at least one element"),
}


@every_case
@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_is_one_sentence_and_changes_nothing(case, wrong):
    make_input, sentence = WRONG[wrong]
    layer = case.make(torch.float32)
    before = copy.deepcopy(layer.state_dict())
    x = make_input()
    if x.numel() == 0 and layer.takes_empty:
        assert layer(x, **layer.example_inputs(x)).shape == x.shape
        return
    with pytest.raises(ns.InputError, match=sentence) as raised:
        layer(x, **layer.example_inputs(x))
    assert "\n" not in str(raised.value)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


@every_case
def test_an_input_more_precise_than_the_layer_is_refused(case):
    layer, x = case.make(torch.float32), example((4, CHANNELS, 5))
    if not layer.state_dict():
        pytest.skip("a layer without parameters takes any precision")
    before = copy.deepcopy(layer.state_dict())
    for backend in BACKENDS:
        with ns.backend(backend), pytest.raises(ns.InputError, match="no more precise than its parameters"):
            layer(x, **layer.example_inputs(x))
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


@every_case
def test_empty_input_in_evaluation(case):
    layer, x = case.make(torch.float32).eval(), torch.randn(0, CHANNELS, 5, 5)
    assert layer(x, **layer.example_inputs(x)).shape == x.shape


@every_case
def test_bad_options(case):
    for wrong in (0, -3, 2.5, "8", True):
        with pytest.raises(ns.OptionError, match="positive integer"):
            ns.make(case.name, wrong)
    if "eps" in case.make().options():
        with pytest.raises(ns.OptionError, match="eps above zero"):
            ns.make(case.name, CHANNELS, eps=0.0)
    if case.entry.running:
        for wrong in (-0.1, 1.5):
            with pytest.raises(ns.OptionError, match="from 0 to 1"):
                ns.make(case.name, CHANNELS, momentum=wrong)
    with pytest.raises(ns.OptionError, match="expects options among"):
        ns.make(case.name, CHANNELS, frobnicate=1)
