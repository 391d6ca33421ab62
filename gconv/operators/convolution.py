"""Convolutions on grids: shifts of a kernel, in one to three dimensions, and their transposes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gconv.basis import Shifts
from gconv.basis.shifts import Mode
from gconv.call import Call
from gconv.domains import Grid
from gconv.errors import InputError
from gconv.mixing import Dense, Grouped, Mixing, Separable
from gconv.operators.shapes import Padding, Pairs, axes, grid, pads_on, per_axis, read_padding, split_pads
from gconv.spec import GridStructure, Parts, Sample, Theta, register

DUMOULIN = "Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016"
LECUN = "LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proc. IEEE 1998"


@dataclass(frozen=True)
class Kernel(GridStructure):
    """The structure of a convolution: the geometry of its kernel, for grids of any size."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Padding
    mode: Mode = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def ndim(self) -> int:
        return len(self.kernel)

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    def pads(self, size: tuple[int, ...]) -> Pairs:
        """(before, after) along each axis on a grid of this size, which "same_upper" and "same_lower" depend on."""
        if not (self.transposed and isinstance(self.padding, str)):
            return pads_on(self.padding, size, self.kernel, self.stride, self.dilation)
        axes = zip(self.kernel, self.stride, self.dilation, self.output_padding, strict=True)
        return split_pads([d * (k - 1) + 1 + extra - s for k, s, d, extra in axes], self.padding)

    def basis(self, domain: Grid, theta: Theta, call: Call) -> Shifts:
        size, padding = domain.shape, self.pads(domain.shape)
        if self.transposed:
            size = self.target(domain).shape
            # each full stride in output_padding adds sites that no tap writes to
            spare = [e // s * s for e, s in zip(self.output_padding, self.stride, strict=True)]
            padding = tuple((before, after - e) for (before, after), e in zip(padding, spare, strict=True))
        return Shifts(size, self.kernel, self.stride, self.dilation, padding, self.mode, transposed=self.transposed)

    def target(self, domain: Grid) -> Grid:
        padding = self.pads(domain.shape)
        if not self.transposed:
            return Grid(Shifts(domain.shape, self.kernel, self.stride, self.dilation, padding, self.mode).out)
        axes = zip(domain.shape, self.kernel, self.stride, self.dilation, padding, self.output_padding, strict=True)
        size = tuple((n - 1) * s - sum(p) + d * (k - 1) + extra + 1 for n, k, s, d, p, extra in axes)
        if min(size) < 1:
            raise InputError(f"Padding {padding} takes away more than this transposed convolution makes: size {size}.")
        return Grid(size)


def read_kernel(
    ndim: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, mode: Mode, extra: Any = None
) -> Kernel:
    """The structure of a convolution from torch's arguments; a transposed one if `extra`, the output_padding, is given.

    Raises:
        ValueError: if an argument is out of range.
    """
    kernel = per_axis("kernel_size", kernel_size, axes(ndim), 1)
    steps, spread = per_axis("stride", stride, ndim, 1), per_axis("dilation", dilation, ndim, 1)
    if mode not in ("zeros", "circular", "reflect", "replicate"):
        raise ValueError(f"padding_mode must be 'zeros', 'circular', 'reflect' or 'replicate', but it is {mode!r}.")
    pads = read_padding(padding, kernel, steps, spread, 0 if extra is None else None)
    if extra is None:
        return Kernel(kernel, steps, spread, pads, mode)
    more = per_axis("output_padding", extra, ndim, 0)
    if any(e >= max(s, d) for e, s, d in zip(more, steps, spread, strict=True)):
        raise ValueError(
            f"output_padding must be smaller than stride or dilation, but {more} is not ({steps}, {spread})."
        )
    return Kernel(kernel, steps, spread, pads, mode, True, more)


def _mixing(taps: int, i: int, o: int, groups: int) -> Mixing:
    return Dense(taps, i, o) if groups == 1 else Grouped(taps, i, o, groups)


@register(
    samples=lambda conv1d: [
        Sample(conv1d(3, 4, 3, padding=1), lambda: grid(9), 3),
        Sample(conv1d(4, 6, 4, stride=2, padding=3, dilation=2, groups=2), lambda: grid(11), 4),
        Sample(conv1d(2, 3, 3, padding=2, padding_mode="circular", bias=False), lambda: grid(8), 2),
        Sample(conv1d(2, 3, 1), lambda: grid(1), 2),
    ],
    citation=LECUN,
)
def conv1d(
    in_channels: int,
    out_channels: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: Mode = "zeros",
) -> Parts:
    """Convolution of sequences; see `conv2d` for details.

    Equation: y[m, o] = b[o] + sum_k sum_i x[s m + d k - p, i] W[k, i, o].

    Args: torch.nn.Conv1d's, in its order.

    Shapes: x (b, i, length) -> (b, o, length').

    Raises:
        ValueError: as conv2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(conv1d(2, 3, 5, stride=2))(torch.zeros(1, 2, 20)).shape
    torch.Size([1, 3, 8])
    """
    structure = read_kernel(1, kernel_size, stride, padding, dilation, padding_mode)
    return structure, _mixing(structure.taps, in_channels, out_channels, groups), bias


@register(
    samples=lambda conv2d: [
        Sample(conv2d(3, 4, 3, padding=1), lambda: grid(5, 6), 3),
        Sample(conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=2), lambda: grid(7, 6), 4),
        Sample(conv2d(2, 3, 3, padding=1, padding_mode="circular"), lambda: grid(5, 4), 2),
        Sample(conv2d(3, 2, 3, stride=2, padding=2, padding_mode="reflect"), lambda: grid(5, 6), 3),
        Sample(conv2d(2, 2, 3, padding=2, padding_mode="replicate", bias=False), lambda: grid(3, 4), 2),
        Sample(conv2d(2, 3, 4, padding="same", dilation=(1, 3)), lambda: grid(6, 9), 2),
        Sample(conv2d(2, 2, 1, stride=3), lambda: grid(5, 7), 2),
        Sample(conv2d(1, 1, 2, padding=((0, 1), (2, 0))), lambda: grid(1, 3), 1),
        Sample(conv2d(2, 2, 2, stride=(1, 2), padding="same_lower"), lambda: grid(3, 4), 2),
    ],
    citation=DUMOULIN,
)
def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: Mode = "zeros",
) -> Parts:
    """Convolution of images.

    Equation: y[m, o] = b[o] + sum_k sum_i x[s m + d a_k - p, i] W[k, i, o], with a_k the offset of tap k in the kernel.

    Meaning: each output pixel is a weighted sum of the pixels under the kernel, with the same weights everywhere. As in
    deep learning generally, the kernel is not flipped: this is cross-correlation.

    In the family: S_k is the shift by a_k (a doubly block Toeplitz matrix; circulant for circular padding); W dense or
    grouped.

    Traps: where padding="same" needs an odd number of sites, the extra one is added at the end, as in torch. `reflect`
    can pad by at most n - 1 sites and `circular` by at most n. Beyond torch: padding also takes ((before, after),
    (before, after)) and ONNX's "same_upper" and "same_lower", with which h' = ceil(h / s) for any stride; they add an
    odd site at the end or at the beginning.

    Args: torch.nn.Conv2d's, in its order.

    Shapes: x (b, i, h, w) -> (b, o, h', w'), h' = (h + p_before + p_after - d (kh - 1) - 1) // s + 1.

    Raises:
        ValueError: if a number is out of range, groups do not divide the channels, or the kernel does not fit.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(conv2d(3, 64, 3, padding=1))(torch.zeros(16, 3, 32, 32)).shape
    torch.Size([16, 64, 32, 32])
    """
    structure = read_kernel(2, kernel_size, stride, padding, dilation, padding_mode)
    return structure, _mixing(structure.taps, in_channels, out_channels, groups), bias


@register(
    samples=lambda conv3d: [
        Sample(conv3d(2, 3, 2, padding=1), lambda: grid(3, 4, 2), 2),
        Sample(conv3d(2, 4, (1, 3, 2), stride=(1, 2, 1), dilation=(1, 1, 2), groups=2), lambda: grid(2, 5, 4), 2),
        Sample(conv3d(1, 2, 3, padding=1, padding_mode="circular", bias=False), lambda: grid(3, 3, 4), 1),
    ],
    citation=DUMOULIN,
)
def conv3d(
    in_channels: int,
    out_channels: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: Mode = "zeros",
) -> Parts:
    """Convolution of volumes; see `conv2d` for details.

    Equation: as conv2d, with three axes.

    Args: torch.nn.Conv3d's, in its order.

    Shapes: x (b, i, d, h, w) -> (b, o, d', h', w').

    Raises:
        ValueError: as conv2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(conv3d(1, 2, 3))(torch.zeros(1, 1, 4, 5, 6)).shape
    torch.Size([1, 2, 2, 3, 4])
    """
    structure = read_kernel(3, kernel_size, stride, padding, dilation, padding_mode)
    return structure, _mixing(structure.taps, in_channels, out_channels, groups), bias


@register(
    samples=lambda conv_transpose1d: [
        Sample(conv_transpose1d(3, 2, 3, stride=2, padding=1, output_padding=1), lambda: grid(5), 3),
        Sample(conv_transpose1d(2, 4, 2, groups=2, dilation=2, output_padding=1), lambda: grid(4), 2),
        Sample(conv_transpose1d(1, 2, 3, padding=1, padding_mode="circular", bias=False), lambda: grid(5), 1),
    ],
    citation=DUMOULIN,
)
def conv_transpose1d(
    in_channels: int,
    out_channels: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Any = 1,
    padding_mode: Mode = "zeros",
) -> Parts:
    """Transposed convolution of sequences; see `conv_transpose2d` for details.

    Equation: as conv_transpose2d, with one axis.

    Args: torch.nn.ConvTranspose1d's, in its order.

    Shapes: x (b, i, length) -> (b, o, length').

    Raises:
        ValueError: as conv_transpose2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(conv_transpose1d(2, 3, 4, stride=2))(torch.zeros(1, 2, 5)).shape
    torch.Size([1, 3, 12])
    """
    structure = read_kernel(1, kernel_size, stride, padding, dilation, padding_mode, output_padding)
    return structure, _mixing(structure.taps, in_channels, out_channels, groups), bias


@register(
    samples=lambda conv_transpose2d: [
        Sample(conv_transpose2d(3, 2, 3, stride=2, padding=1, output_padding=1), lambda: grid(3, 4), 3),
        Sample(
            conv_transpose2d(4, 2, (2, 3), stride=(3, 1), groups=2, dilation=(1, 2), bias=False), lambda: grid(2, 4), 4
        ),
        Sample(conv_transpose2d(2, 2, 3, padding=1, padding_mode="circular"), lambda: grid(4, 5), 2),
        Sample(conv_transpose2d(2, 1, 3, stride=2, padding=1, padding_mode="reflect"), lambda: grid(3, 3), 2),
    ],
    citation=DUMOULIN,
)
def conv_transpose2d(
    in_channels: int,
    out_channels: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Any = 1,
    padding_mode: Mode = "zeros",
) -> Parts:
    """Transposed convolution of images: the adjoint of a convolution's structure, used for upsampling.

    Equation: y = b + sum_k S_k^T x W_k, with S_k the shifts of the convolution from the output grid to the input grid.

    Meaning: each input pixel adds a copy of the kernel, weighted by its value, to the output; strides upsample.

    In the family: every S_k of conv2d transposed; W dense or grouped.

    Traps: it is not an inverse. torch supports zero padding only; the other modes here are the adjoints of conv2d's
    padding modes: a value read beyond a border is added back to the site it was copied from. Beyond torch: padding as
    pairs, where negative numbers add sites that no tap writes to (ONNX's output_shape), and "same_upper" and
    "same_lower", with h' = h s.

    Args: torch.nn.ConvTranspose2d's, in its order.

    Shapes: x (b, i, h, w) -> (b, o, h', w'), h' = (h - 1) s - 2 p + d (kh - 1) + output_padding + 1.

    Raises:
        ValueError: if a number is out of range, or output_padding is not smaller than stride or dilation.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(conv_transpose2d(8, 4, 4, stride=2, padding=1))(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 4, 10, 10])
    """
    structure = read_kernel(2, kernel_size, stride, padding, dilation, padding_mode, output_padding)
    return structure, _mixing(structure.taps, in_channels, out_channels, groups), bias


@register(
    samples=lambda conv_transpose3d: [
        Sample(conv_transpose3d(2, 3, 2, stride=(2, 1, 2), padding=(0, 1, 0)), lambda: grid(2, 3, 2), 2),
        Sample(
            conv_transpose3d(2, 2, (1, 2, 2), stride=2, output_padding=1, groups=2, dilation=(1, 2, 1), bias=False),
            lambda: grid(2, 1, 2),
            2,
        ),
        Sample(conv_transpose3d(1, 1, 3, padding=1, padding_mode="circular"), lambda: grid(3, 3, 3), 1),
    ],
    citation=DUMOULIN,
)
def conv_transpose3d(
    in_channels: int,
    out_channels: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    bias: bool = True,
    dilation: Any = 1,
    padding_mode: Mode = "zeros",
) -> Parts:
    """Transposed convolution of volumes; see `conv_transpose2d` for details.

    Equation: as conv_transpose2d, with three axes.

    Args: torch.nn.ConvTranspose3d's, in its order.

    Shapes: x (b, i, d, h, w) -> (b, o, d', h', w').

    Raises:
        ValueError: as conv_transpose2d.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(conv_transpose3d(1, 2, 2, stride=2))(torch.zeros(1, 1, 2, 3, 4)).shape
    torch.Size([1, 2, 4, 6, 8])
    """
    structure = read_kernel(3, kernel_size, stride, padding, dilation, padding_mode, output_padding)
    return structure, _mixing(structure.taps, in_channels, out_channels, groups), bias


@register(
    samples=lambda depthwise: [
        Sample(depthwise(4, 3, padding=1), lambda: grid(5, 4), 4),
        Sample(depthwise(2, 5, stride=2, padding=2, multiplier=3), lambda: grid(6, 7), 2),
        Sample(depthwise(3, 3, padding=2, dilation=2, bias=False, padding_mode="circular", ndim=1), lambda: grid(6), 3),
    ],
    citation="Howard et al., MobileNets, 2017",
)
def depthwise(
    channels: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    multiplier: int = 1,
    bias: bool = True,
    padding_mode: Mode = "zeros",
    ndim: int = 2,
) -> Parts:
    """Depthwise convolution: each channel is filtered separately.

    Equation: y[m, c q + r] = b[c q + r] + sum_k x[s m + d a_k - p, c] W[k, c, r], with q the multiplier and r < q.

    Meaning: it filters over space without mixing channels; a `pointwise` convolution usually follows.

    In the family: the shifts of conv2d; W block diagonal (groups = channels).

    Args: torch.nn.Conv2d's, with multiplier: filters per channel; ndim: 1, 2 or 3 axes.

    Shapes: x (b, c, *grid) -> (b, c q, *grid').

    Raises:
        ValueError: as conv2d, or if ndim is not 1, 2 or 3.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(depthwise(8, 3, padding=1))(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """
    structure = read_kernel(ndim, kernel_size, stride, padding, dilation, padding_mode)
    return structure, Grouped(structure.taps, channels, channels * multiplier, channels), bias


@register(
    samples=lambda pointwise: [
        Sample(pointwise(3, 5), lambda: grid(3, 4), 3),
        Sample(pointwise(2, 2, ndim=1, bias=False), lambda: grid(6), 2),
    ],
    citation="Lin, Chen and Yan, Network In Network, ICLR 2014",
)
def pointwise(in_channels: int, out_channels: int, bias: bool = True, ndim: int = 2) -> Parts:
    """The 1 x 1 convolution: the same matrix applied to the channels of every pixel.

    Equation: Y = X W + b. In the family: one tap, S_0 = I; W dense.

    Args: ndim: 1, 2 or 3 axes.

    Shapes: x (b, i, *grid) -> (b, o, *grid).

    Raises:
        ValueError: if a number of channels is not positive, or ndim is not 1, 2 or 3.

    >>> import torch
    >>> from gconv import GConv
    >>> GConv(pointwise(8, 4))(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 4, 5, 5])
    """
    return read_kernel(ndim, 1, 1, 0, 1, "zeros"), Dense(1, in_channels, out_channels), bias


@register(
    samples=lambda separable: [
        Sample(separable(3, 4, 3, padding=1), lambda: grid(5, 4), 3),
        Sample(
            separable(2, 3, 3, stride=2, padding=2, dilation=2, bias=False, padding_mode="circular", ndim=1),
            lambda: grid(7),
            2,
        ),
    ],
    citation="Howard et al., MobileNets, 2017; Chollet, Xception, CVPR 2017",
)
def separable(
    in_channels: int,
    out_channels: int,
    kernel_size: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    bias: bool = True,
    padding_mode: Mode = "zeros",
    ndim: int = 2,
) -> Parts:
    """Depthwise separable convolution: one filter per channel, then a 1 x 1 convolution, as one operator.

    Equation: Y = sum_k S_k X diag(d_k) P + b.

    Meaning: k i + i o parameters instead of k i o. In the family: the shifts of conv2d; W_k = diag(d_k) P, stored as
    d (k, i) followed by P^T (o, i).

    Args: torch.nn.Conv2d's; ndim: 1, 2 or 3 axes.

    Shapes: x (b, i, *grid) -> (b, o, *grid').

    Raises:
        ValueError: as conv2d, or if ndim is not 1, 2 or 3.

    >>> import torch
    >>> from gconv import GConv
    >>> layer = GConv(separable(8, 4, 3, padding=1))
    >>> layer(torch.zeros(1, 8, 5, 5)).shape, layer.weight.numel()
    (torch.Size([1, 4, 5, 5]), 104)
    """
    structure = read_kernel(ndim, kernel_size, stride, padding, dilation, padding_mode)
    return structure, Separable(structure.taps, in_channels, out_channels), bias
