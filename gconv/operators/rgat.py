"""Relational attention: one matrix per relation and head, and attention over the incoming edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from gconv.basis import SharedTaps
from gconv.call import Call
from gconv.domains import Edges
from gconv.laplacian import mean, pattern, relations
from gconv.mixing import Blocks, Dense
from gconv.operators.attention import row_softmax
from gconv.operators.shapes import Channels, messy, widest
from gconv.spec import GraphStructure, Parameter, Parts, Sample, Theta, register

MAX_TAPS = 2**20  # relations times heads
Mechanism = Literal["across-relation", "within-relation"]
Mod = Literal["f-additive", "f-scaled"] | None


@dataclass(frozen=True)
class RelationalAttention(GraphStructure):
    """One tap per relation and head: additive attention, normalised over all incoming edges or within the relation."""

    relations: int
    heads: int
    c: int
    within: bool
    mod: Mod
    negative_slope: float
    dropout: float = 0.0

    kind, many = "adaptive", True
    reads = "both"

    @property
    def taps(self) -> int:
        return self.relations * self.heads

    def parameters(self) -> dict[str, Parameter]:
        p = Parameter((self.heads * self.c, self.heads), "uniform", (6 / (self.heads * (self.c + 1))) ** 0.5)
        return {"q": p, "k": p}

    def basis(self, domain: Edges, theta: Theta, call: Call) -> SharedTaps:
        R, h = self.relations, self.heads
        one = relations(domain, call.x.dtype, R, average=False).pattern
        W = call.weight.unflatten(0, (R, h))  # (W_r^T x) q = x (W_r q), so the logits need no transformed signal
        target, source = (  # (*b, R, n, h)
            call.x.unsqueeze(-3) @ torch.einsum("rhic,hcg->rig", W, theta[name].unflatten(0, (h, self.c)))
            for name in ("q", "k")
        )
        wide, (m, n) = torch.promote_types(call.x.dtype, torch.float32), domain.sites  # sums over long rows
        target, source = domain.at_targets(target).flatten(-3, -2).to(wide), source.flatten(-3, -2).to(wide)
        logits = target.index_select(-2, one.tap * m + one.row) + source.index_select(-2, one.tap * n + one.col)
        logits = F.leaky_relu(logits, self.negative_slope)
        alpha = row_softmax(logits, one.row * R + one.tap if self.within else one.row, m * R).to(call.x.dtype)
        if self.mod == "f-additive":
            alpha = alpha + 1
        elif self.mod == "f-scaled":
            alpha = alpha / mean(pattern(domain)[0], call.x.dtype).unsqueeze(1)
        return SharedTaps(one, alpha)


@register(
    samples=lambda rgat: [
        Sample(rgat(3, 2, num_relations=3, heads=2), messy, 3),
        Sample(rgat(2, 3, num_relations=4, heads=2, concat=False, attention_mechanism="within-relation"), messy, 2),
        Sample(rgat(2, 2, num_relations=3, negative_slope=0.1, dropout=0.5), messy, 2),
        Sample(rgat(2, 2, num_relations=3, mod="f-scaled", bias=False), messy, 2),
        Sample(rgat(2, 2, num_relations=3, mod="f-additive"), messy, 2),
    ],
    citation="Busbridge et al., Relational Graph Attention Networks, 2019",
    init="glorot",
)
def rgat(
    in_channels: Channels,
    out_channels: int,
    num_relations: int,
    mod: Mod = None,
    attention_mechanism: Mechanism = "across-relation",
    heads: int = 1,
    concat: bool = True,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    bias: bool = True,
) -> Parts:
    """Relational graph attention: R-GCN's matrices, with attention instead of means.

    Equation: Y = [head h: sum_r S_(r, h) X W_(r, h)] + b, S_(r, h)[i, j] = softmax of
    LeakyReLU(q_h . W_r^T x_i + k_h . W_r^T x_j) over all incoming edges of i ("across-relation"), or over those of
    relation r ("within-relation").

    Meaning: across relations, attention also weights the relations against each other; within, each counts equally.

    In the family: relations x heads taps, adaptive; each writes the block of its head (concat), or their mean is taken.
    Linear only when frozen: `layer.at(graph, x=x0)`.

    Traps: as in PyG, q and k read all heads of W_r^T x and are shared by the relations, where the paper has one pair
    for each relation and head that reads its own W_r^T x; no self-loops are added; edge weights are ignored. mod
    "f-additive" adds 1 to every attention weight, "f-scaled" multiplies by the number of incoming edges. Of PyG's
    RGATConv this is the additive attention without edge features, bases or blocks; its mods "additive" and "scaled" are
    not supported.

    Args: PyG's RGATConv's. out_channels: per head.

    Shapes: x (*b, n, i) -> (*b, n, heads o), or (*b, n, o) with concat=False; edge_type (e,). The weight
    (relations heads, i, o) is PyG's weight cut by heads; q and k (heads o, heads) are PyG's.

    Raises:
        ValueError: if a number is not positive, mod or the mechanism is unknown, dropout is outside of [0, 1) or
            combined with a mod, relations times heads exceed 2^20, or the graph has no labels or one that is too large.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(rgat(3, 2, num_relations=3, heads=2))(torch.zeros(6, 3), messy()).shape
    torch.Size([6, 4])
    """
    i = widest(in_channels)
    for name, value in (("num_relations", num_relations), ("heads", heads)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, but it is {value!r}.")
    if mod not in (None, "f-additive", "f-scaled"):
        raise ValueError(f"mod must be None, 'f-additive' or 'f-scaled', but it is {mod!r}.")
    if attention_mechanism not in ("across-relation", "within-relation"):
        raise ValueError(
            f"attention_mechanism must be 'across-relation' or 'within-relation', but it is {attention_mechanism!r}."
        )
    if not 0 <= dropout < 1 or (dropout and mod):
        raise ValueError(f"dropout is a probability in [0, 1), and 0 where there is a mod, but it is {dropout!r}.")
    if num_relations * heads > MAX_TAPS:
        raise ValueError(
            f"num_relations times heads must be at most {MAX_TAPS}, but they are {num_relations} and {heads}."
        )
    within = attention_mechanism == "within-relation"
    structure = RelationalAttention(num_relations, heads, out_channels, within, mod, negative_slope, dropout)
    if not concat:
        return structure, Dense(structure.taps, i, out_channels, scale=1 / heads), bias
    places = tuple((r * heads + h, 0, h) for r in range(num_relations) for h in range(heads))
    return structure, Blocks(structure.taps, i, heads * out_channels, i, out_channels, places), bias
