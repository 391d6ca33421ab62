"""Random convolutions at sizes where torch's kernels are other ones than on small grids, against torch in float64.

They run in a process of their own, in which new memory is filled with a pattern: kernels that read or write out of
bounds end it, or give wrong numbers.
"""

import copy
import ctypes
import random
from functools import partial

import pytest
import torch
from conftest import SEED
from limits import forked
from torch import nn

import gconv
from gconv.lowering import native

LAYERS = {
    False: {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d},
    True: {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d},
}
SIDES = {1: (60, 3000), 2: (20, 100), 3: (14, 22)}
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
TOL = {torch.float32: 3e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
M_PERTURB = -6  # of mallopt


def drawn(r):
    """A layer, a signal, and a line that describes them."""
    d, transposed, groups = r.choice((1, 2, 2, 2, 3)), r.random() < 0.3, r.choice((1, 1, 1, 2, 4))
    i, o = (groups * r.randint(1, 20) for _ in range(2))
    kernel = [r.choice((1, 1, 2, 3, 3, 4, 5)) for _ in range(d)]
    if r.random() < 0.5:
        kernel = kernel[:1] * d
    stride, dilation = [r.choice((1, 1, 2, 3)) for _ in range(d)], [r.choice((1, 1, 1, 2, 3)) for _ in range(d)]
    padding = [r.choice((0, n * (k - 1) // 2)) for n, k in zip(dilation, kernel, strict=True)]
    size = [r.randint(*SIDES[d]) for _ in range(d)]
    last = d > 1 and r.random() < 0.6
    dtype = r.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": False}
    layer = LAYERS[transposed][d](i, o, kernel, **options)
    x = torch.randn(r.randint(1, 4), i, *size)
    if last:
        x, layer = x.contiguous(memory_format=FORMATS[d]), layer.to(memory_format=FORMATS[d])
    return layer, x.to(dtype), f"{layer} of {tuple(x.shape)}, {dtype}{', channels_last' * last}"


def found(layer, x, dy):
    x = x.detach().requires_grad_()
    y = layer(x)
    return (y.detach(), *torch.autograd.grad(y, [x, layer.weight], dy))


def run(seed, count, path):
    """0 if all are equal; otherwise the last line of the file is the one that is not."""
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(M_PERTURB, 165)
    r = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(count):
        layer, x, told = drawn(r)
        path.write_text(told)
        layer.to(x.dtype)
        wide = copy.deepcopy(layer).double()
        dy = torch.randn(wide(x.double()).shape).to(x.dtype)
        want = found(wide, x.double(), dy.double())
        for got, right in zip(found(gconv.convert(layer), x, dy), want, strict=True):
            if not float((got.double() - right).abs().max()) <= TOL[x.dtype] * float(right.abs().max()):
                return 1
    return 0


@pytest.mark.parametrize(
    ("start", "count"), [(0, 12), *(pytest.param(n, 50, marks=pytest.mark.slow) for n in range(1, 7))]
)
def test_converted_convolutions_are_torchs_in_float64(start, count, tmp_path):
    path = tmp_path / "case"
    assert forked(partial(run, 1000 * SEED + start, count, path)) == 0, path.read_text()


def test_a_wrong_convolution_is_found(tmp_path, monkeypatch):
    """Negative control: a weight's gradient that is uninitialised memory."""
    for d, right in native.CONV.items():
        monkeypatch.setitem(native.CONV, d, lambda x, w, *rest, right=right: right(x, Unwritten.apply(w), *rest))
    path = tmp_path / "case"
    assert forked(partial(run, SEED, 20, path)) == 1 and "Conv" in path.read_text()


class Unwritten(torch.autograd.Function):
    """The identity, without its gradient."""

    @staticmethod
    def forward(ctx, w):
        return w.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.empty_like(g)
