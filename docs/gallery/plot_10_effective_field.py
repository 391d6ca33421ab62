"""
Theoretical and effective receptive fields
==========================================

Each 3x3 layer enlarges the receptive field by one pixel on each side. The effective receptive field, the region with
significant influence, grows more slowly and is concentrated in the centre.
"""

import matplotlib.pyplot as plt
from torch import nn

from gconv import GConv, analysis
from gconv.operators import conv2d

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
for axis, depth in zip(axes, (2, 5, 12), strict=True):
    layers = [GConv(conv2d(1 if i == 0 else 4, 4, 3, padding=1)) for i in range(depth)]
    field = analysis.effective_receptive_field(nn.Sequential(*layers), (1, 31, 31))
    field /= field.max()
    analysis.plot_receptive_field(field, axis)
    wide, half = int((field > 0).any(0).sum()), int((field > 0.5).any(0).sum())
    axis.set(title=f"{depth} layers: {wide} columns,\nabove half the maximum in {half}", xticks=[], yticks=[])
