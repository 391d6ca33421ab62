"""Attention whose logits are a sum over both ends of an entry: the values of all entries, in one pass over the rows.

    attention   a_eh = softmax over the entries e = (i, j) of row i of bend(<z_ih, p_h> + <z_jh, q_h>)

bend(l) is LeakyReLU. Its derivative is one pass over the rows and one over the columns; under a graph of its own it is
composed of the kernels in heads.py, which are closed under differentiation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.kernels import native
from gconv.kernels.heads import (
    ENDS,
    ROW_SUMS,
    SOFTMAX_BACK,
    carried,
    ends_torch,
    row_softmax_torch,
    row_sums_torch,
    softmax_back_torch,
)
from gconv.kernels.registry import Kernel, Saved, Structure
from gconv.kernels.sparse import CSR


def attention(csr: CSR, z: Tensor, p: Tensor, q: Tensor, slope: float) -> Tensor:
    """The values (e, heads) in row order.

    Args:
        csr: the pattern, square.
        z: (n, heads, c) what each site carries.
        p, q: (heads, c) how it is read where it is the row of an entry, and where it is the column.
        slope: of bend below zero.

    >>> csr = CSR.build(torch.tensor([0, 0]), torch.tensor([0, 1]), 2, 2)
    >>> attention(csr, torch.tensor([[[0.0]], [[-5.0]]]), torch.ones(1, 1), torch.ones(1, 1), 0.0).flatten()
    tensor([0.5000, 0.5000])
    """
    return ATTENTION(csr.tensors, z, p, q, slope)


def _scores(z: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    return (z * p).sum(-1), (z * q).sum(-1)


def _attention_torch(z: Tensor, p: Tensor, q: Tensor, slope: float, *structure: Tensor) -> Tensor:
    logits = ends_torch(*_scores(z, p, q), *structure)
    return row_softmax_torch(F.leaky_relu(logits, slope), *structure)


def _gradients(
    z: Tensor, p: Tensor, q: Tensor, slope: float, a: Tensor, g: Tensor, structure: Structure, by: Any
) -> Any:
    """dz, dp and dq; `by` are the functions that make the ends' sum, softmax's derivative and sums of entries."""
    ends, softmax_back, row_sums = by
    logits = ends(*_scores(z, p, q))
    bent = softmax_back(a, g)
    bent = torch.where(logits > 0, bent, slope * bent)
    dt, ds = row_sums(bent, False).unsqueeze(-1), row_sums(bent, True).unsqueeze(-1)
    return dt * p + ds * q, (dt * z).sum(0), (ds * z).sum(0)


def _back_torch(z: Tensor, p: Tensor, q: Tensor, slope: float, a: Tensor, g: Tensor, *structure: Tensor) -> Tensor:
    by = (
        lambda t, s: ends_torch(t, s, *structure),
        lambda a, g: softmax_back_torch(a, g, *structure),
        lambda v, transposed: row_sums_torch(v, transposed, *structure),
    )
    dz, dp, dq = _gradients(z, p, q, slope, a, g, structure, by)
    return torch.cat([dz, dp.unsqueeze(0), dq.unsqueeze(0)])


def _check(z: Tensor, p: Tensor, q: Tensor, structure: Structure) -> None:
    n, heads, c = z.shape
    if {len(structure[0]), len(structure[2])} != {n + 1} or {tuple(p.shape), tuple(q.shape)} != {(heads, c)}:
        raise ValueError(
            f"Attention takes a square pattern and one vector a head, but the pattern is {len(structure[0]) - 1} by "
            f"{len(structure[2]) - 1}, z {tuple(z.shape)} and the vectors {tuple(p.shape)} and {tuple(q.shape)}."
        )


def _attention_cpu(z: Tensor, p: Tensor, q: Tensor, slope: float, *structure: Tensor) -> Tensor:
    _check(z, p, q, structure)
    if carried(structure, z, p, q):
        return native.attend(structure, z, p, q, slope)
    return _attention_torch(z, p, q, slope, *structure)


def _back_cpu(z: Tensor, p: Tensor, q: Tensor, slope: float, a: Tensor, g: Tensor, *structure: Tensor) -> Tensor:
    _check(z, p, q, structure)
    if carried(structure, z, p, q, a, g):
        return native.attend(structure, z, p, q, slope, a, g)
    return _back_torch(z, p, q, slope, a, g, *structure)


def _attention_fake(z: Tensor, p: Tensor, q: Tensor, slope: float, *structure: Tensor) -> Tensor:
    return z.new_empty(structure[1].shape[0], z.shape[1])


def _back_fake(z: Tensor, *rest: Any) -> Tensor:
    return z.new_empty(z.shape[0] + 2, *z.shape[1:])


def _keep(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    *tensors, ctx.slope = arguments
    return [*tensors, output]


def _backward(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> tuple[Tensor | None, ...]:
    z, p, q, a = saved
    if torch.is_grad_enabled():  # the derivative may itself be differentiated
        by = (
            lambda t, s: ENDS(structure, t, s),
            lambda a, g: SOFTMAX_BACK(structure, a, g),
            lambda v, transposed: ROW_SUMS(structure, v, transposed),
        )
        return *_gradients(z, p, q, ctx.slope, a, g, structure, by), None
    made = ATTENTION_BACK(structure, z, p, q, ctx.slope, a, g)
    return made[:-2], made[-2].clone(), made[-1].clone(), None


def _keep_nothing(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    return []


def _back_backward(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError("This derivative is composed of other kernels where it is differentiated itself.")


ATTENTION = Kernel(
    "attention",
    "Tensor z, Tensor p, Tensor q, float slope",
    _attention_torch,
    _attention_cpu,
    _attention_fake,
    _keep,
    _backward,
)
ATTENTION_BACK = Kernel(
    "attention_back",
    "Tensor z, Tensor p, Tensor q, float slope, Tensor a, Tensor g",
    _back_torch,
    _back_cpu,
    _back_fake,
    _keep_nothing,
    _back_backward,
)
