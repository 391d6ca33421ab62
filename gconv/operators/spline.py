"""SplineCNN: kernels that are continuous in the pseudo-coordinates of the edges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from gconv.basis import Basis, Pattern, Stack, Taps
from gconv.call import Call
from gconv.domains import Edges, Graph
from gconv.laplacian import itself, mean, pattern
from gconv.mixing import Dense
from gconv.operators.shapes import Channels, attributes, messy, per_axis, ring, widest
from gconv.spec import GraphStructure, Parts, Sample, Theta, register

# degree -> the coefficients of 1, t, t^2, ... of each piece of a uniform B-spline, last piece first
PIECES: dict[int, tuple[tuple[float, ...], ...]] = {
    1: ((1, -1), (0, 1)),
    2: ((1 / 2, -1, 1 / 2), (1 / 2, 1, -1), (0, 0, 1 / 2)),
    3: ((1 / 6, -1 / 2, 1 / 2, -1 / 6), (2 / 3, 0, -1, 1 / 2), (1 / 6, 1 / 2, 1 / 2, -1 / 2), (0, 0, 0, 1 / 6)),
}


@dataclass(frozen=True)
class Splines(GraphStructure):
    """One tap per control point: products of B-splines of `edge_attr` in [0, 1]; with `root` the node itself, too."""

    kernel: tuple[int, ...]
    open: tuple[bool, ...]
    degree: int
    average: bool
    root: bool

    @property
    def reads(self) -> Literal["source", "both"]:
        return "both" if self.root else "source"

    @property
    def taps(self) -> int:
        return math.prod(self.kernel) + self.root

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        u = attributes("spline", domain, len(self.kernel), torch.float64)
        if domain.readable and bool(((u < 0) | (u > 1)).any()):
            raise ValueError(
                f"spline needs pseudo-coordinates in [0, 1], but edge_attr reaches from {float(u.min()):g} to "
                f"{float(u.max()):g}; rescale them."
            )
        pieces = torch.tensor(PIECES[self.degree], dtype=u.dtype, device=u.device)
        tap = torch.zeros(len(u), 1, dtype=torch.int64, device=u.device)
        value, stride = torch.ones_like(tap, dtype=u.dtype), 1
        for d, size in enumerate(self.kernel):
            t = u[:, d] * (size - self.degree if self.open[d] else size)  # in knots
            knot = t.detach().floor()
            powers = (t - knot).unsqueeze(-1) ** torch.arange(self.degree + 1, device=u.device)
            index = (knot.long().unsqueeze(-1) + torch.arange(self.degree + 1, device=u.device)) % size
            tap = (tap.unsqueeze(-1) + stride * index.unsqueeze(1)).flatten(1)
            value = (value.unsqueeze(-1) * (powers @ pieces.t()).unsqueeze(1)).flatten(1)
            stride *= size
        one, _ = pattern(domain)
        if self.average:
            value = value * mean(one, value.dtype).unsqueeze(1)
        row, col = (end.unsqueeze(1).expand_as(tap).flatten() for end in (one.row, one.col))
        S = Taps(Pattern((stride, *one.shape[1:]), tap.flatten(), row, col), value.flatten().to(call.x.dtype))
        return Stack((S, itself(domain, call.x.dtype))) if self.root else S


def located() -> Graph:
    """`messy` with pseudo-coordinates in [0, 1], both end points included."""
    g = messy()
    attr = torch.stack([torch.linspace(0, 1, g.num_edges), torch.linspace(1, 0, g.num_edges) ** 2], 1).double()
    return Graph(g.edge_index, g.size, edge_attr=attr, edge_weight=g.edge_weight)


def circled() -> Graph:
    """`ring` with one pseudo-coordinate in [0, 1) per edge."""
    g = ring(6)
    return Graph(g.edge_index, g.size, edge_attr=torch.arange(g.num_edges, dtype=torch.float64) / g.num_edges)


@register(
    samples=lambda spline: [
        Sample(spline(3, 2, dim=2, kernel_size=3), located, 3),
        Sample(spline(2, 3, dim=2, kernel_size=(3, 4), is_open_spline=(True, False), degree=2), located, 2),
        Sample(spline(2, 2, dim=1, kernel_size=4, is_open_spline=False, degree=3, aggr="sum"), circled, 2),
        Sample(spline(2, 2, dim=1, kernel_size=5, degree=3, root_weight=False, bias=False), circled, 2),
    ],
    citation="Fey et al., SplineCNN: Fast Geometric Deep Learning with Continuous B-Spline Kernels, CVPR 2018",
)
def spline(
    in_channels: Channels,
    out_channels: int,
    dim: int,
    kernel_size: int | tuple[int, ...],
    is_open_spline: bool | tuple[bool, ...] = True,
    degree: int = 1,
    aggr: Literal["mean", "sum"] = "mean",
    root_weight: bool = True,
    bias: bool = True,
) -> Parts:
    """SplineCNN: a grid of matrices, interpolated by B-splines at the pseudo-coordinates of each edge.

    Equation: y_i = sum_k W_k^T (1 / |N(i)|) sum over edges j -> i of B_k(u_ij) x_j + W_K^T x_i + b,
    B_k(u) = prod_d N_(k_d)(u_d), N the uniform B-splines of this degree.

    Meaning: a continuous version of the kernel of a grid convolution: degree 1 interpolates linearly between its taps.

    In the family: K = prod kernel_size taps with fixed values, (degree + 1)^dim of them nonzero per edge, and the
    identity; W dense.

    Traps: u is `edge_attr` in [0, 1]; edge weights are ignored. Knots are uniform. Open splines divide [0, 1] into
    kernel_size - degree intervals, and the end knots are not repeated, so for degree > 1 the value at u = 0 combines
    several matrices; closed splines use kernel_size intervals that wrap around. The first coordinate varies fastest in
    k. The mean divides by the number of edges. These conventions are taken from the source of PyG's SplineConv and of
    its compiled kernels, which were not run here; the oracle in the tests is scipy's BSpline.

    Args: PyG's SplineConv's; aggr is "mean" or "sum".

    Shapes: x (*b, n, i) -> (*b, n, o), edge_attr (e, dim). The weight is PyG's weight, then its lin.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if a size is not positive, the degree is not 1, 2 or 3, an open dimension has kernel_size <= degree,
            aggr is unknown, or edge_attr is missing, of another width or outside of [0, 1].

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(spline(3, 2, dim=2, kernel_size=5))(torch.zeros(6, 3), located()).shape
    torch.Size([6, 2])
    """
    if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= 16:
        raise ValueError(f"dim must be a positive integer of at most 16, but it is {dim!r}.")
    if degree not in PIECES:
        raise ValueError(f"degree must be 1, 2 or 3, but it is {degree!r}.")
    if aggr not in ("mean", "sum"):
        raise ValueError(f"aggr must be 'mean' or 'sum', but it is {aggr!r}: no other splits into taps.")
    kernel = per_axis("kernel_size", kernel_size, dim, 1)
    ends = (is_open_spline,) * dim if isinstance(is_open_spline, bool) else tuple(bool(end) for end in is_open_spline)
    if len(ends) != dim:
        raise ValueError(f"is_open_spline must be one truth value, or {dim} of them, but it is {is_open_spline!r}.")
    for size, is_open in zip(kernel, ends, strict=True):
        if is_open and size <= degree:
            raise ValueError(f"An open spline of degree {degree} needs a kernel_size above it, but it is {size}.")
    structure = Splines(kernel, ends, degree, aggr == "mean", root_weight)
    return structure, Dense(structure.taps, widest(in_channels), out_channels), bias
