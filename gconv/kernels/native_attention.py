"""The compiled kernels of attention (csr_attend.h, csr_joint.h), called through ctypes as in native.py."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from gconv.kernels import native
from gconv.kernels import order as node_order
from gconv.kernels.memory import empty
from gconv.kernels.native import PARTS, TYPES

Drop = tuple[float, int] | None  # the fraction of entries to drop, and a seed
Slots = tuple[int | None, ...]  # addresses of crow, col, place and start
PLANES = 5  # number of arrays (rows, heads) that attention saves for the backward pass


class Attention(ctypes.Structure):
    """The struct `attention` of csr.h."""

    _fields_ = (
        [(name + t, ctypes.c_void_p) for t in ("", "_t") for name in ("crow", "col", "place", "start")]
        + [(name, ctypes.c_void_p) for name in ("to_t", "z", "p", "q", "dy")]
        + [(name, ctypes.c_void_p) for name in ("scores", "y", "y_f", "known", "dt", "ds", "dz", "sums")]
        + [(name, ctypes.c_int64) for name in ("rows", "heads", "channels", "z_row", "z_head", "z_signal", "signals")]
        + [("before", ctypes.c_uint64)]
        + [("slope", ctypes.c_double), ("scale", ctypes.c_double)]
        + [("seed", ctypes.c_uint32), ("least", ctypes.c_uint32)]
    )


class Joint(ctypes.Structure):
    """The struct `joint` of csr.h."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("crow", "col", "crow_t", "col_t", "order", "s", "t", "p", "values", "g")]
        + [(name, ctypes.c_void_p) for name in ("y", "ds", "dt", "sums")]
        + [(name, ctypes.c_int64) for name in ("rows", "columns", "heads", "channels")]
        + [(name, ctypes.c_int64) for name in ("s_row", "s_head", "t_row", "t_head", "s_signal", "t_signal", "signals")]
        + [("slope", ctypes.c_double)]
    )


def _flat_batch(z: Tensor) -> Tensor:
    """z with contiguous channels and its batch axes, if any, flattened to one; a view if possible."""
    z = z.flatten(0, -4) if z.ndim > 4 else z
    return z if z.stride(-1) == 1 or z.shape[-1] == 1 else z.contiguous()


def _sums(z: Tensor, signals: int) -> Tensor:
    """A buffer for the partial sums of two arrays (heads, channels) for each part of each signal."""
    parts = PARTS // max(1, min(PARTS, signals))
    make = torch.empty if signals else torch.zeros
    return make(max(1, signals) * parts, 2, *z.shape[-2:], dtype=z.dtype)


def _attention(structure: tuple[Tensor, ...], z: Tensor, p: Tensor, q: Tensor, slope: float, drop: Drop) -> Attention:
    crow, col, crow_t, col_t, to_t, _ = structure
    n, heads, c = z.shape[-3:]
    row = heads * c * z.element_size()
    if n * row < node_order.MIN_BYTES_X:  # no schedule
        there: Slots = crow.data_ptr(), col.data_ptr(), None, None
        back: Slots = crow_t.data_ptr(), col_t.data_ptr(), None, None
    else:
        there, back = _slots(crow, col, n, row), _slots(crow_t, col_t, n, row)
    a = Attention(*there, *back, to_t.data_ptr(), z.data_ptr(), p.data_ptr(), q.data_ptr())
    a.rows, a.heads, a.channels, a.slope = n, heads, c, slope
    *signal, a.z_row, a.z_head, _ = z.stride()
    a.signals, a.z_signal = (z.shape[0], *signal) if signal else (1, 0)
    if drop is not None:
        share, a.seed = drop
        a.scale, a.least = 1 / (1 - share), least(share)
    return a


def _slots(crow: Tensor, col: Tensor, cols: int, row: int) -> Slots:
    """crow, col, place and start of the schedule for rows that gather this many bytes per entry."""
    found = node_order.find(crow, col, cols, row, 1)
    return (crow.data_ptr(), col.data_ptr(), None, None) if found is None else found.pointers


def least(share: float) -> int:
    """The smallest hash for which an entry is kept if this fraction of the entries is dropped."""
    return min(round(share * 2**32), 2**32 - 1)


def attend(
    structure: tuple[Tensor, ...], z: Tensor, p: Tensor, q: Tensor, slope: float, drop: Drop, learn: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y of csr_attend.h (*b, n, heads, c), and y_f and the scores, which are empty unless `learn` is set.

    z (*b, n, heads, c), p and q (heads, c), all float32 or all float64.
    """
    assert native.LIBRARY is not None
    shape = z.shape
    *batch, n, heads, c = shape
    z, p, q = _flat_batch(z), p.contiguous(), q.contiguous()
    y, scores = empty(z, shape), empty(z, (*batch, PLANES, n, heads))
    y_f = empty(z, shape if learn else (0,))
    a = _attention(structure, z, p, q, slope, drop)
    a.scores, a.y, a.y_f = scores.data_ptr(), y.data_ptr(), y_f.data_ptr() if learn else None
    work = structure[1].shape[0] * heads * (c + 8) * a.signals
    if a.signals:
        native.call(native.LIBRARY.gconv_attend, work, ctypes.byref(a), 0, TYPES[z.dtype])
    return y, y_f, scores if learn else scores.new_empty(0)


def attend_back(
    structure: tuple[Tensor, ...],
    z: Tensor,
    p: Tensor,
    q: Tensor,
    slope: float,
    drop: Drop,
    dy: Tensor,
    made: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """dz of all signals, dp and dq, concatenated (b n + 2, heads, c), from dy and the results of `attend`."""
    assert native.LIBRARY is not None
    z, p, q = _flat_batch(z), p.contiguous(), q.contiguous()
    n, heads, c = z.shape[-3:]
    dy, (y, y_f, scores) = dy.contiguous(), made
    y, y_f, scores = y.contiguous(), y_f.contiguous(), scores.contiguous()
    a = _attention(structure, z, p, q, slope, drop)
    all_rows = a.signals * n
    dz, known, sums = empty(z, (all_rows + 2, heads, c)), empty(z, (all_rows * 6 * heads,)), _sums(z, a.signals)
    a.dy, a.scores, a.y, a.y_f, a.dz, a.sums = (t.data_ptr() for t in (dy, scores, y, y_f, dz, sums))
    a.known, a.dt, a.ds = (known.data_ptr() + plane * n * heads * z.element_size() for plane in (0, 4, 5))
    work = structure[1].shape[0] * heads * (2 * c + 8) * a.signals
    if a.signals:
        native.call(native.LIBRARY.gconv_attend, work, ctypes.byref(a), 1, TYPES[z.dtype])
    dz[all_rows:] = sums[0]
    return dz


def joint(
    structure: tuple[Tensor, ...],
    s: Tensor,
    t: Tensor,
    p: Tensor,
    slope: float,
    values: Tensor | None = None,
    g: Tensor | None = None,
) -> Tensor:
    """The values (*b, e, heads) of joint attention; or, given the values and their gradient g, the gradients.

    The gradients are ds of all signals, dt of all signals and dp, concatenated (b n + b m + 1, heads, c).
    s (*b, n, heads, c), t (*b, m, heads, c), p (heads, c), all float32 or all float64.
    """
    assert native.LIBRARY is not None
    crow, col, crow_t, col_t, to_t, _ = structure
    *batch, n, heads, c = s.shape
    m, e, kind = t.shape[-3], col.shape[0], s.dtype
    s, t = _flat_batch(s), _flat_batch(t)
    p, y, signals = p.contiguous(), empty(s, (*batch, e, heads)), math.prod(batch)
    a = Joint(*(x.data_ptr() for x in (crow, col, crow_t, col_t, to_t, s, t, p)))
    a.y, a.rows, a.columns, a.heads, a.channels, a.slope = y.data_ptr(), m, n, heads, c, slope
    a.s_row, a.s_head, a.t_row, a.t_head = *s.stride()[-3:-1], *t.stride()[-3:-1]
    a.signals, a.s_signal, a.t_signal = (signals, s.stride(0), t.stride(0)) if batch else (1, 0, 0)
    work = 4 * e * heads * c * signals
    if values is None or g is None:
        if signals:
            native.call(native.LIBRARY.gconv_joint, work, ctypes.byref(a), 0, TYPES[kind])
        return y
    values, g, made = values.contiguous(), g.contiguous(), empty(s, (signals * (n + m) + 1, heads, c))
    sums = _sums(s, signals)
    a.values, a.g, a.ds, a.sums = (x.data_ptr() for x in (values, g, made, sums))
    a.dt = made[signals * n :].data_ptr()
    if signals:
        native.call(native.LIBRARY.gconv_joint, work, ctypes.byref(a), 1, TYPES[kind])
    made[-1] = sums[0, 0]
    return made
