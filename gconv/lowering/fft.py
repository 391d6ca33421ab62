"""fft and gft: structure that a Fourier basis diagonalises.

fft   shifts on a circular grid are diagonal in the discrete Fourier basis. Zero padding is embedded: the grid is
      padded until nothing wraps. Other borders are laid on first; strides keep every s-th site of the result.
gft   multipliers of a graph's Fourier basis, Y = U sum_k diag(g_k) (U^T X) W_k, channels mixed between the transforms
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from gconv.basis import Basis, Diagonal, Shifts
from gconv.lowering.base import Cost, Lowering, Problem, Work, add_bias
from gconv.mixing import Dense, Grouped, Mixing


def _wraps(S: Shifts) -> bool:
    """Whether the circular grid itself serves: circular borders that reach as far as the kernel does, stride aside."""
    reach = (sum(p) == d * (k - 1) for p, d, k in zip(S.padding, S.dilation, S.kernel, strict=True))
    return S.mode == "circular" and all(reach)


def _kernel(S: Shifts, W: Tensor, ring: tuple[int, ...]) -> Tensor:
    """The kernel laid on the ring so that circular cross-correlation is the operator, (*W.shape[1:], *ring)."""
    start = [before if _wraps(S) else 0 for before, _ in S.padding]
    tap = itertools.product(*(range(k) for k in S.kernel))
    places = [[(a * d - p) % r for a, d, p, r in zip(t, S.dilation, start, ring, strict=True)] for t in tap]
    flat = torch.tensor(
        [sum(q * math.prod(ring[axis + 1 :]) for axis, q in enumerate(place)) for place in places], device=W.device
    )
    laid = W.new_zeros(math.prod(ring), *W.shape[1:]).index_add(0, flat, W)
    return laid.movedim(0, -1).unflatten(-1, ring)


def run(S: Basis, mixing: Mixing, W: Tensor | None, x: Tensor, bias: Tensor | None) -> Tensor:
    assert isinstance(S, Shifts) and W is not None
    d = len(S.size)
    axes = tuple(range(-d, 0))
    if x.numel() == 0:  # no library transforms nothing
        return add_bias(mixing.gather(S.expand(x), W), bias)
    if x.dtype in (torch.float16, torch.bfloat16):
        wide = run(S, mixing, W.float(), x.float(), None)
        return add_bias(wide.to(x.dtype), bias)
    W = W * mixing.scale if isinstance(mixing, Dense) else W
    grouped = W if isinstance(mixing, Grouped) else W.unsqueeze(1)  # (k, g, i, o)
    ring = S.size if _wraps(S) else S.padded
    kernel = torch.fft.rfftn(_kernel(S, grouped, ring), dim=axes).conj()  # (g, i, o, *f): correlation conjugates
    if S.transposed:
        image = _insert(S, x, ring)
        kernel = kernel.conj()
    else:
        image = x.unflatten(-2, S.size)
        image = (image if _wraps(S) else S.pad(image)).movedim(-1, -d - 1)
    groups = kernel.shape[0]
    signal = torch.fft.rfftn(image, dim=axes).unflatten(-d - 1, (groups, -1))
    f = "xyz"[:d]
    mixed = torch.einsum(f"...gi{f},gio{f}->...go{f}", signal, kernel).flatten(-d - 2, -d - 1)
    y = torch.fft.irfftn(mixed, s=ring, dim=axes).movedim(-d - 1, -1)
    if S.transposed:
        y = y if _wraps(S) else S.unpad(y)
    else:
        y = y[(..., *(slice(0, s * (o - 1) + 1, s) for s, o in zip(S.stride, S.out, strict=True)), slice(None))]
    return add_bias(y.flatten(-d - 1, -2), bias)


def _insert(S: Shifts, x: Tensor, ring: tuple[int, ...]) -> Tensor:
    """The adjoint of keeping every s-th site: zeros between and behind, (*b, m, c) -> (*b, c, *ring)."""
    image = x.unflatten(-2, S.out)
    spread = image.new_zeros(*image.shape[: -len(ring) - 1], *ring, image.shape[-1])
    spread[(..., *(slice(0, s * (o - 1) + 1, s) for s, o in zip(S.stride, S.out, strict=True)), slice(None))] = image
    return spread.movedim(-1, -len(ring) - 1)


def refuses(S: Basis, mixing: Mixing) -> str | None:
    if not isinstance(S, Shifts):
        return f"it needs the shifts of a kernel on a grid, and this structure is {type(S).__name__}"
    if S.window or not S.linear:
        return "pooling has no kernel to transform"
    if not isinstance(mixing, Dense | Grouped):
        return f"it mixes densely or in groups, not as {type(mixing).__name__}"
    return None


def cost(S: Basis, mixing: Mixing, p: Problem) -> Cost:
    assert isinstance(S, Shifts)
    ring = math.prod(S.padded)
    steps = 2.5 * math.log2(max(2, ring))
    mixed = 4.0 * mixing.flops(ring // 2 * p.b, p.i) / S.shape[0]
    weights = float(math.prod(mixing.shape or ())) / S.shape[0]
    transforms = ring * steps * (p.b * (p.i + p.o) + weights)
    numbers = float(ring) * (p.b * (p.i + p.o) + weights)
    each = 2 + p.dx + p.dw  # transforms of signals, and as many of results
    work = (
        Work("fft", transforms * each / 2),
        Work("mix", mixed * p.passes, mixing.fan_in / S.shape[0]),
        p.stream(numbers, 4 * each / 2),
        Work("turn", p.item * float(ring) * p.b * (p.i + p.o) * each / 2),
    )
    return Cost(transforms + mixed, 4 * p.item * numbers, 2 * p.item * numbers, work)


def run_gft(S: Basis, mixing: Mixing, W: Tensor | None, x: Tensor, bias: Tensor | None) -> Tensor:
    assert isinstance(S, Diagonal)
    spectrum = S.g.unsqueeze(-1) * S.gft(x).unsqueeze(-3)  # (*b, k, r, i)
    return add_bias(S.igft(mixing.gather(spectrum, W)), bias)


def refuses_gft(S: Basis, mixing: Mixing) -> str | None:
    if isinstance(S, Diagonal):
        return None
    return f"it needs multipliers of a Fourier basis, and this structure is {type(S).__name__}"


def cost_gft(S: Basis, mixing: Mixing, p: Problem) -> Cost:
    assert isinstance(S, Diagonal)
    n, r = S.U.shape
    transforms = 2.0 * n * r * p.b * (p.i + p.o)
    numbers = float(n * r) * 2 + p.b * float(n) * (p.i + p.o) * (1 + S.shape[0])
    mixed = float(mixing.flops(r * p.b, p.i))
    spectrum = float(p.b) * r * p.i * S.shape[0]
    work = (
        p.product(transforms, r, min(p.i, p.o) * p.b),
        p.product(mixed, p.i, p.o),
        p.stream(spectrum, 4 * p.passes),
    )
    return Cost(transforms + mixed, p.item * numbers, p.item * spectrum, work)


FFT = Lowering("fft", run, refuses, cost)
GFT = Lowering("gft", run_gft, refuses_gft, cost_gft)
