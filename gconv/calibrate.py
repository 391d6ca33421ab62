"""Measure this machine once, so that plans price work as it does here.

    python -m gconv.calibrate           measure for the number of threads in use (under a minute), store, print
    python -m gconv.calibrate --show    print what plans use now

Every rate is the best of some rounds, so that what else the machine does matters little; with one thread they are
measured in processor time. The file keeps the numbers of other thread counts (OMP_NUM_THREADS=1 python -m ... for one
thread). Running layers take it up when they are made anew: a process reads it once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.domains import Graph
from gconv.kernels import CSR, segment_max, spmm
from gconv.lowering import LOWERINGS
from gconv.mixing import plain
from gconv.module import GConv
from gconv.operators import cheb, conv2d, gcn, spectral
from gconv.plan import plan, step_of, take_turns
from gconv.rates import FORMAT, TABLES, TYPES, Curve, Rates, path, rates

Step = Callable[[], object]
ROUNDS, LASTS = 5, 4e-3
SMALL = 1e-6  # seconds; no call costs less


def _took(rounds: int = ROUNDS, **steps: Step) -> dict[str, float]:
    with torch.no_grad():
        return take_turns(steps, rounds, LASTS)


def _gemm(kind: str, widened: bool = False) -> Curve:
    """X W by the smaller dimension of W; `widened`: through float32."""
    points = []
    for width in (1, 4, 16, 64, 256):
        rows = min(16384, max(1024, (1 << 22) // width**2)) if kind != "bfloat16" else 1024
        x, W = (torch.randn(shape).to(getattr(torch, kind)) for shape in ((rows, width), (width, width)))
        run = lambda x=x, W=W: (x.float() @ W.float()).to(x.dtype) if widened else x @ W  # noqa: E731
        points.append((float(width), 2 * rows * width**2 / _took(mm=run)["mm"]))
    return tuple(points)


def _pair(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, W: Tensor, flops: float) -> tuple[float, float]:
    """Flops a second of the forward pass, and of each of the two gradients."""
    x, W = x.requires_grad_(), W.requires_grad_()
    dy = torch.ones_like(run(x, W)).detach()

    def both() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(run(x, W), (x, W), dy)

    took = _took(forward=lambda: run(x, W), both=both)
    return flops / took["forward"], 2 * flops / max(took["both"] - took["forward"], 0.2 * took["both"])


def _curves(sizes: Sequence[float], pairs: Sequence[tuple[float, float]]) -> tuple[Curve, Curve]:
    forward, back = zip(*pairs, strict=True)
    return tuple(zip(sizes, forward, strict=True)), tuple(zip(sizes, back, strict=True))


def _conv(kind: str) -> dict[str, Curve]:
    """By the channels, 3x3 and 9x9."""
    found: dict[str, list[tuple[float, float]]] = {"": [], " large": [], " last": [], " back": []}
    for c, k in ((4, 1), (16, 1), (4, 3), (16, 3), (64, 3), (4, 9), (16, 9)):
        side = 16 if kind == "bfloat16" or c > 16 else 32
        x, W = torch.randn(4, c, side, side), torch.randn(c, c, k, k)
        x, W = x.to(getattr(torch, kind)), W.to(getattr(torch, kind))
        flops, last = 2.0 * W.numel() * 4 * side**2, x.contiguous(memory_format=torch.channels_last)
        run = lambda x, W, k=k: F.conv2d(x, W, padding=k // 2)  # noqa: E731
        if k > 1:
            took = _took(first=lambda x=x, W=W, run=run: run(x, W), last=lambda x=last, W=W, run=run: run(x, W))  # type: ignore[misc]
            found["" if k == 3 else " large"].append((float(c), flops / took["first"]))
            found[" last"].append((float(c * k), flops / took["last"]))
        if k < 9:
            found[" back"].append((float(c * k), _pair(run, x, W, flops)[1]))
    return {f"conv {kind}{name}": tuple(sorted(dict(points).items())) for name, points in found.items()}


def _single(last: bool) -> tuple[Curve, Curve]:
    """By the taps, on 32x32 images of 16 channels, channels last in memory or not."""
    sizes, pairs = (9.0, 49.0, 225.0, 961.0), []
    for taps in sizes:
        k = int(taps**0.5)
        x = torch.randn(1, 16, 32, 32)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        run = lambda x, W, k=k: F.conv2d(x, W, padding=k // 2, groups=16)  # noqa: E731
        pairs.append(_pair(run, x, torch.randn(16, 1, k, k), 2 * taps * 16 * 1024))
    return _curves(sizes, pairs)


def _gather(table: float) -> Curve:
    """A sparse product of eight entries a row, at random columns, by the bytes of a row of x."""
    entries, points = 1 << 17, []
    row = torch.arange(entries) // 8
    for width in (1, 8, 32, 128):
        n = max(1, int(table) // (4 * width))
        few = slice(min(entries, (1 << 23) // width))
        csr = CSR.build(row[few], torch.randint(n, (entries,))[few], int(row[few][-1]) + 1, n)
        x, values = torch.ones(n, width), torch.ones(len(csr.col))
        took = _took(spmm=lambda csr=csr, values=values, x=x: spmm(csr, values, x))["spmm"]  # type: ignore[misc]
        points.append((4.0 * width, 4.0 * width * len(csr.col) / took))
    return tuple(points)


def _stream() -> Curve:
    """x + 1 into fresh memory, by its bytes."""
    points = []
    for size in (2.0**14, *TABLES.values()):
        x = torch.zeros(int(size) // 4)
        points.append((size, 2 * size / _took(add=lambda x=x: x + 1)["add"]))  # type: ignore[misc]
    return tuple(points)


def _rest() -> dict[str, Curve]:
    at = torch.arange(4096)
    csr = CSR.build(at.repeat(8), torch.randint(4096, (8 * 4096,)), 4096, 4096)
    values, x, image = torch.ones(8 * 4096), torch.randn(4096, 32), torch.randn(8, 32, 32, 32)
    rows, wide = torch.randn(8, 16, 256), torch.randn(8, 32, 38, 38)
    took = _took(
        scatter=lambda: segment_max(csr, values, x),
        turn=lambda: rows.mT.contiguous(),
        fft=lambda: torch.fft.irfft2(torch.fft.rfft2(wide), s=(38, 38)),
    )
    work = {"scatter": 4.0 * 32 * 8 * 4096, "turn": 4.0 * rows.numel(), "fft": 2 * 2.5 * 10.5 * wide.numel()}
    found: dict[str, Curve] = {kind: ((1.0, work[kind] / took[kind]),) for kind in work}
    image = image[:2]
    for name, pool in (("max", F.max_pool2d), ("sum", F.avg_pool2d)):
        took = _took(**{str(k): lambda k=k, pool=pool: pool(image, k, 1) for k in (2, 5)})  # type: ignore[arg-type]
        sizes = {k: image.shape[0] * 32 * (33 - k) ** 2 / took[str(k)] for k in (2, 5)}
        found[f"pool {name}"] = tuple((float(k * k), rate) for k, rate in sizes.items())
    points = []
    for c in (4, 16, 64):
        wide, W = torch.randn(4, c, 12, 12), torch.randn(c, c, 4, 4)
        took = _took(conv=lambda x=wide, W=W: F.conv_transpose2d(x, W, stride=2, padding=1))  # type: ignore[misc]
        points.append((float(c), 2 * W.numel() * 4 * 144 / took["conv"]))
    found["conv transposed"] = tuple(points)
    tiny, W = torch.randn(64, 4, 4, 4), torch.randn(4, 4, 1, 1)
    took = _took(many=lambda: F.conv2d(tiny, W), one=lambda: F.conv2d(tiny[:1], W))
    found["image"] = ((1.0, 63 / max(took["many"] - took["one"], SMALL)),)
    taps = GConv(conv2d(2, 2, 9))
    signal = torch.randn(1, 2, 9, 9)
    one = GConv(conv2d(2, 2, 1))
    took = _took(many=lambda: taps(signal, lowering="im2col"), one=lambda: one(signal, lowering="im2col"))
    found["slice"] = ((1.0, 80 / max(took["many"] - took["one"], SMALL)),)
    points = []
    for width in (1, 8, 64):
        signal = torch.randn(4, 64 // width, width, 16, 9, dtype=torch.complex64)
        kernel = torch.randn(64 // width, width, width, 16, 9, dtype=torch.complex64)
        mix = lambda s=signal, k=kernel: torch.einsum("...gixy,gioxy->...goxy", s, k)  # noqa: E731
        points.append((float(width), 8 * 4 * 64 * width * 16 * 9 / _took(mix=mix)["mix"]))
    return found | {"mix": tuple(points)}


PATH = Graph(torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]), 4)


def _tiny() -> list[tuple[GConv, Tensor, Graph | None, tuple[str, ...]]]:
    """Layers on next to nothing, and the lowerings whose overhead they show."""
    grid = ("native", "im2col", "fft", "dense")
    sparse = ("sparse:aggregate", "sparse:transform")
    recurrence = ("recurrence:aggregate", "recurrence:transform")
    return [
        (GConv(conv2d(2, 2, 3)), torch.randn(1, 2, 4, 4), None, grid),
        (GConv(gcn(2, 2)), torch.randn(4, 2), PATH, sparse),
        (GConv(cheb(2, 2, k=3)), torch.randn(4, 2), PATH, recurrence),
        (GConv(spectral(2, 2, k=2)), torch.randn(4, 2), PATH, ("gft",)),
    ]


def _call() -> Curve:
    """Terms of a recurrence on next to nothing."""
    took = {}
    for terms in (2, 10):
        layer, x = GConv(cheb(2, 2, k=terms, bias=False)), torch.randn(4, 2)
        took[terms] = _took(one=lambda layer=layer, x=x: layer(x, PATH))["one"]  # type: ignore[misc]
    return ((1.0, 8 / max(took[10] - took[2], SMALL)),)


def _overheads(known: Rates) -> dict[str, float]:
    """What a call on next to nothing takes beyond its work."""
    steps: dict[str, Step] = {}
    work = {}
    for layer, x, graph, names in _tiny():
        signal, place = layer._enter(x, graph)
        S = layer._basis(place, signal)
        mixing, W = plain(layer.spec.mixing, layer.weight)
        assert W is not None
        for suffix, dx, dw in (("", False, False), (" weight", False, True), (" back", True, True)):
            leaves = W.detach().requires_grad_(dw), signal.detach().requires_grad_(dx)
            costs = {c.name: c.cost for c in plan(S, mixing, signal, None, (dx, dw)).candidates}
            for option in LOWERINGS:
                cost = costs[option.name]
                if option.name in names and cost is not None:
                    steps[option.name + suffix] = step_of(option, S, mixing, *leaves, dw)
                    work[option.name + suffix] = sum(known.seconds(*astuple(w)) for w in cost.work)
    took = _took(4 * ROUNDS, **steps)
    return {name: max(SMALL, took[name] - work[name]) for name in steps}


def measure(say: Callable[[str], None] = lambda text: None) -> Rates:
    """The rates of this machine, for the number of threads in use.

    Args:
        say: is told what is being measured.
    """
    curves: dict[str, Curve] = {}
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    for kind in TYPES:
        say(f"products and convolutions in {kind}")
        curves[f"gemm {kind}"] = _gemm(kind)
        curves |= _conv(kind)
    curves["gemm widened"] = _gemm("bfloat16", True)
    for name, last in (("single", False), ("single last", True)):
        say(f"convolutions of each channel by itself, {name}")
        curves[name], curves[f"{name} back"] = _single(last)
    say("sparse products and streams")
    curves |= {f"gather {place}": _gather(table) for place, table in TABLES.items()}
    curves["stream"] = _stream()
    curves |= _rest() | {"call": _call()}
    say("calls")
    found = Rates(curves, _overheads(Rates(curves, {})), "measured now")
    torch.random.set_rng_state(generator)
    return found


def store(found: Rates) -> None:
    """Put rates into the calibration's file, beside those of other numbers of threads."""
    where = path()
    data: dict[str, Any] = {"format": FORMAT, "threads": {}}
    try:
        old = json.loads(where.read_text(encoding="utf-8"))
        if old["format"] == FORMAT:
            data["threads"] |= old["threads"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or none that serves
    curves = {kind: [[float(f"{number:.4g}") for number in point] for point in c] for kind, c in found.curves.items()}
    overheads = {name: float(f"{seconds:.4g}") for name, seconds in found.overheads.items()}
    data["threads"][str(torch.get_num_threads())] = {"curves": curves, "overheads": overheads}
    where.parent.mkdir(parents=True, exist_ok=True)
    trial = where.with_name(f"{where.name}.{os.getpid()}.tmp")
    trial.write_text(json.dumps(data, indent=1), encoding="utf-8")
    os.replace(trial, where)


def table(found: Rates) -> str:
    """The rates as text."""
    lines = [f"rates from {found.source}, {torch.get_num_threads()} threads; a second, by size"]
    for kind, curve in found.curves.items():
        lines.append(f"  {kind:22s}" + "".join(f"  {size:>9.9g}: {rate:8.3g}" for size, rate in curve))
    lines.append("overhead of a call, microseconds: forward, with the gradient in the weight, and with that in x")
    for name in (option.name for option in LOWERINGS):
        each = (found.overheads[name + suffix] * 1e6 for suffix in ("", " weight", " back"))
        lines.append(f"  {name:22s}" + "".join(f"  {us:8.1f}" for us in each))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m gconv.calibrate", description="Measure this machine for plans.")
    parser.add_argument("--show", action="store_true", help="measure nothing, print the rates that plans use")
    if parser.parse_args(argv).show:
        print(table(rates()))
        return
    found = measure(lambda text: print(f"measuring {text}", file=sys.stderr))
    try:
        store(found)
    except OSError as error:
        sys.exit(f"error: cannot write {path()}: {error.strerror or error}; GCONV_CALIBRATION=path names another file")
    print(table(found))
    print(f"stored in {path()}")


if __name__ == "__main__":
    main()
