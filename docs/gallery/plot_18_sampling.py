"""
Unbiased neighbour sampling
===========================

On large graphs, networks are trained on blocks of sampled neighbours. Sums are rescaled by the number of neighbours, so
the output of a single layer is unbiased; its variance decreases with the number of sampled neighbours.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, Graph, apply_blocks
from gconv.operators import sage

graph, x = Graph(torch.randint(200, (2, 6000)), 200), torch.randn(200, 8)
net = torch.nn.Sequential(GConv(sage(8, 1)))
with torch.no_grad():
    whole = float(net[0](x, graph)[7])

figure, axis = plt.subplots()
fanouts = [2, 5, 10, 20, -1]
for place, fanout in enumerate(fanouts):
    found = []
    for _ in range(60):
        blocks = graph.sample([7], [fanout])
        with torch.no_grad():
            found.append(float(apply_blocks(net, x[blocks[0].n_id], blocks)))
    axis.plot([place] * 60, found, ".", color="0.6")
    axis.plot(place, sum(found) / 60, "_", markersize=30, color="0")
axis.axhline(whole, color="0.2", linewidth=1, linestyle="--", label="full graph")
axis.set(xlabel="neighbours sampled", ylabel="output at node 7")
axis.set_xticks(range(5), [*map(str, fanouts[:-1]), "all"])
axis.legend()
