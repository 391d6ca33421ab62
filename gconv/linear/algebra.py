"""Sums, compositions, multiples and blocks of linear maps, evaluated when they are applied to a signal."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add as plus
from typing import Any, Literal

import torch
from torch import Tensor

from gconv.arguments import checked, shown
from gconv.basis import Product, Stack
from gconv.basis.entries import single
from gconv.linear.base import Map, Number
from gconv.linear.member import LinearMap, select_channels, select_sites
from gconv.mixing import Dense

Axis = Literal["sites", "channels"]


def _same_numbers(maps: Sequence[Map]) -> None:
    """Raises: ValueError if maps have different dtypes or devices."""
    for what in ("dtype", "device"):
        found = list(dict.fromkeys(str(getattr(A, what)) for A in maps))
        if len(found) > 1:
            raise ValueError(
                f"Maps can only be combined if they have the same {what}, but these have {' and '.join(found)}; "
                "convert the layers before .at(...)."
            )


@dataclass(frozen=True, eq=False, repr=False)
class Sum(Map):
    """The sum of maps with the same sites and channels.

    Equation: (A + B) x = A x + B x. It collapses to one stack with the taps of all terms.

    >>> from gconv.linear import identity
    >>> A = identity(3)
    >>> isinstance(A + A.T, Sum), (A + A.T).shape
    (True, (3, 3))
    """

    terms: tuple[Map, ...]

    def __post_init__(self) -> None:
        for A in self.terms[1:]:
            if A.ends() != self.terms[0].ends():
                raise ValueError(
                    "Maps that are added must have the same sites and channels, but one maps "
                    f"{self.terms[0].ends()} and another {A.ends()}."
                )
        _same_numbers(self.terms)

    @property
    def i(self) -> int:
        return self.terms[0].i

    @property
    def o(self) -> int:
        return self.terms[0].o

    @property
    def sites(self) -> tuple[int, int]:
        return self.terms[0].sites

    @property
    def dtype(self) -> torch.dtype:
        return self.terms[0].dtype

    @property
    def device(self) -> torch.device:
        return self.terms[0].device

    @cached_property
    def T(self) -> Map:
        return Sum(tuple(A.T for A in self.terms))

    def apply(self, x: Tensor, lowering: str | None = None) -> Tensor:
        self.expect(x)
        return reduce(plus, [A.apply(x, lowering) for A in self.terms])

    def collapse(self) -> LinearMap:
        parts = [A.collapse() for A in self.terms]
        stacks = [part.S for part in parts]
        W = torch.cat([part.weight() for part in parts])
        mixing = Dense(len(W), self.i, self.o)
        return LinearMap(Stack(tuple(stacks)), mixing, W, self.i, self.dtype, self.device, str(self))

    def __repr__(self) -> str:
        text = " + ".join(map(str, self.terms))
        return f"({text.replace('+ -', '- ')})"


@dataclass(frozen=True, eq=False, repr=False)
class Composed(Map):
    """The composition of maps; the last factor is applied first.

    Equation: (A @ B) x = A (B x). It collapses to the products of taps, S_k S_l with W_l W_k.

    >>> from gconv.linear import identity
    >>> A = identity(3)
    >>> isinstance(A @ A.T, Composed), (A @ A.T).shape
    (True, (3, 3))
    """

    factors: tuple[Map, ...]

    def __post_init__(self) -> None:
        for A, B in itertools.pairwise(self.factors):
            if (A.sites[1], A.i) != (B.sites[0], B.o):
                raise ValueError(
                    f"In A @ B, the output of B must fit the input of A, but A maps {A.ends()} and B {B.ends()}."
                )
        _same_numbers(self.factors)

    @property
    def i(self) -> int:
        return self.factors[-1].i

    @property
    def o(self) -> int:
        return self.factors[0].o

    @property
    def sites(self) -> tuple[int, int]:
        return self.factors[0].sites[0], self.factors[-1].sites[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.factors[0].dtype

    @property
    def device(self) -> torch.device:
        return self.factors[0].device

    @cached_property
    def T(self) -> Map:
        return Composed(tuple(A.T for A in reversed(self.factors)))

    def apply(self, x: Tensor, lowering: str | None = None) -> Tensor:
        self.expect(x)
        for A in reversed(self.factors):
            x = A.apply(x, lowering)
        return x

    def collapse(self) -> LinearMap:
        whole = reduce(_product, [A.collapse() for A in self.factors])
        return LinearMap(whole.S, whole.mixing, whole.W, self.i, self.dtype, self.device, str(self))

    def __repr__(self) -> str:
        return " @ ".join(map(str, self.factors))


def _product(A: LinearMap, B: LinearMap) -> LinearMap:
    """A @ B as one LinearMap: tap (k, l) is S_k S_l with weight W_l W_k."""
    V, W = A.weight(), B.weight()
    if min(len(V), len(W)) == 1:
        S: Product | Stack = Product(A.S, B.S)
    else:
        S = Stack(tuple(Product(single(A.S, k, A.dtype, A.device), B.S) for k in range(len(V))))
    both = torch.einsum("lic,kco->klio", W, V).flatten(0, 1)
    return LinearMap(S, Dense(len(both), B.i, A.o), both, B.i, A.dtype, A.device)


@dataclass(frozen=True, eq=False, repr=False)
class Scaled(Map):
    """A number times a map.

    >>> from gconv.linear import identity
    >>> A = identity(3)
    >>> isinstance(2 * A, Scaled), (2 * A).shape
    (True, (3, 3))
    """

    c: Number
    A: Map

    def __post_init__(self) -> None:
        if isinstance(self.c, Tensor) and self.c.numel() != 1:
            raise ValueError(f"A map is scaled by one number, but this tensor has shape {tuple(self.c.shape)}.")
        if isinstance(self.c, Tensor) and self.c.ndim:  # its axes would be broadcast
            object.__setattr__(self, "c", self.c.reshape(()))
        if (
            self.c.is_complex() if isinstance(self.c, Tensor) else isinstance(self.c, complex)
        ) and not self.A.dtype.is_complex:
            raise TypeError(f"A real map is scaled by real numbers, but c is {_text(self.c)}; make its layer complex.")

    @property
    def i(self) -> int:
        return self.A.i

    @property
    def o(self) -> int:
        return self.A.o

    @property
    def sites(self) -> tuple[int, int]:
        return self.A.sites

    @property
    def dtype(self) -> torch.dtype:
        return self.A.dtype

    @property
    def device(self) -> torch.device:
        return self.A.device

    @cached_property
    def T(self) -> Map:
        return Scaled(self.c, self.A.T)

    def apply(self, x: Tensor, lowering: str | None = None) -> Tensor:
        return self.c * self.A.apply(x, lowering)

    def collapse(self) -> LinearMap:
        A = self.A.collapse()
        W = self.c * A.weight()
        return LinearMap(A.S, Dense(len(W), self.i, self.o), W, self.i, self.dtype, self.device, str(self))

    def __repr__(self) -> str:
        inner = f"({self.A})" if isinstance(self.A, Composed) else str(self.A)
        text = _text(self.c)
        return f"-{inner}" if text == "-1" else f"{text} {inner}"


def _text(c: Number) -> str:
    """A number as it is printed."""
    number = complex(c.detach() if isinstance(c, Tensor) else c)
    return f"{number:g}" if number.imag else f"{number.real:g}"


@dataclass(frozen=True, eq=False, repr=False)
class Block(Map):
    """A block matrix of maps, along the sites or along the channels.

    Equation: y_r = sum_c A_rc x_c, where x = [x_1 | x_2 | ...] is split and y = [y_1 | y_2 | ...] is concatenated along
    the axis. Along sites the matrix is the block matrix of the matrices A_rc.

    Args:
        rows: a table of maps, None for a zero block; every row and column contains at least one map.
        axis: "sites" or "channels".

    >>> from gconv.linear import identity
    >>> found = hstack([identity(3), identity(3)])
    >>> isinstance(found, Block), found.shape
    (True, (3, 6))
    """

    rows: tuple[tuple[Map | None, ...], ...]
    axis: Axis = "sites"

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.rows}
        if len(widths) != 1 or 0 in widths:
            raise ValueError(f"The rows of a block matrix must have the same length, but they have {sorted(widths)}.")
        if self.axis not in ("sites", "channels"):
            raise ValueError(f"axis must be 'sites' or 'channels', but it is {self.axis!r}.")
        lines = [*self.rows, *zip(*self.rows, strict=True)]
        if any(all(A is None for A in line) for line in lines):
            raise ValueError(
                "Every row and column of blocks needs at least one map to take its size from; "
                "0 * A is a zero block of the size of A."
            )
        _same_numbers(self.maps)
        flat = self.axis == "channels"
        for side, group in (("out", self.rows), ("in", tuple(zip(*self.rows, strict=True)))):
            for number, line in enumerate(group):
                sizes = {self._size(A, side)[flat] for A in line if A is not None}
                if len(sizes) > 1:
                    name = "row" if side == "out" else "column"
                    raise ValueError(
                        f"The blocks of {name} {number} must agree on their {self.axis} {side}, "
                        f"but they have {sorted(sizes)}."
                    )
            rest = {self._size(A, side)[not flat] for A in self.maps}
            if len(rest) > 1:
                other = "sites" if flat else "channels"
                raise ValueError(
                    f"Blocks along {self.axis} must all have the same {other} {side}, but they have {sorted(rest)}."
                )

    @staticmethod
    def _size(A: Map, side: str) -> tuple[int, int]:
        """(sites, channels) of one side."""
        return (A.sites[0], A.o) if side == "out" else (A.sites[1], A.i)

    @property
    def maps(self) -> list[Map]:
        return [A for row in self.rows for A in row if A is not None]

    def _extents(self, side: str) -> list[int]:
        lines = self.rows if side == "out" else tuple(zip(*self.rows, strict=True))
        firsts = [next(A for A in line if A is not None) for line in lines]
        return [self._size(A, side)[self.axis == "channels"] for A in firsts]

    def _whole(self, side: str) -> tuple[int, int]:
        sites, channels = self._size(self.maps[0], side)
        total = sum(self._extents(side))
        return (sites, total) if self.axis == "channels" else (total, channels)

    @property
    def i(self) -> int:
        return self._whole("in")[1]

    @property
    def o(self) -> int:
        return self._whole("out")[1]

    @property
    def sites(self) -> tuple[int, int]:
        return self._whole("out")[0], self._whole("in")[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.maps[0].dtype

    @property
    def device(self) -> torch.device:
        return self.maps[0].device

    @cached_property
    def T(self) -> Map:
        columns = zip(*self.rows, strict=True)
        return Block(tuple(tuple(None if A is None else A.T for A in column) for column in columns), self.axis)

    def apply(self, x: Tensor, lowering: str | None = None) -> Tensor:
        self.expect(x)
        along = -1 if self.axis == "channels" else -2
        parts = x.split(self._extents("in"), along)
        lines = []
        for row in self.rows:
            terms = [A.apply(part, lowering) for A, part in zip(row, parts, strict=True) if A is not None]
            lines.append(reduce(plus, terms))
        return torch.cat(lines, along)

    def collapse(self) -> LinearMap:
        """The sum over all blocks of (select rows)^T A (select columns)."""
        place = {"dtype": self.dtype, "device": self.device}
        row_start, column_start = (list(itertools.accumulate(self._extents(side), initial=0)) for side in ("out", "in"))
        terms: list[Map] = []
        for r, row in enumerate(self.rows):
            for c, A in enumerate(row):
                if A is None:
                    continue
                out, into = range(row_start[r], row_start[r + 1]), range(column_start[c], column_start[c + 1])
                if self.axis == "sites":
                    left = select_sites(out, self.sites[0], self.o, **place)  # type: ignore[arg-type]
                    right = select_sites(into, self.sites[1], self.i, **place)  # type: ignore[arg-type]
                else:
                    left = select_channels(out, self.o, self.sites[0], **place)  # type: ignore[arg-type]
                    right = select_channels(into, self.i, self.sites[1], **place)  # type: ignore[arg-type]
                terms.append(left.T @ A @ right)
        whole = add(*terms).collapse()
        return LinearMap(whole.S, whole.mixing, whole.W, self.i, self.dtype, self.device, str(self))

    def __repr__(self) -> str:
        rows = ", ".join(f"[{', '.join('0' if A is None else str(A) for A in row)}]" for row in self.rows)
        return f"[{rows}]"


# -- constructors --------------------------------------------------------------------------------------------------


def compose(*maps: Map) -> Map:
    """A @ B @ ..., with nested compositions flattened."""
    flat = [B for A in maps for B in (A.factors if isinstance(A, Composed) else (A,))]
    return flat[0] if len(flat) == 1 else Composed(tuple(flat))


def add(*maps: Map) -> Map:
    """A + B + ..., with nested sums flattened."""
    flat = [B for A in maps for B in (A.terms if isinstance(A, Sum) else (A,))]
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def scale(c: Number, A: Map) -> Map:
    """c A, with nested factors multiplied."""
    if isinstance(A, Scaled):
        c, A = c * A.c, A.A
    return A if isinstance(c, int | float) and c == 1 else Scaled(c, A)


@checked
def block(rows: Sequence[Sequence[Map | None]], axis: Axis = "sites") -> Map:
    """A block matrix of maps as one map, see `Block`.

    Args:
        rows: lists of maps, None for a zero block.
        axis: the axis that is concatenated, "sites" (the block matrix) or "channels".

    Raises:
        ValueError: if the blocks do not fit, or a row or column has no map that determines its size.

    >>> from gconv.linear import identity
    >>> I = identity(2, 3)
    >>> block([[I, None], [-I, 2 * I]]), block([[I, None], [-I, 2 * I]]).sites
    ([[I, 0], [-I, 2 I]], (4, 4))
    """
    try:
        table = tuple(tuple(row) for row in rows)
    except TypeError:
        raise TypeError(f"A block matrix is given as a list of lists of maps, not as {shown(rows)}.") from None
    for A in itertools.chain(*table):
        if A is not None and not isinstance(A, Map):
            raise TypeError(f"Blocks must be linear maps, layer.at(domain), or None, but one is {shown(A)}.")
    return Block(table, axis)


@checked
def hstack(maps: Sequence[Map], axis: Axis = "sites") -> Map:
    """[A, B, ...]: each map is applied to its part of the signal, and the results are added.

    >>> from gconv.linear import identity
    >>> (hstack([identity(1), identity(1)]) @ torch.tensor([[2.0], [3.0]])).item()
    5.0
    """
    maps = _listed(maps, "hstack")
    return block([maps], axis)


@checked
def vstack(maps: Sequence[Map], axis: Axis = "sites") -> Map:
    """[A; B; ...]: each map is applied to the whole signal, and the results are concatenated.

    >>> from gconv.linear import identity
    >>> vstack([identity(2, 3), identity(2, 3)], axis="channels").shape
    (12, 6)
    """
    maps = _listed(maps, "vstack")
    return block([[A] for A in maps], axis)


@checked
def block_diag(maps: Sequence[Map], axis: Axis = "sites") -> Map:
    """The direct sum: each map is applied to its own part of the signal.

    >>> from gconv.linear import identity
    >>> block_diag([identity(2, 3), 2 * identity(4, 3)])
    [[I, 0], [0, 2 I]]
    """
    maps = _listed(maps, "block_diag")
    return block([[A if r == c else None for c in range(len(maps))] for r, A in enumerate(maps)], axis)


def _listed(maps: Sequence[Map | None], function: str) -> list[Any]:
    """The maps as a list.

    Raises:
        TypeError: if it is not a list.
        ValueError: if it is empty.
    """
    if isinstance(maps, Map) or not isinstance(maps, Iterable):
        raise TypeError(f"{function} takes a list of maps, not {shown(maps)}.")
    found = list(maps)
    if not found:
        raise ValueError(f"{function} takes a list of at least one map, but it is empty.")
    return found
