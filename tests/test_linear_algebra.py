"""The algebra of linear maps: every law against the explicit matrices, and every map against its collapsed form."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gconv import GConv, Grid, LinearMap, NotLinear, convert
from gconv.analysis import matrix
from gconv.basis import Pattern, Product, Stack, Taps, entries, single
from gconv.basis.shifts import Shifts
from gconv.linear import Map, Sum, block, block_diag, hstack, identity, select_channels, select_sites, vstack
from gconv.lowering import dense
from gconv.mixing import Dense, Fixed
from gconv.operators import avg_pool2d, cheb, conv2d, conv_transpose2d, depthwise, gat, gcn, graphconv, sgc, spectral
from gconv.operators.shapes import messy, ring, weighted
from gconv.spec import list_operators, operator
from gconv.testing import Case, assert_close

DOUBLE = torch.float64


def at(spec, domain, x=None):
    return GConv(spec, dtype=DOUBLE).at(domain, x)


def explicit(A):
    """The matrix by columns: A applied to the identity."""
    size, i = A.sites[1], A.i
    eye = torch.eye(size * i, dtype=A.dtype).unflatten(-1, (size, i))
    return (A @ eye).flatten(1).mT


def same(A, want):
    """A as it is, its collapsed form and both transposes, against a matrix."""
    assert A.shape == tuple(want.shape)
    one = A.collapse()
    assert isinstance(one, LinearMap) and one.sites == A.sites and (one.i, one.o) == (A.i, A.o)
    for B in (A, one, A.T.T):
        assert_close(str(B), explicit(B), want, 1e-12)
    for B in (A.T, one.T, A.T.collapse()):
        assert_close(f"{B} transposed", explicit(B), want.mT, 1e-12)


GRID = Grid((4, 5))
# all from (20 sites, 2 channels) to (20 sites, 2 channels), in every form of S that leads somewhere square
SQUARE = {
    "shifts": lambda: at(conv2d(2, 2, 3, padding=1), GRID),
    "grouped": lambda: at(depthwise(2, 3, padding=1, padding_mode="circular"), GRID),
    "transposed": lambda: at(conv_transpose2d(2, 2, 3, padding=1), GRID),
    "taps": lambda: at(gcn(2, 2), ring(20)),
    "polynomial": lambda: at(cheb(2, 2, k=3), ring(20)),
    "combined": lambda: at(sgc(2, 2, k=2), ring(20)),
    "diagonal": lambda: at(spectral(2, 2, k=3), ring(20)),
    "stack": lambda: at(graphconv(2, 2), ring(20)),
    "heads": lambda: at(gat(2, 1, heads=2), ring(20), torch.randn(20, 2, dtype=DOUBLE)),
    "identity": lambda: identity(20, 2, dtype=DOUBLE),
}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("left", SQUARE)
@pytest.mark.parametrize("right", ["shifts", "taps", "polynomial", "diagonal", "stack"])
def test_sums_and_products_are_those_of_the_matrices(left, right):
    A, B = SQUARE[left](), SQUARE[right]()
    M, N = matrix(A), matrix(B)
    same(A @ B, M @ N)
    same(A + B, M + N)
    same(A - 2 * B, M - 2 * N)
    same((A @ B + 0.1 * A.I).T @ A, (M @ N + 0.1 * torch.eye(40, dtype=DOUBLE)).mT @ M)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_expression_is_what_it_says(data):
    """Random expressions of three maps against the same expression of their matrices."""
    names = data.draw(st.lists(st.sampled_from(sorted(SQUARE)), min_size=2, max_size=3))
    maps = [SQUARE[name]() for name in names]
    A, M = maps[0], matrix(maps[0])
    for B in maps[1:]:
        N, step = matrix(B), data.draw(st.sampled_from(["@", "+", "-", "T@", "/"]))
        A, M = {
            "@": lambda A=A, M=M, B=B, N=N: (A @ B, M @ N),
            "+": lambda A=A, M=M, B=B, N=N: (A + B, M + N),
            "-": lambda A=A, M=M, B=B, N=N: (A - B, M - N),
            "T@": lambda A=A, M=M, B=B, N=N: (A.T @ B, M.mT @ N),
            "/": lambda A=A, M=M, B=B, N=N: (-(A @ B) / 2, -(M @ N) / 2),
        }[step]()
    same(A, M)


def test_algebra_prints_as_written():
    A, B = at(conv2d(2, 2, 3, padding=1), GRID), at(gcn(2, 2), ring(20))
    assert str(A.T @ A + 0.1 * A.I) == "(conv2d.T @ conv2d + 0.1 I)"
    assert str((A.T @ A).T) == "conv2d.T @ conv2d"
    assert str(A - 2 * B - 3 * (A @ B)) == "(conv2d - 2 gcn - 3 (conv2d @ gcn))"
    assert str(-A) == "-conv2d" and str(A / 4) == "0.25 conv2d" and str(1 * A) == "conv2d"
    assert str(2 * (3 * A)) == "6 conv2d" and str((A + B) @ A) == "(conv2d + gcn) @ conv2d"
    assert len((A + B + A).terms) == 3 and len((A @ B @ A).factors) == 3
    assert str(LinearMap(A.S, A.mixing, A.W, 2, DOUBLE)) == "LinearMap(40 x 40, Shifts, Dense)"  # one without a name
    assert str((A + B).collapse()) == "(conv2d + gcn)"
    assert str(block([[A, None], [B, A]])) == "[[conv2d, 0], [gcn, conv2d]]"


def test_blocks_along_sites_are_the_block_matrix():
    A, C = at(conv2d(2, 3, 3, padding=1), GRID), at(conv2d(2, 3, 2), GRID)
    B = at(avg_pool2d(2), Grid((6, 8)), torch.zeros(48, 2, dtype=DOUBLE))
    B = select_channels([0, 1, 0], 2, 12, dtype=DOUBLE) @ B
    M, N, P = matrix(A), explicit(B), matrix(C)
    zero = torch.zeros
    same(
        block([[A, None], [C, B]]), torch.cat([torch.cat([M, zero(len(M), 96, dtype=DOUBLE)], 1), torch.cat([P, N], 1)])
    )
    same(hstack([A, A]), torch.cat([M, M], 1))
    same(vstack([A, C]), torch.cat([M, P]))
    same(block_diag([A, B]), torch.block_diag(M, N))


def test_blocks_along_channels_split_and_join_channels():
    A, B = at(conv2d(2, 3, 3, padding=1), GRID), at(conv2d(1, 4, 3, padding=1), GRID)
    x = torch.randn(5, 20, 3, dtype=DOUBLE)
    D, H, V = block_diag([A, B], "channels"), hstack([A, 2 * A], "channels"), vstack([A, A], "channels")
    assert (D.i, D.o, D.sites) == (3, 7, (20, 20))
    torch.testing.assert_close(D @ x, torch.cat([A @ x[..., :2], B @ x[..., 2:]], -1))
    torch.testing.assert_close(H @ torch.cat([x[..., :2]] * 2, -1), 3 * (A @ x[..., :2]))
    torch.testing.assert_close(V @ x[..., :2], torch.cat([A @ x[..., :2]] * 2, -1))
    for whole in (D, H, V):
        same(whole, explicit(whole))


def test_restriction_selects_rows_and_columns():
    A = at(conv2d(2, 3, 3, padding=1), GRID)
    M = matrix(A).unflatten(0, (20, 3)).unflatten(2, (20, 2))
    rows, cols = torch.tensor([3, 0, 7]), range(5, 9)
    want = M[rows][:, [2, 0]][:, :, 5:9][..., [1]]
    same(A.restrict(rows, cols, i=[1], o=[2, 0]), want.flatten(2).flatten(0, 1))
    assert A.restrict() is A
    same(select_sites([2, 2], 3, 2, dtype=DOUBLE), torch.eye(6, dtype=DOUBLE)[[4, 5, 4, 5]])


def test_gradients_reach_weights_and_multiples():
    A, B = (at(conv2d(2, 2, 3, padding=1), GRID) for _ in range(2))
    c = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    whole, x = (c * A) @ B + A, torch.randn(20, 2, dtype=DOUBLE)
    grads = [torch.autograd.grad((f @ x).sum(), (A.W, B.W, c)) for f in (whole, whole.collapse())]
    for lazy, one in zip(*grads, strict=True):
        torch.testing.assert_close(lazy, one)
        assert lazy.abs().max() > 0


def test_numpy_numbers_scale():
    A = at(gcn(2, 2), ring(20))
    assert isinstance(np.float64(2) * A, Map) and str(A * np.float64(2)) == "2 gcn"


def test_what_does_not_fit_is_refused_in_prose():
    A, B = at(conv2d(2, 3, 3, padding=1), GRID), at(gcn(2, 2), ring(20))
    with pytest.raises(ValueError, match=r"output of B must fit the input of A, but A maps \(20 sites, 2 channels\)"):
        B @ A
    with pytest.raises(ValueError, match=r"added must have the same sites and channels.*3 channels.*2 channels"):
        A + B
    with pytest.raises(ValueError, match=r"the same dtype, but these have torch.float64 and torch.float32"):
        B + GConv(gcn(2, 2)).at(ring(20))
    with pytest.raises(ValueError, match=r"signals .* 20 sites, 2 channels"):
        (A.T @ A) @ torch.zeros(20, 3, dtype=DOUBLE)
    with pytest.raises(ValueError, match="one number"):
        torch.ones(2) * A
    with pytest.raises(ValueError, match="blocks of column 0 must agree on their sites in"):
        vstack([B, at(gcn(2, 2), ring(7))])
    with pytest.raises(ValueError, match="same channels out, but they have"):
        block_diag([A, B])
    with pytest.raises(ValueError, match="at least one map to take its size from"):
        block([[A, None]])
    with pytest.raises(ValueError, match="rows of a block matrix must have the same length"):
        block([[A], [A, A]])
    with pytest.raises(ValueError, match="axis must be 'sites' or 'channels', but it is 'rows'"):
        block([[A]], "rows")
    with pytest.raises(ValueError, match="has indices from 0 to 20"):
        A.restrict(rows=[0, 20])
    with pytest.raises(ValueError, match="a non-empty list of indices"):
        A.restrict(cols=[])
    with pytest.raises(TypeError):
        A + 1
    with pytest.raises(TypeError):
        A @ 3
    with pytest.raises(ValueError, match="lowering"):
        (A.T @ A).apply(torch.zeros(20, 2, dtype=DOUBLE), "gft")


def test_a_maximum_has_no_map():
    S = Shifts((4,), (2,), (2,), (1,), ((0, 0),), window=True, reduce="max")
    with pytest.raises(NotLinear, match="reduces with max"):
        LinearMap(S, Fixed(), None, 1)


def test_a_wrong_collapse_is_detected():
    """Negative control: the weights of a product the wrong way round."""
    A, B = SQUARE["shifts"](), SQUARE["polynomial"]()
    V, W = A.weight(), B.weight()
    stack = Stack(tuple(Product(single(A.S, k, A.dtype, A.device), B.S) for k in range(9)))
    wrong = LinearMap(stack, Dense(27, 2, 2), torch.einsum("kic,lco->klio", V, W).flatten(0, 1), 2, DOUBLE)
    with pytest.raises(AssertionError, match="off by"):
        assert_close("wrong", explicit(wrong), matrix(A) @ matrix(B), 1e-12)


# -- any form of S, written out -------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", list_operators())
def test_entries_and_single_taps_are_the_structure(name):
    for sample in operator(name).samples():
        A = Case.of(sample, DOUBLE).map()
        if A is None:
            continue
        want = dense.stack(A.S, DOUBLE, A.device)
        assert_close(
            f"{sample.name}, entries", dense.stack(entries(A.S, DOUBLE, A.device), DOUBLE, A.device), want, 1e-12
        )
        for k in {0, len(want) // 2, len(want) - 1} if len(want) else ():
            one = single(A.S, k, DOUBLE, A.device)
            assert_close(f"{sample.name}, tap {k}", dense.stack(one, DOUBLE, A.device), want[[k]], 1e-12)


def test_attention_is_written_out_by_its_entries_alone():
    """Three heads on a ring of 20,000 nodes: dense, each would be 3.2 GB."""
    n = 20_000
    A = at(gat(2, 2, heads=3), ring(n), torch.randn(n, 2, dtype=DOUBLE))
    for S in (A.S, A.S.T):
        assert len(entries(S, DOUBLE, A.device).pattern) == 3 * 3 * n
    x = torch.randn(n, 2, dtype=DOUBLE)
    got = torch.as_tensor(matrix(A, "sparse") @ x.flatten().numpy())
    assert_close("sparse", got, (A @ x).detach().flatten(), 1e-12)


def test_entries_of_products():
    P, Q = at(cheb(2, 2, k=3), weighted()).S, at(gcn(2, 2), messy()).S
    for S in (
        Product(single(P, 1, DOUBLE, torch.device("cpu")), P),
        Product(P, single(P, 2, DOUBLE, torch.device("cpu"))),
    ):
        got = entries(S, DOUBLE, torch.device("cpu"))
        assert_close(
            "product", dense.stack(got, DOUBLE, torch.device("cpu")), dense.stack(S, DOUBLE, torch.device("cpu")), 1e-12
        )
    assert entries(Q, DOUBLE, torch.device("cpu")) is Q


def test_entries_are_differentiable():
    L = at(cheb(2, 2, k=3), ring()).S.L
    values = L.values.clone().requires_grad_()
    S = at(cheb(2, 2, k=4), ring()).S
    out = entries(type(S)(type(L)(L.pattern, values), S.recurrence), DOUBLE, torch.device("cpu"))
    grad = torch.autograd.grad(out.values.square().sum(), values)[0]
    stack = dense.stack(type(S)(type(L)(L.pattern, values), S.recurrence), DOUBLE, torch.device("cpu"))
    torch.testing.assert_close(grad, torch.autograd.grad(stack.square().sum(), values)[0])


def test_a_sum_is_a_map():
    A = SQUARE["taps"]()
    assert isinstance(A + A, Sum) and (A + A).dtype == DOUBLE and (A + A).device.type == "cpu"


def test_complex_multiples_are_computed_or_refused():
    A = GConv(conv2d(1, 2, 3), dtype=torch.complex128).at(Grid((5, 5)))
    x = torch.randn(25, 1, dtype=torch.complex128)
    for c in (2j, torch.tensor(2j), 1 + 1j):
        torch.testing.assert_close((c * A) @ x, c * (A @ x))
        torch.testing.assert_close(matrix((c * A).collapse()), c * matrix(A))
        torch.testing.assert_close((A / c) @ x, (A @ x) / c)
        with pytest.raises(TypeError, match="A real map is scaled by real numbers"):
            c * GConv(conv2d(1, 2, 3)).at(Grid((5, 5)))
    assert str(2j * A) == "0+2j conv2d" and str(-1.0 * A) == "-conv2d"


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda A: A @ [1.0], "takes a torch tensor or another linear map, but"),
        (lambda A: A @ np.zeros((25, 1)), "takes a torch tensor or another linear map, but a ndarray"),
        (lambda A: A @ torch.zeros(25, 1), "x is torch.float32, but this map is torch.float64"),
        (lambda A: A.apply(None), "takes signals, torch tensors"),
        (lambda A: A.restrict(rows="ab"), "restrict: rows must be a sequence of integers"),
        (lambda A: A.restrict(cols=3), "restrict: cols must be a sequence of integers"),
        (lambda A: A.restrict(o=[0.5]), "A selection is a non-empty list"),
        (lambda A: block(3), "A block matrix is given as a list of lists of maps"),
        (lambda A: block([[3]]), "Blocks must be linear maps"),
        (lambda A: hstack([]), "hstack takes a list of at least one map"),
        (lambda A: vstack(A), "vstack takes a list of maps"),
        (lambda A: block_diag(None), "block_diag takes a list of maps"),
        (lambda A: identity("x"), "sites must be an integer"),
        (lambda A: identity(3, 0), "channels must be at least 1"),
    ],
)
def test_wrong_arguments_end_in_a_sentence(wrong, says):
    with pytest.raises((TypeError, ValueError), match=says):
        wrong(GConv(conv2d(1, 2, 3), dtype=DOUBLE).at(Grid((5, 5))))


def test_a_map_of_a_layer_without_weights_has_the_layer_s_dtype():
    grid = Grid((6, 6))
    for layer in (
        GConv(avg_pool2d(3), dtype=DOUBLE),
        GConv(avg_pool2d(3)).double(),
        copy.deepcopy(GConv(avg_pool2d(3)).double()),
    ):
        assert layer.at(grid).dtype == DOUBLE and layer.bfloat16().at(grid).dtype == torch.bfloat16
        assert not layer.state_dict() and pickle.loads(pickle.dumps(layer)).at(grid).dtype == torch.bfloat16
    pooling = convert(torch.nn.AvgPool2d(2))
    assert pooling.at(grid).dtype == torch.float32 and pooling.double().at(grid).dtype == DOUBLE


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_a_factor_with_axes_or_another_dtype_changes_neither_shape_nor_dtype(shape):
    A, c = identity(3, 2, dtype=torch.float32), torch.full(shape, 2.0, dtype=DOUBLE)
    for B in (c * A, A / (1 / c), (c * A).T, (c * A).collapse()):
        y = B @ torch.ones(3, 2)
        assert y.shape == (3, 2) and y.dtype == B.dtype == torch.float32 and bool((y == 2).all())


def test_a_tap_of_a_maximum_is_a_maximum():
    S = Taps(Pattern((2, 1, 2), *torch.tensor([[0, 0, 1], [0, 0, 0], [0, 1, 1]])), torch.ones(3), "max")
    x = torch.tensor([[-1.0], [-3.0]])
    for k in (0, 1):
        one = single(S, k, x.dtype, x.device)
        assert torch.equal(one.expand(x)[0], S.expand(x)[k])


OPERATIONS = {
    "A + b": lambda a, b: a + b,
    "b + A": lambda a, b: b + a,
    "A - b": lambda a, b: a - b,
    "b - A": lambda a, b: b - a,
    "A * b": lambda a, b: a * b,
    "b * A": lambda a, b: b * a,
    "A / b": lambda a, b: a / b,
    "A @ b": lambda a, b: a @ b,
    "b @ A": lambda a, b: b @ a,
}


@pytest.mark.parametrize("compute", OPERATIONS.values(), ids=OPERATIONS)
def test_arithmetic_with_something_else_names_it(compute):
    """Python would say "can't multiply sequence by non-int" or "unsupported operand types"."""
    A = GConv(conv2d(1, 1, 3, padding=1)).at(Grid((3, 3)))
    for other in ("2", b"2", [1, 2], None, {}, ring(3)):
        with pytest.raises(TypeError, match="linear map"):
            compute(A, other)


def test_sums_of_maps():
    A, B = (GConv(conv2d(1, 1, 3, padding=1)).at(Grid((3, 3))) for _ in range(2))
    x = torch.randn(9, 1)
    assert_close("sum", sum([A, B]) @ x, A @ x + B @ x, 1e-6)
    with pytest.raises(TypeError, match="1 was given"):
        sum([A, B], start=1)
