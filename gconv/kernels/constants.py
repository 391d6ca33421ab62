"""Signals that do not change: what follows from them alone is computed once and kept.

The features of a citation network are the same in every step of a training, and 98.7 % of Cora's are zeros. Declared
constant, a signal is multiplied through its sparse form where that pays, and S x is computed once for each S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gconv.caches import WeakCache
from gconv.kernels.gemm import matmul
from gconv.kernels.sparse import CSR, spmm, unrecorded
from gconv.kernels.transforms import is_plain_eager

SPARSE = 0.2  # share of non-zeros below which the sparse form is used
COMPARED = 1 << 14  # numbers that are compared in each call
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # as whole numbers a NaN is equal to itself


@dataclass
class Constant:
    """What is known of a constant signal.

    Args:
        version: of the tensor when it was declared; another one means that somebody has written into it.
        density: its share of non-zeros.
        sparse: its pattern, its values in row order and in that of the transpose; None where it is dense.
        some, copy: numbers of the tensor, as bits, and what they were when it was declared.
        expanded: S x, for each S that has met it.
    """

    version: int
    density: float
    sparse: tuple[CSR, Tensor, Tensor] | None
    some: Tensor
    copy: Tensor
    expanded: WeakKeyDictionary[Any, Tensor] = field(default_factory=WeakKeyDictionary)

    def times(self, W: Tensor) -> Tensor:
        """X W through the sparse form; nothing is recorded."""
        assert self.sparse is not None
        csr, values, _ = self.sparse
        return unrecorded(csr, values, W)

    def xt_y(self, Y: Tensor) -> Tensor:
        """X^T Y through the sparse form; nothing is recorded."""
        assert self.sparse is not None
        csr, values, back = self.sparse
        return spmm(csr.T, back, Y, values)


def _drop_products() -> None:
    for found in list(_CONSTANTS.data.values()):
        found.expanded.clear()


_CONSTANTS = WeakCache("constant signals and their S x", _drop_products)


def constant(x: Tensor) -> Tensor:
    """A copy of x that layers may take for constant: its sparse form and S x are computed once, and kept with it.

    Meaning: give it the input features of a network that is trained on one graph, and pass the result to the first
    layer. The numbers are the same. It costs the sparse form or S x in memory, for as long as the copy lives.

    Traps: a signal that is written into is no longer constant, and layers compute with what it holds. Writes that
    torch does not record, through `.data` or the array of `.numpy()`, are noticed in signals of up to 16384 numbers,
    which are compared in each call; of a larger one only some rows are, and on other devices none. After such a write,
    call `constant` again.

    Args:
        x: (n, c) a signal that needs no gradient.

    Raises:
        TypeError: if x is no matrix of floating point numbers.
        ValueError: if x needs a gradient.

    >>> x = constant(torch.eye(4))
    >>> known(x).density
    0.25
    """
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.dtype.is_floating_point:
        what = f"a tensor {tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise TypeError(f"constant takes a signal (n, c) of floating point numbers, not {what}.")
    if x.requires_grad:
        raise ValueError("This signal needs a gradient, so it is not constant; x.detach() cuts it off.")
    with torch.inference_mode(False):
        return declared(x.detach().clone())


def declared(x: Tensor, source: Tensor | None = None) -> Tensor:
    """x itself as a constant: a plain matrix that needs no gradient.

    Args:
        source: the tensor whose numbers are compared in each call, where x was made of another.
    """
    sparse, source = None, x if source is None else source
    density = float(torch.count_nonzero(x)) / max(1, x.numel())
    if density < SPARSE:
        row, col = x.nonzero(as_tuple=True)
        csr = CSR.build(row, col, *x.shape)
        values = csr.ordered(x[row, col])
        sparse = csr, values, values[csr.to_t]
    bits = source.detach().view(_BITS[source.itemsize])
    some = bits[:: max(1, source.numel() // COMPARED)]
    _CONSTANTS[x] = Constant(x._version, density, sparse, some, some.clone())
    return x


def known(x: Tensor) -> Constant | None:
    """What is known of x; None unless it is a constant that nobody has written into."""
    if torch.compiler.is_dynamo_compiling() or not _CONSTANTS.data or not is_plain_eager():
        return None
    return constant_of(x)


def constant_of(x: Tensor) -> Constant | None:
    """`known`, in a call that is known to be a plain eager one."""
    if not _CONSTANTS.data or x.requires_grad:
        return None
    found: Constant | None = _CONSTANTS.get(x)
    if found is None or found.version != x._version:
        return None
    return found if not x.is_cpu or torch.equal(found.some, found.copy) else None


def product(X: Tensor, W: Tensor) -> Tensor:
    """X W, (*b, n, i) (i, o) -> (*b, n, o), through the sparse form of a constant X that has one."""
    found = known(X)
    if found is None or found.sparse is None:
        return matmul(X, W)
    csr, values, back = found.sparse
    return spmm(csr, values, W, back)


def kept(S: Any, x: Tensor, expand: Callable[[Tensor], Tensor]) -> Tensor:
    """expand(x), S's product; kept where x is constant and S is not learned. A caller must not give it away."""
    found = known(x)
    if found is None:
        return expand(x)
    made: Tensor | None = found.expanded.get(S)
    if made is None:
        with torch.inference_mode(False):
            made = expand(x)
        if not made.requires_grad:
            found.expanded[S] = made
    return made
