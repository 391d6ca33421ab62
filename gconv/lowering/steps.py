"""Small signals on a fixed S with a dense W in one step, both passes by hand.

    Y = sum_k S_k X W_k + b      dX = sum_k S_k^T dY W_k^T,    dW_k = (S_k X)^T dY = X^T (S_k^T dY)

Put together from products, views and sums, each of which autograd remembers, a small graph's convolution costs more to
write down than to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gconv.basis import Basis, Identity, Stack, beside, ready, together
from gconv.basis.base import lazy
from gconv.kernels import Constant, is_plain_eager, known, met, no_subclass, spaced
from gconv.kernels.gemm import LARGE as MANY
from gconv.lowering.rule import Gradients, Mixed
from gconv.lowering.single import fixed, wide

TYPES = (torch.float32, torch.float64)  # others are summed in a wider type
LARGE = 1 << 22  # bytes of all S_k x, from which on the arithmetic is all that counts
Product = Callable[..., Tensor] | None  # None for the identity


def serves(S: Basis, x: Tensor, W: Tensor) -> bool:
    """Whether S is fixed, x small, and the call a plain eager one."""
    return is_small(x, W.shape[0]) and is_plain_call(x, W) and fixed(S)


def is_small(x: Tensor, taps: int) -> bool:
    """Whether all S_k x are small, and not nothing; what is read of a constant x is."""
    held = sparse(x)
    share = 1.0 if held is None else held.density
    return 0 < x.numel() * x.element_size() * taps * share <= LARGE


def is_plain_call(x: Tensor, W: Tensor) -> bool:
    """Whether these are plain tensors of a type that is summed in itself, in a plain eager call without autocast."""
    if not x.is_cpu or x.dtype not in TYPES or x.dtype != W.dtype or x.layout is not torch.strided:
        return False
    return no_subclass(x, W) and is_plain_eager() and not torch.is_autocast_enabled("cpu")


def mixed(S: Basis, x: Tensor, W: Tensor, bias: Tensor | None, aggregate: bool) -> Tensor:
    """sum_k S_k X W_k + b, x (*b, n, i), W (k, i, o) -> (*b, m, o): aggregate first or transform first."""
    return Step(S, aggregate, constant=known(x) is not None)(x, W, bias)


def sparse(x: Tensor) -> Constant | None:
    """What is known of a constant x with a sparse form."""
    found = known(x)
    return None if found is None or found.sparse is None else found


class Step:
    """The convolution of a fixed S.

    Args:
        S: the structure.
        aggregate: whether its products come first, or the mixing.
        widths, dtype: i and o, where it serves matrices x (n, i) without gaps of this type alone: then its products are
            made ready.
        constant: whether x may be constant.
    """

    def __init__(
        self,
        S: Basis,
        aggregate: bool,
        widths: tuple[int, int] | None = None,
        dtype: torch.dtype | None = None,
        constant: bool = False,
    ) -> None:
        self.S, self.aggregate, self.widths, self.dtype, self.constant = S, aggregate, widths, dtype, constant
        self.parts: tuple[Basis, ...] = S.parts if isinstance(S, Stack) else (S,)
        self.taps = [part.shape[0] for part in self.parts]
        self.single = all(k == 1 for k in self.taps)
        self.order = sorted(range(len(self.parts)), key=lambda number: type(self.parts[number]) is not Identity)
        summed = any(type(part) is not Identity for part in self.parts)
        self.apart = [summed and k == 1 for k in self.taps]  # whether rows of X W_k may lie apart
        self.forth = self._products(self.parts, aggregate)

    def _products(self, parts: Sequence[Basis], expand: bool) -> list[Product]:
        """The product of each part: all S_k x beside each other, or their sum of z_k that lie so."""
        if self.widths is not None and self.dtype is not None:
            width = self.widths[0 if self.aggregate else 1]
            made = [ready(part, width, expand, self.dtype) for part in parts]
        else:
            made = [None] * len(parts)
        general = beside if expand else _added
        return [
            None if type(part) is Identity else own or partial(general, part)
            for part, own in zip(parts, made, strict=True)
        ]

    @lazy
    def back(self) -> list[Product]:
        """The products of the transposed parts."""
        return self._products([part.T for part in self.parts], not self.aggregate)

    def __call__(self, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and (
            x.requires_grad or W.requires_grad or (bias is not None and bias.requires_grad)
        ):
            y: Tensor = Mixed.apply(x, W, bias, self)
            return y
        return self.forward(x, W, bias)[0]

    @lazy
    def T(self) -> Step:
        """The step of the transposed structure, from o channels to i."""
        return Step(self.S.T, not self.aggregate)

    def forward(self, x: Tensor, W: Tensor, bias: Tensor | None) -> tuple[Tensor, Sequence[Tensor]]:
        """Y, and all S_k X where they were made."""
        if self.aggregate:
            return self.aggregated(x, W, bias)
        return self.transformed(x, W, bias, self.held(x)), ()

    def gradients(self, x: Tensor | None, W: Tensor | None, dy: Tensor, made: Sequence[Tensor]) -> Gradients:
        """dX where W is given, and dW where x is."""
        if x is None:
            dw = None
        else:
            dw = x.new_empty(sum(self.taps), x.shape[-1], dy.shape[-1]) if W is None else torch.empty_like(W)
        if self.aggregate:
            return self.back_aggregated(x, W, dy.contiguous(), made, dw), dw
        return self.back_transformed(x, W, dy.contiguous(), dw), dw

    def held(self, x: Tensor) -> Constant | None:
        """What x is multiplied through, if not by itself."""
        return sparse(x) if self.constant else None

    def pieces(self, W: Tensor) -> Sequence[Tensor]:
        """The weight (k, i, o) of each part, or (i, o) of a single tap."""
        if self.single:
            return W.unbind()
        if len(self.taps) == 1:
            return (W,)
        return [w.squeeze(0) if k == 1 else w for k, w in zip(self.taps, W.split(self.taps), strict=True)]

    def aggregated(self, x: Tensor, W: Tensor, bias: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Y, and all S_k X as matrices."""
        made: list[Tensor] = []
        y = None
        for product, own in zip(self.forth, self.pieces(W), strict=True):
            E, matrix = _rows(x if product is None else product(x)), _tall(own)
            made.append(E)
            if y is not None:
                y.addmm_(E, matrix)
            else:
                y = torch.mm(E, matrix) if bias is None else torch.addmm(bias, E, matrix)
        assert y is not None
        return _like(y, x), made

    def transformed(self, x: Tensor, W: Tensor, bias: Tensor | None, held: Constant | None) -> Tensor:
        """Y."""
        pieces = self.pieces(W)
        return self.contracted(x, self.forth, pieces if self.single else [_wide(own) for own in pieces], bias, held)

    def contracted(
        self,
        x: Tensor,
        products: list[Product],
        matrices: Sequence[Tensor],
        row: Tensor | None,
        held: Constant | None = None,
    ) -> Tensor:
        """sum_k S_k X W_k + row over the parts, each with its product and its matrix (i, k o): the identity first."""
        X, y, large = _rows(x), None, x.ndim == 2 and x.numel() >= MANY
        for number in self.order:
            product, matrix = products[number], matrices[number]
            if held is not None:
                z = held.times(matrix)
            elif large and self.apart[number]:
                z = spaced(X, matrix)
            else:
                z = torch.mm(X, matrix)
            z = z if x.ndim == 2 else _like(z, x)
            if product is not None:
                y, row = product(z, y, row), None
            else:
                y = z if y is None else y.add_(z)
        assert y is not None
        return y if row is None else y.add_(row)

    def back_aggregated(
        self, x: Tensor | None, W: Tensor | None, dy: Tensor, made: Sequence[Tensor], dw: Tensor | None
    ) -> Tensor | None:
        """dX where W is given, and into dw from all S_k X."""
        if x is not None and dw is not None:
            arriving = _rows(dy)
            made = made or [_rows(x if product is None else product(x)) for product in self.forth]
            for out, E in zip(self.pieces(dw), made, strict=True):
                _put(out, E, arriving)
        return None if W is None else self.contracted(dy, self.back, [_tall(own).mT for own in self.pieces(W)], None)

    def back_transformed(self, x: Tensor | None, W: Tensor | None, dy: Tensor, dw: Tensor | None) -> Tensor | None:
        """dX where W is given, and into dw, both from all S_k^T dY."""
        X, held, dx = None, None, None
        if x is not None:
            X, held = _rows(x), self.held(x)
        some = dw if W is None else W
        if some is None:
            return None
        outs = self.pieces(some if dw is None else dw)
        for product, own, out in zip(self.back, self.pieces(some), outs, strict=True):
            back = _rows(dy if product is None else product(dy))
            if X is not None:
                _put(out, X, back, held)
            if W is not None:
                matrix = own.mT if own.ndim == 2 else own.mT.flatten(0, 1)
                dx = torch.mm(back, matrix) if dx is None else dx.addmm_(back, matrix)
        return None if dx is None else _like(dx, dy)


def _tall(W: Tensor) -> Tensor:
    """(k, i, o) -> (k i, o)."""
    return W if W.ndim == 2 else W.flatten(0, 1)


def _wide(W: Tensor) -> Tensor:
    """(k, i, o) -> (i, k o)."""
    return W if W.ndim == 2 else wide(W)


def _rows(x: Tensor) -> Tensor:
    """Signals (*b, sites, c) as a matrix, all sites of all signals below each other."""
    return x if x.ndim == 2 else x.flatten(0, -2)


def _like(X: Tensor, x: Tensor) -> Tensor:
    """Such a matrix as signals again, as many as x has."""
    return X if x.ndim == 2 else X.view(*x.shape[:-2], -1, X.shape[1])


def _added(S: Basis, z: Tensor, add: Tensor | None, row: Tensor | None) -> Tensor:
    """sum_k S_k z_k + add + row, of z_k beside each other that nobody else has."""
    y = together(S, z)
    y = y if add is None else y.add_(add)
    return y if row is None else y.add_(row)


def _put(out: Tensor, X: Tensor, Y: Tensor, held: Constant | None = None) -> None:
    """X^T Y into a weight's gradient (k, i, o), or (i, o); X or Y has its taps beside each other."""
    if out.ndim == 2 and held is None:
        met(X, Y, out)
        return
    made = met(X, Y) if held is None else held.met(Y)
    if out.ndim == 2:
        out.copy_(made)
        return
    k, i, o = out.shape
    out.copy_(made.view(k, i, o) if len(made) == k * i else made.view(i, k, o).movedim(1, 0))
