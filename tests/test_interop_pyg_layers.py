"""Every PyG layer that gconv converts, against itself: values and all gradients."""

import copy
from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from oracles.common import graphs
from oracles.pyg_layers import ATTR, BARE, BUILDS, CASES, GRAPHS, IDS, WEIGHT, compare
from torch import nn
from torch_geometric import nn as pyg
from torch_geometric.nn import conv

from gconv import Graph
from gconv.interop import convert
from gconv.interop.converted import convertible
from gconv.interop.pyg import PEERS, UNKNOWN, why_outside
from gconv.interop.pyg.common import BY_CHANNEL
from gconv.operators.shapes import messy


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "edges", "build"), BUILDS, ids=IDS)
@pytest.mark.parametrize("where", ["messy", "no edges"])
def test_same_numbers_and_gradients(name, edges, build, where):
    """Directed, weighted and not, with loops, double edges and an isolated node; and without any edge."""
    check(name, edges, build, where)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("where", ["weighted", "one node"])
@pytest.mark.parametrize("name", CASES)
def test_same_numbers_and_gradients_elsewhere(name, where):
    edges, builds = CASES[name]
    check(name, edges, builds[-1], where)


def check(name, edges, build, where):
    torch.manual_seed(0)
    graph = GRAPHS[where]()
    layer = build(3, 2)
    if graph.num_edges == 0 and (
        (name == "ChebConv" and layer.normalization is None) or (name == "FeaStConv" and not layer.add_self_loops)
    ):
        return  # where PyG divides 0 by 0, or fails
    tolerance = 1e-7 if name == "ClusterGCNConv" else 1e-10  # PyG counts its degrees in single precision
    for plain in {True, edges != WEIGHT or graph.edge_weight is None}:
        compare(copy.deepcopy(layer), graph, edges, plain, tolerance)


@hypothesis.given(graphs(), st.sampled_from(BUILDS))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_same_numbers_and_gradients_on_random_graphs(graph, case):
    name, edges, build = case
    hypothesis.assume(bool((graph.source != graph.target).any()) or name not in ("ChebConv", "FeaStConv"))
    torch.manual_seed(0)
    if edges == ATTR:
        graph = Graph(graph.edge_index, graph.size, graph.edge_weight, graph.edge_attr)
    compare(build(3, 2), graph, edges, tolerance=1e-7 if name == "ClusterGCNConv" else 1e-10)


@pytest.mark.parametrize(("name", "edges", "build"), [b for b in BUILDS if b[1] == WEIGHT])
def test_weights_of_both_signs(name, edges, build):
    """What PyG answers in numbers gconv answers too; where a root of a negative degree makes NaN it says so."""
    torch.manual_seed(0)
    graph, layer = GRAPHS["weighted"](), build(3, 2).double()
    if (name, layer.__dict__.get("K")) == ("TAGConv", 0) or (name == "ChebConv" and len(layer.lins) == 1):
        return  # which reads no neighbour
    signed = Graph(graph.edge_index, graph.size, torch.randn(graph.num_edges, dtype=torch.float64))
    given = torch.randn(graph.size, 3, dtype=torch.float64), signed.edge_index, signed.edge_weight
    if copy.deepcopy(layer)(*given).isfinite().all():
        compare(layer, signed, edges, tolerance=1e-8)
    else:
        with pytest.raises(ValueError, match="needs degrees >= 0"):
            convert(layer)(*given)


@pytest.mark.parametrize("cls", sorted(BY_CHANNEL, key=str), ids=lambda cls: cls.__name__)
def test_layers_that_are_cut_into_pieces_run_whole(cls):
    build = CASES[cls.__name__][1][0]
    layer = build(4, 4).double()
    layer.decomposed_layers = 2
    x = torch.randn(GRAPHS["messy"]().size, 4, dtype=torch.float64)
    twin = convert(layer)
    assert twin.gconv is not None
    edges = GRAPHS["messy"]().edge_index
    torch.testing.assert_close(twin(x, edges), layer(x, edges))


def test_most_of_pyg_is_covered():
    classes = {name.split(",")[0].split(" with")[0] for name in CASES}
    assert len(classes) >= 40 and classes == {cls.__name__ for cls in PEERS}
    for cls in (getattr(conv, name) for name in conv.__all__):
        if cls not in PEERS and cls is not conv.MessagePassing:
            assert why_outside(cls) != UNKNOWN, cls


def test_a_wrongly_copied_weight_is_detected(monkeypatch):
    """Negative controls: two taps that change places, a bias row that is lost, attention from the wrong end."""
    for name, build, edges in (
        ("GraphConv", lambda: pyg.GraphConv(3, 3), WEIGHT),
        ("LEConv", lambda: pyg.LEConv(3, 2), WEIGHT),
        ("GATConv", lambda: pyg.GATConv(3, 2, 2), BARE),
    ):
        peer = PEERS[getattr(pyg, name)]

        def wrong(layer, name=name, peer=peer):
            W = dict(peer.weights(layer))
            if name == "GraphConv":
                return W | {"weight": W["weight"].flip(0)}
            if name == "LEConv":
                return W | {"weight": torch.cat([W["weight"][:, :-1], 0 * W["weight"][:, -1:]], 1)}
            return W | {"att_src": W["att_dst"], "att_dst": W["att_src"]}

        layer = build()
        if name == "LEConv":
            nn.init.ones_(layer.lin1.bias)
        monkeypatch.setattr(convertible(type(layer)), "peer", replace(peer, weights=wrong))
        monkeypatch.setitem(PEERS, getattr(pyg, name), replace(peer, weights=wrong))
        with pytest.raises(AssertionError):
            compare(layer, messy(), edges)
        monkeypatch.undo()
