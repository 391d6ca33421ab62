"""The elementary mixings with a weight: dense, grouped, by heads, and separable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gconv.arguments import shown
from gconv.basis import Basis, Identity, Stack, each, single
from gconv.kernels import matmul, product
from gconv.mixing.base import Mixing, Weighted, check_channels, check_number


def plus_product(add: Tensor | None, X: Tensor, W: Tensor) -> Tensor:
    """X W + add, by one addmm if X is a matrix."""
    if add is None:
        return matmul(X, W)
    if X.ndim == 2 and X.dtype != torch.bfloat16:
        return torch.addmm(add, X, W)
    return matmul(X, W) + add


def by_heads(X: Tensor, W: Tensor, times: Callable[[Tensor, Tensor], Tensor] = product) -> Tensor:
    """All X W_k, (*b, n, i) (k, i, c) -> (*b, n, k, c), by one matrix product."""
    wide = times(X, W.movedim(0, 1).flatten(1) if len(W) > 1 else W.squeeze(0))
    return wide.unflatten(-1, (W.shape[0], W.shape[2]))


@dataclass(frozen=True)
class Dense(Weighted, Mixing):
    """A full matrix for each tap: W (k, i, o).

    Args:
        taps, i, o: taps, channels in, channels out.
        scale: a fixed factor of the weight (1 / k for the mean over heads).
    """

    is_dense = True
    taps: int
    i: int
    o: int
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.taps, self.i, self.o

    @property
    def fan_in(self) -> int:
        return self.taps * self.i

    def _scaled(self, W: Tensor) -> Tensor:
        return W if self.scale == 1.0 else W * self.scale

    def gather(self, E: Tensor, W: Tensor | None, add: Tensor | None = None) -> Tensor:
        assert W is not None
        W = self._scaled(W)
        if self.taps == 1:
            return plus_product(add, E.squeeze(-3), W.squeeze(0))
        return plus_product(add, E.movedim(-3, -2).flatten(-2), W.flatten(0, 1))

    def split(self, W: Tensor, sizes: Sequence[int]) -> list[tuple[Any, Tensor]]:
        """Dense mixings for consecutive blocks of taps."""
        parts = W.split(list(sizes))
        return [(Dense(k, self.i, self.o, self.scale), part) for k, part in zip(sizes, parts, strict=True)]

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        W = self._scaled(W)
        if self.taps == 1:
            return product(X, W.squeeze(0)).unsqueeze(-3)
        wide = product(X, W.movedim(0, 1).flatten(1))
        return wide.unflatten(-1, (self.taps, self.o)).movedim(-2, -3)

    def joined(self, Y: Tensor, Z: Tensor) -> Tensor:
        """The result of `collect`, given Y_k = S_k X W_k without the scale; further taps are identities."""
        heads = Y.shape[-3]
        Y = Y.sum(-3) if heads > 1 else Y.squeeze(-3)
        Y = Y if heads == self.taps else Y + Z[..., heads:, :, :].sum(-3)
        return Y if self.scale == 1.0 else Y * self.scale

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        assert W is not None
        return self._scaled(W)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        assert W is not None
        return Dense(self.taps, self.o, self.i, self.scale), W.mT

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.taps * self.i * self.o


@dataclass(frozen=True)
class Grouped(Weighted, Mixing):
    """Channels in g separate groups: W (k, g, i/g, o/g); depthwise if g = i.

    Raises:
        ValueError: if the groups do not divide both numbers of channels.
    """

    overhead = " groups"
    taps: int
    i: int
    o: int
    groups: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("groups", self.groups, 0)
        if self.groups < 1 or self.i % self.groups or self.o % self.groups:
            raise ValueError(
                f"groups must divide the channels in and out, "
                f"but {self.groups} does not divide both {self.i} and {self.o}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.taps, self.groups, self.i // self.groups, self.o // self.groups

    @property
    def fan_in(self) -> int:
        return self.taps * self.i // self.groups

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        split = E.unflatten(-1, (self.groups, -1))
        return torch.einsum("...kmgi,kgio->...mgo", split, W).flatten(-2)

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        split = X.unflatten(-1, (self.groups, -1))
        return torch.einsum("...ngi,kgio->...kngo", split, W).flatten(-2)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        assert W is not None
        blocks = torch.eye(self.groups, dtype=W.dtype, device=W.device)
        return torch.einsum("kgio,gh->kgiho", W, blocks).flatten(1, 2).flatten(2)

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        assert W is not None
        return Grouped(self.taps, self.o, self.i, self.groups), W.mT

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.taps * self.i * self.o // self.groups


@dataclass(frozen=True)
class Heads(Weighted, Mixing):
    """Each tap writes its own block of output channels: Y = [S_0 X W_0 | S_1 X W_1 | ...], o = heads c.

    In sum_k S_k X W_k, W_k is the (i, o) matrix that is zero outside of block k. The weight is (heads, i, c). With
    `root`, a last tap (the node itself) writes all blocks, and the weight is (2 heads, i, c) with its blocks last.
    """

    heads: int
    i: int
    c: int
    root: bool = False

    apart = True

    def __post_init__(self) -> None:
        check_channels(self.i, self.c)
        check_number("heads", self.heads)
        if not isinstance(self.root, bool):
            raise ValueError(f"root must be True or False, but it is {shown(self.root)}.")

    @property
    def o(self) -> int:
        return self.heads * self.c

    @property
    def taps(self) -> int:
        return self.heads + self.root

    @property
    def shape(self) -> tuple[int, ...]:
        return self.heads * (1 + self.root), self.i, self.c

    @property
    def fan_in(self) -> int:
        return self.i

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        y = (E[..., : self.heads, :, :] @ W[: self.heads]).movedim(-3, -2).flatten(-2)
        return y + E[..., -1, :, :] @ W[self.heads :].movedim(0, 1).flatten(1) if self.root else y

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        return by_heads(X, W).movedim(-2, -3)

    def collect(self, S: Basis, Z: Tensor) -> Tensor:
        if not self.root:
            return self.joined(each(S, Z), Z)
        forms = S.parts if isinstance(S, Stack) and S.parts[-1].shape[0] == 1 else _single_taps(S, Z)
        *parts, own = forms
        Z, root = Z.split(self.heads, -3)  # one split, so that the backward pass concatenates both gradients at once
        Y = each(parts[0] if len(parts) == 1 else Stack(tuple(parts)), Z)
        return _side_by_side(Y + (root if isinstance(own, Identity) else own.expand(root).squeeze(-3)))

    def joined(self, Y: Tensor, Z: Tensor) -> Tensor:
        """The result of `collect`, given the products Y_k = S_k Z_k of the heads."""
        return (Y + Z[..., self.heads :, :, :] if self.root else Y).movedim(-3, -2).flatten(-2)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        assert W is not None
        blocks = torch.eye(self.heads, dtype=W.dtype, device=W.device)
        apart = torch.einsum("kic,kh->kihc", W[: self.heads], blocks).flatten(2)
        root = W[self.heads :].movedim(0, 1).reshape(-1, self.i, self.heads * self.c)
        return torch.cat([apart, root])

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        return Dense(self.taps, self.heads * self.c, self.i), self.dense(W, i).mT

    def width(self, i: int) -> int:
        return self.heads * (1 + self.root) * self.c

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.heads * (1 + self.root) * self.i * self.c


def _single_taps(S: Basis, like: Tensor) -> tuple[Basis, ...]:
    return tuple(single(S, k, like.dtype, like.device) for k in range(S.shape[0]))


def _side_by_side(Z: Tensor) -> Tensor:
    """(*b, k, m, c) -> (*b, m, k c)."""
    return Z.movedim(-3, -2).flatten(-2)


@dataclass(frozen=True)
class Separable(Weighted, Mixing):
    """A filter per channel, then one matrix: W_k = diag(d_k) P (MobileNet's separable convolution).

    The weight is (k + o, i): the k rows d_k, then P^T.
    """

    overhead = " separable"
    taps: int
    i: int
    o: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.taps + self.o, self.i

    @property
    def fan_in(self) -> int:
        return self.i

    def factors(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """d (k, i) and P (i, o)."""
        return W[: self.taps], W[self.taps :].mT

    def gather(self, E: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        d, P = self.factors(W)
        return matmul((E * d.unsqueeze(-2)).sum(-3), P)

    def spread(self, X: Tensor, W: Tensor | None) -> Tensor:
        assert W is not None
        d, P = self.factors(W)
        return matmul(X.unsqueeze(-3) * d.unsqueeze(-2), P)

    def dense(self, W: Tensor | None, i: int) -> Tensor:
        assert W is not None
        d, P = self.factors(W)
        return d.unsqueeze(-1) * P

    def transpose(self, W: Tensor | None, i: int) -> tuple[Mixing, Tensor | None]:
        return Dense(self.taps, self.o, self.i), self.dense(W, i).mT

    def flops(self, sites: int, i: int) -> int:
        return 2 * sites * self.i * (self.taps + self.o)
