"""Sparse products as registered torch operators: compiled kernels on the CPU, Triton on CUDA, otherwise pure torch."""

from gconv.kernels import native
from gconv.kernels.attention import attention, attention_values
from gconv.kernels.constants import Constant, constant, constant_of, kept, known, product
from gconv.kernels.dot import dot_attention, dot_values, is_fused
from gconv.kernels.gemm import matmul, mm_padded, widens, xt_y
from gconv.kernels.heads import ends, heads_sddmm, heads_spmm, row_softmax, row_sums
from gconv.kernels.joint import joint_attention
from gconv.kernels.maximum import segment_max
from gconv.kernels.memory import empty
from gconv.kernels.native import ReadyRecurrence
from gconv.kernels.recurrence import clenshaw, filtered, terms
from gconv.kernels.registry import owned
from gconv.kernels.sparse import (
    CSR,
    in_order,
    ready,
    ready_recurrence,
    row_order,
    sddmm,
    spmm,
    spmm_rows,
    unrecorded,
    widened,
)
from gconv.kernels.transforms import (
    CallKind,
    as_fake,
    at_trace_time,
    bare,
    call_kind,
    composes,
    concrete,
    eagerly,
    is_batched,
    is_fake,
    is_jit_tracing,
    is_plain_eager,
    is_static,
    lasting,
    leave,
    may_interrupt,
    no_subclass,
    outside_transforms,
    portable,
    readable,
    shapes_only,
    tracing,
    transformed,
    untraced,
    varies,
    wrapped,
)

__all__ = [
    "CSR",
    "CallKind",
    "Constant",
    "ReadyRecurrence",
    "as_fake",
    "at_trace_time",
    "attention",
    "attention_values",
    "backend",
    "bare",
    "call_kind",
    "clenshaw",
    "composes",
    "concrete",
    "constant",
    "constant_of",
    "dot_attention",
    "dot_values",
    "eagerly",
    "empty",
    "ends",
    "filtered",
    "heads_sddmm",
    "heads_spmm",
    "in_order",
    "is_batched",
    "is_fake",
    "is_fused",
    "is_jit_tracing",
    "is_plain_eager",
    "is_static",
    "joint_attention",
    "kept",
    "known",
    "lasting",
    "leave",
    "matmul",
    "may_interrupt",
    "mm_padded",
    "no_subclass",
    "outside_transforms",
    "owned",
    "portable",
    "product",
    "readable",
    "ready",
    "ready_recurrence",
    "row_order",
    "row_softmax",
    "row_sums",
    "sddmm",
    "segment_max",
    "shapes_only",
    "spmm",
    "spmm_rows",
    "terms",
    "tracing",
    "transformed",
    "unrecorded",
    "untraced",
    "varies",
    "widened",
    "widens",
    "wrapped",
    "xt_y",
]


def backend() -> str:
    """The kernels in use on the CPU: "c-avx512", "c-avx2" or "c-base" if csr.c was compiled, else "torch".

    >>> backend() in ("c-avx512", "c-avx2", "c-base", "torch")
    True
    """
    return "torch" if native.LIBRARY is None else f"c-{native.LEVELS[native.LEVEL]}"
