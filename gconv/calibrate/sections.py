"""Measurements of dense and sparse products, memory bandwidth, pooling, transforms, and steps of a lowering.

Each section is a generator that yields the steps to time, receives the seconds of each, and returns throughputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.domains import Graph
from gconv.kernels import CSR, matmul, sddmm, segment_max, spmm
from gconv.module import GConv
from gconv.operators import cheb, conv2d
from gconv.rates import TABLES, Curve

Steps = dict[str, Callable[[], object]]
Section = Generator[Steps, dict[str, float], dict[str, Curve]]  # steps -> seconds -> curves
SMALL = 1e-6  # seconds, a lower bound for differences of measured times
NEVER = 1e14  # a throughput so high that the work takes no time


def path_graph() -> Graph:
    """Four nodes in a row."""
    return Graph(torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]), 4)


def steps_of(name: str, run: Callable[[Tensor, Tensor], Tensor], x: Tensor, W: Tensor) -> Steps:
    """Three steps: forward, with the gradient in W, and with the gradients in x and W."""
    x, W = x.detach(), W.detach().requires_grad_()
    both = x.clone(memory_format=torch.preserve_format).requires_grad_()
    dy = torch.ones_like(run(x, W)).detach()

    def gradient(x: Tensor, leaves: tuple[Tensor, ...]) -> object:
        with torch.enable_grad():
            return torch.autograd.grad(run(x, W), leaves, dy)

    return {
        name: lambda: run(x, W),
        f"{name} weight": lambda: gradient(x, (W,)),
        f"{name} back": lambda: gradient(both, (both, W)),
    }


def _widened(X: Tensor, W: Tensor) -> Tensor:
    return (X.float() @ W.float()).to(X.dtype)


def gemm(kind: str) -> Section:
    """Matrix products X W, by the columns of W, and the additional time of a short inner dimension."""
    dtype, steps = getattr(torch, kind), Steps()
    if kind == "bfloat16":
        x, sizes = torch.randn(512, 256).to(dtype), (1, 4, 16, 64, 256)
        for w in sizes:
            X, W = x[:, :w].contiguous(), x[:w, :w].contiguous()
            steps[f"{w}"] = partial(torch.mm, X, W)
            steps[f"{w} widened"] = partial(_widened, X, W)
        took = yield steps
        work = {w: 2.0 * 512 * w * w for w in sizes}
        names = (("gemm bfloat16", ""), ("gemm widened", " widened"))
        return {name: tuple((float(w), work[w] / took[f"{w}{end}"]) for w in sizes) for name, end in names}
    rows, wide = 4096, 64
    outers, inners = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 256), (1, 2, 4, 8, 16)
    for i, o in [(wide, o) for o in outers] + [(i, wide) for i in inners]:
        X, W = torch.randn(rows, i, dtype=dtype), torch.randn(i, o, dtype=dtype)
        steps[f"{i} {o}"] = partial(matmul, X, W)
    took = yield steps
    each = {name: took[name] / (2.0 * rows * math.prod(map(int, name.split()))) for name in steps}
    least = each[f"{wide} {wide}"]
    inner = [(float(i), 1 / max(each[f"{i} {wide}"] - least, 1 / NEVER)) for i in inners]
    return {
        f"gemm {kind}": tuple((float(o), 1 / each[f"{wide} {o}"]) for o in outers),
        f"gemm {kind} inner": (*inner, (float(wide), NEVER)),
    }


def gather(place: str) -> Section:
    """Sparse products with eight random entries per row, by the bytes of a row of x; and sampled products."""
    entries, widths = 1 << 16, (1, 8, 32, 128)
    row, steps, bytes_ = torch.arange(entries) // 8, Steps(), dict[int, float]()
    for width in widths:
        n = max(1, int(TABLES[place]) // (4 * width))
        few = slice(min(entries, (1 << 22) // width))
        csr = CSR.build(row[few], torch.randint(n, (entries,))[few], int(row[few][-1]) + 1, n)
        x, values, dy = torch.ones(n, width), torch.ones(len(csr.col)), torch.ones(csr.shape[0], width)
        steps[f"{width}"] = partial(spmm, csr, values, x)
        steps[f"{width} sampled"] = partial(sddmm, csr, dy, x)
        bytes_[width] = 4.0 * width * len(csr.col)
    took = yield steps
    curves = {f"gather {place}": tuple((4.0 * w, bytes_[w] / took[f"{w}"]) for w in widths)}
    sampled = tuple((4.0 * w, bytes_[w] / took[f"{w} sampled"]) for w in widths)
    return curves | ({"sampled": sampled} if place == "middle" else {})


def stream() -> Section:
    """x + 1 into new memory, by its bytes, without the overhead of the call."""
    sizes = (2**14, 2**18, 2**22, 2**24, 2**26)
    given = {size: torch.zeros(size // 4) for size in (4, *sizes)}
    took = yield {f"{size}": partial(torch.add, x, 1) for size, x in given.items()}
    return {"stream": tuple((float(s), 2 * s / max(took[f"{s}"] - took["4"], 0.2 * took[f"{s}"])) for s in sizes)}


def _pool_gradient(pool: Callable[..., Tensor], x: Tensor, k: int) -> object:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = pool(x, k, 1)
        return torch.autograd.grad(y, x, y.detach())


def _largest(name: str, csr: CSR, values: Tensor, x: Tensor) -> Steps:
    """The maximum over entries, forward and with the gradient."""
    given = x.detach().requires_grad_()

    def both() -> object:
        with torch.enable_grad():
            y = segment_max(csr, values, given)
            return torch.autograd.grad(y, given, y.detach())

    return {name: partial(segment_max, csr, values, x), f"{name} back": both}


def rest() -> Section:
    """Everything else: transforms, maxima, changes of layout, pooling, and single steps."""
    at = torch.arange(4096)
    csr = CSR.build(at.repeat(8), torch.randint(4096, (8 * 4096,)), 4096, 4096)
    values, x, image = torch.ones(8 * 4096), torch.randn(4096, 32), torch.randn(2, 16, 24, 24)
    turns, wide = [torch.randn(256 // crowd, crowd, 1024) for crowd in (8, 16, 32)], torch.randn(8, 32, 38, 38)
    steps: Steps = {
        "fft": lambda: torch.fft.irfft2(torch.fft.rfft2(wide), s=(38, 38)),
    }
    for width in (1, 8, 32):
        steps |= _largest(f"scatter {width}", csr, values, x[:, :width].contiguous())
    work = {"fft": 2 * 2.5 * 10.5 * wide.numel()}
    steps |= {f"turn {rows.shape[1]}": rows.mT.contiguous for rows in turns}
    pools: dict[str, Callable[..., Tensor]]
    pools, windows = {"max": F.max_pool2d, "sum": F.avg_pool2d}, (2, 5)
    pools |= {"max volume": F.max_pool3d, "sum volume": F.avg_pool3d}
    block = torch.randn(2, 16, 10, 10, 10)
    for name, pool in pools.items():
        given = block if "volume" in name else image
        steps |= {f"{name} {k}": partial(pool, given, k, 1) for k in windows}
        steps |= {f"{name} back {k}": partial(_pool_gradient, pool, given, k) for k in windows}
    mixed = {(1, 4): 64, (8, 4): 8, (64, 4): 1, (64, 32): 1}  # channels and signals: groups
    for (width, many), groups in mixed.items():
        signal = torch.randn(many, groups, width, 16, 9, dtype=torch.complex64)
        kernel = torch.randn(groups, width, width, 16, 9, dtype=torch.complex64)
        steps[f"mix {width * many}"] = partial(torch.einsum, "...gixy,gioxy->...goxy", signal, kernel)
    for c in (1, 8, 32):
        steps[f"heads {c}"] = partial(torch.bmm, torch.randn(4, 1024, 32), torch.randn(4, 32, c))
    taps, one, signal = GConv(conv2d(2, 2, 9)), GConv(conv2d(2, 2, 1)), torch.randn(1, 2, 9, 9)
    steps |= {f"taps {k}": partial(layer, signal, lowering="im2col") for k, layer in ((81, taps), (1, one))}
    layers, graph = {terms: GConv(cheb(2, 2, k=terms, bias=False)) for terms in (2, 10)}, path_graph()
    steps |= {f"terms {k}": partial(layer, x[:4, :2].contiguous(), graph) for k, layer in layers.items()}
    took = yield steps
    found: dict[str, Curve] = {kind: ((1.0, work[kind] / took[kind]),) for kind in work}
    found["turn"] = tuple((float(t.shape[1]), 4.0 * t.numel() / took[f"turn {t.shape[1]}"]) for t in turns)
    for name in pools:
        d = 3 if "volume" in name else 2
        outs = {k: 32.0 * (11 - k) ** 3 if d == 3 else 32.0 * (25 - k) ** 2 for k in windows}
        found[f"pool {name}"] = tuple((float(k**d), outs[k] / took[f"{name} {k}"]) for k in windows)
        back = {k: max(took[f"{name} back {k}"] - took[f"{name} {k}"], SMALL) for k in windows}
        found[f"pool {name} back"] = tuple((float(k**d), outs[k] / back[k]) for k in windows)
    mixing = {w * b: 8.0 * b * groups * w * w * 16 * 9 for (w, b), groups in mixed.items()}
    found["mix"] = tuple((float(size), flops / took[f"mix {size}"]) for size, flops in mixing.items())
    found["slice"] = ((1.0, 80 / max(took["taps 81"] - took["taps 1"], SMALL)),)
    bytes_ = {width: 4.0 * width * len(csr.col) for width in (1, 8, 32)}
    found["scatter"] = tuple((4.0 * w, size / took[f"scatter {w}"]) for w, size in bytes_.items())
    back = {w: max(took[f"scatter {w} back"] - took[f"scatter {w}"], SMALL) for w in bytes_}
    found["scatter back"] = tuple((4.0 * w, size / back[w]) for w, size in bytes_.items())
    for c in (1, 8, 32):
        found["gemm heads"] = (*found.get("gemm heads", ()), (float(c), 2.0 * 4 * 1024 * 32 * c / took[f"heads {c}"]))
    return found | {"call": ((1.0, 8 / max(took["terms 10"] - took["terms 2"], SMALL)),)}
