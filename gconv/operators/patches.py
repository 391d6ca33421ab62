"""Operators without parameters that rearrange values: unfold and fold, pixel and channel shuffles, padding."""

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
    """Transposed shifts, from a grid of patches to a grid of given size, or from a grid of blocks to their sites.

    Args:
        size: the output grid; None if the patches tile it, so that its size follows from theirs.
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
    """The sites of blocks that tile the grid, with one tap per position in a block."""

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
    """The identity, on any domain."""

    domain = "any"
    square = "each node keeps its own signal"
    taps = 1

    def basis(self, domain: Grid | Graph, theta: Theta, call: Call) -> Identity:
        return Identity(domain.size)


def _patches(
    kernel_size: Any, dilation: Any, padding: Any, stride: Any, ndim: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Pairs]:
    """Kernel, stride, dilation and padding, one number (or pair) per axis, after validation."""
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
    """Patch extraction (im2col): the values under the kernel, concatenated as channels.

    Equation: y[m, c k + t] = x[s m + d a_t - p, c], with k taps and a_t the offset of tap t.

    Meaning: a convolution is unfold followed by a matrix product. In the family: the shifts of conv2d; W_t writes
    channel c of tap t to channel c k + t.

    Traps: torch.nn.Unfold flattens the patches to (b, c k, h' w'); here they stay on their grid, and y.flatten(2) is
    torch's result. Arguments are in torch's order, dilation before stride.

    Args: torch.nn.Unfold's, with padding also as pairs; ndim: 1, 2 or 3 axes.

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
    """The adjoint of `unfold` (col2im): patches are added back at their positions, and overlaps are summed.

    Equation: y = sum_t S_t^T x_t, with x_t the channels c k + t and S_t the shifts of `unfold`.

    Meaning: it reassembles an image from patches. In the family: every S_t transposed; W_t reads channel c k + t.

    Traps: it is the adjoint, not the inverse: a site covered by two patches is the sum of both. torch.nn.Fold takes
    (b, c k, L); here the patches are on their grid.

    Args: torch.nn.Fold's, with padding also as pairs; ndim: 1, 2 or 3 axes.

    Shapes: x (b, c k, *grid') -> (b, c, *output_size).

    Raises:
        ValueError: if the grid of patches does not match output_size, or k does not divide the channels.

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

    Equation: y[r m + a, c] = x[m, c r^2 + t], with a the offset of tap t in the block.

    Meaning: the last layer of a super-resolution network: the convolution before it learns the upsampling. In the
    family: `fold` with kernel and stride r, an orthogonal map.

    Traps: ONNX's DepthToSpace uses this order of channels in mode "CRD", not by default.

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

    Equation: y[m, c r^2 + t] = x[r m + a, c], with a the offset of tap t in the block.

    Meaning: lossless downsampling; the inverse and the adjoint of `pixel_shuffle`. In the family: `unfold` with kernel
    and stride r.

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
    """A permutation of the channels that exchanges information between the groups of grouped convolutions.

    Equation: y[m, c g + r] = x[m, r (i / g) + c].

    Meaning: the channels, as a (g, i / g) matrix, are transposed. In the family: S = I and W a permutation, on images
    and on graphs.

    Args: channels: i. groups: g, as torch.nn.ChannelShuffle's.

    Shapes: x (b, i, *grid) -> (b, i, *grid); on graphs (*b, n, i) -> (*b, n, i).

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
    """Pad the borders of a grid.

    Equation: y[m] = x[m - p] inside the grid; outside it 0, or the value of the site chosen by the mode.

    Meaning: "circular" wraps around, "reflect" mirrors without repeating the border, "replicate" repeats the border.
    In the family: a kernel of a single tap, with padding; W = I.

    Traps: pairs are in the order of the axes, ((top, bottom), (left, right)); torch.nn.ZeroPad2d takes (left, right,
    top, bottom). Negative numbers crop. Padding with a constant other than zero (torch.nn.ConstantPad2d) is not linear
    and outside the family.

    Args:
        padding: a number, one per axis, or (before, after) for each axis.
        mode: "zeros", "circular", "reflect" or "replicate".
        ndim: 1, 2 or 3 axes.

    Shapes: x (b, c, h, w) -> (b, c, h + before + after, ...).

    Raises:
        ValueError: if the mode is unknown, the result would be empty, or the padding exceeds n - 1 ("reflect") or n
            ("circular") sites.

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
