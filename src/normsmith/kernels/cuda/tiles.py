"""What every kernel does with its piece of a tensor.

A tile is `BC` channels by `BS` positions of one sample; element (n, c, s) lies at n*xn + c*xc + s*xs, in int64. In rows xs is 1 and in
columns xc is: the compiler is told of a stride of one, and orders the threads along it, so both layouts share their kernels. A statistic
of cell (n, c) lies at n*center_n + c*center_c, say, where a step is 0 if all samples or channels share it. What a method has no use for
is None, and compiles to nothing.
"""

import triton
import triton.language as tl


@triton.jit
def positions(t, size, BS: tl.constexpr):
    """The positions of tile t of a sample, and which of them there are."""
    s = t * BS + tl.arange(0, BS)
    return s, s < size


@triton.jit
def load(x, n, c, s, xn, xc, xs, there, TYPE: tl.constexpr):
    """A tile, widened; zero where nothing is."""
    return tl.load(x + n * xn + c[:, None] * xc + s[None, :] * xs, mask=there, other=0).to(TYPE)


@triton.jit
def store(y, n, c, s, yn, yc, ys, there, values):
    """A tile, narrowed to the type of y."""
    tl.store(y + n * yn + c[:, None] * yc + s[None, :] * ys, values.to(y.dtype.element_ty), mask=there)


@triton.jit
def statistic(values, n, c, values_n, values_c, known, TYPE: tl.constexpr):
    """A statistic of the cells of a tile, as a column."""
    return tl.load(values + n * values_n + c * values_c, mask=known, other=0).to(TYPE)[:, None]


@triton.jit
def between(values, n, c, low, low_n, low_c, high, high_n, high_c, known, TYPE: tl.constexpr):
    """Which elements are strictly between the bounds of their cell."""
    return (statistic(low, n, c, low_n, low_c, known, TYPE) < values) & (
        values < statistic(high, n, c, high_n, high_c, known, TYPE)
    )


@triton.jit
def bent(y, level, KIND: tl.constexpr):
    """The activation of y; a NaN fails every comparison, and goes the way it goes in torch."""
    if KIND == "relu6":
        y = tl.where(y < 0, 0.0, tl.where(y > 6, 6.0, y))
    elif KIND == "leaky_relu":
        y = tl.where(y > 0, y, y * level)
    elif KIND == "silu":
        y = y / (1 + tl.exp(-y))
    elif KIND == "hardswish":
        up = y + 3
        y = y * tl.where(up < 0, 0.0, tl.where(up > 6, 6.0, up)) / 6
    else:
        y = tl.maximum(y, level, propagate_nan=tl.PropagateNan.ALL)
    return y


@triton.jit
def through(grad, y, level, KIND: tl.constexpr):
    """The gradient of y from that of its activation."""
    if KIND == "relu6":
        grad = tl.where((y > 0) & (y < 6), grad, 0.0)
    elif KIND == "leaky_relu":
        grad = tl.where(y > 0, grad, grad * level)
    elif KIND == "silu":
        share = 1 / (1 + tl.exp(-y))
        grad = grad * (share * (1 + y * (1 - share)))
    elif KIND == "hardswish":
        grad = tl.where(y <= -3, 0.0, tl.where(y >= 3, grad, grad * (y / 3 + 0.5)))
    else:
        grad = tl.where(y <= level, 0.0, grad)
    return grad


@triton.jit
def following(i, n, t, tiles):
    """The number, sample and place of the next tile: the first of the next sample after the last of this one."""
    last = t + 1 == tiles
    return i + 1, tl.where(last, n + 1, n), tl.where(last, 0, t + 1)


@triton.jit
def root(values, TYPE: tl.constexpr):
    """Square roots, rounded well: sqrt alone is an approximation in float32, and exact in float64."""
    return tl.sqrt(values) if TYPE is tl.float64 else tl.sqrt_rn(values)
