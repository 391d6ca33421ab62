"""Triangle meshes with a tangent frame at each vertex: spheres, and any oriented surface."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gconv.arguments import accepts, checked, integer, plural, shown
from gconv.errors import InputError
from gconv.operators.convolution import Kernel
from gconv.operators.pooling import Everything, Window
from gconv.operators.resampling import Resampled
from gconv.spec import OutsideFamily
from gconv.transfer.pixels import Pixels

ROWS = 512  # number of vertices processed at a time


@dataclass(frozen=True, eq=False, repr=False)
class Surface:
    """A triangle mesh as an image domain: each vertex is a pixel, with a tangent frame that defines right and down.

    Meaning: a tap with offset (dr, dc) reads, at a vertex, the point at dc `right` + dr `down` in its tangent plane,
    interpolated by the barycentric coordinates of the triangle at that point. On a flat mesh whose vertices are pixels,
    these points are pixels.

    Traps: faces must be oriented counter-clockwise as seen from outside. In the default frame `right` points east
    around the z axis; it is arbitrary at the two poles.

    Args:
        vertices: (n, 3) positions.
        faces: (f, 3) vertices of each triangle.
        right: (n, 3) the direction of increasing image columns at each vertex; its tangential part is used.
        spacing: the distance between pixels; default: the mean edge length.
        open: whether the surface may have a border, beyond which values are zero.

    Raises:
        TypeError, InputError: if a tensor has the wrong shape or type, a face is degenerate or flipped, an edge has
            more than two faces, a vertex has no face, or the mesh has a border or hole and `open` is False.

    >>> Surface.sphere(2)
    Surface(162 vertices, 320 faces)
    """

    vertices: Tensor
    faces: Tensor
    right: Tensor | None = None
    spacing: float | None = None
    open: bool = False
    finer: Surface | None = field(default=None, init=False)  # the next finer level
    parent: Tensor | None = field(default=None, init=False)  # the vertex of this level for each vertex of `finer`
    coarser: Surface | None = field(default=None, init=False)
    down: Tensor = field(init=False)
    normal: Tensor = field(init=False)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        V, faces = self.vertices, self.faces
        if not isinstance(self.open, bool):
            raise TypeError(f"open must be True or False, but it is {shown(self.open)}.")
        if self.spacing is not None and not accepts(self.spacing, float):
            raise TypeError(f"spacing must be a positive number, but it is {shown(self.spacing)}.")
        if not isinstance(V, Tensor) or V.ndim != 2 or V.shape[1] != 3 or not V.is_floating_point():
            raise TypeError("vertices must be a tensor (n, 3) of floating point numbers.")
        if not isinstance(faces, Tensor) or faces.ndim != 2 or faces.shape[1] != 3 or faces.is_floating_point():
            raise TypeError("faces must be an integer tensor (f, 3).")
        put("vertices", V.detach().double().cpu().clone())
        put("faces", faces.detach().long().cpu().clone())
        if not bool(torch.isfinite(self.vertices).all()):
            raise InputError("vertices must be finite, but it contains NaN or infinity.")
        self._check_faces()
        normal = torch.zeros_like(self.vertices)
        for corner in range(3):
            normal = normal.index_add(0, self.faces[:, corner], self._face_normals())
        length = normal.norm(dim=1, keepdim=True)
        if bool((length < 1e-12).any()):
            raise InputError(
                f"The normals of the faces around vertex {int(length[:, 0].argmin())} cancel: it has no normal."
            )
        normal = normal / length
        if self.right is None:
            right = torch.linalg.cross(torch.tensor([[0.0, 0.0, 1.0]]).double().expand_as(normal), normal)
            pole = right.norm(dim=1, keepdim=True) < 1e-6
            right = torch.where(pole, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), right)
        else:
            right = self.right.detach().double().cpu() if isinstance(self.right, Tensor) else torch.empty(0)
            if right.shape != self.vertices.shape:
                raise TypeError(f"right must be a tensor of shape {tuple(self.vertices.shape)}.")
        right = right - (right * normal).sum(1, keepdim=True) * normal
        size = right.norm(dim=1, keepdim=True)
        if not bool((size > 1e-9).all()):
            raise InputError(f"At vertex {int(size[:, 0].argmin())} right is orthogonal to the tangent plane.")
        put("right", right / size)
        put("down", torch.linalg.cross(self.right, normal))
        put("normal", normal)
        ends = self.vertices[self.faces]
        edges = (ends - ends.roll(1, 1)).norm(dim=2)
        put("spacing", float(edges.mean()) if self.spacing is None else float(self.spacing))
        if not self.spacing or not 0 < self.spacing < math.inf:
            raise InputError(f"spacing must be a positive number, but it is {shown(self.spacing)}.")

    def _face_normals(self) -> Tensor:
        a, b, c = self.vertices[self.faces].unbind(1)
        return torch.linalg.cross(b - a, c - a)

    def _check_faces(self) -> None:
        n, faces = len(self.vertices), self.faces
        if not len(faces) or int(faces.min()) < 0 or int(faces.max()) >= n:
            raise InputError(f"faces must contain at least one face, of vertices from 0 to {n - 1}.")
        unused = torch.bincount(faces.flatten(), minlength=n) == 0
        if bool(unused.any()):
            raise InputError(f"Vertex {int(unused.nonzero()[0])} is not part of any face.")
        size = self._face_normals().norm(dim=1)
        if bool((size <= 1e-12 * size.max()).any()):
            raise InputError(f"Face {int(size.argmin())} is degenerate: its corners are collinear.")
        way = torch.stack([faces, faces.roll(-1, 1)], 2).reshape(-1, 2)
        key = way[:, 0] * n + way[:, 1]
        seen, times = torch.unique(key, return_counts=True)
        if len(seen) < len(key):
            edge = int(seen[times > 1][0])
            raise InputError(
                f"The edge from vertex {edge // n} to {edge % n} occurs twice in the same direction: a face is "
                "flipped, or more than two faces share the edge."
            )
        back = way[:, 1] * n + way[:, 0]
        border = int((~torch.isin(key, back)).sum())
        if border and not self.open:
            raise InputError(
                f"The mesh has a border or hole of {plural(border, 'edge')}: close it, or give open=True for zeros "
                "beyond it."
            )

    # -- ready-made ------------------------------------------------------------------------------------------------

    @classmethod
    @checked
    def sphere(cls, level: int) -> Surface:
        """The unit sphere: an icosahedron with a vertex at each pole, whose faces are subdivided `level` times.

        The first vertices of a level are those of the previous level.

        Raises:
            InputError: if level is above 8.
        """
        level = integer(level, "level", 0)
        if level > 8:
            raise InputError(f"level must be at most 8 (655,362 vertices), but it is {level}.")
        z, r = 1 / math.sqrt(5), 2 / math.sqrt(5)
        ring = lambda shift, h: [  # noqa: E731
            (r * math.cos(2 * math.pi * (k + shift) / 5), r * math.sin(2 * math.pi * (k + shift) / 5), h)
            for k in range(5)
        ]
        V = torch.tensor([(0, 0, 1), *ring(0, z), *ring(0.5, -z), (0, 0, -1)], dtype=torch.float64)
        a, b = range(1, 6), range(6, 11)
        faces = [(0, a[k], a[(k + 1) % 5]) for k in range(5)] + [(11, b[(k + 1) % 5], b[k]) for k in range(5)]
        faces += [(a[k], b[k], a[(k + 1) % 5]) for k in range(5)]
        faces += [(b[k], b[(k + 1) % 5], a[(k + 1) % 5]) for k in range(5)]
        F = torch.tensor(faces)
        for _ in range(level):
            n = len(V)
            ends = torch.stack([F, F.roll(-1, 1)], 2).sort(2).values
            edges, number = torch.unique(ends.reshape(-1, 2), dim=0, return_inverse=True)
            middle = V[edges].sum(1)
            V = torch.cat([V, middle / middle.norm(dim=1, keepdim=True)])
            m = number.reshape(-1, 3) + n  # of the edges 01, 12, 20
            F = torch.cat(
                [
                    torch.stack([F[:, 0], m[:, 0], m[:, 2]], 1),
                    torch.stack([F[:, 1], m[:, 1], m[:, 0]], 1),
                    torch.stack([F[:, 2], m[:, 2], m[:, 1]], 1),
                    m,
                ]
            )
        return cls(V, F)

    # -- what it is ------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        sizes = f"{plural(self.size, 'vertex', 'vertices')}, {plural(len(self.faces), 'face')}"
        return f"Surface({sizes}{', open' if self.open else ''})"

    @property
    def size(self) -> int:
        return len(self.vertices)

    @property
    def ndim(self) -> int:
        return 2

    @property
    def exact(self) -> bool:
        return False

    @checked
    def nearest(self, points: Tensor) -> Tensor:
        """The vertex nearest to each point (p, 3)."""
        if points.ndim != 2 or points.shape[1] != 3 or not points.is_floating_point():
            raise ValueError(f"points must be floats (p, 3), but they are {points.dtype} of {tuple(points.shape)}.")
        points = points.to(self.vertices)
        return torch.cat([torch.cdist(part, self.vertices).argmin(1) for part in points.split(ROWS)])

    def reads(self, at: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The entries (tap, row, vertex, weight) of vertices `at` for offsets (k, 2) (down, right), in pixels."""
        assert self.spacing is not None
        reach = float(offsets.norm(dim=1).max()) if len(offsets) else 0.0
        ends = self.vertices[self.faces]
        edge = float((ends - ends.roll(1, 1)).norm(dim=2).mean())
        near = min(len(self.faces), math.ceil(8 * (reach * self.spacing / edge + 1.5) ** 2) + 16)
        parts = [self._reads_of(rows, at[rows], offsets, near) for rows in torch.arange(len(at)).split(ROWS)]
        tap, row, col, weight = (torch.cat(part) for part in zip(*parts, strict=True))
        return tap, row, col, weight

    def _reads_of(self, rows: Tensor, at: Tensor, offsets: Tensor, near: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        right, down, normal = self.right, self.down, self.normal
        assert right is not None
        corner = self.vertices[self.faces]
        distance = torch.cdist(self.vertices[at], corner.mean(1))
        turned = normal[at] @ self._face_normals().T <= 0  # faces on the other side of the surface
        face = distance.masked_fill(turned, math.inf).topk(near, 1, largest=False).indices
        away = corner[face] - self.vertices[at][:, None, None]  # (m, c, 3, 3)
        flat = torch.stack([(away * v[at][:, None, None]).sum(-1) for v in (down, right)], -1)  # (m, c, 3, 2)
        length, short = away.norm(dim=-1, keepdim=True), flat.norm(dim=-1, keepdim=True)
        flat = flat * (length / short.clamp(min=1e-12)).clamp(max=1e6) / self.spacing  # in pixels, keeping distances
        a, b, c = flat.unbind(2)
        found = []
        for k, offset in enumerate(offsets):
            u, v, w = b - a, c - a, offset - a
            area = _cross(u, v)
            ok = area.abs() > 1e-12
            area = torch.where(ok, area, 1.0)
            second, third = _cross(w, v) / area, _cross(u, w) / area
            weight = torch.stack([1 - second - third, second, third], -1)  # (m, c, 3)
            least = torch.where(ok, weight.amin(-1), -math.inf)
            inside = least > -1e-9
            pick = torch.where(inside.any(1), inside.to(torch.int64).argmax(1), least.argmax(1))
            chosen = weight.gather(1, pick[:, None, None].expand(-1, 1, 3)).squeeze(1).clamp(min=0)
            chosen = chosen / chosen.sum(1, keepdim=True)
            vertex = self.faces[face.gather(1, pick[:, None])].squeeze(1)
            keep = (chosen > 1e-9) & (inside.any(1) | (not self.open)).unsqueeze(1)
            row = rows.unsqueeze(1).expand(-1, 3)[keep]
            found.append((torch.full_like(row, k), row, vertex[keep], chosen[keep]))
        tap, row, col, share = (torch.cat(part) for part in zip(*found, strict=True))
        return tap, row, col, share

    def place(self, structure: Any) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
        """The structure of a grid operator on the mesh: (target, tap, row, column, value).

        Raises:
            OutsideFamily: if it is not defined on a mesh.
            InputError: if it needs a level that was not given.
        """
        n = self.size
        if isinstance(structure, Everything):
            one, site = torch.zeros(n, dtype=torch.int64), torch.arange(n)
            value = torch.full((n,), 1 / n if structure.reduce == "mean" else 1.0, dtype=torch.float64)
            return Pixels.from_mask(torch.ones(1, 1, dtype=torch.bool)), one, one, site, value
        if isinstance(structure, Resampled) and structure.factor is not None and min(structure.factor) > 1:
            finer = self._above()
            assert finer.coarser is self and self.parent is not None
            row = torch.arange(finer.size)
            return finer, torch.zeros_like(row), row, self.parent, torch.ones(len(row), dtype=torch.float64)
        if not isinstance(structure, Kernel | Window) or structure.ndim != 2:
            raise OutsideFamily(f"A {type(structure).__name__} is not defined on {self!r}.")
        strides = set(structure.stride)
        if len(strides) > 1:
            raise OutsideFamily(f"On {self!r} a stride must be the same for both axes, but it is {structure.stride}.")
        strided = strides != {1}
        axes = zip(structure.kernel, structure.dilation, strict=True)
        steps = [[d * (a - (k - 1) / 2) for a in range(k)] for k, d in axes]
        offsets = torch.tensor(list(itertools.product(*steps)), dtype=torch.float64)
        if isinstance(structure, Kernel) and structure.transposed:
            if not strided:
                tap, row, col, value = self.reads(torch.arange(n), -offsets)
                return self, tap, row, col, value
            return self._transposed(structure, offsets)
        target = self._below() if strided else self
        if isinstance(structure, Window):
            return self._pooled(structure, target, offsets)
        at = self.nearest(target.vertices) if strided else torch.arange(n)
        return target, *self.reads(at, offsets)

    def _pooled(
        self, structure: Window, target: Surface, offsets: Tensor
    ) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
        if target is self:
            _, row, col, value = self.reads(torch.arange(self.size), offsets)
            value = value / len(offsets)
        else:
            assert target.parent is not None
            row, col = target.parent, torch.arange(self.size)
            value = 1 / torch.bincount(row, minlength=target.size).double()[row]
        if structure.reduce != "max" and structure.divisor_override:
            raise OutsideFamily("Pooling with divisor_override is not defined on a mesh.")
        return target, torch.zeros_like(row), row, col, value

    def _transposed(self, structure: Kernel, offsets: Tensor) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
        finer = self._above()
        tap, col, row, value = finer.reads(finer.nearest(self.vertices), offsets)
        assert self.parent is not None
        share = len(offsets) / math.prod(structure.stride)
        total = torch.zeros(finer.size, dtype=torch.float64).index_add(0, row, value)
        unreached = (total < 1e-6).nonzero()[:, 0]  # these read their parent through the mean of all taps
        keep = total[row] >= 1e-6
        k = len(offsets)
        extra = torch.arange(k).repeat(len(unreached)), unreached.repeat_interleave(k)
        tap, row = torch.cat([tap[keep], extra[0]]), torch.cat([row[keep], extra[1]])
        col = torch.cat([col[keep], self.parent[extra[1]]])
        value = torch.cat([value[keep], torch.ones(len(extra[0]), dtype=torch.float64)])
        total = torch.zeros(finer.size, dtype=torch.float64).index_add(0, row, value)
        return finer, tap, row, col, value * share / total[row]

    def _below(self) -> Surface:
        if self.coarser is None:
            raise InputError(f"{self!r} has no coarser level: give coarser=[(surface, parent), ...], one per stride.")
        return self.coarser

    def _above(self) -> Surface:
        if self.finer is None:
            raise InputError(f"The model upsamples {self!r}, which is the finest level.")
        return self.finer


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def link(surface: Surface, coarser: Sequence[Any]) -> Surface:
    """A surface linked to coarser levels, pairs (surface, parent), with a parent for each vertex of the level before.

    Raises:
        TypeError: if a level is not such a pair.
        InputError: if a parent is missing, out of range, or a coarse vertex has no children.
    """
    first = level = _bare(surface)
    for entry in coarser:
        if not isinstance(entry, tuple | list) or len(entry) != 2 or not isinstance(entry[0], Surface):
            raise TypeError(f"A coarser level of a mesh must be a pair (surface, parent), but it is {shown(entry)}.")
        below, parent = _bare(entry[0]), entry[1]
        if not isinstance(parent, Tensor) or parent.shape != (level.size,) or parent.is_floating_point():
            raise TypeError(
                f"parent must be an integer tensor ({level.size},) with a vertex of {below!r} for each of {level!r}."
            )
        parent = parent.detach().cpu().long()
        counts = torch.bincount(parent.clamp(0), minlength=below.size)
        if int(parent.min()) < 0 or int(parent.max()) >= below.size or int(counts.min()) == 0:
            raise InputError(
                f"Every vertex of {below!r} needs at least one child, and every parent must be one of them."
            )
        object.__setattr__(below, "finer", level)
        object.__setattr__(below, "parent", parent)
        object.__setattr__(level, "coarser", below)
        level = below
    return first


def _bare(surface: Surface) -> Surface:
    """A copy of the surface without links to other levels."""
    return Surface(surface.vertices, surface.faces, surface.right, surface.spacing, surface.open)
