"""Regular grids, and the same grids as graphs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gconv.arguments import checked, integer, shown
from gconv.domains.graph import Graph


@dataclass(frozen=True, init=False)
class Grid:
    """A regular grid of sites, numbered in row-major order.

    Equation: site (p_1, ..., p_d) has number sum_a p_a prod_{b > a} shape_b.

    Args:
        shape: number of sites along each of one to three axes, each >= 1.

    Raises:
        TypeError: if shape is not a sequence of integers.
        ValueError: if there are not one to three axes, or one has no sites.

    >>> Grid((4, 5)).size
    20
    """

    shape: tuple[int, ...]

    def __init__(self, shape: Sequence[int], *more: Any) -> None:
        if more:
            raise TypeError(f"Grid takes one shape, such as Grid((32, 32)), but {1 + len(more)} arguments were given.")
        shape = _read_shape(shape)
        object.__setattr__(self, "shape", shape)
        if not 1 <= len(shape) <= 3:
            raise ValueError(f"A Grid has one to three axes, but shape {shape} has {len(shape)}.")
        if min(shape) < 1:
            raise ValueError(f"Every axis of a Grid needs at least one site, but its shape is {shape}.")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @classmethod
    def of(cls, x: Tensor, ndim: int) -> Grid:
        """The grid of a batch of images in torch's layout: the last `ndim` axes of `(*b, c, *shape)`."""
        return cls(tuple(x.shape[x.ndim - ndim :]))


def _read_shape(shape: Any) -> tuple[int, ...]:
    try:
        axes = tuple(shape)
    except TypeError:
        raise TypeError(
            f"The shape of a grid must be one integer per axis, such as (32, 32), but it is {shown(shape)}."
        ) from None
    return tuple(integer(s, "An axis of a grid") for s in axes)


@checked
def grid_graph(
    shape: Sequence[int], neighbours: int | None = None, *, loops: bool = False, periodic: bool = False
) -> Graph:
    """The grid as a graph: each site receives from its neighbours, and every edge is labelled with its offset.

    Equation: an edge j -> i for each offset o with site(j) = site(i) + o; its label is the raster number of o in the
    3^d window, so that label k is tap k of a 3 x 3 kernel (cross-correlation) and the centre is label (3^d - 1) / 2.

    Args:
        shape: number of sites along each axis.
        neighbours: 2d (sites that share a face: 4 in the plane) or 3^d - 1 (also diagonal ones: 8, the default).
        loops: whether to add an edge from each site to itself (with the label of the centre).
        periodic: whether the grid wraps around at its borders.

    Returns:
        Graph with `edge_type` (offset label), `edge_attr` ((e, d) offsets in sites) and `pos` ((n, d) in sites).

    Raises:
        TypeError: if shape is not a sequence of integers.
        ValueError: if `neighbours` is neither 2d nor 3^d - 1, or the shape is not that of a grid.

    >>> grid_graph((3, 3), 4), grid_graph((3, 3), 8, loops=True)
    (Graph(9 nodes, 24 edges, edge_attr, edge_type, pos), Graph(9 nodes, 49 edges, edge_attr, edge_type, pos))
    """
    grid = Grid(_read_shape(shape))
    d = grid.ndim
    neighbours = 3**d - 1 if neighbours is None else integer(neighbours, "neighbours")
    if neighbours not in (2 * d, 3**d - 1):
        raise ValueError(f"neighbours must be {2 * d} or {3**d - 1} on a {d}-D grid, but it is {neighbours}.")
    site = torch.cartesian_prod(*(torch.arange(s) for s in grid.shape)).reshape(-1, d)
    extent, place = torch.tensor(grid.shape), torch.tensor([math.prod(grid.shape[a + 1 :]) for a in range(d)])
    sources, targets, labels, offsets = [], [], [], []
    for label, offset in enumerate(itertools.product((-1, 0, 1), repeat=d)):
        reach = sum(map(abs, offset))
        if (reach == 0 and not loops) or (neighbours == 2 * d and reach > 1):
            continue
        to = site + torch.tensor(offset)
        inside = ((to >= 0) & (to < extent)).all(1) | periodic
        target = inside.nonzero()[:, 0]
        sources.append(((to % extent) * place).sum(1)[target])
        targets.append(target)
        labels.append(torch.full_like(target, label))
        offsets.append(torch.tensor(offset, dtype=torch.get_default_dtype()).expand(len(target), d))
    index = torch.stack([torch.cat(sources), torch.cat(targets)])
    pos = site.to(torch.get_default_dtype())
    return Graph(index, grid.size, edge_attr=torch.cat(offsets), edge_type=torch.cat(labels), pos=pos)
