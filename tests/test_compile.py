"""torch.compile and torch.export of every method: one graph, any batch size, the numbers of eager mode."""

import shutil

import pytest
import torch
from helpers import CASES, CHANNELS, VARIANTS, assert_same, example
from torch._dynamo.testing import CompileCounterWithBackend

import normsmith as ns

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
# The buffers are torch's own affair by default, ours where torch has no such average.
OWN_BUFFERS = [case for case in VARIANTS if case.entry.running and case.options.keys() & {"momentum", "track_running_stats"}]
REST = (CHANNELS, 5, 6)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(layer, run, batch):
    """Output, gradients and buffers of one forward and backward."""
    x = example((batch, *REST), seed=batch).requires_grad_()
    y = run(x, **layer.example_inputs(x))
    wanted = {"x": x, **dict(layer.named_parameters())}
    grads = torch.autograd.grad(y, list(wanted.values()), example(tuple(y.shape), seed=9))
    named = {f"gradient of {name}": grad for name, grad in zip(wanted, grads, strict=True)}
    return {"output": y, **named, **{f"buffer {name}": b.double() for name, b in layer.named_buffers()}}


def assert_same_steps(case, training, backend):
    layer, eager = (case.make().train(training) for _ in range(2))
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
    graphs = []
    for batch in (4, 7):
        found, expected = step(layer, compiled, batch), step(eager, eager, batch)
        assert found.keys() == expected.keys()
        for what, value in expected.items():
            assert_same(found[what], value, f"{what}, batch {batch}")
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1], "another batch size needs no other graph"


@every_case
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["train", "eval"])
def test_compiled_equals_eager(case, training):
    if training and case.entry.random:
        pytest.skip("a compiled graph draws other numbers")
    assert_same_steps(case, training, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("case", OWN_BUFFERS, ids=str)
def test_buffers_of_compiled_layers_equal_eager(case):
    if case.entry.random:
        pytest.skip("a compiled graph draws other numbers")
    assert_same_steps(case, True, "aot_eager")


def in_turn(k, case):
    """One method strictly, the next one not; the other way round among the slow tests."""
    return [pytest.param(case, strict, marks=[pytest.mark.slow] * (strict != (k % 2 == 0))) for strict in (True, False)]


@pytest.mark.parametrize(
    ("case", "strict"),
    [row for k, case in enumerate(CASES) for row in in_turn(k, case)],
    ids=lambda value: ("not strict", "strict")[value] if isinstance(value, bool) else str(value),
)
def test_exported_equals_eager(case, strict):
    layer, x = case.make().eval(), example((4, *REST))
    extra = layer.example_inputs(x)
    batch = {0: torch.export.Dim("batch")}
    shapes = {"x": batch, **dict.fromkeys(extra, batch)}
    exported = torch.export.export(layer, (x,), extra, dynamic_shapes=shapes, strict=strict).module()
    for size in (4, 7, 1):
        x = example((size, *REST), seed=size)
        extra = layer.example_inputs(x)
        assert_same(exported(x, **extra), layer(x, **extra), f"output, batch {size}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # inductor imports what still uses it
@every_case
@every_mode
def test_inductor_equals_eager(case, training):
    if training and case.entry.random:
        pytest.skip("a compiled graph draws other numbers")
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        pytest.skip("inductor needs a C++ compiler")
    assert_same_steps(case, training, "inductor")


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_policies_in_one_graph(backend):
    options = {"accumulate": 2, "nonfinite": "skip", "momentum": None}
    layer, eager = (ns.BatchNorm(CHANNELS, **options).double() for _ in range(2))
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for seed in range(5):
        x = example((4, CHANNELS, 6), seed=seed)
        if seed == 2:
            x[0, 0, 0] = float("inf")
        lengths = torch.tensor([6, 2, 0, 5])
        compiled(x, lengths=lengths)
        eager(x, lengths=lengths)
        for (name, one), other in zip(layer.named_buffers(), eager.buffers(), strict=True):
            assert_same(one.double(), other.double(), f"buffer {name}, batch {seed}")
    frozen = ns.BatchNorm(CHANNELS, frozen=True).double()
    x = example((4, CHANNELS, 6))
    assert_same(torch.compile(frozen, fullgraph=True, backend=backend)(x), frozen(x))
