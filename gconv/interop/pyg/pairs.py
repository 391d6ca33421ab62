"""PyG's bipartite calls: pairs (x_source, x_target), `size=`, and adjacencies that are not square."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import nn as pyg

from gconv import operators
from gconv.domains import Bipartite, read_bipartite
from gconv.interop.peer import engine, run
from gconv.interop.pyg.common import AGGR, dense, observed, per_edge
from gconv.interop.pyg.edges import labelled

Pair = tuple[Tensor, Tensor | None]
# (layer, pair, domain, adjacency values for which the layer has no argument) -> result, or None to run PyG
Between = Callable[[Any, Pair, Bipartite, Tensor | None], Tensor | None]
EDGES = ("edge_weight", "edge_attr", "edge_type", "values")


def plainly(layer: Any, x: Pair, domain: Bipartite, values: Tensor | None) -> Tensor | None:
    """For layers that treat missing target features as zeros."""
    if x[1] is None and layer.peer.affine(layer):
        i = layer.in_channels
        x = x[0], x[0].new_zeros(domain.sizes[1], i[1] if isinstance(i, tuple) else i)
    return run(layer, x, domain)


def of_two(layer: Any, x: Pair, domain: Bipartite, values: Tensor | None) -> Tensor | None:
    """For layers that require both features."""
    return None if x[1] is None else run(layer, x, domain)


def sage(layer: Any, x: Pair, domain: Bipartite, values: Tensor | None) -> Tensor | None:
    source, target = x
    if layer.project:
        source = layer.lin(source).relu()
    if values is not None:
        y = layer.lin_l(run(layer, source, domain, engine(layer, operators.simple, AGGR[layer.aggr]), {}))
    elif layer.project or not layer.root_weight:
        y = run(layer, source, domain)
    else:
        y = run(layer, (source, target), domain)
    if target is not None and layer.root_weight and (layer.project or values is not None):
        y = y + layer.lin_r(target)
    return F.normalize(y, dim=-1) if layer.normalize else y


def gin(layer: Any, x: Pair, domain: Bipartite, values: Tensor | None) -> Tensor | None:
    y = run(layer, x[0], domain, engine(layer, operators.simple), {})
    y = y if x[1] is None else y + (1 + layer.eps) * x[1]
    z: Tensor = layer.nn(y)
    return z


def simple(layer: Any, x: Pair, domain: Bipartite, values: Tensor | None) -> Tensor | None:
    if layer.combine_root == "self_loop":
        return None
    y = run(layer, x[0], domain, engine(layer, operators.simple, AGGR[layer.aggr]), {})
    if x[1] is None or layer.combine_root is None:
        return y
    return y + x[1] if layer.combine_root == "sum" else torch.cat([x[1], y], -1)


def halved(layer: Any, x: Pair, domain: Bipartite, values: Tensor | None) -> Tensor | None:
    """WLConvContinuous, which averages with the node itself only if target features are given."""
    y: Tensor = run(layer, x, domain)
    return 2 * y if x[1] is None else y


def relations(layer: Any, x: Pair, domain: Bipartite, values: Tensor | None) -> Tensor | None:
    fits = x[1] is not None and labelled(layer, domain.edge_index, domain.edge_type)
    return run(layer, x, domain) if fits else None


def looping(layer: Any, x: Pair, domain: Bipartite, values: Tensor | None) -> Tensor | None:
    """FeaStConv, which adds a loop at each target and so needs at least as many sources."""
    fits = domain.sizes[0] >= domain.sizes[1] or not layer.add_self_loops
    return of_two(layer, x, domain, values) if fits else None


def attention(layer: Any, x: Pair, domain: Bipartite, values: Tensor | None) -> Tensor | None:
    """For attention layers: edge features must be given exactly if the layer has a matrix for them."""
    return plainly(layer, x, domain, None) if (domain.edge_attr is None) == (layer.edge_dim is None) else None


def attention_of_two(layer: Any, x: Pair, domain: Bipartite, values: Tensor | None) -> Tensor | None:
    return None if x[1] is None else attention(layer, x, domain, None)


BETWEEN: dict[type, Between] = {
    pyg.SAGEConv: sage,
    pyg.GINConv: gin,
    pyg.SimpleConv: simple,
    pyg.WLConvContinuous: halved,
    pyg.FeaStConv: looping,
    pyg.GATConv: attention,
    pyg.GATv2Conv: attention_of_two,
    pyg.TransformerConv: attention_of_two,
    **dict.fromkeys((pyg.LEConv, pyg.ResGatedGraphConv), of_two),
    **dict.fromkeys((pyg.GraphConv, pyg.MFConv, pyg.GMMConv, pyg.NNConv), plainly),
    **dict.fromkeys((pyg.RGCNConv, pyg.FastRGCNConv), relations),
}


def between(cls: type, layer: Any, given: dict[str, Any]) -> Tensor | None:
    """A call with a pair of signals; None if PyG has to run."""
    form, x, edge_index = BETWEEN.get(cls), given["x"], given.get("edge_index")
    if form is None or len(x) != 2 or observed(layer) or not isinstance(edge_index, Tensor):
        return None
    source, target = x
    if not dense(source) or source.ndim != 2 or not source.is_floating_point():
        return None
    if target is not None and (not dense(target) or target.ndim != 2 or target.dtype != source.dtype):
        return None
    if edge_index.dtype != torch.int64 or edge_index.ndim != 2 or len(edge_index) != 2:
        return None
    size = given.get("size") or (None, None)
    n = len(source), (size[1] if size[1] is not None else len(source)) if target is None else len(target)
    if any(s is not None and s != m for s, m in zip(size, n, strict=True)):
        return None
    known = ("x", "edge_index", "size", "layer", *EDGES)
    if any(value is not None for name, value in given.items() if name not in known):
        return None
    edges = {name: given[name] for name in EDGES if given.get(name) is not None}
    values = edges.pop("values", None)
    for name, value in edges.items():
        if name != "edge_type" and not per_edge(value, source, edge_index, (1,) if name == "edge_weight" else (1, 2)):
            return None
    if values is not None:
        edges["edge_weight"] = values
    if cls in (pyg.GMMConv, pyg.NNConv) and "edge_attr" not in edges:
        return None
    return form(layer, (source, target), read_bipartite(edge_index, n, **edges), values)
