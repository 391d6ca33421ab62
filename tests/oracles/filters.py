"""Oracles of the polynomial and spectral filters: PyG's layers, or the papers' formulas on matrices written out.

The formulas take their adjacency or Laplacian from PyG's own functions, as a dense matrix in float64.

  PyG       ARMAConv(act=None) with recurrent weights a I and inputs V = K W is exactly arma with poles a; it adds its
            bias inside of the recursion, so the oracle adds it behind.
            Of several loops at a node add_remaining_self_loops keeps the last one's weight, but sends its gradient to
            all of them; random cases of what fills loops have no double ones.
            MixHopConv with a power named twice uses one matrix for both; here that is refused.
  torch     matrix_exp is off by 1.8e-12 at exp(-0.01 L) of a ring, where scipy and the series here agree to 2e-16.
  authors   ChebNetII's code cannot run K = 0, JacobiConv's counts edges where we sum weights, DCRNN's applies the
            transposed walks by Chebyshev's recurrence: there the formula of the paper is the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import nn as pyg
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import get_laplacian

from gconv import GConv, Graph, operators
from gconv.spec import Sample
from oracles.common import each, edge_weights, given, graphs, oracle, random_case


def matrix(g: Graph, index: Tensor, values: Tensor) -> Tensor:
    M = torch.zeros(g.size, g.size, dtype=torch.float64)
    return M.index_put((index[1], index[0]), values.double(), accumulate=True)


def adjacency(g: Graph) -> Tensor:
    """A itself, entry (target, source)."""
    return matrix(g, g.edge_index, g.weights(torch.float64))


def step(g: Graph, loops: bool) -> Tensor:
    """D^-1/2 (A + I) D^-1/2, or without I, by PyG's gcn_norm."""
    w = g.weights(torch.float64)
    return matrix(g, *gcn_norm(g.edge_index, w, g.size, add_self_loops=loops, dtype=torch.float64))


def laplacian(g: Graph, normalization: str | None = "sym") -> Tensor:
    """By PyG's get_laplacian."""
    w = g.weights(torch.float64)
    return matrix(g, *get_laplacian(g.edge_index, w, normalization, torch.float64, g.size))


def power(M: Tensor, k: int) -> Tensor:
    result = torch.eye(len(M), dtype=M.dtype)
    for _ in range(k):
        result = result @ M
    return result


def mixed(layer: GConv, x: Tensor, taps: list[Tensor]) -> Tensor:
    """sum_k S_k X W_k + b for a dense W."""
    y = sum(S.to(x.dtype) @ x @ W for S, W in zip(taps, layer.weight, strict=True))
    return y if layer.bias is None else y + layer.bias


# -- PyG -----------------------------------------------------------------------------------------------------------


@oracle("lightgcn")
def lightgcn(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    return each(pyg.LGConv(**given(layer)), {}, x, g.edge_index, edge_weights(g, x))


@oracle("ssg")
def ssg(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    a["K"] = a.pop("k")
    weights = {"lin.weight": layer.weight[0].t(), "lin.bias": layer.bias}
    return each(pyg.SSGConv(**a), weights, x, g.edge_index, edge_weights(g, x))


@oracle("mixhop")
def mixhop(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a = given(layer)
    a["powers"] = list(a["powers"])
    weights = {f"lins.{p}.weight": W.t() for p, W in zip(a["powers"], layer.weight, strict=True)}
    return each(pyg.MixHopConv(**a), weights | {"bias": layer.bias}, x, g.edge_index, edge_weights(g, x))


@oracle("arma")
def arma(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    a, poles = given(layer), layer.a
    K, T, W = a["num_stacks"], a["num_layers"], layer.weight
    if T == 0:
        y = x @ W.sum(0)
        return y if layer.bias is None else y + layer.bias
    module = pyg.ARMAConv(a["in_channels"], a["out_channels"], K, T, act=None, bias=False)
    turn = poles[:, None, None] * torch.eye(a["out_channels"], dtype=x.dtype)
    weights = {
        "weight": turn.expand(max(1, T - 1), *turn.shape),
        "init_weight": K * poles[:, None, None] * W,
        "root_weight": (K * W).expand(T, *W.shape),
    }
    y = each(module, weights, x, g.edge_index, edge_weights(g, x))
    return y if layer.bias is None else y + layer.bias


# -- formulas ------------------------------------------------------------------------------------------------------


@oracle("gpr")
def gpr(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    S, y = step(g, True).to(x.dtype), 0
    for theta in layer.theta:
        y, x = y + theta * x, S @ x
    return y


@oracle("bernstein")
def bernstein(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    k, L, theta = given(layer)["k"], laplacian(g), layer.theta.clamp(min=0).double()
    low = 2 * torch.eye(g.size, dtype=torch.float64) - L
    h = sum(theta[t] * math.comb(k, t) / 2**k * power(low, k - t) @ power(L, t) for t in range(k + 1))
    return h.to(x.dtype) @ x


@oracle("chebnetii")
def chebnetii(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """By Lagrange's interpolation at the nodes."""
    k, z = given(layer)["k"], laplacian(g) - torch.eye(g.size, dtype=torch.float64)
    at = sorted(math.cos((j + 0.5) * math.pi / (k + 1)) for j in range(k + 1))
    h = torch.zeros_like(z)
    for j, theta in enumerate(layer.theta.clamp(min=0).double()):
        bump = torch.eye(g.size, dtype=torch.float64)
        for i in range(k + 1):
            if i != j:
                bump = bump @ (z - at[i] * torch.eye(g.size, dtype=torch.float64)) / (at[j] - at[i])
        h = h + theta * bump
    return h.to(x.dtype) @ x


def binomial(top: float, k: int) -> float:
    return math.prod((top - j) / (j + 1) for j in range(k))


@oracle("jacobi")
def jacobi(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """By Rodrigues' sum, P_k = sum_s C(k + a, k - s) C(k + b, s) ((z - 1) / 2)^s ((z + 1) / 2)^(k - s)."""
    a, S, one = given(layer), step(g, False), torch.eye(g.size, dtype=torch.float64)
    below, above = (S - one) / 2, (S + one) / 2
    taps = [
        sum(
            binomial(k + a["a"], k - s) * binomial(k + a["b"], s) * power(below, s) @ power(above, k - s)
            for s in range(k + 1)
        )
        for k in range(a["k"] + 1)
    ]
    if a["out_channels"] is not None:
        return mixed(layer, x, taps)
    y = sum(S.to(x.dtype) @ x * W.flatten() for S, W in zip(taps, layer.weight, strict=True))
    return y if layer.bias is None else y + layer.bias


@oracle("heat")
def heat(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """By torch's matrix exponential; a truncated series by numpy's Chebyshev interpolation at many more nodes."""
    t, k, L = given(layer)["t"], given(layer)["k"], laplacian(g)
    if k is None:
        return torch.matrix_exp(-t * L).to(x.dtype) @ x
    c = np.polynomial.chebyshev.chebinterpolate(lambda z: np.exp(-t * (1 + z)), k + 40)[: k + 1]
    return chebyshev(L - torch.eye(g.size, dtype=torch.float64), c).to(x.dtype) @ x


def chebyshev(M: Tensor, c: Any) -> Tensor:
    """sum_t c_t T_t(M), through the coefficients of the powers."""
    powers = np.polynomial.chebyshev.cheb2poly(c)
    return sum((float(a) * power(M, t) for t, a in enumerate(powers)), torch.zeros_like(M))


@oracle("ppr")
def ppr(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """By torch's inverse; a truncated series by numpy's Chebyshev interpolation at many more nodes."""
    alpha, k, S = given(layer)["alpha"], given(layer)["k"], step(g, True)
    if k is None:
        inverse = torch.linalg.inv(torch.eye(g.size, dtype=torch.float64) - (1 - alpha) * S)
        return (alpha * inverse).to(x.dtype) @ x
    c = np.polynomial.chebyshev.chebinterpolate(lambda z: alpha / (1 - (1 - alpha) * z), k + 150)[: k + 1]
    return chebyshev(S, c).to(x.dtype) @ x


@oracle("diffusion")
def diffusion(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    A, k = adjacency(g), given(layer)["k"]
    unless0 = lambda d: torch.where(d > 0, 1 / d.clamp(min=1e-300), 0.0)  # noqa: E731
    along, against = torch.diag(unless0(A.sum(0))) @ A.t(), torch.diag(unless0(A.sum(1))) @ A
    taps = [power(along, t) for t in range(k + 1)] + [power(against, t) for t in range(1, k + 1)]
    return mixed(layer, x, taps)


@oracle("cayley")
def cayley(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """In complex numbers, by torch's inverse."""
    k, L, one = given(layer)["k"], laplacian(g, given(layer)["normalization"]), torch.eye(g.size, dtype=torch.float64)
    W, y = layer.weight, x @ layer.weight[0]
    C = (layer.h.double() * L - 1j * one) @ torch.linalg.inv(layer.h.double() * L + 1j * one)
    for j in range(1, k + 1):
        complex_weight = torch.complex(W[j].double(), W[k + j].double())
        y = y + 2 * (power(C, j) @ x.to(C.dtype) @ complex_weight).real.to(x.dtype)
    return y if layer.bias is None else y + layer.bias


@oracle("wavelet")
def wavelet(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """By numpy's eigenbasis, or by its Chebyshev interpolation and torch's matrix products."""
    J, order, L = given(layer)["scales"], given(layer)["order"], laplacian(g).detach()

    def band(s: float, frequencies: Any) -> Any:
        z = s * np.maximum(frequencies, 0)
        return np.piecewise(
            z,
            [z < 1, (z >= 1) & (z <= 2)],
            [lambda u: u**2, np.polynomial.Polynomial([-5, 11, -6, 1]), lambda u: 4 / u**2],
        )

    top = max(band(1.0, np.array([2 - 3**-0.5])))  # where g is largest
    scales = np.geomspace(2 / 0.1, 1 / 2, J)
    filters = [lambda f: top * np.exp(-((f / 0.06) ** 4)), *(lambda f, s=s: band(s, f) for s in scales)]
    taps = []
    for f in filters:
        if order is None:
            values, U = np.linalg.eigh(L.numpy())
            taps.append(torch.from_numpy(U * f(values) @ U.T))
        else:
            c = np.polynomial.chebyshev.chebinterpolate(lambda z, f=f: f(1 + z), order)
            taps.append(chebyshev(laplacian(g) - torch.eye(g.size, dtype=torch.float64), c))
    return mixed(layer, x, taps)


@oracle("lanczos")
def lanczos(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    """S between projections onto the Krylov space, whose orthonormal basis is found by QR."""
    a, S = given(layer), step(g, False)
    krylov = torch.stack([power(S, t) @ torch.ones(g.size, dtype=torch.float64) for t in range(min(a["k"], g.size))], 1)
    rank = int(np.linalg.matrix_rank(krylov.detach().numpy(), tol=1e-7))
    V, _ = torch.linalg.qr(krylov[:, :rank])
    small = V.t() @ S @ V
    return mixed(layer, x, [power(S, p) for p in a["short"]] + [V @ power(small, p) @ V.t() for p in a["long"]])


@oracle("gwnn")
def gwnn(layer: GConv, g: Graph, x: Tensor) -> Tensor:
    L, s = laplacian(g), given(layer)["s"]
    S = torch.matrix_exp(-s * L) @ torch.diag(layer.theta.double()) @ torch.matrix_exp(s * L)
    return mixed(layer, x, [S])


# -- random specs and graphs ---------------------------------------------------------------------------------------


SPECS: dict[str, Callable[[Any, int, int], Any]] = {
    "lightgcn": lambda draw, i, o: operators.lightgcn(draw(st.booleans())),
    "ssg": lambda draw, i, o: operators.ssg(i, o, draw(SHARE), draw(st.integers(1, 4)), draw(st.booleans())),
    "mixhop": lambda draw, i, o: operators.mixhop(
        i, o, tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True))), draw(st.booleans())
    ),
    "gpr": lambda draw, i, o: operators.gpr(draw(st.integers(0, 5)), draw(SHARE)),
    "bernstein": lambda draw, i, o: operators.bernstein(draw(st.integers(0, 6))),
    "chebnetii": lambda draw, i, o: operators.chebnetii(draw(st.integers(0, 6))),
    "jacobi": lambda draw, i, o: operators.jacobi(
        i, draw(st.sampled_from([None, o])), draw(st.integers(0, 5)), draw(JACOBI), draw(JACOBI), draw(st.booleans())
    ),
    "heat": lambda draw, i, o: operators.heat(draw(st.sampled_from([0.1, 1.0, 3.0])), draw(DEGREE)),
    "ppr": lambda draw, i, o: operators.ppr(draw(st.sampled_from([0.2, 0.5, 1.0])), draw(DEGREE)),
    "diffusion": lambda draw, i, o: operators.diffusion(i, o, draw(st.integers(1, 3)), draw(st.booleans())),
    "arma": lambda draw, i, o: operators.arma(i, o, draw(st.integers(1, 3)), draw(st.integers(0, 4))),
    "cayley": lambda draw, i, o: operators.cayley(i, o, draw(st.integers(0, 4)), draw(st.sampled_from(["sym", None]))),
    "wavelet": lambda draw, i, o: operators.wavelet(i, o, draw(st.integers(1, 4)), draw(DEGREE)),
    "lanczos": lambda draw, i, o: operators.lanczos(
        i, o, draw(st.integers(1, 4)), draw(st.sampled_from([(), (1,), (0, 2)])), draw(st.sampled_from([(1,), (4, 3)]))
    ),
}
SHARE = st.sampled_from([0.0, 0.1, 0.5, 1.0])
JACOBI = st.sampled_from([-0.9, -0.5, 0.0, 1.0, 2.5])
DEGREE = st.sampled_from([None, 0, 1, 5])
UNDIRECTED = {"ppr", "cayley", "lanczos", "wavelet"}


@random_case(*SPECS, "gwnn")
def _(draw: Any, name: str) -> Sample:
    i, o = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    graph = draw(graphs(undirected=name in UNDIRECTED))
    spec = operators.gwnn(i, o, graph.size, 0.5) if name == "gwnn" else SPECS[name](draw, i, o)
    return Sample(spec, lambda: graph, i)
