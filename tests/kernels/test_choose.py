"""Which backend does the work, and that no choice changes the numbers."""

import threading

import pytest
import torch
from helpers import BACKENDS, assert_same
from isolated import facts_of, run_python

import normsmith as ns
from normsmith.kernels import cpu, reference
from normsmith.kernels.choose import OURS_WIN_FROM, backend_for, prefer_torch

CHOICES = """
import json, torch, normsmith as ns
from normsmith.kernels.choose import backend_for, prefer_torch
x = torch.ones(4, 3, 5)

def choice():
    return [backend_for(x).__name__.split(".")[-1], prefer_torch("batch", x)]

found = {"by the environment": choice()}
with ns.backend("auto"):
    found["in a block"] = choice()
print(json.dumps(found))
"""
BIG = (8, 16, 64, 64)
ONE_CHANNEL = (64, 1)  # an imaginary part has stride 2, which only such a shape lets the kernels read in place


def choice(x, operator="batch"):
    return backend_for(x), prefer_torch(operator, x)


def test_a_choice_ends_with_its_block():
    x = torch.ones(BIG)
    with ns.backend("reference"):
        assert backend_for(x) is reference
        with ns.backend("cpu"):
            assert backend_for(x) is cpu
        assert backend_for(x) is reference
    assert backend_for(x) is cpu


def test_a_choice_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), ns.backend("reference"):
        raise ZeroDivisionError
    assert backend_for(torch.ones(BIG)) is cpu


def test_an_inner_auto_undoes_an_outer_choice():
    with ns.backend("reference"), ns.backend("auto"):
        assert choice(torch.ones(BIG)) == (cpu, False)


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "numba"])
def test_an_unknown_name_is_an_error_that_names_the_known(name):
    with pytest.raises(ns.OptionError, match="auto, torch, cpu, cuda, reference") as raised, ns.backend(name):
        pass
    assert repr(name) in str(raised.value)


def test_the_environment_chooses_where_no_block_does():
    found = facts_of(CHOICES, NORMSMITH_BACKEND="reference")
    assert found == {"by the environment": ["reference", False], "in a block": ["cpu", True]}


def test_the_environment_is_checked():
    done = run_python(CHOICES, NORMSMITH_BACKEND="cdu")
    assert done.returncode != 0
    assert "OptionError: NORMSMITH_BACKEND expects one of auto, torch, cpu, cuda, reference: got 'cdu'" in done.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_auto_takes_the_reference_where_the_kernels_cannot(dtype):
    x = torch.ones(BIG, dtype=dtype)
    assert backend_for(x) is reference
    with ns.backend("cpu"), pytest.raises(ns.BackendError, match="float32 or float64"):
        backend_for(x)


def test_the_cpu_backend_refuses_other_devices():
    with ns.backend("cpu"), pytest.raises(ns.BackendError, match="on meta"):
        backend_for(torch.ones(BIG, device="meta"))


def test_nothing_to_do_is_no_error():
    with ns.backend("cpu"):
        assert backend_for(torch.ones(0, 3, 5)) is reference


@pytest.mark.parametrize("operator", OURS_WIN_FROM)
@pytest.mark.parametrize("x", [torch.ones(BIG), torch.ones(2, 3, 4)], ids=["large", "small"])
def test_a_forced_backend_decides_for_torch_or_against(operator, x):
    for name in BACKENDS[1:]:
        with ns.backend(name):
            assert prefer_torch(operator, x) == (name == "torch")


@pytest.mark.parametrize("operator", OURS_WIN_FROM)
@pytest.mark.parametrize("columns", [False, True])
def test_auto_prefers_torch_below_the_measured_size(operator, columns, monkeypatch):
    x = torch.ones(4, 3, 5, 5).contiguous(memory_format=torch.channels_last if columns else torch.contiguous_format)
    for limit, expected in ((x.numel(), False), (x.numel() + 1, True)):
        limits = (float("nan"), limit) if columns else (limit, float("nan"))
        monkeypatch.setitem(OURS_WIN_FROM, operator, limits)
        assert prefer_torch(operator, x) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_auto_prefers_torch_where_the_kernels_cannot(dtype):
    assert prefer_torch("rms", torch.ones(BIG, dtype=dtype))
    assert prefer_torch("rms", torch.ones(BIG, device="meta"))
    assert not prefer_torch("rms", torch.ones(BIG))


def test_auto_prefers_torch_inside_transforms():
    seen = []

    def look(x):
        seen.append(prefer_torch("rms", x))
        return x.sum()

    torch.func.grad(look)(torch.ones(BIG))
    assert seen == [True]


def test_a_forced_backend_decides_inside_transforms_too():
    seen = []

    def look(x):
        seen.append(prefer_torch("rms", x))
        return x.sum()

    with ns.backend("reference"):
        torch.func.grad(look)(torch.ones(BIG))
    assert seen == [False]


def test_a_compiled_graph_prefers_torch_whatever_is_forced(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with ns.backend("reference"):
        assert prefer_torch("batch", torch.ones(BIG))


def test_other_threads_choose_for_themselves():
    found = []
    with ns.backend("reference"):
        worker = threading.Thread(target=lambda: found.append(choice(torch.ones(BIG))))
        worker.start()
        worker.join()
        assert choice(torch.ones(BIG)) == (reference, False)
    assert found == [(cpu, False)]


def test_a_backward_is_done_by_the_backend_of_its_forward():
    x = torch.randn(BIG, requires_grad=True)
    layer = ns.BatchNorm(BIG[1])
    with ns.backend("reference"):
        inside = torch.autograd.grad(layer(x).square().sum(), x)[0]
        y = layer(x)
    outside = torch.autograd.grad(y.square().sum(), x)[0]
    assert torch.equal(inside, outside)


def negative(*shape):
    """A real tensor whose memory holds the negative of its values: what conj() leaves of an imaginary part."""
    z = torch.randn(shape, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0)).conj().imag
    assert z.is_neg()
    return z


@pytest.fixture
def _kernels_from_one_element_on(monkeypatch):
    for operator in OURS_WIN_FROM:
        monkeypatch.setitem(OURS_WIN_FROM, operator, (0, 0))


every_shape = pytest.mark.parametrize("shape", [(4, 3, 5, 5), BIG, ONE_CHANNEL], ids=str)


@pytest.mark.usefixtures("_kernels_from_one_element_on")
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@every_shape
def test_an_input_with_the_negative_bit(backend, shape):
    x = negative(*shape)
    with ns.backend(backend):
        y = ns.BatchNorm(shape[1])(x)
    assert_same(y, ns.BatchNorm(shape[1])(x.resolve_neg().contiguous()))


def test_the_cpu_backend_says_what_it_misses_in_the_negative_bit():
    with ns.backend("cpu"), pytest.raises(ns.BackendError, match="negative"):
        ns.BatchNorm(3)(negative(4, 3, 5, 5))


@pytest.mark.usefixtures("_kernels_from_one_element_on")
@pytest.mark.parametrize("backend", BACKENDS)
@every_shape
def test_a_gradient_with_the_negative_bit(backend, shape):
    x = torch.randn(shape, requires_grad=True)
    dy = negative(*shape)
    with ns.backend(backend):
        y = ns.BatchNorm(shape[1])(x)
        found = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
        expected = torch.autograd.grad(y, x, dy.resolve_neg().contiguous())[0]
    assert_same(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_with_the_negative_bit(backend):
    x, style = torch.randn(BIG), negative(BIG[0], BIG[1])
    one = torch.ones(1, BIG[1])
    with ns.backend(backend):
        found = ns.adain(x, style_mean=style, style_std=one)
        assert_same(found, ns.adain(x, style_mean=style.resolve_neg().contiguous(), style_std=one))
