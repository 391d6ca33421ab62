"""
A convolution as a graph layer
==============================

``gconv.twin`` converts a layer on images to a graph layer with the same weights and results. The graph can then be
modified edge by edge: here all edges that cross a vertical line, a wall, are removed.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import gconv
from gconv import Graph

blur = nn.Conv2d(1, 1, 3, padding=1, bias=False)
nn.init.constant_(blur.weight, 1 / 9)
twin, image = gconv.twin(blur), torch.zeros(1, 1, 16, 16)
image[..., 6:10, 4:8] = 1
print("largest difference:", (twin(image) - blur(image)).abs().max().item())

graph = twin.graph((16, 16))
source, target = graph.edge_index
left = torch.arange(256) % 16 < 8
keep = left[source] == left[target]
wall = Graph(graph.edge_index[:, keep], 256, edge_type=graph.edge_type[keep])

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
open_field = walled = image.flatten()[:, None]
with torch.no_grad():
    for _ in range(6):
        open_field = twin.gconv(open_field, graph)
        walled = twin.gconv(walled, wall)
for axis, title, picture in zip(
    axes, ("image", "six blurs", "six blurs, with a wall"), (image, open_field, walled), strict=True
):
    axis.imshow(picture.reshape(16, 16))
    axis.set(title=title, xticks=[], yticks=[])
