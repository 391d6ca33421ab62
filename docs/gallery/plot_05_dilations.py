"""
Receptive fields of dilated convolutions
========================================

Three 3x3 convolutions have a receptive field of 7x7 pixels. With dilations 1, 2 and 4 it is 15x15 with the same number
of weights. Three layers with dilation 2 leave gaps between the pixels, the gridding artefact.
"""

import matplotlib.pyplot as plt
from torch import nn

from gconv import GConv, analysis
from gconv.operators import conv2d

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
for axis, dilations in zip(axes, [(1, 1, 1), (1, 2, 4), (2, 2, 2)], strict=True):
    net = nn.Sequential(*(GConv(conv2d(1, 1, 3, padding=d, dilation=d)) for d in dilations))
    field = analysis.effective_receptive_field(net, (1, 21, 21))
    axis.imshow(field > 0, cmap="Greys")
    axis.set(title=f"dilations {dilations}: {int((field > 0).sum())} pixels", xticks=[], yticks=[])
