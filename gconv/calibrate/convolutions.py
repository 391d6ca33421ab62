"""What is measured of torch's own convolutions, whose rates hang on the kind of kernel and on who runs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.calibrate.sections import SMALL, Section, steps_of
from gconv.module import GConv
from gconv.operators import conv2d, conv_transpose2d
from gconv.spec import OperatorSpec

CONV = {"": 3, " large": 9, " point": 1, " plain": 1, " volume": 3, " line": 17}  # kernels
CONV |= {" transposed": 4, " transposed plain": 3}
BACK = ("", " volume", " line", " transposed plain")  # whose gradients are measured


def _shapes(form: str, c: int, slow: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of x and of the weight."""
    k, side, wide = CONV[form], 8 if slow else 16, 8 if slow else 32
    i, o = (c, c) if form in (" transposed", " transposed plain", " line") else (wide, c)
    images, grid = {
        " point": (16, (8, 8)),
        " plain": (1, (side, side)),
        " volume": (1, (6, 6, 6)),
        " transposed plain": (1, (12, 12)),
        " line": (4, (side * side,)),
    }.get(form, (1 if slow else 4, (side, side)))
    return (images, i, *grid), ((i, o) if "transposed" in form else (o, i)) + (k,) * len(grid)


def _convolve(form: str) -> Callable[[Tensor, Tensor], Tensor]:
    k = CONV[form]
    if form == " transposed":
        return partial(F.conv_transpose2d, stride=2, padding=1)
    if form == " transposed plain":
        return partial(F.conv_transpose2d, padding=1)
    run = {" volume": F.conv3d, " line": F.conv1d}.get(form, F.conv2d)
    return partial(run, padding=k // 2)


def conv(kind: str) -> Section:
    """By the channels out of a group, transposed by the mean of both sides; channels last by channels times kernel."""
    dtype, slow = getattr(torch, kind), kind == "bfloat16"
    batch, side = (1, 8) if slow else (4, 16)
    widths = (1, 8, 64) if slow else (1, 4, 8, 16, 64)
    steps = steps_of("base", _tiny_conv, torch.randn(2, 1, 4, 4, dtype=dtype), torch.randn(1, 1, 3, 3, dtype=dtype))
    flops: dict[str, float] = {}
    one = torch.randn(1, 1, 4, 4, dtype=dtype), torch.randn(1, 1, 1, 1, dtype=dtype)
    steps["base plain"] = partial(F.conv2d, *one)
    for form in CONV:
        for c in widths:
            shape, kernel = _shapes(form, c, slow)
            x, W, name = torch.randn(shape, dtype=dtype), torch.randn(kernel, dtype=dtype), f"{c}{form}"
            flops[name] = 2.0 * W.numel() * x.numel() / x.shape[1]
            made = steps_of(name, _convolve(form), x, W)
            steps |= made if form in BACK else {name: made[name]}
    last = ((4, 3), (16, 3), (64, 3), (4, 9), (16, 9))
    for c, k in last:
        x = torch.randn(batch, c, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        W = torch.randn(c, c, k, k, dtype=dtype)
        flops[f"{c * k} last"] = 2.0 * W.numel() * batch * side**2
        steps[f"{c * k} last"] = partial(F.conv2d, x, W, padding=k // 2)
    took = yield steps

    def rate(form: str, c: int) -> float:
        base = took["base plain" if form.endswith(" plain") else "base"]
        if form == " transposed" and kind == "float32":  # with a channel it shows what adding up takes
            c, base = max(c, widths[1]), took["1 transposed"]
        return flops[f"{c}{form}"] / max(took[f"{c}{form}"] - base, 0.2 * took[f"{c}{form}"])

    forms = [form for form in CONV if form != " line"]
    curves = {f"conv {kind}{form}": tuple((float(c), rate(form, c)) for c in widths) for form in forms}
    curves[f"conv {kind} last"] = tuple(sorted((float(c * k), rate(" last", c * k)) for c, k in last))
    begun = took["base back"] - took["base"]
    for form in BACK:
        back = {c: took[f"{c}{form} back"] - took[f"{c}{form}"] for c in widths}
        curves[f"conv {kind}{form} back"] = tuple(
            (float(c), 2 * flops[f"{c}{form}"] / max(back[c] - begun, 0.2 * back[c])) for c in widths
        )
    return curves


def _tiny_conv(x: Tensor, W: Tensor) -> Tensor:
    return F.conv2d(x, W, padding=1)


def _layer(spec: OperatorSpec) -> Callable[[], object]:
    layer, x = GConv(spec), torch.randn(2, 4, 6, 6)

    def run() -> object:
        with torch.no_grad():
            return layer(x, lowering="native")

    return run


def onednn() -> Section:
    """What its calls take beyond torch's own, forward, with one gradient and with two; and an image more."""
    one, two, W = torch.randn(1, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.randn(1, 1, 3, 3)
    steps = steps_of("plain", _tiny_conv, one, W) | steps_of("base", _tiny_conv, two, W)
    many, wide, point = torch.randn(64, 1, 4, 4), torch.randn(16, 1, 22, 22), torch.randn(32, 1, 1, 1)
    steps |= {"many": partial(_tiny_conv, many, W), "lay": partial(F.conv2d, wide, point)}
    doubles = two.double(), many.double(), W.double()
    steps |= {f"plain {len(x)}": partial(_tiny_conv, x, doubles[2]) for x in doubles[:2]}
    few, more, kernel = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 16, 16), torch.randn(1, 1, 4, 4)
    steps["straight"] = _layer(conv2d(4, 8, 3, padding=1, bias=False))
    for s in (1, 2):
        steps[f"few {s}"] = partial(F.conv_transpose2d, few, kernel, stride=s)
        steps[f"over {s}"] = partial(F.conv_transpose2d, more, kernel, stride=s)
        steps[f"turned {s}"] = _layer(conv_transpose2d(4, 8, 3, stride=s, bias=False))
    took = yield steps
    ends = ("", " weight", " back")
    begun = tuple((1.0 + k, 1 / max(took[f"base{e}"] - took[f"plain{e}"], SMALL)) for k, e in enumerate(ends))
    sites = 16 * (more.numel() - few.numel())
    over = tuple((float(s), sites / max(took[f"over {s}"] - took[f"few {s}"], SMALL)) for s in (1, 2))
    own = [took[f"turned {s:.0f}"] - took["straight"] - 9 * 72 / rate for s, rate in over]
    lay = 4.0 * 32 * wide.numel() / max(took["lay"] - took["base"], SMALL)
    return {
        "onednn": begun,
        "laid over": over,
        "transposed": tuple((s, 1 / max(seconds, SMALL)) for (s, _), seconds in zip(over, own, strict=True)),
        "lay": ((1.0, lay),),
        "image": ((1.0, 62 / max(took["many"] - took["base"], SMALL)),),
    } | {"image plain": ((1.0, 62 / max(took["plain 64"] - took["plain 2"], SMALL)),)}


def single(last: bool) -> Section:
    """By the taps, on 32x32 images of 16 channels, channels last in memory or not."""
    sizes, steps = (9, 49, 81, 169, 225, 961), {}
    x = torch.randn(2, 16, 32, 32)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    steps = steps_of("base", _tiny_conv, torch.randn(2, 1, 4, 4), torch.randn(1, 1, 3, 3))
    for taps in sizes:
        k = int(taps**0.5)
        run = partial(F.conv2d, padding=k // 2, groups=16)
        steps |= steps_of(f"{taps}", run, x, torch.randn(16, 1, k, k))
    took = yield steps
    name, flops = f"single{' last' * last}", {taps: 2.0 * taps * x.numel() for taps in sizes}
    back = {taps: took[f"{taps} back"] - took[f"{taps}"] for taps in sizes}
    begun = took["base back"] - took["base"]
    return {
        name: tuple((float(t), flops[t] / max(took[f"{t}"] - took["base"], 0.2 * took[f"{t}"])) for t in sizes),
        f"{name} back": tuple((float(t), 2 * flops[t] / max(back[t] - begun, 0.2 * back[t])) for t in sizes),
    }
