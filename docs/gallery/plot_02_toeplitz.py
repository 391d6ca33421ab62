"""
A convolution is a Toeplitz matrix
==================================

Sliding a kernel along a sequence is multiplication by a matrix whose diagonals are constant. With circular padding the
matrix is circulant, and the discrete Fourier transform diagonalises it.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv, Grid, analysis
from gconv.operators import conv1d

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
for axis, mode in zip(axes, ("zeros", "circular"), strict=True):
    layer = GConv(conv1d(1, 1, 3, padding=1, padding_mode=mode, bias=False), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0, 0.5]).reshape(3, 1, 1))
    A = layer.at(Grid((12,)))
    analysis.plot_matrix(A, axis)
    axis.set_title({"zeros": "zero padding: Toeplitz", "circular": "circular padding: circulant"}[mode])

# %%
# The singular values of the circulant matrix are the absolute values of the Fourier transform of the kernel. gconv
# computes them without forming the matrix.
padded = torch.zeros(12, dtype=torch.float64)
padded[[11, 0, 1]] = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
fourier = torch.fft.fft(padded).abs().sort(descending=True).values
values = analysis.singular_values(A)
print("largest difference:", float((values - fourier).abs().max()))
analysis.plot_spectrum(values)
