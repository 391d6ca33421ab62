"""
A trained network on an image with a hole
=========================================

``gconv.transfer`` takes a network of images to other domains without changing a weight. Here, pixels are missing: with
zeros in their place an edge detector would find the hole's outline.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import gconv

edges = nn.Conv2d(1, 1, 3, padding=1, bias=False, padding_mode="replicate")
with torch.no_grad():
    edges.weight.copy_(torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]]))

y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
image = (0.5 + 0.02 * x + (y > 15).float() * 0.3)[None, None]
mask = torch.ones(24, 24, dtype=torch.bool)
mask[5:11, 8:16] = False

with torch.no_grad():
    zeros = edges(image * mask)[0, 0].where(mask, torch.nan)
    net = gconv.transfer(nn.Sequential(edges), mask, missing="renormalise")
    absent = net.domain.scatter(net(net.domain.gather(image)))[0, 0].where(mask, torch.nan)

figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
axes[0].imshow(image[0, 0].where(mask, torch.nan), cmap="gray")
for axis, picture in zip(axes[1:], (zeros, absent), strict=True):
    axis.imshow(picture, cmap="RdBu_r", vmin=-1, vmax=1)
for axis, title in zip(axes, ("image", "zeros in the hole", "the hole is absent"), strict=True):
    axis.set(title=title, xticks=[], yticks=[])
print(net.report)
