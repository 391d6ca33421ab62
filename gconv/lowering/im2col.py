"""im2col: write out what every tap reads, (*b, m, k i), then one matrix product."""

from __future__ import annotations

from torch import Tensor

from gconv.basis import Basis, Shifts
from gconv.lowering.base import Cost, Lowering, Problem, add_bias
from gconv.mixing import Mixing

LIMIT = 8 << 30  # bytes: a 5-D patch array has been seen to ask for 64 GB


def run(S: Basis, mixing: Mixing, W: Tensor | None, x: Tensor, bias: Tensor | None) -> Tensor:
    k, m, _ = S.shape
    size = x.numel() // x.shape[-2] * m * k * x.element_size() if x.shape[-2] else 0
    if size > LIMIT:
        raise MemoryError(
            f"im2col would write {size / 2**30:.1f} GiB of patches for this input (limit {LIMIT / 2**30:.0f} GiB); "
            "use another lowering or a smaller batch."
        )
    if isinstance(S, Shifts) and S.transposed:  # the adjoint mixes first and folds the patches back
        return add_bias(mixing.collect(S, mixing.spread(x, W)), bias)
    return add_bias(mixing.gather(S.expand(x), W), bias)


def refuses(S: Basis, mixing: Mixing) -> str | None:
    if not isinstance(S, Shifts):
        return f"it unfolds the shifts of a kernel on a grid, and this structure is {type(S).__name__}"
    return None


def cost(S: Basis, mixing: Mixing, p: Problem) -> Cost:
    _, m, n = S.shape
    patches = float(p.b) * p.item * max(m, n) * S.nnz / max(1, m)
    transposed = isinstance(S, Shifts) and S.transposed
    patches *= p.o if transposed else p.i
    return Cost(
        float(mixing.flops((n if transposed else m) * p.b, p.i)),
        3 * patches + p.item * float(p.b) * (n * p.i + m * p.o),
        patches,
    )


IM2COL = Lowering("im2col", run, refuses, cost, 0.6)
