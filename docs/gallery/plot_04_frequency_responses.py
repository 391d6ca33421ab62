"""
Filters on a graph and their frequency responses
================================================

On an undirected graph, the eigenvectors of the Laplacian that vary little along edges correspond to low frequencies. A
polynomial filter multiplies each eigenvector by a number, its frequency response.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, analysis, grid_graph
from gconv.operators import appnp, cheb, gpr, heat

graph = grid_graph((8, 8), 4)
filters = {
    "cheb, random weights": GConv(cheb(1, 1, k=4, bias=False)),
    "appnp, alpha = 0.1": GConv(appnp(k=10, alpha=0.1)),
    "gpr, alpha = 0.2": GConv(gpr(k=10, alpha=0.2)),
    "heat, t = 2": GConv(heat(t=2.0)),
}
figure, axes = plt.subplots(1, 4, figsize=(11, 2.8))
for axis, (title, layer) in zip(axes, filters.items(), strict=True):
    analysis.plot_response(analysis.frequency_response(layer.double(), graph), axis, [(0, 0)])
    axis.set_title(title)

# %%
# Applied to noise, the low-pass filters keep the smooth components.
noise = torch.randn(64, 1, dtype=torch.float64)
figure, axes = plt.subplots(1, 5, figsize=(11, 2.4))
axes[0].imshow(noise.reshape(8, 8), cmap="RdBu_r")
axes[0].set_title("noise")
for axis, (title, layer) in zip(axes[1:], filters.items(), strict=True):
    axis.imshow(layer(noise, graph).detach().reshape(8, 8), cmap="RdBu_r")
    axis.set_title(title)
for axis in axes:
    axis.set(xticks=[], yticks=[])
