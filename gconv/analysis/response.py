"""The frequency response of a (trained) filter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gconv.analysis.calls import map_of
from gconv.analysis.fourier import Frames, kernel_weight, table, wide_weight
from gconv.arguments import checked, kind_of, plural
from gconv.basis import Basis, Polynomial, Shifts, Stack, Taps
from gconv.linear import LinearMap, Map

SITES = 6000


@dataclass(frozen=True, eq=False)
class Response:
    """A frequency response.

    Args:
        frequency: (f,) eigenvalues, ascending, or (f, d) cycles per site along each axis, in [-1/2, 1/2).
        taps: (k, f) the multiplier of each tap.
        gain: (f, i, o) the gain from channel i to channel o, sum_k taps_k W_k.
        grid: on grids, the shape to which the axis f can be unflattened.
        low: on graphs, the end of the ascending eigenvalues with the low frequencies, whose eigenvectors vary least
            along edges: "first" for Laplacians, "last" for adjacencies.

    >>> from gconv import GConv
    >>> from gconv.operators import gcn
    >>> from gconv.operators.shapes import ring
    >>> found = frequency_response(GConv(gcn(2, 3)), ring(8))
    >>> isinstance(found, Response), found.gain.shape, found.low
    (True, torch.Size([8, 2, 3]), 'last')
    """

    frequency: Tensor
    taps: Tensor
    gain: Tensor
    grid: tuple[int, ...] = ()
    low: Literal["first", "last"] = "first"


@checked
def frequency_response(
    A: Map | nn.Module, domain: Any = None, frequencies: Tensor | None = None, x: Tensor | None = None
) -> Response:
    """The frequency response of a layer, with its weights.

    Equation: on graphs G(lambda) = sum_k g_k(lambda) W_k, with g_k(lambda) the eigenvalue of tap k for the eigenvector
    of lambda; on grids G(f) = sum_k exp(2 pi i <f, q_k>) W_k, with q_k the offset of tap k.

    Meaning: on graphs it is defined for polynomial filters (Chebyshev, TAG, SGC, ...), GCN, and Fourier multipliers.
    lambda is an eigenvalue of the matrix in the polynomial: for `cheb` the rescaled Laplacian, in [-1, 1], with low
    frequencies first; for `gcn`, `tag` and `sgc` the normalised adjacency, with low frequencies last. On grids it is
    exact with circular padding; with other padding it holds away from the borders.

    Cost: O(n^3) for the eigenvalues unless `frequencies` are given; on grids one number per tap and frequency.

    Args:
        A: a layer, or its map.
        domain: for a layer, its graph or Grid.
        frequencies: for polynomials, (f,) arguments at which to evaluate instead of the eigenvalues (also for matrices
            that are not symmetric); on grids, (f, d) cycles per site.
        x: the signal at which adaptive structure is frozen.

    Raises:
        TypeError: if the domain of a layer is missing, or frequencies is not a real tensor.
        ValueError: if the taps have no common eigenbasis, a map on a grid has a stride, or frequencies has the wrong
            shape.

    >>> from gconv import GConv
    >>> from gconv.operators import cheb
    >>> from gconv.operators.shapes import ring
    >>> layer = GConv(cheb(1, 1, k=3))
    >>> r = frequency_response(layer, ring(8), torch.tensor([-1.0, 0.0, 1.0]))
    >>> r.taps  # T_0, T_1, T_2
    tensor([[ 1.,  1.,  1.],
            [-1.,  0.,  1.],
            [ 1., -1.,  1.]], dtype=torch.float64)

    Source: Shuman, Narang, Frossard, Ortega and Vandergheynst, The Emerging Field of Signal Processing on Graphs, 2013.
    """
    A = map_of(A, "frequency_response", domain, x)
    if not isinstance(A, LinearMap):
        A = A.collapse()
    if frequencies is not None and (not isinstance(frequencies, Tensor) or frequencies.is_complex()):
        given = "a complex tensor" if isinstance(frequencies, Tensor) else kind_of(frequencies)
        raise TypeError(f"frequencies must be a tensor of real numbers, but {given} was given.")
    W = wide_weight(A)
    if isinstance(A.S, Shifts):
        return _on_grid(A, A.S, frequencies)
    if frequencies is not None:
        if frequencies.ndim != 1:
            raise ValueError(f"On a graph frequencies must be (f,), but their shape is {tuple(frequencies.shape)}.")
        at = frequencies.detach().double().to(A.device)
        g = _polynomials(A.S, at)
        if g is None:
            raise ValueError(
                "frequencies can be given only for polynomials of one matrix; this structure is a "
                f"{type(A.S).__name__}, which is defined at its own eigenvalues only."
            )
        low = _low_end(A.S.L) if isinstance(A.S, Polynomial) else "first"
    elif not A.S.shape[2]:
        raise ValueError("A graph without nodes has no eigenvalues, so there is no frequency response.")
    else:
        frames = Frames(SITES)
        found = table(A.S, frames)
        if found is None or found.frame is None:
            raise ValueError(
                "A frequency response needs taps that share the eigenbasis of one symmetric matrix (an undirected "
                f"graph, symmetric normalisation, at most {SITES} nodes); the taps of this {type(A.S).__name__} "
                "do not. For a polynomial, give frequencies at which to evaluate it."
            )
        entry, g = frames.known[found.frame], found.g
        at = entry[1] if isinstance(entry, tuple) else _eigenvalues(A.S)
        low = _low_end(entry[0] if isinstance(entry, tuple) else entry)
    wide = torch.promote_types(g.dtype, W.dtype)
    return Response(at, g, torch.einsum("kf,kio->fio", g.to(wide), W.to(wide)), low=low)


def _low_end(frame: Basis | Tensor) -> Literal["first", "last"]:
    """The end of the spectrum with the smooth eigenvectors of a symmetric matrix, or of an eigenbasis (n, f).

    Off-diagonal entries of a Laplacian are negative, those of an adjacency positive. In an eigenbasis, the smoothest
    vector has entries of one sign, hence the larger sum.
    """
    if isinstance(frame, Tensor):
        sums = frame.detach().sum(0).abs()
        return "last" if len(sums) and bool(sums[-1] > sums[0]) else "first"
    if not isinstance(frame, Taps):
        return "first"
    off = frame.pattern.row != frame.pattern.col
    return "last" if float(frame.values.detach().real[..., off].sum()) > 0 else "first"


def _eigenvalues(S: Basis) -> Tensor:
    """The eigenvalues stored by a Diagonal."""
    parts = S.parts if isinstance(S, Stack) else (S,)
    values: Tensor = next(part.eigenvalues for part in parts if hasattr(part, "eigenvalues"))
    return values.double()


def _polynomials(S: Basis, at: Tensor) -> Tensor | None:
    if isinstance(S, Polynomial):
        g = S.recurrence.at(at)
        return g if S.combine is None else torch.as_tensor(S.combine, dtype=g.dtype, device=g.device).detach() @ g
    return None


def _on_grid(A: LinearMap, S: Shifts, frequencies: Tensor | None) -> Response:
    if set(S.stride) != {1}:
        raise ValueError(
            f"A map with stride {S.stride} folds frequencies onto each other (aliasing), so it has no frequency "
            "response, and its singular values cannot be clipped one frequency at a time; singular_values and "
            "spectral_normalise accept any stride."
        )
    W = kernel_weight(A)
    if W is None:
        raise ValueError("The pooling windows differ at the borders, so there is no frequency response.")
    grid = S.grids[0]
    if frequencies is None:
        axes = [torch.fft.fftshift(torch.fft.fftfreq(n, dtype=torch.float64)) for n in grid]
        at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    else:
        if frequencies.shape[-1:] != (len(grid),) and not (len(grid) == 1 and frequencies.ndim == 1):
            raise ValueError(
                f"On a grid of {plural(len(grid), 'axis', 'axes')} frequencies must be (f, {len(grid)}) cycles per "
                f"site, but their shape is {tuple(frequencies.shape)}."
            )
        at, grid = frequencies.detach().double().reshape(-1, len(grid)), ()
    places = [torch.arange(k) * d - p[0] for k, d, p in zip(S.kernel, S.dilation, S.padding, strict=True)]
    offset = torch.stack(torch.meshgrid(*(p.double() for p in places), indexing="ij"), -1).flatten(0, -2)
    sign = -1 if S.transposed else 1
    taps = torch.exp(sign * 2j * math.pi * (offset @ at.mT)).to(A.device)
    return Response(at.to(A.device), taps, torch.einsum("kf,kio->fio", taps, W.to(taps.dtype)), grid)
