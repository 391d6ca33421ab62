"""
Deblurring with the adjoint
===========================

A layer on a domain is a matrix-free linear map ``A``, and ``A.T`` is its exact adjoint. This is sufficient for least
squares: solve ``(A.T A + c I) x = A.T y`` by conjugate gradients.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, Grid, analysis
from gconv.operators import conv2d

blur = GConv(conv2d(1, 1, 5, padding=2, bias=False), dtype=torch.float64)
line = torch.tensor([1.0, 4, 6, 4, 1], dtype=torch.float64) / 16
with torch.no_grad():
    blur.weight.copy_(torch.outer(line, line).reshape(25, 1, 1))
A = blur.at(Grid((32, 32)))
print(f"<A x, y> - <x, A.T y>: {analysis.adjoint_gap(A):.1e}")

image = torch.zeros(32, 32, dtype=torch.float64)
image[6:26, 8:12] = image[6:10, 8:24] = image[14:18, 8:20] = 1  # a letter
y = (A @ image.reshape(-1, 1)).detach() + 0.002 * torch.randn(1024, 1, dtype=torch.float64)

# %%
# Conjugate gradients only apply the map and never form its matrix.
B = A.T @ A + 1e-4 * A.I
with torch.no_grad():
    x, residual = torch.zeros_like(y), A.T @ y
    direction, size = residual.clone(), residual.square().sum()
    for _ in range(60):
        moved = B @ direction
        step = size / (direction * moved).sum()
        x, residual = x + step * direction, residual - step * moved
        size, before = residual.square().sum(), size
        direction = residual + size / before * direction

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
for axis, title, picture in zip(axes, ("image", "blurred, with noise", "deblurred"), (image, y, x), strict=True):
    axis.imshow(picture.detach().reshape(32, 32), cmap="gray", vmin=0, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
print(
    f"mean error: blurred {float((y.flatten() - image.flatten()).abs().mean()):.4f}, "
    f"deblurred {float((x.flatten() - image.flatten()).abs().mean()):.4f}"
)
