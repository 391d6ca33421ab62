"""
What a GCN keeps of a convolution
=================================

On the pixel graph, a 3x3 convolution has a weight for each of nine edge labels. A GCN has one weight for all edges, so
it cannot distinguish left from right: its response to a single pixel is always the same symmetric pattern.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, grid_graph
from gconv.operators import gcn, selection

pixels = grid_graph((9, 9), neighbours=8, loops=True)
spike = torch.zeros(81, 1)
spike[40] = 1

torch.manual_seed(1)
layers = {
    "nine weights (a convolution)": GConv(selection(1, 1, taps=9)),
    "one weight (a GCN)": GConv(gcn(1, 1)),
}
figure, axes = plt.subplots(1, 2, figsize=(7, 3))
for axis, (title, layer) in zip(axes, layers.items(), strict=True):
    with torch.no_grad():
        response = layer(spike, pixels).reshape(9, 9) - layer.bias
    top = float(response.abs().max())
    shown = axis.imshow(response, cmap="RdBu_r", vmin=-top, vmax=top)
    axis.set(title=title, xticks=[], yticks=[])
    figure.colorbar(shown, ax=axis, shrink=0.8, label="response")
    turned = float((response - response.rot90()).abs().max())
    print(f"{title}: rotating the response by 90 degrees changes it by {turned:.2f}")
