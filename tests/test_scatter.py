"""A small result of a large signal, added up from the transpose's rows: the same numbers as by gathering."""

import pytest
import torch

from gconv.kernels import CSR, native, spmm
from gconv.kernels import sparse as kernels
from gconv.testing import assert_close

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
DOUBLE = torch.float64
ROW = torch.tensor([2, 0, 2, 0, 2, 4])  # unsorted; (2, 1) twice; rows 1 and 3, columns 2 and 3 empty
COL = torch.tensor([1, 0, 1, 4, 0, 1])
SHAPE = (5, 6)


@pytest.fixture(params=native.LEVELS[: native.LEVEL + 1])
def level(request, monkeypatch):
    monkeypatch.setattr(native, "LEVEL", native.LEVELS.index(request.param))


@pytest.fixture
def always(monkeypatch):
    """Signals of any size; counts how often the kernel runs."""
    for name in ("FAR", "SHRINKS", "WIDE"):
        monkeypatch.setattr(kernels, name, 0)
    calls, made = [], native.scatter
    monkeypatch.setattr(native, "scatter", lambda *given: calls.append(1) or made(*given))
    return calls


def problem(dtype=DOUBLE, width=3, batch=()):
    csr = CSR.build(ROW, COL, *SHAPE)
    values, x = csr.ordered(torch.randn(len(ROW), dtype=dtype)), torch.randn(*batch, SHAPE[1], width, dtype=dtype)
    return csr, values, x


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("width", [0, 1, 3, 16, 17, 33, 70, 130])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,)])
def test_the_same_numbers(width, batch, dtype, always):
    csr, values, x = problem(dtype, width, batch)
    want = spmm(csr, values, x)
    assert not always  # without the transpose's values there is nothing to add up from
    assert_close("product", spmm(csr, values, x, values[csr.to_t]), want, 1e-12 if dtype == DOUBLE else 1e-6)
    assert always
    if want.numel():
        with pytest.raises(AssertionError):  # control: values in another order
            assert_close("product", spmm(csr, values, x, values), want, 1e-3)


@pytest.mark.usefixtures("level")
def test_a_signal_may_lie_in_memory_as_it_likes(always):
    csr, values, _ = problem()
    for x in (
        torch.randn(3, 6, dtype=DOUBLE).t(),
        torch.randn(6, 8, dtype=DOUBLE)[:, ::2],
        torch.randn(1, 3, dtype=DOUBLE).expand(6, 3),
        torch.randn(6, 2, 3, dtype=DOUBLE).transpose(0, 1),
    ):
        assert_close("product", spmm(csr, values, x, values[csr.to_t]), spmm(csr, values, x), 1e-12)
    assert always


def test_nothing_at_all(always):
    none = torch.empty(0, dtype=torch.int64)
    for m, n in ((0, 3), (3, 0), (0, 0), (2, 3)):
        csr, values = CSR.build(none, none, m, n), torch.empty(0)
        assert torch.equal(spmm(csr, values, torch.randn(n, 4), values), torch.zeros(m, 4))


def test_derivatives_and_the_operator(always):
    csr, values, x = problem(width=17)
    given = values.requires_grad_(), x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, x: spmm(csr, v, x, v[csr.to_t]), given)
    assert torch.autograd.gradgradcheck(lambda v, x: spmm(csr, v, x, v[csr.to_t]), given)
    torch.library.opcheck(torch.ops.gconv.spmm.default, (*given, values[csr.to_t].detach(), *csr.tensors))
    compiled = torch.compile(lambda x: spmm(csr, values, x, values[csr.to_t]), fullgraph=True, backend="aot_eager")
    assert_close("compiled", compiled(x), spmm(csr, values, x), 1e-12)


def test_other_types_are_gathered(always):
    csr, values, x = problem(torch.float32)
    assert_close("product", spmm(csr, values, x.bfloat16(), values[csr.to_t]), spmm(csr, values, x.bfloat16()), 0)
    assert not always


def test_only_where_it_is_faster():
    tall, few = torch.randn(1 << 14, 32), torch.randn(1)
    assert kernels._scatters(few, tall, 1 << 11)
    for x, rows in ((tall[1:], 1 << 10), (tall, (1 << 11) + 1), (torch.randn(1 << 16, 31), 10), (tall.bfloat16(), 10)):
        assert not kernels._scatters(few, x, rows)


@pytest.mark.parametrize("width", [16, 40, 64])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_one_thread_and_two_agree_to_the_last_bit(width, batch, always):
    row, col = torch.randint(40, (30_000,)), torch.randint(900, (30_000,))
    csr, values, x = CSR.build(row, col, 40, 900), torch.randn(30_000), torch.randn(*batch, 900, width)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(spmm(csr, values, x, values[csr.to_t]))
    torch.set_num_threads(before)
    assert torch.equal(*found) and always
