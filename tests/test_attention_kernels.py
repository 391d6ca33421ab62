"""Attention by both ends of an entry: one kernel each way, equal to its formula, on every instruction set."""

import pytest
import torch
import torch.nn.functional as F

from gconv import GConv, Graph
from gconv.kernels import CSR, attention, native
from gconv.operators import gat, gatv2, supergat
from gconv.operators.shapes import messy
from gconv.testing import assert_close

DOUBLE = torch.float64
N = 6
ROW = torch.tensor([2, 0, 2, 0, 2, 4])  # unsorted; (2, 1) twice; rows 1, 3 and 5 empty
COL = torch.tensor([1, 0, 1, 4, 0, 1])


def problem(heads=2, width=3, dtype=DOUBLE):
    csr = CSR.build(ROW, COL, N, N)
    z, p, q = (torch.randn(*n, heads, width, dtype=dtype, requires_grad=True) for n in ((N,), (), ()))
    return csr, z, p, q


def by_hand(csr, z, p, q, slope):
    """Row by row, by torch."""
    crow, col = csr.crow.tolist(), csr.col.long()
    target, source = (z * p).sum(-1), (z * q).sum(-1)
    rows = [F.leaky_relu(target[i] + source[col[crow[i] : crow[i + 1]]], slope).softmax(0) for i in range(len(z))]
    return torch.cat(rows)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("heads", [1, 3, 8, 70])
@pytest.mark.parametrize("width", [1, 3, 8, 17, 33])
@pytest.mark.parametrize("slope", [0.2, -0.5])
def test_values_and_gradients_are_the_formulas(heads, width, slope, dtype):
    csr, z, p, q = problem(heads, width, dtype)
    got, want = attention(csr, z, p, q, slope), by_hand(csr, z, p, q, slope)
    tol = 1e-11 if dtype == DOUBLE else 2e-5
    assert_close("values", got, want, tol)
    g = torch.randn_like(want)
    grads = [torch.autograd.grad(v, (z, p, q), g) for v in (got, want)]
    for name, one, other in zip("zpq", *grads, strict=True):
        assert one.is_contiguous() or name == "z"
        assert_close(f"gradient in {name}", one, other, tol)
    wrong = torch.autograd.grad(by_hand(csr, z, q, p, slope), (z, p, q), g)  # the ends exchanged
    with pytest.raises(AssertionError):
        for one, other in zip(grads[0], wrong, strict=True):
            assert_close("the control", one, other, tol)


@pytest.mark.usefixtures("anywhere")
def test_large_logits_are_safe():
    csr, z, p, q = problem(dtype=torch.float32)
    z = (z * 1e4).detach().requires_grad_()
    values = attention(csr, z, p, q, 0.2)
    assert_close("values", values, by_hand(csr, z.double(), p.double(), q.double(), 0.2).float(), 1e-2)
    assert torch.autograd.grad(values.square().sum(), z)[0].isfinite().all()


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("needs", ["zpq", "z", "p", "q", "pq"])
def test_derivatives_twice(needs):
    csr, *given = problem()
    for name, t in zip("zpq", given, strict=True):
        t.requires_grad_(name in needs)
    assert torch.autograd.gradcheck(lambda *t: attention(csr, *t, 0.2), given)
    assert torch.autograd.gradgradcheck(lambda *t: attention(csr, *t, 0.2), given)


def test_opcheck():
    csr, z, p, q = problem()
    torch.library.opcheck(torch.ops.gconv.attention.default, (z, p, q, 0.2, *csr.tensors))
    z, p, q = (t.detach() for t in (z, p, q))
    a, g = attention(csr, z, p, q, 0.2), torch.randn(len(ROW), 2, dtype=DOUBLE)
    torch.library.opcheck(torch.ops.gconv.attention_back.default, (z, p, q, 0.2, a, g, *csr.tensors))


@pytest.mark.usefixtures("anywhere")
def test_the_signal_may_lie_in_memory_as_it_likes():
    csr, z, p, q = problem(3, 4)
    want = attention(csr, z, p, q, 0.2)
    wide = torch.cat([z, z], 1).detach()
    assert_close("heads of many", attention(csr, wide[:, 3:], p, q, 0.2), want, 1e-12)
    turned = z.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert_close("channels apart", attention(csr, turned, p.mT.contiguous().mT, q, 0.2), want, 1e-12)


@pytest.mark.usefixtures("anywhere")
def test_nothing_at_all():
    none = torch.empty(0, dtype=torch.int64)
    for n, heads, c in ((0, 2, 3), (4, 2, 3), (4, 2, 0)):
        csr = CSR.build(none, none, n, n)
        given = [torch.randn(*size, heads, c, requires_grad=True) for size in ((n,), (), ())]
        y = attention(csr, *given, 0.2)
        assert y.shape == (0, heads)
        for grad, t in zip(torch.autograd.grad(y.sum(), given), given, strict=True):
            assert torch.equal(grad, torch.zeros_like(t))


def test_what_does_not_fit_is_refused():
    csr, z, p, q = problem()
    wide = CSR.build(ROW, COL, N, N + 1)
    for wrong in (
        lambda: attention(wide, z, p, q, 0.2),
        lambda: attention(csr, z[1:], p, q, 0.2),
        lambda: attention(csr, z, p[1:], q, 0.2),
        lambda: attention(csr, z, p, q[:, 1:], 0.2),
    ):
        with pytest.raises(ValueError, match="Attention takes a square pattern"):
            wrong()


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
def test_one_thread_and_two_agree_to_the_last_bit():
    n, e = 900, 30_000
    csr = CSR.build(
        torch.cat([torch.full((e // 2,), 7), torch.randint(n // 2, (e // 2,))]), torch.randint(n, (e,)), n, n
    )
    z, p, q = (torch.randn(*size, 8, 5, requires_grad=True) for size in ((n,), (), ()))
    g, before, found = torch.randn(e, 8), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = attention(csr, z, p, q, 0.2)
        found.append((y, *torch.autograd.grad(y, (z, p, q), g)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_under_transforms_and_a_compiler():
    csr, z, p, q = problem()
    signals = torch.randn(3, N, 2, 3, dtype=DOUBLE)
    each = torch.stack([attention(csr, one, p, q, 0.2) for one in signals])
    assert_close("vmap", torch.func.vmap(lambda one: attention(csr, one, p, q, 0.2))(signals), each, 1e-12)

    def total(z):
        return attention(csr, z, p, q, 0.2).square().sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(total(z), z)[0]
    assert_close("compiled", torch.autograd.grad(compiled(z), z)[0], want, 1e-12)


# -- the products that the values were made of -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [gat, gatv2, supergat])
@pytest.mark.parametrize("extra", [{}, {"residual": True}, {"concat": False}, {"dropout": 0.5}])
def test_products_at_hand_change_nothing(make, extra, monkeypatch):
    if make is supergat and "residual" in extra:
        pytest.skip("it has none")
    layer, graph = GConv(make(4, 3, heads=2, **extra), dtype=DOUBLE), messy()
    x = torch.randn(graph.size, 4, dtype=DOUBLE, requires_grad=True)
    found = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr("gconv.lowering.sparse._spread", lambda S, mixing, W, x: mixing.spread(x, W))
        torch.manual_seed(0)
        y = layer(x, graph, lowering="sparse:transform")
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    for one, other in zip(*found, strict=True):
        assert_close("number", one, other, 1e-12)


def test_products_of_another_signal_or_weight_are_not_taken():
    layer, graph = GConv(gat(4, 3, heads=2), dtype=DOUBLE), messy()
    x, other = torch.randn(2, graph.size, 4, dtype=DOUBLE)
    A = layer.at(graph, x=x)
    dense = torch.einsum("kmn,ni,kic->mkc", A.S.expand(torch.eye(graph.size, dtype=DOUBLE)), other, layer.weight)
    assert_close("frozen at x", A @ other, dense.flatten(1), 1e-12)


def test_a_wide_and_a_narrow_layer_agree_with_dense():
    """Heads wider than the signal read it before it is mixed; both ways are one formula."""
    graph = Graph(torch.randint(9, (2, 30)), 9)
    for i, c in ((2, 5), (5, 2)):
        layer, x = GConv(gat(i, c, heads=3), dtype=DOUBLE), torch.randn(9, i, dtype=DOUBLE)
        assert_close("value", layer(x, graph), layer(x, graph, lowering="dense"), 1e-12)
        S = layer.at(graph, x=x).S
        z = torch.einsum("ni,kic->nkc", x, layer.weight)
        one = S.pattern
        logits = (z * layer.att_dst).sum(-1)[one.row] + (z * layer.att_src).sum(-1)[one.col]
        weight = F.leaky_relu(logits, 0.2).exp()
        total = torch.zeros(9, 3, dtype=DOUBLE).index_add(0, one.row, weight)
        assert_close("attention", S.values, weight / total[one.row], 1e-12)
