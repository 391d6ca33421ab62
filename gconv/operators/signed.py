"""Signed graphs: separate aggregations over positive and negative edges."""

from __future__ import annotations

from gconv.domains import Graph
from gconv.mixing import Blocks, Heads
from gconv.operators.relational import Relations
from gconv.operators.shapes import Channels, messy, widest
from gconv.spec import Parts, Sample, register


def friends() -> Graph:
    """`messy` with every third edge negative."""
    g = messy()
    assert g.edge_type is not None
    return Graph(g.edge_index, g.size, edge_weight=g.edge_weight, edge_type=g.edge_type // 2)


@register(
    samples=lambda signed: [
        Sample(signed(3, 2, first_aggr=True), friends, 3),
        Sample(signed(2, 3, first_aggr=False), friends, 4),
        Sample(signed(1, 1, first_aggr=False, bias=False), friends, 2),
    ],
    citation="Derr, Ma and Tang, Signed Graph Convolutional Networks, ICDM 2018",
)
def signed(in_channels: Channels, out_channels: int, first_aggr: bool, bias: bool = True) -> Parts:
    """The signed graph convolution: a balanced and an unbalanced half of the signal.

    Equation: with first_aggr, Y = [M+ X W_0 + X W_2 | M- X W_1 + X W_3] + b; without, with X = [P | N],
    Y = [M+ P W_0 + M- N W_1 + P W_4 | M+ N W_2 + M- P W_3 + N W_5] + b. M+ and M- are the means over the positive and
    over the negative incoming edges.

    Meaning: balance theory: the friend of a friend and the enemy of an enemy are friends (the first half), the enemy of
    a friend is an enemy (the second half).

    In the family: three taps, M+, M- and the identity; W by heads (first_aggr), or in blocks of which half are zero.

    Traps: positive edges have `edge_type` 0, negative ones 1 (PyG takes two edge lists); edge weights are ignored, as
    in PyG. in_channels counts one half: without first_aggr the layer reads 2 i channels.

    Args: PyG's SignedConv's. first_aggr: whether this is the first layer, whose input has no halves.

    Shapes: first_aggr: x (*b, n, i) -> (*b, n, 2 o); the weight is (4, i, o): PyG's lin_pos_l, lin_neg_l, lin_pos_r,
    lin_neg_r. Otherwise: x (*b, n, 2 i) -> (*b, n, 2 o); the weight is (6, i, o): the halves of lin_pos_l, the halves
    of lin_neg_l, lin_pos_r, lin_neg_r. b is the bias of lin_pos_r, then that of lin_neg_r.
    Between two sets of nodes: `layer((x_source, x_target), bipartite)`.

    Raises:
        ValueError: if the graph has no labels, or one above 1.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(signed(3, 2, first_aggr=True))(torch.ones(6, 3), friends()).shape
    torch.Size([6, 4])
    """
    i = widest(in_channels)
    structure = Relations(2, None, "mean", True)
    if first_aggr:
        return structure, Heads(2, i, out_channels, root=True), bias
    places = ((0, 0, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1), (2, 0, 0), (2, 1, 1))
    return structure, Blocks(3, 2 * i, 2 * out_channels, i, out_channels, places), bias
