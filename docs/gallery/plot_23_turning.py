"""
A rotation-equivariant convolution
==================================

A convolution commutes with translations, but not with rotations. A convolution over the group of translations and
quarter turns (``p4_lift``) is equivariant to both: rotating the image rotates the output and permutes its poses.
"""

import matplotlib.pyplot as plt
import torch

from gconv import GConv
from gconv.operators import conv2d, p4_lift

image = torch.zeros(1, 1, 17, 17)
image[..., 3:14, 5] = image[..., 3, 5:12] = image[..., 8, 5:10] = 1
turned = image.rot90(1, (-2, -1))


def gap(layer, poses):
    """Maximum over poses for the image and for the rotated image, and their difference after rotation."""
    with torch.no_grad():
        a, b = (layer(i).unflatten(1, (-1, poses)).amax(2) for i in (image, turned))
    return a, b, float((a.rot90(1, (-2, -1)) - b).abs().max())


figure, axes = plt.subplots(2, 3, figsize=(8, 5.2))
for row, (name, layer, poses) in zip(
    axes,
    (
        ("conv2d", GConv(conv2d(1, 1, 3, padding=1, bias=False)), 1),
        ("p4_lift", GConv(p4_lift(1, 1, 3, padding=1, bias=False)), 4),
    ),
    strict=True,
):
    a, b, difference = gap(layer, poses)
    top = float(a.abs().max())
    for axis, title, picture in zip(
        row, (f"{name} of the image", "of the rotated image", f"difference: {difference:.1e}"),
        (a[0, 0], b[0, 0], (a.rot90(1, (-2, -1)) - b)[0, 0]), strict=True,
    ):  # fmt: skip
        axis.imshow(picture, cmap="RdBu_r", vmin=-top, vmax=top)
        axis.set(title=title, xticks=[], yticks=[])
