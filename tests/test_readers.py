"""Graphs of every library are read by what they are; edge lists; and every mistake in them is a sentence."""

from types import SimpleNamespace

import networkx as nx
import numpy as np
import pandas as pd
import pygsp
import pytest
import scipy.sparse as sp
import torch
import torch_geometric.transforms as T
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData, TemporalData
from torch_geometric.loader import DataLoader

from gconv import GConv, Graph, Grid, grid_graph
from gconv.domains import read_graph
from gconv.operators import conv2d, gat, gcn, global_pool, selection

INDEX = torch.tensor([[0, 1, 1, 2, 0], [1, 0, 2, 1, 3]])  # directed: nothing leaves node 3
WEIGHT = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0])
X = torch.arange(8.0).view(4, 2)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


class MyData(Data):
    """A subclass outside of torch_geometric."""


class MyGraph(nx.DiGraph):
    """A subclass outside of networkx."""


class MyMatrix(sp.csr_matrix):
    """A subclass outside of scipy."""


class MyEdgeIndex(torch.Tensor):
    """A tensor subclass."""


def my_graph(kind=MyGraph, **names):
    graph = kind()
    graph.add_nodes_from(range(4))
    graph.add_weighted_edges_from(zip(*INDEX.tolist(), WEIGHT.tolist(), strict=True), **names)
    return graph


def matrix(kind):
    return kind(sp.coo_matrix((WEIGHT.numpy(), INDEX.numpy()), (4, 4)))


def adjacency():
    with torch.sparse.check_sparse_tensor_invariants(False):  # said, or torch warns at the first such tensor
        return torch.sparse_coo_tensor(INDEX.flip(0), WEIGHT, (4, 4))


def data(kind=Data, **more):
    return kind(x=X, edge_index=INDEX, edge_weight=WEIGHT, **more)


def pygsp_graph():
    graph = pygsp.graphs.Graph(matrix(sp.csr_matrix))
    graph.set_coordinates(np.arange(8).reshape(4, 2))
    return graph


HELD = {
    "Graph": lambda: Graph(INDEX, 4, edge_weight=WEIGHT),
    "Data": data,
    "subclass of Data": lambda: data(MyData),
    "duck": lambda: SimpleNamespace(edge_index=INDEX, edge_weight=WEIGHT, num_nodes=4),
    "adj_t csr": lambda: T.ToSparseTensor(layout=torch.sparse_csr)(data()),
    "adj_t coo": lambda: T.ToSparseTensor(layout=torch.sparse_coo)(data()),
    "coo": adjacency,
    "csr": lambda: adjacency().to_sparse_csr(),
    "csc": lambda: adjacency().to_sparse_csc(),
    "bsr": lambda: adjacency().to_sparse_bsr((2, 2)),
    "networkx": lambda: my_graph(nx.DiGraph),
    "subclass of networkx": my_graph,
    "multigraph": lambda: my_graph(nx.MultiDiGraph),
    "view": lambda: nx.subgraph_view(my_graph()),
    "subclass of scipy": lambda: matrix(MyMatrix),
    "pygsp": pygsp_graph,
} | {
    f"scipy {kind.__name__}": lambda kind=kind: matrix(kind)
    for kind in (sp.csr_matrix, sp.csc_array, sp.coo_array, sp.lil_matrix, sp.dok_array, sp.dia_matrix, sp.bsr_array)
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_every_graph_that_a_user_holds_is_the_same_graph(held):
    graph, domain = Graph(INDEX, 4, edge_weight=WEIGHT), held()
    for spec in (gcn(2, 3), global_pool("sum")):
        layer = GConv(spec)
        close(layer(X, domain), layer(X, graph))
        assert "dense" in str(layer.plan(X, domain))
    layer = GConv(gcn(2, 3))
    close(layer.at(domain) @ X, layer.at(graph) @ X)


BARE = {
    "EdgeIndex": lambda: EdgeIndex(INDEX, sparse_size=(4, 4)),
    "subclass of Tensor": lambda: INDEX.as_subclass(MyEdgeIndex),
    "Parameter": lambda: torch.nn.Parameter(INDEX, requires_grad=False),
    "array": INDEX.numpy,
    "not contiguous": lambda: INDEX.t().contiguous().t(),
} | {
    str(dtype): lambda dtype=dtype: INDEX.to(dtype)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64)
}


@pytest.mark.parametrize("held", BARE.values(), ids=BARE)
def test_an_edge_index_of_any_integers(held):
    layer = GConv(gcn(2, 3))
    want = layer(X, INDEX, edge_weight=WEIGHT)
    assert torch.equal(layer(X, held(), edge_weight=WEIGHT), want)
    assert torch.equal(layer(X, held(), edge_weight=WEIGHT.numpy()), want)
    graph = Graph(held(), 4)
    assert type(graph.edge_index) is torch.Tensor and graph.edge_index.dtype == torch.int64
    assert torch.equal(graph.edge_index, INDEX)


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_tensor_is_int64_before_it_indexes_compares_or_reduces(dtype):
    h = torch.tensor([[0, 1, 2], [1, 2, 2]])
    graph = Graph.from_hyperedge_index(h.to(dtype), 3, torch.tensor([5.0, 7.0, 9.0]))
    assert graph.edge_weight.tolist() == [7, 9, 9] and graph.edge_type.tolist() == [1, 2, 2]
    labels = torch.tensor([0, 3, 1, 2, 3])
    layer = GConv(selection(2, 2, 4))
    assert torch.equal(layer(X, INDEX, edge_type=labels.to(dtype)), layer(X, INDEX, edge_type=labels))
    assert Graph(INDEX, edge_type=labels.to(dtype)).edge_type.dtype == torch.int64
    batch = Graph.from_edge_index(INDEX[:, :0].to(dtype), batch=torch.tensor([0, 0, 1, 1]).to(dtype))
    assert batch.ptr == (0, 2, 4)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_batch_is_a_disjoint_union_for_layers_and_pools():
    parts = [Data(x=torch.randn(n, 2), edge_index=INDEX[:, : n - 1]) for n in (4, 3, 5)]
    batch = next(iter(DataLoader(parts, 3)))
    layer, pool = GConv(gcn(2, 3)), GConv(global_pool())
    want = [layer(part.x, Graph(part.edge_index, part.num_nodes)) for part in parts]
    close(layer(batch.x, batch), torch.cat(want))
    means = torch.stack([part.mean(0) for part in want])
    close(pool(layer(batch.x, batch), batch), means)
    held = Graph.from_edge_index(batch.edge_index, batch=batch.batch)
    close(pool(layer(batch.x, held), held), means)
    kept = Data(x=batch.x, edge_index=batch.edge_index, batch=batch.batch)
    assert Graph.from_pyg(kept).ptr == held.ptr == Graph.from_pyg(batch).ptr == (0, 4, 7, 12)
    sparse = Batch.from_data_list([T.ToSparseTensor(layout=torch.sparse_csr)(part.clone()) for part in parts])
    close(pool(layer(batch.x, sparse), sparse), means)


def test_the_matrix_of_torch_sparse_acts_on_signals_and_that_of_scipy_is_its_transpose():
    A = torch.tensor([[0.0, 0.0], [3.0, 0.0]])  # one edge, from node 0 to node 1
    x = torch.tensor([[1.0], [10.0]])
    graph = Graph.from_sparse(A.to_sparse())
    assert graph.edge_index.tolist() == [[0], [1]]
    assert torch.equal(graph.weights().new_zeros(2, 1).index_add(0, graph.target, 3 * x[graph.source]), A @ x)
    assert torch.equal(Graph.from_scipy(sp.csr_array(A.numpy().T)).edge_index, graph.edge_index)


def test_weights_of_a_sparse_tensor_keep_their_gradients():
    values = WEIGHT.clone().requires_grad_()
    layer = GConv(gcn(2, 3))
    layer(X, torch.sparse_coo_tensor(INDEX.flip(0), values, (4, 4))).square().sum().backward()
    given = WEIGHT.clone().requires_grad_()
    layer(X, INDEX, edge_weight=given).square().sum().backward()
    close(values.grad, given.grad)
    ones = torch.sparse_coo_tensor(INDEX.flip(0), torch.ones(5), (4, 4))
    assert Graph.from_sparse(ones).edge_weight is None


def test_what_was_read_is_recognised_until_it_changes():
    held = data()
    graph = read_graph(held, 4)
    assert read_graph(held, 4) is graph and read_graph(held.clone(), 4) is not graph
    held.edge_weight = WEIGHT + 1
    assert read_graph(held, 4).edge_weight.tolist() == (WEIGHT + 1).tolist()
    held.ptr = torch.tensor([0, 2, 4])
    assert read_graph(held, 4).ptr == (0, 2, 4)
    assert read_graph(held.edge_index, 4).ptr == (0, 4) and read_graph(held.edge_index, 4).edge_weight is None
    sparse = adjacency()
    assert read_graph(sparse, 4) is read_graph(sparse, 4)


def test_the_events_of_temporal_data_are_edges():
    graph = Graph.from_pyg(TemporalData(src=INDEX[0], dst=INDEX[1], t=torch.arange(5)))
    assert torch.equal(graph.edge_index, INDEX) and graph.size == 4


def test_zeros_that_fill_up_blocks_are_no_edges():
    full = sp.csr_array(matrix(sp.csr_array)).tobsr((2, 2))
    assert Graph.from_scipy(full).num_edges == 5 == Graph.from_sparse(adjacency().to_sparse_bsr((2, 2))).num_edges
    assert Graph.from_scipy(sp.coo_array(([0.0], ([0], [1])), (2, 2))).num_edges == 1, "a zero that is stored stays"


def test_weights_of_networkx():
    assert Graph.from_networkx(my_graph(), None).edge_weight is None
    assert (
        Graph.from_networkx(my_graph(weight="w"), "w").edge_weight.tolist()
        == Graph.from_networkx(my_graph()).edge_weight.tolist()
    )
    assert Graph.from_networkx(my_graph(weight="w")).edge_weight is None
    assert Graph.from_networkx(nx.Graph(), "w").size == 0


def edge(**attributes):
    graph = nx.Graph()
    graph.add_edge("a", "b", **attributes)
    return graph


MISTAKES = [
    (
        "misspelt",
        lambda: Graph.from_networkx(my_graph(weight="weight"), "wieght"),
        ValueError,
        "No edge of the graph has an attribute 'wieght'; did you mean 'weight'",
    ),
    ("no attributes", lambda: Graph.from_networkx(edge(), "w"), ValueError, "they have no attributes"),
    (
        "weight None",
        lambda: Graph.from_networkx(edge(weight=None)),
        ValueError,
        "The weight of the edge from 'a' to 'b' must be a finite number, but it is None",
    ),
    (
        "weight text",
        lambda: Graph.from_networkx(edge(weight="3")),
        ValueError,
        "must be a finite number, but it is '3'",
    ),
    (
        "weight NaN",
        lambda: Graph.from_networkx(edge(weight=float("nan"))),
        ValueError,
        "must be a finite number, but it is nan",
    ),
    (
        "weight huge",
        lambda: Graph.from_networkx(edge(weight=10**999)),
        ValueError,
        "but it is an integer of 3319 bits",
    ),
    (
        "weight complex",
        lambda: Graph.from_networkx(edge(weight=1j)),
        ValueError,
        "must be a finite number, but it is 1j",
    ),
    ("no networkx graph", lambda: Graph.from_networkx([(0, 1)]), TypeError, "takes a networkx graph, but a list"),
    (
        "a scipy vector",
        lambda: Graph.from_scipy(sp.coo_array(np.array([1, 0, 2]))),
        ValueError,
        r"must be square, but its shape is \(3,\)",
    ),
    ("a scipy rectangle", lambda: Graph.from_scipy(sp.csr_matrix((2, 3))), ValueError, "must be square"),
    (
        "a complex matrix",
        lambda: Graph.from_scipy(sp.csr_array(1j * np.eye(2))),
        TypeError,
        "but its dtype is complex128",
    ),
    ("a dense matrix", lambda: Graph.from_scipy(np.eye(2)), TypeError, "scipy.sparse.csr_array"),
    ("no pygsp graph", lambda: Graph.from_pygsp(nx.Graph()), TypeError, "takes a graph of pygsp.graphs, but a Graph"),
    (
        "HeteroData",
        lambda: read_graph(HeteroData(), 4),
        TypeError,
        r"A HeteroData holds several graphs.*Bipartite.from_pyg\(data, edge_type\)",
    ),
    ("no edges", lambda: Graph.from_pyg(Data(x=X)), ValueError, "no edge_index and no adj_t"),
    ("no Data", lambda: Graph.from_pyg([1]), TypeError, "takes a torch_geometric.data.Data, but a list"),
    (
        "a mixed batch",
        lambda: Graph.from_pyg(data(batch=torch.tensor([0, 1, 0, 1]))),
        ValueError,
        "batch must be sorted",
    ),
    (
        "a short batch",
        lambda: Graph.from_edge_index(INDEX, 4, batch=torch.tensor([0, 1])),
        ValueError,
        "one index per node, 4, but it has 2",
    ),
    (
        "a float batch",
        lambda: Graph.from_edge_index(INDEX, batch=torch.zeros(4)),
        TypeError,
        "batch must be an integer vector with one index per node",
    ),
    ("a dense adjacency", lambda: read_graph(torch.eye(4), 4), TypeError, r"give A.to_sparse\(\)"),
    ("a rectangular adjacency", lambda: Graph.from_sparse(torch.ones(2, 3).to_sparse()), ValueError, "must be square"),
    (
        "a hybrid adjacency",
        lambda: Graph.from_sparse(torch.ones(2, 2, 3).to_sparse(2)),
        ValueError,
        "must be square|one number per edge",
    ),
    ("a dense tensor as sparse", lambda: Graph.from_sparse(torch.eye(2)), TypeError, "but a dense tensor was given"),
    ("a complex adjacency", lambda: Graph.from_sparse((1j * torch.eye(2)).to_sparse()), TypeError, "must be real"),
    ("a sparse edge_index", lambda: Graph(adjacency()), TypeError, "Graph.from_sparse reads"),
    ("sparse weights", lambda: Graph(INDEX, edge_weight=WEIGHT.to_sparse()), TypeError, "must be a dense tensor"),
    ("complex weights", lambda: Graph(INDEX, edge_weight=WEIGHT * 1j), TypeError, "must be real"),
    ("complex labels", lambda: Graph(INDEX, edge_type=WEIGHT * 1j), TypeError, "must be an integer tensor"),
    (
        "an array of objects",
        lambda: Graph(np.array([[None], [1]])),
        TypeError,
        "must be real, but it is an array of object",
    ),
    ("an array of floats", lambda: Graph(INDEX.numpy() / 2), TypeError, "must be an integer tensor"),
    (
        "weights in a list",
        lambda: GConv(gcn(2, 2))(X, INDEX, edge_weight=[1.0] * 5),
        TypeError,
        "edge_weight must be a torch tensor, but a list",
    ),
    (
        "weights beside Data",
        lambda: GConv(gcn(2, 2))(X, data(), edge_weight=WEIGHT),
        TypeError,
        "together with a bare edge_index",
    ),
    ("pos in a list", lambda: Graph(INDEX, pos=[[0]] * 4), TypeError, "pos must be a torch tensor, but a list"),
    ("a fractional size", lambda: Graph(INDEX, size=2.7), TypeError, "size must be an integer, but it is 2.7"),
    ("a size in quotes", lambda: Graph(INDEX, size="2"), TypeError, "size must be an integer, but it is '2'"),
    ("a huge size", lambda: Graph(INDEX, size=2**80), ValueError, "size must fit into 64 bits"),
    ("num_nodes", lambda: Graph(INDEX, num_nodes=4), TypeError, r"Graph: unknown 'num_nodes'; did you mean 'size'\?"),
    ("a misspelt argument", lambda: Graph(INDEX, edge_wieght=WEIGHT), TypeError, r"did you mean 'edge_weight'\?"),
    (
        "a misspelt edge tensor",
        lambda: GConv(gcn(2, 2)).plan(X, INDEX, weight=WEIGHT),
        TypeError,
        "GConv.plan: unknown 'weight'; did you mean 'edge_weight'",
    ),
    ("ptr", lambda: Graph(INDEX, ptr=(0, 1.5, 4)), TypeError, "ptr must be an integer, but it is 1.5"),
    ("ptr as a number", lambda: Graph(INDEX, ptr=4), TypeError, "ptr must be a sequence, the first node of each part"),
    (
        "hyperedge weights",
        lambda: Graph.from_hyperedge_index(INDEX, hyperedge_weight=[1.0]),
        TypeError,
        "hyperedge_weight must be a torch tensor",
    ),
    (
        "negative hyperedges",
        lambda: Graph.from_hyperedge_index(INDEX - 1, hyperedge_weight=WEIGHT),
        ValueError,
        "contains hyperedge -1",
    ),
    (
        "a union of edges",
        lambda: Graph.union([INDEX]),
        TypeError,
        "Graph.union takes Graphs, but one of them is a Tensor",
    ),
    ("grid_graph(6, 6)", lambda: grid_graph(6, 6), TypeError, r"one integer per axis, such as \(32, 32\), but it is 6"),
    ("Grid(6)", lambda: Grid(6), TypeError, r"one integer per axis, such as \(32, 32\), but it is 6"),
    ("a fractional grid", lambda: Grid((6, 2.5)), TypeError, "An axis of a grid must be an integer, but it is 2.5"),
    ("a grid in quotes", lambda: Grid("66"), TypeError, "must be an integer, but it is '6'"),
    ("neighbours", lambda: grid_graph((3, 3), 4.0), TypeError, "neighbours must be an integer"),
    (
        "three by position",
        lambda: GConv(gcn(2, 2))(X, INDEX, WEIGHT),
        TypeError,
        r"by keyword: layer\(x, graph, edge_weight=w\)",
    ),
]


@pytest.mark.parametrize(("act", "kind", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistakes(act, kind, message):
    with pytest.raises(kind, match=message) as caught:
        act()
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text


@pytest.mark.parametrize(
    "value",
    [
        None, 3, 2.5, "graph", b"x", [], [[0, 1], [1, 0]], (), {}, set(), object(), int, np.float64(1), np.zeros(3),
        Grid((2, 2)), iter(()), 1j,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_every_reader_refuses_other_objects(value):
    readers = [Graph, Graph.from_pyg, Graph.from_networkx, Graph.from_scipy, Graph.from_pygsp, Graph.from_sparse]
    layer = GConv(gcn(2, 2))
    for reader in (*readers, Graph.from_hyperedge_index, lambda v: layer(X, v), layer.at, lambda v: layer.plan(X, v)):
        with pytest.raises((TypeError, ValueError)) as caught:
            reader(value)
        text = str(caught.value)
        assert text.endswith(".") and "attribute '" not in text and "subscript" not in text


def test_arrays_and_numbers_of_numpy():
    pos = np.arange(8, dtype=np.int32).reshape(4, 2)
    graph = Graph(INDEX, np.int64(4), edge_weight=WEIGHT.numpy(), pos=pos, ptr=np.array([0, 2, 4]))
    assert graph.size == 4 and type(graph.size) is int and graph.ptr == (0, 2, 4)
    assert graph.pos.dtype == torch.float32 and graph.edge_weight.dtype == torch.float32
    assert Graph(INDEX, size=torch.tensor(4)).size == 4
    assert Grid(np.array([2, 3])) == Grid((2, 3)) == Grid([2, np.int8(3)]) == Grid(torch.Size([2, 3]))
    assert grid_graph(np.array([3, 3]), np.int64(4)).num_edges == 24


LAYER, ADAPTIVE, CONV = GConv(gcn(2, 2)), GConv(gat(2, 2)), GConv(conv2d(2, 2, 1))
ANYWHERE = {
    "x": lambda v: LAYER(v, GRAPH),
    "lowering": lambda v: LAYER(X, GRAPH, lowering=v),
    "edge_weight": lambda v: LAYER(X, INDEX, edge_weight=v),
    "edge_attr": lambda v: LAYER(X, INDEX, edge_attr=v),
    "edge_type": lambda v: LAYER(X, INDEX, edge_type=v),
    "images": CONV,
    "grid": lambda v: CONV(torch.zeros(1, 2, 3, 3), v),
    "conv at": CONV.at,
    "frozen at": lambda v: ADAPTIVE.at(GRAPH, x=v),
    "plan": lambda v: LAYER.plan(v, GRAPH),
    "measure": lambda v: LAYER.plan(X, GRAPH, measure=v),
    "permute": lambda v: GRAPH.permute(v),
    "reordered": lambda v: GRAPH.reordered(v),
    "union": Graph.union,
    "edge list": Graph.from_edge_list,
    "nodes": lambda v: Graph.from_edge_list([(0, 1)], nodes=v),
    "GConv": GConv,
}
GRAPH = Graph(INDEX, 4)
ODD = [
    None, 3, 2.5, "x", b"x", [], (), {}, object(), int, torch.zeros(2), torch.tensor(1), np.zeros(2), float("nan"),
    torch.nn.Linear(2, 2), GRAPH, Grid((2, 2)), 1j, iter(()), torch.zeros(0, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize("call", ANYWHERE.values(), ids=ANYWHERE)
def test_any_object_gives_a_result_or_a_message(call):
    for value in ODD:
        try:
            call(value)
        except (TypeError, ValueError) as error:
            text = str(error)
            assert text.endswith(".") and "object has no" not in text and "ambiguous" not in text, text
        except FileNotFoundError as error:
            assert value == "x", error


# -- edge lists ----------------------------------------------------------------------------------------------------

PAIRS = [("b", "a"), ("b", "c")]
FRAME = pd.DataFrame({"weight": [0.5, 2.0], "from": ["b", "b"], "to": ["a", "c"]})
NAMED = {"source": "from", "target": "to", "weight": "weight"}


def named(graph, ids):
    return sorted((ids[j], ids[i]) for j, i in graph.edge_index.t().tolist())


@pytest.mark.parametrize(
    ("edges", "columns"),
    [
        (FRAME, NAMED), (FRAME, {"source": 1, "target": 2, "weight": 0}), (FRAME.to_dict("list"), NAMED),
        (FRAME.to_dict("records"), NAMED), (FRAME.to_records(index=False), NAMED),
        (FRAME.itertuples(index=False), {"source": 1, "target": 2, "weight": 0}),
        ([("b", "a", 0.5), ("b", "c", 2)], {"weight": 2}), (iter([["b", "a", 0.5], ["b", "c", 2]]), {"weight": -1}),
    ],
    ids=["frame", "positions", "dict", "records", "structured", "tuples", "triples", "iterator"],
)  # fmt: skip
def test_tables_of_edges(edges, columns):
    graph, ids = Graph.from_edge_list(edges, **columns)
    assert ids == ["b", "a", "c"] and named(graph, ids) == PAIRS and graph.edge_weight.tolist() == [0.5, 2.0]


def test_arrays_of_edges_are_integers_in_order():
    for edges in ([(7, 3), (5, 7)], np.array([[7, 3], [5, 7]], np.uint8), torch.tensor([[7, 3], [5, 7]])):
        graph, ids = Graph.from_edge_list(edges)
        assert ids == [3, 5, 7] and all(type(i) is int for i in ids) and named(graph, ids) == [(5, 7), (7, 3)]
        assert graph.edge_weight is None
    graph, ids = Graph.from_edge_list(np.empty((0, 2), int), nodes=3)
    assert graph.size == 3 and ids == [0, 1, 2] and graph.num_edges == 0
    assert Graph.from_edge_list([])[0].size == 0


def test_whole_numbers_in_tables_of_floats_are_integers():
    table = [[7.0, 3.0, 0.5], [5.0, 7.0, 2.0]]
    for edges in (np.array(table), torch.tensor(table), np.array(table, np.float32), table):
        graph, ids = Graph.from_edge_list(edges, weight=2)
        assert ids == [3, 5, 7] and all(type(i) is int for i in ids)
        assert graph.edge_index.tolist() == [[2, 1], [0, 2]] and graph.edge_weight.tolist() == [0.5, 2.0]
    frame = pd.DataFrame({"u": [7.0, 5.0, None], "v": [3.0, 7.0, 1.0]}).dropna()
    assert Graph.from_edge_list(frame, source="u", target="v")[1] == [3, 5, 7]
    assert Graph.from_edge_list(np.array([[7.0, 3.5], [5.0, 7.0]]))[1] == [7.0, 3.5, 5.0]  # the control


def test_a_file_of_edges_is_searched_for_its_delimiter_once(tmp_path, monkeypatch):
    from gconv.domains import edge_list

    asked, find = [], edge_list._delimiter
    monkeypatch.setattr(edge_list, "_delimiter", lambda *given: asked.append(1) or find(*given))
    path = tmp_path / "edges.txt"
    for delimiter in (" ", ","):
        asked.clear()
        path.write_text("\n".join(f"{k}{delimiter}{k + 1}" for k in range(50)), encoding="utf-8")
        assert Graph.from_edge_list(path)[0].num_edges == 50 and len(asked) == 1


@pytest.mark.parametrize(
    ("text", "columns", "ids", "weights"),
    [
        ("u,v,w\n1,10,0.5\n10,2,2\n", {"source": "u", "target": "v", "weight": "w"}, [1, 2, 10], [0.5, 2]),
        ("# SNAP\n1\t10\n10\t2\n", {}, [1, 2, 10], None),
        ("1  10   .5\n10 2 2\n", {"weight": 2}, [1, 2, 10], [0.5, 2]),
        ('"a, b";c\nc;d\n', {}, ["a, b", "c", "d"], None),
        ("\ufeffu|v\n01|1\n", {"source": "u", "target": "v"}, ["01", "1"], None),
        ("", {}, [], None),
        ('"a, b";"c, d"\n"c, d";"e, f"\n', {}, ["a, b", "c, d", "e, f"], None),
        ('"a", "b"\n"b", "c"\n', {}, ["a", "b", "c"], None),
        ("a;b;1,5\nb;c;2,5\n", {}, ["a", "b", "c"], None),
        ("0\t1\t0,5\n1\t2\t1,5\n", {}, [0, 1, 2], None),
        ("0 1 0,5\n1 2 1,5\n", {}, [0, 1, 2], None),
        ("0,1,2020-01-01 10:00\n1,2,2020-01-01 10:00\n", {}, [0, 1, 2], None),
        ("New York, Boston\nBoston, Salt Lake City\n", {}, ["New York", "Boston", "Salt Lake City"], None),
        ("u,v\n1,2,\n2,3,\n", {"source": "u", "target": "v"}, [1, 2, 3], None),
        ("% sym unweighted\n1 2\n2 3\n", {}, [1, 2, 3], None),
        ("u,v\r\n1,2\r\n", {"source": "u", "target": "v"}, [1, 2], None),
    ],
    ids=[
        "csv", "tabs", "spaces", "quotes", "BOM and leading zeros", "empty", "commas in quotes", "quotes after spaces",
        "decimal commas", "decimal commas and tabs", "decimal commas and spaces", "times", "spaces in names",
        "delimiter at the end", "comments of KONECT", "lines of Windows",
    ],
)  # fmt: skip
def test_files_of_edges(tmp_path, text, columns, ids, weights):
    path = tmp_path / "edges.csv"
    path.write_text(text, encoding="utf-8")
    for held in (path, str(path)):
        graph, found = Graph.from_edge_list(held, **columns)
        assert found == ids and (graph.edge_weight.tolist() if weights else graph.edge_weight) == weights


def test_nodes_cover_isolated_ones_and_give_the_order():
    graph, ids = Graph.from_edge_list(PAIRS, nodes=["d", "c", "b", "a"])
    assert graph.size == 4 and ids == ["d", "c", "b", "a"] and named(graph, ids) == PAIRS
    assert Graph.from_edge_list(PAIRS, nodes=pd.Index(["c", "b", "a"]))[1] == ["c", "b", "a"]
    assert Graph.from_edge_list([(("x", 1), 2.5)])[1] == [("x", 1), 2.5]


def test_duplicates_and_directions():
    edges = [("a", "b", 1.0), ("b", "a", 2.0), ("a", "b", 4.0), ("c", "c", 8.0)]

    def weights(**options):
        graph, ids = Graph.from_edge_list(edges, weight=2, **options)
        return {
            (ids[j], ids[i]): w
            for (j, i), w in zip(graph.edge_index.t().tolist(), graph.edge_weight.tolist(), strict=True)
        }, graph

    assert weights(duplicates="sum")[0] == {("a", "b"): 5, ("b", "a"): 2, ("c", "c"): 8}
    assert weights(duplicates="first")[0] == {("a", "b"): 1, ("b", "a"): 2, ("c", "c"): 8}
    assert weights(duplicates="keep")[1].num_edges == 4
    both, graph = weights(duplicates="sum", undirected=True)
    assert both == {("a", "b"): 7, ("b", "a"): 7, ("c", "c"): 8} and graph.is_undirected and graph.num_edges == 3
    assert weights(duplicates="first", undirected=True)[0] == {("a", "b"): 1, ("b", "a"): 1, ("c", "c"): 8}
    assert weights(duplicates="keep", undirected=True)[1].num_edges == 7
    counted, _ = Graph.from_edge_list([(0, 1), (0, 1)], duplicates="sum")
    assert counted.edge_weight.tolist() == [2.0]


def csv_file(text, encoding="utf-8"):
    def path(folder):
        (folder / "edges.csv").write_bytes(text.encode(encoding))
        return folder / "edges.csv"

    return path


LISTS = [
    (PAIRS[:1] * 2, {}, ValueError, "from 'b' to 'a' is listed more than once; .*duplicates="),
    ([(0, 1), (1, 0)], {"undirected": True}, ValueError, r"more than once \(in either direction\)"),
    (PAIRS, {"nodes": ["a", "b"]}, ValueError, "names the node 'c', which is not in nodes"),
    (PAIRS, {"nodes": ["a", "b", "c", "a"]}, ValueError, "nodes lists 'a' more than once"),
    (
        csv_file("who,whom\nann,bob\n"),
        {"nodes": ["ann", "bob"]},
        ValueError,
        "names the node 'who', .* If the first line of the file is a header, give source and target as names",
    ),
    (PAIRS, {"nodes": "abc"}, TypeError, "nodes must be the list of all names"),
    (PAIRS, {"duplicates": "max"}, ValueError, "duplicates must be 'error', 'sum', 'first' or 'keep', but it is 'max'"),
    (PAIRS, {"weight": 2}, ValueError, "Edge 0 .* has 2 entries, so there is no column weight=2"),
    ([("a", None)], {}, ValueError, "A source or target is missing"),
    ([(1.0, float("nan"))], {}, ValueError, "A source or target is missing"),
    ([("a", ["b"])], {}, TypeError, "must be hashable"),
    (
        [("a", "b", "heavy")],
        {"weight": 2},
        ValueError,
        "weight of edge 0 .* a finite number, but it is 'heavy'",
    ),
    ([("a", "b", None)], {"weight": 2}, ValueError, "must be a finite number, but it is None"),
    ([("a", "b", float("inf"))], {"weight": 2}, ValueError, "must be a finite number, but it is inf"),
    (["ab", "cd"], {}, TypeError, "Edge 0 .* must be a pair of names, but it is 'ab'"),
    ([1, 2], {}, TypeError, "Edge 0 .* must be a pair of names, but it is 1"),
    (3, {}, TypeError, "edges must be pairs, an array, a DataFrame or the path"),
    (None, {}, TypeError, "edges must be pairs"),
    (
        FRAME,
        {"source": "form", "target": "to"},
        ValueError,
        "There is no column 'form' for source; did you mean 'from'",
    ),
    (FRAME, {"source": 5}, ValueError, "source=5 is out of range: the table has 3 columns"),
    ([{"u": 1}], {"source": "u", "target": "v"}, ValueError, "Edge 0 .* has no key 'v', given as target"),
    (INDEX, {}, ValueError, r"shape is \(2, 5\): for an edge_index \(2, e\) use Graph"),
    (INDEX[0], {}, ValueError, r"\(e, 2\) or wider, but its shape is \(5,\)"),
    (csv_file("source,target\n0,1\n1,2\n"), {}, ValueError, "looks like a header.*such as source='source'"),
    (csv_file("0,1\n2\n"), {}, ValueError, "is not a table"),
    (csv_file("u,v\n0,1\n,2\n"), {"source": "u", "target": "v"}, ValueError, "row 1 .* has no source"),
    (csv_file("0,1\n1,2,3\n"), {"weight": 2}, ValueError, "weight=2 is out of range: the table has 2 columns"),
    (csv_file("ä,ö\n", "latin-1"), {}, ValueError, "is not UTF-8 text"),
    (csv_file("Ulm, D;Bonn, D\n"), {}, ValueError, "contain commas and semicolons, and either could separate columns"),
    (
        csv_file("u,v\nNew York, NY,Boston, MA\n"),
        {"source": "u", "target": "v"},
        ValueError,
        "row 0 .* has 4 columns, but the first line has 2; names that contain commas must be in quotation marks",
    ),
    (csv_file("0 1\n1 2 3\n"), {}, ValueError, "row 1 .* has 3 columns, but the first line has 2"),
    (
        csv_file('a,"b\nc,d\n'),
        {},
        ValueError,
        "row 0 .* has a line break in its target: is a quotation mark not closed",
    ),
    (csv_file("%%MatrixMarket matrix\n3 3 1\n1 2\n"), {}, ValueError, "is a Matrix Market file"),
    (csv_file(",from,to\n0,a,b\n"), {}, ValueError, "looks like a header.*such as source='from'"),
    (csv_file("city1,city2,km\nUlm,Bonn,360\nBonn,Kiel,4.9e2\n"), {}, ValueError, "looks like a header.*'city1'"),
    (PAIRS, {"source": 1}, ValueError, "source and target must be different columns, but both are 1"),
    (PAIRS, {"nodes": -2}, ValueError, "or their number, but it is -2"),
    (PAIRS, {"nodes": True}, ValueError, "or their number, but it is True"),
]


@pytest.mark.parametrize(("edges", "options", "kind", "message"), LISTS, ids=range(len(LISTS)))
def test_mistakes_in_edge_lists(tmp_path, edges, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        Graph.from_edge_list(edges(tmp_path) if callable(edges) else edges, **options)
    assert str(caught.value).endswith((".", "?"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="edges"):
        Graph.from_edge_list(tmp_path / "edges.csv")


def test_a_header_of_words_is_not_an_edge(tmp_path):
    """Node names are words here, too, so only the usual names of columns give a header away."""
    path = tmp_path / "edges.csv"
    path.write_text("src,dst\na,b\nb,c\n")
    with pytest.raises(ValueError, match=r"looks like a header.*source='src'"):
        Graph.from_edge_list(path)
    graph, names = Graph.from_edge_list(path, source="src", target="dst")
    assert names == ["a", "b", "c"] and graph.num_edges == 2


@pytest.mark.parametrize("rows", ["a,b,360\nb,c,490\n", "a,b,road\nb,c,rail\n", "a,b,\nb,c,490\n", "a,b,road\n"])
def test_a_file_without_header(tmp_path, rows):
    assert Graph.from_edge_list(csv_file(rows)(tmp_path))[1][:2] == ["a", "b"]


def test_columns_of_an_edge_list(tmp_path):
    ends = {"s": list(torch.tensor([3, 0, 3])), "t": list(torch.tensor([1, 2, 2]))}
    graph, ids = Graph.from_edge_list(ends, source="s", target="t")
    assert ids == [0, 1, 2, 3] and graph.size == 4  # the numbers, not one node for each tensor
    file = tmp_path / "edges.csv"
    file.write_text("--5,b\nc,d\n")
    assert Graph.from_edge_list(file)[1] == ["--5", "b", "c", "d"]
    with pytest.raises(ValueError, match="source=7 is out of range: the table has 2 columns"):
        Graph.from_edge_list(file, source=7, target=8)
    with pytest.raises(TypeError, match="Column 's' must be a list or an array, but it is 3"):
        Graph.from_edge_list({"s": 3, "t": [1]}, source="s", target="t")
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="Several columns are named 'a'"):
        Graph.from_edge_list(pandas.DataFrame([[0, 1], [1, 2]], columns=["a", "a"]), duplicates="keep")
