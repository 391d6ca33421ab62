"""The compiled kernels (csr.c), reached through ctypes where they were built; None where they were not."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import torch
from torch import Tensor

from gconv.kernels import order as node_order
from gconv.kernels.memory import LARGE, empty

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
LEVELS = ("base", "avx2", "avx512")
SERIAL = 1 << 15  # multiply-adds below which waking a second thread costs more than it gives


class Product(ctypes.Structure):
    """The struct `product` of csr.c."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("crow", "col", "order", "values", "x", "z", "w", "y", "place", "start")]
        + [(name, ctypes.c_int64) for name in ("rows", "batch", "channels", "heads", "outer", "inner")]
        + [(f"{of}_{axis}", ctypes.c_int64) for of in "xyz" for axis in ("batch", "row", "head")]
        + [(name, ctypes.c_int64) for name in ("w_batch", "w_row")]
        + [(name, ctypes.c_double) for name in ("alpha", "beta", "gamma")]
    )


# a `product` as bytes, in the order of its fields: much less work than a Structure, where all of them are given
PACKED = struct.Struct("10P17q3d")
assert PACKED.size == ctypes.sizeof(Product)


class Edges(ctypes.Structure):
    """The struct `edges` of csr.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("crow", "col", "order", "a", "b", "y")] + [
        (name, ctypes.c_int64) for name in ("rows", "heads")
    ]


SOFTMAX, SOFTMAX_BACK, ENDS, SUMS = range(4)  # what `gconv_edges` does
LARGEST, TIES, SHARES, WEIGHTS = range(4)  # what `gconv_max` does
INTERFACE = 11  # of csr.c: its structs and functions
HEADS = 64  # at most, for it and for attention
PARTS = 64  # of the rows, in csr.c
SCHEDULED = 4  # channels, from which on rows may be computed in another order


def load() -> ctypes.CDLL | None:
    """The library beside this file, or None."""
    for path in sorted(Path(__file__).parent.glob("_csr*.so")):
        try:
            library = ctypes.CDLL(str(path))  # torch is loaded: both share one OpenMP
        except OSError:
            continue
        if not hasattr(library, "gconv_interface") or library.gconv_interface() != INTERFACE:
            continue  # built from another csr.c
        bytes_, product = ctypes.c_char_p, ctypes.POINTER(Product)
        for name, kind in (("gconv_spmm", bytes_), ("gconv_scatter", bytes_), ("gconv_sddmm", product)):
            function = getattr(library, name)
            function.argtypes = [kind, ctypes.c_int, ctypes.c_int, ctypes.c_int]
            function.restype = None
        library.gconv_edges.argtypes = [ctypes.POINTER(Edges)] + [ctypes.c_int] * 4
        library.gconv_max.argtypes = [ctypes.POINTER(Product)] + [ctypes.c_int] * 4
        library.gconv_build.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 7
        library.gconv_attend.argtypes = library.gconv_joint.argtypes = [ctypes.c_void_p] + [ctypes.c_int] * 4
        library.gconv_joint.restype = None
        library.gconv_edges.restype = library.gconv_max.restype = library.gconv_attend.restype = None
        return library
    return None


LIBRARY = load()
LEVEL: int = LIBRARY.gconv_level() if LIBRARY is not None else -1


def serves(a: Tensor, b: Tensor | None = None) -> bool:
    """Whether the kernels take these tensors: floating point of a known type, on the CPU."""
    if LIBRARY is None or a.dtype not in TYPES or not a.is_cpu:
        return False
    return b is None or (b.dtype in TYPES and b.is_cpu)


def _rows(x: Tensor) -> tuple[Tensor, int, int, int]:
    """(*b, n, c) with channels side by side, a view where possible; the number of signals, strides of batch and row."""
    if x.ndim > 3:
        x = x.flatten(0, -3)
    strides = x.stride()
    if strides[-1] != 1 and x.shape[-1] != 1:
        x = x.contiguous()
        strides = x.stride()
    return (x, 1, 0, strides[0]) if len(strides) == 2 else (x, x.shape[0], strides[0], strides[1])


def threads_for(work: int) -> int:
    """How many threads take so many multiply-adds."""
    return 1 if work < SERIAL else torch.get_num_threads()  # never a fixed number: forked workers run with one


def _held(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in the type that goes with signals of this dtype, without gaps."""
    wanted = torch.float32 if dtype == torch.bfloat16 else dtype
    return (values if values.dtype == wanted else values.to(wanted)).contiguous()


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def build(row: Tensor, col: Tensor, rows: int, cols: int) -> tuple[Tensor, ...]:
    """What a CSR holds of int64 entries: crow, col, crow_t, col_t, to_t, from_t, and perm where they came unsorted."""
    assert LIBRARY is not None
    row, col = row.contiguous(), col.contiguous()
    index, entries = row.new_empty(0, dtype=torch.int32), row.shape[0]
    crow, crow_t = index.new_zeros(rows + 1), index.new_zeros(cols + 1)
    column, column_t, perm, to_t, from_t = (empty(index, (entries,)) for _ in range(5))
    made = (crow, column, crow_t, column_t, perm, to_t, from_t)
    found = LIBRARY.gconv_build(row.data_ptr(), col.data_ptr(), entries, rows, cols, *(t.data_ptr() for t in made))
    if found < 0:
        raise IndexError(f"A sparse pattern of {rows} rows and {cols} columns has an entry outside.")
    return crow, column, crow_t, column_t, to_t, from_t, *(() if found else (perm,))


def spmm(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    x: Tensor,
    z: Tensor | None = None,
    w: Tensor | None = None,
    factors: tuple[float, float, float] = (1.0, 0.0, 0.0),
    out: Tensor | None = None,
    whole: bool = True,
) -> Tensor:
    """alpha S x + beta z + gamma w, (*b, n, c) -> (*b, m, c), factors (alpha, beta, gamma).

    int32 indices; values in x's type (float32 beside bfloat16). `out`, of y's shape, is written into, channels side by
    side. Some of a pattern's rows, not `whole`, run as they come.
    """
    assert LIBRARY is not None
    dtype = x.dtype
    signals, b, x_batch, x_row = _rows(x)
    m, c = crow.shape[0] - 1, x.shape[-1]
    values = _held(values, dtype)
    if out is None:
        y = empty(x, (m, c) if x.ndim == 2 else (*x.shape[:-2], m, c))
        y_batch, y_row = m * c, c
    else:
        y = out
        y_batch, y_row = (0, *out.stride())[-3:-1]
    z, _, z_batch, z_row = (None, 1, 0, 0) if z is None else _rows(z)
    w, _, w_batch, w_row = (None, 1, 0, 0) if w is None else _rows(w)
    found = schedule(crow, col, x.shape[-2], c, x.element_size(), b) if whole else None
    at, to, place, start = (crow.data_ptr(), col.data_ptr(), 0, 0) if found is None else found.pointers
    p = PACKED.pack(
        *(at, to, 0, values.data_ptr()),
        *(signals.data_ptr(), _pointer(z) or 0, _pointer(w) or 0, y.data_ptr(), place, start),
        *(m, b, c, 1, 1, 1),
        *(x_batch, x_row, 0, y_batch, y_row, 0, z_batch, z_row, 0, w_batch, w_row),
        *factors,
    )
    LIBRARY.gconv_spmm(p, TYPES[dtype], LEVEL, threads_for(col.shape[0] * b * c))
    return y


def schedule(crow: Tensor, col: Tensor, cols: int, c: int, item: int, signals: int = 1) -> node_order.Schedule | None:
    """The order of the rows in which S x of c channels is made, None where they stay as they come."""
    return node_order.find(crow, col, cols, c * item, signals) if c >= SCHEDULED else None


def scatter(crow: Tensor, col: Tensor, values: Tensor, x: Tensor, columns: int) -> Tensor:
    """S^T x from S by rows, (*b, m, c) -> (*b, columns, c), all float32 or all float64."""
    assert LIBRARY is not None
    signals, b, x_batch, x_row = _rows(x)
    m, c = crow.shape[0] - 1, x.shape[-1]
    values, y = values.contiguous(), x.new_zeros((*x.shape[:-2], columns, c))
    if not y.numel():
        return y
    p = PACKED.pack(
        *(crow.data_ptr(), col.data_ptr(), 0, values.data_ptr(), signals.data_ptr(), 0, 0, y.data_ptr()),
        *(0, 0, m, b, c, 1, 1, 1),
        *(x_batch, x_row, 0, columns * c, c, 0, 0, 0, 0, 0, 0),
        *(1.0, 0.0, 0.0),
    )
    LIBRARY.gconv_scatter(p, TYPES[x.dtype], LEVEL, threads_for(col.shape[0] * b * c))
    return y


class Ready:
    """S x + add + row for matrices (n, c) of the values' type: what does not change is looked up once.

    Args:
        crow, col, values: S by rows.
        c: channels of x.
        shape: of the result, a row of c numbers for each row of S; several rows may lie side by side.
        beside: whether several rows of x do, without gaps.
    """

    def __init__(
        self, crow: Tensor, col: Tensor, values: Tensor, c: int, shape: tuple[int, int], beside: bool = False
    ) -> None:
        assert LIBRARY is not None
        self.crow, self.col, self.values, self.shape, self.c = crow, col, values, shape, c
        self.beside = beside
        self.pattern = crow.data_ptr(), col.data_ptr(), 0, values.data_ptr()
        self.sizes = crow.shape[0] - 1, 1, c, 1, 1, 1
        self.run, self.type, self.work = LIBRARY.gconv_spmm, TYPES[values.dtype], col.shape[0] * c
        self.large = shape[0] * shape[1] * values.element_size() >= LARGE

    def __call__(self, x: Tensor, add: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        """Channels side by side; `add` of the result's shape, which becomes it if it can; `row` (c,) for all rows."""
        z, step, y = 0, 0, None
        if add is not None:
            z, step = add.data_ptr(), add.stride(0)
            y = add if step == self.c else None
        if y is None:
            y = empty(x, self.shape) if self.large else x.new_empty(self.shape)
        p = PACKED.pack(
            *self.pattern,
            *(x.data_ptr(), z, 0 if row is None else row.data_ptr(), y.data_ptr(), 0, 0),
            *self.sizes,
            *(0, self.c if self.beside else x.stride(0), 0, 0, self.c, 0, 0, step, 0, 0, 0),
            *(1.0, 1.0, 1.0),
        )
        self.run(p, self.type, LEVEL, threads_for(self.work))
        return y


def sddmm(crow: Tensor, col: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """(e,) sum over batch and channels of a[..., i, :] x[..., j, :] at the entries, float32 beside bfloat16."""
    return heads_sddmm(crow, col, a.unsqueeze(-2), x.unsqueeze(-2), 1).squeeze(-1)


def _head_rows(x: Tensor) -> Tensor:
    """(*b, n, g, c) -> (b, n, g, c) with channels side by side, a view where possible."""
    flat = x.flatten(0, -4) if x.ndim > 3 else x.unsqueeze(0)
    return flat if flat.stride(-1) == 1 or flat.shape[-1] == 1 else flat.contiguous()


def _head_stride(x: Tensor) -> int:
    return x.stride(2) if x.shape[2] > 1 else 0


def heads_spmm(crow: Tensor, col: Tensor, order: Tensor | None, values: Tensor, x: Tensor, together: bool) -> Tensor:
    """S_h x_h, (*b, n, g, c) -> (*b, m, heads, c), g the heads or 1; `together`: their sum, (*b, m, 1, c)."""
    assert LIBRARY is not None
    m, signals, heads = crow.shape[0] - 1, _head_rows(x), values.shape[1]
    b, _, _, c = signals.shape
    outer, inner = (1, heads) if together else (heads, 1)
    y = empty(x, (b, m, outer, c))
    values = _held(values, x.dtype)
    row = signals.shape[2] * c * x.element_size()
    found = node_order.find(crow, col, x.shape[-3], row, b) if c >= SCHEDULED else None
    at, to, place, start = (crow.data_ptr(), col.data_ptr(), None, None) if found is None else found.pointers
    p = Product(at, to, _pointer(order), values.data_ptr(), signals.data_ptr())
    p.place, p.start = place, start
    p.y, p.y_batch, p.y_row, p.y_head = y.data_ptr(), y.stride(0), y.stride(1), c
    p.x_batch, p.x_row, p.x_head = signals.stride(0), signals.stride(1), _head_stride(signals)
    p.rows, p.batch, p.channels, p.heads, p.outer, p.inner = m, b, c, heads, outer, inner
    p.alpha = 1.0
    LIBRARY.gconv_spmm(bytes(p), TYPES[x.dtype], LEVEL, threads_for(col.shape[0] * b * c * heads))
    return y.view(*x.shape[:-3], m, outer, c)


def heads_sddmm(crow: Tensor, col: Tensor, a: Tensor, x: Tensor, heads: int) -> Tensor:
    """(e, heads) sum over batch and channels of a[..., i, h, :] x[..., j, h, :]; float32 beside bfloat16."""
    assert LIBRARY is not None
    left, right = _head_rows(a), _head_rows(x.to(a.dtype))
    out = empty(a, (col.shape[0], heads), torch.float32 if a.dtype == torch.bfloat16 else None)
    p = Product(crow.data_ptr(), col.data_ptr(), None, None, right.data_ptr(), left.data_ptr())
    p.y, p.rows, p.heads = out.data_ptr(), crow.shape[0] - 1, heads
    p.x_batch, p.x_row, p.x_head = right.stride(0), right.stride(1), _head_stride(right)
    p.z_batch, p.z_row, p.z_head = left.stride(0), left.stride(1), _head_stride(left)
    p.batch, p.channels = left.shape[0], left.shape[-1]
    LIBRARY.gconv_sddmm(p, TYPES[a.dtype], LEVEL, threads_for(col.shape[0] * left.shape[0] * left.shape[-1] * heads))
    return out


def edges(
    what: int, crow: Tensor, col: Tensor, order: Tensor | None, a: Tensor, b: Tensor | None, shape: tuple[int, int]
) -> Tensor:
    """What `gconv_edges` makes of numbers (e or rows, heads), float32 or float64: a tensor of this shape."""
    assert LIBRARY is not None
    a, b = a.contiguous(), None if b is None else b.contiguous()
    y = empty(a, shape)
    p = Edges(crow.data_ptr(), col.data_ptr(), _pointer(order), a.data_ptr(), _pointer(b), y.data_ptr())
    p.rows, p.heads = crow.shape[0] - 1, shape[1]
    LIBRARY.gconv_edges(p, what, TYPES[a.dtype], LEVEL, threads_for(4 * col.shape[0] * shape[1]))
    return y


def maxima(
    what: int,
    crow: Tensor,
    col: Tensor,
    order: Tensor | None,
    values: Tensor,
    x: Tensor,
    y: Tensor,
    z: Tensor | None = None,
    w: Tensor | None = None,
) -> Tensor:
    """What `gconv_max` writes into y; x, z and w (*b, sites, c), values of the same type, float32 or float64."""
    assert LIBRARY is not None
    x, b, *x_strides = _rows(x)
    c, none = x.shape[-1], (0, 0)
    z, _, *z_strides = (None, 1, *none) if z is None else _rows(z)
    w, _, *w_strides = (None, 1, *none) if w is None else _rows(w)
    values, rows = values.contiguous(), crow.shape[0] - 1
    y_strides = none if what == WEIGHTS else (rows * c, c)
    p = Product(
        *(crow.data_ptr(), col.data_ptr(), _pointer(order), values.data_ptr()),
        *(x.data_ptr(), _pointer(z), _pointer(w), y.data_ptr(), None, None),
        *(rows, b, c, 1, 1, 1),
        *(*x_strides, 0, *y_strides, 0, *z_strides, 0, *w_strides),
        *(1.0, 0.0, 0.0),
    )
    LIBRARY.gconv_max(p, what, TYPES[x.dtype], LEVEL, threads_for(col.shape[0] * b * c))
    return y
