"""Relational graph convolutions: one matrix per edge label, or combinations of a few basis matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gconv.basis import Basis, SharedTaps, Stack, Taps
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import itself, pattern, relations
from gconv.mixing import Blocks, Dense, Grouped
from gconv.operators.shapes import Channels, messy, widest
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register

Aggregate = Literal["mean", "sum", "max"]


@dataclass(frozen=True)
class Relations(GraphStructure):
    """One tap per label, or one per basis (learned combinations of the labels); with `root` the node itself, too."""

    relations: int
    bases: int | None
    aggr: Aggregate
    root: bool

    @property
    def kind(self) -> Literal["fixed", "learned"]:
        return "fixed" if self.bases is None else "learned"

    @property
    def reads(self) -> Literal["source", "both"]:
        return "both" if self.root else "source"

    @property
    def taps(self) -> int:
        return (self.bases or self.relations) + self.root

    def parameters(self) -> dict[str, Parameter]:
        if self.bases is None:
            return {}
        shape = (self.relations, self.bases)
        return {"comp": Parameter(shape, "uniform", (6 / sum(shape)) ** 0.5)}

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Basis:
        taps = relations(domain, call.x.dtype, self.relations, average=self.aggr == "mean")
        S: Basis = Taps(taps.pattern, taps.values, "max") if self.aggr == "max" else taps
        if self.bases is not None:
            comp = theta["comp"].to(torch.promote_types(call.x.dtype, torch.float32))  # its gradient is a long sum
            S = SharedTaps(pattern(domain)[0], comp[taps.pattern.tap].to(call.x.dtype) * taps.values.unsqueeze(-1))
        return Stack((S, itself(domain, call.x.dtype))) if self.root else S


def _whole(**arguments: int | None) -> None:
    for name, value in arguments.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} must be a positive integer, but it is {value!r}.")


@register(
    samples=lambda relational: [
        Sample(relational(3, 2, num_relations=3), messy, 3),
        Sample(relational(2, 3, num_relations=4, num_bases=2, aggr="sum"), messy, 2),
        Sample(relational(4, 2, num_relations=3, num_blocks=2), messy, 4),
        Sample(relational(2, 2, num_relations=3, num_blocks=2, root_weight=False, bias=False), messy, 2),
        Sample(relational(2, 3, num_relations=3, aggr="max", root_weight=False), messy, 2),
    ],
    citation="Schlichtkrull et al., Modeling Relational Data with Graph Convolutional Networks, ESWC 2018",
    init="glorot",
)
def relational(
    in_channels: Channels,
    out_channels: int,
    num_relations: int,
    num_bases: int | None = None,
    num_blocks: int | None = None,
    aggr: Aggregate = "mean",
    root_weight: bool = True,
    bias: bool = True,
) -> Parts:
    """R-GCN: the mean of the neighbours under each relation, with one matrix per relation and one for the node itself.

    Equation: y_i = sum_r W_r^T aggr over edges j -> i of relation r of x_j + W_root^T x_i + b.
    With bases: W_r = sum_b comp[r, b] V_b, which is S'_b = sum_r comp[r, b] S_r with W_b = V_b.

    Meaning: `selection` with means. Shared bases or block-diagonal matrices limit overfitting with many relations.

    In the family: one fixed tap per relation, with W dense or block diagonal; or one learned tap per basis (comp), with
    W dense; and the identity for the node itself. With aggr="max" it is not linear.

    Traps: relations are read from `edge_type`; edge weights are ignored, as in PyG. The mean is over the edges of one
    relation (as in PyG's RGCNConv and FastRGCNConv); the paper leaves c_i,r open. PyG's RGCNConv ignores edges with too
    large a label; here they are an error. For nodes without features (x = None in PyG), use the identity matrix as x.
    The maximum of a combination is not a combination of maxima, so aggr="max" cannot be used with bases.

    Args: PyG's RGCNConv's.

    Shapes: x (*b, n, i) -> (*b, n, o), edge_type (e,). The weight is PyG's weight with its root as last tap; comp is
    PyG's. With blocks and a root the weight is (relations blocks + blocks^2, i / blocks, o / blocks): the blocks of
    each relation, then those of the root, row by row.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`; in_channels may be a pair (i_source, i_target).

    Raises:
        ValueError: if bases and blocks are both given, blocks do not divide the channels, aggr is unknown, "max" is
            combined with bases, or the graph has no labels or one that is too large.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(relational(3, 2, num_relations=3))(torch.ones(6, 3), messy()).shape
    torch.Size([6, 2])
    """
    i = widest(in_channels)
    _whole(num_relations=num_relations, num_bases=num_bases, num_blocks=num_blocks)
    if aggr not in ("mean", "sum", "max"):
        raise ValueError(f"aggr must be 'mean', 'sum' or 'max', but it is {aggr!r}.")
    if num_bases is not None and (num_blocks is not None or aggr == "max"):
        other = "blocks" if num_blocks is not None else "aggr='max'"
        raise ValueError(f"Bases mix the relations, which does not go with {other}; give one of the two.")
    structure = Relations(num_relations, num_bases, aggr, root_weight)
    if num_blocks is None:
        return structure, Dense(structure.taps, i, out_channels), bias
    if not root_weight:
        return structure, Grouped(num_relations, i, out_channels, num_blocks), bias
    Grouped(1, i, out_channels, num_blocks)  # refuses blocks that do not divide the channels
    g = range(num_blocks)
    own = tuple((r, a, a) for r in range(num_relations) for a in g)
    root = tuple((num_relations, a, b) for a in g for b in g)
    p, q = i // num_blocks, out_channels // num_blocks
    return structure, Blocks(structure.taps, i, out_channels, p, q, own + root), bias
