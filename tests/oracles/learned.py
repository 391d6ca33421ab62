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
from oracles.common import each, given, graphs, oracle, random_case

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
}


@random_case(*SPECS)
def _(draw: Any, name: str) -> Sample:
    i, o = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    graph, spec = draw(graphs()), SPECS[name](draw, i, o)
    if name == "feast":
        hypothesis.assume(graph.num_edges > 0)  # PyG cannot reshape the messages of no edge
    if name == "spline":
        attr = (graph.edge_attr.abs() * 4).round() / 4 if draw(FLAG) else graph.edge_attr.abs()  # on knots, or not
        graph = Graph(graph.edge_index, graph.size, graph.edge_weight, attr)
    return Sample(spec, lambda: graph, i)
