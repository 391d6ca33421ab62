"""Values at the edges of what grids hold: counts in half precision, minus infinity, ties, borders that crop."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from limits import forked
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gconv
from gconv import GConv, Graph, Grid, list_operators
from gconv.lowering import images
from gconv.lowering.images import LAST
from gconv.operators import (
    adaptive_max_pool2d,
    avg_pool2d,
    avg_pool3d,
    conv2d,
    conv3d,
    conv_transpose2d,
    global_pool,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    pad,
    pixel_shuffle,
    separable,
    simple,
)
from gconv.spec import operator
from gconv.testing.case import Case, random_like


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_mean_over_many_nodes_is_their_mean(dtype):
    graph = Graph(torch.empty(2, 0, dtype=torch.int64), 70000)
    y = GConv(global_pool())(torch.ones(70000, 2, dtype=dtype), graph)
    assert float((y - 1).abs().max()) <= 2e-5


@pytest.mark.parametrize("lowering", ["native", "im2col", "dense"])
def test_minus_infinity_is_a_value(lowering):
    y = GConv(max_pool2d(2))(torch.full((1, 1, 2, 2), -torch.inf), lowering=lowering)
    assert float(y) == -math.inf
    assert float(GConv(max_pool1d(2, None, 1, 2))(torch.ones(1, 1, 1), lowering=lowering)) == -math.inf


def test_minus_infinity_on_graphs():
    edges = torch.tensor([[0], [1]])
    y = GConv(simple("max"))(torch.full((2, 1), -torch.inf), edges, lowering="dense")
    assert y.flatten().tolist() == [0.0, -math.inf]  # nothing arrives at node 0


@pytest.mark.parametrize("spec", [max_pool1d(2, 2, 1, 2), max_pool2d(2, 2, 1, 2), max_pool2d(2, 1, 1, (2, 1))], ids=str)
def test_a_window_of_padding_alone_has_no_gradient(spec):
    """torch's own kernels give it to what lies behind the row: the next channel, or memory of others."""
    x = torch.randn(2, 3, *(1, 1)[: 1 + (spec.name == "max_pool2d")], dtype=torch.float64, requires_grad=True)
    y, gradients = {}, {}
    for lowering in ("native", "dense"):
        y[lowering] = GConv(spec)(x, lowering=lowering)
        (gradients[lowering],) = torch.autograd.grad(y[lowering].sum(), x)
    assert torch.equal(y["native"], y["dense"]) and (y["dense"] == -math.inf).any()
    assert torch.equal(gradients["native"], gradients["dense"])


def test_ties_of_adaptive_max_pooling_go_to_the_first_place():
    x = torch.randint(0, 2, (2, 3, 7, 5)).float()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    GConv(adaptive_max_pool2d((3, 2)))(ours).sum().backward()
    F.adaptive_max_pool2d(theirs, (3, 2)).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_borders_that_crop():
    x = torch.arange(5.0).view(1, 1, 5)
    for mode in ("circular", "reflect", "replicate"):
        for lowering in ("native", "im2col", "dense"):
            y = GConv(pad(((-1, 2),), mode, ndim=1))(x, lowering=lowering)
            assert torch.equal(y, F.pad(x, (-1, 2), mode=mode))
    with pytest.raises(ValueError, match="leaves nothing of 2 sites"):
        GConv(pad(((-2, 4), (0, 0))))(torch.ones(1, 1, 2, 3))


def test_errors_are_of_torchs_class_too():
    for call in (
        lambda: GConv(conv2d(3, 6, 5))(torch.ones(1, 3, 2, 2)),
        lambda: GConv(conv2d(3, 6, 1))(torch.ones(1, 4, 2, 2)),
        lambda: GConv(conv2d(3, 6, 1))(torch.ones(1, 3, 2, 2).double()),
    ):
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("lowering", ["native", "im2col", "fft", "dense"])
def test_every_lowering_lays_images_out_as_torch_does(lowering, last):
    x = torch.randn(2, 3, 6, 5).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    for spec, want in ((conv2d(3, 4, 3, padding=1), F.conv2d(x, torch.ones(4, 3, 3, 3), padding=1)),):
        y = GConv(spec)(x, lowering=lowering)
        assert y.stride() == want.stride()
        y.relu_().sum().backward()
    if lowering not in ("fft",):
        assert GConv(avg_pool2d(2))(x, lowering=lowering).stride() == F.avg_pool2d(x, 2).stride()


def test_low_precision_volumes_run_in_float32():
    layer = GConv(conv3d(8, 4, (2, 1, 1), stride=2, padding="same_lower", dilation=3, groups=4, bias=False))
    x = torch.randn(8, 2, 3, 5)
    want = layer(x)
    torch.testing.assert_close(layer.bfloat16()(x.bfloat16()).float(), want, rtol=3e-2, atol=3e-2)


def test_signals_without_channels_have_a_plan():
    x = torch.zeros(2, 0, 4, 4)
    for spec in (pad(1), pixel_shuffle(2)):
        layer = GConv(spec)
        assert layer.plan(x).chosen and layer(x).shape[:2] == (2, 0), spec


@pytest.mark.parametrize("spec", [max_pool3d(2, dilation=2), avg_pool3d(2)], ids=lambda spec: spec.name)
def test_one_volume_in_any_format(spec):
    x = torch.randn(2, 5, 5, 6, dtype=torch.float64)
    layer, turned = GConv(spec), x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(turned), layer(x)) and torch.equal(layer(x), layer(x[None])[0])


class Convolutions(TorchDispatchMode):
    """Records (output channels or, transposed, input channels, stride, size of the kernel) of torch's convolutions."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.found.append((args[1].shape[1], tuple(args[3]), tuple(args[1].shape[2:])))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [(2, 2), (1, 3), (2, 1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_torch_never_runs_the_convolutions_that_corrupt_its_memory(transposed, stride, bias, layout):
    """Channels below 16 on the finer grid, a 1 x 1 kernel and a stride; the same numbers, strides and gradients."""
    torch.manual_seed(0)
    extra = tuple(s - 1 for s in stride)
    layer = (
        nn.ConvTranspose2d(4, 3, 1, stride, output_padding=extra, bias=bias)
        if transposed
        else nn.Conv2d(3, 4, 1, stride, bias=bias)
    ).double()
    x = torch.randn(2, 4 if transposed else 3, 9, 8, dtype=torch.float64).contiguous(memory_format=layout)
    with Convolutions() as ran:
        twin = gconv.convert(layer)
        y = twin(x.requires_grad_())
    assert ran.found and all(max(strides) == 1 for _, strides, _ in ran.found)
    want = layer(x)
    assert y.shape == want.shape and y.stride() == want.stride()
    g = torch.randn_like(y)
    for mine, theirs in zip((y, *torch.autograd.grad(y, [x, *twin.parameters()], g)),
                            (want, *torch.autograd.grad(want, [x, *layer.parameters()], g)), strict=True):  # fmt: skip
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("layer", [nn.Conv2d(16, 2, 1, 2), nn.ConvTranspose2d(2, 16, 1, 2), nn.Conv2d(3, 2, 1, 2, 1)])
def test_other_strided_convolutions_are_torchs(layer):
    """Negative control: 16 channels, and padding."""
    with Convolutions() as ran:
        GConv.from_torch(layer)(torch.randn(2, layer.in_channels, 8, 8), lowering="native")
    assert [(strides, size) for _, strides, size in ran.found] == [((2, 2), (1, 1))]


def test_training_a_strided_1x1_convolution_in_channels_last():
    """The sizes of a network whose training ended the process with torch's own convolution (AVX-512, oneDNN 3.12)."""

    def train():
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        layer = gconv.convert(nn.Conv2d(8, 16, 1, 2).to(memory_format=torch.channels_last))
        x = torch.randn(12, 8, 60, 60).contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(5):
            layer(x).sum().backward()
        return 0 if torch.isfinite(layer.weight.grad).all() else 1

    assert forked(train) == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dilated_convolutions_learn_in_half_precision(layout):
    """torch's weight gradients were NaN in bfloat16, channels_last and 20 channels."""
    torch.manual_seed(0)
    layer = nn.Conv2d(20, 12, 3, padding=2, dilation=2)
    x = torch.randn(2, 20, 66, 32).bfloat16().contiguous(memory_format=layout)
    twin = gconv.convert(copy.deepcopy(layer)).bfloat16()
    y, want = twin(x), layer.double()(x.double())
    g = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, [twin.weight], g)
    (right,) = torch.autograd.grad(want, [layer.weight], g.double())
    assert y.stride() == nn.functional.conv2d(x, twin.weight, dilation=2, padding=2).stride()
    torch.testing.assert_close(got.double(), right, rtol=0.02, atol=0.02 * float(right.abs().max()))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layer", [nn.Conv2d(5, 1, (4, 2)), nn.ConvTranspose2d(1, 5, 3), nn.Conv3d(4, 1, 2)])
def test_a_single_channel_in_channels_last_learns(layer, batch):
    layout = torch.channels_last if layer.weight.ndim == 4 else torch.channels_last_3d
    layer = copy.deepcopy(layer).to(memory_format=layout)
    x = torch.randn(batch, layer.in_channels, *[9] * (layer.weight.ndim - 2)).contiguous(memory_format=layout)
    twin = gconv.convert(layer)
    y, want = twin(x), layer(x)
    g = torch.randn_like(y)
    (got,), (right,) = (torch.autograd.grad(out, [m.weight], g) for out, m in ((y, twin), (want, layer)))
    assert y.stride() == want.stride()
    torch.testing.assert_close(got, right)


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (conv2d(4, 1, 3), torch.float32),
        (conv2d(4, 3, 1, stride=2), torch.float32),
        (conv_transpose2d(4, 3, 1, stride=2, output_padding=1), torch.float32),
        (conv2d(4, 3, 3, dilation=2), torch.bfloat16),
        (conv3d(4, 3, 2), torch.bfloat16),
        (separable(4, 3, 2, ndim=3), torch.bfloat16),
    ],
    ids=str,
)
def test_what_avoids_torchs_kernels_runs_in_vmap(spec, dtype):
    """Over signals and over weights."""
    torch.manual_seed(0)
    layer = GConv(spec, dtype=dtype)
    x = torch.randn(3, 2, 4, *[6] * spec.structure.ndim).to(dtype)
    weights = torch.randn(3, *layer.weight.shape).to(dtype)
    call = partial(torch.func.functional_call, layer)
    found = torch.func.vmap(layer)(x), torch.func.vmap(lambda w: call({"weight": w}, (x[0],)))(weights)
    want = [layer(one) for one in x], [call({"weight": w}, (x[0],)) for w in weights]
    for got, right in zip(found, want, strict=True):
        torch.testing.assert_close(got, torch.stack(right), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def images_after_a_norm(name, norm, layout):
    """The error of the gradient of one image through a norm and an operator, for each sample and lowering."""
    for sample in operator(name).samples():
        domain = sample.domain()
        if not isinstance(domain, Grid) or domain.ndim < 2:
            continue
        case = Case.of(sample, torch.float64, domain, batch=1)
        before = norm[domain.ndim](sample.channels).double()
        before.track_running_stats = False
        x = case.x.contiguous(memory_format=LAST[domain.ndim] if layout == "last" else torch.contiguous_format)
        for lowering in case.lowerings:
            x, between = (t.detach().requires_grad_() for t in (x, before(x)))
            y = case(before(x), lowering)
            along = random_like(y)
            (got,) = torch.autograd.grad(y, x, along)
            (step,) = torch.autograd.grad(case(between, lowering), between, along)
            (right,) = torch.autograd.grad(before(x), x, step.clone(memory_format=torch.contiguous_format))
            yield lowering, float((got - right).abs().max())


ON_GRIDS = [name for name in list_operators() if isinstance(operator(name).samples()[0].domain(), Grid)]
NORMS = {"batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}, "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}}
LAYOUTS = [("batch", "first"), ("batch", "last"), ("instance", "first")]  # torch itself is wrong for the fourth


@pytest.mark.parametrize(("norm", "layout"), LAYOUTS)
@pytest.mark.parametrize("name", ON_GRIDS)
def test_the_gradient_of_one_image_is_one_that_torchs_norms_read(name, norm, layout):
    """Their backward passes return wrong numbers for some strides."""
    assert all(error < 1e-9 for _, error in images_after_a_norm(name, NORMS[norm], layout))


@pytest.mark.parametrize("norm", NORMS)
def test_torchs_norms_do_not_read_every_gradient(norm, monkeypatch):
    """Negative control."""
    monkeypatch.setattr(images, "_with_gradient_like", lambda run, last: run)
    wrong = {lowering for lowering, error in images_after_a_norm("conv2d", NORMS[norm], "first") if error > 1e-3}
    assert "im2col" in wrong and "native" not in wrong


class AfterNorm(nn.Module):
    def __init__(self, norm, lowering):
        super().__init__()
        self.norm, self.layer, self.lowering = norm, GConv(conv2d(3, 3, 3), dtype=torch.float64), lowering

    def forward(self, x):
        return self.norm(self.layer(self.norm(x), lowering=self.lowering))


def by_func(model, x, along):
    return torch.func.grad(lambda x: (model(x) * along).sum())(x.detach())


def compiled(model, x, along):
    torch._dynamo.reset()
    return torch.autograd.grad(torch.compile(model, backend="aot_eager")(x), x, along)[0]


def traced(model, x, along):
    return torch.autograd.grad(torch.jit.trace(model, x, check_trace=False)(x), x, along)[0]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("call", [by_func, compiled, traced])
@pytest.mark.parametrize(("norm", "layout"), LAYOUTS)
@pytest.mark.parametrize("lowering", ["im2col", "dense"])
def test_torchs_norms_read_it_in_traced_and_transformed_calls(call, norm, layout, lowering):
    torch.manual_seed(0)
    before = NORMS[norm][2](3, affine=True).double()
    before.track_running_stats = False
    model = AfterNorm(before, lowering)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last if layout == "last" else torch.contiguous_format)
    x.requires_grad_()
    along = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    (want,) = torch.autograd.grad(model(x), x, along)
    torch.testing.assert_close(call(model, x, along), want)


def strides_of_one_compiled_image(name):
    """The strides of results in channels_last with gradients, and those of torch's format."""
    for sample in operator(name).samples():
        domain = sample.domain()
        if not isinstance(domain, Grid) or domain.ndim < 2:
            continue
        case = Case.of(sample, torch.float32, domain, batch=1)
        x = case.x.contiguous(memory_format=LAST[domain.ndim]).requires_grad_()
        y = torch.compile(case.layer, backend="aot_eager")(x)
        yield y.stride(), [images.format_strides(y.shape, last) for last in (False, True)]


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", ON_GRIDS)
def test_one_image_of_a_compiled_layer_has_torchs_strides(name):
    assert all(got in wanted for got, wanted in strides_of_one_compiled_image(name))


def test_torchs_norm_does_not_read_every_image(monkeypatch):
    """Negative control: an image whose first axis has another stride, and layers that return one when compiled."""
    norm, y = nn.BatchNorm2d(3).double(), torch.randn(12, 14, 3).double().permute(2, 0, 1).unsqueeze(0).requires_grad_()
    (got,) = torch.autograd.grad(norm(y), y, random_like(y))
    (want,) = torch.autograd.grad(norm(y.contiguous()), y, random_like(y))
    assert y.stride() == (3, 1, 42, 3) and (got - want).abs().max() > 0.1
    monkeypatch.setattr(images, "_with_format", lambda run, last, d, linear: run)
    assert any(got not in wanted for got, wanted in strides_of_one_compiled_image("unfold"))
