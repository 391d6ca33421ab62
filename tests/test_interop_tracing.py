"""Converted PyG layers under compilers and exporters: they run in gconv, cold, at open sizes, with the same numbers."""

import pytest
import torch
from oracles.pyg_layers import BUILDS, CASES, HOW, IDS, edge_arguments, strictly
from torch import nn
from torch_geometric import nn as pyg

from gconv import GConv, convert
from gconv.domains.reading import recall
from gconv.operators import gcn
from gconv.operators.shapes import messy
from gconv.testing import assert_close

F64 = torch.float64
# the parts of a readout are numbers that a trace cannot read
OUTSIDE = {"MeanAggregation", "SumAggregation", "MaxAggregation"}
MARKED = [
    pytest.param(name, edges, build, id=id, marks=pytest.mark.slow)
    for (name, edges, build), id in zip(BUILDS, IDS, strict=True)
    if name not in OUTSIDE and build in (CASES[name][1][0], CASES[name][1][-1])
]


class Strict(nn.Module):
    """A call of a layer that must run in gconv."""

    def __init__(self, layer, edges):
        super().__init__()
        self.layer, self.edges = layer, edges

    def forward(self, x, *more):
        return strictly(self.layer, x, *more)


def arguments(graph, edges, x):
    """What a call of a layer takes."""
    found = []

    def note(*args, **kwargs):
        found.extend([*args, *kwargs.values()])

    HOW[edges](note, x, graph) if edges in HOW else note(x, graph.edge_index, **edge_arguments(graph, edges, False))
    return tuple(t.detach() for t in found)


def made(name, edges, build):
    torch.manual_seed(0)
    layer, graph = build(3, 2).double(), messy()
    return layer, Strict(convert(layer), edges), arguments(graph, edges, torch.randn(6, 3, dtype=F64))


def compiled(module, **options):
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize(("name", "edges", "build"), MARKED)
def test_layers_compile_in_one_graph_without_a_call_beforehand(name, edges, build):
    """Value, and the gradient in the signal and the parameters."""
    layer, strict, given = made(name, edges, build)
    results = []
    for run in (layer, compiled(strict)):
        leaf = given[0].clone().requires_grad_()
        y = run(leaf, *given[1:])
        wanted = [leaf, *(p for p in (layer if run is layer else strict).parameters() if p.requires_grad)]
        found = torch.autograd.grad(y.sin().sum(), wanted, allow_unused=True)
        results.append([y, *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True))])
    tolerance = 1e-7 if name == "ClusterGCNConv" else 1e-10  # PyG counts its degrees in single precision
    for theirs, ours in zip(*results, strict=True):
        assert_close("compiled", ours, theirs, tolerance)


EXPORTED = [p for p in MARKED if p.values[0] != "HypergraphConv"]  # the number of hyperedges depends on the input


@pytest.mark.parametrize(("name", "edges", "build"), EXPORTED)
def test_layers_are_exported_without_a_call_beforehand(name, edges, build):
    layer, strict, given = made(name, edges, build)
    program = torch.export.export(strict, given)
    assert not any("gconv" in str(node.target) for node in program.graph.nodes)
    tolerance = 1e-7 if name == "ClusterGCNConv" else 1e-10
    for signal in (given[0], given[0].cos()):
        assert_close("exported", program.module()(signal, *given[1:]), layer(signal, *given[1:]), tolerance)


MODELS = {
    "GCNConv": lambda: pyg.GCNConv(3, 2),
    "GCN": lambda: pyg.GCN(3, 8, 2, 2),
    "GraphSAGE": lambda: pyg.GraphSAGE(3, 8, 2, 2),
    "GAT": lambda: pyg.GAT(3, 8, 2, 2, heads=2),
    "Cheb": lambda: pyg.ChebConv(3, 2, 3),
}
QUICK = ("GCNConv",)
INTERRUPTED = pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch reads it where a graph is interrupted
EVERY = pytest.mark.parametrize("name", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MODELS])


def on(n, e):
    return torch.randn(n, 3), torch.randint(0, n, (2, e))


@EVERY
def test_one_compiled_model_takes_graphs_of_any_size(name):
    """It is compiled once."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    run = compiled(convert(model))
    for k, (n, e) in enumerate(((10, 30), (13, 40), (7, 11))):
        x, edge_index = on(n, e)
        torch._dynamo.mark_dynamic(x, 0), torch._dynamo.mark_dynamic(edge_index, 1)
        with torch.compiler.set_stance("fail_on_recompile" if k else "default"):
            assert_close("compiled", run(x, edge_index), model(x, edge_index), 1e-5)


@INTERRUPTED
@EVERY
def test_a_model_compiled_in_parts_runs_its_graph_layers_as_in_eager_calls(name):
    """Value and gradients on one graph after another; nothing is compiled again for a new one."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    twin = convert(model)
    torch._dynamo.reset()
    run = torch.compile(lambda x, edge_index: twin(x.tanh(), edge_index).sin(), backend="aot_eager")
    for k in range(5):
        x, edge_index = on(10, 30)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        with torch.compiler.set_stance("fail_on_recompile" if k else "default"):
            ours = run(leaves[0], edge_index)
        theirs = model(leaves[1].tanh(), edge_index).sin()
        assert_close("compiled in parts", ours, theirs, 1e-5)
        for y in (ours, theirs):
            y.square().sum().backward()
        assert_close("its gradient", leaves[0].grad, leaves[1].grad, 1e-4)
        assert recall(edge_index, 10) is not None, "the graph was read, and is kept, as in eager calls"


@INTERRUPTED
def test_a_native_layer_compiled_in_parts_runs_as_in_eager_calls():
    torch._dynamo.reset()
    layer = GConv(gcn(3, 2))
    run = torch.compile(lambda x, edge_index: layer(x.tanh(), edge_index).sin(), backend="aot_eager")
    for k in range(3):
        x, edge_index = on(10, 30)
        with torch.compiler.set_stance("fail_on_recompile" if k else "default"):
            assert_close("compiled in parts", run(x, edge_index), layer(x.tanh(), edge_index).sin(), 1e-5)


@EVERY
def test_one_exported_model_takes_graphs_of_any_size(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    n, e = torch.export.Dim("n", min=3), torch.export.Dim("e", min=2)
    program = torch.export.export(convert(model), on(10, 30), dynamic_shapes=({0: n}, {1: e}))
    assert not any("gconv" in str(node.target) for node in program.graph.nodes)
    for given in (on(10, 30), on(13, 40), on(7, 11)):
        assert_close("exported", program.module()(*given), model(*given), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attribute", "value"), [("add_self_loops", False), ("normalize", False), ("improved", True)], ids=str
)
def test_an_argument_changed_after_compilation_takes_effect(attribute, value):
    layer = pyg.GCNConv(3, 2)
    twin, given = convert(layer), on(10, 30)
    run = compiled(twin)
    run(*given)
    for module in (layer, twin):
        setattr(module, attribute, value)
    assert_close("compiled", run(*given), layer(*given), 1e-5)
