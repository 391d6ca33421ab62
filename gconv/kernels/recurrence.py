"""Polynomials of a sparse matrix by their three-term recurrence, one pass over the matrix per term.

    terms      p_k(S) x for k < K: p_{k+1} = (alpha_k S + beta_k) p_k - gamma_k p_{k-1}
    clenshaw   sum_k p_k(S) z_k, by Clenshaw's algorithm
    filtered   sum_k c_k p_k(S) x, the same with z_k = c_k x

The backward pass of `terms` is `clenshaw` with the transposed matrix and vice versa, and that of `filtered` is
`filtered`. The values of S are fixed here; if they are learned, `gconv.basis.Polynomial` uses single products instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gconv.kernels import narrow, native, order
from gconv.kernels.memory import empty
from gconv.kernels.registry import Kernel, Saved, Structure, fits, one_place
from gconv.kernels.sparse import CSR, SPMM, conjugate, spmm_torch, turned

Rows = Sequence[tuple[float, float, float]]


def terms(csr: CSR, values: Tensor, x: Tensor, rows: Rows, values_t: Tensor | None = None) -> Tensor:
    """p_k(S) x for all k, (*b, n, c) -> (*b, n, K, c).

    Args:
        csr, values, values_t: S (n, n), as in `spmm`.
        x: (*b, n, c).
        rows: K - 1 rows (alpha, beta, gamma).
    """
    return TERMS(csr.tensors, values, x, values_t, _flat(rows))


def clenshaw(csr: CSR, values: Tensor, z: Tensor, rows: Rows, values_t: Tensor | None = None) -> Tensor:
    """sum_k p_k(S) z_k, (*b, n, K, c) -> (*b, n, c)."""
    return CLENSHAW(csr.tensors, values, z, values_t, _flat(rows))


def filtered(
    csr: CSR, values: Tensor, x: Tensor, rows: Rows, coefficients: Sequence[float], values_t: Tensor | None = None
) -> Tensor:
    """sum_k c_k p_k(S) x, (*b, n, c) -> (*b, n, c).

    >>> csr = CSR.build(torch.tensor([0, 1]), torch.tensor([1, 0]), 2, 2)  # exchanges two nodes
    >>> filtered(csr, torch.ones(2), torch.tensor([[1.0], [5.0]]), ((1.0, 0.0, 0.0),), (10.0, 1.0)).flatten()
    tensor([15., 51.])
    """
    return FILTERED(csr.tensors, values, x, values_t, _flat(rows), list(coefficients))


def _flat(rows: Rows) -> list[float]:
    return [number for row in rows for number in row]


class Step:
    """out = alpha S x + beta z + gamma w for signals (b, n, c) or (n, c), by the compiled kernel if it supports them.

    Signals that are too small for a schedule of the rows are passed to the kernel directly, because a recurrence on a
    small graph consists of the overhead of its calls.
    """

    def __init__(self, values: Tensor, like: Tensor, structure: tuple[Tensor, ...]) -> None:
        self.values, self.structure = values, structure
        crow, col = structure[:2]
        on_cpu = like.device.type == "cpu" and crow.dtype == torch.int32
        self.compiled = on_cpu and native.supports(values, like)
        if self.compiled:
            self.values = native.converted(values, like.dtype)
            self.pattern = crow.data_ptr(), col.data_ptr(), 0, self.values.data_ptr()
            self.rows, self.entries, self.type = crow.shape[0] - 1, col.shape[0], native.TYPES[like.dtype]

    def __call__(
        self, out: Tensor, x: Tensor, alpha: float, z: Tensor | None, beta: float, w: Tensor | None, gamma: float
    ) -> None:
        z, w = (z if beta else None), (w if gamma else None)
        if not self.compiled:
            y = spmm_torch(self.values, x, None, *self.structure)
            y = y * alpha if alpha != 1 else y
            y = y if z is None else y + beta * z
            out.copy_(y if w is None else y + gamma * w)
            return
        c, b = x.shape[-1], x.shape[0] if x.ndim == 3 else 1
        x_batch, x_row, x_last = (0, *x.stride())[-3:]
        z_batch, z_row, z_last = (0, 0, 1) if z is None else (0, *z.stride())[-3:]
        w_batch, w_row, w_last = (0, 0, 1) if w is None else (0, *w.stride())[-3:]
        y_batch, y_row, _ = (0, *out.stride())[-3:]
        gaps = c > 1 and not x_last == z_last == w_last == 1
        if gaps or self.rows * c * x.itemsize >= order.MIN_BYTES_X:
            crow, col = self.structure[:2]
            native.spmm(crow, col, self.values, x, z, w, (alpha, beta, gamma), out)
            return
        packed = native.PACKED.pack(
            *self.pattern,
            *(x.data_ptr(), 0 if z is None else z.data_ptr(), 0 if w is None else w.data_ptr(), out.data_ptr(), 0, 0),
            *(self.rows, b, c, 1, 1, 1),
            *(x_batch, x_row, 0, y_batch, y_row, 0, z_batch, z_row, 0, w_batch, w_row),
            *(alpha, beta, gamma),
        )
        native.run_spmm(packed, self.type, self.entries * b * c)


def _check(values: Tensor, x: Tensor, values_t: Tensor | None, rows: list[float], *rest: Any) -> None:
    """Check the arguments for signals (*b, n, c). Raises: ValueError."""
    crow, col, crow_t = rest[-6:-3]
    square = x.ndim > 1 and crow.shape[0] == crow_t.shape[0] == x.shape[-2] + 1  # len would specialise dynamic sizes
    if not square or values.shape != col.shape:
        raise ValueError(
            f"A recurrence takes a square pattern, its {len(col)} values and signals (*b, {len(crow) - 1}, c), but the "
            f"values are {tuple(values.shape)}, the signals {tuple(x.shape)} and the pattern {len(crow) - 1} by "
            f"{len(crow_t) - 1}."
        )
    if values_t is not None:
        fits("values of the transpose", tuple(values_t.shape), tuple(col.shape))
    if len(rest) > 6 and len(rest[0]) != len(rows) // 3 + 1:
        raise ValueError(f"There are {len(rest[0])} coefficients, but {len(rows) // 3 + 1} terms.")
    one_place(crow, values, x, values_t)


def _check_clenshaw(values: Tensor, z: Tensor, values_t: Tensor | None, rows: list[float], *structure: Tensor) -> None:
    if z.ndim < 3 or z.shape[-2] != len(rows) // 3 + 1:
        raise ValueError(
            f"A sum of {len(rows) // 3 + 1} terms takes (*b, n, {len(rows) // 3 + 1}, c), not {tuple(z.shape)}."
        )
    _check(values, z[..., 0, :], values_t, rows, *structure)


def _terms(values: Tensor, x: Tensor, values_t: Tensor | None, rows: list[float], *structure: Tensor) -> Tensor:
    signals = x.flatten(0, -3) if x.ndim > 2 else x.unsqueeze(0)
    step, count = Step(values, x, structure), len(rows) // 3 + 1
    if narrow.supports(signals):
        out = narrow.interleaved(lambda chunk: _each(step, rows, chunk.new_empty(count, *chunk.shape), chunk), signals)
        return out.movedim(1, 2).reshape(*x.shape[:-1], count, x.shape[-1])
    out = empty(x, (*signals.shape[:2], count, x.shape[-1]))
    _each(step, rows, out.movedim(2, 0), signals)
    return out.view(*x.shape[:-1], *out.shape[2:])


def _each(step: Step, rows: list[float], out: Tensor, x: Tensor) -> Tensor:
    """p_k(S) x written to out[k], for all k."""
    out[0] = x
    for k in range(len(rows) // 3):
        alpha, beta, gamma = rows[3 * k : 3 * k + 3]
        step(out[k + 1], out[k], alpha, out[k], beta, out[k - 1] if k else None, -gamma)
    return out


def _sum(step: Step, z: list[Tensor], c: list[float], rows: list[float]) -> Tensor:
    """sum_k c_k p_k(S) z_k: b_k = c_k z_k + (alpha_k S + beta_k) b_{k+1} - gamma_{k+1} b_{k+2}, the sum is b_0."""
    last = len(z) - 1
    b = empty(z[last], z[last].shape)
    b = torch.mul(z[last], c[last], out=b) if c[last] else b.zero_()  # 0 * inf would be NaN
    ahead = None
    for k in range(last - 1, -1, -1):
        alpha, beta = rows[3 * k : 3 * k + 2]
        gamma = rows[3 * k + 5] if k + 1 < last else 0.0
        out = empty(b, b.shape) if ahead is None else ahead  # b_{k+2} is read before b_k is written
        step(out, b, alpha, z[k], c[k], ahead, -gamma)
        if beta:
            out.add_(b, alpha=beta)
        ahead, b = b, out
    return b


def _clenshaw(values: Tensor, z: Tensor, values_t: Tensor | None, rows: list[float], *structure: Tensor) -> Tensor:
    signals = z.flatten(0, -4) if z.ndim > 3 else z.unsqueeze(0)
    if narrow.supports(signals):
        y = narrow.interleaved(lambda chunk: _clenshaw(values, chunk, values_t, rows, *structure), signals)
        return y.view(*z.shape[:-2], z.shape[-1])
    each = list(signals.unbind(2))
    each[-1] = each[-1].contiguous()
    y = _sum(Step(values, z, structure), each, [1.0] * len(each), rows)
    return y.view(*z.shape[:-2], z.shape[-1])


def _filtered(
    values: Tensor, x: Tensor, values_t: Tensor | None, rows: list[float], coefficients: list[float], *structure: Tensor
) -> Tensor:
    signals = (x.flatten(0, -3) if x.ndim > 2 else x.unsqueeze(0)).contiguous()
    if narrow.supports(signals):
        y = narrow.interleaved(lambda some: _filtered(values, some, values_t, rows, coefficients, *structure), signals)
        return y.view(x.shape)
    return _sum(Step(values, x, structure), [signals] * len(coefficients), coefficients, rows).view(x.shape)


def _terms_composed(
    values: Tensor, x: Tensor, values_t: Tensor | None, rows: list[float], *structure: Tensor
) -> Tensor:
    made = [x]
    for k in range(len(rows) // 3):
        alpha, beta, gamma = rows[3 * k : 3 * k + 3]
        step = alpha * SPMM(structure, values, made[k], values_t)
        step = step + beta * made[k] if beta else step  # 0 * inf would be NaN
        made.append(step - gamma * made[k - 1] if k and gamma else step)
    return torch.stack(made, -2)


def _clenshaw_composed(
    values: Tensor, z: Tensor, values_t: Tensor | None, rows: list[float], *structure: Tensor
) -> Tensor:
    *others, b = z.unbind(-2)
    ahead = b
    for k in range(len(others) - 1, -1, -1):
        alpha, beta, gamma = *rows[3 * k : 3 * k + 2], (*rows, 0.0, 0.0, 0.0)[3 * k + 5]
        step = others[k] + alpha * SPMM(structure, values, b, values_t)
        step = step + beta * b if beta else step
        ahead, b = b, step - gamma * ahead if gamma else step
    return b


def _filtered_composed(
    values: Tensor, x: Tensor, values_t: Tensor | None, rows: list[float], coefficients: list[float], *structure: Tensor
) -> Tensor:
    z = torch.stack([c * x if c else torch.zeros_like(x) for c in coefficients], -2)
    return _clenshaw_composed(values, z, values_t, rows, *structure)


def _terms_fake(values: Tensor, x: Tensor, values_t: Tensor | None, rows: list[float], *structure: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(rows) // 3 + 1, x.shape[-1]))


def _clenshaw_fake(values: Tensor, z: Tensor, values_t: Tensor | None, rows: list[float], *structure: Tensor) -> Tensor:
    return z.new_empty((*z.shape[:-2], z.shape[-1]))


def _filtered_fake(values: Tensor, x: Tensor, values_t: Tensor | None, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    values, _, values_t, *ctx.options = arguments
    return [values, values_t]


def _turned(ctx: Any, saved: Any, structure: Structure) -> tuple[Structure, Tensor, Tensor]:
    """The transposed matrix: its pattern, its values, and those of S."""
    if ctx.needs_input_grad[0]:
        raise NotImplementedError("The values of a recurrence have no gradient here; compose it from spmm.")
    values, values_t = saved
    back = values[structure[4]] if values_t is None else values_t
    return turned(structure), conjugate(back), conjugate(values)


def _terms_backward(ctx: Any, saved: Any, structure: Structure, dy: Tensor) -> tuple[Tensor | None, ...]:
    pattern, back, values = _turned(ctx, saved, structure)
    return None, CLENSHAW(pattern, back, dy, values, *ctx.options), None, None


def _clenshaw_backward(ctx: Any, saved: Any, structure: Structure, dy: Tensor) -> tuple[Tensor | None, ...]:
    pattern, back, values = _turned(ctx, saved, structure)
    return None, TERMS(pattern, back, dy, values, *ctx.options), None, None


def _filtered_backward(ctx: Any, saved: Any, structure: Structure, dy: Tensor) -> tuple[Tensor | None, ...]:
    pattern, back, values = _turned(ctx, saved, structure)
    return None, FILTERED(pattern, back, dy, values, *ctx.options), None, None, None


TERMS = Kernel(
    "terms",
    "Tensor values, Tensor x, Tensor? values_t, float[] rows",
    _terms,
    _terms,
    _terms_fake,
    _keep,
    _terms_backward,
    _terms_composed,
    check=_check,
)
CLENSHAW = Kernel(
    "clenshaw",
    "Tensor values, Tensor z, Tensor? values_t, float[] rows",
    _clenshaw,
    _clenshaw,
    _clenshaw_fake,
    _keep,
    _clenshaw_backward,
    _clenshaw_composed,
    check=_check_clenshaw,
)
FILTERED = Kernel(
    "filtered",
    "Tensor values, Tensor x, Tensor? values_t, float[] rows, float[] coefficients",
    _filtered,
    _filtered,
    _filtered_fake,
    _keep,
    _filtered_backward,
    _filtered_composed,
    check=_check,
)
