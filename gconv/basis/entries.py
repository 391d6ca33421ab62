"""Conversion of any form of S to labelled sparse entries, or of one of its taps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gconv.basis.base import Basis
from gconv.basis.taps import Pattern, Taps
from gconv.kernels import widened


def entries(S: Basis, dtype: torch.dtype, device: torch.device) -> Taps:
    """S as `Taps`, differentiable in its values; products and polynomials are computed as sparse matrices.

    No dense matrix is formed, unless S is dense itself (`Diagonal`).

    >>> from gconv.basis import Polynomial, Recurrence
    >>> swap = Taps(Pattern((1, 2, 2), *torch.tensor([[0, 0], [0, 1], [1, 0]])), torch.tensor([2.0, 3.0]))
    >>> entries(Polynomial(swap, Recurrence.monomial(3)), torch.float32, torch.device("cpu")).values
    tensor([1., 1., 2., 3., 6., 6.])
    """
    if S.batch:
        raise ValueError(f"Each of the signals {S.batch} has its own matrices, so there is no single list of entries.")
    found: Taps | None = S.entries(dtype, device)
    if found is None:
        return of_dense(S.expand(torch.eye(S.shape[2], dtype=dtype, device=device)))
    # sums of products of 16-bit values are in float32
    return replace(found, values=found.values.to(dtype)) if found.values.itemsize > dtype.itemsize == 2 else found


def single(S: Basis, k: int, dtype: torch.dtype, device: torch.device) -> Basis:
    """Tap k of S, in its own form if it has one, otherwise as `Taps`."""
    if S.shape[0] == 1:
        return S
    one = S.tap(k, dtype, device)
    return entries(S, dtype, device).tap(k, dtype, device) if one is None else one


def of_dense(S: Tensor) -> Taps:
    """The non-zeros of (k, m, n) as entries; all numbers if they are learned, because a zero has a gradient, too."""
    tap, row, col = (torch.ones_like(S) if S.requires_grad else S).nonzero(as_tuple=True)
    return Taps(Pattern((S.shape[0], S.shape[1], S.shape[2]), tap, row, col), S[tap, row, col])


def identity(n: int, dtype: torch.dtype, device: torch.device) -> Taps:
    """The identity matrix as entries."""
    at = torch.arange(n, device=device)
    return Taps(Pattern((1, n, n), torch.zeros_like(at), at, at), torch.ones(n, dtype=dtype, device=device))


def pairs(counts: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """For every e the integers starts[e], ..., starts[e] + counts[e] - 1, concatenated: (e, integer).

    >>> pairs(torch.tensor([2, 0, 1]), torch.tensor([5, 7, 9]))
    (tensor([0, 0, 2]), tensor([5, 6, 9]))
    """
    which = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    first = counts.cumsum(0) - counts
    return which, starts[which] + torch.arange(len(which), device=counts.device) - first[which]


def summed(S: Taps) -> Taps:
    """The same structure with repeated entries added up, in row-major order."""
    return _added(S.shape, S.pattern.tap, S.pattern.row, S.pattern.col, S.values)


def stacked(parts: list[Taps]) -> Taps:
    """The taps of several stacks of entries, concatenated."""
    offset, taps = 0, []
    for part in parts:
        taps.append(part.pattern.tap + offset)
        offset += part.shape[0]
    row, col = (torch.cat([getattr(part.pattern, name) for part in parts]) for name in ("row", "col"))
    values = torch.cat([part.values for part in parts])
    return Taps(Pattern((offset, *parts[0].shape[1:]), torch.cat(taps), row, col), values)


def multiplied(A: Taps, B: Taps) -> Taps:
    """The sparse products S_(k, l) = A_k B_l, repeated entries added up."""
    a, b = A.pattern, B.pattern
    order = torch.argsort(b.row, stable=True)
    counts = torch.bincount(b.row, minlength=B.shape[1])
    starts = counts.cumsum(0) - counts
    left, at = pairs(counts[a.col], starts[a.col])
    right = order[at]
    tap = a.tap[left] * B.shape[0] + b.tap[right]
    shape = (A.shape[0] * B.shape[0], A.shape[1], B.shape[2])
    return _added(shape, tap, a.row[left], b.col[right], widened(A.values)[left] * widened(B.values)[right])


def _added(shape: tuple[int, int, int], tap: Tensor, row: Tensor, col: Tensor, values: Tensor) -> Taps:
    """Taps with repeated entries added up."""
    place = (tap * shape[1] + row) * shape[2] + col
    kept, at = torch.unique(place, return_inverse=True)
    total = values.new_zeros(len(kept)).index_add(0, at, values)
    rest, col = kept // max(shape[2], 1), kept % max(shape[2], 1)
    return Taps(Pattern(shape, rest // max(shape[1], 1), rest % max(shape[1], 1), col), total)


def kronecker(A: Taps, B: Taps) -> Taps:
    """The Kronecker product A (x) B of single taps, the sites of A outermost."""
    a, b = A.pattern, B.pattern
    left = torch.arange(len(a), device=a.row.device).repeat_interleave(len(b))
    right = torch.arange(len(b), device=a.row.device).repeat(len(a))
    row = a.row[left] * B.shape[1] + b.row[right]
    col = a.col[left] * B.shape[2] + b.col[right]
    shape = (1, A.shape[1] * B.shape[1], A.shape[2] * B.shape[2])
    return Taps(Pattern(shape, torch.zeros_like(row), row, col), A.values[left] * B.values[right])


def polynomial(
    L: Taps, rows: Sequence[tuple[float, float, float]], combine: Any, dtype: torch.dtype, device: torch.device
) -> Taps:
    """The polynomials of a recurrence, or their linear combinations, as sparse matrices."""
    dtype = torch.promote_types(dtype, torch.float32)
    terms = [identity(L.shape[2], dtype, device)]
    for k, (alpha, beta, gamma) in enumerate(rows):
        parts: list[tuple[float | Tensor, Taps]] = [(alpha, multiplied(L, terms[k])), (beta, terms[k])]
        if k:
            parts.append((-gamma, terms[k - 1]))
        terms.append(_combined([(c, part) for c, part in parts if c] or parts[:1]))
    if combine is None:
        return stacked(terms)
    learned = isinstance(combine, Tensor)
    taps = []
    for row in combine.to(device, dtype) if learned else combine:
        parts = [(c, S) for c, S in zip(row, terms, strict=True) if learned or c]
        taps.append(_combined(parts or [(0.0, terms[0])]))
    return stacked(taps)


def _combined(parts: list[tuple[float | Tensor, Taps]]) -> Taps:
    """A weighted sum of single taps."""
    tap, row, col = (torch.cat([getattr(S.pattern, name) for _, S in parts]) for name in ("tap", "row", "col"))
    return _added(parts[0][1].shape, tap, row, col, torch.cat([c * widened(S.values) for c, S in parts]))
