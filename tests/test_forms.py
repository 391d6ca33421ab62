"""The building blocks of researchers: forms of S and mixings given directly, against dense matrices in float64."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.func import grad, vmap

from gconv import GConv, Graph, Grid, OperatorSpec
from gconv.basis import (
    AttentionTaps,
    Axes,
    Diagonal,
    DotTaps,
    Identity,
    Pattern,
    Polynomial,
    Product,
    Recurrence,
    SharedTaps,
    Shifts,
    Stack,
    Taps,
    each,
    entries,
    single,
)
from gconv.mixing import (
    AveragedHeads,
    Beside,
    Blocks,
    Dense,
    Fixed,
    Grouped,
    Heads,
    Patches,
    Separable,
    Shuffled,
    Symmetric,
)
from gconv.plan import admitted, evaluate
from gconv.spec import GraphStructure, GridStructure, Parameter
from gconv.testing import assert_close

DOUBLE, CPU = torch.float64, torch.device("cpu")
GRAPH = Graph(torch.tensor([[0, 1], [1, 4]]), 5)


@dataclass(frozen=True)
class Given(GraphStructure):
    """A structure whose basis is the result of a function."""

    taps: int
    make: Callable
    kind: str = "fixed"
    learned: tuple = ()
    many = True

    def parameters(self):
        return dict(self.learned)

    def basis(self, domain, theta, call):
        return self.make(theta, call)


@dataclass(frozen=True)
class GivenShifts(GridStructure):
    S: Shifts
    taps: int
    ndim = 1

    def basis(self, domain, theta, call):
        return self.S

    def target(self, domain):
        return Grid(self.S.grids[1])


def layer_of(S, mixing):
    return GConv(OperatorSpec("mine", (), Given(S.shape[0], lambda theta, call: S), mixing), dtype=DOUBLE)


def index(*lists):
    return torch.tensor(lists)


def matrices(shape, pattern, values):
    """(*b, k, m, n) from values (*b, e), entry by entry."""
    M = torch.zeros(*values.shape[:-1], *shape, dtype=values.dtype)
    for e in range(len(pattern)):
        M[..., pattern.tap[e], pattern.row[e], pattern.col[e]] += values[..., e]
    return M


def draw_pattern(rng, k, m, n, count):
    return Pattern((k, m, n), *(index(*(rng.randrange(size) for _ in range(count))) for size in (k, m, n)))


def numbers(rng, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng.randrange(10**6)), dtype=DOUBLE)


def draw(rng, depth, k, m, n, batch):
    """A form with k taps (m, n), and its matrices (*b, k, m, n); nested up to this depth."""
    kinds = ["taps", "shared", "shared"] + ["polynomial", "combined", "diagonal"] * (m == n)
    kind = rng.choice(kinds + ["identity"] * (m == n and k == 1) + ["stack", "product", "product"] * (depth > 0))
    if kind == "identity":
        return Identity(n), torch.eye(n, dtype=DOUBLE).unsqueeze(0)
    if kind == "taps":
        pattern = draw_pattern(rng, k, m, n, rng.choice([1, 7, 20]))
        values = numbers(rng, len(pattern))
        return Taps(pattern, values), matrices((k, m, n), pattern, values)
    if kind == "shared":
        pattern, own = draw_pattern(rng, 1, n, m, rng.choice([1, 7, 20])), rng.choice([(), batch])
        values = numbers(rng, *own, len(pattern), k)
        parts = [matrices((1, n, m), pattern, v) for v in values.unbind(-1)]
        return SharedTaps(pattern, values).T, torch.cat(parts, -3).mT
    if kind in ("polynomial", "combined"):
        pattern, terms = draw_pattern(rng, 1, n, n, 9), k if kind == "polynomial" else rng.choice([1, 2, 4])
        values, rows = numbers(rng, 9) / 2, tuple((1.5, -0.5, 0.25 if j else 0.0) for j in range(terms - 1))
        L, powers = matrices((1, n, n), pattern, values)[0], [torch.eye(n, dtype=DOUBLE)]
        for j, (alpha, beta, gamma) in enumerate(rows):
            step = (alpha * L + beta * powers[0]) @ powers[j]
            powers.append(step - gamma * powers[j - 1] if j else step)
        C = numbers(rng, k, terms).clamp(min=0)  # with zeros
        given = rng.choice([C, tuple(map(tuple, C.tolist()))]) if kind == "combined" else None
        S = Polynomial(Taps(pattern, values), Recurrence("some", rows), given)
        return S, torch.stack(powers) if given is None else torch.einsum("jk,kmn->jmn", C, torch.stack(powers))
    if kind == "diagonal":
        U, g = torch.linalg.qr(numbers(rng, n, n))[0], numbers(rng, k, n)
        return Diagonal(U, g, torch.arange(n)), torch.einsum("nr,kr,mr->knm", U, g, U)
    if kind == "stack":
        split = rng.randrange(1, k) if k > 1 else 1
        sizes = (split, k - split) if k > 1 else (1,)
        parts, dense = zip(*(draw(rng, depth - 1, size, m, n, batch) for size in sizes), strict=True)
        lead = torch.broadcast_shapes(*(M.shape[:-3] for M in dense))
        return Stack(parts), torch.cat([M.expand(*lead, *M.shape[-3:]) for M in dense], -3)
    taps, middle = rng.choice([(k, 1), (1, k)]), rng.choice([m, n])
    (A, a), (B, b) = draw(rng, depth - 1, taps[0], m, middle, batch), draw(rng, depth - 1, taps[1], middle, n, batch)
    return Product(A, B), a @ b


def draw_case(seed):
    rng = random.Random(seed)
    (m, n), k = rng.choice([(4, 4), (4, 4), (5, 3), (1, 1)]), rng.choice([1, 2, 3])
    batch = rng.choice([(), (2,), (3, 2), (2, 1, 2), (9,), (0,)])
    S, M = draw(rng, 2, k, m, n, batch)
    return S, M, numbers(rng, *batch, n, 2), numbers(rng, *batch, k, n, 2), rng


def agrees_with_its_matrices(S, M, x, z, rng):
    assert tuple(S.shape) == M.shape[-3:]
    given = x.clone(), z.clone()
    assert_close("expand", S.expand(x), M @ x.unsqueeze(-3), 1e-10)
    assert_close("contract", S.contract(z), (M @ z).sum(-3), 1e-10)
    y, w = numbers(rng, *x.shape[:-2], M.shape[-2], 2), numbers(rng, *z.shape[:-2], M.shape[-2], 2)
    assert_close("the transpose", S.T.expand(y), M.mT @ y.unsqueeze(-3), 1e-10)
    assert_close("contract of the transpose", S.T.contract(w), (M.mT @ w).sum(-3), 1e-10)
    if S.tapwise:
        assert_close("each", each(S, z), M @ z, 1e-10)
    if not S.batch:
        listed = entries(S, DOUBLE, CPU)
        assert_close("entries", matrices(listed.shape, listed.pattern, listed.values), M, 1e-10)
        for k in range(S.shape[0]):
            assert_close("a tap", single(S, k, DOUBLE, CPU).expand(x), M[k] @ x.unsqueeze(-3), 1e-10)
    W = numbers(rng, S.shape[0], 2, 3)
    for mixing, weight in ((Dense(S.shape[0], 2, 3), W), (Heads(S.shape[0], 2, 3), W), (Fixed(S.shape[0]), None)):
        V = mixing.dense(weight, 2).to(DOUBLE)
        for lowering in admitted(S, mixing):
            want = torch.einsum("...kmn,...ni,kio->...mo", M, x, V)
            assert_close(lowering, evaluate(S, mixing, weight, x, None, lowering), want, 1e-9)
    assert torch.equal(x, given[0]) and torch.equal(z, given[1])


@pytest.mark.parametrize("seed", range(24))
def test_nested_forms_are_their_matrices(seed):
    agrees_with_its_matrices(*draw_case(seed))


def test_a_form_with_another_matrix_is_detected():
    """The control."""
    S, M, x, z, rng = draw_case(1)
    with pytest.raises(AssertionError, match="off by"):
        agrees_with_its_matrices(S, M + 1e-6, x, z, rng)


# -- taps that reduce with max -----------------------------------------------------------------------------------------

LOOSE = Pattern((1, 5, 5), *index([0] * 8, [3, 0, 1, 4, 0, 2, 2, 0], [1, 1, 0, 4, 3, 2, 0, 2]))


def one_tap(seed=0, reduce="sum"):
    return Taps(LOOSE, numbers(random.Random(seed), 8), reduce)


def test_a_maximum_within_a_product_is_that_of_each_tap():
    rng = random.Random(0)
    x, z = numbers(rng, 5, 2), numbers(rng, 2, 5, 2)
    pair = SharedTaps(LOOSE, numbers(rng, 8, 2))
    A, highest = one_tap(1), one_tap(2, "max")
    for S in (Product(A, highest), Product(highest, pair), Product(highest, highest), Stack((Product(A, highest), A))):
        taps, k = S.expand(x), S.shape[0]
        W = numbers(rng, k, 2, 3)
        want = torch.einsum("kmi,kio->mo", taps, W)
        for lowering in admitted(S, Dense(k, 2, 3)):
            assert_close(lowering, evaluate(S, Dense(k, 2, 3), W, x, None, lowering), want, 1e-10)
        want = sum(single(S, j, DOUBLE, CPU).expand(z[j]).squeeze(-3) for j in range(k))
        assert_close("contract", S.contract(z[:k]), want, 1e-10)
    assert not torch.allclose(S.expand(x), Stack((Product(A, one_tap(2)), A)).expand(x))  # the control: a sum differs


def test_a_maximum_in_a_stack_with_matrices_per_signal():
    rng = random.Random(0)
    x, W = numbers(rng, 3, 5, 2), numbers(rng, 2, 2, 3)
    S = Stack((SharedTaps(LOOSE, numbers(rng, 3, 8, 1)), one_tap(2, "max")))
    want = torch.einsum("bkmi,kio->bmo", S.expand(x), W)
    for lowering in admitted(S, Dense(2, 2, 3)):
        assert_close(lowering, evaluate(S, Dense(2, 2, 3), W, x, None, lowering), want, 1e-10)


@pytest.mark.parametrize("value", [3e38, math.inf, -math.inf, math.nan, 2.0])
def test_a_maximum_of_any_number_in_transforms(value):
    S = Taps(Pattern((1, 1, 3), *index([0] * 3, [0] * 3, [0, 1, 2])), torch.ones(3), "max")
    x = torch.tensor([[value], [value], [-math.inf]])
    assert torch.equal(vmap(S.expand)(x[None])[0].nan_to_num(7.0), S.expand(x).nan_to_num(7.0))


def test_a_maximum_in_transforms_shares_its_gradient():
    S = Taps(Pattern((1, 1, 3), *index([0] * 3, [0] * 3, [0, 1, 2])), torch.ones(3), "max")
    x = torch.tensor([[2.0], [2.0], [1.0]])
    want = torch.autograd.grad(S.expand(x.requires_grad_()).sum(), x)[0]
    assert torch.equal(grad(lambda x: S.expand(x).sum())(x.detach()), want) and want.flatten().tolist() == [0.5, 0.5, 0]


# -- numbers -----------------------------------------------------------------------------------------------------------


def complex_forms(values):
    L = Taps(LOOSE, values)
    powers = Recurrence("some", ((1.0, 0.5, 0.0), (2.0, 0.0, 1.0)))
    shared = SharedTaps(LOOSE, torch.stack([values, values * values], -1))
    return {"taps": L, "transpose": L.T, "polynomial": Polynomial(L, powers), "shared": shared, "its": shared.T}


@pytest.mark.parametrize("form", list(complex_forms(torch.ones(8))))
@pytest.mark.parametrize("kind", ["real and learned", "complex", "complex and learned"])
def test_complex_numbers_have_conjugate_gradients(kind, form):
    """As those of the magnetic Laplacian, for which S^T is not the adjoint."""
    values = numbers(random.Random(0), 8)
    values = values if kind.startswith("real") else torch.complex(values, numbers(random.Random(1), 8))
    values.requires_grad_(kind.endswith("learned"))
    x = torch.randn(2, 5, 2, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, x: complex_forms(v)[form].expand(x), (values, x))
    assert torch.autograd.gradgradcheck(lambda v, x: complex_forms(v)[form].expand(x), (values, x))


def test_a_gradient_that_is_not_conjugate_is_detected():
    """The control."""

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2j * x

        @staticmethod
        def backward(ctx, g):
            return 2j * g

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(Plain.apply, torch.randn(2, dtype=torch.complex128, requires_grad=True))


N = 3000  # more ones than half-precision numbers can count
STAR = Pattern((1, 2, N), torch.zeros(N, dtype=torch.int64), torch.zeros(N, dtype=torch.int64), torch.arange(N))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_rows_in_half_precision(dtype):
    x, ones = torch.ones(2, N, 1, dtype=dtype), torch.ones(2, N, 1, dtype=dtype)
    for S in (SharedTaps(STAR, ones), SharedTaps(STAR.T, ones).T, SharedTaps(STAR, ones[0]), Taps(STAR, ones[0, :, 0])):
        assert S.expand(x)[..., 0, 0].double().flatten().tolist() == pytest.approx([N, N], rel=0.01)
    for logits in (torch.zeros(N, 1, dtype=dtype), torch.zeros(2, N, 1, dtype=dtype)):
        assert STAR.softmax(logits).double().flatten()[0] * N == pytest.approx(1, rel=0.01)
        logits.requires_grad_()
        half = torch.arange(N).unsqueeze(-1) % 2
        (got,) = torch.autograd.grad((STAR.softmax(logits) * half.to(dtype)).sum(), logits)
        assert got.double().flatten()[1] * N == pytest.approx(0.5, rel=0.02)
    row = torch.zeros(2, 1, dtype=dtype, requires_grad=True)
    STAR.ends(row, torch.zeros(N, 1, dtype=dtype)).sum().backward()
    assert float(row.grad[0]) == pytest.approx(N, rel=0.01)
    # the control: torch's sum of as many ones stands still
    assert float(torch.zeros(1, dtype=dtype).index_add(0, torch.zeros(N, dtype=torch.int64), ones[0, :, 0])) < 0.9 * N


def test_a_coefficient_of_zero_multiplies_no_nan():
    L = one_tap()
    S = Polynomial(L, Recurrence.monomial(3), ((1.0, 0.0, 0.0), (0, 1, 0)))
    reads = S.expand(torch.eye(5, dtype=DOUBLE)) != 0  # (k, m, n)
    for j in range(5):
        x, z = torch.ones(5, 1, dtype=DOUBLE), torch.ones(2, 5, 1, dtype=DOUBLE)
        x[j] = math.nan
        assert torch.equal(S.expand(x)[..., 0].isnan(), reads[..., j])
        for k in range(2):
            assert torch.equal(S.contract(z.index_put(index([k], [j]).unbind(), x[j]))[..., 0].isnan(), reads[k, :, j])


def test_entries_of_a_learned_zero_have_a_gradient():
    g = torch.zeros(1, 3, dtype=DOUBLE, requires_grad=True)
    S = Diagonal(torch.linalg.qr(torch.randn(3, 3, dtype=DOUBLE))[0], g, torch.arange(3))
    x = torch.randn(3, 2, dtype=DOUBLE)
    (want,) = torch.autograd.grad(S.expand(x).sum(), g)
    (got,) = torch.autograd.grad(entries(S, DOUBLE, CPU).expand(x).sum(), g)
    assert_close("gradient", got, want, 1e-10)
    assert len(entries(Diagonal(S.U, g.detach(), S.eigenvalues), DOUBLE, CPU).pattern) == 0


# -- what is cached ----------------------------------------------------------------------------------------------------


def forms_of(values, order):
    pattern = Pattern((1, 5, 5), *(LOOSE.tap, LOOSE.row[order], LOOSE.col[order]))
    wide = Pattern((2, 5, 5), torch.arange(8) % 2, pattern.row, pattern.col)
    L = Taps(pattern, values)
    return [L, Taps(wide, values), Polynomial(L, Recurrence.chebyshev(3)), SharedTaps(pattern, values.unsqueeze(-1))]


def everything(S, x):
    """Products and gradients of S and its transpose in all ways."""
    wide = x.detach().repeat(1, S.shape[0])
    found = [S.expand(x), S.T.expand(x), S.contract(x.expand(S.shape[0], *x.shape))]
    (back,) = torch.autograd.grad(found[0].square().sum(), x)
    return [*(y.detach() for y in found), back, S.expand_flat(x.detach()), S.contract_flat(wide)]


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("number", range(4))
def test_values_changed_in_place_are_used(number, in_order):
    order = torch.argsort(LOOSE.row * 5 + LOOSE.col) if in_order else torch.arange(8)
    values, x = torch.ones(8, dtype=DOUBLE), numbers(random.Random(0), 5, 2).requires_grad_()
    S = forms_of(values, order)[number]
    before = everything(S, x)
    values.mul_(2)[3] = -1.0
    after = everything(S, x)
    fresh = everything(forms_of(values.clone(), order)[number], x)
    for got, want, old in zip(after, fresh, before, strict=True):
        assert_close("a product", got, want, 1e-12)
        assert not torch.allclose(want, old)  # the control: the values matter


def test_values_that_are_learned_later():
    """A symmetric S is its own transpose, but the gradients of their values are not the same."""
    pattern, values = Pattern((1, 2, 2), *index([0, 0], [0, 1], [1, 0])), torch.ones(2)
    S, x, dy = Taps(pattern, values), torch.tensor([[1.0], [10.0]]), torch.tensor([[[1.0], [3.0]]])
    assert S.expand(x) is not None and S.T is S
    values.requires_grad_()
    (got,) = torch.autograd.grad(S.T.expand(x), values, dy)
    (want,) = torch.autograd.grad(Taps(pattern, values).T.expand(x), values, dy)
    (control,) = torch.autograd.grad(S.expand(x), values, dy)
    assert torch.equal(got, want) and not torch.equal(got, control)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attention_evaluated_without_gradients_first(mode):
    z, p = torch.randn(5, 2, 3, dtype=DOUBLE), torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    x = torch.randn(5, 2, dtype=DOUBLE, requires_grad=True)
    for S in (AttentionTaps(LOOSE, z, p, p, 0.2), DotTaps(LOOSE, z, z * p)):
        with mode():
            S.T.expand(x.detach())
        assert all(g.abs().sum() > 0 for g in torch.autograd.grad(S.T.expand(x).square().sum(), (x, p)))


# -- mixings -----------------------------------------------------------------------------------------------------------


def test_heads_with_a_root_take_any_form():
    rng = random.Random(0)
    wide = Pattern((3, 5, 5), index(0, 1, 2, 0, 1, 2, 0, 1), LOOSE.row, LOOSE.col)
    several = Taps(wide, numbers(rng, 8))
    mixing, W, x = Heads(2, 2, 3, True), numbers(rng, 4, 2, 3), numbers(rng, 2, 5, 2)
    for S in (
        several,
        SharedTaps(LOOSE, numbers(rng, 8, 3)),
        Stack((one_tap(), SharedTaps(LOOSE, numbers(rng, 8, 2)))),
    ):
        want = torch.einsum("kmn,bni,kio->bmo", S.expand(torch.eye(5, dtype=DOUBLE)), x, mixing.dense(W, 2))
        for lowering in admitted(S, mixing):
            assert_close(lowering, evaluate(S, mixing, W, x, None, lowering), want, 1e-10)


@pytest.mark.parametrize("own", [Identity(5), one_tap(3)], ids=["identity", "taps"])
@pytest.mark.parametrize("mixing", [Dense(3, 4, 3), Dense(3, 4, 3, 0.5), Heads(2, 4, 3, True)], ids=str)
def test_attention_in_a_stack_with_another_tap(mixing, own):
    def make(theta, call):
        return Stack((AttentionTaps(LOOSE, call.mixed(call.W), theta["p"], theta["q"], 0.2), own))

    ends = Parameter((2, 3))
    layer = GConv(
        OperatorSpec("mine", (), Given(3, make, "adaptive", (("p", ends), ("q", ends))), mixing), dtype=DOUBLE
    )
    x = torch.randn(5, 4, dtype=DOUBLE)
    z = torch.einsum("ni,kic->nkc", x, layer.weight)[:, :2]
    S = Stack((SharedTaps(LOOSE, AttentionTaps(LOOSE, z, layer.p, layer.q, 0.2).values), own))
    want = torch.einsum("kmi,kio->mo", S.expand(x), mixing.dense(layer.weight, 4))
    for lowering in (None, "sparse:transform", "sparse:aggregate", "dense"):
        assert_close(str(lowering), layer(x, GRAPH, lowering=lowering), want, 1e-10)
        assert_close(str(lowering), layer(torch.stack([x, x]), GRAPH, lowering=lowering)[1], want, 1e-10)


@pytest.mark.parametrize("mixing", [Heads(3, 2, 2), Heads(2, 2, 2, True), Patches(3), Beside(3)], ids=str)
def test_a_transposed_kernel_whose_taps_write_their_own_channels(mixing):
    S = Shifts((6,), (3,), (2,), (1,), ((1, 1),)).T
    layer, x = (
        GConv(OperatorSpec("mine", (), GivenShifts(S, 3), mixing), dtype=DOUBLE),
        torch.randn(2, 2, 3, dtype=DOUBLE),
    )
    M = S.expand(torch.eye(3, dtype=DOUBLE))
    want = torch.einsum("kmn,bin,kio->bom", M, x, mixing.dense(layer.weight, 2).to(DOUBLE))
    for lowering in (None, *admitted(S, mixing)):
        assert_close(str(lowering), layer(x, lowering=lowering), want, 1e-10)


@pytest.mark.parametrize("mixing", [Fixed(1), Patches(1), Beside(1, True), Shuffled(2, 1)], ids=str)
def test_a_result_is_not_a_view_of_the_signal(mixing):
    L = one_tap()
    for S in (Stack((Identity(5),)), Product(Identity(5), Identity(5)), Polynomial(L, Recurrence.monomial(1)), L):
        for lowering in admitted(S, mixing):
            x = torch.randn(5, 2, dtype=DOUBLE)
            kept = x.clone()
            layer_of(S, mixing)(x, GRAPH, lowering=lowering).fill_(7.0)
            assert torch.equal(x, kept), (S, lowering)
    assert Identity(5).expand(x)._base is x  # the control: a form may return a view


# -- arguments ---------------------------------------------------------------------------------------------------------

ROWS = index([0, 1, 1], [0, 2, 4], [0, 1, 3])
UNSORTED = index([0, 0, 0], [4, 2, 0], [0, 1, 3])
X = torch.ones(4, 2)
ONE = Taps(Pattern((1, 4, 4), *index([0], [1], [2])), torch.ones(1))
PAIR = Taps(Pattern((2, 4, 4), *index([1], [1], [2])), torch.ones(1))
TALL = Taps(Pattern((1, 5, 4), *index([0], [1], [2])), torch.ones(1))
LARGEST = Taps(Pattern((1, 4, 4), *index([0], [1], [2])), torch.ones(1), "max")
T3 = Recurrence.chebyshev(3)


def taps(tap=ROWS[0], row=ROWS[1], col=ROWS[2], values=None, k=2, m=5, reduce="sum"):
    return lambda: Taps(Pattern((k, m, 4), tap, row, col), torch.ones(3) if values is None else values, reduce).expand(
        X
    )


def shifts(size=(5,), kernel=(3,), stride=(1,), dilation=(1,), padding=((1, 1),), **rest):
    return lambda: Shifts(size, kernel, stride, dilation, padding, **rest).expand(torch.ones(5, 1))


WRONG = {
    "a tap too large": (taps(tap=ROWS[0] + 1), IndexError, "2 taps has an entry out of range"),
    "a negative tap": (taps(tap=ROWS[0] - 1), IndexError, "2 taps has an entry out of range"),
    "a label on one tap": (taps(k=1), IndexError, "1 tap has an entry out of range"),
    "a row too large": (taps(m=4), IndexError, "has an entry out of range"),
    "a negative column": (taps(col=ROWS[2] - 1), IndexError, "has an entry out of range"),
    "rows between integers": (taps(row=ROWS[1] / 2), TypeError, "one integer row for each entry"),
    "a mask for rows": (taps(row=ROWS[1] > 0), TypeError, "one integer row for each entry"),
    "taps in a list": (taps(tap=[0, 1, 1]), TypeError, "one integer tap for each entry"),
    "one tap for all": (taps(tap=index(1)), ValueError, "one value for each of 3 entries|a tap for each entry"),
    "a negative size": (taps(k=1, m=-1, tap=ROWS[0] * 0), ValueError, "not negative"),
    "too few values": (taps(values=torch.ones(2)), ValueError, r"each of 3 entries, but the values are \(2,\)"),
    "too many values": (taps(values=torch.ones(4)), ValueError, r"each of 3 entries, but the values are \(4,\)"),
    "values of several taps": (taps(values=torch.ones(3, 2)), ValueError, r"but the values are \(3, 2\)"),
    "one value": (taps(values=torch.tensor(1.0)), ValueError, r"but the values are \(\)"),
    "values in a list": (taps(values=[1.0] * 3), ValueError, r"but the values are \[1.0, 1.0, 1.0\]"),
    "complex values": (taps(values=1j * torch.ones(3)), TypeError, "torch.complex64 with a signal of torch.float32"),
    "complex maxima": (taps(values=1j * torch.ones(3), reduce="max"), TypeError, "would lose a part"),
    "a mean": (taps(reduce="mean"), ValueError, "reduce must be 'sum' or 'max'"),
    "an integer signal": (lambda: ONE.expand(X.long()), TypeError, "with a signal of torch.int64"),
    "values without heads": (
        lambda: SharedTaps(ONE.pattern, torch.ones(1)),
        ValueError,
        r"values \(\*b, e, k\) for the 1 entry",
    ),
    "too many values of heads": (lambda: SharedTaps(ONE.pattern, torch.ones(2, 3)), ValueError, "for the 1 entry"),
    "too many logits": (
        lambda: Pattern((1, 5, 4), *UNSORTED).softmax(torch.ones(5, 1)),
        ValueError,
        "needs 3 values, but 5",
    ),
    "entries of several signals": (
        lambda: entries(SharedTaps(ONE.pattern, torch.ones(2, 1, 3)), torch.float32, CPU),
        ValueError,
        "has its own matrices",
    ),
    "an empty stack": (lambda: Stack(()), ValueError, "at least one structure"),
    "a polynomial of two taps": (lambda: Polynomial(PAIR, T3), ValueError, r"Taps of shape \(1, n, n\)"),
    "a polynomial of a tall matrix": (lambda: Polynomial(TALL, T3), ValueError, r"it is sum over \(1, 5, 4\)"),
    "a polynomial of a maximum": (lambda: Polynomial(LARGEST, T3), ValueError, "it is max over"),
    "a polynomial of another form": (lambda: Polynomial(Identity(4), T3), ValueError, "it is an Identity"),
    "no coefficients": (lambda: Polynomial(ONE, T3, ()), ValueError, "a row of 3 coefficients for each tap"),
    "a vector of coefficients": (lambda: Polynomial(ONE, T3, torch.ones(3)), ValueError, r"but it has shape \(3,\)"),
    "rows of two lengths": (
        lambda: Polynomial(ONE, T3, ((1.0, 2.0, 3.0), (1.0,))),
        ValueError,
        "combine has 1 column, but the recurrence gives 3 terms",
    ),
    "no terms": (lambda: Recurrence.chebyshev(0), ValueError, "at least one term, not 0"),
    "no monomials": (lambda: Recurrence.monomial(0), ValueError, "at least one term, not 0"),
    "pairs for steps": (lambda: Recurrence("a", ((1.0, 0.0),)), ValueError, "tuples .alpha, beta, gamma."),
    "lists for steps": (lambda: Recurrence("a", [[1.0, 0.0, 0.0]]), ValueError, "tuples .alpha, beta, gamma."),
    "a vector of multipliers": (
        lambda: Diagonal(torch.eye(4), torch.ones(4), torch.ones(4)),
        ValueError,
        r"U \(n, r\), g \(k, r\) and eigenvalues \(r,\), but they are \(4, 4\), \(4,\) and \(4,\)",
    ),
    "no axes": (lambda: Axes(()), ValueError, "one factor for each axis"),
    "an axis of two taps": (lambda: Axes((PAIR,)), ValueError, r"Taps of shape \(1, m, n\)"),
    "an axis of maxima": (lambda: Axes((LARGEST,)), ValueError, "it is max over"),
    "stride 0": (shifts(stride=(0,)), ValueError, "stride must be at least 1, but it is 0"),
    "kernel 0": (shifts(kernel=(0,)), ValueError, "kernel must be at least 1"),
    "dilation -1": (shifts(dilation=(-1,)), ValueError, "dilation must be at least 1"),
    "a kernel that is no integer": (shifts(kernel=(3.0,)), TypeError, "kernel must be an integer, but it is 3.0"),
    "a stride that is a flag": (shifts(stride=(True,)), TypeError, "stride must be an integer, but it is True"),
    "too many strides": (shifts(stride=(1, 1)), ValueError, "stride takes a tuple with one entry for each axis"),
    "a size in a list": (shifts(size=[5]), ValueError, "size takes a tuple"),
    "one padding": (shifts(padding=(1,)), ValueError, r"padding takes a pair \(before, after\) for each axis"),
    "a padding that is no integer": (shifts(padding=((1.5, 1),)), TypeError, "padding must be an integer"),
    "no grid": (shifts((), (), (), (), ()), ValueError, "size takes a tuple"),
    "an unknown mode": (shifts(mode="mirror"), ValueError, "mode must be one of zeros, circular, reflect, replicate"),
    "a median": (shifts(window=True, reduce="median"), ValueError, "reduce must be 'sum' or 'max'"),
    "a maximum without a window": (shifts(reduce="max"), ValueError, "require window=True"),
    "a divisor without a window": (shifts(divisor=2), ValueError, "require window=True"),
    "a transposed maximum": (shifts(window=True, reduce="max", transposed=True), ValueError, "nor a transpose"),
    "divisor 0": (shifts(window=True, divisor=0), ValueError, "divisor must be at least 1"),
    "divisors of other axes": (shifts(window=True, divisor=((0, 0), (0, 0))), ValueError, "divisor takes a pair"),
    "a window of padding": (
        shifts(padding=((3, 0),), window=True, divisor=((0, 0),)),
        ValueError,
        "no site that counts for its mean",
    ),
    "the border of nothing": (
        shifts((0,), (1,), mode="replicate"),
        ValueError,
        "replicate padding can reach at most 0",
    ),
    "half a tap": (lambda: Dense(1.5, 2, 3), ValueError, "number of taps must be a positive integer"),
    "fewer than no taps": (lambda: Fixed(-1), ValueError, "number of taps must be a positive integer"),
    "no taps": (lambda: Dense(0, 2, 3), ValueError, "number of taps must be a positive integer"),
    "nothing beside nothing": (lambda: Beside(0), ValueError, "number of taps must be a positive integer"),
    "patches of nothing": (lambda: Patches(0, True), ValueError, "number of taps must be a positive integer"),
    "no filters": (lambda: Separable(0, 2, 3), ValueError, "number of taps must be a positive integer"),
    "groups that are no integer": (lambda: Grouped(1, 4, 4, 2.0), ValueError, "number of groups must be an integer"),
    "groups that are a flag": (lambda: Grouped(1, 4, 4, True), ValueError, "number of groups must be an integer"),
    "groups of a shuffle": (lambda: Shuffled(4, 2.0), ValueError, "number of groups must be an integer"),
    "a shuffle of nothing": (lambda: Shuffled(0, 2), ValueError, "number of channels in must be a positive integer"),
    "no heads": (lambda: Heads(0, 4, 4), ValueError, "number of heads must be a positive integer"),
    "two roots": (lambda: Heads(2, 4, 4, 2), ValueError, "root must be True or False"),
    "no heads to average": (lambda: AveragedHeads(0, 4, 4), ValueError, "number of heads must be a positive integer"),
    "blocks of no channels": (
        lambda: Blocks(1, 4, 2, 0, 1, ((0, 0, 0),)),
        ValueError,
        "into a block must be a positive",
    ),
    "a block outside": (
        lambda: Blocks(1, 4, 2, 2, 1, ((0, 2, 0),)),
        ValueError,
        r"below \(1, 2, 2\), but one is \(0, 2",
    ),
    "a block at -1": (lambda: Blocks(1, 4, 2, 2, 1, ((0, 0, -1),)), ValueError, "must be below"),
    "a block without a tap": (lambda: Blocks(1, 4, 2, 2, 1, ((0, 0),)), ValueError, "must be below"),
    "a block between places": (lambda: Blocks(1, 4, 2, 2, 1, ((0, 0.5, 0),)), ValueError, "must be below"),
    "a block given twice": (lambda: Blocks(1, 4, 2, 2, 1, ((0, 0, 0),) * 2), ValueError, "given twice"),
    "half an orientation": (lambda: Symmetric(3, 2, 6, "p4", False), ValueError, "Channels of p4 are multiples of 4"),
    "half an orientation in": (lambda: Symmetric(3, 2, 8, "p4", True), ValueError, "Channels of p4 are multiples of 4"),
    "an unknown group": (lambda: Symmetric(3, 4, 8, "p6", True), ValueError, "group must be 'p4' or 'p4m'"),
    "a kernel of no sites": (
        lambda: Symmetric(0, 4, 8, "p4", True),
        ValueError,
        "taps along a side must be a positive",
    ),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_arguments_are_refused_in_a_sentence(name):
    act, kind, message = WRONG[name]
    with pytest.raises(kind, match=message) as caught:
        act()
    assert str(caught.value).rstrip().endswith(".") and "\n" not in str(caught.value)


def test_right_arguments_are_not():
    """The control."""
    want = taps()()
    for kind in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(taps(*ROWS.to(kind))(), want)
    many = torch.arange(200, dtype=torch.uint8)  # of which three times the largest is more than 255
    S = Taps(Pattern((3, 200, 200), many % 3, many, many), torch.ones(200))
    assert torch.equal(S.expand(torch.arange(200.0).unsqueeze(-1)).sum(0).flatten(), torch.arange(200.0))
    assert shifts()().shape == (3, 5, 1) and shifts(window=True, divisor=((0, 1),))().shape == (1, 5, 1)
    assert Blocks(1, 4, 2, 2, 1, ()).plain(torch.zeros(0, 2, 1))[1].shape == (1, 4, 2)


def test_empty_signals_and_negated_views():
    """No heads, no entries, and a view of one channel that torch has to negate."""
    none = torch.zeros(3, 0, dtype=torch.int64)
    for heads in (0, 2):
        S = SharedTaps(Pattern((1, 3, 4), *none), torch.zeros(0, heads))
        assert S.expand(torch.ones(2, 4, 3)).shape == (2, heads, 3, 3) and S.T.expand(torch.ones(3, 0)).shape[-1] == 0
        assert torch.equal(S.contract(torch.ones(heads, 4, 3)), torch.zeros(3, 3))
    x = torch.randn(5, 1, dtype=torch.complex64).conj().imag
    values = torch.ones(8)
    for S in (Taps(LOOSE, values), Taps(LOOSE, values, "max"), SharedTaps(LOOSE, values.unsqueeze(-1))):
        assert x.is_neg() and torch.equal(S.expand(x), S.expand(x.clone().resolve_neg()))
        assert not torch.equal(S.expand(x), S.expand(-x))  # the control


def test_a_transpose_under_vmap():
    values, x = torch.randn(3, 8, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE)
    powers = Recurrence.chebyshev(3)
    got = vmap(lambda v: Polynomial(Taps(LOOSE, v), powers).T.expand(x))(values)
    want = torch.stack([Polynomial(Taps(LOOSE, v), powers).T.expand(x) for v in values])
    assert_close("transposes", got, want, 1e-10)
    assert not torch.allclose(got[0], got[1])  # the control


def test_forms_made_in_inference_mode_are_used_outside_of_it():
    with torch.inference_mode():
        S = Taps(ONE.pattern, torch.ones(1))
    x = torch.ones(4, 2, requires_grad=True)
    (got,) = torch.autograd.grad(S.expand(x).sum(), x)
    assert torch.equal(got.sum(1), torch.tensor([0.0, 0.0, 2.0, 0.0]))


def test_products_of_no_signals():
    S, x = Taps(Pattern((2, 5, 5), LOOSE.tap, LOOSE.row, LOOSE.col), torch.ones(8)), torch.ones(0, 5, 3)
    assert S.expand_flat(x).shape == (0, 5, 6) and S.contract_flat(x.repeat(1, 1, 2)).shape == (0, 5, 3)


@pytest.mark.parametrize("padding", [((0, -2),), ((-1, 2),), ((2, -1),), ((1, 1),)])
@pytest.mark.parametrize("mode", ["circular", "zeros", "reflect", "replicate"])
def test_a_cropped_grid_in_every_lowering(mode, padding):
    S = Shifts((6,), (2,), (3,), (2,), padding, mode)
    for T in (S, S.T):
        W, x = torch.randn(2, 2, 3, dtype=DOUBLE), torch.randn(4, T.shape[2], 2, dtype=DOUBLE)
        want = torch.einsum("kmn,bni,kio->bmo", T.expand(torch.eye(T.shape[2], dtype=DOUBLE)), x, W)
        for lowering in admitted(T, Dense(2, 2, 3)):
            assert_close(lowering, evaluate(T, Dense(2, 2, 3), W, x, None, lowering), want, 1e-9)


def test_powers_beyond_float16_in_a_sum_within_it():
    """1000^2 walks of four steps return to a hub; their sum, with its small coefficients, fits."""
    leaves = torch.arange(1, 1001)
    row, col = torch.cat([leaves, 0 * leaves]), torch.cat([0 * leaves, leaves])
    L = Taps(Pattern((1, 1001, 1001), 0 * row, row, col), torch.ones(2000, dtype=torch.float16))
    x, c = torch.rand(1001, 2).half(), torch.full((1, 5), 2.0**-10)
    S, exact = Polynomial(L, Recurrence.monomial(5), c.half()), Polynomial(L, Recurrence.monomial(5), c.double())
    assert_close("value", S.expand(x).double(), exact.expand(x.double()), 0.01)
    assert Polynomial(L, Recurrence.monomial(5)).expand(x)[4].isinf().any()  # the control


@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate"])
def test_a_sum_of_many_taps_in_bfloat16(mode):
    """A running sum of ones stops at 256."""
    S, z = Shifts((700,), (600,), (1,), (1,), ((299, 300),), mode=mode), torch.ones(600, 700, 1).bfloat16()
    for form in (S, S.T):
        assert_close("sum", form.contract(z).double(), form.contract(z.double()), 0.01)
    assert sum(z.unbind()).max() == 256  # the control
