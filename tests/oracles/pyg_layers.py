"""Every PyG layer that gconv converts: how it is made and called, and a comparison with its converted copy."""

import torch
from torch import nn
from torch_geometric import nn as pyg

from gconv import Graph
from gconv.interop import convert
from gconv.interop.converted import Converted
from gconv.operators.shapes import messy, weighted

F64 = torch.float64


def mlp(i, o):
    return nn.Sequential(nn.Linear(i, 5), nn.Tanh(), nn.Linear(5, o))


# name -> layers, each from channels in and out; and which edge tensors its call takes
WEIGHT, ATTR, BARE = "edge_weight", "edge_attr", ""
CASES = {
    "GCNConv": (
        WEIGHT,
        [
            lambda i, o: pyg.GCNConv(i, o),
            lambda i, o: pyg.GCNConv(i, o, improved=True, bias=False),
            lambda i, o: pyg.GCNConv(i, o, add_self_loops=False),
            lambda i, o: pyg.GCNConv(i, o, normalize=False),
            lambda i, o: pyg.GCNConv(i, o, cached=True),
        ],
    ),
    "ChebConv": (
        WEIGHT,
        [
            lambda i, o: pyg.ChebConv(i, o, 3),
            lambda i, o: pyg.ChebConv(i, o, 1, bias=False),
            lambda i, o: pyg.ChebConv(i, o, 4, normalization="rw"),
            lambda i, o: pyg.ChebConv(i, o, 2, normalization=None),
        ],
    ),
    "SAGEConv": (
        BARE,
        [
            lambda i, o: pyg.SAGEConv(i, o),
            lambda i, o: pyg.SAGEConv((i, i), o, aggr="sum", root_weight=False),
            lambda i, o: pyg.SAGEConv(i, o, aggr="max", bias=False),
            lambda i, o: pyg.SAGEConv(i, o, project=True),
            lambda i, o: pyg.SAGEConv(i, o, normalize=True),
            lambda i, o: pyg.SAGEConv(i, o, project=True, root_weight=False, normalize=True),
        ],
    ),
    "GraphConv": (
        WEIGHT,
        [
            lambda i, o: pyg.GraphConv(i, o),
            lambda i, o: pyg.GraphConv(i, o, aggr="mean", bias=False),
            lambda i, o: pyg.GraphConv(i, o, aggr="max"),
        ],
    ),
    "SimpleConv": (
        WEIGHT,
        [
            lambda i, o: pyg.SimpleConv(),
            lambda i, o: pyg.SimpleConv("mean", "sum"),
            lambda i, o: pyg.SimpleConv("max", "cat"),
            lambda i, o: pyg.SimpleConv("mean", "self_loop"),
        ],
    ),
    "GINConv": (BARE, [lambda i, o: pyg.GINConv(mlp(i, o), 0.5), lambda i, o: pyg.GINConv(mlp(i, o), train_eps=True)]),
    "ClusterGCNConv": (
        BARE,
        [
            lambda i, o: pyg.ClusterGCNConv(i, o, 0.5),
            lambda i, o: pyg.ClusterGCNConv(i, o, bias=False),
        ],
    ),
    "LEConv": (WEIGHT, [lambda i, o: pyg.LEConv(i, o), lambda i, o: pyg.LEConv(i, o, bias=False)]),
    "TAGConv": (WEIGHT, [lambda i, o: pyg.TAGConv(i, o), lambda i, o: pyg.TAGConv(i, o, 0, bias=False)]),
    "SGConv": (
        WEIGHT,
        [lambda i, o: pyg.SGConv(i, o, 2), lambda i, o: pyg.SGConv(i, o, 3, add_self_loops=False, bias=False)],
    ),
    "SSGConv": (WEIGHT, [lambda i, o: pyg.SSGConv(i, o, 0.3, 3)]),
    "APPNP": (WEIGHT, [lambda i, o: pyg.APPNP(3, 0.2), lambda i, o: pyg.APPNP(2, 0.1, cached=True)]),
    "LGConv": (WEIGHT, [lambda i, o: pyg.LGConv(), lambda i, o: pyg.LGConv(normalize=False)]),
    "MixHopConv": (
        WEIGHT,
        [lambda i, o: pyg.MixHopConv(i, o), lambda i, o: pyg.MixHopConv(i, o, [3, 1], False, False)],
    ),
    "GATConv": (
        BARE,
        [
            lambda i, o: pyg.GATConv(i, o, 2),
            lambda i, o: pyg.GATConv(i, o, 3, concat=False, add_self_loops=False, bias=False),
            lambda i, o: pyg.GATConv(i, o, 2, residual=True),
            lambda i, o: pyg.GATConv(i, o, 2, concat=False, residual=True),
        ],
    ),
    "GATConv with edges": (
        ATTR,
        [
            lambda i, o: pyg.GATConv(i, o, 2, edge_dim=2),
            lambda i, o: pyg.GATConv(i, o, 2, edge_dim=2, fill_value=0.5),
            lambda i, o: pyg.GATConv(i, o, 1, edge_dim=2, fill_value=torch.tensor([0.5, -1.0], dtype=F64)),
        ],
    ),
    "GATv2Conv": (
        BARE,
        [
            lambda i, o: pyg.GATv2Conv(i, o, 2),
            lambda i, o: pyg.GATv2Conv(i, o, 2, add_self_loops=False, residual=True),
            lambda i, o: pyg.GATv2Conv(i, o, 2, concat=False, share_weights=True, add_self_loops=False),
            lambda i, o: pyg.GATv2Conv(i, o, bias=False),
        ],
    ),
    "GATv2Conv with edges": (ATTR, [lambda i, o: pyg.GATv2Conv(i, o, 2, edge_dim=2, fill_value="max")]),
    "SuperGATConv": (
        BARE,
        [
            lambda i, o: pyg.SuperGATConv(i, o, 2).eval(),
            lambda i, o: pyg.SuperGATConv(i, o, 2, False, attention_type="SD", bias=False).eval(),
        ],
    ),
    "TransformerConv": (
        BARE,
        [
            lambda i, o: pyg.TransformerConv(i, o, 2),
            lambda i, o: pyg.TransformerConv(i, o, 2, concat=False),
            lambda i, o: pyg.TransformerConv(i, o, 2, concat=False, root_weight=False),
            lambda i, o: pyg.TransformerConv(i, o, bias=False),
        ],
    ),
    "AGNNConv": (BARE, [lambda i, o: pyg.AGNNConv(), lambda i, o: pyg.AGNNConv(False, False)]),
    "GMMConv": (ATTR, [lambda i, o: pyg.GMMConv(i, o, 2, 3), lambda i, o: pyg.GMMConv(i, o, 2, 1, bias=False)]),
}

REL, DENSE, TWO = "edge_type", "dense", "two signals"
CASES |= {
    "NNConv": (
        ATTR,
        [lambda i, o: pyg.NNConv(i, o, edge_net(i * o)), lambda i, o: pyg.NNConv(i, o, edge_net(i * o), "mean", False)],
    ),
    "FeaStConv": (
        BARE,
        [lambda i, o: pyg.FeaStConv(i, o, 3), lambda i, o: pyg.FeaStConv(i, o, 2, add_self_loops=False, bias=False)],
    ),
    "GCN2Conv": (
        TWO,
        [
            lambda i, o: pyg.GCN2Conv(i, 0.3),
            lambda i, o: pyg.GCN2Conv(i, 0.2, theta=0.5, layer=2, shared_weights=False, add_self_loops=False),
            lambda i, o: pyg.GCN2Conv(i, 0.2, theta=0.5, layer=1, normalize=False),
        ],
    ),
    "FAConv": (
        TWO,
        [lambda i, o: pyg.FAConv(i), lambda i, o: pyg.FAConv(i, 0.0, add_self_loops=False)],
    ),
    "RGCNConv": (
        REL,
        [
            lambda i, o: pyg.RGCNConv(i, o, 3),
            lambda i, o: pyg.RGCNConv(i, o, 4, num_bases=2, aggr="sum"),
            lambda i, o: pyg.RGCNConv(i, i * 2, 3, num_blocks=3),
            lambda i, o: pyg.RGCNConv(i, i * 2, 3, num_blocks=3, root_weight=False, bias=False),
            lambda i, o: pyg.RGCNConv(i, o, 3, aggr="max", root_weight=False),
        ],
    ),
    "FastRGCNConv": (
        REL,
        [lambda i, o: pyg.FastRGCNConv(i, o, 3), lambda i, o: pyg.FastRGCNConv(i, o, 3, num_bases=2, aggr="add")],
    ),
    "RGATConv": (
        REL,
        [
            lambda i, o: pyg.RGATConv(i, o, 3, heads=2),
            lambda i, o: pyg.RGATConv(i, o, 3, num_bases=2, mod="f-scaled", concat=False, heads=2),
            lambda i, o: pyg.RGATConv(i, 3, 3, num_blocks=3, mod="f-additive", bias=False),
            lambda i, o: pyg.RGATConv(i, o, 3, attention_mechanism="within-relation"),
        ],
    ),
    "SignedConv": (
        "signs",
        [lambda i, o: pyg.SignedConv(i, o, True), lambda i, o: pyg.SignedConv(i, o, True, bias=False)],
    ),
    "SignedConv, second": ("signs, halves", [lambda i, o: pyg.SignedConv(i, o, False)]),
    "MFConv": (BARE, [lambda i, o: pyg.MFConv(i, o, 2), lambda i, o: pyg.MFConv(i, o, 10, bias=False)]),
    "HypergraphConv": ("hyper", [lambda i, o: pyg.HypergraphConv(i, o)]),
    "ARMAConv": (
        WEIGHT,
        [
            lambda i, o: pyg.ARMAConv(i, o, 2, 1, act=None),
            lambda i, o: pyg.ARMAConv(i, o, 2, 3, act=None),
            lambda i, o: pyg.ARMAConv(i, o, 1, 2, shared_weights=True, act=None, bias=False),
        ],
    ),
    "PDNConv": (
        ATTR,
        [lambda i, o: pyg.PDNConv(i, o, 2, 4), lambda i, o: pyg.PDNConv(i, o, 2, 3, normalize=False, bias=False)],
    ),
    "EGConv": (
        BARE,
        [
            lambda i, o: pyg.EGConv(i, 4, num_heads=2, num_bases=3),
            lambda i, o: pyg.EGConv(i, 2, num_heads=1, num_bases=1, add_self_loops=False, bias=False),
        ],
    ),
    "ResGatedGraphConv": (
        BARE,
        [lambda i, o: pyg.ResGatedGraphConv(i, o), lambda i, o: pyg.ResGatedGraphConv(i, o, root_weight=False)],
    ),
    "WLConvContinuous": (WEIGHT, [lambda i, o: pyg.WLConvContinuous()]),
    "DirGNNConv": (
        BARE,
        [
            lambda i, o: pyg.DirGNNConv(pyg.GCNConv(i, o), 0.3),
            lambda i, o: pyg.DirGNNConv(pyg.SAGEConv(i, o), 0.6, root_weight=False),
            lambda i, o: pyg.DirGNNConv(pyg.SAGEConv(i, o, aggr="sum", bias=False)),
        ],
    ),
    "DenseGCNConv": (DENSE, [lambda i, o: pyg.DenseGCNConv(i, o), lambda i, o: pyg.DenseGCNConv(i, o, True, False)]),
    "DenseSAGEConv": (DENSE, [lambda i, o: pyg.DenseSAGEConv(i, o), lambda i, o: pyg.DenseSAGEConv(i, o, True)]),
    "DenseGraphConv": (
        DENSE,
        [lambda i, o, aggr=aggr: pyg.DenseGraphConv(i, o, aggr) for aggr in ("add", "mean", "max")],
    ),
    "DenseGINConv": (DENSE, [lambda i, o: pyg.DenseGINConv(mlp(i, o), 0.5, True)]),
    "DenseGATConv": (DENSE, [lambda i, o: pyg.DenseGATConv(i, o, 2), lambda i, o: pyg.DenseGATConv(i, o, 2, False)]),
    "MeanAggregation": ("parts", [lambda i, o: pyg.MeanAggregation()]),
    "SumAggregation": ("parts", [lambda i, o: pyg.SumAggregation()]),
    "MaxAggregation": ("parts", [lambda i, o: pyg.MaxAggregation()]),
    "Linear": ("signal", [lambda i, o: pyg.Linear(i, o), lambda i, o: pyg.Linear(i, o, bias=False)]),
}


def edge_net(o):
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, o))


def adjacency(graph, batch=2):
    """(b, n, n), weighted; the second of the batch has other weights."""
    A = torch.zeros(graph.size, graph.size, dtype=F64)
    A = A.index_put((graph.target, graph.source), graph.weights(F64), accumulate=True)
    return torch.stack([A * (k + 1) for k in range(batch)])


def typed(graph):
    return torch.arange(graph.num_edges) % 3 if graph.edge_type is None else graph.edge_type % 3


def hyper(graph):
    """Four hyperedges at most, and their weights."""
    weights = graph.weights(F64)[:4].detach() if graph.num_edges > 3 else torch.arange(4, dtype=F64) / 2
    return torch.stack([graph.source, graph.target // 2]), weights


def parts(graph):
    """The part of each node, in order; some parts are empty."""
    if graph.num_edges < graph.size:
        return torch.arange(graph.size) // 2 * 2
    return graph.source.sort().values[: graph.size]


HOW = {
    TWO: lambda layer, x, g: layer(x, torch.cos(x), g.edge_index),
    REL: lambda layer, x, g: layer(x, g.edge_index, typed(g)),
    "signs": lambda layer, x, g: layer(x, g.edge_index[:, ::2], g.edge_index[:, 1::2]),
    "signs, halves": lambda layer, x, g: layer(torch.cat([x, x.cos()], 1), g.edge_index[:, ::2], g.edge_index[:, 1::2]),
    "hyper": lambda layer, x, g: layer(x, *hyper(g)),
    DENSE: lambda layer, x, g: layer(
        torch.stack([x, x.cos()]), adjacency(g), torch.arange(2 * g.size).reshape(2, -1) != 1
    ),
    "parts": lambda layer, x, g: layer(x, parts(g)),
    "signal": lambda layer, x, g: layer(x),
}

BUILDS = [(name, edges, build) for name, (edges, builds) in CASES.items() for build in builds]
IDS = [f"{name}-{k}" for name, (_, builds) in CASES.items() for k in range(len(builds))]


def empty(n):
    return Graph(torch.empty(2, 0, dtype=torch.int64), n, edge_attr=torch.empty(0, 2, dtype=F64))


GRAPHS = {"messy": messy, "weighted": weighted, "no edges": lambda: empty(3), "one node": lambda: empty(1)}


def edge_arguments(graph, edges, plain):
    """The edge tensors of a call, as leaves."""
    if edges == BARE or edges in HOW or (edges == WEIGHT and (plain or graph.edge_weight is None)):
        return {}
    return {edges: getattr(graph, edges).to(F64).clone().requires_grad_()}


def compare(layer, graph, edges, plain=False, tolerance=1e-10):
    """Value and every gradient of a layer and of its converted copy."""
    layer = layer.double()
    twin = convert(layer)
    assert isinstance(twin, Converted) and isinstance(twin, type(layer)), twin.report()
    torch.manual_seed(1)
    x = torch.randn(graph.size, 3, dtype=F64)
    results = []
    for module in (layer, twin):
        leaf = x.clone().requires_grad_()
        given = edge_arguments(graph, edges, plain)
        run = module if module is layer else lambda *a, **k: strictly(twin, *a, **k)
        y = HOW[edges](run, leaf, graph) if edges in HOW else run(leaf, graph.edge_index, **given)
        probe = torch.sin(torch.arange(y.numel(), dtype=F64) + 1).reshape(y.shape)
        wanted = [leaf, *given.values(), *(p for p in module.parameters() if p.requires_grad)]
        grads = torch.autograd.grad((y * probe).sum(), wanted, allow_unused=True)
        results.append([y, *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True))])
    assert results[1][0].stride() == results[0][0].stride()
    for ours, theirs in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    return twin


def strictly(twin, *args, **kwargs):
    """The converted layer; that the peer's own forward ran instead is a failure."""
    y = twin.peer.call(twin, *args, **kwargs)
    assert y is not None, "the call went to PyG"
    return y
