"""Sparse matrices with a common pattern (the heads of attention): products, and functions of the entries of each row.

    heads_spmm    y_h = S_h x_h for every head h, or their sum      values (e, heads)
    heads_sddmm   v_eh = <a_ih, b_jh>, or its sum over signals      the gradient of the values
    row_softmax   over the entries of each row
    ends          v_eh = a_ih + b_jh                                for the logits of attention
    row_sums      s_ih = sum of the entries of row i

Signals may share the values, or each has its own, (*b, e, heads); all have the same pattern.

All are torch.library operators, and their derivatives are expressed in terms of each other, as in sparse.py. With
`transposed` the transposed matrices are used, with the values still in row order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gconv.kernels import cuda, native
from gconv.kernels.registry import Kernel, Saved, Structure, fits, one_place
from gconv.kernels.sparse import CSR, check_numbers, conjugate, gradient_of, rows_of, spmm_torch, widened


def heads_spmm(csr: CSR, values: Tensor, x: Tensor, together: bool = False, transposed: bool = False) -> Tensor:
    """y[..., i, h, :] = sum over the entries (i, j) of values[e, h] x[..., j, h, :].

    Args:
        csr: the pattern, (m, n).
        values: (e, heads) in row order, or (*b, e, heads) if each signal has its own.
        x: (*b, n, heads, c), or (*b, n, 1, c) if all heads have the same signal.
        together: whether to sum over the heads.
        transposed: whether to use the transposed matrices.

    Returns:
        (*b, m, heads, c), or (*b, m, 1, c) if together.

    >>> csr = CSR.build(torch.tensor([0, 0]), torch.tensor([0, 1]), 1, 2)
    >>> heads_spmm(csr, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[[1.0]], [[10.0]]])).flatten()
    tensor([31., 42.])
    """
    return HEADS_SPMM(csr.tensors, values, x, together, transposed)


def heads_sddmm(csr: CSR, a: Tensor, b: Tensor, heads: int, apart: bool = False) -> Tensor:
    """(e, heads) in row order: v_eh = sum over batch and channels of a[..., i, h, :] b[..., j, h, :].

    With `apart` it is not summed over the batch: (*b, e, heads).
    """
    return HEADS_SDDMM(csr.tensors, a, b, heads, apart)


def row_softmax(csr: CSR, logits: Tensor) -> Tensor:
    """The softmax of logits (*b, e, heads) over the entries of each row; stable for large logits.

    >>> csr = CSR.build(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), 2, 2)
    >>> row_softmax(csr, torch.tensor([[0.0], [0.0], [5.0]])).flatten()
    tensor([0.5000, 0.5000, 1.0000])
    """
    return ROW_SOFTMAX(csr.tensors, logits)


def ends(csr: CSR, row: Tensor, col: Tensor) -> Tensor:
    """(*b, e, heads) row[i] + col[j] for each entry (i, j); row (*b, m, heads), col (*b, n, heads)."""
    return ENDS(csr.tensors, row, col)


def row_sums(csr: CSR, values: Tensor, transposed: bool = False) -> Tensor:
    """(*b, m, heads) the sums of values (*b, e, heads) over the entries of each row; if transposed, of each column."""
    return ROW_SUMS(csr.tensors, values, transposed)


# -- in torch ------------------------------------------------------------------------------------------------------


def _by_rows(transposed: bool, structure: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
    """crow, col and the order of the values, of the pattern or its transpose."""
    crow, col, crow_t, col_t, to_t, _ = structure
    return (crow_t, col_t, to_t) if transposed else (crow, col, None)


def heads_spmm_torch(values: Tensor, x: Tensor, together: bool, transposed: bool, *structure: Tensor) -> Tensor:
    """`heads_spmm` in torch."""
    check_numbers(values, x)
    crow, col, order = _by_rows(transposed, structure)
    if not values.shape[-1]:  # no heads
        return x.new_zeros(*x.shape[:-3], crow.shape[0] - 1, int(together), x.shape[-1])
    values = values if order is None else values.index_select(-2, order)
    other = structure[0] if transposed else structure[2]
    x = x.expand(*x.shape[:-2], values.shape[-1], x.shape[-1])
    if values.ndim > 2:  # torch's sparse products have no batch axis
        wide = torch.promote_types(x.dtype, torch.float32)  # in which sums of half-precision numbers are exact enough
        row, y = rows_of(crow, col), x.new_zeros(*x.shape[:-3], crow.shape[0] - 1, *x.shape[-2:], dtype=wide)
        for h in range(values.shape[-1]):
            products = x[..., h, :].index_select(-2, col).to(wide) * values[..., h : h + 1].to(wide)
            y[..., h, :] = y[..., h, :].index_add(-2, row, products)
        return (y.sum(-2, keepdim=True) if together else y).to(x.dtype)
    heads = zip(values.t().contiguous(), x.unbind(-2), strict=True)
    each = [spmm_torch(v, x_h, None, crow, col, other) for v, x_h in heads]
    return torch.stack(each, -2).sum(-2, keepdim=True) if together else torch.stack(each, -2)


def heads_sddmm_torch(a: Tensor, b: Tensor, heads: int, apart: bool, *structure: Tensor) -> Tensor:
    """`heads_sddmm` in torch."""
    crow, col = structure[:2]
    row, at, outer = rows_of(crow, col), col.long(), () if apart else tuple(range(a.ndim - 3))
    out = a.new_empty(*(a.shape[:-3] if apart else ()), col.shape[0], heads)
    a, b = widened(a), widened(b)  # products of small numbers in float16 would be 0
    for h in range(heads):
        left, right = (t[..., min(h, t.shape[-2] - 1), :] for t in (a, b))
        out[..., h] = (left.index_select(-2, row) * right.index_select(-2, at)).sum((*outer, -1))
    return out


def heads_spmm_composed(values: Tensor, x: Tensor, together: bool, transposed: bool, *structure: Tensor) -> Tensor:
    """`heads_spmm` by torch operators, which torch.func can transform."""
    check_numbers(values, x)
    crow, col, order = _by_rows(transposed, structure)
    values = values if order is None else values.index_select(-2, order)
    products = widened(x).index_select(-3, col) * values.unsqueeze(-1)
    products = products.sum(-2, keepdim=True) if together else products
    y = products.new_zeros(*x.shape[:-3], crow.shape[0] - 1, *products.shape[-2:])
    return y.index_add(-3, rows_of(crow, col), products).to(x.dtype)


def heads_sddmm_composed(a: Tensor, b: Tensor, heads: int, apart: bool, *structure: Tensor) -> Tensor:
    """`heads_sddmm` by torch operators, which torch.func can transform."""
    product = widened(a).index_select(-3, rows_of(*structure[:2])) * widened(b).index_select(-3, structure[1])
    total = product.sum(-1 if apart else (*range(a.ndim - 3), -1)).to(a.dtype)
    return total.expand(*total.shape[:-1], heads)


def row_softmax_torch(logits: Tensor, *structure: Tensor) -> Tensor:
    """`row_softmax` in torch."""
    if logits.element_size() == 2:
        return row_softmax_torch(logits.float(), *structure).to(logits.dtype)
    row, rows = rows_of(*structure[:2]), structure[0].shape[0] - 1
    index, shape = row.unsqueeze(-1).expand_as(logits), (*logits.shape[:-2], rows, logits.shape[-1])
    top = logits.new_full(shape, -torch.inf).scatter_reduce(-2, index, logits.detach(), "amax")
    weight = (logits - top.index_select(-2, row)).exp()
    return weight / weight.new_zeros(shape).index_add(-2, row, weight).index_select(-2, row)


def softmax_back_torch(a: Tensor, g: Tensor, *structure: Tensor) -> Tensor:
    """The gradient of `row_softmax` in the logits, from the softmax a and its gradient g."""
    if a.element_size() == 2:
        return softmax_back_torch(a.float(), g.float(), *structure).to(a.dtype)
    row, rows = rows_of(*structure[:2]), structure[0].shape[0] - 1
    product = a * g
    total = product.new_zeros(*a.shape[:-2], rows, a.shape[-1]).index_add(-2, row, product)
    return product - a * total.index_select(-2, row)


def ends_torch(row: Tensor, col: Tensor, *structure: Tensor) -> Tensor:
    """`ends` in torch."""
    total = widened(row).index_select(-2, rows_of(*structure[:2])) + widened(col).index_select(-2, structure[1])
    return total.to(row.dtype)


def row_sums_torch(values: Tensor, transposed: bool, *structure: Tensor) -> Tensor:
    """`row_sums` in torch."""
    if values.element_size() == 2:
        return row_sums_torch(values.float(), transposed, *structure).to(values.dtype)
    crow, col, order = _by_rows(transposed, structure)
    values = values if order is None else values.index_select(-2, order)
    zeros = values.new_zeros(*values.shape[:-2], crow.shape[0] - 1, values.shape[-1])
    return zeros.index_add(-2, rows_of(crow, col), values)


# -- compiled ------------------------------------------------------------------------------------------------------


def _supports_product(structure: tuple[Tensor, ...], *tensors: Tensor) -> bool:
    return structure[0].dtype == torch.int32 and native.supports(*tensors)


def supports(structure: tuple[Tensor, ...], heads: int, *tensors: Tensor) -> bool:
    """Whether the compiled kernels of functions of entries support these: one dtype, on the CPU, not too many heads."""
    kind = tensors[0].dtype
    if kind not in (torch.float32, torch.float64) or not 0 < heads <= native.HEADS:
        return False
    for t in tensors:
        if t.dtype != kind or not t.is_cpu:
            return False
    return structure[0].dtype == torch.int32 and native.LIBRARY is not None


def _check_heads_spmm(values: Tensor, x: Tensor, together: bool, transposed: bool, *structure: Tensor) -> None:
    if values.ndim < 2 or x.ndim < 3 or (values.ndim > 2 and values.shape[:-2] != x.shape[:-3]):
        raise ValueError(
            f"heads_spmm takes values (entries, heads) or (*b, entries, heads) and signals (*b, sites, heads, "
            f"channels), not {tuple(values.shape)} and {tuple(x.shape)}."
        )
    fits("values", values.shape[-2], structure[1].shape[0])
    fits("sites in", x.shape[-3], structure[0 if transposed else 2].shape[0] - 1)
    if x.shape[-2] not in (1, values.shape[-1]):
        raise ValueError(f"The values have {values.shape[-1]} heads, but the signals have {x.shape[-2]}.")
    one_place(structure[0], values, x)


def _check_heads_sddmm(a: Tensor, b: Tensor, heads: int, apart: bool, *structure: Tensor) -> None:
    if a.ndim < 3 or a.ndim != b.ndim or a.shape[:-3] != b.shape[:-3] or a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"heads_sddmm takes (*b, m, heads, c) and (*b, n, heads, c), but the factors are {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    fits("sites out", a.shape[-3], structure[0].shape[0] - 1)
    fits("sites in", b.shape[-3], structure[2].shape[0] - 1)
    if a.shape[-2] not in (1, heads) or b.shape[-2] not in (1, heads):  # a set would compare SymInts by identity
        raise ValueError(f"The values have {heads} heads, but the signals have {a.shape[-2]} and {b.shape[-2]}.")
    one_place(structure[0], a, b)


def _check_entries(values: Tensor, *rest: Any) -> None:
    """Check values (*b, entries, heads). Raises: ValueError."""
    crow, col = rest[-6:-4]
    if values.ndim < 2:
        raise ValueError(f"The values of entries must be (*b, entries, heads), not {tuple(values.shape)}.")
    fits("entries", values.shape[-2], col.shape[0])
    one_place(crow, values)


def _check_softmax_back(a: Tensor, g: Tensor, *structure: Tensor) -> None:
    _check_entries(a, *structure)
    fits("gradients", tuple(g.shape), tuple(a.shape))
    one_place(structure[0], g)


def _check_ends(row: Tensor, col: Tensor, *structure: Tensor) -> None:
    if row.ndim < 2 or row.shape[:-2] != col.shape[:-2] or row.shape[-1] != col.shape[-1] or row.ndim != col.ndim:
        raise ValueError(
            f"ends takes (*b, rows, heads) and (*b, columns, heads) with equal batch axes and heads, not "
            f"{tuple(row.shape)} and {tuple(col.shape)}."
        )
    fits("rows", row.shape[-2], structure[0].shape[0] - 1)
    fits("columns", col.shape[-2], structure[2].shape[0] - 1)
    one_place(structure[0], row, col)


def _heads_spmm_cpu(values: Tensor, x: Tensor, together: bool, transposed: bool, *structure: Tensor) -> Tensor:
    crow, col, order = _by_rows(transposed, structure)
    if values.shape[-1] and _supports_product(structure, values, x):
        return native.heads_spmm(crow, col, order, values, x, together)
    return heads_spmm_torch(values, x, together, transposed, *structure)


def _heads_sddmm_cpu(a: Tensor, b: Tensor, heads: int, apart: bool, *structure: Tensor) -> Tensor:
    crow, col = structure[:2]
    if heads and _supports_product(structure, a, b):
        return native.heads_sddmm(crow, col, a, b, heads, apart).to(a.dtype)
    return heads_sddmm_torch(a, b, heads, apart, *structure)


def _row_softmax_cpu(logits: Tensor, *structure: Tensor) -> Tensor:
    crow, col = structure[:2]
    if supports(structure, logits.shape[-1], logits):
        return native.edges(native.SOFTMAX, crow, col, None, logits, None, logits.shape)
    return row_softmax_torch(logits, *structure)


def _softmax_back_cpu(a: Tensor, g: Tensor, *structure: Tensor) -> Tensor:
    crow, col = structure[:2]
    if supports(structure, a.shape[-1], a, g):
        return native.edges(native.SOFTMAX_BACK, crow, col, None, a, g, a.shape)
    return softmax_back_torch(a, g, *structure)


def _ends_cpu(row: Tensor, col: Tensor, *structure: Tensor) -> Tensor:
    crow, at = structure[:2]
    *batch, _, heads = row.shape
    if supports(structure, heads, row, col):
        return native.edges(native.ENDS, crow, at, None, row, col, (*batch, at.shape[0], heads))
    return ends_torch(row, col, *structure)


def _row_sums_cpu(values: Tensor, transposed: bool, *structure: Tensor) -> Tensor:
    crow, col, order = _by_rows(transposed, structure)
    *batch, _, heads = values.shape
    if supports(structure, heads, values):
        return native.edges(native.SUMS, crow, col, order, values, None, (*batch, crow.shape[0] - 1, heads))
    return row_sums_torch(values, transposed, *structure)


# -- on CUDA, by Triton ------------------------------------------------------------------------------------------------


def _heads_spmm_cuda(values: Tensor, x: Tensor, together: bool, transposed: bool, *structure: Tensor) -> Tensor:
    if values.numel() and cuda.fits(structure, x, types=cuda.FLOATS + cuda.HALVES):
        return cuda.heads_spmm(values, x, together, *_by_rows(transposed, structure))
    return heads_spmm_torch(values, x, together, transposed, *structure)


def _heads_sddmm_cuda(a: Tensor, b: Tensor, heads: int, apart: bool, *structure: Tensor) -> Tensor:
    if heads > 0 and cuda.fits(structure, a, b, types=cuda.FLOATS + cuda.HALVES):
        return cuda.heads_sddmm(a, b, heads, apart, *structure[:2])
    return heads_sddmm_torch(a, b, heads, apart, *structure)


def _row_softmax_cuda(logits: Tensor, *structure: Tensor) -> Tensor:
    if cuda.fits(structure, logits, axes=2):
        return cuda.row_softmax(logits, structure[0])
    return row_softmax_torch(logits, *structure)


def _softmax_back_cuda(a: Tensor, g: Tensor, *structure: Tensor) -> Tensor:
    if cuda.fits(structure, a, g, axes=2):
        return cuda.softmax_back(a, g, structure[0])
    return softmax_back_torch(a, g, *structure)


def _row_sums_cuda(values: Tensor, transposed: bool, *structure: Tensor) -> Tensor:
    crow, _, order = _by_rows(transposed, structure)
    if cuda.fits(structure, values, axes=2):
        return cuda.row_sums(values, None, crow, order)
    return row_sums_torch(values, transposed, *structure)


# -- as operators of torch -----------------------------------------------------------------------------------------


def _heads_spmm_fake(values: Tensor, x: Tensor, together: bool, transposed: bool, *structure: Tensor) -> Tensor:
    m = structure[2 if transposed else 0].shape[0] - 1
    return x.new_empty((*x.shape[:-3], m, 1 if together else values.shape[-1], x.shape[-1]))


def _heads_sddmm_fake(a: Tensor, b: Tensor, heads: int, apart: bool, *structure: Tensor) -> Tensor:
    return a.new_empty(*(a.shape[:-3] if apart else ()), structure[1].shape[0], heads)


def _row_softmax_fake(logits: Tensor, *structure: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _softmax_back_fake(a: Tensor, g: Tensor, *structure: Tensor) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


def _ends_fake(row: Tensor, columns: Tensor, *structure: Tensor) -> Tensor:
    return row.new_empty(*row.shape[:-2], structure[1].shape[0], row.shape[-1])


def _row_sums_fake(values: Tensor, transposed: bool, *structure: Tensor) -> Tensor:
    return values.new_empty(*values.shape[:-2], structure[2 if transposed else 0].shape[0] - 1, values.shape[-1])


def _keep(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    ctx.options = [value for value in arguments if not isinstance(value, Tensor)]
    return [value for value in arguments if isinstance(value, Tensor)]


def _keep_output(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    return [output]


def _keep_options(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    ctx.options = [value for value in arguments if not isinstance(value, Tensor)]
    return []


Gradients = tuple[Tensor | None, ...]


def _heads_spmm_backward(ctx: Any, saved: Any, structure: Structure, dy: Tensor) -> Gradients:
    values, x = saved
    _, transposed = ctx.options
    dvalues = dx = None
    if ctx.needs_input_grad[0]:
        factor = conjugate(x)
        pair = (factor, dy) if transposed else (dy, factor)  # (factor of the rows, factor of the columns)
        dvalues = gradient_of(values, HEADS_SDDMM(structure, *pair, values.shape[-1], values.ndim > 2))
    if ctx.needs_input_grad[1]:
        dx = HEADS_SPMM(structure, conjugate(values), dy, x.shape[-2] == 1, not transposed)
    return dvalues, dx, None, None


def _heads_sddmm_backward(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> Gradients:
    a, b = saved
    da = HEADS_SPMM(structure, g, conjugate(b), a.shape[-2] == 1, False) if ctx.needs_input_grad[0] else None
    db = HEADS_SPMM(structure, g, conjugate(a), b.shape[-2] == 1, True) if ctx.needs_input_grad[1] else None
    return da, db, None, None


def _row_softmax_backward(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> Gradients:
    return (SOFTMAX_BACK(structure, saved[0], g),)


def _softmax_back_backward(ctx: Any, saved: Any, structure: Structure, u: Tensor) -> Gradients:
    """The gradients of a (g - s), s the row sums of a g."""
    a, g = saved
    da = dg = None
    if ctx.needs_input_grad[0]:
        row = rows_of(structure[0], structure[1])
        ag, au = (ROW_SUMS(structure, a * t, False).index_select(-2, row) for t in (g, u))
        da = u * (g - ag) - g * au
    if ctx.needs_input_grad[1]:
        dg = SOFTMAX_BACK(structure, a, u)
    return da, dg


def _ends_backward(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> Gradients:
    drow = ROW_SUMS(structure, g, False) if ctx.needs_input_grad[0] else None
    dcol = ROW_SUMS(structure, g, True) if ctx.needs_input_grad[1] else None
    return drow, dcol


def _row_sums_backward(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> Gradients:
    (transposed,) = ctx.options
    at = structure[1].long() if transposed else rows_of(structure[0], structure[1])
    return g.index_select(-2, at), None


HEADS_SPMM = Kernel(
    "heads_spmm",
    "Tensor values, Tensor x, bool together, bool transposed",
    heads_spmm_torch,
    _heads_spmm_cpu,
    _heads_spmm_fake,
    _keep,
    _heads_spmm_backward,
    heads_spmm_composed,
    check=_check_heads_spmm,
    cuda=_heads_spmm_cuda,
)
HEADS_SDDMM = Kernel(
    "heads_sddmm",
    "Tensor a, Tensor b, int heads, bool apart",
    heads_sddmm_torch,
    _heads_sddmm_cpu,
    _heads_sddmm_fake,
    _keep,
    _heads_sddmm_backward,
    heads_sddmm_composed,
    check=_check_heads_sddmm,
    cuda=_heads_sddmm_cuda,
)
ROW_SOFTMAX = Kernel(
    "row_softmax",
    "Tensor logits",
    row_softmax_torch,
    _row_softmax_cpu,
    _row_softmax_fake,
    _keep_output,
    _row_softmax_backward,
    check=_check_entries,
    cuda=_row_softmax_cuda,
)
SOFTMAX_BACK = Kernel(
    "softmax_back",
    "Tensor a, Tensor g",
    softmax_back_torch,
    _softmax_back_cpu,
    _softmax_back_fake,
    _keep,
    _softmax_back_backward,
    check=_check_softmax_back,
    cuda=_softmax_back_cuda,
)
ENDS = Kernel(
    "ends",
    "Tensor row, Tensor columns",
    ends_torch,
    _ends_cpu,
    _ends_fake,
    _keep_options,
    _ends_backward,
    check=_check_ends,
)
ROW_SUMS = Kernel(
    "row_sums",
    "Tensor values, bool transposed",
    row_sums_torch,
    _row_sums_cpu,
    _row_sums_fake,
    _keep_options,
    _row_sums_backward,
    check=_check_entries,
    cuda=_row_sums_cuda,
)
