"""Parsing of torch's kernel arguments, and the small domains used by samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gconv.arguments import integer
from gconv.domains import Edges, Graph, Grid, grid_graph

Channels = int | tuple[int, int]  # of both sets of nodes, or of the sources and of the targets


def widest(channels: Channels) -> int:
    """The number of channels of both signals after zero-padding the narrower one."""
    return max(channels) if isinstance(channels, tuple) else channels


def per_axis(name: str, value: Any, ndim: int, least: int | None) -> tuple[int, ...]:
    """One integer per axis, from an integer or a sequence.

    Raises:
        ValueError: if there are too few or too many, or one is below `least` (None for no bound).
    """
    values = (value,) * ndim if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    whole = all(isinstance(v, int) and not isinstance(v, bool) and (least is None or v >= least) for v in values)
    if len(values) != ndim or not whole:
        bound = "" if least is None else f" >= {least}"
        raise ValueError(f"{name} must be an integer{bound}, or {ndim} of them, but it is {value!r}.")
    return values


def axes(ndim: Any) -> int:
    """The number of axes of a grid.

    Raises:
        ValueError: if it is not 1, 2 or 3.
    """
    if type(ndim) is not int or ndim not in (1, 2, 3):
        raise ValueError(f"ndim must be 1, 2 or 3, but it is {ndim!r}.")
    return ndim


Pairs = tuple[tuple[int, int], ...]
Padding = Pairs | Literal["same_upper", "same_lower"]


def read_padding(
    value: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], least: int | None = 0
) -> Padding:
    """(before, after) for each axis, from torch's `padding`: a number, one per axis, pairs, "valid" or "same".

    "same_upper" and "same_lower" are ONNX's: out = ceil(in / stride). They depend on the size of the grid and are
    returned unchanged; `pads_on` resolves them. Numbers in pairs must be at least `least`; None means no bound.

    Raises:
        ValueError: if it is none of these, or "same" is combined with a stride.
    """
    if value in ("same_upper", "same_lower"):
        return value
    if value == "valid":
        return ((0, 0),) * len(kernel)
    if value == "same":
        if any(s != 1 for s in stride):
            raise ValueError(
                f"padding='same' keeps the size of the grid, which a stride of {stride} cannot; give numbers."
            )
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    if isinstance(value, str):
        raise ValueError(f"padding must be numbers, 'same' or 'valid', but it is {value!r}.")
    if are_pairs(value, len(kernel)):
        pairs = [per_axis("padding", pair, 2, least) for pair in value]
        return tuple((before, after) for before, after in pairs)
    return tuple((p, p) for p in per_axis("padding", value, len(kernel), 0))


def are_pairs(value: Any, ndim: int) -> bool:
    """Whether `padding` was given as a (before, after) for each axis."""
    return isinstance(value, Sequence) and len(value) == ndim and all(isinstance(v, Sequence) for v in value)


def pads_on(
    padding: Padding, size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Pairs:
    """(before, after) for each axis on a grid of this size.

    An odd total puts the extra site at the end with "same_upper", at the beginning with "same_lower".

    >>> pads_on("same_upper", (5,), (2,), (2,), (1,))
    ((0, 1),)
    """
    if not isinstance(padding, str):
        return padding
    total = [max(0, -n % s + d * (k - 1) + 1 - s) for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]
    return split_pads(total, padding)


def split_pads(total: Sequence[int], padding: Literal["same_upper", "same_lower"]) -> Pairs:
    """Total padding split into (before, after); negative totals are split in the same way, as in ONNX."""
    halves = [(t // 2, t - t // 2) for t in total]
    return tuple((small, large) if padding == "same_upper" else (large, small) for small, large in halves)


def attributes(name: str, graph: Edges, dim: int, dtype: torch.dtype) -> Tensor:
    """The graph's edge_attr (e, dim).

    Raises:
        ValueError: if the graph has no edge_attr, or one with another number of columns.
    """
    u = graph.edge_attr
    if u is None or u.shape[1] != dim:
        have = "none" if u is None else f"{u.shape[1]}"
        raise ValueError(f"{name} needs edge_attr with {dim} numbers an edge; the graph has {have}.")
    return u.to(dtype)


def grid(*shape: int) -> Grid:
    """A grid of this shape."""
    return Grid(shape)


def ring(n: int = 7) -> Graph:
    """An undirected ring, the graph of a circular grid."""
    i = torch.arange(integer(n, "n", 0))
    return Graph(torch.stack([torch.cat([i, (i + 1) % n]), torch.cat([(i + 1) % n, i])]), n)


def weighted(n: int = 8) -> Graph:
    """An undirected weighted graph with a hub, edge attributes and an isolated last node."""
    u = torch.tensor([0, 0, 0, 0, 1, 2, 3, 5])
    v = torch.tensor([1, 2, 3, 4, 2, 4, 5, 6])
    w = torch.linspace(0.5, 2.0, len(u), dtype=torch.float64)
    index = torch.stack([torch.cat([u, v]), torch.cat([v, u])])
    attr = torch.stack([torch.cat([w, w]), torch.linspace(-1, 1, 2 * len(u), dtype=torch.float64)], 1)
    return Graph(index, n, edge_weight=torch.cat([w, w]), edge_attr=attr)


def messy() -> Graph:
    """A graph with every special case: directed, weighted, two self-loops, a double edge, an isolated node."""
    index = torch.tensor([[0, 1, 1, 2, 2, 3, 4, 4, 0, 3], [1, 0, 2, 2, 3, 0, 1, 1, 4, 3]])
    e = index.shape[1]
    attr = torch.stack([torch.linspace(-1, 1, e), torch.linspace(1, 0, e) ** 2], 1).double()
    return Graph(
        index,
        6,
        edge_weight=torch.linspace(0.25, 1.75, e, dtype=torch.float64),
        edge_attr=attr,
        edge_type=torch.arange(e) % 3,
    )


def pixels() -> Graph:
    """A 4 x 5 pixel grid with its eight neighbours and loops, labelled by offset."""
    return grid_graph((4, 5), 8, loops=True)
