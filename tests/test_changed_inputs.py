"""What happens to a graph, a layer or a signal between two calls: changed in place, removed, in another thread."""

import threading
import warnings

import pytest
import torch
from limits import joined, started
from torch import nn

from gconv import GConv, Graph
from gconv.analysis import affine, effective_resistance
from gconv.domains.foreign import _num_nodes
from gconv.laplacian import largest_eigenvalue
from gconv.operators import cheb, gat, gcn, lightgcn, monet, relational
from gconv.summary import summary

INDEX = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]])
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def fresh(graph):
    return Graph(graph.edge_index, graph.size, graph.edge_weight, graph.edge_attr, graph.edge_type)


def changed(graph, name):
    """Modifies a tensor of the graph in place."""
    with torch.no_grad():
        t = getattr(graph, name)
        t.copy_(t.roll(1, -1) if not t.is_floating_point() else t * torch.linspace(0.5, 2.0, t.numel()).view_as(t))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (gcn(3, 2), "edge_weight"),
        (cheb(3, 2, k=3), "edge_weight"),
        (lightgcn(), "edge_weight"),
        (gcn(3, 2), "edge_index"),
        (monet(3, 2, 1, 2), "edge_attr"),
        (relational(3, 2, 3), "edge_type"),
    ],
    ids=str,
)
def test_a_graph_changed_in_place_is_computed_again(spec, name):
    layer, kind = GConv(spec), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    graph = Graph(INDEX[:, :7], 5, torch.rand(7) + 0.5, torch.rand(7, 1), kind[:7])
    before = layer(X, graph)
    assert layer(X, graph).equal(before)  # by the cached S
    changed(graph, name)
    after = layer(X, graph)
    torch.testing.assert_close(after, layer(X, fresh(graph)))
    assert not torch.allclose(after, before)  # the change matters


def test_weights_of_a_graph_that_were_trained_and_frozen():
    layer, graph = GConv(gcn(3, 2)), Graph(INDEX, 5, torch.rand(8) + 0.5)
    first = layer(X, graph)
    graph.edge_weight.requires_grad_()
    layer(X, graph).sum().backward()
    changed(graph, "edge_weight")
    graph.edge_weight.requires_grad_(False)
    torch.testing.assert_close(layer(X, graph), layer(X, fresh(graph)))
    assert not torch.allclose(layer(X, graph), first)


def test_training_the_weights_of_a_graph_keeps_what_depends_on_its_edges():
    graph = Graph(INDEX, 5, torch.rand(8) + 0.5)
    graph.edge_weight.requires_grad_()
    layer = GConv(gcn(3, 2))
    layer(X, graph)
    kept = dict(graph._memo)
    changed(graph, "edge_weight")
    layer(X, graph)
    assert kept and all(graph._memo[key] is value for key, value in kept.items())


def pairs(w):
    """INDEX with the same weight in both directions."""
    return Graph(INDEX, 5, w.double().repeat_interleave(2))


@pytest.mark.parametrize(
    "of",
    [
        lambda g: (
            GConv(cheb(3, 2, k=3, normalization=None, lambda_max="exact"), dtype=torch.float64)
            .requires_grad_(False)
            .at(g, X.double())
            .S.L.values.detach()
        ),
        lambda g: torch.tensor(largest_eigenvalue(g, None)),
        effective_resistance,
    ],
    ids=["laplacian", "largest eigenvalue", "resistance"],
)
def test_what_depends_on_learned_weights_follows_their_training(of):
    graph = pairs(torch.rand(4) + 0.5)
    graph.edge_weight.requires_grad_()
    before = of(graph)
    with torch.no_grad():
        graph.edge_weight.mul_(torch.tensor([1.0, 1, 3, 3, 1, 1, 2, 2], dtype=torch.float64))
    torch.testing.assert_close(of(graph), of(fresh(graph)))
    assert not torch.allclose(of(graph), before)  # the change matters


def test_symmetry_of_learned_weights_is_checked_again_after_a_change():
    graph = pairs(torch.rand(4) + 0.5)
    graph.edge_weight.requires_grad_()
    assert graph.is_undirected
    known = dict(graph._memo)
    assert graph.is_undirected and dict(graph._memo) == known  # unchanged weights are not checked again
    with torch.no_grad():
        graph.edge_weight[0] *= 3
    assert not graph.is_undirected


@pytest.mark.parametrize("name", ["edge_weight", "edge_index", "edge_attr", "edge_type", "pos"])
def test_a_graph_made_in_inference_mode_notices_changes_in_place(name):
    spec = {"edge_attr": monet(3, 2, 1, 2), "edge_type": relational(3, 2, 3)}.get(name, gcn(3, 2))
    layer, kind = GConv(spec), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    with torch.inference_mode():
        graph = Graph(INDEX[:, :7], 5, torch.rand(7) + 0.5, torch.rand(7, 1), kind[:7], torch.rand(5, 2))
        before = layer(X, graph)
        assert layer(X, graph).equal(before)  # by the cached S
        versions = graph.version
        changed(graph, name)
        assert graph.version != versions
        torch.testing.assert_close(layer(X, graph), layer(X, fresh(graph)))
        assert name == "pos" or not torch.allclose(layer(X, graph), before)  # the change matters
    learned = torch.rand(8, requires_grad=True)
    with torch.inference_mode():
        assert not Graph(INDEX, 5, learned).edge_weight.requires_grad
    with torch.no_grad():
        assert not Graph(INDEX, 5, learned).edge_weight.requires_grad


def test_a_graph_from_inference_mode_works_outside_of_it():
    with torch.inference_mode():
        graph = Graph(INDEX, 5, torch.rand(8))
    layer = GConv(cheb(3, 2, k=3))
    layer(X, graph).sum().backward()
    torch.testing.assert_close(layer(X, graph), layer(X, fresh(graph)))


@pytest.mark.parametrize("spec", [gcn(3, 2), gat(3, 2)], ids=str)
def test_edges_batched_by_vmap_are_refused(spec):
    layer = GConv(spec)
    with pytest.raises(TypeError, match=r"edge_index is batched by torch\.vmap"):
        torch.func.vmap(lambda edges: layer(X, edges))(torch.stack([INDEX, INDEX]))
    both = torch.func.vmap(lambda x: layer(x, INDEX))(torch.stack([X, 2 * X]))  # signals may be
    torch.testing.assert_close(both, layer(torch.stack([X, 2 * X]), INDEX))


@pytest.mark.parametrize("warm", [False, True])
def test_a_weight_removed_and_a_bias_of_another_dtype(warm):
    layer, graph = GConv(gcn(3, 2)), Graph(INDEX, 5)
    if warm:
        layer(X, graph)
    layer.bias.data = layer.bias.data.double()
    with pytest.raises(TypeError, match=r"bias is torch\.float64, but its weights are torch\.float32"):
        layer(X, graph)
    layer.float()(X, graph)
    layer.weight = None
    with pytest.raises(ValueError, match="gcn needs its weight, of shape"):
        layer(X, graph)


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
def test_a_sparse_signal_that_cannot_be_used(layout):
    x = X.to_sparse(layout=getattr(torch, layout))
    with pytest.raises(TypeError, match=rf"cheb cannot run on a {layout} signal here .*give x.to_dense\(\)"):
        GConv(cheb(3, 2, k=3))(x, INDEX)


@pytest.mark.parametrize("domain", ["edges", "graph"])
def test_attention_on_complex_numbers(domain):
    layer = GConv(gat(3, 2), dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"gat cannot run on x of torch\.complex64 on cpu"):
        layer(X.to(torch.complex64), INDEX if domain == "edges" else Graph(INDEX, 5))


def test_maps_without_weights_refuse_integers():
    A = GConv(lightgcn()).at(Graph(INDEX, 5))
    with pytest.raises(TypeError, match="x must hold floating point numbers"):
        A @ torch.ones(5, 1, dtype=torch.int64)
    assert (A @ torch.ones(5, 1, dtype=torch.float64)).dtype == torch.float64


def test_the_size_of_a_data_is_read_without_changing_the_filters_of_warnings():
    data = pytest.importorskip("torch_geometric.data")
    bare = data.Data(edge_index=INDEX)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "warn", lambda *args, **kwargs: pytest.fail("PyG guesses the number of nodes"))
        patch.setattr(warnings, "simplefilter", lambda *args: pytest.fail("this acts on all threads"))
        assert _num_nodes(bare) is None
    known = [{"x": torch.ones(7, 1)}, {"num_nodes": 7}, {"pos": torch.ones(7, 2)}, {"node_names": torch.ones(7)}]
    for more in known:
        assert _num_nodes(data.Data(edge_index=INDEX, **more)) == 7
    assert _num_nodes(data.Data(edge_index=INDEX, node_names=["a"])) is None
    assert GConv(gcn(1, 1))(torch.ones(7, 1), bare).shape == (7, 1)


def test_layers_called_in_another_thread_are_not_recorded():
    other, model = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    inside, left, errors = threading.Event(), threading.Event(), []
    other.register_forward_hook(lambda *given: None)  # so that torch runs global hooks after the call, too

    def wait(*given):
        inside.set()
        left.wait(20)

    def work():
        try:
            hook = other.register_forward_pre_hook(wait)
            other(X)
            hook.remove()
        except Exception as error:
            errors.append(error)

    thread, calls = started(work), []
    assert inside.wait(20)

    def model_while_the_other_call_ends(x):
        calls.append(x)
        if len(calls) == 2:  # the call that is recorded
            left.set()
            joined([thread], 20)
        return model(x)

    made = affine(model_while_the_other_call_ends, X)
    torch.testing.assert_close(made(X), model(X))
    assert len(calls) == 2 and not errors
    done, rows = [], [row.path for row in summary(model, X).rows]

    def elsewhere(module, args):
        if not done:
            done.append(started(model[0], X))
            joined(done, 20)

    model.register_forward_pre_hook(elsewhere)
    assert [row.path for row in summary(model, X).rows] == rows and done


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("kind", [RuntimeError, TypeError])
def test_an_error_without_a_message_stays_as_it_is(warm, kind, monkeypatch):
    layer, graph = GConv(gat(3, 2)), Graph(INDEX, 5)
    if warm:
        layer(X, graph)

    def fails(*_):
        raise kind

    monkeypatch.setattr(type(layer.spec.structure), "basis", fails)
    with pytest.raises(kind) as caught:
        layer(X, graph)
    assert caught.type is kind
