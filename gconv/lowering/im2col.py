"""im2col: gather the inputs of all taps into an array (*b, m, k i), then one matrix product."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gconv.basis import Basis, Shifts
from gconv.call import Call
from gconv.kernels.narrow import LANES
from gconv.lowering.base import Cost, Lowering, Problem, Work, add_bias
from gconv.lowering.native import summed_often
from gconv.mixing import Mixing, Separable

SHORT = 8  # channels below which writing patches takes the same time per site
LIMIT = 8 << 30  # bytes of patches: arrays for 3-D kernels can reach tens of GB


def run(S: Shifts, call: Call) -> Tensor:
    if S.transposed and not call.mixing.apart:  # mix the channels first, then add up overlapping patches
        return add_bias(call.mixing.collect(S, call.spread()), call.bias)
    x = call.x
    wide = x.dtype in (torch.float16, torch.bfloat16) and summed_often(S)
    E = S.expand(x.float()).to(x.dtype) if wide else S.expand(x)
    return add_bias(call.mixing.gather(E, call.W), call.bias)


def refuses(S: Basis, mixing: Mixing) -> str | None:
    if not isinstance(S, Shifts):
        return f"it unfolds the shifts of a kernel on a grid, and this structure is {type(S).__name__}"
    return None


def _patches(S: Shifts, p: Problem) -> float:
    """The number of entries of the patches."""
    return float(p.b) * math.prod(S.out) * math.prod(S.kernel) * (p.o if S.transposed else p.i)


def limit(S: Shifts, mixing: Mixing, p: Problem) -> str | None:
    size = p.item * _patches(S, p)
    if size <= LIMIT:
        return None
    return f"it would write {size / 2**30:.3g} GiB of patches for this input, and its limit is {LIMIT / 2**30:.3g} GiB"


def cost(S: Shifts, mixing: Mixing, p: Problem) -> Cost:
    _, m, n = S.shape
    patches, width = _patches(S, p), max(1, p.o if S.transposed else p.i)
    written = patches * max(1.0, SHORT / width)  # copies of few channels are slow
    groups = mixing.groups
    flops = float(mixing.flops((n if S.transposed else m) * p.b, p.i))
    work = (
        *([p.turned(2 * patches * p.passes)] if groups > 1 else []),
        *(
            [Work("turn", 12.0 * patches * min(1.0, LANES / max(1, p.i)) * p.passes)]
            if isinstance(mixing, Separable)
            else []
        ),
        *p.turn(n if S.transposed else min(n, math.prod(S.kernel) * m)),
        *([] if mixing.shape is None else [p.turned(float(math.prod(mixing.shape)) * p.passes)]),
        *([p.stream(float(p.b) * m * p.o, 2)] if S.transposed else []),
        p.stream(written, 4 * (1 + (p.dw if S.transposed else p.dx)) + 12.0 * (p.dx and not S.linear)),
        *p.product(
            flops, *((p.i / groups, mixing.width(p.i) / groups) if S.transposed else (mixing.fan_in, p.o / groups))
        ),
        Work("slice", (math.prod(S.kernel) + 3.0 * S.is_padded) * (1.0 + 5.0 * p.dx)),
    )
    traffic = p.item * (3 * patches + float(p.b) * (n * p.i + m * p.o))
    return Cost(flops, traffic, p.item * patches, work)


IM2COL = Lowering("im2col", run, refuses, cost, limit)
