"""Many signals on one graph, a few at a time: the numbers and derivatives of all at once."""

import pytest
import torch

from gconv import GConv, Graph
from gconv.call import Call
from gconv.domains import grid_graph
from gconv.lowering import batches
from gconv.operators import cheb, conv2d, gat, gcn, sage, selection, tag
from gconv.testing import assert_close

MESSY = Graph(
    torch.tensor([[0, 0, 1, 2, 2, 3, 4, 4], [1, 1, 2, 2, 0, 4, 0, 3]]),
    6,
    edge_weight=torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25, 1.5, 1.0, 0.75]),
)
PIXELS = grid_graph((3, 4), 8, loops=True)
LAYERS = {
    "gcn, wider": (gcn(2, 5), MESSY, "sparse"),
    "gcn, narrower": (gcn(5, 2), MESSY, "sparse"),
    "cheb, wider": (cheb(2, 3, k=3), MESSY, "recurrence"),
    "cheb, narrower": (cheb(3, 2, k=3), MESSY, "recurrence"),
    "tag": (tag(3, 3, k=2), MESSY, "recurrence"),
    "selection": (selection(3, 3, 9), PIXELS, "sparse"),
    "selection, wider": (selection(2, 4, 9), PIXELS, "sparse"),
    "sage": (sage(3, 2), MESSY, "sparse"),
}


def grads(layer, x, graph, name, create_graph=False):
    y = layer(x, graph, lowering=name)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    leaves = [leaf for leaf in (x, *layer.parameters()) if leaf.requires_grad]
    return [y, *torch.autograd.grad(y, leaves, dy, create_graph=create_graph)]


@pytest.mark.parametrize("association", ["aggregate", "transform"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_few_at_a_time_are_as_good_as_all(layer, association, monkeypatch):
    spec, graph, family = layer
    layer = GConv(spec, dtype=torch.float64)
    i = spec.mixing.i
    for frozen in ("nothing", "weight", "x", "both"):
        x = torch.randn(2, 3, graph.size, i, dtype=torch.float64, requires_grad=frozen not in ("x", "both"))
        layer.weight.requires_grad_(frozen not in ("weight", "both"))
        name = f"{family}:{association}"
        monkeypatch.setattr(batches, "CHUNK", 1 << 30)
        want = grads(layer, x, graph, name)
        monkeypatch.setattr(batches, "CHUNK", 1)
        for got, right in zip(grads(layer, x, graph, name), want, strict=True):
            assert_close(frozen, got, right, 1e-10)
        monkeypatch.setattr(batches, "CHUNK", 700)
        for got, right in zip(grads(layer, x, graph, name, True), want, strict=True):
            assert_close(f"{frozen}, by differentiable steps", got, right, 1e-10)


@pytest.mark.parametrize("name", ["gcn, narrower", "cheb, wider", "selection, wider"])
def test_second_derivatives(name, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 1)
    spec, graph, family = LAYERS[name]
    layer = GConv(spec, dtype=torch.float64)
    x = torch.randn(2, graph.size, spec.mixing.i, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        theta = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, theta, (x, graph), {"lowering": family})

    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, layer.weight, layer.bias), fast_mode=True)


def test_a_kernel_written_out_as_entries(monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 1)
    layer = GConv(conv2d(3, 4, 3, padding=1, stride=2), dtype=torch.float64)
    x = torch.randn(3, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    for association in ("aggregate", "transform"):
        for got, want in zip(
            grads(layer, x, None, f"sparse:{association}"), grads(layer, x, None, "native"), strict=True
        ):
            assert_close(association, got, want, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types(dtype, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 1)
    layer = GConv(selection(8, 8, 9), dtype=dtype)
    x = torch.randn(4, PIXELS.size, 8, dtype=dtype, requires_grad=True)
    wide = GConv(selection(8, 8, 9), dtype=torch.float64)
    wide.load_state_dict(layer.state_dict())
    want = grads(wide, x.detach().double().requires_grad_(), PIXELS, "sparse")
    for got, right in zip(grads(layer, x, PIXELS, "sparse"), want, strict=True):
        assert got.dtype == dtype
        assert_close("rounding", got.double(), right, 1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("name", ["selection", "cheb, wider"])
def test_complex_signals_have_conjugate_gradients(name, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 1)
    spec, graph, family = LAYERS[name]
    layer = GConv(spec, dtype=torch.complex128)
    x = torch.randn(4, graph.size, spec.mixing.i, dtype=torch.complex128, requires_grad=True)
    for got, want in zip(grads(layer, x, graph, family), grads(layer, x, graph, "dense"), strict=True):
        assert_close("complex", torch.view_as_real(got), torch.view_as_real(want), 1e-10)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_is_not_asked_for_is_not_kept(frozen, monkeypatch):
    monkeypatch.setattr(batches, "CHUNK", 1)
    layer, kept = GConv(gcn(5, 2)), []
    x = torch.randn(7, MESSY.size, 5, requires_grad=frozen != "x")
    layer.weight.requires_grad_(frozen != "weight")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(x, MESSY, lowering="sparse")
    assert (x.numel() in kept) == (frozen == "x")


def test_who_is_served():
    S = GConv(gcn(2, 2))._basis(MESSY, Call(torch.zeros(6, 2), weight=torch.zeros(1, 2, 2)))
    many, W = torch.zeros(1 << 20, 6, 2), torch.zeros(1, 2, 2)
    assert batches.serves(S, many, W)
    assert not batches.serves(S, many[:3], W)  # few enough to go at once
    assert not batches.serves(S, many.flatten(0, 1)[:6], W)  # a single one
    assert not batches.serves(S, many, W.double())
    with torch.autocast("cpu"):
        assert not batches.serves(S, many, W)
    with torch.autograd.forward_ad.dual_level():
        assert not batches.serves(S, many, W)
    seen = []
    torch.func.vmap(lambda x: (seen.append(batches.serves(S, x, W)), x)[1])(many[None])
    assert seen == [False]
    learned = GConv(gat(2, 2))
    adaptive = learned._basis(MESSY, Call(torch.zeros(6, 2), weight=torch.zeros(1, 2, 2)))
    assert not batches.serves(adaptive, many, W)
