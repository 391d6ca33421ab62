"""
Convert and analyse a residual network
======================================

``gconv.convert`` runs a torch network through gconv, with the same outputs. All analysis functions accept the result.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import gconv
from gconv import analysis


class Block(nn.Module):
    """x + f(x)."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))


resnet = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), Block(8), Block(8), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
).eval()
converted, x = gconv.convert(resnet), torch.randn(1, 3, 24, 24)
print(converted.report())
print("largest difference:", (converted(x) - resnet(x)).abs().max().item())

# %%
# A bound on the Lipschitz constant, and the receptive field of the centre pixel after each block.
print(f"Lipschitz bound: {analysis.lipschitz_bound(resnet, (3, 24, 24)):.1f}")
figure, axes = plt.subplots(1, 4, figsize=(10, 2.8))
for depth, axis in enumerate(axes):
    field = analysis.effective_receptive_field(converted[: depth + 1], (3, 24, 24), draws=5)
    analysis.plot_receptive_field(field.clamp(min=1e-6).log10(), axis)
    axis.images[0].colorbar.set_label("log10 of the influence")
    axis.set(title=f"after {depth} blocks: {int((field > 0).sum())} pixels", xticks=[], yticks=[])
