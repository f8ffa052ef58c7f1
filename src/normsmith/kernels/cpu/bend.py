"""Activations inside the loops: `bent` on the way forward, `through` on the way back.

Which one it is, is told by the type of `kind`, a number that is never looked at: each makes a compiled form of a loop of its own, made
when it is first asked for, in which nothing is decided for an element that the activation does not decide.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from normsmith.kernels import Kind
from normsmith.kernels.cpu.exponential import power_of_two
from normsmith.kernels.cpu.memory import OPTIONS, cast

# numpy's numbers, as numba tells their types apart sooner than anything else's; a ReLU is a floor of zero.
KINDS: dict[Kind, Any] = {
    "floor": np.int8(0),
    "relu": np.int8(0),
    "relu6": np.int16(0),
    "leaky_relu": np.int32(0),
    "silu": np.uint8(0),
    "hardswish": np.uint16(0),
}
LOG2_E = 1.4426950408889634
_OPTIONS: Any = {**OPTIONS, "cache": False}


def bent(kind: Any, y: Any, level: Any, zero: Any) -> Any:
    """The activation of y, inside compiled loops."""
    raise NotImplementedError


def through(kind: Any, grad: Any, y: Any, level: Any, zero: Any) -> Any:
    """The gradient of y from that of its activation, inside compiled loops."""
    raise NotImplementedError


# A NaN fails every comparison, and goes the way it goes in torch.
def _floor(kind, y, level, zero):
    return level if y < level else y


def _through_floor(kind, grad, y, level, zero):
    return zero if y <= level else grad


def _relu6(kind, y, level, zero):
    six = cast(6, zero)
    return zero if y < zero else six if y > six else y


def _through_relu6(kind, grad, y, level, zero):
    return grad if y > zero and y < cast(6, zero) else zero


def _leaky_relu(kind, y, level, zero):
    return y if y > zero else y * level


def _through_leaky_relu(kind, grad, y, level, zero):
    return grad if y > zero else grad * level


def _silu(kind, y, level, zero):
    one = cast(1, zero)
    power = power_of_two(-abs(y) * cast(LOG2_E, zero), zero)
    return y * ((one if y > zero else power) / (one + power))


def _through_silu(kind, grad, y, level, zero):
    one = cast(1, zero)
    power = power_of_two(-abs(y) * cast(LOG2_E, zero), zero)
    share = (one if y > zero else power) / (one + power)
    return grad * (share * (one + y * (one - share)))


def _hardswish(kind, y, level, zero):
    six = cast(6, zero)
    up = y + cast(3, zero)
    up = zero if up < zero else six if up > six else up
    return y * up / six


def _through_hardswish(kind, grad, y, level, zero):
    three = cast(3, zero)
    return zero if y <= -three else grad if y >= three else grad * (y / three + cast(0.5, zero))


_FORWARD = {
    types.int8: _floor,
    types.int16: _relu6,
    types.int32: _leaky_relu,
    types.uint8: _silu,
    types.uint16: _hardswish,
}
_BACKWARD = {
    types.int8: _through_floor,
    types.int16: _through_relu6,
    types.int32: _through_leaky_relu,
    types.uint8: _through_silu,
    types.uint16: _through_hardswish,
}


@overload(bent, jit_options=_OPTIONS)
def _bent(kind, y, level, zero):
    return _FORWARD[kind]


@overload(through, jit_options=_OPTIONS)
def _through(kind, grad, y, level, zero):
    return _BACKWARD[kind]
