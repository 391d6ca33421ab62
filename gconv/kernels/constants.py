"""Constant signals: their sparse form and the products S x are computed once and cached.

The features of a citation network are the same in every training step, and 98.7 % of Cora's are zeros. If a signal is
declared constant, products with a weight use its sparse form where that is faster, and S x is cached for each S.
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

SPARSE = 0.2  # fraction of non-zeros below which the sparse form is used
COMPARED = 1 << 14  # entries that are compared in each call
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # compared as integers: a NaN equals itself


@dataclass
class Constant:
    """The cached data of a constant signal.

    Args:
        version: of the tensor when it was declared; a different one means that it was modified.
        density: its fraction of non-zeros.
        sparse: its pattern, its values in row order and in the row order of the transpose; None if it is dense.
        some, copy: a view of some entries of the tensor, as integers, and a copy from when it was declared.
        expanded: S x, for each S.
    """

    version: int
    density: float
    sparse: tuple[CSR, Tensor, Tensor] | None
    some: Tensor
    copy: Tensor
    expanded: WeakKeyDictionary[Any, Tensor] = field(default_factory=WeakKeyDictionary)

    def times(self, W: Tensor) -> Tensor:
        """X W by the sparse form; no autograd."""
        assert self.sparse is not None
        csr, values, _ = self.sparse
        return unrecorded(csr, values, W)

    def xt_y(self, Y: Tensor) -> Tensor:
        """X^T Y by the sparse form; no autograd."""
        assert self.sparse is not None
        csr, values, back = self.sparse
        return spmm(csr.T, back, Y, values)


def _drop_products() -> None:
    for found in list(_CONSTANTS.data.values()):
        found.expanded.clear()


_CONSTANTS = WeakCache("constant signals and their S x", _drop_products)


def constant(x: Tensor) -> Tensor:
    """A copy of x that is declared constant: layers compute its sparse form and S x once, and cache them with it.

    Meaning: for the input features of a network that is trained on one graph; pass the result to the first layer. The
    outputs are the same. The sparse form or S x stay in memory as long as the copy.

    Traps: a signal that is modified in place is no longer treated as constant, and layers use its new values. Changes
    that torch does not track, through `.data` or the array of `.numpy()`, are detected in CPU signals of up to 16384
    entries, which are compared in each call; of larger ones only some rows are compared, and on other devices none.
    After such a change, call `constant` again.

    Args:
        x: (n, c) a signal that does not require a gradient.

    Raises:
        TypeError: if x is not a matrix of floating point numbers.
        ValueError: if x requires a gradient.

    >>> x = constant(torch.eye(4))
    >>> known(x).density
    0.25
    """
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.dtype.is_floating_point:
        what = f"a tensor {tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise TypeError(f"constant takes a signal (n, c) of floating point numbers, not {what}.")
    if x.requires_grad:
        raise ValueError("This signal requires a gradient, so it is not constant; use x.detach().")
    with torch.inference_mode(False):
        return declared(x.detach().clone())


def declared(x: Tensor, source: Tensor | None = None) -> Tensor:
    """Declares x itself constant: a plain matrix that does not require a gradient.

    Args:
        x: the matrix.
        source: the tensor that is compared in each call, if x was computed from another one.
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
    """The cached data of x; None unless x is constant and was not modified."""
    if torch.compiler.is_dynamo_compiling() or not _CONSTANTS.data or not is_plain_eager():
        return None
    return constant_of(x)


def constant_of(x: Tensor) -> Constant | None:
    """`known`, for plain eager calls."""
    if not _CONSTANTS.data or x.requires_grad:
        return None
    found: Constant | None = _CONSTANTS.get(x)
    if found is None or found.version != x._version:
        return None
    return found if not x.is_cpu or torch.equal(found.some, found.copy) else None


def product(X: Tensor, W: Tensor) -> Tensor:
    """X W, (*b, n, i) (i, o) -> (*b, n, o), by the sparse form if X is constant and has one."""
    found = known(X)
    if found is None or found.sparse is None:
        return matmul(X, W)
    csr, values, back = found.sparse
    return spmm(csr, values, W, back)


def kept(S: Any, x: Tensor, expand: Callable[[Tensor], Tensor]) -> Tensor:
    """expand(x), cached if x is constant and S is not learned. The result may be shared: it must not be modified."""
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
