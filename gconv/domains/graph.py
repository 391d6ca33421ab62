"""Graphs: nodes, directed edges, and cached quantities derived from them."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gconv.arguments import checked, explain_keywords, integer, kind_of, plural
from gconv.domains import foreign, sampling
from gconv.domains.bipartite import Bipartite
from gconv.domains.edge_list import Duplicates, read_edge_list
from gconv.domains.edges import Edges, check_edge_index, counted, joined, read_permutation
from gconv.kernels import order as orders
from gconv.kernels import outside_transforms, readable, varies, wrapped


@explain_keywords(num_nodes="size", n="size", weight="edge_weight", weights="edge_weight", edges="edge_index")
@dataclass(frozen=True, eq=False, repr=False)
class Graph(Edges):
    """A directed graph: edge e sends a signal from source `edge_index[0, e]` to target `edge_index[1, e]`.

    Equation: the adjacency that acts on signals is A[i, j] = sum of the weights of the edges j -> i.

    edge_index follows PyG (row 0 sources, row 1 targets). Tensors are copied, so later changes to the caller's tensors
    do not affect the graph. Multi-edges, self-loops and isolated nodes are allowed; each operator documents how it
    treats them. Trap: matrices of networkx and scipy are A[source, target], the transpose of this convention.

    Args:
        edge_index: (2, e) integer node indices in [0, size).
        size: number of nodes; default: the largest index in edge_index plus one.
        edge_weight: (e,) finite numbers; default: ones.
        edge_attr: (e, d) finite pseudo-coordinates or features of the edges.
        edge_type: (e,) integer label >= 0 of each edge, e.g. a relation or an offset.
        pos: (size, d) finite positions of the nodes.
        ptr: (parts + 1,) first node of each part of a disjoint union, and the size; default: one part.

    Raises:
        TypeError, ValueError: if a tensor has the wrong shape, dtype or device, or holds an index out of range or a
            NaN or infinity.

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
                raise ValueError("In a trace the number of nodes cannot be inferred from edge_index: give a size.")
            size = high + 1
        if low < 0:
            raise ValueError(f"edge_index must not be negative, but it contains node {low}.")
        if size < 0:
            raise ValueError(f"size must not be negative, but it is {size}.")
        if high >= size:
            raise ValueError(
                f"edge_index names node {high}, but the graph has {plural(size, 'node')}, numbered 0 to {size - 1}."
            )
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("size", size)
        put("ptr", self._read_ptr() or (0, size))
        self._copy_edge_tensors()
        if self.pos is not None:
            put("pos", foreign.as_tensor("pos", self.pos))
            if not self.pos.is_floating_point():
                put("pos", self.pos.to(torch.get_default_dtype()))
            if self.pos.ndim != 2 or self.pos.shape[0] != size:
                raise ValueError(f"pos must have one row per node, {size}, but its shape is {tuple(self.pos.shape)}.")
            if self.pos.device != self.device:
                raise ValueError(f"pos is on {self.pos.device}, but edge_index is on {self.device}.")
            if readable(self.pos) and not bool(torch.isfinite(self.pos.detach()).all()):
                raise ValueError("pos must be finite, but it contains NaN or infinity.")
            with outside_transforms(self.pos), counted():
                put("pos", self.pos.clone())
        if self.ptr[0] != 0 or self.ptr[-1] != size or any(a > b for a, b in itertools.pairwise(self.ptr)):
            raise ValueError(f"ptr must increase from 0 to {size}, the number of nodes, but it is {self.ptr}.")

    def _read_ptr(self) -> tuple[int, ...]:
        ptr = self.ptr.tolist() if hasattr(self.ptr, "tolist") else self.ptr
        if not isinstance(ptr, tuple | list | range):
            raise TypeError(
                f"ptr must be a sequence, the first node of each part and the size, but it is {kind_of(ptr)}."
            )
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
            batch: (n,) the index of the graph that each node belongs to, ascending, as passed to PyG's models together
                with edge_index. They become the parts of a disjoint union, which `global_pool` pools separately.
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
            ValueError: if data has neither edge_index nor adj_t.
            TypeError: if data is a HeteroData, which holds several graphs, or not a Data.
        """
        return cls(**foreign.from_pyg(data))

    @classmethod
    @checked
    def from_sparse(cls, adjacency: Tensor) -> Graph:
        """A Graph from a square torch sparse tensor of any layout: entry (i, j) is an edge j -> i with that weight.

        This is the matrix A[target, source] that acts on signals, like PyG's `adj_t` and like A in
        torch.sparse.mm(A, x); it is the transpose of the adjacency matrices of networkx and scipy.

        Raises:
            TypeError, ValueError: if it is not sparse and square, with one real number per entry.

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
            num_nodes: default: the largest node index plus one.
            hyperedge_weight: one number per hyperedge, or None.

        Raises:
            TypeError, ValueError: if hyperedge_index is not an integer tensor (2, h) of indices >= 0, or
                hyperedge_weight has fewer numbers than there are hyperedges.

        >>> Graph.from_hyperedge_index(torch.tensor([[0, 1, 1, 2], [0, 0, 1, 1]]))
        Graph(3 nodes, 4 edges, edge_type)
        """
        node, edge = check_edge_index(hyperedge_index, "hyperedge_index").to(torch.int64)
        known = readable(edge) and edge.numel() > 0
        if known and int(edge.min()) < 0:
            raise ValueError(f"hyperedge_index must not be negative, but it contains hyperedge {int(edge.min())}.")
        most = int(edge.max()) + 1 if known else 0
        if hyperedge_weight is not None:
            hyperedge_weight = foreign.as_tensor("hyperedge_weight", hyperedge_weight)
            if hyperedge_weight.ndim != 1 or len(hyperedge_weight) < most:
                raise ValueError(
                    f"hyperedge_weight must have one number for each of the {plural(most, 'hyperedge')}, "
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
        """A Graph from a table of edges between named nodes, and the list of names.

        Args:
            edges: pairs or longer rows, an array or tensor (e, 2) or wider, a DataFrame, a dict of columns, or the path
                of a delimited text file (comma, semicolon, tab, bar or space; lines starting with # or % are comments).
            source, target: the columns of the two end points, by name or by position. Column names of a file are read
                from its first line; if columns are given by position, the file must not have a header.
            weight: the column of the weights; default: none.
            nodes: the names of all nodes in the desired order, isolated ones included, or their number n for names
                0 ... n - 1; default: the names used by edges, whole numbers (also 3.0) as integers in ascending
                order, others in order of appearance.
            undirected: whether to add the reverse of each edge. An edge and its reverse are then duplicates.
            duplicates: how to treat an edge that is listed more than once: raise an error ("error"), add up the weights
                ("sum"; an edge without a weight counts as 1), use the first ("first"), or keep all of them ("keep").

        Returns:
            The Graph and a list ids: the name of node i is ids[i], and row i of a signal belongs to it.

        Raises:
            ValueError, TypeError: if a column, a name or a weight is missing, a weight is not a finite number, or a
                name is repeated in or missing from `nodes`.
            OSError: if a file cannot be read.

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
            weight: the name of the edge attribute with the weight; edges without it have weight 1. None: no weights.

        Raises:
            ValueError: if no edge has the given attribute (other than the default), or a weight is not a finite number.
        """
        return cls(**foreign.from_networkx(graph, weight))

    @classmethod
    @checked
    def from_scipy(cls, matrix: Any) -> Graph:
        """A Graph from a square scipy sparse matrix or array: entry (u, v) is an edge u -> v with that weight.

        Raises:
            TypeError, ValueError: if it is not a square sparse matrix of real numbers.
        """
        return cls(**foreign.from_scipy(matrix))

    @classmethod
    def from_pygsp(cls, graph: Any) -> Graph:
        """A Graph from a PyGSP graph: entry (u, v) of its W is an edge u -> v; coordinates become `pos`.

        Raises:
            TypeError: if it is not a PyGSP graph.
        """
        return cls(**foreign.from_pygsp(graph))

    @classmethod
    @checked
    def union(cls, graphs: Iterable[Graph]) -> Graph:
        """The disjoint union: the nodes of the graphs are numbered consecutively, and `ptr` marks the parts.

        Raises:
            ValueError: if the list is empty, or only some of the graphs carry weights, attributes or labels.
        """
        if not isinstance(graphs, Iterable) or (isinstance(graphs, Tensor) and graphs.ndim == 0):
            raise TypeError(f"Graph.union takes a list of Graphs, but {kind_of(graphs)} was given.")
        graphs = list(graphs)
        for graph in graphs:
            if not isinstance(graph, Graph):
                raise TypeError(f"Graph.union takes Graphs, but one of them is {kind_of(graph)}.")
        if not graphs:
            raise ValueError("The union of no graphs is not defined; give at least one.")
        starts = [0, *itertools.accumulate(g.size for g in graphs)]
        index = torch.cat([g.edge_index + s for g, s in zip(graphs, starts[:-1], strict=True)], 1)
        tensors = joined(graphs, ("edge_weight", "edge_attr", "edge_type", "pos"))
        ptr = [0]
        for g, start in zip(graphs, starts[:-1], strict=True):
            ptr += [start + p for p in g.ptr[1:]]
        return cls(index, starts[-1], ptr=tuple(ptr), **tensors)

    # -- derived quantities ----------------------------------------------------------------------------------------

    @property
    def learned(self) -> bool:
        """Whether edge or node tensors require gradients, so that nothing derived from them may be cached."""
        if self.edge_weight is None and self.edge_attr is None and self.pos is None:
            return False
        return varies(self.edge_weight) or varies(self.edge_attr) or varies(self.pos)

    @property
    def sites(self) -> tuple[int, int]:
        """(m, n): the numbers of output and input sites, both the number of nodes."""
        return self.size, self.size

    def at_targets(self, x: Tensor, axis: int = -2) -> Tensor:
        """The part of a signal that belongs to the targets of the edges: here all of it."""
        return x

    def in_degree(self, dtype: torch.dtype | None = None) -> Tensor:
        """(n,) the sum of the weights of the incoming edges of each node."""
        return self._sums(self.target, self.size, dtype)

    def out_degree(self, dtype: torch.dtype | None = None) -> Tensor:
        """(n,) the sum of the weights of the outgoing edges of each node."""
        return self._sums(self.source, self.size, dtype)

    def part(self) -> Tensor:
        """(n,) the index of the part of the disjoint union that each node belongs to."""
        lengths = torch.tensor([b - a for a, b in itertools.pairwise(self.ptr)], device=self.device)
        return torch.repeat_interleave(
            torch.arange(len(self.ptr) - 1, device=self.device), lengths, output_size=self.size
        )

    @property
    def is_undirected(self) -> bool:
        """Whether A is symmetric: between any two nodes the edges of both directions have the same total weight.

        Where values cannot be read, as during tracing and of weights that vmap batches, it is assumed to be.
        """

        if not readable(self.edge_index) or not (self.edge_weight is None or readable(self.edge_weight)):
            return True
        given = torch.float64 if self.edge_weight is None else self.edge_weight.dtype
        tolerance = max(1e-12, 4 * torch.finfo(given).eps)  # D^-1/2 A D^-1/2 is symmetric up to rounding only

        def check() -> bool:
            (j, i), w = self.edge_index, self.weights(torch.float64).detach()
            pair, forth = torch.unique(i * self.size + j, return_inverse=True)
            reverse, back = torch.unique(j * self.size + i, return_inverse=True)
            if not torch.equal(pair, reverse):
                return False
            there, here = (w.new_zeros(len(pair)).index_add(0, at, w) for at in (forth, back))
            size = w.new_zeros(len(pair)).index_add(0, forth, w.abs())  # weights of double edges may cancel
            return bool(((there - here).abs() <= tolerance * size).all())

        return check() if wrapped(self.edge_weight) else self.memo("undirected", check, of_weights=True)

    @checked
    def to(self, device: torch.device | str) -> Graph:
        """The graph on another device; the same object if it is already there."""
        if torch.device(device) == self.device:
            return self
        moved = object.__new__(Graph)  # without __post_init__: the tensors have been validated already
        with counted():
            for entry in fields(self):
                value = getattr(self, entry.name)
                object.__setattr__(moved, entry.name, value.to(device) if isinstance(value, Tensor) else value)
        object.__setattr__(moved, "_memo", {})
        return moved

    @checked
    def permute(self, order: Tensor) -> Graph:
        """The same graph with node v renamed to `order[v]`; the parts of a union (`ptr`) are not kept.

        Raises:
            TypeError, ValueError: if order is not a permutation of the node indices.
        """
        order = read_permutation("order", order, self.size, self.device)
        pos = None if self.pos is None else torch.empty_like(self.pos).index_copy(0, order, self.pos)
        return Graph(order[self.edge_index], self.size, self.edge_weight, self.edge_attr, self.edge_type, pos)

    @checked
    def reordered(self, how: Literal["rcm", "degree"] = "rcm") -> tuple[Graph, Tensor]:
        """The same graph with its nodes reordered for memory locality in sparse products, and that order.

        Meaning: node i of the new graph is node order[i] of this one: the input is x[order], and the output is mapped
        back by y[order] = out. "rcm" (reverse Cuthill-McKee) places neighbours close together, which helps on meshes
        and grids whose nodes are numbered at random. "degree" puts nodes of high degree first.

        Traps: `python -m experiments.planner.choices --only order` measures both. Grids benefit, most with few
        channels; random power-law graphs do not benefit from any order. Computing an order takes as long as tens of
        products, so gconv never does it implicitly. The parts of a union are not kept. Without the compiled kernels
        scipy computes "rcm", and then the order of nodes of equal degree may depend on the processor.

        Raises:
            ValueError: if `how` is unknown.

        >>> path = Graph(torch.tensor([[0, 2, 2, 1], [2, 0, 1, 2]]))  # 0 - 2 - 1
        >>> graph, order = path.reordered()
        >>> (graph.source - graph.target).abs().max(), order
        (tensor(1), tensor([1, 2, 0]))
        """
        if isinstance(how, str) and how == "degree":
            order = torch.argsort(self.in_degree() + self.out_degree(), descending=True, stable=True)
        elif isinstance(how, str) and how == "rcm":
            from scipy.sparse import coo_matrix

            ends = torch.cat([self.edge_index, self.edge_index.flip(0)], 1).cpu().numpy()
            both = coo_matrix(([True] * ends.shape[1], (ends[0], ends[1])), (self.size, self.size)).tocsr()
            order = torch.from_numpy(_reverse_cuthill_mckee(both).copy()).long().to(self.device)
        else:
            raise ValueError(f'how must be "rcm" or "degree", but it is {how!r}.')
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        return self.permute(place), order

    @checked
    def sample(
        self, seeds: Tensor | Sequence[int], fanouts: Sequence[int], generator: torch.Generator | None = None
    ) -> list[Bipartite]:
        """The sampled computation graph of a network's output at some nodes: one block (`Bipartite`) per layer.

        Meaning: the sources of a block are the nodes that a layer reads, with indices `block.n_id` in this graph; its
        targets, the first of the sources, are the nodes of the layer's output. The targets of the last block are the
        seeds. `layer(x, block)` takes x (*b, n_source, i), and `gconv.apply_blocks` runs a Sequential. Normalisations
        use the degrees of the whole graph: with all neighbours each output row equals that on the full graph. With
        fewer, distinct edges are drawn uniformly and sums are rescaled by the number of a node's edges, so that one
        layer of gcn, lightgcn, sage, graphconv, simple, gin or le with a sum or a mean is unbiased. Maxima, attention
        and operators that depend on edge features or types use the sampled edges only, as in PyG.

        Traps: fanouts are PyG's num_neighbors, from the seeds outward, so the last block has fanouts[0]; the blocks are
        in the order of the layers. Self-loops are always kept and do not count. `pos` and `ptr` are not passed on.
        Operators that are functions of a square matrix (polynomials, spectra) do not accept a block, which holds one
        hop.

        Args:
            seeds: distinct node indices.
            fanouts: for each hop, the maximal number of incoming edges per node; -1 for all.
            generator: of the random draws; default: torch's, which each worker of a DataLoader seeds separately.

        Raises:
            TypeError, ValueError: if seeds are empty, repeated or out of range, or a fan-out is neither -1 nor at
                least 1.

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
            batch: with n_id, edge_index and batch_size, and optionally input_id and e_id.
            layers: number of blocks; at most the number of sampled hops.

        Raises:
            ValueError: if the batch lacks one of them, was sampled from another graph or for fewer layers, or lacks
                e_id although the edges of this graph have weights, attributes or types.

        >>> from torch_geometric.data import Data
        >>> path = Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]))
        >>> batch = Data(n_id=torch.tensor([3, 2]), edge_index=torch.tensor([[1], [0]]), batch_size=1)
        >>> path.blocks_of(batch, layers=1)
        [Bipartite(2 sources, 1 target, 1 edge)]
        """
        return sampling.from_batch(self, batch, layers)

    def __repr__(self) -> str:
        extra = [name for name in ("edge_weight", "edge_attr", "edge_type", "pos") if getattr(self, name) is not None]
        parts = len(self.ptr) - 1
        tail = (f", {parts} parts" if parts != 1 else "") + "".join(f", {name}" for name in extra)
        return f"Graph({plural(self.size, 'node')}, {plural(self.num_edges, 'edge')}{tail})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without cached derived quantities."""
        args = (self.edge_index, self.size, self.edge_weight, self.edge_attr, self.edge_type, self.pos, self.ptr)
        return Graph, args


def _reverse_cuthill_mckee(pattern: Any) -> Any:
    """The order of the nodes of a symmetric scipy matrix, by gconv's kernel if it is compiled.

    scipy sorts by degree with an unstable sort of numpy's, whose result depends on the processor's instruction set.
    """
    if orders.compiled is not None:
        pattern.sort_indices()
        return orders.reverse_cuthill_mckee(pattern.indptr, pattern.indices, pattern.shape[1])
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    return reverse_cuthill_mckee(pattern, symmetric_mode=True)
