"""The shared mixing, which no operator of the library uses yet: one matrix for all taps, held to the dense one."""

import pytest
import torch

from gconv.basis import Polynomial, Recurrence
from gconv.laplacian import laplacian
from gconv.linear import LinearMap
from gconv.mixing import Dense, Shared
from gconv.operators.shapes import messy
from gconv.plan import evaluate
from gconv.testing import assert_close


@pytest.mark.parametrize("lowering", ["recurrence:aggregate", "recurrence:transform", "dense"])
def test_shared_is_dense_with_one_matrix_repeated(lowering):
    S = Polynomial(laplacian(messy(), torch.float64, lmax=2.0), Recurrence.chebyshev(3))
    W = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True)
    got = evaluate(S, Shared(3, 2, 4), W, x, None, lowering)
    want = evaluate(S, Dense(3, 2, 4), W.expand(3, 2, 4), x, None, "dense")
    dy = torch.randn_like(want)
    assert_close("value", got, want, 1e-12)
    for a, b in zip(torch.autograd.grad(got, (x, W), dy), torch.autograd.grad(want, (x, W), dy), strict=True):
        assert_close("gradient", a, b, 1e-12)
    A = LinearMap(S, Shared(3, 2, 4), W.detach(), 2, torch.float64)
    assert_close("adjoint", ((A @ x) * dy).sum(), (x * (A.T @ dy)).sum(), 1e-11)
    with pytest.raises(AssertionError):  # the control: another matrix in one tap
        other = torch.stack([W, W, 2 * W])
        assert_close("value", evaluate(S, Dense(3, 2, 4), other, x, None, "dense"), want, 1e-12)
