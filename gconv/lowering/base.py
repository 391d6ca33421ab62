"""What a lowering is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gconv.basis import Basis
from gconv.mixing import Mixing

Run = Callable[[Basis, Mixing, Tensor | None, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Cost:
    """What one forward pass needs: arithmetic, memory traffic, and the largest array it makes, in bytes."""

    flops: float
    bytes: float
    peak: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes, max(self.peak, other.peak))


@dataclass(frozen=True)
class Problem:
    """What a cost depends on: b signals of i channels, o out, `item` bytes a number.

    Args:
        density: share of x that a product X W has to read (below 1 where a constant x has a sparse form).
        constant: whether S x is computed once and kept.
    """

    b: int
    i: int
    o: int
    item: int
    density: float = 1.0
    constant: bool = False


@dataclass(frozen=True)
class Lowering:
    """One algorithm.

    Args:
        name: what `lowering=` takes; "sparse:transform" also answers to "sparse".
        run: (S, mixing, W, x, bias) -> y, with x (*b, n, i) and y (*b, m, o).
        refuses: why it cannot run a structure with a mixing, or None if it can.
        cost: of one forward pass.
        efficiency: share of the machine's rates that this kind of code reaches, at most 1.
        images: the same as `run` on x (b, i, *grid), where the algorithm works on images anyway.
    """

    name: str
    run: Run
    refuses: Callable[[Basis, Mixing], str | None]
    cost: Callable[[Basis, Mixing, Problem], Cost]
    efficiency: float = 1.0
    images: Run | None = None


def add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias
