"""Where signals live: `Grid` (pixels, samples, voxels) and `Graph` (nodes and directed edges).

A domain knows sites and neighbours, nothing of channels, weights or operators. Both are immutable: whatever is
derived from a Graph (degrees, sparse layouts, normalised adjacencies) is computed once, kept on it and shared by
every layer that sees it, and can never be stale.
"""

from gconv.domains.graph import Graph
from gconv.domains.grid import Grid, grid_graph
from gconv.domains.reading import read_graph

__all__ = ["Graph", "Grid", "grid_graph", "read_graph"]
