"""
The plan of a layer
===================

The plan of a layer lists all lowerings (algorithms), explains why some cannot run the layer, and predicts the cost of
the others. The fastest is chosen. All of them give the same result.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv
from gconv.operators import conv2d

layer, images = GConv(conv2d(8, 8, 7, padding=3)), torch.randn(4, 8, 24, 24)
plan = layer.plan(images)
print(plan)

# %%
ways = [c for c in plan.candidates if c.reason is None and c.name != "dense"]
with torch.no_grad():
    reference = layer(images, lowering="native")
    for way in ways:
        print(f"{way.name}: differs by {float((layer(images, lowering=way.name) - reference).abs().max()):.0e}")

figure, axis = plt.subplots(figsize=(6, 2.5))
axis.barh([w.name for w in ways], [1e3 * w.seconds for w in ways], color="0.4")
axis.set(xlabel="predicted time, ms", title="a 7x7 convolution, 8 -> 8 channels")
