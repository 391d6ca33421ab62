"""The transforms: their lengths, and convolutions of every geometry by them against torch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.overrides import TorchFunctionMode

from gconv import GConv
from gconv.kernels import ring
from gconv.kernels.ring import Ring, Steps, W, X, Y, fast_length, gradient
from gconv.operators import conv1d, conv2d, conv3d, conv_transpose2d, depthwise
from gconv.testing import assert_close

EXACT = 1e-10


def test_fast_lengths_are_products_of_small_primes_and_at_best_multiples_of_four():
    def smooth(n):
        for prime in (2, 3, 5, 7):
            while n % prime == 0:
                n //= prime
        return n == 1

    for n in range(1, 700):
        found = fast_length(n)
        assert smooth(found) and not any(smooth(m) and m % 4 == 0 for m in range(n, found))
        if found % 4:
            rivals = [m for m in range(n, 2 * found) if smooth(m) and m % 4 == 0]
            assert found <= min(rivals, default=found + 3) * (3 / 4 if found % 2 else 8 / 9)


SPECS = {
    "plain": conv2d(3, 4, 3),
    "even kernel, one side": conv2d(3, 4, (4, 2), padding="same"),
    "stride": conv2d(3, 4, 5, stride=(2, 3), padding=2),
    "dilation": conv2d(3, 4, 3, dilation=(3, 2), padding=4),
    "wide padding": conv2d(3, 4, (1, 2), padding=5),
    "groups": conv2d(4, 6, 3, groups=2, padding=1),
    "depthwise": depthwise(5, 7, padding=3),
    "depthwise, stride and dilation": depthwise(5, 3, padding=2, stride=2, dilation=2),
    "multiplier": depthwise(3, 3, multiplier=2, padding=1),
    "circular": depthwise(3, 5, padding=2, padding_mode="circular"),
    "circular, far": depthwise(3, 3, padding=4, padding_mode="circular"),
    "circular, dense": conv2d(3, 2, 3, padding=(2, 1), stride=2, padding_mode="circular"),
    "reflect": depthwise(3, 5, padding=2, padding_mode="reflect"),
    "replicate": conv2d(3, 2, 3, padding=2, padding_mode="replicate"),
    "transposed": conv_transpose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
    "transposed, groups": conv_transpose2d(4, 6, (2, 3), stride=3, groups=2, dilation=2),
    "line": conv1d(3, 4, 4, padding=3, stride=2),
    "space": conv3d(2, 3, 3, padding=1),
    "space, each by itself": conv3d(3, 3, (3, 2, 1), groups=3, padding=1),
}


def both(spec, x, layer=None):
    """Value and gradients by the transforms, and by torch's convolutions."""
    layer = layer or GConv(spec, dtype=torch.float64)
    found = []
    for lowering in ("fft", "native"):
        y = layer(x, lowering=lowering)
        dy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        found.append((y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)))
    return zip(("value", "x", "weight", "bias"), *found, strict=True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("batch", [0, 1, 2, 3])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_geometry_is_torchs(spec, batch):
    d = spec.structure.ndim
    x = torch.randn(batch, spec.mixing.i, *(11, 8, 5)[:d], dtype=torch.float64, requires_grad=True)
    for what, got, want in both(spec, x):
        assert_close(what, got, want, EXACT)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (13, 17), (23, 4)])
@pytest.mark.parametrize("kernel", [1, 2, 15])
def test_odd_grids_and_kernels_larger_than_they(size, kernel):
    x = torch.randn(3, 4, *size, dtype=torch.float64, requires_grad=True)
    for what, got, want in both(depthwise(4, kernel, padding=7), x):
        assert_close(what, got, want, EXACT)


@pytest.mark.parametrize("name", ["depthwise", "groups", "transposed, groups", "stride", "multiplier", "space"])
def test_a_few_channels_at_a_time_are_as_good_as_all(name, monkeypatch):
    spec = SPECS[name]
    x = torch.randn(3, spec.mixing.i, *(11, 8, 5)[: spec.structure.ndim], dtype=torch.float64, requires_grad=True)
    layer = GConv(spec, dtype=torch.float64)
    whole = [got for _, got, _ in both(spec, x, layer)]
    monkeypatch.setattr(ring, "CHUNK", 1)
    monkeypatch.setattr(ring, "KERNELS", 1)
    for (what, got, _), want in zip(both(spec, x, layer), whole, strict=True):
        assert_close(what, got, want, EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("spec", [SPECS["depthwise"], SPECS["groups"]], ids=["depthwise", "groups"])
def test_channels_last_stays_so(spec, dtype):
    layer = GConv(spec, dtype=dtype)
    x = torch.randn(2, spec.mixing.i, 6, 9, dtype=dtype)
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    y = layer(last, lowering="fft")
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert_close("value", y, layer(x, lowering="fft"), 1e-6)
    (dx,) = torch.autograd.grad(y.sum(), last)
    assert dx.dtype == dtype and dx.shape == x.shape
    wide = GConv(spec).to(torch.float64)
    wide.load_state_dict(layer.state_dict())
    assert_close("rounding", y.double(), wide(x.double(), lowering="native"), 2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_complex_signals():
    spec = SPECS["groups"]
    layer = GConv(spec, dtype=torch.complex128)
    x = torch.randn(3, 4, 7, 6, dtype=torch.complex128)
    weight = layer.weight.permute(1, 3, 2, 0).flatten(0, 1).unflatten(-1, (3, 3))
    want = F.conv2d(x, weight, layer.bias, padding=1, groups=2)
    assert_close("value", torch.view_as_real(layer(x, lowering="fft")), torch.view_as_real(want), EXACT)


GEOMETRY = Ring(2, (3, 4), (2, 3), (2, 2), (2, 1), (1, 2), (1, 1), (6, 6))
SHAPES = {X: (2, 4, 3, 4), W: (2, 2, 1, 2, 2), Y: (2, 2, 2, 3)}


@pytest.mark.parametrize("slot", [X, W, Y], ids="xwy")
def test_derivatives_to_the_second_order(slot):
    one, two = (
        torch.randn(SHAPES[other], dtype=torch.float64, requires_grad=True) for other in (X, W, Y) if other != slot
    )
    assert gradient(GEOMETRY, slot, one, two).shape == SHAPES[slot]
    assert torch.autograd.gradcheck(lambda a, b: gradient(GEOMETRY, slot, a, b), (one, two), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda a, b: gradient(GEOMETRY, slot, a, b), (one, two), fast_mode=True)
    torch.library.opcheck(torch.ops.gconv.ring, (one, two, slot, GEOMETRY.flat))


def test_one_form_in_three_arguments():
    """T(x, w, y) by each of its gradients is the same number, and it is what the sum says."""
    x, w, y = (torch.randn(SHAPES[slot], dtype=torch.float64) for slot in (X, W, Y))
    numbers = [(gradient(GEOMETRY, X, w, y) * x).sum(), (gradient(GEOMETRY, W, x, y) * w).sum()]
    numbers.append((gradient(GEOMETRY, Y, x, w) * y).sum())
    padded = F.pad(x, (1, 9, 1, 9))
    want = sum(
        (padded[:, [2 * g + i], a : a + 3 : 2, 2 * c : 2 * c + 3] * w[g, i, 0, a, c] * y[:, [g]]).sum()
        for g in range(2)
        for i in range(2)
        for a in range(2)
        for c in range(2)
    )
    for number in numbers:
        assert_close("T", number, want, EXACT)


def test_compiled_equals_eager():
    layer, x = GConv(depthwise(4, 5, padding=2)), torch.randn(3, 4, 9, 7, requires_grad=True)
    compiled = torch.compile(lambda x: layer(x, lowering="fft"), fullgraph=True, backend="aot_eager")
    want, got = layer(x, lowering="fft"), compiled(x)
    assert_close("value", got, want, 1e-6)
    leaves = [x, *layer.parameters()]
    grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (got, want)]
    for a, b in zip(*grads, strict=True):
        assert_close("gradient", a, b, 1e-5)


def test_training_large_kernels_goes_by_transforms():
    for kernel in (15, 31):
        layer = GConv(depthwise(64, kernel, padding=kernel // 2))
        x = torch.zeros(8, 64, 64, 64, requires_grad=True)
        for layout in (torch.contiguous_format, torch.channels_last):
            assert layer.plan(x.to(memory_format=layout)).chosen.name == "fft"
    assert GConv(depthwise(64, 3, padding=1)).plan(x).chosen.name == "native"


def derivatives(run, theta, x, v):
    """Of run(theta, x), by the transforms of torch.func."""

    def loss(theta, x):
        return run(theta, x).square().sum()

    yield from jvp(lambda x: run(theta, x), (x,), (v,))
    yield grad(loss, 1)(theta, x)
    yield jvp(grad(lambda x: loss(theta, x)), (x,), (v,))[1]
    yield vmap(lambda x: run(theta, x[None]))(x)
    yield vmap(lambda theta: run(theta, x))({name: torch.stack([p, 2 * p]) for name, p in theta.items()})
    yield from vmap(grad(loss), (None, 0))(theta, x[:, None]).values()


@pytest.mark.parametrize("name", ["depthwise, stride and dilation", "groups", "transposed, groups", "multiplier"])
def test_transforms_of_torch_func_and_forward_mode(name):
    layer = GConv(SPECS[name], dtype=torch.float64)
    x, v = torch.randn(2, 3, layer.spec.mixing.i, 7, 6, dtype=torch.float64)
    theta = {name: p.detach() for name, p in layer.named_parameters()}

    def by(lowering):
        return lambda theta, x: functional_call(layer, theta, (x,), {"lowering": lowering})

    for got, want in zip(*(derivatives(by(n), theta, x, v) for n in ("fft", "native")), strict=True):
        assert_close("derivative", got, want, EXACT)
    with forward_ad.dual_level():
        tangents = [forward_ad.unpack_dual(by(n)(theta, forward_ad.make_dual(x, v)))[1] for n in ("fft", "native")]
    assert_close("tangent", *tangents, EXACT)
    assert (
        not by("fft")(theta, x[:0]).numel() and jvp(lambda x: by("fft")(theta, x), (x[:0],), (v[:0],))[1].shape[0] == 0
    )


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_unneeded_tensors_are_not_saved(frozen):
    layer, kept = GConv(depthwise(3, 5, padding=2, bias=False)), []
    x = torch.randn(2, 3, 6, 7, requires_grad=frozen != "x")
    layer.weight.requires_grad_(frozen != "weight")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = layer(x, lowering="fft")
    assert (x.numel() in kept) == (frozen == "x")
    leaf = layer.weight if frozen == "x" else x
    want = torch.autograd.grad(layer(x, lowering="native").square().sum(), leaf)[0]
    assert_close("gradient", torch.autograd.grad(y.square().sum(), leaf)[0], want, 1e-5)


def test_steps_fit_the_cache_and_cover_everything():
    for b, groups, i, o in ((1, 64, 1, 1), (8, 64, 1, 1), (3, 4, 1, 5), (64, 1, 64, 128), (2, 1, 1, 4096)):
        for sites in (16, 6400, 1 << 20):
            steps = Steps.of(b, groups, i, o, 4 * sites, 4)
            assert steps.thin == (b > 1 and 1 in (i, o)) and 1 <= steps.groups <= groups and 1 <= steps.outs <= o
            assert steps.signals >= b or (steps.thin and steps.outs == o)
            many = steps.groups > 16 and steps.groups * min(b, steps.signals) * max(i, o) * 4 * sites
            assert many <= ring.CHUNK


@pytest.mark.parametrize("value", [1e20, math.inf, math.nan])
def test_what_one_sample_holds_does_not_reach_another(value):
    layer = GConv(depthwise(2, 5, padding=2))
    x = torch.randn(3, 2, 9, 8)
    alone = layer(x[1:], lowering="fft")
    x[0, 1, 4, 4] = value
    y = layer(x.requires_grad_(), lowering="fft")
    torch.testing.assert_close(y[1:], alone)
    dx = torch.autograd.grad((y * y.detach()).sum(), x)[0]
    want = torch.autograd.grad((layer(x[1:], lowering="native").square() / 2).sum(), x)[0]
    torch.testing.assert_close(dx[1:], want[1:])
    with pytest.raises(AssertionError):  # the control: two samples as real and imaginary part of one signal
        spectra = torch.fft.fft2(torch.complex(x[0].detach(), x[1].detach()))
        torch.testing.assert_close(torch.fft.ifft2(spectra).imag, x[1].detach())


class Seen(TorchFunctionMode):
    """Records the kernel lengths of torch's own convolutions."""

    def __init__(self):
        super().__init__()
        self.lengths = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv1d:
            self.lengths.append(args[1].shape[-1])
        return function(*args, **(kwargs or {}))


def test_a_long_kernel_is_not_run_directly_to_learn_its_memory_format():
    """The kernel as long as the context: quadratic in torch's own convolution, which a first call must not run."""
    n = 2048
    layer, x = GConv(depthwise(2, n, padding=((n - 1, 0),), bias=False, ndim=1)), torch.randn(1, 2, n)
    with Seen() as seen:
        y = layer(x, lowering="fft")
        assert not seen.lengths and y.is_contiguous()
        assert_close("value", y, layer(x, lowering="native"), 1e-5)
    assert seen.lengths == [n]  # the control: that is where torch's kernel is seen
