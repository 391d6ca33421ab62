"""What every linear map promises, and how maps are put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from gconv.arguments import checked, shown

if TYPE_CHECKING:
    from gconv.linear.member import LinearMap

Number = float | complex | Tensor  # what scales a map; a tensor without axes may require grad
Index = Sequence[int] | Tensor


class Map:
    """A linear map of signals, x (*b, n, i) -> A @ x (*b, m, o).

    Equation: the matrix of A is (m o, n i), sites outermost, channels innermost.

    Meaning: `A @ x` applies the map to a signal, `A @ B` is the composition, and `A + B`, `A - B`, `c * A`, `-A` and
    `A / c` are what they say. Nothing is computed until a signal comes, and every result is a Map again, so
    transposes, norms and spectra of it can be asked for. It prints as the algebra that made it.

    Raises:
        ValueError: if two maps do not fit each other; the message says which sites or channels differ.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv2d
    >>> A = GConv(conv2d(1, 2, 3, padding=1)).at(Grid((4, 4)))
    >>> A.T @ A + 0.1 * A.I
    (conv2d.T @ conv2d + 0.1 I)
    >>> ((A.T @ A + 0.1 * A.I) @ torch.zeros(16, 1)).shape
    torch.Size([16, 1])
    >>> isinstance(A, Map)
    True
    """

    if TYPE_CHECKING:  # what a subclass must have, as a field or as a property

        @property
        def i(self) -> int:
            """Channels in."""

        @property
        def o(self) -> int:
            """Channels out."""

        @property
        def sites(self) -> tuple[int, int]:
            """(m, n): sites out, sites in."""

        @property
        def dtype(self) -> torch.dtype: ...

        @property
        def device(self) -> torch.device: ...

        @property
        def T(self) -> Map:
            """The transpose."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m o, n i), the shape of the matrix."""
        m, n = self.sites
        return m * self.o, n * self.i

    def apply(self, x: Tensor, lowering: str | None = None) -> Tensor:
        """A @ x; a lowering of choice holds for every member of the family inside.

        Raises:
            ValueError: if x has other sites or channels than the map.
        """
        raise NotImplementedError

    def collapse(self) -> LinearMap:
        """The same map as one member of the family: a stack of structures with the weights beside each other."""
        raise NotImplementedError

    @property
    def I(self) -> LinearMap:  # noqa: E743
        """The identity on the inputs of this map."""
        from gconv.linear.member import identity

        return identity(self.sites[1], self.i, dtype=self.dtype, device=self.device)

    @checked
    def restrict(
        self, rows: Index | None = None, cols: Index | None = None, *, i: Index | None = None, o: Index | None = None
    ) -> Map:
        """The part of the map between some sites and channels, in the order given.

        Equation: R_rows A R_cols^T, with R the rows of the identity of these numbers.

        Args:
            rows, cols: output and input sites.
            i, o: channels in and out.

        Raises:
            ValueError: if a number is out of range.

        >>> from gconv import GConv, Grid
        >>> from gconv.operators import conv1d
        >>> A = GConv(conv1d(2, 3, 3)).at(Grid((8,)))
        >>> A.restrict(rows=[0, 5], cols=range(4), o=[2])
        channels[1] @ sites[2] @ conv1d @ sites[4].T
        """
        from gconv.linear.member import select_channels, select_sites

        A: Map = self
        (m, n), place = self.sites, {"dtype": self.dtype, "device": self.device}
        if rows is not None:
            A = select_sites(rows, m, self.o, **place) @ A  # type: ignore[arg-type]
        if cols is not None:
            A = A @ select_sites(cols, n, self.i, **place).T  # type: ignore[arg-type]
        if o is not None:
            A = select_channels(o, self.o, A.sites[0], **place) @ A  # type: ignore[arg-type]
        if i is not None:
            A = A @ select_channels(i, self.i, A.sites[1], **place).T  # type: ignore[arg-type]
        return A

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, other: Map) -> Map: ...

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, Map):
            from gconv.linear.algebra import compose

            return compose(self, other)
        if isinstance(other, Tensor):
            return self.apply(other)
        raise TypeError(f"A @ x takes a torch tensor or another linear map, but {shown(other)} was given.")

    def __add__(self, other: Map) -> Map:
        if not isinstance(other, Map):
            return NotImplemented
        from gconv.linear.algebra import add

        return add(self, other)

    def __sub__(self, other: Map) -> Map:
        return self + -other if isinstance(other, Map) else NotImplemented

    def __mul__(self, c: Number) -> Map:
        if not isinstance(c, int | float | complex | Tensor):
            return NotImplemented
        from gconv.linear.algebra import scale

        return scale(c, self)

    __rmul__ = __mul__
    __array_ufunc__ = None  # numpy's numbers leave the product to us

    def __truediv__(self, c: Number) -> Map:
        if not isinstance(c, int | float | complex | Tensor):
            return NotImplemented
        if not isinstance(c, Tensor) and c == 0:
            raise ZeroDivisionError(f"{self} is divided by zero.")
        return (1.0 / c) * self

    def __neg__(self) -> Map:
        return -1.0 * self

    def expect(self, x: Tensor) -> None:
        """Refuse a signal with other sites or channels, or what is none."""
        n, i = self.sites[1], self.i
        if not isinstance(x, Tensor):
            raise TypeError(f"This map takes signals, torch tensors (*b, {n}, {i}), but {shown(x)} was given.")
        if x.ndim < 2 or x.shape[-2:] != (n, i):
            raise ValueError(f"This map takes signals (*b, {n} sites, {i} channels), but x has shape {tuple(x.shape)}.")

    def ends(self) -> str:
        """Where it leads from and to, for messages."""
        m, n = self.sites
        return f"({n} sites, {self.i} channels) to ({m} sites, {self.o} channels)"
