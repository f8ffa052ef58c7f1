"""The exponential of numbers that are not positive, written so that the vectoriser takes it: a polynomial and a shifted exponent.

With numba's own, a loop would call the C library element by element. The error is that of the last bit or two; below the smallest normal
number the result is zero.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from normsmith.kernels.cpu.memory import OPTIONS

_LOG2_E = 1.4426950408889634
# No `reassoc`: it would put the two parts of the logarithm of 2 together again.
_OPTIONS: Any = {**OPTIONS, "fastmath": {"contract", "nsz", "arcp"}, "cache": False}


@intrinsic
def _rounded(typing: Any, value: Any) -> Any:
    """The nearest whole number, as a float: adding and subtracting a large one would not survive `reassoc`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (number,) = arguments
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [number.type]), [number])

    return value(value), generate


@intrinsic
def _power_of_two(typing: Any, exponent: Any) -> Any:
    """2 to the power of a whole number, from its bits."""
    bits, bias, shift = (32, 127, 23) if exponent is types.float32 else (64, 1023, 52)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (number,) = arguments
        word = ir.IntType(bits)
        whole = builder.add(builder.fptosi(number, word), ir.Constant(word, bias))
        return builder.bitcast(builder.shl(whole, ir.Constant(word, shift)), number.type)

    return exponent(exponent), generate


def exponential(value: Any, zero: Any) -> Any:
    """exp(value) for a value of at most zero, inside compiled loops."""
    return math.exp(value)


def _constants(zero: Any, *values: float) -> tuple[Any, ...]:
    number = np.float32 if zero is types.float32 else np.float64
    return tuple(number(v) for v in values)


@overload(exponential, jit_options=_OPTIONS)
def _exponential(value, zero):
    if zero is types.float32:
        log2_e, high, low, least, one = _constants(zero, _LOG2_E, 0.693359375, -2.12194440e-4, -87.0, 1)
        a, b, c, d, e, f = _constants(
            zero, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
        )

        def narrow(value, zero):
            held = value if value > least else least
            n = _rounded(held * log2_e)
            r = (held - n * high) - n * low
            p = ((((a * r + b) * r + c) * r + d) * r + e) * r + f
            found = (p * r * r + (r + one)) * _power_of_two(n)
            return found if value > least else zero

        return narrow
    log2_e, high, low, least, one = _constants(zero, _LOG2_E, 6.93145751953125e-1, 1.42860682030941723212e-6, -708.0, 1)
    t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13 = _constants(zero, *(1 / math.factorial(i) for i in range(2, 14)))

    def wide(value, zero):
        held = value if value > least else least
        n = _rounded(held * log2_e)
        r = (held - n * high) - n * low
        p = (
            (((((((((t13 * r + t12) * r + t11) * r + t10) * r + t9) * r + t8) * r + t7) * r + t6) * r + t5) * r + t4) * r + t3
        ) * r + t2
        found = (p * r * r + (r + one)) * _power_of_two(n)
        return found if value > least else zero

    return wide
