"""Whole layers on the Triton kernels, where they are chosen, and that they compile for GPUs."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from convergence import trained
from helpers import Case, assert_same, example
from isolated import facts_of, run_python
from tiles import DEVICE

import normsmith as ns
from normsmith.kernels import choose, cpu, reference

pytest.importorskip("triton", reason="Triton is not installed: pip install 'normsmith[cuda]'")
from normsmith.kernels import cuda

LAYERS = [
    Case("batch"),
    Case("group", {"num_groups": 4}),
    Case("layer"),
    Case("instance"),
    Case("switchable"),
    Case("filtered"),
    Case("filter_response"),
    Case("ibn"),
]


def everything(layer, x, backend):
    """The output, every gradient and every buffer after a step of training, by name."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with ns.backend(backend):
        y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), device=DEVICE).view_as(y).to(y.dtype)
    parameters = dict(layer.named_parameters())
    grads = torch.autograd.grad((y * weights).sum(), (x, *parameters.values()))
    return {
        "y": y,
        **dict(zip(("dx", *parameters), grads, strict=True)),
        **{f"{k}'": v.float() for k, v in layer.named_buffers()},
    }


@pytest.mark.parametrize("case", LAYERS, ids=str)
@pytest.mark.parametrize("columns", [False, True])
def test_a_layer_on_the_kernels_is_the_layer_of_the_reference(case, columns):
    x = example((3, 12, 5, 7), torch.float32)
    x = x.to(DEVICE, memory_format=torch.channels_last if columns else torch.contiguous_format)
    found, expected = (everything(case.make(torch.float32).to(DEVICE), x, backend) for backend in ("cuda", "reference"))
    assert found["y"].stride() == x.stride()
    for name, value in expected.items():
        assert_same(found[name], value, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(dtype):
    x = example((3, 12, 5, 7), dtype).to(DEVICE)
    layer = ns.BatchNorm(12).to(DEVICE)
    found, expected = (everything(layer, x, backend) for backend in ("cuda", "reference"))
    assert found["y"].dtype == found["dx"].dtype == dtype
    for name in ("y", "dx", "weight", "bias"):
        assert_same(found[name], expected[name], name, tolerance=2e-2 if dtype == torch.bfloat16 else 2e-3)


def test_the_kernels_are_chosen_by_name_alone_on_the_cpu(monkeypatch):
    x = torch.ones(8, 16, 64)
    assert choose.backend_for(x) is cpu
    with ns.backend("cuda"):
        assert choose.backend_for(torch.ones(0, 3, 5)) is reference
        if os.environ.get("TRITON_INTERPRET") == "1":
            assert choose.backend_for(x) is cuda
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ns.BackendError, match=r"NVIDIA GPU of compute capability 8.0 or newer: got torch.float32 on cpu"):
            choose.backend_for(x)
        for other in (torch.ones(2, 3, dtype=torch.int32), torch.ones(2, 3, device="meta")):
            with pytest.raises(ns.BackendError, match="the cuda backend expects float16"):
                choose.backend_for(other)


@pytest.mark.parametrize("version", [None, "3.3.1", "3.0.0+git1234"])
def test_without_triton_the_cuda_backend_says_what_to_install(version, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(choose, "_has_triton", choose._has_triton.__wrapped__)
    monkeypatch.setitem(sys.modules, "triton", None if version is None else SimpleNamespace(__version__=version))
    x = torch.ones(2, 3, 4)
    assert choose.backend_for(x) is cpu
    with ns.backend("cuda"), pytest.raises(ns.DependencyError, match=r"expects Triton 3.4 or newer: pip install 'norms"):
        choose.backend_for(x)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["batch", "switchable"])
def test_a_short_training_goes_the_same_way(method):
    """The longer one, for more methods, is in test_cuda_gpu.py."""
    found, expected = (torch.tensor(trained(method, backend, DEVICE, steps=6, size=5)) for backend in ("cuda", "reference"))
    assert expected[-1] < expected[0], "nothing was learned"
    assert_same(found, expected, "losses", tolerance=1e-3)


COMPILE = """
    import itertools, json, triton, triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from normsmith.kernels.cuda import apply, reduce

    STATISTICS = {"center", "scale", "bias", "level", "low", "high", "slope", "pivot", "offset"}
    TENSORS = {"x", "y", "g", "d"}
    KINDS = ("floor", "silu", "relu6", "hardswish", "leaky_relu", "relu")

    def ptx(kernel, element, by_rows, without, capability):
        unit = "s" if by_rows else "c"
        constants = {"BC": 1 if by_rows else 64, "BS": 2048 if by_rows else 32, "TYPE": tl.float32, "BK": 256, "LAYERS": 2}
        constants["KIND"] = None if "level" in without else KINDS[(capability // 10 + len(without) + by_rows) % 6]
        constants |= {name: None for name in without}
        constants |= {name: 1 for name in kernel.arg_names if name in {t + unit for t in TENSORS} or name.endswith("_c")}
        signature, known, even = {}, {}, {}
        for i, name in enumerate(kernel.arg_names):
            if name in constants:
                signature[name], known[(i,)] = "constexpr", constants[name]
                continue
            pointer = {"found": "*fp64", "merged": "*fp32"}.get(name) or ("*fp32" if name in STATISTICS else None)
            signature[name] = "*" + element if name in TENSORS else pointer or "i32"
            if name in TENSORS or name == "size" or name == "channels" or len(name) == 2:
                even[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=even)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]

    BOUNDS, FLOOR = ("low", "high"), ("level", "floor", "bias")
    kinds = [(), BOUNDS, FLOOR, (*BOUNDS, *FLOOR)]
    wide = {}
    for i, (kernel, by_rows) in enumerate(itertools.product([reduce.moments, reduce.grad_sums, apply.affine, apply.grad_input], [1, 0])):
        for j, without in enumerate(kinds):
            if kernel is apply.affine and "bias" in without:
                without = ("level",)
            code = ptx(kernel, ("fp32", "bf16", "fp16")[(i + j) % 3], by_rows, without, (80, 90)[(i + j) % 2])
            wide[f"{kernel.__name__} {by_rows} {without}"] = "ld.global.v4" in code
    for kernel in (reduce.merge_moments, reduce.merge_sums):
        ptx(kernel, "fp32", True, (), 80)
    print(json.dumps(wide))
    """


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_and_load_in_whole_words(tmp_path):
    """No GPU is needed for that: the compiler comes with Triton."""
    wide = facts_of(COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert all(wide.values()), [name for name, loads in wide.items() if not loads]


def test_importing_the_package_imports_no_triton():
    done = run_python("""
        import sys, torch, normsmith as ns
        ns.BatchNorm(3)(torch.ones(2, 3, 4).normal_())
        assert "triton" not in sys.modules
        """)
    assert done.returncode == 0, done.stderr
