"""The domains of signals: `Grid` (pixels, samples, voxels), `Graph` (nodes and directed edges) and `Bipartite` (two
sets of nodes, with edges from the first to the second).

A domain consists of sites and neighbours; channels, weights and operators are defined elsewhere. Domains are immutable:
quantities derived from the edges (degrees, sparse layouts, normalised adjacencies) are computed once, cached on the
domain and shared by all layers that use it, and they cannot become stale.
"""

from gconv.domains.bipartite import Bipartite
from gconv.domains.edges import Edges
from gconv.domains.graph import Graph
from gconv.domains.grid import Grid, grid_graph
from gconv.domains.reading import read_bipartite, read_graph

__all__ = ["Bipartite", "Edges", "Graph", "Grid", "grid_graph", "read_bipartite", "read_graph"]
