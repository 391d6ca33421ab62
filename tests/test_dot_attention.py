"""Dot-product attention: the operator equals its formula, and layers that use it equal those that store its values."""

import pytest
import torch

from gconv import GConv
from gconv.basis import DotTaps, SharedTaps, Stack
from gconv.binding import dropped
from gconv.call import Call
from gconv.domains import Bipartite
from gconv.kernels import CSR, dot_attention, dot_values, heads_spmm
from gconv.kernels.attention import kept_entries
from gconv.mixing import Dense
from gconv.operators import agnn, supergat, transformer
from gconv.operators.shapes import messy
from gconv.testing import assert_close

DOUBLE = torch.float64
M, N = 5, 6
ROW = torch.tensor([2, 0, 2, 0, 2, 4])  # unsorted; (2, 1) twice; rows 1 and 3, columns 2, 3 and 5 empty
COL = torch.tensor([1, 0, 1, 4, 0, 1])
DROP = (0.4, torch.tensor([3]))


def problem(heads=2, width=3, wide=None, own=None, signals=(), dtype=DOUBLE):
    csr = CSR.build(ROW, COL, M, N)
    sizes = (M, heads, width), (N, heads, width), (N, heads if own is None else own, wide or width)
    return csr, [torch.randn(*signals, *size, dtype=dtype, requires_grad=True) for size in sizes]


def by_hand(csr, q, k, v, dropout=None):
    """Row by row, by torch."""
    crow, col = csr.crow.tolist(), csr.col.long()
    factor = torch.ones(()) if dropout is None else kept_entries(len(col), q.shape[-2], *dropout).to(v.dtype)
    rows = []
    for i in range(len(q)):
        at = slice(crow[i], crow[i + 1])
        a = (q[i] * k[col[at]]).sum(-1).softmax(0)
        a = a if dropout is None else a * factor[at]
        rows.append((a.unsqueeze(-1) * v[col[at]]).sum(0))
    return torch.stack(rows)


@pytest.fixture
def fused(monkeypatch):
    """Layers use DotTaps, as on CUDA."""
    monkeypatch.setattr("gconv.basis.attention.is_fused", lambda csr: True)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(("heads", "width", "wide", "own"), [(1, 1, 1, 1), (3, 4, 2, 1), (8, 33, 5, 8), (2, 3, 70, 1)])
@pytest.mark.parametrize("dropout", [None, DROP])
def test_value_and_gradients_are_the_formulas(heads, width, wide, own, dropout, dtype):
    csr, given = problem(heads, width, wide, own, dtype=dtype)
    got, want = dot_attention(csr, *given, dropout), by_hand(csr, *given, dropout)
    tol = 1e-11 if dtype == DOUBLE else 1e-4
    assert_close("value", got, want, tol)
    g = torch.randn_like(want)
    grads = [torch.autograd.grad(y, given, g) for y in (got, want)]
    for name, one, other in zip("qkv", *grads, strict=True):
        assert_close(f"gradient in {name}", one, other, tol)
    wrong = torch.autograd.grad(by_hand(csr, given[0] * 1.1, *given[1:], dropout), given, g)  # another scale
    with pytest.raises(AssertionError):
        assert_close("the control", grads[0][0], wrong[0], tol)


def test_signals_are_attended_one_by_one():
    csr, given = problem(signals=(3, 2))
    apart = zip(*(t.flatten(0, 1) for t in given), strict=True)
    want = torch.stack([by_hand(csr, *one) for one in apart]).unflatten(0, (3, 2))
    got = dot_attention(csr, *given)
    assert_close("value", got, want, 1e-12)
    grads = [torch.autograd.grad(y.square().sum(), given) for y in (got, want)]
    for one, other in zip(*grads, strict=True):
        assert_close("gradient", one, other, 1e-12)


def test_product_and_values_drop_the_same_entries():
    csr, (q, k, v) = problem(signals=(2,))
    values = dot_values(csr, q, k, DROP)
    assert (values == 0).any() and (values != 0).any()
    assert_close("product", dot_attention(csr, q, k, v, DROP), heads_spmm(csr, values, v), 1e-12)


def test_large_logits_are_safe():
    csr, given = problem(dtype=torch.float32)
    given[0] = (given[0] * 1e4).detach().requires_grad_()
    y = dot_attention(csr, *given)
    assert_close("value", y, by_hand(csr, *(t.double() for t in given)).float(), 1e-3)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.square().sum(), given))


@pytest.mark.parametrize("dropout", [None, DROP])
def test_derivatives_twice(dropout):
    csr, given = problem(own=1)
    assert torch.autograd.gradcheck(lambda *given: dot_attention(csr, *given, dropout), given)
    assert torch.autograd.gradgradcheck(lambda *given: dot_attention(csr, *given, dropout), given)


def test_opcheck():
    csr, given = problem(own=1)
    torch.library.opcheck(torch.ops.gconv.dot_attention.default, (*given, None, 0.0, True, *csr.tensors))
    given = [x.detach() for x in given]
    made = torch.ops.gconv.dot_attention(*given, None, 0.0, True, *csr.tensors)
    passed = *given, None, 0.0, torch.randn_like(made[0]), *made
    torch.library.opcheck(torch.ops.gconv.dot_attention_back.default, (*passed, *csr.tensors))


def test_under_transforms_and_a_compiler():
    csr, (q, k, v) = problem()
    signals = torch.randn(3, N, 2, 3, dtype=DOUBLE)
    each = torch.stack([dot_attention(csr, q, k, one) for one in signals])
    assert_close("vmap", torch.func.vmap(lambda one: dot_attention(csr, q, k, one))(signals), each, 1e-12)

    def total(k):
        return dot_attention(csr, q, k, v).square().sum()

    want = torch.autograd.grad(total(k), k)[0]
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    assert_close("compiled", torch.autograd.grad(compiled(k), k)[0], want, 1e-12)
    with torch.no_grad():
        assert_close("torch.func", torch.func.grad(total)(k), want, 1e-12)


def test_nothing_at_all():
    none = torch.empty(0, dtype=torch.int64)
    for n, heads, c in ((0, 2, 3), (4, 2, 3), (4, 2, 0)):
        csr, given = CSR.build(none, none, n, n), [torch.randn(n, heads, c, requires_grad=True) for _ in range(3)]
        y = dot_attention(csr, *given)
        assert torch.equal(y, torch.zeros(n, heads, c))
        for grad, x in zip(torch.autograd.grad(y.sum(), given), given, strict=True):
            assert torch.equal(grad, torch.zeros_like(x))


def test_what_does_not_fit_is_refused():
    csr, (q, k, v) = problem(3)
    for wrong in ((q[1:], k, v), (q, k[1:], v), (q, k, v[1:]), (q, k[..., 1:], v), (q, k, v[:, :2]), (q[:, :1], k, v)):
        with pytest.raises(ValueError, match="Dot-product attention takes"):
            dot_attention(csr, *wrong)
    with pytest.raises(ValueError, match="seed of dropout"):
        dot_attention(csr, q, k, v, (0.5, torch.tensor([1, 2])))


# -- layers ----------------------------------------------------------------------------------------------------------

SPECS = {
    "transformer": transformer(3, 2, heads=2),
    "wide": transformer(2, 5, heads=3, concat=False),
    "no root": transformer(3, 2, heads=2, root_weight=False),
    "agnn": agnn(requires_grad=False),
    "agnn, learned": agnn(),
    "supergat": supergat(3, 2, heads=2, attention_type="SD"),
}


def outcome(layer, graph, x, lowering):
    y = layer(x, graph, lowering=lowering)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    return y, *torch.autograd.grad(y.square().sum(), [x, *parameters])


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("lowering", ["sparse:aggregate", "sparse:transform", None])
@pytest.mark.parametrize("signals", [(), (2,)])
def test_a_fused_layer_is_the_one_that_stores_its_values(name, lowering, signals, monkeypatch):
    layer, graph = GConv(SPECS[name], dtype=DOUBLE), messy()
    x = torch.randn(*signals, graph.size, 2 if name == "wide" else 3, dtype=DOUBLE, requires_grad=True)
    want = outcome(layer, graph, x, lowering)
    monkeypatch.setattr("gconv.basis.attention.is_fused", lambda csr: True)
    for one, other in zip(outcome(layer, graph, x, lowering), want, strict=True):
        assert_close("number", one, other, 1e-11)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("lowering", ["sparse:aggregate", "sparse:transform"])
def test_a_fused_layer_stores_no_values(lowering, monkeypatch):
    layer, graph = GConv(SPECS["transformer"], dtype=DOUBLE), messy()
    x = torch.randn(graph.size, 3, dtype=DOUBLE, requires_grad=True)
    want = layer(x, graph, lowering="dense")

    def stored(*_):
        raise AssertionError("the values were stored")

    monkeypatch.setattr("gconv.basis.attention.dot_values", stored)
    y = layer(x, graph, lowering=lowering)
    assert_close("value", y, want, 1e-12)
    y.square().sum().backward()
    with pytest.raises(AssertionError, match="were stored"):
        _ = layer.at(graph, x=x).S.parts[0].values


@pytest.mark.usefixtures("fused")
def test_a_fused_layer_in_training_drops_other_entries_each_time():
    layer, graph = GConv(transformer(4, 3, heads=2, dropout=0.5)), messy()
    x = torch.randn(graph.size, 4)
    assert not torch.equal(layer(x, graph), layer(x, graph))
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(layer(x, graph))
    assert torch.equal(*found)
    S = layer.eval().at(graph, x=x).S.parts[0]
    z, lossy = torch.randn(2, graph.size, 3), dropped(S, 0.5)
    assert_close("as its values", lossy.each(z), lossy.written.each(z), 1e-5)
    assert not torch.allclose(lossy.each(z), S.each(z))


@pytest.mark.usefixtures("fused")
def test_fused_attention_is_a_structure_like_any():
    layer, graph = GConv(SPECS["transformer"], dtype=DOUBLE), messy()
    x, other = torch.randn(2, graph.size, 3, dtype=DOUBLE)
    A = layer.at(graph, x=x)
    assert isinstance(A.S, Stack) and isinstance(A.S.parts[0], DotTaps)
    S, eye = A.S.parts[0], torch.eye(graph.size, dtype=DOUBLE)
    want = SharedTaps(S.pattern, S.values).expand(eye)
    assert_close("entries", S.expand(eye), want, 1e-12)
    assert_close("transposed", S.T.expand(eye), want.mT, 1e-12)
    z = torch.randn(4, 2, graph.size, 3, dtype=DOUBLE)
    assert_close("several signals", S.each(z), want @ z, 1e-12)
    assert_close("their sum", S.contract(z), (want @ z).sum(-3), 1e-12)
    assert_close("expanded", S.expand(z[:, 0]), want @ z[:, :1], 1e-12)
    heads = torch.einsum("kmn,ni,kic->mkc", want, other, layer.weight[:2]).flatten(1)
    assert_close("frozen at x", A @ other, heads + other @ layer.weight[2:].movedim(0, 1).flatten(1), 1e-12)
    call = Call(x, Dense(2, 3, 3), torch.ones(2, 3, 3, dtype=DOUBLE))
    assert S.overhead(call.mixing) == SharedTaps(S.pattern, S.values).overhead(call.mixing)


@pytest.mark.usefixtures("fused")
def test_between_two_sets_of_nodes():
    edges = Bipartite(torch.stack([COL, ROW]), sizes=(N, M))
    layer = GConv(transformer((3, 3), 2, heads=2), dtype=DOUBLE)
    sides = torch.randn(N, 3, dtype=DOUBLE), torch.randn(M, 3, dtype=DOUBLE)
    assert_close("value", layer(sides, edges), layer(sides, edges, lowering="dense"), 1e-12)
