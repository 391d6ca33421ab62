"""dense: the reference implementation, which forms the matrix of the operator (on grids doubly block Toeplitz).

Every other lowering is tested against this one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gconv import basis
from gconv.basis import Basis, Product, Stack
from gconv.call import Call
from gconv.kernels import readable
from gconv.lowering.base import Cost, Lowering, Problem, Work, add_bias
from gconv.mixing import Mixing


def stack(S: Basis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The structure matrices, (k, m, n) or (*b, k, m, n): `expand` applied to the identity."""
    eye = torch.eye(S.shape[2], dtype=dtype, device=device)
    return S.expand(eye.expand(*S.batch, *eye.shape) if S.batch else eye)


def matrix(S: Basis, mixing: Mixing, W: Tensor | None, i: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix of the whole operator, (m o, n i) or (*b, m o, n i): sum_k S_k (x) W_k^T, sites outermost."""
    return (
        torch.einsum("...kmn,kio->...moni", stack(S, dtype, device), mixing.dense(W, i).to(device, dtype))
        .flatten(-2)
        .flatten(-3, -2)
    )


def run(S: Basis, call: Call) -> Tensor:
    x, mixing, W = call.x, call.mixing, call.W
    if not S.linear:
        return add_bias(mixing.gather(_reduce(S, x), W), call.bias)
    o = mixing.channels(x.shape[-1])
    M = matrix(S, mixing, W, x.shape[-1], x.dtype, x.device)
    return add_bias(_times(M, x.flatten(-2)).unflatten(-1, (S.shape[1], o)), call.bias)


def _times(M: Tensor, x: Tensor) -> Tensor:
    """x M^T, where zeros of M do not multiply: a NaN or infinity in x only reaches outputs with a non-zero of M.

    M is (m o, n i), or (*b, m o, n i) with a matrix for each signal.
    """
    plain = not readable(x) or not x.numel() or bool(x.detach().sum().isfinite())
    if M.ndim > 2:  # a matrix for each signal
        if plain:
            return (M @ x.unsqueeze(-1)).squeeze(-1)
        each = [_times(one, signal) for one, signal in zip(M.flatten(0, -3), x.flatten(0, -2), strict=True)]
        return torch.stack(each).view(*x.shape[:-1], -1)
    if plain:
        return x @ M.mT
    entry = M.detach() != 0
    finite = torch.where(x.isfinite(), x, 0.0)
    special = torch.where(x.isfinite(), 0.0, x)
    at = special.detach().reshape(-1, x.shape[-1]).ne(0).any(0).nonzero()[:, 0]  # the columns with such values
    some = torch.where(entry[:, at], M[:, at] * special[..., at].unsqueeze(-2), 0.0).sum(-1)
    return finite @ M.mT + some


def _reduce(S: Basis, x: Tensor) -> Tensor:
    """All S_k x, (*b, k, m, c), of taps that reduce with max: y_i = max over the sites j with an entry of S_ij x_j.

    For a row without entries the maximum is 0 on a graph, and minus infinity for a window entirely in the padding.
    """
    if isinstance(S, Stack):
        return torch.cat([_reduce(part, x) for part in S.parts], -3)
    if isinstance(S, Product):
        return torch.cat([_reduce(S.left, E) for E in _reduce(S.right, x).unbind(-3)], -3)
    if S.linear:
        M = stack(S, x.dtype, x.device)
        rows = M.flatten(-3, -2)
        rows = rows.unsqueeze(-3).expand(*x.shape[:-2], x.shape[-1], *rows.shape[-2:]) if S.batch else rows
        return _times(rows, x.mT).mT.unflatten(-2, M.shape[-3:-1])
    part = basis.entries(S, x.dtype, x.device)
    if part.shape[2] == 0:  # no input sites
        return x.new_zeros(*x.shape[:-2], *part.shape[:2], x.shape[-1])
    messages = x.new_full((*x.shape[:-2], *part.shape, x.shape[-1]), -torch.inf)
    at = part.pattern
    at.csr("expand")  # which refuses entries out of range
    values = part.values.unsqueeze(-1) * x[..., at.col, :]
    index = (at.tap * part.shape[1] + at.row) * part.shape[2] + at.col
    flat = messages.flatten(-4, -2).scatter_reduce(-2, index.unsqueeze(-1).expand_as(values), values, "amax")
    largest = flat.unflatten(-2, part.shape).amax(-2)
    entries = torch.zeros(part.shape[:2], dtype=torch.bool, device=x.device)
    entries[at.tap, at.row] = True
    return torch.where(entries.unsqueeze(-1), largest, -torch.inf if S.is_grid else 0.0)


def refuses(S: Basis, mixing: Mixing) -> str | None:
    return None


def cost(S: Basis, mixing: Mixing, p: Problem) -> Cost:
    k, m, n = S.shape
    entries = float(m) * p.o * n * p.i
    flops, own = 2.0 * p.b * entries, p.b if S.batch else 1  # number of matrices
    entries, structure = own * entries, float(own) * k * m * n
    build = 2.0 * k * entries
    work = (
        Work("gather", p.item * S.nnz * n, p.item * n, p.item * float(n) * n),
        *((Work("call", float(S.steps)),) if S.steps else ()),  # the matrices of a recurrence are formed step by step
        p.stream(structure, 3),
        *replace(p, dx=False).product(build, k, p.i * p.o),
        p.stream(entries, 3 * (1 + p.dw)),
        *p.product(flops, n * p.i, m * p.o),
        p.stream(entries, 1 + p.dx + p.dw),
    )
    traffic = p.item * (2 * entries + 2.0 * structure)
    return Cost(flops + build, traffic, p.item * (entries + structure), work)


DENSE = Lowering("dense", run, refuses, cost)
