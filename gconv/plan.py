"""The planner: candidates, who is admitted, what each costs, and the winner. It sees forms and sizes, never names."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from gconv.basis import Basis
from gconv.kernels import known
from gconv.lowering import LOWERINGS, Cost, Lowering
from gconv.lowering.base import Problem
from gconv.mixing import Dense, Mixing
from gconv.spec import Inadmissible

FLOPS = 1e11  # rates of a small CPU; only their ratio matters for the choice
BYTES = 2e10


@dataclass(frozen=True)
class Candidate:
    """One lowering in a plan: its cost and predicted seconds, or why it was rejected."""

    name: str
    cost: Cost | None
    seconds: float
    reason: str | None


@dataclass(frozen=True)
class Plan:
    """How one call will run, and why.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv2d
    >>> print(GConv(conv2d(3, 64, 3, padding=1)).plan(torch.zeros(8, 3, 32, 32)))  # doctest: +ELLIPSIS
    plan for 8 signals of (1024 sites, 3 channels) -> (1024 sites, 64 channels), 9 taps, torch.float32
    -> native                 0.0283 GFLOP      2.2 MB  predicted    0.283 ms
    ...
       gft                  rejected: it needs multipliers of a Fourier basis, and this structure is Shifts
    ...
    """

    title: str
    candidates: tuple[Candidate, ...]
    chosen: Lowering

    def __str__(self) -> str:
        lines = [self.title]
        for c in sorted(self.candidates, key=lambda c: (c.reason is not None, c.seconds)):
            mark = "->" if c.name == self.chosen.name else "  "
            if c.cost is None:
                lines.append(f"{mark} {c.name:20s} rejected: {c.reason}")
            else:
                numbers = f"{c.cost.flops / 1e9:8.3g} GFLOP {c.cost.bytes / 1e6:8.3g} MB"
                lines.append(f"{mark} {c.name:20s} {numbers}  predicted {c.seconds * 1e3:8.3g} ms")
        return "\n".join(lines)


_PLANS: dict[Hashable, Plan] = {}
KEPT = 4096  # plans, before the cache starts anew


def predict(lowering: Lowering, cost: Cost) -> float:
    """Seconds: arithmetic or memory traffic, whichever is slower."""
    return max(cost.flops / FLOPS, cost.bytes / BYTES) / lowering.efficiency


def plan(S: Basis, mixing: Mixing, x: Tensor, lowering: str | None = None) -> Plan:
    """Choose how to run S and mixing on x.

    Args:
        S, mixing: the operator on its domain.
        x: the signal, (*b, n, i); only its shape, dtype and device are read.
        lowering: force one by name; "sparse" and "recurrence" leave the association open.

    Raises:
        Inadmissible: if the lowering that was asked for is unknown or cannot run this structure.
    """
    if torch.compiler.is_compiling():  # a compiled call must not hang on what other calls have put into a cache
        return _make(S, mixing, x, lowering)
    key = (S.signature, mixing, x.shape, x.dtype, x.device.type, lowering, _constancy(x))
    if key not in _PLANS:
        if len(_PLANS) >= KEPT:
            _PLANS.clear()
        _PLANS[key] = _make(S, mixing, x, lowering)
    return _PLANS[key]


def _constancy(x: Tensor) -> tuple[float, bool]:
    """What a plan may know of a constant signal: the share of it that a product reads, and that it is constant."""
    found = known(x)
    return (1.0, False) if found is None else (1.0 if found.sparse is None else found.density, True)


def _make(S: Basis, mixing: Mixing, x: Tensor, forced: str | None) -> Plan:
    k, m, n = S.shape
    i = x.shape[-1]
    o = mixing.channels(i)
    b = 1
    for extent in x.shape[:-2]:
        b *= int(extent)
    problem = Problem(b, i, o, x.element_size(), *_constancy(x))
    candidates, admitted = [], {}
    for option in LOWERINGS:
        reason = option.refuses(S, mixing)
        cost = None if reason else option.cost(S, mixing, problem)
        seconds = predict(option, cost) if cost else float("inf")
        candidates.append(Candidate(option.name, cost, seconds, reason))
        if cost:
            admitted[option.name] = (seconds, option)
    way = f"({n} sites, {i} channels) -> ({m} sites, {o} channels), {k} taps, {x.dtype}"
    title = f"plan for {b} signal{'s' * (b != 1)} of {way}"
    if forced is not None:
        admitted = {name: pair for name, pair in admitted.items() if forced in (name, name.split(":")[0])}
        if not admitted:
            raise Inadmissible(_refusal(forced, candidates))
    least = min(seconds for seconds, _ in admitted.values())
    chosen = next(option for seconds, option in admitted.values() if seconds == least)
    return Plan(title, tuple(candidates), chosen)


def _refusal(forced: str, candidates: list[Candidate]) -> str:
    reasons = [c.reason for c in candidates if forced in (c.name, c.name.split(":")[0])]
    if reasons:
        return f"The lowering {forced!r} cannot run this operator: {reasons[-1]}."
    names = sorted({c.name for c in candidates} | {c.name.split(":")[0] for c in candidates})
    return f"There is no lowering named {forced!r}; there are {', '.join(names)}."


def admitted(S: Basis, mixing: Mixing) -> list[str]:
    """The names of all lowerings that can run this structure and mixing."""
    return [option.name for option in LOWERINGS if option.refuses(S, mixing) is None]


def evaluate(
    S: Basis, mixing: Mixing, W: Tensor | None, x: Tensor, bias: Tensor | None = None, lowering: str | None = None
) -> Tensor:
    """Y = sum_k S_k X W_k + b by the planned lowering, (*b, n, i) -> (*b, m, o)."""
    return plan(S, mixing, x, lowering).chosen.run(S, mixing, W, x, bias)


def backward(S: Basis, mixing: Mixing, W: Tensor, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by hand, from the same engine: dX = sum_k S_k^T dY W_k^T and dW_k = (S_k X)^T dY (W dense).

    Args:
        S, mixing, W, x: as in `evaluate`, with a dense mixing.
        dy: the gradient that arrives at the output, (*b, m, o).

    Returns:
        (dX, dW), shaped as x and W.

    Raises:
        TypeError: if the mixing is not dense.
    """
    if not isinstance(mixing, Dense):
        raise TypeError(f"The rule by hand is written for a dense mixing, not for {type(mixing).__name__}.")
    flipped, W_t = mixing.transpose(W, x.shape[-1])
    dx = evaluate(S.T, flipped, W_t, dy)
    dw = torch.einsum("...kmi,...mo->kio", S.expand(x), dy)
    return dx, dw * mixing.scale
