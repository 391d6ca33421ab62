"""Polynomial and spectral filters: what the laws and oracles at the start of learning do not reach."""

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import ORACLES
from oracles.filters import laplacian, power, step
from scipy.special import eval_jacobi, ive
from torch_geometric import nn as pyg

from gconv import GConv, Graph
from gconv.analysis import matrix, norm
from gconv.call import Call
from gconv.operators import (
    appnp,
    arma,
    bernstein,
    cayley,
    cheb,
    chebnetii,
    diffusion,
    gpr,
    gwnn,
    heat,
    jacobi,
    lanczos,
    lightgcn,
    mixhop,
    ppr,
    ssg,
    tag,
    wavelet,
)
from gconv.operators.bases import interpolation, nodes
from gconv.operators.lanczos import ritz
from gconv.operators.propagation import heat_error, heat_series
from gconv.operators.shapes import messy, ring, weighted
from gconv.operators.wavelet import kernels
from gconv.testing import assert_close

SPECS = [
    lightgcn(), ssg(2, 3, alpha=0.1), gpr(), gpr(0), gpr(1), heat(), heat(1.0, 0), heat(1.0, 1), ppr(), ppr(0.5, 0),
    bernstein(), bernstein(0), bernstein(1), chebnetii(), chebnetii(0), chebnetii(1), jacobi(2), jacobi(2, k=0),
    jacobi(2, 3, k=1), mixhop(2, 3), diffusion(2, 3), arma(2, 3), arma(2, 3, num_layers=0), cayley(2, 3),
    cayley(2, 3, k=0), cayley(2, 3, k=1, normalization=None), wavelet(2, 3), wavelet(2, 3, order=0),
    wavelet(2, 3, order=1), lanczos(2, 3), lanczos(2, 3, k=1, short=()),
]  # fmt: skip


def double(spec, seed=0):
    """The layer with parameters of its structure drawn at random, of both signs."""
    torch.manual_seed(seed)
    layer = GConv(spec, dtype=torch.float64)
    with torch.no_grad():
        for name in spec.structure.parameters():
            layer.get_parameter(name).uniform_(-1, 1)
    return layer


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("n, edges", [(0, []), (1, []), (3, []), (1, [(0, 0)]), (3, [(0, 0)])])
def test_smallest_graphs(spec, n, edges):
    graph = Graph(torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t(), n)
    layer, x = double(spec), torch.randn(2, n, 2, dtype=torch.float64)
    for lowering in ("dense", None):
        y = layer(x, graph, lowering=lowering)
        assert y.shape == (2, n, spec.mixing.channels(2)) and bool(y.isfinite().all())
        if n:
            assert_close(repr(spec), y, ORACLES[spec.name](layer, graph, x), 1e-10)


@pytest.mark.parametrize(
    "spec", [gpr(5), bernstein(5), chebnetii(5), arma(2, 3), cayley(2, 3), gwnn(2, 3, nodes=8, s=0.4)], ids=repr
)
@pytest.mark.parametrize("seed", [1, 2])
def test_learned_filters_away_from_their_start(spec, seed):
    layer, x = double(spec, seed), torch.randn(1, 8, 2, dtype=torch.float64)
    assert any((layer.get_parameter(name) < 0).any() for name in spec.structure.parameters()) or spec.name == "cayley"
    assert_close(repr(spec), layer(x, weighted()), ORACLES[spec.name](layer, weighted(), x), 1e-10)


def test_frequency_responses_are_what_the_parameters_say():
    """chebnetii takes relu(theta_j) at its nodes, and no response of bernstein is negative."""
    interpolant, positive, graph = double(chebnetii(6)), double(bernstein(6)), weighted()
    _, U = torch.linalg.eigh(laplacian(graph))
    c = interpolant.theta.relu() @ interpolation(6)
    response = np.polynomial.chebyshev.chebval(nodes(6).numpy(), c.detach().numpy())
    assert_close("at the nodes", torch.from_numpy(response), interpolant.theta.relu(), 1e-12)
    for layer in (interpolant, positive):
        M = matrix(layer.at(graph, x=torch.zeros(8, 1, dtype=torch.float64))).detach()
        diagonal = U.t() @ M @ U
        assert_close("diagonal in the Fourier basis", diagonal, torch.diag(diagonal.diagonal()), 1e-12)
    assert float(diagonal.min()) > -1e-14


@pytest.mark.parametrize("a, b", list(itertools.product([-0.9, -0.5, 0.0, 2.5], repeat=2)))
def test_jacobi_polynomials_are_scipys(a, b):
    z = torch.linspace(-1, 1, 11, dtype=torch.float64)
    want = torch.stack([torch.from_numpy(eval_jacobi(k, a, b, z.numpy())) for k in range(9)])
    assert_close("P_k", jacobi(1, k=8, a=a, b=b).structure.recurrence.at(z), want, 1e-12)


@pytest.mark.parametrize("k", [0, 1, 7, 30])
def test_interpolation_is_numpys(k):
    want = np.polynomial.chebyshev.chebinterpolate(np.exp, k)
    assert_close("coefficients", nodes(k).exp() @ interpolation(k), torch.from_numpy(want), 1e-14)


@pytest.mark.parametrize("t", [0.01, 1.0, 30.0, 500.0])
def test_heat_series_is_scipys(t):
    c = torch.tensor(heat_series(t), dtype=torch.float64)
    k = np.arange(len(c))
    want = (2.0 - (k == 0)) * ive(k, t) * (-1.0) ** k
    assert_close("e^-t I_k(t)", c, torch.from_numpy(want), 1e-14)


@pytest.mark.parametrize("t, k", [(0.5, 2), (1.0, 0), (2.0, 5), (10.0, 12)])
def test_heat_error_is_a_bound_that_frequency_0_attains(t, k):
    graph = weighted()
    got = matrix(GConv(heat(t, k)).at(graph, x=torch.zeros(8, 1, dtype=torch.float64)))
    error = torch.linalg.matrix_norm(got - torch.matrix_exp(-t * laplacian(graph)), 2)
    assert 0 < error <= heat_error(t, k) * (1 + 1e-9)
    assert_close("attained: the graph has frequency 0", error, error.new_tensor(heat_error(t, k)), 1e-12)


def test_heat_flows_on_directed_graphs_too():
    x = torch.randn(6, 2, dtype=torch.float64)
    for t in (0.3, 1.0, 5.0, 20.0):
        want = torch.matrix_exp(-t * laplacian(messy())) @ x
        assert_close(f"t = {t}", GConv(heat(t))(x, messy()), want, 1e-10)


def test_ppr_is_where_appnp_leads():
    x = torch.randn(8, 2, dtype=torch.float64)
    assert_close("the limit", GConv(appnp(400, 0.1))(x, weighted()), GConv(ppr(0.1))(x, weighted()), 1e-12)
    alpha, k = 0.3, 3
    q = 1 - alpha
    root = math.sqrt(1 - q * q)
    r = q / (1 + root)
    S = step(weighted(), True)
    exact = alpha * torch.linalg.inv(torch.eye(8, dtype=torch.float64) - q * S)
    got = matrix(GConv(ppr(alpha, k)).at(weighted(), x=torch.zeros(8, 1, dtype=torch.float64)))
    assert torch.linalg.matrix_norm(got - exact, 2) <= 2 * alpha / root * r ** (k + 1) / (1 - r) * (1 + 1e-9)


@pytest.mark.parametrize("stacks, layers, bias", [(1, 1, True), (3, 1, True), (2, 3, False)])
def test_pygs_linear_arma_is_tag(stacks, layers, bias):
    """ARMAConv(act=None): one layer is tag(k=1) with the stacks' means; more layers, without a bias, tag(k=layers)."""
    torch.manual_seed(0)
    other = pyg.ARMAConv(2, 3, stacks, layers, act=None, bias=bias).double()
    if bias:
        torch.nn.init.normal_(other.bias)
    taps, last = [], torch.eye(3, dtype=torch.float64).expand(stacks, 3, 3)
    for t in reversed(range(layers)):
        taps.append(other.root_weight[t] @ last)
        last = other.weight[t - 1] @ last if t else other.init_weight @ last
    taps.append(last)
    layer = GConv(tag(2, 3, k=layers, bias=bias), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([tap.mean(0) for tap in taps]))
        if bias:
            layer.bias.copy_(other.bias[0].mean(0)[0])
    x, g = torch.randn(6, 2, dtype=torch.float64), messy()
    assert_close("tag", layer(x, g), other(x, g.edge_index, g.edge_weight), 1e-10)


@pytest.mark.parametrize(
    "spec", [cayley(2, 3, k=2), lanczos(2, 3, k=3, short=(1,), long=(4,)), wavelet(2, 3)], ids=lambda s: s.name
)
def test_gradients_in_symmetric_edge_weights(spec):
    """Both directions of an edge turned together: there the Fourier basis stays one, and its derivative is defined."""
    layer, g = double(spec), weighted()
    half = g.edge_weight[: g.num_edges // 2].clone()
    x = torch.randn(1, 8, 2, dtype=torch.float64)

    def run(w):
        graph = Graph(g.edge_index, g.size, edge_weight=torch.cat([w, w]))
        return layer(x, graph)

    assert torch.autograd.gradcheck(run, (half.requires_grad_(),), atol=1e-6)


def test_lanczos_finds_each_part_as_if_alone():
    tree = Graph(weighted().edge_index, 8, edge_weight=weighted().edge_weight)
    loner = Graph(torch.empty(2, 0, dtype=torch.int64), 1, edge_weight=torch.empty(0, dtype=torch.float64))
    parts = [tree, Graph(ring(5).edge_index, 5, edge_weight=torch.ones(10, dtype=torch.float64)), loner]
    layer, x = double(lanczos(2, 3, k=4)), torch.randn(14, 2, dtype=torch.float64)
    alone = torch.cat([layer(piece, g) for piece, g in zip(x.split([8, 5, 1]), parts, strict=True)])
    assert_close("union", layer(x, Graph.union(parts)), alone, 1e-12)


def test_lanczos_with_all_steps_is_exact_on_what_the_constant_vector_reaches():
    graph, one = weighted(), torch.ones(8, dtype=torch.float64)
    A = double(lanczos(1, 1, k=8, short=(), long=(3,))).at(graph)
    U, g = A.S.U, A.S.g
    assert_close("orthonormal", U.t() @ U, torch.eye(U.shape[1], dtype=torch.float64), 1e-12)
    assert_close("S^3 1", U @ (g[0] * (U.t() @ one)), power(step(graph, False), 3) @ one, 1e-12)
    ring_map = GConv(lanczos(1, 1, k=8)).at(ring())
    assert ring_map.S.parts[1].U.shape == (7, 1), "on a ring the constant vector reaches itself alone"


def test_ritz_values_lie_within_the_spectrum():
    S = lightgcn().structure.basis(weighted(), {}, Call(torch.zeros(8, 1, dtype=torch.float64)))
    values, U, _ = ritz(S, torch.zeros(8, dtype=torch.int64), 1, 5)
    assert values.shape == (5,) and U.shape == (8, 5)
    assert bool((values.abs() <= 1 + 1e-12).all()) and bool((values.diff() > 0).all())


def test_wavelets_admit_nothing_constant_and_leave_nothing_out():
    """Away from an isolated node the bands kill the lowest frequency, and together with h they cover the spectrum."""
    g = kernels(6, torch.linspace(0, 2, 400, dtype=torch.float64))
    assert float(g[1:, 0].abs().max()) == 0 and float(g[0, 0]) == pytest.approx(1 + 2 / math.sqrt(27))
    assert float(g.square().sum(0).min()) > 0.5


def test_wavelet_polynomials_converge_to_the_exact_wavelets():
    x = torch.randn(8, 2, dtype=torch.float64)
    exact, errors = double(wavelet(2, 3, scales=3)), []
    for order in (4, 16, 64):
        near = double(wavelet(2, 3, scales=3, order=order))
        errors.append(float((near(x, weighted()) - exact(x, weighted())).detach().abs().max()))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_gwnn_renames_its_parameters_with_the_nodes_and_starts_as_one_matrix():
    layer, x = double(gwnn(2, 3, nodes=8)), torch.randn(8, 2, dtype=torch.float64)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    y = layer(x, weighted())
    with torch.no_grad():
        layer.theta.copy_(torch.empty_like(layer.theta).index_copy(0, order, layer.theta))
    renamed = layer(torch.empty_like(x).index_copy(0, order, x), weighted().permute(order))
    assert_close("renamed", renamed[order], y, 1e-12)
    fresh = GConv(gwnn(2, 3, nodes=8), dtype=torch.float64)
    assert_close("start", fresh(x, weighted()), x @ fresh.weight[0], 1e-12)


def test_pagerank_starts_as_appnp():
    x = torch.randn(8, 2, dtype=torch.float64)
    assert_close(
        "gpr", GConv(gpr(6, 0.2), dtype=torch.float64)(x, weighted()), GConv(appnp(6, 0.2))(x, weighted()), 1e-12
    )
    assert norm(GConv(appnp(6, 0.2)).at(weighted())) <= 1 + 1e-6


REFUSED = [
    ("gpr k", lambda: gpr(-1), "k counts steps and must be an integer >= 0, but it is -1"),
    ("gpr alpha", lambda: gpr(2, 1.5), r"alpha is a share in \[0, 1\], but it is 1.5"),
    ("ssg k", lambda: ssg(2, 2, alpha=0.1, k=0), "must be an integer >= 1, but it is 0"),
    ("heat t", lambda: heat(0.0), "t is a time and must be a positive number, but it is 0.0"),
    ("heat k", lambda: heat(1.0, 2.5), "must be an integer >= 0, but it is 2.5"),
    ("ppr alpha", lambda: ppr(0.0), r"alpha is a share in \[0.001, 1\], but it is 0.0"),
    ("bernstein k", lambda: bernstein(True), "must be an integer >= 0, but it is True"),
    ("chebnetii k", lambda: chebnetii(-2), "must be an integer >= 0, but it is -2"),
    ("jacobi a", lambda: jacobi(2, a=-1.0), "orthogonal for a > -1 and b > -1, but a = -1.0 and b = 1.0"),
    ("mixhop twice", lambda: mixhop(2, 2, powers=(1, 1)), r"distinct integers >= 0, but it is \(1, 1\)"),
    ("mixhop none", lambda: mixhop(2, 2, powers=()), r"one or more distinct integers >= 0, but it is \(\)"),
    ("diffusion k", lambda: diffusion(2, 2, k=0), "must be an integer >= 1, but it is 0"),
    ("arma stacks", lambda: arma(2, 2, num_stacks=0), "num_stacks must be an integer >= 1, but it is 0"),
    ("cayley norm", lambda: cayley(2, 2, normalization="rw"), "symmetric Laplacian: normalization 'sym' or None"),
    ("wavelet order", lambda: wavelet(2, 2, order=-1), "order must be an integer >= 0, but it is -1"),
    ("lanczos powers", lambda: lanczos(2, 2, long=(0,)), r"long must be one or more distinct integers >= 1"),
    ("gwnn nodes", lambda: gwnn(2, 2, nodes=0), "nodes must be an integer >= 1"),
    ("gwnn s", lambda: gwnn(2, 2, nodes=3, s=-1.0), "s is a scale and must be a positive number"),
    ("gwnn graph", lambda: GConv(gwnn(2, 2, nodes=3))(torch.zeros(7, 2), ring()), "3 nodes, but the graph has 7"),
    ("heat long", lambda: heat(1e308), r"t can be at most 1e\+08, .* but it is 1e\+308"),
    ("heat directed", lambda: GConv(heat(101.0))(torch.zeros(6, 2), messy()), "heat with t <= 100 runs on both"),
    ("cheb k", lambda: cheb(2, 2, k=10**9), "k can be at most 100,000, but it is 1000000000"),
    ("bernstein long", lambda: bernstein(10**5), "k can be at most 2,000, but it is 100000"),
    ("mixhop long", lambda: mixhop(2, 2, powers=(0, 10**9)), "A power in powers can be at most 100,000"),
    ("gwnn wide", lambda: gwnn(2, 2, nodes=3, s=500.0), "s can be at most 16: .* no digit of double precision is left"),
    ("jacobi large", lambda: jacobi(2, a=1e300), "exceed 1e30"),
    ("not finite", lambda: jacobi(2, a=math.inf), "jacobi: a must be finite, but it is inf"),
    ("cheb scale", lambda: GConv(cheb(2, 2, k=3, lambda_max=1e-300))(torch.zeros(7, 2), ring()), "entries up to 1"),
    ("ppr directed", lambda: GConv(ppr())(torch.zeros(6, 2), messy()), "the graph is directed"),
    ("lanczos directed", lambda: GConv(lanczos(2, 2))(torch.zeros(6, 2), messy()), "this one is directed"),
    ("cayley directed", lambda: GConv(cayley(2, 2))(torch.zeros(6, 2), messy()), "this one is directed"),
    ("wavelet directed", lambda: GConv(wavelet(2, 2))(torch.zeros(6, 2), messy()), "this one is directed"),
]  # fmt: skip


@pytest.mark.parametrize("what, call, message", REFUSED, ids=[case[0] for case in REFUSED])
def test_refused_in_a_sentence(what, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("t", [1e-300, 1e-12, 150.0, 1000.0, 1e6])
def test_heat_at_any_time(t):
    """Against the exponential of the matrix's eigenvalues."""
    values, U = torch.linalg.eigh(laplacian(weighted()))
    want = U @ torch.diag((-t * values).exp()) @ U.t()
    got = matrix(GConv(heat(t)).at(weighted(), x=torch.zeros(8, 1, dtype=torch.float64)))
    assert_close(f"t = {t}", got, want, 1e-12 + 1e-16 * t)  # eigenvalues are known to a rounding error


def test_bernstein_of_a_high_degree_passes_every_signal():
    x = torch.randn(8, 1, dtype=torch.float64)
    assert_close("all ones", GConv(bernstein(1100), dtype=torch.float64)(x, weighted()), x, 1e-11)
