"""Dot-product attention (transformers): softmax and aggregation in one kernel that stores no value per entry.

    dot_attention   y_ih = sum over the entries e = (i, j) of a_eh m_eh v_jh,
                    a    = softmax over the entries of row i of <q_ih, k_jh>

m is the dropout mask of attention.py. Triton's kernels on CUDA compute the softmax while they gather v, and the
backward pass, one pass over the rows and one over the columns, recomputes a from the largest logit and the sum of each
row. Elsewhere, and for higher derivatives (create_graph=True), the operator is composed of the kernels in heads.py,
which store the values; see `is_fused`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gconv.kernels import cuda
from gconv.kernels.attention import Dropout, dropout_factor
from gconv.kernels.heads import (
    HEADS_SDDMM,
    HEADS_SPMM,
    ROW_SOFTMAX,
    heads_sddmm_composed,
    heads_spmm_composed,
    row_softmax_torch,
)
from gconv.kernels.registry import Kernel, Saved, Structure, fits, one_place
from gconv.kernels.sparse import CSR, rows_of, widened


def dot_attention(csr: CSR, q: Tensor, k: Tensor, v: Tensor, dropout: Dropout | None = None) -> Tensor:
    """y (*b, m, heads, c_v).

    Args:
        csr: the pattern, (m, n).
        q: (*b, m, heads, c) the queries, one per row.
        k: (*b, n, heads, c) the keys, one per column.
        v: (*b, n, heads, c_v), or (*b, n, 1, c_v) if all heads have the same values.
        dropout: of the attention values.

    >>> csr = CSR.build(torch.tensor([0, 0]), torch.tensor([0, 1]), 1, 2)
    >>> dot_attention(csr, torch.zeros(1, 1, 1), torch.ones(2, 1, 1), torch.tensor([[[1.0]], [[3.0]]])).flatten()
    tensor([2.])
    """
    share, seed = (0.0, None) if dropout is None else dropout
    learn = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    q, k = (t if t.dtype == v.dtype else t.to(v.dtype) for t in (q, k))
    return DOT(csr.tensors, q, k, v, seed, share, learn)


def dot_values(csr: CSR, q: Tensor, k: Tensor, dropout: Dropout | None = None) -> Tensor:
    """The attention values a m (*b, e, heads) in row order, which `dot_attention` need not store."""
    share, seed = (0.0, None) if dropout is None else dropout
    return _values(csr.tensors, q, k, share, seed)


def is_fused(csr: CSR) -> bool:
    """Whether `dot_attention` has a fused kernel where this pattern is: on CUDA, with Triton."""
    return csr.crow.is_cuda and cuda.INSTALLED


def _values(structure: Structure, q: Tensor, k: Tensor, share: float, seed: Tensor | None) -> Tensor:
    values = ROW_SOFTMAX(structure, HEADS_SDDMM(structure, widened(q), widened(k), q.shape[-2], True)).to(q.dtype)
    return values if seed is None else values * dropout_factor(values, share, seed)


# -- composed ------------------------------------------------------------------------------------------------------


def _composed(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, share: float, learn: bool, *structure: Tensor
) -> Tensor:
    logits = heads_sddmm_composed(widened(q), widened(k), q.shape[-2], True, *structure)
    values = row_softmax_torch(logits, *structure).to(v.dtype)
    return heads_spmm_composed(values * dropout_factor(values, share, seed), v, False, False, *structure)


def _dot_heads(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, share: float, learn: bool, *structure: Tensor
) -> tuple[Tensor, Tensor]:
    """By the kernels in heads.py."""
    row = rows_of(*structure[:2])
    logits = HEADS_SDDMM(structure, widened(q), widened(k), q.shape[-2], True)
    index = row.unsqueeze(-1).expand_as(logits)
    top = logits.new_zeros(q.shape[:-1]).scatter_reduce(-2, index, logits, "amax", include_self=False)
    a = (logits - top.index_select(-2, row)).exp()
    total = torch.zeros_like(top).index_add(-2, row, a)
    inverse = torch.where(total > 0, total, torch.inf).reciprocal()
    a = (a * inverse.index_select(-2, row) * dropout_factor(a, share, seed)).to(q.dtype)
    y = HEADS_SPMM(structure, a, v, False, False)
    return y, torch.stack([top, inverse]) if learn else top.new_empty(0)


def _back_heads(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, share: float, dy: Tensor, y: Tensor, scores: Tensor,
    *structure: Tensor,
) -> Tensor:  # fmt: skip
    row, heads = rows_of(*structure[:2]), q.shape[-2]
    pairs = (q, k), (dy, v)
    logits, g = (HEADS_SDDMM(structure, widened(a), widened(b), heads, True) for a, b in pairs)
    top, inverse = (t.index_select(-2, row) for t in scores)
    a = (logits - top).exp() * inverse
    m = dropout_factor(a, share, seed)
    d = (dy.to(a.dtype) * y).sum(-1).index_select(-2, row)
    w, a = (a * (m * g - d)).to(q.dtype), (a * m).to(q.dtype)
    made = (
        HEADS_SPMM(structure, w, k, False, False),
        HEADS_SPMM(structure, w, q, False, True),
        HEADS_SPMM(structure, a, dy, v.shape[-2] == 1, True),
    )
    return torch.cat([t.flatten() for t in made])


# -- fused ---------------------------------------------------------------------------------------------------------


def _check(q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, *rest: Any) -> None:
    structure = rest[-6:]
    m, n, heads = structure[0].shape[0] - 1, structure[2].shape[0] - 1, q.shape[-2] if q.ndim > 2 else 0
    wanted = (*q.shape[:-3], m, *q.shape[-2:]), (*q.shape[:-3], n, *q.shape[-2:]), (*q.shape[:-3], n)
    if q.ndim < 3 or (q.shape, k.shape, v.shape[:-2]) != wanted or (v.shape[-2] != 1 and v.shape[-2] != heads):
        raise ValueError(
            f"Dot-product attention takes queries (*b, rows, heads, c), keys (*b, columns, heads, c) and values "
            f"(*b, columns, heads or 1, c_v), but the pattern is {m} by {n}, the queries are {tuple(q.shape)}, the "
            f"keys {tuple(k.shape)} and the values {tuple(v.shape)}."
        )
    if seed is not None and seed.numel() != 1:
        raise ValueError(f"The seed of dropout must be a single integer, but its shape is {tuple(seed.shape)}.")
    one_place(structure[0], q, k, v)


def _check_back(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> None:
    _check(q, k, v, *rest)
    dy, y, scores = rest[2:-6]
    wanted = (*[(*q.shape[:-1], v.shape[-1])] * 2, (2, *q.shape[:-1]))
    for name, t, shape in zip(("dy", "y", "scores"), (dy, y, scores), wanted, strict=True):
        fits(f"sizes of {name}", tuple(t.shape), shape)
    one_place(rest[-6], dy, y, scores)


TYPES = (*cuda.FLOATS, *cuda.HALVES)


def _dot_cuda(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    run = cuda.dot if cuda.fits(rest[-6:], q, k, v, types=TYPES) else _dot_heads
    return run(q, k, v, *rest)


def _back_cuda(q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, share: float, dy: Tensor, *rest: Any) -> Tensor:
    run = cuda.dot_back if cuda.fits(rest[-6:], q, k, v, dy, types=TYPES) else _back_heads
    return run(q, k, v, seed, share, dy, *rest)


# -- as operators of torch -----------------------------------------------------------------------------------------


def _dot_fake(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, share: float, learn: bool, *structure: Tensor
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.new_empty((2, *q.shape[:-1]) if learn else (0,), dtype=wide)
    return q.new_empty(*q.shape[:-1], v.shape[-1]), scores


def _back_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(q.numel() + k.numel() + v.numel())


def _keep(ctx: Any, arguments: Any, output: tuple[Tensor, Tensor]) -> Saved:
    *tensors, ctx.share, _ = arguments
    return [*tensors, *output]


def _backward(ctx: Any, saved: Any, structure: Structure, dy: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, seed, *made = saved
    if torch.is_grad_enabled():  # create_graph=True
        q, k, v = (t.view_as(t) for t in (q, k, v))  # as if none depended on another, or was another
        given = [t for t, needs in zip((q, k, v), ctx.needs_input_grad, strict=False) if needs]
        y = HEADS_SPMM(structure, _values(structure, q, k, ctx.share, seed), v, False, False)
        found = iter(torch.autograd.grad(y, given, dy, create_graph=True))
        return *(next(found) if needs else None for needs in ctx.needs_input_grad[:3]), None, None, None
    flat = DOT_BACK(structure, q, k, v, seed, ctx.share, dy, *made)
    pieces = flat.split([t.numel() for t in (q, k, v)])
    return *(piece.view(t.shape) for piece, t in zip(pieces, (q, k, v), strict=True)), None, None, None


def _keep_nothing(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    return []


def _back_backward(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError("dot_attention_back is not differentiable; use create_graph=True for higher derivatives.")


_GIVEN = "Tensor q, Tensor k, Tensor v, Tensor? seed, float share"
DOT = Kernel(
    "dot_attention",
    f"{_GIVEN}, bool learn",
    _dot_heads,
    _dot_heads,
    _dot_fake,
    _keep,
    _backward,
    _composed,
    outputs=2,
    check=_check,
    cuda=_dot_cuda,
)
DOT_BACK = Kernel(
    "dot_attention_back",
    f"{_GIVEN}, Tensor dy, Tensor y, Tensor scores",
    _back_heads,
    _back_heads,
    _back_fake,
    _keep_nothing,
    _back_backward,
    check=_check_back,
    cuda=_back_cuda,
)
