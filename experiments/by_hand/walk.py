"""Convolution step by step, from the definition to gconv: all computations agree to 1e-12 (float64, random inputs).

The steps are best read in order, first on a grid and then on a graph: the definition as loops, the matrix, the
transpose, the forward and backward pass, torch and PyG, gconv. Each step computes one quantity in two or more ways and
prints the largest difference of any entry, which must be below a bound; computations that are wrong on purpose ("must
differ") must exceed one. Otherwise the exit status is 1. The run takes a few seconds.

    python -m experiments.by_hand                   all steps, and figures in runs/figures/by_hand_*.png
    python -m experiments.by_hand --no-figures      all steps without figures
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import torch
import torch.nn.functional as F
import tyro
from torch import nn

from experiments.by_hand.graph import step_cheb, step_filter, step_laplacian
from experiments.by_hand.loops import (
    EXACT,
    SINGLE,
    SLOPE,
    Gap,
    Gaps,
    as_matrix,
    convolve_1d,
    convolve_2d,
    correlate_1d,
    every_lowering,
    flip,
    forward,
    gap,
    hwc,
    image,
    layer,
    say,
    show,
    strided,
    terms,
    torch_layer,
    weight,
)
from experiments.harness.machine import ROOT
from experiments.harness.options import command_name
from gconv import GConv, Grid, NotLinear
from gconv.analysis import adjoint_gap, matrix
from gconv.lowering import dense
from gconv.operators import avg_pool2d, conv2d, conv_transpose2d, max_pool2d
from gconv.plan import backward


def step_sum(rng: Any) -> Gaps:
    """One dimension: (f*g)[n] = sum_m f[m] g[n-m]"""
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
    """Two dimensions: (f*g)[i,j] = sum_{m,n} f[m,n] g[i-m,j-n]"""
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
    cases = {
        (7, 3, 1, 0, 1): "no padding: shrinks",
        (7, 3, 1, 1, 1): "padding 1 keeps the size",
        (7, 3, 2, 1, 1): "stride 2 halves it",
        (7, 3, 1, 2, 2): "dilation 2: 3 taps span 5",
        (8, 5, 3, 2, 1): "5 taps in steps of 3",
        (6, 1, 2, 0, 1): "1 x 1: channels only",
        (5, 2, 3, 0, 4): "the kernel just fits",
    }
    print("      n  kernel  stride  padding  dilation  ->  out   loops - torch")
    worst = []
    for (n, k, s, p, d), note in cases.items():
        x, kernel = rng.normal(size=(n, n, 2)), rng.normal(size=(k, k, 2, 2))
        ours, theirs = forward(x, kernel, s=s, p=p, d=d), hwc(F.conv2d(image(x), weight(kernel), None, s, p, d)).numpy()
        fits = sum(1 for start in range(-p, n + p, s) if start + d * (k - 1) < n + p)
        same = ours.shape == theirs.shape == (fits, fits, 2)
        worst.append(float(abs(ours - theirs).max()) if same else np.nan)
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
    """The matrix: doubly block Toeplitz, or block circulant with circular padding"""
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
    kron = sum(np.kron(S[k], kernel.reshape(9, 2, 3)[k].T) for k in range(9))
    wrapped = F.conv2d(F.pad(image(x), (1, 1, 1, 1), mode="circular"), weight(kernel))
    laid = np.zeros((5, 5, 2, 3))
    for m, n in product(range(3), range(3)):
        laid[(m - 1) % 5, (n - 1) % 5] = kernel[m, n]  # the kernel on the ring, its centre at pixel (0, 0)
    spectrum = np.einsum("hwck,hwc->hwk", np.fft.fft2(laid, axes=(0, 1)).conj(), np.fft.fft2(x, axes=(0, 1)))
    by_fft = np.fft.ifft2(spectrum, axes=(0, 1)).real
    bordered = M.reshape(ring.shape)
    return [
        gap("matrix @ x - loops", (M @ x.flatten()).reshape(5, 5, 3), forward(x, kernel, p=1)),
        gap("each block equals the one down its diagonal", blocks[:-1, :-1], blocks[1:, 1:]),
        gap("each entry equals the one down its block's diagonal", blocks[:, :, :-1, :-1], blocks[:, :, 1:, 1:]),
        gap("circulant: moved down one row, around - itself", np.roll(ring, (1, 1), (0, 3)), ring),
        gap("circulant: moved along one column, around - itself", np.roll(ring, (1, 1), (1, 4)), ring),
        gap("circulant matrix @ x - torch, circular padding", (C @ x.flatten()).reshape(5, 5, 3), hwc(wrapped)),
        gap("circulant: a product a frequency (FFT) - matrix @ x", by_fft.flatten(), C @ x.flatten()),
        gap("sum of nine shifts, sum_k S_k (x) W_k^T - matrix", kron, M),
        gap("gconv.analysis.matrix - matrix", matrix(A), M),
        gap(
            "zero padding: moved along one column, around - itself",
            np.roll(bordered, (1, 1), (1, 4)),
            bordered,
            differ=True,
        ),
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
    say("each small pixel paints the kernel, times its value, onto the large image: the same terms, roles exchanged.")
    twin = layer(conv_transpose2d(3, 2, 3, stride=2, padding=1, bias=False), kernel.swapaxes(2, 3).copy())
    A = layer(conv2d(2, 3, 3, stride=2, padding=1, bias=False), kernel).at(Grid((7, 5)))
    torchs = F.conv_transpose2d(image(y), weight(kernel), stride=2, padding=1)
    return [
        gap("painting loops - matrix^T @ y", painted.flatten(), up),
        gap("torch conv_transpose2d, the same weight - matrix^T @ y", hwc(torchs).flatten(), up),
        gap("gconv conv_transpose2d - matrix^T @ y", hwc(twin(image(y))).flatten(), up),
        gap("gconv A.T @ y - matrix^T @ y", A.T @ torch.from_numpy(y).reshape(12, 3), up.reshape(35, 2)),
        gap("<M x, y> - <x, M^T y>", (M @ x.flatten()) @ y.flatten(), x.flatten() @ up),
        gap("it is no inverse: M^T M x - x", M.T @ M @ x.flatten(), x.flatten(), differ=True),
    ]


def step_backward(rng: Any) -> Gaps:
    """The forward pass, and the backward pass by hand: dX = sum_k S_k^T dY W_k^T, dW_k = (S_k X)^T dY, db = sum dY"""
    x, kernel, b = rng.normal(size=(6, 5, 2)), rng.normal(size=(3, 3, 2, 3)), rng.normal(size=3)
    geometry: dict[str, Any] = {"s": 2, "p": 1}

    def loss(x: np.ndarray, kernel: np.ndarray, b: np.ndarray) -> float:
        return float((np.maximum(forward(x, kernel, **geometry) + b, 0) ** 2).sum() / 2)

    y = forward(x, kernel, **geometry) + b
    dy = np.where(y > 0, y, 0)  # of the loss 1/2 sum relu(y)^2, through the ReLU
    dx, dw = np.zeros(x.shape), np.zeros(kernel.shape)
    for o, i, k in terms(x.shape, kernel.shape, **geometry):
        dx[i] += dy[o] * kernel[k]  # output -> input, through the kernel: a transposed convolution
        dw[k] += dy[o] * x[i]  # output and input meet: a correlation of the two
    db = dy.sum((0, 1))
    say(f"The loss is 1/2 sum relu(conv(x) + b)^2 = {loss(x, kernel, b):.6f}.")
    say("Each term y += x w of the forward pass sends back dx += dy w and dw += dy x; the bias collects dy.")
    show("db", db)
    ours = layer(conv2d(2, 3, 3, stride=2, padding=1), kernel, b)
    A, X, dY = ours.at(Grid((6, 5))), torch.from_numpy(x).reshape(30, 2), torch.from_numpy(dy).reshape(9, 3)
    W = torch.from_numpy(kernel).reshape(9, 2, 3)
    stack = dense.stack(A.S, torch.float64, torch.device("cpu"))
    gaps = [
        gap("dX: loops - sum_k S_k^T dY W_k^T", dx.reshape(30, 2), sum(stack[k].T @ dY @ W[k].T for k in range(9))),
        gap("dW: loops - (S_k X)^T dY", dw.reshape(9, 2, 3), torch.stack([(stack[k] @ X).T @ dY for k in range(9)])),
    ]
    engine_dx, engine_dw = backward(A.S, A.mixing, W, X, dY)
    gaps.append(gap("dX: loops - gconv.plan.backward, the engine's rule", dx.reshape(30, 2), engine_dx))
    gaps.append(gap("dW: loops - gconv.plan.backward, the engine's rule", dw.reshape(9, 2, 3), engine_dw))
    theirs = torch_layer(kernel, b, stride=2, padding=1)
    modules: dict[str, nn.Module] = {"nn.Conv2d": theirs, "GConv": ours}
    for title, module in modules.items():
        t = image(x).requires_grad_()
        out = module(t)
        (F.relu(out) ** 2).sum().div(2).backward()
        assert t.grad is not None
        grads: dict[str, Any] = {name: p.grad for name, p in module.named_parameters()}
        dw_found = grads["weight"] if module is ours else grads["weight"].permute(2, 3, 1, 0)
        gaps.append(gap(f"y:  loops - {title}", y, hwc(out)))
        gaps.append(gap(f"dX: loops - {title}, autograd", dx, hwc(t.grad)))
        gaps.append(gap(f"dW: loops - {title}, autograd", dw.reshape(9, 2, 3), dw_found.reshape(9, 2, 3)))
        gaps.append(gap(f"db: loops - {title}, autograd", db, grads["bias"]))
    h, place = 1e-5, (1, 2, 0, 1)
    up, down = kernel.copy(), kernel.copy()
    up[place] += h
    down[place] -= h
    slope = (loss(x, up, b) - loss(x, down, b)) / (2 * h)
    say(f"And without any rule: move kernel{place} by +-{h:g}, and the loss")
    say(f"moves by {slope:.6f} a unit; dW there is {dw[place]:.6f}.")
    gaps.append(gap("dW: loops - finite difference, one entry", dw[place], slope, SLOPE))
    flipped = F.conv_transpose2d(image(dy), weight(kernel).flip(2, 3), stride=2, padding=1, output_padding=(1, 0))
    return [*gaps, gap("dX with the kernel flipped", dx, hwc(flipped), differ=True)]


def step_pooling(rng: Any) -> Gaps:
    """Pooling and the fully connected layer: the same formula"""
    x = rng.normal(size=(4, 4, 2))
    window = matrix(GConv(avg_pool2d(2)).at(Grid((4, 4))))
    say("Average pooling has one structure matrix, the window, and W = I. For 2 x 2 windows of a 4 x 4 image, times 4:")
    for row in (4 * window).int().tolist():
        print("      " + " | ".join(" ".join(str(v or ".") for v in row[at : at + 4]) for at in range(0, 16, 4)))
    blocks = x.reshape(2, 2, 2, 2, 2)  # (row of windows, row, column of windows, column, c)
    pooled = window.double().numpy() @ x.reshape(16, 2)
    say("Max pooling has the same window and a maximum in place of the sum. It has no matrix, and the library says so:")
    try:
        GConv(max_pool2d(2)).at(Grid((4, 4)))
        refused = 0.0
    except NotLinear as error:
        refused = 1.0
        print(f"      NotLinear: {error}")
    kernel, b = rng.normal(size=(4, 4, 2, 5)), rng.normal(size=5)
    full = x.flatten() @ kernel.reshape(32, 5) + b
    say("A kernel as large as the image meets it in one place: a fully connected layer of 4*4*2 = 32 numbers to 5.")
    linear = F.linear(image(x).flatten(1), weight(kernel).flatten(1), torch.from_numpy(b))[0]
    return [
        gap("mean over blocks - window matrix @ X", blocks.mean((1, 3)).reshape(4, 2), pooled),
        gap("torch avg_pool2d - window matrix @ X", hwc(F.avg_pool2d(image(x), 2)).reshape(4, 2), pooled),
        gap("max over blocks - torch max_pool2d", blocks.max((1, 3)), hwc(F.max_pool2d(image(x), 2))),
        gap("max over blocks - gconv max_pool2d", blocks.max((1, 3)), hwc(GConv(max_pool2d(2))(image(x)))),
        gap("a matrix for max pooling is refused", refused, 1.0),
        gap("conv loops, kernel = image - x @ W + b", forward(x, kernel)[0, 0] + b, full),
        gap("gconv conv2d, kernel = image - x @ W + b", layer(conv2d(2, 5, 4), kernel, b)(image(x)).flatten(), full),
        gap("torch linear on the flat image - x @ W + b", linear, full),
        gap("maximum - mean", blocks.max((1, 3)), blocks.mean((1, 3)), differ=True),
    ]


def step_chapter(rng: Any) -> Gaps:
    """nn.Conv2d: [16, 3, 32, 32] through Conv2d(3, 64, 3, padding=1)"""
    x = torch.from_numpy(rng.normal(size=(16, 3, 32, 32)))
    kernel, b = rng.normal(size=(3, 3, 3, 64)) / 27**0.5, rng.normal(size=64)
    ours, theirs = layer(conv2d(3, 64, 3, padding=1), kernel, b), torch_layer(kernel, b, padding=1)
    y, z = ours(x), theirs(x)
    say(f"gconv {list(x.shape)} -> {list(y.shape)}; nn.Conv2d -> {list(z.shape)}.")
    say(f"Parameters: 9 taps * 3 * 64 + 64 = {sum(p.numel() for p in ours.parameters())}. One pixel of them by hand:")
    one = (x[5, :, 9:12, 19:22] * weight(kernel)[7]).sum() + b[7]
    say("How to run it is planned, from form and sizes alone; print(layer.plan(x)) says what was weighed:")
    print("\n".join(f"      {line}" for line in str(ours.plan(x)).splitlines()))
    return [
        gap("shape - [16, 64, 32, 32]", list(y.shape), [16, 64, 32, 32]),
        gap("gconv - nn.Conv2d, float64", y, z),
        gap("gconv - nn.Conv2d, float32", ours.float()(x.float()), theirs.float()(x.float()), SINGLE),
        gap("gconv at [5, 7, 10, 20] - the sum of 27 products + bias", y[5, 7, 10, 20], one),
    ]


def step_library(rng: Any) -> Gaps:
    """The library: one description, one engine"""
    x, kernel, b = rng.normal(size=(8, 8, 3)), rng.normal(size=(3, 3, 3, 4)), rng.normal(size=4)
    ours = layer(conv2d(3, 4, 3, padding=1), kernel, b)
    say(f"The layer is {ours.spec}; its S_k are nine shifts, never formed.")
    say("Each way to run it that the plan admits gives the same numbers:")
    by_hand = torch.from_numpy(forward(x, kernel, p=1) + b).permute(2, 0, 1)[None]
    A = ours.at(Grid((8, 8)))
    gaps = every_lowering(ours, image(x), by_hand)
    say(f"On a domain it is a linear map, {A}: A @ x, A.T, matrix(A), norm(A).")
    return [*gaps, gap("<A x, y> - <x, A.T y>, relative", adjoint_gap(A), 0.0)]


STEPS = (step_sum, step_plane, step_channels, step_geometry, step_matrix, step_transposed, step_backward, step_pooling,
         step_chapter, step_library, step_laplacian, step_filter, step_cheb)  # fmt: skip


@dataclass(frozen=True)
class ByHand:
    """Options."""

    seed: int = 0
    """Seed of the random images, kernels and signals; >= 0."""
    figures: Path = ROOT / "runs" / "figures"
    """Folder for the figures."""
    official: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw the committed figures, experiments/figures/by_hand_*.png."""
    no_figures: tyro.conf.FlagCreatePairsOff[bool] = False
    """Do not draw figures."""


def walk(seed: int = 0) -> Gaps:
    """Run and print all steps in order. Returns: all differences."""
    gaps: list[Gap] = []
    for number, step in enumerate(STEPS, 1):
        print(f"\n{number}. {step.__doc__ or step.__name__.replace('_', ' ')}\n")
        gaps += step(np.random.default_rng([seed, number]))
    return gaps


def main(argv: Sequence[str] | None = None) -> None:
    """Run all steps and draw the figures. Exit status 1 if a difference is out of bounds."""
    config = tyro.cli(ByHand, prog=command_name(), description=__doc__, args=argv)
    if config.seed < 0:
        raise SystemExit(f"error: --seed must be at least 0, but it is {config.seed}")
    folder = ROOT / "experiments" / "figures" if config.official else config.figures
    if not config.no_figures:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(f"error: no pictures can be kept in {folder}: {error}; try --no-figures") from None
    gaps = walk(config.seed)
    if wrong := [g.what for g in gaps if not g.ok]:
        raise SystemExit(f"\nerror: {len(wrong)} of {len(gaps)} differences are out of bounds: {'; '.join(wrong)}")
    exact = [g.value for g in gaps if g.high == EXACT]
    print(f"\n{len(gaps)} differences, each in its bounds; the {len(exact)} in float64 are at most {max(exact):.1e}.")
    if not config.no_figures:
        from experiments.by_hand.pictures import draw

        try:
            print("\n".join(f"drew {path}" for path in draw(folder)))
        except OSError as error:
            raise SystemExit(f"error: a picture could not be written: {error}") from None
