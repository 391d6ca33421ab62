"""The rows of a structure S that one process computes, restricted to the columns that they read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gconv.basis import Basis, Identity, Pattern, Polynomial, Shifts, Stack, Taps, entries
from gconv.domains import Graph
from gconv.domains.sampling import Whole, whole_sums
from gconv.parallel.halo import Halo, column_support
from gconv.parallel.partition import even
from gconv.parallel.processes import Processes


@dataclass(frozen=True, eq=False)
class Block:
    """The rows of S in one process: y = S_block (H x)[pick].

    S: the rows of this process, with columns for the rows of H x selected by `pick`; None if there are no rows.
    halo: H.
    pick: the positions in H x of the columns of S, in order; None for all of them.
    rows: the number of output rows.
    """

    S: Basis | None
    halo: Halo
    pick: Tensor | None = None
    rows: int = 0


class Steps(Polynomial):
    """A polynomial of a partitioned matrix: a halo is exchanged before each product with L."""

    halo: Halo

    def __post_init__(self) -> None:
        """Nothing to check: L is a block of rows of a polynomial's matrix, and not square."""

    @classmethod
    def of(cls, S: Polynomial, L: Taps, halo: Halo) -> Steps:
        made = cls(L, S.recurrence, S.combine)
        object.__setattr__(made, "halo", halo)
        return made

    @property
    def shape(self) -> tuple[int, int, int]:
        k, m, _ = super().shape
        return k, m, m

    @property
    def _fixed(self) -> bool:
        return False  # halos are exchanged between the products

    @property
    def fixed(self) -> bool:
        return False

    def _apply(self, x: Tensor) -> Tensor:
        return self.L.expand(self.halo(x)).squeeze(-3)


def _leaves(S: Basis) -> tuple[Basis, ...]:
    return tuple(leaf for part in S.parts for leaf in _leaves(part)) if isinstance(S, Stack) else (S,)


def refuses(S: Basis) -> str | None:
    """The reason why a structure on a graph cannot be partitioned by rows; None if it can."""
    if type(S) is Polynomial:
        return "the matrix of its polynomial is learned" if S.L.values.requires_grad else None
    if any(isinstance(leaf, Polynomial) for leaf in _leaves(S)):
        return "it stacks polynomials with other structures"
    if not S.by_entries:
        return "it needs an eigenbasis of the whole graph, so that every node reads every other"
    return None


def of_rows(S: Basis, bounds: tuple[int, ...], processes: Processes, like: Tensor) -> Block:
    """The block of a structure whose rows and columns are both partitioned by these bounds."""
    low, high = bounds[processes.rank], bounds[processes.rank + 1]
    if isinstance(S, Polynomial):
        L = entries(S.L, like.dtype, like.device)
        halo = Halo(column_support(L, low, high, like.dtype, like.device), bounds, processes)
        return Block(Steps.of(S, _cut(L, low, high, halo, 1, 1, like), halo), halo, rows=high - low)
    halo = Halo(_support(S, low, high, like), bounds, processes)
    return Block(_cut_all(S, low, high, halo, 1, 1, like), halo, rows=high - low)


def _support(S: Basis, low: int, high: int, like: Tensor) -> Tensor:
    reads = [column_support(leaf, low, high, like.dtype, like.device) for leaf in _leaves(S)]
    return torch.unique(torch.cat(reads))


def _cut_all(S: Basis, low: int, high: int, halo: Halo, wide_in: int, wide_out: int, like: Tensor) -> Basis:
    if isinstance(S, Stack):
        return Stack(tuple(_cut_all(part, low, high, halo, wide_in, wide_out, like) for part in S.parts))
    if isinstance(S, Identity) and wide_in == 1:
        node = torch.arange(high - low, device=like.device)
        pattern = Pattern((1, high - low, len(halo.sites)), torch.zeros_like(node), node, node + halo.before)
        return Taps(pattern, torch.ones(high - low, dtype=like.dtype, device=like.device))
    return _cut(entries(S, like.dtype, like.device), low, high, halo, wide_in, wide_out, like)


def _cut(S: Taps, low: int, high: int, halo: Halo, wide_in: int, wide_out: int, like: Tensor) -> Taps:
    """Rows low to high - 1 of S, of wide_out sites each, with columns indexed by the rows of H x, of wide_in sites."""
    found = S.pattern
    row, col = found.row, found.col
    at = ((row >= low * wide_out) & (row < high * wide_out)).nonzero()[:, 0]
    row, col = row[at] - low * wide_out, col[at]
    col = halo.local(col // wide_in) * wide_in + col % wide_in
    shape = S.shape[0], (high - low) * wide_out, len(halo.sites) * wide_in
    return Taps(Pattern(shape, found.tap[at], row, col), S.values[at], S.reduce)


def neighbourhood(graph: Graph, bounds: tuple[int, ...], processes: Processes) -> tuple[Graph, Halo]:
    """A graph on the rows of H x with the incoming edges of this process and the degrees of the whole graph."""
    low, high = bounds[processes.rank], bounds[processes.rank + 1]
    edges = ((graph.target >= low) & (graph.target < high)).nonzero()[:, 0]
    halo = Halo(graph.source[edges], bounds, processes)
    carried = {
        name: value[edges]
        for name in ("edge_weight", "edge_attr", "edge_type")
        if (value := getattr(graph, name)) is not None
    }
    pos = None if graph.pos is None else graph.pos[halo.sites]
    local = Graph(halo.local(graph.edge_index[:, edges]), len(halo.sites), pos=pos, **carried)
    object.__setattr__(local, "whole", Whole(halo.sites, edges, whole_sums(graph)[halo.sites], None))
    return local, halo


# -- grids: rows along the first axis -------------------------------------------------------------------------------


def of_slab(S: Basis, n: int, m: int, processes: Processes, like: Tensor, name: str) -> Block:
    """The block of a structure on grids with n input rows and m output rows, both partitioned evenly.

    Raises:
        ValueError: if a slab reads only padding.
    """
    bounds, targets = even(n, processes.size), even(m, processes.size)
    low, high = targets[processes.rank], targets[processes.rank + 1]
    if isinstance(S, Shifts) and (S.mode == "zeros" or not S.transposed):
        return _of_shifts(S, bounds, low, high, processes, like, name)
    wide_in, wide_out = S.shape[2] // n, S.shape[1] // m
    reads = _support(S, low * wide_out, high * wide_out, like) // wide_in
    halo = Halo(reads, bounds, processes)
    cut = _cut_all(S, low, high, halo, wide_in, wide_out, like) if high > low else None
    return Block(cut, halo, rows=high - low)


def _of_shifts(
    S: Shifts, bounds: tuple[int, ...], low: int, high: int, processes: Processes, like: Tensor, name: str
) -> Block:
    """The block in closed form: shifts on a smaller grid, with padding along the first axis at the ends of the grid."""
    k, s, d, before = S.kernel[0], S.stride[0], S.dilation[0], S.padding[0][0]
    rows, taps = torch.arange(low, high).unsqueeze(1), torch.arange(k) * d
    rest = S.padding[1:]
    if S.transposed:  # row t reads the j with s j + d a - p = t
        place = rows + before - taps
        place = torch.unique(place[place % s == 0].div(s, rounding_mode="floor"))
        read = site = place[(place >= 0) & (place < bounds[-1])]
    else:
        place = torch.unique(rows * s + taps - before)
        if S.mode == "zeros":
            read = site = place[(place >= 0) & (place < bounds[-1])]
        else:
            read = place
            site = S._border_maps(torch.device("cpu"))[0][1][place + before]
    halo = Halo(site.to(like.device), bounds, processes)
    blank = processes.gathered(high > low and not len(read))
    if any(blank):  # raised in every process, since the others would wait otherwise
        raise ValueError(f"In rank {blank.index(True)} the rows of {name} read only padding: use fewer processes.")
    if high == low:
        return Block(None, halo)
    first, last = int(read[0]), int(read[-1])
    if S.transposed:
        start = before + low - s * first
        end = (last - first) * s + d * (k - 1) + 1 - (high - low) - start
        local = replace(S, size=(high - low, *S.size[1:]), padding=((start, end), *rest))
    else:
        up, down = first - int(place[0]), int(place[-1]) - last
        divisor = S.divisor
        if isinstance(divisor, tuple):  # the sites that count in a mean, from the first and last row that is read
            below, above = divisor[0]
            divisor = ((below + first, above + bounds[-1] - 1 - last), *divisor[1:])
        local = replace(S, size=(last - first + 1, *S.size[1:]), padding=((up, down), *rest), divisor=divisor)
    pick = torch.zeros(last - first + 1, dtype=torch.int64)  # unread rows in between may be any row
    pick[read - first] = halo.local(site.to(like.device)).cpu()
    every = torch.arange(len(halo.sites))
    return Block(local, halo, None if torch.equal(pick, every) else pick.to(like.device), high - low)
