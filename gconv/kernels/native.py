"""The compiled kernels (csr.c), called through ctypes; `LIBRARY` is None if they were not built.

Two environment variables, read when gconv is imported, select the kernels for tests and comparisons:

    GCONV_KERNELS           off, base, avx2 or avx512: pure torch, or an instruction set below the processor's best
    GCONV_KERNELS_LIBRARY   the path of another build of the library: by `make sanitize`, or by clang as setup.py shows
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gconv.kernels import order as node_order
from gconv.kernels.memory import MIN_BYTES_POOLED, empty

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
LEVELS = ("base", "avx2", "avx512")
SERIAL = 1 << 15  # multiply-adds below which a second thread does not pay
CHUNK = 1 << 26  # multiply-adds per call of a kernel; Python can handle interrupts between calls
ENTRIES = node_order.ENTRIES  # entries per call when a pattern is sorted


class Product(ctypes.Structure):
    """The struct `product` of csr.h."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("crow", "col", "order", "values", "x", "z", "w", "y", "place", "start")]
        + [(name, ctypes.c_int64) for name in ("rows", "batch", "channels", "heads", "outer", "inner")]
        + [(f"{of}_{axis}", ctypes.c_int64) for of in "xyz" for axis in ("batch", "row", "head")]
        + [(name, ctypes.c_int64) for name in ("w_batch", "w_row")]
        + [(name, ctypes.c_double) for name in ("alpha", "beta", "gamma")]
        + [("v_batch", ctypes.c_int64)]
    )


# a `product` as bytes, in the order of its fields, with v_batch = 0: packing is much faster than filling a Structure
PACKED = struct.Struct("10P17q3d8x")
assert PACKED.size == ctypes.sizeof(Product)


class Edges(ctypes.Structure):
    """The struct `edges` of csr.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("crow", "col", "order", "a", "b", "y")] + [
        (name, ctypes.c_int64) for name in ("rows", "heads", "batch", "a_batch", "b_batch", "y_batch")
    ]


class Pattern(ctypes.Structure):
    """The struct `pattern` of csr_build.h."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("row", "col", "crow", "column", "crow_t", "column_t", "perm", "to_t", "from_t")
    ] + [(name, ctypes.c_int64) for name in ("entries", "rows", "cols", "sorted")]


SOFTMAX, SOFTMAX_BACK, ENDS, SUMS = range(4)  # operations of `gconv_edges`
LARGEST, TIES, SHARES, WEIGHTS = range(4)  # operations of `gconv_max`
INTERFACE = 13  # version of the structs and functions; must be equal to gconv_interface in csr.c
HEADS = 64  # maximum for `gconv_edges` and attention
PARTS = 64  # into which csr.c divides the rows
SCHEDULED = 4  # minimum channels for a schedule of the rows


def load() -> ctypes.CDLL | None:
    """The library in the folder of this file, or that of GCONV_KERNELS_LIBRARY; None if there is none."""
    given = os.environ.get("GCONV_KERNELS_LIBRARY")
    for path in [Path(given)] if given else sorted(Path(__file__).parent.glob("_csr*.so")):
        try:
            library = ctypes.CDLL(str(path))  # torch is loaded already, so that both use the same OpenMP library
        except OSError as error:
            if given:
                raise ImportError(f"GCONV_KERNELS_LIBRARY is {given!r}, which can't be loaded: {error}.") from None
            continue
        if not hasattr(library, "gconv_interface") or library.gconv_interface() != INTERFACE:
            if given:
                raise ImportError(f"GCONV_KERNELS_LIBRARY is {given!r}, which was built from another version of gconv.")
            continue
        number, size, address = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
        kernels = {
            "gconv_spmm": (ctypes.c_char_p, 1),
            "gconv_scatter": (ctypes.c_char_p, 1),
            "gconv_sddmm": (ctypes.POINTER(Product), 1),
            "gconv_max": (ctypes.POINTER(Product), 2),
            "gconv_edges": (ctypes.POINTER(Edges), 2),
            "gconv_attend": (address, 2),
            "gconv_joint": (address, 2),
        }
        for name, (struct_, options) in kernels.items():  # then level, threads, chunk, chunks
            function = getattr(library, name)
            function.argtypes = [struct_, *[number] * options, number, number, size, size]
            function.restype = None
        library.gconv_build.argtypes = [ctypes.POINTER(Pattern), number, size, size]
        library.gconv_order.argtypes = [address, size]
        library.gconv_turn.argtypes = [address] * 4 + [size] * 2
        library.gconv_turn.restype = None
        return library
    return None


def choose(library: ctypes.CDLL | None, wanted: str | None) -> tuple[ctypes.CDLL | None, int]:
    """The library to use and the index of its instruction set, if GCONV_KERNELS is `wanted`.

    >>> choose(None, "off")
    (None, -1)
    """
    best = -1 if library is None else library.gconv_level()
    if not wanted:
        return library, best
    if wanted == "off":
        return None, -1
    if wanted not in LEVELS:
        raise ImportError(f"GCONV_KERNELS is {wanted!r}; it may be off, {', '.join(LEVELS[:-1])} or {LEVELS[-1]}.")
    if LEVELS.index(wanted) > best:
        have = "the kernels were not compiled" if library is None else f"this processor has {LEVELS[best]} at most"
        raise ImportError(f"GCONV_KERNELS is {wanted!r}, but {have}.")
    return library, LEVELS.index(wanted)


LIBRARY, LEVEL = choose(load(), os.environ.get("GCONV_KERNELS"))
node_order.compiled = LIBRARY
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def supports(a: Tensor, b: Tensor | None = None) -> bool:
    """Whether the kernels support these tensors: float32, float64 or bfloat16, on the CPU."""
    if LIBRARY is None or a.dtype not in TYPES or not a.is_cpu:
        return False
    return b is None or (b.dtype in TYPES and b.is_cpu)


def _rows(x: Tensor) -> tuple[Tensor, int, int, int]:
    """x with contiguous channels, a view if possible; the number of signals; the strides of batch and row."""
    x = x.resolve_neg() if x.is_neg() else x  # a view of one channel, as of an imaginary part
    if x.ndim > 3:
        x = x.flatten(0, -3)
    strides = x.stride()
    if strides[-1] != 1 and x.shape[-1] != 1:
        x = x.contiguous()
        strides = x.stride()
    return (x, 1, 0, strides[0]) if len(strides) == 2 else (x, x.shape[0], strides[0], strides[1])


def threads_for(work: int) -> int:
    """The number of threads for this many multiply-adds; 1 in a forked process, which has no OpenMP worker threads."""
    return 1 if work < SERIAL or _forked else torch.get_num_threads()


def call(kernel: Callable[..., None], work: int, *arguments: Any) -> None:
    """Call a kernel, in several chunks if there are many multiply-adds."""
    threads, chunks = threads_for(work), 1 + work // CHUNK
    for chunk in range(chunks):
        kernel(*arguments, LEVEL, threads, chunk, chunks)


def run_spmm(packed: bytes, kind: int, work: int) -> None:
    """Call `gconv_spmm` with a packed `product` of this type, for this many multiply-adds."""
    assert LIBRARY is not None
    if work < SERIAL:
        LIBRARY.gconv_spmm(packed, kind, LEVEL, 1, 0, 1)
    else:
        call(LIBRARY.gconv_spmm, work, packed, kind)


def converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous values in the dtype that the kernels need for signals of this dtype."""
    wanted = torch.float32 if dtype == torch.bfloat16 else dtype
    return (values if values.dtype == wanted else values.to(wanted)).contiguous()


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def build(row: Tensor, col: Tensor, rows: int, cols: int) -> tuple[Tensor, ...]:
    """The tensors of a CSR, from int64 entries: crow, col, crow_t, col_t, to_t, from_t, and perm if not yet sorted."""
    assert LIBRARY is not None
    row, col = row.contiguous(), col.contiguous()
    index, entries = row.new_empty(0, dtype=torch.int32), row.shape[0]
    crow, crow_t = index.new_zeros(rows + 1), index.new_zeros(cols + 1)
    column, column_t, perm, to_t, from_t = (empty(index, (entries,), reuse=False) for _ in range(5))
    given = (row, col, crow, column, crow_t, column_t, perm, to_t, from_t)
    pattern = Pattern(*(t.data_ptr() for t in given), entries, rows, cols, 1)
    some_rows = max(1, ENTRIES * rows // max(entries, ENTRIES))
    steps = [(entries, ENTRIES)] * 3 + [(rows, some_rows)]
    for step, (size, some) in enumerate(steps):
        for first in range(0, size, some):
            if LIBRARY.gconv_build(ctypes.byref(pattern), step, first, min(size, first + some)) < 0:
                raise IndexError(f"A sparse pattern of {rows} rows and {cols} columns has an entry out of range.")
    return crow, column, crow_t, column_t, to_t, from_t, *(() if pattern.sorted else (perm,))


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
    """alpha S x + beta z + gamma w, (*b, n, c) -> (*b, m, c).

    Args:
        crow, col: the pattern, int32.
        values: (e,), converted to x's dtype (float32 for bfloat16).
        x, z, w: signals.
        factors: (alpha, beta, gamma).
        out: the result is written here, with contiguous channels.
        whole: False for a part of a pattern's rows, for which there is no schedule.
    """
    assert LIBRARY is not None
    dtype = x.dtype
    signals, b, x_batch, x_row = _rows(x)
    m, c = crow.shape[0] - 1, x.shape[-1]
    values = converted(values, dtype)
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
    call(LIBRARY.gconv_spmm, col.shape[0] * b * c, p, TYPES[dtype])
    return y


def schedule(crow: Tensor, col: Tensor, cols: int, c: int, item: int, signals: int = 1) -> node_order.Schedule | None:
    """The schedule of the rows for S x with c channels; None for the original order."""
    return node_order.find(crow, col, cols, c * item, signals) if c >= SCHEDULED else None


def scatter(crow: Tensor, col: Tensor, values: Tensor, x: Tensor, columns: int) -> Tensor:
    """S^T x from the CSR of S, (*b, m, c) -> (*b, columns, c), all float32 or all float64."""
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
    call(LIBRARY.gconv_scatter, col.shape[0] * b * c, p, TYPES[x.dtype])
    return y


class Ready:
    """A prepared product S x + add + row for matrices x (n, c) of the values' dtype, with little overhead per call.

    No address is kept: sharing a tensor with another process moves it.

    Args:
        crow, col, values: S in CSR form.
        cols: columns of S.
        c: channels of x.
        shape: of the result: c numbers for each row of S; several rows of S may form one row of the result.
        beside: whether several rows of x (n, c) are one row of the argument, which is then made contiguous.
    """

    def __init__(
        self,
        crow: Tensor,
        col: Tensor,
        values: Tensor,
        cols: int,
        c: int,
        shape: tuple[int, int],
        beside: bool = False,
    ) -> None:
        assert LIBRARY is not None
        self.crow, self.col, self.values, self.shape, self.c = crow, col, values, shape, c
        self.numbers, self.dtype = cols * c, values.dtype
        self.given = None if beside else (cols, c)  # the shape of the argument
        self.sizes = crow.shape[0] - 1, 1, c, 1, 1, 1
        self.run, self.type, self.work = LIBRARY.gconv_spmm, TYPES[values.dtype], col.shape[0] * c
        self.large = shape[0] * shape[1] * values.element_size() >= MIN_BYTES_POOLED

    def __call__(self, x: Tensor, add: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        """The product.

        Args:
            x: the matrix.
            add: of the shape of the result, which may overwrite it.
            row: (c,), added to each row.
        """
        if x.shape != self.given or x.dtype != self.dtype or not x.is_cpu or x.stride(-1) != 1 or x.is_neg():
            x = self._checked(x)
        z, step, y = 0, 0, None
        if add is not None:
            if add.shape != self.shape or add.dtype != self.dtype:
                raise ValueError(f"What is added is {_named(add)}, but the product {self.shape} of {self.dtype}.")
            add = add if add.stride(-1) == 1 else add.contiguous()
            z, step = add.data_ptr(), add.stride(0)
            y = add if step == self.c else None
        if row is not None:
            if row.shape != (self.c,) or row.dtype != self.dtype:
                raise ValueError(
                    f"The row that is added is {_named(row)}, but there are {self.c} channels of {self.dtype}."
                )
            row = row.contiguous()  # the same tensor, if it is
        if y is None:
            y = empty(x, self.shape) if self.large else x.new_empty(self.shape)
        p = PACKED.pack(
            *(self.crow.data_ptr(), self.col.data_ptr(), 0, self.values.data_ptr()),
            *(x.data_ptr(), z, 0 if row is None else row.data_ptr(), y.data_ptr(), 0, 0),
            *self.sizes,
            *(0, x.stride(0) if self.given else self.c, 0, 0, self.c, 0, 0, step, 0, 0, 0),
            *(1.0, 1.0, 1.0),
        )
        if self.work < SERIAL:
            self.run(p, self.type, LEVEL, 1, 0, 1)
        else:
            call(self.run, self.work, p, self.type)
        return y

    def _checked(self, x: Tensor) -> Tensor:
        wrong = x.numel() != self.numbers if self.given is None else x.shape != self.given
        if wrong or x.dtype != self.dtype or not x.is_cpu:
            have = self.numbers // max(1, self.c)
            raise ValueError(f"This product takes {have} rows of {self.c} channels of {self.dtype}, not {_named(x)}.")
        return x.resolve_neg().contiguous()


class ReadyRecurrence:
    """Prepared p_k(S) x and sum_k p_k(S) z_k for matrices of the values' dtype, with little overhead per call.

    Args:
        crow, col, values: S (n, n) in CSR form.
        c: channels of x.
        rows: (alpha, beta, gamma) of p_{k+1} = (alpha S + beta) p_k - gamma p_{k-1}.
    """

    def __init__(
        self, crow: Tensor, col: Tensor, values: Tensor, c: int, rows: Sequence[tuple[float, float, float]]
    ) -> None:
        assert LIBRARY is not None
        self.crow, self.col, self.values, self.c, self.rows = crow, col, values, c, tuple(rows)
        self.n, self.taps, self.dtype = crow.shape[0] - 1, len(rows) + 1, values.dtype
        self.sizes = self.n, 1, c, 1, 1, 1
        self.run, self.type, self.work = LIBRARY.gconv_spmm, TYPES[values.dtype], col.shape[0] * c

    def _fits(self, x: Tensor, width: int) -> None:
        if x.shape != (self.n, width) or x.dtype != self.dtype or not x.is_contiguous() or not x.is_cpu:
            raise ValueError(
                f"This recurrence takes a contiguous matrix ({self.n}, {width}) of {self.dtype} on the CPU, not "
                f"{_named(x)}."
            )

    def terms(self, x: Tensor) -> Tensor:
        """All p_k(S) x, (n, c) -> (n, K c)."""
        c, K = self.c, self.taps
        self._fits(x, c)
        y = x.new_empty(self.n, K * c)
        y[:, :c] = x
        start, item, wide = y.data_ptr(), y.element_size() * c, K * c
        pattern = self.crow.data_ptr(), self.col.data_ptr(), 0, self.values.data_ptr()  # which may have moved
        for k, (alpha, beta, gamma) in enumerate(self.rows):
            now, before = start + k * item, start + (k - 1) * item
            z, w = (now if beta else 0), (before if k and gamma else 0)
            p = PACKED.pack(
                *pattern,
                *(now, z, w, start + (k + 1) * item, 0, 0),
                *self.sizes,
                *(0, wide, 0, 0, wide, 0, 0, wide, 0, 0, wide),
                *(alpha, beta if z else 0.0, -gamma if w else 0.0),
            )
            if self.work < SERIAL:
                self.run(p, self.type, LEVEL, 1, 0, 1)
            else:
                call(self.run, self.work, p, self.type)
        return y

    def clenshaw(self, z: Tensor) -> Tensor:
        """sum_k p_k(S) z_k, (n, K c) -> (n, c), by Clenshaw's algorithm."""
        c, K = self.c, self.taps
        self._fits(z, K * c)
        start, item, wide = z.data_ptr(), z.element_size() * c, K * c
        pattern = self.crow.data_ptr(), self.col.data_ptr(), 0, self.values.data_ptr()
        b = z[:, (K - 1) * c :].contiguous()
        ahead: Tensor | None = None
        for k in range(K - 2, -1, -1):
            alpha, beta, _ = self.rows[k]
            gamma = self.rows[k + 1][2] if k + 1 < K - 1 else 0.0
            out = torch.empty_like(b) if ahead is None else ahead  # b_{k+2} is read before b_k is written
            w = ahead.data_ptr() if ahead is not None and gamma else 0
            p = PACKED.pack(
                *pattern,
                *(b.data_ptr(), start + k * item, w, out.data_ptr(), 0, 0),
                *self.sizes,
                *(0, c, 0, 0, c, 0, 0, wide, 0, 0, c),
                *(alpha, 1.0, -gamma if w else 0.0),
            )
            if self.work < SERIAL:
                self.run(p, self.type, LEVEL, 1, 0, 1)
            else:
                call(self.run, self.work, p, self.type)
            if beta:
                out.add_(b, alpha=beta)
            ahead, b = b, out
        return b


def _named(t: Tensor) -> str:
    return f"{tuple(t.shape)} of {t.dtype} on {t.device}"


def sddmm(crow: Tensor, col: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """(e,) sum over batch and channels of a[..., i, :] x[..., j, :] at the entries; float32 for bfloat16."""
    return heads_sddmm(crow, col, a.unsqueeze(-2), x.unsqueeze(-2), 1).squeeze(-1)


def _head_rows(x: Tensor) -> Tensor:
    """(*b, n, g, c) -> (b, n, g, c) with contiguous channels, a view if possible."""
    flat = x.flatten(0, -4) if x.ndim > 3 else x.unsqueeze(0)
    return flat if flat.stride(-1) == 1 or flat.shape[-1] == 1 else flat.contiguous()


def _head_stride(x: Tensor) -> int:
    return x.stride(2) if x.shape[2] > 1 else 0


def heads_spmm(crow: Tensor, col: Tensor, order: Tensor | None, values: Tensor, x: Tensor, together: bool) -> Tensor:
    """S_h x_h, (*b, n, g, c) -> (*b, m, heads, c), g the heads or 1; with `together` their sum, (*b, m, 1, c).

    values (e, heads), or (*b, e, heads) if each signal has its own.
    """
    assert LIBRARY is not None
    m, signals, heads = crow.shape[0] - 1, _head_rows(x), values.shape[-1]
    b, _, _, c = signals.shape
    outer, inner = (1, heads) if together else (heads, 1)
    y = empty(x, (b, m, outer, c))
    if not heads:
        return y.zero_().view(*x.shape[:-3], m, outer, c)
    values = converted(values, x.dtype)
    row = signals.shape[2] * c * x.element_size()
    found = node_order.find(crow, col, x.shape[-3], row, b) if c >= SCHEDULED else None
    at, to, place, start = (crow.data_ptr(), col.data_ptr(), None, None) if found is None else found.pointers
    p = Product(at, to, _pointer(order), values.data_ptr(), signals.data_ptr())
    p.place, p.start = place, start
    p.y, p.y_batch, p.y_row, p.y_head = y.data_ptr(), y.stride(0), y.stride(1), c
    p.x_batch, p.x_row, p.x_head = signals.stride(0), signals.stride(1), _head_stride(signals)
    p.rows, p.batch, p.channels, p.heads, p.outer, p.inner = m, b, c, heads, outer, inner
    p.alpha = 1.0
    if values.ndim > 2:
        p.v_batch = values.shape[-2] * heads
    call(LIBRARY.gconv_spmm, col.shape[0] * b * c * heads, bytes(p), TYPES[x.dtype])
    return y.view(*x.shape[:-3], m, outer, c)


def heads_sddmm(crow: Tensor, col: Tensor, a: Tensor, x: Tensor, heads: int, apart: bool = False) -> Tensor:
    """(e, heads) sum over batch and channels of a[..., i, h, :] x[..., j, h, :]; float32 for bfloat16.

    With `apart` it is not summed over the batch: (*b, e, heads).
    """
    assert LIBRARY is not None
    left, right = _head_rows(a), _head_rows(x.to(a.dtype))
    shape = (*(a.shape[:-3] if apart else ()), col.shape[0], heads)
    out = empty(a, shape, torch.float32 if a.dtype == torch.bfloat16 else None)
    p = Product(crow.data_ptr(), col.data_ptr(), None, None, right.data_ptr(), left.data_ptr())
    p.y, p.rows, p.heads = out.data_ptr(), crow.shape[0] - 1, heads
    p.x_batch, p.x_row, p.x_head = right.stride(0), right.stride(1), _head_stride(right)
    p.z_batch, p.z_row, p.z_head = left.stride(0), left.stride(1), _head_stride(left)
    p.batch, p.channels = left.shape[0], left.shape[-1]
    if apart and a.ndim > 3:
        p.y_batch = max(1, col.shape[0] * heads)  # 0 would mean a sum over the signals
    call(LIBRARY.gconv_sddmm, col.shape[0] * left.shape[0] * left.shape[-1] * heads, p, TYPES[a.dtype])
    return out


def edges(
    what: int, crow: Tensor, col: Tensor, order: Tensor | None, a: Tensor, b: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """The result of `gconv_edges`, a tensor of this shape, for a and b (*b, e or rows, heads), float32 or float64."""
    assert LIBRARY is not None
    a, b = a.contiguous(), None if b is None else b.contiguous()
    y = empty(a, shape)
    p = Edges(crow.data_ptr(), col.data_ptr(), _pointer(order), a.data_ptr(), _pointer(b), y.data_ptr())
    p.rows, p.heads, p.batch = crow.shape[0] - 1, shape[-1], 1
    if len(shape) > 2:
        p.batch, p.a_batch, p.y_batch = math.prod(shape[:-2]), a.shape[-2] * a.shape[-1], shape[-2] * shape[-1]
        p.b_batch = 0 if b is None else b.shape[-2] * b.shape[-1]
    call(LIBRARY.gconv_edges, 4 * col.shape[0] * shape[-1] * p.batch, p, what, TYPES[a.dtype])
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
    """The result of `gconv_max`, written to y; x, z and w (*b, sites, c), values, all float32 or all float64."""
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
    call(LIBRARY.gconv_max, col.shape[0] * b * c, p, what, TYPES[x.dtype])
    return y
