"""One matrix per edge label: on a pixel graph labelled by offset this is the grid convolution."""

from __future__ import annotations

from dataclasses import dataclass

from gconv.basis import Pattern, Taps
from gconv.call import Call
from gconv.domains import Edges
from gconv.mixing import Dense, Grouped
from gconv.operators.shapes import messy, pixels
from gconv.spec import GraphStructure, Parts, Sample, Theta, register


@dataclass(frozen=True)
class Labelled(GraphStructure):
    """One tap per label of `edge_type`."""

    taps: int

    reads = "source"

    def basis(self, domain: Edges, theta: Theta, call: Call) -> Taps:
        label = domain.edge_type
        if label is None:
            raise ValueError("selection needs a label on every edge: give the graph an edge_type.")
        if domain.readable and domain.num_edges and int(label.max()) >= self.taps:
            raise ValueError(
                f"This selection has {self.taps} taps, labels 0 to {self.taps - 1}, "
                f"but an edge has label {int(label.max())}."
            )
        entries = domain.memo(
            ("labelled", self.taps),
            lambda: Pattern((self.taps, *domain.sites), label, domain.target, domain.source),
        )
        return Taps(entries, domain.weights(call.x.dtype))


@register(
    samples=lambda selection: [
        Sample(selection(3, 2, 9), pixels, 3),
        Sample(selection(2, 4, 3), messy, 2),
        Sample(selection(2, 2, 5, bias=False), messy, 2),
        Sample(selection(4, 2, 3, groups=2), messy, 4),
    ],
    citation="Hart, Whitney and Morse, SelectionConv, ECCV 2022",
)
def selection(in_channels: int, out_channels: int, taps: int, bias: bool = True, groups: int = 1) -> Parts:
    """The graph counterpart of a grid convolution: one matrix per edge label.

    Equation: y_i = sum_k W_k^T sum over edges j -> i with label k of w_ij x_j + b.

    Meaning: with `grid_graph(shape, 8, loops=True)`, whose labels are the nine offsets in raster order, this is a 3 x 3
    convolution with zero padding 1, and the weights of `conv2d` can be loaded unchanged.

    In the family: one tap per label, weighted adjacencies; W dense or grouped.

    Traps: in the authors' code label 0 is the centre and 1 to 8 go counter-clockwise from the right neighbour, and
    their edges start at the node that reads.

    Args:
        taps: number of labels; labels without edges are allowed.
        groups: number of channel groups; in_channels makes it depthwise.

    Shapes: x (*b, n, i) -> (*b, n, o).
    Between two sets of nodes: `layer(x_source, bipartite)`.

    Raises:
        ValueError: if taps < 1, groups do not divide the channels, or the graph has no labels or one that is too large.

    >>> import torch
    >>> from gconv import GConv, grid_graph
    >>> from gconv.operators import conv2d
    >>> grid, twin = GConv(conv2d(1, 2, 3, padding=1)), GConv(selection(1, 2, 9))
    >>> _ = twin.load_state_dict(grid.state_dict())
    >>> x = torch.arange(12.0).reshape(1, 1, 3, 4)
    >>> y = twin(x.flatten(2).mT, grid_graph((3, 4), 8, loops=True))
    >>> torch.allclose(y.mT.reshape(1, 2, 3, 4), grid(x), atol=1e-6)
    True
    """
    if not isinstance(taps, int) or taps < 1:
        raise ValueError(f"taps must be a positive integer, but it is {taps!r}.")
    mixing = Dense(taps, in_channels, out_channels) if groups == 1 else Grouped(taps, in_channels, out_channels, groups)
    return Labelled(taps), mixing, bias
