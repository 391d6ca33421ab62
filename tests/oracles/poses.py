"""Oracles of the group-equivariant convolutions: torch's conv2d with kernels turned by torch.rot90, pose by pose."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from gconv import GConv, Grid, operators
from gconv.spec import Sample
from oracles.common import given, oracle, random_case
from oracles.grids import MODES, axes

TURN, MIRROR = np.array([[0, -1], [1, 0]]), np.array([[-1, 0], [0, 1]])  # of the plane: a quarter turn, left to right


def elements(group: str) -> list[tuple[int, int, np.ndarray]]:
    """(turns, mirrored, matrix) of each pose, in the order of the channels."""
    power = np.linalg.matrix_power
    return [(r, m, power(TURN, r) @ power(MIRROR, m)) for m in range(1 + (group == "p4m")) for r in range(4)]


def pose(kernel: Tensor, turns: int, mirrored: int) -> Tensor:
    return torch.rot90(kernel.flip(-1) if mirrored else kernel, turns, (-2, -1))


@oracle("p4_lift", "p4_conv")
def symmetric(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = given(layer)
    group, size = elements(a["group"]), (a["kernel_size"],) * 2
    W = layer.weight.permute(2, 1, 0).unflatten(-1, size)  # (o, i, k, k), or (o, i |G|, k, k)
    parts = []
    for turns, mirrored, g in group:
        kernel = pose(W, turns, mirrored)
        if layer.spec.name == "p4_conv":
            seen = [next(j for j, e in enumerate(group) if (g @ e[2] == h).all()) for _, _, h in group]  # g^-1 h
            kernel = kernel.unflatten(1, (-1, len(group)))[:, :, seen].flatten(1, 2)
        parts.append(kernel)
    kernel = torch.stack(parts, 1).flatten(0, 1)
    p, mode = a["padding"], {"zeros": "constant"}.get(a["padding_mode"], a["padding_mode"])
    y = F.conv2d(F.pad(x, (p, p, p, p), mode), kernel, None, a["stride"], 0, a["dilation"])
    return y if layer.bias is None else y + layer.bias.repeat_interleave(len(group)).reshape(-1, 1, 1)


@random_case("p4_lift", "p4_conv")
def _(draw: Any, name: str) -> Sample:
    i, o, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.sampled_from(["p4", "p4m"]))
    k, s, p, d = (draw(st.integers(*r)) for r in ((1, 3), (1, 2), (0, 2), (1, 2)))
    spec = getattr(operators, name)(i, o, k, s, p, d, draw(st.booleans()), draw(MODES), group)
    size = Grid(axes(draw, 2, max(p + 1, d * (k - 1) + 1), 6))
    return Sample(spec, lambda: size, i * (1 if name == "p4_lift" else 4 if group == "p4" else 8))
