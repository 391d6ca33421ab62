"""
Average pooling and max pooling as matrices
===========================================

Average pooling is a matrix with one row per window. Max pooling has no matrix, but for a given image it selects one
pixel of each window; which one depends on the image.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, Grid, NotLinear, analysis
from gconv.operators import avg_pool2d, max_pool2d

average, maximum = GConv(avg_pool2d(2)), GConv(max_pool2d(2))
figure, axes = plt.subplots(3, 1, figsize=(6, 6), sharex=True)
analysis.plot_matrix(average.at(Grid((4, 4))), axes[0])
axes[0].set(title="average pooling", xlabel="", ylabel="output pixel")

for axis, seed in zip(axes[1:], (0, 1), strict=True):
    image = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    rows = [torch.autograd.grad(y, image, retain_graph=True)[0].flatten() for y in maximum(image).flatten()]
    axis.imshow(torch.stack(rows), cmap="Greys")
    axis.set(title=f"max pooling at image {seed}", ylabel="output pixel")
axes[-1].set(xlabel="input pixel")

# %%
# Requesting its linear map raises an error that explains why there is none.
try:
    maximum.at(Grid((4, 4)))
except NotLinear as error:
    print(error)
