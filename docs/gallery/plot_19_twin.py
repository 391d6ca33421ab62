"""
The graph twin of a convolution
===============================

``gconv.twin`` turns a layer on images into a layer on a graph with the same weights and the same numbers. Then the
graph may be changed edge by edge: here a wall is built through the image, which no tap reads across.
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
print("largest difference:", float((twin(image) - blur(image)).abs().max()))

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
