"""Conversion of PyG's other input formats to dense signals and plain edge_index tensors.

A layer's `Peer.call` supports dense signals and plain edge_index tensors, and returns None otherwise. Only then is the
call converted here: a `torch.sparse` adjacency or an EdgeIndex to an edge_index, with its values interpreted as the
layer does, and a sparse signal to a dense one. Calls in the usual format have no overhead.
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
# (layer, arguments of a call, edge_index, values of its adjacency) -> False if PyG has to run
Reader = Callable[[Any, Arguments, Tensor, Tensor], bool]

MAX_DENSE = 1 << 26  # largest number of entries of a sparse signal that is converted to dense
_OPENED = WeakCache("edge_index of sparse adjacencies")


def is_sparse(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout is not torch.strided


def source(given: Arguments) -> Tensor:
    """The signal, or the signal of the sources."""
    x: Any = given["x"]
    return x[0] if isinstance(x, tuple) else x


def opened(adj: Tensor) -> tuple[Tensor, Tensor] | None:
    """The edge_index and values of PyG's `adj_t`, whose rows are targets; None for unsupported layouts.

    The edge_index tensor of an adjacency is cached, so that the graph cached for that tensor is reused.
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


# -- interpretation of the values of an adjacency, by layer --------------------------------------------------------


def ignored(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Values are ignored."""
    return True


def ones(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Values must all be 1."""
    return values.ndim == 1 and readable(values) and bool((values == 1).all())


def labels(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Values are the relations of the edges."""
    if given.get("edge_type") is not None or values.dtype != torch.int64 or values.ndim != 1:
        return False
    given["edge_type"] = values
    return True


def attributes(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Values are the attributes of the edges."""
    if given.get("edge_attr") is not None or values.ndim > 2:
        return False
    given["edge_attr"] = values
    return True


def weights(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Values are edge weights."""
    if given.get("edge_weight") is not None or values.ndim != 1:
        return False
    given["edge_weight"] = values
    return True


def extra_weights(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Values are edge weights, for which the layer has no argument."""
    if values.ndim != 1 or values.dtype != source(given).dtype:
        return False
    if not ones(layer, given, edge_index, values):
        given["values"] = values
    return True


def replacing_weights(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """Values replace the edge weights that PDNConv otherwise computes from edge features."""
    if given.get("edge_attr") is not None or values.ndim != 1 or values.dtype != source(given).dtype:
        return False
    given["values"] = values
    return True


def with_loops(fill: Callable[[Any], float | None], read: Reader = weights) -> Reader:
    """Values are edge weights; an added self-loop increases the weight of an existing one by `fill`."""

    def looped(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
        more = fill(layer)
        if more is not None and values.ndim == 1:
            values = values + more * (edge_index[0] == edge_index[1]).to(values.dtype)
        return read(layer, given, edge_index, values)

    return looped


def loopless(edge_index: Tensor) -> bool:
    return readable(edge_index) and not bool((edge_index[0] == edge_index[1]).any())


def signs(layer: Any, given: Arguments, edge_index: Tensor, values: Tensor) -> bool:
    """For FAConv, which supports edge weights only without normalisation."""
    if not layer.normalize:
        return weights(layer, given, edge_index, values)
    return ones(layer, given, edge_index, values) and (loopless(edge_index) or not layer.add_self_loops)


def one(layer: Any) -> float | None:
    return 1.0 if layer.add_self_loops and getattr(layer, "normalize", True) else None


ADJACENCY: dict[type, Reader] = {
    **dict.fromkeys((pyg.GraphConv, pyg.LEConv, pyg.TAGConv, pyg.LGConv), weights),
    **dict.fromkeys((pyg.SGConv, pyg.SSGConv, pyg.APPNP, pyg.MixHopConv, pyg.GCN2Conv), with_loops(one)),
    pyg.GCNConv: with_loops(lambda m: None if one(m) is None else 2.0 if m.improved else 1.0),
    pyg.EGConv: with_loops(one, extra_weights),
    pyg.SimpleConv: lambda m, given, ei, w: (
        (m.combine_root != "self_loop" or loopless(ei)) and weights(m, given, ei, w)
    ),
    pyg.FAConv: signs,
    pyg.PDNConv: with_loops(one, replacing_weights),
    **dict.fromkeys((pyg.SAGEConv, pyg.GINConv), extra_weights),
    **dict.fromkeys((pyg.GATConv, pyg.GATv2Conv, pyg.SuperGATConv, pyg.TransformerConv), ignored),
    **dict.fromkeys((pyg.AGNNConv, pyg.FeaStConv, pyg.ResGatedGraphConv, pyg.ClusterGCNConv), ignored),
    **dict.fromkeys((pyg.GMMConv, pyg.NNConv), attributes),
    pyg.FastRGCNConv: labels,
}


def taking(cls: type, peer: Peer) -> Peer:
    """A description whose `call` also supports the other input formats."""
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
            return None  # too many arguments, or a repeated one
        if any(name not in given for name in needed) or any(name not in arguments for name in given):
            return None  # missing or unknown
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
    """The numbers of sources and targets of a signal or a pair."""
    source, target = x if isinstance(x, tuple) else (x, x)
    return tuple(s.shape[-2] if isinstance(s, Tensor) and s.ndim > 1 else None for s in (source, target))  # type: ignore


def reread(layer: Any, given: Arguments) -> bool:
    """Convert all arguments but a sparse adjacency to the usual format; False if PyG has to run."""
    x = given.get("x")
    if isinstance(x, tuple) and len(x) != 2:
        return False
    for name, value in list(given.items()):
        if name.endswith("edge_index") and isinstance(value, EdgeIndex):
            if any(size not in (None, n) for size, n in zip(value.sparse_size(), rows(x), strict=True)):
                return False
            given[name] = value.as_tensor()
        elif name in ("pos_edge_index", "neg_edge_index") and is_sparse(value):
            found = opened(value) if tuple(value.shape) == rows(x)[::-1] else None
            if found is None or not ones(layer, given, *found):  # other values are weights
                return False
            given[name] = found[0]
        elif name in ("x", "x_0") and is_sparse(value):
            if value.requires_grad or value.numel() > MAX_DENSE:
                return False
            given[name] = value.to_dense()
    if isinstance(x, Tensor) and given.get("size") is not None:
        if tuple(given["size"]) != rows(x):
            return False
        given["size"] = None
    return True


def from_sparse(layer: Any, given: Arguments, adj: Tensor, read: Reader | None) -> bool:
    """Convert an adjacency (targets, sources) to edges; False if PyG has to run."""
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
    """Attention weights in PyG's format for a sparse adjacency: as its values, in its order."""
    y, (edge_index, alpha) = output
    alpha = alpha[torch.argsort(edge_index[1] * len(adj) + edge_index[0], stable=True)]
    if not hasattr(layer, "add_self_loops"):  # TransformerConv returns the adjacency it was given
        return y, (adj, alpha)
    if layer.add_self_loops:
        adj = add_self_loops(remove_self_loops(adj)[0], num_nodes=len(adj))[0]
    return y, (set_sparse_value(adj, alpha), alpha)
