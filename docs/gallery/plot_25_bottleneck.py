"""
A bottleneck between two halves of a graph
==========================================

Two dense groups are joined by one edge, through which all information between them must pass (over-squashing). The
influence between nodes shows how little arrives, and the effective resistance identifies the edge.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, Graph, analysis
from gconv.operators import gcn

group = torch.combinations(torch.arange(6)).T
undirected = torch.cat([group, group + 6, torch.tensor([[5], [6]])], 1)
graph = Graph(torch.cat([undirected, undirected.flip(0)], 1))

net = torch.nn.Sequential(*(GConv(gcn(4, 4)) for _ in range(3)))
influence = analysis.total_influence(net, torch.randn(12, 4), graph)
resistance = analysis.effective_resistance(graph)
worst = int(resistance.argmax())
print(f"the edge of largest resistance: {graph.edge_index[:, worst].tolist()}, {float(resistance[worst]):.2f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
shown = left.imshow(influence.clamp(min=1e-6).log10())
left.set(title="influence after three layers", xlabel="source node", ylabel="target node")
figure.colorbar(shown, ax=left, shrink=0.8, label="log10 of the influence")
right.bar(range(len(resistance)), resistance.sort(descending=True).values.tolist(), color="0.4", width=1)
right.set(title="effective resistance", xlabel="edge, sorted", ylabel="ohm, with 1 ohm per edge")
