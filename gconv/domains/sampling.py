"""Neighbour sampling: blocks of a graph, hop by hop, that keep the degrees of the whole graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from gconv.arguments import integer, plural, shown
from gconv.domains.bipartite import Bipartite
from gconv.domains.edges import check_edge_index
from gconv.kernels import varies

if TYPE_CHECKING:
    from gconv.domains.graph import Graph


@dataclass(frozen=True, eq=False)
class Whole:
    """Data of the graph from which a block was sampled.

    nodes: (n_source,) the indices in the graph of the block's sources; the targets are the first of them.
    edges: (e,) the indices in the graph of the block's edges.
    sums: (n_source, 1 or 2, 6) for each source, unweighted and, with edge weights, weighted: in- and out-degree, both
        without self-loops, the weight of the last self-loop, and whether there is one.
    scale: (e,) the ratio of incoming to sampled edges of the target, without self-loops, by which a sampled sum is
        multiplied; 1 for self-loops, which are always kept. None if no edge was left out.
    """

    nodes: Tensor
    edges: Tensor
    sums: Tensor
    scale: Tensor | None

    def degree(self, end: Literal["in", "out"], loops: str, fill: float, weighted: bool) -> Tensor:
        """(n_source,) degrees in the whole graph, with self-loops treated as in `gconv.laplacian.pattern`."""
        sums = self.sums[:, -1 if weighted else 0]
        every, plain = (sums[:, 0], sums[:, 2]) if end == "in" else (sums[:, 1], sums[:, 3])
        if loops == "fill":
            return plain + torch.where(sums[:, 5] > 0, sums[:, 4], fill)
        start = plain if loops in ("remove", "replace") else every
        return start + fill if loops in ("replace", "add", "own") else start

    def to(self, device: torch.device | str) -> Whole:
        """The same on another device."""
        scale = None if self.scale is None else self.scale.to(device)
        return Whole(self.nodes.to(device), self.edges.to(device), self.sums.to(device), scale)


def sample(
    graph: Graph, seeds: Tensor | Sequence[int], fanouts: Sequence[int], generator: torch.Generator | None
) -> list[Bipartite]:
    """`Graph.sample`."""
    fanouts = _read_fanouts(fanouts)
    nodes = _read_nodes(graph, seeds, "seeds")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, but it is {shown(generator)}.")
    blocks = []
    for fanout in fanouts:
        m = len(nodes)
        nodes, edges, index = _hop(graph, nodes, fanout, generator)
        blocks.append(_block(graph, nodes, m, edges, index))
    return blocks[::-1]


def from_batch(graph: Graph, batch: Any, layers: int) -> list[Bipartite]:
    """`Graph.blocks_of`."""
    layers = integer(layers, "layers", 1)
    missing = [name for name in ("n_id", "edge_index", "batch_size") if getattr(batch, name, None) is None]
    if missing:
        raise ValueError(
            f"A batch of a NeighborLoader must have n_id, edge_index and batch_size, but it lacks {missing[0]}."
        )
    nodes, index = _read_nodes(graph, batch.n_id, "n_id"), check_edge_index(batch.edge_index).to(torch.int64)
    count, given = integer(batch.batch_size, "batch_size", 1), getattr(batch, "input_id", None)
    if count > len(nodes) or (given is not None and len(given) != count):
        raise ValueError(f"batch_size={count} must be the length of input_id and at most that of n_id, {len(nodes)}.")
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(nodes):
        raise ValueError(f"edge_index of the batch must contain positions in n_id, 0 to {len(nodes) - 1}.")
    edges = getattr(batch, "e_id", None)
    if edges is None and any(t is not None for t in (graph.edge_weight, graph.edge_attr, graph.edge_type)):
        raise ValueError("The graph's edges carry weights, attributes or types, so the batch needs e_id to find them.")
    ends = nodes[index]
    if edges is None:
        key, order = graph.memo("sorted edges", lambda: torch.sort(graph.target * graph.size + graph.source))
        place = torch.searchsorted(key, ends[1] * graph.size + ends[0]).clamp(max=max(len(key) - 1, 0))
        edges = order[place] if len(key) else place
    edges = torch.as_tensor(edges, dtype=torch.int64, device=graph.device)
    known = edges.shape == ends.shape[1:] and bool(((edges >= 0) & (edges < graph.num_edges)).all())
    if not known or not torch.equal(graph.edge_index[:, edges], ends):
        raise ValueError("The batch has edges that are not in the graph: it was sampled from another graph.")
    local = type(graph)(index, len(nodes))
    found, at = [], torch.arange(count, device=graph.device)
    for _ in range(layers):
        m = len(at)
        at, chosen, within = _hop(local, at, -1, None)
        found.append(_block(graph, nodes[at], m, edges[chosen], within))
    return found[::-1]


def _hop(
    graph: Graph, targets: Tensor, fanout: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The nodes, targets first; the edges, ascending; and their end points as positions among the nodes."""
    first, order, loop = graph.memo("edges by target", lambda: _by_target(graph))
    many = first[targets + 1] - first[targets]
    at = torch.repeat_interleave(torch.arange(len(targets), device=graph.device), many)
    begin = many.cumsum(0) - many
    place = torch.arange(len(at), device=graph.device) - begin[at]
    edges = order[first[targets][at] + place]
    if fanout >= 0:
        own = loop[edges]
        draw = torch.rand(len(at), dtype=torch.float64, device=graph.device, generator=generator)
        shuffled = torch.argsort(at + torch.where(own, 0.0, (1 + draw) / 2), stable=True)  # self-loops first
        kept = place < (fanout + at.new_zeros(len(targets)).index_add(0, at, own.long()))[at]
        edges, at = edges[shuffled][kept], at[kept]
    edges, sorting = edges.sort()
    source, at = graph.source[edges], at[sorting]
    every, where = torch.unique(torch.cat([targets, source]), return_inverse=True)
    new = torch.ones_like(every, dtype=torch.bool)
    new[where[: len(targets)]] = False
    number = len(targets) - 1 + new.cumsum(0)
    number[where[: len(targets)]] = torch.arange(len(targets), device=graph.device)
    return torch.cat([targets, every[new]]), edges, torch.stack([number[where[len(targets) :]], at])


def _block(graph: Graph, nodes: Tensor, m: int, edges: Tensor, index: Tensor) -> Bipartite:
    sums = whole_sums(graph)[nodes]
    plain = index[0] != index[1]
    want = sums[:m, 0, 2]
    have = torch.zeros_like(want).index_add(0, index[1], plain.to(want.dtype))
    lost = (want > 0) & (have == 0)
    if bool(lost.any()):
        raise ValueError(
            f"Node {int(nodes[:m][lost][0])} has neighbours in the graph but none in the batch: the batch was sampled "
            "for fewer layers than requested."
        )
    left_out = bool((want != have).any())
    scale = torch.where(plain, (want / have.clamp(min=1))[index[1]], 1.0) if left_out else None
    pick = {
        name: value[edges]
        for name in ("edge_weight", "edge_attr", "edge_type")
        if (value := getattr(graph, name)) is not None
    }
    for name, value in pick.items():
        if value.requires_grad and get_worker_info() is not None:  # the DataLoader would wait for the block forever
            raise ValueError(
                f"Gradients of {name} cannot leave a worker of a DataLoader: sample with num_workers=0, or from a "
                f"graph with {name}.detach()."
            )
    block = Bipartite(index, (len(nodes), m), **pick)
    object.__setattr__(block, "whole", Whole(nodes, edges, sums, scale))
    return block


def _by_target(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """(n + 1,) offsets of the targets in the edges sorted by target; that order; which edges are self-loops."""
    arriving = graph.target.new_zeros(graph.size).index_add(0, graph.target, torch.ones_like(graph.target))
    first = torch.cat([arriving.new_zeros(1), arriving.cumsum(0)])
    return first, torch.argsort(graph.target, stable=True), graph.source == graph.target


def whole_sums(graph: Graph) -> Tensor:
    """(n, 1 or 2, 6) `Whole.sums` for all nodes."""
    return _sums(graph) if varies(graph.edge_weight) else graph.memo("sums", lambda: _sums(graph))


def _sums(graph: Graph) -> Tensor:
    plain = graph.source != graph.target
    last = graph.source.new_full((graph.size,), -1)
    last = last.scatter_reduce(0, graph.source[~plain], (~plain).nonzero()[:, 0], "amax")

    def of(w: Tensor) -> Tensor:
        add = lambda end, values: w.new_zeros(graph.size).index_add(0, end, values)  # noqa: E731
        bare = torch.where(plain, w, 0.0)
        loop = torch.cat([w, w.new_zeros(1)])[last]
        ends = [add(end, values) for values in (w, bare) for end in (graph.target, graph.source)]
        return torch.stack([*ends, loop, (last >= 0).to(w.dtype)], 1)

    w = graph.weights(torch.float64)
    both = [torch.ones_like(w)] if graph.edge_weight is None else [torch.ones_like(w), w]
    return torch.stack([of(each) for each in both], 1)


def _read_fanouts(fanouts: Any) -> list[int]:
    if not isinstance(fanouts, Sequence) or isinstance(fanouts, str) or not len(fanouts):
        raise TypeError(
            f"fanouts must list the number of neighbours per hop, such as [10, 5], but it is {shown(fanouts)}."
        )
    read = [integer(fanout, "fanouts") for fanout in fanouts]
    if bad := [f for f in read if f < 1 and f != -1]:
        raise ValueError(f"fanouts must be at least 1, or -1 for all neighbours, but one of them is {bad[0]}.")
    return read


def _read_nodes(graph: Graph, nodes: Any, name: str) -> Tensor:
    try:
        array = hasattr(nodes, "__array__") and not isinstance(nodes, Tensor)  # such as a pandas Series, read in order
        read = torch.as_tensor(np.array(nodes) if array else nodes, device=graph.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a sequence of node indices, but it is {shown(nodes)}.") from None
    if read.ndim == 1 and not len(read):
        raise ValueError(f"{name} must contain at least one node, but it is empty.")
    if read.ndim != 1 or read.is_floating_point() or read.is_complex() or read.dtype == torch.bool:
        raise TypeError(
            f"{name} must be a vector of node indices, but it is {read.dtype} of shape {tuple(read.shape)}."
        )
    read = read.to(torch.int64)
    if bad := [v for v in (int(read.min()), int(read.max())) if not 0 <= v < graph.size]:
        raise ValueError(
            f"{name} contains node {bad[0]}, but the graph has {plural(graph.size, 'node')}, numbered from 0."
        )
    ordered = read.sort().values
    if bool((twice := ordered[1:] == ordered[:-1]).any()):
        raise ValueError(
            f"{name} contains node {int(ordered[1:][twice][0])} twice; remove duplicates with "
            "torch.unique(..., return_inverse=True)."
        )
    return read
