"""Sampled products: many are summed at once, and no number reaches another's sum."""

import pytest
import torch

from gconv.kernels import CSR, heads_sddmm, native, sddmm
from gconv.testing import assert_close

pytestmark = pytest.mark.usefixtures("anywhere")


def pattern(entries: int, rows: int = 7, cols: int = 9) -> CSR:
    return CSR.build(torch.randint(rows, (entries,)), torch.randint(cols, (entries,)), rows, cols)


def ends_of(csr: CSR) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = (csr.crow[1:] - csr.crow[:-1]).long()
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths), csr.col.long()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 2, 8, 9])
def test_every_width_and_number_of_entries(heads, kind):
    """Whole numbers: sums are exact in every order and type."""
    for width in [*range(1, 37), 48, 64, 65, 128, 129, 200]:
        csr = pattern(entries := 3 + width % 17)
        row, col = ends_of(csr)
        for b in (1, 3):
            y, x = (torch.randint(-2, 3, (b, n, heads, width)).to(kind) for n in csr.shape)
            want = torch.einsum("behc,behc->eh", y[:, row].double(), x[:, col].double())
            if kind == torch.bfloat16:
                want = want.bfloat16().double()
            assert torch.equal(heads_sddmm(csr, y, x, heads).double(), want), (width, b, entries)


@pytest.mark.parametrize("width", [1, 3, 4, 7, 8, 9, 17, 33])
def test_an_infinite_number_stays_where_it_is(width):
    csr = CSR.build(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 2, 1]), 3, 3)
    row, col = ends_of(csr)
    for channel in range(width):
        y, x = torch.randn(3, width), torch.randn(3, width)
        x[1, channel] = torch.inf
        found = sddmm(csr, y, x)
        assert torch.equal(found.isfinite(), col != 1)
        assert_close("the others", found[col != 1], (y[row] * x[col]).sum(-1)[col != 1], 1e-5)


@pytest.mark.parametrize("width", [5, 8, 64])
def test_signals_may_have_gaps(width):
    csr = pattern(20)
    row, col = ends_of(csr)
    y, x = torch.randn(7, 4, width + 3)[:, 1:, :width], torch.randn(3, 9, width).transpose(0, 1)
    assert_close("sampled", heads_sddmm(csr, y, x, 3), (y[row] * x[col]).sum(-1), 1e-5)
    one = torch.randn(9, 1, width)
    assert_close("of one", heads_sddmm(csr, y, one, 3), (y[row] * one[col]).sum(-1), 1e-5)


@pytest.mark.skipif(native.LIBRARY is None, reason="the compiled kernels were not built")
@pytest.mark.parametrize(("heads", "width"), [(8, 8), (1, 64), (3, 5), (8, 2)])
def test_one_thread_and_two_agree_to_the_last_bit(heads, width):
    csr = pattern(30_000, 900, 900)
    y, x, before, found = torch.randn(900, heads, width), torch.randn(900, heads, width), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(heads_sddmm(csr, y, x, heads))
    torch.set_num_threads(before)
    assert torch.equal(*found)
