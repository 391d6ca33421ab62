"""Grid and Graph: immutable, read from every dialect, united, numbered as kernels are."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import Batch, Data

from gconv import Bipartite, GConv, Graph, Grid, grid_graph
from gconv.domains import read_graph
from gconv.kernels import native
from gconv.operators import gcn, sage
from gconv.operators.shapes import messy, ring, weighted

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


def adjacency(graph):
    """A[i, j], target and source, densely."""
    A = torch.zeros(graph.size, graph.size, dtype=torch.float64)
    return A.index_put((graph.target, graph.source), graph.weights(torch.float64), accumulate=True)


# -- immutability --------------------------------------------------------------------------------------------------


def test_a_graph_does_not_follow_its_callers_tensors():
    tensors = {
        "edge_weight": torch.ones(4),
        "edge_attr": torch.ones(4, 2),
        "edge_type": torch.zeros(4, dtype=torch.int64),
    }
    index, pos = PATH.clone(), torch.zeros(3, 2)
    graph = Graph(index, 3, pos=pos, **tensors)
    kept = {name: getattr(graph, name).clone() for name in ("edge_index", "pos", *tensors)}
    index[0, 0] = 2
    pos += 1
    for value in tensors.values():
        value += 1
    assert all(torch.equal(getattr(graph, name), value) for name, value in kept.items())


def test_a_graph_has_no_assignable_fields():
    with pytest.raises(AttributeError):
        ring().size = 3
    with pytest.raises(AttributeError):
        Grid((2, 2)).shape = (3, 3)


def test_replacing_a_field_does_not_take_the_derived_structure_along():
    graph, layer, x = weighted(), GConv(gcn(2, 2)), torch.randn(8, 2)
    before = layer(x, graph)
    other = replace(graph, edge_weight=graph.edge_weight.flip(0) ** 2)
    assert not torch.allclose(layer(x, other), before)
    assert torch.equal(layer(x, graph), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.__setitem__((1, 3), 0),
        lambda index: index.data.__setitem__((1, 3), 0),
        lambda index: index.numpy().__setitem__((1, 3), 0),
        lambda index: index.copy_(index.flip(0)),
    ],
    ids=["in place", ".data", ".numpy()", "copy_"],
)
def test_an_edge_index_modified_in_place_is_read_again(change):
    layer, x, index = (
        GConv(sage(1, 1)),
        torch.tensor([[1.0], [10.0], [100.0]]),
        torch.tensor([[0, 1, 1, 0], [1, 0, 2, 2]]),
    )
    first = layer(x, index)
    assert read_graph(index, 3) is read_graph(index, 3), "an unchanged edge_index is recognised"
    change(index)
    again = layer(x, index)
    assert torch.equal(again, layer(x, Graph(index, 3))) and not torch.equal(again, first)


def test_edge_weights_modified_in_place_are_read_again():
    layer, x, w = GConv(gcn(1, 1)), torch.randn(3, 1), torch.ones(4)
    first = layer(x, PATH, edge_weight=w)
    w[0] = 5
    assert not torch.equal(layer(x, PATH, edge_weight=w), first)
    assert torch.equal(layer(x, PATH), first), "and without them the weights are ones"


def test_structure_derived_in_inference_mode_can_be_used_in_training():
    layer, x, graph = GConv(gcn(2, 2)), torch.randn(7, 2), ring()
    with torch.inference_mode():
        layer(x, graph)
    layer(x.requires_grad_(), graph).sum().backward()
    assert x.grad is not None


def test_learned_edge_weights_reach_every_call():
    """Nothing derived from weights that require grad is kept: two steps see two graphs' gradients."""
    layer, x, w = GConv(gcn(2, 2)), torch.randn(3, 2), torch.ones(4, requires_grad=True)
    for _ in range(2):
        w.grad = None
        layer(x, PATH, edge_weight=w).square().sum().backward()
        assert w.grad.abs().sum() > 0
    graph = Graph(PATH, edge_weight=w)
    for _ in range(2):
        w.grad = None
        layer(x, graph).square().sum().backward(retain_graph=True)
        assert w.grad.abs().sum() > 0


def test_a_copy_of_learned_edges_is_refused_with_a_reason():
    """Its gradients would reach the parameters of the original model."""
    index = torch.tensor([[0, 1], [1, 0]])
    for name in ("edge_weight", "edge_attr", "pos"):
        for made in [Graph, Bipartite] if name != "pos" else [Graph]:
            value = torch.ones((2,) if name == "edge_weight" else (2, 1))
            make = partial(made, index, 2 if made is Graph else (2, 2))
            plain = make(**{name: value})
            assert torch.equal(getattr(copy.deepcopy(plain), name), value)
            with pytest.raises(RuntimeError, match=f"{made.__name__} whose {name} requires gradients cannot be copied"):
                copy.deepcopy(make(**{name: value.requires_grad_()}))


def test_pickle_and_deepcopy():
    graph = messy()
    GConv(gcn(2, 2))(torch.zeros(6, 2), graph)
    for again in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert repr(again) == repr(graph) and torch.equal(again.edge_index, graph.edge_index)
        assert torch.equal(adjacency(again), adjacency(graph)) and not again._memo


# -- readers -------------------------------------------------------------------------------------------------------


def test_pyg_data_and_batch():
    data = Data(edge_index=PATH, edge_attr=torch.randn(4, 2), pos=torch.randn(3, 2), num_nodes=3)
    graph = Graph.from_pyg(data)
    assert torch.equal(graph.edge_index, PATH) and graph.ptr == (0, 3) and torch.equal(graph.edge_attr, data.edge_attr)
    batch = Graph.from_pyg(
        Batch.from_data_list(
            [data, Data(edge_index=PATH[:, :2], edge_attr=torch.zeros(2, 2), pos=torch.zeros(2, 2), num_nodes=2)]
        )
    )
    assert batch.ptr == (0, 3, 5) and batch.size == 5
    union = Graph.union([graph, Graph(PATH[:, :2], edge_attr=torch.zeros(2, 2), pos=torch.zeros(2, 2))])
    assert torch.equal(batch.edge_index, union.edge_index) and batch.ptr == union.ptr


def test_pyg_counts_trailing_isolated_nodes():
    assert Graph.from_pyg(Data(edge_index=PATH, num_nodes=6)).size == 6


@pytest.mark.parametrize("kind", [nx.Graph, nx.DiGraph])
@pytest.mark.parametrize("weighted", [False, True])
def test_networkx(kind, weighted):
    """networkx reads A[source, target], the transpose of ours; an undirected edge is two directed ones, a loop one."""
    g = kind()
    g.add_nodes_from("abcd")
    g.add_edges_from([("a", "b", {"weight": 2.0} if weighted else {}), ("c", "b"), ("c", "c")])
    graph = Graph.from_networkx(g)
    assert torch.equal(adjacency(graph), torch.from_numpy(nx.to_numpy_array(g).T))
    assert (graph.edge_weight is not None) == weighted and graph.size == 4
    assert graph.is_undirected == (kind is nx.Graph)


def test_networkx_multigraph_keeps_double_edges():
    g = nx.MultiDiGraph([(0, 1), (0, 1), (1, 0)])
    assert Graph.from_networkx(g).num_edges == 3


def test_networkx_karate_club():
    graph = Graph.from_networkx(nx.karate_club_graph())
    assert (graph.size, graph.num_edges, graph.is_undirected) == (34, 156, True)


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.coo_array, sp.csc_matrix])
def test_scipy(form):
    dense = np.array([[0, 2.0, 0], [0, 0, 3.0], [1.0, 0, 4.0]])
    graph = read_graph(form(dense), 3)
    assert torch.equal(adjacency(graph), torch.from_numpy(dense.T))


def test_a_layer_reads_every_dialect_alike():
    layer, x = GConv(gcn(2, 3)), torch.randn(3, 2)
    want = layer(x, Graph(PATH))
    for other in (
        PATH,
        PATH.to(torch.int32),
        Data(edge_index=PATH, num_nodes=3),
        nx.path_graph(3),
        sp.csr_matrix(np.eye(3, k=1) + np.eye(3, k=-1)),
    ):
        torch.testing.assert_close(layer(x, other), want)


# -- grids as graphs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("periodic", [False, True])
def test_grid_graph_labels_are_the_kernels_raster(shape, corners, periodic):
    """Edge j -> i with label k: site j is what tap k of a 3^d kernel reads at i."""
    d = len(shape)
    neighbours = 3**d - 1 if corners else 2 * d
    graph = grid_graph(shape, neighbours, loops=True, periodic=periodic)
    site = np.stack(np.unravel_index(np.arange(graph.size), shape), 1)
    seen = set()
    for (j, i), label, offset in zip(
        graph.edge_index.t().tolist(), graph.edge_type.tolist(), graph.edge_attr.tolist(), strict=True
    ):
        place = np.unravel_index(label, (3,) * d)
        assert offset == [float(p - 1) for p in place]
        reached = site[i] + np.array(place) - 1
        assert (site[j] == (reached % shape if periodic else reached)).all()
        seen.add((i, label))
    if periodic:
        assert len(seen) == graph.num_edges == graph.size * (neighbours + 1)
    assert torch.equal(graph.pos, torch.from_numpy(site).float())


def test_grid_graph_counts():
    assert grid_graph((4, 5), 4).num_edges == 2 * (4 * 4 + 3 * 5)
    assert grid_graph((1,)).num_edges == 0
    nx_grid = nx.convert_node_labels_to_integers(nx.grid_2d_graph(4, 5))
    assert torch.equal(adjacency(grid_graph((4, 5), 4)), torch.from_numpy(nx.to_numpy_array(nx_grid)))


# -- unions --------------------------------------------------------------------------------------------------------


def test_union_numbers_on_and_marks_parts():
    union = Graph.union([ring(3), Graph.union([ring(4), Graph(torch.empty(2, 0, dtype=torch.int64), 2)])])
    assert union.ptr == (0, 3, 7, 9) and union.part().tolist() == [0] * 3 + [1] * 4 + [2] * 2
    assert torch.equal(adjacency(union)[:3, :3], adjacency(ring(3))) and adjacency(union)[:3, 3:].sum() == 0


def test_union_joins_tensors_or_refuses():
    union = Graph.union([messy(), messy()])
    assert union.edge_weight.shape == (20,) and union.edge_attr.shape == (20, 2)
    with pytest.raises(ValueError, match="Only 1 of the 2 graphs have edge_weight"):
        Graph.union([Graph(PATH, edge_weight=torch.ones(4)), Graph(PATH)])
    with pytest.raises(ValueError, match="union of no graphs"):
        Graph.union([])


def test_degrees_and_direction():
    graph = Graph(torch.tensor([[0, 0, 2], [1, 2, 2]]), 4, edge_weight=torch.tensor([1.0, 2.0, 4.0]))
    assert graph.in_degree().tolist() == [0, 1, 6, 0] and graph.out_degree().tolist() == [3, 0, 4, 0]
    assert not graph.is_undirected and ring().is_undirected and weighted().is_undirected


def test_to_the_same_device_is_the_same_graph():
    graph = ring()
    assert graph.to("cpu") is graph and graph.to("meta").device.type == "meta"


@pytest.mark.parametrize("how", ["rcm", "degree"])
def test_a_reordered_graph_computes_the_same(how):
    edge_index = torch.randint(0, 30, (2, 90))
    graph = Graph(edge_index, 31, edge_weight=torch.rand(90), pos=torch.randn(31, 2))
    other, order = graph.reordered(how)
    assert sorted(order.tolist()) == list(range(31)) and torch.equal(other.pos, graph.pos[order])
    layer, x = GConv(gcn(3, 4), dtype=torch.float64), torch.randn(31, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x[order], other), layer(x, graph)[order])


def test_reverse_cuthill_mckee_brings_neighbours_together():
    natural = grid_graph((20, 20), 4)
    shuffled = natural.permute(torch.randperm(400))
    span = [int((g.source - g.target).abs().max()) for g in (natural, shuffled, shuffled.reordered()[0])]
    assert span[2] <= 2 * span[0] < span[1]


def test_an_order_does_not_depend_on_how_numpy_sorts_equal_numbers(monkeypatch):
    """Which depends on the processor: numpy's default sort is not stable."""
    if native.LIBRARY is None:
        pytest.skip("without the compiled kernels scipy sorts")
    graph, real = Graph(torch.randint(0, 300, (2, 900)), size=300), np.argsort
    orders = [graph.reordered(how)[1] for how in ("rcm", "degree")]

    def reversed_ties(values, *args, kind=None, **named):
        if kind == "stable":
            return real(values, *args, kind=kind, **named)
        return len(values) - 1 - real(np.asarray(values)[::-1], kind="stable")

    monkeypatch.setattr(np, "argsort", reversed_ties)
    for how, order in zip(("rcm", "degree"), orders, strict=True):
        assert torch.equal(graph.reordered(how)[1], order)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="how must be 'rcm' or 'degree', but it is 'size'"):
        grid_graph((2, 2)).reordered("size")


def test_a_graph_is_undirected_up_to_the_rounding_of_its_weights():
    """D^-1/2 A D^-1/2 in float32 is symmetric up to rounding; double edges of opposite sign may cancel."""
    g = weighted()
    for dtype in (torch.float32, torch.float64):
        root = g.in_degree(dtype).clamp(min=1).rsqrt()
        w = root[g.source] * g.weights(dtype) * root[g.target]
        assert Graph(g.edge_index, g.size, edge_weight=w).is_undirected
        bent = w.clone()
        bent[0] *= 1.001
        assert not Graph(g.edge_index, g.size, edge_weight=bent).is_undirected
    index = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    w = torch.tensor([0.1, 0.2, -0.3, 0.2, -0.3, 0.1], dtype=torch.float64)
    assert Graph(index, edge_weight=w).is_undirected
