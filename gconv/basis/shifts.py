"""Shifts: the taps of a kernel on a grid, described by its geometry and never materialised.

    S_k x (o) = x(s o + d a_k - p)

where o is an output site, a_k the position of tap k in the kernel, s the stride, d the dilation and p the padding;
sites outside of the grid are read according to the padding mode. The transposed matrices scatter instead of gather.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.arguments import integer, plural, shown
from gconv.basis.base import Basis, lazy
from gconv.basis.taps import Pattern, Taps
from gconv.caches import Cache
from gconv.errors import InputError
from gconv.kernels import at_trace_time, is_static, lasting, leave, untraced, widened

Mode = Literal["zeros", "circular", "reflect", "replicate"]
MODES: tuple[Mode, ...] = ("zeros", "circular", "reflect", "replicate")
OFTEN = 16  # numbers in a sum of 16-bit gradients above which it is computed in float32
_TAPS: Cache[tuple[Shifts, torch.dtype, torch.device], Taps] = Cache("entries of grid structures", 64)


@at_trace_time
def _outside(made: Shifts, dtype: torch.dtype, device: torch.device) -> str | None:
    """The attribute that holds the entries built outside of the trace; None if the object was created within it."""
    if "size" not in made.__dict__ or not is_static(made.size):
        return None
    with untraced():
        return leave(made, f"taps_{dtype}_{device.type}_{device.index}".replace(".", "_"), made.taps(dtype, device))


@dataclass(frozen=True)
class Shifts(Basis):
    """A kernel's shifts between the input grid `size` and the output grid `out`.

    Args:
        size: input grid.
        kernel: number of taps along each axis; the stack has k = prod(kernel) taps in row-major order.
        stride, dilation: along each axis.
        padding: (before, after) along each axis; negative to crop the grid. As in torch, circular padding repeats the
            cropped grid, and the other modes pad the whole grid before it is cropped.
        mode: the padding mode.
        window: whether the taps are summed to a single one (pooling).
        divisor: with `window`: None for the sum, a number, or the padding (before, after) along each axis that counts
            as part of the window in a mean.
        reduce: "max" for the maximum over a window instead of the sum (not linear).
        transposed: the stack of the transposed matrices, from grid `out` to grid `size`.

    Raises:
        ValueError: if a number is out of range, or the kernel is larger than the padded grid.

    >>> Shifts((5, 5), (3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))).out
    (3, 3)
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    mode: Mode = "zeros"
    window: bool = False
    divisor: int | tuple[tuple[int, int], ...] | None = None
    reduce: Literal["sum", "max"] = "sum"
    transposed: bool = False

    def __post_init__(self) -> None:
        self._check()
        for axis, (n, k, d, (before, after)) in enumerate(
            zip(self.size, self.kernel, self.dilation, self.padding, strict=True)
        ):
            span = d * (k - 1) + 1
            if n + before + after < span:
                raise InputError(
                    f"The kernel does not fit the grid: along axis {axis} it spans {plural(span, 'site')}, but the "
                    f"grid has {n} and padding adds {before + after}."
                )
            left = n + min(before, 0) + min(after, 0)
            if left < 1 and (before < 0 or after < 0):
                raise InputError(
                    f"Cropping {plural(max(-before, 0), 'site')} before and {max(-after, 0)} after leaves nothing of "
                    f"{plural(n, 'site')} along axis {axis}: negative padding may take away at most {n - 1}."
                )
            limit = {"zeros": None, "replicate": None if n else 0, "circular": left, "reflect": max(n - 1, 0)}[
                self.mode
            ]
            if limit is not None and max(before, after) > limit:
                raise InputError(
                    f"{self.mode} padding can reach at most {plural(limit, 'site')} on an axis of {n}, but "
                    f"{max(before, after)} were requested along axis {axis}."
                )

    def _check(self) -> None:
        """Raises: ValueError or TypeError if an argument is not of the kind that is documented."""
        numbers = {"size": self.size, "kernel": self.kernel, "stride": self.stride, "dilation": self.dilation}
        for name, axes in {**numbers, "padding": self.padding}.items():
            if not isinstance(axes, tuple) or len(axes) != len(self.size) or not axes:
                raise InputError(f"{name} takes a tuple with one entry for each axis, not {shown(axes)}.")
        for name, axes in numbers.items():
            for number in axes:
                integer(number, name, 0 if name == "size" else 1)
        for name, pairs in (("padding", self.padding), ("divisor", self.divisor)):
            if not isinstance(pairs, tuple):
                continue
            for pair in pairs:
                if not isinstance(pair, tuple) or len(pair) != 2 or len(pairs) != len(self.size):
                    raise InputError(f"{name} takes a pair (before, after) for each axis, not {shown(pairs)}.")
                integer(pair[0], name)
                integer(pair[1], name)
        if self.mode not in MODES:
            raise InputError(f"mode must be one of {', '.join(MODES)}, but it is {shown(self.mode)}.")
        if self.reduce not in ("sum", "max"):
            raise InputError(f"reduce must be 'sum' or 'max', but it is {shown(self.reduce)}.")
        if self.divisor is not None and not isinstance(self.divisor, tuple):
            integer(self.divisor, "divisor", 1)
        if (self.reduce == "max" or self.divisor is not None) and not self.window:
            raise InputError("reduce='max' and a divisor require window=True.")
        if self.reduce == "max" and (self.divisor is not None or self.transposed):
            raise InputError("A maximum over a window has neither a divisor nor a transpose.")

    # -- geometry --------------------------------------------------------------------------------------------------

    @lazy
    def out(self) -> tuple[int, ...]:
        """The output grid of the stack that is not transposed."""
        return tuple(
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, k, s, d, p in zip(self.size, self.kernel, self.stride, self.dilation, self.padding, strict=True)
        )

    @lazy
    def grids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(input grid, output grid) of this stack."""
        return (self.out, self.size) if self.transposed else (self.size, self.out)

    @lazy
    def shape(self) -> tuple[int, int, int]:
        source, target = self.grids
        return 1 if self.window else math.prod(self.kernel), math.prod(target), math.prod(source)

    @lazy
    def nnz(self) -> int:
        return math.prod(self.kernel) * math.prod(self.out)

    @property
    def is_grid(self) -> bool:
        return True

    def overhead(self, mixing: Any, many: str = "") -> str:
        kind = " window" if self.window else " turned" if self.transposed else mixing.overhead
        return f"{kind} line" if len(self.kernel) == 1 else kind

    def as_sparse(self, dtype: torch.dtype, device: torch.device) -> Taps:
        return self.taps(dtype, device)

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        return self.taps(dtype, device)

    def traced_grid(self, native: bool) -> tuple[int, ...] | None:
        whole = self.window and self.kernel == self.size
        return self.grids[0] if whole or not native else None

    @property
    def linear(self) -> bool:
        return self.reduce == "sum"

    @property
    def signature(self) -> Hashable:
        return self

    @lazy
    def T(self) -> Shifts:
        if not self.linear:
            raise ValueError("A structure that reduces with max has no transpose.")
        return replace(self, transposed=not self.transposed)

    @lazy
    def trivial(self) -> bool:
        """Whether it is the identity: one tap that reads the site itself."""
        one = {*self.kernel, *self.stride} == {1}
        return one and not self.is_padded and not self.window and self.reduce == "sum"

    @property
    def padded(self) -> tuple[int, ...]:
        return tuple(n + sum(p) for n, p in zip(self.size, self.padding, strict=True))

    @property
    def is_padded(self) -> bool:
        return any(p != (0, 0) for p in self.padding)

    @lazy
    def even_padding(self) -> tuple[int, ...] | None:
        """The padding along each axis, if it is zero padding and the same before and after; else None."""
        even = self.mode == "zeros" and all(before == after >= 0 for before, after in self.padding)
        return tuple(before for before, _ in self.padding) if even else None

    def _places(self) -> list[tuple[Any, ...]]:
        """For each tap, the index into (*b, *padded, c) of the site that it reads for each output site."""
        steps = itertools.product(*(range(0, k * d, d) for k, d in zip(self.kernel, self.dilation, strict=True)))
        return [
            (
                ...,
                *(slice(a, a + s * (o - 1) + 1, s) for a, s, o in zip(start, self.stride, self.out, strict=True)),
                slice(None),
            )
            for start in steps
        ]

    def scale(self, like: Tensor, times: int = 1) -> Tensor | float:
        """The factor of the sum of a window, times `times`: a number, or a tensor (m, 1) for the output sites."""
        if self.divisor is None:
            return float(times)
        if not isinstance(self.divisor, tuple):
            return times / self.divisor
        counted = zip(self.padding, self.divisor, strict=True)
        if all(low >= before and high >= after for (before, after), (low, high) in counted):
            return times / math.prod(self.kernel)
        covered = self._covered
        if all(len(set(axis)) == 1 for axis in covered):
            return times / math.prod([axis[0] for axis in covered])
        counts = torch.ones((), dtype=torch.float64, device=like.device)  # counts may not be exact in half precision
        for axis in covered:
            counts = counts.unsqueeze(-1) * torch.tensor(axis, dtype=torch.float64, device=like.device)
        return (times / counts.flatten()).to(like.dtype).unsqueeze(-1)

    @lazy
    def is_open(self) -> tuple[bool, bool]:
        """Whether sizes of the grid, and of the kernel, are dynamic (symbols of a compiler or exporter)."""
        return not is_static(self.size), not is_static(self.kernel)

    @lazy
    def has_empty_windows(self) -> bool:
        """Whether a window lies entirely in the padding."""
        axes = zip(self.size, self.kernel, self.stride, self.dilation, self.padding, self.out, strict=True)
        return self.window and any(
            not any(0 <= at * s - before + a < n for a in range(0, k * d, d))
            for n, k, s, d, (before, _), o in axes
            for at in range(o)
        )

    @lazy
    def _covered(self) -> list[list[int]]:
        """For each axis and output site, the number of sites under the window that count for the mean."""
        assert isinstance(self.divisor, tuple)
        axes = zip(
            self.size, self.kernel, self.stride, self.dilation, self.padding, self.divisor, self.out, strict=True
        )
        counts = [
            [sum(-low <= at * s - before + a < n + high for a in range(0, k * d, d)) for at in range(o)]
            for n, k, s, d, (before, _), (low, high), o in axes
        ]
        if any(0 in axis for axis in counts):
            raise InputError(
                "A window contains no site that counts for its mean: pad less, or count more of the padding."
            )
        return counts

    # -- padding and its adjoint, on (*b, *size, c) ---------------------------------------------------------------

    def pad(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """(*b, *size, c) -> (*b, *padded, c)."""
        if not self.is_padded:
            return x
        if self.mode == "zeros":
            return F.pad(x, [0, 0, *itertools.chain(*reversed(self.padding))], value=fill)
        wide = self._wide(x)
        for axis, index in self._border_maps(x.device):
            wide = wide.index_select(axis, index)
        return wide.to(x.dtype)

    def _wide(self, x: Tensor) -> Tensor:
        """x in at least float32 if padding copies a site so often that the gradients in 16 bits would not add up."""
        often = self.mode == "replicate" and math.prod([1 + max(0, *pair) for pair in self.padding]) > OFTEN
        return widened(x) if often else x

    def pad_images(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """The same on images, (*b, c, *size) -> (*b, c, *padded), by torch's padding."""
        if not self.is_padded:
            return x
        amounts = list(itertools.chain(*reversed(self.padding)))
        if self.mode == "zeros":
            return F.pad(x, amounts, value=fill)
        d = len(self.size)
        images = self._wide(x.flatten(0, -d - 2) if x.ndim > d + 2 else x)
        if not images.numel() or images.ndim < d + 1:
            return self.pad(x.movedim(-d - 1, -1), fill).movedim(-1, -d - 1)
        padded = F.pad(images, amounts, mode=self.mode).to(x.dtype)
        return padded.unflatten(0, x.shape[: -d - 1]) if x.ndim > d + 2 else padded

    def unpad(self, y: Tensor) -> Tensor:
        """The adjoint of `pad`, (*b, *padded, c) -> (*b, *size, c): values in the padding are added to their sites."""
        if not self.is_padded:
            return y
        if self.mode == "zeros":
            return F.pad(y, [0, 0, *(-p for p in itertools.chain(*reversed(self.padding)))])
        total = self._wide(y)
        for axis, index in self._border_maps(y.device):
            shape = list(total.shape)
            shape[axis] = self.size[axis + len(self.size) + 1]
            total = total.new_zeros(shape).index_add(axis, index, total)
        return total.to(y.dtype)

    def _border_maps(self, device: torch.device) -> list[tuple[int, Tensor]]:
        """For each axis, as (negative axis, index): the site of the grid that each site of the padded grid reads."""
        maps = []
        for axis, (n, (before, after)) in enumerate(zip(self.size, self.padding, strict=True)):
            place = torch.arange(-before, n + after, device=device)
            if self.mode == "circular":
                first, cropped = max(-before, 0), n + min(before, 0) + min(after, 0)
                place = first + (place - first) % cropped
            elif self.mode == "replicate":
                place = place.clamp(0, n - 1)
            elif n > 1:
                place = place.abs()
                place = (n - 1) - ((n - 1) - place).abs()
            maps.append((axis - len(self.size) - 1, place))
        return maps

    # -- the products ----------------------------------------------------------------------------------------------

    def _windows(self, x: Tensor) -> list[Tensor]:
        """The input of each tap: k tensors (*b, m, c) from (*b, n, c)."""
        fill = -math.inf if self.reduce == "max" else 0.0
        padded, d = self.pad(x.unflatten(-2, self.size), fill), len(self.size)
        return [padded[place].flatten(-d - 1, -2) for place in self._places()]

    def _scatter(self, ys: list[Tensor]) -> Tensor:
        """The adjoint of `_windows`, summed: k tensors (*b, m, c) to (*b, n, c)."""
        first, d = ys[0], len(self.size)
        wide = torch.promote_types(first.dtype, torch.float32)  # in which sums of many 16-bit numbers are exact enough
        buffer = first.new_zeros(*first.shape[:-2], *self.padded, first.shape[-1], dtype=wide)
        for place, y in zip(self._places(), ys, strict=True):
            buffer[place] += y.unflatten(-2, self.out)
        return self.unpad(buffer).flatten(-d - 1, -2).to(first.dtype)

    def expand(self, x: Tensor) -> Tensor:
        if not self.transposed:
            parts = self._windows(x)
            if self.window:
                return self._pool(parts).unsqueeze(-3)
            return torch.stack(parts, -2).movedim(-2, -3)
        if self.window:
            return self._scatter([x * self.scale(x)] * math.prod(self.kernel)).unsqueeze(-3)
        zero = torch.zeros_like(x)
        taps = range(math.prod(self.kernel))
        return torch.stack([self._scatter([x if a == k else zero for a in taps]) for k in taps], -3)

    def contract(self, z: Tensor) -> Tensor:
        if self.window:
            return self.expand(z.squeeze(-3)).squeeze(-3)
        if self.transposed:
            return self._scatter(list(z.unbind(-3)))
        fill = -math.inf if self.reduce == "max" else 0.0
        padded, d = self.pad(z.unflatten(-2, self.size), fill), len(self.size)
        total, wide = None, torch.promote_types(z.dtype, torch.float32)
        for k, place in enumerate(self._places()):
            part = padded.select(-d - 2, k)[place].flatten(-d - 1, -2).to(wide)
            total = part if total is None else total + part
        assert total is not None
        return total.to(z.dtype)

    def _pool(self, parts: list[Tensor]) -> Tensor:
        if self.reduce == "max":
            return torch.stack(parts).amax(0)
        return torch.stack(parts).sum(0) * self.scale(parts[0])

    # -- the same structure as sparse entries ----------------------------------------------------------------------

    def taps(self, dtype: torch.dtype, device: torch.device) -> Taps:
        """This stack as `Taps`, cached by geometry."""
        if torch.compiler.is_dynamo_compiling():
            found = _outside(self, dtype, device)
            return self._build_taps(dtype, device) if found is None else getattr(self, found)
        key = (self, dtype, device)
        made = _TAPS.get(key)  # read once: another thread may empty the cache at any time
        if made is None:
            with lasting():
                made = self.T.taps(dtype, device).T if self.transposed else self._build_taps(dtype, device)
            _TAPS[key] = made
        return made

    def _build_taps(self, dtype: torch.dtype, device: torch.device) -> Taps:
        # apply all taps to the site indices (from 1; 0 for padding), in float64, which is exact up to 2^53
        numbers = torch.arange(1, math.prod(self.size) + 1, dtype=torch.float64).unsqueeze(-1)
        geometry = replace(self, window=False, divisor=None, reduce="sum")
        read = geometry.expand(numbers).squeeze(-1).long()  # (k, m)
        tap, row = (read > 0).nonzero(as_tuple=True)
        col = read[tap, row] - 1
        values = torch.ones(len(col), dtype=dtype)
        if self.window:
            scale = self.scale(values)
            values = values * (scale if isinstance(scale, float) else scale[row, 0])
            tap = torch.zeros_like(tap)
        tap, row, col = (t.to(device) for t in (tap, row, col))
        return Taps(Pattern(self.shape, tap, row, col), values.to(device), self.reduce)
