"""Grid layers as graph layers whose edges are labelled by tap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gconv.arguments import checked, plural, shown
from gconv.basis import entries
from gconv.binding import bind, output_domain
from gconv.call import Call
from gconv.domains import Bipartite, Graph, Grid
from gconv.errors import InputError
from gconv.interop.from_torch import gconv_of
from gconv.mixing import Fixed, Grouped, plain, spread_bias
from gconv.module import GConv
from gconv.operators import selection, simple
from gconv.spec import OutsideFamily, Structure

MAX_GRAPHS = 16  # number of graphs that a Twin caches


class Twin(nn.Module):
    """The graph counterpart of a grid layer, returned by `gconv.twin`.

    Args:
        gconv: the graph layer, with the weights.
        structure: of the grid layer, whose entries become the edges.

    Shapes: images (b, i, *grid) or (i, *grid) -> (b, o, *grid) or (o, *grid), as for the grid layer.

    >>> isinstance(twin(nn.Conv1d(1, 1, 3)), Twin)
    True
    """

    def __init__(self, gconv: GConv, structure: Structure) -> None:
        super().__init__()
        self.gconv, self.structure = gconv, structure
        self._graphs: dict[tuple[int, ...], Graph | Bipartite] = {}

    def target(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the output grid for images on a grid of this shape."""
        found = output_domain(self.structure, Grid(tuple(shape)))
        assert isinstance(found, Grid)
        return found.shape

    @checked
    def graph(self, shape: Sequence[int]) -> Graph | Bipartite:
        """The graph for images on a grid of this shape: pixels in row-major order, one edge per entry of each S_k.

        Its `edge_type` is the tap k, and its `edge_weight` the entry (omitted if all are 1). If the output has another
        grid, it is a Bipartite from the input pixels to the output pixels.

        >>> from torch import nn
        >>> found = twin(nn.Conv2d(1, 1, 3, padding=1))
        >>> found.graph((4, 4)), found.graph((4, 4)).edge_type[:3]
        (Graph(16 nodes, 100 edges, edge_type), tensor([0, 0, 0]))
        """
        grid = Grid(tuple(shape))
        axes = getattr(self.structure, "ndim", len(grid.shape))
        if len(grid.shape) != axes:
            raise InputError(
                f"This twin takes grids with {plural(axes, 'axis', 'axes')}, but the shape is {grid.shape}."
            )
        known = self._graphs.get(grid.shape)
        if known is None:
            if len(self._graphs) >= MAX_GRAPHS:
                self._graphs.clear()
            like = self.gconv.weight if self.gconv.weight is not None else self.gconv._like
            signal = torch.empty(1, 0, dtype=torch.float64, device=like.device)
            S = entries(bind(self.structure, grid, {}, Call(signal)), signal.dtype, signal.device)
            ends = torch.stack([S.pattern.col, S.pattern.row])
            named: dict[str, Any] = (
                {"edge_type": S.pattern.tap} if self.structure.taps > 1 or self.gconv.weight is not None else {}
            )
            if not bool((S.values == 1).all()):
                named["edge_weight"] = S.values.to(like.dtype)
            out = self.target(grid.shape)
            known = Graph(ends, grid.size, **named) if out == grid.shape else Bipartite(ends, S.shape[:0:-1], **named)
            self._graphs[grid.shape] = known
        return known

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch tensor, but it is {shown(x)}.")
        axes = getattr(self.structure, "ndim", x.ndim - 2)
        if x.ndim not in (axes + 1, axes + 2) or axes < 1:
            raise InputError(
                f"This twin takes images (b, c, *grid) on {plural(axes, 'axis', 'axes')}, but x has shape "
                f"{tuple(x.shape)}."
            )
        shape = tuple(x.shape[-axes:])
        y: Tensor = self.gconv(x.flatten(-axes).mT, self.graph(shape))
        return y.mT.unflatten(-1, self.target(shape))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Twin:
        self._graphs.clear()
        super()._apply(fn, recurse)
        return self


@checked
def twin(layer: nn.Module) -> Twin:
    """The graph counterpart of a grid layer: the same taps and weights, on a graph with edges labelled by tap.

    Equation: both compute y = sum_k S_k x W_k + b. The S_k of the grid layer are shift matrices; the twin reads their
    entries from a graph, S_k[i, j] = sum of the weights of the edges j -> i with label k.

    Meaning: a convolution is a graph convolution that distinguishes its neighbours. The twin gives the same result for
    any stride, dilation, padding and padding mode, transposed or not, in one to three axes; its edges can then be
    modified individually.

    Cost: one edge per entry of S, and one row of x per edge; the grid layer itself is faster.

    Args:
        layer: a convolution, pooling, upsampling or other grid layer of gconv or torch.nn, converted or not.

    Returns:
        Twin: a module on images with `gconv`, the graph layer (`selection`, or `simple` if there are no parameters)
        with copies of the weights, and `graph(shape)`, the graph for images of that shape.

    Raises:
        TypeError: if it is not a layer, or a graph layer.
        OutsideFamily: if it is not in the family, or rearranges pixels into channels.

    >>> from torch import nn
    >>> conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular")
    >>> found, x = twin(conv), torch.rand(1, 2, 6, 5)
    >>> torch.allclose(found(x), conv(x), atol=1e-6), found.graph((6, 5))
    (True, Bipartite(30 sources, 9 targets, 81 edges, edge_type))
    >>> found.gconv.spec
    selection(2, 3, taps=9)

    Source: Hart, Whitney and Morse, SelectionConv, ECCV 2022.
    """
    own = gconv_of(layer, "twin")
    structure = own.spec.structure
    if structure.domain == "graph":
        raise TypeError(f"twin takes a layer on grids, but {own.spec.name} works on graphs.")
    mixing, W = plain(own.spec.mixing, own.weight)
    largest = getattr(structure, "reduce", "sum") == "max"
    if structure.kind != "fixed" or not (W is not None or (isinstance(mixing, Fixed) and mixing.taps == 1)):
        raise OutsideFamily(f"{own.spec.name} has no twin: it rearranges sites into channels, or learns its structure.")
    if W is None:
        return Twin(GConv(simple("max" if largest else "sum")).train(layer.training), structure)
    i: int = getattr(mixing, "i", 0)
    groups = mixing.groups if isinstance(mixing, Grouped) else 1
    spec = selection(i, mixing.channels(i), mixing.taps, own.bias is not None, groups)
    made = GConv(spec, dtype=W.dtype, device=W.device)
    with torch.no_grad():
        assert made.weight is not None
        made.weight.copy_(W if groups > 1 else mixing.dense(W, i))
        if made.bias is not None:
            bias = spread_bias(own.spec.mixing, own.bias)
            assert bias is not None
            made.bias.copy_(bias)
    return Twin(made.train(layer.training), structure)
