"""Converted PyG layers in the ways that users call them: graph after graph, in place, under autocast, sparse."""

import importlib
import inspect
import pkgutil
import random

import pytest
import torch
import torch_geometric.nn
from oracles.pyg_layers import (
    ATTR,
    BARE,
    BUILDS,
    CASES,
    F64,
    HOW,
    IDS,
    REL,
    TWO,
    WEIGHT,
    edge_arguments,
    edge_net,
    mlp,
    strictly,
)
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric import nn as pyg

from gconv import Graph, InputError
from gconv.interop import convert
from gconv.interop.converted import Converted, explained
from gconv.interop.peers import known
from gconv.interop.pyg import PEERS, common
from gconv.operators.shapes import messy

FIRST = {name: builds[0] for name, (_, builds) in CASES.items()}
# every class in the quick suite, every set of options in the slow one
MARKED = [
    pytest.param(name, edges, build, id=id, marks=[] if build is FIRST[name] else pytest.mark.slow)
    for (name, edges, build), id in zip(BUILDS, IDS, strict=True)
]
EVERY = pytest.mark.parametrize(("name", "edges", "build"), MARKED)


def call(layer, x, graph, edges):
    """The value of a call and its gradients in the signal, the edges and the parameters."""
    leaf = x.clone().requires_grad_()
    given = edge_arguments(graph, edges, plain=False)
    y = HOW[edges](layer, leaf, graph) if edges in HOW else layer(leaf, graph.edge_index, **given)
    wanted = [leaf, *given.values(), *(p for p in layer.parameters() if p.requires_grad)]
    probe = torch.sin(torch.arange(y.numel(), dtype=y.dtype) + 1).reshape(y.shape)
    grads = torch.autograd.grad((y * probe).sum(), wanted, allow_unused=True)
    return [y.detach(), *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True))]


def alike():
    """Graphs of one size: other edges, other numbers and labels on the same edges, then the first again."""
    first = messy()
    turned = Graph(first.edge_index.flip(0), 6, first.edge_weight, first.edge_attr, first.edge_type)
    other = (value.flip(0) for value in (first.edge_weight, first.edge_attr, first.edge_type))
    return [first, turned, Graph(first.edge_index, 6, *other), messy()]


# -- graph after graph ---------------------------------------------------------------------------------------------


def check_alternating(name, edges, build):
    torch.manual_seed(0)
    layer = build(3, 2).double()
    twin = convert(layer)
    x = torch.randn(6, 3, dtype=F64)
    tolerance = 1e-7 if name == "ClusterGCNConv" else 1e-10  # PyG counts its degrees in single precision
    for training in (True, False):
        if name != "SuperGATConv":  # draws edges in training
            layer.train(training), twin.train(training)
        for graph in alike():
            for ours, theirs in zip(call(twin, x, graph, edges), call(layer, x, graph, edges), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.sampled(3)
@EVERY
def test_graphs_of_equal_size_in_turn(name, edges, build):
    check_alternating(name, edges, build)


def test_a_layer_that_keeps_the_first_graph_is_detected(monkeypatch):
    """Negative control."""
    for module in (common, importlib.import_module("gconv.interop.pyg.edges")):
        monkeypatch.setattr(module, "same_graph", lambda layer, graph: vars(layer).setdefault("_last_graph", graph))
    for name in ("HypergraphConv", "SignedConv"):
        case = next(case for case in BUILDS if case[0] == name)
        with pytest.raises(AssertionError):
            check_alternating(*case)


# -- which classes -------------------------------------------------------------------------------------------------


def test_classes_are_known_by_identity():
    """PyG has several classes called Linear; only those that `PEERS` names are converted."""
    for module in pkgutil.walk_packages(torch_geometric.nn.__path__, "torch_geometric.nn."):
        try:
            found = vars(importlib.import_module(module.name)).values()
        except ImportError:  # of a package that is not installed
            continue
        for cls in found:
            if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__.startswith("torch_geometric"):
                assert (known(cls) is not None) == (cls in PEERS), cls


def test_modules_that_hold_classes_of_the_same_name():
    torch.manual_seed(0)
    edge_index = messy().edge_index
    layer = pyg.DNAConv(8, heads=2, groups=2)
    x = torch.randn(6, 3, 8)
    torch.testing.assert_close(convert(layer)(x, edge_index), layer(x, edge_index))
    assert str(convert(pyg.GPSE()).report())

    class Linear(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    for cls in (Linear, type("GCNConv", (Linear,), {})):
        assert not isinstance(convert(cls(3, 2)), Converted)


# -- the forms of a call -------------------------------------------------------------------------------------------

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR"),
]


def seed():
    torch.manual_seed(3)
    random.seed(3)


def outcome(layer, run, x):
    """Every tensor of the output, and the gradients of the first in the signal and the parameters."""
    seed()
    leaf = x.clone().requires_grad_()
    out = run(leaf)
    y, *rest = out if isinstance(out, tuple) else (out,)
    probe = torch.sin(torch.arange(y.numel(), dtype=y.dtype) + 1).reshape(y.shape)
    wanted = [leaf, *(p for p in layer.parameters() if p.requires_grad)]
    grads = torch.autograd.grad((y * probe).sum(), wanted, allow_unused=True)
    zeroed = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)]
    return [y, *(part for pair in rest for part in pair), *zeroed]


def check_form(layer, call, x, tolerance=1e-10):
    """A call of a converted layer runs in gconv, and gives what the layer itself gives."""
    layer = layer.double()
    twin = convert(layer)
    theirs = outcome(layer, lambda leaf: call(layer, leaf), x)
    ours = outcome(twin, lambda leaf: call(lambda *a, **k: strictly(twin, *a, **k), leaf), x)
    for a, b in zip(ours, theirs, strict=True):
        assert a.layout == b.layout
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def adjacency(edge_index, values, layout):
    """PyG's adj_t: rows are targets."""
    adj = torch.sparse_coo_tensor(edge_index.flip(0), values, (6, 6, *values.shape[1:])).coalesce()
    return adj if layout == "coo" else adj.to_sparse_csr()


SIMPLE = torch.tensor([[0, 1, 1, 2, 3, 4, 2], [1, 0, 2, 3, 0, 1, 4]])
LOOPS = torch.tensor([[0, 1, 1, 2, 3, 4, 2, 2, 5], [1, 0, 2, 3, 0, 1, 4, 2, 5]])
REFUSED = {
    "ChebConv",
    "GMMConv",
    "NNConv",
    "RGCNConv",
    "RGATConv",
    "MFConv",
    "ARMAConv",
    "WLConvContinuous",
    "DirGNNConv",
}
SPARSE = [
    (name, edges, builds[0])
    for name, (edges, builds) in CASES.items()
    if edges in ("edge_weight", "", "two signals", "edge_attr", "edge_type")
    and not name.endswith("with edges")
    and name not in REFUSED  # by PyG itself
]


@pytest.mark.parametrize(("name", "edges", "build"), SPARSE, ids=[case[0] for case in SPARSE])
def test_sparse_adjacencies(name, edges, build):
    """COO and CSR, with values and with ones, without loops and with some."""
    torch.manual_seed(0)
    x, layer = torch.randn(6, 3, dtype=F64), build(3, 2)
    for k, layout in enumerate(("coo", "csr")):
        edge_index = (SIMPLE, LOOPS)[k]
        count = edge_index.shape[1]
        values = torch.linspace(0.5, 2, count, dtype=F64)
        if edges == REL:
            values = torch.arange(count) % 3
        elif name in ("FAConv", "ClusterGCNConv"):  # weights are not theirs
            values = torch.ones(count, dtype=F64)
            edge_index = SIMPLE if name == "FAConv" else edge_index
        adj = adjacency(edge_index, values[: edge_index.shape[1]], layout)
        if name == "ClusterGCNConv":  # PyG counts its degrees in single precision
            torch.testing.assert_close(convert(layer)(x.float(), adj.float()), layer(x.float(), adj.float()))
            continue
        check_form(layer, lambda m, leaf, adj=adj: m(leaf, leaf.cos(), adj) if edges == TWO else m(leaf, adj), x)


@pytest.mark.parametrize("name", ["GMMConv", "NNConv"])
def test_adjacencies_whose_values_are_attributes(name):
    x, layer = torch.randn(6, 3, dtype=F64), CASES[name][1][0](3, 2)
    attributes = torch.linspace(0.2, 1, 7 * (layer.dim if name == "GMMConv" else layer.nn[0].in_features), dtype=F64)
    adj = adjacency(SIMPLE, attributes.view(7, -1), "coo")
    check_form(layer, lambda m, leaf: m(leaf, adj), x)


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_signs_as_adjacencies(layout):
    x, layer = torch.randn(6, 3, dtype=F64), pyg.SignedConv(3, 2, first_aggr=True)
    ones = torch.ones(7, dtype=F64)
    pos, neg = adjacency(SIMPLE, ones, layout), adjacency(SIMPLE.flip(0), ones, layout)
    check_form(layer, lambda m, leaf: m(leaf, pos, neg), x)
    check_form(layer, lambda m, leaf: m((leaf, leaf.sin()), pos, neg), x)
    layer, weights = layer.double(), adjacency(SIMPLE, 2 * ones, layout)
    torch.testing.assert_close(convert(layer)(x, weights, neg), layer(x, weights, neg))  # PyG's own forward


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name", [name for name, (edges, _) in CASES.items() if edges in (ATTR, "edge_weight", "", REL)]
)
def test_edge_index_objects(name):
    edges, builds = CASES[name]
    torch.manual_seed(0)
    graph, x = messy(), torch.randn(6, 3, dtype=F64)
    edge_index = EdgeIndex(graph.edge_index, sparse_size=(6, 6))
    more = () if edges in ("", "edge_weight") else (graph.edge_attr if edges == ATTR else graph.edge_type,)
    tolerance = 1e-7 if name == "ClusterGCNConv" else 1e-10
    check_form(builds[0](3, 2), lambda m, leaf: m(leaf, edge_index, *more), x, tolerance)


def test_an_adjacency_that_is_changed_in_place_is_read_again():
    x, adj = torch.randn(6, 3), adjacency(SIMPLE, torch.ones(7), "csr")
    layer = pyg.GraphConv(3, 2)
    twin = convert(layer)
    for change in (
        lambda: None,
        lambda: adj.values().mul_(2),
        lambda: adj.col_indices().copy_((adj.col_indices() + 1) % 6),
    ):
        change()
        torch.testing.assert_close(twin(x, adj), layer(x, adj))


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_signals(layout):
    x = torch.randn(6, 3, dtype=F64).relu()
    x = x.to_sparse() if layout == "coo" else x.to_sparse_csr()
    g = messy()
    for layer, *more in (
        (pyg.GCNConv(3, 2), g.edge_weight),
        (pyg.GATv2Conv(3, 2, 2),),
        (pyg.TransformerConv(3, 2, 2),),
        (pyg.FeaStConv(3, 2, 2),),
        (pyg.EGConv(3, 4, num_heads=2),),
        (pyg.PDNConv(3, 2, 2, 4), g.edge_attr),
        (pyg.SAGEConv(3, 2, project=True),),
    ):
        twin = convert(layer.double())
        torch.testing.assert_close(strictly(twin, x, g.edge_index, *more), layer(x.to_dense(), g.edge_index, *more))
    for linear in (pyg.Linear(3, 2).double(), nn.Linear(3, 2).double()):
        torch.testing.assert_close(convert(linear)(x), linear(x))


ATTENTION = [
    *(
        (f"{name}-{k}", build)
        for name in ("GATConv", "GATv2Conv", "TransformerConv")
        for k, build in enumerate(CASES[name][1])
    ),
    *((f"{name} with edges", CASES[f"{name} with edges"][1][0]) for name in ("GATConv", "GATv2Conv")),
    ("FAConv", CASES["FAConv"][1][0]),
    ("RGATConv", CASES["RGATConv"][1][0]),
    ("GATConv, dropout", lambda i, o: pyg.GATConv(i, o, 2, dropout=0.5).eval()),
]


@pytest.mark.parametrize(
    ("name", "build"),
    [
        pytest.param(*case, id=case[0], marks=pytest.mark.slow if case[0][-2:] in ("-1", "-2", "-3") else [])
        for case in ATTENTION
    ],
)
def test_attention_weights_are_returned(name, build):
    """In PyG's order, as an edge_index and as the values of a sparse adjacency."""
    torch.manual_seed(0)
    graph, x, layer = messy(), torch.randn(6, 3, dtype=F64), build(3, 2)
    more = (graph.edge_attr,) if "edges" in name else (graph.edge_type,) if name == "RGATConv" else ()
    forms = [graph.edge_index, torch.empty(2, 0, dtype=torch.int64)]
    if name == "FAConv" or not more:
        forms += [
            adjacency(SIMPLE if name == "FAConv" else LOOPS, torch.ones(7 if name == "FAConv" else 9).double(), w)
            for w in ("coo", "csr")
        ]
    else:
        forms = forms[:1]
    for edge_index in forms:
        for asked in (True, False):

            def call(m, leaf, edge_index=edge_index, asked=asked):
                signals = (leaf, leaf.cos()) if name == "FAConv" else (leaf,)
                return m(*signals, edge_index, *more, return_attention_weights=asked)

            check_form(layer, call, x)


def test_attention_weights_in_training():
    """The output is made with the weights that are returned; TransformerConv returns them before dropout."""
    x, edge_index = torch.randn(6, 3), messy().edge_index
    for layer in (pyg.GATConv(3, 2, dropout=0.5, bias=False), pyg.GATv2Conv(3, 2, dropout=0.5, bias=False)):
        y, (edges, alpha) = convert(layer)(x, edge_index, return_attention_weights=True)
        values = (layer.lin if hasattr(layer, "lin") else layer.lin_l)(x)
        made = torch.zeros_like(y).index_add(0, edges[1], alpha * values[edges[0]])
        torch.testing.assert_close(y, made)
        assert (alpha == 0).any()
    layer = pyg.TransformerConv(3, 2, dropout=0.5)
    ours = convert(layer)(x, edge_index, return_attention_weights=True)[1][1]
    torch.testing.assert_close(ours, layer(x, edge_index, return_attention_weights=True)[1][1])


@pytest.mark.parametrize("build", [pyg.RGCNConv, pyg.FastRGCNConv])
@pytest.mark.parametrize("ids", [None, torch.tensor([2, 0, 1, 3, 5, 4])], ids=["none", "ids"])
def test_nodes_without_features(build, ids):
    if build is pyg.FastRGCNConv and ids is not None:
        return  # it reads the embedding of each node's place, not of its number
    g, x = messy(), torch.zeros(6, 1, dtype=F64)
    options = [{}, {"num_bases": 2, "aggr": "sum"}, {"root_weight": False, "bias": False}]
    for more in options + [{"aggr": "max"}] * (build is pyg.RGCNConv):
        check_form(build(6, 2, 3, **more), lambda m, leaf: m(ids, g.edge_index, g.edge_type), x)
    blocks = build(6, 2, 3, num_blocks=2)
    with pytest.raises(ValueError, match="non-continuous"):
        convert(blocks)(ids, g.edge_index, g.edge_type)


@pytest.mark.parametrize("normalization", ["sym", "rw", None])
def test_a_largest_eigenvalue_for_each_graph(normalization):
    x = torch.randn(6, 3, dtype=F64)
    batch = torch.tensor([0, 0, 0, 1, 1, 1])
    edge_index = torch.tensor([[0, 1, 1, 2, 3, 4, 5], [1, 0, 2, 1, 4, 3, 4]])
    top = torch.tensor([1.5, 2.5], dtype=F64)
    layer = pyg.ChebConv(3, 2, 3, normalization=normalization)
    for weight in (None, torch.linspace(0.5, 2, 7, dtype=F64)):
        check_form(layer, lambda m, leaf, w=weight: m(leaf, edge_index, w, batch, top), x)
    for module in (layer, convert(layer)):
        leaf = torch.tensor(2.5, dtype=F64, requires_grad=True)
        module(x, edge_index, lambda_max=leaf).square().sum().backward()
        if module is layer:
            wanted = leaf.grad
    torch.testing.assert_close(leaf.grad, wanted)


def test_supergat_in_training():
    """The output, and the logits and labels of its loss."""
    torch.manual_seed(0)
    x, edge_index = torch.randn(6, 3, dtype=F64), messy().edge_index
    for layer in (
        pyg.SuperGATConv(3, 2, 2, edge_sample_ratio=0.5),
        pyg.SuperGATConv(3, 2, 2, False, attention_type="SD", add_self_loops=False),
    ):

        def call(m, leaf):
            y = m(leaf, edge_index)
            inner = m if isinstance(m, nn.Module) else m.__closure__[0].cell_contents
            return y, (inner.att_x, inner.att_y, inner.get_attention_loss())

        check_form(layer, call, x)


def test_dropout_of_edges_in_propagation():
    """APPNP drops edges at every step, of those that are left; the seed gives PyG's numbers."""
    g, x = messy(), torch.randn(6, 3, dtype=F64)
    for weight in (g.edge_weight, None):
        check_form(pyg.APPNP(3, 0.1, dropout=0.5), lambda m, leaf, w=weight: m(leaf, g.edge_index, w), x)


def test_a_filtered_signal_that_is_kept():
    """SGConv and SSGConv with cached=True keep what the first signal gave, until reset_parameters."""
    g, x = messy(), torch.randn(6, 3, dtype=F64)
    for layer in (pyg.SGConv(3, 2, 2, cached=True).double(), pyg.SSGConv(3, 2, 0.3, 2, cached=True).double()):
        twin = convert(layer)
        for signal, edge_index in ((x, g.edge_index), (x.cos(), SIMPLE), (x[:2], SIMPLE)):
            torch.testing.assert_close(strictly(twin, signal, edge_index), layer(signal, edge_index))
        for each in (layer, twin):
            torch.manual_seed(1)
            each.reset_parameters()
        torch.testing.assert_close(twin(x.cos(), SIMPLE), layer(x.cos(), SIMPLE))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("grad", [True, pytest.param(False, marks=pytest.mark.slow)])
@EVERY
def test_outputs_are_changed_in_place(name, edges, build, grad):
    """In-place operations work on every output, and change neither the next call nor a gradient."""
    if name == "MaxAggregation":
        return  # PyG's own output is a view of autograd's
    torch.manual_seed(0)
    layer, graph, x = build(3, 2).double(), messy(), torch.randn(6, 3, dtype=F64)
    more = {} if edges in HOW or edges == BARE else {edges: getattr(graph, edges)}
    results = []
    for module in (layer, convert(layer)):
        leaf, outputs = x.clone().requires_grad_(grad), []
        for change in (torch.relu_, lambda y: y.mul_(2), lambda y: y.add_(1)):
            y = HOW[edges](module, leaf, graph) if edges in HOW else module(leaf, graph.edge_index, **more)
            outputs.append(change(y))
        if grad:
            outputs += torch.autograd.grad(sum(y.sin().sum() for y in outputs), leaf)
        results.append(outputs)
    tolerance = 1e-7 if name == "ClusterGCNConv" else 1e-10
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("build", [pyg.GATConv, pyg.GATv2Conv])
def test_attention_without_the_edge_features_that_it_could_read(build):
    x = torch.randn(6, 3, dtype=F64)
    for more in ({}, {"fill_value": 0.5, "concat": False}):
        check_form(build(3, 2, 2, edge_dim=2, **more), lambda m, leaf: m(leaf, LOOPS), x)


# -- two sets of nodes ---------------------------------------------------------------------------------------------

ACROSS = torch.tensor([[0, 1, 1, 4, 3, 2, 2, 4, 5], [0, 1, 0, 1, 2, 2, 0, 0, 3]])  # 6 sources, 4 targets
PAIRS = [  # a layer of channels i (one number or a pair), what its edges carry, and whether a target may be missing
    (lambda i: pyg.SAGEConv(i, 2), "", True),
    (lambda i: pyg.SAGEConv(i, 2, aggr="max", bias=False), "", True),
    (lambda i: pyg.SAGEConv(i, 2, root_weight=False), "", True),
    (lambda i: pyg.SAGEConv(i, 2, project=True, normalize=True), "", True),
    (lambda i: pyg.GraphConv(i, 2), "edge_weight", True),
    (lambda i: pyg.GraphConv(i, 2, aggr="max"), "edge_weight", True),
    (lambda i: pyg.LEConv(i, 2), "edge_weight", False),
    (lambda i: pyg.LEConv(i, 2, bias=False), "edge_weight", False),
    (lambda i: pyg.MFConv(i, 2, 2), "", True),
    (lambda i: pyg.GATConv(i, 2, 2), "", True),
    (lambda i: pyg.GATConv(i, 2, 2, concat=False, residual=True, add_self_loops=False), "", True),
    (lambda i: pyg.GATConv(i, 2, edge_dim=2), ATTR, True),
    (lambda i: pyg.GATv2Conv(i, 2, 2), "", False),
    (lambda i: pyg.GATv2Conv(i, 2, 2, residual=True, bias=False), "", False),
    (lambda i: pyg.GATv2Conv(i, 2, edge_dim=2), ATTR, False),
    (lambda i: pyg.TransformerConv(i, 2, 2), "", False),
    (lambda i: pyg.TransformerConv(i, 2, root_weight=False, bias=False), "", False),
    (lambda i: pyg.GMMConv(i, 2, 2, 3), ATTR, True),
    (lambda i: pyg.NNConv(i, 2, edge_net(6)), ATTR, True),
    (lambda i: pyg.ResGatedGraphConv(i, 2), "", False),
    (lambda i: pyg.RGCNConv(i, 2, 3), REL, False),
    (lambda i: pyg.RGCNConv(i, 2, 3, num_bases=2, root_weight=False), REL, False),
    (lambda i: pyg.FastRGCNConv(i, 2, 3), REL, False),
]
SHARED = [
    (lambda i: pyg.SimpleConv("mean", "sum"), "edge_weight", True),
    (lambda i: pyg.SimpleConv("max", "cat"), "edge_weight", True),
    (lambda i: pyg.GINConv(mlp(i, 2), 0.5, True), "", True),
    (lambda i: pyg.WLConvContinuous(), "edge_weight", True),
    (lambda i: pyg.FeaStConv(i, 2, 2), "", False),
    (lambda i: pyg.GATv2Conv(i, 2, share_weights=True), "", False),
]
ON_PAIRS = [
    *((*case, (3, 2)) for case in PAIRS),
    *(pytest.param(*case, 3, marks=pytest.mark.slow) for case in PAIRS),
    *((*case, 3) for case in SHARED),
]


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR")
@pytest.mark.parametrize(("build", "edges", "alone", "i"), ON_PAIRS)
def test_pairs_of_signals(build, edges, alone, i):
    """Pairs, with and without a target or `size`, on an edge_index, an EdgeIndex and sparse adjacencies (4, 6)."""
    torch.manual_seed(0)
    layer = build(i).double()
    e = ACROSS.shape[1]
    carried = {
        "": None,
        "edge_weight": torch.linspace(0.5, 2, e, dtype=F64),
        ATTR: torch.randn(e, 2, dtype=F64),
        REL: torch.arange(e) % 3,
    }[edges]
    more = {} if carried is None else {edges: carried}
    source, target = torch.randn(6, 3, dtype=F64), torch.randn(4, 2 if isinstance(i, tuple) else 3, dtype=F64)
    forms = [(target, ACROSS, more), (target, EdgeIndex(ACROSS, sparse_size=(6, 4)), more)]
    if edges in ("", "edge_weight") and not isinstance(layer, pyg.WLConvContinuous | pyg.MFConv):
        value = torch.linspace(0.5, 2, e, dtype=F64)
        adj = torch.sparse_coo_tensor(ACROSS.flip(0), value, (4, 6)).coalesce()
        forms += [(target, adj, {}), (target, adj.to_sparse_csr(), {})]
    if alone:
        forms += [(None, ACROSS, more)]
        if "size" in inspect.signature(type(layer).forward).parameters:
            forms += [(None, ACROSS, {**more, "size": (6, 4)}), (target, ACROSS, {**more, "size": (6, 4)})]
    for end, adjacency, extra in forms:
        check_form(layer, lambda m, leaf, t=end, adj=adjacency, k=extra: m((leaf, t), adj, **k), source)
    if isinstance(i, tuple) and getattr(layer, "root_weight", True) and getattr(layer, "root", True) is not None:
        for module in (layer, convert(layer)):  # a single signal cannot have both numbers of channels
            with pytest.raises((RuntimeError, IndexError)):
                module(source, ACROSS, **more)


def test_signs_between_two_sets():
    x, target = torch.randn(6, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
    layer = pyg.SignedConv(3, 2, True)
    check_form(layer, lambda m, leaf: m((leaf, target), ACROSS[:, ::2], ACROSS[:, 1::2]), x)


def test_a_size_that_does_not_fit_is_refused():
    x = torch.randn(6, 3)
    for build in (lambda: pyg.SAGEConv(3, 2), lambda: pyg.GATConv(3, 2), lambda: pyg.GraphConv(3, 2)):
        layer = build()
        torch.testing.assert_close(convert(layer)(x, SIMPLE, size=(6, 6)), layer(x, SIMPLE, size=(6, 6)))
        for arguments, size in (((x, SIMPLE), (6, 5)), (((x, x[:4]), ACROSS), (6, 3))):
            with pytest.raises(ValueError):
                layer(*arguments, size=size)
            with pytest.raises(ValueError):
                convert(layer)(*arguments, size=size)


# -- autocast ------------------------------------------------------------------------------------------------------

UNBIASED = [
    ("GCNConv", lambda i, o: pyg.GCNConv(i, o, normalize=False, bias=False)),
    ("GATConv", lambda i, o: pyg.GATConv(i, o, bias=False)),
    ("NNConv", lambda i, o: pyg.NNConv(i, o, edge_net(i * o), bias=False)),
    ("FastRGCNConv", lambda i, o: pyg.FastRGCNConv(i, o, 3, bias=False)),
    ("ResGatedGraphConv", lambda i, o: pyg.ResGatedGraphConv(i, o, bias=False)),
    ("DenseGATConv", lambda i, o: pyg.DenseGATConv(i, o, 2, bias=False)),
]
CAST = [
    *MARKED,
    *(pytest.param(name, CASES[name][0], build, id=f"{name} without bias") for name, build in UNBIASED),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(("name", "edges", "build"), CAST)
def test_types_under_autocast(name, edges, build, kind, monkeypatch):
    """The type of the output is PyG's; the numbers are, within the rounding of bfloat16."""
    if name == "MFConv":
        return  # PyG's own fails
    monkeypatch.setattr("oracles.pyg_layers.F64", torch.float32)
    torch.manual_seed(0)
    g = messy()
    graph = Graph(g.edge_index, 6, g.edge_weight.float(), g.edge_attr.float(), g.edge_type)
    layer, x = build(3, 2).float(), torch.randn(6, 3, dtype=kind)
    if isinstance(getattr(layer, "fill_value", None), torch.Tensor):
        layer.fill_value = layer.fill_value.float()
    more = {} if edges in HOW or edges == "" else {edges: getattr(graph, edges)}
    results = []
    for module in (layer, convert(layer)):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(HOW[edges](module, x, graph) if edges in HOW else module(x, graph.edge_index, **more))
    theirs, ours = results
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.1, atol=0.1)


# -- errors, lazy layers, in place ---------------------------------------------------------------------------------

X, RING = torch.randn(4, 8), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
BAD = [
    (lambda: pyg.GCNConv(8, 4), (X, torch.tensor([[0, 9], [1, 2]]))),
    (lambda: pyg.GCNConv(8, 4), (X, torch.tensor([[0, -1], [1, 2]]))),
    (lambda: pyg.GCNConv(8, 4), (X[:, :5], RING)),
    (lambda: pyg.GCNConv(8, 4), (X.double(), RING)),
    (lambda: pyg.GCNConv(8, 4), ((X, X), RING)),
    (lambda: pyg.GCNConv(8, 4), (X, RING, torch.rand(3))),
    (lambda: pyg.GCNConv(8, 4), (None, RING)),
    (lambda: pyg.GCNConv(8, 4), (X,)),
    (lambda: pyg.GATConv(8, 4), (torch.stack([X, X]), RING)),
    (lambda: pyg.GATConv(8, 4, edge_dim=2), (X, RING, torch.randn(4, 3))),
    (lambda: pyg.SAGEConv(8, 4), (X, RING.float())),
    (lambda: pyg.RGCNConv(8, 4, 2), (X, RING)),
    (lambda: pyg.GMMConv(8, 4, 2, 2), (X, RING)),
    (lambda: pyg.TransformerConv(8, 4), (X[0], RING)),
    (lambda: pyg.FiLMConv(8, 4), (X.tolist(), RING)),
    (lambda: pyg.Linear(8, 4), (X.tolist(),)),
]


@pytest.mark.parametrize(("build", "arguments"), BAD, ids=range(len(BAD)))
def test_errors_are_of_the_class_that_pyg_raises(build, arguments):
    """And of gconv's where it refuses the call itself or where PyG says nothing; with a sentence in any case.

    PyG's message is a note of the error, which `pytest.raises(match=...)` reads, too.
    """
    layer = build()
    with pytest.raises(Exception) as theirs:
        layer(*arguments)
    with pytest.raises(Exception) as ours:
        convert(layer)(*arguments)
    assert issubclass(ours.type, theirs.type) and issubclass(ours.type, (ValueError, TypeError))
    assert len(str(ours.value)) > 20
    assert str(theirs.value) in "\n".join([str(ours.value), *getattr(ours.value, "__notes__", [])])


@pytest.mark.parametrize(
    ("layer", "arguments"), [(pyg.GCNConv(8, 4), (X, RING)), (nn.Linear(8, 4), (X,))], ids=["pyg", "torch"]
)
def test_after_an_internal_error_the_original_runs_with_a_warning(layer, arguments, monkeypatch):
    converted = convert(layer)
    assert torch.allclose(converted(*arguments), layer(*arguments), atol=1e-6)  # no warning, which would be an error

    def broken(*_):
        raise IndexError("out of range")

    monkeypatch.setitem(vars(type(converted).peer), "call", broken)
    with pytest.warns(RuntimeWarning, match=rf"converted {type(layer).__name__} \(IndexError: out of range\)"):
        y = converted(*arguments)
    assert torch.equal(y, layer(*arguments))


def test_parameters_that_are_not_initialised_yet():
    """A state_dict of a lazy layer makes a converted one lazy, too; its next call initialises it."""
    for build, arguments in (
        (lambda i: pyg.Linear(i, 4), (X,)),
        (lambda i: pyg.SAGEConv(i, 4), (X, RING)),
        (lambda i: pyg.GCNConv(i, 4), (X, RING)),
    ):
        twin = convert(build(8))
        twin.load_state_dict(build(-1).state_dict())
        assert twin(*arguments).shape == (4, 4)
        torch.testing.assert_close(strictly(twin, *arguments), twin(*arguments))
        twin.load_state_dict(build(8).state_dict())
        assert twin(*arguments).shape == (4, 4)


# -- several signals, whole models ---------------------------------------------------------------------------------

STATIC = [
    name
    for name, (edges, _) in CASES.items()
    if edges in (BARE, WEIGHT, "signs", "parts") and "GAT" not in name
    if name not in ("TransformerConv", "AGNNConv", "FeaStConv", "EGConv", "WLConvContinuous")
] + ["PDNConv"]


@pytest.mark.parametrize("name", STATIC)
def test_several_signals_on_one_graph(name):
    """Static graphs: x (b, n, c), in every layer of which PyG takes it."""
    edges, builds = CASES[name]
    torch.manual_seed(0)
    graph, x = messy(), torch.randn(2, 6, 3, dtype=F64)

    def call(m, leaf):
        if edges in HOW:
            return HOW[edges](m, leaf, graph)
        return m(leaf, graph.edge_index, *([graph.edge_attr] if edges == ATTR else []))

    check_form(builds[0](3, 2), call, x, 1e-7 if name == "ClusterGCNConv" else 1e-10)


MODELS = {
    "GCN": lambda: pyg.GCN(8, 16, 2, 3, dropout=0.5),
    "GCN, cached": lambda: pyg.GCN(8, 16, 2, 3, cached=True),
    "GraphSAGE": lambda: pyg.GraphSAGE(8, 16, 2, 3, norm="batch_norm", jk="cat"),
    "GIN": lambda: pyg.GIN(8, 16, 2, 3, train_eps=True),
    "GAT": lambda: pyg.GAT(8, 16, 2, 3, heads=2),
    "GAT, v2": lambda: pyg.GAT(8, 16, 2, 3, heads=2, v2=True),
    "Cheb": lambda: pyg.Sequential(
        "x, edge_index",
        [
            (pyg.ChebConv(8, 16, 3), "x, edge_index -> x"),
            nn.ReLU(inplace=True),
            (pyg.ChebConv(16, 3, 3), "x, edge_index -> x"),
        ],
    ),
    "APPNP": lambda: pyg.Sequential(
        "x, edge_index",
        [
            (nn.Linear(8, 16), "x -> x"),
            nn.ReLU(inplace=True),
            (pyg.APPNP(5, 0.1, 0.3), "x, edge_index -> x"),
            nn.Linear(16, 3),
        ],
    ),
}


QUICK = ("GCN", "GraphSAGE", "GAT", "Cheb")


@pytest.mark.parametrize("name", [pytest.param(m, marks=[] if m in QUICK else pytest.mark.slow) for m in MODELS])
def test_ten_steps_of_training(name, monkeypatch):
    """Losses, parameters and the output in eval stay those of the model itself."""
    monkeypatch.setattr(pyg.Sequential, "forward", pyg.Sequential.forward)  # it writes one onto the class
    random.seed(name)
    torch.manual_seed(0)
    model = MODELS[name]().double()
    graph = torch.randint(20, (2, 60))
    edge_index = torch.cat([graph, graph.flip(0)], 1).unique(dim=1)
    x, labels = torch.randn(20, 8, dtype=F64), torch.randint(3, (20,))
    results = []
    for net in (convert(model), model):
        optimiser, losses = torch.optim.Adam(net.parameters(), 0.01), []
        net.train()
        for step in range(10):
            torch.manual_seed(step)
            loss = nn.functional.cross_entropy(net(x, edge_index), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        results.append([torch.stack(losses), net.eval()(x, edge_index), *net.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


INDEX = torch.zeros(2, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("edges", "weight", "message"),
    [
        (torch.zeros(4, 2, dtype=torch.long), None, r"must have shape \(2, e\)"),
        (torch.zeros(2, 4), None, "edge_index contains node indices and must be an integer tensor"),
        (torch.zeros(2, 4, dtype=torch.long), torch.ones(3), r"one number per edge, 4 in all, but its shape is \(3,\)"),
    ],
)
@pytest.mark.parametrize("build", [lambda: pyg.GCNConv(3, 2), lambda: pyg.ChebConv(3, 2, 2)])
def test_edges_that_pyg_refuses_are_explained(build, edges, weight, message):
    layer, x = convert(build()), torch.randn(5, 3)
    with pytest.raises(InputError, match=message):
        layer(x, edges, weight)
    with pytest.raises(Exception) as caught:  # negative control: PyG's own error is another
        build()(x, edges, weight)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("build", "args", "message"),
    [
        (lambda: pyg.SAGEConv(3, 2), (torch.zeros(5, 3).numpy(), INDEX), "SAGEConv: x must be a torch tensor, but"),
        (lambda: pyg.GCNConv(3, 2), (None, INDEX), "GCNConv: x must be a torch tensor, but it is None"),
        (lambda: pyg.RGCNConv(3, 2, 3), (torch.zeros(5, 3), INDEX), "RGCNConv needs edge_type"),
        (lambda: pyg.RGCNConv(3, 2, 3), (torch.zeros(5, 3), INDEX, INDEX[0] + 7), "7, but RGCNConv has 3 relations"),
    ],
)
def test_arguments_that_pyg_refuses_are_explained(build, args, message):
    with pytest.raises(InputError, match=message):
        convert(build())(*args)
    with pytest.raises(Exception) as caught:  # negative control: PyG's own error is another
        build()(*args)
    assert not isinstance(caught.value, InputError)


def test_an_error_without_a_known_reason_is_unchanged():
    given = convert(pyg.GCNConv(3, 2)), pyg.GCNConv.forward, (torch.zeros(5, 3), INDEX), {}
    error = RuntimeError("another")
    assert explained(*given, error) is error
    found = explained(*given, IndexError("another."))
    assert isinstance(found, IndexError) and str(found) == "GCNConv does not accept this call: another."
