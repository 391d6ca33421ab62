"""Functions of a symmetric matrix at repeated eigenvalues: value, first and second derivative."""

import itertools

import pytest
import torch
from eigensolver import perturbed

from gconv import GConv, Graph
from gconv.basis import Diagonal, functions
from gconv.basis.functions import tangent
from gconv.domains import grid_graph
from gconv.laplacian import eigenbasis, laplacian
from gconv.operators import cayley, lanczos, spectral, wavelet
from gconv.operators.lanczos import Exponents
from gconv.operators.rational import Turns
from gconv.operators.shapes import weighted
from gconv.operators.spectral import Bands
from gconv.operators.wavelet import Kernels
from gconv.testing import assert_close

DOUBLE = torch.float64


def undirected(pairs, n):
    """A graph with unit weights; the second half of the edges are the reverses of the first."""
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
    index = torch.cat([index, index.flip(0)], 1)
    return Graph(index, n, edge_weight=torch.ones(index.shape[1], dtype=DOUBLE))


def ring_pairs(n, start=0):
    return [(start + i, start + (i + 1) % n) for i in range(n)]


GRAPHS = {
    "complete": undirected(list(itertools.combinations(range(5), 2)), 5),
    "ring": undirected(ring_pairs(6), 6),
    "star": undirected([(0, i) for i in range(1, 6)], 6),
    "grid": undirected([e for e in grid_graph((2, 3), 4).edge_index.t().tolist() if e[0] < e[1]], 6),
    "edgeless": undirected([], 4),
    "copies": Graph.union([undirected(ring_pairs(3), 3)] * 2),
    "copies and loners": undirected(ring_pairs(4) + ring_pairs(4, 4), 10),
}
RESPONSES = {
    "bands": Bands(4, 2.1),
    "wavelets": Kernels(3),
    "turns": Turns(3, torch.tensor([1.3], dtype=DOUBLE)),
    "powers": Exponents((1, 2, 5)),
}


def dense_laplacian(graph, w, norm="sym"):
    g = Graph(graph.edge_index, graph.size, edge_weight=w, ptr=graph.ptr)
    L = laplacian(g, DOUBLE, norm=norm).expand(torch.eye(g.size, dtype=DOUBLE))[0]
    return (L + L.mT) / 2


def hermite(L, response):
    """(k, n, n) f(L) by the polynomials that have f's values and two derivatives at each distinct eigenvalue."""
    distinct = []
    for value in torch.linalg.eigvalsh(L.detach()).tolist():
        if not distinct or value - distinct[-1] > 1e-9:
            distinct.append(value)
    places = [d for d in distinct for _ in range(3)]
    at = torch.tensor(distinct, dtype=DOUBLE)
    inside = at + (1e-7 if isinstance(response, Bands) else -1e-10)  # derivatives from within, at 0 and at 2
    zeroth = response.values(at)
    once = lambda t, k: torch.func.grad(lambda s: response.values(s)[k].sum())(t)  # noqa: E731
    eye, found = torch.eye(len(L), dtype=DOUBLE), []
    for k in range(len(zeroth)):
        first, second = once(inside, k), torch.func.grad(lambda s, k=k: once(s, k).sum())(inside)
        derivatives = [zeroth[k].repeat_interleave(3), first.repeat_interleave(3), second.repeat_interleave(3) / 2]
        column, coefficients = derivatives[0].clone(), []
        for order in range(len(places)):
            coefficients.append(float(column[0]))
            following = []
            for i in range(len(places) - order - 1):
                gap = places[i + order + 1] - places[i]
                following.append((column[i + 1] - column[i]) / gap if gap else derivatives[order + 1][i])
            column = torch.stack(following) if following else column[:0]
        total, product = torch.zeros_like(eye), eye
        for c, place in zip(coefficients, places, strict=True):
            total, product = total + c * product, product @ (L - place * eye)
        found.append(total)
    return torch.stack(found)


def orders(run, w):
    """The value, its first derivative under a random functional, and the second along a random direction."""
    w = w.clone().requires_grad_()
    random = torch.Generator().manual_seed(5)
    y = run(w)
    loss = (y * torch.randn(y.shape, generator=random, dtype=DOUBLE)).sum() + y.square().sum()
    if not len(w):
        return y, w, w
    (first,) = torch.autograd.grad(loss, w, create_graph=True)
    (second,) = torch.autograd.grad((first * torch.randn(w.shape, generator=random, dtype=DOUBLE)).sum(), w)
    return y, first, second


def agree(what, got, want, tol=1e-9):
    for name, a, b in zip(("value", "first order", "second order"), got, want, strict=True):
        assert_close(f"{what}: {name}", a, b, tol)


def as_any_solver(monkeypatch, what, run, w, want, tol=1e-9):
    """As torch's eigensolver answers, and as another machine's might."""
    agree(what, orders(run, w), want, tol)
    monkeypatch.setattr(functions, "_solver", perturbed)
    agree(f"{what}, with another solver", orders(run, w), want, tol)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_functions_of_laplacians_have_two_derivatives(graph, response, monkeypatch):
    """Against the polynomials that agree with the function at each eigenvalue."""

    def run(w):
        L = dense_laplacian(graph, w)
        at, U = functions.eigh(L.detach())
        S = Diagonal(U, response.values(at), at, tangent(U.mT @ (L - L.detach()) @ U, at, response))
        return S.expand(torch.eye(graph.size, dtype=DOUBLE))

    want = orders(lambda w: hermite(dense_laplacian(graph, w), response), graph.edge_weight)
    as_any_solver(monkeypatch, "f(L)", run, graph.edge_weight, want, 1e-7)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("norm", ["sym", None])
def test_cayley_is_its_rational_form(graph, norm, monkeypatch):
    """Complex matrices and torch's inverse, also in the zoom h; gradients in each direction of an edge."""
    layer = GConv(cayley(2, 3, k=3, normalization=norm), dtype=DOUBLE)
    x = torch.randn(graph.size, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))

    def ours(theta):
        g = Graph(graph.edge_index, graph.size, edge_weight=theta[1:], ptr=graph.ptr)
        return torch.func.functional_call(layer, {"h": theta[:1]}, (x, g))

    def rational(theta):
        h, L, eye = theta[0], dense_laplacian(graph, theta[1:], norm), torch.eye(graph.size, dtype=DOUBLE)
        C = (h * L - 1j * eye) @ torch.linalg.inv(h * L + 1j * eye)
        y, power = x @ layer.weight[0] + layer.bias, eye.to(C.dtype)
        for j in range(1, 4):
            power = power @ C
            y = y + 2 * (power @ x.to(C.dtype) @ torch.complex(layer.weight[j], layer.weight[3 + j])).real
        return y

    theta = torch.cat([torch.tensor([0.8], dtype=DOUBLE), graph.edge_weight])
    as_any_solver(monkeypatch, "cayley", ours, theta, orders(rational, theta))


@pytest.mark.parametrize("gap", [1e-15, 1e-10, 1e-7, 1e-5, 2e-4])
@pytest.mark.parametrize("response", [RESPONSES["turns"], RESPONSES["powers"]], ids=["turns", "powers"])
def test_near_eigenvalues_are_as_good_as_equal_ones(gap, response):
    """Two eigenvalues `gap` apart, and a third one gap^1/2 / 3 away, against rational and polynomial forms."""
    at = torch.tensor([0.3, 0.3 + gap, 0.3 + gap**0.5 / 3, 1.7], dtype=DOUBLE)
    base, eye = torch.diag(at), torch.eye(4, dtype=DOUBLE)

    def ours(e):
        A = base + (e + e.mT) / 2
        return torch.diag_embed(response.values(at)) + tangent(A - A.detach(), at, response)

    def reference(e):
        A = base + (e + e.mT) / 2
        if isinstance(response, Exponents):
            return torch.stack([torch.linalg.matrix_power(A, p) for p in response.powers])
        C = (response.h * A - 1j * eye) @ torch.linalg.inv(response.h * A + 1j * eye)
        powers = [torch.linalg.matrix_power(C, j) for j in range(4)]
        return torch.stack([powers[0].real, *(2 * p.real for p in powers[1:]), *(-2 * p.imag for p in powers[1:])])

    zero = torch.zeros(4, 4, dtype=DOUBLE)
    agree("near", orders(ours, zero), orders(reference, zero), 1e-9)


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_slopes_are_divided_differences(response):
    """Quotients where points are apart, derivatives where they are equal, and continuous in between."""
    a = torch.tensor([0.06, 0.31, 1.02, 1.9], dtype=DOUBLE)
    b = torch.tensor([0.61, 1.45, 1.99, 0.2], dtype=DOUBLE)
    quotient = (response.values(a) - response.values(b)) / (a - b)
    assert_close("apart", response.slopes(a, b), quotient, 1e-12)
    assert_close("symmetric", response.slopes(b, a), quotient, 1e-12)
    central = (response.values(a + 1e-5) - response.values(a - 1e-5)) / 2e-5
    assert_close("equal", response.slopes(a, a), central, 1e-7)
    for gap in (1e-15, 1e-12, 1e-9, 1e-6):
        assert_close(f"{gap} apart", response.slopes(a, a + gap), response.slopes(a, a), 1e2 * gap + 1e-12)


SPECS = [
    spectral(2, 3, k=4), spectral(2, 3, k=5, normalization=None), wavelet(2, 3, scales=2), cayley(2, 2, k=2),
    cayley(2, 2, k=1, normalization=None), lanczos(2, 3, k=3, short=(1,), long=(4, 7)),
]  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_second_derivatives_are_difference_quotients(spec):
    graph, layer = weighted(), GConv(spec, dtype=DOUBLE)
    x = torch.randn(8, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    half = graph.edge_weight[: graph.num_edges // 2].clone().requires_grad_()

    def run(w, x):
        return layer(x, Graph(graph.edge_index, graph.size, edge_weight=torch.cat([w, w])))

    assert torch.autograd.gradcheck(run, (half, x.requires_grad_()), atol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (half, x), atol=1e-4, rtol=1e-3, fast_mode=True)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("name", ["complete", "grid", "edgeless", "copies and loners"])
def test_operators_have_finite_derivatives_on_symmetric_graphs(spec, name, monkeypatch):
    """The same ones, whichever eigenvectors the solver returns; and each part of a union as if alone."""
    graph, layer = GRAPHS[name], GConv(spec, dtype=DOUBLE)
    x = torch.randn(graph.size, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))

    def run(w):
        return layer(x, Graph(graph.edge_index, graph.size, edge_weight=w))

    want = orders(run, graph.edge_weight)
    assert all(bool(t.isfinite().all()) for t in want)
    monkeypatch.setattr(functions, "_solver", perturbed)
    agree("another solver", orders(run, graph.edge_weight), want, 1e-7)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spec", SPECS[1:4], ids=repr)
def test_forward_mode_and_hessians_of_functorch_agree(spec):
    graph, layer = GRAPHS["star"], GConv(spec, dtype=DOUBLE)
    x = torch.randn(graph.size, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))

    def loss(w):
        return layer(x, Graph(graph.edge_index, graph.size, edge_weight=w)).square().sum()

    w = graph.edge_weight
    want = torch.autograd.functional.hessian(loss, w)
    along = torch.linspace(-1, 1, len(w), dtype=DOUBLE)
    assert_close("jvp of grad", torch.func.jvp(torch.func.grad(loss), (w,), (along,))[1], want @ along, 1e-8)
    assert_close(
        "grad of jvp", torch.func.grad(lambda v: torch.func.jvp(loss, (v,), (along,))[1])(w), want @ along, 1e-8
    )


def test_third_derivatives_are_refused():
    graph, layer = GRAPHS["star"], GConv(cayley(2, 2), dtype=DOUBLE)
    w, x = graph.edge_weight.clone().requires_grad_(), torch.ones(graph.size, 2, dtype=DOUBLE)
    y = layer(x, Graph(graph.edge_index, graph.size, edge_weight=w)).square().sum()
    (first,) = torch.autograd.grad(y, w, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad(second.sum(), w)


def test_a_free_multiplier_hangs_on_the_choice_of_eigenvectors(monkeypatch):
    """What `Diagonal` warns of: numbers chosen for each eigenvector are no function of a symmetric graph's matrix."""
    graph = GRAPHS["complete"]
    g = torch.arange(5, dtype=DOUBLE).unsqueeze(0)

    def S():
        values, U = eigenbasis(Graph(graph.edge_index, 5))
        return Diagonal(U, g, values).expand(torch.eye(5, dtype=DOUBLE))

    monkeypatch.setattr(functions, "_solver", perturbed)
    assert float((S() - S()).abs().max()) > 1e-3
    g = torch.tensor([[0.0, 1, 1, 1, 1]], dtype=DOUBLE)
    assert_close("a function", S(), S(), 1e-12)


def test_negative_eigenvalues_are_kept():
    """Negative weights make D - A indefinite: cayley is its rational form there too."""
    graph = Graph(torch.tensor([[0, 1], [1, 0]]), 2, edge_weight=torch.tensor([-1.0, -1.0], dtype=DOUBLE))
    assert_close("eigenvalues", eigenbasis(graph, None)[0], torch.tensor([-2.0, 0.0], dtype=DOUBLE), 1e-14)
    layer, x = GConv(cayley(1, 1, k=1, normalization=None, bias=False), dtype=DOUBLE), torch.eye(2, 1, dtype=DOUBLE)
    L, eye = dense_laplacian(graph, graph.edge_weight, None), torch.eye(2, dtype=DOUBLE)
    C = (L - 1j * eye) @ torch.linalg.inv(L + 1j * eye)
    W = layer.weight.flatten()
    want = (W[0] * eye + 2 * W[1] * C.real - 2 * W[2] * C.imag) @ x
    assert_close("cayley", layer(x, graph), want, 1e-12)


def test_a_union_takes_the_largest_eigenvalue_of_each_part():
    layer = GConv(spectral(1, 2, k=4, normalization=None), dtype=DOUBLE)
    one, two = GRAPHS["star"], GRAPHS["ring"]
    x = torch.randn(12, 1, dtype=DOUBLE)
    alone = torch.cat([layer(x[:6], one), layer(x[6:], two)])
    assert_close("union", layer(x, Graph.union([one, two])), alone, 1e-12)
