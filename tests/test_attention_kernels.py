"""Attention by both ends of an entry: one pass each way, equal to its formula, on every instruction set."""

import pytest
import torch
import torch.nn.functional as F

from gconv import GConv, Graph
from gconv.basis import AttentionTaps, SharedTaps, Stack
from gconv.call import Call
from gconv.kernels import CSR, attention, attention_values, heads_spmm, native
from gconv.kernels.attention import kept_entries
from gconv.operators import gat, gatv2, supergat
from gconv.operators.shapes import messy
from gconv.testing import assert_close

DOUBLE = torch.float64
N = 6
ROW = torch.tensor([2, 0, 2, 0, 2, 4])  # unsorted; (2, 1) twice; rows 1, 3 and 5 empty
COL = torch.tensor([1, 0, 1, 4, 0, 1])
DROP = (0.4, torch.tensor([3]))


def problem(heads=2, width=3, dtype=DOUBLE):
    csr = CSR.build(ROW, COL, N, N)
    return csr, *given(N, heads, width, dtype)


def given(n, heads, width, dtype=DOUBLE):
    return [torch.randn(*size, heads, width, dtype=dtype, requires_grad=True) for size in ((n,), (), ())]


def by_hand(csr, z, p, q, slope, dropout=None):
    """Row by row, by torch."""
    crow, col = csr.crow.tolist(), csr.col.long()
    target, source = (z * p).sum(-1), (z * q).sum(-1)
    factor = torch.ones(()) if dropout is None else kept_entries(len(col), z.shape[1], *dropout).to(z.dtype)
    rows = []
    for i in range(len(z)):
        at = slice(crow[i], crow[i + 1])
        a = F.leaky_relu(target[i] + source[col[at]], slope).softmax(0)
        a = a if dropout is None else a * factor[at]
        rows.append((a.unsqueeze(-1) * z[col[at]]).sum(0))
    return torch.stack(rows)


def agree(csr, leaves, slope, tol, dropout=None):
    got, want = attention(csr, *leaves, slope, dropout), by_hand(csr, *leaves, slope, dropout)
    assert_close("value", got, want, tol)
    g = torch.randn_like(want)
    grads = [torch.autograd.grad(v, leaves, g) for v in (got, want)]
    for name, one, other in zip("zpq", *grads, strict=True):
        assert one.is_contiguous() or name == "z"
        assert_close(f"gradient in {name}", one, other, tol)
    return grads[0], g


@pytest.mark.sampled(7)
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("heads", [1, 3, 8, 70])
@pytest.mark.parametrize("width", [1, 3, 7, 8, 17, 33, 70])
@pytest.mark.parametrize(("slope", "dropout"), [(0.2, None), (-0.5, DROP)])
def test_value_and_gradients_are_the_formulas(heads, width, slope, dropout, dtype):
    csr, *leaves = problem(heads, width, dtype)
    tol = 1e-11 if dtype == DOUBLE else 3e-5
    grads, g = agree(csr, leaves, slope, tol, dropout)
    z, p, q = leaves
    wrong = torch.autograd.grad(by_hand(csr, z, q, p, slope, dropout), (z, p, q), g)  # the ends exchanged
    with pytest.raises(AssertionError):
        for one, other in zip(grads, wrong, strict=True):
            assert_close("the control", one, other, tol)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(("heads", "width"), [(1, 3), (8, 8), (3, 40)])
@pytest.mark.parametrize("dropout", [None, DROP])
def test_rows_longer_than_what_is_at_hand(heads, width, dropout):
    """Their entries go through some at a time, and the largest logit may come late, or be the first."""
    n = 40
    row = torch.cat([torch.full((1300,), 5), torch.full((700,), 9), torch.randint(n, (200,))])
    csr = CSR.build(row, torch.randint(n, (len(row),)), n, n)
    csr = CSR.build(torch.cat([csr.col, row]), torch.cat([row, csr.col]), n, n)  # and columns
    z, p, q = given(n, heads, width)
    with torch.no_grad():
        z[csr.col[csr.crow[5]].long()] += 2 * q
        z[csr.col[csr.crow[9 + 1] - 1].long()] += 2 * q
    agree(csr, (z, p, q), 0.2, 1e-11, dropout)


@pytest.mark.usefixtures("anywhere")
def test_large_logits_are_safe():
    csr, z, p, q = problem(dtype=torch.float32)
    z = (z * 1e4).detach().requires_grad_()
    y = attention(csr, z, p, q, 0.2)
    assert_close("value", y, by_hand(csr, z.double(), p.double(), q.double(), 0.2).float(), 1e-2)
    assert torch.autograd.grad(y.square().sum(), z)[0].isfinite().all()


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("vectors", [torch.bfloat16, torch.float32])
def test_bfloat16_is_storage(vectors):
    """Sums are float32; under autocast the vectors may be, too."""
    csr, z, p, q = problem(3, 17, torch.float32)
    z, p, q = (t.detach().to(k).requires_grad_() for t, k in ((z, torch.bfloat16), (p, vectors), (q, vectors)))
    leaves = [t.detach().double().requires_grad_() for t in (z, p, q)]
    y, want = attention(csr, z, p, q, 0.2), by_hand(csr, *leaves, 0.2)
    assert y.dtype == torch.bfloat16
    assert_close("value", y.double(), want, 1e-2)
    g = torch.randn(want.shape).bfloat16()
    found = torch.autograd.grad(y, (z, p, q), g)
    for t, one, other in zip((z, p, q), found, torch.autograd.grad(want, leaves, g.double()), strict=True):
        assert one.dtype == t.dtype
        assert_close("gradient", one.double(), other, 2e-2)


@pytest.mark.usefixtures("anywhere")
def test_numbers_that_are_none_are_not_hidden():
    csr, z, p, q = problem()
    with torch.no_grad():
        z[0] = torch.nan  # a neighbour of rows 0 and 2, and row 0 itself
    y = attention(csr, z, p, q, 0.2)
    assert y[[0, 2]].isnan().all() and y[[1, 3, 4, 5]].isfinite().all()


@pytest.mark.sampled(11)
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("needs", ["zpq", "z", "p", "q", "pq"])
@pytest.mark.parametrize("dropout", [None, DROP])
def test_derivatives_twice(needs, dropout):
    csr, *leaves = problem()
    for name, t in zip("zpq", leaves, strict=True):
        t.requires_grad_(name in needs)
    assert torch.autograd.gradcheck(lambda *t: attention(csr, *t, 0.2, dropout), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: attention(csr, *t, 0.2, dropout), leaves)


def test_opcheck():
    csr, z, p, q = problem()
    seed = DROP[1]
    for drop in ((None, 0.2, 0.0), (seed, 0.2, 0.4)):
        torch.library.opcheck(torch.ops.gconv.attention.default, (z, p, q, *drop, True, *csr.tensors))
        some = [t.detach() for t in (z, p, q)]
        torch.library.opcheck(torch.ops.gconv.attention.default, (*some, *drop, False, *csr.tensors))
        made = torch.ops.gconv.attention(*some, *drop, True, *csr.tensors)
        given = (*some, *drop, torch.randn_like(made[0]), *made, *csr.tensors)
        torch.library.opcheck(torch.ops.gconv.attention_back.default, given)


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
        leaves = given(n, heads, c)
        y = attention(csr, *leaves, 0.2)
        assert torch.equal(y, torch.zeros(n, heads, c, dtype=DOUBLE))
        for grad, t in zip(torch.autograd.grad(y.sum(), leaves), leaves, strict=True):
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
@pytest.mark.parametrize("dropout", [None, DROP])
def test_one_thread_and_two_agree_to_the_last_bit(dropout):
    n, e = 900, 30_000
    csr = CSR.build(
        torch.cat([torch.full((e // 2,), 7), torch.randint(n // 2, (e // 2,))]), torch.randint(n, (e,)), n, n
    )
    z, p, q = given(n, 8, 5, torch.float32)
    g, before, found = torch.randn(n, 8, 5), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = attention(csr, z, p, q, 0.2, dropout)
        found.append((y, *torch.autograd.grad(y, (z, p, q), g)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_under_transforms_and_a_compiler():
    csr, z, p, q = problem()
    signals = torch.randn(3, N, 2, 3, dtype=DOUBLE)
    each = torch.stack([attention(csr, one, p, q, 0.2) for one in signals])
    assert_close("vmap", torch.func.vmap(lambda one: attention(csr, one, p, q, 0.2))(signals), each, 1e-12)

    for dropout in (None, DROP):

        def total(z, dropout=dropout):
            return attention(csr, z, p, q, 0.2, dropout).square().sum()

        compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
        want = torch.autograd.grad(total(z), z)[0]
        assert_close("compiled", torch.autograd.grad(compiled(z), z)[0], want, 1e-12)
        assert_close("torch.func", torch.func.grad(total)(z.detach()), want, 1e-12)


# -- dropout ---------------------------------------------------------------------------------------------------------


def test_dropout_drops_its_share_anew_with_each_seed():
    """Entries and heads one by one, the rest scaled up; neither neighbours nor seeds know of each other."""
    share = 0.3
    first, other = (kept_entries(40_000, 5, share, torch.tensor([seed])) for seed in (11, 12))
    assert torch.equal(first, kept_entries(40_000, 5, share, torch.tensor([11])))
    kept = 1 / (1 - share)
    assert_close("numbers", first.unique(), torch.tensor([0.0, kept], dtype=DOUBLE), 1e-15)
    for mask in (first, other):
        assert abs(mask.mean() - 1) < 0.01
    for one, two in ((first, other), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])):
        both = torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]
        assert abs(both) < 0.01


@pytest.mark.usefixtures("anywhere")
def test_product_and_values_drop_the_same_entries():
    csr, z, p, q = problem(3, 4)
    values = attention_values(csr, z, p, q, 0.2, DROP)
    assert (values == 0).any() and (values != 0).any()
    assert_close("product", attention(csr, z, p, q, 0.2, DROP), heads_spmm(csr, values, z), 1e-12)


def test_a_layer_in_training_drops_other_entries_each_time():
    layer, graph = GConv(gat(4, 3, heads=2, dropout=0.5)), messy()
    x = torch.randn(graph.size, 4)
    assert not torch.equal(layer(x, graph), layer(x, graph))
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(layer(x, graph))
    assert torch.equal(*found)
    layer.eval()
    assert torch.equal(layer(x, graph), layer(x, graph))


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
            monkeypatch.setattr(Call, "spread", lambda call: call.mixing.spread(call.x, call.W))
            monkeypatch.setattr(AttentionTaps, "fused", lambda *_: None)
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
        assert isinstance(S, AttentionTaps if c < i else SharedTaps)
        z = torch.einsum("ni,kic->nkc", x, layer.weight)
        one = S.pattern
        logits = (z * layer.att_dst).sum(-1)[one.row] + (z * layer.att_src).sum(-1)[one.col]
        weight = F.leaky_relu(logits, 0.2).exp()
        total = torch.zeros(9, 3, dtype=DOUBLE).index_add(0, one.row, weight)
        assert_close("attention", S.values, weight / total[one.row], 1e-12)


@pytest.mark.parametrize("extra", [{}, {"residual": True}, {"concat": False}])
def test_a_layer_writes_nothing_of_its_structure_out(extra, monkeypatch):
    """Neither pass, as long as nobody wants to see S."""
    layer, graph = GConv(gat(4, 3, heads=2, **extra), dtype=DOUBLE), messy()
    x = torch.randn(graph.size, 4, dtype=DOUBLE, requires_grad=True)
    want = layer(x, graph, lowering="dense")

    def written(*_):
        raise AssertionError("the structure was written out")

    monkeypatch.setattr("gconv.basis.attention.attention_values", written)
    y = layer(x, graph, lowering="sparse:transform")
    assert_close("value", y, want, 1e-12)
    y.square().sum().backward()
    with pytest.raises(AssertionError, match="written out"):
        layer(x, graph, lowering="sparse:aggregate")


def test_frozen_attention_is_a_structure_like_any():
    layer, graph = GConv(gat(4, 3, heads=2, residual=True), dtype=DOUBLE), messy()
    x = torch.randn(graph.size, 4, dtype=DOUBLE)
    S = layer.at(graph, x=x).S
    assert isinstance(S, Stack)
    S = S.parts[0]
    eye = torch.eye(graph.size, dtype=DOUBLE)
    dense = S.expand(eye)
    assert_close("rows", dense.sum(-1), torch.ones(2, graph.size, dtype=DOUBLE), 1e-12)
    assert_close("transposed", S.T.expand(eye), dense.mT, 1e-12)
    z = torch.randn(2, graph.size, 3, dtype=DOUBLE)
    assert_close("tap by tap", S.each(z), dense @ z, 1e-12)
    assert_close("summed", S.contract(z), (dense @ z).sum(0), 1e-12)
    assert S.nnz == S.values.numel() and S.shape == (2, graph.size, graph.size)


def test_a_plan_measures_attention_as_a_call_makes_it():
    """With the products that it meets on the way, whichever lowering runs; gradients of all that it learns."""
    layer, graph = GConv(gat(4, 3, heads=2, residual=True)), messy()
    made = layer.plan(torch.randn(graph.size, 4, requires_grad=True), graph, measure=2)
    took = {c.name: c.measured for c in made.candidates if c.measured}
    assert {"sparse:transform", "sparse:aggregate"} <= set(took)
    assert all(len(times) == 2 and min(times) > 0 for times in took.values())
