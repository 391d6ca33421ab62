"""The taps of a grid operator between sites, as lists of entries, for frames with or without periodic axes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gconv.basis import entries
from gconv.binding import bind
from gconv.call import Call
from gconv.domains import Grid
from gconv.errors import InputError
from gconv.operators.convolution import Kernel
from gconv.operators.pooling import Everything, Window
from gconv.operators.resampling import Resampled
from gconv.spec import OutsideFamily
from gconv.transfer.pixels import Pixels, sparse
from gconv.transfer.surface import Surface

Place = Pixels | Surface


@dataclass(frozen=True, eq=False)
class Placed:
    """A structure between two sets of sites.

    Args:
        target: the domain of the output.
        tap, row, col, value: the entries.
        total: (m,) the total weight of each row, border and holes included.
        missing: (m,) the weight of each row's entries in holes.
        taps: the number of taps.
        largest: whether rows are reduced by max.
    """

    target: Place
    tap: Tensor
    row: Tensor
    col: Tensor
    value: Tensor
    total: Tensor
    missing: Tensor
    taps: int
    largest: bool


def _frame_entries(structure: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]]:
    """(tap, row, column, value) of a structure on a grid, and the shape of the output grid."""
    S = bind(structure, Grid(shape), {}, Call(torch.empty(1, 0, dtype=torch.float64)))
    found = entries(S, torch.float64, torch.device("cpu"))
    pattern = found.pattern
    out: tuple[int, ...] = structure.target(Grid(shape)).shape
    return pattern.tap, pattern.row, pattern.col, found.values, out


def _wrapped(number: Tensor, shape: tuple[int, ...], shift: list[int], into: tuple[int, ...]) -> Tensor:
    """Indices on one grid as indices on the grid `into`, shifted by -shift and wrapped around along each axis."""
    place = torch.unravel_index(number, shape)
    total = torch.zeros_like(number)
    for p, s, n in zip(place, shift, into, strict=True):
        total = total * n + (p - s) % n
    return total


def _on_rings(structure: Any, frame: Pixels) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]]:
    """As `_frame_entries` for a frame with periodic axes: the entries on an enlarged frame, wrapped around."""
    shape, rings = frame.shape, frame.periodic
    if isinstance(structure, Everything) or not any(rings):
        return _frame_entries(structure, shape)
    if isinstance(structure, Resampled) and structure.factor is not None and not structure.align_corners:
        more = [2 * ring for ring in rings]
        wide = tuple(n + 2 * m for n, m in zip(shape, more, strict=True))
        tap, row, col, value, out = _frame_entries(structure, wide)
        times = [o // w for o, w in zip(out, wide, strict=True)]
        if any(w * t != o for w, t, o in zip(wide, times, out, strict=True)):
            raise InputError(f"On the periodic {frame!r} upsampling needs integer factors, not {structure.factor}.")
        place, small = (
            torch.stack(torch.unravel_index(row, out)),
            tuple(n * t for n, t in zip(shape, times, strict=True)),
        )
        first = torch.tensor([m * t for m, t in zip(more, times, strict=True)]).unsqueeze(1)
        keep = ((place >= first) & (place < first + torch.tensor(small).unsqueeze(1))).all(0)
        row = _wrapped(row[keep], out, first.flatten().tolist(), small)
        return tap[keep], row, _wrapped(col[keep], wide, more, shape), value[keep], small
    if not isinstance(structure, Kernel | Window):
        raise OutsideFamily(f"On the periodic {frame!r}, a {type(structure).__name__} is not defined.")
    backwards = isinstance(structure, Kernel) and structure.transposed
    pads = structure.pads(shape) if isinstance(structure, Kernel) else structure.shifts(shape).padding
    out = structure.target(Grid(shape)).shape
    for axis, ring in enumerate(rings):
        short, long = (shape[axis], out[axis]) if backwards else (out[axis], shape[axis])
        if ring and long != short * structure.stride[axis]:
            raise InputError(
                f"Along the periodic axis {axis} of {frame!r} a layer of stride {structure.stride[axis]} must map "
                f"{long} to {long / structure.stride[axis]:g} pixels, but with its padding it maps to {short}."
            )
    free = tuple((0, 0) if ring else pad for pad, ring in zip(pads, rings, strict=True))
    before = [pad[0] * ring for pad, ring in zip(pads, rings, strict=True)]
    if backwards:
        assert isinstance(structure, Kernel)
        extra = tuple(e * (not ring) for e, ring in zip(structure.output_padding, rings, strict=True))
        tap, row, col, value, wide = _frame_entries(replace(structure, padding=free, output_padding=extra), shape)
        into = tuple(o if ring else w for o, w, ring in zip(out, wide, rings, strict=True))
        return tap, _wrapped(row, wide, before, into), col, value, out
    wide = tuple(n + sum(pad) * ring for n, pad, ring in zip(shape, pads, rings, strict=True))
    changes: dict[str, Any] = {"padding": free}
    if isinstance(structure, Window):
        changes["ceil_mode"] = False
    tap, row, col, value, _ = _frame_entries(replace(structure, **changes), wide)
    return tap, row, _wrapped(col, wide, before, shape), value, out


def _geometry(structure: Kernel | Window, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The stride, and the offset of the s x s block of pixels that contains the centre of an output pixel's window."""
    pads = structure.pads(shape) if isinstance(structure, Kernel) else structure.shifts(shape).padding
    axes = zip(structure.kernel, structure.dilation, structure.stride, pads, strict=True)
    return structure.stride, tuple(math.ceil((d * (k - 1) - (s - 1)) / 2 - p[0]) for k, d, s, p in axes)


def _leads_to(structure: Any, frame: Pixels, out: tuple[int, ...], coarser: tuple[Pixels, ...]) -> Pixels:
    """The domain of the output."""
    if out == frame.shape and (isinstance(structure, Resampled) or set(getattr(structure, "stride", (1,))) == {1}):
        same = not isinstance(structure, Kernel | Window) or not any(_geometry(structure, frame.shape)[1])
        if same:
            return frame
    if math.prod(out) > math.prod(frame.shape) and not (isinstance(structure, Kernel) and not structure.transposed):
        return frame.refined(out)
    given = [level for level in coarser if level.shape == out]
    if given:
        return given[0]
    if isinstance(structure, Kernel | Window) and not (isinstance(structure, Kernel) and structure.transposed):
        return frame.coarsened(*_geometry(structure, frame.shape), out)
    if isinstance(structure, Everything):
        return frame._memo.setdefault("one", Pixels.from_mask(torch.ones(out, dtype=torch.bool)))
    # other resampling: output pixel m covers the input pixels from floor(m n / o) on
    steps = tuple(-(-n // o) for n, o in zip(frame.shape, out, strict=True))
    return frame.coarsened(steps, (0,) * len(out), out)


def placed(structure: Any, frame: Place, coarser: tuple[Pixels, ...] = ()) -> Placed:
    """The structure of a grid operator between sites.

    Raises:
        InputError, OutsideFamily: if the operator is not defined there.
    """
    if isinstance(frame, Surface):
        below, tap, row, col, value = frame.place(structure)
        there = torch.ones(below.size, dtype=torch.float64)
        largest = getattr(structure, "reduce", "sum") == "max"
        none = torch.zeros_like(there)
        return Placed(below, tap, row, col, value, there, none, int(structure.taps), largest)
    tap, row, col, value, out = _on_rings(structure, frame)
    target, taps = _leads_to(structure, frame, out, coarser), int(structure.taps)
    largest = getattr(structure, "reduce", "sum") == "max"
    M, N = math.prod(out), math.prod(frame.shape)
    inside = torch.zeros(M, dtype=torch.float64).index_add(0, row, value)  # weight of the entries inside the frame
    hole = torch.zeros(M, dtype=torch.float64).index_add(0, row, value * ~frame.present[col])
    border = torch.zeros_like(inside)
    if isinstance(structure, Kernel) and not structure.transposed:
        border = taps - inside
    elif isinstance(structure, Window) and structure.divisor_override is None and not largest:
        border = 1 - inside
    site, pixel, share = target.sample
    over = lambda v: torch.zeros(target.size, dtype=torch.float64).index_add(0, site, share * v[pixel])  # noqa: E731
    total, missing = over(inside + border), over(hole)
    if frame.exact and target.exact:
        at = torch.full((N,), -1).index_put((frame.lift[0],), frame.lift[1])
        to = torch.full((M,), -1).index_put((target.lift[0],), target.lift[1])
        keep = (at[col] >= 0) & (to[row] >= 0)
        row, col, tap, value = to[row[keep]], at[col[keep]], tap[keep], value[keep]
    else:
        G, R = sparse(target.sample, (target.size, M)), sparse(frame.lift, (N, frame.size))
        found = []
        for k in range(taps):
            own = tap == k
            S = sparse((row[own], col[own], value[own]), (M, N))
            found.append(torch.sparse.mm(torch.sparse.mm(G, S), R).coalesce())
        tap = torch.cat([torch.full((m._nnz(),), k) for k, m in enumerate(found)])
        row, col = torch.cat([m.indices() for m in found], 1)
        value = torch.cat([m.values() for m in found])
    return Placed(target, tap, row, col, value, total, missing, taps, largest)
