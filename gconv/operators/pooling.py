"""Pooling: one window matrix, applied to each channel. The mean is linear, the maximum is not."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gconv.basis import Basis, Pattern, Product, Shifts, Taps
from gconv.call import Call
from gconv.domains import Graph, Grid
from gconv.errors import InputError
from gconv.laplacian import counts
from gconv.mixing import Fixed
from gconv.operators.shapes import Padding, are_pairs, grid, messy, pads_on, per_axis, read_padding
from gconv.spec import Domain, GridStructure, Parts, Sample, Structure, Theta, register

MANY, BLOCK = 4096, 1024  # number of nodes above which global sums are computed in blocks, and nodes per block
SCHERER = "Scherer, Mueller and Behnke, Evaluation of Pooling Operations, ICANN 2010"


@dataclass(frozen=True)
class Window(GridStructure):
    """The structure of pooling: all sites under the kernel form one tap."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Padding
    ceil_mode: bool = False
    reduce: Literal["sum", "max"] = "sum"
    count_include_pad: bool = True
    divisor_override: int | None = None

    taps = 1

    @property
    def ndim(self) -> int:
        return len(self.kernel)

    def basis(self, domain: Domain, theta: Theta, call: Call) -> Shifts:
        assert isinstance(domain, Grid)
        return self.shifts(domain.shape)

    def target(self, domain: Domain) -> Grid:
        assert isinstance(domain, Grid)
        return Grid(self.shifts(domain.shape).out)

    def shifts(self, size: tuple[int, ...]) -> Shifts:
        pads = pads_on(self.padding, size, self.kernel, self.stride, self.dilation)
        padding, covered = [], []
        for n, k, s, d, (before, after) in zip(size, self.kernel, self.stride, self.dilation, pads, strict=True):
            covered.append((before, after) if self.count_include_pad else (0, 0))
            if self.ceil_mode:
                out = -(-(n + before + after - d * (k - 1) - 1) // s) + 1
                out -= (out - 1) * s >= n + before  # the last window must start inside the grid or its left padding
                needed = (out - 1) * s + d * (k - 1) + 1 - n - before
                after = needed if needed > after or after - needed >= s else after
            padding.append((before, after))
        divisor = None if self.reduce == "max" else self.divisor_override or tuple(covered)
        if self.reduce != "max" and not (self.count_include_pad or self.divisor_override):
            self._refuse_empty(size, padding)
        return Shifts(
            size, self.kernel, self.stride, self.dilation, tuple(padding), "zeros", True, divisor, self.reduce
        )

    def _refuse_empty(self, size: tuple[int, ...], padding: list[tuple[int, int]]) -> None:
        """Raises InputError if a window contains no site of the grid, so that its mean is undefined."""
        for axis, (n, k, s, d, (before, after)) in enumerate(
            zip(size, self.kernel, self.stride, self.dilation, padding, strict=True)
        ):
            if max(before, after) < k and (d == 1 or not before + after):
                continue
            starts = range(-before, n + after - d * (k - 1), s)
            if not all(any(0 <= at < n for at in range(start, start + d * k, d)) for start in starts):
                raise InputError(
                    f"Along axis {axis} of {n} sites, with {before} of padding before and {after} behind, a window of "
                    f"{k} sites {d} apart lies wholly in the padding and has nothing to pool: pad less."
                )


def _window(ndim: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, **rest: Any) -> Window:
    kernel = per_axis("kernel_size", kernel_size, ndim, 1)
    steps = kernel if stride is None else per_axis("stride", stride, ndim, 1)
    spread = per_axis("dilation", dilation, ndim, 1)
    if padding == "same":
        raise ValueError("Pooling takes padding='same_upper' or 'same_lower' (ONNX's auto_pad), not 'same'.")
    pads = read_padding(padding, kernel, steps, spread)
    if not (isinstance(pads, str) or are_pairs(padding, ndim)) and any(
        2 * p > k for (p, _), k in zip(pads, kernel, strict=True)
    ):
        raise ValueError(
            f"Pooling pads at most half of its kernel, but padding {padding!r} is more than that of {kernel}; "
            "pairs (before, after) may."
        )
    return Window(kernel, steps, spread, pads, **rest)


def _mean(
    ndim: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    include: bool,
    divisor: int | None,
    dilation: Any,
) -> Any:
    if divisor is not None and (not isinstance(divisor, int) or divisor < 1):
        raise ValueError(f"divisor_override must be a positive integer or None, but it is {divisor!r}.")
    rest = {"ceil_mode": ceil_mode, "count_include_pad": include, "divisor_override": divisor}
    return _window(ndim, kernel_size, stride, padding, dilation, **rest), Fixed(), False


@register(
    samples=lambda avg_pool1d: [
        Sample(avg_pool1d(2), lambda: grid(8), 3, row_stochastic=True),
        Sample(
            avg_pool1d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False, dilation=2), lambda: grid(8), 2
        ),
    ],
    citation=SCHERER,
)
def avg_pool1d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    dilation: Any = 1,
) -> Parts:
    """Average pooling of sequences; see `avg_pool2d` for details.

    Equation: as avg_pool2d, with one axis.

    Args: torch.nn.AvgPool1d's, in its order, and `dilation`.

    Shapes: x (b, c, length) -> (b, c, length').

    Raises:
        ValueError: as avg_pool2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(avg_pool1d(2))(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]))
    tensor([[[2., 6.]]])
    """
    return _mean(1, kernel_size, stride, padding, ceil_mode, count_include_pad, None, dilation)


@register(
    samples=lambda avg_pool2d: [
        Sample(avg_pool2d(2), lambda: grid(6, 4), 3, row_stochastic=True),
        Sample(avg_pool2d(3, stride=2, padding=1), lambda: grid(5, 6), 2),
        Sample(avg_pool2d(3, stride=2, padding=1, count_include_pad=False), lambda: grid(5, 6), 2, row_stochastic=True),
        Sample(avg_pool2d((3, 2), stride=2, ceil_mode=True), lambda: grid(6, 5), 2),
        Sample(avg_pool2d(2, divisor_override=3), lambda: grid(4, 5), 2),
        Sample(avg_pool2d(2, padding=((0, 1), (2, 0)), stride=2, dilation=2), lambda: grid(4, 5), 2),
    ],
    citation=SCHERER,
)
def avg_pool2d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    dilation: Any = 1,
) -> Parts:
    """Average pooling of images.

    Equation: y[m] = (1 / |window|) sum over the sites j of the window at m of x[j].

    Meaning: a fixed blur followed by subsampling. In the family: one tap, the window matrix; W = I.

    Traps: torch counts padded sites in |window| (count_include_pad=True), except those added only by ceil_mode; ONNX
    does not count them by default. The stride defaults to the kernel size (ONNX: to 1).

    Args: torch.nn.AvgPool2d's, in its order. Beyond torch, as in ONNX: `dilation`, and padding as ((before, after),
    ...), which may exceed half the kernel, or "same_upper" or "same_lower" (h' = ceil(h / stride), with an odd site at
    the end or at the beginning).

    Shapes: x (b, c, h, w) -> (b, c, h', w').

    Raises:
        ValueError: if a number is out of range, padding exceeds half the kernel, a window lies entirely in padding that
            is not counted, or the kernel does not fit.

    Outside the family: power means (LPPool, not linear in x) and fractional max pooling (random windows).

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(avg_pool2d(2))(torch.arange(4.0).reshape(1, 1, 2, 2))
    tensor([[[[1.5000]]]])
    """
    return _mean(2, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation)


@register(
    samples=lambda avg_pool3d: [
        Sample(avg_pool3d(2, padding=1), lambda: grid(3, 4, 2), 2),
        Sample(avg_pool3d((2, 1, 2), (2, 1, 1), 0, True, False, dilation=(1, 1, 2)), lambda: grid(3, 2, 4), 1),
        Sample(avg_pool3d(2, divisor_override=3), lambda: grid(2, 3, 2), 1),
    ],
    citation=SCHERER,
)
def avg_pool3d(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    dilation: Any = 1,
) -> Parts:
    """Average pooling of volumes; see `avg_pool2d` for details.

    Equation: as avg_pool2d, with three axes.

    Args: torch.nn.AvgPool3d's, in its order, and `dilation`.

    Shapes: x (b, c, d, h, w) -> (b, c, d', h', w').

    Raises:
        ValueError: as avg_pool2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(avg_pool3d(2))(torch.ones(1, 1, 4, 4, 2)).shape
    torch.Size([1, 1, 2, 2, 1])
    """
    return _mean(3, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation)


def _largest(ndim: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> Any:
    return _window(ndim, kernel_size, stride, padding, dilation, ceil_mode=ceil_mode, reduce="max"), Fixed(), False


@register(
    samples=lambda max_pool1d: [
        Sample(max_pool1d(3, stride=2, padding=1), lambda: grid(7), 2),
        Sample(max_pool1d(2, 2, 1, dilation=2, ceil_mode=True), lambda: grid(8), 2),
    ],
    citation=SCHERER,
)
def max_pool1d(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Parts:
    """Max pooling of sequences; see `max_pool2d` for details.

    Equation: as max_pool2d, with one axis.

    Args: torch.nn.MaxPool1d's, in its order, without return_indices.

    Shapes: x (b, c, length) -> (b, c, length').

    Raises:
        ValueError: as max_pool2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(max_pool1d(2))(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]))
    tensor([[[3., 7.]]])
    """
    return _largest(1, kernel_size, stride, padding, dilation, ceil_mode)


@register(
    samples=lambda max_pool2d: [
        Sample(max_pool2d(2), lambda: grid(6, 4), 3),
        Sample(max_pool2d(3, stride=2, padding=1, dilation=2), lambda: grid(7, 8), 2),
        Sample(max_pool2d(2, stride=3, ceil_mode=True), lambda: grid(6, 7), 2),
        Sample(max_pool2d(3, stride=2, padding="same_lower"), lambda: grid(6, 5), 2),
    ],
    citation=SCHERER,
)
def max_pool2d(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Parts:
    """Max pooling of images.

    Equation: y[m] = max over the sites j of the window at m of x[j].

    Meaning: the strongest response in the window, independent of its position. In the family: the window matrix,
    reduced by max instead of the sum; W = I. Not linear: `layer.at(...)` raises NotLinear.

    Traps: padding counts as minus infinity, so a window entirely in the padding gives minus infinity, as in torch. The
    stride defaults to the kernel size.

    Args: torch.nn.MaxPool2d's, in its order, without return_indices. Padding as in avg_pool2d.

    Shapes: x (b, c, h, w) -> (b, c, h', w').

    Raises:
        ValueError: if a number is out of range, padding exceeds half the kernel, or the kernel does not fit.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(max_pool2d(2))(torch.arange(4.0).reshape(1, 1, 2, 2))
    tensor([[[[3.]]]])
    """
    return _largest(2, kernel_size, stride, padding, dilation, ceil_mode)


@register(
    samples=lambda max_pool3d: [
        Sample(max_pool3d(2), lambda: grid(2, 4, 5), 2),
        Sample(max_pool3d((1, 2, 2), 2, (0, 1, 1), (1, 1, 2), ceil_mode=True), lambda: grid(2, 4, 5), 1),
    ],
    citation=SCHERER,
)
def max_pool3d(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Parts:
    """Max pooling of volumes; see `max_pool2d` for details.

    Equation: as max_pool2d, with three axes.

    Args: torch.nn.MaxPool3d's, in its order, without return_indices.

    Shapes: x (b, c, d, h, w) -> (b, c, d', h', w').

    Raises:
        ValueError: as max_pool2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(max_pool3d(2))(torch.ones(1, 1, 4, 4, 2)).shape
    torch.Size([1, 1, 2, 2, 1])
    """
    return _largest(3, kernel_size, stride, padding, dilation, ceil_mode)


def _gathered(row: Tensor, rows: int, values: Tensor, reduce: Literal["sum", "max"]) -> Taps:
    """One tap in which site j has a single entry, in row `row[j]`."""
    site = torch.arange(len(row), device=row.device)
    return Taps(Pattern((1, rows, len(row)), torch.zeros_like(row), row, site), values, reduce)


@dataclass(frozen=True)
class Everything(Structure):
    """One output site for the whole grid, or one for each part of a disjoint union of graphs."""

    reduce: Literal["mean", "sum", "max"]

    domain = "any"
    square = "it pools the nodes of each part of a union of graphs"
    taps = 1

    def basis(self, domain: Grid | Graph, theta: Theta, call: Call) -> Basis:
        reduce: Literal["sum", "max"] = "max" if self.reduce == "max" else "sum"
        if isinstance(domain, Grid):
            d, size = domain.ndim, domain.shape
            divisor = domain.size if self.reduce == "mean" else None
            return Shifts(size, size, (1,) * d, (1,) * d, ((0, 0),) * d, "zeros", True, divisor, reduce)
        part, parts = domain.part(), len(domain.ptr) - 1
        if self.reduce == "max":
            return _gathered(part, parts, torch.ones_like(part, dtype=call.x.dtype), "max")
        # 1 / n can underflow in float16; sums of float16 products are accumulated in float32 anyway
        values = torch.ones_like(part, dtype=call.x.dtype)
        if self.reduce == "mean":
            dtype = torch.float32 if call.x.dtype == torch.float16 else call.x.dtype
            values = counts(part, parts).double().reciprocal()[part].to(dtype)
        if domain.size <= MANY:
            return _gathered(part, parts, values, "sum")
        # pairwise summation in two levels limits the accumulation of rounding errors over many terms
        sizes = [-(-(b - a) // BLOCK) for a, b in itertools.pairwise(domain.ptr)]
        blocks = torch.tensor(sizes, device=domain.device)
        start = torch.tensor(domain.ptr[:-1], device=domain.device)
        place = torch.arange(domain.size, device=domain.device) - start[part]
        block = (blocks.cumsum(0) - blocks)[part] + place // BLOCK
        owner = torch.arange(parts, device=domain.device).repeat_interleave(blocks, output_size=sum(sizes))
        ones = torch.ones_like(owner, dtype=values.dtype)
        return Product(_gathered(owner, parts, ones, "sum"), _gathered(block, len(owner), values, "sum"))

    def target(self, domain: Grid | Graph) -> Grid | Graph:
        if isinstance(domain, Grid):
            return Grid((1,) * domain.ndim)
        empty = torch.empty(2, 0, dtype=torch.int64, device=domain.device)
        return domain.memo("parts", lambda: Graph(empty, len(domain.ptr) - 1))


@register(
    samples=lambda global_pool: [
        Sample(global_pool(), lambda: grid(3, 4), 3, row_stochastic=True),
        Sample(global_pool("max"), lambda: grid(5), 2),
        Sample(global_pool(), lambda: Graph.union([messy(), messy()]), 3, row_stochastic=True),
        Sample(global_pool("sum"), messy, 2),
        Sample(global_pool("max"), lambda: Graph.union([messy(), messy()]), 2),
    ],
    citation="Lin, Chen and Yan, Network In Network, ICLR 2014",
)
def global_pool(reduce: Literal["mean", "sum", "max"] = "mean") -> Parts:
    """Pool a whole image, or each graph of a disjoint union, into one site.

    Equation: y[g] = reduce over the sites j of part g of x[j].

    Meaning: the readout between convolutions and a classifier. In the family: one tap with one row per part; W = I.
    With "max" it is not linear.

    Traps: a bare edge_index is one graph and gives one row. For a batch of graphs pass the PyG batch itself,
    `pool(x, batch)`, or, if only its tensors are available, `Graph.from_edge_index(edge_index, batch=batch)`.

    Args: reduce: "mean", "sum" or "max".

    Shapes: images (b, c, *grid) -> (b, c, 1, ...); graphs (*b, n, c) -> (*b, parts, c).

    Raises:
        ValueError: if `reduce` is not "mean", "sum" or "max".

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(global_pool())(torch.arange(4.0).reshape(1, 1, 2, 2)).flatten()
    tensor([1.5000])
    """
    if reduce not in ("mean", "sum", "max"):
        raise ValueError(f"reduce must be 'mean', 'sum' or 'max', but it is {reduce!r}.")
    return Everything(reduce), Fixed(), False
