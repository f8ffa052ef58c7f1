"""The kernels for statistics alone, a few numbers for each cell, where as torch operations every step would be a launch.

Cells that are summed up are the middle one of three dimensions, (outer, members, inner) in memory; result r = outer * inner + inner' has
its members at steps of `inner`. Other statistics have steps between samples and between channels, 0 where these share them.
"""

import triton
import triton.language as tl


@triton.jit
def _results(program, results, members, inner, BR: tl.constexpr):
    """The results of a program, which of them there are, and where the first member of each lies."""
    r = program.to(tl.int64) * BR + tl.arange(0, BR)
    return r, r < results, r // inner * members * inner + r % inner


@triton.jit
def _members(first, known, start, members, inner, BM: tl.constexpr):
    """Where the next members lie, and which of them there are."""
    m = start + tl.arange(0, BM)
    return first[:, None] + m[None, :] * inner, known[:, None] & (m < members)[None, :]


@triton.jit
def pool(
    mean, var, found_mean, found_var, results, members, inner, SPREAD: tl.constexpr, BR: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """The law of total variance, for cells of one size."""
    r, known, first = _results(tl.program_id(0), results, members, inner, BR)
    middle, spread = tl.zeros((BR,), tl.float64), tl.zeros((BR,), tl.float64)
    start = tl.zeros((), tl.int64)
    while start < members:
        i, there = _members(first, known, start, members, inner, BM)
        middle += tl.sum(tl.load(mean + i, mask=there, other=0).to(tl.float64), 1)
        start += BM
    middle = middle / members
    start = tl.zeros((), tl.int64)
    while start < members:
        i, there = _members(first, known, start, members, inner, BM)
        away = tl.load(mean + i, mask=there, other=0).to(tl.float64) - middle[:, None]
        spread += tl.sum(tl.where(there, tl.load(var + i, mask=there, other=0) + away * away, 0.0), 1)
        start += BM
    spread = spread / members
    if SPREAD:
        _spread(middle, spread, found_mean, found_var, first, known, members, inner, BM)
    else:
        tl.store(found_mean + r, middle, mask=known)
        tl.store(found_var + r, spread, mask=known)


@triton.jit
def share(one, other, found_one, found_other, results, members, inner, BR: tl.constexpr, BM: tl.constexpr):
    """Two sums, for each of their members."""
    _, known, first = _results(tl.program_id(0), results, members, inner, BR)
    total, rest = tl.zeros((BR, BM), tl.float32), tl.zeros((BR, BM), tl.float32)
    start = tl.zeros((), tl.int64)
    while start < members:
        i, there = _members(first, known, start, members, inner, BM)
        total += tl.load(one + i, mask=there, other=0)
        rest += tl.load(other + i, mask=there, other=0)
        start += BM
    _spread(tl.sum(total, 1), tl.sum(rest, 1), found_one, found_other, first, known, members, inner, BM)


@triton.jit
def _spread(one, other, found_one, found_other, first, known, members, inner, BM: tl.constexpr):
    """Two results written to each of their members."""
    start = tl.zeros((), tl.int64)
    while start < members:
        i, there = _members(first, known, start, members, inner, BM)
        nothing = tl.zeros(there.shape, one.dtype)
        tl.store(found_one + i, one[:, None] + nothing, mask=there)
        tl.store(found_other + i, other[:, None] + nothing, mask=there)
        start += BM


@triton.jit
def standardize(
    mean, var, var_n, var_c, weight, weight_n, weight_c, inverse, scale, eps, channels, size, BLOCK: tl.constexpr
):  # fmt: skip
    """One over the deviation, of centered data if there is no mean; and that times the weight, if there is one."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n, c, there = i // channels, i % channels, i < size
    own = n * var_n + c * var_c
    power = tl.load(var + own, mask=there, other=1)
    if mean is not None:
        middle = tl.load(mean + own, mask=there, other=0)
        power += middle * middle
    found = 1 / tl.sqrt_rn(power + eps)
    first = ((var_n > 0) | (n == 0)) & ((var_c > 0) | (c == 0))
    tl.store(inverse + own, found, mask=there & first)
    if weight is not None:
        factor = tl.load(weight + n * weight_n + c * weight_c, mask=there, other=0).to(tl.float32)
        tl.store(scale + i, found * factor, mask=there)


@triton.jit
def _pulled(
    i, there, total, product, scale, scale_n, scale_c, inverse, inverse_n, inverse_c, channels
):  # fmt: skip
    """Of these cells the sum of dy, and that of dy * (x - center), the scale, and one over the deviation."""
    n, c = i // channels, i % channels
    slope = tl.load(scale + n * scale_n + c * scale_c, mask=there, other=0)
    one = tl.load(inverse + n * inverse_n + c * inverse_c, mask=there, other=0)
    return tl.load(total + i, mask=there, other=0), tl.load(product + i, mask=there, other=0), slope, one


@triton.jit
def _to_moments(
    program, results, members, inner, total, product, scale, scale_n, scale_c, inverse, inverse_n, inverse_c, channels,
    mean, d_mean, d_var, BR: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The gradients of mean and variance."""
    r, known, first = _results(program, results, members, inner, BR)
    by_mean, by_var = tl.zeros((BR, BM), tl.float32), tl.zeros((BR, BM), tl.float32)
    start = tl.zeros((), tl.int64)
    while start < members:
        i, there = _members(first, known, start, members, inner, BM)
        a, b, slope, one = _pulled(i, there, total, product, scale, scale_n, scale_c, inverse, inverse_n, inverse_c, channels)
        by_mean -= slope * a
        by_var -= slope * one * (b * one) * 0.5
        start += BM
    found, found_var = tl.sum(by_mean, 1), tl.sum(by_var, 1)
    if mean is not None:  # of data that were not centered
        found = 2 * tl.load(mean + r, mask=known, other=0) * found_var
    tl.store(d_mean + r, found, mask=known)
    tl.store(d_var + r, found_var, mask=known)


@triton.jit
def _to_weights(
    program, results, members, inner, total, product, scale, scale_n, scale_c, inverse, inverse_n, inverse_c, channels,
    d_weight, d_bias, BR: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias."""
    r, known, first = _results(program, results, members, inner, BR)
    by_weight, by_bias = tl.zeros((BR, BM), tl.float32), tl.zeros((BR, BM), tl.float32)
    start = tl.zeros((), tl.int64)
    while start < members:
        i, there = _members(first, known, start, members, inner, BM)
        a, b, _, one = _pulled(i, there, total, product, scale, scale_n, scale_c, inverse, inverse_n, inverse_c, channels)
        by_weight += b * one
        by_bias += a
        start += BM
    if d_weight is not None:
        tl.store(d_weight + r, tl.sum(by_weight, 1), mask=known)
    if d_bias is not None:
        tl.store(d_bias + r, tl.sum(by_bias, 1), mask=known)


@triton.jit
def unstandardize(
    total, product, scale, scale_n, scale_c, inverse, inverse_n, inverse_c, mean, d_mean, d_var, d_weight, d_bias, channels,
    programs, results, members, inner, other_results, other_members, other_inner,
    BR: tl.constexpr, BM: tl.constexpr, OTHER_BR: tl.constexpr, OTHER_BM: tl.constexpr,
):  # fmt: skip
    """The gradients of mean and variance, by the first programs, and of weight and bias, by the others; summed to their shapes."""
    program = tl.program_id(0)
    if program < programs:
        _to_moments(
            program, results, members, inner, total, product, scale, scale_n, scale_c, inverse, inverse_n, inverse_c, channels,
            mean, d_mean, d_var, BR, BM,
        )  # fmt: skip
    else:
        _to_weights(
            program - programs, other_results, other_members, other_inner, total, product, scale, scale_n, scale_c,
            inverse, inverse_n, inverse_c, channels, d_weight, d_bias, OTHER_BR, OTHER_BM,
        )  # fmt: skip


@triton.jit
def weighted_sum(
    mean, var, step_n, step_c, mean_1, var_1, step_1n, step_1c, mean_2, var_2, step_2n, step_2c,
    mean_weights, var_weights, found_mean, found_var, channels, size, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of up to three means, and of as many variances."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n, c, there = i // channels, i % channels, i < size
    own = n * step_n + c * step_c
    one = tl.load(mean + own, mask=there, other=0) * tl.load(mean_weights)
    other = tl.load(var + own, mask=there, other=0) * tl.load(var_weights)
    if mean_1 is not None:
        own = n * step_1n + c * step_1c
        one += tl.load(mean_1 + own, mask=there, other=0) * tl.load(mean_weights + 1)
        other += tl.load(var_1 + own, mask=there, other=0) * tl.load(var_weights + 1)
    if mean_2 is not None:
        own = n * step_2n + c * step_2c
        one += tl.load(mean_2 + own, mask=there, other=0) * tl.load(mean_weights + 2)
        other += tl.load(var_2 + own, mask=there, other=0) * tl.load(var_weights + 2)
    tl.store(found_mean + i, one, mask=there)
    tl.store(found_var + i, other, mask=there)


@triton.jit
def weigh_source(
    d_mean, d_var, mean, var, mean_weights, var_weights, k, own_mean, own_var, parts, sources, results, members, inner,
    BR: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The gradients of mean and variance of source k of a weighted sum, and this program's part of those of its two weights."""
    program = tl.program_id(0)
    r, known, first = _results(program, results, members, inner, BR)
    by_mean, by_var = tl.zeros((BR, BM), tl.float32), tl.zeros((BR, BM), tl.float32)
    start = tl.zeros((), tl.int64)
    while start < members:
        i, there = _members(first, known, start, members, inner, BM)
        by_mean += tl.load(d_mean + i, mask=there, other=0)
        by_var += tl.load(d_var + i, mask=there, other=0)
        start += BM
    one, other = tl.sum(by_mean, 1), tl.sum(by_var, 1)
    tl.store(own_mean + r, one * tl.load(mean_weights + k), mask=known)
    tl.store(own_var + r, other * tl.load(var_weights + k), mask=known)
    place = parts + k * tl.num_programs(0) + program
    tl.store(place, tl.sum(one * tl.load(mean + r, mask=known, other=0), 0))
    tl.store(place + sources * tl.num_programs(0), tl.sum(other * tl.load(var + r, mask=known, other=0), 0))


@triton.jit
def totals(parts, found, size, BLOCK: tl.constexpr):
    """The sums of rows of parts, a program each."""
    row = tl.program_id(0).to(tl.int64)
    total, start = tl.zeros((BLOCK,), tl.float32), tl.zeros((), tl.int64)
    while start < size:
        i = start + tl.arange(0, BLOCK)
        total += tl.load(parts + row * size + i, mask=i < size, other=0)
        start += BLOCK
    tl.store(found + row, tl.sum(total, 0))


@triton.jit
def lines(
    d_mean, d_var, mean, step_n, step_c, share_0, d_mean_1, d_var_1, mean_1, step_1n, step_1c, share_1,
    d_mean_2, d_var_2, mean_2, step_2n, step_2c, share_2, slope, offset, channels, size, BLOCK: tl.constexpr,
):  # fmt: skip
    """Up to three lines in x as one, around the first mean; a share is one over how many elements have these moments."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n, c, there = i // channels, i % channels, i < size
    own = n * step_n + c * step_c
    rise = tl.load(d_var + own, mask=there, other=0) * (2 * share_0)
    level = tl.load(d_mean + own, mask=there, other=0) * share_0
    pivot = tl.load(mean + own, mask=there, other=0)
    if mean_1 is not None:
        own = n * step_1n + c * step_1c
        more = tl.load(d_var_1 + own, mask=there, other=0) * (2 * share_1)
        away = pivot - tl.load(mean_1 + own, mask=there, other=0)
        level += tl.load(d_mean_1 + own, mask=there, other=0) * share_1 + more * away
        rise += more
    if mean_2 is not None:
        own = n * step_2n + c * step_2c
        more = tl.load(d_var_2 + own, mask=there, other=0) * (2 * share_2)
        away = pivot - tl.load(mean_2 + own, mask=there, other=0)
        level += tl.load(d_mean_2 + own, mask=there, other=0) * share_2 + more * away
        rise += more
    tl.store(slope + i, rise, mask=there)
    tl.store(offset + i, level, mask=there)


@triton.jit
def _moved(average, value, factor, step, i, there):
    """A running average moved, in the two forms of torch.lerp: exact at both ends."""
    old = tl.load(average + i, mask=there, other=0)
    way = tl.load(value + i, mask=there, other=0) * factor - old
    new = tl.where(step < 0.5, old + step * way, old + way - way * (1 - step))
    tl.store(average + i, new, mask=there)


@triton.jit
def move_two(first, second, value, other, factor, other_factor, step, size, BLOCK: tl.constexpr):
    """Two running averages, each moved towards its value times its factor."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _moved(first, value, factor, step, i, i < size)
    _moved(second, other, other_factor, step, i, i < size)
