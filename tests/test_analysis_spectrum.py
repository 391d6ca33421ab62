"""Matrices, singular values and norms: against the explicit matrix, and the inequalities that tie them together."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gconv import GConv, Graph, Grid, analysis
from gconv.analysis import matrix, norm, norm_bound, singular_values, spectrum
from gconv.analysis.fourier import Frames, fourier_blocks
from gconv.basis import Stack
from gconv.linear import block_diag
from gconv.operators import (
    avg_pool2d,
    cheb,
    conv1d,
    conv2d,
    conv_transpose2d,
    depthwise,
    gat,
    gcn,
    graphconv,
    pointwise,
    sage,
    sgc,
    spectral,
    tag,
)
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import list_operators, operator
from gconv.testing import Case, assert_close

DOUBLE = torch.float64


def at(spec, domain, x=None):
    return GConv(spec, dtype=DOUBLE).at(domain, x)


def svd(A):
    return torch.linalg.svdvals(matrix(A).detach())


# -- the matrix ------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", list_operators())
def test_sparse_matrices_are_the_dense_one(name):
    for sample in operator(name).samples():
        A = Case.of(sample, DOUBLE).map()
        if A is None:
            continue
        want = matrix(A)
        assert_close(f"{sample.name}, scipy", torch.as_tensor(matrix(A, "sparse").toarray()), want, 1e-12)
        assert_close(f"{sample.name}, torch", matrix(A, "torch_sparse").to_dense(), want, 1e-12)


def test_sparse_matrices_of_sums_and_products():
    A, B = at(conv2d(2, 2, 3, padding=1), Grid((4, 5))), at(depthwise(2, 3, padding=1), Grid((4, 5)))
    for whole in (A @ B, A + B - 2 * A.I, (A.T @ B) / 3, block_diag([A, B]), block_diag([A, B], "channels")):
        want = matrix(whole)
        assert_close(str(whole), torch.as_tensor(matrix(whole, "sparse").toarray()), want, 1e-12)
        assert_close(str(whole), matrix(whole, "torch_sparse").to_dense(), want, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sparse_matrices_of_sums_and_products_in_16_bits(dtype):
    """torch has no sparse products in 16 bits, and no sparse sums in float16."""
    A, B = (
        GConv(spec, dtype=dtype).at(Grid((4, 5))) for spec in (conv2d(2, 2, 3, padding=1), depthwise(2, 3, padding=1))
    )
    for whole in (A, A @ B, A + B, 2 * (A.T @ B), A.restrict(rows=[0, 3])):
        want, found = matrix(whole), matrix(whole, "torch_sparse")
        assert found.dtype == dtype and found.is_coalesced()
        assert_close(str(whole), found.to_dense().float(), want.float(), 0.02)
        assert_close(str(whole), torch.as_tensor(matrix(whole, "sparse").toarray()), want.float(), 0.02)


def test_sparse_values_carry_the_gradient():
    A = at(conv2d(2, 3, 3, padding=1, groups=1), Grid((4, 5)))
    y = torch.randn(*A.shape, dtype=DOUBLE)
    M = matrix(A, "torch_sparse")
    (sparse,) = torch.autograd.grad((M.values() * y[tuple(M.indices())]).sum(), A.W)
    (full,) = torch.autograd.grad((matrix(A) * y).sum(), A.W)
    torch.testing.assert_close(sparse, full)


def test_a_large_sparse_matrix_holds_only_its_entries():
    """Memory by counting: one number for each entry of S and of W that meet, no dense array (3072 x 65536) anywhere."""
    A = GConv(conv2d(3, 64, 3, padding=1)).at(Grid((32, 32)))
    M = matrix(A, "sparse")
    assert M.shape == (65536, 3072) and M.nnz == (9 * 32 * 32 - 4 * 3 * 32 + 4) * 3 * 64
    assert M.data.nbytes + M.indices.nbytes + M.indptr.nbytes < 16e6
    grouped = GConv(depthwise(64, 3, padding=1)).at(Grid((32, 32)))
    assert matrix(grouped, "sparse").nnz == (9 * 32 * 32 - 4 * 3 * 32 + 4) * 64  # what groups lack is not stored


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="'dense', 'sparse' or 'torch_sparse', not 'csr'"):
        matrix(at(conv1d(1, 1, 3), Grid((5,))), "csr")


# -- singular values -------------------------------------------------------------------------------------------------

CIRCULAR = {
    "plain": (conv2d(2, 3, 3, padding=1, padding_mode="circular"), (5, 6)),
    "strided": (conv2d(2, 3, 3, padding=1, padding_mode="circular", stride=2), (6, 8)),
    "dilated, strided": (conv2d(2, 3, 3, padding=2, padding_mode="circular", dilation=2, stride=2), (8, 6)),
    "uneven": (conv2d(2, 3, 4, padding=((2, 1), (1, 2)), padding_mode="circular"), (4, 6)),
    "larger than the grid": (conv2d(1, 2, 5, padding=2, padding_mode="circular"), (3, 4)),
    "patches": (conv2d(2, 3, (2, 3), stride=(2, 3)), (6, 9)),
    "transposed patches": (conv_transpose2d(2, 3, 2, stride=2), (3, 4)),
    "groups": (depthwise(4, 3, padding=1, padding_mode="circular"), (5, 6)),
    "pointwise": (pointwise(2, 3), (4, 5)),
}
GRAPHS = {
    "cheb": (cheb(2, 3, k=3), weighted),
    "cheb, unnormalised": (cheb(2, 3, k=4, normalization=None), weighted),
    "gcn": (gcn(3, 2), weighted),
    "sgc": (sgc(2, 3, k=2), ring),
    "tag": (tag(2, 2, k=2), weighted),
    "neighbours and self": (graphconv(2, 3), weighted),
    "multipliers": (spectral(3, 2, k=3), weighted),
}
OTHERS = {
    "zeros": (conv2d(2, 3, 3, padding=1), lambda: Grid((5, 4))),
    "reflected": (conv2d(2, 3, 3, padding=1, padding_mode="reflect"), lambda: Grid((5, 4))),
    "stride that does not divide": (
        conv2d(2, 3, 3, padding=1, padding_mode="circular", stride=2),
        lambda: Grid((5, 4)),
    ),
    "directed": (cheb(2, 3, k=3), messy),
    "row-normalised": (sage(2, 3), weighted),
}


@pytest.mark.parametrize("name", CIRCULAR)
def test_fourier_blocks_on_grids_are_exact(name):
    spec, shape = CIRCULAR[name]
    A = at(spec, Grid(shape))
    assert fourier_blocks(A, Frames(0)) is not None
    for B in (A, A.T, A.T @ A + 0.5 * A.I, 2 * A - 3 * A):
        assert_close(str(B), singular_values(B), svd(B), 1e-10)
        assert math.isclose(norm(B), float(svd(B)[0]), rel_tol=1e-10)


def test_average_windows_that_do_not_overlap():
    A = at(avg_pool2d(2), Grid((6, 8)), torch.zeros(48, 2, dtype=DOUBLE))
    assert fourier_blocks(A, Frames(0)) is not None
    assert_close("windows", singular_values(A), svd(A), 1e-10)


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_spectra_are_exact(name):
    spec, domain = GRAPHS[name]
    A = at(spec, domain())
    assert fourier_blocks(A, Frames(100)) is not None
    for B in (A, A.T, A @ A.T - 2 * A.T.I):
        assert_close(str(B), singular_values(B), svd(B), 1e-10)


@pytest.mark.parametrize("name", OTHERS)
def test_what_no_fourier_basis_diagonalises_is_decomposed(name):
    spec, domain = OTHERS[name]
    A = at(spec, domain())
    assert fourier_blocks(A, Frames(100)) is None
    assert_close(name, singular_values(A), svd(A), 1e-10)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_circular_convolution(data):
    d = data.draw(st.integers(1, 2))
    stride = [data.draw(st.integers(1, 3)) for _ in range(d)]
    kernel = [data.draw(st.integers(1, 4)) for _ in range(d)]
    size = [s * data.draw(st.integers(2, 4)) for s in stride]
    pads = []
    for n, k, s in zip(size, kernel, stride, strict=True):
        before = data.draw(st.integers(0, min(n, k)))
        # as many sites out as the stride says
        low = max(0, (n // s - 1) * s + k - n - before)
        pads.append((before, data.draw(st.integers(low, low + s - 1))))
    if any(max(pad) > n for pad, n in zip(pads, size, strict=True)):
        return
    factory = (conv1d, conv2d)[d - 1]
    A = at(
        factory(2, 3, tuple(kernel), stride=tuple(stride), padding=tuple(pads), padding_mode="circular"),
        Grid(tuple(size)),
    )
    if tuple(A.S.out) != tuple(n // s for n, s in zip(size, stride, strict=True)):
        return
    assert_close("circular", singular_values(A), svd(A), 1e-10)


def test_a_wrong_symbol_is_detected():
    """Negative control: the blocks of another stride's phases."""
    A = at(conv2d(2, 2, 3, padding=1, padding_mode="circular"), Grid((6, 6)))
    wrong = torch.linalg.svdvals(fourier_blocks(2 * A, Frames(0)).values).flatten().sort(descending=True).values
    with pytest.raises(AssertionError, match="off by"):
        assert_close("wrong", wrong, svd(A), 1e-10)


def test_eigenvalues_can_be_given():
    A = at(cheb(2, 3, k=3), weighted())
    L = A.S.L.expand(torch.eye(8, dtype=DOUBLE))[0]
    values = torch.linalg.eigvalsh(L)
    assert_close("given", singular_values(A, eigenvalues=values.flip(0)), svd(A), 1e-10)
    with pytest.raises(ValueError, match="one eigenvalue per site, 8 in all"):
        singular_values(A, eigenvalues=values[:3])


def test_maps_on_different_matrices_share_no_basis():
    A, B = at(gcn(2, 2), weighted()), at(cheb(2, 2, k=3), weighted())
    assert fourier_blocks(A @ B, Frames(100)) is None
    assert_close("product", singular_values(A @ B), svd(A @ B), 1e-10)
    S = Stack((A.S, B.S))
    assert fourier_blocks((A + B).collapse(), Frames(100)) is None and S.shape[0] == 4


def test_the_largest_by_lanczos(monkeypatch):
    A = at(conv2d(2, 3, 3, padding=1), Grid((6, 6)))
    want = svd(A)
    monkeypatch.setattr(spectrum, "SMALL", 10)
    assert_close("five", singular_values(A, k=5), want[:5], 1e-10)
    with pytest.raises(ValueError, match=r"All 72 singular values .* 108 x 72; ask for the k largest"):
        singular_values(A)
    with pytest.raises(ValueError, match="72 singular values, but k is 73"):
        singular_values(A, k=73)


def test_one_tap_is_a_product_of_two_spectra(monkeypatch):
    A = at(sage(2, 3), weighted())
    one = A.restrict(i=[0, 1])  # not a member of one tap: two of them
    assert_close("two taps", singular_values(one), svd(one), 1e-10)
    walk = at(gcn(3, 2), messy())  # directed: not symmetric
    monkeypatch.setattr(spectrum, "SMALL", 0)
    assert_close("one tap", singular_values(walk), svd(walk), 1e-10)


def test_attention_is_analysed_frozen():
    A = at(gat(3, 2, heads=2), weighted(), torch.randn(8, 3, dtype=DOUBLE))
    assert_close("frozen", singular_values(A), svd(A), 1e-10)


def test_complex_maps():
    layer = GConv(conv2d(2, 2, 3, padding=1, padding_mode="circular"), dtype=torch.complex128)
    A = layer.at(Grid((4, 5)))
    assert_close("complex", singular_values(A), svd(A), 1e-10)
    assert_close("complex, transposed", singular_values(A.T), svd(A.T), 1e-10)
    B = GConv(conv2d(2, 2, 3, padding=1), dtype=torch.complex128).at(Grid((4, 5)))
    assert math.isclose(norm(B), float(svd(B)[0]), rel_tol=1e-7)


# -- norms -----------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(kh=st.integers(1, 4), kw=st.integers(1, 4), i=st.integers(1, 3), o=st.integers(1, 3), seed=st.integers(0, 99))
def test_reshaped_kernel_bounds_the_convolution(kh, kw, i, o, seed):
    """||R|| <= ||conv|| <= sqrt(kh kw) ||R|| at stride 1, R the kernel as an (o, kh kw i) matrix."""
    torch.manual_seed(seed)
    layer = GConv(conv2d(i, o, (kh, kw), padding="same", padding_mode="circular"), dtype=DOUBLE)
    R = float(torch.linalg.matrix_norm(layer.weight.detach().flatten(0, 1), 2))
    size = norm(layer.at(Grid((6, 7))))
    assert R * (1 - 1e-12) <= size <= math.sqrt(kh * kw) * R * (1 + 1e-12)


def test_reshaped_kernel_of_a_constant_reaches_the_upper_bound():
    layer = GConv(conv2d(1, 1, 3, padding=1, padding_mode="circular"), dtype=DOUBLE)
    layer.weight.data.fill_(1.0)
    assert math.isclose(norm(layer.at(Grid((6, 7)))), 9.0, rel_tol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_zero_padding_is_below_the_circular_norm_on_the_enlarged_grid(data):
    k, s = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    size, pad = data.draw(st.tuples(st.integers(4, 6), st.integers(4, 6))), data.draw(st.integers(0, 2))
    layer = GConv(conv2d(2, 2, k, padding=pad, stride=s), dtype=DOUBLE)
    ring_layer = GConv(conv2d(2, 2, k, padding=((0, k - 1),) * 2, padding_mode="circular"), dtype=DOUBLE)
    ring_layer.load_state_dict(layer.state_dict())
    enlarged = Grid(tuple(n + 2 * pad for n in size))
    A = layer.at(Grid(size))
    top = float(svd(A)[0])
    assert top <= norm(ring_layer.at(enlarged)) * (1 + 1e-12)
    assert top <= norm_bound(A) * (1 + 1e-12)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", list_operators())
def test_bounds_hold_and_norms_are_exact(name):
    for sample in operator(name).samples():
        A = Case.of(sample, DOUBLE).map()
        if A is None:
            continue
        want = float(torch.linalg.matrix_norm(matrix(A).detach(), 2)) if min(A.shape) else 0.0
        assert norm(A) == pytest.approx(want, rel=1e-9, abs=1e-12), sample.name
        assert norm_bound(A) >= want * (1 - 1e-12), sample.name


def test_bounds_of_compositions():
    A, B = at(conv2d(2, 2, 3, padding=1), Grid((4, 5))), at(depthwise(2, 3, padding=1), Grid((4, 5)))
    for whole in (A @ B, A + B, A - 2 * B, 3 * A, block_diag([A, B]), A.restrict(rows=[1, 2])):
        assert float(svd(whole)[0]) <= norm_bound(whole) * (1 + 1e-12)
        assert math.isclose(norm(whole), float(svd(whole)[0]), rel_tol=1e-7)


def test_the_bound_is_close_for_large_images():
    A = at(conv2d(2, 2, 3, padding=1), Grid((24, 24)))
    assert norm(A) <= norm_bound(A) <= 1.05 * norm(A)


def test_adjoint_gap_sees_a_wrong_transpose():
    """Negative control."""
    A, B = at(conv2d(2, 2, 3, padding=1), Grid((4, 5))), at(conv2d(2, 2, 3, padding=1), Grid((4, 5)))
    assert analysis.adjoint_gap(A @ B) < 1e-12
    wrong = A @ B
    wrong.__dict__["T"] = A.T @ B.T
    assert analysis.adjoint_gap(wrong) > 1e-3


@pytest.mark.data
def test_the_graph_twin_on_a_part_of_cora(data_root):
    from datasets import load_planetoid

    cora = load_planetoid("Cora", data_root)
    keep = cora.data.edge_index[:, (cora.data.edge_index < 150).all(0)]
    A = at(cheb(3, 4, k=3), Graph(keep, 150))
    assert_close("Cora's first 150 papers", singular_values(A), svd(A), 1e-10)


def test_all_singular_values_of_a_large_map_are_refused_by_number_too():
    """Lanczos finds all but one."""
    A = GConv(conv2d(1, 1, 3, padding=1)).at(Grid((46, 46)))
    for k in (None, 46 * 46):
        with pytest.raises(ValueError, match="All 2116 singular values"):
            singular_values(A, k)
