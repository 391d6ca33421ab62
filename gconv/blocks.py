"""Building blocks of well-known networks: torch modules whose convolutions are `GConv` layers.

A block is a composition of layers with normalisations and nonlinearities between them, not an operator.

    mobilenet_unit      a depthwise convolution, then a pointwise one
    inverted_residual   pointwise expansion, depthwise convolution, pointwise projection; with a residual connection
    shufflenet_unit     grouped pointwise convolutions with a channel shuffle between them
    low_rank_conv2d     a k x 1 convolution, then a 1 x k one: a kernel of low rank
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gconv.arguments import checked, integer, shown
from gconv.module import GConv
from gconv.operators import avg_pool2d, channel_shuffle, conv2d, depthwise, pointwise

__all__ = ["Shortcut", "inverted_residual", "low_rank_conv2d", "mobilenet_unit", "shufflenet_unit"]


class Shortcut(nn.Module):
    """A residual block: the sum, or the concatenation, of a body and a shortcut.

    Equation: y = body(x) + shortcut(x), or [shortcut(x) | body(x)] with join="cat".

    Args:
        body, shortcut: modules that take images; the shortcut is the identity by default.
        join: "add", or "cat" to concatenate the channels.

    Shapes: x (b, i, h, w) -> (b, o, h', w').

    >>> Shortcut(nn.Identity())(torch.ones(1, 1, 1, 2))
    tensor([[[[2., 2.]]]])
    """

    @checked
    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, join: Literal["add", "cat"] = "add") -> None:
        super().__init__()
        if join not in ("add", "cat"):
            raise ValueError(f"join must be 'add' or 'cat', but it is {join!r}.")
        shortcut = nn.Identity() if shortcut is None else shortcut
        for name, branch in (("body", body), ("shortcut", shortcut)):
            if not isinstance(branch, nn.Module):
                raise TypeError(f"{name} must be a torch module, but it is {shown(branch)}.")
        self.body, self.shortcut, self.join = body, shortcut, join

    def forward(self, x: Tensor) -> Tensor:
        y, shortcut = self.body(x), self.shortcut(x)
        return torch.cat([shortcut, y], -3) if self.join == "cat" else shortcut + y

    def extra_repr(self) -> str:
        return f"join={self.join!r}"


@checked
def mobilenet_unit(in_channels: int, out_channels: int, stride: int = 1, kernel_size: int = 3) -> nn.Sequential:
    """MobileNet's unit: depthwise convolution, batch norm, ReLU, pointwise convolution, batch norm, ReLU.

    Equation: y = relu(norm(relu(norm(sum_k S_k x D_k)) P)), D_k diagonal, P (i, o).

    Meaning: first each channel is filtered spatially on its own, then the channels are mixed at each pixel. The
    convolutions have k^2 i + i o weights instead of k^2 i o. `gconv.operators.separable` is the same without the
    normalisation and ReLU in between, as one linear map.

    Args:
        in_channels, out_channels: i, o.
        stride: of the depthwise convolution.
        kernel_size: k, odd; the padding is (k - 1) / 2.

    Shapes: x (b, i, h, w) -> (b, o, ceil(h / stride), ceil(w / stride)).

    Raises:
        TypeError, ValueError: if an argument is not an integer or is out of range, or the kernel size is even.

    >>> mobilenet_unit(8, 16, stride=2)(torch.zeros(2, 8, 6, 6)).shape
    torch.Size([2, 16, 3, 3])

    Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017.
    """
    return nn.Sequential(
        GConv(depthwise(in_channels, kernel_size, stride, _half(kernel_size), bias=False)),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        GConv(pointwise(in_channels, out_channels, bias=False)),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


@checked
def inverted_residual(
    in_channels: int, out_channels: int, stride: int = 1, expansion: int = 6, kernel_size: int = 3
) -> nn.Module:
    """MobileNetV2's unit: expansion, depthwise convolution, projection; with a residual connection if shapes agree.

    Equation: y = x + norm(relu6(norm(sum_k S_k relu6(norm(x P)) D_k)) Q), P (i, t i), D_k diagonal, Q (t i, o); without
    x where the stride is not 1 or i != o, and without P where t = 1.

    Meaning: there is no nonlinearity after the projection, which would discard information where there are few
    channels; the spatial filters act on the expanded channels.

    Args:
        in_channels, out_channels: i, o.
        stride: of the depthwise convolution.
        expansion: t, the factor by which the channels are expanded.
        kernel_size: k, odd; the padding is (k - 1) / 2.

    Shapes: x (b, i, h, w) -> (b, o, ceil(h / stride), ceil(w / stride)).

    Raises:
        TypeError, ValueError: if an argument is not an integer or is out of range, or the kernel size is even.

    >>> inverted_residual(8, 8)(torch.zeros(2, 8, 6, 6)).shape
    torch.Size([2, 8, 6, 6])

    Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.
    """
    in_channels, expansion = integer(in_channels, "in_channels", 1), integer(expansion, "expansion", 1)
    wide = in_channels * expansion
    widen = [GConv(pointwise(in_channels, wide, bias=False)), nn.BatchNorm2d(wide), nn.ReLU6()]
    body = nn.Sequential(
        *(widen if expansion > 1 else []),
        GConv(depthwise(wide, kernel_size, stride, _half(kernel_size), bias=False)),
        nn.BatchNorm2d(wide),
        nn.ReLU6(),
        GConv(pointwise(wide, out_channels, bias=False)),
        nn.BatchNorm2d(out_channels),
    )
    return Shortcut(body) if stride == 1 and in_channels == out_channels else body


@checked
def shufflenet_unit(
    in_channels: int, out_channels: int, groups: int = 3, stride: int = 1, grouped_first: bool = True
) -> nn.Sequential:
    """ShuffleNet's unit: grouped pointwise convolution, shuffle, depthwise convolution, grouped pointwise convolution.

    Equation: y = relu(x + norm(norm(sum_k S_k shuffle(relu(norm(x P))) D_k) Q)), P (i, o / 4) and Q (o / 4, o) block
    diagonal in g blocks; at stride 2 y = relu([pool(x) | ...]) with Q (o / 4, o - i).

    Meaning: grouped convolutions are cheap but do not mix channels of different groups; the shuffle between them does.

    Traps: no ReLU follows the depthwise convolution; the last ReLU follows the shortcut. In the first unit of the
    paper's network the first convolution is not grouped: grouped_first=False.

    Args:
        in_channels, out_channels: i, o; i = o at stride 1, o > i at stride 2.
        groups: g; divides i, o / 4 and, at stride 2, o - i.
        stride: 1 or 2.
        grouped_first: whether P is grouped.

    Shapes: x (b, i, h, w) -> (b, o, h, w), at stride 2 (b, o, ceil(h / 2), ceil(w / 2)).

    Raises:
        TypeError, ValueError: if an argument is not an integer, or the channels do not fit the stride or the groups.

    >>> shufflenet_unit(12, 24, groups=3, stride=2)(torch.zeros(2, 12, 6, 6)).shape
    torch.Size([2, 24, 3, 3])

    Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, CVPR 2018.
    """
    in_channels, out_channels = integer(in_channels, "in_channels", 1), integer(out_channels, "out_channels", 1)
    stride, groups = integer(stride, "stride"), integer(groups, "groups", 1)
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, but it is {stride!r}.")
    if (in_channels != out_channels) if stride == 1 else (in_channels >= out_channels):
        wanted = "as many channels out as in" if stride == 1 else "more channels out than in"
        raise ValueError(f"At stride {stride} the unit has {wanted}, but they are {out_channels} and {in_channels}.")
    if out_channels % 4:
        raise ValueError(f"out_channels must be a multiple of 4, but it is {out_channels}.")
    narrow, last = out_channels // 4, out_channels if stride == 1 else out_channels - in_channels
    body = nn.Sequential(
        GConv(conv2d(in_channels, narrow, 1, groups=groups if grouped_first else 1, bias=False)),
        nn.BatchNorm2d(narrow),
        nn.ReLU(),
        GConv(channel_shuffle(narrow, groups)),
        GConv(depthwise(narrow, 3, stride, 1, bias=False)),
        nn.BatchNorm2d(narrow),
        GConv(conv2d(narrow, last, 1, groups=groups, bias=False)),
        nn.BatchNorm2d(last),
    )
    joined = Shortcut(body) if stride == 1 else Shortcut(body, GConv(avg_pool2d(3, 2, 1)), "cat")
    return nn.Sequential(joined, nn.ReLU())


@checked
def low_rank_conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    rank: int,
    stride: int = 1,
    padding: int = 0,
    bias: bool = True,
) -> nn.Sequential:
    """A k x 1 convolution to `rank` channels, then a 1 x k convolution: a kernel of low rank.

    Equation: y = sum_b S_b (sum_a S_a x V_a) H_b + b, so that W_(a, b) = V_a H_b, V_a (i, r), H_b (r, o).

    Meaning: k r (i + o) weights instead of k^2 i o. Every kernel of rank r in this sense can be represented exactly;
    the best approximation of a kernel W comes from the singular value decomposition of W reshaped to (k i, k o).

    Traps: there is no nonlinearity between the two convolutions: the block is linear.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, bias: as for conv2d, one number for both axes.
        rank: r, channels between the two.

    Shapes: x (b, i, h, w) -> (b, o, h', w'), as for conv2d.

    Raises:
        TypeError, ValueError: if an argument is not an integer or is out of range.

    >>> layer = low_rank_conv2d(8, 16, 5, rank=4, padding=2)
    >>> layer(torch.zeros(1, 8, 6, 6)).shape, sum(p.numel() for p in layer.parameters())
    (torch.Size([1, 16, 6, 6]), 496)

    Jaderberg, Vedaldi and Zisserman, Speeding up Convolutional Neural Networks with Low Rank Expansions, BMVC 2014.
    """
    rank = integer(rank, "rank", 1)
    return nn.Sequential(
        GConv(conv2d(in_channels, rank, (kernel_size, 1), (stride, 1), (padding, 0), bias=False)),
        GConv(conv2d(rank, out_channels, (1, kernel_size), (1, stride), (0, padding), bias=bias)),
    )


def _half(kernel_size: int) -> int:
    """The padding that keeps the size of the grid."""
    size = integer(kernel_size, "kernel_size")
    if size < 1 or size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd positive integer here, but it is {kernel_size!r}.")
    return size // 2
