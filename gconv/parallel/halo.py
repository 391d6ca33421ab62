"""Halos: the rows of other processes that this process reads, and their exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gconv.arguments import plural, shown
from gconv.basis import Basis, entries
from gconv.errors import Differentiable
from gconv.parallel.processes import Processes

if TYPE_CHECKING:
    from gconv.parallel.partition import Partition


class Halo:
    """The rows of this process together with those that it reads from others, in ascending order.

    Equation: H x = x[sites]; the backward pass H^T adds the gradients of halo rows in the processes that own them.

    Args:
        reads: indices of the rows that are read, in any order.
        bounds: process r holds the rows bounds[r] to bounds[r + 1] - 1.
        processes: the group.

    sites: indices of the rows of H x, ascending, so that the order of summation does not change.
    before: the number of halo rows that precede the rows of this process.
    send, receive: the numbers of rows sent to and received from each process.
    """

    def __init__(self, reads: Tensor, bounds: Sequence[int], processes: Processes) -> None:
        self.processes, rank = processes, processes.rank
        low, high = bounds[rank], bounds[rank + 1]
        need = torch.unique(reads.cpu())
        need = need[(need < low) | (need >= high)]
        owner = torch.bucketize(need, torch.tensor(bounds[1:]), right=True)
        self.receive = torch.bincount(owner, minlength=processes.size).tolist()
        ids = processes.gathered([part.tolist() for part in need.split(self.receive)])
        wanted = [asked[rank] for asked in ids]
        self.send = [len(part) for part in wanted]
        self.give = torch.tensor([site - low for part in wanted for site in part], dtype=torch.int64)
        self.give = self.give.to(reads.device)
        self.own = high - low
        self.before = int((need < low).sum())
        own = torch.arange(low, high)
        self.sites = torch.cat([need[: self.before], own, need[self.before :]]).to(reads.device)

    @property
    def rows(self) -> int:
        """The number of rows received from other processes."""
        return sum(self.receive)

    @property
    def idle(self) -> bool:
        """Whether this process neither sends nor receives; the others may."""
        return not (sum(self.receive) or sum(self.send))

    def local(self, sites: Tensor) -> Tensor:
        """The positions of these rows in H x."""
        return torch.searchsorted(self.sites, sites)

    def __call__(self, x: Tensor, axis: int = -2) -> Tensor:
        """H x along an axis of x, which holds the rows of this process. Raises: ValueError."""
        if not -x.ndim <= axis < x.ndim or x.shape[axis] != self.own:
            raise ValueError(
                f"This process holds {plural(self.own, 'row')}, along axis {axis}, but x is {tuple(x.shape)}."
            )
        y: Tensor = _Exchange.apply(x, self, axis % x.ndim)
        return y

    def __repr__(self) -> str:
        return f"Halo({plural(self.own, 'row')}, {self.rows} of other processes)"


class _Exchange(Differentiable):
    """H x."""

    what = "a halo exchange"

    @staticmethod
    def forward(ctx: Any, x: Tensor, halo: Halo, axis: int) -> Tensor:
        ctx.halo, ctx.axis = halo, axis
        give = x.index_select(axis, halo.give).movedim(axis, 0)
        halo.processes.bytes_sent += give.numel() * give.element_size()
        found = halo.processes.exchange(give, halo.send, halo.receive).movedim(0, axis)
        low, high = found.split([halo.before, halo.rows - halo.before], axis)
        return torch.cat([low, x, high], axis)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Return.apply(g, ctx.halo, ctx.axis), None, None


class _Return(Differentiable):
    """H^T g."""

    what = "the gradient of a halo exchange"

    @staticmethod
    def forward(ctx: Any, g: Tensor, halo: Halo, axis: int) -> Tensor:
        ctx.halo, ctx.axis = halo, axis
        low, own, high = g.split([halo.before, halo.own, halo.rows - halo.before], axis)
        back = torch.cat([low, high], axis).movedim(axis, 0)
        found = halo.processes.exchange(back, halo.receive, halo.send).movedim(0, axis)
        return own.index_add(axis, halo.give, found)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Exchange.apply(g, ctx.halo, ctx.axis), None, None


def column_support(S: Basis, low: int, high: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The indices, ascending, of the columns that the rows low to high - 1 of S read."""
    found = entries(S, dtype, device).pattern
    mine = (found.row >= low) & (found.row < high)
    return torch.unique(found.col[mine])


def halo(S: Basis, part_in: Partition, part_out: Partition | None = None) -> Halo:
    """The halo of a structure S (k, m, n): the rows of x that the rows of S x in each process read.

    Args:
        S: any form of `gconv.basis` whose entries can be listed; on grids, rows are rows along the first axis.
        part_in: the partition of its columns.
        part_out: the partition of its rows; default: the same.

    Raises:
        ValueError: if the shape of S does not match the partitions.

    >>> import torch.distributed as dist
    >>> from gconv import Graph
    >>> from gconv.laplacian import adjacency
    >>> from gconv.parallel import shard
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> path = Graph(torch.tensor([[0, 1], [1, 2]]))
    >>> halo(adjacency(path, torch.float32), shard(path))
    Halo(3 rows, 0 of other processes)
    >>> dist.destroy_process_group()
    """
    from gconv.parallel.partition import Partition

    part_out = part_in if part_out is None else part_out
    if not isinstance(S, Basis) or not (isinstance(part_in, Partition) and isinstance(part_out, Partition)):
        raise TypeError(
            "halo takes a structure, such as layer.at(domain).S, and partitions from shard, not "
            f"{shown(S)}, {shown(part_in)} and {shown(part_out)}."
        )
    _, m, n = S.shape
    if (m, n) != (part_out.sites, part_in.sites):
        raise ValueError(
            f"S has {plural(m, 'row')} and {plural(n, 'column')}, but the partitions are of {part_out.sites} and "
            f"{plural(part_in.sites, 'site')}."
        )
    wide_in, wide_out = part_in.width, part_out.width
    low, high = part_out.range
    reads = column_support(S, low * wide_out, high * wide_out, torch.float64, part_in.device) // wide_in
    return Halo(reads, part_in.bounds, part_in.processes)
