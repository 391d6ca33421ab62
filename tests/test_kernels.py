"""The sparse products: registered operators, any width and batch, empty rows, repeats, transposes built once."""

import pytest
import torch

from gconv import GConv
from gconv.domains import Graph
from gconv.kernels import (
    CSR,
    clenshaw,
    ends,
    filtered,
    heads_sddmm,
    heads_spmm,
    maximum,
    native,
    row_softmax,
    row_sums,
    sddmm,
    segment_max,
    spmm,
    terms,
)
from gconv.kernels import sparse as kernels
from gconv.operators import cheb, gat, gcn, monet, sage, selection
from gconv.operators.shapes import messy, ring, weighted
from gconv.testing import assert_close

DOUBLE = torch.float64
ROW = torch.tensor([2, 0, 2, 0, 2, 4])  # unsorted; (2, 1) twice; rows 1 and 3, columns 2 and 3 empty
COL = torch.tensor([1, 0, 1, 4, 0, 1])
SHAPE = (5, 6)


def problem(dtype=DOUBLE, width=3, batch=()):
    csr = CSR.build(ROW, COL, *SHAPE)
    values = torch.randn(len(ROW), dtype=dtype)
    x = torch.randn(*batch, SHAPE[1], width, dtype=dtype)
    dense = torch.zeros(SHAPE, dtype=dtype).index_put((ROW, COL), values, accumulate=True)
    return csr, csr.ordered(values), x, dense


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("width", [1, 3, 17, 33])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (9,)])
def test_products_equal_dense(width, batch, dtype):
    csr, values, x, dense = problem(dtype, width, batch)
    tol = 1e-12 if dtype == DOUBLE else 1e-5
    assert_close("spmm", spmm(csr, values, x), dense @ x, tol)
    y = torch.randn(*batch, SHAPE[0], width, dtype=dtype)
    assert_close("spmm of the transpose", spmm(csr.T, values[csr.to_t], y), dense.t() @ y, tol)
    want = torch.einsum("...mc,...nc->mn", y, x)[ROW, COL][csr.perm]
    assert_close("sddmm", sddmm(csr, y, x), want, tol)


@pytest.mark.usefixtures("anywhere")
def test_a_signal_may_lie_in_memory_as_it_likes(dtype):
    csr, values, _, dense = problem(dtype)
    for x in (
        torch.randn(3, 6, dtype=dtype).t(),
        torch.randn(6, 8, dtype=dtype)[:, ::2],
        torch.randn(1, 3, dtype=dtype).expand(6, 3),
    ):
        assert_close("spmm of a view", spmm(csr, values, x), dense @ x, 1e-5)
    x = (
        torch.randn(4, 6, 2, dtype=dtype)
        .transpose(0, 2)
        .transpose(1, 2)
        .movedim(0, -1)
        .contiguous()
        .movedim(-1, 0)
        .transpose(-1, -2)
    )
    assert_close("spmm of a permuted batch", spmm(csr, values, x), dense @ x, 1e-5)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("width", [1, 3])
def test_derivatives(width):
    csr, values, x, _ = problem(DOUBLE, width, (2,))
    values.requires_grad_()
    x.requires_grad_()
    torch.autograd.gradcheck(lambda v, s: spmm(csr, v, s), (values, x))
    torch.autograd.gradgradcheck(lambda v, s: spmm(csr, v, s), (values, x), fast_mode=True)
    y = torch.randn(2, SHAPE[0], width, dtype=DOUBLE, requires_grad=True)
    torch.autograd.gradcheck(lambda a, b: sddmm(csr, a, b), (y, x))
    torch.autograd.gradgradcheck(lambda a, b: sddmm(csr, a, b), (y, x), fast_mode=True)


@pytest.mark.parametrize("transposed_at_hand", [False, True])
def test_opcheck_spmm(transposed_at_hand):
    csr, values, x, _ = problem()
    values_t = values[csr.to_t] if transposed_at_hand else None
    args = (values.requires_grad_(not transposed_at_hand), x.requires_grad_(), values_t, *csr.tensors)
    torch.library.opcheck(torch.ops.gconv.spmm.default, args)


def test_opcheck_sddmm():
    csr, _, x, _ = problem()
    args = (torch.randn(SHAPE[0], 3, dtype=DOUBLE, requires_grad=True), x.requires_grad_(), *csr.tensors)
    torch.library.opcheck(torch.ops.gconv.sddmm.default, args)


def test_nothing_at_all():
    none = torch.empty(0, dtype=torch.int64)
    csr = CSR.build(none, none, 3, 4)
    assert torch.equal(spmm(csr, torch.empty(0), torch.ones(4, 2)), torch.zeros(3, 2))
    assert spmm(CSR.build(ROW, COL, *SHAPE), torch.ones(6), torch.ones(0, 6, 2)).shape == (0, 5, 2)
    assert spmm(CSR.build(ROW, COL, *SHAPE), torch.ones(6), torch.ones(6, 0)).shape == (5, 0)
    assert sddmm(csr, torch.ones(3, 2), torch.ones(4, 2)).shape == (0,)


def test_sizes_that_do_not_fit_are_refused():
    csr, values, x, _ = problem()
    for wrong in (lambda: spmm(csr, values[1:], x), lambda: spmm(csr, values, x[1:]), lambda: sddmm(csr, x, x)):
        with pytest.raises(ValueError, match="The sparse pattern needs"):
            wrong()


def test_segment_max():
    csr, values, x, _ = problem()
    by_hand = torch.zeros(SHAPE[0], 3, dtype=DOUBLE)
    perm = csr.perm.tolist()
    for row in range(SHAPE[0]):
        messages = [values[at] * x[COL[e]] for at, e in enumerate(perm) if ROW[e] == row]
        by_hand[row] = torch.stack(messages).amax(0) if messages else 0
    assert torch.equal(segment_max(csr, values, x), by_hand)


def test_sddmm_in_chunks_is_the_same(monkeypatch):
    csr, _, x, _ = problem()
    y = torch.randn(SHAPE[0], 3, dtype=DOUBLE)
    whole = kernels._sddmm_torch(y, x, *csr.tensors)
    monkeypatch.setattr(kernels, "CHUNK", 6)
    assert torch.equal(kernels._sddmm_torch(y, x, *csr.tensors), whole)


@pytest.mark.usefixtures("anywhere")
def test_bfloat16_accumulates_in_float32():
    n = 1000
    csr = CSR.build(torch.zeros(n, dtype=torch.int64), torch.arange(n), 1, n)
    y = spmm(csr, torch.ones(n, dtype=torch.bfloat16), torch.ones(n, 1, dtype=torch.bfloat16))
    assert abs(float(y) - n) <= 4, "256 is where a bfloat16 running sum of ones stops"


# -- built once ----------------------------------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch):
    made, build = [], CSR.build.__func__

    def counted(cls, *args):
        made.append(args)
        return build(cls, *args)

    monkeypatch.setattr(CSR, "build", classmethod(counted))
    return made


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
@pytest.mark.parametrize("kind", ["any", "sorted", "symmetric"])
def test_building_by_counting_is_building_by_sorting(kind):
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        rows, cols, entries = (int(n) for n in torch.randint(1, 9, (3,), generator=generator))
        entries = 4 * (entries - 1)  # none at all, or many repeated ones
        cols = rows if kind == "symmetric" else cols
        row, col = (torch.randint(n, (entries,), generator=generator) for n in (rows, cols))
        if kind == "sorted":
            row, col = torch.stack([row, col])[:, torch.argsort(row * cols + col)]
        if kind == "symmetric":
            row, col = torch.cat([row, col]), torch.cat([col, row])
        made, want = native.build(row, col, rows, cols), kernels._sorted(row, col, rows, cols)
        assert len(made) == len(want) == (6 if kind == "sorted" or not entries else len(want))
        assert all(torch.equal(got, right) and got.dtype == right.dtype for got, right in zip(made, want, strict=True))
        csr = CSR.build(row, col, rows, cols)
        assert torch.equal(csr.from_t, want[5]), "shared with to_t where the pattern is symmetric"
        assert kind != "symmetric" or csr.from_t is csr.to_t


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
@pytest.mark.parametrize(("row", "col"), [(5, 0), (0, 6), (-1, 0), (0, -1)])
def test_entries_outside_are_refused(row, col):
    with pytest.raises(IndexError, match="an entry out of range"):
        native.build(torch.tensor([row]), torch.tensor([col]), *SHAPE)


@pytest.mark.parametrize(
    ("spec", "make", "most"),
    [
        (gcn(2, 3), messy, 1),
        (sage(2, 3), messy, 1),
        (cheb(2, 3, k=4), messy, 1),
        (selection(2, 3, 3), messy, 1),
        (monet(2, 3, dim=2, kernel_size=2), messy, 1),
        (gat(2, 3, heads=2), messy, 1),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_the_sparse_layout_and_its_transpose_are_built_once_not_per_step(spec, make, most, builds):
    layer, graph = GConv(spec), make()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for step in range(4):
        x = torch.randn(graph.size, 2, requires_grad=True)
        layer(x, graph).square().sum().backward()
        optimizer.step()
        after = len(builds)
        if step == 0:
            first = after
    assert first <= most and after == first, f"{first} layouts in the first step, {after} after four"


def test_one_layout_is_used_by_all_layers_on_a_graph(builds):
    graph = messy()
    for layer in (GConv(gcn(2, 3)), GConv(gcn(2, 5))):
        layer(torch.randn(6, 2), graph)
    assert len(builds) == 1


def test_a_transpose_shares_the_values_in_both_orders():
    S = GConv(gcn(2, 2)).at(messy()).S
    csr, values, back = S.ordered("expand")
    csr_t, values_t, back_t = S.T.ordered("expand")
    assert csr_t.col is csr.col_t and values_t is back and back_t is values
    assert_close("numbers", S.T.expand(torch.eye(6))[0], S.expand(torch.eye(6))[0].t(), 1e-6)


def test_a_symmetric_structure_is_its_own_transpose():
    for graph in (ring(), weighted()):
        S = GConv(gcn(2, 2)).at(graph).S
        assert S.T is S
        assert S.symmetric
        csr, values, back = S.ordered("expand")
        assert csr.crow_t is csr.crow and csr.col_t is csr.col and back is values
    assert not GConv(gcn(2, 2)).at(messy()).S.symmetric
    one_way = Graph(torch.tensor([[0, 1], [1, 0]]), edge_weight=torch.tensor([1.0, 2.0]))
    assert not GConv(gcn(2, 2, add_self_loops=False, normalize=False)).at(one_way).S.symmetric, (
        "a symmetric pattern is not enough"
    )


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("width", [1, 3, 17, 33])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (9,)])
def test_maximum_and_its_gradients_are_torchs(width, batch, dtype):
    """Whole numbers, so that many entries tie, some at zero."""
    csr = CSR.build(torch.randint(0, 40, (200,)), torch.randint(0, 30, (200,)), 45, 30)
    values = torch.randint(-2, 3, (200,)).to(dtype).requires_grad_()
    x = torch.randint(-2, 3, (*batch, 30, width)).to(dtype).requires_grad_()
    got, want = segment_max(csr, values, x), maximum._max_torch(values, x, *csr.tensors)
    assert torch.equal(got, want)
    dy = torch.randn_like(want)
    for what, g, w in zip(
        ("values", "x"), *(torch.autograd.grad(y, (values, x), dy) for y in (got, want)), strict=True
    ):
        assert_close(f"gradient in {what}", g, w, 1e-12 if dtype == DOUBLE else 1e-5)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_maximum_in_half_precision_is_the_one_in_float32_rounded(half, monkeypatch):
    """Value and gradients, without the arrays of messages that torch's operators would write."""
    csr = CSR.build(torch.randint(0, 40, (200,)), torch.randint(0, 30, (200,)), 45, 30)
    values, x, dy = torch.randn(200), torch.randn(2, 30, 5), torch.randn(2, 45, 5).to(half)
    pairs = [(values.to(half).requires_grad_(), x.to(half).requires_grad_())]
    pairs.append(tuple(t.detach().float().requires_grad_() for t in pairs[0]))
    if native.LIBRARY is not None:
        monkeypatch.setattr(maximum, "_messages", None)
    y, wanted = (segment_max(csr, *pair) for pair in pairs)
    assert y.dtype == half
    assert torch.equal(y, wanted.to(half))
    found = torch.autograd.grad(y, pairs[0], dy)
    for got, want in zip(found, torch.autograd.grad(wanted, pairs[1], dy.float()), strict=True):
        assert torch.equal(got, want.to(half))


def test_maximum_is_differentiable_twice_and_a_good_operator():
    csr, values, x, _ = problem()
    values.requires_grad_()
    x.requires_grad_()
    torch.autograd.gradcheck(lambda v, s: segment_max(csr, v, s), (values, x))
    torch.autograd.gradgradcheck(lambda v, s: segment_max(csr, v, s), (values, x), fast_mode=True)
    torch.library.opcheck(torch.ops.gconv.segment_max.default, (values, x, *csr.tensors))


@pytest.mark.usefixtures("anywhere")
def test_maximum_lets_a_nan_through():
    csr = CSR.build(torch.tensor([0, 0]), torch.tensor([0, 1]), 1, 2)
    for x in (torch.tensor([[torch.nan], [1.0]]), torch.tensor([[1.0], [torch.nan]])):
        assert segment_max(csr, torch.ones(2), x).isnan().all()


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("width", [1, 3, 8, 17, 70])
def test_products_of_several_heads(heads, width, dtype):
    csr, *_ = problem(dtype)
    values, tol = torch.randn(len(ROW), heads, dtype=dtype), 1e-12 if dtype == DOUBLE else 1e-5
    x, y = torch.randn(2, SHAPE[1], heads, width, dtype=dtype), torch.randn(2, SHAPE[0], heads, width, dtype=dtype)
    dense = torch.zeros(*SHAPE, heads, dtype=dtype)
    dense.index_put_((ROW[csr.perm], COL[csr.perm]), values, accumulate=True)
    assert_close("apart", heads_spmm(csr, values, x), torch.einsum("mnh,bnhc->bmhc", dense, x), tol)
    assert_close(
        "together", heads_spmm(csr, values, x, True), torch.einsum("mnh,bnhc->bmc", dense, x).unsqueeze(2), tol
    )
    same = x[:, :, :1]
    assert_close("of one", heads_spmm(csr, values, same), torch.einsum("mnh,bnc->bmhc", dense, same[:, :, 0]), tol)
    back = torch.einsum("mnh,bmhc->bnhc", dense, y)
    assert_close("transposed", heads_spmm(csr, values, y, transposed=True), back, tol)
    want = torch.einsum("bmhc,bnhc->mnh", y, x)[ROW[csr.perm], COL[csr.perm]]
    assert_close("sampled", heads_sddmm(csr, y, x, heads), want, tol)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(("heads", "width"), [(8, 4), (8, 8), (16, 8), (12, 4), (4, 8)])
def test_heads_whose_channels_fill_a_vector(heads, width, dtype):
    """They have loops of their own; each signal has its own values."""
    csr, *_ = problem(dtype)
    values, tol = torch.randn(2, len(ROW), heads, dtype=dtype), 1e-12 if dtype == DOUBLE else 1e-5
    wide = torch.randn(2, SHAPE[1], 2, heads, width, dtype=dtype)
    x, y = wide[:, :, 1], torch.randn(2, SHAPE[0], heads, width, dtype=dtype)  # rows of x have gaps between them
    row, col = ROW[csr.perm], COL[csr.perm]
    for signal in range(2):
        v = values[signal].unsqueeze(-1)
        want = torch.zeros(SHAPE[0], heads, width, dtype=dtype).index_add(0, row, v * x[signal, col])
        assert_close("apart", heads_spmm(csr, values, x)[signal], want, tol)
        back = torch.zeros(SHAPE[1], heads, width, dtype=dtype).index_add(0, col, v * y[signal, row])
        assert_close("transposed", heads_spmm(csr, values, y, transposed=True)[signal], back, tol)
    assert_close("sampled", heads_sddmm(csr, y, x, heads, True), (y[:, row] * x[:, col]).sum(-1), tol)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("heads", [1, 3, 8, 70])
def test_softmax_sums_and_ends(heads, dtype):
    csr, *_ = problem(dtype)
    row, col, tol = ROW[csr.perm], COL[csr.perm], 1e-12 if dtype == DOUBLE else 2e-6
    logits = torch.randn(len(ROW), heads, dtype=dtype) * 30 + 1e4  # far beyond what exp can take
    want = torch.cat([logits[row == r].softmax(0) for r in row.unique()])
    assert_close("softmax", row_softmax(csr, logits), want, tol)
    a, b = torch.randn(SHAPE[0], heads, dtype=dtype), torch.randn(SHAPE[1], heads, dtype=dtype)
    assert_close("ends", ends(csr, a, b), a[row] + b[col], tol)
    for transposed, at, n in ((False, row, SHAPE[0]), (True, col, SHAPE[1])):
        sums = torch.zeros(n, heads, dtype=dtype).index_add(0, at, logits)
        assert_close("sums", row_sums(csr, logits, transposed), sums, tol)


def test_attention_kernels_are_differentiable_twice_and_good_operators():
    csr, *_ = problem()
    v, x = torch.randn(len(ROW), 2, dtype=DOUBLE), torch.randn(SHAPE[1], 2, 3, dtype=DOUBLE)
    y, a, b = (torch.randn(n, 2, *c, dtype=DOUBLE) for n, c in ((SHAPE[0], (3,)), (SHAPE[0], ()), (SHAPE[1], ())))
    v, x, y, a, b = (t.requires_grad_() for t in (v, x, y, a, b))
    for run, given in (
        (lambda v, x: heads_spmm(csr, v, x), (v, x)),
        (lambda v, x: heads_spmm(csr, v, x, True), (v, x)),
        (lambda v, x: heads_spmm(csr, v, x[:, :1]), (v, x)),
        (lambda v, y: heads_spmm(csr, v, y, transposed=True), (v, y)),
        (lambda y, x: heads_sddmm(csr, y, x, 2), (y, x)),
        (lambda y, x: heads_sddmm(csr, y, x, 2, True), (torch.stack([y, -y]), torch.stack([x, x + 1]))),
        (lambda v, x: heads_spmm(csr, v, x), (torch.stack([v, -v]), torch.stack([x, x + 1]))),
        (lambda v: row_softmax(csr, v), (torch.stack([v, -v]),)),
        (lambda v: row_softmax(csr, v), (v,)),
        (lambda a, b: ends(csr, a, b), (a, b)),
        (lambda v: row_sums(csr, v, True), (v,)),
    ):
        assert torch.autograd.gradcheck(run, given) and torch.autograd.gradgradcheck(run, given, fast_mode=True)
    for operator, given in (
        ("heads_spmm", (v, x, False, False)),
        ("heads_sddmm", (y, x, 2, False)),
        ("row_softmax", (v,)),
        ("ends", (a, b)),
        ("row_sums", (v, False)),
    ):
        torch.library.opcheck(getattr(torch.ops.gconv, operator).default, (*given, *csr.tensors))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "rows", [((1.0, 0.0, 0.0), (2.0, 0.0, 1.0)), ((0.5, 0.3, 0.0), (1.5, -0.2, 0.7), (2.0, 0.0, 1.0))]
)
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (9,)])
@pytest.mark.parametrize("width", [1, 5])
def test_recurrences(rows, batch, width, dtype):
    n, tol = 6, 1e-12 if dtype == DOUBLE else 1e-5
    csr = CSR.build(torch.randint(0, n, (15,)), torch.randint(0, n, (15,)), n, n)
    values = torch.randn(15, dtype=dtype)
    dense = spmm(csr, values, torch.eye(n, dtype=dtype))
    polynomials = [torch.eye(n, dtype=dtype)]
    for k, (alpha, beta, gamma) in enumerate(rows):
        step = (alpha * dense + beta * polynomials[0]) @ polynomials[k]
        polynomials.append(step - gamma * polynomials[k - 1] if k else step)
    stack = torch.stack(polynomials)
    x = torch.randn(*batch, n, width, dtype=dtype, requires_grad=True)
    z = torch.randn(*batch, n, len(stack), width, dtype=dtype, requires_grad=True)
    c = torch.tensor([0.5, 0.0, 2.0, -1.0], dtype=dtype)[: len(stack)]
    single = torch.einsum("k,kmn->mn", c, stack)
    for what, got, want, leaf in (
        ("terms", terms(csr, values, x, rows), torch.einsum("kmn,...nc->...mkc", stack, x), x),
        ("clenshaw", clenshaw(csr, values, z, rows), torch.einsum("kmn,...nkc->...mc", stack, z), z),
        ("filtered", filtered(csr, values, x, rows, c.tolist()), single @ x, x),
    ):
        assert_close(what, got, want, tol)
        dy = torch.randn_like(want)
        assert_close(f"gradient of {what}", *(torch.autograd.grad(y, leaf, dy)[0] for y in (got, want)), tol)


def test_recurrences_are_good_operators():
    csr = CSR.build(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1]), 3, 3)
    values, rows = torch.randn(4, dtype=DOUBLE), [1.0, 0.0, 0.0, 2.0, 0.0, 1.0]
    x, z = torch.randn(3, 2, dtype=DOUBLE, requires_grad=True), torch.randn(3, 3, 2, dtype=DOUBLE, requires_grad=True)
    torch.library.opcheck(torch.ops.gconv.terms.default, (values, x, None, rows, *csr.tensors))
    torch.library.opcheck(torch.ops.gconv.clenshaw.default, (values, z, None, rows, *csr.tensors))
    torch.library.opcheck(torch.ops.gconv.filtered.default, (values, x, None, rows, [1.0, 2.0, 3.0], *csr.tensors))


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
def test_rows_of_all_lengths_on_one_thread_and_on_two(dtype):
    """A row with a million entries, many with none; to the last bit the same, however many threads there are."""
    n, hub = 3000, 1_000_000
    row = torch.cat([torch.full((hub,), 7), torch.randint(0, n // 2, (20_000,))])
    csr = CSR.build(row, torch.randint(0, n, (len(row),)), n, n)
    values, x = torch.rand(len(row), dtype=dtype), torch.rand(n, 4, dtype=dtype)
    runs = {
        "spmm": lambda: spmm(csr, values, x),
        "transposed": lambda: spmm(csr.T, values[csr.to_t], x),
        "sddmm": lambda: sddmm(csr, x, x),
        "heads": lambda: heads_spmm(csr, values.unsqueeze(1).expand(-1, 2), x.unsqueeze(1)),
        "softmax": lambda: row_softmax(csr, values.unsqueeze(1)),
        "maximum": lambda: segment_max(csr, values, x),
    }
    before, found = torch.get_num_threads(), {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found[threads] = {name: run() for name, run in runs.items()}
    torch.set_num_threads(before)
    for name in runs:
        assert torch.equal(found[1][name], found[2][name]), name
    messages = values.double()[:, None] * x.double()[csr.col.long()]
    want = torch.zeros(n, 4, dtype=DOUBLE).index_add(0, row.sort().values, messages)
    tol = 1e-3 if dtype == torch.float32 else 1e-12  # one running sum of a million terms
    assert_close("the hub", found[1]["spmm"][7], want[7], tol)
    assert not found[1]["spmm"][n // 2 :].any()
