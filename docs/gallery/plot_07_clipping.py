"""
Singular values of a layer, and clipping them
=============================================

The largest singular value of a layer is the factor by which it can amplify a signal. On a grid with circular padding,
the singular values can be computed exactly, one frequency at a time, and clipped.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, Grid, analysis
from gconv.operators import conv2d

grid = Grid((8, 8))
layer = GConv(conv2d(4, 4, 3, padding=1, padding_mode="circular"), dtype=torch.float64)
clipped = analysis.clip_singular_values(layer, grid, top=0.5, iterations=20)

figure, axis = plt.subplots()
for name, one, style in (("as initialised", layer, "-"), ("clipped at 0.5", clipped, "--")):
    axis.plot(analysis.singular_values(one.at(grid)), style, color="0.1", label=name)
    print(f"{name}: norm {analysis.norm(one.at(grid)):.3f}")
axis.axhline(0.5, color="0.6", linewidth=1)
axis.set(xlabel="index, in descending order", ylabel="singular value", ylim=(0, None))
axis.legend()

# %%
# A 3x3 kernel cannot realise every frequency response. The result is therefore a projection, and the largest singular
# value approaches 0.5 with the number of iterations.
