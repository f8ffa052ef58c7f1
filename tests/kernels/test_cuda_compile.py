"""The kernels for statistics, and those that read x once, compile for GPUs: the interpreter takes more than the compiler does."""

import pytest
from isolated import facts_of

pytest.importorskip("triton", reason="Triton is not installed: pip install 'normsmith[cuda]'")

COMPILE = """
    import itertools, json, triton, triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from normsmith.kernels.cuda import chip, statistics

    SIZES = {"BR": 16, "BM": 16, "OTHER_BR": 4, "OTHER_BM": 64, "BLOCK": 256, "BC": 16, "BS": 256}
    FLOATS = {"eps", "factor", "other_factor", "step", "share_0", "share_1", "share_2", "count"}
    TENSORS = {"x", "y", "g", "d"}
    ONES = {"members", "samples", "span", "sets", "inner", "other_inner", "programs"}  # which are constants where they are 1

    def compiled(kernel, element="fp32", without=(), ones=(), of_type=tl.float32, **choices):
        constants = {**SIZES, "TYPE": of_type, **choices, **dict.fromkeys(without), **dict.fromkeys(ones, 1)}
        signature, known = {}, {}
        for i, name in enumerate(kernel.arg_names):
            is_step = (len(name) == 2 and name[0] in TENSORS) or name.endswith(("_n", "_c", "_1n", "_1c", "_2n", "_2c"))
            if name in constants:
                signature[name], known[(i,)] = "constexpr", constants[name]
            elif is_step or name in INTEGERS:
                signature[name] = "i32"
            else:
                signature[name] = "fp32" if name in FLOATS else "*" + (element if name in TENSORS else "fp32")
        triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=known), target=GPUTarget("cuda", 80, 32))

    INTEGERS = {"results", "members", "inner", "programs", "other_results", "other_members", "other_inner", "channels", "size", "k"}
    INTEGERS |= {"sources", "sets", "blocks", "samples", "span", "layer"}
    plans = [(statistics.pool, {"SPREAD": spread, "ones": ones}) for spread, ones in ((True, ()), (False, ONES))]
    plans += [(kernel, {}) for kernel in (statistics.share, statistics.weigh_source, statistics.totals, statistics.move_two)]
    for without in ((), ("mean", "weight")):
        plans.append((statistics.standardize, {"without": without}))
    for without in ((), ("mean", "d_bias"), ("d_weight", "d_bias")):
        plans.append((statistics.unstandardize, {"without": without, "ones": ONES if without else ()}))
    first, second = ("mean_1", "var_1"), ("mean_2", "var_2")
    plans += [(statistics.weighted_sum, {"without": without}) for without in ((), second, first + second)]
    first, second = ("d_mean_1", "d_var_1", "mean_1"), ("d_mean_2", "d_var_2", "mean_2")
    plans += [(statistics.lines, {"without": without}) for without in ((), second, first + second)]
    for whole, centered in itertools.product([True, False], repeat=2):
        more = {"WHOLE": whole, "CENTERED": centered, "element": "bf16", "ones": ONES if whole != centered else ()}
        plans.append((chip.standardize, {**more, "without": () if centered else ("weight", "bias")}))
        plans.append((chip.unstandardize, {**more, "without": () if centered else ("weight", "found")}))
    plans.append((chip.standardize, {"WHOLE": True, "CENTERED": True, "element": "fp64", "of_type": tl.float64}))
    for kernel, options in plans:
        compiled(kernel, **options)
    print(json.dumps(len(plans)))
    """


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu(tmp_path):
    """No GPU is needed for that: the compiler comes with Triton."""
    assert facts_of(COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)) == 26
