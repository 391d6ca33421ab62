"""W: what happens to the channels on the way through each tap.

Each mixing is a description without numbers; the weight travels beside it. Two ways to apply it, one for each
association of the triple product S X W:

    gather(E, W)    (*b, k, m, i) -> (*b, m, o)      after the structure: sum_k E_k W_k
    spread(X, W)    (*b, n, i) -> (*b, k, n, o_k)    before the structure: X W_k
    collect(S, Z)   (*b, k, n, o_k) -> (*b, m, o)    then the structure: sum_k S_k Z_k

A mixing whose weight is tied, shared between taps or otherwise derived is `Parametrised`: it says which elementary
mixing and weight do the same, and the engine sees only those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gconv.basis import Basis
from gconv.errors import InputError


class Mixing:
    """The channel part of an operator with `taps` taps.

    taps: how many.
    shape: of the weight; None where there is nothing to learn.
    fan_in: how many numbers each output is a sum of, for weights to start from.
    overhead: a word for what a call on a grid by itself depends on, as `gconv.rates` names it.
    apart: whether each tap writes channels of its own, so that `collect` needs S tap by tap (`Taps.each`).
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
    is_dense = False  # `Dense`, whose formula lowerings know
    groups = 1  # of channels that do not see each other
    scale = 1.0  # a fixed factor on the weight

    def channels(self, i: int) -> int:
        """Channels out for i channels in.

        Raises:
            ValueError: if this mixing expects another number of channels.
        """
        raise NotImplementedError

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        raise NotImplementedError

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        raise NotImplementedError

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        return S.contract(Z)

    def split(self, W: Tensor, sizes: Sequence[int]) -> list[tuple[Any, Tensor]]:
        """The same mixing for the first taps, the next ones and so on, whose sum it is."""
        raise NotImplementedError

    def joined(self, Y: Tensor, Z: Tensor) -> Tensor:
        """What `collect` makes of all S_k Z_k, where these come from one kernel."""
        raise NotImplementedError

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        """The plain (k, i, o) weight that does the same."""
        raise NotImplementedError

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        """The mixing and weight of the adjoint."""
        raise NotImplementedError

    def width(self, i: int) -> int:
        """Channels that a transform-first structure product carries, all taps together."""
        return self.taps * self.channels(i)

    def flops(self, sites: int, i: int) -> int:
        """Multiply-adds, times two, to mix the channels at `sites` sites, all taps together."""
        raise NotImplementedError


class Weighted:
    """A dataclass with fields `i` and `o`, channels in and out, and a learned weight."""

    if TYPE_CHECKING:

        @property
        def i(self) -> int: ...

        @property
        def o(self) -> int: ...

    def __post_init__(self) -> None:
        check_channels(self.i, self.o)

    def channels(self, i: int) -> int:
        """Channels out for i channels in; raises ValueError if another number is expected."""
        expect(i, self.i)
        return self.o


class Parametrised(Weighted):
    """A mixing whose (k, i, o) weight is made from another one: tied, rotated, with an identity added.

    Subclasses are frozen dataclasses with `i` and `o`, channels in and out, and `shape`, that of the weight that is
    learned, its last two axes channels in and out. `tied` is how many channels out, side by side, share one number of
    the bias.
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
        """How many numbers each output is a sum of, for weights to start from."""
        return self.i

    def plain(self, W: Tensor) -> tuple[Mixing, Tensor]:
        """The elementary mixing and its weight that do the same, differentiable in W."""
        raise NotImplementedError


def plain(mixing: Mixing | Parametrised, W: Tensor | None) -> tuple[Mixing, Tensor | None]:
    """The elementary mixing and weight that do the same as a mixing and its learned weight."""
    if isinstance(mixing, Parametrised):
        assert W is not None
        return mixing.plain(W)
    return mixing, W


def spread_bias(mixing: Mixing | Parametrised, bias: Tensor | None) -> Tensor | None:
    """(o,) the bias of every channel, from the numbers that are learned: those of tied channels are repeated."""
    tied = mixing.tied if isinstance(mixing, Parametrised) else 1
    return bias if bias is None or tied == 1 else bias.repeat_interleave(tied)


def expect(given: int, wanted: int) -> None:
    """Refuse another number of channels in."""
    if given != wanted:
        raise InputError(f"This operator takes {wanted} channels in, but the signal has {given}.")


def check_channels(i: int, o: int) -> None:
    """Refuse what is no number of channels."""
    for name, value in (("in", i), ("out", o)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"The number of channels {name} must be a positive integer, but it is {value!r}.")
