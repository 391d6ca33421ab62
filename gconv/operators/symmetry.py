"""Convolutions that are equivariant to rotations by 90 degrees (p4) and also to reflections (p4m)."""

from __future__ import annotations

from typing import Any

from gconv.basis.shifts import Mode
from gconv.mixing.symmetric import ORDER, Group, Symmetric
from gconv.operators.convolution import Kernel, read_kernel
from gconv.operators.shapes import grid
from gconv.spec import Parts, Sample, register

COHEN = "Cohen and Welling, Group Equivariant Convolutional Networks, ICML 2016"


def _square(kernel_size: Any, stride: Any, padding: Any, dilation: Any, mode: Mode) -> Kernel:
    """A square kernel: kernel size, stride, padding and dilation are the same for both axes. Raises: ValueError."""
    given = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}
    for name, value in given.items():
        least = 0 if name == "padding" else 1
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, the same for both axes, but it is {value!r}.")
    return read_kernel(2, kernel_size, stride, padding, dilation, mode)


def _order(group: Group) -> int:
    if group not in ORDER:
        raise ValueError(f"group must be 'p4' or 'p4m', but it is {group!r}.")
    return ORDER[group]


@register(
    samples=lambda p4_lift: [
        Sample(p4_lift(2, 1, 3, padding=1), lambda: grid(4, 5), 2),
        Sample(p4_lift(1, 2, 2, stride=2, dilation=2, group="p4m"), lambda: grid(4, 4), 1),
        Sample(p4_lift(1, 1, 3, padding=1, bias=False, padding_mode="circular"), lambda: grid(3, 4), 1),
    ],
    citation=COHEN,
)
def p4_lift(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    bias: bool = True,
    padding_mode: Mode = "zeros",
    group: Group = "p4",
) -> Parts:
    """The lifting layer of a group-equivariant network: each kernel is applied in all its poses.

    Equation: y[m, o |G| + g] = b[o] + sum_k sum_i x[s m + d a_k - p, i] W[g^-1 k, i, o], with g^-1 k the tap that g
    maps to k.

    Meaning: rotating the input rotates the output and permutes its poses: for the rotated input T_r x the output at
    (m, g) is that for x at (r^-1 m, r^-1 g). In the family: the shifts of conv2d; W is gathered from one kernel per
    output channel by an index table, so there are 4 or 8 times fewer parameters than in W.

    Traps: the output has out_channels |G| channels, |G| = 4 or 8, with the pose as the innermost index. Pose 4 m + r
    reflects left to right if m = 1, then rotates r times counter-clockwise, as torch.rot90: the order of the regular
    representation in escnn. All poses share one bias.
    With a stride the layer is equivariant only if the stride divides h + 2 p - d (k - 1) - 1, and likewise for w.

    Args: torch.nn.Conv2d's, as integers; group: "p4" or "p4m".

    Shapes: x (b, i, h, w) -> (b, o |G|, h', w').

    Raises:
        ValueError: if a number is out of range or given per axis, or the group is unknown.

    >>> import torch
    >>> from gconv import GConv
    >>> layer, x = GConv(p4_lift(1, 1, 3)), torch.rand(1, 1, 6, 6)
    >>> y, turned = layer(x), layer(x.rot90(1, (-2, -1)))
    >>> torch.allclose(turned, y.rot90(1, (-2, -1)).roll(1, 1), atol=1e-6)
    True
    """
    structure = _square(kernel_size, stride, padding, dilation, padding_mode)
    order = _order(group)
    return structure, Symmetric(structure.kernel[0], in_channels, out_channels * order, group, False), bias


@register(
    samples=lambda p4_conv: [
        Sample(p4_conv(1, 2, 3, padding=1), lambda: grid(4, 5), 4),
        Sample(
            p4_conv(1, 1, 2, stride=2, padding=1, dilation=2, group="p4m", padding_mode="circular"),
            lambda: grid(4, 4),
            8,
        ),
        Sample(p4_conv(2, 1, 1, bias=False), lambda: grid(2, 3), 8),
    ],
    citation=COHEN,
)
def p4_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    bias: bool = True,
    padding_mode: Mode = "zeros",
    group: Group = "p4",
) -> Parts:
    """A group-equivariant convolution between signals with poses.

    Equation: y[m, o |G| + g] = b[o] + sum_k sum_i sum_h x[s m + d a_k - p, i |G| + h] W[g^-1 k, i |G| + g^-1 h, o].

    Meaning: a convolution over the group instead of the plane: the kernel depends on the input pose relative to the
    output pose. In the family: as `p4_lift`.

    Traps: in_channels and out_channels do not count poses; the input has in_channels |G| channels in the layout of
    `p4_lift`. The mean over the poses of each channel, followed by global_pool, is invariant.

    Args: as p4_lift.

    Shapes: x (b, i |G|, h, w) -> (b, o |G|, h', w').

    Raises:
        ValueError: as p4_lift.

    >>> import torch
    >>> from gconv import GConv
    >>> net = torch.nn.Sequential(GConv(p4_lift(1, 2, 3)), torch.nn.ReLU(), GConv(p4_conv(2, 3, 3)))
    >>> x = torch.rand(1, 1, 8, 8)
    >>> pooled = [net(image).unflatten(1, (3, 4)).mean((2, 3, 4)) for image in (x, x.rot90(1, (-2, -1)))]
    >>> torch.allclose(*pooled, atol=1e-6)
    True
    """
    structure = _square(kernel_size, stride, padding, dilation, padding_mode)
    order = _order(group)
    return structure, Symmetric(structure.kernel[0], in_channels * order, out_channels * order, group, True), bias
