"""Products, attention, softmax and maxima over the entries of a pattern, in Triton; `gconv.kernels.cuda` launches them.

A program handles one row of the pattern, or a piece of a long one, and a block of `BD` numbers of a row of y, or of
`BH` heads of `BC` channels; it loops over the entries in order, `BE` at a time. The last axis of the grid is that of
the signals. There are no atomic additions, so results are deterministic. The pieces of a row are combined in order by
the kernels whose names begin with `join`.

    start, stop   (programs,) the range of entries of each program
    rows          (programs,) the row of each, if rows are split; otherwise program p has row p
    first         (rows + 1,) the first piece of each row, to combine them
"""

# mypy: ignore-errors
# Triton's annotations are not types.

import triton
import triton.language as tl


@triton.jit
def _hashed(x):
    """`hashed` of csr.h, for uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _kept(entry, seed):
    """The hash for dropout, for indices of (entry, head) pairs, int64."""
    mixed = _hashed(entry.to(tl.uint32) ^ ((entry >> 32).to(tl.uint32) * 0x9E3779B9))
    return _hashed(mixed + seed)


@triton.jit
def _finite(top):
    """0 for minus infinity: logits of minus infinity before the first finite one count 0, not inf - inf."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def attend(
    start, stop, rows, col, z, source, target, seed, y, y_f, top, total, slopes,
    entries, count, programs, plane, plane_out,
    HEADS: tl.constexpr, C: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr, LEAST: tl.constexpr,
    DROP: tl.constexpr, LEARN: tl.constexpr, SPLIT: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y_ih = sum a m z_jh, a = softmax LeakyReLU(target_ih + source_jh); y_f = sum a f m z_jh, f LeakyReLU's slope.

    A signal has `plane` rows of target and source, `programs` of y and y_f, and `plane_out` of the others.
    For split rows the sums are not divided by `total`, as `join_attended` needs them.
    """
    p, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    r = tl.load(rows + p).to(tl.int64) if SPLIT else p
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    f = tl.program_id(1) * BD + tl.arange(0, BD)
    inside, h = f < HEADS * C, f // C
    t = tl.load(target + (signal * plane + r) * HEADS + h, mask=inside, other=0.0)
    m = tl.full((BD,), float("-inf"), t.dtype)
    sum_a = tl.zeros((BD,), t.dtype)
    sum_f, sum_y, sum_b = sum_a, sum_a, sum_a
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        live = (k < hi)[:, None] & inside[None, :]
        c = tl.load(col + k, mask=k < hi, other=0).to(tl.int64)[:, None]
        s = t[None, :] + tl.load(source + (signal * plane + c) * HEADS + h[None, :], mask=live, other=0.0)
        positive = s > 0
        s = tl.where((k < hi)[:, None], tl.where(positive, s, s * SLOPE), float("-inf"))
        now = tl.maximum(m, tl.max(s, 0))
        before, a = tl.exp(m - _finite(now)), tl.exp(s - _finite(now)[None, :])
        sum_a = sum_a * before + tl.sum(a, 0)
        if LEARN:
            a_f = tl.where(positive, a, a * SLOPE)
            sum_f = sum_f * before + tl.sum(a_f, 0)
        x = tl.load(z + (signal * count + c) * (HEADS * C) + f[None, :], mask=live, other=0.0)
        if DROP:
            at = (signal * entries + k)[:, None] * HEADS + h[None, :]
            x = tl.where(_kept(at, tl.load(seed).to(tl.uint32)) >= LEAST, x * SCALE, 0.0)
        sum_y = sum_y * before + tl.sum(a * x, 0)
        if LEARN:
            sum_b = sum_b * before + tl.sum(a_f * x, 0)
        m = now
    if not SPLIT:
        sum_a = tl.where(hi > lo, 1 / tl.where(hi > lo, sum_a, 1.0), 0.0)
        m = tl.where(hi > lo, m, 0.0)
        sum_y *= sum_a
        sum_b *= sum_a
        sum_f *= sum_a
    at, whole = (signal * plane_out + p) * HEADS + h, (signal * programs + p) * (HEADS * C) + f
    tl.store(y + whole, sum_y, mask=inside)
    one = inside & (f % C == 0)
    if LEARN:
        tl.store(y_f + whole, sum_b, mask=inside)
        tl.store(slopes + at, sum_f, mask=one)
    if LEARN or SPLIT:
        tl.store(top + at, m, mask=one)
        tl.store(total + at, sum_a, mask=one)


@triton.jit
def join_attended(
    first, y_part, y_f_part, top_part, total_part, slopes_part, y, y_f, top, total, slopes,
    count, pieces, plane,
    HEADS: tl.constexpr, C: tl.constexpr, LEARN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The results of `attend` for whole rows, from those of pieces."""
    r, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    lo, hi = tl.load(first + r), tl.load(first + r + 1)
    f = tl.program_id(1) * BD + tl.arange(0, BD)
    inside, h = f < HEADS * C, f // C
    m = tl.full((BD,), float("-inf"), y.dtype.element_ty)
    sum_a = tl.zeros((BD,), y.dtype.element_ty)
    sum_f, sum_y, sum_b = sum_a, sum_a, sum_a
    for q in range(lo, hi):
        at, whole = (signal * pieces + q) * HEADS + h, (signal * pieces + q) * (HEADS * C) + f
        its = tl.load(top_part + at, mask=inside, other=0.0)
        now = tl.maximum(m, its)
        before, here = tl.exp(m - _finite(now)), tl.exp(its - _finite(now))
        sum_a = sum_a * before + here * tl.load(total_part + at, mask=inside, other=1.0)
        sum_y = sum_y * before + here * tl.load(y_part + whole, mask=inside, other=0.0)
        if LEARN:
            sum_f = sum_f * before + here * tl.load(slopes_part + at, mask=inside, other=0.0)
            sum_b = sum_b * before + here * tl.load(y_f_part + whole, mask=inside, other=0.0)
        m = now
    inverse = tl.where(hi > lo, 1 / tl.where(hi > lo, sum_a, 1.0), 0.0)
    at, whole = (signal * plane + r) * HEADS + h, (signal * count + r) * (HEADS * C) + f
    tl.store(y + whole, sum_y * inverse, mask=inside)
    if LEARN:
        one = inside & (f % C == 0)
        tl.store(y_f + whole, sum_b * inverse, mask=inside)
        tl.store(slopes + at, sum_f * inverse, mask=one)
        tl.store(top + at, tl.where(hi > lo, m, 0.0), mask=one)
        tl.store(total + at, inverse, mask=one)


@triton.jit
def attend_back(
    start, stop, rows, row, order, source, target, top, total, d, dy, seed, dz, dz_f, ds,
    entries, count, programs, plane,
    HEADS: tl.constexpr, C: tl.constexpr, SLOPE: tl.constexpr, SCALE: tl.constexpr, LEAST: tl.constexpr,
    DROP: tl.constexpr, SPLIT: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """For each column j, sums over its rows i: dz = sum a m dy_i, dz_f = sum a f m dy_i, ds = sum a f d_i.

    A signal has `plane` rows of source, target, top and total.
    """
    p, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    j = tl.load(rows + p).to(tl.int64) if SPLIT else p
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    f = tl.program_id(1) * BD + tl.arange(0, BD)
    inside, h = f < HEADS * C, f // C
    own = tl.load(source + (signal * plane + j) * HEADS + h, mask=inside, other=0.0)
    sum_z = tl.zeros((BD,), own.dtype)
    sum_b, sum_d = sum_z, sum_z
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        live = (k < hi)[:, None] & inside[None, :]
        i = tl.load(row + k, mask=k < hi, other=0).to(tl.int64)[:, None]
        at = (signal * plane + i) * HEADS + h[None, :]
        s = own[None, :] + tl.load(target + at, mask=live, other=0.0)
        positive = s > 0
        s = tl.where(positive, s, s * SLOPE)
        a = tl.exp(s - tl.load(top + at, mask=live, other=0.0)) * tl.load(total + at, mask=live, other=0.0)
        a = tl.where(live, a, 0.0)
        a_f = tl.where(positive, a, a * SLOPE)
        sum_d += tl.sum(a_f * tl.load(d + (signal * count + i) * HEADS + h[None, :], mask=live, other=0.0), 0)
        g = tl.load(dy + (signal * count + i) * (HEADS * C) + f[None, :], mask=live, other=0.0)
        if DROP:
            entry = tl.load(order + k, mask=k < hi, other=0).to(tl.int64)[:, None]
            g = tl.where(
                _kept((signal * entries + entry) * HEADS + h[None, :], tl.load(seed).to(tl.uint32)) >= LEAST,
                g * SCALE,
                0.0,
            )
        sum_z += tl.sum(a * g, 0)
        sum_b += tl.sum(a_f * g, 0)
    at = (signal * programs + p) * (HEADS * C) + f
    tl.store(dz + at, sum_z, mask=inside)
    tl.store(dz_f + at, sum_b, mask=inside)
    tl.store(ds + (signal * programs + p) * HEADS + h, sum_d, mask=inside & (f % C == 0))


@triton.jit
def product(
    start, stop, order, col, values, x, y, programs, v_batch, x_batch, x_row, x_head,
    HEADS: tl.constexpr, C: tl.constexpr, TOGETHER: tl.constexpr, ORDER: tl.constexpr, ACC: tl.constexpr,
    BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """y_ih = sum over the entries of v_eh x_jh; with TOGETHER also summed over the heads."""
    p, b = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    f = tl.program_id(1) * BD + tl.arange(0, BD)
    width: tl.constexpr = C if TOGETHER else HEADS * C
    inside, h, ch = f < width, f // C, f % C
    acc = tl.zeros((BD,), ACC)
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        live = (k < hi)[:, None] & inside[None, :]
        c = tl.load(col + k, mask=k < hi, other=0).to(tl.int64)[:, None]
        v = (tl.load(order + k, mask=k < hi, other=0).to(tl.int64) if ORDER else k)[:, None] * HEADS
        for one in range(HEADS if TOGETHER else 1):
            at = (h + one)[None, :].to(tl.int64)
            number = tl.load(values + b * v_batch + v + at, mask=live, other=0.0).to(ACC)
            side = tl.load(x + b * x_batch + c * x_row + at * x_head + ch[None, :], mask=live, other=0.0).to(ACC)
            acc += tl.sum(number * side, 0)
    tl.store(y + (b * programs + p) * width + f, acc.to(y.dtype.element_ty), mask=inside)


@triton.jit
def join_sums(first, part, out, count, pieces, WIDTH: tl.constexpr, BD: tl.constexpr):
    """The sums over the pieces of each row, (b, pieces, WIDTH) -> (b, rows, WIDTH)."""
    r, b = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    f = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), part.dtype.element_ty)
    for q in range(tl.load(first + r), tl.load(first + r + 1)):
        acc += tl.load(part + (b * pieces + q) * WIDTH + f, mask=f < WIDTH, other=0.0)
    tl.store(out + (b * count + r) * WIDTH + f, acc.to(out.dtype.element_ty), mask=f < WIDTH)


@triton.jit
def sampled(
    start, stop, rows, col, left, right, out, entries, batches, l_batch, l_row, l_head, r_batch, r_row, r_head,
    HEADS: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr, ACC: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """v_eh = sum of left_ih right_jh over the channels and `batches` signals, for each signal of the grid."""
    p, h, signal = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    r = tl.load(rows + p).to(tl.int64) if SPLIT else p
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        c = tl.load(col + k, mask=k < hi, other=0).to(tl.int64)[:, None]
        acc = tl.zeros((BE,), ACC)
        at_l, at_r = signal * l_batch + r * l_row + h * l_head, signal * r_batch + c * r_row + h * r_head
        for _ in range(batches):
            for channel in range(0, C, BD):
                f = channel + tl.arange(0, BD)
                live = (k < hi)[:, None] & (f < C)[None, :]
                one = tl.load(left + at_l + f, mask=f < C, other=0.0).to(ACC)
                two = tl.load(right + at_r + f[None, :], mask=live, other=0.0).to(ACC)
                acc += tl.sum(one[None, :] * two, 1)
            at_l += l_batch
            at_r += r_batch
        tl.store(out + (signal * entries + k) * HEADS + h, acc.to(out.dtype.element_ty), mask=k < hi)


@triton.jit
def stats(start, stop, logits, top, total, entries, programs, HEADS: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr):
    """The largest logit of a row, and the sum of exp(logit - largest)."""
    p, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    h = tl.program_id(1) * BD + tl.arange(0, BD)
    m = tl.full((BD,), float("-inf"), logits.dtype.element_ty)
    acc = tl.zeros((BD,), logits.dtype.element_ty)
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        live = (k < hi)[:, None] & (h < HEADS)[None, :]
        s = tl.load(logits + (signal * entries + k)[:, None] * HEADS + h[None, :], mask=live, other=0.0)
        s = tl.where((k < hi)[:, None], s, float("-inf"))
        now = tl.maximum(m, tl.max(s, 0))
        acc = acc * tl.exp(m - _finite(now)) + tl.sum(tl.exp(s - _finite(now)[None, :]), 0)
        m = now
    at = (signal * programs + p) * HEADS + h
    tl.store(top + at, m, mask=h < HEADS)
    tl.store(total + at, acc, mask=h < HEADS)


@triton.jit
def join_stats(first, top_part, total_part, top, total, count, pieces, HEADS: tl.constexpr, BD: tl.constexpr):
    """The results of `stats` for whole rows, from those of pieces."""
    r, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    h = tl.program_id(1) * BD + tl.arange(0, BD)
    m = tl.full((BD,), float("-inf"), top.dtype.element_ty)
    acc = tl.zeros((BD,), top.dtype.element_ty)
    for q in range(tl.load(first + r), tl.load(first + r + 1)):
        at = (signal * pieces + q) * HEADS + h
        its = tl.load(top_part + at, mask=h < HEADS, other=0.0)
        now = tl.maximum(m, its)
        sums = tl.load(total_part + at, mask=h < HEADS, other=0.0)
        acc = acc * tl.exp(m - _finite(now)) + sums * tl.exp(its - _finite(now))
        m = now
    tl.store(top + (signal * count + r) * HEADS + h, m, mask=h < HEADS)
    tl.store(total + (signal * count + r) * HEADS + h, acc, mask=h < HEADS)


@triton.jit
def softmax(
    start, stop, rows, logits, top, total, out, entries, count,
    HEADS: tl.constexpr, SPLIT: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """exp(logit - top) / total; `out` may be `logits`."""
    p, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    r = signal * count + (tl.load(rows + p).to(tl.int64) if SPLIT else p)
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    h = tl.program_id(1) * BD + tl.arange(0, BD)
    m = tl.load(top + r * HEADS + h, mask=h < HEADS, other=0.0)
    sums = tl.load(total + r * HEADS + h, mask=h < HEADS, other=1.0)
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        live = (k < hi)[:, None] & (h < HEADS)[None, :]
        at = (signal * entries + k)[:, None] * HEADS + h[None, :]
        s = tl.load(logits + at, mask=live, other=0.0)
        tl.store(out + at, tl.exp(s - m[None, :]) / sums[None, :], mask=live)


@triton.jit
def sums(
    start, stop, order, a, b, out, entries, programs,
    HEADS: tl.constexpr, TWO: tl.constexpr, ORDER: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The sum of a, or of a b, over the entries of a row."""
    p, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    h = tl.program_id(1) * BD + tl.arange(0, BD)
    acc = tl.zeros((BD,), a.dtype.element_ty)
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        entry = tl.load(order + k, mask=k < hi, other=0).to(tl.int64) if ORDER else k
        live = (k < hi)[:, None] & (h < HEADS)[None, :]
        at = (signal * entries + entry)[:, None] * HEADS + h[None, :]
        s = tl.load(a + at, mask=live, other=0.0)
        if TWO:
            s *= tl.load(b + at, mask=live, other=0.0)
        acc += tl.sum(s, 0)
    tl.store(out + (signal * programs + p) * HEADS + h, acc, mask=h < HEADS)


@triton.jit
def softmax_back(
    start, stop, rows, a, g, total, out, entries, count,
    HEADS: tl.constexpr, SPLIT: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """a (g - total), total the row's sum of a g."""
    p, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    r = signal * count + (tl.load(rows + p).to(tl.int64) if SPLIT else p)
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    h = tl.program_id(1) * BD + tl.arange(0, BD)
    s = tl.load(total + r * HEADS + h, mask=h < HEADS, other=0.0)
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        live = (k < hi)[:, None] & (h < HEADS)[None, :]
        at = (signal * entries + k)[:, None] * HEADS + h[None, :]
        one, two = tl.load(a + at, mask=live, other=0.0), tl.load(g + at, mask=live, other=0.0)
        tl.store(out + at, one * two - one * s[None, :], mask=live)


@triton.jit
def largest(
    start, stop, col, values, x, y, programs, x_batch, x_row,
    C: tl.constexpr, SPLIT: tl.constexpr, BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The maximum of v_e x_j over a row; NaN if one is NaN, 0 without entries."""
    p, b = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    f = tl.program_id(1) * BD + tl.arange(0, BD)
    m = tl.full((BD,), float("-inf"), x.dtype.element_ty)
    unknown = tl.zeros((BD,), tl.int32)
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        live = (k < hi)[:, None] & (f < C)[None, :]
        c = tl.load(col + k, mask=k < hi, other=0).to(tl.int64)[:, None]
        s = tl.load(x + b * x_batch + c * x_row + f[None, :], mask=live, other=0.0)
        s *= tl.load(values + k, mask=k < hi, other=0.0)[:, None]
        s = tl.where(live, s, float("-inf"))
        unknown += tl.sum((s != s).to(tl.int32), 0)
        m = tl.maximum(m, tl.max(s, 0))
    m = tl.where(unknown > 0, float("nan"), m)
    tl.store(y + (b * programs + p) * C + f, m if SPLIT else tl.where(hi > lo, m, 0.0), mask=f < C)


@triton.jit
def join_largest(first, part, out, count, pieces, C: tl.constexpr, BD: tl.constexpr):
    """The maximum over the pieces of each row, (b, pieces, C) -> (b, rows, C)."""
    r, b = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    f = tl.program_id(1) * BD + tl.arange(0, BD)
    lo, hi = tl.load(first + r), tl.load(first + r + 1)
    m = tl.full((BD,), float("-inf"), part.dtype.element_ty)
    unknown = tl.zeros((BD,), tl.int32)
    for q in range(lo, hi):
        s = tl.load(part + (b * pieces + q) * C + f, mask=f < C, other=0.0)
        unknown += (s != s).to(tl.int32)
        m = tl.maximum(m, s)
    m = tl.where(unknown > 0, float("nan"), m)
    tl.store(out + (b * count + r) * C + f, tl.where(hi > lo, m, 0.0), mask=f < C)


@triton.jit
def joint(
    start, stop, rows, col, s, t, vector, out, top, total, entries, count, columns, programs,
    HEADS: tl.constexpr, C: tl.constexpr, SLOPE: tl.constexpr, SPLIT: tl.constexpr,
    BE: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The logits <vector_h, LeakyReLU(t_ih + s_jh)> of the entries, and the results of `stats` for them."""
    p, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    r = signal * count + (tl.load(rows + p).to(tl.int64) if SPLIT else p)
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    h = tl.program_id(1) * BH + tl.arange(0, BH)
    m = tl.full((BH,), float("-inf"), out.dtype.element_ty)
    acc = tl.zeros((BH,), out.dtype.element_ty)
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        live = (k < hi)[:, None] & (h < HEADS)[None, :]
        c = signal * columns + tl.load(col + k, mask=k < hi, other=0).to(tl.int64)
        logits = tl.zeros((BE, BH), out.dtype.element_ty)
        for channel in range(0, C, BC):
            f = channel + tl.arange(0, BC)
            at, inside = h[:, None] * C + f[None, :], (h < HEADS)[:, None] & (f < C)[None, :]
            own = tl.load(t + r * (HEADS * C) + at, mask=inside, other=0.0)
            weight = tl.load(vector + at, mask=inside, other=0.0)
            there = s + c[:, None, None] * (HEADS * C) + at[None, :, :]
            u = own[None, :, :] + tl.load(there, mask=(k < hi)[:, None, None] & inside[None, :, :], other=0.0)
            logits += tl.sum(tl.where(u > 0, u, u * SLOPE) * weight[None, :, :], 2)
        tl.store(out + (signal * entries + k)[:, None] * HEADS + h[None, :], logits, mask=live)
        logits = tl.where((k < hi)[:, None], logits, float("-inf"))
        now = tl.maximum(m, tl.max(logits, 0))
        acc = acc * tl.exp(m - _finite(now)) + tl.sum(tl.exp(logits - _finite(now)[None, :]), 0)
        m = now
    at = (signal * programs + p) * HEADS + h
    tl.store(top + at, m, mask=h < HEADS)
    tl.store(total + at, acc, mask=h < HEADS)


@triton.jit
def joint_back(
    start, stop, rows, col, order, own, other, vector, values, g, d, out, out_vector, entries, count, columns, programs,
    HEADS: tl.constexpr, C: tl.constexpr, SLOPE: tl.constexpr, SPLIT: tl.constexpr, ORDER: tl.constexpr,
    BE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradient of joint attention in t, with ORDER in s: over the rows, or columns, of own, of `count`.

    The gradient in the logits is a (g - d), d the row's sum of a g. Without ORDER also each row's gradient in vector.
    """
    p, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    r = signal * count + (tl.load(rows + p).to(tl.int64) if SPLIT else p)
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    f = tl.program_id(1) * BD + tl.arange(0, BD)
    inside, h = f < HEADS * C, f // C
    its = tl.load(own + r * (HEADS * C) + f, mask=inside, other=0.0)
    acc = tl.zeros((BD,), its.dtype)
    acc_vector = acc
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        live = (k < hi)[:, None] & inside[None, :]
        c = (signal * columns + tl.load(col + k, mask=k < hi, other=0).to(tl.int64))[:, None]
        entry = tl.load(order + k, mask=k < hi, other=0).to(tl.int64) if ORDER else k
        at = (signal * entries + entry)[:, None] * HEADS + h[None, :]
        row = (c if ORDER else r) * HEADS + h[None, :]
        w = tl.load(values + at, mask=live, other=0.0)
        w *= tl.load(g + at, mask=live, other=0.0) - tl.load(d + row, mask=live, other=0.0)
        u = its[None, :] + tl.load(other + c * (HEADS * C) + f[None, :], mask=live, other=0.0)
        w = tl.where(u > 0, w, w * SLOPE)
        acc += tl.sum(w, 0)
        if not ORDER:
            acc_vector += tl.sum(w * u, 0)
    at = (signal * programs + p) * (HEADS * C) + f
    tl.store(out + at, acc * tl.load(vector + f, mask=inside, other=0.0), mask=inside)
    if not ORDER:
        tl.store(out_vector + at, acc_vector, mask=inside)


@triton.jit
def _dots(
    own, other, r, c, valid, h, STEP: tl.constexpr, OTHER: tl.constexpr, HEADS: tl.constexpr, C: tl.constexpr,
    ACC: tl.constexpr, BE: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """(BE, BH) <own_rh, other_ch>; the rows of own have STEP heads and those of other OTHER, each HEADS or 1."""
    total = tl.zeros((BE, BH), ACC)
    for channel in range(0, C, BC):
        f = channel + tl.arange(0, BC)
        inside = (h < HEADS)[:, None] & (f < C)[None, :]
        at = h[:, None] * (C if STEP > 1 else 0) + f[None, :]
        left = tl.load(own + r * (STEP * C) + at, mask=inside, other=0.0).to(ACC)
        at = h[:, None] * (C if OTHER > 1 else 0) + f[None, :]
        live = valid[:, None, None] & inside[None, :, :]
        right = tl.load(other + c[:, None, None] * (OTHER * C) + at[None, :, :], mask=live, other=0.0).to(ACC)
        total += tl.sum(left[None, :, :] * right, 2)
    return total


@triton.jit
def dot(
    start, stop, rows, col, q, keys, v, seed, y, top, total, entries, count, columns, programs,
    HEADS: tl.constexpr, C: tl.constexpr, CV: tl.constexpr, HV: tl.constexpr, SCALE: tl.constexpr, LEAST: tl.constexpr,
    DROP: tl.constexpr, LEARN: tl.constexpr, SPLIT: tl.constexpr, ACC: tl.constexpr,
    BLOCKS: tl.constexpr, BE: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """y_ih = sum a m v_jh, a = softmax <q_ih, keys_jh>; v has HV heads, HEADS or 1.

    For split rows the sums are not divided by `total`, as `join_dot` needs them.
    """
    p, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    r = signal * count + (tl.load(rows + p).to(tl.int64) if SPLIT else p)
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    h = tl.program_id(1) // BLOCKS * BH + tl.arange(0, BH)
    f = tl.program_id(1) % BLOCKS * BV + tl.arange(0, BV)
    inside = (h < HEADS)[:, None] & (f < CV)[None, :]
    at_v = h[:, None] * (CV if HV > 1 else 0) + f[None, :]
    m = tl.full((BH,), float("-inf"), ACC)
    sum_a, sum_y = tl.zeros((BH,), ACC), tl.zeros((BH, BV), ACC)
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        c = signal * columns + tl.load(col + k, mask=k < hi, other=0).to(tl.int64)
        s = _dots(q, keys, r, c, k < hi, h, HEADS, HEADS, HEADS, C, ACC, BE, BH, BC)
        s = tl.where((k < hi)[:, None], s, float("-inf"))
        now = tl.maximum(m, tl.max(s, 0))
        before, a = tl.exp(m - _finite(now)), tl.exp(s - _finite(now)[None, :])
        sum_a = sum_a * before + tl.sum(a, 0)
        if DROP:
            at = (signal * entries + k)[:, None] * HEADS + h[None, :]
            a = tl.where(_kept(at, tl.load(seed).to(tl.uint32)) >= LEAST, a * SCALE, 0.0)
        live = (k < hi)[:, None, None] & inside[None, :, :]
        x = tl.load(v + c[:, None, None] * (HV * CV) + at_v[None, :, :], mask=live, other=0.0).to(ACC)
        sum_y = sum_y * before[:, None] + tl.sum(a[:, :, None] * x, 0)
        m = now
    if not SPLIT:
        sum_a = tl.where(hi > lo, 1 / tl.where(hi > lo, sum_a, 1.0), 0.0)
        m = tl.where(hi > lo, m, 0.0)
        sum_y *= sum_a[:, None]
    at = (signal * programs + p) * HEADS + h
    tl.store(y + at[:, None] * CV + f[None, :], sum_y.to(y.dtype.element_ty), mask=inside)
    if LEARN or SPLIT:
        one = (h < HEADS) & (tl.program_id(1) % BLOCKS == 0)
        tl.store(top + at, m, mask=one)
        tl.store(total + at, sum_a, mask=one)


@triton.jit
def join_dot(
    first, y_part, top_part, total_part, y, top, total, count, pieces,
    HEADS: tl.constexpr, C: tl.constexpr, LEARN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The results of `dot` for whole rows, from those of pieces."""
    r, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    lo, hi = tl.load(first + r), tl.load(first + r + 1)
    f = tl.program_id(1) * BD + tl.arange(0, BD)
    inside, h = f < HEADS * C, f // C
    m = tl.full((BD,), float("-inf"), y_part.dtype.element_ty)
    sum_a = tl.zeros((BD,), y_part.dtype.element_ty)
    sum_y = sum_a
    for q in range(lo, hi):
        at = (signal * pieces + q) * HEADS
        its = tl.load(top_part + at + h, mask=inside, other=0.0)
        now = tl.maximum(m, its)
        before, here = tl.exp(m - _finite(now)), tl.exp(its - _finite(now))
        sum_a = sum_a * before + here * tl.load(total_part + at + h, mask=inside, other=1.0)
        sum_y = sum_y * before + here * tl.load(y_part + at * C + f, mask=inside, other=0.0)
        m = now
    inverse = tl.where(hi > lo, 1 / tl.where(hi > lo, sum_a, 1.0), 0.0)
    at = (signal * count + r) * HEADS
    tl.store(y + at * C + f, (sum_y * inverse).to(y.dtype.element_ty), mask=inside)
    if LEARN:
        one = inside & (f % C == 0)
        tl.store(top + at + h, tl.where(hi > lo, m, 0.0), mask=one)
        tl.store(total + at + h, inverse, mask=one)


@triton.jit
def dot_back(
    start, stop, rows, col, order, own, own_v, other, other_v, top, total, d, seed, out, out_v,
    entries, count, columns, programs,
    HEADS: tl.constexpr, C: tl.constexpr, CV: tl.constexpr, HV: tl.constexpr, SCALE: tl.constexpr, LEAST: tl.constexpr,
    DROP: tl.constexpr, SPLIT: tl.constexpr, ORDER: tl.constexpr, ACC: tl.constexpr,
    BLOCKS: tl.constexpr, BE: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The gradients of dot-product attention: dq, over the rows; with ORDER the keys' and dv, over the columns.

    `own` and `own_v` are q and dy, and `other` and `other_v` the keys and v; with ORDER the other way round.
    dq_i = sum w keys_j, w = a (m <dy_i, v_j> - d_i); the keys' is sum w q_i, and dv_j = sum a m dy_i.
    """
    p, signal = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    r = signal * count + (tl.load(rows + p).to(tl.int64) if SPLIT else p)
    lo, hi = tl.load(start + p).to(tl.int64), tl.load(stop + p).to(tl.int64)
    h = tl.program_id(1) // BLOCKS * BH + tl.arange(0, BH)
    block = tl.program_id(1) % BLOCKS
    f, f_v = block * BC + tl.arange(0, BC), block * BV + tl.arange(0, BV)
    inside = (h < HEADS)[:, None] & (f < C)[None, :]
    inside_v = (h < HEADS)[:, None] & (f_v < CV)[None, :]
    acc, acc_v = tl.zeros((BH, BC), ACC), tl.zeros((BH, BV), ACC)
    for e in range(lo, hi, BE):
        k = e + tl.arange(0, BE)
        valid = k < hi
        live = valid[:, None] & (h < HEADS)[None, :]
        c = signal * columns + tl.load(col + k, mask=valid, other=0).to(tl.int64)
        s = _dots(own, other, r, c, valid, h, HEADS, HEADS, HEADS, C, ACC, BE, BH, BC)
        if ORDER:
            g = _dots(own_v, other_v, r, c, valid, h, HV, HEADS, HEADS, CV, ACC, BE, BH, BV)
        else:
            g = _dots(own_v, other_v, r, c, valid, h, HEADS, HV, HEADS, CV, ACC, BE, BH, BV)
        row = (c[:, None] if ORDER else r) * HEADS + h[None, :]
        a = tl.exp(s - tl.load(top + row, mask=live, other=0.0)) * tl.load(total + row, mask=live, other=0.0)
        a = tl.where(live, a, 0.0)
        a_m = a
        if DROP:
            entry = tl.load(order + k, mask=valid, other=0).to(tl.int64) if ORDER else k
            at = (signal * entries + entry)[:, None] * HEADS + h[None, :]
            a_m = tl.where(_kept(at, tl.load(seed).to(tl.uint32)) >= LEAST, a * SCALE, 0.0)
        w = a_m * g - a * tl.load(d + row, mask=live, other=0.0)
        far = other + (c[:, None] * HEADS + h[None, :])[:, :, None] * C + f[None, None, :]
        x = tl.load(far, mask=valid[:, None, None] & inside[None, :, :], other=0.0).to(ACC)
        acc += tl.sum(w[:, :, None] * x, 0)
        if ORDER:
            far = other_v + (c[:, None] * HEADS + h[None, :])[:, :, None] * CV + f_v[None, None, :]
            x = tl.load(far, mask=valid[:, None, None] & inside_v[None, :, :], other=0.0).to(ACC)
            acc_v += tl.sum(a_m[:, :, None] * x, 0)
    at = ((signal * programs + p) * HEADS + h)[:, None]
    tl.store(out + at * C + f[None, :], acc.to(out.dtype.element_ty), mask=inside)
    if ORDER:
        tl.store(out_v + at * CV + f_v[None, :], acc_v.to(out_v.dtype.element_ty), mask=inside_v)
