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


@pytest.mark.parametrize("shape", [(2000, 17), (4, 500, 17)])
@pytest.mark.parametrize("o", [1, 3, 8, 9, 15, 16])
def test_to_few_channels(shape, o):
    x, W, tol = torch.randn(shape, requires_grad=True), torch.randn(17, o, requires_grad=True), 1e-5
    for signal, weight in ((x, W), (x.mT.contiguous().mT, W.t().contiguous().t())):
        assert gemm.few(signal, weight) == (o < 16), "the way is not the one that is tested"
        y, want = matmul(signal, weight), signal @ weight
        assert_close("value", y, want, tol)
        dy = torch.randn_like(y)
        grads = [torch.autograd.grad(v, (x, W), dy, create_graph=True) for v in (y, want)]
        for got, right in zip(*grads, strict=True):
            assert_close("gradient", got, right, tol)
        twice = [torch.autograd.grad(g[0].square().sum() + g[1].square().sum(), (x, W)) for g in grads]
        for got, right in zip(*twice, strict=True):
            assert_close("second derivative", got, right, 10 * tol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("o", [1, 2, 3, 7, 15, 16, 17])
@pytest.mark.parametrize("n", [0, 5, 2000])
def test_products_of_which_nothing_is_recorded(n, o, dtype):
    tol = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    x, W, dy = (torch.randn(shape, dtype=dtype) for shape in ((n, 17), (17, o), (n, o)))
    for signal, weight in ((x, W), (x.mT.contiguous().mT, W.t().contiguous().t())):
        assert_close("mm_padded", gemm.mm_padded(signal, weight), signal @ weight, tol)
        assert_close("xt_y", gemm.xt_y(signal, dy), signal.mT @ dy, tol)
        out = torch.full((17, o), torch.nan, dtype=dtype)
        assert_close("in its place", gemm.xt_y(signal, dy, out), signal.mT @ dy, tol)
        assert_close("what it was put into", out, signal.mT @ dy, tol)


def test_few_channels_under_transforms_autocast_and_a_compiler():
    x, W = torch.randn(3, 2000, 17), torch.randn(17, 3)
    assert gemm.few(x, W)
    want = x @ W
    assert_close("vmap", torch.func.vmap(lambda one: matmul(one, W))(x), want, 1e-5)
    pull = torch.func.grad(lambda w: matmul(x, w).square().sum())(W)
    assert_close("func.grad", pull, 2 * torch.einsum("bni,bno->io", x, want), 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert matmul(x, W).dtype == torch.bfloat16
    assert_close("compiled", torch.compile(matmul, fullgraph=True, backend="aot_eager")(x, W), want, 1e-5)
    assert not gemm.few(x.bfloat16(), W.bfloat16()) and not gemm.few(x, W.double())
