"""
The checkerboard of a transposed convolution
============================================

With stride 2 and a 3x3 kernel, some output pixels receive contributions from one tap, others from two or four. A
constant image therefore becomes a checkerboard. A kernel size that is a multiple of the stride avoids this.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv
from gconv.operators import conv_transpose2d

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
for axis, kernel in zip(axes, (3, 4), strict=True):
    layer = GConv(conv_transpose2d(1, 1, kernel, stride=2, bias=False))
    with torch.no_grad():
        layer.weight.fill_(1)
        y = layer(torch.ones(1, 1, 6, 6))[0, 0]
    shown = axis.imshow(y, vmin=0)
    axis.set(title=f"kernel {kernel}, stride 2", xticks=[], yticks=[])
    figure.colorbar(shown, ax=axis, shrink=0.8, label="number of taps")
