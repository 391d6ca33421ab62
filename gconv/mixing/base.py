"""W: the linear map of the channels in each tap.

A mixing is a description without numbers; the weight is passed separately. It can be applied after or before the
structure, the two associations of the triple product S X W:

    gather(E, W)    (*b, k, m, i) -> (*b, m, o)      after the structure: sum_k E_k W_k
    spread(X, W)    (*b, n, i) -> (*b, k, n, o_k)    before the structure: X W_k
    collect(S, Z)   (*b, k, n, o_k) -> (*b, m, o)    then the structure: sum_k S_k Z_k

A mixing whose weight is computed from another parameter (tied, shared between taps) is `Parametrised`: it returns an
equivalent elementary mixing with its weight, and the engine works with those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import SymInt, Tensor

from gconv.arguments import plural, shown
from gconv.basis import Basis
from gconv.errors import InputError


class Mixing:
    """The channel part of an operator.

    taps: number of taps.
    shape: of the weight; None if there is none.
    fan_in: number of terms in each output, for initialisation.
    overhead: a word that selects the fixed overhead of a call on a grid in `gconv.rates`.
    apart: whether each tap writes its own output channels, so that `collect` needs products tap by tap (`Taps.each`).
    """

    if TYPE_CHECKING:  # read-only, so that a property may stand for each of them

        @property
        def taps(self) -> int: ...

        @property
        def shape(self) -> tuple[int, ...] | None: ...

        @property
        def fan_in(self) -> int: ...

        @property
        def apart(self) -> bool: ...
    else:
        apart = False
    overhead = " grid"
    is_dense = False  # whether it is a `Dense`, for which lowerings have special code
    groups = 1  # number of separate groups of channels
    scale = 1.0  # a fixed factor of the weight

    def channels(self, i: int) -> int:
        """The number of output channels for i input channels.

        Raises:
            ValueError: if this mixing takes another number of input channels.
        """
        raise NotImplementedError

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        raise NotImplementedError

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        raise NotImplementedError

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        return S.contract(Z)

    def split(self, W: Tensor, sizes: Sequence[int]) -> list[tuple[Any, Tensor]]:
        """Mixings and weights for consecutive blocks of `sizes` taps, whose results add up to that of this mixing."""
        raise NotImplementedError

    def joined(self, Y: Tensor, Z: Tensor) -> Tensor:
        """The result of `collect`, given the products Y_k = S_k Z_k from a fused kernel."""
        raise NotImplementedError

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        """The equivalent dense weight (k, i, o)."""
        raise NotImplementedError

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        """The mixing and weight of the adjoint."""
        raise NotImplementedError

    def width(self, i: int) -> int:
        """The number of channels, over all taps, of the product with S if W is applied first."""
        return self.taps * self.channels(i)

    def flops(self, sites: int, i: int) -> int:
        """Floating point operations to apply W at `sites` sites, over all taps."""
        raise NotImplementedError


class Weighted:
    """Mixin for dataclasses with `taps`, fields `i` and `o`, channels in and out, and a learned weight."""

    if TYPE_CHECKING:

        @property
        def taps(self) -> int: ...

        @property
        def i(self) -> int: ...

        @property
        def o(self) -> int: ...

    def __post_init__(self) -> None:
        check_channels(self.i, self.o, self.taps)

    def channels(self, i: int) -> int:
        """The number of output channels. Raises: ValueError if i is not the number of input channels."""
        expect(i, self.i)
        return self.o


class Parametrised(Weighted):
    """A mixing whose (k, i, o) weight is computed from another parameter: tied, rotated, with an identity added.

    Subclasses are frozen dataclasses with `i` and `o`, channels in and out, and `shape`, that of the learned parameter,
    whose last two axes are channels in and out. `tied` is the number of consecutive output channels that share one
    entry of the bias.
    """

    if TYPE_CHECKING:

        @property
        def taps(self) -> int: ...

        @property
        def shape(self) -> tuple[int, ...]: ...

        @property
        def tied(self) -> int: ...
    else:
        tied = 1

    @property
    def fan_in(self) -> int:
        """The number of terms in each output, for initialisation."""
        return self.i

    def plain(self, W: Tensor) -> tuple[Mixing, Tensor]:
        """An equivalent elementary mixing and its weight, differentiable in W."""
        raise NotImplementedError


def plain(mixing: Mixing | Parametrised, W: Tensor | None) -> tuple[Mixing, Tensor | None]:
    """An equivalent elementary mixing and its weight, for a mixing and its learned parameter."""
    if isinstance(mixing, Parametrised):
        assert W is not None
        return mixing.plain(W)
    return mixing, W


def spread_bias(mixing: Mixing | Parametrised, bias: Tensor | None) -> Tensor | None:
    """(o,) the bias of every channel, from the learned one, whose entries are repeated for tied channels."""
    tied = mixing.tied if isinstance(mixing, Parametrised) else 1
    return bias if bias is None or tied == 1 else bias.repeat_interleave(tied)


def expect(given: int, wanted: int) -> None:
    """Raises: InputError if the number of input channels is wrong."""
    if given != wanted:
        raise InputError(f"This operator takes {plural(wanted, 'channel')} in, but the signal has {given}.")


def check_channels(i: int, o: int, taps: int = 1) -> None:
    """Raises: ValueError if one of them is not a positive integer."""
    for name, value in (("channels in", i), ("channels out", o), ("taps", taps)):
        if type(value) is not int or value < 1:
            check_number(name, value)


def check_number(name: str, value: object, least: int = 1) -> None:
    """Raises: ValueError if it is not an integer, or too small. Sizes of a trace are not checked."""
    if isinstance(value, SymInt) or (isinstance(value, Tensor) and torch.jit.is_tracing()):
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        kind = "a positive integer" if least else "an integer >= 0"
        raise ValueError(f"The number of {name} must be {kind}, but it is {shown(value)}.")
