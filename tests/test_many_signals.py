"""Signals (b, n, c) of adaptive operators run in one call, each with matrices of its own: they agree with a loop."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.testing import assert_close

from gconv import GConv, Graph, list_operators
from gconv.basis import Pattern
from gconv.kernels import CSR, attention, native_attention
from gconv.operators import agnn, fagcn, feast, gat, gatv2, rgat, supergat, transformer
from gconv.operators.shapes import messy, ring
from gconv.spec import operator
from gconv.testing import Case

F64 = torch.float64
SAMPLES = [
    pytest.param(name, number, marks=[pytest.mark.slow] if number else [])
    for name in list_operators()
    for number, sample in enumerate(operator(name).samples())
    if sample.spec.structure.kind == "adaptive"
]


def everything(run, layer, x):
    """The value of a run, and its gradients in x and in all parameters."""
    x = x.clone().requires_grad_()
    y = run(x)
    seed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], seed, allow_unused=True, materialize_grads=True)]


def loop(layer, domain, **options):
    return lambda x: torch.stack([layer(one, domain, **options) for one in x])


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(("name", "number"), SAMPLES)
def test_signals_agree_with_a_loop(name, number):
    torch.manual_seed(0)
    case = Case.of(operator(name).samples()[number], F64, batch=3)
    layer, domain = case.layer.eval(), case.domain
    assert layer.spec.structure.many
    want = everything(loop(layer, domain, lowering="dense"), layer, case.x)
    admitted = [c.name for c in layer.plan(case.x, domain).candidates if c.reason is None]
    for lowering in [None, *admitted]:
        got = everything(lambda x, lowering=lowering: layer(x, domain, lowering=lowering), layer, case.x)
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        assert_close(layer(case.x, domain), want[0], rtol=1e-10, atol=1e-10)
        deep = torch.stack([case.x, case.x.flip(0)], 1)
        assert_close(layer(deep, domain)[:, 0], want[0], rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("spec", [gat(3, 2, heads=2), transformer(3, 2, heads=2), gatv2(3, 2, heads=2)], ids=str)
def test_second_derivatives_and_transforms_agree_with_a_loop(spec):
    torch.manual_seed(0)
    layer, graph, x = GConv(spec, dtype=F64), messy(), torch.randn(2, messy().size, 3, dtype=F64)
    found = []
    for run in (lambda x: layer(x, graph), loop(layer, graph)):
        z = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(run(z).pow(2).sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(slope.pow(2).sum(), z)
        _, tangent = torch.func.jvp(run, (x,), (x.cos(),))
        found.append([second, tangent, torch.func.grad(lambda x, run=run: run(x).pow(2).sum())(x)])
    for got, want in zip(*found, strict=True):
        assert_close(got, want, rtol=1e-9, atol=1e-9)
    batches = torch.stack([x, 2 * x])
    assert_close(torch.func.vmap(lambda x: layer(x, graph))(batches), layer(batches, graph), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (gat(3, 2, edge_dim=2), "edge_attr"),
        (gatv2(3, 2, edge_dim=2), "edge_attr"),
        (fagcn(3, 0.1, 0.0, False, False, False), "edge_weight"),
    ],
    ids=["gat", "gatv2", "fagcn"],
)
def test_what_edges_carry_has_gradients(spec, name):
    torch.manual_seed(0)
    layer, given = GConv(spec, dtype=F64), messy()
    x = torch.randn(3, given.size, 3, dtype=F64)
    learned = getattr(given, name).to(F64).requires_grad_()
    graph = Graph(given.edge_index, given.size, **{name: learned})
    got, want = (
        torch.autograd.grad(run(x).pow(3).sum(), learned)[0] for run in (lambda x: layer(x, graph), loop(layer, graph))
    )
    assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_attention_on_many_signals_is_one_call_of_the_kernel(monkeypatch):
    calls, module = [], sys.modules["gconv.kernels.attention"]
    for place, name in ((native_attention, "attend"), (module, "_attention_torch")):
        kernel = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, kernel=kernel: calls.append(1) or kernel(*a))
    layer, x = GConv(gat(8, 4, heads=2)), torch.randn(2, 5, 9, 8)
    layer(x, ring(9), lowering="sparse:transform")
    assert calls == [1]


@pytest.mark.parametrize(
    "spec",
    [gat(3, 2), gatv2(3, 2), transformer(3, 2), agnn(), feast(3, 2), supergat(3, 2), rgat(3, 2, num_relations=3)],
    ids=str,
)
def test_the_structure_is_made_once_a_call_and_hooks_fire_once(spec, monkeypatch):
    layer, graph, made, hooked = GConv(spec), messy(), [], []
    basis = type(spec.structure).basis
    monkeypatch.setattr(type(spec.structure), "basis", lambda *a: made.append(1) or basis(*a))
    layer.register_forward_hook(lambda *_: hooked.append("layer"))
    if layer.weight is not None:
        nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
        layer.parametrizations.weight[0].register_forward_hook(lambda *_: hooked.append("weight"))
    x = torch.randn(4, graph.size, 3)
    layer(x[0], graph), layer(x, graph)
    counts = []
    for signal in (x[0], x):
        made.clear(), hooked.clear()
        layer(signal, graph)
        assert made == [1]
        counts.append(sorted(hooked))
    assert counts[0] == counts[1] and counts[0].count("layer") == 1


@pytest.mark.usefixtures("anywhere")
def test_each_signal_has_its_own_dropout():
    torch.manual_seed(0)
    for spec in (gat(4, 4, heads=4, dropout=0.5), transformer(4, 4, heads=4, dropout=0.5)):
        y = GConv(spec)(torch.randn(1, 20, 4).expand(3, -1, -1), ring(20))
        assert not torch.equal(y[0], y[1]) and not torch.equal(y[1], y[2])
    csr = CSR.build(torch.randint(6, (30,)), torch.randint(6, (30,)), 6, 6)
    z, p = torch.randn(2, 6, 2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    seed = torch.tensor([7])
    both, composed = attention(csr, z, p, p, 0.2, (0.5, seed)), sys.modules["gconv.kernels.attention"]._composed
    assert_close(both, composed(z, p, p, seed, 0.2, 0.5, False, *csr.tensors))
    assert_close(both[0], attention(csr, z[0], p, p, 0.2, (0.5, seed)))  # the first signal's is that of one alone


def test_dropout_of_fagcn_drops_entries():
    torch.manual_seed(0)
    layer, x = GConv(fagcn(3, dropout=0.5, initial=False)), torch.randn(20, 3)
    assert not torch.equal(layer(x, ring(20)), layer(x, ring(20)))
    assert torch.equal(layer.eval()(x, ring(20)), layer(x, ring(20)))


@pytest.mark.parametrize("spec", [gat(3, 2, heads=2), gatv2(3, 2, heads=2), transformer(3, 2, heads=2)], ids=str)
def test_low_precision_agrees_with_a_loop(spec):
    torch.manual_seed(0)
    layer, x = GConv(spec), torch.randn(3, 7, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert_close(layer(x, ring(7)), loop(layer, ring(7))(x), rtol=0.05, atol=0.05)
    layer, x = layer.bfloat16(), x.bfloat16()
    for got, want in zip(
        everything(lambda x: layer(x, ring(7)), layer, x), everything(loop(layer, ring(7)), layer, x), strict=True
    ):
        assert_close(got, want, rtol=0.1, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [gat(3, 2, heads=2), gatv2(3, 2, heads=2), transformer(3, 2, heads=2)], ids=str)
def test_compiled_and_exported(spec):
    layer, graph, x = GConv(spec, dtype=F64), messy(), torch.randn(3, messy().size, 3, dtype=F64)
    compiled = torch.compile(lambda x: layer(x, graph), backend="aot_eager", fullgraph=True)
    for got, want in zip(everything(compiled, layer, x), everything(lambda x: layer(x, graph), layer, x), strict=True):
        assert_close(got, want, rtol=1e-10, atol=1e-10)
    exported = torch.export.export(layer, (x, graph.edge_index))
    assert_close(exported.module()(x, graph.edge_index), layer(x, graph.edge_index), rtol=1e-10, atol=1e-10)


def test_a_structure_that_takes_one_signal_is_called_for_each():
    """What a user wrote for (n, i)."""

    class Single(type(feast(3, 2).structure)):
        many = False

        def basis(self, domain, theta, call):
            assert call.x.ndim == 2
            return super().basis(domain, theta, call)

    torch.manual_seed(0)
    layer, x = GConv(feast(3, 2, heads=2), dtype=F64), torch.randn(3, 7, 3, dtype=F64)
    want = layer(x, ring(7))
    object.__setattr__(layer.spec, "structure", Single(2, 3, True))
    assert_close(layer(x, ring(7)), want)


def test_signals_that_are_mixed_up_are_detected(monkeypatch):
    """Negative control."""
    layer, graph, x = GConv(transformer(3, 2)), ring(7), torch.randn(3, 7, 3)
    want, dots = loop(layer, graph)(x), Pattern.dots
    monkeypatch.setattr(Pattern, "dots", lambda self, row, col: dots(self, row.flip(0), col.flip(0)))
    assert not torch.allclose(layer(x, graph), want)


@pytest.mark.parametrize("name", [name for name in list_operators() if name != "lanczos"])
def test_vmap_over_edge_weights(name):
    """Except for lanczos, whose number of vectors depends on the weights."""
    for sample in operator(name).samples():
        case = Case.of(sample, torch.float64, batch=1)
        if not isinstance(case.domain, Graph) or case.domain.edge_weight is None or case.one_graph:
            continue

        def run(weights, case=case):
            return case.layer(case.signal, replace(case.domain, edge_weight=weights))

        many = torch.stack([case.domain.edge_weight, 1.5 * case.domain.edge_weight, case.domain.edge_weight.square()])
        each = torch.stack([run(weights) for weights in many])
        assert_close(vmap(run)(many), each)
        if name in ("ppr", "graphconv"):
            assert (each[0] - each[2]).abs().max() > 1e-3  # the control: they depend on the weights
