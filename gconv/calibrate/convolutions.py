"""What is measured of torch's own convolutions, whose rates hang on the kind of kernel and on who runs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.calibrate.sections import SMALL, Section, steps_of
from gconv.lowering.native import BLOCK
from gconv.module import GConv
from gconv.operators import conv2d, conv_transpose2d
from gconv.rates import TYPES
from gconv.spec import OperatorSpec

CONV = {"": 3, " large": 9, " point": 1, " plain": 1, " volume": 3, " line": 33}  # kernels
CONV |= {" transposed": 4, " transposed plain": 3, " groups": 3, " dilated": 3}
ONLY = {" groups": ("float32",), " dilated": ("float32", "float64")}  # in these types they are cases of their own
BACK = ("", " volume", " line", " transposed plain", *ONLY)  # whose gradients are measured
GROUPS = 4


def _shapes(form: str, c: int, slow: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of x and of the weight."""
    k, side, wide = CONV[form], 8 if slow else 16, 8 if slow else 32
    groups = GROUPS if form == " groups" else 1
    i, o = (c, c) if form in (" transposed", " transposed plain", " line", " groups") else (wide, c)
    images, grid = {
        " point": (4 if slow else 16, (16, 16)),
        " plain": (1, (side, side)),
        " volume": (1, (6, 6, 6)),
        " transposed plain": (1, (12, 12)),
        " line": (4, (side * side,)),
    }.get(form, (1 if slow else 4, (side, side)))
    x = (images, groups * i, *grid)
    return x, ((i, o) if "transposed" in form else (groups * o, i)) + (k,) * len(grid)


def _convolve(form: str) -> Callable[[Tensor, Tensor], Tensor]:
    k = CONV[form]
    if form == " transposed":
        return partial(F.conv_transpose2d, stride=2, padding=1)
    if form == " transposed plain":
        return partial(F.conv_transpose2d, padding=1)
    run = {" volume": F.conv3d, " line": F.conv1d}.get(form, F.conv2d)
    if form == " dilated":
        return partial(run, padding=2, dilation=2)
    return partial(run, padding=k // 2, groups=GROUPS if form == " groups" else 1)


def conv(kind: str) -> Section:
    """By the channels out of a group, transposed by the mean of both sides; channels last by channels times kernel."""
    dtype, slow = getattr(torch, kind), kind == "bfloat16"
    batch, side = (1, 8) if slow else (4, 16)
    widths = (1, 8, 64) if slow else (1, 4, 8, 16, 64)
    steps = steps_of("base", _tiny_conv, torch.randn(2, 1, 4, 4, dtype=dtype), torch.randn(1, 1, 3, 3, dtype=dtype))
    flops: dict[str, float] = {}
    one = torch.randn(1, 1, 4, 4, dtype=dtype), torch.randn(1, 1, 1, 1, dtype=dtype)
    steps["base plain"] = partial(F.conv2d, *one)
    forms = [form for form in CONV if kind in ONLY.get(form, TYPES)]
    for form in forms:
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
    laid = torch.randn(16, 1, 22, 22, dtype=dtype), torch.randn(1, 1, 1, 1, dtype=dtype)
    steps["lay"] = partial(F.conv2d, *laid)
    took = yield steps
    lay = (took["lay"] - took["base"]) / (16 * 22**2 * 2 * BLOCK)  # seconds a number

    def rate(form: str, c: int) -> float:
        base = took["base plain" if form.endswith(" plain") else "base"]
        if form == " transposed" and kind == "float32":  # with a channel it shows what adding up takes
            c, base = max(c, widths[1]), took["1 transposed"]
        if form == " point" and kind == "float32":  # what lays its channels out anew is priced by itself
            base += max(0.0, lay) * 16 * 256 * (32 + max(BLOCK, c))
        return flops[f"{c}{form}"] / max(took[f"{c}{form}"] - base, 0.2 * took[f"{c}{form}"])

    curves = {f"conv {kind}{form}": tuple((float(c), rate(form, c)) for c in widths) for form in forms}
    curves[f"conv {kind} last"] = tuple(sorted((float(c * k), rate(" last", c * k)) for c, k in last))
    begun = took["base back"] - took["base"]
    for form in BACK:
        if form in forms:
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
    two, W = torch.randn(2, 1, 4, 4), torch.randn(1, 1, 3, 3)
    few, some = torch.randn(12, 12, 3, 3), torch.randn(2, 12, 4, 4)  # which it fills up
    steps = steps_of("plain", _tiny_conv, some[:1], few) | steps_of("filled", _tiny_conv, some, few)
    steps["base"] = partial(_tiny_conv, two, W)
    many, wide, point = torch.randn(64, 1, 4, 4), torch.randn(16, 1, 22, 22), torch.randn(1, 1, 1, 1)
    steps |= {"many": partial(_tiny_conv, many, W), "lay": partial(F.conv2d, wide, point)}
    doubles = two.double(), many.double(), W.double()
    steps |= {f"plain {len(x)}": partial(_tiny_conv, x, doubles[2]) for x in doubles[:2]}
    steps["weight"] = partial(F.conv2d, torch.randn(2, 64, 5, 5), torch.randn(64, 64, 5, 5))
    few, more, kernel = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 16, 16), torch.randn(1, 1, 2, 2)
    steps["straight"] = _layer(conv2d(4, 8, 3, padding=1, bias=False))
    for s in (1, 2):
        spread = partial(F.conv_transpose2d, stride=s)
        steps |= steps_of(f"few {s}", spread, few, kernel) | steps_of(f"over {s}", spread, more, kernel)
        steps[f"turned {s}"] = _layer(conv_transpose2d(4, 8, 3, stride=s, bias=False))
    took = yield steps
    ends = ("", " weight", " back")
    begun = tuple((1.0 + k, 1 / max(took[f"filled{e}"] - took[f"plain{e}"], SMALL)) for k, e in enumerate(ends))

    def over(s: int, first: str, second: str = "") -> float:
        """Bytes a second of what a transposed convolution writes, with all the channels that it fills up."""
        sides = [(n - 1) * s + 2 for n in (16, 3)]
        spent = [
            took[f"{kind} {s}{first}"] - (took[f"{kind} {s}{second}"] if first else 0.0) for kind in ("over", "few")
        ]
        return 4.0 * BLOCK * 4 * (sides[0] ** 2 - sides[1] ** 2) / max(spent[0] - spent[1], SMALL)

    laid = {"laid over": ("", ""), "laid over weight": (" weight", ""), "laid over back": (" back", " weight")}
    curves = {name: tuple((float(s), over(s, *passes)) for s in (1, 2)) for name, passes in laid.items()}
    own = [took[f"turned {s}"] - took["straight"] for s in (1, 2)]
    lay = 4.0 * 2 * BLOCK * wide.numel() / max(took["lay"] - took["base"], SMALL)
    return curves | {
        "onednn": begun,
        "transposed": tuple((float(s), 1 / max(seconds, SMALL)) for s, seconds in zip((1, 2), own, strict=True)),
        "lay": ((1.0, lay),),
        "weight": ((1.0, 4.0 * 64 * 64 * 25 / max(took["weight"] - took["base"], SMALL)),),
        "image": ((1.0, 62 / max(took["many"] - took["base"], SMALL)),),
        "image plain": ((1.0, 62 / max(took["plain 64"] - took["plain 2"], SMALL)),),
    }


def apart() -> Section:
    """What torch's own convolutions take more for a group, and for what a transposed one's taps write."""
    x, W = torch.randn(1, 1, 4, 4, dtype=torch.float64), torch.randn(1, 1, 3, 3, dtype=torch.float64)
    many = partial(F.conv2d, padding=1, groups=16)
    steps = steps_of("one", _tiny_conv, x, W) | steps_of("many", many, x.repeat(1, 16, 1, 1), W.repeat(16, 1, 1, 1))
    spread = partial(F.conv_transpose2d, stride=2)
    few, more, kernel = (torch.randn(s, dtype=torch.float64) for s in ((4, 1, 3, 3), (4, 1, 16, 16), (1, 16, 4, 4)))
    steps |= steps_of("few", spread, few, kernel) | steps_of("more", spread, more, kernel)
    took = yield steps

    def beyond(high: str, low: str) -> tuple[float, float]:
        """Seconds of the forward pass, and of a gradient."""
        ahead = took[high] - took[low]
        return max(ahead, SMALL), max((took[f"{high} back"] - took[f"{low} back"] - ahead) / 2, SMALL)

    numbers = 8.0 * 16 * 16 * (more.numel() - few.numel())
    return {
        "group": tuple((1.0 + k, 15 / seconds) for k, seconds in enumerate(beyond("many", "one"))),
        "columns": tuple((1.0 + k, numbers / seconds) for k, seconds in enumerate(beyond("more", "few"))),
    }


def single(last: bool) -> Section:
    """By the square of a kernel's side, on 32x32 images of 16 channels, channels last in memory or not."""
    sides, steps = (3, 7, 9, 13, 15, 31), {}
    x = torch.randn(2, 16, 32, 32)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    steps = steps_of("base", _tiny_conv, torch.randn(2, 1, 4, 4), torch.randn(1, 1, 3, 3))
    for k in sides:
        run = partial(F.conv2d, padding=k // 2, groups=16)
        steps |= steps_of(f"{k}", run, x, torch.randn(16, 1, k, k))
    took = yield steps
    name, flops = f"single{' last' * last}", {k: 2.0 * k * k * x.numel() for k in sides}

    def rate(k: int, high: str, low: str | None = None) -> float:
        """Flops a second of what `high` takes more than `low`, and than both take on next to nothing."""
        took_more = {
            size: took[f"{size}{high}"] - (0.0 if low is None else took[f"{size}{low}"]) for size in (k, "base")
        }
        return flops[k] / max(took_more[k] - took_more["base"], 0.2 * took_more[k])

    passes: dict[str, tuple[str, str | None]] = {
        "": ("", None),
        " weight": (" weight", ""),
        " back": (" back", " weight"),
    }
    return {f"{name}{end}": tuple((float(k * k), rate(k, *pair)) for k in sides) for end, pair in passes.items()}
