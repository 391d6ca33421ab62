"""By hand: one walk from the convolution sum to gconv, on a grid and on a graph; every step equals the next to 1e-12.

Claim: loops, matrix, hand-written backward pass, torch, PyG and gconv give the same numbers (float64, random inputs).
Protocol: each step computes one thing in two or more ways and prints the largest difference of any entry. It must be
below its bound; what is wrong on purpose ("must differ") must be above one. Otherwise the exit code is 1.

    python -m experiments.by_hand                   a few seconds; pictures go to experiments/figures/by_hand_*.png
    python -m experiments.by_hand --no-figures
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.signal
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from experiments.machine import ROOT
from gconv import GConv, Graph, Grid, NotLinear, OperatorSpec
from gconv.analysis import adjoint_gap, matrix
from gconv.lowering import dense
from gconv.operators import avg_pool2d, cheb, conv2d, conv_transpose2d, max_pool2d
from gconv.plan import backward

EXACT, SINGLE, SLOPE = 1e-12, 1e-5, 1e-6  # bounds: of float64, of float32, of a finite difference


@dataclass(frozen=True)
class ByHand:
    """The walk."""

    seed: int = 0
    """Of the random images, kernels and signals."""
    figures: Path = ROOT / "experiments" / "figures"
    """Folder of the pictures."""
    no_figures: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw none."""


def layer(spec: OperatorSpec, w: Any, b: Any = None) -> GConv:
    """The library's layer with these weights, its taps (k, c, o) in row-major order of the kernel."""
    made = GConv(spec, dtype=torch.float64)
    with torch.no_grad():
        assert made.weight is not None
        made.weight.copy_(torch.as_tensor(w).reshape(made.weight.shape))
        if b is not None:
            made.bias.copy_(torch.as_tensor(b))
    return made


def step_sum(rng: Any) -> Gaps:
    """The sum: (f*g)[n] = sum_m f[m] g[n-m]"""
    f, g = np.array([1.0, 2, 3, 4]), np.array([3.0, 2, 1])
    show("f", f)
    show("g", g)
    say("At n = 2 the sum is f[0] g[2] + f[1] g[1] + f[2] g[0] = 1*1 + 2*2 + 3*3 = 14: g runs backwards.")
    show("f * g", convolve_1d(f, g))
    say("Networks leave g as it is, out[n] = sum_m f[n+m] g[m], and call that convolution; it is cross-correlation.")
    say("At n = 0: 1*3 + 2*2 + 3*1 = 10.")
    show("correlation with g", correlate_1d(f, g))
    show("correlation with g flipped", correlate_1d(f, flip(g)))
    say("With g flipped it is the middle of f * g, where g lies inside of f.")
    a, b = rng.normal(size=9), rng.normal(size=4)
    ta, tb = (torch.from_numpy(v)[None, None] for v in (a, b))
    return [
        gap("loops - numpy.convolve", convolve_1d(a, b), np.convolve(a, b)),
        gap("correlation with g flipped - convolution", correlate_1d(a, flip(b)), np.convolve(a, b, "valid")),
        gap("correlation loops - torch conv1d", correlate_1d(a, b), F.conv1d(ta, tb)[0, 0]),
        gap("correlation with g - convolution", correlate_1d(f, g), np.convolve(f, g, "valid"), differ=True),
    ]


def step_plane(rng: Any) -> Gaps:
    """The plane: (f*g)[i,j] = sum_{m,n} f[m,n] g[i-m,j-n]"""
    f, g = np.arange(1.0, 10).reshape(3, 3), np.array([[1.0, 2], [3, 4]])
    show("f", f)
    show("g", g)
    show("g flipped, up-down and left-right", flip(g))
    show("f * g", convolve_2d(f, g))
    show("what a network computes", forward(f[..., None], g[..., None, None])[..., 0])
    say("Its corner is 1*1 + 2*2 + 4*3 + 5*4 = 37. With g flipped it would be 1*4 + 2*3 + 4*2 + 5*1 = 23, as in f * g.")
    a, b = rng.normal(size=(5, 6)), rng.normal(size=(3, 2))
    inside = scipy.signal.convolve2d(a, b, "valid")
    by_loops = forward(a[..., None], flip(b)[..., None, None])[..., 0]
    by_torch = F.conv2d(torch.from_numpy(a)[None, None], torch.from_numpy(flip(b))[None, None])[0, 0]
    return [
        gap("loops - scipy.signal.convolve2d", convolve_2d(a, b), scipy.signal.convolve2d(a, b)),
        gap("correlation with g flipped - convolution", by_loops, inside),
        gap("torch conv2d with g flipped - convolution", by_torch, inside),
        gap("loops - scipy.signal.correlate2d", forward(a[..., None], b[..., None, None])[..., 0],
            scipy.signal.correlate2d(a, b, "valid")),
        gap("correlation with g - convolution", forward(f[..., None], g[..., None, None])[..., 0],
            scipy.signal.convolve2d(f, g, "valid"), differ=True),
    ]  # fmt: skip


def step_channels(rng: Any) -> Gaps:
    """Channels and strides: out[i,j,k] = sum_{m,n,c} in[i s_h + m, j s_w + n, c] kernel[m,n,c,k]"""
    x, kernel = rng.normal(size=(6, 7, 2)), rng.normal(size=(3, 2, 2, 4))
    out = strided(x, kernel, 2, 3)
    say(f"Image {x.shape}, kernel {kernel.shape}, strides (2, 3): output {out.shape}, by six nested loops.")
    say("Each output channel k has a kernel for every input channel c, and adds up what they see.")
    say(f"torch writes the same as image (b, c, h, w) {tuple(image(x).shape)}, weight (k, c, m, n).")
    return [
        gap("loops - torch conv2d, stride (2, 3)", out, hwc(F.conv2d(image(x), weight(kernel), stride=(2, 3)))),
        gap("strides (1, 1) - the same loops as a list of terms", strided(x, kernel, 1, 1), forward(x, kernel)),
        gap("channels c and filters k swapped", strided(x, kernel[:, :, :, :2], 1, 1),
            strided(x, kernel[:, :, :, :2].swapaxes(2, 3).copy(), 1, 1), differ=True),
    ]  # fmt: skip


def step_geometry(rng: Any) -> Gaps:
    """Kernel size, padding, stride, dilation: an axis of n sites gives (n + 2p - d(k-1) - 1) // s + 1"""
    cases = [(7, 3, 1, 0, 1), (7, 3, 1, 1, 1), (7, 3, 2, 1, 1), (7, 3, 1, 2, 2), (8, 5, 3, 2, 1), (6, 1, 2, 0, 1), (5, 2, 3, 0, 4)]
    notes = ["no padding: shrinks", "padding 1 keeps the size", "stride 2 halves it", "dilation 2: 3 taps span 5",
             "5 taps in steps of 3", "1 x 1: channels only", "the kernel just fits"]  # fmt: skip
    print("      n  kernel  stride  padding  dilation  ->  out   loops - torch")
    worst = []
    for (n, k, s, p, d), note in zip(cases, notes, strict=True):
        x, kernel = rng.normal(size=(n, n, 2)), rng.normal(size=(k, k, 2, 2))
        ours, theirs = forward(x, kernel, s=s, p=p, d=d), hwc(F.conv2d(image(x), weight(kernel), None, s, p, d)).numpy()
        fits = sum(1 for start in range(-p, n + p, s) if start + d * (k - 1) < n + p)
        same = ours.shape == theirs.shape == (fits, fits, 2)
        worst.append(float(abs(ours - theirs).max()) if same else math.nan)
        print(f"      {n}  {k:6}  {s:6}  {p:7}  {d:8}  ->  {fits:3}   {worst[-1]:.1e}   {note}")
    a, b = rng.normal(size=(4, 4, 2)), rng.normal(size=(3, 3, 2, 1))
    z = forward(a, b, p=1)[..., 0]
    say("After it comes an activation, entry by entry. ReLU keeps what is positive:")
    show("conv", z[:2])
    show("relu", np.where(z > 0, z, 0)[:2])
    say("It is what is not linear: relu(-z) is not -relu(z). Without it, many layers would be one matrix.")
    return [
        gap("all cases: loops - torch conv2d, sizes as counted", worst, np.zeros(len(worst))),
        gap("max(z, 0) - torch relu", np.where(z > 0, z, 0), F.relu(torch.from_numpy(z))),
        gap("relu(-z) - (-relu(z))", np.maximum(-z, 0), -np.maximum(z, 0), differ=True),
    ]


def step_matrix(rng: Any) -> Gaps:
    """Its matrix: doubly block Toeplitz, and circulant where opposite borders meet"""
    g = np.array([[1.0, 2], [3, 4]])[..., None, None]
    say("A linear map is a matrix. Kernel [[1, 2], [3, 4]] on a 3 x 3 image, pixels in reading order, 9 columns:")
    small = as_matrix((3, 3, 1), g)
    for row, place in zip(small.astype(int), np.ndindex(2, 2), strict=True):
        print(f"      out{place}  " + " | ".join(" ".join(str(v or ".") for v in block) for block in row.reshape(3, 3)))
    say("Blocks repeat along the diagonals (image rows), and so do the entries in each (pixels of a row).")
    x, kernel = rng.normal(size=(5, 5, 2)), rng.normal(size=(3, 3, 2, 3))
    M, C = as_matrix(x.shape, kernel, p=1), as_matrix(x.shape, kernel, p=1, circular=True)
    blocks = M.reshape(5, 5, 3, 5, 5, 2).transpose(0, 3, 1, 4, 2, 5)  # (row, row', col, col', k, c)
    ring = C.reshape(5, 5, 3, 5, 5, 2)
    A = layer(conv2d(2, 3, 3, padding=1, bias=False), kernel).at(Grid((5, 5)))
    S = dense.stack(A.S, torch.float64, torch.device("cpu"))  # (k, m, n): nine shift matrices
    kron = sum(torch.kron(S[k], torch.from_numpy(kernel.reshape(9, 2, 3))[k].T) for k in range(9))
    wrapped = F.conv2d(F.pad(image(x), (1, 1, 1, 1), mode="circular"), weight(kernel))
    laid = np.zeros((5, 5, 2, 3))
    for m, n in product(range(3), range(3)):
        laid[(m - 1) % 5, (n - 1) % 5] = kernel[m, n]  # the kernel on the ring, its centre at pixel (0, 0)
    spectrum = np.einsum("hwck,hwc->hwk", np.fft.fft2(laid, axes=(0, 1)).conj(), np.fft.fft2(x, axes=(0, 1)))
    return [
        gap("matrix @ x - loops", (M @ x.flatten()).reshape(5, 5, 3), forward(x, kernel, p=1)),
        gap("each block equals the one down its diagonal", blocks[:-1, :-1], blocks[1:, 1:]),
        gap("each entry equals the one down its block's diagonal", blocks[:, :, :-1, :-1], blocks[:, :, 1:, 1:]),
        gap("circulant: the matrix moved by one pixel, around - itself", np.roll(ring, (1, 1), (1, 4)), ring),
        gap("circulant matrix @ x - torch, circular padding", (C @ x.flatten()).reshape(5, 5, 3), hwc(wrapped)),
        gap("circulant: a product a frequency (FFT) - matrix @ x", np.fft.ifft2(spectrum, axes=(0, 1)).real.flatten(), C @ x.flatten()),
        gap("sum of nine shifts, sum_k S_k (x) W_k^T - matrix", kron, M),
        gap("gconv.analysis.matrix - matrix", matrix(A), M),
        gap("zero padding, moved by one pixel, around", np.roll(M.reshape(ring.shape), (1, 1), (1, 4)), ring, differ=True),
    ]


def step_transposed(rng: Any) -> Gaps:
    """Transposed convolution: the same matrix, transposed"""
    x, y, kernel = rng.normal(size=(7, 5, 2)), rng.normal(size=(4, 3, 3)), rng.normal(size=(3, 3, 2, 3))
    M = as_matrix(x.shape, kernel, s=2, p=1)
    painted = np.zeros(x.shape)
    for o, i, k in terms(x.shape, kernel.shape, s=2, p=1):
        painted[i] += y[o] * kernel[k]
    up = M.T @ y.flatten()
    say(f"Stride 2 leads from {x.shape} to {y.shape}: a {M.shape[0]} x {M.shape[1]} matrix. Transposed it leads back:")
    say("each small pixel paints the kernel, times its value, onto the large image. Same list of terms, roles exchanged.")
    spec = conv_transpose2d(3, 2, 3, stride=2, padding=1, bias=False)
    A = layer(conv2d(2, 3, 3, stride=2, padding=1, bias=False), kernel).at(Grid((7, 5)))
    torchs = F.conv_transpose2d(image(y), weight(kernel), stride=2, padding=1)
    return [
        gap("painting loops - matrix^T @ y", painted.flatten(), up),
        gap("torch conv_transpose2d, the same weight - matrix^T @ y", hwc(torchs).flatten(), up),
        gap("gconv conv_transpose2d - matrix^T @ y", hwc(layer(spec, kernel.swapaxes(2, 3).copy())(image(y))).flatten(), up),
        gap("gconv A.T @ y - matrix^T @ y", A.T @ torch.from_numpy(y).reshape(12, 3), up.reshape(35, 2)),
        gap("<M x, y> - <x, M^T y>", (M @ x.flatten()) @ y.flatten(), x.flatten() @ up),
        gap("it is no inverse: M^T M x - x", M.T @ M @ x.flatten(), x.flatten(), differ=True),
    ]


def step_backward(rng: Any) -> Gaps:
    """Forward, then backward by hand: dX = sum_k S_k^T dY W_k^T, dW_k = (S_k X)^T dY, db = sum dY"""
    x, kernel, b = rng.normal(size=(6, 5, 2)), rng.normal(size=(3, 3, 2, 3)), rng.normal(size=3)
    geometry = {"s": 2, "p": 1}

    def loss(x: np.ndarray, kernel: np.ndarray, b: np.ndarray) -> float:
        return float((np.maximum(forward(x, kernel, **geometry) + b, 0) ** 2).sum() / 2)

    y = forward(x, kernel, **geometry) + b
    dy = np.where(y > 0, y, 0)  # of the loss 1/2 sum relu(y)^2, through the ReLU
    dx, dw = np.zeros(x.shape), np.zeros(kernel.shape)
    for o, i, k in terms(x.shape, kernel.shape, **geometry):
        dx[i] += dy[o] * kernel[k]  # output -> input, through the kernel: a transposed convolution
        dw[k] += dy[o] * x[i]  # output and input meet: a correlation of the two
    db = dy.sum((0, 1))
    say(f"Loss 1/2 sum relu(conv(x) + b)^2 = {loss(x, kernel, b):.6f}. Each term y += x w sends back dx += dy w, dw += dy x.")
    show("db", db)
    ours = layer(conv2d(2, 3, 3, stride=2, padding=1), kernel, b)
    S, X, dY = ours.at(Grid((6, 5))).S, torch.from_numpy(x).reshape(30, 2), torch.from_numpy(dy).reshape(9, 3)
    W = torch.from_numpy(kernel).reshape(9, 2, 3)
    stack = dense.stack(S, torch.float64, torch.device("cpu"))
    gaps = [
        gap("dX: loops - sum_k S_k^T dY W_k^T", dx.reshape(30, 2), sum(stack[k].T @ dY @ W[k].T for k in range(9))),
        gap("dW: loops - (S_k X)^T dY", dw.reshape(9, 2, 3), torch.stack([(stack[k] @ X).T @ dY for k in range(9)])),
    ]
    for name, hand, engine in zip(("dX", "dW"), (dx.reshape(30, 2), dw.reshape(9, 2, 3)), backward(S, ours.spec.mixing, W, X, dY), strict=True):
        gaps.append(gap(f"{name}: loops - gconv.plan.backward, the engine's rule", hand, engine))
    theirs = nn.Conv2d(2, 3, 3, stride=2, padding=1, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(weight(kernel))
        theirs.bias.copy_(torch.from_numpy(b))  # type: ignore[union-attr]
    for name, module in (("nn.Conv2d", theirs), ("GConv", ours)):
        t = image(x).requires_grad_()
        out = module(t)
        (F.relu(out) ** 2).sum().div(2).backward()
        assert t.grad is not None
        w_grad = module.weight.grad if module is ours else module.weight.grad.permute(2, 3, 1, 0)
        gaps.append(gap(f"y:  loops - {name}", y, hwc(out)))
        gaps.append(gap(f"dX: loops - {name}, autograd", dx, hwc(t.grad)))
        gaps.append(gap(f"dW: loops - {name}, autograd", dw.reshape(9, 2, 3), w_grad.reshape(9, 2, 3)))
        gaps.append(gap(f"db: loops - {name}, autograd", db, module.bias.grad))
    h, place = 1e-5, (1, 2, 0, 1)
    up, down = kernel.copy(), kernel.copy()
    up[place] += h
    down[place] -= h
    slope = (loss(x, up, b) - loss(x, down, b)) / (2 * h)
    say(f"And without any rule: move kernel{place} by +-{h:g}; the loss moves by {slope:.6f} a unit; dW says {dw[place]:.6f}.")
    gaps.append(gap("dW: loops - finite difference, one entry", dw[place], slope, SLOPE))
    gaps.append(gap("dX with the kernels not transposed in space", dx, hwc(F.conv_transpose2d(
        image(dy), weight(kernel).flip(2, 3), stride=2, padding=1, output_padding=(1, 0))), differ=True))  # fmt: skip
    return gaps
