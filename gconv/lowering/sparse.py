"""sparse and recurrence: the two associations of the triple product S X W with sparse structure.

    aggregate first   gather from neighbours, then mix channels:   sum_k (S_k X) W_k      work on S grows with i
    transform first   mix channels, then gather:                   sum_k S_k (X W_k)      work on S grows with o

For a polynomial, `expand` is its recurrence with i channels and `contract` is Clenshaw's algorithm with o channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gconv.basis import Basis
from gconv.call import Call
from gconv.kernels import as_fake, kept
from gconv.kernels.narrow import LANES
from gconv.lowering import fixed
from gconv.lowering.base import Cost, Lowering, Problem, Run, Work, add_bias
from gconv.mixing import Heads, Mixing, Separable

WRITTEN = 8  # passes over the entries that it takes to compute and store the values of attention
SPREAD = 32.0  # size of the work "turn" when single numbers are permuted


def _form(S: Basis, call: Call) -> Basis:
    form = S.as_sparse(call.x.dtype, call.x.device)
    return form if call.kind == "eager" or not S.is_grid else as_fake(form, call.x)


def _expanded(S: Basis, x: Tensor) -> Tensor:
    """All S_k x; cached for a constant signal."""
    return S.expand(x) if S.is_identity else kept(S, x, S.expand)


def aggregate_first(S: Basis, call: Call) -> Tensor:
    mixing, W, x, bias = call.mixing, call.W, call.x, call.bias
    form = _form(S, call)
    if not mixing.is_dense:
        return _copy_if_shared(add_bias(mixing.gather(_expanded(form, x), W), bias), form, call)
    assert W is not None
    if call.constant is None and fixed.applies(form, call):
        return fixed.mixed(form, x, W if mixing.scale == 1.0 else W * mixing.scale, bias, True, None)
    y = bias  # leaf by leaf, without concatenating the results
    for leaf, (own, W_leaf) in zip(form.leaves, mixing.split(W, form.taps_of_leaves), strict=True):
        y = own.gather(_expanded(leaf, x), W_leaf, y)
    assert y is not None
    return y


def transform_first(S: Basis, call: Call) -> Tensor:
    mixing, W, x, bias = call.mixing, call.W, call.x, call.bias
    heads = None if call.cached is None else S.fused(call)
    if heads is not None:
        y = mixing.joined(heads, call.products())
        return y.clone() if bias is None else y + bias  # the backward pass reads y, which the caller may modify
    form = _form(S, call)
    if mixing.is_dense and W is not None and fixed.applies(form, call):
        constant = call.constant if call.constant is not None and call.constant.sparse is not None else None
        return fixed.mixed(form, x, W if mixing.scale == 1.0 else W * mixing.scale, bias, False, constant)
    return _copy_if_shared(add_bias(mixing.collect(form, call.spread()), bias), form, call)


def _copy_if_shared(y: Tensor, S: Basis, call: Call) -> Tensor:
    """y, copied if it may be x, a cached S x, or a tensor saved for the backward pass of a maximum."""
    if call.bias is not None or call.mixing.shape is not None:
        return y  # y is the result of a sum or product, and so a new tensor
    shared = S.is_identity or not S.linear or call.constant is not None
    return y.clone() if shared or (call.kind == "eager" and not S.nnz) else y  # in a trace, nnz would become a constant


def _prepare(gathers: bool) -> Callable[[Basis, Call], Run | None]:
    """`Lowering.prepare` of the two algorithms, for a fixed S with a dense mixing."""
    run = aggregate_first if gathers else transform_first

    def prepare(S: Basis, call: Call) -> Run | None:
        mixing = call.mixing
        if not mixing.is_dense or mixing.scale != 1.0 or call.W is None or (gathers and call.constant is not None):
            return None
        return fixed.prepared(_form(S, call), call, gathers, run)

    return prepare


def _refuses_sparse(S: Basis, mixing: Mixing) -> str | None:
    if not S.by_entries:
        return f"it runs structure by its entries, and this structure is {type(S).__name__}"
    if torch.compiler.is_compiling() and S.is_grid:
        return "the entries of a kernel's shifts cannot be computed in a compiled function"
    if S.has_empty_windows and not S.linear:
        return "a window lies entirely in the padding, and so has no entries to take the maximum of"
    return None


def _refuses_recurrence(S: Basis, mixing: Mixing) -> str | None:
    return None if S.steps else f"it runs polynomials of a sparse matrix, and this structure is {type(S).__name__}"


def _refuses_transform(S: Basis, mixing: Mixing) -> str | None:
    if not S.linear:
        return "a tap reduces with max, which does not commute with mixing the channels"
    if mixing.apart and not S.tapwise:
        return f"each tap writes its own channels, which needs products tap by tap, and {type(S).__name__} has none"
    return None


def _gather(S: Basis, p: Problem, width: int, into: float, back: bool) -> Cost:
    """A sparse product with `width` channels, with `back` its transpose, and a sampled product if S is learned.

    It reads a row of x for each entry and writes `into` rows per signal.
    """
    n = S.shape[2]
    rows, out = S.nnz * width * p.b, into * width * p.b
    linear = S.linear
    item = p.item if linear else max(4, p.item)  # maxima are computed in float32 or float64
    row = item * (min(p.b, LANES) if width == 1 and linear else width)  # signals of one channel are interleaved
    table = 0.0 if S.is_grid else float(row * n)
    read = item * rows
    work = (
        Work("gather" if linear else "scatter", read * (1 + back * linear), row, table),
        Work("scatter back", read * back * (not linear), row),
        p.stream(out, 1 + back),
        Work("stream", 8.0 * S.nnz * p.b * (1 + back), 8.0 * S.nnz),
        Work("call", (S.steps + S.count - 1) * (1 + back)),
        Work("sampled", float(p.item * rows * p.ds), row),
    )
    return Cost(2.0 * rows, p.item * (rows + 2.0 * out) + 12.0 * S.nnz, p.item * out, work)


def _mix(mixing: Mixing, p: Problem, sites: int, rows: float, columns: float, spread: bool = False) -> Cost:
    """A product of the channels at `sites` sites with a matrix (rows, columns); `spread`: before the structure."""
    numbers = float(p.b) * sites * (p.i * p.density + p.o)
    flops = mixing.flops(sites * p.b, p.i) * p.density
    work: tuple[Work, ...]
    if p.density < 1:  # x is a sparse matrix, whose product gathers rows of the weight
        width = mixing.width(p.i)
        row = float(p.item * width)
        work = (Work("gather", flops / 2 * p.item * p.passes, row, row * p.i),)
    elif mixing.shape is None:
        work = (p.stream(flops / 2, 1 + p.dx),)
    elif isinstance(mixing, Separable):  # x is multiplied by the filter of each tap
        wide = float(p.b) * mixing.taps * sites * p.i
        product = 2.0 * p.o * (wide if spread else wide / mixing.taps)
        work = (*p.product(product, p.i, p.o), Work("turn", 12.0 * wide * min(1.0, LANES / max(1, p.i)) * p.passes))
    else:
        groups = mixing.groups
        if isinstance(mixing, Heads) and not spread and p.kind != "bfloat16":  # one product per head
            work = (Work("gemm heads", flops * p.passes * p.item / 4, float(mixing.c)),)
        else:
            work = p.product(flops, rows / groups, columns / groups)
        if not mixing.apart:
            work += (p.turned(float(math.prod(mixing.shape)) * p.passes),)  # the weight is stored in torch's layout
        if groups > 1:  # copies that make the channels of each group contiguous
            array = float(p.b) * sites * max(rows, columns)
            work += (p.turned(2 * array * p.passes),)
    return Cost(flops, p.item * numbers, p.item * numbers, work)


def cost_aggregate(S: Basis, mixing: Mixing, p: Problem) -> Cost:
    if _is_chunked(S, mixing, p):
        return _chunked_cost(S, mixing, p, True)
    k, m, _ = S.shape
    groups = mixing.groups
    mixed = _mix(mixing, replace(p, density=1.0, dx=p.dx or p.ds), m, mixing.fan_in * groups, p.o)  # S x is not sparse
    heads = (Work("slice", 3.0),) if mixing.apart else ()  # one product per tap
    if not p.constant:
        if p.i == 1 and p.b > 1 and k > 1:  # single numbers are permuted, so that the taps of a site are contiguous
            heads = (*heads, Work("turn", float(p.item * p.b) * m * k, SPREAD))
        mixed += Cost(0.0, 0.0, 0.0, (*p.turn(S.shape[2]), *heads))
        written = S.unwritten * (p.b if S.batch else 1)
        mixed += Cost(0.0, 0.0, 0.0, (p.stream(written, WRITTEN * p.passes),) if written else ())
        return _gather(S, p, p.i, float(m * k), p.dx) + mixed
    return mixed  # S x is cached


def cost_transform(S: Basis, mixing: Mixing, p: Problem) -> Cost:
    if _is_chunked(S, mixing, p):
        return _chunked_cost(S, mixing, p, False)
    width = max(1, mixing.width(p.i) // max(1, S.shape[0]))
    k, m, n = S.shape
    into = float(m * (k if mixing.apart else 1)) + float(n * k)  # all X W_k are written, too
    turned = Cost(0.0, 0.0, 0.0, p.turn(n) if mixing.shape is None else ())
    return _gather(S, p, width, into, p.dx or p.dw) + _mix(mixing, p, n, p.i, mixing.width(p.i), True) + turned


def _is_chunked(S: Basis, mixing: Mixing, p: Problem) -> bool:
    """Whether `fixed` processes the signals in chunks."""
    if p.ds or p.constant or not (S.linear and mixing.is_dense) or S.has_kernel:
        return False
    k, m, n = S.shape
    return fixed.chunks(p.i * p.item * k * (n if p.b == 1 else max(m, n)), p.b) != "all"


def _chunked_cost(S: Basis, mixing: Mixing, p: Problem, aggregate: bool) -> Cost:
    """The cost in chunks; the backward pass uses the side with fewer channels, whichever the forward pass used."""
    k, m, n = S.shape
    times = (p.dx + p.dw) if p.i < p.o else int(p.dx or p.dw)
    work: list[Work] = []
    for products, width in ((1, p.i if aggregate else p.o), (times, min(p.i, p.o))):
        step = min(p.b, max(1, fixed.CHUNK_BYTES // max(1, p.item * width * k * max(m, n))))
        chunk = _gather(S, replace(p, b=step), width, float(max(m, n) * k), False)
        for w in chunk.work:  # intermediates stay in cache
            size = min(w.size, fixed.CHUNK_BYTES) if w.kind == "stream" else w.size
            work.append(replace(w, amount=w.amount * products * p.b / step, size=size))
    mixed = _mix(mixing, p, m if aggregate else n, mixing.fan_in if aggregate else p.i, p.o if aggregate else k * p.o)
    numbers = float(p.b) * (n * p.i + m * p.o)
    work += [p.stream(numbers, p.passes), *p.turn(n)]
    rows = float(S.nnz) * p.b * (p.i if aggregate else p.o)
    return Cost(2.0 * rows, p.item * (rows + numbers), p.item * float(p.b) * m * p.o, tuple(work)) + mixed


def _transform(refuses_form: Callable[[Basis, Mixing], str | None]) -> Callable[[Basis, Mixing], str | None]:
    return lambda S, mixing: refuses_form(S, mixing) or _refuses_transform(S, mixing)


SPARSE_AGGREGATE = Lowering(
    "sparse:aggregate", aggregate_first, _refuses_sparse, cost_aggregate, prepare=_prepare(gathers=True)
)
SPARSE_TRANSFORM = Lowering(
    "sparse:transform", transform_first, _transform(_refuses_sparse), cost_transform, prepare=_prepare(gathers=False)
)
RECURRENCE_AGGREGATE = replace(SPARSE_AGGREGATE, name="recurrence:aggregate", refuses=_refuses_recurrence)
RECURRENCE_TRANSFORM = replace(SPARSE_TRANSFORM, name="recurrence:transform", refuses=_transform(_refuses_recurrence))
