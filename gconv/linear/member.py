"""LinearMap: an operator on its domain with its weights, as a linear map."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from gconv.arguments import checked, integer, shown
from gconv.basis import Basis, Identity, Pattern, Taps
from gconv.linear.base import Index, Map
from gconv.mixing import Dense, Fixed, Mixing
from gconv.plan import evaluate
from gconv.spec import NotLinear


@dataclass(frozen=True, eq=False)
class LinearMap(Map):
    """The linear part of an operator, x (*b, n, i) -> A @ x (*b, m, o); the bias is left out.

    Args:
        S: the structure on its domain; an adaptive structure is frozen at the x for which it was computed.
        mixing, W: the channel part.
        i: channels in.
        dtype, device: of the signals.
        name: its name in expressions.

    Raises:
        NotLinear: if a tap reduces with max.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv1d
    >>> A = GConv(conv1d(2, 3, 3)).at(Grid((8,)))
    >>> A.shape, A.T.shape, tuple((A @ torch.zeros(8, 2)).shape)
    ((18, 16), (16, 18), (6, 3))
    """

    S: Basis
    mixing: Mixing
    W: Tensor | None
    i: int
    dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    name: str = ""

    def __post_init__(self) -> None:
        if not self.S.linear:
            raise NotLinear("A structure that reduces with max has no matrix, adjoint or spectrum.")

    @property
    def o(self) -> int:
        """Channels out."""
        return self.mixing.channels(self.i)

    @property
    def sites(self) -> tuple[int, int]:
        """(m, n): sites out, sites in."""
        return self.S.shape[1], self.S.shape[2]

    @cached_property
    def T(self) -> LinearMap:
        """The transpose, with every S_k and W_k transposed; for a real map the adjoint."""
        mixing, W = self.mixing.transpose(self.W, self.i)
        if self.S.T is self.S and mixing is self.mixing and W is None:
            return self
        name = self.name.removesuffix(".T") if self.name.endswith(".T") else self.name and f"{self.name}.T"
        return LinearMap(self.S.T, mixing, W, self.o, self.dtype, self.device, name)

    def apply(self, x: Tensor, lowering: str | None = None) -> Tensor:
        """A @ x, by the given lowering, or by the planned one.

        Raises:
            TypeError: if x has another dtype.
            ValueError: if x has other sites or channels than the map.
        """
        self.expect(x)
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(f"x must hold floating point numbers, but its dtype is {x.dtype}; x.float() converts.")
        if self.W is not None and x.dtype != self.W.dtype:
            raise TypeError(f"x is {x.dtype}, but this map is {self.W.dtype}; convert one of them.")
        return evaluate(self.S, self.mixing, self.W, x, None, lowering)

    def collapse(self) -> LinearMap:
        """Itself."""
        return self

    def weight(self) -> Tensor:
        """The equivalent dense weight (k, i, o)."""
        return self.mixing.dense(self.W, self.i).to(self.device, self.dtype)

    def __str__(self) -> str:
        return self.name or repr(self)

    def __repr__(self) -> str:
        return f"LinearMap({self.shape[0]} x {self.shape[1]}, {type(self.S).__name__}, {type(self.mixing).__name__})"


@checked
def identity(
    sites: int, channels: int = 1, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LinearMap:
    """The identity on signals (*b, sites, channels); `A.I` is the identity on the inputs of A.

    >>> identity(4, 2) @ torch.ones(4, 2) == torch.ones(4, 2)
    tensor([[True, True],
            [True, True],
            [True, True],
            [True, True]])
    """
    sites, channels = integer(sites, "sites", 0), integer(channels, "channels", 1)
    dtype = dtype or torch.get_default_dtype()
    return LinearMap(Identity(sites), Fixed(), None, channels, dtype, torch.device(device), "I")


@checked
def select_sites(
    index: Index, sites: int, channels: int, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LinearMap:
    """R of shape (len(index), sites), which selects sites; its transpose puts them back, with zeros elsewhere.

    Raises:
        ValueError: if an index is out of range.

    >>> (select_sites([2, 0], 3, 1) @ torch.tensor([[5.0], [6.0], [7.0]])).flatten()
    tensor([7., 5.])
    """
    at, dtype = _index(index, sites, "sites", device), dtype or torch.get_default_dtype()
    rows = torch.arange(len(at), device=at.device)
    pattern = Pattern((1, len(at), sites), torch.zeros_like(at), rows, at)
    S = Taps(pattern, torch.ones(len(at), dtype=dtype, device=at.device))
    return LinearMap(S, Fixed(), None, channels, dtype, at.device, f"sites[{len(at)}]")


@checked
def select_channels(
    index: Index, channels: int, sites: int, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> LinearMap:
    """Selects channels at every site; the transpose puts them back, with zeros elsewhere.

    Raises:
        ValueError: if an index is out of range.

    >>> select_channels([1], 2, 1) @ torch.tensor([[5.0, 6.0]])
    tensor([[6.]])
    """
    at, dtype = _index(index, channels, "channels", device), dtype or torch.get_default_dtype()
    W = torch.eye(channels, dtype=dtype, device=at.device)[:, at].unsqueeze(0)
    return LinearMap(
        Identity(sites), Dense(1, channels, len(at)), W, channels, dtype, at.device, f"channels[{len(at)}]"
    )


def _index(index: Index, size: int, what: str, device: torch.device | str) -> Tensor:
    wrong = f"A selection is a non-empty list of indices of {what} from 0 to {size - 1}, but index is "
    try:
        at = torch.as_tensor(list(index) if not isinstance(index, Tensor) else index, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{wrong}{shown(index)}.") from None
    if at.dtype == torch.bool or at.is_floating_point() or at.is_complex() or at.ndim != 1 or not len(at):
        raise ValueError(f"{wrong}a tensor of shape {tuple(at.shape)} and dtype {at.dtype}.")
    at = at.long()
    if int(at.min()) < 0 or int(at.max()) >= size:
        raise ValueError(
            f"There are {size} {what}, numbered from 0, but the selection has indices from {int(at.min())} to "
            f"{int(at.max())}."
        )
    return at
