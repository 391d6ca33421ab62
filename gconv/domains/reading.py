"""Whatever a user holds that is a graph, as a `Graph`; and an edge_index between two sets of nodes as a `Bipartite`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from gconv.domains.bipartite import Bipartite
from gconv.domains.edges import Edges, check_edge_index
from gconv.domains.graph import Graph
from gconv.kernels import varies

_SEEN: WeakIdKeyDictionary = WeakIdKeyDictionary()  # edge_index tensor -> the Graph last read from it
_SEEN_PAIRS: WeakIdKeyDictionary = WeakIdKeyDictionary()  # edge_index tensor -> the Bipartite last read from it


def read_graph(domain: Any, size: int, **tensors: Tensor | None) -> Graph:
    """Any graph a user holds, as a Graph: Graph, edge_index, PyG Data, networkx graph or scipy sparse matrix.

    A bare `edge_index` is read once and recognised when it comes again. It is compared by content each time, so one
    that was changed in place is noticed and read anew.

    Raises:
        TypeError: if the object is none of these, or tensors are given beside a domain that already holds them.
    """
    given = {name: value for name, value in tensors.items() if value is not None}
    if isinstance(domain, Tensor):
        return _read_edge_index(domain, size, given)
    if given:
        raise TypeError(
            f"{', '.join(given)} can only be given beside a bare edge_index; put it into the graph instead."
        )
    if isinstance(domain, Graph):
        return domain
    library = type(domain).__module__.split(".")[0]
    if library == "torch_geometric":
        return Graph.from_pyg(domain)
    if library == "networkx":
        return Graph.from_networkx(domain)
    if library == "scipy":
        return Graph.from_scipy(domain)
    raise TypeError(
        f"A graph convolution needs a graph: a gconv.Graph, an edge_index tensor of shape (2, e), a PyG Data, "
        f"a networkx graph or a scipy sparse matrix; a {type(domain).__name__} was given."
    )


def read_bipartite(edge_index: Any, sizes: tuple[int, int], **tensors: Tensor | None) -> Bipartite:
    """A Bipartite from a bare `edge_index`, which is recognised when it comes again, as in `read_graph`.

    Args:
        edge_index: (2, e), or a Bipartite, which is returned as it is.
        sizes: (n_source, n_target).
        tensors: edge_weight, edge_attr, edge_type.

    Raises:
        TypeError, ValueError: as Bipartite does, or if tensors are given beside a Bipartite.
    """
    given = {name: value for name, value in tensors.items() if value is not None}
    if isinstance(edge_index, Bipartite):
        if given:
            raise TypeError(f"{', '.join(given)} can only be given beside a bare edge_index, not beside a Bipartite.")
        return edge_index
    check_edge_index(edge_index)
    grad = any(varies(value) for value in given.values())
    known: Bipartite | None = None if grad else _SEEN_PAIRS.get(edge_index)
    if known is not None and known.sizes == tuple(sizes) and _same_edges(known, edge_index, given):
        return known
    made = Bipartite(edge_index, sizes, **given)  # type: ignore[arg-type]
    if not grad:
        _SEEN_PAIRS[edge_index] = made
    return made


def _read_edge_index(edge_index: Tensor, size: int, given: dict[str, Tensor]) -> Graph:
    check_edge_index(edge_index)
    grad = any(varies(value) for value in given.values())
    known: Graph | None = None if grad else _SEEN.get(edge_index)
    if known is not None and known.size == size and _same_edges(known, edge_index, given):
        return known
    graph = Graph(edge_index, size, **given)  # type: ignore[arg-type]
    if not grad:
        _SEEN[edge_index] = graph
    return graph


def _same_edges(known: Edges, edge_index: Tensor, given: dict[str, Tensor]) -> bool:
    names = ("edge_weight", "edge_attr", "edge_type")
    equal = torch.equal(known.edge_index, edge_index.to(torch.int64))
    return equal and all(_same(getattr(known, name), given.get(name)) for name in names)


def _same(kept: Tensor | None, given: Tensor | None) -> bool:
    if kept is None or given is None:
        return kept is given
    return kept.dtype == given.dtype and kept.numel() == given.numel() and torch.equal(kept, given.reshape(kept.shape))
