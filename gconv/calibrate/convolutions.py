"""Measurements of torch's convolutions: their throughput, and the overhead of their calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.calibrate.sections import SMALL, Section, Steps, steps_of
from gconv.module import GConv
from gconv.operators import conv2d, conv_transpose2d
from gconv.rates import Curve
from gconv.spec import OperatorSpec


def conv() -> Section:
    """By the output channels, 3x3 kernels on four images with 32 channels."""
    widths, x = (1, 4, 8, 16, 64), torch.randn(4, 32, 16, 16)
    steps: Steps = {"base": partial(_tiny_conv, torch.randn(2, 1, 4, 4), torch.randn(1, 1, 3, 3))}
    steps |= {f"{c}": partial(_tiny_conv, x, torch.randn(c, 32, 3, 3)) for c in widths}
    took = yield steps
    spent = {c: max(took[f"{c}"] - took["base"], 0.2 * took[f"{c}"]) for c in widths}
    return {"conv": tuple((float(c), 2.0 * 9 * c * x.numel() / spent[c]) for c in widths)}


def _tiny_conv(x: Tensor, W: Tensor) -> Tensor:
    return F.conv2d(x, W, padding=1)


def _layer(spec: OperatorSpec) -> Callable[[], object]:
    layer, x = GConv(spec), torch.randn(2, 4, 6, 6)

    def run() -> object:
        with torch.no_grad():
            return layer(x, lowering="native")

    return run


def onednn() -> Section:
    """The overhead of oneDNN's calls, forward, with one gradient and with two; and per image."""
    two, many, W = torch.randn(2, 1, 4, 4), torch.randn(64, 1, 4, 4), torch.randn(1, 1, 3, 3)
    few, some = torch.randn(12, 12, 3, 3), torch.randn(2, 12, 4, 4)  # 12 channels, which oneDNN pads
    steps = steps_of("plain", _tiny_conv, some[:1], few) | steps_of("filled", _tiny_conv, some, few)
    steps |= {"base": partial(_tiny_conv, two, W), "many": partial(_tiny_conv, many, W)}
    steps["straight"] = _layer(conv2d(4, 8, 3, padding=1, bias=False))
    steps |= {f"turned {s}": _layer(conv_transpose2d(4, 8, 3, stride=s, bias=False)) for s in (1, 2)}
    took = yield steps
    ends = ("", " weight", " back")
    begun = tuple((1.0 + k, 1 / max(took[f"filled{e}"] - took[f"plain{e}"], SMALL)) for k, e in enumerate(ends))
    own = [took[f"turned {s}"] - took["straight"] for s in (1, 2)]
    return {
        "onednn": begun,
        "transposed": tuple((float(s), 1 / max(seconds, SMALL)) for s, seconds in zip((1, 2), own, strict=True)),
        "image": ((1.0, 62 / max(took["many"] - took["base"], SMALL)),),
    }


def groups() -> Section:
    """The overhead per group outside of oneDNN, and of writing the taps of a transposed convolution."""
    x, W = torch.randn(1, 1, 4, 4, dtype=torch.float64), torch.randn(1, 1, 3, 3, dtype=torch.float64)
    many = partial(F.conv2d, padding=1, groups=16)
    steps = steps_of("one", _tiny_conv, x, W) | steps_of("many", many, x.repeat(1, 16, 1, 1), W.repeat(16, 1, 1, 1))
    spread = partial(F.conv_transpose2d, stride=2)
    few, more, kernel = (torch.randn(s, dtype=torch.float64) for s in ((4, 1, 3, 3), (4, 1, 16, 16), (1, 16, 4, 4)))
    steps |= steps_of("few", spread, few, kernel) | steps_of("more", spread, more, kernel)
    took = yield steps

    def additional(high: str, low: str) -> tuple[float, float]:
        """The additional seconds of `high` over `low`, of the forward pass and of a gradient."""
        ahead = took[high] - took[low]
        return max(ahead, SMALL), max((took[f"{high} back"] - took[f"{low} back"] - ahead) / 2, SMALL)

    numbers = 8.0 * 16 * 16 * (more.numel() - few.numel())
    return {
        "group": tuple((1.0 + k, 15 / seconds) for k, seconds in enumerate(additional("many", "one"))),
        "columns": tuple((1.0 + k, numbers / seconds) for k, seconds in enumerate(additional("more", "few"))),
    }


def single() -> Section:
    """Depthwise convolutions, by the square of the kernel size, on 32x32 images with 16 channels.

    In each memory format, forward and with the gradient in the weight: for some of these torch has no fast kernel.
    """
    sides, images = (3, 5, 9, 13, 15, 31), torch.randn(2, 16, 32, 32)
    steps = steps_of("base", _tiny_conv, torch.randn(2, 1, 4, 4), torch.randn(1, 1, 3, 3))
    formats = {"": images, " last": images.to(memory_format=torch.channels_last)}
    for end, x in formats.items():
        for k in sides:
            run = partial(F.conv2d, padding=k // 2, groups=16)
            steps |= steps_of(f"{k}{end}", run, x, torch.randn(16, 1, k, k))
    steps = {name: step for name, step in steps.items() if not name.endswith("back")}
    took = yield steps

    def rate(k: int, seconds: float, base: float) -> tuple[float, float]:
        return float(k * k), 2.0 * k * k * images.numel() / max(seconds - base, 0.2 * seconds)

    setup = took["base weight"] - took["base"]
    curves: dict[str, Curve] = {}
    for end in formats:
        curves[f"single{end}"] = tuple(rate(k, took[f"{k}{end}"], took["base"]) for k in sides)
        spent = {k: max(took[f"{k}{end} weight"] - took[f"{k}{end}"], SMALL) for k in sides}
        curves[f"single weight{end}"] = tuple(rate(k, seconds, setup) for k, seconds in spent.items())
    return curves
