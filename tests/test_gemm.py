"""The matrix product that mixes channels is X W in every type, layout and shape, whichever way it takes."""

import pytest
import torch

from gconv import GConv
from gconv.kernels import gemm, matmul
from gconv.operators import cheb
from gconv.operators.shapes import ring
from gconv.testing import assert_close


@pytest.fixture(params=[True, False], ids=["widened", "plain"])
def way(request, monkeypatch):
    monkeypatch.setattr(gemm, "widens", lambda: request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (2, 4, 5, 3), (0, 3), (2, 0, 3)])
def test_it_is_the_product(way, dtype, shape):
    x = torch.randn(shape).to(dtype).requires_grad_()
    W = torch.randn(3, 4).to(dtype).requires_grad_()
    for signal, weight in ((x, W), (x.mT.contiguous().mT, W.t().contiguous().t())):
        y, want = matmul(signal, weight), signal.double() @ weight.double()
        assert y.dtype == dtype and y.shape == want.shape
        tol = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
        grads = [torch.autograd.grad(v.double().square().sum(), (x, W), retain_graph=True) for v in (y, want)]
        if y.numel():
            assert_close("value", y.double(), want, tol)
            for got, right in zip(*grads, strict=True):
                assert got.dtype == dtype
                assert_close("gradient", got.double(), right.double(), 4 * tol)


def test_twice_differentiable(way):
    x = torch.randn(5, 3).bfloat16().requires_grad_()
    W = torch.randn(3, 4).bfloat16().requires_grad_()
    (dx,) = torch.autograd.grad(matmul(x, W).square().sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(dx.sum(), W)
    assert twice.shape == W.shape and twice.isfinite().all()


def test_a_rounded_product_is_as_exact_as_the_plain_one(way):
    x, W = torch.randn(40, 300).bfloat16(), torch.randn(300, 8).bfloat16()
    want = x.double() @ W.double()
    assert (matmul(x, W).double() - want).abs().max() <= want.abs().max() * 2**-8


def test_layers_in_bfloat16_compile(way):
    layer, graph, x = GConv(cheb(4, 3, k=3)).bfloat16(), ring(), torch.randn(7, 4).bfloat16()
    want = layer(x, graph)
    got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, graph)
    assert_close("compiled", got.float(), want.float(), 2e-2)
