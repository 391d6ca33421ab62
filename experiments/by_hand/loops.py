"""The definitions used by `experiments.by_hand`, written as loops, and functions that compare two computations.

Here images are (h, w, c) and kernels (m, n, c, k), as in the formulas; in torch they are (b, c, h, w) and (k, c, m, n).
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gconv import GConv, Graph, OperatorSpec

EXACT, SINGLE, SLOPE = 1e-12, 1e-5, 1e-6  # bounds: of float64, of float32, of a finite difference


class Gap(NamedTuple):
    """The largest difference between two computations of the same quantity, and the bounds in which it must lie."""

    what: str
    value: float
    low: float = 0.0
    high: float = EXACT

    @property
    def ok(self) -> bool:
        """Whether the difference lies in the bounds (a NaN does not)."""
        return self.low <= self.value <= self.high


Gaps = list[Gap]
Index = tuple[int, int, int]


def gap(what: str, a: Any, b: Any, high: float = EXACT, differ: bool = False) -> Gap:
    """Compare two arrays, print and return their difference. With `differ` they are expected to be unequal."""
    a, b = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (a, b))
    value = float((a - b).abs().max()) if a.shape == b.shape else math.nan
    found = Gap(f"{what} (must differ)", value, 0.1, math.inf) if differ else Gap(what, value, 0.0, high)
    print(f"      {found.what:.<76} {value:.1e}{'' if found.ok else '   WRONG'}")
    return found


def say(text: str) -> None:
    """Print a remark."""
    print(f"   {text}")


def show(name: str, a: Any) -> None:
    """Print a named array; integers are printed without decimals."""
    a = np.asarray(a) + 0.0
    a = a.astype(int) if (a == a.round()).all() else a
    text = np.array2string(a, precision=3, suppress_small=True, separator=" ", prefix=" " * (len(name) + 9))
    print(f"      {name} = {text}")


# -- the definitions, as loops -----------------------------------------------------------------------------------------


def convolve_1d(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """(f*g)[n] = sum_m f[m] g[n-m], for every n at which f and g overlap."""
    out = np.zeros(len(f) + len(g) - 1)
    for n in range(len(out)):
        for m in range(len(f)):
            if 0 <= n - m < len(g):
                out[n] += f[m] * g[n - m]
    return out


def correlate_1d(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """out[n] = sum_m f[n+m] g[m], for every n at which g lies inside f."""
    out = np.zeros(len(f) - len(g) + 1)
    for n in range(len(out)):
        for m in range(len(g)):
            out[n] += f[n + m] * g[m]
    return out


def convolve_2d(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """(f*g)[i,j] = sum_{m,n} f[m,n] g[i-m, j-n]."""
    out = np.zeros((f.shape[0] + g.shape[0] - 1, f.shape[1] + g.shape[1] - 1))
    for (i, j), (m, n) in product(np.ndindex(out.shape), np.ndindex(f.shape)):
        if 0 <= i - m < g.shape[0] and 0 <= j - n < g.shape[1]:
            out[i, j] += f[m, n] * g[i - m, j - n]
    return out


def flip(g: np.ndarray) -> np.ndarray:
    """The kernel reversed along every axis."""
    return np.flip(g).copy()


def strided(x: np.ndarray, kernel: np.ndarray, s_h: int, s_w: int) -> np.ndarray:
    """out[i,j,k] = sum_{m,n,c} in[i s_h + m, j s_w + n, c] kernel[m,n,c,k]."""
    (h, w, channels), (kh, kw, _, filters) = x.shape, kernel.shape
    out = np.zeros(((h - kh) // s_h + 1, (w - kw) // s_w + 1, filters))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(filters):
                for m in range(kh):
                    for n in range(kw):
                        for c in range(channels):
                            out[i, j, k] += x[i * s_h + m, j * s_w + n, c] * kernel[m, n, c, k]
    return out


def size(n: int, k: int, s: int = 1, p: int = 0, d: int = 1) -> int:
    """Number of output sites along an axis: (n + 2p - d(k-1) - 1) // s + 1."""
    return (n + 2 * p - d * (k - 1) - 1) // s + 1


def terms(
    x: tuple[int, ...], kernel: tuple[int, ...], s: int = 1, p: int = 0, d: int = 1, circular: bool = False
) -> Iterator[tuple[Index, Index, Index]]:
    """Every product in the sum, as indices (output, input, kernel); forward and backward passes iterate over them."""
    (h, w, channels), (kh, kw, _, filters) = x, kernel
    for i, j, k in product(range(size(h, kh, s, p, d)), range(size(w, kw, s, p, d)), range(filters)):
        for m, n, c in product(range(kh), range(kw), range(channels)):
            row, col = i * s + m * d - p, j * s + n * d - p
            if circular:
                row, col = row % h, col % w
            if 0 <= row < h and 0 <= col < w:
                yield (i, j, k), (row, col, c), (m, n, c, k)  # type: ignore[misc]


def forward(
    x: np.ndarray, kernel: np.ndarray, s: int = 1, p: int = 0, d: int = 1, circular: bool = False
) -> np.ndarray:
    """out[output] += in[input] kernel[place], over all terms."""
    (h, w, _), (kh, kw, _, filters) = x.shape, kernel.shape
    out = np.zeros((size(h, kh, s, p, d), size(w, kw, s, p, d), filters))
    for o, i, k in terms(x.shape, kernel.shape, s, p, d, circular):
        out[o] += x[i] * kernel[k]
    return out


def as_matrix(x: tuple[int, ...], kernel: np.ndarray, **geometry: Any) -> np.ndarray:
    """The matrix of the convolution: entry (output, input) += kernel[place], over all terms."""
    shape = forward(np.zeros(x), kernel, **geometry).shape
    out = np.zeros((*shape, *x))
    for o, i, k in terms(x, kernel.shape, **geometry):
        out[o + i] += kernel[k]
    return out.reshape(math.prod(shape), math.prod(x))


# -- the definitions on a graph ----------------------------------------------------------------------------------------


def laplace(x: np.ndarray, edges: list[tuple[int, int]], lmax: float) -> np.ndarray:
    """(2 L / lmax - I) x with L = I - D^-1/2 A D^-1/2, by a loop over nodes and one over edges j -> i."""
    degree = [sum(i == node for _, i in edges) for node in range(len(x))]
    out = np.zeros(x.shape)
    for i in range(len(x)):
        out[i] = (2 / lmax - 1) * x[i]
    for j, i in edges:
        out[i] -= 2 / lmax * x[j] / math.sqrt(degree[i] * degree[j])
    return out


def chebyshev(x: np.ndarray, edges: list[tuple[int, int]], lmax: float, k: int) -> list[np.ndarray]:
    """T_0 x = x, T_1 x = L~ x, T_k x = 2 L~ (T_{k-1} x) - T_{k-2} x."""
    out = [x, laplace(x, edges, lmax)][:k]
    while len(out) < k:
        out.append(2 * laplace(out[-1], edges, lmax) - out[-2])
    return out


# -- conversion of layouts ---------------------------------------------------------------------------------------------


def image(x: np.ndarray) -> Tensor:
    """(h, w, c) -> (1, c, h, w)."""
    return torch.from_numpy(x).permute(2, 0, 1)[None].contiguous()


def weight(kernel: np.ndarray) -> Tensor:
    """(m, n, c, k) -> (k, c, m, n)."""
    return torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()


def hwc(x: Tensor) -> Tensor:
    """(1, c, h, w) -> (h, w, c)."""
    return x[0].permute(1, 2, 0)


# -- the library -------------------------------------------------------------------------------------------------------


def layer(spec: OperatorSpec, w: Any, b: Any = None) -> GConv:
    """A gconv layer with these weights; its taps (k, c, o) are in row-major order of the kernel."""
    made = GConv(spec, dtype=torch.float64)
    with torch.no_grad():
        assert made.weight is not None
        made.weight.copy_(torch.as_tensor(w).reshape(made.weight.shape))
        if b is not None:
            made.bias.copy_(torch.as_tensor(b))
    return made


def torch_layer(kernel: np.ndarray, b: np.ndarray, **geometry: int) -> nn.Conv2d:
    """A torch layer with these weights."""
    kh, kw, channels, filters = kernel.shape
    made = nn.Conv2d(channels, filters, (kh, kw), dtype=torch.float64, **geometry)  # type: ignore[arg-type]
    with torch.no_grad():
        made.weight.copy_(weight(kernel))
        made.bias.copy_(torch.from_numpy(b))  # type: ignore[union-attr]
    return made


def every_lowering(ours: GConv, x: Tensor, y: Any, domain: Graph | None = None) -> Gaps:
    """Compare the value of each admitted lowering with y, and its gradients with those of `dense`."""
    plan = ours.plan(x, domain)
    gaps, grads = [], {}
    for name in ["dense", *(c.name for c in plan.candidates if c.reason is None and c.name != "dense")]:
        t = x.clone().requires_grad_()
        out = ours(t, domain, lowering=name)
        grads[name] = torch.autograd.grad((out**3).sum(), [t, *ours.parameters()])
        gaps.append(gap(f"{name}: value - by hand", out, y))
        apart = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(grads[name], grads["dense"], strict=True)]
        gaps.append(gap(f"{name}: gradients of x, W, b - those of dense, relative", apart, [0.0] * len(apart)))
    return gaps
