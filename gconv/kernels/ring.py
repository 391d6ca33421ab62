"""Correlation with a kernel on a grid, by Fourier transforms on a ring that is just long enough not to wrap.

    T(x, w, y) = sum over signals b, groups g, channels i, o, sites t and taps a of
                 x[b, g i, s t + d a - p] w[g, i, o, a] y[b, g o, t]                      x is 0 outside of its grid

The gradient of T in y is a convolution, that in x its adjoint and that in w a convolution's weight gradient; the
derivative of each of the three is made of the other two, to any order. Groups go through the transforms a few at a
time, which keeps the spectra in the processor's cache and out of memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gconv.kernels.registry import library

X, W, Y = range(3)
CHUNK = 1 << 21  # bytes of a signal's part that is transformed at a time
KERNELS = 1 << 26  # bytes of kernels laid on the ring at a time, where one group alone has many


def fast_length(n: int) -> int:
    """The least length from n on that the transforms are fast at: a product of 2, 3, 5 and 7.

    >>> [fast_length(n) for n in (1, 11, 64, 67, 79, 94, 127)]
    [1, 12, 64, 70, 80, 96, 128]
    """
    n = max(1, n)
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


@dataclass(frozen=True)
class Ring:
    """Where the numbers of x, w and y lie, axis by axis.

    Args:
        groups: of channels.
        size, out, kernel: grids of x, y and w.
        stride, dilation, before: s, d and p.
        length: of the ring; indices of x are taken modulo it.
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
        """From what `flat` wrote."""
        d = (len(numbers) - 1) // 7
        return cls(numbers[0], *(tuple(numbers[1 + d * k : 1 + d * (k + 1)]) for k in range(7)))

    @property
    def flat(self) -> list[int]:
        axes = self.size, self.out, self.kernel, self.stride, self.dilation, self.before, self.length
        return [self.groups, *(number for axis in axes for number in axis)]

    def places(self, slot: int) -> tuple[Any, ...]:
        """Which sites of the ring the numbers of x, w or y take, as an index."""
        if slot == X:
            return ..., *(slice(0, n) for n in self.size)
        step, count = (self.dilation, self.kernel) if slot == W else (self.stride, self.out)
        return ..., *(slice(0, s * (n - 1) + 1, s) for s, n in zip(step, count, strict=True))


def _last(signal: Tensor) -> bool:
    """Whether the channels of a site lie side by side."""
    return signal.shape[1] > 1 and signal.stride(1) == 1


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A signal (b, c, *grid), laid out in memory as another one."""
    if not _last(like):
        return like.new_empty(shape)
    return like.new_empty(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


class _Transforms:
    """Between numbers on the grids and spectra.

    Where a kernel has few numbers beside the signals, these go through in pairs, as real and imaginary part of one
    complex signal: its correlation with a real kernel keeps the two apart, and complex transforms are faster.
    """

    def __init__(self, ring: Ring, paired: bool) -> None:
        self.ring, self.paired = ring, paired
        self.axes = tuple(range(-len(ring.length), 0))
        self.shift = tuple(-p for p in ring.before)

    def signals(self, values: Tensor, slot: int) -> Tensor:
        """The spectra of x or y."""
        sites = self.ring.places(slot)
        if not self.paired:
            laid = values.new_zeros(*values.shape[:3], *self.ring.length)
            laid[sites] = values
            return torch.fft.rfftn(laid, dim=self.axes)
        half = (len(values) + 1) // 2
        pairs = values.new_zeros(half, *values.shape[1:3], *self.ring.length, 2)
        pairs[..., 0][sites] = values[:half]
        pairs[: len(values) - half, ..., 1][sites] = values[half:]
        return torch.fft.fftn(torch.view_as_complex(pairs), dim=self.axes)

    def kernels(self, values: Tensor) -> Tensor:
        laid = values.new_zeros(*values.shape[:3], *self.ring.length)
        laid[self.ring.places(W)] = values
        laid = torch.roll(laid, self.shift, self.axes)
        return torch.fft.fftn(laid, dim=self.axes) if self.paired else torch.fft.rfftn(laid, dim=self.axes)

    def write(self, spectrum: Tensor, slot: int, values: Tensor) -> None:
        """The numbers of a spectrum, into their place."""
        sites = self.ring.places(slot)
        if self.paired:
            found = torch.fft.ifftn(spectrum, dim=self.axes)
        else:
            found = torch.fft.irfftn(spectrum, s=self.ring.length, dim=self.axes)
        if slot == W:
            found = torch.roll(found.real if self.paired else found, self.ring.before, self.axes)
            values.copy_(found[sites])
        elif self.paired:
            half = len(found)
            values[:half] = found.real[sites]
            values[half:] = found.imag[: len(values) - half][sites]
        else:
            values.copy_(found[sites])


def _multiply(slot: int, one: Tensor, two: Tensor, f: str) -> Tensor:
    """The spectrum in one slot from those in the others: X (b, g, i, *f), W (g, i, o, *f), Y (b, g, o, *f).

    The conjugates are written out: a compiled graph calls an operator where torch does not see a pending one.
    """
    if slot == W:  # from X and Y
        two = two.conj_physical()
        if one.shape[2] == 1 or two.shape[2] == 1:
            return (one.unsqueeze(3) * two.unsqueeze(2)).sum(0)
        return torch.einsum(f"bgi{f},bgo{f}->gio{f}", one, two)
    if slot == Y:  # from X and W
        two = two.conj_physical()
        return one * two[:, 0] if two.shape[1] == 1 else torch.einsum(f"bgi{f},gio{f}->bgo{f}", one, two)
    return two * one[:, :, 0] if one.shape[2] == 1 else torch.einsum(f"gio{f},bgo{f}->bgi{f}", one, two)


def steps(b: int, g: int, i: int, o: int, sites: float) -> tuple[int, int]:
    """How many groups, and how many of a group's channels out, go through the transforms at a time.

    `sites` is a signal on the ring, in bytes.
    """
    step = max(1, min(g, int(CHUNK / max(1, b * max(i, o) * sites))))
    return step, o if step > 1 else max(1, min(o, int(KERNELS / max(1, i * sites))))


def _evaluate(ring: Ring, given: dict[int, Tensor], wanted: Sequence[int]) -> list[Tensor]:
    """The gradients of T in the wanted slots, from the values in all that they need."""
    g, shapes = ring.groups, _shapes(ring, given)
    b, (i, o) = shapes[X][0], shapes[W][1:3]
    signal = given[X] if X in given else given[Y]
    made = {slot: _blank(ring, given, slot) for slot in wanted}
    if not signal.numel():  # no library transforms nothing
        return [made[slot].zero_() for slot in wanted]
    sites = math.prod(ring.length) * signal.element_size()
    transforms = _Transforms(ring, paired=b > 1 and 1 in (i, o))
    step, outs = steps(b, g, i, o, sites)
    f = "uvw"[: len(ring.size)]

    def part(t: Tensor, start: int, width: int, low: int, high: int) -> Tensor:
        """(b, g, c, *grid) of the groups at hand."""
        return t.unflatten(1, (g, width))[:, start : start + step, low:high]

    for start in range(0, g, step):
        total = None
        x = transforms.signals(part(given[X], start, i, 0, i), X) if X in given else None
        for low in range(0, o, outs):
            have: dict[int, Tensor | None] = {X: x}
            high = low + outs
            if W in given:
                have[W] = transforms.kernels(given[W][start : start + step, :, low:high])
            if Y in given:
                have[Y] = transforms.signals(part(given[Y], start, o, low, high), Y)
            for slot in wanted:
                one, two = (have[other] for other in (X, W, Y) if other != slot)
                assert one is not None and two is not None
                spectrum = _multiply(slot, one, two, f)
                if slot == X:
                    total = spectrum if total is None else total.add_(spectrum)
                elif slot == W:
                    transforms.write(spectrum, W, made[W][start : start + step, :, low:high])
                else:
                    transforms.write(spectrum, Y, part(made[Y], start, o, low, high))
        if total is not None:
            transforms.write(total, X, part(made[X], start, i, 0, i))
    return [made[slot] for slot in wanted]


def _shapes(ring: Ring, given: dict[int, Tensor]) -> dict[int, tuple[int, ...]]:
    """Of x, w and y, from two of them."""
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
    ctx.save_for_backward(one, two)


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
    """Of T with the first arriving gradient in its slot, plus T with the second in its own."""
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
