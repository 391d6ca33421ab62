"""Lowering: an algorithm that evaluates an operator, and the description of its cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gconv.basis import Basis
from gconv.call import Call
from gconv.kernels import widens
from gconv.mixing import Mixing

PAGE = 4096  # bytes: addresses that differ by a multiple map to the same set of the L1 cache
Run = Callable[[Any, Call], Tensor]  # (S, call) -> y, for an S that `refuses` accepts


@dataclass(frozen=True)
class Work:
    """A step of an algorithm, and what its predicted time depends on.

    Args:
        kind: a kind of work in `gconv.rates`, or "gather": reading rows of a table through an index.
        amount: flops, bytes, entries or calls.
        size: the argument of the throughput curve; for "gather" the bytes of a row.
        table: for "gather", the bytes of the table, which determine whether its rows are in a cache.
    """

    kind: str
    amount: float
    size: float = 1.0
    table: float = 0.0


@dataclass(frozen=True)
class Cost:
    """The cost of a call.

    Args:
        flops: of the forward pass.
        bytes: memory traffic of the forward pass.
        peak: bytes of the largest array that the forward pass allocates.
        work: the steps from which the time is predicted: the forward pass, and the backward pass for the gradients that
            are needed.
    """

    flops: float
    bytes: float
    peak: float = 0.0
    work: tuple[Work, ...] = ()

    def __add__(self, other: Cost) -> Cost:
        peak = max(self.peak, other.peak)
        return Cost(self.flops + other.flops, self.bytes + other.bytes, peak, self.work + other.work)


@dataclass(frozen=True)
class Problem:
    """The sizes and options that a cost depends on.

    Args:
        b: number of signals.
        i, o: channels in and out.
        item: bytes per number.
        density: fraction of x that a product X W reads (below 1 if x is constant and stored as a sparse matrix).
        constant: whether S x is computed once and cached.
        dx, dw: whether the gradients in x, and in the weight, are needed.
        kind: dtype, as a name in `gconv.rates.TYPES`.
        last: whether the channels of a site are contiguous in memory.
        ds: whether the gradient in the parameters of S is needed.
        device: its type, "cpu" or "cuda".
    """

    b: int
    i: int
    o: int
    item: int
    density: float = 1.0
    constant: bool = False
    dx: bool = False
    dw: bool = False
    kind: str = "float32"
    last: bool = True
    ds: bool = False
    device: str = "cpu"

    @property
    def passes(self) -> int:
        """Number of matrix products with the weight: one forward, and one for each gradient."""
        return 1 + self.dx + self.dw

    def product(self, flops: float, inner: float, outer: float) -> tuple[Work, ...]:
        """X W with W (inner, outer), and dX = dY W^T and dW = X^T dY if needed; `flops` each."""
        if self.kind == "bfloat16":
            kind = "gemm widened" if widens() else "gemm bfloat16"
            return (Work(kind, flops * self.passes, max(1.0, min(inner, outer))),)
        kind = f"gemm {self.kind}"
        works = [Work(kind, flops * (1 + self.dw), outer), Work(f"{kind} inner", flops * (1 + self.dw), inner)]
        if self.dx:
            works += [Work(kind, flops, inner), Work(f"{kind} inner", flops, outer)]
        return tuple(works)

    def turn(self, n: int) -> tuple[Work, ...]:
        """The conversion of x with n sites to channels last, if it is not, and of its gradient back."""
        numbers = float(self.b) * n * self.i * (1 + self.dx)
        conflicts = self.i * math.gcd(n * self.item, PAGE) / PAGE
        return () if self.last else (Work("turn", self.item * numbers, max(1.0, conflicts)),)

    def turned(self, numbers: float) -> Work:
        """A change of memory layout of this many numbers."""
        return Work("turn", self.item * numbers)

    def stream(self, numbers: float, passes: float) -> Work:
        """Passes over an array of this many numbers."""
        return Work("stream", self.item * numbers * passes, self.item * numbers)


@dataclass(frozen=True)
class Lowering:
    """One algorithm.

    Args:
        name: the value of `lowering=`; "sparse" selects from "sparse:aggregate" and "sparse:transform".
        run: (S, call) -> y, with call.x (*b, n, i) and y (*b, m, o).
        refuses: returns why it cannot run a structure with a mixing, or None if it can.
        cost: of the forward pass, with the work of the backward pass for the gradients that the problem needs.
        limit: returns why it cannot run a problem of this size, or None if it can.
        images: the same as `run` with call.x (b, i, *grid), for algorithms that work on images.
        prepare: returns a faster `run` for later calls on the same S whose signal has the shape, dtype and layout of
            this call's signal and requires the same gradients, or None.
    """

    name: str
    run: Run
    refuses: Callable[[Basis, Mixing], str | None]
    cost: Callable[[Any, Mixing, Problem], Cost]
    limit: Callable[[Any, Mixing, Problem], str | None] | None = None
    images: Run | None = None
    prepare: Callable[[Any, Call], Run | None] | None = None


def add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias
