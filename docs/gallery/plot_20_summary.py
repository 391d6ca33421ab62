"""
The cost of a model, layer by layer
===================================

``gconv.summary`` runs a model once and lists each layer's shapes, parameters and multiply-adds, for models of torch,
PyG and gconv.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import gconv

net = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 64, 1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
found = gconv.summary(net, torch.randn(1, 3, 32, 32))
print(found)

# %%
rows = [row for row in found.to_dict()["rows"] if row["multiply_adds"]]
names = [f"{row['path']}: {row['operator'] or row['layer']}" for row in rows]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.6), sharey=True)
left.barh(names, [row["multiply_adds"] / 1e6 for row in rows], color="0.4")
right.barh(names, [row["parameters"] / 1e3 for row in rows], color="0.4")
left.invert_yaxis()
left.set(xlabel="million multiply-adds")
right.set(xlabel="thousand parameters")
