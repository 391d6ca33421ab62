"""
The attention matrix at a given signal
======================================

In a graph attention layer the structure depends on the signal. Frozen at a given signal it is a matrix whose rows sum
to one; a different signal gives a different matrix.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, Graph
from gconv.operators import gat

torch.manual_seed(2)
i = torch.arange(10)
graph = Graph(
    torch.cat([torch.stack([i, (i + 1) % 10]), torch.stack([(i + 1) % 10, i]), torch.stack([i, i * 3 % 10])], 1)
)
layer = GConv(gat(4, 4, heads=1))

figure, axes = plt.subplots(1, 2, figsize=(8, 3.4))
for axis, name in zip(axes, ("one signal", "another signal"), strict=True):
    A = layer.at(graph, x=3 * torch.randn(10, 4))
    with torch.no_grad():
        S = A.S.expand(torch.eye(10))[0]
    print(f"{name}: rows sum to {S.sum(1).min():.3f} ... {S.sum(1).max():.3f}")
    shown = axis.imshow(S, vmin=0, vmax=1)
    axis.set(title=name, xlabel="from node", ylabel="to node")
figure.colorbar(shown, ax=axes, shrink=0.8, label="attention")
