"""
Frequency responses of image filters
====================================

On images, frequencies are two-dimensional. A blur keeps low frequencies, a derivative removes the constant component,
and sharpening amplifies high frequencies.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, Grid, analysis
from gconv.operators import conv2d

kernels = {
    "blur": torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16,
    "horizontal derivative": torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8,
    "sharpen": torch.tensor([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
for axis, (name, kernel) in zip(axes, kernels.items(), strict=True):
    layer = GConv(conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(kernel.reshape(9, 1, 1))
    analysis.plot_response(analysis.frequency_response(layer, Grid((24, 24))), axis)
    axis.set_title(name)
