"""Helpers shared by the attention operators.

Attention is a convolution whose structure depends on the signal: S_h[i, j] is the weight with which site i reads site
j, one tap per head. On a complete graph this is a transformer's self-attention, on a pixel graph windowed attention.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gconv.basis import Basis, Dots, Pattern, SharedTaps, Stack, attended
from gconv.domains import Edges, Graph
from gconv.laplacian import itself, pattern
from gconv.mixing import AveragedHeads, Dense, Heads, Mixing, Parametrised
from gconv.spec import Parameter

Fill = float | tuple[float, ...] | Literal["mean", "add", "sum", "min", "max", "mul"]
_REDUCE = {"mean": "mean", "add": "sum", "sum": "sum", "min": "amin", "max": "amax", "mul": "prod"}


def row_softmax(logits: Tensor, row: Tensor, rows: int) -> Tensor:
    """Softmax over the entries of each row, (*b, e, h) -> (*b, e, h); numerically stable."""
    index, shape = row.unsqueeze(-1).expand_as(logits), (*logits.shape[:-2], rows, logits.shape[-1])
    top = logits.detach().new_full(shape, -torch.inf).scatter_reduce(-2, index, logits.detach(), "amax")
    weight = (logits - top.index_select(-2, row)).exp()
    total = weight.new_zeros(shape).index_add(-2, row, weight)
    return weight / (total.index_select(-2, row) + 1e-16)


def attend(domain: Edges, one: Pattern, logits: Tensor | Dots, dtype: torch.dtype, root: bool = False) -> Basis:
    """One tap per head: the softmax of the logits (*b, e, h) over each row; with `root` the node itself, too."""
    return _with_root(domain, attended(one, logits, dtype), dtype, root)


def head_taps(domain: Edges, one: Pattern, values: Tensor, root: bool = False) -> Basis:
    """One tap per head with values (*b, e, h); with `root` the node itself, too."""
    return _with_root(domain, SharedTaps(one, values), values.dtype, root)


def _with_root(domain: Edges, S: Basis, dtype: torch.dtype, root: bool) -> Basis:
    return Stack((S, itself(domain, dtype))) if root else S


def arrivals(graph: Edges, add_self_loops: bool) -> tuple[Pattern, Tensor]:
    """The edges to attend over, as from `laplacian.pattern`; added self-loops replace existing ones, as in PyG."""
    return pattern(graph, "replace" if add_self_loops else "keep", by_rows=True)


def edge_features(graph: Edges, add_self_loops: bool, dim: int, fill: Fill, dtype: torch.dtype, name: str) -> Tensor:
    """The features (e, d) of the edges returned by `arrivals`; those of added self-loops are set by `fill`.

    Args:
        graph: with `edge_attr`.
        add_self_loops: whether self-loops were added.
        dim: number of features per edge.
        fill: one number, or one per feature; or the reduction over the node's incoming edges: "mean", "add", "min",
            "max" or "mul". Without incoming edges the features are 0, for "mul" 1.
        dtype: of the result.
        name: of the operator, for error messages.

    Raises:
        ValueError: if the graph has no edge features, or another number of them.
    """
    attr = graph.edge_attr
    if attr is None or attr.shape[1] != dim:
        have = "none" if attr is None else f"{attr.shape[1]}"
        raise ValueError(f"{name} needs edge_attr with edge_dim={dim} numbers per edge; the graph has {have}.")

    def make() -> Tensor:
        one, edge = arrivals(graph, add_self_loops)
        if not add_self_loops:
            return attr[edge].to(dtype)
        plain = edge[edge >= 0]
        if isinstance(fill, str):
            start = attr.new_ones(graph.sites[0], dim) if fill == "mul" else attr.new_zeros(graph.sites[0], dim)
            index = graph.target[plain].unsqueeze(-1).expand(-1, dim)
            loop = start.scatter_reduce(0, index, attr[plain], _REDUCE[fill], include_self=False)
        else:
            loop = attr.new_tensor(fill).expand(graph.sites[0], dim)
        return torch.cat([attr, loop])[torch.where(edge < 0, graph.num_edges + one.row, edge)].to(dtype)

    return make() if graph.learned else graph.memo(("edge features", add_self_loops, fill, dtype), make)


def head_mixing(heads: int, i: int, c: int, concat: bool, root: bool) -> Mixing | Parametrised:
    """The mixing of concatenated or averaged heads; with `root` a last tap for the node itself."""
    if concat:
        return Heads(heads, i, c, root)
    return AveragedHeads(heads, i, c) if root else Dense(heads, i, c, scale=1 / heads)


def glorot(heads: int, i: int, c: int) -> Parameter:
    """One matrix (i, c) per head, initialised like a single matrix (i, heads c)."""
    return Parameter((heads, i, c), "uniform", (6 / (i + heads * c)) ** 0.5)


def check_heads(heads: int, dropout: float) -> None:
    """Validate the number of heads and the dropout probability. Raises: ValueError."""
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(f"heads must be a positive integer, but it is {heads!r}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), but it is {dropout!r}.")


def check_features(edge_dim: int | None, fill: Fill) -> None:
    """Validate the number of edge features and the fill value of added self-loops. Raises: ValueError."""
    if edge_dim is not None and (not isinstance(edge_dim, int) or edge_dim < 1):
        raise ValueError(f"edge_dim must be a positive integer or None, but it is {edge_dim!r}.")
    if isinstance(fill, str) and fill not in _REDUCE:
        raise ValueError(f"fill_value must be a number, one per feature, or one of {', '.join(_REDUCE)}, not {fill!r}.")
    if isinstance(fill, tuple) and len(fill) != edge_dim:
        raise ValueError(f"fill_value must be one number or edge_dim={edge_dim} of them, but it has {len(fill)}.")


def complete(n: int = 5) -> Graph:
    """The complete graph with self-loops: attention on it is self-attention."""
    i = torch.arange(n)
    return Graph(torch.stack([i.repeat(n), i.repeat_interleave(n)]), n)
