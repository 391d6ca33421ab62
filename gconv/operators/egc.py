"""Efficient graph convolution: every node combines a few basis filters with its own coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gconv.basis import Basis, Product, SharedTaps, Stack
from gconv.call import Call
from gconv.domains import Graph
from gconv.laplacian import Loops, adjacency, diagonal
from gconv.mixing import Dense, Mixing, Parametrised
from gconv.operators.shapes import messy, ring
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register

Aggregator = Literal["symnorm", "mean", "sum"]


@dataclass(frozen=True)
class Combined(GraphStructure):
    """One tap diag(w_hb(x)) A per aggregator A, head h and basis b: each node scales what it aggregates."""

    aggregators: tuple[Aggregator, ...]
    heads: int
    bases: int
    i: int
    add_self_loops: bool

    kind, many = "adaptive", True

    @property
    def taps(self) -> int:
        return len(self.aggregators) * self.heads * self.bases

    def parameters(self) -> dict[str, Parameter]:
        bound = self.i**-0.5
        return {
            "comb_weight": Parameter((self.taps, self.i), "uniform", bound),
            "comb_bias": Parameter((self.taps,), "uniform", bound),
        }

    def basis(self, domain: Graph, theta: Theta, call: Call) -> Basis:
        weigh = call.x @ theta["comb_weight"].t() + theta["comb_bias"]  # (*b, n, heads A bases), as PyG orders them
        weigh = weigh.unflatten(-1, (self.heads, len(self.aggregators), self.bases)).movedim(-2, 0).flatten(-2)
        loops: Loops = "fill" if self.add_self_loops else "keep"
        parts = []
        for aggregator, values in zip(self.aggregators, weigh, strict=True):
            norm: Literal["sym", "row"] | None = {"symnorm": "sym", "mean": "row"}.get(aggregator)  # type: ignore[assignment]
            S = adjacency(domain, call.x.dtype, loops=loops, norm=norm, weighted=False)
            parts.append(Product(SharedTaps(diagonal(domain), values), S))
        return Stack(tuple(parts)) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Bases(Parametrised):
    """Taps (aggregator, head h, basis b): V_b writes the block of head h. The weight is (bases, i, o / heads)."""

    aggregators: int
    heads: int
    bases: int
    i: int
    o: int

    @property
    def taps(self) -> int:
        return self.aggregators * self.heads * self.bases

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bases, self.i, self.o // self.heads

    def plain(self, W: Tensor) -> tuple[Mixing, Tensor]:
        block = torch.eye(self.heads, dtype=W.dtype, device=W.device)
        placed = torch.einsum("bic,hg->hbigc", W, block).flatten(3).flatten(0, 1)
        return Dense(self.taps, self.i, self.o), placed.repeat(self.aggregators, 1, 1)


@register(
    samples=lambda egc: [
        Sample(egc(3, 4, num_heads=2, num_bases=2), ring, 3),
        Sample(egc(2, 2, ("symnorm", "mean", "sum"), num_heads=2, num_bases=1), messy, 2),
        Sample(egc(2, 3, ("mean",), num_heads=1, num_bases=3, add_self_loops=False, bias=False), messy, 2),
    ],
    citation="Tailor et al., Do We Need Anisotropic Graph Neural Networks?, ICLR 2022",
    init="glorot",
)
def egc(
    in_channels: int,
    out_channels: int,
    aggregators: tuple[Aggregator, ...] = ("symnorm",),
    num_heads: int = 8,
    num_bases: int = 4,
    add_self_loops: bool = True,
    bias: bool = True,
) -> Parts:
    """EGConv: shared basis matrices, combined by every node with coefficients computed from its own features.

    Equation: y_i = [head h: sum over A, b of w_(h, A, b)(x_i) sum_j A_ij V_b^T x_j] + b, w(x_i) = C x_i + c.

    Meaning: anisotropic, like attention, but the coefficients belong to nodes instead of edges, which saves memory.

    In the family: aggregators x heads x bases taps diag(w) A, adaptive, products that are never formed; W holds V_b in
    the block of its head. Linear only when frozen: `layer.at(graph, x=x0)`.

    Traps: edge weights are ignored. As in PyG, a node with a self-loop keeps it; without "symnorm" PyG adds loops only
    up to the largest node in edge_index, here all nodes get one. PyG's aggregators min, max, var and std are not linear
    even with frozen weights, and are outside the family. There are many taps (8 x 4 by default), so PyG's order of
    evaluation is faster.

    Args: PyG's EGConv's; the aggregators are "symnorm", "mean" and "sum".

    Shapes: x (*b, n, i) -> (*b, n, o). The weight (bases, i, o / heads) is PyG's bases_lin; comb_weight and comb_bias
    are its comb_lin.

    Raises:
        ValueError: if an aggregator is unknown or repeated, num_bases is not positive, or num_heads does not divide
            out_channels.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(egc(3, 4, num_heads=2, num_bases=3))(torch.zeros(7, 3), ring(7)).shape
    torch.Size([7, 4])
    """
    aggregators = tuple(aggregators)
    if (
        not aggregators
        or not set(aggregators) <= {"symnorm", "mean", "sum"}
        or len(set(aggregators)) < len(aggregators)
    ):
        raise ValueError(f"aggregators are some of 'symnorm', 'mean', 'sum', each once, but they are {aggregators!r}.")
    if min(num_heads, num_bases) < 1 or out_channels % num_heads:
        raise ValueError(
            f"num_heads must divide out_channels and num_bases be positive, but they are {num_heads} for "
            f"{out_channels} channels and {num_bases}."
        )
    structure = Combined(aggregators, num_heads, num_bases, in_channels, add_self_loops)
    return structure, Bases(len(aggregators), num_heads, num_bases, in_channels, out_channels), bias
