"""Oracles of the operators on graphs: PyG, or a formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import nn as pyg

from gconv import GConv, Graph, operators
from gconv.spec import Sample
from oracles.common import each, edge_weights, given, graphs, oracle, random_case


@oracle("gcn")
def gcn(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    a["add_self_loops"] = a["add_self_loops"] and a["normalize"]  # PyG refuses loops without normalisation
    weights = {"lin.weight": layer.weight[0].t(), "bias": layer.bias}
    return each(pyg.GCNConv(**a), weights, x, g.edge_index, edge_weights(g, x))


@oracle("graphconv")
def graphconv(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, W = given(layer), layer.weight
    a["aggr"] = {"sum": "add"}.get(a["aggr"], a["aggr"])
    weights = {"lin_rel.weight": W[0].t(), "lin_rel.bias": layer.bias, "lin_root.weight": W[1].t()}
    return each(pyg.GraphConv(**a), weights, x, g.edge_index, edge_weights(g, x))


@oracle("sage")
def sage(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, W = given(layer), layer.weight
    a["aggr"] = {"sum": "add"}.get(a["aggr"], a["aggr"])
    weights = {
        "lin_l.weight": W[0].t(),
        "lin_l.bias": layer.bias,
        "lin_r.weight": W[1].t() if a["root_weight"] else None,
    }
    return each(pyg.SAGEConv(**a), weights, x, g.edge_index)


@oracle("cheb")
def cheb(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    top = a["lambda_max"]
    top = None if top == "bound" else torch.tensor(top, dtype=x.dtype)
    module = pyg.ChebConv(a["in_channels"], a["out_channels"], a["k"], a["normalization"], a["bias"])
    weights = {f"lins.{t}.weight": W.t() for t, W in enumerate(layer.weight)} | {"bias": layer.bias}
    return each(module, weights, x, g.edge_index, edge_weights(g, x), None, top)


@oracle("sgc")
def sgc(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    module = pyg.SGConv(a["in_channels"], a["out_channels"], a["k"], bias=a["bias"])
    return each(
        module, {"lin.weight": layer.weight[0].t(), "lin.bias": layer.bias}, x, g.edge_index, edge_weights(g, x)
    )


@oracle("tag")
def tag(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    module = pyg.TAGConv(a["in_channels"], a["out_channels"], a["k"], a["bias"])
    weights = {f"lins.{t}.weight": W.t() for t, W in enumerate(layer.weight)} | {"bias": layer.bias}
    return each(module, weights, x, g.edge_index, edge_weights(g, x))


@oracle("appnp")
def appnp(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    return each(pyg.APPNP(a["k"], a["alpha"]), {}, x, g.edge_index, edge_weights(g, x))


@oracle("monet")
def monet(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, W, K = given(layer), layer.weight, given(layer)["kernel_size"]
    module = pyg.GMMConv(a["in_channels"], a["out_channels"], a["dim"], K, root_weight=a["root_weight"], bias=a["bias"])
    weights = {"g": W[:K].permute(1, 0, 2).flatten(1), "mu": layer.mu, "sigma": layer.sigma, "bias": layer.bias}
    if a["root_weight"]:
        weights["root.weight"] = W[K].t()
    else:
        module.root = None  # PyG 2.8.1 reads it, and forgets to set it
    return each(module, weights, x, g.edge_index, g.edge_attr.to(x.dtype))


# -- formulas ------------------------------------------------------------------------------------------------------


@oracle("spectral")
def spectral(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """With hat functions of the matrix L, by numpy's eigendecomposition. Not differentiable in the edge weights."""
    a, n = given(layer), g.size
    A, w = np.zeros((n, n)), g.weights(torch.float64).detach().numpy()
    for (j, i), weight in zip(g.edge_index.t().tolist(), w, strict=True):
        A[i, j] += weight if i != j else 0.0
    degree = A.sum(1)
    L = np.diag(degree) - A
    if a["normalization"] == "sym":
        root = np.array([d**-0.5 if d > 0 else 0.0 for d in degree])
        L = np.eye(n) - root[:, None] * A * root
    values, U = np.linalg.eigh(L)
    top = 2.0 if a["normalization"] == "sym" else max(values[-1], 1e-12)
    y = 0 if layer.bias is None else layer.bias
    for k, W in enumerate(layer.weight):
        knots = np.linspace(0, top, a["k"])
        bump = np.interp(np.clip(values, 0, top), knots, np.eye(a["k"])[k]) if a["k"] > 1 else np.ones(n)
        y = y + torch.from_numpy(U * bump @ U.T).to(x.dtype) @ x @ W
    return y


@oracle("selection")
def selection(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """Edge by edge."""
    groups = given(layer)["groups"]
    W = layer.weight if groups == 1 else torch.stack([torch.block_diag(*blocks) for blocks in layer.weight])
    rows = list(x.new_zeros(g.size, len(x), W.shape[-1]))
    for e, (j, i) in enumerate(g.edge_index.t().tolist()):
        rows[i] = rows[i] + g.weights(x.dtype)[e] * x[:, j] @ W[int(g.edge_type[e])]
    y = torch.stack(rows, 1)
    return y if layer.bias is None else y + layer.bias


# -- random specs and graphs ---------------------------------------------------------------------------------------


SPECS: dict[str, Callable[[Any, int, int], Any]] = {
    "gcn": lambda draw, i, o: operators.gcn(i, o, draw(st.booleans()), draw(st.booleans()), draw(st.booleans())),
    "graphconv": lambda draw, i, o: operators.graphconv(i, o, draw(AGGR), draw(st.booleans())),
    "sage": lambda draw, i, o: operators.sage(i, o, draw(AGGR), draw(st.booleans())),
    "cheb": lambda draw, i, o: operators.cheb(
        i, o, draw(st.integers(1, 4)), draw(st.sampled_from(["sym", "rw", None]))
    ),
    "sgc": lambda draw, i, o: operators.sgc(i, o, draw(st.integers(1, 3))),
    "tag": lambda draw, i, o: operators.tag(i, o, draw(st.integers(0, 3))),
    "appnp": lambda draw, i, o: operators.appnp(draw(st.integers(1, 4)), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))),
    "spectral": lambda draw, i, o: operators.spectral(
        i, o, draw(st.integers(1, 5)), draw(st.sampled_from(["sym", None]))
    ),
    "monet": lambda draw, i, o: operators.monet(i, o, 2, draw(st.integers(1, 3)), draw(st.booleans())),
    "selection": lambda draw, i, o: operators.selection(i, o, draw(st.integers(3, 5))),
}
AGGR = st.sampled_from(["mean", "sum", "max"])


@random_case(*SPECS)
def _(draw: Any, name: str) -> Sample:
    i, o = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    graph, spec = draw(graphs(undirected=name == "spectral")), SPECS[name](draw, i, o)
    if dict(spec.arguments).get("normalization", "") is None and name == "cheb":
        hypothesis.assume(bool((graph.source != graph.target).any()))  # where PyG divides 0 by 0
    return Sample(spec, lambda: graph, i)
