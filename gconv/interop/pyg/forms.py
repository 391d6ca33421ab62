"""The forms that PyG gives a graph and a signal, brought to the one that the calls of the layers read.

A layer's call takes a dense signal and a plain edge_index, and returns None for all else. Only then is the call looked
at here: a `torch.sparse` adjacency or an EdgeIndex becomes an edge_index with what its values mean to the layer, and a
sparse signal a dense one. Ordinary calls pay nothing for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from torch_geometric import EdgeIndex
from torch_geometric import nn as pyg
from torch_geometric.utils import add_self_loops, remove_self_loops
from torch_geometric.utils.sparse import set_sparse_value

from gconv.interop.peer import Peer
from gconv.interop.pyg.autocast import LOW, as_peer

Arguments = dict[str, Any]
# of a layer, the arguments of a call, its edge_index and the values of its adjacency; False where PyG has to run
Reader = Callable[[Any, Arguments, Tensor, Tensor], bool]

DENSE = 1 << 26  # numbers of a sparse signal that may be written out
_OPENED: WeakIdKeyDictionary = WeakIdKeyDictionary()  # a sparse adjacency -> its edge_index


def is_sparse(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout is not torch.strided


def opened(adj: Tensor) -> tuple[Tensor, Tensor] | None:
    """The edge_index and values of PyG's `adj_t`, rows are targets; None if it is none.

    The same adjacency has the same edge_index tensor each time, as long as it is not changed, so that what was derived
    from it is found again.
    """
    if adj.ndim - adj.dense_dim() != 2 or adj.shape[0] != adj.shape[1] or adj.requires_grad:
        return None
    if adj.layout is torch.sparse_coo:
        whole = adj.coalesce()
        (row, col), values = whole.indices(), whole.values()
    elif adj.layout is torch.sparse_csr and adj.crow_indices().ndim == 1:
        counts = adj.crow_indices().diff()
        row = torch.arange(len(counts), device=adj.device).repeat_interleave(counts)
        col, values = adj.col_indices().to(torch.int64), adj.values()
    else:
        return None
    edge_index = torch.stack([col, row])
    kept = _OPENED.get(adj)
    if kept is not None and torch.equal(kept, edge_index):
        return kept, values
    _OPENED[adj] = edge_index
    return edge_index, values


# -- what the values of an adjacency mean to a layer ---------------------------------------------------------------


def ignored(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Nothing."""
    return True


def ones(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Nothing, because all of them are 1."""
    return values.ndim == 1 and bool((values == 1).all())


def labels(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """The relations of the edges."""
    if given.get("edge_type") is not None or values.dtype != torch.int64 or values.ndim != 1:
        return False
    given["edge_type"] = values
    return True


def weights(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """The weights of the edges."""
    if given.get("edge_weight") is not None or values.ndim != 1:
        return False
    given["edge_weight"] = values
    return True


def beside(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Weights that only an adjacency brings: the layer has no argument for them."""
    if values.ndim != 1 or values.dtype != given["x"].dtype:
        return False
    if not ones(layer, given, edge_index, values):
        given["values"] = values
    return True


def instead(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Weights, where PDNConv makes its own of edge features otherwise."""
    if given.get("edge_attr") is not None or values.ndim != 1 or values.dtype != given["x"].dtype:
        return False
    given["values"] = values
    return True


def with_loops(fill: Callable[[Any], float | None], read: Reader = weights) -> Reader:
    """Weights; a loop that the layer adds is added to the one that is there, whose weight grows by `fill`."""

    def looped(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
        more = fill(layer)
        if more is not None and values.ndim == 1:
            values = values + more * (edge_index[0] == edge_index[1]).to(values.dtype)
        return read(layer, given, edge_index, values)

    return looped


def loopless(edge_index: Tensor) -> bool:
    return not bool((edge_index[0] == edge_index[1]).any())


def signs(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Of FAConv, whose operator normalises graphs without weights."""
    if not layer.normalize:
        return weights(layer, given, edge_index, values)
    return ones(layer, given, edge_index, values) and (loopless(edge_index) or not layer.add_self_loops)


def one(layer: Any) -> float | None:
    return 1.0 if layer.add_self_loops and getattr(layer, "normalize", True) else None


ADJACENCY: dict[type, Reader] = {
    **dict.fromkeys((pyg.GraphConv, pyg.LEConv, pyg.TAGConv, pyg.LGConv), weights),
    **dict.fromkeys((pyg.SGConv, pyg.SSGConv, pyg.APPNP, pyg.MixHopConv, pyg.GCN2Conv), with_loops(one)),
    pyg.GCNConv: with_loops(lambda m: None if one(m) is None else 2.0 if m.improved else 1.0),
    pyg.EGConv: with_loops(one, beside),
    pyg.SimpleConv: lambda m, given, ei, w: (
        (m.combine_root != "self_loop" or loopless(ei)) and weights(m, given, ei, w)
    ),
    pyg.FAConv: signs,
    pyg.PDNConv: with_loops(one, instead),
    **dict.fromkeys((pyg.SAGEConv, pyg.GINConv), beside),
    **dict.fromkeys((pyg.GATConv, pyg.GATv2Conv, pyg.SuperGATConv, pyg.TransformerConv), ignored),
    **dict.fromkeys((pyg.AGNNConv, pyg.FeaStConv, pyg.ResGatedGraphConv, pyg.ClusterGCNConv), ignored),
    pyg.FastRGCNConv: labels,
}


def taking(cls: type, peer: Peer) -> Peer:
    """The same, in a call of which the graph and the signal may have other forms."""
    call, read = peer.call, ADJACENCY.get(cls)
    signature = inspect.signature(call)

    def taken(layer: Any, *args: Any, **kwargs: Any) -> Any:
        y: Any = call(layer, *args, **kwargs)
        if type(y) is Tensor and y.dtype in LOW:
            return as_peer(cls, layer, y, args, kwargs)
        if y is not None or not any(_in_another_form(value) for value in (*args, *kwargs.values())):
            return y
        try:
            bound = signature.bind(layer, *args, **kwargs)
        except TypeError:
            return None
        given = bound.arguments
        adj = given.get("edge_index")
        for name, value in list(given.items()):
            if name.endswith("edge_index") and isinstance(value, EdgeIndex):
                sizes = value.sparse_size()
                if any(size not in (None, given["x"].shape[-2]) for size in sizes):
                    return None
                given[name] = value.as_tensor()
            elif name in ("x", "x_0") and is_sparse(value):
                if value.requires_grad or value.numel() > DENSE:
                    return None
                given[name] = value.to_dense()
        if is_sparse(adj):
            found = None if read is None else opened(adj)
            if read is None or found is None or not isinstance(given["x"], Tensor):
                return None
            given["edge_index"] = found[0]
            if len(adj) != given["x"].shape[-2] or not read(layer, given, *found):
                return None
        y = call(*bound.args, **bound.kwargs)
        if type(y) is Tensor and y.dtype in LOW:
            return as_peer(cls, layer, y, args, kwargs)
        return _in_the_form_of(layer, adj, y) if is_sparse(adj) and not isinstance(y, Tensor | None) else y

    taken.__signature__ = signature  # type: ignore[attr-defined]
    return Peer(**{**vars(peer), "call": taken})


def _in_another_form(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.layout is not torch.strided or isinstance(value, EdgeIndex))


def _in_the_form_of(layer: Any, adj: Tensor, output: tuple[Tensor, tuple[Tensor, Tensor]]) -> Any:
    """Attention weights as PyG returns them beside a sparse adjacency: as its values, in its order."""
    y, (edge_index, alpha) = output
    alpha = alpha[torch.argsort(edge_index[1] * len(adj) + edge_index[0], stable=True)]
    if not hasattr(layer, "add_self_loops"):  # TransformerConv returns the adjacency it was given
        return y, (adj, alpha)
    if layer.add_self_loops:
        adj = add_self_loops(remove_self_loops(adj)[0], num_nodes=len(adj))[0]
    return y, (set_sparse_value(adj, alpha), alpha)
