"""The kernels that write a tensor of the size of x: one tile a program."""

import triton
import triton.language as tl

from normsmith.kernels.cuda.tiles import between, load, positions, statistic, store


@triton.jit
def _own(tiles, blocks, channels, BC: tl.constexpr):
    """The sample, tile and channels of this program, and which of these channels there are."""
    program = tl.program_id(0).to(tl.int64)
    t, rest = program % tiles, program // tiles
    c = rest % blocks * BC + tl.arange(0, BC)
    return rest // blocks, t, c, c < channels


@triton.jit
def affine(
    x, xn, xc, xs, y, yn, yc, ys, center, center_step, scale, scale_step, bias, bias_step, floor, floor_step,
    channels, size, tiles, blocks, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """y = (x - center) * scale + bias, raised to the floor where there is one."""
    n, t, c, known = _own(tiles, blocks, channels, BC)
    s, there = positions(t, size, BS)
    there = known[:, None] & there[None, :]
    moved = load(x, n, c, s, xn, xc, xs, there, TYPE) - statistic(center, n, c, center_step, known, TYPE)
    values = moved * statistic(scale, n, c, scale_step, known, TYPE) + statistic(bias, n, c, bias_step, known, TYPE)
    if floor is not None:
        values = tl.maximum(values, statistic(floor, n, c, floor_step, known, TYPE), propagate_nan=tl.PropagateNan.ALL)
    store(y, n, c, s, yn, yc, ys, there, values)


@triton.jit
def grad_input(
    g, gn, gc, gs, x, xn, xc, xs, d, dn, dc, ds, scale, scale_step, slope, slope_step, pivot, pivot_step, offset, offset_step,
    low, low_step, high, high_step, center, center_step, bias, bias_step, level, level_step,
    channels, size, tiles, blocks, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """dx = dy * scale + ((x - pivot) * slope + offset): the bracket between the bounds, the rest where y is above the level."""
    n, t, c, known = _own(tiles, blocks, channels, BC)
    s, there = positions(t, size, BS)
    there = known[:, None] & there[None, :]
    values = load(x, n, c, s, xn, xc, xs, there, TYPE)
    factor = statistic(scale, n, c, scale_step, known, TYPE)
    direct = load(g, n, c, s, gn, gc, gs, there, TYPE) * factor
    moved = (values - statistic(pivot, n, c, pivot_step, known, TYPE)) * statistic(slope, n, c, slope_step, known, TYPE)
    moved += statistic(offset, n, c, offset_step, known, TYPE)
    if low is not None:
        moved = tl.where(between(values, n, c, low, low_step, high, high_step, known, TYPE), moved, 0.0)
    if level is not None:
        y = (values - statistic(center, n, c, center_step, known, TYPE)) * factor
        y += statistic(bias, n, c, bias_step, known, TYPE)
        direct = tl.where(y > statistic(level, n, c, level_step, known, TYPE), direct, 0.0)
    store(d, n, c, s, dn, dc, ds, there, direct + moved)
