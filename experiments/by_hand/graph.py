"""The second half of `experiments.by_hand`: a Chebyshev convolution on a small graph, from its Laplacian to gconv."""

from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from experiments.by_hand.loops import Gaps, chebyshev, every_lowering, gap, layer, say, show
from gconv import Graph
from gconv.analysis import matrix
from gconv.lowering import dense
from gconv.operators import cheb
from gconv.plan import backward

PAIRS = [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (3, 5), (4, 5)]
EDGES = [*PAIRS, *((j, i) for i, j in PAIRS)]  # from j to i, both ways
GRAPH = Graph(torch.tensor(EDGES).T)


def by_definition() -> tuple[np.ndarray, float, np.ndarray, np.ndarray, np.ndarray]:
    """L = I - D^-1/2 A D^-1/2, its largest eigenvalue, L~ = 2 L / lmax - I, and L~'s eigenvalues and eigenvectors."""
    A = np.zeros((6, 6))
    for j, i in EDGES:
        A[i, j] = 1
    root = np.diag(A.sum(1) ** -0.5)
    L = np.eye(6) - root @ A @ root
    lmax = float(np.linalg.eigvalsh(L)[-1])
    scaled = 2 * L / lmax - np.eye(6)
    return L, lmax, scaled, *np.linalg.eigh(scaled)


def step_laplacian(rng: Any) -> Gaps:
    """A graph: its Laplacian, its frequencies, their Chebyshev polynomials"""
    L, lmax, scaled, z, U = by_definition()
    say("Nodes 0-1-2 and 3-4-5 are triangles, 2-3 joins them. L = I - D^-1/2 A D^-1/2 is what shifts are on a grid:")
    show("L", L)
    show("eigenvalues, the frequencies", np.linalg.eigvalsh(L))
    show("of L~ = 2 L / lmax - I, in [-1, 1]", z)
    T = [np.eye(6), scaled]
    while len(T) < 4:
        T.append(2 * scaled @ T[-1] - T[-2])
    say("T_0 = 1, T_1 = z, T_k = 2 z T_{k-1} - T_{k-2}, of the matrix L~: products only. T_k reaches k edges:")
    for k in range(4):
        print(f"      T_{k}: node 0 sees " + " ".join(str(i) if abs(T[k][0, i]) > 1e-12 else "." for i in range(6)))
    angle = [(U * np.cos(k * np.arccos(z.clip(-1, 1)))) @ U.T for k in range(4)]
    S = layer(cheb(1, 1, k=4, lambda_max="exact"), np.ones(4)).at(GRAPH).S
    loops = np.stack(chebyshev(np.eye(6), EDGES, lmax, 4))
    far = [abs(T[k][np.linalg.matrix_power(np.eye(6) + abs(L), k) == 0]).sum() for k in range(4)]
    return [
        gap("recurrence - cos(k arccos) of the eigenvalues, T_0 to T_3", np.stack(T), np.stack(angle)),
        gap("loops over nodes and edges - recurrence of matrices", loops, np.stack(T)),
        gap("gconv's S_k - T_k(L~)", dense.stack(S, torch.float64, torch.device("cpu")), np.stack(T)),
        gap("T_k beyond k edges", far, np.zeros(4)),
        gap("L itself in place of L~: T_3", L @ (4 * L @ L - 3 * np.eye(6)), T[3], differ=True),
    ]


def step_filter(rng: Any) -> Gaps:
    """The filter: a polynomial in frequency, h(z) = sum_k theta_k T_k(z)"""
    _, lmax, _, z, U = by_definition()
    theta = np.array([0.4, -0.5, 0.1, 0.0])
    h = np.polynomial.chebyshev.chebval(z, theta)
    ours = layer(cheb(1, 1, k=4, lambda_max="exact", bias=False), theta)
    show("theta", theta)
    show("frequency", (z + 1) * lmax / 2)
    show("response", h)
    say("Low frequencies (little change along edges) pass, high ones are damped: a blur.")
    x = np.array([1.0, 0, 0, 0, 0, 0])
    y = ours(torch.from_numpy(x)[:, None], GRAPH)[:, 0].detach().numpy()
    show("a spike at node 0", x)
    show("after the filter", y)
    M = matrix(ours.at(GRAPH))
    by_loops, by_basis = np.tensordot(theta, chebyshev(x, EDGES, lmax, 4), 1), U @ (h * (U.T @ x))
    return [
        gap("sum_k theta_k T_k x, loops - U h(z) U^T x", by_loops, by_basis),
        gap("gconv - U h(z) U^T x", y, by_basis),
        gap("matrix - U h(z) U^T", M, (U * h) @ U.T),
        gap("matrix @ eigenvector - response * eigenvector", M @ torch.from_numpy(U), U * h),
        gap("response at the frequencies in the wrong order", (U * h[::-1]) @ U.T, M, differ=True),
    ]


def step_cheb(rng: Any) -> Gaps:
    """The Chebyshev convolution, forward and backward by hand: Y = sum_k T_k(L~) X W_k + b"""
    from torch_geometric.nn import ChebConv

    lmax = by_definition()[1]
    x, w, b = rng.normal(size=(6, 2)), rng.normal(size=(3, 2, 4)), rng.normal(size=4)
    TX = chebyshev(x, EDGES, lmax, 3)
    y = np.zeros((6, 4)) + b
    for node, k, i, o in product(range(6), range(3), range(2), range(4)):
        y[node, o] += TX[k][node, i] * w[k, i, o]
    dy = np.where(y > 0, y, 0)  # of the loss 1/2 sum relu(y)^2
    dx, dw = np.zeros(x.shape), np.zeros(w.shape)
    for k in range(3):
        dx += chebyshev(dy @ w[k].T, EDGES, lmax, 3)[k]  # L~ is symmetric: T_k^T = T_k
        dw[k] = TX[k].T @ dy
    ours, theirs = layer(cheb(2, 4, k=3, lambda_max="exact"), w, b), ChebConv(2, 4, 3).double()
    with torch.no_grad():
        theirs.bias.copy_(torch.from_numpy(b))
        for k in range(3):
            theirs.lins[k].weight.copy_(torch.from_numpy(w[k].T))
    top = torch.tensor(lmax, dtype=torch.float64)
    gaps, X = [], torch.from_numpy(x)
    A = ours.at(GRAPH)
    engine = backward(A.S, A.mixing, torch.from_numpy(w), X, torch.from_numpy(dy))
    for name, hand, grad in zip(("dX", "dW"), (dx, dw), engine, strict=True):
        gaps.append(gap(f"{name}: loops - gconv.plan.backward, the engine's rule", hand, grad))
    for name in ("PyG ChebConv", "GConv"):
        t = X.clone().requires_grad_()
        out = ours(t, GRAPH) if name == "GConv" else theirs(t, GRAPH.edge_index, lambda_max=top)
        (F.relu(out) ** 2).sum().div(2).backward()
        grads: dict[str, Any] = {p: v.grad for p, v in (ours if name == "GConv" else theirs).named_parameters()}
        dw_k = grads["weight"] if name == "GConv" else torch.stack([grads[f"lins.{k}.weight"].T for k in range(3)])
        for what, hand, found in (
            ("y", y, out),
            ("dX", dx, t.grad),
            ("dW", dw, dw_k),
            ("db", dy.sum(0), grads["bias"]),
        ):
            gaps.append(gap(f"{what}: loops - {name}", hand, found))
    gaps += every_lowering(ours, X, y, GRAPH)
    say("On the grid S_k is a shift, on the graph T_k(L~). Nothing else differs: both are Y = sum_k S_k X W_k + b.")
    return [*gaps, gap("the taps in the wrong order", layer(ours.spec, w[::-1].copy(), b)(X, GRAPH), y, differ=True)]
