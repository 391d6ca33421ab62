"""gconv.twin: a grid layer and its graph counterpart compute the same; GConv.from_torch: the same layer in gconv."""

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv, TransformerConv

import gconv
from gconv import Bipartite, GConv, Graph, OutsideFamily, twin
from gconv.errors import InputError
from gconv.operators import cheb, conv2d, gcn, max_pool2d, pixel_unshuffle, pointwise, separable

DOUBLE = torch.float64
EDGES = torch.tensor([[0, 1, 2, 3, 1], [1, 0, 3, 2, 3]])
PADDINGS = ["zeros", "circular", "reflect", "replicate"]


def convolutions():
    for d, shape in ((1, (9,)), (2, (7, 6)), (3, (5, 4, 6))):
        conv, turned = getattr(nn, f"Conv{d}d"), getattr(nn, f"ConvTranspose{d}d")
        yield conv(2, 3, 3), shape
        yield conv(2, 3, 3, stride=2, padding=1), shape
        yield conv(2, 3, 2, dilation=2, padding=2, bias=False), shape
        yield conv(2, 4, 3, padding="same", groups=2), shape
        yield turned(2, 3, 3), shape
        yield turned(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2), shape
        for mode in PADDINGS:
            yield conv(2, 3, 3, padding=2, padding_mode=mode), shape
            yield conv(2, 2, 3, stride=2, padding=1, padding_mode=mode, groups=2), shape
    yield nn.Conv2d(2, 3, (3, 1), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), (7, 6)


CONVOLUTIONS = list(convolutions())
OTHERS = [
    (nn.AvgPool2d(3, 2, 1), (7, 6)), (nn.AvgPool1d(2, ceil_mode=True), (7,)), (nn.AdaptiveAvgPool3d(2), (5, 4, 3)),
    (nn.MaxPool2d(3, 2, 1, dilation=2), (9, 8)), (nn.MaxPool1d(2), (6,)), (nn.AdaptiveMaxPool2d(3), (7, 8)),
    (nn.Upsample(scale_factor=2, mode="bilinear"), (4, 3)), (nn.Upsample(scale_factor=2), (4, 3)),
    (GConv(separable(2, 3, 3, padding=1)), (5, 4)), (GConv(conv2d(2, 3, 3, padding=1)), (5, 4)),
    (GConv(max_pool2d(2)), (6, 4)), (gconv.convert(nn.Conv1d(2, 3, 3)), (8,)), (GConv(pointwise(2, 3)), (4, 5)),
]  # fmt: skip


def channels(layer):
    return getattr(layer, "in_channels", 2)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(len(CONVOLUTIONS) + len(OTHERS)))
def test_a_layer_and_its_twin_are_one_map(number):
    layer, shape = [*CONVOLUTIONS, *OTHERS][number]
    layer = layer.double()
    found = twin(layer)
    x = torch.randn(2, channels(layer), *shape, dtype=DOUBLE, requires_grad=True)
    y, want = found(x), layer(x)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(found(x[0]), want[0])
    dy = torch.randn_like(want)
    torch.testing.assert_close(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(want, x, dy)[0])
    graph = found.graph(shape)
    assert isinstance(graph, Graph) == (found.target(shape) == shape) and found.graph(shape) is graph
    torch.testing.assert_close(found.gconv(x.flatten(2).mT, graph).mT, y.flatten(2))


def test_a_twin_reads_its_graph():
    """Control: without the edges of one tap the twin is the convolution without that tap."""
    conv = nn.Conv2d(1, 1, 3, padding=1).double()
    found, x = twin(conv), torch.randn(1, 1, 4, 4, dtype=DOUBLE)
    graph = found.graph((4, 4))
    keep = graph.edge_type != 2
    fewer = Graph(graph.edge_index[:, keep], graph.size, edge_type=graph.edge_type[keep])
    with torch.no_grad():
        y = found.gconv(x.flatten(2).mT, fewer).mT.view_as(x)
        assert (y - conv(x)).abs().max() > 1e-3
        conv.weight[0, 0, 0, 2] = 0
        torch.testing.assert_close(y, conv(x))
        torch.testing.assert_close(found.float()(x.float()), found.double()(x).float(), atol=1e-5, rtol=1e-5)
    assert not torch.equal(found(x), conv(x)), "the twin has a copy of the weights"


def test_layers_without_a_twin_give_a_reason():
    for value, error, message in [
        (3, TypeError, "twin takes a layer"),
        (nn.Conv2d, TypeError, "twin takes a layer"),
        (GConv(gcn(2, 2)), TypeError, "but gcn works on graphs"),
        (GCNConv(2, 2), TypeError, "works on graphs"),
        (nn.ReLU(), OutsideFamily, "ReLU cannot be written as a GConv: an activation"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), OutsideFamily, "contains several layers"),
        (nn.LazyConv2d(2, 3), OutsideFamily, "is not initialised, so it has no weights yet: call it once"),
        (GConv(pixel_unshuffle(2)), OutsideFamily, "has no twin"),
    ]:
        with pytest.raises(error, match=message):
            twin(value)
    found = twin(nn.Conv2d(1, 1, 3))
    with pytest.raises(InputError, match="takes images"):
        found(torch.zeros(3, 3))
    for shape in ((5,), (5, 5, 5)):
        with pytest.raises(InputError, match=rf"takes grids with 2 axes, but the shape is \({shape[0]}"):
            found.graph(shape)
    assert isinstance(found.graph((5, 5)), Bipartite)


@pytest.mark.parametrize("number", range(len(CONVOLUTIONS)))
def test_a_layer_of_torch_as_a_gconv(number):
    layer, shape = CONVOLUTIONS[number]
    layer = layer.double().eval()
    made = GConv.from_torch(layer)
    assert type(made) is GConv and not made.training
    x = torch.randn(2, channels(layer), *shape, dtype=DOUBLE)
    torch.testing.assert_close(made(x), layer(x))
    layer.train()
    with torch.no_grad():
        layer.weight.zero_()
    assert made.weight.abs().sum() > 0, "a copy"


def test_layers_on_graphs_and_frozen_weights_as_gconvs():
    x = torch.randn(4, 3, dtype=DOUBLE)
    for layer in (GCNConv(3, 2), SAGEConv(3, 2), GATConv(3, 2, heads=2), gconv.convert(GCNConv(3, 2))):
        layer = layer.double()
        layer.requires_grad_(False)
        made = GConv.from_torch(layer)
        torch.testing.assert_close(made(x, EDGES), layer(x, EDGES))
        assert not any(p.requires_grad for p in made.parameters())
    linear = nn.Linear(3, 2).double()
    torch.testing.assert_close(GConv.from_torch(linear)(x.mT.unsqueeze(0))[0].mT, linear(x))
    own = GConv(cheb(3, 2, k=3))
    again = GConv.from_torch(own)
    assert again is not own and again.spec == own.spec and torch.equal(again.weight, own.weight)
    pooled = GConv.from_torch(nn.MaxPool2d(2))
    assert torch.equal(pooled(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 2, 2))
    pruned = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 2, 3)).double()
    signal = torch.randn(1, 3, 6, dtype=DOUBLE)
    torch.testing.assert_close(GConv.from_torch(pruned)(signal), pruned(signal))
    for layer, message in [
        (nn.GELU(), "GELU cannot be written as a GConv"),
        (TransformerConv(3, 2), "acts on a bias"),
        (GINConv(nn.Linear(3, 2)), "GINConv cannot be written as a single GConv"),
    ]:
        with pytest.raises(OutsideFamily, match=message):
            GConv.from_torch(layer)
    with pytest.raises(TypeError, match=r"GConv\.from_torch takes a layer"):
        GConv.from_torch("conv")
