"""
Partitioning a graph for several processes
==========================================

If a graph is partitioned among several processes, edges cross the boundaries of the parts. The rows that a part reads
from other parts, its halo, are the column support of S outside the part. Their number depends on the node numbering.
"""

import matplotlib.pyplot as plt
import torch

from gconv import grid_graph
from gconv.laplacian import adjacency

graph = grid_graph((24, 24), 4)
shuffled = graph.permute(torch.randperm(graph.size))
reordered, _ = shuffled.reordered("rcm")


def halos(graph, parts=4):
    """Rows that each part reads of other parts."""
    part = torch.arange(graph.size) * parts // graph.size
    source, target = graph.edge_index
    return [len(source[(part[target] == p) & (part[source] != p)].unique()) for p in range(parts)]


figure, axes = plt.subplots(1, 3, figsize=(10, 3.6))
for axis, (name, one) in zip(
    axes, {"row by row": graph, "shuffled": shuffled, "reverse Cuthill-McKee": reordered}.items(), strict=True
):
    S = adjacency(one, torch.float32)
    axis.spy(S.expand(torch.eye(one.size))[0], markersize=0.5, color="0.2")
    axis.set(title=f"{name}:\n{sum(halos(one))} rows exchanged", xticks=[], yticks=[])
