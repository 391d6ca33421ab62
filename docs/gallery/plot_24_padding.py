"""
The matrices of padding modes
=============================

The padding mode determines what a convolution reads beyond the border: zeros, the opposite side, the mirror image or
the value at the border. The matrices differ only in their corners.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, Grid, analysis
from gconv.operators import conv1d

figure, axes = plt.subplots(1, 4, figsize=(11, 3))
for axis, mode in zip(axes, ("zeros", "circular", "reflect", "replicate"), strict=True):
    layer = GConv(conv1d(1, 1, 5, padding=2, padding_mode=mode, bias=False))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 4.0, 2.0, 1.0]).reshape(5, 1, 1))
    A = layer.at(Grid((9,)))
    analysis.plot_matrix(A, axis)
    axis.set_title(f"{mode}: norm {analysis.norm(A):.2f}")
