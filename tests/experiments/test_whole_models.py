"""Whole models, converted: compiled, traced, under autocast and as ONNX programs, with the numbers of the original.

Training is held in test_converted_networks.py and test_interop_pyg_calls.py.
"""

import copy

import pytest
import torch
from test_converted_networks import VGG, LeNet, UNet, resnet, small
from torch import nn
from torch_geometric import nn as pyg

from gconv.interop import convert

IMAGES = [small, LeNet, VGG, resnet, UNet]
EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 2, 0], [1, 0, 2, 1, 0, 2, 4, 3]])
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


class Layers(nn.Module):
    """Two layers on a graph, with a ReLU in place between them."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.relu, self.second = first, nn.ReLU(inplace=True), second

    def forward(self, x, edge_index):
        return self.second(self.relu(self.first(x, edge_index)), edge_index)


GRAPHS = {
    "gcn": lambda: Layers(pyg.GCNConv(3, 6), pyg.GCNConv(6, 2)),
    "gat": lambda: Layers(pyg.GATConv(3, 4, heads=2), pyg.GATConv(8, 2, concat=False)),
    "sage": lambda: Layers(pyg.SAGEConv(3, 6), pyg.SAGEConv(6, 2, aggr="max")),
    "cheb": lambda: Layers(pyg.ChebConv(3, 6, K=3), pyg.ChebConv(6, 2, K=2)),
    "model": lambda: pyg.GCN(3, 6, 2, 2),
}


def made(make):
    torch.manual_seed(0)
    model = make().eval()
    return model, convert(model)


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def onnx(model, given, path):
    """What onnxruntime makes of a model and its arguments."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    with torch.no_grad():
        torch.onnx.export(model, given, str(path), dynamo=False, verbose=False)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    named = {entry.name: t.numpy() for entry, t in zip(session.get_inputs(), given, strict=True)}
    return torch.from_numpy(session.run(None, named)[0])


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_models_under_autocast(name):
    model, twin = made(GRAPHS[name])
    x = torch.randn(5, 3)
    same(twin(x, EDGES), model(x, EDGES))
    with torch.autocast("cpu", torch.bfloat16):
        got, want = twin(x, EDGES), model(x, EDGES)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0.1, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("make", IMAGES)
def test_networks_compile_at_three_batch_sizes(make):
    torch._dynamo.reset()
    model, twin = made(make)
    compiled = torch.compile(twin, backend="aot_eager")
    for b in (2, 3, 5):
        x = torch.randn(b, 1, 16, 16)
        same(compiled(x), model(x))
        with torch.no_grad():
            same(compiled(x), model(x))


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("make", IMAGES)
def test_networks_as_onnx_programs(make, tmp_path):
    model, twin = made(make)
    x = torch.randn(2, 1, 16, 16)
    same(onnx(twin, (x,), tmp_path / "model.onnx"), model(x).detach())


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_graph_models_as_onnx_programs(name, tmp_path):
    model, twin = made(GRAPHS[name])
    x = torch.randn(5, 3)
    same(onnx(twin, (x, EDGES), tmp_path / "model.onnx"), model(x, EDGES).detach())


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_graph_models_are_traced(name):
    model, twin = made(GRAPHS[name])
    x, other = torch.randn(5, 3), torch.randn(5, 3)
    traced = torch.jit.trace(twin, (x, EDGES), check_trace=False)
    for edges in (EDGES, EDGES.flip(0)):
        same(traced(other, edges), copy.deepcopy(model)(other, edges))
