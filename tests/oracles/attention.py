"""Oracles of the operators by attention: PyG.

GATv2Conv(bias=True)   has three biases: those of lin_l and lin_r meet in the logits, where gatv2 has their sum, and
                       the one of lin_l also travels with the messages. Here it is 0 and its share is in lin_r's.
TransformerConv        has a bias of the keys, which the softmax takes out again, and one of the values. Here both
                       are 0. Without root_weight it has no output bias; lin_skip is there all the same, unused.
SuperGATConv           samples edges in training mode, for its loss; its output is the same in evaluation.
Softmax                all of them put 0 on nodes where no edge arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import nn as pyg

from gconv import GConv, Graph, operators
from gconv.spec import Sample
from oracles.common import call, each, given, graphs, oracle, random_case


def rows(W: Tensor) -> Tensor:
    """(h, i, c) as torch's Linear has it, (h c, i)."""
    return W.transpose(1, 2).flatten(0, 1)


def residual(layer: GConv, concat: bool) -> Tensor:
    """The matrix of the last tap, the node itself."""
    heads = layer.spec.structure.heads
    return rows(layer.weight[heads:]) if concat else layer.weight[heads].t()


def attributes(g: Graph, x: Tensor, edge_dim: int | None) -> Tensor | None:
    return None if edge_dim is None else g.edge_attr.to(x.dtype)


def filled(a: dict[str, Any], x: Tensor) -> dict[str, Any]:
    fill = a["fill_value"]
    return a | {"fill_value": torch.tensor(fill, dtype=x.dtype) if isinstance(fill, tuple) else fill}


@oracle("gat")
def gat(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, theta = given(layer), dict(layer.named_parameters())
    weights = {"lin.weight": rows(layer.weight[: a["heads"]])}
    if not a.pop("share_weights"):
        a["in_channels"] = (a["in_channels"],) * 2
        weights = {"lin_src.weight": weights["lin.weight"], "lin_dst.weight": rows(layer.target_weight)}
    weights |= {
        "att_src": layer.att_src.unsqueeze(0),
        "att_dst": layer.att_dst.unsqueeze(0),
        "bias": layer.bias,
        "res.weight": residual(layer, a["concat"]) if a["residual"] else None,
    }
    if a["edge_dim"] is not None:
        weights |= {"att_edge": theta["att_edge"].unsqueeze(0), "lin_edge.weight": rows(theta["lin_edge"])}
    return each(pyg.GATConv(**filled(a, x)), weights, x, g.edge_index, attributes(g, x, a["edge_dim"]))


@oracle("gatv2")
def gatv2(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, theta = given(layer), dict(layer.named_parameters())
    a["share_weights"] = shared = a["share_weights"] and not a["bias"]  # PyG's would share the bias too
    source = rows(layer.weight[: a["heads"]])
    target = rows(theta["target_weight"]) if "target_weight" in theta else source
    weights = {
        "lin_l.weight": source,
        "lin_r.weight": None if shared else target,
        "lin_l.bias": torch.zeros_like(source[:, 0]) if a["bias"] else None,
        "lin_r.bias": theta["shift"].flatten() if a["bias"] else None,
        "att": layer.att.unsqueeze(0),
        "lin_edge.weight": None if a["edge_dim"] is None else rows(theta["lin_edge"]),
        "bias": layer.bias,
        "res.weight": residual(layer, a["concat"]) if a["residual"] else None,
    }
    u, make = attributes(g, x, a["edge_dim"]), lambda: pyg.GATv2Conv(**filled(a, x))
    return torch.stack([call(make(), weights, one, g.edge_index, u) for one in x])  # torch forgets to untie shared ones


@oracle("agnn")
def agnn(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    return each(pyg.AGNNConv(**given(layer)), dict(layer.named_parameters()), x, g.edge_index)


@oracle("supergat")
def supergat(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    theta = dict(layer.named_parameters())
    weights = {"lin.weight": rows(layer.weight), "bias": layer.bias}
    weights |= {name: theta[name].unsqueeze(0) for name in ("att_l", "att_r") if name in theta}
    return each(pyg.SuperGATConv(**given(layer)).eval(), weights, x, g.edge_index)


@oracle("transformer")
def transformer(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, value = given(layer), rows(layer.weight[: given(layer)["heads"]])
    wide = a["heads"] * a["out_channels"] if a["concat"] else a["out_channels"]
    skip = residual(layer, a["concat"]) if a["root_weight"] else value.new_zeros(wide, a["in_channels"])
    weights = {
        "lin_query.weight": rows(layer.query),
        "lin_key.weight": rows(layer.key),
        "lin_value.weight": value,
        "lin_skip.weight": skip,
    }
    if a["bias"]:
        none = torch.zeros_like(value[:, 0])
        weights |= {"lin_query.bias": layer.query_bias.flatten(), "lin_key.bias": none, "lin_value.bias": none}
        weights["lin_skip.bias"] = layer.bias
    y = each(pyg.TransformerConv(**a), weights, x, g.edge_index)
    return y + layer.bias if a["bias"] and not a["root_weight"] else y


@oracle("fagcn")
def fagcn(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    weights = {"att_l.weight": layer.att_l.unsqueeze(0), "att_r.weight": layer.att_r.unsqueeze(0)}
    pairs = x.unflatten(-1, (2, -1)).unbind(-2) if a.pop("initial") else (x, x)
    w = None if a["normalize"] else g.weights(x.dtype)
    module = pyg.FAConv(**a)
    return torch.stack([call(module, weights, now, first, g.edge_index, w) for now, first in zip(*pairs, strict=True)])


# -- random specs and graphs ---------------------------------------------------------------------------------------

BOOL, HEADS = st.booleans(), st.integers(1, 3)
FILL = st.sampled_from(["mean", "add", "min", "max", "mul", 0.5, (1.0, -0.5)])


def features(draw: Any) -> dict[str, Any]:
    return {"edge_dim": 2, "fill_value": draw(FILL)} if draw(BOOL) else {}


SPECS: dict[str, Callable[[Any, int, int], Any]] = {
    "gat": lambda draw, i, o: operators.gat(
        i, o, draw(HEADS), draw(BOOL), add_self_loops=draw(BOOL), residual=draw(BOOL), **features(draw)
    ),
    "gatv2": lambda draw, i, o: operators.gatv2(
        i, o, draw(HEADS), draw(BOOL), add_self_loops=draw(BOOL), residual=draw(BOOL), share_weights=draw(BOOL),
        bias=draw(BOOL), **features(draw),
    ),
    "agnn": lambda draw, i, o: operators.agnn(draw(BOOL), draw(BOOL)),
    "supergat": lambda draw, i, o: operators.supergat(
        i, o, draw(HEADS), draw(BOOL), add_self_loops=draw(BOOL), attention_type=draw(st.sampled_from(["MX", "SD"]))
    ),
    "fagcn": lambda draw, i, o: operators.fagcn(
        i, draw(st.sampled_from([0.0, 0.1, 0.5])), 0.0, draw(BOOL), draw(BOOL), draw(BOOL)
    ),
    "transformer": lambda draw, i, o: operators.transformer(
        i, o, draw(HEADS), draw(BOOL), bias=draw(BOOL), root_weight=draw(BOOL)
    ),
}  # fmt: skip


@random_case(*SPECS)
def _(draw: Any, name: str) -> Sample:
    i, o = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    graph, spec = draw(graphs()), SPECS[name](draw, i, o)
    return Sample(spec, lambda: graph, 2 * i if dict(spec.arguments).get("initial") else i)
