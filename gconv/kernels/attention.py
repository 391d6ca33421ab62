"""Additive attention (GAT): softmax and aggregation in one fused kernel that stores no value per entry.

    attention   y_ih = sum over the entries e = (i, j) of a_eh m_eh z_jh,
                a    = softmax over the entries of row i of LeakyReLU(<z_ih, p_h> + <z_jh, q_h>)

m is the dropout mask: 0 for a fraction `share` of the entries, 1 / (1 - share) for the others. It is computed from a
hash of signal, entry, head and seed, and so is not stored either. The backward pass is one pass over the columns, see
csr_attend.h. For higher derivatives (create_graph=True) the gradient is composed of the kernels in heads.py, which are
differentiable.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.kernels import cuda, native_attention
from gconv.kernels.heads import (
    ENDS,
    HEADS_SPMM,
    ROW_SOFTMAX,
    ends_torch,
    heads_sddmm_torch,
    heads_spmm_composed,
    heads_spmm_torch,
    row_softmax_torch,
    row_sums_torch,
    supports,
)
from gconv.kernels.registry import Kernel, Saved, Structure, fits, one_place
from gconv.kernels.sparse import CSR, rows_of

Dropout = tuple[float, Tensor]  # the fraction of entries to drop, and a seed: an integer below 2^32, (1,)
LOW = 0xFFFFFFFF  # mask of the low 32 bits


def attention(csr: CSR, z: Tensor, p: Tensor, q: Tensor, slope: float, dropout: Dropout | None = None) -> Tensor:
    """y (*b, n, heads, c).

    Args:
        csr: the pattern, square.
        z: (*b, n, heads, c) the features of each site.
        p, q: (heads, c) the weights of the features of the row, and of the column, in the logits.
        slope: of LeakyReLU for negative arguments.
        dropout: of the attention values.

    >>> csr = CSR.build(torch.tensor([0, 0]), torch.tensor([0, 1]), 2, 2)
    >>> attention(csr, torch.tensor([[[0.0]], [[-5.0]]]), torch.ones(1, 1), torch.ones(1, 1), 0.0).flatten()
    tensor([-2.5000,  0.0000])
    """
    share, seed = (0.0, None) if dropout is None else dropout
    learn = torch.is_grad_enabled() and (z.requires_grad or p.requires_grad or q.requires_grad)
    kind = torch.promote_types(z.dtype, torch.float32)  # float16 and bfloat16 are computed in float32
    if z.dtype == p.dtype == q.dtype == kind:
        return ATTENTION(csr.tensors, z, p, q, seed, slope, share, learn)
    return ATTENTION(csr.tensors, z.to(kind), p.to(kind), q.to(kind), seed, slope, share, learn).to(z.dtype)


def attention_values(csr: CSR, z: Tensor, p: Tensor, q: Tensor, slope: float, dropout: Dropout | None = None) -> Tensor:
    """The attention values a m (*b, e, heads) in row order, which `attention` does not store."""
    share, seed = (0.0, None) if dropout is None else dropout
    kind = torch.promote_types(z.dtype, torch.float32)
    return _values(csr.tensors, z.to(kind), p.to(kind), q.to(kind), slope, share, seed).to(z.dtype)


def _values(
    structure: Structure, z: Tensor, p: Tensor, q: Tensor, slope: float, share: float, seed: Tensor | None
) -> Tensor:
    values = ROW_SOFTMAX(structure, F.leaky_relu(ENDS(structure, *_scores(z, p, q)), slope))
    return values if seed is None else values * dropout_factor(values, share, seed)


def kept_entries(entries: int, heads: int, share: float, seed: Tensor) -> Tensor:
    """The dropout mask m (entries, heads), float64.

    >>> kept_entries(4, 2, 0.5, torch.tensor([7])).unique()
    tensor([0., 2.], dtype=torch.float64)
    """
    at = torch.arange(entries * heads, device=seed.device)
    mixed = _hashed((_hashed((at & LOW) ^ (0x9E3779B9 * (at >> 32) & LOW)) + seed) & LOW)
    return (mixed >= native_attention.least(share)).view(entries, heads).double() / (1 - share)


def _hashed(x: Tensor) -> Tensor:
    """`hashed` of csr.h, for integers below 2^32."""
    x = ((x ^ x >> 16) * 0x7FEB352D) & LOW
    x = ((x ^ x >> 15) * 0x846CA68B) & LOW
    return x ^ x >> 16


def _scores(z: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    return (z * p).sum(-1), (z * q).sum(-1)


# -- in torch ------------------------------------------------------------------------------------------------------


def dropout_factor(values: Tensor, share: float, seed: Tensor | None) -> Tensor | float:
    """The dropout mask m for values (*b, e, heads)."""
    if seed is None:
        return 1.0
    *entries, heads = values.shape
    return kept_entries(math.prod(entries), heads, share, seed).to(values.dtype).view(values.shape)


def _composed(
    z: Tensor, p: Tensor, q: Tensor, seed: Tensor | None, slope: float, share: float, learn: bool, *structure: Tensor
) -> Tensor:
    values = row_softmax_torch(F.leaky_relu(ends_torch(*_scores(z, p, q), *structure), slope), *structure)
    return heads_spmm_composed(values * dropout_factor(values, share, seed), z, False, False, *structure)


def _logits(target: Tensor, source: Tensor, slope: float, structure: Structure) -> tuple[Tensor, Tensor]:
    """The logits, and the derivative f of LeakyReLU at each."""
    logits = ends_torch(target, source, *structure)
    f = torch.full_like(logits, slope).masked_fill(logits > 0, 1.0)
    return logits * f, f


def _attention_torch(
    z: Tensor, p: Tensor, q: Tensor, seed: Tensor | None, slope: float, share: float, learn: bool, *structure: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    row = rows_of(*structure[:2])
    target, source = _scores(z, p, q)
    logits, f = _logits(target, source, slope, structure)
    index = row.unsqueeze(-1).expand_as(logits)
    top = torch.zeros_like(target).scatter_reduce(-2, index, logits, "amax", include_self=False)
    a = (logits - top.index_select(-2, row)).exp()
    inverse = torch.zeros_like(target).index_add(-2, row, a).reciprocal()
    a = a * inverse.index_select(-2, row)
    m = dropout_factor(a, share, seed)
    y = heads_spmm_torch(a * m, z, False, False, *structure)
    if not learn:
        return y, z.new_empty(0), z.new_empty(0)
    y_f = heads_spmm_torch(a * f * m, z, False, False, *structure)
    g = torch.zeros_like(target).index_add(-2, row, a * f)
    return y, y_f, torch.stack([source, target, top, inverse, g], -3)


def _back_torch(
    z: Tensor,
    p: Tensor,
    q: Tensor,
    seed: Tensor | None,
    slope: float,
    share: float,
    dy: Tensor,
    y: Tensor,
    y_f: Tensor,
    scores: Tensor,
    *structure: Tensor,
) -> Tensor:
    row = rows_of(*structure[:2])
    source, target, top, inverse, g = scores.unbind(-3)
    d = (dy * y).sum(-1)
    dt = (dy * y_f).sum(-1) - d * g
    logits, f = _logits(target, source, slope, structure)
    a = (logits - top.index_select(-2, row)).exp() * inverse.index_select(-2, row)
    m = dropout_factor(a, share, seed)
    dots = heads_sddmm_torch(dy, z, z.shape[-2], True, *structure)
    ds = row_sums_torch(a * f * (m * dots - d.index_select(-2, row)), True, *structure)
    dt, ds = dt.unsqueeze(-1), ds.unsqueeze(-1)
    dz = heads_spmm_torch(a * m, dy, False, True, *structure) + dt * p + ds * q
    return torch.cat([t.flatten(0, -3) for t in (dz, *((end * z).sum_to_size(1, *p.shape) for end in (dt, ds)))])


# -- compiled ------------------------------------------------------------------------------------------------------


def _check(z: Tensor, p: Tensor, q: Tensor, seed: Tensor | None, *rest: Any) -> None:
    structure = rest[-6:]
    square = z.ndim > 2 and structure[0].shape[0] == structure[2].shape[0] == z.shape[-3] + 1
    if not (square and p.shape == q.shape == z.shape[-2:]):
        raise ValueError(
            f"Attention takes a square pattern and one vector per head, but the pattern is {len(structure[0]) - 1} by "
            f"{len(structure[2]) - 1}, z {tuple(z.shape)} and the vectors {tuple(p.shape)} and {tuple(q.shape)}."
        )
    if seed is not None and seed.numel() != 1:
        raise ValueError(f"The seed of dropout must be a single integer, but its shape is {tuple(seed.shape)}.")
    one_place(structure[0], z, p, q)


def _check_back(z: Tensor, p: Tensor, q: Tensor, *rest: Any) -> None:
    _check(z, p, q, *rest)
    dy, y, y_f, scores = rest[3:-6]
    wanted = [*[tuple(z.shape)] * 3, (*z.shape[:-3], native_attention.PLANES, *z.shape[-3:-1])]
    for name, t, shape in zip(("dy", "y", "y_f", "scores"), (dy, y, y_f, scores), wanted, strict=True):
        fits(f"sizes of {name}", tuple(t.shape), shape)
    one_place(rest[-6], dy, y, y_f, scores)


def _attention_cpu(
    z: Tensor, p: Tensor, q: Tensor, seed: Tensor | None, slope: float, share: float, learn: bool, *structure: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if supports(structure, z.shape[-2], z, p, q):
        drop = None if seed is None else (share, int(seed))
        return native_attention.attend(structure, z, p, q, slope, drop, learn)
    return _attention_torch(z, p, q, seed, slope, share, learn, *structure)


def _back_cpu(
    z: Tensor,
    p: Tensor,
    q: Tensor,
    seed: Tensor | None,
    slope: float,
    share: float,
    dy: Tensor,
    y: Tensor,
    y_f: Tensor,
    scores: Tensor,
    *structure: Tensor,
) -> Tensor:
    if supports(structure, z.shape[-2], z, p, q, dy, y, y_f, scores):
        drop = None if seed is None else (share, int(seed))
        return native_attention.attend_back(structure, z, p, q, slope, drop, dy, (y, y_f, scores))
    return _back_torch(z, p, q, seed, slope, share, dy, y, y_f, scores, *structure)


def _attention_cuda(
    z: Tensor, p: Tensor, q: Tensor, seed: Tensor | None, slope: float, share: float, learn: bool, *structure: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    run = cuda.attend if cuda.fits(structure, z, p, q) else _attention_torch
    return run(z, p, q, seed, slope, share, learn, *structure)


def _back_cuda(z: Tensor, p: Tensor, q: Tensor, *rest: Any) -> Tensor:
    run = cuda.attend_back if cuda.fits(rest[-6:], z, p, q, *rest[3:-6]) else _back_torch
    return run(z, p, q, *rest)


# -- as operators of torch -----------------------------------------------------------------------------------------


def _attention_fake(
    z: Tensor, p: Tensor, q: Tensor, seed: Tensor | None, slope: float, share: float, learn: bool, *structure: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (z.shape, (*z.shape[:-3], native_attention.PLANES, *z.shape[-3:-1])) if learn else ((0,), (0,))
    return z.new_empty(z.shape), z.new_empty(sizes[0]), z.new_empty(sizes[1])


def _back_fake(z: Tensor, *rest: Any) -> Tensor:
    return z.new_empty(z.flatten(0, -3).shape[0] + 2, *z.shape[-2:])


def _keep(ctx: Any, arguments: Any, output: tuple[Tensor, Tensor, Tensor]) -> Saved:
    *tensors, ctx.slope, ctx.share, _ = arguments
    return [*tensors, *output]


def _backward(ctx: Any, saved: Any, structure: Structure, dy: Tensor) -> tuple[Tensor | None, ...]:
    z, p, q, seed, *made = saved
    if torch.is_grad_enabled():  # create_graph=True
        z, p, q = (t.view_as(t) for t in (z, p, q))  # as if none depended on another, or was another
        given = [t for t, needs in zip((z, p, q), ctx.needs_input_grad, strict=False) if needs]
        y = HEADS_SPMM(structure, _values(structure, z, p, q, ctx.slope, ctx.share, seed), z, False, False)
        found = iter(torch.autograd.grad(y, given, dy, create_graph=True))
        return *(next(found) if needs else None for needs in ctx.needs_input_grad[:3]), None, None, None, None
    stacked = ATTENTION_BACK(structure, z, p, q, seed, ctx.slope, ctx.share, dy, *made)
    dz = stacked[:-2] if z.ndim == 3 else stacked[:-2].view(z.shape)
    return dz, stacked[-2].clone(), stacked[-1].clone(), None, None, None, None


def _keep_nothing(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    return []


def _back_backward(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError("attention_back is not differentiable; use create_graph=True for higher derivatives.")


_GIVEN = "Tensor z, Tensor p, Tensor q, Tensor? seed, float slope, float share"
ATTENTION = Kernel(
    "attention",
    f"{_GIVEN}, bool learn",
    _attention_torch,
    _attention_cpu,
    _attention_fake,
    _keep,
    _backward,
    _composed,
    outputs=3,
    check=_check,
    cuda=_attention_cuda,
)
ATTENTION_BACK = Kernel(
    "attention_back",
    f"{_GIVEN}, Tensor dy, Tensor y, Tensor y_f, Tensor scores",
    _back_torch,
    _back_cpu,
    _back_fake,
    _keep_nothing,
    _back_backward,
    check=_check_back,
    cuda=_back_cuda,
)
