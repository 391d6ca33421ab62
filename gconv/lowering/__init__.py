"""Algorithms for Y = sum_k S_k X W_k + b. All have the same signature; `dense` is the reference implementation."""

from gconv.lowering.base import Cost, Lowering, Work
from gconv.lowering.dense import DENSE
from gconv.lowering.fft import FFT, GFT
from gconv.lowering.im2col import IM2COL
from gconv.lowering.images import on_images
from gconv.lowering.native import NATIVE
from gconv.lowering.sparse import RECURRENCE_AGGREGATE, RECURRENCE_TRANSFORM, SPARSE_AGGREGATE, SPARSE_TRANSFORM

LOWERINGS: tuple[Lowering, ...] = (
    NATIVE,
    IM2COL,
    FFT,
    GFT,
    SPARSE_AGGREGATE,
    SPARSE_TRANSFORM,
    RECURRENCE_AGGREGATE,
    RECURRENCE_TRANSFORM,
    DENSE,
)

__all__ = ["LOWERINGS", "Cost", "Lowering", "Work", "on_images"]
