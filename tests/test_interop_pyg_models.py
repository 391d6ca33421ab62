"""PyG's own models, pools and wrappers around layers: as converted, they answer as before, in value and gradients."""

import copy
import io

import pytest
import torch
from torch_geometric import nn as pyg
from torch_geometric.explain import Explainer, GNNExplainer

from gconv import convert
from gconv.interop import restore

N = 6
EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 2, 3, 5, 0], [1, 0, 2, 1, 4, 3, 3, 2, 0, 5]])
PARTS = torch.tensor([0, 0, 0, 1, 1, 1])
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # GraphUNet's own product of its adjacency


def x(channels=8, rows=N):
    return torch.linspace(-1, 1, rows * channels).reshape(rows, channels).mul(5).sin().requires_grad_()


def weights():
    return torch.linspace(0.5, 2, EDGES.shape[1])


def attributes(channels=3):
    return x(channels, EDGES.shape[1]).detach()


def dense():
    return torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]), torch.tensor([[True, True, False]]).expand(2, 3)


def on_batches(make):
    adjacency, mask = dense()
    return make, [(x(8).view(2, 3, 8), adjacency), (x(8).view(2, 3, 8), adjacency.expand(2, 3, 3), mask)]


def on_edges(make, **more):
    return make, [(x(), EDGES), ((x(), EDGES), more)] if more else [(x(), EDGES)]


ACTS = {"last": torch.relu_, "cat": torch.nn.ELU(inplace=True), "max": "leaky_relu", "lstm": None}
NORMS = {"last": "layer_norm", "cat": "batch_norm", "max": None, "lstm": "graph_norm"}
BASIC = {
    f"{model.__name__} {form}": on_edges(
        lambda model=model, form=form: model(8, 8, 2, 4, act=ACTS[form], norm=NORMS[form], jk=form),
        **({"edge_weight": weights()} if model.supports_edge_weight else {}),
    )
    for model in (pyg.GCN, pyg.GraphSAGE, pyg.GIN, pyg.GAT, pyg.EdgeCNN)
    for form in ("last", "cat", "max", "lstm")
}
MODELS = BASIC | {
    "PNA": on_edges(
        lambda: pyg.PNA(8, 8, 2, 4, aggregators=["mean", "std"], scalers=["linear"], deg=torch.tensor([0, 2, 4]))
    ),
    "GAT v2": on_edges(lambda: pyg.GAT(8, 8, 2, 4, v2=True, heads=2)),
    "AttentiveFP": (lambda: pyg.AttentiveFP(8, 8, 4, 3, 2, 2), [(x(), EDGES, attributes(), PARTS)]),
    "GraphUNet": on_edges(lambda: pyg.GraphUNet(8, 8, 4, depth=2)),
    "LightGCN": (lambda: pyg.LightGCN(N, 8, 2), [(EDGES, EDGES[:, :3])]),
    "LINKX": on_edges(lambda: pyg.LINKX(N, 8, 8, 4, 2), edge_weight=weights()),
    "SignedGCN": (lambda: pyg.SignedGCN(8, 8, 2), [(x(), EDGES[:, :6], EDGES[:, 4:])]),
    "NeuralFingerprint": (lambda: pyg.NeuralFingerprint(8, 8, 4, 2), [(x(), EDGES, PARTS)]),
    "PMLP": on_edges(lambda: pyg.PMLP(8, 8, 4, 3)),
    "MLP": (lambda: pyg.MLP([8, 8, 4]), [(x(),)]),
    "RECT_L": on_edges(lambda: pyg.RECT_L(8, 8)),
    "ARGVA": (lambda: pyg.GAE(pyg.GCN(8, 4, 2)), [(x(), EDGES)]),
    "LabelPropagation": (lambda: pyg.LabelPropagation(3, 0.5), [(torch.arange(N) % 3, EDGES)]),
    "Polynormer": (lambda: pyg.Polynormer(8, 8, 4), [(x(), EDGES, PARTS)]),
    "SAGPooling": on_edges(lambda: pyg.SAGPooling(8, 0.5)),
    "SAGPooling of GAT": on_edges(lambda: pyg.SAGPooling(8, 2, GNN=pyg.GATConv), batch=PARTS),
    "SAGPooling by score": on_edges(lambda: pyg.SAGPooling(8, None, GNN=pyg.SAGEConv, min_score=0.1)),
    "ASAPooling": on_edges(lambda: pyg.ASAPooling(8, 0.5, GNN=pyg.GCNConv, add_self_loops=True)),
    "EdgePooling": (lambda: pyg.EdgePooling(8), [(x(), EDGES, PARTS)]),
    "MemPooling": (lambda: pyg.MemPooling(8, 4, 2, 3), [(x(), PARTS)]),
    "DeepGCNLayer": on_edges(
        lambda: pyg.DeepGCNLayer(
            pyg.GENConv(8, 8), pyg.LayerNorm(8), torch.nn.ReLU(inplace=True), "res+", ckpt_grad=True
        )
    ),
    "DenseGATConv": on_batches(lambda: pyg.DenseGATConv(8, 4, heads=2)),
    "DenseGCNConv": on_batches(lambda: pyg.DenseGCNConv(8, 4)),
    "DenseGINConv": on_batches(lambda: pyg.DenseGINConv(torch.nn.Linear(8, 4), train_eps=True)),
    "DenseGraphConv": on_batches(lambda: pyg.DenseGraphConv(8, 4, aggr="max")),
    "DenseSAGEConv": on_batches(lambda: pyg.DenseSAGEConv(8, 4, normalize=True)),
    "DMoNPooling": (lambda: pyg.DMoNPooling([8, 8], 2), [(x(8).view(2, 3, 8), dense()[0].expand(2, 3, 3), dense()[1])]),
}

QUICK = ("GAT last", "LightGCN", "SAGPooling", "DenseGATConv", "DMoNPooling")


def numbers(found):
    if isinstance(found, torch.Tensor):
        return [found]
    return [t for part in found for t in numbers(part)] if isinstance(found, (tuple, list)) else []


def outcome(model, call):
    """The numbers of a call, and the gradients of their sum in the model's parameters and the signal."""
    args, more = call if isinstance(call[-1], dict) else (call, {})
    args = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) and a.requires_grad else a for a in args]
    inputs = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad] + list(model.parameters())
    torch.manual_seed(0)
    values = numbers(model(*args, **more))
    if learned := [v.sin().sum() for v in values if v.requires_grad]:
        torch.stack(learned).sum().backward()  # a checkpointed part refuses autograd.grad
    return [*values, *(torch.zeros(()) if t.grad is None else t.grad for t in inputs)]


@pytest.mark.parametrize("name", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MODELS])
def test_converted_models_give_the_same(name):
    make, calls = MODELS[name]
    torch.manual_seed(1)
    model = make()
    converted = convert(copy.deepcopy(model))
    for training in (True, False):
        for call in [*calls, *calls]:
            want, got = (outcome(m.train(training), call) for m in (copy.deepcopy(model), copy.deepcopy(converted)))
            assert len(want) == len(got)
            for a, b in zip(want, got, strict=True):
                torch.testing.assert_close(b, a, rtol=2e-4, atol=2e-5)
    assert str(restore(converted)) == str(model)


@pytest.mark.parametrize("groups", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layer", [pyg.SAGEConv, pyg.GraphConv, pyg.GCNConv])
def test_reversible_blocks_free_their_input_and_find_it_again(layer, groups):
    model = pyg.GroupAddRev(layer(8 // groups, 8 // groups), num_groups=groups, num_bwd_passes=2)
    found = []
    for m in (copy.deepcopy(model), convert(copy.deepcopy(model))):
        h = x() * 1
        before = h.detach().clone()
        out = m(h, EDGES)
        assert h.untyped_storage().size() == 0
        found.append(out.detach().clone())
        out.square().sum().backward(retain_graph=True)
        found += [p.grad for p in m.parameters()]
        h = x() * 1
        out = m(h, EDGES)
        torch.testing.assert_close(m.inverse(out, EDGES), before, rtol=1e-3, atol=1e-4)
    half = len(found) // 2
    for a, b in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_parts_of_converted_layers_can_be_replaced_by_those_of_others():
    sparse, dense_layer = convert(pyg.GCNConv(8, 4)), convert(pyg.DenseGCNConv(8, 4))
    dense_layer.lin.weight, dense_layer.bias = sparse.lin.weight, sparse.bias
    adjacency = torch.zeros(N, N).index_put((EDGES[0], EDGES[1]), torch.ones(EDGES.shape[1]))
    torch.testing.assert_close(dense_layer(x(), adjacency)[0], sparse(x(), EDGES))
    other = convert(pyg.DenseGATConv(8, 4, heads=2))
    lender = convert(pyg.GATConv(8, 4, heads=2))
    other.lin, other.att_src, other.att_dst, other.bias = lender.lin, lender.att_src, lender.att_dst, lender.bias
    torch.testing.assert_close(other(x(), adjacency)[0], lender(x(), EDGES))


@pytest.mark.slow
def test_explanations_are_those_of_the_original():
    model = pyg.GCN(8, 8, 2, 3)
    found = []
    for m in (model, convert(copy.deepcopy(model))):
        explainer = Explainer(
            m.eval(),
            GNNExplainer(epochs=3),
            explanation_type="model",
            node_mask_type="attributes",
            edge_mask_type="object",
            model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"},
        )
        torch.manual_seed(0)
        made = explainer(x().detach(), EDGES)
        found.append((made.edge_mask, made.node_mask))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("leaf", [pyg.MessagePassing, None], ids=["layers", "parts of layers"])
def test_submodules_are_those_of_the_original(leaf):
    model = pyg.GIN(8, 8, 2, 4, norm="layer_norm")
    twin = convert(model)
    assert [name for name, _ in twin.named_modules()] == [name for name, _ in model.named_modules()]
    visited: dict = {}
    for net in (model, twin):
        net.apply(lambda module, net=net: visited.setdefault(net, []).append(type(module).__name__))
    assert visited[twin] == visited[model]
    assert pyg.summary(twin, x(), EDGES, leaf_module=leaf) == pyg.summary(model, x(), EDGES, leaf_module=leaf)


def test_the_mode_of_a_layer_is_what_is_set_last():
    model = pyg.GATConv(8, 8, dropout=0.5)
    twin = convert(model)
    twin.training = model.training = False  # without a call of eval()
    torch.testing.assert_close(twin(x(), EDGES), model(x(), EDGES))
    assert not copy.deepcopy(twin).gconv.training and twin.train().gconv.training
    assert convert(pyg.APPNP(2, 0.1)).double().gconv._like.dtype == torch.float64


def test_layers_pickled_with_the_engine_as_a_submodule_are_read():
    twin = convert(pyg.GCNConv(8, 4))
    rebuild, arguments, state, *_ = twin.__reduce_ex__(4)
    engine = state.pop("gconv")
    old = rebuild(*arguments)
    old.__setstate__(state | {"_modules": {**state["_modules"], "gconv": engine}})
    assert [name for name, _ in old.named_children()] == [name for name, _ in twin.named_children()]
    torch.testing.assert_close(old(x(), EDGES), twin(x(), EDGES))


@pytest.mark.parametrize("build", [lambda: pyg.GCNConv(8, 4), lambda: pyg.LGConv(), lambda: pyg.SAGEConv(8, 4)])
def test_the_aggregation_of_a_layer_is_the_one_it_holds(build):
    model = build()
    twin = convert(model)
    seen = []
    handle = twin.aggr_module.register_forward_hook(lambda *_: seen.append(1))
    twin(x(), EDGES)
    handle.remove()
    twin(x(), EDGES)
    assert len(seen) == 1
    for module in (model, twin):
        module.aggr = "max"  # PyG has chosen its aggregation already
    torch.testing.assert_close(twin(x(), EDGES), model(x(), EDGES))
    for module in (model, twin):
        module.aggr_module = pyg.MaxAggregation()
    torch.testing.assert_close(twin(x(), EDGES), model(x(), EDGES))
    torch.testing.assert_close(convert(model)(x(), EDGES), model(x(), EDGES))


def test_whole_models_are_saved_and_loaded():
    model = convert(pyg.GraphSAGE(8, 8, 2))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x(), EDGES), model(x(), EDGES))
