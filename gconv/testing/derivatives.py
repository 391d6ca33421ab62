"""Laws of derivatives: difference quotients, the transforms of torch.func, and forward-mode differentiation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call, grad, jvp, vmap

from gconv.domains import Edges
from gconv.testing.case import Case, a_law, random_like

Given = dict[str, Tensor]  # a signal "x", parameters by name, and "edge_weight"
Run = Callable[[Given], Tensor]


@a_law
def law_gradcheck(case: Case) -> bool:
    """Gradients equal difference quotients (torch.autograd.gradcheck, float64)."""
    if case.dtype != torch.float64:
        return False
    case = Case.of(case.sample, case.dtype, batch=1)
    theta = dict(case.layer.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(case.layer, dict(zip(theta, values, strict=True)), (x, case.domain))

    try:
        torch.autograd.gradcheck(run, (case.x.requires_grad_(), *theta.values()), fast_mode=True)
    except GradcheckError as error:
        case.fail(f"{error}")
    return True


@a_law
def law_transforms(case: Case) -> bool:
    """torch.func's grad equals autograd, jvp and forward mode equal double backward, and vmap equals a loop.

    Each transform is the first call of a new layer on a new graph; plain calls afterwards must be unaffected. For each
    lowering, vmap of grad (per-sample gradients) and jvp are tested.
    """
    if case.dtype != torch.float64:
        return False
    leaves = {"x": case.x[0], **{name: p.detach() for name, p in case.layer.named_parameters()}}
    plain = dict(leaves)
    if isinstance(case.domain, Edges) and case.domain.edge_weight is not None:
        leaves["edge_weight"] = case.domain.edge_weight
    along = {name: random_like(t, 2) for name, t in leaves.items()}
    y, dy, gradients, tangent = _by_autograd(_run(case), leaves, along)
    before = case.gradients(None)
    two = {name: torch.stack([t, 0.5 * t]) for name, t in plain.items()}
    pair = torch.stack([_run(case)({name: t[k] for name, t in two.items()}) for k in (0, 1)])

    def by_grad(run: Run) -> None:
        found = grad(lambda given: (run(given) * dy).sum())(leaves)
        for name, want in gradients.items():
            case.close(f"torch.func.grad in {name}", found[name], want)

    def by_jvp(run: Run) -> None:
        case.close("torch.func.jvp", jvp(run, (leaves,), (along,))[1], tangent)

    def by_forward_mode(run: Run) -> None:
        with forward_ad.dual_level():
            duals = {name: forward_ad.make_dual(t, along[name]) for name, t in leaves.items()}
            found = forward_ad.unpack_dual(run(duals)).tangent
        case.close("forward mode", torch.zeros_like(y) if found is None else found, tangent)

    def by_vmap(run: Run) -> None:
        case.close("vmap of signals and weights", vmap(run)(two), pair)

    def by_both(run: Run) -> None:
        found = vmap(grad(lambda given: run(given).square().sum()))(two)
        for k in (0, 1):
            one = {name: t[k].clone().requires_grad_() for name, t in two.items()}
            want = _gradients(run(one).square().sum(), one)
            for name, g in want.items():
                case.close(f"the gradient of sample {k} in {name}", found[name][k], g)

    for check in (by_grad, by_jvp, by_forward_mode, by_vmap, by_both):
        fresh = Case.of(case.sample, case.dtype)
        check(_run(fresh))
        for what, found in fresh.gradients(None).items():
            case.close(f"a plain call after {check.__name__}: {what}", found, before[what])
    for name in case.lowerings:
        by_both(_run(case, name))
        by_jvp(_run(case, name))
    return True


def _run(case: Case, lowering: str | None = None) -> Run:
    """The layer as a function of signal, parameters and edge weights."""

    def run(given: Given) -> Tensor:
        domain = case.domain
        if "edge_weight" in given and isinstance(domain, Edges):
            domain = replace(domain, edge_weight=given["edge_weight"])
        theta = {name: t for name, t in given.items() if name not in ("x", "edge_weight")}
        made: Tensor = functional_call(case.layer, theta, (given["x"], domain), {"lowering": lowering})
        return made

    return run


def _gradients(value: Tensor, leaves: Given, dy: Tensor | None = None, again: bool = False) -> Given:
    if not value.requires_grad:
        return {name: torch.zeros_like(t) for name, t in leaves.items()}
    found = torch.autograd.grad(
        value, list(leaves.values()), dy, create_graph=again, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def _by_autograd(run: Run, leaves: Given, along: Given) -> tuple[Tensor, Tensor, Given, Tensor]:
    """The output y, a random dy, the gradients of the leaves, and the tangent of y, by double backward."""
    tracked = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    y = run(tracked)
    dy = random_like(y).requires_grad_()
    gradients = _gradients(y, tracked, dy, True)
    moved = sum((g * along[name]).sum() for name, g in gradients.items())
    assert isinstance(moved, Tensor)
    tangent = _gradients(moved, {"dy": dy})["dy"]
    return y.detach(), dy.detach(), {name: g.detach() for name, g in gradients.items()}, tangent
