"""How the loops reach a tensor's memory: by address, the element type carried by a zero of that type.

Making a numpy array of a tensor costs more than a small kernel and marks its storage as not resizable; an address costs nothing.
"""

from typing import Any

from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

# No "nnan" and no "ninf": a NaN that goes in must come out.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "no_cfunc_wrapper": True,  # never called from C: less to compile
    # Else a caller that is compiled calls what was compiled by itself before, and, when it comes from the cache, what was compiled with it:
    # which may round differently.
    "forceinline": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}
sequential = njit(**OPTIONS)
# For what is only called by other compiled functions, which are kept.
inner = njit(**{**OPTIONS, "cache": False, "no_cpython_wrapper": True})


@intrinsic
def _pointer(typing: Any, address: Any, zero: Any) -> Any:
    """The integer `address` as a pointer to elements of the type of `zero`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(zero)(address, zero), generate


@intrinsic
def item_size(typing: Any, zero: Any) -> Any:
    """Bytes of one element of the type of `zero`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.int64, zero.bitwidth // 8)

    return types.int64(zero), generate


@intrinsic
def cast(typing: Any, value: Any, zero: Any) -> Any:
    """`value` in the type of `zero`: a float32 with a Python number would go on in float64, at half the speed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], signature.args[0], signature.return_type)

    return zero(value, zero), generate


@intrinsic
def bits(typing: Any, value: Any, word: Any) -> Any:
    """The bits of `value` as an integer of the type of `word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return word(value, word), generate


@intrinsic
def ordered(typing: Any, word: Any) -> Any:
    """An integer that is ordered as the float of these bits; applied twice, the same word again. numba would widen what it shifts."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, bits = arguments[0].type, word.bitwidth - 1
        flipped = builder.and_(builder.ashr(arguments[0], kind(bits)), kind(2**bits - 1))
        return builder.xor(arguments[0], flipped)

    return word(word), generate


@intrinsic
def fetch(typing: Any, address: Any) -> Any:
    """Have the cache line at `address` on its way before it is read; without effect on what is computed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        call = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
        )
        builder.call(call, [builder.inttoptr(arguments[0], byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(address), generate


@intrinsic
def call(typing: Any, address: Any, zero: Any, arguments: Any, begin: Any, end: Any, core: Any) -> Any:
    """Call the C function at `address` with the rest."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = [context.get_value_type(kind) for kind in signature.args[1:]]
        function = builder.inttoptr(given[0], ir.FunctionType(ir.VoidType(), kinds).as_pointer())
        builder.call(function, given[1:])
        return context.get_dummy_value()

    return types.void(address, zero, arguments, begin, end, core), generate


@inner
def view(address, zero, offset, size):
    """`size` adjacent elements of the type of `zero`, beginning `offset` elements behind `address`."""
    return carray(_pointer(address + offset * item_size(zero), zero), (size,))


@sequential
def fill(array, value):
    """Every element set to `value`; a loop, because numba takes longer to compile a slice assignment."""
    for i in range(array.size):
        array[i] = value
