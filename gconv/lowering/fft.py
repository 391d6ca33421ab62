"""fft and gft: structure that a Fourier basis diagonalises.

fft   Shifts on a circular grid are diagonal in the discrete Fourier basis. Zero padding is embedded in a larger
      circular grid: each axis is longer by the larger of its two paddings, which then share the same zeros, and is
      rounded up to a length with a fast transform. Other padding modes are applied first; with strides, every s-th site
      of the result is kept.
gft   Multipliers in a graph's Fourier basis: Y = U sum_k diag(g_k) (U^T X) W_k, channels mixed between the transforms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gconv.basis import Basis, Diagonal, Shifts
from gconv.call import Call
from gconv.kernels.ring import Ring, Steps, X, Y, fast_length, gradient
from gconv.lowering.base import Cost, Lowering, Problem, Work, add_bias
from gconv.mixing import Dense, Grouped, Mixing

SHORT = 32  # sites along an axis at which transforms take twice as long, relative to n log n, as for long axes
MANY = 32  # number of signals beyond which the product of spectra does not become more efficient


def _ring(S: Shifts, groups: int) -> tuple[Ring, bool]:
    """The circular grid of the transforms, and whether it is the grid itself (circular padding, without padding it)."""
    size, padding, out = S.size, S.padding, S.out
    span = [d * (k - 1) + 1 for d, k in zip(S.dilation, S.kernel, strict=True)]
    reach = [max(s * (o - 1) + 1, w) for s, o, w in zip(S.stride, out, span, strict=True)]
    whole = all(min(p) >= 0 for p in padding)  # a cropped grid is repeated at its own length
    closes = S.mode == "circular" and whole and all(r <= n for r, n in zip(reach, size, strict=True))
    if closes:
        length = size
    else:
        if S.mode != "zeros":
            size, padding = S.padded, ((0, 0),) * len(size)
        beyond = (n + max(0, *p) for n, p in zip(size, padding, strict=True))
        length = tuple(fast_length(max(r, n)) for r, n in zip(reach, beyond, strict=True))
    before = tuple(p[0] for p in padding)
    return Ring(groups, size, out, S.kernel, S.stride, S.dilation, before, length), closes


def run(S: Shifts, call: Call) -> Tensor:
    x = call.x
    signals = x.flatten(0, -3) if x.ndim > 2 else x.unsqueeze(0)
    y = run_images(S, call.at(signals.mT.unflatten(-1, S.grids[0])))
    return y.flatten(2).mT.reshape(*x.shape[:-2], S.shape[1], -1)


def run_images(S: Shifts, call: Call) -> Tensor:
    """The same on images, (b, i, *grid) -> (b, o, *grid)."""
    assert call.W is not None
    y, bias = _of_any_type(S, call.mixing, call.W, call.x), call.bias
    if bias is None:
        return y
    bias = bias.reshape(-1, *[1] * len(S.size))
    return y + bias if call.kind == "transformed" or y.dtype != bias.dtype else y.add_(bias)


def _of_any_type(S: Shifts, mixing: Mixing, W: Tensor, x: Tensor) -> Tensor:
    """The correlation for any dtype, by transforms in float32 or float64."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return _of_any_type(S, mixing, W.float(), x.float()).to(x.dtype)
    if x.is_complex():
        W = W.to(x.dtype)
        x = torch.cat([x.real, x.imag])
        real, imag = (_of_any_type(S, mixing, part, x).tensor_split(2) for part in (W.real, W.imag))
        return torch.complex(real[0] - imag[1], real[1] + imag[0])
    W = (W if mixing.scale == 1.0 else W * mixing.scale).to(x.dtype)
    grouped = W.unsqueeze(1) if mixing.is_dense else W  # (k, g, i, o)
    return _correlate(S, grouped.movedim(0, -1).unflatten(-1, S.kernel), x)


def _correlate(S: Shifts, kernel: Tensor, x: Tensor) -> Tensor:
    """kernel (g, i, o, *taps), x (b, g i, *grid)."""
    ring, closes = _ring(S, len(kernel))
    pads = S.mode != "zeros" and not closes
    if not S.transposed:
        return gradient(ring, Y, S.pad_images(x) if pads else x, kernel)
    y = gradient(ring, X, kernel.transpose(1, 2), x)
    return S.unpad(y.movedim(1, -1)).movedim(-1, 1) if pads else y


def refuses(S: Basis, mixing: Mixing) -> str | None:
    if not isinstance(S, Shifts):
        return f"it needs the shifts of a kernel on a grid, and this structure is {type(S).__name__}"
    if S.window or not S.linear:
        return "pooling has no kernel to transform"
    if not isinstance(mixing, Dense | Grouped):
        return f"it mixes densely or in groups, not as {type(mixing).__name__}"
    return None


def cost(S: Shifts, mixing: Mixing, p: Problem) -> Cost:
    ring, _ = _ring(S, 1)
    sites = float(math.prod(ring.length))
    groups = mixing.groups
    i, o = p.i // groups, p.o // groups
    steps = Steps.of(p.b, groups, i, o, sites * p.item, p.item)
    one = 2.5 * sites * math.log2(max(2.0, sites))
    x, w, y = float(p.b) * p.i, float(groups) * i * o, float(p.b) * p.o
    forward = x + w + y
    back = p.dx * (y + w + x) + p.dw * (x + w) + (p.dw and not p.dx) * y
    mixed = 8.0 * sites / 2 * p.b * w
    sides = p.b * (float(math.prod(S.size)) * p.i + float(math.prod(S.out)) * p.o)
    rate = 0.35 if steps.thin else 0.125 * p.item  # relative to the measured one, because the data stays in cache
    rate *= 1 + SHORT / max(1.0, sites) ** (1 / len(ring.length))
    work = [Work("fft", rate * one * (forward + back)), p.stream(sides, 2 * p.passes)]
    if not steps.thin:
        work += [Work("mix", mixed * p.passes, float(i * min(p.b, MANY))), p.stream(sites * (forward + back), 4)]
    if p.last:
        work.append(Work("turn", 2.0 * p.item * sides * p.passes))
    spectra = steps.groups * (steps.signals * (i + steps.outs) + i * steps.outs)
    return Cost(
        one * forward + mixed, p.item * (sides + w * math.prod(S.kernel)), 2 * p.item * sites * spectra, tuple(work)
    )


def run_gft(S: Diagonal, call: Call) -> Tensor:
    spectrum = S.filtered(S.gft(call.x).unsqueeze(-3))  # (*b, k, r, i)
    return add_bias(S.igft(call.mixing.gather(spectrum, call.W)), call.bias)


def refuses_gft(S: Basis, mixing: Mixing) -> str | None:
    if isinstance(S, Diagonal):
        return None
    return f"it needs multipliers of a Fourier basis, and this structure is {type(S).__name__}"


def cost_gft(S: Diagonal, mixing: Mixing, p: Problem) -> Cost:
    n, r = S.U.shape
    transforms = 2.0 * n * r * p.b * (p.i + p.o)
    numbers = float(n * r) * 2 + p.b * float(n) * (p.i + p.o) * (1 + S.shape[0])
    mixed = float(mixing.flops(r * p.b, p.i))
    spectrum = float(p.b) * r * p.i * S.shape[0]
    work = (
        *p.product(transforms, r, min(p.i, p.o) * p.b),
        *p.product(mixed, p.i, p.o),
        p.stream(spectrum, 4 * p.passes),
    )
    return Cost(transforms + mixed, p.item * numbers, p.item * spectrum, work)


FFT = Lowering("fft", run, refuses, cost, images=run_images)
GFT = Lowering("gft", run_gft, refuses_gft, cost_gft)
