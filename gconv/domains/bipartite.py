"""Bipartite domains: two sets of nodes, with directed edges from the first to the second."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from gconv.arguments import checked, explain_keywords, integer, kind_of, plural, shown
from gconv.domains.edges import Edges, counted, joined, read_permutation
from gconv.kernels import varies

if TYPE_CHECKING:
    from gconv.domains.sampling import Whole

_FIXED = (
    "A block sampled from a graph stores the degrees of that graph, so it cannot be changed: modify the Graph and "
    "sample it again."
)


@explain_keywords()
@dataclass(frozen=True, eq=False, repr=False)
class Bipartite(Edges):
    """Two sets of nodes: edge e sends a signal from source `edge_index[0, e]` to target `edge_index[1, e]`.

    Equation: the adjacency is A (n_target, n_source), A[i, j] = sum of the weights of the edges j -> i.

    Meaning: users and items, a fine and a coarse mesh, or a sampled block, whose sources are the neighbours of its
    targets. A signal is a pair (x_source, x_target), or x_source alone for operators that do not read the targets; the
    output is defined on the targets.

    Traps: as in PyG, source i and target i are the same node if both exist, as in sampled blocks, whose targets are the
    first of their sources. Only operators that add self-loops (`gat`, `gatv2`, `feast`) use this; for disjoint sets of
    nodes give them add_self_loops=False. Operators that require a square matrix (polynomials of a Laplacian, its
    eigenvectors, `gcn` with its degrees) do not accept a Bipartite.

    Args:
        edge_index: (2, e) integers: sources in [0, n_source), targets in [0, n_target).
        sizes: (n_source, n_target).
        edge_weight: (e,) finite numbers; default: ones.
        edge_attr: (e, d) finite pseudo-coordinates or features of the edges.
        edge_type: (e,) integer label >= 0 of each edge.
        ptr: the first source and the first target of each part of a disjoint union, and the sizes; default: one part.

    Shapes: x_source (*b, n_source, i), x_target (*b, n_target, i) -> (*b, n_target, o). In a `LinearMap` a pair is one
    signal, the sources followed by the targets: `stack` and `split` convert.

    Raises:
        TypeError, ValueError: if a tensor has the wrong shape, dtype or device, or holds an index out of range or a
            NaN or infinity.

    >>> block = Bipartite(torch.tensor([[0, 1, 2, 2], [0, 0, 0, 1]]), sizes=(3, 2))
    >>> block, block.T
    (Bipartite(3 sources, 2 targets, 4 edges), Bipartite(2 sources, 3 targets, 4 edges))
    >>> from gconv import GConv
    >>> from gconv.operators import sage, simple
    >>> GConv(simple())(torch.ones(3, 1), block).flatten()
    tensor([3., 1.])
    >>> GConv(sage((4, 5), 2))((torch.zeros(3, 4), torch.zeros(2, 5)), block).shape
    torch.Size([2, 2])
    """

    edge_index: Tensor
    sizes: tuple[int, int]
    edge_weight: Tensor | None = None
    edge_attr: Tensor | None = None
    edge_type: Tensor | None = None
    ptr: tuple[tuple[int, int], ...] = ()
    _memo: dict[Hashable, Any] = field(default_factory=dict, init=False)
    _with_targets: bool = field(default=False, init=False)
    whole: Whole | None = field(default=None, kw_only=True)  # set only by Graph.sample and Graph.blocks_of

    square: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.whole is not None:
            raise ValueError(_FIXED)
        sizes = _check_sizes(self.sizes)
        for (low, high), n, what in zip(self._copy_edge_index(), sizes, ("source", "target"), strict=True):
            row = "row 0" if what == "source" else "row 1"
            if low < 0:
                raise ValueError(f"edge_index must not be negative, but {row} (the {what}s) contains {low}.")
            if high >= n:
                raise ValueError(
                    f"{row} of edge_index names {what} {high}, but with sizes={sizes} the number of {what}s is {n}, "
                    "and they are numbered from 0; row 0 must hold the sources and row 1 the targets."
                )
        object.__setattr__(self, "sizes", sizes)
        self._copy_edge_tensors()
        ptr = _read_ptr(self.ptr) or ((0, 0), sizes)
        rising = all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(ptr))
        if ptr[0] != (0, 0) or ptr[-1] != sizes or not rising:
            raise ValueError(f"ptr must increase from (0, 0) to sizes={sizes}, but it is {ptr}.")
        object.__setattr__(self, "ptr", ptr)

    # -- readers ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pyg(cls, data: Any, edge_type: tuple[str, str, str] | None = None) -> Bipartite:
        """A Bipartite from one edge type of a `torch_geometric.data.HeteroData`, or from a `Data` with pairs.

        Args:
            data: a HeteroData; or a Data whose x is a pair (x_source, x_target), or that has x_s and x_t.
            edge_type: (source type, relation, target type); required if a HeteroData has several.

        Raises:
            ValueError: if the edge type is missing or unknown, or the sizes of the two sets cannot be determined.
        """
        if not hasattr(data, "edge_types") and not hasattr(data, "edge_index"):
            raise TypeError(
                f"Bipartite.from_pyg takes a HeteroData or Data of torch_geometric, but it was given {shown(data)}."
            )
        if edge_type is not None and not (isinstance(edge_type, tuple | list) and len(edge_type) == 3):
            raise TypeError(
                "Bipartite.from_pyg: edge_type must be (source type, relation, target type), but it is "
                f"{shown(edge_type)}."
            )
        if hasattr(data, "edge_types"):
            known = list(data.edge_types)
            if edge_type is None and len(known) != 1:
                raise ValueError(f"This HeteroData has {len(known)} edge types, {known}: give one as edge_type.")
            kind = known[0] if edge_type is None else tuple(edge_type)
            if kind not in known:
                raise ValueError(f"This HeteroData has no edge type {kind!r}; it has {known}.")
            edges, sizes = data[kind], (data[kind[0]].num_nodes, data[kind[2]].num_nodes)
            missing = [name for name, n in zip((kind[0], kind[2]), sizes, strict=True) if n is None]
        else:
            edges = data
            pair = data["x"] if "x" in data and isinstance(data["x"], tuple | list) else None
            if pair is None and "x_s" in data and "x_t" in data:
                pair = data["x_s"], data["x_t"]
            if pair is None or len(pair) != 2 or any(x is None for x in pair):
                raise ValueError("This Data has no pair of node features: x=(x_source, x_target), or x_s and x_t.")
            sizes, missing = (len(pair[0]), len(pair[1])), []
        if missing:
            raise ValueError(f"The number of nodes of type {' and '.join(missing)} is unknown: set num_nodes.")
        if "edge_index" not in edges:
            raise ValueError("The data has no edge_index, so there are no edges to read.")
        pick = {key: edges[key] for key in ("edge_weight", "edge_attr", "edge_type") if key in edges}
        return cls(edges["edge_index"], sizes, **pick)

    @classmethod
    @checked
    def union(cls, blocks: Iterable[Bipartite]) -> Bipartite:
        """The disjoint union: sources and targets are each numbered consecutively, and `ptr` marks the parts.

        Raises:
            ValueError: if the list is empty, holds sampled blocks, or only some of its elements carry weights,
                attributes or labels.
        """
        blocks = list(blocks)
        if not blocks:
            raise ValueError("The union of no domains is not defined; give at least one.")
        for block in blocks:
            if not isinstance(block, Bipartite):
                raise TypeError(f"Bipartite.union takes Bipartites, but one of them is {shown(block)}.")
        if any(block.whole is not None for block in blocks):
            raise ValueError("Blocks sampled from a graph have no union: sample all seeds in one call.")
        starts = [(0, 0)]
        for block in blocks:
            starts.append((starts[-1][0] + block.sizes[0], starts[-1][1] + block.sizes[1]))
        index = torch.cat(
            [b.edge_index + b.edge_index.new_tensor(s)[:, None] for b, s in zip(blocks, starts, strict=False)], 1
        )
        tensors = joined(blocks, ("edge_weight", "edge_attr", "edge_type"))
        ptr = [(0, 0)]
        for block, (s, t) in zip(blocks, starts, strict=False):
            ptr += [(s + a, t + b) for a, b in block.ptr[1:]]
        return cls(index, starts[-1], ptr=tuple(ptr), **tensors)

    # -- signals ---------------------------------------------------------------------------------------------------

    def stack(self, x_source: Tensor, x_target: Tensor | None = None) -> Tensor:
        """One signal (*b, n_source + n_target, c): the sources followed by the targets; None means zeros.

        The narrower of the two is zero-padded to the channels of the other.

        Raises:
            TypeError, ValueError: if the two do not fit this domain or each other.

        >>> block = Bipartite(torch.tensor([[0, 1], [0, 0]]), sizes=(2, 1))
        >>> x = block.stack(torch.ones(2, 1), torch.ones(1, 2))
        >>> x
        tensor([[1., 0.],
                [1., 0.],
                [1., 1.]])
        >>> tuple(part.shape for part in block.split(x))
        (torch.Size([2, 2]), torch.Size([1, 2]))
        """
        self.check_pair(x_source, x_target)
        if x_target is None:
            x_target = x_source.new_zeros(*x_source.shape[:-2], self.sizes[1], x_source.shape[-1])
        wide = max(x_source.shape[-1], x_target.shape[-1])
        both = [
            x if x.shape[-1] == wide else torch.nn.functional.pad(x, (0, wide - x.shape[-1]))
            for x in (x_source, x_target)
        ]
        return torch.cat(both, -2)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sources' and the targets' part of a stacked signal.

        Raises:
            TypeError, ValueError: if x is not a tensor with n_source + n_target sites.
        """
        n, m = self.sizes
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch tensor, but it is {shown(x)}.")
        if x.ndim < 2 or x.shape[-2] != n + m:
            raise ValueError(f"A stacked signal on {self!r} has {n} + {m} sites, but x has shape {tuple(x.shape)}.")
        return x[..., :n, :], x[..., n:, :]

    def check_pair(self, x_source: Tensor, x_target: Tensor | None) -> None:
        """Raises TypeError or ValueError if the features do not match the two sets of nodes, or each other."""
        for x, n, what in ((x_source, self.sizes[0], "source"), (x_target, self.sizes[1], "target")):
            if x is None and what == "target":
                continue
            if not isinstance(x, Tensor):
                raise TypeError(f"x_{what} must be a torch tensor, not {kind_of(x)}.")
            if x.ndim < 2 or x.shape[-2] != n:
                raise ValueError(
                    f"{self!r} takes x_{what} of shape (*b, {n} {what}s, channels), but it has shape {tuple(x.shape)}."
                )
            if x.device != self.device:
                raise ValueError(f"x_{what} is on {x.device}, but the edges are on {self.device}; move one of them.")
        if x_target is None:
            return
        if x_source.shape[:-2] != x_target.shape[:-2]:
            raise ValueError(
                f"x_source and x_target must have the same batch axes, but they have the shapes "
                f"{tuple(x_source.shape)} and {tuple(x_target.shape)}."
            )
        if x_source.dtype != x_target.dtype:
            raise TypeError(f"x_source is {x_source.dtype}, but x_target is {x_target.dtype}; convert one of them.")

    # -- derived quantities ----------------------------------------------------------------------------------------

    @property
    def learned(self) -> bool:
        """Whether edge tensors require gradients, so that nothing derived from them may be cached."""
        return varies(self.edge_weight) or varies(self.edge_attr)

    @property
    def with_targets(self) -> Bipartite:
        """The same edges for stacked signals, which also hold the targets' features; cached."""
        if self._with_targets:
            return self
        return self.memo("with targets", lambda: self._sibling(_with_targets=True))

    @property
    def n_id(self) -> Tensor:
        """(n_source,) of a block from `Graph.sample`: the indices of its sources in the graph, targets first.

        Raises:
            ValueError: if it was not sampled from a graph.
        """
        if self.whole is None:
            raise ValueError("Only a block from Graph.sample or Graph.blocks_of has an n_id.")
        return self.whole.nodes

    @property
    def sites(self) -> tuple[int, int]:
        """(m, n): the numbers of output and input sites."""
        n, m = self.sizes
        return m, n + m * self._with_targets

    def at_targets(self, x: Tensor, axis: int = -2) -> Tensor:
        """The targets' part of a stacked signal whose sites are on this axis."""
        return x.narrow(axis, *self.sizes)

    @property
    def T(self) -> Bipartite:
        """The reversed edges, from the targets to the sources; not a sampled block any more."""

        def reverse() -> Bipartite:
            ptr = tuple((t, s) for s, t in self.ptr)
            return self._sibling(
                edge_index=self.edge_index.flip(0), sizes=self.sizes[::-1], ptr=ptr, _with_targets=False, whole=None
            )

        return self.memo("T", reverse)

    def in_degree(self, dtype: torch.dtype | None = None) -> Tensor:
        """(n_target,) the sum of the weights of the incoming edges of each target."""
        return self._sums(self.target, self.sizes[1], dtype)

    def out_degree(self, dtype: torch.dtype | None = None) -> Tensor:
        """(n_source,) the sum of the weights of the outgoing edges of each source."""
        return self._sums(self.source, self.sizes[0], dtype)

    def shared(self) -> tuple[Tensor, Tensor]:
        """The source and target indices of the nodes in both sets: those with the same index within a part."""
        starts, counts = [], []
        for (s, t), (next_s, next_t) in itertools.pairwise(self.ptr):
            starts.append((s, t))
            counts.append(min(next_s - s, next_t - t))
        count = torch.tensor(counts, device=self.device)
        start = torch.tensor(starts, device=self.device).repeat_interleave(count, 0)
        rank = torch.arange(len(start), device=self.device)
        rank = rank - (count.cumsum(0) - count).repeat_interleave(count)
        return start[:, 0] + rank, start[:, 1] + rank

    @checked
    def to(self, device: torch.device | str) -> Bipartite:
        """The same edges on another device; the same object if they are already there."""
        if torch.device(device) == self.device:
            return self
        with counted():
            tensors = {e.name: v.to(device) for e in fields(self) if isinstance(v := getattr(self, e.name), Tensor)}
        whole = None if self.whole is None else self.whole.to(device)
        return self._sibling(whole=whole, **tensors)

    @checked
    def permute(self, source: Tensor, target: Tensor) -> Bipartite:
        """The same edges with source v renamed to `source[v]` and target v to `target[v]`; ptr is not kept.

        Raises:
            TypeError, ValueError: if one of them is not a permutation of the node indices, or this is a sampled block.
        """
        if self.whole is not None:
            raise ValueError(_FIXED)
        source, target = (
            read_permutation(name, order, size, self.device)
            for name, order, size in zip(("source", "target"), (source, target), self.sizes, strict=True)
        )
        index = torch.stack([source[self.source], target[self.target]])
        return Bipartite(index, self.sizes, self.edge_weight, self.edge_attr, self.edge_type)

    def _sibling(self, **changes: Any) -> Bipartite:
        """A copy with some fields changed, without validating them again."""
        made = object.__new__(Bipartite)
        for entry in fields(self):
            object.__setattr__(made, entry.name, changes.get(entry.name, getattr(self, entry.name)))
        object.__setattr__(made, "_memo", {})
        return made

    def __repr__(self) -> str:
        extra = [name for name in ("edge_weight", "edge_attr", "edge_type") if getattr(self, name) is not None]
        parts = len(self.ptr) - 1
        tail = (f", {parts} parts" if parts != 1 else "") + "".join(f", {name}" for name in extra)
        n, m = self.sizes
        view = ".with_targets" if self._with_targets else ""
        return f"Bipartite({plural(n, 'source')}, {plural(m, 'target')}, {plural(self.num_edges, 'edge')}{tail}){view}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without cached derived quantities."""
        args = (self.edge_index, self.sizes, self.edge_weight, self.edge_attr, self.edge_type, self.ptr)
        return _unpickled, (self._with_targets, *args, self.whole)


def _unpickled(with_targets: bool, *args: Any) -> Bipartite:
    made = Bipartite(*args[:6])
    object.__setattr__(made, "whole", args[6] if len(args) > 6 else None)
    return made.with_targets if with_targets else made


def _read_ptr(ptr: Any) -> tuple[tuple[int, int], ...]:
    """The first source and target of each part. Raises: TypeError."""
    ptr = ptr.tolist() if hasattr(ptr, "tolist") else ptr
    try:
        return tuple((integer(s, "ptr"), integer(t, "ptr")) for s, t in ptr)
    except (TypeError, ValueError):
        raise TypeError(
            "ptr must be pairs of integers, the first source and the first target of each part and the sizes, but it "
            f"is {shown(ptr)}."
        ) from None


def _check_sizes(sizes: Any) -> tuple[int, int]:
    try:
        n, m = sizes
        n, m = n.__index__(), m.__index__()
    except (TypeError, ValueError, AttributeError):
        raise TypeError(f"sizes must be two integers, (n_source, n_target), but it is {shown(sizes)}.") from None
    if n < 0 or m < 0:
        raise ValueError(f"sizes=(n_source, n_target) must not be negative, but it is {(n, m)}.")
    return n, m
