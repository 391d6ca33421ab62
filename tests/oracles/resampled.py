"""Oracles of resampling: torch.nn.functional.interpolate and torch's adaptive pooling.

torch  antialias=True onto a width of one repeats the first row in all others (2.x, CPU); such sizes are not drawn.
       "nearest" with a factor that changes nothing (2 sites, 1.3): forward reads 0, 0 in one dimension, backward takes
       it for the identity; nor are they.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from gconv import GConv, Grid, operators
from gconv.spec import Sample
from oracles.common import given, oracle, random_case
from oracles.grids import axes

ADAPTIVE = [f"adaptive_{kind}_pool{d}d" for kind in ("avg", "max") for d in (1, 2, 3)]


@oracle("upsample")
def upsample(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    a = given(layer)
    a.pop("ndim")
    return F.interpolate(x, **a)


@oracle(*ADAPTIVE)
def adaptive(layer: GConv, domain: Grid, x: Tensor) -> Tensor:
    return getattr(F, layer.spec.name)(x, given(layer)["output_size"])


@random_case("upsample")
def _(draw: Any, name: str) -> Sample:
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "area", "linear", "bilinear", "trilinear", "bicubic"]))
    d = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}.get(mode) or draw(st.integers(1, 3))
    rest: dict[str, Any] = {"mode": mode, "ndim": d}
    if mode in ("linear", "bilinear", "trilinear", "bicubic"):
        rest["align_corners"] = draw(st.sampled_from([None, False, True]))
    if d == 2 and mode in ("bilinear", "bicubic"):
        rest["antialias"] = draw(st.booleans())
    if draw(st.booleans()):
        rest["size"] = axes(draw, d, 1 + rest.get("antialias", False), 9)
    else:
        rest["scale_factor"] = tuple(draw(st.sampled_from([0.5, 0.6, 1.0, 1.3, 1.7, 2.0, 2.5, 3.0])) for _ in range(d))
        rest["recompute_scale_factor"] = draw(st.sampled_from([None, False, True]))
    size = Grid(axes(draw, d, 4 if rest.get("antialias") or mode == "nearest" else 2, 6))
    return Sample(operators.upsample(**rest), lambda: size, draw(st.integers(1, 2)))


@random_case(*ADAPTIVE)
def _(draw: Any, name: str) -> Sample:
    d = int(name[-2])
    size, out = Grid(axes(draw, d, 1, 6)), tuple(draw(st.none() | st.integers(1, 7)) for _ in range(d))
    if d == 1:
        out = (out[0] or 2,)  # where torch, the oracle, takes no None
    return Sample(getattr(operators, name)(out), lambda: size, draw(st.integers(1, 2)))
