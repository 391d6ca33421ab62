"""Converted PyG layers and models: what is left alone and why, which calls go to PyG, whole networks, linear maps."""

import copy
import pickle
import random
import warnings
from pathlib import Path

import pytest
import torch
from limits import fresh
from oracles.pyg_layers import BARE, F64, WEIGHT, adjacency, compare, edge_net, mlp
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm
from torch_geometric import nn as pyg
from torch_geometric.explain.algorithm.utils import set_masks

import gconv
from gconv import Graph, NotLinear, OutsideFamily
from gconv.interop import as_linear_map, convert, restore
from gconv.interop.converted import Converted
from gconv.operators.shapes import messy, weighted

ROOT = Path(__file__).parents[1]


# -- what a layer keeps, and what is left alone --------------------------------------------------------------------


def reason(layer):
    entry = convert(layer).report()[""]
    assert not entry.converted
    return entry.notes[0]


def test_layers_that_are_not_converted_have_a_reason():
    assert "flow='target_to_source'" in reason(pyg.GCNConv(3, 2, flow="target_to_source"))
    assert "node_dim=0" in reason(pyg.GCNConv(3, 2, node_dim=0))
    pyg.SAGEConv(
        3, 2
    )  # PyG compiles a class as its first layer needs it: after "median", no sum would take a sparse graph
    assert "aggr='median'" in reason(pyg.SAGEConv(3, 2, aggr="median"))
    assert "aggr=['mean', 'max']" in reason(pyg.SAGEConv(3, 2, aggr=["mean", "max"]))
    assert "needs equal channels" in reason(pyg.GATv2Conv((3, 4), 2, share_weights=True))
    assert "different sizes" in reason(pyg.RGCNConv((3, 6), 3, 2, num_blocks=3))
    assert "run the model once" in reason(pyg.GCNConv(-1, 2))
    assert "gates its result" in reason(pyg.TransformerConv(3, 2, beta=True))
    assert "normalize=False" in reason(pyg.TAGConv(3, 2, normalize=False))
    assert "separate_gaussians" in reason(pyg.GMMConv(3, 2, 2, 3, separate_gaussians=True))
    assert "activation" in reason(pyg.ARMAConv(3, 2))
    assert "use_attention" in reason(pyg.HypergraphConv(3, 2, use_attention=True))
    assert "decomposed_layers=3" in reason(pyg.GATConv(3, 3, decomposed_layers=3))
    assert "network of both ends" in reason(pyg.EdgeConv(mlp(6, 2)))
    assert "ReLU(x_j + e_ij)" in reason(pyg.GINEConv(mlp(3, 2)))
    used = pyg.GCNConv(3, 2, cached=True)
    used(torch.randn(6, 3), messy().edge_index)
    assert "cached a graph already" in reason(used)

    class Own(pyg.GCNConv):
        def message(self, x_j, edge_weight):
            return 2 * x_j

    assert "a subclass of GCNConv with code of its own (message)" in reason(Own(3, 2))


class Wide(pyg.GATConv):
    def __init__(self, i):
        super().__init__(i, 2, heads=4)


def test_a_subclass_that_only_names_its_arguments_is_converted():
    compare(Wide(3), messy(), BARE)
    assert convert(pyg.GATConv(3, 2)).report()[""].converted


def test_networks_inside_layers_that_are_left_alone_are_converted():
    report = convert(pyg.EdgeConv(mlp(6, 2))).report()
    assert [entry.path for entry in report.converted] == ["nn.0", "nn.2"]
    report = convert(pyg.GINConv(mlp(3, 2))).report()
    assert [entry.path for entry in report.converted] == ["", "nn.0", "nn.2"]
    report = convert(pyg.NNConv(3, 2, nn.Linear(2, 6))).report()
    assert "Sequential(Linear, ReLU, Linear)" in report[""].notes[0] and report["nn"].converted


@pytest.fixture
def signal():
    torch.manual_seed(2)
    return torch.randn(6, 3, dtype=F64)


def same(layer, *args, **kwargs):
    """A call that goes to PyG's own forward."""
    twin = convert(layer.double())
    assert isinstance(twin, Converted) and twin.peer.call(twin, *args, **kwargs) is None
    ours, theirs = twin(*args, **kwargs), layer(*args, **kwargs)
    torch.testing.assert_close(ours, theirs)


def test_calls_that_are_not_covered_go_to_pyg(signal):
    g = messy()
    same(pyg.GraphConv(3, 2), signal, g.edge_index, g.edge_weight.float())  # PyG promotes
    dense = adjacency(g)[0].requires_grad_()
    same(pyg.DenseGCNConv(3, 2), signal, dense)
    same(pyg.MeanAggregation(), signal, torch.tensor([1, 0, 1, 0, 2, 2]))


def test_parametrizations_of_layers_that_are_copied_inside_a_call(signal):
    """With cached=True, and where the layer of PyG is asked for its own error, a layer is copied."""
    g = messy()
    layer = parametrizations.weight_norm(pyg.GCN2Conv(3, 0.1, cached=True), "weight1").double()
    twin = convert(layer)
    for _ in range(2):
        torch.testing.assert_close(twin(signal, signal, g.edge_index), layer(signal, signal, g.edge_index))
    attention = convert(parametrizations.weight_norm(pyg.GATConv(3, 2).double(), "att_src"))
    with pytest.raises(ValueError, match="node"):
        attention(signal, g.edge_index + 100)


def test_explainers_and_hooks_into_messages_see_pyg(signal):
    layer, g, seen = pyg.GraphConv(3, 2).double(), messy(), []
    twin = convert(layer)
    twin.register_message_forward_hook(lambda module, args, out: seen.append(len(out)))
    torch.testing.assert_close(twin(signal, g.edge_index), layer(signal, g.edge_index))
    assert seen == [g.num_edges]
    other = convert(layer)
    set_masks(other, torch.zeros(g.num_edges, dtype=F64), g.edge_index, apply_sigmoid=True)
    set_masks(layer, torch.zeros(g.num_edges, dtype=F64), g.edge_index, apply_sigmoid=True)
    torch.testing.assert_close(other(signal, g.edge_index), layer(signal, g.edge_index))


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_parts_with_hooks_or_of_another_kind_see_pyg(signal):
    """gconv reads the weights of parts; where these do not say all, PyG runs."""
    g = messy()
    hooked = pyg.GCNConv(3, 2).double()
    hooked.lin.register_forward_hook(lambda module, args, out: out + 1)
    assert "a hook is registered on its submodule 'lin'" in reason(hooked)
    exchanged = pyg.SAGEConv(3, 2).double()
    exchanged.lin_r = Doubled(3, 2, bias=False).double()
    assert "its submodule 'lin_r' is a Doubled" in reason(exchanged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for change in (
            lambda m: m.lin.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
            lambda m: weight_norm(m.lin),
            lambda m: prune.l1_unstructured(m.lin, "weight", 2),
            lambda m: setattr(m, "lin", Doubled(3, 2, bias=False).double()),
            lambda m: m._modules.update(lin=Doubled(3, 2, bias=False).double()),
        ):
            layer = pyg.GCNConv(3, 2).double()
            twin = convert(layer)
            for each in (layer, twin):
                torch.manual_seed(0)
                change(each)
            torch.testing.assert_close(twin(signal, g.edge_index), layer(signal, g.edge_index))
            torch.testing.assert_close(convert(layer)(signal, g.edge_index), layer(signal, g.edge_index))
    normed = pyg.GCNConv(3, 2).double()
    parametrizations.weight_norm(normed.lin)
    compare(normed, g, WEIGHT)  # a parametrised weight is read as it is computed


@pytest.mark.parametrize(
    "build",
    [lambda: pyg.GCNConv(3, 2, improved=True), lambda: pyg.GATConv(3, 2), lambda: pyg.DirGNNConv(pyg.GCNConv(3, 2))],
)
def test_a_weight_that_is_computed_is_computed_once_a_call(build, signal):
    """Spectral norm in training takes a step of its power iteration each time that the weight is read."""
    layer, g = build().double(), messy()
    parametrizations.spectral_norm(getattr(layer, "conv_in", layer).lin)
    twin = convert(layer)
    assert isinstance(twin, Converted)
    for _ in range(3):
        torch.testing.assert_close(twin(signal, g.edge_index), layer(signal, g.edge_index))


def test_later_changes_of_inner_layers_take_effect(signal):
    g, layer = messy(), pyg.DirGNNConv(pyg.GCNConv(3, 2)).double()
    twin = convert(layer)
    for each in (layer, twin):
        each.conv_in.add_self_loops = True
    torch.testing.assert_close(twin(signal, g.edge_index), layer(signal, g.edge_index))
    layer = pyg.NNConv(3, 2, edge_net(6)).double()
    twin = convert(layer)
    for each in (layer, twin):
        each.nn[1] = nn.Tanh()
    torch.testing.assert_close(twin(signal, g.edge_index, g.edge_attr), layer(signal, g.edge_index, g.edge_attr))


def test_lambda_max_in_the_call(signal):
    layer, g = pyg.ChebConv(3, 2, 3, normalization=None).double(), messy()
    twin = convert(layer)
    for top in (3.5, torch.tensor(4.25, dtype=F64)):
        ours = twin.peer.call(twin, signal, g.edge_index, g.edge_weight, lambda_max=top)
        torch.testing.assert_close(ours, layer(signal, g.edge_index, g.edge_weight, lambda_max=top))


def test_cached_layers_keep_their_first_graph(signal):
    first, second = messy(), weighted(6 + 2)
    second = Graph(second.edge_index[:, :4], 6)
    for layer in (pyg.GCNConv(3, 2, cached=True).double(), pyg.APPNP(2, 0.1, cached=True)):
        twin = convert(layer)
        for g in (first, second):
            torch.testing.assert_close(twin(signal, g.edge_index), layer(signal, g.edge_index))
        torch.testing.assert_close(copy.deepcopy(twin)(signal, second.edge_index), layer(signal, second.edge_index))
        for each in (twin, layer):
            torch.manual_seed(3)
            each.reset_parameters()
        torch.testing.assert_close(twin(signal, second.edge_index), layer(signal, second.edge_index))


def test_negative_degrees_are_refused(signal):
    with pytest.raises(ValueError, match="degrees >= 0"):
        convert(pyg.GCNConv(3, 2).double())(signal, messy().edge_index, -messy().edge_weight)


def test_several_signals_on_one_graph(signal):
    g, x = messy(), torch.stack([signal, signal.cos()])
    for layer in (pyg.GCNConv(3, 2), pyg.ChebConv(3, 2, 3), pyg.SAGEConv(3, 2), pyg.GraphConv(3, 2)):
        layer = layer.double()
        twin = convert(layer)
        torch.testing.assert_close(twin.peer.call(twin, x, g.edge_index), layer(x, g.edge_index))


def test_dropout_of_attention(signal):
    """With dropout the expectation is the same, and eval is exact."""
    layer, g = pyg.GATConv(3, 2, 2, dropout=0.5).double(), messy()
    twin = convert(layer)
    draws = torch.stack([twin(signal, g.edge_index) for _ in range(400)])
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0), layer.eval()(signal, g.edge_index), atol=0.35, rtol=0)
    torch.testing.assert_close(twin.eval()(signal, g.edge_index), layer(signal, g.edge_index))
    twin.train()
    twin.dropout = layer.dropout = 0.0  # changed later: takes effect
    torch.testing.assert_close(twin(signal, g.edge_index), layer(signal, g.edge_index))


# -- whole models --------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Keyword calls, a layer used twice, and a readout."""

    def __init__(self):
        super().__init__()
        self.gcn = pyg.GCNConv(3, 4)
        self.gat = pyg.GATConv(4, 2, heads=2, edge_dim=2)
        self.tied = pyg.GraphConv(4, 4)
        self.also = self.tied
        self.norm = pyg.BatchNorm(4)
        self.pool = pyg.MeanAggregation()
        self.head = nn.Linear(4, 2)

    def forward(self, x, edge_index, edge_weight, edge_attr, batch):
        x = self.gcn(x=x, edge_index=edge_index, edge_weight=edge_weight).relu()
        x = self.gat(x, edge_attr=edge_attr, edge_index=edge_index).relu()
        x = self.norm(self.also(self.tied(x, edge_index=edge_index), edge_index, edge_weight=edge_weight))
        return self.head(self.pool(x, index=batch))


def test_a_model(signal):
    torch.manual_seed(0)
    model, g = Mixed().double().eval(), messy()
    twin = convert(model)
    arguments = (signal, g.edge_index, g.edge_weight, g.edge_attr, torch.tensor([0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(twin(*arguments), model(*arguments), rtol=1e-10, atol=1e-10)
    assert twin.also is twin.tied and type(twin) is Mixed
    report = twin.report()
    assert [entry.path for entry in report.left_alone] == ["norm.module"]
    assert repr(report["gat"].spec) == "gat(4, 2, heads=2, edge_dim=2)"
    assert "existing self-loops are replaced by new ones" in report["gat"].notes
    assert "degrees sum the incoming weights and normalise both ends, on directed graphs, too" in report["gcn"].notes
    for again in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin)), convert(twin), restore(twin)):
        torch.testing.assert_close(again(*arguments), model(*arguments), rtol=1e-10, atol=1e-10)
    twin.load_state_dict(Mixed().double().state_dict())
    for each in (model, twin):
        each.load_state_dict(model.state_dict())
        each(*arguments).square().sum().backward()
    for (name, ours), theirs in zip(twin.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    "build",
    [
        lambda: pyg.GCN(3, 8, 3, 2),
        lambda: pyg.GAT(3, 8, 2, 2, heads=2, dropout=0.5),
        lambda: pyg.GAT(3, 8, 2, 2, v2=True, heads=2),
        lambda: pyg.GraphSAGE(3, 8, 2, 2, jk="cat", norm="batch_norm"),
        lambda: pyg.GIN(3, 8, 2, 2),
        lambda: pyg.PNA(3, 8, 2, 2, aggregators=["mean", "max"], scalers=["identity"], deg=torch.tensor([0, 3, 3])),
        lambda: pyg.LightGCN(6, 3, 2).convs[0],
        lambda: pyg.Sequential(
            "x, edge_index",
            [(pyg.GCNConv(3, 4), "x, edge_index -> x"), nn.ReLU(), (pyg.SAGEConv(4, 2), "x, edge_index -> x")],
        ),
        lambda: pyg.DirGNNConv(pyg.GATConv(3, 2, add_self_loops=False)),
    ],
)
def test_models_of_pyg(build, signal, monkeypatch):
    monkeypatch.setattr(pyg.Sequential, "forward", pyg.Sequential.forward)  # one of them writes its own onto the class
    random.seed("models")  # and names its code at random: the seed of other tests would give them this one's code
    torch.manual_seed(0)
    model, g = build().double().eval(), messy()
    twin = convert(model)
    torch.testing.assert_close(twin(signal, g.edge_index), model(signal, g.edge_index), rtol=1e-10, atol=1e-10)
    assert str(twin.report())
    if "PNA" not in type(model).__name__:
        assert twin.report().converted


# -- linear maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        pyg.GCNConv(3, 2),
        pyg.LEConv(3, 2),
        pyg.MFConv(3, 2),
        pyg.GATv2Conv(3, 2, 2),
        pyg.TransformerConv(3, 2, 2, concat=False),
        pyg.ResGatedGraphConv(3, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_linear_maps(layer, signal):
    """A @ x and the layer differ by what the layer makes of x = 0 with the structure kept."""
    layer, g = layer.double(), messy()
    given = Graph(g.edge_index, g.size)
    A = as_linear_map(layer, given, signal)
    dense = gconv.analysis.matrix(A)
    assert dense.shape == (12, 18) or dense.shape == (24, 18)
    adaptive = A.S is not None and convert(layer).spec.structure.kind == "adaptive"
    if not adaptive:
        bias = layer(torch.zeros_like(signal), g.edge_index)
        torch.testing.assert_close(A @ signal, layer(signal, g.edge_index) - bias, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(A @ signal, as_linear_map(convert(layer), given) @ signal)
    else:
        for p in (
            p for name, p in layer.named_parameters() if "bias" in name and "key" not in name and "query" not in name
        ):
            p.data.zero_()
        A = as_linear_map(layer, given, signal)
        torch.testing.assert_close(A @ signal, layer(signal, g.edge_index), rtol=1e-10, atol=1e-10)


def test_linear_maps_follow_what_a_call_would_do(signal):
    g = messy()
    improved = pyg.GCNConv(3, 2, improved=True, bias=False).double()  # without weights its loops weigh 1, as in PyG
    for graph in (g, Graph(g.edge_index, g.size)):
        A = as_linear_map(improved, graph)
        torch.testing.assert_close(A @ signal, improved(signal, graph.edge_index, graph.edge_weight))
    adj = adjacency(g)[0]
    for layer in (pyg.DenseGCNConv(3, 2, True, False), pyg.DenseSAGEConv(3, 2, bias=False)):
        A = as_linear_map(layer.double(), adj)
        torch.testing.assert_close(A @ signal, layer(signal, adj)[0])
    with pytest.raises(TypeError, match=r"dense adjacency \(n, n\)"):
        as_linear_map(pyg.DenseGCNConv(3, 2), g)
    signed = Graph(g.edge_index, g.size, edge_type=g.edge_type % 2)
    layer = pyg.SignedConv(3, 2, True, bias=False).double()
    A = as_linear_map(layer, signed)
    torch.testing.assert_close(A @ signal, layer(signal, *(g.edge_index[:, signed.edge_type == k] for k in (0, 1))))


def test_layers_without_a_linear_map_give_a_reason(signal):
    g = messy()
    for layer, error, match in (
        (pyg.SAGEConv(3, 2, aggr="max"), NotLinear, "maximum"),
        (pyg.SAGEConv(3, 2, normalize=True), NotLinear, "divided by its norm"),
        (pyg.SAGEConv(3, 2, project=True), NotLinear, "ReLU"),
        (pyg.GINConv(mlp(3, 2)), NotLinear, "network `nn`"),
        (pyg.EdgeConv(mlp(6, 2)), OutsideFamily, "EdgeConv has no LinearMap: Its message is a network of both ends"),
        (pyg.GATConv(3, 2), ValueError, "adapts its structure"),
    ):
        with pytest.raises(error, match=match):
            as_linear_map(layer, g)


def test_pyg_is_loaded_only_for_models_of_pyg():
    code = (
        "import sys, torch, gconv.interop as i; "
        "t = i.convert(torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1), torch.nn.ReLU())); "
        "t(torch.zeros(1, 1, 3)); print('torch_geometric' in sys.modules)"
    )
    done = fresh(code)
    assert done.stdout.strip() == "False", done.stderr
