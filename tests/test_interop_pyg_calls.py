"""Converted PyG layers in the ways that users call them: graph after graph, in place, under autocast, sparse."""

import importlib
import pkgutil

import pytest
import torch
import torch_geometric.nn
from oracles.pyg_layers import BUILDS, F64, HOW, IDS, edge_arguments
from torch import nn
from torch_geometric import nn as pyg

from gconv import Graph
from gconv.interop import convert
from gconv.interop.peer import Converted
from gconv.interop.peers import known
from gconv.interop.pyg import PEERS, common
from gconv.operators.shapes import messy

EVERY = pytest.mark.parametrize(("name", "edges", "build"), BUILDS, ids=IDS)


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


@EVERY
def test_graphs_of_equal_size_in_turn(name, edges, build):
    check_alternating(name, edges, build)


def test_a_layer_that_keeps_the_first_graph_is_noticed(monkeypatch):
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
