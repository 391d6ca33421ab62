"""
Exact attribution of a decision to pixels
=========================================

A network of convolutions, ReLU and max pooling is piecewise linear. ``analysis.affine`` returns the linear map and the
offset at one input. The product of a row and the input, plus the offset, is exactly the logit.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from gconv import analysis

y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
discs, bars = [], []
for _ in range(64):
    a, b = 4 + 8 * torch.rand(2)
    discs.append(((x - a) ** 2 + (y - b) ** 2 < 9).float())
    bars.append(((x - a).abs() < 1.5).float())
images = torch.stack(discs + bars)[:, None] + 0.1 * torch.randn(128, 1, 16, 16)
labels = torch.cat([torch.zeros(64), torch.ones(64)]).long()

net = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 2),
)  # fmt: skip
optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
for _ in range(60):
    optimiser.zero_grad()
    nn.functional.cross_entropy(net(images), labels).backward()
    optimiser.step()
net.eval()

# %%
figure, axes = plt.subplots(2, 2, figsize=(6.5, 6))
for (left, right), k in zip(axes, (0, 64), strict=True):
    image = images[k : k + 1]
    piece = analysis.affine(net, image)
    row = piece.row(0, int(labels[k]))
    part = (row * image).detach()
    logit = net(image)[0, labels[k]].item()
    rest = logit - float(part.sum()) - piece.offset[0, labels[k]].item()
    left.imshow(image[0, 0], cmap="gray")
    top = float(part.abs().max())
    shown = right.imshow(part[0, 0], cmap="RdBu_r", vmin=-top, vmax=top)
    figure.colorbar(shown, ax=right, shrink=0.8, label="contribution to the logit")
    left.set(title=("a disc", "a bar")[k > 0], xticks=[], yticks=[])
    right.set(title=f"logit {logit:.2f}, remainder {rest:.0e}", xticks=[], yticks=[])
