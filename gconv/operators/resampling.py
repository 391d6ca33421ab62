"""Resampling without parameters: one small matrix per axis, determined by the old and the new size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import SymInt, Tensor

from gconv.basis import Axes, Pattern, Taps, Windows, lasting
from gconv.caches import Holders
from gconv.call import Call
from gconv.domains import Grid
from gconv.errors import InputError
from gconv.mixing import Fixed
from gconv.operators.shapes import grid, per_axis
from gconv.spec import GridStructure, Parts, Sample, Theta, register

Along = Literal["nearest", "nearest-exact", "linear", "cubic", "area"]
T = TypeVar("T")
KEPT = 64  # number of grids whose matrices a structure caches
MATRICES: Holders[Any] = Holders("matrices of resampling", "layers", lambda structure: [structure.memo])
KEYS = "Keys, Cubic Convolution Interpolation for Digital Image Processing, IEEE Trans. ASSP 1981"
HE = "He et al., Spatial Pyramid Pooling in Deep Convolutional Networks, ECCV 2014"
MODES: dict[str, tuple[Along, int | None]] = {
    "nearest": ("nearest", None),
    "nearest-exact": ("nearest-exact", None),
    "area": ("area", None),
    "linear": ("linear", 1),
    "bilinear": ("linear", 2),
    "trilinear": ("linear", 3),
    "bicubic": ("cubic", 2),
}


@dataclass(frozen=True)
class Resampled(GridStructure):
    """One tap, the Kronecker product A_1 (x) A_2 (x) A_3 of one matrix (m, n) per axis.

    Args:
        ndim: number of axes.
        mode: of interpolation.
        size: m for each axis, None for an axis that keeps its size; None if `factor` is given.
        factor: m = floor(n factor) for each axis.
        align_corners: whether the first and last sites of both grids coincide.
        exact: whether the step is n / m even if a factor is given.
        antialias: whether the window is widened by the step when downsampling.
    """

    ndim: int
    mode: Along
    size: tuple[int | None, ...] | None
    factor: tuple[float, ...] | None = None
    align_corners: bool = False
    exact: bool = False
    antialias: bool = False
    memo: dict[Any, Axes] = field(default_factory=dict, init=False, repr=False, compare=False)

    taps = 1

    def target(self, domain: Grid) -> Grid:
        if self.size is not None:
            return Grid(tuple(n if m is None else m for n, m in zip(domain.shape, self.size, strict=True)))
        assert self.factor is not None
        size = tuple(int(n * f) for n, f in zip(domain.shape, self.factor, strict=True))
        if min(size) < 1:
            raise InputError(
                f"scale_factor {self.factor} leaves nothing of a grid of {domain.shape}: give a larger one."
            )
        return Grid(size)

    def basis(self, domain: Grid, theta: Theta, call: Call) -> Axes:
        return _kept(self, domain, call.x, self._make)

    def _make(self, domain: Grid, x: Tensor) -> Axes:
        sizes = zip(domain.shape, self.target(domain).shape, strict=True)
        return Axes(tuple(self._along(a, n, m, x) for a, (n, m) in enumerate(sizes)))

    def _along(self, axis: int, n: int, m: int, x: Tensor) -> Taps:
        """The matrix (m, n) along an axis."""
        if self.mode == "area":
            row, col, count = _windows(n, m)
            values = 1 / count.double()
        else:
            step = n / m if self.factor is None or self.exact else 1 / self.factor[axis]
            if self.align_corners:
                step = (n - 1) / (m - 1) if m > 1 else 0.0
            if self.antialias:
                read, weights = _antialiased(n, m, step, self.mode)
            elif self.mode in ("nearest", "nearest-exact"):
                read, weights = _nearest(n, m, step, self.mode, self.ndim, x.dtype)
            else:
                read, weights = _interpolated(n, m, step, self.mode, self.align_corners)
            row, col, values = torch.arange(m).repeat_interleave(read.shape[1]), read.flatten(), weights.flatten()
        row, col = row.to(x.device), col.to(x.device)
        return Taps(Pattern((1, m, n), torch.zeros_like(row), row, col), values.to(x.device, x.dtype))


def _kept(structure: Any, domain: Grid, x: Tensor, make: Callable[[Grid, Tensor], T]) -> T:
    """The cached basis of a structure on a grid, so that a compiler does not have to trace its construction.

    Symbolic sizes remain symbolic if every axis is either kept or pooled entirely; otherwise they become constants.
    """
    if any(isinstance(n, SymInt) for n in domain.shape):
        if structure.size is not None and {*structure.size} <= {1, None}:
            return make(domain, x)
        domain = Grid(tuple(int(n) for n in domain.shape))
    key = domain.shape, x.dtype, x.device
    memo: dict[Any, T] = structure.memo
    made = memo.get(key)  # read once: another thread may empty the cache at any time
    if made is None:
        if len(memo) >= KEPT:
            memo.clear()
        MATRICES.add(structure)
        with lasting():
            made = memo[key] = make(domain, x)
    return made


def _windows(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """(row, col, sites of the row): window i of m covers the sites floor(i n / m) <= j < ceil((i + 1) n / m)."""
    place = torch.arange(m)
    if m == n:
        return place, place, torch.ones_like(place)
    if m == 1:
        place = torch.arange(n)
        return torch.zeros_like(place), place, torch.full_like(place, n)
    first, stop = place * n // m, -(-(place + 1) * n // m)
    count = stop - first
    row = place.repeat_interleave(count)
    start = (count.cumsum(0) - count).repeat_interleave(count)  # of each window among all entries
    return row, first.repeat_interleave(count) + torch.arange(len(row)) - start, count[row]


def _nearest(n: int, m: int, step: float, mode: Along, ndim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The site read by each new one and its weight, (m, 1) each; floating-point rounding at ties is that of torch."""
    precise = dtype == torch.float64 and ndim != 2
    kind = torch.float64 if precise else torch.float32
    at = torch.arange(m, dtype=kind) + (0.5 if mode == "nearest-exact" else 0.0)
    place = (at * torch.tensor(step, dtype=kind)).float().floor().long().clamp(max=n - 1)
    if ndim == 2 and n == m and mode == "nearest":
        place = torch.arange(n)
    return place.unsqueeze(1), torch.ones(m, 1)


def _interpolated(n: int, m: int, step: float, mode: Along, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The sites read by each new one and their weights, (m, 2) or (m, 4)."""
    at = torch.arange(m, dtype=torch.float64)
    place = at * step if align_corners else (at + 0.5) * step - 0.5
    if mode == "linear":
        place = place.clamp(min=0)
        low = place.floor().long().clamp(max=n - 1)
        t = (place - low).clamp(0, 1)
        return torch.stack([low, low + 1], 1).clamp(max=n - 1), torch.stack([1 - t, t], 1)
    low = place.floor()
    around = torch.arange(-1, 3)
    return (low.long().unsqueeze(1) + around).clamp(0, n - 1), _cubic((place - low).unsqueeze(1) - around, -0.75)


def _antialiased(n: int, m: int, step: float, mode: Along) -> tuple[Tensor, Tensor]:
    """As `_interpolated`, with a window as wide as the step, (m, window); unused weights are 0."""
    wide = max(1.0, step)
    support = wide * (1 if mode == "linear" else 2)
    centre = (torch.arange(m, dtype=torch.float64) + 0.5) * step
    first = (centre - support + 0.5).long().clamp(min=0)
    count = (centre + support + 0.5).long().clamp(max=n) - first
    offset = torch.arange(2 * math.ceil(support) + 1)
    read = first.unsqueeze(1) + offset
    t = (read - centre.unsqueeze(1) + 0.5) / wide
    weights = (1 - t.abs()).clamp(min=0) if mode == "linear" else _cubic(t, -0.5)
    weights = torch.where((offset < count.unsqueeze(1)) & (weights.abs() > 1e-14), weights, 0.0)  # below is rounding
    return read.clamp(max=n - 1), weights / weights.sum(1, keepdim=True)


def _cubic(t: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel of Keys at distance t."""
    t = t.abs()
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, 0.0))


@register(
    samples=lambda upsample: [
        Sample(upsample(scale_factor=2), lambda: grid(3, 4), 2, row_stochastic=True),
        Sample(upsample((7, 3), mode="bilinear"), lambda: grid(4, 5), 2, row_stochastic=True),
        Sample(upsample(scale_factor=1.7, mode="linear", align_corners=True), lambda: grid(5), 3, row_stochastic=True),
        Sample(upsample((5, 4), mode="bicubic"), lambda: grid(3, 6), 1),
        Sample(upsample(scale_factor=1.7, recompute_scale_factor=True, ndim=1), lambda: grid(5), 2),
        Sample(upsample(3, mode="bilinear", antialias=True), lambda: grid(7, 6), 1, row_stochastic=True),
        Sample(upsample(4, mode="trilinear"), lambda: grid(2, 3, 1), 1, row_stochastic=True),
    ],
    citation=KEYS,
)
def upsample(
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
    ndim: int | None = None,
) -> Parts:
    """Interpolation to a larger or smaller size.

    Equation: y[m_1, m_2] = sum over j_1, j_2 of A_1[m_1, j_1] A_2[m_2, j_2] x[j_1, j_2].

    Meaning: with step s, output site m is at position (m + 1/2) s - 1/2 of the input (at m s with align_corners, where
    the corners coincide). "nearest" reads floor(m s), "nearest-exact" the nearest site; linear modes weight the two
    neighbours along each axis, "bicubic" four of them by Keys' kernel with a = -0.75; "area" is adaptive averaging.

    In the family: one fixed tap, a Kronecker product of one matrix per axis that is never formed; W = I.

    Traps: the step is 1 / scale_factor if that is given, n / m with `size` or recompute_scale_factor. For "nearest" and
    "nearest-exact", ties in floor(m s) are rounded as in torch, which computes in float32 in two dimensions (but in
    float64 for large float64 images, which is not reproduced). antialias uses a = -0.5; torch's result is wrong for an
    output one site wide. Call the layer once for each size before compiling it with fullgraph.

    Args:
        size, scale_factor, mode, align_corners, recompute_scale_factor: torch.nn.Upsample's, in its order.
        antialias: as torch.nn.functional.interpolate's, for "bilinear" and "bicubic".
        ndim: 1, 2 or 3 axes; default: determined by the mode or the length of size or scale_factor, else 2.

    Shapes: x (b, c, *grid) -> (b, c, *size), with size = floor(scale_factor grid) if a factor is given.

    Raises:
        ValueError: if not exactly one of size and scale_factor is given, or the mode does not support the number of
            axes or an option.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(upsample(scale_factor=2, mode="linear"))(torch.tensor([[[0.0, 4.0]]]))
    tensor([[[0., 1., 3., 4.]]])
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, but it is {mode!r}.")
    along, axes = MODES[mode]
    given = size if size is not None else scale_factor
    if (size is None) == (scale_factor is None):
        raise ValueError("upsample takes either a size or a scale_factor: give one of them.")
    d = ndim if ndim is not None else axes or (len(given) if isinstance(given, Sequence) else 2)
    if (axes or d) != d or d not in (1, 2, 3):
        raise ValueError(f"mode {mode!r} is for {axes or '1, 2 or 3'} axes, but ndim is {d}.")
    if align_corners is not None and along not in ("linear", "cubic"):
        raise ValueError(f"align_corners is for the linear and cubic modes, not for {mode!r}.")
    if antialias and mode not in ("bilinear", "bicubic"):
        raise ValueError(f"antialias is for 'bilinear' and 'bicubic', not for {mode!r}.")
    if size is not None and recompute_scale_factor:
        raise ValueError("recompute_scale_factor takes a scale_factor, but a size was given.")
    options: dict[str, Any] = {"align_corners": bool(align_corners), "antialias": antialias}
    if size is not None:
        return Resampled(d, along, per_axis("size", size, d, 1), **options), Fixed(), False
    factors = scale_factor if isinstance(scale_factor, Sequence) else (scale_factor,) * d
    if len(factors) != d or not all(isinstance(f, int | float) and 0 < f < math.inf for f in factors):
        raise ValueError(f"scale_factor must be a positive number, or {d} of them, but it is {scale_factor!r}.")
    factor = tuple(float(f) for f in factors)
    return Resampled(d, along, None, factor, exact=bool(recompute_scale_factor), **options), Fixed(), False


def _sizes(output_size: Any, ndim: int) -> tuple[int | None, ...]:
    """The output sizes of adaptive pooling; None for an axis that keeps its size. Raises: ValueError."""
    values = tuple(output_size) if isinstance(output_size, Sequence) else (output_size,) * ndim
    if len(values) != ndim or not all(v is None or (isinstance(v, int) and v >= 1) for v in values):
        raise ValueError(
            f"output_size must be an integer >= 1 or None (as it is), or {ndim} of them, but it is {output_size!r}."
        )
    return values


@register(
    samples=lambda adaptive_avg_pool1d: [
        Sample(adaptive_avg_pool1d(3), lambda: grid(7), 2, row_stochastic=True),
        Sample(adaptive_avg_pool1d(5), lambda: grid(2), 1, row_stochastic=True),
    ],
    citation=HE,
)
def adaptive_avg_pool1d(output_size: Any) -> Parts:
    """Average pooling of sequences to a given length; see `adaptive_avg_pool2d` for details.

    Equation: as adaptive_avg_pool2d, with one axis.

    Args: output_size: torch.nn.AdaptiveAvgPool1d's; None keeps the length.

    Shapes: x (b, c, length) -> (b, c, output_size).

    Raises:
        ValueError: as adaptive_avg_pool2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(adaptive_avg_pool1d(2))(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[1.5000, 2.5000]]])
    """
    return Resampled(1, "area", _sizes(output_size, 1)), Fixed(), False


@register(
    samples=lambda adaptive_avg_pool2d: [
        Sample(adaptive_avg_pool2d((3, 2)), lambda: grid(7, 5), 2, row_stochastic=True),
        Sample(adaptive_avg_pool2d((None, 2)), lambda: grid(3, 5), 2, row_stochastic=True),
        Sample(adaptive_avg_pool2d(1), lambda: grid(4, 3), 2, row_stochastic=True),
    ],
    citation=HE,
)
def adaptive_avg_pool2d(output_size: Any) -> Parts:
    """Average pooling of images to a given output size, for any input size.

    Equation: y[m] = mean of x[j] over floor(m n / m') <= j < ceil((m + 1) n / m') along each axis, m' sites from n.

    Meaning: m' windows that cover the axis as evenly as possible; they overlap if m' does not divide n. In the family:
    one fixed tap, a Kronecker product of one matrix per axis; W = I.

    Args: output_size: torch.nn.AdaptiveAvgPool2d's; None keeps the size of an axis.

    Shapes: x (b, c, h, w) -> (b, c, *output_size).

    Raises:
        ValueError: if output_size is not a positive integer, None, or one of them per axis.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(adaptive_avg_pool2d((1, 2)))(torch.arange(6.0).reshape(1, 1, 2, 3))
    tensor([[[[2., 3.]]]])
    """
    return Resampled(2, "area", _sizes(output_size, 2)), Fixed(), False


@register(
    samples=lambda adaptive_avg_pool3d: [
        Sample(adaptive_avg_pool3d((2, None, 3)), lambda: grid(3, 2, 4), 2, row_stochastic=True)
    ],
    citation=HE,
)
def adaptive_avg_pool3d(output_size: Any) -> Parts:
    """Average pooling of volumes to a given size; see `adaptive_avg_pool2d` for details.

    Equation: as adaptive_avg_pool2d, with three axes.

    Args: output_size: torch.nn.AdaptiveAvgPool3d's; None keeps the size of an axis.

    Shapes: x (b, c, d, h, w) -> (b, c, *output_size).

    Raises:
        ValueError: as adaptive_avg_pool2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(adaptive_avg_pool3d(2))(torch.ones(1, 1, 4, 5, 3)).shape
    torch.Size([1, 1, 2, 2, 2])
    """
    return Resampled(3, "area", _sizes(output_size, 3)), Fixed(), False


@dataclass(frozen=True)
class Largest(GridStructure):
    """One tap with a window for each output site, reduced by max."""

    size: tuple[int | None, ...]
    memo: dict[Any, Windows] = field(default_factory=dict, init=False, repr=False, compare=False)

    taps = 1
    reduce = "max"

    @property
    def ndim(self) -> int:
        return len(self.size)

    def target(self, domain: Grid) -> Grid:
        return Grid(tuple(n if m is None else m for n, m in zip(domain.shape, self.size, strict=True)))

    def basis(self, domain: Grid, theta: Theta, call: Call) -> Windows:
        return _kept(self, domain, call.x, self._make)

    def _make(self, domain: Grid, x: Tensor) -> Windows:
        out = self.target(domain)
        row = col = torch.zeros(1, dtype=torch.int64)
        for n, m in zip(domain.shape, out.shape, strict=True):
            below, left, _ = _windows(n, m)
            row = (row.unsqueeze(1) * m + below).flatten()
            col = (col.unsqueeze(1) * n + left).flatten()
        row, col = row.to(x.device), col.to(x.device)
        pattern = Pattern((1, out.size, domain.size), torch.zeros_like(row), row, col)
        return Windows(pattern, torch.ones_like(row, dtype=x.dtype), "max", domain.shape, out.shape)


@register(samples=lambda adaptive_max_pool1d: [Sample(adaptive_max_pool1d(3), lambda: grid(7), 2)], citation=HE)
def adaptive_max_pool1d(output_size: Any) -> Parts:
    """Max pooling of sequences to a given length; see `adaptive_max_pool2d` for details.

    Equation: as adaptive_max_pool2d, with one axis.

    Args: output_size: torch.nn.AdaptiveMaxPool1d's, without return_indices; None keeps the length.

    Shapes: x (b, c, length) -> (b, c, output_size).

    Raises:
        ValueError: as adaptive_max_pool2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(adaptive_max_pool1d(2))(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[2., 3.]]])
    """
    return Largest(_sizes(output_size, 1)), Fixed(), False


@register(
    samples=lambda adaptive_max_pool2d: [
        Sample(adaptive_max_pool2d((3, 2)), lambda: grid(7, 5), 2),
        Sample(adaptive_max_pool2d((None, 4)), lambda: grid(2, 3), 1),
    ],
    citation=HE,
)
def adaptive_max_pool2d(output_size: Any) -> Parts:
    """Max pooling of images to a given output size, for any input size.

    Equation: y[m] = max of x[j] over floor(m n / m') <= j < ceil((m + 1) n / m') along each axis, m' sites from n.

    Meaning: the windows are those of `adaptive_avg_pool2d`. In the family: one tap, reduced by max instead of the sum;
    W = I. Not linear: `layer.at(...)` raises NotLinear.

    Args: output_size: torch.nn.AdaptiveMaxPool2d's, without return_indices; None keeps the size of an axis.

    Shapes: x (b, c, h, w) -> (b, c, *output_size).

    Raises:
        ValueError: if output_size is not a positive integer, None, or one of them per axis.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(adaptive_max_pool2d((1, 2)))(torch.arange(6.0).reshape(1, 1, 2, 3))
    tensor([[[[4., 5.]]]])
    """
    return Largest(_sizes(output_size, 2)), Fixed(), False


@register(
    samples=lambda adaptive_max_pool3d: [Sample(adaptive_max_pool3d((2, None, 3)), lambda: grid(3, 2, 4), 1)],
    citation=HE,
)
def adaptive_max_pool3d(output_size: Any) -> Parts:
    """Max pooling of volumes to a given size; see `adaptive_max_pool2d` for details.

    Equation: as adaptive_max_pool2d, with three axes.

    Args: output_size: torch.nn.AdaptiveMaxPool3d's, without return_indices; None keeps the size of an axis.

    Shapes: x (b, c, d, h, w) -> (b, c, *output_size).

    Raises:
        ValueError: as adaptive_max_pool2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(adaptive_max_pool3d(2))(torch.ones(1, 1, 4, 5, 3)).shape
    torch.Size([1, 1, 2, 2, 2])
    """
    return Largest(_sizes(output_size, 3)), Fixed(), False
