"""Constant signals: the same numbers and gradients, sparse or dense; never a stale one."""

import pytest
import torch

import gconv
from gconv import GConv, constant
from gconv.kernels import constants, known
from gconv.lowering import fixed
from gconv.operators import cheb, gat, gcn, graphconv, sage, sgc, tag
from gconv.operators.shapes import messy, ring
from gconv.testing import assert_close

SPECS = [gcn(40, 3), sage(40, 3), graphconv(40, 3), cheb(40, 3, k=3), tag(40, 3), sgc(40, 3, k=2), gat(40, 2, heads=2)]


def signal(density):
    x = torch.randn(6, 40, dtype=torch.float64)
    return x * (torch.rand(6, 40) < density)


@pytest.mark.parametrize("density", [0.1, 0.9])
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_a_constant_signal_changes_no_number(spec, density):
    layer, x, graph = GConv(spec, dtype=torch.float64), signal(density), messy()
    c = constant(x)
    for _ in range(2):  # the second call finds what the first one has kept
        got, want = layer(c, graph), layer(x, graph)
        assert_close("value", got, want, 1e-12)
        dy = torch.randn_like(want)
        for name, g, w in zip(
            dict(layer.named_parameters()),
            *(torch.autograd.grad(y, list(layer.parameters()), dy) for y in (got, want)),
            strict=True,
        ):
            assert_close(f"gradient in {name}", g, w, 1e-12)


def test_sparse_form_and_products_are_kept_and_the_planner_knows():
    sparse, dense, graph = constant(signal(0.05)), constant(signal(0.9)), messy()
    assert known(sparse).sparse is not None and known(dense).sparse is None
    wide = GConv(gcn(40, 400), dtype=torch.float64)
    wide(dense, graph)
    assert len(known(dense).expanded) == 1
    assert wide.plan(dense, graph).chosen.name == "sparse:aggregate"
    many = constant(torch.randn(3000, 1000) * (torch.rand(3000, 1000) < 0.01))
    assert GConv(gcn(1000, 16)).plan(many, ring(3000)).chosen.name == "sparse:transform"


@pytest.mark.parametrize("spec", SPECS[:6], ids=lambda s: s.name)
def test_the_backward_pass_of_a_large_sparse_signal_reads_its_sparse_form(spec, monkeypatch):
    asked = []
    xt_y = constants.Constant.xt_y
    monkeypatch.setattr(constants.Constant, "xt_y", lambda self, Y: asked.append(Y.shape) or xt_y(self, Y))
    monkeypatch.setattr(fixed, "MIN_BYTES_ROWS", 1)  # in place of many rows
    layer, x, graph = GConv(spec, dtype=torch.float64), constant(signal(0.1)), messy()
    found = [c.name for c in layer.plan(x, graph).candidates if c.cost and c.name.endswith(":transform")]
    layer(x, graph, lowering=found[0]).sum().backward()
    assert asked and sum(shape[1] for shape in asked) == layer.weight[..., 0, :].numel()


def test_a_signal_modified_in_place_is_not_constant():
    layer, c, graph = GConv(gcn(40, 400), dtype=torch.float64), constant(signal(0.9)), messy()
    layer(c, graph)
    c.mul_(2)
    assert known(c) is None
    assert_close("after writing", layer(c, graph), layer(c.clone(), graph), 1e-12)


def test_the_original_may_change():
    x = signal(0.1)
    c = constant(x)
    x.zero_()
    assert c.abs().sum() > 0 and known(x) is None


def test_learned_structure_is_not_kept():
    graph = messy()
    w = graph.edge_weight.clone().requires_grad_()
    learned = gconv.Graph(graph.edge_index, 6, edge_weight=w)
    layer, c = GConv(gcn(40, 400), dtype=torch.float64), constant(signal(0.9))
    layer(c, learned).sum().backward()
    assert w.grad.abs().sum() > 0 and not known(c).expanded


def test_nothing_is_kept_alive():
    c, graph = constant(signal(0.1)), messy()
    GConv(gcn(40, 3), dtype=torch.float64)(c, graph)
    from gconv.kernels import constants

    before = len(constants._CONSTANTS)
    del c
    assert len(constants._CONSTANTS) == before - 1


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3, 4), TypeError, r"a signal \(n, c\)"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, "floating point"),
        ([[1.0]], TypeError, "not a list"),
        (torch.zeros(2, 3, requires_grad=True), ValueError, "requires a gradient"),
    ],
)
def test_refusals(x, error, message):
    with pytest.raises(error, match=message):
        constant(x)
