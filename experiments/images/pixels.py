"""Images as signals on a pixel graph shared by all images."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from gconv import GConv, Graph, OperatorSpec, grid_graph


class OnPixels(nn.Module):
    """A graph convolution on images: all images of a batch share one pixel graph, in one call.

    Shapes: x (b, i, h, w) -> (b, o, h, w), on a graph of h w nodes in row-major order.
    """

    def __init__(self, spec: OperatorSpec, graph: Graph):
        super().__init__()
        self.conv = GConv(spec)
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution on the pixel graph."""
        if self.graph.edge_index.device != x.device:
            self.graph = self.graph.to(x.device)
        y: Tensor = self.conv(x.flatten(2).mT, self.graph)
        return y.mT.unflatten(-1, x.shape[-2:])


@lru_cache
def pixel_graph(side: int, labels: tuple[int, ...] | None = None) -> Graph:
    """The graph of side x side pixels with 8 neighbours, offsets as pseudo-coordinates in [0, 1].

    Args:
        labels: a label for each of the nine offsets in raster order, including a self-loop; None gives the eight
            offsets distinct labels, without self-loops.

    >>> pixel_graph(3, (0, 0, 0, 0, 1, 0, 0, 0, 0)).edge_type.bincount()
    tensor([40,  9])
    """
    grid = grid_graph((side, side), 8, loops=labels is not None)
    assert grid.edge_type is not None and grid.edge_attr is not None
    kind = grid.edge_type if labels is None else torch.tensor(labels)[grid.edge_type]
    return Graph(grid.edge_index, grid.size, edge_attr=(grid.edge_attr + 1) / 2, edge_type=kind, pos=grid.pos)
