"""Correlation with a kernel on a grid, by Fourier transforms on a circular grid (`Ring`) without aliasing.

    T(x, w, y) = sum over signals b, groups g, channels i, o, sites t and taps a of
                 x[b, g i, s t + d a - p] w[g, i, o, a] y[b, g o, t]                      x is 0 outside of its grid

The gradient of T in y is a convolution, that in x its adjoint, and that in w the weight gradient. The derivative of
each of the three is expressed by the other two, to any order. Groups and signals are transformed in chunks, so that the
spectra stay in cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gconv.kernels.memory import empty
from gconv.kernels.registry import library
from gconv.kernels.transforms import composes, transformed

X, W, Y = range(3)
CHUNK = 1 << 20  # bytes of signals per chunk
LINE = 64  # bytes of a cache line
SLOWER = {1: 4 / 3, 2: 9 / 8, 4: 1.0}  # relative times for odd lengths, twice odd ones and others, measured for MKL
KERNELS = 1 << 26  # bytes of padded kernels per chunk, if a single group has more


def fast_length(n: int) -> int:
    """The length >= n with the fastest transform: a product of powers of 2, 3, 5 and 7, preferably a multiple of four.

    >>> [fast_length(n) for n in (1, 11, 42, 63, 67, 79, 94, 127)]
    [1, 12, 42, 64, 72, 80, 96, 128]
    """
    best, least = 0, math.inf
    for length in itertools.count(max(1, n)):
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            takes = length * SLOWER[math.gcd(length, 4)]
            best, least = (length, takes) if takes < least else (best, least)
            if length % 4 == 0:
                break
    return best


@dataclass(frozen=True)
class Ring:
    """The geometry of a correlation on a circular grid, axis by axis.

    Args:
        groups: of channels.
        size, out, kernel: grids of x, y and w.
        stride, dilation, before: s, d and p.
        length: of the circular grid; indices of x are taken modulo it.
    """

    groups: int
    size: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    length: tuple[int, ...]

    @classmethod
    def read(cls, numbers: Sequence[int]) -> Ring:
        """The inverse of `flat`."""
        d = (len(numbers) - 1) // 7
        return cls(numbers[0], *(tuple(numbers[1 + d * k : 1 + d * (k + 1)]) for k in range(7)))

    @property
    def flat(self) -> list[int]:
        """All numbers as one list, for the arguments of a torch operator."""
        axes = self.size, self.out, self.kernel, self.stride, self.dilation, self.before, self.length
        return [self.groups, *(number for axis in axes for number in axis)]

    def places(self, slot: int) -> tuple[Any, ...]:
        """The index of the sites of x, w or y in the circular grid."""
        if slot == X:
            return ..., *(slice(0, n) for n in self.size)
        step, count = (self.dilation, self.kernel) if slot == W else (self.stride, self.out)
        return ..., *(slice(0, s * (n - 1) + 1, s) for s, n in zip(step, count, strict=True))


def _last(signal: Tensor) -> bool:
    """Whether the channels of a site are contiguous."""
    return signal.shape[1] > 1 and signal.stride(1) == 1


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty signal (b, c, *grid) with the memory format of another one."""
    if not _last(like):
        return empty(like, shape)
    c, *grid = shape[1:]
    within = [c * math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
    return like.new_empty_strided(shape, (c * math.prod(grid), 1, *within))


class _Transforms:
    """Transforms between arrays and spectra, separately for each signal: NaN in one signal does not affect others."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.axes = tuple(range(-len(ring.length), 0))
        self.shift = tuple(-p for p in ring.before)

    def signals(self, values: Tensor, slot: int) -> Tensor:
        """The spectra of x or y."""
        padded = values.new_zeros(*values.shape[:3], *self.ring.length)
        padded[self.ring.places(slot)] = values
        return torch.fft.rfftn(padded, dim=self.axes)

    def kernels(self, values: Tensor) -> Tensor:
        """The spectra of w."""
        padded = values.new_zeros(*values.shape[:3], *self.ring.length)
        padded[self.ring.places(W)] = values
        padded = torch.roll(padded, self.shift, self.axes)
        return torch.fft.rfftn(padded, dim=self.axes)

    def numbers(self, spectrum: Tensor, slot: int) -> Tensor:
        """x, w or y from its spectrum."""
        found = torch.fft.irfftn(spectrum, s=self.ring.length, dim=self.axes)
        if slot == W:
            found = torch.roll(found, self.ring.before, self.axes)
        return found[self.ring.places(slot)]


def _multiply(slot: int, one: Tensor, two: Tensor) -> Tensor:
    """The spectrum in one slot from those in the others: X (b, g, i, *f), W (g, i, o, *f), Y (b, g, o, *f).

    Conjugates are computed explicitly, because compiled graphs may pass lazy ones to operators without resolving them.
    """
    f = "uvw"[: one.ndim - 3]
    if slot == W:  # from X and Y
        if one.shape[2] > 1 and two.shape[2] > 1:
            return torch.einsum(f"bgi{f},bgo{f}->gio{f}", one, _conjugate(two))
        pairs = ((x.unsqueeze(2), _conjugate(y).unsqueeze(1)) for x, y in zip(one, two, strict=True))
        total = torch.mul(*next(pairs))
        for x, y in pairs:
            total = total.addcmul_(x, y)
        return total
    if slot == Y:  # from X and W
        two = _conjugate(two)
        return one * two[:, 0] if two.shape[1] == 1 else torch.einsum(f"bgi{f},gio{f}->bgo{f}", one, two)
    return two * one[:, :, 0] if one.shape[2] == 1 else torch.einsum(f"gio{f},bgo{f}->bgi{f}", one, two)


def _conjugate(t: Tensor) -> Tensor:
    return t.conj() if transformed() else t.conj_physical()


@dataclass(frozen=True)
class Steps:
    """The chunks in which signals are transformed, so that their spectra stay in cache.

    If a group has a single channel, in or out, its kernels are applied to chunks of signals; if it mixes channels, they
    are applied to all signals in one call.

    Args:
        thin: whether a group has a single channel, in or out.
        groups, signals: per chunk.
        outs: a group's output channels per chunk.
    """

    thin: bool
    groups: int
    signals: int
    outs: int

    @classmethod
    def of(cls, b: int, groups: int, i: int, o: int, ring: float, item: int) -> Steps:
        """The chunks for b signals on a circular grid of `ring` bytes per channel, with `item` bytes per number."""
        thin, each = b > 1 and 1 in (i, o), max(1.0, max(i, o) * ring)
        step = int(CHUNK / max(1.0, b * each))
        if thin:  # at least one cache line of channels, for signals in channels last
            step = max(step, LINE // (item * max(i, o)))
        step = max(1, min(groups, step))
        outs = o if step > 1 else max(1, min(o, int(KERNELS / max(1.0, i * ring))))
        signals = int(CHUNK / (step * each)) if thin and outs == o else b
        return cls(thin, step, max(1, min(b, signals)), outs)


def _evaluate(ring: Ring, given: dict[int, Tensor], wanted: Sequence[int]) -> list[Tensor]:
    """The gradients of T in the wanted slots, from the values in the others."""
    g, shapes = ring.groups, _shapes(ring, given)
    b, (i, o) = shapes[X][0], shapes[W][1:3]
    signal = given[X] if X in given else given[Y]
    made = {slot: _blank(ring, given, slot) for slot in wanted}
    if not all(t.numel() for t in given.values()):  # FFT libraries reject empty arrays
        return [made[slot].zero_() for slot in wanted]
    steps = Steps.of(b, g, i, o, math.prod(ring.length) * signal.itemsize, signal.itemsize)
    transforms, outs = _Transforms(ring), steps.outs

    def part(t: Tensor, first: int, start: int, low: int = 0, high: int | None = None) -> Tensor:
        """(b, g, c, *grid) of the current chunk of signals and groups."""
        return t.unflatten(1, (g, -1))[first : first + steps.signals, start : start + steps.groups, low:high]

    for start in range(0, g, steps.groups):
        groups = slice(start, start + steps.groups)
        have: dict[int, Tensor] = {}
        weights = None
        for first in range(0, b, steps.signals):
            total = None
            if X in given:
                have[X] = transforms.signals(part(given[X], first, start), X)
            for low in range(0, o, outs):
                high = low + outs
                if W in given and (W not in have or outs < o):
                    have[W] = transforms.kernels(given[W][groups, :, low:high])
                if Y in given:
                    have[Y] = transforms.signals(part(given[Y], first, start, low, high), Y)
                for slot in wanted:
                    one, two = (have[other] for other in _others(slot))
                    spectrum = _multiply(slot, one, two)
                    if slot == X:
                        total = spectrum if total is None else total.add_(spectrum)
                    elif slot == Y:
                        part(made[Y], first, start, low, high).copy_(transforms.numbers(spectrum, Y))
                    else:
                        weights = spectrum if weights is None or outs < o else weights.add_(spectrum)
                        if first + steps.signals >= b:
                            made[W][groups, :, low:high].copy_(transforms.numbers(weights, W))
            if total is not None:
                part(made[X], first, start).copy_(transforms.numbers(total, X))
    return [made[slot] for slot in wanted]


def _whole(ring: Ring, slot: int, one: Tensor, two: Tensor) -> Tensor:
    """The gradient of T in one slot by torch operators only, without chunks."""
    if not (one.numel() and two.numel()):
        return _blank(ring, dict(zip(_others(slot), (one, two), strict=True)), slot).zero_()
    transforms = _Transforms(ring)
    spectra = []
    for other, values in zip(_others(slot), (one, two), strict=True):
        grouped = values if other == W else values.unflatten(1, (ring.groups, -1))
        spectra.append(transforms.kernels(grouped) if other == W else transforms.signals(grouped, other))
    found = transforms.numbers(_multiply(slot, *spectra), slot)
    return found if slot == W else found.flatten(1, 2)


def _shapes(ring: Ring, given: dict[int, Tensor]) -> dict[int, tuple[int, ...]]:
    """The shapes of x, w and y, from two of them."""
    g = ring.groups
    signal = given[X] if X in given else given[Y]
    i, o = given[W].shape[1:3] if W in given else (given[slot].shape[1] // g for slot in (X, Y))
    b = signal.shape[0]
    return {X: (b, g * i, *ring.size), W: (g, i, o, *ring.kernel), Y: (b, g * o, *ring.out)}


def _others(slot: int) -> tuple[int, int]:
    one, two = (other for other in (X, W, Y) if other != slot)
    return one, two


def _blank(ring: Ring, given: dict[int, Tensor], slot: int) -> Tensor:
    signal, shape = given[X] if X in given else given[Y], _shapes(ring, given)[slot]
    return signal.new_empty(shape) if slot == W else _empty(signal, shape)


# -- the operators -------------------------------------------------------------------------------------------------


def gradient(ring: Ring, slot: int, one: Tensor, two: Tensor) -> Tensor:
    """The gradient of T in one slot, from the values in the other two, in the order x, w, y.

    Args:
        ring: the geometry.
        slot: X, W or Y.
        one, two: two of x (b, g i, *size), w (g, i, o, *kernel), y (b, g o, *out), of one type, on one device.

    >>> ring = Ring(1, (3,), (3,), (2,), (1,), (1,), (1,), (4,))
    >>> gradient(ring, Y, torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[[10.0, 1.0]]]])).round().flatten()
    tensor([ 1., 12., 23.])
    """
    if composes():
        return _whole(ring, slot, one, two)
    result: Tensor = torch.ops.gconv.ring(one, two, slot, ring.flat)
    return result


def _one(one: Tensor, two: Tensor, slot: int, ring: Sequence[int]) -> Tensor:
    return _evaluate(Ring.read(ring), dict(zip(_others(slot), (one, two), strict=True)), [slot])[0]


def _two(x: Tensor, w: Tensor, y: Tensor, slot: int, ring: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The gradients in the two other slots."""
    first, second = _evaluate(Ring.read(ring), {X: x, W: w, Y: y}, _others(slot))
    return first, second


def _one_fake(one: Tensor, two: Tensor, slot: int, ring: Sequence[int]) -> Tensor:
    return _blank(Ring.read(ring), dict(zip(_others(slot), (one, two), strict=True)), slot)


def _two_fake(x: Tensor, w: Tensor, y: Tensor, slot: int, ring: Sequence[int]) -> tuple[Tensor, Tensor]:
    one, two = _others(slot)
    given = {X: x, W: w, Y: y}
    return _blank(Ring.read(ring), given, one), _blank(Ring.read(ring), given, two)


def _keep_one(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    one, two, ctx.slot, ctx.ring = inputs
    to_one, to_two = ctx.needs_input_grad[:2]
    ctx.save_for_backward(one if to_two else None, two if to_one else None)


def _keep_two(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.slot, ctx.ring = inputs
    ctx.save_for_backward(*tensors)


def _back_one(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
    one, two = _others(ctx.slot)
    have = dict(zip((one, two, ctx.slot), (*ctx.saved_tensors, arriving), strict=True))
    if all(ctx.needs_input_grad[:2]):
        return (*torch.ops.gconv.ring_pair(have[X], have[W], have[Y], ctx.slot, ctx.ring), None, None)
    found = (_partial(ctx, slot, have) if ctx.needs_input_grad[k] else None for k, slot in enumerate((one, two)))
    return *found, None, None


def _back_two(ctx: Any, *arriving: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of the sum of T with the first gradient in its slot and T with the second in its slot."""
    have = dict(enumerate(ctx.saved_tensors))
    found: dict[int, Tensor] = {}
    for slot, g in zip(_others(ctx.slot), arriving, strict=True):
        for other in _others(slot):
            if ctx.needs_input_grad[other]:
                term = _partial(ctx, other, have | {slot: g})
                found[other] = found[other] + term if other in found else term
    return found.get(X), found.get(W), found.get(Y), None, None


def _partial(ctx: Any, slot: int, have: dict[int, Tensor]) -> Tensor:
    one, two = _others(slot)
    result: Tensor = torch.ops.gconv.ring(have[one], have[two], slot, ctx.ring)
    return result


library.define("ring(Tensor one, Tensor two, int slot, int[] ring) -> Tensor")
library.define("ring_pair(Tensor x, Tensor w, Tensor y, int slot, int[] ring) -> (Tensor, Tensor)")
library.impl("ring", _one, "CompositeExplicitAutograd")
library.impl("ring_pair", _two, "CompositeExplicitAutograd")
torch.library.register_fake("gconv::ring", _one_fake, lib=library)
torch.library.register_fake("gconv::ring_pair", _two_fake, lib=library)
torch.library.register_autograd("gconv::ring", _back_one, setup_context=_keep_one, lib=library)
torch.library.register_autograd("gconv::ring_pair", _back_two, setup_context=_keep_two, lib=library)
