"""Sites in a frame of pixels: pixels in any order, superpixels, points between pixels; frames may be periodic."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from gconv.arguments import checked, plural, shown
from gconv.domains import Graph, Grid
from gconv.errors import InputError

Assign = Literal["bilinear", "nearest"]
Entries = tuple[Tensor, Tensor, Tensor]  # row, column, value


@dataclass(frozen=True, eq=False, repr=False)
class Pixels:
    """Sites with positions in a frame of pixels.

    Equation: pixel q of the frame has the value sum_j R[q, j] x[j], and site i has the value sum_q G[i, q] y[q].

    Meaning: an operator on the frame with taps S_k becomes one with taps G S_k R on the sites. If each site is a
    separate pixel, R and G select and reorder, and the result is exact. Positions outside the frame are treated by the
    padding mode of the operator; pixels of the frame to which no site contributes are holes.

    Create it with `from_pos`, `from_mask` or `from_labels`.

    Args:
        shape: of the frame.
        size: n, the number of sites.
        lift: R by its entries (pixel, site, value); the values of a pixel sum to 1.
        sample: G by its entries (site, pixel, value); the values of a site sum to 1.
        periodic: for each axis, whether the frame is periodic.
        exact: whether each site is a separate pixel.
        origin: the next finer level, from which this one was derived.

    >>> ring = Pixels.from_mask(torch.tensor([[True, True, False], [True, True, True]]), periodic=(False, True))
    >>> ring, ring.pos.tolist()[2]
    (Pixels(5 sites in a frame of (2, 3), periodic along axis 1), [1.0, 0.0])
    """

    shape: tuple[int, ...]
    size: int
    lift: Entries
    sample: Entries
    periodic: tuple[bool, ...]
    exact: bool = True
    origin: Pixels | None = None
    _memo: dict[Hashable, Any] = field(default_factory=dict, init=False)

    # -- constructors ----------------------------------------------------------------------------------------------

    @classmethod
    @checked
    def from_pos(
        cls,
        pos: Tensor,
        shape: Sequence[int] | None = None,
        periodic: bool | Sequence[bool] = False,
        assign: Assign = "bilinear",
    ) -> Pixels:
        """Sites at positions, in pixels: row, column.

        Args:
            pos: (n, d). If all are pixels of a grid, up to a common shift by less than a pixel, the domain is exact.
            shape: of the frame; default: up to the largest position along each axis.
            periodic: whether the frame is periodic, for all axes or for each.
            assign: the interpolation for other positions: "bilinear", between a site and the up to 2^d pixels around
                it, or "nearest".

        Raises:
            TypeError, InputError: if pos is not an (n, d) real tensor, is negative or outside the frame, or two sites
                are on the same pixel.
        """
        if not isinstance(pos, Tensor) or pos.ndim != 2 or not 1 <= pos.shape[1] <= 3 or pos.is_complex():
            what = f"shape {tuple(pos.shape)}" if isinstance(pos, Tensor) else shown(pos)
            raise TypeError(f"pos must be a tensor (sites, 1 to 3 coordinates), but it is {what}.")
        if assign not in ("bilinear", "nearest"):
            raise InputError(f"assign must be 'bilinear' or 'nearest', but it is {shown(assign)}.")
        where = pos.detach().double().cpu()
        if not len(where):
            raise InputError("There are no sites: pos is empty.")
        if not bool(torch.isfinite(where).all()):
            raise InputError("pos must be finite, but it contains NaN or infinity.")
        if float(where.min()) < 0:
            raise InputError(f"pos must not be negative, but its minimum is {float(where.min()):.3g}.")
        place = (where - (where[0] - where[0].round())).round()
        exact = bool(((place - where) - (place[0] - where[0])).abs().max() < 1e-4) and float(place.min()) >= 0
        place = place if exact else where
        most = place.amax(0).floor().long() + 1
        size = tuple(most.tolist()) if shape is None else Grid(tuple(shape)).shape
        if len(size) != pos.shape[1] or any(m > s for m, s in zip(most.tolist(), size, strict=True)):
            raise InputError(f"A frame of {size} does not contain all positions, which need {tuple(most.tolist())}.")
        rings = _read_periodic(periodic, len(size))
        n = len(where)
        if exact:
            pixel = _number(place.long(), size)
            if len(pixel.unique()) < n:
                raise InputError("Two sites are on the same pixel: their positions must be distinct.")
            one = torch.ones(n, dtype=torch.float64)
            site = torch.arange(n)
            return cls(size, n, (pixel, site, one), (site, pixel, one), rings)
        near = _near_pixels(place, size, rings) if assign == "bilinear" else _nearest(place, size)
        return cls(
            size, n, _normalised((near[0], near[1], near[2])), _normalised((near[1], near[0], near[2])), rings, False
        )

    @classmethod
    @checked
    def from_mask(cls, mask: Tensor, periodic: bool | Sequence[bool] = False) -> Pixels:
        """The pixels of a frame where the mask is true, in row-major order.

        Raises:
            TypeError, InputError: if the mask is not a boolean tensor of one to three axes, or is False everywhere.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not 1 <= mask.ndim <= 3:
            what = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else shown(mask)
            raise TypeError(f"mask must be a boolean tensor with one axis per axis of the images, but it is {what}.")
        if not bool(mask.any()):
            raise InputError("mask must select at least one pixel, but it is False everywhere.")
        return cls.from_pos(mask.nonzero(), tuple(mask.shape), periodic)

    @classmethod
    @checked
    def from_labels(cls, labels: Tensor, periodic: bool | Sequence[bool] = False) -> Pixels:
        """Superpixels: each pixel of a frame belongs to the site given by its label; negative labels are holes.

        A pixel has the value of its site, and a site the mean over its pixels.

        Raises:
            TypeError, InputError: if labels is not an integer tensor of one to three axes, or a label has no pixels.
        """
        whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
        if not whole or labels.dtype == torch.bool or not 1 <= labels.ndim <= 3:
            raise TypeError("labels must be an integer tensor with one axis per axis of the images.")
        flat = labels.detach().cpu().long().flatten()
        pixel = (flat >= 0).nonzero()[:, 0]
        if not len(pixel):
            raise InputError("labels must contain at least one label >= 0, but all are negative.")
        site, n = flat[pixel], int(flat.max()) + 1
        counts = torch.bincount(site.clamp(max=len(site)))  # a label beyond that leaves a gap below it
        if int(counts.min()) == 0 or n > len(site):
            missing = int((torch.cat([counts[: len(site)], counts.new_zeros(1)]) == 0).nonzero()[0])
            raise InputError(f"No pixel has label {missing}, but labels go up to {n - 1}.")
        one, shape = torch.ones(len(pixel), dtype=torch.float64), Grid(tuple(labels.shape)).shape
        lift, sample = (pixel, site, one), _normalised((site, pixel, one))
        return cls(shape, n, lift, sample, _read_periodic(periodic, len(shape)), bool(counts.max() == 1))

    # -- properties ------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        rings = [str(a) for a, ring in enumerate(self.periodic) if ring]
        ends = f", periodic along axis {' and '.join(rings)}" if rings else ""
        return f"Pixels({plural(self.size, 'site')} in a frame of {self.shape}{ends})"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def pos(self) -> Tensor:
        """(n, d) the mean position of each site, in pixels."""
        site, pixel, share = self.sample
        place = torch.stack(torch.unravel_index(pixel, self.shape), 1).double()
        return torch.zeros(self.size, self.ndim, dtype=torch.float64).index_add(0, site, share.unsqueeze(1) * place)

    @property
    def present(self) -> Tensor:
        """(pixels,) whether a pixel of the frame has a value."""
        return torch.zeros(math.prod(self.shape), dtype=torch.bool).index_fill(0, self.lift[0], True)

    @property
    def holes(self) -> int:
        """The number of pixels of the frame without a value."""
        return int((~self.present).sum())

    @checked
    def gather(self, images: Tensor) -> Tensor:
        """Images (*b, c, *shape) as a signal (*b, n, c).

        Raises:
            InputError: if the images have another shape.

        >>> Pixels.from_labels(torch.tensor([[0, 0], [1, -1]])).gather(torch.tensor([[[1.0, 3.0], [5.0, 7.0]]]))
        tensor([[2.],
                [5.]])
        """
        if images.ndim <= self.ndim or tuple(images.shape[-self.ndim :]) != self.shape:
            raise InputError(f"The frame is {self.shape}, but the images have shape {tuple(images.shape)}.")
        site, pixel, share = (t.to(images.device) for t in self.sample)
        read = images.flatten(-self.ndim)[..., pixel] * share.to(images.dtype)
        return images.new_zeros(*read.shape[:-1], self.size).index_add(-1, site, read).mT

    @checked
    def scatter(self, signal: Tensor, fill: float = 0.0) -> Tensor:
        """A signal (*b, n, c) as images (*b, c, *shape), with `fill` in the holes.

        Raises:
            InputError: if the signal has another number of sites.
        """
        if signal.ndim < 2 or signal.shape[-2] != self.size:
            raise InputError(f"{self!r} takes a signal (*b, {self.size}, c), but its shape is {tuple(signal.shape)}.")
        pixel, site, share = (t.to(signal.device) for t in self.lift)
        read = signal.mT[..., site] * share.to(signal.dtype)
        flat = signal.new_zeros(*read.shape[:-1], math.prod(self.shape)).index_add(-1, pixel, read)
        return flat.masked_fill(~self.present.to(flat.device), fill).unflatten(-1, self.shape)

    # -- other levels ----------------------------------------------------------------------------------------------

    def coarsened(self, stride: tuple[int, ...], shift: tuple[int, ...], shape: tuple[int, ...]) -> Pixels:
        """The next coarser level: pixel m of its frame covers the pixels s m + shift to s (m + 1) + shift - 1.

        An exact level has the pixels m that cover a site, or no pixel of the frame at all; other levels keep their
        sites, with positions in the coarser frame.
        """
        if set(stride) == {1} and not any(shift) and shape == self.shape:
            return self
        key = stride, shift, shape
        if key not in self._memo:
            place = torch.stack(torch.unravel_index(torch.arange(math.prod(self.shape)), self.shape), 1)
            cell = (place - torch.tensor(shift)).div(torch.tensor(stride), rounding_mode="floor")
            inside = ((cell >= 0) & (cell < torch.tensor(shape))).all(1)
            parent = torch.where(inside, _number(cell.clamp(min=0), shape), -1)
            parent = parent.masked_fill(~inside, -1)
            made = self._exactly(parent, shape) if self.exact else self._assigned(parent, shape)
            self._memo[key] = made
        found: Pixels = self._memo[key]
        return found

    def _exactly(self, parent: Tensor, shape: tuple[int, ...]) -> Pixels:
        total = math.prod(shape)
        covered = torch.bincount(parent[parent >= 0], minlength=total) > 0
        there = parent[self.present & (parent >= 0)]
        kept = (torch.bincount(there, minlength=total) > 0) | ~covered
        return self._level(kept.nonzero()[:, 0], shape)

    def _level(self, pixel: Tensor, shape: tuple[int, ...]) -> Pixels:
        if not len(pixel):
            raise InputError(f"No site of {self!r} is left in a coarser frame of {shape}.")
        one, site = torch.ones(len(pixel), dtype=torch.float64), torch.arange(len(pixel))
        return Pixels(shape, len(pixel), (pixel, site, one), (site, pixel, one), self.periodic, True, self)

    def _assigned(self, parent: Tensor, shape: tuple[int, ...]) -> Pixels:
        def through(entries: Entries, axis: int) -> Entries:
            pixel = parent[entries[axis]]
            keep = pixel >= 0
            other, share = entries[1 - axis][keep], entries[2][keep]
            ends = (pixel[keep], other) if axis == 0 else (other, pixel[keep])
            return _normalised((*ends, share))

        lift, sample = through(self.lift, 0), through(self.sample, 1)
        kept = lift[1].unique()
        if len(kept) < self.size:  # sites that no pixel of the coarser frame covers
            raise InputError(f"{self.size - len(kept)} sites of {self!r} are outside the coarser frame of {shape}.")
        return Pixels(shape, self.size, lift, sample, self.periodic, False, self)

    def refined(self, shape: tuple[int, ...]) -> Pixels:
        """The finer level with this frame: the one from which this was derived, else all pixels of its sites."""
        level: Pixels | None = self
        while level is not None:
            if level.shape == shape:
                return level
            level = level.origin
        key = "finer", shape
        if key not in self._memo:
            place = torch.unravel_index(torch.arange(math.prod(shape)), shape)
            below = torch.stack([p * n // m for p, n, m in zip(place, self.shape, shape, strict=True)], 1)
            parent = _number(below, self.shape)
            if self.exact:
                finer = self._level(self.present[parent].nonzero()[:, 0], shape)
            else:
                finer = self._spread(parent, shape)
            self._memo[key] = finer
        found: Pixels = self._memo[key]
        return found

    def _spread(self, parent: Tensor, shape: tuple[int, ...]) -> Pixels:
        """The same sites in a finer frame, each of whose pixels lies in a pixel of this frame."""
        N, total = math.prod(self.shape), len(parent)
        inside = sparse((torch.arange(total), parent, torch.ones(total, dtype=torch.float64)), (total, N))
        lift = torch.sparse.mm(inside, sparse(self.lift, (N, self.size))).coalesce()
        sample = torch.sparse.mm(sparse(self.sample, (self.size, N)), inside.t()).coalesce()
        ends = [(*m.indices().unbind(), m.values()) for m in (lift, sample)]
        a, b = ((r, c, v) for r, c, v in ends)
        return Pixels(shape, self.size, _normalised(a), _normalised(b), self.periodic, False, self)


def sparse(entries: Entries, shape: tuple[int, int]) -> Tensor:
    """A torch sparse matrix from its entries."""
    return torch.sparse_coo_tensor(torch.stack(entries[:2]), entries[2], shape, check_invariants=True)


def read_places(domain: Any, ndim: int, assign: Assign) -> Pixels:
    """A user's domain as Pixels.

    Raises:
        TypeError: if it has no positions.
        InputError: if the positions have another number of axes than the images.
    """
    if isinstance(domain, Pixels):
        found = domain
    elif isinstance(domain, Grid):
        found = Pixels.from_mask(torch.ones(domain.shape, dtype=torch.bool))
    elif isinstance(domain, Tensor):
        found = Pixels.from_mask(domain)
    elif isinstance(domain, Graph):
        if domain.pos is None:
            raise TypeError("The graph has no positions: give it pos (n, d), in pixels.")
        found = Pixels.from_pos(domain.pos, assign=assign)
    else:
        raise TypeError(f"domain must be Pixels, a Grid, a mask, or a Graph with pos, but it is {shown(domain)}.")
    if found.ndim != ndim:
        raise InputError(f"The model works on {ndim}-D images, but {found!r} has {plural(found.ndim, 'axis', 'axes')}.")
    return found


def _read_periodic(periodic: Any, ndim: int) -> tuple[bool, ...]:
    rings = (periodic,) * ndim if isinstance(periodic, bool) else tuple(periodic)
    if len(rings) != ndim or not all(isinstance(ring, bool) for ring in rings):
        raise InputError(
            f"periodic must be True or False, for all or each of {plural(ndim, 'axis', 'axes')}, but it is "
            f"{shown(periodic)}."
        )
    return rings


def _number(place: Tensor, shape: Sequence[int]) -> Tensor:
    """The row-major index of positions (n, d)."""
    steps = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
    return (place * torch.tensor(steps)).sum(1)


def _normalised(entries: Entries) -> Entries:
    """The entries after adding duplicates and dividing each row by its sum."""
    rows, cols = int(entries[0].max()) + 1, int(entries[1].max()) + 1
    matrix = sparse(entries, (rows, cols)).coalesce()
    row, col = matrix.indices()
    total = torch.zeros(rows, dtype=torch.float64).index_add(0, row, matrix.values())
    return row, col, matrix.values() / total[row]


def _near_pixels(place: Tensor, shape: tuple[int, ...], rings: tuple[bool, ...]) -> Entries:
    """(pixel, site, weight) of the up to 2^d pixels around each site."""
    low, found = place.floor().long(), []
    for corner in range(2 ** len(shape)):
        at = low + torch.tensor([corner >> a & 1 for a in range(len(shape))])
        weight = (1 - (place - at).abs()).prod(1)
        extent = torch.tensor(shape)
        at = torch.where(torch.tensor(rings), at % extent, at)
        keep = ((at >= 0) & (at < extent)).all(1) & (weight > 0)
        found.append((_number(at[keep], shape), keep.nonzero()[:, 0], weight[keep]))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))  # type: ignore[return-value]


def _nearest(place: Tensor, shape: tuple[int, ...]) -> Entries:
    """(pixel, site, 1) of the nearest site of each pixel."""
    pixels = torch.cartesian_prod(*(torch.arange(s) for s in shape)).reshape(-1, len(shape)).double()
    site = torch.cat([torch.cdist(part, place).argmin(1) for part in pixels.split(4096)])
    own = _number(torch.minimum(place.round().long(), torch.tensor(shape) - 1), shape)
    pixel = torch.cat([torch.arange(len(site)), own])  # sites that are not the nearest of any pixel get their own
    unused = torch.bincount(site, minlength=len(place)) == 0
    keep = torch.cat([torch.ones(len(site), dtype=torch.bool), unused])
    both = torch.cat([site, torch.arange(len(place))])
    return pixel[keep], both[keep], torch.ones(int(keep.sum()), dtype=torch.float64)
