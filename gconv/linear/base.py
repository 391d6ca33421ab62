"""Map: the base class of linear maps, with their algebra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from gconv.arguments import checked, plural, shown

if TYPE_CHECKING:
    from gconv.linear.member import LinearMap

Number = float | complex | Tensor  # the factor of a map; a tensor of one number may require grad
Index = Sequence[int] | Tensor


class Map:
    """A linear map of signals, x (*b, n, i) -> A @ x (*b, m, o).

    Equation: the matrix of A is (m o, n i), sites outermost, channels innermost.

    Meaning: `A @ x` applies the map to a signal and `A @ B` is the composition; `A + B`, `A - B`, `c * A`, `-A` and
    `A / c` are defined, too. They are evaluated lazily, and every result is a Map, which has a transpose, and whose
    norm and spectrum `gconv.analysis` can compute. The repr shows the expression.

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

    if TYPE_CHECKING:  # a subclass defines these as fields or properties

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
        """A @ x; `lowering` applies to every LinearMap that the map consists of.

        Raises:
            ValueError: if x has other sites or channels than the map.
        """
        raise NotImplementedError

    def collapse(self) -> LinearMap:
        """The same map as a single LinearMap, whose taps are those of all maps that it consists of."""
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
        """The submatrix for some sites and channels, in the given order.

        Equation: R_rows A R_cols^T, where R consists of the selected rows of the identity.

        Args:
            rows, cols: output and input sites.
            i, o: channels in and out.

        Raises:
            ValueError: if an index is out of range.

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

    def __rmatmul__(self, other: Any) -> Any:
        raise TypeError(f"A linear map is applied from the left, A @ x, but {shown(other)} @ A was given.")

    def __add__(self, other: Any) -> Map:
        if not isinstance(other, Map):
            raise TypeError(
                f"A + B takes two linear maps, but {shown(other)} was given; c * A.I is a multiple of the identity."
            )
        from gconv.linear.algebra import add

        return add(self, other)

    def __radd__(self, other: Any) -> Map:
        return self if type(other) is int and other == 0 else self + other  # sum() starts with 0

    def __sub__(self, other: Map) -> Map:
        return self + -other if isinstance(other, Map) else self + other

    def __rsub__(self, other: Any) -> Map:
        return self + other

    def __mul__(self, c: Number) -> Map:
        if not isinstance(c, int | float | complex | Tensor):
            raise TypeError(f"A linear map is multiplied by a number, c * A, but c is {shown(c)}; A @ B composes maps.")
        from gconv.linear.algebra import scale

        return scale(c, self)

    __rmul__ = __mul__
    __array_ufunc__ = None  # numpy scalars then use __rmul__

    def __truediv__(self, c: Number) -> Map:
        if not isinstance(c, int | float | complex | Tensor):
            raise TypeError(f"A linear map is divided by a number, A / c, but c is {shown(c)}.")
        if not isinstance(c, Tensor) and c == 0:
            raise ZeroDivisionError(f"{self} is divided by zero.")
        return (1.0 / c) * self

    def __neg__(self) -> Map:
        return -1.0 * self

    def expect(self, x: Tensor) -> None:
        """Raises: TypeError, ValueError if x is not a signal with the sites and channels of the input."""
        n, i = self.sites[1], self.i
        if not isinstance(x, Tensor):
            raise TypeError(f"This map takes signals, torch tensors (*b, {n}, {i}), but {shown(x)} was given.")
        if x.ndim < 2 or x.shape[-2:] != (n, i):
            raise ValueError(
                f"This map takes signals (*b, {plural(n, 'site')}, {plural(i, 'channel')}), but x has shape "
                f"{tuple(x.shape)}."
            )

    def ends(self) -> str:
        """The sites and channels of input and output, for messages."""
        m, n = self.sites
        return (
            f"({plural(n, 'site')}, {plural(self.i, 'channel')}) to ({plural(m, 'site')}, {plural(self.o, 'channel')})"
        )
