"""The kernels that write a tensor of the size of x: one tile a program."""

import triton
import triton.language as tl

from normsmith.kernels.cuda.tiles import bent, between, load, positions, statistic, store, through


@triton.jit
def own(tiles, blocks, channels, BC: tl.constexpr):
    """The sample, tile and channels of this program, and which of these channels there are."""
    program = tl.program_id(0).to(tl.int64)
    t, rest = program % tiles, program // tiles
    c = rest % blocks * BC + tl.arange(0, BC)
    return rest // blocks, t, c, c < channels


@triton.jit
def affine(
    x, xn, xc, xs, y, yn, yc, ys, center, center_n, center_c, scale, scale_n, scale_c, bias, bias_n, bias_c, level, level_n, level_c,
    channels, size, tiles, blocks, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """y = (x - center) * scale + bias, bent where there is an activation."""
    n, t, c, known = own(tiles, blocks, channels, BC)
    s, there = positions(t, size, BS)
    there = known[:, None] & there[None, :]
    moved = load(x, n, c, s, xn, xc, xs, there, TYPE) - statistic(center, n, c, center_n, center_c, known, TYPE)
    values = moved * statistic(scale, n, c, scale_n, scale_c, known, TYPE) + statistic(bias, n, c, bias_n, bias_c, known, TYPE)
    if level is not None:
        values = bent(values, statistic(level, n, c, level_n, level_c, known, TYPE), KIND)
    store(y, n, c, s, yn, yc, ys, there, values)


@triton.jit
def grad_input(
    g, gn, gc, gs, x, xn, xc, xs, d, dn, dc, ds, scale, scale_n, scale_c, slope, slope_n, slope_c, pivot, pivot_n, pivot_c,
    offset, offset_n, offset_c, low, low_n, low_c, high, high_n, high_c, center, center_n, center_c, bias, bias_n, bias_c,
    level, level_n, level_c, channels, size, tiles, blocks, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """dx = dy * scale + ((x - pivot) * slope + offset): the bracket between the bounds, dy as it reaches what was bent."""
    n, t, c, known = own(tiles, blocks, channels, BC)
    s, there = positions(t, size, BS)
    there = known[:, None] & there[None, :]
    values = load(x, n, c, s, xn, xc, xs, there, TYPE)
    factor = statistic(scale, n, c, scale_n, scale_c, known, TYPE)
    grad = load(g, n, c, s, gn, gc, gs, there, TYPE)
    moved = values - statistic(pivot, n, c, pivot_n, pivot_c, known, TYPE)
    moved *= statistic(slope, n, c, slope_n, slope_c, known, TYPE)
    moved += statistic(offset, n, c, offset_n, offset_c, known, TYPE)
    if low is not None:
        moved = tl.where(between(values, n, c, low, low_n, low_c, high, high_n, high_c, known, TYPE), moved, 0.0)
    if level is not None:
        y = (values - statistic(center, n, c, center_n, center_c, known, TYPE)) * factor
        y += statistic(bias, n, c, bias_n, bias_c, known, TYPE)
        grad = through(grad, y, statistic(level, n, c, level_n, level_c, known, TYPE), KIND)
    store(d, n, c, s, dn, dc, ds, there, grad * factor + moved)
