"""sparse and recurrence: the two associations of the triple product S X W over sparse structure.

    aggregate first   gather the neighbours, then mix:   sum_k (S_k X) W_k      work on S grows with i
    transform first   mix, then gather:                  sum_k S_k (X W_k)      work on S grows with o

For a polynomial, `expand` is its recurrence at the input width and `contract` is Clenshaw's at the output width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gconv.basis import AttentionTaps, Basis, Diagonal, Identity, Polynomial, Product, SharedTaps, Shifts, Stack, Taps
from gconv.call import Call
from gconv.kernels import faked, kept
from gconv.kernels.narrow import LANES
from gconv.kernels.transforms import PLAIN
from gconv.lowering import batches, single, steps
from gconv.lowering.base import Cost, Lowering, Problem, Run, Work, add_bias
from gconv.mixing import Dense, Heads, Mixing, Separable

WRITTEN = 8  # passes over its entries in which attention is written out
SPREAD = 32.0  # numbers that share a place of the nearest cache, where single ones are laid out anew


def _sparse_form(S: Basis, x: Tensor) -> Basis:
    if isinstance(S, Stack) and any(isinstance(part, AttentionTaps) for part in S.parts):
        return Stack(tuple(_sparse_form(part, x) for part in S.parts))
    if isinstance(S, AttentionTaps):
        return S.written
    return faked(S.taps(x.dtype, x.device), x) if isinstance(S, Shifts) else S


def _expanded(S: Basis, x: Tensor) -> Tensor:
    """All S_k x; of a constant signal computed once."""
    S = _sparse_form(S, x)
    return S.expand(x) if isinstance(S, Identity) else kept(S, x, S.expand)


def _fixed(S: Basis, call: Call, aggregate: bool) -> Tensor | None:
    """The result where S is fixed: a few signals or rows at a time where there are many, or in one step."""
    mixing, W, x, bias = call.mixing, call.W, call.x, call.bias
    at_hand = aggregate and call.constant is not None  # all S_k x
    if isinstance(mixing, Dense) and W is not None and not at_hand:
        for way in (single, batches, steps):
            if way.serves(S, x, W):
                return way.mixed(S, x, mixing.dense(W, x.shape[-1]), bias, aggregate)
    return None


def aggregate_first(S: Basis, call: Call) -> Tensor:
    mixing, W, x, bias = call.mixing, call.W, call.x, call.bias
    if not isinstance(mixing, Dense):
        return _apart(add_bias(mixing.gather(_expanded(S, x), W), bias), S, call)
    assert W is not None
    done = _fixed(_sparse_form(S, x), call, True)
    if done is not None:
        return done
    if not isinstance(S, Stack):
        return mixing.gather(_expanded(S, x), W, bias)
    y = bias  # part by part: nothing is laid side by side
    for part, (own, W_part) in zip(S.parts, mixing.split(W, [part.shape[0] for part in S.parts]), strict=True):
        y = own.gather(_expanded(part, x), W_part, y)
    assert y is not None
    return y


def transform_first(S: Basis, call: Call) -> Tensor:
    mixing, bias = call.mixing, call.bias
    heads = S.fused(call) if isinstance(mixing, Heads | Dense) else None
    if heads is not None and isinstance(mixing, Heads | Dense):
        y = mixing.joined(heads, call.products())
        return y.clone() if bias is None else y + bias  # the derivative reads what the kernel made
    form = _sparse_form(S, call.x)
    done = _fixed(form, call, False)
    if done is not None:
        return done
    return _apart(add_bias(mixing.collect(form, call.spread()), bias), S, call)


def _apart(y: Tensor, S: Basis, call: Call) -> Tensor:
    """y in memory of its own, where x, what is kept of a constant x, or what a maximum's derivative reads may be it."""
    if call.bias is not None or call.mixing.shape is not None:
        return y  # a sum or a product
    return y.clone() if isinstance(S, Identity) or not S.linear or call.constant is not None else y


def _prepared(run: Run, aggregate: bool) -> Callable[[Basis, Call], Run | None]:
    """`run` for signals like x: one step, the products of which are made ready."""

    def prepare(S: Basis, call: Call) -> Run | None:
        mixing, x = call.mixing, call.x
        if type(mixing) is not Dense or x.ndim != 2 or x.layout != torch.strided or not x.is_contiguous():
            return None
        form, constant = _sparse_form(S, x), call.constant is not None
        if aggregate and constant:
            return None
        if not (steps.is_small(x, mixing.taps) and single.fixed(form) and steps.is_plain_call(x, x)):
            return None
        step, shape = steps.Step(form, aggregate, (mixing.i, mixing.o), x.dtype, constant), mixing.shape

        def quick(S: Basis, call: Call) -> Tensor:
            mixing, W, x, bias = call.mixing, call.W, call.x, call.bias
            usual = type(W) in PLAIN and W.shape == shape and W.dtype == x.dtype  # type: ignore[union-attr]
            if not usual or torch.is_autocast_enabled("cpu") or (bias is not None and not _ordinary(bias, x, shape[2])):
                return run(S, call)
            return step(x, mixing.dense(W, shape[1]), bias)

        return quick

    return prepare


def _ordinary(bias: Tensor, x: Tensor, o: int) -> bool:
    return bias.shape == (o,) and bias.dtype == x.dtype and bias.is_cpu and bias.is_contiguous()


def _leaves(S: Basis) -> list[Basis]:
    return [leaf for part in S.parts for leaf in _leaves(part)] if isinstance(S, Stack | Product) else [S]


def _refuses_sparse(S: Basis, mixing: Mixing) -> str | None:
    if isinstance(S, Diagonal) or any(isinstance(leaf, Polynomial) for leaf in _leaves(S)):
        return f"it runs structure by its entries, and this structure is {type(S).__name__}"
    if torch.compiler.is_compiling() and any(isinstance(leaf, Shifts) for leaf in _leaves(S)):
        return "a compiler cannot write out the entries of a kernel's shifts"
    if isinstance(S, Shifts) and not S.linear and S.has_empty_windows:
        return "a window lies wholly in the padding, and so has no entries to take the maximum of"
    return None


def _refuses_recurrence(S: Basis, mixing: Mixing) -> str | None:
    if any(isinstance(leaf, Polynomial) for leaf in _leaves(S)):
        return None
    return f"it runs polynomials of a sparse matrix, and this structure is {type(S).__name__}"


def _refuses_transform(S: Basis, mixing: Mixing) -> str | None:
    if not S.linear:
        return "a tap reduces with max, which does not commute with mixing the channels"
    if mixing.apart and not all(isinstance(leaf, Taps | SharedTaps | AttentionTaps | Identity) for leaf in _leaves(S)):
        return "the taps write apart, which only labelled sparse entries can do tap by tap"
    return None


def _gather(S: Basis, p: Problem, width: int, into: float, back: bool) -> Cost:
    """A sparse product at `width` channels and, with `back`, its transpose; the sampled one for what S learns.

    It reads a row of x for each entry and writes `into` rows a signal.
    """
    n = S.shape[2]
    rows, out = S.nnz * width * p.b, into * width * p.b
    row = p.item * (min(p.b, LANES) if width == 1 and S.linear else width)  # signals of one channel go side by side
    steps = sum(leaf.recurrence.terms for leaf in _leaves(S) if isinstance(leaf, Polynomial))
    table = 0.0 if isinstance(S, Shifts) else float(row * n)
    linear, read = S.linear, p.item * rows
    work = (
        Work("gather" if linear else "scatter", read * (1 + back * linear), row, table),
        Work("scatter back", read * back * (not linear), row),
        p.stream(out, 1 + back),
        Work("stream", 8.0 * S.nnz * p.b * (1 + back), 8.0 * S.nnz),
        Work("call", (steps + len(_leaves(S)) - 1) * (1 + back)),
        Work("sampled", float(p.item * rows * p.ds), row),
    )
    return Cost(2.0 * rows, p.item * (rows + 2.0 * out) + 12.0 * S.nnz, p.item * out, work)


def _mix(mixing: Mixing, p: Problem, sites: int, rows: float, columns: float, spread: bool = False) -> Cost:
    """The channels mixed at so many sites by a matrix (rows, columns); `spread`: before the structure."""
    numbers = float(p.b) * sites * (p.i * p.density + p.o)
    flops = mixing.flops(sites * p.b, p.i) * p.density
    work: tuple[Work, ...]
    if p.density < 1:  # x is sparse itself, and gathers rows of the weight
        width = mixing.width(p.i)
        row = float(p.item * width)
        work = (Work("gather", flops / 2 * p.item * p.passes, row, row * p.i),)
    elif mixing.shape is None:
        work = (p.stream(flops / 2, 1 + p.dx),)
    elif isinstance(mixing, Separable):  # each tap's multiple of x is made
        wide = float(p.b) * mixing.taps * sites * p.i
        product = 2.0 * p.o * (wide if spread else wide / mixing.taps)
        work = (*p.product(product, p.i, p.o), Work("turn", 12.0 * wide * min(1.0, LANES / max(1, p.i)) * p.passes))
    else:
        groups = getattr(mixing, "groups", 1)
        if isinstance(mixing, Heads) and not spread and p.kind != "bfloat16":  # a product for each head
            work = (Work("gemm heads", flops * p.passes * p.item / 4, float(mixing.c)),)
        else:
            work = p.product(flops, rows / groups, columns / groups)
        if not isinstance(mixing, Heads):
            work += (p.turned(float(math.prod(mixing.shape)) * p.passes),)  # its weight lies as torch wants it
        if groups > 1:  # the channels of a group are brought together, by copies
            array = float(p.b) * sites * max(rows, columns)
            work += (p.turned(2 * array * p.passes),)
    return Cost(flops, p.item * numbers, p.item * numbers, work)


def cost_aggregate(S: Basis, mixing: Mixing, p: Problem) -> Cost:
    if _in_parts(S, mixing, p):
        return _parts_cost(S, mixing, p, True)
    k, m, _ = S.shape
    groups = getattr(mixing, "groups", 1)
    mixed = _mix(mixing, replace(p, density=1.0, dx=p.dx or p.ds), m, mixing.fan_in * groups, p.o)  # S x is not sparse
    heads = (Work("slice", 3.0),) if mixing.apart else ()  # a product for each tap
    if not p.constant:
        if p.i == 1 and p.b > 1 and k > 1:  # the taps of a site come to lie side by side, number by number
            heads = (*heads, Work("turn", float(p.item * p.b) * m * k, SPREAD))
        mixed += Cost(0.0, 0.0, 0.0, (*p.turn(S.shape[2]), *heads))
        apart = sum(leaf.nnz for leaf in _leaves(S) if isinstance(leaf, AttentionTaps))  # is written out for this
        mixed += Cost(0.0, 0.0, 0.0, (p.stream(apart, WRITTEN * p.passes),) if apart else ())
        return _gather(S, p, p.i, float(m * k), p.dx) + mixed
    return mixed  # S x is at hand


def cost_transform(S: Basis, mixing: Mixing, p: Problem) -> Cost:
    if _in_parts(S, mixing, p):
        return _parts_cost(S, mixing, p, False)
    width = max(1, mixing.width(p.i) // S.shape[0])
    k, m, n = S.shape
    into = float(m * (k if mixing.apart else 1)) + float(n * k)  # what is mixed is written too
    turned = Cost(0.0, 0.0, 0.0, p.turn(n) if mixing.shape is None else ())
    return _gather(S, p, width, into, p.dx or p.dw) + _mix(mixing, p, n, p.i, mixing.width(p.i), True) + turned


def _in_parts(S: Basis, mixing: Mixing, p: Problem) -> bool:
    """Whether signals or rows go through a few at a time, as `batches.serves` and `single.serves` say."""
    k, m, n = S.shape
    if p.ds or p.constant or not (S.linear and isinstance(mixing, Dense)):
        return False
    if p.b == 1:
        leaves = _leaves(S)
        fixed = all(isinstance(leaf, Polynomial | Taps | SharedTaps | Identity) for leaf in leaves)
        return fixed and n * p.i * p.item * k > single.LARGE
    form = isinstance(S, Shifts | Polynomial | Taps | SharedTaps)
    return form and p.b * p.i * p.item * k * max(m, n) > 4 * batches.CHUNK


def _parts_cost(S: Basis, mixing: Mixing, p: Problem, aggregate: bool) -> Cost:
    """A few signals or rows at a time, backward at the narrower side whatever the forward pass took."""
    k, m, n = S.shape
    times = (p.dx + p.dw) if p.i < p.o else int(p.dx or p.dw)
    work: list[Work] = []
    for often, width in ((1, p.i if aggregate else p.o), (times, min(p.i, p.o))):
        step = min(p.b, max(1, batches.CHUNK // max(1, p.item * width * k * max(m, n))))
        made = _gather(S, replace(p, b=step), width, float(max(m, n) * k), False)
        for w in made.work:  # what is made on the way stays in the cache
            size = min(w.size, batches.CHUNK) if w.kind == "stream" else w.size
            work.append(replace(w, amount=w.amount * often * p.b / step, size=size))
    mixed = _mix(mixing, p, m if aggregate else n, mixing.fan_in if aggregate else p.i, p.o if aggregate else k * p.o)
    numbers = float(p.b) * (n * p.i + m * p.o)
    work += [p.stream(numbers, p.passes), *p.turn(n)]
    rows = float(S.nnz) * p.b * (p.i if aggregate else p.o)
    return Cost(2.0 * rows, p.item * (rows + numbers), p.item * float(p.b) * m * p.o, tuple(work)) + mixed


def _transform(refuses_form: Callable[[Basis, Mixing], str | None]) -> Callable[[Basis, Mixing], str | None]:
    return lambda S, mixing: refuses_form(S, mixing) or _refuses_transform(S, mixing)


SPARSE_AGGREGATE = Lowering(
    "sparse:aggregate", aggregate_first, _refuses_sparse, cost_aggregate, prepare=_prepared(aggregate_first, True)
)
SPARSE_TRANSFORM = Lowering(
    "sparse:transform",
    transform_first,
    _transform(_refuses_sparse),
    cost_transform,
    prepare=_prepared(transform_first, False),
)
RECURRENCE_AGGREGATE = replace(SPARSE_AGGREGATE, name="recurrence:aggregate", refuses=_refuses_recurrence)
RECURRENCE_TRANSFORM = replace(SPARSE_TRANSFORM, name="recurrence:transform", refuses=_transform(_refuses_recurrence))
