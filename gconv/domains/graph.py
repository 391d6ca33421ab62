"""Graphs: nodes, directed edges, and what is derived from them once."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gconv.domains.edges import Edges, check_edge_index
from gconv.kernels import apart, readable, varies, wrapped


@dataclass(frozen=True, eq=False, repr=False)
class Graph(Edges):
    """A directed graph: edge e carries a signal from source `edge_index[0, e]` to target `edge_index[1, e]`.

    Equation: the adjacency that acts on signals is A[i, j] = sum of the weights of the edges j -> i.

    This is PyG's dialect (row 0 source, row 1 target). Tensors are copied in, so a later change of the caller's
    tensors does not reach the graph. Multi-edges, self-loops and isolated nodes are all legal; each operator says
    what it does with them. Trap: networkx and scipy matrices read A[source, target], the transpose of ours.

    Args:
        edge_index: (2, e) integer node numbers in [0, size).
        size: number of nodes; default: the largest number in edge_index plus one.
        edge_weight: (e,) finite numbers; default: ones.
        edge_attr: (e, d) finite pseudo-coordinates or features of the edges.
        edge_type: (e,) integer label of each edge >= 0, e.g. a relation or an offset.
        pos: (size, d) positions of the nodes.
        ptr: (parts + 1,) first node of each part of a disjoint union; default: one part.

    Raises:
        TypeError, ValueError: if a tensor has the wrong shape, dtype, device, a number out of range, or a NaN.

    >>> path = Graph(torch.tensor([[0, 1], [1, 2]]), size=4)
    >>> path
    Graph(4 nodes, 2 edges)
    >>> path.in_degree()
    tensor([0., 1., 1., 0.])
    """

    edge_index: Tensor
    size: int = -1
    edge_weight: Tensor | None = None
    edge_attr: Tensor | None = None
    edge_type: Tensor | None = None
    pos: Tensor | None = None
    ptr: tuple[int, ...] = ()
    _memo: dict[Hashable, Any] = field(default_factory=dict, init=False)

    square: ClassVar[bool] = True

    def __post_init__(self) -> None:
        (low, high), (least, most) = self._copy_edge_index()
        low, high = min(low, least), max(high, most)
        size = high + 1 if self.size == -1 else int(self.size)
        if low < 0:
            raise ValueError(f"edge_index must not be negative, but it holds node {low}.")
        if size < 0:
            raise ValueError(f"A Graph cannot have {size} nodes.")
        if high >= size:
            raise ValueError(f"edge_index names node {high}, but the graph has {size} nodes, numbered 0 to {size - 1}.")
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("size", size)
        put("ptr", tuple(int(p) for p in self.ptr) or (0, size))
        self._copy_edge_tensors()
        if self.pos is not None:
            if self.pos.ndim != 2 or self.pos.shape[0] != size:
                raise ValueError(f"pos must have one row a node: {size}, but it has shape {tuple(self.pos.shape)}.")
            if self.pos.device != self.device:
                raise ValueError(f"pos is on {self.pos.device}, but edge_index is on {self.device}.")
            if readable(self.pos) and not bool(torch.isfinite(self.pos.detach()).all()):
                raise ValueError("pos holds NaN or infinity; every number of it must be finite.")
            with apart(self.pos):
                put("pos", self.pos.clone())
        if self.ptr[0] != 0 or self.ptr[-1] != size or any(a > b for a, b in itertools.pairwise(self.ptr)):
            raise ValueError(f"ptr must rise from 0 to {size}, the number of nodes, but it is {self.ptr}.")

    # -- readers ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_edge_index(cls, edge_index: Tensor, num_nodes: int | None = None, **tensors: Any) -> Graph:
        """A Graph from PyG's `edge_index`, with `edge_weight=`, `edge_attr=`, ... as in the class."""
        return cls(edge_index, -1 if num_nodes is None else num_nodes, **tensors)

    @classmethod
    def from_pyg(cls, data: Any) -> Graph:
        """A Graph from `torch_geometric.data.Data` (or `Batch`, whose parts become `ptr`)."""
        if data.edge_index is None:
            raise ValueError("This Data object has no edge_index, so there is no graph to read.")
        ptr = data["ptr"].tolist() if "ptr" in data else ()
        pick = {key: data[key] for key in ("edge_weight", "edge_attr", "edge_type", "pos") if key in data}
        return cls(data.edge_index, data.num_nodes, ptr=tuple(ptr), **pick)

    @classmethod
    def from_hyperedge_index(
        cls, hyperedge_index: Tensor, num_nodes: int | None = None, hyperedge_weight: Tensor | None = None
    ) -> Graph:
        """A hypergraph from PyG's `hyperedge_index` (2, h), row 0 nodes, row 1 hyperedges.

        "Node v is in hyperedge e" is an edge v -> v with label e, which carries the weight of e.

        Args:
            hyperedge_index: the incidences.
            num_nodes: default one more than the largest.
            hyperedge_weight: one number a hyperedge, or none.

        >>> Graph.from_hyperedge_index(torch.tensor([[0, 1, 1, 2], [0, 0, 1, 1]]))
        Graph(3 nodes, 4 edges, edge_type)
        """
        check_edge_index(hyperedge_index)
        node, edge = hyperedge_index
        most = int(edge.max()) + 1 if edge.numel() else 0
        if hyperedge_weight is not None and (hyperedge_weight.ndim != 1 or len(hyperedge_weight) < most):
            raise ValueError(
                f"hyperedge_weight must have one number for each of the {most} hyperedges, "
                f"but its shape is {tuple(hyperedge_weight.shape)}."
            )
        weight = None if hyperedge_weight is None else hyperedge_weight[edge]
        return cls(
            torch.stack([node, node]), -1 if num_nodes is None else num_nodes, edge_weight=weight, edge_type=edge
        )

    @classmethod
    def from_networkx(cls, graph: Any, weight: str | None = "weight") -> Graph:
        """A Graph from a networkx graph: nodes in its own order, an undirected edge as two directed ones."""
        number = {node: i for i, node in enumerate(graph.nodes)}
        edges = [(number[u], number[v], data.get(weight, 1.0)) for u, v, data in graph.edges(data=True)]
        if not graph.is_directed():
            edges += [(v, u, w) for u, v, w in edges if u != v]
        index = torch.tensor([edge[:2] for edge in edges], dtype=torch.int64).reshape(-1, 2).t()
        weights = torch.tensor([float(edge[2]) for edge in edges], dtype=torch.float64)
        plain = bool((weights == 1).all())
        return cls(index, len(number), edge_weight=None if plain else weights)

    @classmethod
    def from_scipy(cls, matrix: Any) -> Graph:
        """A Graph from a square scipy sparse matrix, entry (u, v) an edge u -> v with that weight."""
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"An adjacency matrix is square, but this one has shape {matrix.shape}.")
        coo = matrix.tocoo()
        index = torch.stack([torch.as_tensor(coo.row.astype("int64")), torch.as_tensor(coo.col.astype("int64"))])
        return cls(index, matrix.shape[0], edge_weight=torch.as_tensor(coo.data.astype("float64")))

    @classmethod
    def union(cls, graphs: Iterable[Graph]) -> Graph:
        """The disjoint union: one graph whose parts keep their edges, nodes numbered on; `ptr` marks the parts.

        Raises:
            ValueError: if the list is empty, or only some of the graphs carry weights, attributes or labels.
        """
        graphs = list(graphs)
        if not graphs:
            raise ValueError("The union of no graphs is not defined; give at least one.")
        starts = [0, *itertools.accumulate(g.size for g in graphs)]
        index = torch.cat([g.edge_index + s for g, s in zip(graphs, starts[:-1], strict=True)], 1)
        tensors: dict[str, Tensor] = {}
        for name in ("edge_weight", "edge_attr", "edge_type", "pos"):
            values = [getattr(g, name) for g in graphs]
            have = [v for v in values if v is not None]
            if have and len(have) < len(graphs):
                raise ValueError(
                    f"Only {len(have)} of the {len(graphs)} graphs have {name}; give it to all or to none."
                )
            if have:
                tensors[name] = torch.cat(have)
        ptr = [0]
        for g, start in zip(graphs, starts[:-1], strict=True):
            ptr += [start + p for p in g.ptr[1:]]
        return cls(index, starts[-1], ptr=tuple(ptr), **tensors)

    # -- what is derived, once -------------------------------------------------------------------------------------

    @property
    def learned(self) -> bool:
        """Whether what the edges or nodes carry needs gradients, so that nothing derived from it may be kept."""
        return varies(self.edge_weight) or varies(self.edge_attr) or varies(self.pos)

    @property
    def sites(self) -> tuple[int, int]:
        """(m, n): sites out and sites in of the signals."""
        return self.size, self.size

    def at_targets(self, x: Tensor, axis: int = -2) -> Tensor:
        """What a signal with n sites on this axis holds of the nodes at which edges arrive: all of it."""
        return x

    def in_degree(self, dtype: torch.dtype | None = None) -> Tensor:
        """(n,) the sum of the weights of the edges that arrive at each node."""
        w = self.weights(dtype)
        return w.new_zeros(self.size).index_add(0, self.target, w)

    def out_degree(self, dtype: torch.dtype | None = None) -> Tensor:
        """(n,) the sum of the weights of the edges that leave each node."""
        w = self.weights(dtype)
        return w.new_zeros(self.size).index_add(0, self.source, w)

    def part(self) -> Tensor:
        """(n,) the number of the part of the union that each node belongs to."""
        lengths = torch.tensor([b - a for a, b in itertools.pairwise(self.ptr)], device=self.device)
        return torch.repeat_interleave(torch.arange(len(self.ptr) - 1, device=self.device), lengths)

    @property
    def is_undirected(self) -> bool:
        """Whether A is symmetric: between any two nodes the edges of both directions have the same total weight."""

        def check() -> bool:
            (j, i), w = self.edge_index, self.weights(torch.float64).detach()
            pair, forth = torch.unique(i * self.size + j, return_inverse=True)
            reverse, back = torch.unique(j * self.size + i, return_inverse=True)
            if not torch.equal(pair, reverse):
                return False
            there, here = (w.new_zeros(len(pair)).index_add(0, at, w) for at in (forth, back))
            return torch.allclose(there, here, rtol=1e-12, atol=0)

        return check() if wrapped(self.edge_weight) else self.memo("undirected", check)

    def to(self, device: torch.device | str) -> Graph:
        """The same graph on another device; itself if it is there already."""
        if torch.device(device) == self.device:
            return self
        moved = object.__new__(Graph)  # what was checked once need not be checked again
        for entry in fields(self):
            value = getattr(self, entry.name)
            object.__setattr__(moved, entry.name, value.to(device) if isinstance(value, Tensor) else value)
        object.__setattr__(moved, "_memo", {})
        return moved

    def permute(self, order: Tensor) -> Graph:
        """The same graph with node v renamed to `order[v]`."""
        pos = None if self.pos is None else torch.empty_like(self.pos).index_copy(0, order, self.pos)
        return Graph(order[self.edge_index], self.size, self.edge_weight, self.edge_attr, self.edge_type, pos)

    def reordered(self, how: Literal["rcm", "degree"] = "rcm") -> tuple[Graph, Tensor]:
        """The same graph with its nodes in an order that a sparse product reads faster, and that order.

        Meaning: node i of the new graph is node order[i] of this one, so signals go in as x[order] and what comes out
        is y with y[order] = out. "rcm" (reverse Cuthill-McKee) puts neighbours beside each other: on meshes and grids
        with random numbers, what a row gathers then lies close together. "degree" puts the hubs first.

        Traps: `python -m experiments.choices --only order` measures both. A grid gains, at narrow widths most; a random
        power-law graph has no order that helps. Finding one takes as long as tens of products, so nothing in gconv
        reorders by itself. The parts of a union are not kept.

        Raises:
            ValueError: for another order.

        >>> path = Graph(torch.tensor([[0, 2, 2, 1], [2, 0, 1, 2]]))  # 0 - 2 - 1
        >>> graph, order = path.reordered()
        >>> (graph.source - graph.target).abs().max(), order
        (tensor(1), tensor([1, 2, 0]))
        """
        if how == "degree":
            order = torch.argsort(self.in_degree() + self.out_degree(), descending=True, stable=True)
        elif how == "rcm":
            from scipy.sparse import coo_matrix
            from scipy.sparse.csgraph import reverse_cuthill_mckee

            ends = torch.cat([self.edge_index, self.edge_index.flip(0)], 1).cpu().numpy()
            both = coo_matrix(([True] * ends.shape[1], (ends[0], ends[1])), (self.size, self.size)).tocsr()
            found = reverse_cuthill_mckee(both, symmetric_mode=True)
            order = torch.from_numpy(found.copy()).long().to(self.device)
        else:
            raise ValueError(f'The order of nodes is "rcm" or "degree", not {how!r}.')
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        return self.permute(place), order

    def __repr__(self) -> str:
        extra = [name for name in ("edge_weight", "edge_attr", "edge_type", "pos") if getattr(self, name) is not None]
        parts = len(self.ptr) - 1
        tail = (f", {parts} parts" if parts != 1 else "") + "".join(f", {name}" for name in extra)
        return f"Graph({self.size} nodes, {self.num_edges} edges{tail})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the derived structure, which is cheap to compute again."""
        args = (self.edge_index, self.size, self.edge_weight, self.edge_attr, self.edge_type, self.pos, self.ptr)
        return Graph, args
