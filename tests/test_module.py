"""GConv, the layer: dialects at the door, parameters, training, LinearMap."""

import copy

import pytest
import torch
from torch import nn

from gconv import GConv, Graph, Grid, LinearMap, NotLinear, OperatorSpec, cite, list_operators
from gconv.analysis import matrix
from gconv.mixing import Dense, initial_weight
from gconv.operators import (
    appnp,
    avg_pool2d,
    cheb,
    conv1d,
    conv2d,
    conv_transpose2d,
    gat,
    gcn,
    global_pool,
    max_pool2d,
    monet,
    pointwise,
    separable,
)
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import operator
from gconv.testing import assert_close


def test_images_have_the_layout_of_torch():
    layer, x = GConv(conv2d(3, 4, 3, stride=2, padding=1)), torch.randn(2, 3, 8, 6)
    want = nn.functional.conv2d(x, layer.weight.permute(2, 1, 0).unflatten(-1, (3, 3)), layer.bias, 2, 1)
    assert_close("a batch", layer(x), want, 1e-5)
    assert_close("one image", layer(x[0]), want[0], 1e-5)
    assert_close("channels last", layer(x.contiguous(memory_format=torch.channels_last)), want, 1e-5)
    assert_close("with its grid beside it", layer(x, Grid((8, 6))), want, 1e-5)


def test_channels_last_images_are_not_copied_on_the_way_out():
    y = GConv(conv2d(3, 8, 3, padding=1))(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_many_signals_on_one_graph_are_one_call():
    layer, x = GConv(cheb(2, 3, k=3)), torch.randn(4, 5, 8, 2)
    y = layer(x, weighted())
    assert y.shape == (4, 5, 8, 3)
    assert_close("each signal", y[2, 3], layer(x[2, 3], weighted()), 1e-5)


def test_weights_start_as_torchs_and_the_papers_do():
    torch.manual_seed(0)
    w = GConv(conv2d(16, 32, 3)).weight
    assert w.abs().max() <= 1 / (16 * 9) ** 0.5 and w.abs().max() > 0.95 / (16 * 9) ** 0.5
    layer = GConv(gcn(100, 20))
    assert layer.weight.abs().max() <= (6 / 120) ** 0.5 and layer.weight.abs().max() > 0.95 * (6 / 120) ** 0.5
    assert torch.equal(layer.bias, torch.zeros(20))
    w = GConv(separable(16, 32, 3)).weight
    assert w[:9].abs().max() <= 1 / 3 and w[9:].abs().max() <= 1 / 4


def test_the_weight_is_stored_as_torchs_kernels_want_it():
    weight = initial_weight(Dense(9, 3, 4), "fan_in", None, None)
    assert weight.shape == (9, 3, 4) and weight.permute(2, 1, 0).is_contiguous()


def test_dtype_and_device_of_parameters():
    layer = GConv(monet(2, 3, dim=2, kernel_size=2), dtype=torch.float64, device="meta")
    assert {p.dtype for p in layer.parameters()} == {torch.float64} and all(p.is_meta for p in layer.parameters())
    assert set(dict(layer.named_parameters())) == {"weight", "mu", "sigma", "bias"}


def test_a_layer_without_weights():
    layer = GConv(appnp(3, 0.2))
    assert not list(layer.parameters()) and layer(torch.ones(7, 5), ring()).shape == (7, 5)
    assert GConv(global_pool())(torch.ones(2, 3, 4, 4)).shape == (2, 3, 1, 1)


def test_autocast_runs_and_training_moves_every_parameter():
    layer = GConv(gat(3, 4, heads=2))
    before = copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    x = torch.randn(6, 3)
    layer(x, messy()).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in layer.state_dict().items())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert GConv(conv2d(3, 4, 3))(torch.randn(1, 3, 5, 5)).dtype == torch.bfloat16
        assert GConv(gcn(3, 4))(x, messy()).isfinite().all()


def test_attention_dropout_acts_in_training_only():
    layer, x = GConv(gat(3, 2, heads=2, dropout=0.6)), torch.randn(7, 3)
    assert not torch.equal(layer(x, ring()), layer(x, ring()))
    layer.eval()
    assert torch.equal(layer(x, ring()), layer(x, ring()))


def test_an_attention_layer_on_no_signals():
    assert GConv(gat(3, 2, heads=2))(torch.zeros(0, 7, 3), ring()).shape == (0, 7, 4)
    assert GConv(gat(3, 2, heads=2))(torch.zeros(2, 0, 7, 3), ring()).shape == (2, 0, 7, 4)


def test_specs_print_as_they_are_called_and_compare():
    spec = conv2d(3, 64, (3, 2), padding=1, padding_mode="circular")
    assert repr(spec) == "conv2d(3, 64, (3, 2), padding=1, padding_mode='circular')"
    assert OperatorSpec.parse(repr(spec)) == spec and hash(OperatorSpec.from_dict(spec.to_dict())) == hash(spec)
    assert spec != conv2d(3, 64, (3, 2), padding=1) and conv2d(3, 4, [3, 3]) == conv2d(3, 4, (3, 3))
    assert repr(GConv(spec)) == f"GConv({spec!r})"
    assert cite(spec) and len(list_operators()) >= 25


def test_linear_map_is_closed_under_transpose():
    A = GConv(conv2d(2, 3, 3, stride=2, padding=1)).at(Grid((5, 4)))
    assert isinstance(A, LinearMap) and A.shape == (6 * 3, 20 * 2) and A.T.shape == (40, 18) and A.T.T.shape == A.shape
    assert torch.equal(matrix(A.T), matrix(A).T)
    assert repr(A) == "LinearMap(18 x 40, Shifts, Dense)"


def test_maximum_has_no_map_and_attention_needs_a_signal():
    with pytest.raises(NotLinear, match="takes a maximum over its window, so it has no matrix, adjoint or spectrum"):
        GConv(max_pool2d(2)).at(Grid((4, 4)))
    with pytest.raises(ValueError, match="adapts its structure to the signal"):
        GConv(gat(2, 2)).at(ring())
    assert GConv(gat(2, 2)).at(ring(), x=torch.randn(7, 2)).shape == (14, 14)


def test_a_frozen_map_is_linear_where_the_layer_is_not():
    layer, x = GConv(gat(2, 2, bias=False)), torch.randn(7, 2)
    A = layer.at(ring(), x=x)
    assert_close("at its own signal", A @ x, layer(x, ring()), 1e-5)
    assert_close("twice the signal", A @ (2 * x), 2 * layer(x, ring()), 1e-5)
    assert (layer(5 * x, ring()) - 5 * layer(x, ring())).abs().max() > 1e-4


def test_layers_compose_in_a_model():
    model = nn.Sequential(
        GConv(conv2d(1, 4, 3, padding=1)), nn.ReLU(), GConv(avg_pool2d(2)), GConv(pointwise(4, 2)), GConv(global_pool())
    )
    y = model(torch.randn(3, 1, 8, 8))
    assert y.shape == (3, 2, 1, 1)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_one_layer_on_many_grids():
    layer = GConv(conv1d(1, 1, 3, padding=1))
    assert [layer(torch.zeros(1, 1, n)).shape[-1] for n in (3, 9, 4)] == [3, 9, 4]


def test_an_edge_index_in_int32_and_no_grad():
    layer = GConv(gcn(2, 2))
    with torch.no_grad():
        y = layer(torch.ones(7, 2), ring().edge_index.int())
    assert not y.requires_grad and torch.equal(y, layer(torch.ones(7, 2), Graph(ring().edge_index)))


@pytest.mark.parametrize("lowering", ["native", "im2col", "fft", "sparse:aggregate", "sparse:transform", "dense"])
def test_autocast_gives_the_type_of_torchs_layers_whatever_runs(lowering):
    layer, images = GConv(conv2d(3, 4, 3, padding=1)), torch.randn(2, 3, 6, 6)
    want = layer(images)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(images, lowering=lowering)
        assert got.dtype == torch.nn.Conv2d(3, 4, 3)(images).dtype == torch.bfloat16
        assert layer.double()(images.double(), lowering=lowering).dtype == torch.float64  # as torch leaves it
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize("name", ["gcn", "cheb", "appnp", "heat", "relational", "gat", "conv2d"])
def test_a_signal_whose_sign_torch_stores_apart(name):
    """As of the imaginary part of a conjugate."""
    sample = operator(name).samples()[0]
    domain, layer = sample.domain(), GConv(sample.spec, dtype=torch.float64)
    grid = isinstance(domain, Grid)
    shape = (1, sample.channels, *domain.shape) if grid else (domain.size, sample.channels)
    x = torch.randn(shape, dtype=torch.float64)
    negative = torch._neg_view(-x)
    assert negative.is_neg() and negative.equal(x)
    for _ in range(2):
        assert_close(name, *(layer(x) if grid else layer(x, domain) for x in (negative, x)), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lowering", ["native", "im2col"])
@pytest.mark.parametrize(
    "spec", [avg_pool2d(35, stride=1), max_pool2d(35, stride=1), conv_transpose2d(1, 1, 35)], ids=str
)
def test_sums_over_many_windows_in_16_bits(spec, dtype, lowering):
    """torch's average pooling sums the gradients of overlapping windows in 16 bits."""
    n = 37 if spec.name == "conv_transpose2d" else 69
    layer, x = GConv(spec, dtype=dtype), torch.linspace(0.5, 1, n * n).view(1, 1, n, n)
    if layer.weight is not None:
        layer.weight.data.fill_(0.5)
    if spec.name == "max_pool2d":  # the largest of every window is the one in the middle
        x = x.clone().fill_(0.5).index_put((*torch.tensor([0, 0, 34, 34]).unbind(),), torch.tensor(2.0))
    x = x.to(dtype).requires_grad_()
    wide = copy.deepcopy(layer).double()
    long = x.detach().double().requires_grad_()
    y, want = layer(x, lowering=lowering), wide(long)
    assert_close("value", y.double(), want, 0.01)
    got = torch.autograd.grad(y.sum(), x)[0].double()
    scale = (dx := torch.autograd.grad(want.sum(), long)[0]).abs().max()
    assert_close("gradient", got / scale, dx / scale, 0.02)


def test_control_torchs_average_pooling_in_bfloat16_stops_growing():
    x = torch.ones(1, 1, 69, 69, dtype=torch.bfloat16, requires_grad=True)
    dx = torch.autograd.grad(nn.functional.avg_pool2d(x, 35, 1).sum(), x)[0]
    if dx.max() > 0.9:  # the middle is in 1225 windows of 1225 sites, so that it should be 1
        pytest.skip("this torch sums in more bits")
    assert dx.max() < 0.5


@pytest.mark.parametrize("spec", [avg_pool2d(10, stride=1), max_pool2d(3)], ids=str)
def test_pooling_compiles_in_one_graph(spec):
    layer, x = GConv(spec), torch.rand(1, 2, 12, 12).bfloat16()
    torch._dynamo.reset()
    assert torch.compile(layer, backend="eager", fullgraph=True)(x).equal(layer(x))
