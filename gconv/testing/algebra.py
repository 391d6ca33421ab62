"""Laws of the linear map: equality of all lowerings, adjoint, linearity, receptive field, norm."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gconv.analysis import adjoint_gap, matrix, norm, receptive_field, singular_values
from gconv.domains import Grid
from gconv.linear import LinearMap
from gconv.lowering import dense
from gconv.mixing import Dense, spread_bias
from gconv.plan import admitted, backward
from gconv.testing.case import Case, a_law, a_linear_law, random_like, sites


@a_law
def law_lowerings(case: Case) -> bool:
    """Every admitted lowering equals `dense`: value, and gradients in x, weight, bias, structure and edge weights."""
    want = case.gradients("dense")
    for name in case.lowerings:
        got = case.gradients(name)
        for what in want:
            case.close(f"{what}, {name} against dense", got[what], want[what])
    return len(case.lowerings) > 1


@a_linear_law
def law_adjoint(case: Case, A: LinearMap) -> bool:
    """<A x, y> = <x, A^T y>; A x and A^T y equal products with the matrix and its transpose, for every lowering."""
    gap = adjoint_gap(A)
    if not gap <= case.tol:
        case.fail(f"<A x, y> and <x, A^T y> differ by {gap:.3g} of |A x| |y|.")
    for B, M, side in ((A, matrix(A), "A"), (A.T, matrix(A).mT, "A.T")):
        x = random_like(M.new_empty(2, B.sites[1], B.i))
        want = (x.flatten(1) @ M.mT).unflatten(-1, (B.sites[0], B.o))
        for name in admitted(B.S, B.mixing):
            case.close(f"{side} by {name} against the matrix", B.apply(x, name), want)
    return True


@a_linear_law
def law_hand_rule(case: Case, A: LinearMap) -> bool:
    """dX = sum_k S_k^T dY W_k^T and dW_k = (S_k X)^T dY equal the gradients of autograd (dense mixing)."""
    if not isinstance(A.mixing, Dense):
        return False
    assert A.W is not None
    x, W = random_like(A.W.new_empty(2, A.sites[1], A.i)).requires_grad_(), A.W.detach().clone().requires_grad_()
    y = replace(A, W=W).apply(x, "dense")  # does not use S.T
    dy = random_like(y, 2)
    want = torch.autograd.grad(y, (x, W), dy)
    for what, hand, auto in zip(("dX", "dW"), backward(A.S, A.mixing, W.detach(), x.detach(), dy), want, strict=True):
        case.close(f"{what} by the formula against autograd", hand, auto)
    return True


@a_linear_law
def law_linearity(case: Case, A: LinearMap) -> bool:
    """The layer equals its map plus the bias, and the map is linear in x (frozen, if the structure is adaptive)."""
    x, y = sites(case.x, case.domain)
    spread = spread_bias(case.layer.spec.mixing, case.layer.bias)
    bias = 0 if spread is None else spread
    here, there = sites(case(case.x), case.structure.target(case.domain))
    case.close("the layer against its map plus bias", here, A @ x + bias)
    if case.structure.kind != "adaptive":
        case.close("the layer at another signal", there, A @ y + bias)
    case.close("A (2 x - 3 y) against 2 A x - 3 A y", A @ (2 * x - 3 * y), 2 * (A @ x) - 3 * (A @ y))
    return True


@a_linear_law
def law_receptive_field(case: Case, A: LinearMap) -> bool:
    """`receptive_field` equals the support of the Jacobian (frozen, if the structure is adaptive).

    In float32, entries of the Jacobian below the rounding error of the largest one may or may not be in the support.
    """

    def run(x: Tensor) -> Tensor:
        if case.structure.kind == "adaptive":
            return A @ x
        image = x.mT.unflatten(-1, case.domain.shape) if isinstance(case.domain, Grid) else x
        return sites(case(image.unsqueeze(0))[0], case.structure.target(case.domain))

    size = torch.autograd.functional.jacobian(run, case.signal).abs().amax((1, 3))  # of (m, o, n, i)
    said, seen = receptive_field(A), size > 100 * torch.finfo(case.dtype).eps * size.max()
    small = seen if case.dtype == torch.float64 else size > 0
    wrong = int((said & ~small | seen & ~said).sum())
    if wrong:
        case.fail(f"receptive_field and the support of the Jacobian differ in {wrong} of {size.numel()} pairs.")
    return True


@a_linear_law
def law_norm(case: Case, A: LinearMap) -> bool:
    """norm(A) and singular_values(A) equal those of the matrix."""
    if case.dtype != torch.float64:
        return False
    want = torch.linalg.svdvals(matrix(A))
    case.close("norm(A) against the singular values", want.new_tensor(norm(A)), want[0], 10 * case.tol)
    case.close("singular_values(A) against the matrix", singular_values(A), want, 10 * case.tol)
    return True


@a_linear_law
def law_row_stochastic(case: Case, A: LinearMap) -> bool:
    """If the sample declares it: no entry of S is negative and every row sums to 1."""
    if not case.sample.row_stochastic:
        return False
    S = dense.stack(A.S, case.dtype, A.device).detach()
    if float(S.min()) < -case.tol:
        case.fail(f"an entry of S is {float(S.min()):.3g}, but it is declared row-stochastic.")
    case.close("the row sums of S", S.sum(-1), torch.ones_like(S[..., 0]))
    return True
