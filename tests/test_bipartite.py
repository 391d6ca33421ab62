"""Two sets of nodes: every law on rectangular domains, PyG's layers on pairs, and what is refused."""

import pickle
from dataclasses import replace

import pytest
import torch
from torch_geometric import nn as pyg
from torch_geometric.data import Data, HeteroData

from gconv import Bipartite, GConv, Graph, Grid, analysis, list_operators
from gconv.laplacian import adjacency
from gconv.operators import (
    agnn, appnp, cheb, conv2d, feast, gat, gatv2, gcn, gin, global_pool, graphconv, le, mf, monet, nnconv, relational,
    resgated, rgat, sage, simple, spline, supergat, transformer, wl_continuous,
)  # fmt: skip
from gconv.spec import OperatorSpec, Sample, operator, reads
from gconv.testing import LAWS, assert_close, law_compile, law_edge_cases, law_transforms

SLOW = (law_transforms, law_edge_cases)  # seconds in all


def _carrying(index, sizes):
    e = index.shape[1]
    attr = torch.stack([torch.linspace(0, 1, e), torch.linspace(1, 0, e) ** 2], 1).double()
    weight = torch.linspace(0.25, 1.75, e, dtype=torch.float64)
    return Bipartite(index, sizes, edge_weight=weight, edge_attr=attr, edge_type=torch.arange(e) % 3)


def wide():
    """More sources than targets, one of each without edges, a double edge, edges i -> i."""
    return _carrying(torch.tensor([[0, 1, 1, 4, 3, 2, 2, 4, 4], [0, 1, 0, 1, 2, 2, 2, 0, 0]]), (6, 4))


def tall():
    """More targets than sources, two targets without edges."""
    return _carrying(torch.tensor([[0, 1, 1, 2, 0, 0], [1, 1, 4, 3, 3, 0]]), (3, 5))


SPECS = [
    simple(), simple("mean"), simple("max"), simple("sum", "cat"), simple("mean", "sum"),
    sage(2, 3), sage(2, 3, "max"), sage(2, 3, root_weight=False), sage((2, 1), 3, "sum"),
    graphconv(2, 3), graphconv((1, 2), 2, "mean"), gcn(2, 3, normalize=False),
    gin(0.5), gin(0.5, True), wl_continuous(), le(2, 3), mf(2, 3, max_degree=2),
    relational(2, 3, 3), relational(2, 3, 3, num_bases=2), relational(2, 2, 3, num_blocks=2),
    relational(2, 3, 3, aggr="max", root_weight=False),
    nnconv(2, 3, 2, 2), monet(2, 3, 2, 2), spline(2, 3, 2, 3), spline(2, 2, 2, 3, root_weight=False),
    resgated(2, 3), feast(2, 3, 2), feast(2, 3, 2, add_self_loops=False),
    transformer(2, 3, 2), transformer((2, 1), 3, 2, concat=False), transformer(2, 2, root_weight=False),
    gat(2, 3, 2), gat(2, 3, 2, residual=True, edge_dim=2, share_weights=False),
    gat(2, 3, 2, concat=False, residual=True, add_self_loops=False),
    gatv2(2, 3, 2, residual=True, edge_dim=2), gatv2(2, 3, 2, share_weights=True, concat=False),
    agnn(), supergat(2, 3, 2), rgat(2, 3, 3, heads=2),
]  # fmt: skip


def samples(spec):
    return [Sample(spec, domain, max(spec.sides or (2, 2))) for domain in (wide, tall)]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_laws_hold_between_two_sets(spec):
    """The quick ones, half of the operators on either domain."""
    for law in LAWS.values():
        if law not in SLOW:
            law(samples(spec)[SPECS.index(spec) % 2], torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_all_laws_hold_between_two_sets(spec, dtype):
    for sample in samples(spec):
        for law in LAWS.values():
            law(sample, dtype)


@pytest.mark.parametrize("spec", [sage(2, 3), simple("max", "cat"), gat(2, 3, 2, residual=True), relational(2, 3, 3)], ids=repr)
def test_compiled_equals_eager(spec):
    assert law_compile(samples(spec)[0], torch.float64)


@pytest.mark.parametrize("spec", [sage(2, 3), sage(2, 3, "max"), gat(2, 3, 2), gatv2(2, 3, 2, edge_dim=2), le(2, 3), nnconv(2, 3, 2, 2)], ids=repr)
@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_nothing_has_gradients_too(spec, sizes):
    """No sources, no targets, no edges; and no signals in the batch."""
    e = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    u = torch.zeros(0, 2, dtype=torch.float64, requires_grad=True)
    block = Bipartite(torch.zeros(2, 0, dtype=torch.int64), sizes, edge_weight=e, edge_attr=u)
    layer = GConv(spec, dtype=torch.float64)
    for batch in ((),):
        if batch and spec.structure.kind == "adaptive" and 0 in sizes:
            continue
        pair = [torch.randn(*batch, n, 2, dtype=torch.float64, requires_grad=True) for n in sizes]
        y = layer(tuple(pair), block)
        assert y.shape[:-1] == (*batch, sizes[1])
        grads = torch.autograd.grad(y.sum(), [*pair, *layer.parameters(), e, u], allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in grads)


# -- PyG ---------------------------------------------------------------------------------------------------------------


def rows(W):
    """(h, i, c) as torch's Linear has it, (h c, i)."""
    return W.transpose(1, 2).flatten(0, 1)


def lin(name, W):
    return {f"{name}.weight": W.t()}


def gat_weights(l, residual=True):
    h = l.spec.structure.heads
    shared = not hasattr(l, "target_weight")
    names = {"lin.weight": rows(l.weight[:h])} if shared else {"lin_src.weight": rows(l.weight[:h]), "lin_dst.weight": rows(l.target_weight)}
    names |= {"att_src": l.att_src[None], "att_dst": l.att_dst[None], "bias": l.bias}
    return names | ({"res.weight": rows(l.weight[h:])} if residual else {})


def gatv2_weights(l):
    h, zero = l.spec.structure.heads, torch.zeros_like(l.shift.flatten())
    return {
        "lin_l.weight": rows(l.weight[:h]), "lin_r.weight": rows(l.target_weight), "lin_l.bias": zero,
        "lin_r.bias": l.shift.flatten(), "att": l.att[None], "lin_edge.weight": rows(l.lin_edge), "bias": l.bias,
    }  # fmt: skip


def transformer_weights(l):
    h, zero = l.spec.structure.heads, torch.zeros_like(l.query_bias.flatten())
    return {
        "lin_query.weight": rows(l.query), "lin_query.bias": l.query_bias.flatten(), "lin_key.weight": rows(l.key),
        "lin_key.bias": zero, "lin_value.weight": rows(l.weight[:h]), "lin_value.bias": zero,
        "lin_skip.weight": rows(l.weight[h:]), "lin_skip.bias": l.bias,
    }  # fmt: skip


def resgated_weights(l):
    o, zero = l.spec.structure.o, torch.zeros_like(l.gate)
    return {
        "lin_key.weight": l.key, "lin_key.bias": l.gate, "lin_query.weight": l.query, "lin_query.bias": zero,
        "lin_value.weight": rows(l.weight[:o]), "lin_value.bias": zero, "lin_skip.weight": rows(l.weight[o:]), "bias": l.bias,
    }  # fmt: skip


W, U, R = "edge_weight", "edge_attr", "edge_type"
EDGES = lambda spec: torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, spec))  # noqa: E731
# (operator, PyG's layer, its parameters from ours, the edge tensor of its call, whether it takes no x_target)
PEERS = [
    (sage((2, 4), 3), lambda: pyg.SAGEConv((2, 4), 3), lambda l: lin("lin_l", l.weight[0]) | {"lin_l.bias": l.bias} | lin("lin_r", l.weight[1]), None, True),
    (sage(2, 3, "max"), lambda: pyg.SAGEConv(2, 3, "max"), lambda l: lin("lin_l", l.weight[0]) | {"lin_l.bias": l.bias} | lin("lin_r", l.weight[1]), None, True),
    (sage(2, 3, root_weight=False), lambda: pyg.SAGEConv(2, 3, root_weight=False), lambda l: lin("lin_l", l.weight[0]) | {"lin_l.bias": l.bias}, None, True),
    (graphconv((4, 2), 3), lambda: pyg.GraphConv((4, 2), 3), lambda l: lin("lin_rel", l.weight[0]) | {"lin_rel.bias": l.bias} | lin("lin_root", l.weight[1]), W, True),
    (graphconv(2, 3, "mean"), lambda: pyg.GraphConv(2, 3, "mean"), lambda l: lin("lin_rel", l.weight[0]) | {"lin_rel.bias": l.bias} | lin("lin_root", l.weight[1]), W, True),
    (gin(0.5, True), lambda: pyg.GINConv(torch.nn.Identity(), 0.5, True), lambda l: {"eps": l.eps}, None, True),
    (simple("mean", "sum"), lambda: pyg.SimpleConv("mean", "sum"), lambda l: {}, W, True),
    (simple("sum", "cat"), lambda: pyg.SimpleConv("sum", "cat"), lambda l: {}, W, False),
    (wl_continuous(), lambda: pyg.WLConvContinuous(), lambda l: {}, W, False),
    (le((2, 3), 2, bias=False), lambda: pyg.LEConv((2, 3), 2, bias=False), lambda l: lin("lin1", l.weight[0]) | lin("lin2", l.weight[1]) | lin("lin3", l.weight[2]), W, False),
    (mf((3, 2), 2, 2, bias=False), lambda: pyg.MFConv((3, 2), 2, 2, bias=False), lambda l: {k: v for n in range(6) for k, v in lin(f"lins_{'lr'[n // 3]}.{n % 3}", l.weight[n]).items()}, None, True),
    (relational((2, 4), 3, 3), lambda: pyg.RGCNConv((2, 4), 3, 3), lambda l: {"weight": l.weight[:3], "root": l.weight[3], "bias": l.bias}, R, False),
    (nnconv((2, 4), 3, 2, 3), lambda: pyg.NNConv((2, 4), 3, EDGES(6)), lambda l: {"nn.0.weight": l.w1, "nn.0.bias": l.b1, "nn.2.weight": l.weight[:3].flatten(1).t(), "nn.2.bias": l.weight[3].flatten(), "bias": l.bias} | lin("lin", l.weight[4]), U, True),
    (monet((2, 4), 3, 2, 3), lambda: pyg.GMMConv((2, 4), 3, 2, 3), lambda l: {"g": l.weight[:3].transpose(0, 1).flatten(1), "mu": l.mu, "sigma": l.sigma, "bias": l.bias} | lin("root", l.weight[3]), U, True),
    (resgated((2, 4), 3), lambda: pyg.ResGatedGraphConv((2, 4), 3), resgated_weights, None, False),
    (feast(2, 3, 2), lambda: pyg.FeaStConv(2, 3, 2), lambda l: {"lin.weight": rows(l.weight), "u.weight": l.u, "c": l.c, "bias": l.bias}, None, False),
    (transformer((2, 4), 3, 2), lambda: pyg.TransformerConv((2, 4), 3, 2), transformer_weights, None, False),
    (gat(2, 3, 2, residual=True), lambda: pyg.GATConv(2, 3, 2, residual=True), gat_weights, None, True),
    (gat((2, 4), 3, 2, share_weights=False, residual=True), lambda: pyg.GATConv((2, 4), 3, 2, residual=True), gat_weights, None, True),
    (gat((2, 4), 3, 2, share_weights=False, add_self_loops=False), lambda: pyg.GATConv((2, 4), 3, 2, add_self_loops=False), lambda l: gat_weights(l, False), None, False),
    (gatv2((2, 4), 3, 2, edge_dim=2), lambda: pyg.GATv2Conv((2, 4), 3, 2, edge_dim=2), gatv2_weights, U, False),
]  # fmt: skip


def narrowed(layer, w, want):
    """Without the rows for channels of the other side."""
    return w[tuple(map(slice, want))]


@pytest.mark.parametrize("make", [wide, tall])
@pytest.mark.parametrize(("spec", "other", "weights", "carries", "alone"), PEERS, ids=lambda p: repr(p) if isinstance(p, OperatorSpec) else "")
def test_pyg_says_the_same_of_pairs(spec, other, weights, carries, alone, make):
    """Value, and gradients in both signals and in edge weights; and with x_target None, where PyG takes it."""
    if spec.name == "feast" and make is tall:
        pytest.skip("PyG's FeaStConv adds a loop to every target, and fails where there are more of them than sources")
    block, (a, b) = make(), spec.sides or (2, 2)
    layer, peer = GConv(spec, dtype=torch.float64), other().double()
    if layer.bias is not None:
        torch.nn.init.uniform_(layer.bias, -1, 1)
    own = dict(peer.named_parameters())
    given = {name: w.detach() for name, w in weights(layer).items()}
    if spec.name == "monet":
        given["g"] = layer.weight[:3, : spec.sides[0]].transpose(0, 1).flatten(1).detach()
    if spec.name == "nnconv":
        given["nn.2.weight"] = layer.weight[:3, : spec.sides[0]].flatten(1).t().detach()
        given["nn.2.bias"] = layer.weight[3, : spec.sides[0]].flatten().detach()
    assert set(given) == set(own)
    for name, p in own.items():
        p.data.copy_(given[name][tuple(slice(n) for n in p.shape)])
    xs, xt = (torch.randn(n, c, dtype=torch.float64, requires_grad=True) for n, c in zip(block.sizes, (a, b), strict=True))
    tensor = getattr(block, carries) if carries else None
    leaves = [xs, xt]
    if carries in (W, U):
        tensor = tensor.clone().requires_grad_()
        leaves.append(tensor)
        block = replace(block, **{carries: tensor})
    extra = () if carries is None else (tensor,)
    plain = block if carries else replace(block, edge_weight=None)
    got, want = layer((xs, xt), plain), peer((xs, xt), block.edge_index, *extra)
    assert_close("value", got, want, 1e-12)
    dy = torch.randn_like(want)
    grads = [torch.autograd.grad((y * dy).sum(), leaves, allow_unused=True, materialize_grads=True) for y in (got, want)]
    for name, g, w in zip(("x_source", "x_target", carries), *grads, strict=False):
        assert_close(f"gradient in {name}", g, w, 1e-12)
    if carries is None:
        assert_close("an edge_index instead", layer((xs, xt), block.edge_index), want, 1e-12)
    else:
        assert_close("an edge_index instead", layer((xs, xt), block.edge_index, **{carries: tensor}), want, 1e-12)
    if alone:
        size = {} if spec.name == "monet" and False else {"size": block.sizes}
        assert_close("no x_target", layer((xs, None), plain), peer((xs, None), block.edge_index, *extra, **size), 1e-12)
