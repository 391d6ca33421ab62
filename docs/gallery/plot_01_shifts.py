"""
A 3x3 convolution is nine shifts
================================

Each entry of the kernel shifts the whole image by at most one pixel and multiplies it by a number; the sum of the nine
shifted images is the convolution. The shifts are the structure ``S_k``, the numbers are the mixing ``W_k``.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, Grid, analysis
from gconv.operators import conv2d

layer = GConv(conv2d(1, 1, 3, padding=1, bias=False))
kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])  # horizontal Sobel filter
with torch.no_grad():
    layer.weight.copy_(kernel.reshape(9, 1, 1))

# %%
# The image is a disc. Each tap reads the neighbour in one direction, which shifts the disc in the opposite direction.
y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
image = ((x - 12) ** 2 + (y - 12) ** 2 < 49).float()

figure, axes = plt.subplots(3, 3, figsize=(6, 6))
total = torch.zeros(24, 24)
for k, axis in enumerate(axes.flat):
    tap = GConv(conv2d(1, 1, 3, padding=1, bias=False))
    with torch.no_grad():
        tap.weight.zero_()[k] = layer.weight[k]
        moved = tap(image[None, None])[0, 0]
    total += moved
    axis.imshow(moved, vmin=-2, vmax=2, cmap="RdBu_r")
    axis.set(title=f"tap {k}, weight {kernel.flatten()[k]:g}", xticks=[], yticks=[])

# %%
# The layer computes the sum of the nine images: the left and right edges of the disc.
with torch.no_grad():
    result = layer(image[None, None])[0, 0]
print("largest difference:", float((total - result).abs().max()))
figure, axis = plt.subplots()
shown = axis.imshow(result, cmap="RdBu_r")
axis.set(title="the convolution", xticks=[], yticks=[])
figure.colorbar(shown, label="difference from left to right")

# %%
# The matrix of the layer is doubly block Toeplitz: it has nine diagonals, in blocks that correspond to image rows.
figure, axis = plt.subplots()
analysis.plot_matrix(layer.at(Grid((6, 6))), axis)
