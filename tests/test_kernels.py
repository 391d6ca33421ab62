"""The sparse products: registered operators, any width and batch, empty rows, repeats, transposes built once."""

import pytest
import torch

from gconv import GConv
from gconv.domains import Graph
from gconv.kernels import CSR, sddmm, segment_max, spmm
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


@pytest.mark.parametrize("width", [1, 3, 17, 33])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_products_equal_dense(width, batch, dtype):
    csr, values, x, dense = problem(dtype, width, batch)
    tol = 1e-12 if dtype == DOUBLE else 1e-5
    assert_close("spmm", spmm(csr, values, x), dense @ x, tol)
    y = torch.randn(*batch, SHAPE[0], width, dtype=dtype)
    assert_close("spmm of the transpose", spmm(csr.T, values[csr.to_t], y), dense.t() @ y, tol)
    want = torch.einsum("...mc,...nc->mn", y, x)[ROW, COL][csr.perm]
    assert_close("sddmm", sddmm(csr, y, x), want, tol)


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
        with pytest.raises(ValueError, match="The sparse pattern wants"):
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


def test_one_layout_serves_every_layer_that_sees_the_graph(builds):
    graph = messy()
    for layer in (GConv(gcn(2, 3)), GConv(gcn(2, 5))):
        layer(torch.randn(6, 2), graph)
    assert len(builds) == 1


def test_a_symmetric_structure_is_its_own_transpose():
    for graph in (ring(), weighted()):
        S = GConv(gcn(2, 2)).at(graph).S
        assert S.symmetric
        csr, values, back = S.ordered("expand")
        assert csr.crow_t is csr.crow and csr.col_t is csr.col and back is values
    assert not GConv(gcn(2, 2)).at(messy()).S.symmetric
    one_way = Graph(torch.tensor([[0, 1], [1, 0]]), edge_weight=torch.tensor([1.0, 2.0]))
    assert not GConv(gcn(2, 2, add_self_loops=False, normalize=False)).at(one_way).S.symmetric, (
        "a symmetric pattern is not enough"
    )
