"""A kernel in all its orientations: the mixing of convolutions equivariant to the symmetries of the square grid."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor

from gconv.arguments import shown
from gconv.caches import Cache
from gconv.kernels import as_fake, at_trace_time, lasting, leave, untraced
from gconv.mixing.base import Mixing, Parametrised, check_number
from gconv.mixing.elementary import Dense

Group = Literal["p4", "p4m"]
ORDER: dict[Group, int] = {"p4": 4, "p4m": 8}
_TABLES: Cache[tuple[int, Group, bool, torch.device], Tensor] = Cache("tables of symmetric kernels", 64)


def turned(size: int, element: int) -> list[int]:
    """The action of a group element on a square kernel: (T psi)[k] = psi[turned(size, element)[k]].

    Element 4 m + r mirrors left to right if m = 1, then rotates r times by 90 degrees counterclockwise, as torch.rot90.

    >>> turned(2, 1)  # the right column becomes the top row
    [1, 3, 0, 2]
    """
    sites = []
    for k in range(size * size):
        row, col = divmod(k, size)
        for _ in range(element % 4):
            row, col = col, size - 1 - row
        sites.append(row * size + (size - 1 - col if element >= 4 else col))
    return sites


def left_quotient(order: int) -> list[list[int]]:
    """[g][h], the element g^-1 h."""
    sites = [turned(3, g) for g in range(order)]
    table = []
    for a in sites:
        after = {tuple(b[k] for k in a): j for j, b in enumerate(sites)}  # T_g T_j, by what it does
        table.append([after[tuple(h)] for h in sites])
    return table


def _table(size: int, group: Group, lifted: bool, device: torch.device) -> Tensor:
    """(k, g), or (k, h, g) for a lifted input: the tap (and group channel) of the kernel that is copied there."""
    key = size, group, lifted, device
    table = _TABLES.get(key)
    if table is None:
        order = ORDER[group]
        site = [turned(size, g) for g in range(order)]
        quotient = left_quotient(order)
        rows: list[list[list[int]]] = [
            [
                [site[g][k] * order + quotient[g][h] if lifted else site[g][k] for g in range(order)]
                for h in range(order if lifted else 1)
            ]
            for k in range(size * size)
        ]
        with lasting():
            table = torch.tensor(rows, device=device)
            table = _TABLES[key] = table if lifted else table.squeeze(1)
    return table


_TRACED = SimpleNamespace()  # tables, as attributes that compiled functions read


@at_trace_time
def _traced_table(size: int, group: Group, lifted: bool, device: torch.device) -> str:
    """The attribute of `_TRACED` that holds a table."""
    with untraced():
        table = _table(size, group, lifted, device)
    return leave(_TRACED, f"{size}_{group}_{lifted}_{device.type}_{device.index}", table)


@dataclass(frozen=True)
class Symmetric(Parametrised):
    """One kernel in all its orientations: output channel o |G| + g uses the kernel transformed by g.

    From plain channels, W (k, i, o):            W_k[c, o |G| + g] = W[g^-1 k, c, o]
    From channels of the group, W (k, i |G|, o): W_k[c |G| + h, o |G| + g] = W[g^-1 k, c |G| + g^-1 h, o]

    The bias is shared by the |G| orientations of a kernel.

    Args:
        size: side of the square kernel.
        i, o: channels in and out, with all orientations.
        group: "p4", the four rotations, or "p4m", rotations and reflections.
        lifted: whether the input channels are indexed by group elements, too.
    """

    size: int
    i: int
    o: int
    group: Group
    lifted: bool

    def __post_init__(self) -> None:
        if self.group not in ORDER:
            raise ValueError(f"group must be 'p4' or 'p4m', but it is {shown(self.group)}.")
        check_number("taps along a side", self.size)
        super().__post_init__()
        if self.o % self.order or (self.lifted and self.i % self.order):
            raise ValueError(
                f"Channels of {self.group} are multiples of {self.order}, but they are {self.i} in and {self.o} out."
            )

    @property
    def taps(self) -> int:
        return self.size**2

    @property
    def order(self) -> int:
        return ORDER[self.group]

    @property
    def tied(self) -> int:
        return self.order

    @property
    def shape(self) -> tuple[int, ...]:
        return self.taps, self.i, self.o // self.order

    @property
    def fan_in(self) -> int:
        return self.taps * self.i

    def plain(self, W: Tensor) -> tuple[Mixing, Tensor]:
        key = self.size, self.group, self.lifted, W.device
        if torch.compiler.is_dynamo_compiling():
            table: Tensor = getattr(_TRACED, _traced_table(*key))
        else:
            table = as_fake(_table(*key), W)
        if self.lifted:
            flat = W.unflatten(1, (-1, self.order)).movedim(2, 1).flatten(0, 1)  # (k h, i, o)
            poses = flat.index_select(0, table.flatten()).unflatten(0, table.shape)  # (k, h, g, i, o)
            full = poses.permute(0, 3, 1, 4, 2).flatten(3).flatten(1, 2)
        else:
            poses = W.index_select(0, table.flatten()).unflatten(0, table.shape)  # (k, g, i, o)
            full = poses.permute(0, 2, 3, 1).flatten(2)
        return Dense(self.taps, self.i, self.o), full
