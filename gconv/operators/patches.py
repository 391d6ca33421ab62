"""Operators that move numbers and learn nothing: patches and their sum, pixel and channel shuffles, borders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gconv.basis import Identity, Shifts
from gconv.basis.shifts import Mode
from gconv.call import Call
from gconv.domains import Graph, Grid
from gconv.errors import InputError
from gconv.mixing import Fixed, Patches, Shuffled
from gconv.operators.convolution import DUMOULIN, Kernel
from gconv.operators.shapes import Pairs, axes, grid, messy, per_axis, read_padding
from gconv.spec import GridStructure, Parts, Sample, Structure, Theta, register

SHI = "Shi et al., Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel CNN, CVPR 2016"


@dataclass(frozen=True)
class Folding(GridStructure):
    """The shifts that lead from a grid of patches back to a grid of known size, or of blocks back to their sites.

    Args:
        size: the grid led to; None where it follows from the patches, one beside the other.
        kernel, stride, dilation, padding: of the patches.
    """

    size: tuple[int, ...] | None
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Pairs

    @property
    def ndim(self) -> int:
        return len(self.kernel)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    def basis(self, domain: Grid, theta: Theta, call: Call) -> Shifts:
        size = self.target(domain).shape
        return Shifts(size, self.kernel, self.stride, self.dilation, self.padding, transposed=True)

    def target(self, domain: Grid) -> Grid:
        if self.size is None:
            return Grid(tuple(n * k for n, k in zip(domain.shape, self.kernel, strict=True)))
        places = Shifts(self.size, self.kernel, self.stride, self.dilation, self.padding).out
        if places != domain.shape:
            raise InputError(
                f"fold leads patches from a grid {places} to one of {self.size}, but these lie on {domain.shape}."
            )
        return Grid(self.size)


@dataclass(frozen=True)
class Blocks(GridStructure):
    """The sites of blocks that tile the grid, a tap for each place in a block."""

    kernel: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.kernel)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    def basis(self, domain: Grid, theta: Theta, call: Call) -> Shifts:
        d = self.ndim
        return Shifts(domain.shape, self.kernel, self.kernel, (1,) * d, ((0, 0),) * d)

    def target(self, domain: Grid) -> Grid:
        if any(n % k for n, k in zip(domain.shape, self.kernel, strict=True)):
            raise InputError(f"Blocks of {self.kernel} do not tile a grid of {domain.shape}; pad or crop it first.")
        return Grid(tuple(n // k for n, k in zip(domain.shape, self.kernel, strict=True)))


@dataclass(frozen=True)
class Stay(Structure):
    """Every site keeps its own signal, on any domain."""

    domain = "any"
    square = "each node keeps its own signal"
    taps = 1

    def basis(self, domain: Grid | Graph, theta: Theta, call: Call) -> Identity:
        return Identity(domain.size)


def _patches(
    kernel_size: Any, dilation: Any, padding: Any, stride: Any, ndim: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Pairs]:
    """Kernel, stride, dilation and padding, read."""
    kernel = per_axis("kernel_size", kernel_size, axes(ndim), 1)
    steps, spread = per_axis("stride", stride, ndim, 1), per_axis("dilation", dilation, ndim, 1)
    pads = read_padding(padding, kernel, steps, spread)
    if isinstance(pads, str):
        raise ValueError(f"Patches take padding as numbers, 'same' or 'valid', not {padding!r}.")
    return kernel, steps, spread, pads


@register(
    samples=lambda unfold: [
        Sample(unfold(2), lambda: grid(4, 3), 2),
        Sample(unfold((3, 2), dilation=(1, 2), padding=((0, 1), (1, 0)), stride=2), lambda: grid(5, 6), 2),
        Sample(unfold(3, padding=1, ndim=1), lambda: grid(5), 3),
        Sample(unfold(2, stride=2, ndim=3), lambda: grid(2, 4, 3), 1),
    ],
    citation="Chellapilla, Puri and Simard, High Performance CNNs for Document Processing, IWFHR 2006",
)
def unfold(kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1, ndim: int = 2) -> Parts:
    """Patches (im2col): all that lies under the kernel, side by side in the channels.

    Equation: y[m, c k + t] = x[s m + d a_t - p, c], with a_t the place of tap t and k taps.

    Meaning: a convolution is this, then a matrix. In the family: the shifts of conv2d; W_t writes channel c of tap t to
    channel c k + t.

    Traps: torch.nn.Unfold returns (b, c k, h' w'), its patches in a row; here they keep their grid, y.flatten(2) is
    torch's. Arguments in torch's order, dilation before stride.

    Args: torch.nn.Unfold's, padding also as pairs; ndim: 1, 2 or 3 axes.

    Shapes: x (b, c, *grid) -> (b, c k, *grid').

    Raises:
        ValueError: if a number is out of range, or the kernel does not fit.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(unfold(2))(torch.arange(6.0).reshape(1, 1, 2, 3)).flatten(2)[0]
    tensor([[0., 1.],
            [1., 2.],
            [3., 4.],
            [4., 5.]])
    """
    kernel, steps, spread, pads = _patches(kernel_size, dilation, padding, stride, ndim)
    return Kernel(kernel, steps, spread, pads), Patches(math.prod(kernel)), False


@register(
    samples=lambda fold: [
        Sample(fold((4, 3), 2), lambda: grid(3, 2), 8),
        Sample(fold((5, 6), (3, 2), dilation=(1, 2), padding=1, stride=2), lambda: grid(3, 3), 6),
        Sample(fold(7, 3, stride=2, ndim=1), lambda: grid(3), 3),
    ],
    citation=DUMOULIN,
)
def fold(
    output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1, ndim: int = 2
) -> Parts:
    """The adjoint of `unfold` (col2im): patches are laid where they came from, and overlaps add up.

    Equation: y = sum_t S_t^T x_t, with x_t the channels c k + t and S_t the shifts of `unfold`.

    Meaning: each patch is painted back. In the family: every S_t transposed, and W_t reads channel c k + t.

    Traps: the adjoint, not the inverse: a site covered twice counts twice. torch.nn.Fold takes (b, c k, L); here the
    patches are on their grid.

    Args: torch.nn.Fold's, padding also as pairs; ndim: 1, 2 or 3 axes.

    Shapes: x (b, c k, *grid') -> (b, c, *output_size).

    Raises:
        ValueError: if the patches of that output size lie on another grid, or k does not divide the channels.

    >>> import torch
    >>> from gconv import GConv
    >>> x = torch.ones(1, 1, 3, 3)
    >>> GConv(fold((3, 3), 2))(GConv(unfold(2))(x))[0, 0]
    tensor([[1., 2., 1.],
            [2., 4., 2.],
            [1., 2., 1.]])
    """
    size = per_axis("output_size", output_size, axes(ndim), 1)
    kernel, steps, spread, pads = _patches(kernel_size, dilation, padding, stride, ndim)
    return Folding(size, kernel, steps, spread, pads), Patches(math.prod(kernel), True), False


@register(
    samples=lambda pixel_shuffle: [
        Sample(pixel_shuffle(2), lambda: grid(2, 3), 8),
        Sample(pixel_shuffle(3, ndim=1), lambda: grid(4), 3),
    ],
    citation=SHI,
)
def pixel_shuffle(upscale_factor: int, ndim: int = 2) -> Parts:
    """Sub-pixel rearrangement: r^2 channels become a block of r x r pixels.

    Equation: y[r m + a, c] = x[m, c r^2 + t], with a the place of tap t in the block.

    Meaning: the end of a super-resolution network; a convolution before it learns to upsample. In the family: `fold`
    with kernel and stride r, an orthogonal map.

    Traps: ONNX's DepthToSpace has this order of channels in mode "CRD", not in its default.

    Args: upscale_factor: r; ndim: 1, 2 or 3 axes (torch: 2).

    Shapes: x (b, c r^2, h, w) -> (b, c, r h, r w).

    Raises:
        ValueError: if r^2 does not divide the channels.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(pixel_shuffle(2))(torch.arange(4.0).reshape(1, 4, 1, 1))[0, 0]
    tensor([[0., 1.],
            [2., 3.]])
    """
    kernel = (*per_axis("upscale_factor", upscale_factor, 1, 1),) * axes(ndim)
    return Folding(None, kernel, kernel, (1,) * ndim, ((0, 0),) * ndim), Patches(math.prod(kernel), True), False


@register(
    samples=lambda pixel_unshuffle: [
        Sample(pixel_unshuffle(2), lambda: grid(4, 6), 2),
        Sample(pixel_unshuffle(2, ndim=3), lambda: grid(2, 4, 2), 1),
    ],
    citation=SHI,
)
def pixel_unshuffle(downscale_factor: int, ndim: int = 2) -> Parts:
    """Space to depth: each block of r x r pixels becomes r^2 channels.

    Equation: y[m, c r^2 + t] = x[r m + a, c], with a the place of tap t in the block.

    Meaning: downsampling that loses nothing; the inverse and the adjoint of `pixel_shuffle`. In the family: `unfold`
    with kernel and stride r.

    Args: downscale_factor: r; ndim: 1, 2 or 3 axes (torch: 2).

    Shapes: x (b, c, r h, r w) -> (b, c r^2, h, w).

    Raises:
        ValueError: if r does not divide the grid.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(pixel_unshuffle(2))(torch.arange(4.0).reshape(1, 1, 2, 2)).flatten()
    tensor([0., 1., 2., 3.])
    """
    kernel = (*per_axis("downscale_factor", downscale_factor, 1, 1),) * axes(ndim)
    return Blocks(kernel), Patches(math.prod(kernel)), False


@register(
    samples=lambda channel_shuffle: [
        Sample(channel_shuffle(6, 3), lambda: grid(2, 3), 6),
        Sample(channel_shuffle(4, 2), messy, 4),
    ],
    citation="Zhang et al., ShuffleNet, CVPR 2018",
)
def channel_shuffle(channels: int, groups: int) -> Parts:
    """Channels change places, so that the groups of the next grouped convolution meet.

    Equation: y[m, c g + r] = x[m, r (i / g) + c].

    Meaning: channels written in g rows are read by columns. In the family: S = I and W a permutation; on images and on
    graphs.

    Args: channels: i; groups: g, as torch.nn.ChannelShuffle's.

    Shapes: x (b, i, *grid) -> the same; graphs (*b, n, i).

    Raises:
        ValueError: if the groups do not divide the channels.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(channel_shuffle(6, 2))(torch.arange(6.0).reshape(1, 6, 1, 1)).flatten()
    tensor([0., 3., 1., 4., 2., 5.])
    """
    return Stay(), Shuffled(channels, groups), False


@register(
    samples=lambda pad: [
        Sample(pad(1), lambda: grid(3, 4), 2),
        Sample(pad(((1, -1), (0, 2))), lambda: grid(3, 4), 2),
        Sample(pad(((2, 1), (0, 3)), "circular"), lambda: grid(3, 4), 2),
        Sample(pad(((2, 1),), "reflect", ndim=1), lambda: grid(4), 1),
        Sample(pad(2, "replicate", ndim=3), lambda: grid(2, 1, 3), 1),
    ],
    citation=DUMOULIN,
)
def pad(padding: Any, mode: Mode = "zeros", ndim: int = 2) -> Parts:
    """Lay a border around the grid.

    Equation: y[m] = x[m - p] inside, and outside 0 or the site of the grid that the mode names.

    Meaning: circular continues on the other side, reflect mirrors without repeating the border, replicate repeats it.
    In the family: a kernel of a single tap, with padding; W = I.

    Traps: pairs follow the axes, ((top, bottom), (left, right)); torch.nn.ZeroPad2d takes (left, right, top, bottom).
    Negative numbers crop. A constant other than zero is no linear map (torch.nn.ConstantPad2d) and lies outside.

    Args:
        padding: a number, one an axis, or (before, after) for each axis.
        mode: "zeros", "circular", "reflect" or "replicate".
        ndim: 1, 2 or 3 axes.

    Shapes: x (b, c, h, w) -> (b, c, h + before + after, ...).

    Raises:
        ValueError: if the mode is unknown, nothing would be left, or reflect reaches beyond n - 1 or circular n sites.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(pad(((1, 2),), "reflect", ndim=1))(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[2., 1., 2., 3., 2., 1.]]])
    """
    if mode not in ("zeros", "circular", "reflect", "replicate"):
        raise ValueError(f"mode must be 'zeros', 'circular', 'reflect' or 'replicate', but it is {mode!r}.")
    ones = (1,) * axes(ndim)
    if isinstance(padding, str):
        raise ValueError(f"pad takes numbers or pairs (before, after), not {padding!r}.")
    return Kernel(ones, ones, ones, read_padding(padding, ones, ones, ones, None), mode), Fixed(), False
