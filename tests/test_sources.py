"""What docstrings say of the code of an operator's authors: with that change it is the operator, without it is not."""

import pytest
import torch
from torch import Tensor

from gconv import GConv, Graph
from gconv.operators import fagcn, gcn, gcn2, heat, jacobi, lanczos, le, pan, ppr

F64 = torch.float64
torch.manual_seed(0)
PAIRS = torch.tensor([[0, 0, 1, 2, 3, 3], [1, 2, 2, 3, 4, 0]])
EDGES = torch.cat([PAIRS, PAIRS.flip(0)], 1)
LOOPS = torch.cat([EDGES, torch.tensor([[1, 4], [1, 4]])], 1)
X, FIRST, WEIGHT = (torch.randn(*shape, dtype=F64) for shape in ((5, 2), (5, 2), (4, 2, 2)))
EYE = torch.eye(5, dtype=F64)


def dense(edges: Tensor) -> Tensor:
    return torch.zeros(5, 5, dtype=F64).index_put((edges[1], edges[0]), torch.ones(1, dtype=F64), accumulate=True)


def normalised(A: Tensor) -> Tensor:
    root = A.sum(1).rsqrt()
    return root[:, None] * A * root


def run(spec, edges: Tensor = EDGES, x: Tensor = X, **parameters: Tensor) -> Tensor:
    layer = GConv(spec, dtype=F64)
    with torch.no_grad():
        for name, value in parameters.items():
            getattr(layer, name).copy_(value)
        return layer(x, Graph(edges, 5))


A = dense(EDGES)
S, WITH_LOOPS = normalised(A), normalised(A + EYE)


def by_jacobi(as_documented: bool) -> tuple[Tensor, Tensor]:
    a, b = 0.7, -0.3
    P = [X, (a - b) / 2 * X + (a + b + 2) / 2 * S @ X]
    for t in (2, 3):
        s = 2 * t + a + b
        below = 2 * t * (t + a + b) * (s - 2)
        sign = 1 if as_documented else -1
        P.append(
            ((s - 1) * s * (s - 2) * S @ P[-1] + sign * (s - 1) * (a * a - b * b) * P[-1]) / below
            - 2 * (t + a - 1) * (t + b - 1) * s / below * P[-2]
        )
    taps = WEIGHT[:, 0]
    want = sum(p * w for p, w in zip(P, taps, strict=True))
    return run(jacobi(2, k=3, a=a, b=b), weight=taps.reshape(4, 2, 1, 1)), want


def by_gcn2(as_documented: bool) -> tuple[Tensor, Tensor]:
    alpha, beta = 0.2, torch.tensor(1.25, dtype=F64).log()
    now, first = (1 - alpha) * WITH_LOOPS @ X, alpha * FIRST
    read = (now, first) if as_documented else (WITH_LOOPS @ X, FIRST)
    want = (1 - beta) * (now + first) + beta * sum(r @ W for r, W in zip(read, WEIGHT[:2], strict=True))
    spec = gcn2(2, alpha, theta=0.5, layer=2, shared_weights=False)
    return run(spec, x=torch.cat([X, FIRST], 1), weight=WEIGHT[:2]), want


def by_gcn(as_documented: bool) -> tuple[Tensor, Tensor]:
    """jraph divides by the roots of the senders' out-degrees and of the receivers' in-degrees."""
    B = dense(PAIRS) + EYE
    left, right = B.sum(1).rsqrt(), B.sum(1 if as_documented else 0).rsqrt()
    return run(gcn(2, 2, bias=False), PAIRS, weight=WEIGHT[:1]), left[:, None] * B * right @ X @ WEIGHT[0]


def by_pan(as_documented: bool) -> tuple[Tensor, Tensor]:
    p = torch.tensor([0.3, 0.7, 0.4], dtype=F64)
    M = p[0] * EYE + (p[0] if as_documented else 1) * (p[1] * A + p[1] * p[2] * A @ A)
    root = (M != 0).sum(1).to(F64).rsqrt()
    return run(pan(2, 2, 2, bias=False), weight=WEIGHT[:1], path=p), root[:, None] * M * root @ X @ WEIGHT[0]


def by_le(as_documented: bool) -> tuple[Tensor, Tensor]:
    B = dense(LOOPS) if as_documented else A
    want = B @ X @ WEIGHT[0] - B.sum(1, keepdim=True) * (X @ WEIGHT[1]) + X @ WEIGHT[2]
    return run(le(2, 2, bias=False), LOOPS, weight=WEIGHT[:3]), want


def by_fagcn(as_documented: bool) -> tuple[Tensor, Tensor]:
    left, right = WEIGHT[0, 0], WEIGHT[0, 1]
    B = WITH_LOOPS if as_documented else S
    want = ((X @ left)[None] + (X @ right)[:, None]).tanh() * B @ X + 0.1 * FIRST
    return run(fagcn(2), x=torch.cat([X, FIRST], 1), att_l=left, att_r=right), want


def by_lanczos(as_documented: bool) -> tuple[Tensor, Tensor]:
    B = S if as_documented else WITH_LOOPS
    only = torch.stack([WEIGHT[0], torch.zeros_like(WEIGHT[0])])
    return run(lanczos(2, 2, short=(1,), long=(3,), bias=False), weight=only), B @ X @ WEIGHT[0]


def by_heat(as_documented: bool) -> tuple[Tensor, Tensor]:
    return run(heat(1.5)), torch.matrix_exp(-1.5 * (EYE - (S if as_documented else WITH_LOOPS))) @ X


def by_heat_of_kondor(as_documented: bool) -> tuple[Tensor, Tensor]:
    L = EYE - S if as_documented else A.sum(1).diag() - A
    return run(heat(1.5)), torch.matrix_exp(-1.5 * L) @ X


def by_ppr(as_documented: bool) -> tuple[Tensor, Tensor]:
    return run(ppr(0.2)), 0.2 * torch.linalg.inv(EYE - 0.8 * (WITH_LOOPS if as_documented else S)) @ X


@pytest.mark.parametrize(
    "source", [by_jacobi, by_gcn, by_gcn2, by_pan, by_le, by_fagcn, by_lanczos, by_heat, by_heat_of_kondor, by_ppr]
)
def test_an_operator_differs_from_its_authors_code_as_documented(source):
    torch.testing.assert_close(*source(True))
    got, other = source(False)
    assert float((got - other).abs().max()) > 1e-3
