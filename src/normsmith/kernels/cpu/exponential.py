"""Powers of two of numbers that are not positive, written so that the vectoriser takes them: a polynomial and a shifted exponent.

With numba's own, a loop would call the C library element by element. The error is that of the last bit or two; below the smallest normal
number the result is zero, and of a NaN it is one.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from normsmith.kernels.cpu.memory import OPTIONS

# No `reassoc`: the order of a polynomial is part of its precision.
_OPTIONS: Any = {**OPTIONS, "fastmath": {"contract", "nsz", "arcp"}, "cache": False}
# Of 2**r - 1 over r for r from -0.5 to 0.5, lowest power first: the least largest relative error, 2e-9; and Taylor's, 4e-17.
_NARROW = (
    0.6931472028555463,
    0.2402264791357287,
    0.0555033247015467,
    0.009618437360895331,
    0.0013398874786058647,
    0.00015353361860048938,
)
_WIDE = tuple(math.log(2) ** i / math.factorial(i) for i in range(1, 14))


@intrinsic
def _rounded(typing: Any, value: Any) -> Any:
    """The nearest whole number, as a float: adding and subtracting a large one would not survive `reassoc`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (number,) = arguments
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [number.type]), [number])

    return value(value), generate


@intrinsic
def _whole_power(typing: Any, exponent: Any) -> Any:
    """2 to the power of a whole number, from its bits."""
    bits, bias, shift = (32, 127, 23) if exponent is types.float32 else (64, 1023, 52)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (number,) = arguments
        word = ir.IntType(bits)
        whole = builder.add(builder.fptosi(number, word), ir.Constant(word, bias))
        return builder.bitcast(builder.shl(whole, ir.Constant(word, shift)), number.type)

    return exponent(exponent), generate


def power_of_two(value: Any, zero: Any) -> Any:
    """2**value for a value of at most zero, inside compiled loops."""
    return 2**value


def _constants(number: Any, values: tuple[float, ...]) -> tuple[Any, ...]:
    return tuple(number(v) for v in values)


@overload(power_of_two, jit_options=_OPTIONS)
def _power_of_two(value, zero):
    # The least makes the exponent that of zero; a NaN is not below it.
    if zero is types.float32:
        least, one = _constants(np.float32, (-127.0, 1.0))
        a, b, c, d, e, f = _constants(np.float32, _NARROW)

        def narrow(value, zero):
            held = least if value < least else value
            n = _rounded(held)
            r = held - n
            return ((((((f * r + e) * r + d) * r + c) * r + b) * r + a) * r + one) * _whole_power(n)

        return narrow
    least, one = _constants(np.float64, (-1023.0, 1.0))
    t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13 = _constants(np.float64, _WIDE)

    def wide(value, zero):
        held = least if value < least else value
        n = _rounded(held)
        r = held - n
        p = ((((((t13 * r + t12) * r + t11) * r + t10) * r + t9) * r + t8) * r + t7) * r + t6
        return ((((((p * r + t5) * r + t4) * r + t3) * r + t2) * r + t1) * r + one) * _whole_power(n)

    return wide
