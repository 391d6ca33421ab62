"""What a lowering is."""

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

PAGE = 4096  # bytes after which addresses meet in the same places of the nearest cache
Run = Callable[[Any, Call], Tensor]  # of a form that `refuses` lets through


@dataclass(frozen=True)
class Work:
    """A step and what its price depends on.

    Args:
        kind: of `gconv.rates`, or "gather": reading rows of a table through an index.
        amount: flops, bytes, entries or calls.
        size: what the rate depends on; of "gather" the bytes of a row.
        table: of "gather": the bytes that the rows lie in, which say whether they come from a cache.
    """

    kind: str
    amount: float
    size: float = 1.0
    table: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What a pass needs: arithmetic, memory traffic and the largest array it makes (bytes), all of the forward pass.

    `work` is what a plan prices, step by step: the forward pass, and the backward pass for the gradients it asks for.
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
    """What a cost depends on: b signals of i channels, o out, `item` bytes a number.

    Args:
        density: share of x that a product X W has to read (below 1 where a constant x has a sparse form).
        constant: whether S x is computed once and kept.
        dx, dw: whether the gradient in x, and in the weight, will be wanted.
        kind: of the numbers.
        last: whether the channels of a site lie side by side in memory.
        ds: whether the gradient in what S learns will be wanted.
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
        """How often a matrix product with the weight runs: forward, and once for each gradient."""
        return 1 + self.dx + self.dw

    def product(self, flops: float, inner: float, outer: float) -> tuple[Work, ...]:
        """X W with W (inner, outer), dX = dY W^T and dW = X^T dY, of so many flops each."""
        if self.kind == "bfloat16":
            kind = "gemm widened" if widens() else "gemm bfloat16"
            return (Work(kind, flops * self.passes, max(1.0, min(inner, outer))),)
        kind = f"gemm {self.kind}"
        works = [Work(kind, flops * (1 + self.dw), outer), Work(f"{kind} inner", flops * (1 + self.dw), inner)]
        if self.dx:
            works += [Work(kind, flops, inner), Work(f"{kind} inner", flops, outer)]
        return tuple(works)

    def turn(self, n: int) -> tuple[Work, ...]:
        """Laying the channels of x, of n sites, side by side, where they are not yet, and back for its gradient."""
        numbers = float(self.b) * n * self.i * (1 + self.dx)
        crowd = self.i * math.gcd(n * self.item, PAGE) / PAGE
        return () if self.last else (Work("turn", self.item * numbers, max(1.0, crowd)),)

    def turned(self, numbers: float) -> Work:
        """So many numbers laid out anew."""
        return Work("turn", self.item * numbers)

    def stream(self, numbers: float, passes: float) -> Work:
        """Passes over an array of so many numbers."""
        return Work("stream", self.item * numbers * passes, self.item * numbers)


@dataclass(frozen=True)
class Lowering:
    """One algorithm.

    Args:
        name: what `lowering=` takes; "sparse:transform" also answers to "sparse".
        run: (S, call) -> y, with call.x (*b, n, i) and y (*b, m, o).
        refuses: why it cannot run a structure with a mixing, or None if it can.
        cost: of one forward pass, and the work of the backward pass that the problem asks for.
        limit: why it cannot run a problem of this size, or None if it can.
        images: the same as `run` with call.x (b, i, *grid), where the algorithm works on images anyway.
    """

    name: str
    run: Run
    refuses: Callable[[Basis, Mixing], str | None]
    cost: Callable[[Any, Mixing, Problem], Cost]
    limit: Callable[[Any, Mixing, Problem], str | None] | None = None
    images: Run | None = None


def add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias
