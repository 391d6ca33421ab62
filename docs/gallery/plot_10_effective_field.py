"""
What a deep network can see, and what counts
============================================

Each 3x3 layer widens the receptive field by one pixel on each side. What counts of it grows more slowly, and
concentrates in the middle.
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
    axis.set(title=f"{depth} layers: sees {wide},\nabove half in {half} columns", xticks=[], yticks=[])
