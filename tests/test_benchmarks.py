"""Single kernels under pytest-benchmark: `pytest tests/test_benchmarks.py -m slow`. Comparisons: experiments.speed."""

import pytest
import torch

from experiments.harness.measure import power_law
from gconv import GConv, Graph
from gconv.kernels import sddmm, spmm
from gconv.operators import appnp, cheb, gat, gcn, sage, tag

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.slow
NODES, EDGES = 20_000, 200_000


@pytest.fixture(scope="module")
def graph():
    return Graph(power_law(NODES, EDGES, 0), NODES)


@pytest.mark.parametrize("width", [16, 64, 256])
def test_spmm(benchmark, graph, width):
    csr, values, back = GConv(gcn(1, 1, bias=False)).at(graph).S.ordered("expand")
    x = torch.randn(NODES, width)
    assert benchmark(spmm, csr, values, x, back).shape == x.shape


@pytest.mark.parametrize("width", [16, 64])
def test_sddmm(benchmark, graph, width):
    csr, _, _ = GConv(gcn(1, 1, bias=False)).at(graph).S.ordered("expand")
    a, b = torch.randn(2, NODES, width)
    assert len(benchmark(sddmm, csr, a, b)) == EDGES + NODES


LAYERS = {
    "gcn": gcn(64, 64),
    "cheb": cheb(64, 64, k=3),
    "sage": sage(64, 64),
    "gat": gat(64, 8, heads=8),
    "tag": tag(64, 64),
    "appnp": appnp(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_forward_and_backward(benchmark, graph, name):
    layer, x = GConv(LAYERS[name]), torch.randn(NODES, 64, requires_grad=True)
    leaves = [*layer.parameters(), x]
    benchmark(lambda: torch.autograd.grad(layer(x, graph).sum(), leaves))
