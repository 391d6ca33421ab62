"""Oracles of operators whose structure is learned or follows the edges' attributes: PyG, scipy, or a formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from torch import Tensor, nn
from torch_geometric import nn as pyg

from gconv import GConv, Graph, operators
from gconv.spec import Sample
from oracles.common import agree, each, edge_weights, given, graphs, oracle, random_case

PYG_AGGR = {"sum": "add"}


@oracle("feast")
def feast(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    weights = {"lin.weight": layer.weight.mT.flatten(0, 1), "u.weight": layer.u, "c": layer.c, "bias": layer.bias}
    return each(pyg.FeaStConv(**given(layer)), weights, x, g.edge_index)


@oracle("nnconv")
def nnconv(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, W, h = given(layer), layer.weight, given(layer)["hidden"]
    i, o = a["in_channels"], a["out_channels"]
    network = nn.Sequential(nn.Linear(a["dim"], h), nn.ReLU(), nn.Linear(h, i * o))
    aggr = PYG_AGGR.get(a["aggr"], a["aggr"])
    module = pyg.NNConv(i, o, network, aggr, root_weight=a["root_weight"], bias=a["bias"])
    weights = {"nn.0.weight": layer.w1, "nn.0.bias": layer.b1, "nn.2.weight": W[:h].flatten(1).t()}
    weights |= {"nn.2.bias": W[h].flatten(), "lin.weight": W[-1].t() if a["root_weight"] else None, "bias": layer.bias}
    return each(module, weights, x, g.edge_index, g.edge_attr.to(x.dtype))


@oracle("spline")
def spline(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """scipy's B-splines, control point by control point: PyG's needs a compiled package that is not here."""
    a, W, m = given(layer), layer.weight, given(layer)["degree"]
    sizes, ends = (v if isinstance(v, tuple) else (v,) * a["dim"] for v in (a["kernel_size"], a["is_open_spline"]))
    per_axis = []
    for u, size, is_open in zip(g.edge_attr.double().numpy().T, sizes, ends, strict=True):
        t = u * (size - m if is_open else size)
        values = np.zeros((size, len(t)))
        for k in range(size):
            for turn in (0,) if is_open else range(-m - 1, m + 2):
                piece = BSpline.basis_element(np.arange(k - m, k + 2) + turn * size, extrapolate=False)
                values[k] += np.nan_to_num(piece(t))
        per_axis.append(values)
    y = 0 if layer.bias is None else layer.bias
    count = torch.bincount(g.target, minlength=g.size).clamp(min=1)
    for k, index in enumerate(np.ndindex(*sizes[::-1])):  # the first coordinate runs fastest
        B = np.prod([values[at] for values, at in zip(per_axis, index[::-1], strict=True)], 0)
        S = torch.zeros(g.size, g.size, dtype=torch.float64)
        S = S.index_put((g.target, g.source), torch.from_numpy(B).reshape(-1), True)
        S = S / count.unsqueeze(1) if a["aggr"] == "mean" else S
        y = y + S.to(x.dtype) @ x @ W[k]
    return y + x @ W[-1] if a["root_weight"] else y


@oracle("wl_continuous")
def wl_continuous(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    return each(pyg.WLConvContinuous(), {}, x, g.edge_index, edge_weights(g, x))


@oracle("pdn")
def pdn(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    weights = {"lin.weight": layer.weight[0].t(), "mlp.0.weight": layer.w1, "mlp.0.bias": layer.b1}
    weights |= {"mlp.2.weight": layer.w2.unsqueeze(0), "mlp.2.bias": layer.b2, "bias": layer.bias}
    return each(pyg.PDNConv(**a), weights, x, g.edge_index, g.edge_attr.to(x.dtype))


@oracle("egc")
def egc(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    a["aggregators"] = list(a["aggregators"])
    weights = {"bases_lin.weight": layer.weight.mT.flatten(0, 1), "bias": layer.bias}
    weights |= {"comb_lin.weight": layer.comb_weight, "comb_lin.bias": layer.comb_bias}
    return each(pyg.EGConv(**a), weights, x, g.edge_index)


@oracle("resgated")
def resgated(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """With the bias of the values zero; and with a random one, carried by a channel of ones."""
    a, W, o = given(layer), layer.weight.squeeze(-1), given(layer)["out_channels"]
    zero, root = x.new_zeros(o), W[o:] if a["root_weight"] else None
    weights = {"lin_key.weight": layer.key, "lin_key.bias": layer.gate, "lin_query.weight": layer.query}
    weights |= {"lin_query.bias": zero, "lin_value.weight": W[:o], "lin_skip.weight": root, "bias": layer.bias}
    value = torch.linspace(-1, 1, o, dtype=x.dtype)
    wider = GConv(operators.resgated(a["in_channels"] + 1, o, a["root_weight"], a["bias"]), dtype=x.dtype)
    with torch.no_grad():
        last = value if root is None else torch.cat([value, zero])
        wider.weight.copy_(torch.cat([W, last.unsqueeze(1)], 1).unsqueeze(-1))
        for mine, theirs in ((wider.key, layer.key), (wider.query, layer.query)):
            mine.copy_(torch.cat([theirs, zero.unsqueeze(1)], 1))
        wider.gate.copy_(layer.gate)
        if a["bias"]:
            wider.bias.copy_(layer.bias)
        got = wider(torch.cat([x, torch.ones_like(x[..., :1])], -1), g)
        biased = each(pyg.ResGatedGraphConv(**a), weights | {"lin_value.bias": value}, x, g.edge_index)
        agree(got, biased)
    return each(pyg.ResGatedGraphConv(**a), weights | {"lin_value.bias": zero}, x, g.edge_index)


@oracle("rgat")
def rgat(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    R, h = a["num_relations"], a["heads"]
    module = pyg.RGATConv(**a)
    weights = {"weight": layer.weight.unflatten(0, (R, h)).movedim(1, 2).flatten(2), "q": layer.q, "k": layer.k}
    idle = {
        name: x.new_zeros(p.shape) for name, p in module.named_parameters() if name in ("w", "l1", "b1", "l2", "b2")
    }
    return each(module, weights | idle | {"bias": layer.bias}, x, g.edge_index, g.edge_type)


@oracle("pan")
def pan(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """Walk by walk with dense matrices: PyG's needs a sparse tensor package that is not here."""
    n = g.size
    A = torch.zeros(n, n, dtype=x.dtype).index_put((g.target, g.source), torch.ones(g.num_edges, dtype=x.dtype), True)
    power, price, M, seen = torch.eye(n, dtype=x.dtype), 1.0, torch.zeros(n, n, dtype=x.dtype), torch.zeros(n, n)
    for p in layer.path:
        price = price * p
        M, seen, power = M + price * power, seen + (power > 0), power @ A
    root = (seen > 0).sum(1).to(x.dtype) ** -0.5
    y = (root.unsqueeze(1) * M * root) @ x @ layer.weight[0]
    return y if layer.bias is None else y + layer.bias


FLAG = st.booleans()


def _spline(draw: Any, i: int, o: int) -> Any:
    degree, ends = draw(st.integers(1, 3)), (draw(FLAG), draw(FLAG))
    sizes = tuple(draw(st.integers(degree + 1 if is_open else 1, 4)) for is_open in ends)
    return operators.spline(i, o, 2, sizes, ends, degree, draw(st.sampled_from(["mean", "sum"])), draw(FLAG))


SPECS: dict[str, Callable[[Any, int, int], Any]] = {
    "feast": lambda draw, i, o: operators.feast(i, o, draw(st.integers(1, 3)), draw(FLAG), draw(FLAG)),
    "nnconv": lambda draw, i, o: operators.nnconv(
        i, o, 2, draw(st.integers(1, 3)), draw(st.sampled_from(["sum", "mean"])), draw(FLAG), draw(FLAG)
    ),
    "spline": _spline,
    "wl_continuous": lambda draw, i, o: operators.wl_continuous(),
    "pdn": lambda draw, i, o: operators.pdn(i, o, 2, draw(st.integers(1, 3)), draw(FLAG), draw(FLAG), draw(FLAG)),
    "egc": lambda draw, i, o: operators.egc(
        i, 2 * o, draw(st.sampled_from([("symnorm",), ("sum", "symnorm"), ("mean", "sum")])), draw(st.integers(1, 2)),
        draw(st.integers(1, 3)), draw(FLAG),
    ),
    "resgated": lambda draw, i, o: operators.resgated(i, o, draw(FLAG), draw(FLAG)),
    "rgat": lambda draw, i, o: operators.rgat(
        i, o, 3, draw(st.sampled_from([None, "f-scaled", "f-additive"])),
        draw(st.sampled_from(["across-relation", "within-relation"])), draw(st.integers(1, 2)), draw(FLAG),
    ),
    "pan": lambda draw, i, o: operators.pan(i, o, draw(st.integers(0, 3)), draw(FLAG)),
}  # fmt: skip


@random_case(*SPECS)
def _(draw: Any, name: str) -> Sample:
    i, o = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    graph, spec = draw(graphs()), SPECS[name](draw, i, o)
    if name == "feast":
        hypothesis.assume(graph.num_edges > 0)  # PyG cannot reshape the messages of no edge
    a = dict(spec.arguments)
    if name == "egc" and a["add_self_loops"] and "symnorm" not in a["aggregators"]:  # PyG's loops end at this node
        hypothesis.assume(graph.num_edges > 0 and int(graph.edge_index.max()) == graph.size - 1)
    if name == "spline":
        attr = (graph.edge_attr.abs() * 4).round() / 4 if draw(FLAG) else graph.edge_attr.abs()  # on knots, or not
        graph = Graph(graph.edge_index, graph.size, graph.edge_weight, attr)
    return Sample(spec, lambda: graph, i)
