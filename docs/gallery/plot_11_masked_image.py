"""
A trained network on an image with a hole
=========================================

``gconv.transfer`` runs an image network on other domains without changing its weights. Here some pixels are missing. If
they are replaced by zeros, a blur darkens the border of the hole; if they are masked, the remaining taps are rescaled.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import gconv

blur = nn.Conv2d(1, 1, 3, padding=1, bias=False, padding_mode="replicate")
nn.init.constant_(blur.weight, 1 / 9)

y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
image = (0.5 + 0.02 * x + (y > 15).float() * 0.3)[None, None]
mask = torch.ones(24, 24, dtype=torch.bool)
mask[5:11, 8:16] = False

with torch.no_grad():
    whole = blur(image)[0, 0]
    zeros = blur(image * mask)[0, 0]
    net = gconv.transfer(nn.Sequential(blur), mask, missing="renormalise")
    absent = net.domain.scatter(net(net.domain.gather(image)))[0, 0]

figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
axes[0].imshow(image[0, 0].where(mask, torch.nan), cmap="gray")
for axis, picture in zip(axes[1:], (zeros, absent), strict=True):
    shown = axis.imshow((picture - whole).where(mask, torch.nan), cmap="RdBu_r", vmin=-0.5, vmax=0.5)
for axis, title in zip(axes, ("image", "hole filled with zeros", "hole masked"), strict=True):
    axis.set(title=title, xticks=[], yticks=[])
figure.colorbar(shown, ax=axes[1:], shrink=0.8, label="difference from the blur of the whole image")
for name, picture in (("zeros", zeros), ("masked", absent)):
    print(f"{name}: largest difference {float((picture - whole)[mask].abs().max()):.3f}")
