"""Oracles of the labelled, directed and relational operators: PyG, and formulas where it cannot be run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric import nn as pyg

from gconv import GConv, Graph, operators
from gconv.spec import Sample
from oracles.common import agree, each, edge_weights, given, graphs, oracle, random_case

PYG_AGGR = {"sum": "add"}


@oracle("cluster_gcn")
def cluster_gcn(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """PyG where it adds the loops; where it does not, its code fails unless there are n of them: node by node."""
    a, W = given(layer), layer.weight
    if a["add_self_loops"]:
        weights = {"lin_out.weight": W[0].t(), "lin_out.bias": layer.bias, "lin_root.weight": W[1].t()}
        before = torch.get_default_dtype()
        torch.set_default_dtype(x.dtype)  # PyG's degrees have the default dtype, whatever x has
        try:
            return each(pyg.ClusterGCNConv(**a), weights, x, g.edge_index)
        finally:
            torch.set_default_dtype(before)
    rows = []
    for i in range(g.size):
        sources = g.source[g.target == i]
        share = torch.where(sources == i, 1 + a["diag_lambda"], 1.0).to(x.dtype) / max(1, len(sources))
        rows.append(torch.einsum("e,bec->bc", share, x[:, sources]) @ W[0] + x[:, i] @ W[1])
    return torch.stack(rows, 1) + (0 if layer.bias is None else layer.bias)


@oracle("le")
def le(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """With lin1's bias zero; and with a random one, carried by a channel of ones."""
    a, W = given(layer), layer.weight
    weights = {f"lin{t + 1}.weight": W[t].t() for t in range(3)} | {"lin3.bias": layer.bias}
    if a["bias"]:
        weights["lin1.bias"] = torch.zeros_like(layer.bias)
        inner = torch.linspace(-1, 1, a["out_channels"], dtype=x.dtype)
        wider = GConv(operators.le(a["in_channels"] + 1, a["out_channels"]), dtype=x.dtype)
        zero = torch.zeros_like(inner)
        with torch.no_grad():
            wider.weight.copy_(torch.cat([W, torch.stack([inner, zero, zero]).unsqueeze(1)], 1))
            wider.bias.copy_(layer.bias)
            got = wider(torch.cat([x, torch.ones_like(x[..., :1])], -1), g)
            biased = each(pyg.LEConv(**a), weights | {"lin1.bias": inner}, x, g.edge_index, edge_weights(g, x))
            agree(got, biased)
    return each(pyg.LEConv(**a), weights, x, g.edge_index, edge_weights(g, x))


@oracle("gin")
def gin(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    weights = {"eps": layer.eps} if a["train_eps"] else {}
    return each(pyg.GINConv(nn.Identity(), **a), weights, x, g.edge_index)


@oracle("simple")
def simple(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    return each(pyg.SimpleConv(**given(layer)), {}, x, g.edge_index, edge_weights(g, x))


@oracle("directed")
def directed(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """PyG's DirGNNConv; DGL's formula for "both", and the two GCNConv by hand where weights are read."""
    a, W = given(layer), layer.weight
    i, o, alpha, root, bias = a["in_channels"], a["out_channels"], a["alpha"], a["root_weight"], layer.bias
    w = edge_weights(g, x) if a["weighted"] else None
    if a["aggr"] == "both" or w is not None:
        A = x.new_zeros(g.size, g.size).index_put((g.target, g.source), _ones(g, x) if w is None else w, True)
        y = x.new_zeros(*x.shape[:-1], o) if bias is None else bias
        for share, M, matrix in ((1 - alpha, A, W[0]), (alpha, A.t(), W[1])):
            here, there = M.sum(1), M.sum(0)
            if a["aggr"] == "mean":
                M = M * _inverse(here).unsqueeze(1)
            elif a["aggr"] != "sum":
                there = here if a["aggr"] == "gcn" else there
                M = _inverse(here).sqrt().unsqueeze(1) * M * _inverse(there).sqrt()
            y = y + share * M @ x @ matrix
        return y + x @ W[2] if root else y
    convs: dict[str, Callable[[], nn.Module]] = {
        "gcn": lambda: pyg.GCNConv(i, o, bias=False),
        "mean": lambda: pyg.SAGEConv(i, o, bias=False, root_weight=False),
        "sum": lambda: pyg.SAGEConv(i, o, bias=False, root_weight=False, aggr="add"),
    }
    module = pyg.DirGNNConv(convs[a["aggr"]](), alpha, root)
    lin = "lin" if a["aggr"] == "gcn" else "lin_l"
    weights = {f"conv_in.{lin}.weight": W[0].t(), f"conv_out.{lin}.weight": W[1].t()}
    if root:
        weights |= {"lin.weight": W[2].t(), "lin.bias": x.new_zeros(o) if bias is None else bias}
        return each(module, weights, x, g.edge_index)
    y = each(module, weights, x, g.edge_index)
    return y if bias is None else y + bias


def _ones(g: Graph, x: Tensor) -> Tensor:
    return torch.ones(g.num_edges, dtype=x.dtype)


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d > 0, 1 / d.clamp(min=1e-300 if d.dtype == torch.float64 else 1e-30), 0.0)


@oracle("signed")
def signed(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, W, o = given(layer), layer.weight, given(layer)["out_channels"]
    if a["first_aggr"]:
        parts = dict(zip(("pos_l", "neg_l", "pos_r", "neg_r"), W.mT, strict=True))
    else:
        halves = {"pos_l": W[0:2].flatten(0, 1).t(), "neg_l": W[2:4].flatten(0, 1).t()}
        parts = halves | {"pos_r": W[4].t(), "neg_r": W[5].t()}
    weights = {f"lin_{name}.weight": part for name, part in parts.items()}
    if layer.bias is not None:
        weights |= {"lin_pos_r.bias": layer.bias[:o], "lin_neg_r.bias": layer.bias[o:]}
    lists = [g.edge_index[:, g.edge_type == sign] for sign in (0, 1)]
    return each(pyg.SignedConv(**a), weights, x, *lists)


@oracle("relational")
def relational(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """RGCNConv; FastRGCNConv must agree, where it can."""
    a, W = given(layer), layer.weight
    R, g_ = a["num_relations"], a["num_blocks"]
    root = W[-1] if a["root_weight"] else None
    weight = W[: (a["num_bases"] or R)]
    if g_ is not None:
        weight = W[: R * g_].unflatten(0, (R, g_)) if a["root_weight"] else W
        if a["root_weight"]:
            root = torch.cat([torch.cat(list(row), 1) for row in W[R * g_ :].unflatten(0, (g_, g_))])
    weights = {"weight": weight.contiguous(), "root": root, "bias": layer.bias}  # FastRGCNConv wants it so
    if a["num_bases"] is not None:
        weights["comp"] = layer.comp
    a["aggr"] = PYG_AGGR.get(a["aggr"], a["aggr"])
    want = each(pyg.RGCNConv(**a), weights, x, g.edge_index, g.edge_type)
    if a["aggr"] != "max" and g.num_edges:
        fast = each(pyg.FastRGCNConv(**a), weights, x, g.edge_index, g.edge_type)
        agree(fast.to(x.dtype), want)
    return want


@oracle("hypergraph")
def hypergraph(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """The formula, incidence by incidence; on a plain hypergraph PyG must agree with it (its code, not its page)."""
    a, W = given(layer), layer.weight
    m, w = int(g.edge_type.max()) + 1 if g.num_edges else 0, g.weights(x.dtype)
    H = x.new_zeros(m, g.size).index_put((g.edge_type, g.source), _ones(g, x), True)
    middle = torch.einsum("en,bnc->bec", H / H.sum(1, keepdim=True).clamp(min=1), x @ W[0])
    one = w if a["apply_weights"] else _ones(g, x)
    back = x.new_zeros(g.size, m).index_put((g.target, g.edge_type), one, True)
    D = x.new_zeros(g.size).index_add(0, g.target, w)
    y = (_inverse(D).unsqueeze(1) * back) @ middle
    y = y if layer.bias is None else y + layer.bias
    if not a["apply_weights"] and torch.equal(g.source, g.target) and g.num_edges:
        per_edge = x.new_zeros(m).index_copy(0, g.edge_type, w.detach())
        module = pyg.HypergraphConv(a["in_channels"], a["out_channels"], bias=a["bias"])
        index = torch.stack([g.source, g.edge_type])
        theirs = each(module, {"lin.weight": W[0].t(), "bias": layer.bias}, x, index, per_edge)
        agree(theirs, y)
    return y


@oracle("mf")
def mf(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """With its biases all the same; PyG's per-degree biases need a channel of ones."""
    a, W, top = given(layer), layer.weight, given(layer)["max_degree"]
    weights = {f"lins_l.{d}.weight": W[d].t() for d in range(top + 1)}
    weights |= {f"lins_r.{d}.weight": W[top + 1 + d].t() for d in range(top + 1)}
    if a["bias"]:
        weights |= {f"lins_l.{d}.bias": layer.bias for d in range(top + 1)}
        own = torch.arange((top + 1) * a["out_channels"]).to(x.dtype).reshape(top + 1, -1) / 7
        wider = GConv(operators.mf(a["in_channels"] + 1, a["out_channels"], top, bias=False), dtype=x.dtype)
        with torch.no_grad():
            wider.weight.copy_(torch.cat([W, torch.cat([torch.zeros_like(own), own]).unsqueeze(1)], 1))
            got = wider(torch.cat([x, torch.ones_like(x[..., :1])], -1), g)
            theirs = {f"lins_l.{d}.bias": own[d] for d in range(top + 1)}
            want = each(pyg.MFConv(**a), weights | theirs, x, g.edge_index)
            agree(got, want)
    return each(pyg.MFConv(**a), weights, x, g.edge_index)


@oracle("gcn2")
def gcn2(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, W, c = given(layer), layer.weight, given(layer)["channels"]
    a["add_self_loops"] = a["add_self_loops"] and a["normalize"]
    weights = {"weight1": W[0], "weight2": None if a["shared_weights"] else W[1]}
    pairs = [(one[:, :c], one[:, c:]) for one in x]
    module = pyg.GCN2Conv(**a)
    return torch.cat(
        [each(module, weights, now[None], first, g.edge_index, edge_weights(g, x)) for now, first in pairs]
    )


# -- random specs and graphs ---------------------------------------------------------------------------------------


FLAG, AGGR = st.booleans(), st.sampled_from(["mean", "sum", "max"])


def _relational(draw: Any, i: int, o: int) -> Any:
    kind = draw(st.sampled_from(["plain", "bases", "blocks"]))
    if kind == "blocks":
        return operators.relational(2, 4, 3, num_blocks=2, aggr=draw(AGGR), root_weight=draw(FLAG))
    if kind == "bases":
        bases, aggr = draw(st.integers(1, 3)), draw(st.sampled_from(["mean", "sum"]))
        return operators.relational(i, o, draw(st.integers(3, 4)), bases, aggr=aggr, root_weight=draw(FLAG))
    return operators.relational(i, o, 3, aggr=draw(AGGR), root_weight=draw(FLAG), bias=draw(FLAG))


SPECS: dict[str, Callable[[Any, int, int], Any]] = {
    "cluster_gcn": lambda draw, i, o: operators.cluster_gcn(
        i, o, draw(st.sampled_from([0.0, 0.5, -1.0])), draw(FLAG), draw(FLAG)
    ),
    "le": lambda draw, i, o: operators.le(i, o, draw(FLAG)),
    "gin": lambda draw, i, o: operators.gin(draw(st.sampled_from([0.0, -0.5, 2.0])), draw(FLAG)),
    "simple": lambda draw, i, o: operators.simple(
        draw(AGGR), draw(st.sampled_from([None, "sum", "cat", "self_loop"]))
    ),
    "directed": lambda draw, i, o: operators.directed(
        i, o, draw(st.sampled_from(["gcn", "mean", "sum", "both"])), draw(st.sampled_from([0.0, 0.5, 0.75])),
        draw(FLAG), draw(FLAG), draw(FLAG),
    ),
    "signed": lambda draw, i, o: operators.signed(i, o, draw(FLAG), draw(FLAG)),
    "relational": _relational,
    "hypergraph": lambda draw, i, o: operators.hypergraph(i, o, draw(FLAG), draw(FLAG)),
    "mf": lambda draw, i, o: operators.mf(i, o, draw(st.integers(0, 3)), draw(FLAG)),
    "gcn2": lambda draw, i, o: operators.gcn2(
        i, draw(st.sampled_from([0.0, 0.25])), *draw(st.sampled_from([(None, None), (0.5, 3)])),
        draw(FLAG), draw(FLAG), draw(FLAG),
    ),
}  # fmt: skip


@random_case(*SPECS)
def _(draw: Any, name: str) -> Sample:
    i, o = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    graph, spec = draw(graphs()), SPECS[name](draw, i, o)
    if name == "signed":
        graph = Graph(graph.edge_index, graph.size, edge_weight=graph.edge_weight, edge_type=graph.edge_type % 2)
    if name == "hypergraph" and draw(FLAG):
        groups = torch.arange(graph.num_edges) % 3
        sizes = torch.tensor([0.5, 1.0, 2.0]) if draw(FLAG) else None
        graph = Graph.from_hyperedge_index(torch.stack([graph.source, groups]), graph.size, sizes)
    return Sample(spec, lambda: graph, getattr(spec.mixing, "i", i))
