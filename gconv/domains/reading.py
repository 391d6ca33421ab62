"""Conversion of all supported graph objects to `Graph`, and of an edge_index between two sets to `Bipartite`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gconv.arguments import kind_of, near
from gconv.caches import WeakCache
from gconv.domains.bipartite import Bipartite
from gconv.domains.edges import Edges, check_edge_index
from gconv.domains.foreign import TENSORS, as_tensor, from_sparse, instance, read_foreign
from gconv.domains.graph import Graph
from gconv.kernels import is_plain_eager, varies

EDGE_TENSORS = ("edge_weight", "edge_attr", "edge_type")
_NAMES = set(EDGE_TENSORS)
LISTED = "edge_weight, edge_attr and edge_type"
_SEEN = WeakCache("graphs by edge_index or sparse adjacency")
_SEEN_PAIRS = WeakCache("Bipartites by edge_index")


def read_graph(domain: Any, size: int, **tensors: Tensor | None) -> Graph:
    """Any supported graph object as a Graph.

    Supported are: a Graph, an edge_index (tensor, PyG's EdgeIndex, array), a torch sparse adjacency A[target, source],
    a PyG Data or Batch, a networkx graph, a scipy sparse matrix A[source, target], a PyGSP graph, and subclasses.

    The Graph of an edge_index (bare or in a Data) or of a sparse tensor is cached and reused for the same tensor
    object. Contents are compared each time, so in-place changes are detected.

    Raises:
        TypeError: if the object is none of these, or tensors are given together with a domain that contains its own.

    >>> read_graph(torch.tensor([[0, 1], [1, 2]]), 4)
    Graph(4 nodes, 2 edges)
    """
    if type(domain) is Tensor and is_plain_eager():
        known = _SEEN.get(domain)
        if known is not None and _as_it_was(known, domain, size, tensors):
            return known
    given = {name: as_tensor(name, value) for name, value in tensors.items() if value is not None}
    for name in given:
        if name not in EDGE_TENSORS:
            raise TypeError(f"Edges have no {name!r}{near(name, EDGE_TENSORS) or '.'} They can have {LISTED}.")
    if isinstance(domain, Tensor) and domain.layout == torch.strided:
        _check_not_dense(domain)
        return _recall(domain, domain, size, given)
    if given and not instance(domain, "numpy", "ndarray"):
        raise TypeError(
            f"{', '.join(given)} can only be given together with a bare edge_index; make it part of the graph instead."
        )
    if isinstance(domain, Graph):
        return domain
    if instance(domain, "numpy", "ndarray"):
        return Graph(domain, size, **given)  # type: ignore[arg-type]
    found: dict[str, Any] | None = None
    key = domain
    if isinstance(domain, Tensor):
        found = from_sparse(domain)
    elif not isinstance(domain, Edges):
        found, key = read_foreign(domain), getattr(domain, "edge_index", getattr(domain, "adj_t", None))
    if found is not None:
        found = {"size": size, "ptr": (), **found}
        if not isinstance(key, Tensor):
            return Graph(**found)
        kept = {name: as_tensor(name, found[name]) for name in TENSORS if name in found}
        return _recall(key, found["edge_index"], found["size"], kept, found["ptr"])
    if isinstance(domain, Bipartite):
        raise TypeError(f"This works on one set of nodes, a Graph, but {domain!r} was given.")
    raise TypeError(
        f"A graph convolution needs a graph: a gconv.Graph, an edge_index tensor of shape (2, e), a torch sparse "
        f"adjacency, a PyG Data, a networkx graph, a scipy sparse matrix or a PyGSP graph, "
        f"but {kind_of(domain)} was given; Graph.from_edge_list reads tables of edges."
    )


def _as_it_was(known: Graph, edge_index: Tensor, size: int, tensors: dict[str, Tensor | None]) -> bool:
    """Whether a cached Graph equals the one that a bare edge_index and these tensors would give."""
    if known.size != size or len(known.ptr) != 2 or known.pos is not None or not tensors.keys() <= _NAMES:
        return False
    if edge_index.dtype != torch.int64 or edge_index.layout != torch.strided or edge_index.device != known.device:
        return False
    for name in EDGE_TENSORS:
        kept, value = getattr(known, name), tensors.get(name)
        if kept is None and value is None:
            continue
        if kept is None or type(value) is not Tensor or value.requires_grad or value.layout != torch.strided:
            return False
        if value.dtype != kept.dtype or value.device != kept.device or not torch.equal(kept, value):
            return False
    return torch.equal(known.edge_index, edge_index)


def read_bipartite(edge_index: Any, sizes: tuple[int, int], **tensors: Tensor | None) -> Bipartite:
    """A Bipartite from a bare `edge_index`, cached for the same tensor object as in `read_graph`.

    Args:
        edge_index: (2, e), or a Bipartite, which is returned as it is.
        sizes: (n_source, n_target).
        tensors: edge_weight, edge_attr, edge_type.

    Raises:
        TypeError, ValueError: as Bipartite, or if tensors are given together with a Bipartite.

    >>> read_bipartite(torch.tensor([[0, 1], [1, 2]]), (2, 3))
    Bipartite(2 sources, 3 targets, 2 edges)
    """
    given = {name: as_tensor(name, value) for name, value in tensors.items() if value is not None}
    if isinstance(edge_index, Bipartite):
        if given:
            raise TypeError(f"{', '.join(given)} can only be given with a bare edge_index, not with a Bipartite.")
        return edge_index
    plain = check_edge_index(edge_index)
    if not isinstance(edge_index, Tensor):
        return Bipartite(plain, sizes, **given)  # type: ignore[arg-type]
    lasts = _lasts(edge_index, given)
    known: Bipartite | None = _SEEN_PAIRS.get(edge_index) if lasts else None
    if known is not None and known.sizes == tuple(sizes) and _same_edges(known, plain, given):
        return known
    made = Bipartite(edge_index, sizes, **given)  # type: ignore[arg-type]
    if lasts:
        _SEEN_PAIRS[edge_index] = made
    return made


def recall(edge_index: Tensor, size: int) -> Graph | None:
    """The cached Graph of this edge_index alone, if the edges are unchanged; for plain eager calls."""
    known: Graph | None = _SEEN.get(edge_index)
    if known is None or known.size != size or known.edge_weight is not None or known.edge_attr is not None:
        return None
    if known.edge_type is not None or known.pos is not None or known.ptr != (0, size):
        return None
    edges = known.edge_index
    if edges.dtype != edge_index.dtype or edges.device != edge_index.device:
        return None
    return known if torch.equal(edges, edge_index) else None


def _check_not_dense(edge_index: Tensor) -> None:
    """Raises a TypeError with advice if a dense adjacency matrix was passed as edge_index."""
    if edge_index.is_floating_point() and edge_index.ndim == 2 and edge_index.shape[0] == edge_index.shape[1] != 2:
        raise TypeError(
            f"edge_index must be an integer tensor of shape (2, e), but its dtype is {edge_index.dtype} and its shape "
            f"{tuple(edge_index.shape)}; for an adjacency matrix A[target, source] give A.to_sparse()."
        )


def _recall(key: Tensor, edge_index: Tensor, size: int, tensors: dict[str, Tensor], ptr: tuple[int, ...] = ()) -> Graph:
    """A Graph with these arguments: the one cached for the same tensor `key`, if its contents are equal."""
    edge_index = check_edge_index(edge_index)
    lasts = _lasts(key, tensors)
    known: Any = _SEEN.get(key) if lasts else None  # a Graph, or None
    same = known is not None and known.size == size and known.ptr == (ptr or (0, size))
    if same and _same_edges(known, edge_index, tensors) and _same(known.pos, tensors.get("pos")):
        return known
    graph = Graph(edge_index, size, ptr=ptr, **tensors)
    if lasts:
        _SEEN[key] = graph
    return graph


def _lasts(edge_index: Tensor, given: dict[str, Tensor]) -> bool:
    """Whether a graph of these tensors may be cached: plain tensors without gradients, in a plain eager call."""
    plain = is_plain_eager() and type(edge_index) is Tensor and not edge_index.is_meta
    return plain and not (given and any(varies(value) for value in given.values()))


def _same_edges(known: Edges, edge_index: Tensor, given: dict[str, Tensor]) -> bool:
    equal = torch.equal(known.edge_index, edge_index.to(torch.int64))
    return equal and all(_same(getattr(known, name), given.get(name)) for name in EDGE_TENSORS)


def _same(kept: Tensor | None, given: Tensor | None) -> bool:
    if kept is None or given is None:
        return kept is given
    return kept.dtype == given.dtype and kept.numel() == given.numel() and torch.equal(kept, given.reshape(kept.shape))
