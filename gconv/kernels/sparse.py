"""Sparse products, differentiable to any order.

    spmm    y = S x             dx = S^T dy  (spmm with the cached transpose),  dS = sddmm(dy, x)
    sddmm   v_e = <a_i, b_j>    da = S(g) b,  db = S(g)^T a                     on the pattern of S

Both are torch.library operators, and so work with autograd (repeatedly), torch.compile(fullgraph=True) and opcheck. On
the CPU they use the compiled kernels of csr.c if these were built; otherwise torch's CSR product.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gconv.errors import InputTypeError
from gconv.kernels import cuda, narrow, native
from gconv.kernels.registry import Kernel, Saved, Structure, check_pattern, fits, one_place
from gconv.kernels.transforms import composes, is_jit_tracing, readable, stable_argsort

CHUNK = 1 << 24  # numbers that the sampled product in torch gathers at a time
FAR, SHRINKS, WIDE = 1 << 21, 8, 32
"""When S x is computed by scattering: x has at least so many bytes, so many times the rows of y, so many channels."""


@dataclass(frozen=True, eq=False)
class CSR:
    """A sparsity pattern in CSR form, and its transpose in CSR form.

    Values are passed in row order, see `csr.ordered`; `perm` sorts them, and is None if the entries were sorted. `to_t`
    permutes values from row order to the row order of the transpose, and `from_t` is its inverse.
    """

    crow: Tensor
    col: Tensor
    crow_t: Tensor
    col_t: Tensor
    perm: Tensor | None
    to_t: Tensor
    from_t: Tensor

    # The arguments of kernels, set for each pattern; not a field, because torch.compile passes those to `__init__`.
    tensors: ClassVar[tuple[Tensor, ...]]

    def __post_init__(self) -> None:
        pattern = self.crow, self.col, self.crow_t, self.col_t, self.to_t, self.from_t
        if not torch.compiler.is_compiling():
            check_pattern(*pattern)
        object.__setattr__(self, "tensors", pattern)

    @classmethod
    def build(cls, row: Tensor, col: Tensor, rows: int, cols: int) -> CSR:
        """From the row and column of each entry, in any order; repeated entries are kept, and add up in products."""
        if row.ndim != 1 or row.shape != col.shape:
            raise ValueError(
                f"A sparse pattern takes a row and a column for each entry, but they are {tuple(row.shape)} and "
                f"{tuple(col.shape)}."
            )
        row, col = row.long(), col.long()
        if not readable(row):
            return cls(*_sorted(row, col, rows, cols, False))
        if min(rows, cols) < 0:
            raise ValueError(f"A sparse pattern needs sizes that are not negative, but they are {rows} and {cols}.")
        small = max(rows, cols, row.shape[0]) < 2**31
        plain = row.is_cpu and col.is_cpu and type(row) is type(col) is Tensor
        compiled = small and plain and native.LIBRARY is not None
        crow, by_row, crow_t, by_col, to_t, from_t, *perm = (native.build if compiled else _sorted)(
            row, col, rows, cols
        )
        if torch.equal(crow, crow_t) and torch.equal(by_row, by_col):
            crow_t, by_col, from_t = crow, by_row, to_t  # a symmetric pattern is its own transpose
        return cls(crow, by_row, crow_t, by_col, perm[0] if perm else None, to_t, from_t)

    @property
    def T(self) -> CSR:
        perm = self.to_t if self.perm is None else self.perm[self.to_t]
        return CSR(self.crow_t, self.col_t, self.crow, self.col, perm, self.from_t, self.to_t)

    def ordered(self, values: Tensor, axis: int = 0) -> Tensor:
        """Values in the order of the entries, along `axis`, permuted to row order."""
        if self.perm is None:
            return values
        have = values.shape[axis]
        if type(have) is int and have != self.perm.shape[0]:  # `fits`, without its frame; not for sizes of a trace
            fits("values", have, self.perm.shape[0])
        return values.index_select(axis, self.perm)  # works with an int32 index

    @property
    def shape(self) -> tuple[int, int]:
        return self.crow.shape[0] - 1, self.crow_t.shape[0] - 1

    @property
    def self_transposed(self) -> bool:
        return self.col is self.col_t


def _sorted(row: Tensor, col: Tensor, rows: int, cols: int, look: bool = True) -> tuple[Tensor, ...]:
    """The result of `native.build`, in pure torch; int64 if the sizes do not fit int32.

    With look=False, for tensors whose values cannot be read, it returns the fields of a CSR in order, as int64; entries
    are not checked, and perm is always included.
    """
    if look and len(row) and (_outside(row, rows) or _outside(col, cols)):
        raise IndexError(f"A sparse pattern of {rows} rows and {cols} columns has an entry out of range.")
    small = look and max(rows, cols, row.shape[0]) < 2**31
    index = torch.int32 if small else torch.int64
    perm = row_order(row, col, cols)
    row, col = row[perm], col[perm]
    to_t = stable_argsort(col)  # stable, so that rows stay sorted within a column
    entry = torch.arange(to_t.shape[0], device=to_t.device)
    from_t = torch.empty_like(to_t).index_copy(0, to_t, entry)
    crow, crow_t = (_pointers(r, n).to(index) for r, n in ((row, rows), (col, cols)))
    pattern = crow, col.to(index), crow_t, row[to_t].to(index)
    if not look:
        return *pattern, perm, to_t, from_t
    made = *pattern, to_t.to(index), from_t.to(index)
    return made if torch.equal(perm, entry) else (*made, perm.to(index))


def _outside(index: Tensor, size: int) -> bool:
    return bool(((index < 0) | (index >= size)).any())


def row_order(row: Tensor, col: Tensor, cols: int) -> Tensor:
    """The permutation that sorts by row, then column; by a single sort if row * cols + col fits int64."""
    if readable(row) and row.shape[0] and float(row.max()) * cols < 2.0**62:
        return stable_argsort(row * max(cols, 1) + col)
    if is_jit_tracing():  # assumes that the product fits, because it is rarely too large
        return torch.argsort(row * cols + col, stable=True)
    by_column = stable_argsort(col)
    return by_column[stable_argsort(row[by_column])]


def _pointers(row: Tensor, rows: int) -> Tensor:
    counts = row.new_zeros(rows).index_add(0, row, torch.ones_like(row))
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def spmm(csr: CSR, values: Tensor, x: Tensor, values_t: Tensor | None = None) -> Tensor:
    """y[..., i, :] = sum over the entries (i, j) of values x[..., j, :].

    Args:
        csr: the pattern, (m, n).
        values: (e,) in row order.
        x: (*b, n, c).
        values_t: (e,) the same values in the row order of the transpose, if they are available.

    Returns:
        (*b, m, c)

    >>> csr = CSR.build(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2, 2)
    >>> spmm(csr, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0], [10.0]]))
    tensor([[21.],
            [30.]])
    """
    return SPMM(csr.tensors, values, x, values_t)


def spmm_rows(
    csr: CSR,
    values: Tensor,
    x: Tensor,
    first: int = 0,
    last: int | None = None,
    add: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The rows first to last of S x + add, (n, c) -> (last - first, c); no autograd.

    Args:
        csr, values, x: as in `spmm`.
        first, last: the range of rows; by default all.
        add: (last - first, c), or (c,) for all rows.
        out: the result is written here; may be `add`.

    >>> csr = CSR.build(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2, 2)
    >>> spmm_rows(csr, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0], [10.0]]), 1, 2, torch.tensor([0.5]))
    tensor([[30.5000]])
    """
    m = csr.crow.shape[0] - 1
    last = m if last is None else last
    if not 0 <= first <= last <= m or values.shape != csr.col.shape or x.ndim != 2:
        raise ValueError(
            f"spmm_rows takes {csr.col.shape[0]} values, a signal ({csr.shape[1]}, c) and a range of the {m} rows, not "
            f"{tuple(values.shape)}, {tuple(x.shape)} and {first} to {last}."
        )
    rows, whole = last - first, first == 0 and last == m
    crow = csr.crow if whole else csr.crow[first : last + 1]
    fits("sites in", x.shape[-2], csr.shape[1])
    one_place(crow, values, x, add, out)
    shape = (rows, x.shape[-1])
    for name, t, shapes in (("add", add, (shape, shape[1:])), ("out", out, (shape,))):
        if t is not None and (t.dtype != x.dtype or t.shape not in shapes):
            raise ValueError(f"{name} is {tuple(t.shape)} of {t.dtype}, but the product is {shape} of {x.dtype}.")
    if out is not None and not _separate(out, x, add):
        raise ValueError(
            f"out has strides {out.stride()}: it must have contiguous channels and rows that do not overlap, and share "
            "no memory with x, nor with add unless it is add."
        )
    if crow.dtype == torch.int32 and native.supports(values, x):
        z = None if add is None else add if add.ndim == 2 else add.contiguous().expand(shape)
        return native.spmm(crow, csr.col, values, x, z, None, (1.0, float(add is not None), 0.0), out, whole)
    start, stop = int(crow[0]), int(crow[-1])
    y = spmm_torch(values[start:stop], x, None, crow - start, csr.col[start:stop], csr.crow_t)
    y = y if add is None else y + add
    return y if out is None else out.copy_(y)


def _separate(out: Tensor, x: Tensor, add: Tensor | None) -> bool:
    """Whether all numbers of `out` (rows, c) may be written while rows of x, and its own row of `add`, are read."""
    if out.numel() == 0:
        return True
    add = None if add is None else add.expand(out.shape)
    apart = out.shape[0] == 1 or out.stride(0) >= out.shape[1]
    if not (apart and (out.stride(-1) == 1 or out.shape[1] == 1)) or _overlap(out, x):
        return False
    same = add is not None and (add.data_ptr(), add.shape, add.stride()) == (out.data_ptr(), out.shape, out.stride())
    return add is None or same or not _overlap(out, add)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices with contiguous channels may share memory; not if they are columns of the same matrix."""
    (start_a, end_a), (start_b, end_b) = _span(a), _span(b)
    if not (a.numel() and b.numel() and start_a < end_b and start_b < end_a):
        return False
    step, far = a.stride(0), (start_a - start_b) // a.itemsize
    return step != b.stride(0) or not (step and b.shape[1] <= far % step <= step - a.shape[1])


def _span(t: Tensor) -> tuple[int, int]:
    """The addresses of the first byte of a tensor, and after the last."""
    last = sum(step * (n - 1) for step, n in zip(t.stride(), t.shape, strict=True))
    return t.data_ptr(), t.data_ptr() + t.itemsize * (last + 1)


def in_order(csr: CSR, values: Tensor, x: Tensor) -> bool:
    """Whether a product with S would use a schedule, see `gconv.kernels.order`; this call is counted as a product."""
    if csr.crow.dtype != torch.int32 or not native.supports(values, x):
        return False
    return native.schedule(csr.crow, csr.col, x.shape[-2], x.shape[-1], x.element_size()) is not None


def unrecorded(csr: CSR, values: Tensor, x: Tensor) -> Tensor:
    """`spmm` without autograd, for plain CPU tensors: it calls the kernel directly."""
    crow, col, crow_t = csr.tensors[:3]
    if values.shape != col.shape or x.ndim < 2:
        raise ValueError(
            f"A sparse product takes {col.shape[0]} values and signals (*b, sites, channels), not "
            f"{tuple(values.shape)} and {tuple(x.shape)}."
        )
    fits("sites in", x.shape[-2], crow_t.shape[0] - 1)
    if crow.dtype == torch.int32 and native.supports(values, x):
        return native.spmm(crow, col, values, x)
    return spmm_torch(values, x, None, *csr.tensors)


def ready(
    csr: CSR, values: Tensor, c: int, shape: tuple[int, int], beside: bool = False
) -> Callable[..., Tensor] | None:
    """S x + add + row as a function of matrices (n, c), add and row: a `native.Ready`; None if not supported."""
    supported = values.dtype in (torch.float32, torch.float64) and values.is_contiguous()
    if not supported or csr.crow.dtype != torch.int32 or not native.supports(values):
        return None
    return native.Ready(csr.crow, csr.col, values, csr.shape[1], c, shape, beside)


def ready_recurrence(
    csr: CSR, values: Tensor, c: int, rows: Sequence[tuple[float, float, float]], dtype: torch.dtype
) -> native.ReadyRecurrence | None:
    """`terms` and `clenshaw` for matrices with c channels; None if not supported."""
    if values.dtype != dtype or dtype not in (torch.float32, torch.float64) or not values.is_contiguous():
        return None
    if csr.crow.dtype != torch.int32 or not native.supports(values) or csr.shape[0] != csr.shape[1]:
        return None
    return native.ReadyRecurrence(csr.crow, csr.col, values, c, rows)


def sddmm(csr: CSR, a: Tensor, b: Tensor) -> Tensor:
    """(e,) in row order: v_e = sum over batch and channels of a[..., i, :] b[..., j, :] at the entries (i, j)."""
    return SDDMM(csr.tensors, a, b)


def rows_of(crow: Tensor, col: Tensor) -> Tensor:
    """The row of each entry."""
    if not composes():
        return torch.repeat_interleave((crow[1:] - crow[:-1]).long(), output_size=col.shape[0])
    starts = crow[1:-1].long()  # by operators that can be exported, without sizes that depend on data
    return (
        col.new_zeros(col.shape[0] + 1, dtype=torch.int64).index_add(0, starts, torch.ones_like(starts)).cumsum(0)[:-1]
    )


def widened(t: Tensor) -> Tensor:
    """16-bit numbers in float32: the derivative of a gather is a sum, in the dtype of what is gathered.

    >>> widened(torch.ones(2, dtype=torch.bfloat16)).dtype, widened(torch.ones(2, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return t.to(torch.promote_types(t.dtype, torch.float32))


def conjugate(t: Tensor) -> Tensor:
    """The complex conjugate, by which a derivative multiplies; t itself if it is real."""
    return t.conj().resolve_conj() if t.is_complex() else t


def gradient_of(values: Tensor, found: Tensor) -> Tensor:
    """A gradient in the dtype of the values: its real part if they are real."""
    return (found if values.is_complex() or not found.is_complex() else found.real).to(values.dtype)


def check_numbers(values: Tensor, x: Tensor) -> None:
    """Raises: InputTypeError if x holds integers, or is real although the values are complex."""
    if not (x.is_floating_point() or x.is_complex()) or (values.is_complex() and not x.is_complex()):
        raise InputTypeError(
            f"A product of values of {values.dtype} with a signal of {x.dtype} would lose a part of them."
        )


def _sparse(crow: Tensor, col: Tensor, values: Tensor, cols: int) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, values, (crow.shape[0] - 1, cols), check_invariants=False)


def _quiet_beta_notice() -> None:
    """Suppress torch's warning that CSR tensors are in beta, which it issues once per process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zero = torch.zeros(1, dtype=torch.int32)
        _sparse(torch.tensor([0, 1], dtype=torch.int32), zero, torch.ones(1), 1)


def spmm_torch(values: Tensor, x: Tensor, values_t: Tensor | None, crow: Tensor, col: Tensor, *rest: Tensor) -> Tensor:
    """S x by torch's CSR product; rest[0] is crow of the transpose, for the number of columns."""
    global _announced
    check_numbers(values, x)
    if not _announced:
        _quiet_beta_notice()
        _announced = True
    cols, shape = rest[0].shape[0] - 1, (*x.shape[:-2], crow.shape[0] - 1, x.shape[-1])
    if x.numel() == 0 or col.shape[0] == 0:
        return x.new_zeros(shape)
    wide = x.movedim(-2, 0).reshape(cols, -1)
    half = x.dtype in (torch.float16, torch.bfloat16) and x.device.type == "cpu"
    if half:  # torch has no half-precision CSR product on the CPU
        values, wide = values.float(), wide.float()
    with torch.autocast(x.device.type, enabled=False):
        y = _sparse(crow, col, values.to(wide.dtype), cols) @ wide
    y = y.to(x.dtype).view(crow.shape[0] - 1, *x.shape[:-2], x.shape[-1])
    return y.movedim(0, -2).contiguous()


def _sddmm_torch(a: Tensor, b: Tensor, crow: Tensor, col: Tensor, *rest: Tensor) -> Tensor:
    row, col, out = rows_of(crow, col), col.long(), a.new_empty(col.shape[0])
    a, b = widened(a), widened(b)  # products of small numbers in float16 would be 0
    width = max(1, a.numel() // max(1, a.shape[-2]))
    step = max(1, CHUNK // width)
    axes = [d for d in range(a.ndim) if d != a.ndim - 2]
    for start in range(0, col.shape[0], step):
        part = slice(start, start + step)
        product = a.index_select(-2, row[part]) * b.index_select(-2, col[part])
        out[part] = product.sum(axes)
    return out


def _spmm_composed(values: Tensor, x: Tensor, values_t: Tensor | None, *structure: Tensor) -> Tensor:
    check_numbers(values, x)
    products = widened(x).index_select(-2, structure[1]) * values.unsqueeze(-1)
    y = products.new_zeros(*x.shape[:-2], structure[0].shape[0] - 1, x.shape[-1])
    return y.index_add(-2, rows_of(*structure[:2]), products).to(x.dtype)


def _sddmm_composed(a: Tensor, b: Tensor, *structure: Tensor) -> Tensor:
    product = widened(a).index_select(-2, rows_of(*structure[:2])) * widened(b).index_select(-2, structure[1])
    return product.sum([axis for axis in range(a.ndim) if axis != a.ndim - 2]).to(a.dtype)


def _check_spmm(
    values: Tensor, x: Tensor, values_t: Tensor | None, crow: Tensor, col: Tensor, crow_t: Tensor, *rest: Tensor
) -> None:
    fits("values", tuple(values.shape), (col.shape[0],))
    if values_t is not None:
        fits("values of the transpose", tuple(values_t.shape), (col.shape[0],))
    if x.ndim < 2:
        raise ValueError(f"A sparse product takes signals (*b, sites, channels), not {tuple(x.shape)}.")
    fits("sites in", x.shape[-2], crow_t.shape[0] - 1)
    one_place(crow, values, x, values_t)


def _check_sddmm(a: Tensor, b: Tensor, crow: Tensor, col: Tensor, crow_t: Tensor, *rest: Tensor) -> None:
    if a.ndim < 2 or b.ndim != a.ndim or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"A sampled product takes (*b, m, c) and (*b, n, c), but the factors are {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    fits("sites out", a.shape[-2], crow.shape[0] - 1)
    fits("sites in", b.shape[-2], crow_t.shape[0] - 1)
    one_place(crow, a, b)


def _scatters(values_t: Tensor, x: Tensor, rows: int) -> bool:
    """Whether to compute S x by scattering from the rows of the transpose: x is read in order, y stays in cache."""
    n, c = x.shape[-2:]
    far = n * c * x.element_size() >= FAR and n >= SHRINKS * rows and c >= WIDE
    return far and x.dtype == values_t.dtype and x.dtype in (torch.float32, torch.float64)


def _spmm_cpu(values: Tensor, x: Tensor, values_t: Tensor | None, crow: Tensor, col: Tensor, *rest: Tensor) -> Tensor:
    if crow.dtype == torch.int32 and native.supports(values, x):
        if values_t is not None and _scatters(values_t, x, crow.shape[0] - 1):
            return native.scatter(rest[0], rest[1], values_t, x, crow.shape[0] - 1)
        if x.ndim == 3 and narrow.supports(x):
            return narrow.interleaved(lambda chunk: native.spmm(crow, col, values, chunk), x)
        return native.spmm(crow, col, values, x)
    return spmm_torch(values, x, values_t, crow, col, *rest)


def _sddmm_cpu(a: Tensor, b: Tensor, crow: Tensor, col: Tensor, *rest: Tensor) -> Tensor:
    if crow.dtype == torch.int32 and native.supports(a, b):
        return native.sddmm(crow, col, a, b).to(a.dtype)
    return _sddmm_torch(a, b, crow, col, *rest)


def _spmm_cuda(values: Tensor, x: Tensor, values_t: Tensor | None, *structure: Tensor) -> Tensor:
    if cuda.fits(structure, x, types=cuda.HALVES, axes=2):  # summed in float32
        return cuda.heads_spmm(values.unsqueeze(1), x.unsqueeze(-2), False, structure[0], structure[1]).squeeze(-2)
    return spmm_torch(values, x, values_t, *structure)


def _sddmm_cuda(a: Tensor, b: Tensor, *structure: Tensor) -> Tensor:
    if cuda.fits(structure, a, b, types=cuda.FLOATS + cuda.HALVES):
        return cuda.heads_sddmm(a.unsqueeze(-2), b.unsqueeze(-2), 1, False, *structure[:2]).squeeze(-1)
    return _sddmm_torch(a, b, *structure)


_announced = False


def _spmm_fake(values: Tensor, x: Tensor, values_t: Tensor | None, crow: Tensor, *rest: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-2], crow.shape[0] - 1, x.shape[-1]))


def _sddmm_fake(a: Tensor, b: Tensor, crow: Tensor, col: Tensor, *rest: Tensor) -> Tensor:
    return a.new_empty(col.shape[0])


def turned(structure: Structure) -> Structure:
    """The pattern of the transpose."""
    crow, col, crow_t, col_t, to_t, from_t = structure
    return crow_t, col_t, crow, col, from_t, to_t


def _spmm_keep(ctx: Any, arguments: tuple[Any, ...], output: Tensor) -> Saved:
    values, x, values_t = arguments
    return [values, x if ctx.needs_input_grad[0] else None, values_t]


def _spmm_backward(ctx: Any, saved: Saved, structure: Structure, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, x, values_t = saved
    assert values is not None
    dvalues = dx = None
    if ctx.needs_input_grad[0]:
        assert x is not None
        dvalues = gradient_of(values, SDDMM(structure, dy, conjugate(x)))
    if ctx.needs_input_grad[1]:
        back = values[structure[4]] if values_t is None else values_t
        dx = SPMM(turned(structure), conjugate(back), dy, conjugate(values))
    return dvalues, dx, None


def _sddmm_keep(ctx: Any, arguments: tuple[Any, ...], output: Tensor) -> Saved:
    return list(arguments)


def _sddmm_backward(ctx: Any, saved: Saved, structure: Structure, g: Tensor) -> tuple[Tensor | None, ...]:
    a, b = saved
    assert a is not None and b is not None
    da = SPMM(structure, g, conjugate(b), None) if ctx.needs_input_grad[0] else None
    db = SPMM(turned(structure), g[structure[4]], conjugate(a), None) if ctx.needs_input_grad[1] else None
    return da, db


SPMM = Kernel(
    "spmm",
    "Tensor values, Tensor x, Tensor? values_t",
    spmm_torch,
    _spmm_cpu,
    _spmm_fake,
    _spmm_keep,
    _spmm_backward,
    _spmm_composed,
    check=_check_spmm,
    cuda=_spmm_cuda,
)
SDDMM = Kernel(
    "sddmm",
    "Tensor a, Tensor b",
    _sddmm_torch,
    _sddmm_cpu,
    _sddmm_fake,
    _sddmm_keep,
    _sddmm_backward,
    _sddmm_composed,
    check=_check_sddmm,
    cuda=_sddmm_cuda,
)
