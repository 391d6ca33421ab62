"""A low-rank approximation of the graph Fourier basis by Ritz vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gconv.basis import Basis, Diagonal, Polynomial, Recurrence, Stack, Taps
from gconv.basis.functions import change, eigh, tangent
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import adjacency, shapes_only
from gconv.mixing import Dense
from gconv.operators.bases import steps
from gconv.operators.mixhop import chosen, read_powers
from gconv.operators.shapes import ring, weighted
from gconv.spec import GraphStructure, Parts, Sample, Theta, register

TINY = 1e-6  # a residual below this counts as 0: the Krylov space is invariant


def ritz(S: Taps, part: Tensor, parts: int, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ritz values (r,) and vectors (n, r) of k Lanczos steps on each part of a disjoint union.

    Equation: S V = V T + residual with V^T V = I and T tridiagonal, T = Q diag(r) Q^T; the vectors are V Q. Each part
    starts from its constant vector and stops when its residual vanishes.

    The third result is the matrix (r, r) for `tangent`, if S requires a gradient: Ritz values and vectors are
    returned as constants.

    Args:
        S: one symmetric tap (n, n), in float64.
        part: (n,) the part of each node.
        parts: how many there are.
        k: steps.
    """
    n, values = S.shape[1], S.values
    total = lambda v: values.new_zeros(parts).index_add(0, part, v)  # noqa: E731
    count = total(values.new_ones(n))
    v, alive = count.clamp(min=1).rsqrt()[part], count > 0
    basis, diagonal, beside, kept = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for t in range(k):
        basis.append(v)
        kept.append(alive)
        w = S.expand(v.unsqueeze(-1))[0, :, 0]
        alpha = total(v * w)
        diagonal.append(torch.where(alive, alpha, 2.0 + t))  # finished parts get values above all Ritz values
        for _ in range(2):
            for u in basis:
                w = w - total(u * w)[part] * u
        square = total(w * w)
        alive = alive & (square > TINY**2)
        beta = torch.where(alive, square, 1.0).sqrt()
        beside.append(torch.where(alive, beta, 0.0))
        v = torch.where(alive, 1 / beta, 0.0)[part] * w
    V = torch.stack(basis, -1)
    T = torch.diag_embed(torch.stack(diagonal, -1))
    if k > 1:
        side = torch.diag_embed(torch.stack(beside[:-1], -1), 1)
        T = T + side + side.mT
    ritz_values, Q = eigh(T.detach())  # ascending: the placeholders of finished parts come last
    own = torch.einsum("nt,ntr->nr", V, Q[part])
    apart = torch.nn.functional.one_hot(part, parts).to(own.dtype)
    U = (apart.unsqueeze(-1) * own.unsqueeze(1)).flatten(1)
    lives: Tensor | slice = slice(None)  # while only shapes are computed, all vectors are kept
    if not shapes_only(values):
        lives = (torch.arange(k, device=part.device) < torch.stack(kept).sum(0).unsqueeze(1)).flatten()
    moved = change(T)  # (parts, k, k)
    E = None if moved is None else torch.block_diag(*(Q.mT @ moved @ Q))[lives][:, lives]
    return ritz_values.flatten()[lives], U[:, lives], E


@dataclass(frozen=True)
class Exponents:
    """Powers r^p."""

    powers: tuple[int, ...]

    def values(self, at: Tensor) -> Tensor:
        return torch.stack([at**p for p in self.powers])

    def slopes(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([_slope(a, b, p)[0] for p in self.powers])


def _slope(a: Tensor, b: Tensor, p: int) -> tuple[Tensor, Tensor, Tensor]:
    """(a^p - b^p) / (a - b), a^p and b^p, by repeated squaring."""
    if p == 1:
        return torch.ones_like(a + b), a, b
    D, A, B = _slope(a, b, p // 2)
    D, A, B = D * (A + B), A * A, B * B
    return (a * D + B, a * A, b * B) if p % 2 else (D, A, B)


@dataclass(frozen=True)
class Ritz(GraphStructure):
    """Exact low powers of the symmetrically normalised adjacency, and high powers of its Ritz approximation."""

    k: int
    short: tuple[int, ...]
    long: tuple[int, ...]

    @property
    def taps(self) -> int:
        return len(self.short) + len(self.long)

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Basis:
        if not domain.is_undirected:
            raise ValueError(
                "Ritz vectors need a symmetric adjacency: an undirected graph (each edge with its reverse, of the same "
                "weight), but this one is directed."
            )
        S = adjacency(domain, torch.float64, norm="sym")
        r, U, E = ritz(S, domain.part(), len(domain.ptr) - 1, self.k)
        f = Exponents(self.long)
        moved = None if E is None else tangent(E, r, f).to(call.x.dtype)
        far = Diagonal(U.to(call.x.dtype), f.values(r).to(call.x.dtype), r.to(call.x.dtype), moved)
        if not self.short:
            return far
        near = adjacency(domain, call.x.dtype, norm="sym")
        return Stack((Polynomial(near, Recurrence.monomial(max(self.short) + 1), chosen(self.short)), far))


@register(
    samples=lambda lanczos: [
        Sample(lanczos(3, 2, k=3, short=(1, 2), long=(3, 5)), weighted, 3),
        Sample(lanczos(2, 3, k=4, short=(), long=(1, 4), bias=False), weighted, 2),
        Sample(lanczos(2, 2, k=3, short=(0, 1), long=(7,)), ring, 2),
    ],
    citation="Liao, Zhao, Urtasun and Zemel, LanczosNet: Multi-Scale Deep Graph Convolutional Networks, ICLR 2019",
    init="glorot",
)
def lanczos(
    in_channels: int,
    out_channels: int,
    k: int = 10,
    short: tuple[int, ...] = (1, 2, 3),
    long: tuple[int, ...] = (10, 20, 30),
    bias: bool = True,
) -> Parts:
    """LanczosNet's convolution: low powers of S exactly, high powers in a low-rank basis.

    Equation: Y = sum_{p in short} S^p X W_p + sum_{p in long} U diag(r^p) U^T X W_p + b, S = D^-1/2 A D^-1/2, with the
    Ritz values r and vectors U (n, k) of k Lanczos steps from the constant vector.

    Meaning: high powers of S are dominated by its extreme eigenvalues, to which Lanczos converges first. Power 30 then
    costs as much as power 1: two products with (n, k) matrices.

    In the family: one tap per power: polynomials of a sparse matrix, and taps diagonal in k < n vectors; W dense.

    Traps: the paper starts from a random vector, which would make the result depend on the order of the nodes. The
    constant vector is permutation invariant, so the operator is equivariant, but the Krylov space is limited to what
    it generates: on a vertex-transitive graph, such as a ring, only the mean. Each part of a union has its own k
    vectors, stored with zeros elsewhere as (n, parts k). The paper's MLP on the Ritz values is not included. The
    authors' code adds self-loops, S = D^-1/2 (A + I) D^-1/2. torch.func.vmap cannot batch edge weights, on which the
    number of vectors depends.

    Args: k: maximal number of Lanczos steps; they stop early when the Krylov space is invariant. short: powers computed
        exactly, may be empty. long: powers >= 1 computed in the Ritz basis, at least one.

    Shapes: x (*b, n, i) -> (*b, n, o).

    Raises:
        ValueError: if k < 1, the powers are not distinct integers, or the graph is directed.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(lanczos(3, 2, k=4))(torch.zeros(8, 3), weighted()).shape
    torch.Size([8, 2])
    """
    short = read_powers("short", short) if short else ()
    long = read_powers("long", long, 1)
    return Ritz(steps(k, 1), short, long), Dense(len(short) + len(long), in_channels, out_channels), bias
