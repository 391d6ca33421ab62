"""Where signals live: `Grid` (pixels, samples, voxels), `Graph` (nodes and directed edges) and `Bipartite` (two sets of
nodes, and edges from the first to the second).

A domain knows sites and neighbours, nothing of channels, weights or operators. All are immutable: whatever is
derived from edges (degrees, sparse layouts, normalised adjacencies) is computed once, kept with them and shared by
every layer that sees them, and can never be stale.
"""

from gconv.domains.bipartite import Bipartite
from gconv.domains.edges import Edges
from gconv.domains.graph import Graph
from gconv.domains.grid import Grid, grid_graph
from gconv.domains.reading import read_bipartite, read_graph

__all__ = ["Bipartite", "Edges", "Graph", "Grid", "grid_graph", "read_bipartite", "read_graph"]
