"""Block diagonalisation of maps in a Fourier basis: one small matrix of channels per frequency.

grids    circular shifts are diagonal in the discrete Fourier basis; with stride s, the s^d phases of the input (every
         s-th site, for each offset) are treated as channels (polyphase)
graphs   polynomials of one symmetric matrix, and multipliers in its eigenbasis: one block per eigenvalue
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from gconv.analysis.numbers import at_least_single, wider
from gconv.basis import Basis, Diagonal, Identity, Polynomial, Product, Shifts, Stack, Taps
from gconv.basis.entries import summed
from gconv.linear import Composed, LinearMap, Map, Scaled, Sum


@dataclass(frozen=True, eq=False)
class Blocks:
    """A map in Fourier bases: block f maps the input channels at frequency f to the output channels.

    Args:
        values: (f, o, i), or (1, o, i) if all blocks are equal in every basis.
        into, out: keys of the bases, None for any basis; for a grid ("grid", its coarse grid, stride).
    """

    values: Tensor
    into: Hashable = None
    out: Hashable = None


@dataclass
class Frames:
    """The symmetric matrices and eigenbases seen so far, to detect whether two maps share one.

    Args:
        largest: maximal number of sites of a matrix whose eigenvalues are computed.
        given: the eigenvalues of the (only) matrix, if known.
    """

    largest: int
    given: Tensor | None = None
    known: list[tuple[Taps, Tensor] | Tensor] = field(default_factory=list)

    def of(self, L: Taps) -> tuple[int, Tensor] | None:
        """The index of a symmetric matrix and its eigenvalues, ascending; None if it is not symmetric or too large."""
        n = L.shape[1]
        if L.shape[0] != 1 or L.shape[2] != n or (n > self.largest and self.given is None):
            return None
        eps = torch.finfo(at_least_single(L.values.dtype)).eps
        L = summed(Taps(L.pattern, L.values.detach().to(wider(L.values.dtype))))
        for number, entry in enumerate(self.known):
            if isinstance(entry, tuple) and _same(entry[0], L, eps):
                return number, entry[1]
        flipped = summed(Taps(L.pattern.T, L.values.conj()))
        if not _same(L, flipped, eps):
            return None
        self.known.append((L, self._eigenvalues(L)))
        return len(self.known) - 1, self.known[-1][1]

    def _eigenvalues(self, L: Taps) -> Tensor:
        n = L.shape[1]
        if self.given is None:
            dense = L.values.new_zeros(n, n).index_put((L.pattern.row, L.pattern.col), L.values)
            return torch.linalg.eigvalsh((dense + dense.mH) / 2)
        if self.given.shape != (n,):
            raise ValueError(
                f"There must be one eigenvalue per site, {n} in all, but the shape given is {tuple(self.given.shape)}."
            )
        return self.given.detach().to(L.values.device, torch.float64).sort().values

    def basis(self, U: Tensor) -> int:
        """The index of an eigenbasis."""
        for number, entry in enumerate(self.known):
            if isinstance(entry, Tensor) and (entry is U or torch.equal(entry, U)):
                return number
        self.known.append(U)
        return len(self.known) - 1


def _same(A: Taps, B: Taps, eps: float) -> bool:
    """Whether two matrices are equal up to rounding."""
    a, b = A.pattern, B.pattern
    if A.shape != B.shape or not (torch.equal(a.row, b.row) and torch.equal(a.col, b.col)):
        return False
    size = float(A.values.abs().max()) if len(a) else 0.0
    return not len(a) or float((A.values - B.values).abs().max()) <= 10 * eps * size


def fourier_blocks(A: Map, frames: Frames) -> Blocks | None:
    """The blocks of A, or None if it is not block diagonal in a Fourier basis."""
    if isinstance(A, LinearMap):
        return grid_blocks(A) if isinstance(A.S, Shifts) else _graph_blocks(A, frames)
    if isinstance(A, Scaled):
        inner = fourier_blocks(A.A, frames)
        c = A.c.detach().to(A.device) if isinstance(A.c, Tensor) else A.c
        return inner and replace(inner, values=c * inner.values)
    if not isinstance(A, Sum | Composed):
        return None
    parts: list[Blocks] = []
    for B in A.terms if isinstance(A, Sum) else A.factors:
        part = fourier_blocks(B, frames)
        if part is None:
            return None
        parts.append(part)
    return _joined(parts, _plus if isinstance(A, Sum) else _times)


def _joined(parts: list[Blocks], join: object) -> Blocks | None:
    assert callable(join)
    total: Blocks | None = parts[0]
    for part in parts[1:]:
        total = total and join(total, part)
    return total


def _plus(A: Blocks, B: Blocks) -> Blocks | None:
    if A.into is None:
        A, B = B, A
    if B.into is None and A.into == A.out:
        B = _spread(B, A.into)
    if (A.into, A.out) != (B.into, B.out):
        return None
    return replace(A, values=A.values + B.values)


def _times(A: Blocks, B: Blocks) -> Blocks | None:
    if A.into is None:
        A = _spread(A, B.out)
    elif B.into is None:
        B = _spread(B, A.into)
    if A.into != B.out:
        return None
    wide = torch.promote_types(A.values.dtype, B.values.dtype)
    return Blocks(A.values.to(wide) @ B.values.to(wide), B.into, A.out)


def _spread(A: Blocks, frame: Hashable) -> Blocks:
    """The blocks of a map that is the same at every site, in a given basis."""
    phases = math.prod(frame[2]) if isinstance(frame, tuple) else 1
    eye = torch.eye(phases, dtype=A.values.dtype, device=A.values.device)
    return Blocks(torch.kron(eye, A.values[0].contiguous()).unsqueeze(0), frame, frame)


def wide_weight(A: LinearMap) -> Tensor:
    """(k, i, o) in double precision, without gradients."""
    W = A.weight().detach()
    return W.to(wider(W.dtype))


# -- grids ---------------------------------------------------------------------------------------------------------


def wraps(S: Shifts) -> bool:
    """Whether S is (block) circulant: every tap wraps around the grid, and the stride divides its size."""
    whole = all(o * s == n for o, s, n in zip(S.out, S.stride, S.size, strict=True))
    return whole and (S.mode == "circular" or all(p <= 0 for pair in S.padding for p in pair))


def grid_blocks(A: LinearMap) -> Blocks | None:
    """The blocks of circular shifts; None for others."""
    S = A.S
    assert isinstance(S, Shifts)
    if not wraps(S):
        return None
    W = kernel_weight(A)
    if W is None:
        return None
    if S.transposed:
        values = ring_symbol(S, W.mT.conj(), S.out).mH
        return Blocks(values, ("grid", S.out, (1,) * len(S.out)), ("grid", S.out, S.stride))
    frames = ("grid", S.out, S.stride), ("grid", S.out, (1,) * len(S.out))
    return Blocks(ring_symbol(S, W, S.out), *frames)


def kernel_weight(A: LinearMap) -> Tensor | None:
    """(k, i, o), one matrix per tap of the kernel; None if pooling windows differ between sites."""
    S, W = A.S, wide_weight(A)
    assert isinstance(S, Shifts)
    if not S.window:
        return W
    scale = S.scale(W)
    return None if isinstance(scale, Tensor) else (W * scale).expand(math.prod(S.kernel), *W.shape[1:])


def ring_symbol(S: Shifts, W: Tensor, ring: tuple[int, ...]) -> Tensor:
    """(f, o, s^d i): sum over the taps of exp(2 pi i f q) W^T, with s q + r the offset of a tap and r its phase.

    Args:
        S: the geometry.
        W: (k, i, o).
        ring: the coarse grid, on which offsets wrap around.
    """
    taps = itertools.product(*(range(k) for k in S.kernel))
    axes = list(zip(S.dilation, S.padding, S.stride, ring, strict=True))
    laid = W.new_zeros(math.prod(ring) * math.prod(S.stride), *W.shape[1:])
    places = []
    for tap in taps:
        place, phase = 0, 0
        for a, (d, (before, _), s, r) in zip(tap, axes, strict=True):
            q, rest = divmod(a * d - before, s)
            place, phase = place * r + q % r, phase * s + rest
        places.append(place * math.prod(S.stride) + phase)
    laid = laid.index_add(0, torch.tensor(places, device=W.device), W)
    laid = laid.unflatten(0, (*ring, math.prod(S.stride)))  # (*ring, phase, i, o)
    symbol = torch.fft.ifftn(laid, dim=tuple(range(len(ring))), norm="forward")
    return symbol.flatten(-3, -2).mT.flatten(0, len(ring) - 1)


# -- graphs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Table:
    """The multiplier of each tap at each frequency, (k, f), or (k, 1) if it is the same at all frequencies."""

    g: Tensor
    frame: int | None = None


def table(S: Basis, frames: Frames) -> Table | None:
    """The eigenvalue of each tap of S for each common eigenvector; None if its parts have no common eigenbasis."""
    if isinstance(S, Identity):
        return Table(torch.ones(1, 1, dtype=torch.float64))
    if isinstance(S, Taps | Polynomial):
        found = frames.of(S if isinstance(S, Taps) else S.L)
        if found is None:
            return None
        number, values = found
        if isinstance(S, Taps):
            return Table(values.unsqueeze(0), number)
        g = S.recurrence.at(values)
        if S.combine is not None:
            g = torch.as_tensor(S.combine, dtype=g.dtype, device=g.device).detach() @ g
        return Table(g, number)
    if isinstance(S, Diagonal):
        if S.U.dtype != at_least_single(S.U.dtype):
            return None  # in 16 bits U is not orthogonal
        n, r = S.U.shape
        g = S.g.detach().to(wider(S.g.dtype))
        return Table(torch.nn.functional.pad(g, (0, n - r)), frames.basis(S.U))
    if isinstance(S, Stack | Product):
        parts = [table(part, frames) for part in S.parts]
        found_parts = [part for part in parts if part is not None]
        shared = {part.frame for part in found_parts} - {None}
        if len(found_parts) < len(parts) or len(shared) > 1:
            return None
        f = max(part.g.shape[1] for part in found_parts)
        device = next((part.g.device for part in found_parts if part.frame is not None), torch.device("cpu"))
        gs = [part.g.to(device).expand(-1, f) for part in found_parts]
        whole = torch.cat(gs) if isinstance(S, Stack) else reduce(lambda a, b: (a.unsqueeze(1) * b).flatten(0, 1), gs)
        return Table(whole, next(iter(shared), None))
    return None


def _graph_blocks(A: LinearMap, frames: Frames) -> Blocks | None:
    found = table(A.S, frames)
    if found is None:
        return None
    W = wide_weight(A)
    wide = torch.promote_types(found.g.dtype, W.dtype)
    values = torch.einsum("kf,kio->foi", found.g.to(A.device, wide), W.to(wide))
    return Blocks(values, found.frame, found.frame)
