"""Graphs: nodes, directed edges, and what is derived from them once."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gconv.arguments import checked, explain_keywords, integer
from gconv.domains import foreign, sampling
from gconv.domains.bipartite import Bipartite
from gconv.domains.edge_list import Duplicates, read_edge_list
from gconv.domains.edges import Edges, check_edge_index
from gconv.kernels import apart, readable, varies, wrapped


@explain_keywords(num_nodes="size", n="size", weight="edge_weight", weights="edge_weight", edges="edge_index")
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
        size = None if self.size is None else integer(self.size, "size")
        if size in (None, -1):
            if not readable(self.edge_index):
                raise ValueError("Within a trace the number of nodes cannot be read off edge_index: give a size.")
            size = high + 1
        if low < 0:
            raise ValueError(f"edge_index must not be negative, but it holds node {low}.")
        if size < 0:
            raise ValueError(f"A Graph cannot have {size} nodes.")
        if high >= size:
            raise ValueError(f"edge_index names node {high}, but the graph has {size} nodes, numbered 0 to {size - 1}.")
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("size", size)
        put("ptr", self._read_ptr() or (0, size))
        self._copy_edge_tensors()
        if self.pos is not None:
            put("pos", foreign.as_tensor("pos", self.pos))
            if not self.pos.is_floating_point():
                put("pos", self.pos.to(torch.get_default_dtype()))
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

    def _read_ptr(self) -> tuple[int, ...]:
        ptr = self.ptr.tolist() if hasattr(self.ptr, "tolist") else self.ptr
        if not isinstance(ptr, tuple | list | range):
            raise TypeError(f"ptr must be the first node of each part and the size, but it is a {type(ptr).__name__}.")
        return tuple(integer(p, "ptr") for p in ptr)

    # -- readers ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_edge_index(
        cls, edge_index: Tensor, num_nodes: int | None = None, *, batch: Tensor | None = None, **tensors: Any
    ) -> Graph:
        """A Graph from PyG's `edge_index`, with `edge_weight=`, `edge_attr=`, ... as in the class.

        Args:
            edge_index: (2, e), row 0 the sources, row 1 the targets.
            num_nodes: default: the length of batch, else the largest number plus one.
            batch: (n,) the number of the graph that each node belongs to, ascending: the parts of a disjoint union, as
                PyG's models get it beside edge_index. Pools then pool each part.
            tensors: further arguments of the class.

        >>> Graph.from_edge_index(torch.tensor([[0, 2], [1, 3]]), batch=torch.tensor([0, 0, 1, 1]))
        Graph(4 nodes, 2 edges, 2 parts)
        """
        if batch is not None:
            tensors["ptr"] = foreign.parts_of(batch, num_nodes)
            num_nodes = tensors["ptr"][-1]
        return cls(edge_index, -1 if num_nodes is None else num_nodes, **tensors)

    @classmethod
    @checked
    def from_pyg(cls, data: Any) -> Graph:
        """A Graph from `torch_geometric.data.Data` or a subclass; the parts of a `Batch` become `ptr`.

        Reads `edge_index`, or else `adj_t`, with edge_weight, edge_attr, edge_type, pos, and ptr or batch.

        Raises:
            ValueError: if there are no edges to read.
            TypeError: for a HeteroData, which holds several graphs, or what is no Data.
        """
        return cls(**foreign.from_pyg(data))

    @classmethod
    @checked
    def from_sparse(cls, adjacency: Tensor) -> Graph:
        """A Graph from a square torch sparse tensor of any layout: entry (i, j) is an edge j -> i with that weight.

        This is the matrix that acts on signals, A[target, source], as PyG's `adj_t` and as torch.sparse.mm(A, x); the
        transpose of what networkx and scipy call the adjacency.

        Raises:
            TypeError, ValueError: if it is not sparse, square, and of one real number an entry.

        >>> A = torch.tensor([[0.0, 0.0], [3.0, 0.0]])  # one edge, from node 0 to node 1
        >>> graph = Graph.from_sparse(A.to_sparse())
        >>> graph.edge_index.flatten(), graph.edge_weight
        (tensor([0, 1]), tensor([3.]))
        """
        return cls(**foreign.from_sparse(adjacency))

    @classmethod
    @checked
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
        node, edge = check_edge_index(hyperedge_index, "hyperedge_index").to(torch.int64)
        known = readable(edge) and edge.numel() > 0
        if known and int(edge.min()) < 0:
            raise ValueError(f"hyperedge_index must not be negative, but it holds hyperedge {int(edge.min())}.")
        most = int(edge.max()) + 1 if known else 0
        if hyperedge_weight is not None:
            hyperedge_weight = foreign.as_tensor("hyperedge_weight", hyperedge_weight)
            if hyperedge_weight.ndim != 1 or len(hyperedge_weight) < most:
                raise ValueError(
                    f"hyperedge_weight must have one number for each of the {most} hyperedges, "
                    f"but its shape is {tuple(hyperedge_weight.shape)}."
                )
        weight = None if hyperedge_weight is None else hyperedge_weight[edge]
        return cls(
            torch.stack([node, node]), -1 if num_nodes is None else num_nodes, edge_weight=weight, edge_type=edge
        )

    @classmethod
    @checked
    def from_edge_list(
        cls,
        edges: Any,
        *,
        source: Hashable = 0,
        target: Hashable = 1,
        weight: Hashable | None = None,
        nodes: Iterable[Any] | int | None = None,
        undirected: bool = False,
        duplicates: Duplicates = "error",
    ) -> tuple[Graph, list[Any]]:
        """A Graph from a table of edges between named nodes, and the names.

        Args:
            edges: pairs or longer rows, an array or tensor (e, 2) or wider, a DataFrame, a dict of columns, or the path
                of a text file of columns (comma, semicolon, tab, bar or space; lines that start with # are comments).
            source, target: the columns of the two ends, by name or by position. Names of a file's columns stand in its
                first line; with positions there must be no such line.
            weight: the column of the weights; default: none.
            nodes: the names of all nodes in the order that you want, isolated ones too, or their number n for
                0 ... n - 1; default: the names that edges use, integers ascending, others as they come.
            undirected: whether each edge also goes the other way. An edge and its reverse are then duplicates.
            duplicates: what to do with an edge that is listed twice: refuse it ("error"), add the weights up ("sum", an
                edge without a weight counts as 1), take the first ("first"), or let both stand ("keep").

        Returns:
            The Graph, and ids, a list: node i is called ids[i], so row i of a signal belongs to ids[i].

        Raises:
            ValueError, TypeError: if a column, name or weight is missing, no number, listed twice or not in `nodes`.

        >>> friends = [("ann", "bob", 2.0), ("bob", "cem", 0.5)]
        >>> graph, ids = Graph.from_edge_list(friends, weight=2, nodes=["ann", "bob", "cem", "dana"], undirected=True)
        >>> graph, ids
        (Graph(4 nodes, 4 edges, edge_weight), ['ann', 'bob', 'cem', 'dana'])
        >>> for (j, i), w in zip(graph.edge_index.t().tolist(), graph.edge_weight.tolist()):
        ...     print(ids[j], "->", ids[i], w)
        ann -> bob 2.0
        bob -> cem 0.5
        bob -> ann 2.0
        cem -> bob 0.5
        """
        found, ids = read_edge_list(edges, source, target, weight, nodes, undirected, duplicates)
        return cls(**found), ids

    @classmethod
    @checked
    def from_networkx(cls, graph: Any, weight: str | None = "weight") -> Graph:
        """A Graph from a networkx graph: nodes in its own order, an undirected edge as two directed ones.

        Args:
            graph: of any networkx class, or a subclass.
            weight: the attribute of the edges that holds the weight; an edge without it has weight 1. None: no weights.

        Raises:
            ValueError: if no edge has the attribute that you name, or a weight is no finite number.
        """
        return cls(**foreign.from_networkx(graph, weight))

    @classmethod
    @checked
    def from_scipy(cls, matrix: Any) -> Graph:
        """A Graph from a square scipy sparse matrix or array, entry (u, v) an edge u -> v with that weight.

        Raises:
            TypeError, ValueError: if it is not sparse, square, and of real numbers.
        """
        return cls(**foreign.from_scipy(matrix))

    @classmethod
    def from_pygsp(cls, graph: Any) -> Graph:
        """A Graph from a PyGSP graph, entry (u, v) of its W an edge u -> v; coordinates become `pos`.

        Raises:
            TypeError: if it is no PyGSP graph.
        """
        return cls(**foreign.from_pygsp(graph))

    @classmethod
    @checked
    def union(cls, graphs: Iterable[Graph]) -> Graph:
        """The disjoint union: one graph whose parts keep their edges, nodes numbered on; `ptr` marks the parts.

        Raises:
            ValueError: if the list is empty, or only some of the graphs carry weights, attributes or labels.
        """
        if not isinstance(graphs, Iterable) or (isinstance(graphs, Tensor) and graphs.ndim == 0):
            raise TypeError(f"The union is of a list of Graphs, but a {type(graphs).__name__} was given.")
        graphs = list(graphs)
        for graph in graphs:
            if not isinstance(graph, Graph):
                raise TypeError(f"The union is of Graphs, but one of them is a {type(graph).__name__}.")
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
        if self.edge_weight is None and self.edge_attr is None and self.pos is None:
            return False
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
        return torch.repeat_interleave(
            torch.arange(len(self.ptr) - 1, device=self.device), lengths, output_size=self.size
        )

    @property
    def is_undirected(self) -> bool:
        """Whether A is symmetric: between any two nodes the edges of both directions have the same total weight."""

        if not readable(self.edge_index):  # which cannot be checked, and is what the caller needs
            return True

        def check() -> bool:
            (j, i), w = self.edge_index, self.weights(torch.float64).detach()
            pair, forth = torch.unique(i * self.size + j, return_inverse=True)
            reverse, back = torch.unique(j * self.size + i, return_inverse=True)
            if not torch.equal(pair, reverse):
                return False
            there, here = (w.new_zeros(len(pair)).index_add(0, at, w) for at in (forth, back))
            return torch.allclose(there, here, rtol=1e-12, atol=0)

        return check() if wrapped(self.edge_weight) else self.memo("undirected", check)

    @checked
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

    @checked
    def permute(self, order: Tensor) -> Graph:
        """The same graph with node v renamed to `order[v]`.

        Raises:
            TypeError, ValueError: if order does not hold each node number once.
        """
        order = foreign.as_tensor("order", order)
        if order.is_floating_point() or order.is_complex() or order.dtype == torch.bool or order.ndim != 1:
            raise TypeError(f"order must hold node numbers, but it is {order.dtype} of shape {tuple(order.shape)}.")
        order = order.to(device=self.device, dtype=torch.int64)
        if not torch.equal(order.sort().values, torch.arange(self.size, device=self.device)):
            raise ValueError(f"order must hold each of the node numbers 0 to {self.size - 1} once.")
        pos = None if self.pos is None else torch.empty_like(self.pos).index_copy(0, order, self.pos)
        return Graph(order[self.edge_index], self.size, self.edge_weight, self.edge_attr, self.edge_type, pos)

    @checked
    def reordered(self, how: Literal["rcm", "degree"] = "rcm") -> tuple[Graph, Tensor]:
        """The same graph with its nodes in an order that a sparse product reads faster, and that order.

        Meaning: node i of the new graph is node order[i] of this one, so signals go in as x[order] and what comes out
        is y with y[order] = out. "rcm" (reverse Cuthill-McKee) puts neighbours beside each other: on meshes and grids
        with random numbers, what a row gathers then lies close together. "degree" puts the hubs first.

        Traps: `python -m experiments.planner.choices --only order` measures both. A grid gains, at narrow widths most;
        a random power-law graph has no order that helps. Finding one takes as long as tens of products, so nothing in
        gconv reorders by itself. The parts of a union are not kept.

        Raises:
            ValueError: for another order.

        >>> path = Graph(torch.tensor([[0, 2, 2, 1], [2, 0, 1, 2]]))  # 0 - 2 - 1
        >>> graph, order = path.reordered()
        >>> (graph.source - graph.target).abs().max(), order
        (tensor(1), tensor([1, 2, 0]))
        """
        if isinstance(how, str) and how == "degree":
            order = torch.argsort(self.in_degree() + self.out_degree(), descending=True, stable=True)
        elif isinstance(how, str) and how == "rcm":
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

    @checked
    def sample(
        self, seeds: Tensor | Sequence[int], fanouts: Sequence[int], generator: torch.Generator | None = None
    ) -> list[Bipartite]:
        """The part of the graph that a network reads for the output at some nodes: a block for each of its layers.

        Meaning: a block leads from the nodes that a layer reads, numbered as in `block.n_id`, to those at which it
        gives its output, which are the first of them; the targets of the last block are the seeds. `layer(x, block)`
        takes x (*b, n_source, i), and `gconv.apply_blocks` a Sequential. Normalisations read the degrees of the whole
        graph: with all neighbours each output row is the full graph's. With fewer, distinct edges are drawn uniformly
        and a sum is scaled by how many of a node's there are: the mean over draws of one layer of gcn, lightgcn, sage,
        graphconv, simple, gin or le with a sum or a mean is the full graph's. Maxima, attention and what depends on
        edge features or types read the sampled edges alone, as in PyG.

        Traps: fanouts are PyG's num_neighbors, from the seeds outward, so the last block has fanouts[0]; the blocks are
        in the order of the layers. Self-loops are always kept and do not count. `pos` and `ptr` are not passed on. What
        needs a square domain beyond the degrees (polynomials, spectra) refuses a block, which holds one step.

        Args:
            seeds: distinct node numbers.
            fanouts: for each hop, how many arriving edges of a node to take at most; -1 for all.
            generator: of the draws; default: torch's own, which each worker of a DataLoader has seeded for itself.

        Raises:
            TypeError, ValueError: if seeds are empty, repeated or unknown, or a fan-out is neither -1 nor at least 1.

        >>> path = Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]))
        >>> first, second = path.sample([3], [-1, -1])
        >>> first, first.n_id, second.n_id
        (Bipartite(3 sources, 2 targets, 2 edges), tensor([3, 2, 1]), tensor([3, 2]))
        """
        return sampling.sample(self, seeds, fanouts, generator)

    @checked
    def blocks_of(self, batch: Any, layers: int) -> list[Bipartite]:
        """The blocks, as from `sample`, of a batch that PyG's NeighborLoader sampled from this graph.

        Args:
            batch: has n_id, edge_index and batch_size, and perhaps input_id and e_id.
            layers: how many blocks; at most the number of hops that were sampled.

        Raises:
            ValueError: if it lacks one of them, was sampled from another graph or for fewer layers, or lacks e_id
                where the edges of this graph carry something.

        >>> from torch_geometric.data import Data
        >>> path = Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]))
        >>> batch = Data(n_id=torch.tensor([3, 2]), edge_index=torch.tensor([[1], [0]]), batch_size=1)
        >>> path.blocks_of(batch, layers=1)
        [Bipartite(2 sources, 1 targets, 1 edges)]
        """
        return sampling.from_batch(self, batch, layers)

    def __repr__(self) -> str:
        extra = [name for name in ("edge_weight", "edge_attr", "edge_type", "pos") if getattr(self, name) is not None]
        parts = len(self.ptr) - 1
        tail = (f", {parts} parts" if parts != 1 else "") + "".join(f", {name}" for name in extra)
        return f"Graph({self.size} nodes, {self.num_edges} edges{tail})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the derived structure, which is cheap to compute again."""
        args = (self.edge_index, self.size, self.edge_weight, self.edge_attr, self.edge_type, self.pos, self.ptr)
        return Graph, args
