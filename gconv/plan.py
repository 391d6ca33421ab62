"""The planner: it lists the lowerings that can run a call, predicts their times and chooses the fastest.

It reads the form and the sizes of S and the mixing, not the name of the operator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from typing import TypeVar

import torch
from torch import Tensor

from gconv.arguments import plural, shown
from gconv.basis import Basis
from gconv.caches import Cache
from gconv.call import Call
from gconv.kernels import at_trace_time, is_static, order, untraced
from gconv.lowering import LOWERINGS, Cost, Lowering
from gconv.lowering.base import Problem
from gconv.mixing import Mixing
from gconv.rates import TYPES, price
from gconv.spec import Inadmissible

Name = TypeVar("Name", bound=Hashable)
CPU = torch.device("cpu")
SKIP, LONG = 20.0, 0.03  # not measured: candidates predicted to take this many times the best, and this many seconds
CLOSE = 1.5  # measured in all rounds: candidates that take at most this many times the best in the first rounds


@dataclass(frozen=True)
class Candidate:
    """One lowering in a plan: its cost and predicted seconds, or the reason for its rejection.

    `measured` is empty, or holds the measured seconds of the forward pass and, if the plan is for training, of forward
    and backward pass together.
    """

    name: str
    cost: Cost | None
    seconds: float
    reason: str | None
    measured: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How one call will run, and why.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv2d
    >>> with torch.no_grad():
    ...     print(GConv(conv2d(3, 64, 3, padding=1)).plan(torch.zeros(8, 3, 32, 32)))  # doctest: +ELLIPSIS
    plan for 8 signals of (1024 sites, 3 channels) -> (1024 sites, 64 channels), 9 taps, torch.float32
    -> native                 0.0283 GFLOP      2.2 MB  predicted ... ms
    ...
       gft                  rejected: it needs multipliers of a Fourier basis, and this structure is Shifts
    ...
    """

    title: str
    candidates: tuple[Candidate, ...]
    chosen: Lowering
    rows: str = ""
    """The schedule of the rows of S, if one was considered."""

    def __str__(self) -> str:
        lines = [self.title]
        for c in sorted(self.candidates, key=lambda c: (c.reason is not None, c.seconds)):
            mark = "->" if c.name == self.chosen.name else "  "
            if c.cost is None:
                lines.append(f"{mark} {c.name:20s} rejected: {c.reason}")
            else:
                numbers = f"{c.cost.flops / 1e9:8.3g} GFLOP {c.cost.bytes / 1e6:8.3g} MB"
                took = " + backward ".join(f"{seconds * 1e3:8.3g} ms" for seconds in _steps(c.measured))
                took = f"  measured {took}" if took else ""
                lines.append(f"{mark} {c.name:20s} {numbers}  predicted {c.seconds * 1e3:8.3g} ms{took}")
        if self.rows:
            lines.append(f"rows {self.rows}")
        return "\n".join(lines)


def _steps(measured: tuple[float, ...]) -> tuple[float, ...]:
    """Seconds of the forward and the backward pass, from those of the forward pass and of both together."""
    return (measured[0], max(0.0, measured[1] - measured[0])) if len(measured) == 2 else measured


_PLANS: Cache[Hashable, Plan] = Cache("plans", 4096)


def form(S: Basis, mixing: Mixing, signals: int = 1) -> str:
    """Words that select the fixed overhead of a call, the most important first; see `gconv.rates.Rates.overhead`.

    The overhead depends on the number of steps (recurrences, grids, groups, several signals), on whether the structure
    is learned, on whether it is a stack with several products, and on whether channels are mixed.
    """
    return S.overhead(mixing, " many" if signals > 1 else "")


def predict(option: Lowering, cost: Cost, p: Problem, form: str = "") -> float:
    """The predicted seconds of a call: its fixed overhead, and its work at the measured throughputs."""
    steps = tuple((work.kind, float(work.amount), float(work.size), float(work.table)) for work in cost.work)
    return price(option.name, form, " back" if p.dx else " weight" if p.dw or p.ds else "", steps, p.device)


def node_order(S: Basis) -> str:
    """The state of `gconv.kernels.order` for the patterns of S that were used in large products, as text."""
    states = [order.known(csr.col) for csr in S.patterns]
    return "; ".join(dict.fromkeys(str(state) for state in states if state is not None))


def strides(x: Tensor) -> tuple[int, ...]:
    """The strides of x; a sparse signal, which `X W` accepts, too, counts as channels last."""
    return x.stride() if x.layout is torch.strided else (1,)


def plan(S: Basis, call: Call, lowering: str | None = None) -> Plan:
    """Choose how to run a call on S.

    Args:
        S: the structure on its domain.
        call: only shape, dtype, device and layout of its signal (*b, n, i) are read. The predicted time includes the
            backward pass for the gradients that will be needed.
        lowering: the name of the lowering to use; "sparse" and "recurrence" leave the order of the products open.

    Raises:
        Inadmissible: if the requested lowering is unknown or cannot run this structure.
    """
    x, mixing, gradients = call.x, call.mixing, call.gradients
    all_three = *gradients, gradients[1] and len(S.learned) > 0
    if call.kind not in ("eager", "transformed"):
        if call.kind == "compiled" and is_static((*x.shape, *x.stride())):
            given = tuple(x.shape), x.stride(), x.dtype, x.device.type
            lowering = _planned(S, mixing, *given, lowering, all_three) or lowering
        if call.kind != "watched" or not is_static(x.shape):
            return _by_form(S, mixing, x, lowering)
    constancy = _constancy(call)
    where = x.device, torch.get_num_threads()
    key = (S.signature, mixing, x.shape, x.dtype, where, lowering, all_three, strides(x)[-1:], constancy)
    found = _PLANS.get(key)
    if found is None:
        found = _PLANS[key] = _make(S, mixing, x, lowering, all_three, constancy)
    return found


@at_trace_time
def _planned(
    S: Basis,
    mixing: Mixing,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    lowering: str | None,
    gradients: tuple[bool, bool, bool],
) -> str | None:
    """The name of the lowering for such a signal; None if S or mixing is created in the trace, or none is admitted."""
    if not (getattr(S, "__dict__", None) and getattr(mixing, "__dict__", None)):
        return None
    with untraced():
        x = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        try:
            return _make(S, mixing, x, lowering, gradients, device=device).chosen.name
        except Inadmissible:
            return None


def _by_form(S: Basis, mixing: Mixing, x: Tensor, forced: str | None) -> Plan:
    """A plan that does not depend on sizes: for traced calls, which may run at other sizes later.

    torch's kernels are preferred to recurrences, and these to sparse products; the channels are mixed first if that
    reduces their number. `fft` comes last, because not every exporter supports complex numbers.
    """
    reasons = [option.refuses(S, mixing) for option in LOWERINGS]
    k, i = S.shape[0], x.shape[-1]
    if torch.compiler.is_dynamo_compiling():
        k, i = index(k), index(i)  # constants also with dynamic=True
    options = [option for option, reason in zip(LOWERINGS, reasons, strict=True) if reason is None]
    if forced is not None:
        options = [option for option in options if forced in (option.name, option.name.split(":")[0])]
        if not options:
            raise Inadmissible(_refusal(forced, _rejected(reasons)))
    first = ":transform" if S.has_kernel or mixing.width(i) <= k * i else ":aggregate"
    order = [
        "native",
        "gft",
        f"recurrence{first}",
        f"sparse{first}",
        "recurrence:",
        "sparse:",
        "im2col",
        "dense",
        "fft",
    ]
    rank = {option.name: [option.name.startswith(name) for name in order].index(True) for option in options}
    best = min(rank.values())
    chosen = next(option for option in options if rank[option.name] == best)
    title = f"plan for a traced call, {plural(i, 'channel')} in, {plural(k, 'tap')}, {x.dtype}"
    return Plan(title, tuple(_rejected(reasons)), chosen)


def _rejected(reasons: list[str | None]) -> list[Candidate]:
    named = zip(LOWERINGS, reasons, strict=True)
    return [Candidate(option.name, None, math.inf, reason or "no cost without sizes") for option, reason in named]


def _constancy(call: Call) -> tuple[float, bool]:
    """The share of a constant signal that a product reads, and whether the signal is constant."""
    found = call.constant
    if found is None:
        return 1.0, False
    return 1.0 if found.sparse is None else found.density, True


def _make(
    S: Basis,
    mixing: Mixing,
    x: Tensor,
    forced: str | None,
    gradients: tuple[bool, bool, bool],
    constancy: tuple[float, bool] = (1.0, False),
    device: str | None = None,
) -> Plan:
    k, m, n = S.shape
    i = x.shape[-1]
    o = mixing.channels(i)
    b = 1
    for extent in x.shape[:-2]:
        b *= int(extent)
    dx, dw, ds = gradients
    kind = str(x.dtype).removeprefix("torch.")
    kind = kind if kind in TYPES else "float32"  # other types are not measured
    last = strides(x)[-1] == 1 or i == 1
    dw, device = dw and mixing.shape is not None, device or x.device.type
    problem = Problem(b, i, o, x.element_size(), *constancy, dx, dw, kind, last, ds, device)
    candidates, admitted = [], {}
    for option in LOWERINGS:
        reason = option.refuses(S, mixing) or (option.limit and option.limit(S, mixing, problem))
        cost = None if reason else option.cost(S, mixing, problem)
        seconds = predict(option, cost, problem, form(S, mixing, b)) if cost else float("inf")
        candidates.append(Candidate(option.name, cost, seconds, reason))
        if cost:
            admitted[option.name] = (seconds, option)
    ends = [f"({plural(sites, 'site')}, {plural(channels, 'channel')})" for sites, channels in ((n, i), (m, o))]
    way = f"{' -> '.join(ends)}, {plural(k, 'tap')}, {x.dtype}"
    title = f"plan for {plural(b, 'signal')} of {way}{', backward pass included' * (dx or problem.dw or ds)}"
    if forced is not None:
        admitted = {name: pair for name, pair in admitted.items() if forced in (name, name.split(":")[0])}
        if not admitted:
            raise Inadmissible(_refusal(forced, candidates))
    least = min(seconds for seconds, _ in admitted.values())
    chosen = next(option for seconds, option in admitted.values() if seconds == least)  # torch.compile can trace this
    return Plan(title, tuple(candidates), chosen)


def _refusal(forced: str, candidates: list[Candidate]) -> str:
    reasons = [c.reason for c in candidates if forced in (c.name, c.name.split(":")[0])]
    if reasons:
        return f"The lowering {forced!r} cannot run this operator: {reasons[-1]}."
    names = sorted({c.name for c in candidates} | {c.name.split(":")[0] for c in candidates})
    return f"There is no lowering named {shown(forced)}; there are {', '.join(names)}."


def measured(made: Plan, S: Basis, call: Call, rounds: int = 5, axes: int = 0) -> Plan:
    """The plan with the measured seconds of each admitted candidate, the minimum over interleaved rounds.

    Args:
        made: the plan.
        S, call: the structure and the call that it is for.
        rounds: number of rounds for candidates that may be the fastest; two for the others.
        axes: as in `step_of`.
    """
    to_x, to_w = call.gradients
    W = None if call.W is None else call.W.detach().requires_grad_(to_w)
    call = Call(call.x.detach().requires_grad_(to_x), call.mixing, W)
    needed = any(leaf is not None and leaf.requires_grad for leaf in (call.x, W)) or bool(S.learned)
    backs = (False, True) if torch.is_grad_enabled() and needed else (False,)
    best = min(c.seconds for c in made.candidates)
    names = [c.name for c in made.candidates if c.cost and c.seconds <= max(LONG, SKIP * best)]
    options = [option for option in LOWERINGS if option.name in names]
    steps = {(o.name, back): step_of(o, S, call, back, axes) for o in options for back in backs}
    device = call.x.device
    least = take_turns(steps, 2, device=device)
    limit = CLOSE * min(least[name, backs[-1]] for name in names)
    again = {key: step for key, step in steps.items() if least[key[0], backs[-1]] <= limit}
    if len(again) > len(backs):
        least |= {key: min(least[key], seconds) for key, seconds in take_turns(again, rounds, device=device).items()}
    took = {name: tuple(least[name, back] for back in backs) for name in names}
    return replace(made, candidates=tuple(replace(c, measured=took.get(c.name, ())) for c in made.candidates))


def take_turns(
    steps: Mapping[Name, Callable[[], object]], rounds: int, lasts: float = 2e-3, device: torch.device = CPU
) -> dict[Name, float]:
    """Seconds per call of each step, the minimum over rounds.

    In each round a short step is repeated until it has taken about `lasts` seconds. Every other round runs the steps in
    reverse order. On a device other than the CPU, times include the synchronisation.
    """
    calls, least = {}, {}
    for name, step in steps.items():
        step()
        took = _seconds(step, 1, device)
        calls[name] = max(1, min(1000, int(lasts / max(took, 1e-7))))
        if calls[name] > 1:  # the first calls may have been slow
            took = _seconds(step, calls[name], device)
            calls[name] = max(1, min(1000, int(lasts / max(took, 1e-7))))
        least[name] = took
    for turn in range(rounds):
        for name in list(steps)[:: -1 if turn % 2 else 1]:
            least[name] = min(least[name], _seconds(steps[name], calls[name], device))
    return least


def _seconds(step: Callable[[], object], calls: int, device: torch.device) -> float:
    alone = device.type == "cpu"
    clock = time.process_time if alone and torch.get_num_threads() == 1 else time.perf_counter
    wait: Callable[[], object] = (lambda: None) if alone else partial(torch.accelerator.synchronize, device)
    wait()
    start = clock()
    for _ in range(calls):
        step()
    wait()
    return max(clock() - start, 1e-9) / calls  # 0 if the clock is coarse, as that of CPU time may be


def step_of(option: Lowering, S: Basis, call: Call, back: bool, axes: int = 0) -> Callable[[], object]:
    """A function that runs a lowering forward and, with `back`, computes the gradients in x, W and S that are required.

    Args:
        option: the lowering.
        S, call: its arguments.
        back: whether to include the backward pass.
        axes: number of axes of the grid if x is images (b, c, *grid), which lowerings on images take unchanged; else 0.
    """

    def run() -> Tensor:
        x = call.x
        if axes and option.images is not None:
            return option.images(S, call.at(x))
        again = call.at(x.flatten(-axes).mT if axes else x)
        return option.run(S.adapted(again), again)

    def forward() -> object:
        with torch.no_grad():
            return run()

    if not back:
        return forward
    leaves = [leaf for leaf in (call.x, call.W, *S.learned) if leaf is not None and leaf.requires_grad]
    with torch.no_grad():
        dy = torch.ones_like(run())

    def both() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(run(), leaves, dy)

    return both


def admitted(S: Basis, mixing: Mixing) -> list[str]:
    """The names of all lowerings that can run this structure and mixing."""
    return [option.name for option in LOWERINGS if option.refuses(S, mixing) is None]


def evaluate(
    S: Basis, mixing: Mixing, W: Tensor | None, x: Tensor, bias: Tensor | None = None, lowering: str | None = None
) -> Tensor:
    """Y = sum_k S_k X W_k + b by the planned lowering, (*b, n, i) -> (*b, m, o)."""
    call = Call(x, mixing, W, bias)
    return plan(S, call, lowering).chosen.run(S, call)


def backward(S: Basis, mixing: Mixing, W: Tensor, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients without autograd: dX = sum_k S_k^T dY W_k^T and dW_k = (S_k X)^T dY, for a dense mixing.

    Args:
        S, mixing, W, x: as in `evaluate`, with a dense mixing.
        dy: the gradient with respect to the output, (*b, m, o).

    Returns:
        (dX, dW), shaped as x and W.

    Raises:
        TypeError: if the mixing is not dense.
    """
    if not mixing.is_dense:
        raise TypeError(f"backward supports a dense mixing only, not {type(mixing).__name__}.")
    flipped, W_t = mixing.transpose(W, x.shape[-1])
    dx = evaluate(S.T, flipped, W_t, dy)
    dw = torch.einsum("...kmi,...mo->kio", S.expand(x), dy)
    return dx, dw * mixing.scale
