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
from torch_geometric import EdgeIndex
from torch_geometric import nn as pyg
from torch_geometric.utils import add_self_loops, remove_self_loops
from torch_geometric.utils.sparse import set_sparse_value

from gconv.caches import WeakCache
from gconv.interop.peer import Peer
from gconv.interop.pyg.autocast import LOW, as_peer
from gconv.interop.pyg.pairs import between
from gconv.kernels import readable

Arguments = dict[str, Any]
# of a layer, the arguments of a call, its edge_index and the values of its adjacency; False where PyG has to run
Reader = Callable[[Any, Arguments, Tensor, Tensor], bool]

DENSE = 1 << 26  # numbers of a sparse signal that may be written out
_OPENED = WeakCache("edge_index of sparse adjacencies")


def is_sparse(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout is not torch.strided


def source(given: Arguments) -> Tensor:
    """The signal, or that of the sources."""
    x: Any = given["x"]
    return x[0] if isinstance(x, tuple) else x


def opened(adj: Tensor) -> tuple[Tensor, Tensor] | None:
    """The edge_index and values of PyG's `adj_t`, rows are targets; None if it is none.

    The same adjacency has the same edge_index tensor each time, as long as it is not changed, so that what was derived
    from it is found again.
    """
    if adj.ndim - adj.dense_dim() != 2 or adj.requires_grad:
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
    return values.ndim == 1 and readable(values) and bool((values == 1).all())


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
    if values.ndim != 1 or values.dtype != source(given).dtype:
        return False
    if not ones(layer, given, edge_index, values):
        given["values"] = values
    return True


def instead(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Weights, where PDNConv makes its own of edge features otherwise."""
    if given.get("edge_attr") is not None or values.ndim != 1 or values.dtype != source(given).dtype:
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
    return readable(edge_index) and not bool((edge_index[0] == edge_index[1]).any())


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
    signature, arguments = inspect.signature(call), inspect.signature(cls.forward).parameters  # type: ignore
    names = tuple(signature.parameters)[1:]
    ordered = tuple(n for n in names if signature.parameters[n].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = tuple(n for n in names if signature.parameters[n].default is inspect.Parameter.empty)

    def taken(layer: Any, *args: Any, **kwargs: Any) -> Any:
        y: Any = call(layer, *args, **kwargs)
        if type(y) is Tensor and y.dtype in LOW:
            return as_peer(cls, layer, y, args, kwargs)
        if y is not None:
            return y
        given = {**dict(zip(ordered, args, strict=False)), **kwargs}
        if len(args) > len(ordered) or len(given) < len(args) + len(kwargs):
            return None  # too many arguments, or one twice
        if any(name not in given for name in needed) or any(name not in arguments for name in given):
            return None  # one that is missing, or that PyG does not have
        adj, before = given.get("edge_index"), dict(given)
        if not (reread(layer, given) and (not is_sparse(adj) or from_sparse(layer, given, adj, read))):
            return None
        if type(given.get("x")) is tuple and "pos_edge_index" not in given:
            y = between(cls, layer, given)
        elif any(given[name] is not before.get(name) for name in given):
            y = call(layer, **given)
        if isinstance(y, Tensor):
            return as_peer(cls, layer, y, args, kwargs) if y.dtype in LOW else y
        return _in_the_form_of(layer, adj, y) if is_sparse(adj) and y is not None else y

    taken.__signature__ = signature  # type: ignore[attr-defined]
    return Peer(**{**vars(peer), "call": taken})


def rows(x: Any) -> tuple[int | None, int | None]:
    """The number of sources and targets that a signal, or a pair, has."""
    source, target = x if isinstance(x, tuple) else (x, x)
    return tuple(s.shape[-2] if isinstance(s, Tensor) and s.ndim > 1 else None for s in (source, target))  # type: ignore


def reread(layer: Any, given: Arguments) -> bool:
    """Bring all but a sparse adjacency to the usual form; False where PyG has to run."""
    x = given.get("x")
    if isinstance(x, tuple) and len(x) != 2:
        return False
    for name, value in list(given.items()):
        if name.endswith("edge_index") and isinstance(value, EdgeIndex):
            if any(size not in (None, n) for size, n in zip(value.sparse_size(), rows(x), strict=True)):
                return False
            given[name] = value.as_tensor()
        elif name in ("x", "x_0") and is_sparse(value):
            if value.requires_grad or value.numel() > DENSE:
                return False
            given[name] = value.to_dense()
    if isinstance(x, Tensor) and given.get("size") is not None:
        if tuple(given["size"]) != rows(x):
            return False
        given["size"] = None
    return True


def from_sparse(layer: Any, given: Arguments, adj: Tensor, read: Reader | None) -> bool:
    """Read an adjacency (targets, sources) as edges; False where PyG has to run."""
    found = None if read is None else opened(adj)
    if read is None or found is None or len(adj.shape) < 2:
        return False
    x = given.get("x")
    pair = isinstance(x, tuple)
    if any(n not in ((None, m) if pair else (m,)) for m, n in zip((adj.shape[1], adj.shape[0]), rows(x), strict=True)):
        return False
    given["edge_index"] = found[0]
    if pair and isinstance(x, tuple) and x[1] is None:
        given["size"] = (adj.shape[1], adj.shape[0])
    return read(layer, given, *found)


def _in_the_form_of(layer: Any, adj: Tensor, output: tuple[Tensor, tuple[Tensor, Tensor]]) -> Any:
    """Attention weights as PyG returns them beside a sparse adjacency: as its values, in its order."""
    y, (edge_index, alpha) = output
    alpha = alpha[torch.argsort(edge_index[1] * len(adj) + edge_index[0], stable=True)]
    if not hasattr(layer, "add_self_loops"):  # TransformerConv returns the adjacency it was given
        return y, (adj, alpha)
    if layer.add_self_loops:
        adj = add_self_loops(remove_self_loops(adj)[0], num_nodes=len(adj))[0]
    return y, (set_sparse_value(adj, alpha), alpha)
