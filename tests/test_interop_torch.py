"""Every torch.nn layer that gconv converts, against itself: values and all gradients; and whole torch models."""

import copy
import io
import pickle
import warnings

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from shared import Dispatched
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm
from torch.utils.flop_counter import FlopCounterMode

import gconv
from gconv import GConv, Grid, NotLinear, OutsideFamily
from gconv.interop import as_linear_map, convert, preview, restore
from gconv.interop.converted import NAMES, Converted
from gconv.lowering import images as images_lowering

F64 = torch.float64
SHAPES = {1: (9,), 2: (7, 6), 3: (4, 5, 6)}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def images(d, c, batch=2):
    torch.manual_seed(1)
    return torch.randn(*((batch,) if batch else ()), c, *SHAPES[d], dtype=F64)


def compare(layer, x, *args):
    """Value and every gradient of a layer and of its converted copy, which must not fall back to torch."""
    layer = layer.double()
    twin = convert(layer)
    assert isinstance(twin, Converted) and type(twin).__name__ == type(layer).__name__, str(twin.report())
    results = []
    for module in (layer, twin):
        leaf = x.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
            y = module(leaf, *args) if module is layer else twin.peer.call(twin, leaf, *args)
        assert y is not None, "the call went to torch"
        probe = torch.sin(torch.arange(y.numel(), dtype=F64) + 1).reshape(y.shape)
        results.append([y, *torch.autograd.grad((y * probe).sum(), [leaf, *module.parameters()])])
    for ours, theirs in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    return twin


DIMENSIONS = pytest.mark.parametrize("d", [1, 2, 3])


@DIMENSIONS
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_convolutions(d, mode):
    compare(CONV[d](4, 6, 3, stride=2, padding=1, groups=2, padding_mode=mode), images(d, 4))
    compare(CONV[d](2, 3, 2, padding="same", dilation=2, bias=False, padding_mode=mode), images(d, 2, batch=0))


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
def test_convolutions_with_random_arguments(data):
    draw = data.draw
    d, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(d))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(d))
    dilation = draw(st.integers(1, 2))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    bias, batch = draw(st.booleans()), draw(st.integers(0, 2))
    if draw(st.booleans()):
        layer = CONV[d](2 * groups, groups, kernel, stride, padding, dilation, groups, bias)
    else:
        padding = tuple(min(p, k - 1) for p, k in zip(padding, kernel, strict=True))
        extra = tuple(draw(st.integers(0, max(s, dilation) - 1)) for s in stride)
        layer = TRANSPOSED[d](2 * groups, groups, kernel, stride, padding, extra, groups, bias, dilation)
    compare(layer, images(d, 2 * groups, batch))


@DIMENSIONS
def test_transposed_convolutions(d):
    layer = TRANSPOSED[d](4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    compare(layer, images(d, 4))
    compare(layer, images(d, 4), tuple(2 * n - 1 for n in SHAPES[d]))
    compare(TRANSPOSED[d](2, 3, 2, dilation=2, bias=False), images(d, 2, batch=0))


@DIMENSIONS
def test_pooling(d):
    avg, largest = getattr(nn, f"AvgPool{d}d"), getattr(nn, f"MaxPool{d}d")
    for layer in (
        avg(2),
        avg(3, 2, 1, ceil_mode=True, count_include_pad=False),
        avg(3, 2, 1, ceil_mode=True),
        largest(3, 2, 1, ceil_mode=True),
        largest(2, 1, dilation=2),
        getattr(nn, f"AdaptiveAvgPool{d}d")(3),
        getattr(nn, f"AdaptiveAvgPool{d}d")(1),
        getattr(nn, f"AdaptiveMaxPool{d}d")(2),
    ):
        compare(layer, images(d, 2))
        compare(layer, images(d, 2, batch=0))
    if d > 1:
        compare(avg(2, divisor_override=3), images(d, 2))
        compare(getattr(nn, f"AdaptiveAvgPool{d}d")((None, *(2,) * (d - 1))), images(d, 2))


@DIMENSIONS
def test_padding(d):
    sides = tuple(range(1, 2 * d + 1)) if d == 1 else (1, 2, 0, 1, 2, 1)[: 2 * d]
    for kind in ("Zero", "Reflection", "Replication", "Circular"):
        compare(getattr(nn, f"{kind}Pad{d}d")(sides), images(d, 2))
        compare(getattr(nn, f"{kind}Pad{d}d")(1), images(d, 2, batch=0))
    compare(getattr(nn, f"ConstantPad{d}d")(sides, 0.0), images(d, 2))
    compare(getattr(nn, f"ZeroPad{d}d")((-1, 2, *(0,) * (2 * d - 2))), images(d, 2))


def test_upsampling():
    for d, mode in ((1, "linear"), (2, "bilinear"), (3, "trilinear"), (2, "bicubic")):
        compare(nn.Upsample(scale_factor=1.7, mode=mode, align_corners=True), images(d, 2))
        compare(nn.Upsample(size=(5,) * d, mode=mode), images(d, 2))
        compare(nn.Upsample(scale_factor=1.7, mode=mode, recompute_scale_factor=True), images(d, 2))
    for d in (1, 2, 3):
        compare(nn.Upsample(scale_factor=2), images(d, 2))
    compare(nn.UpsamplingNearest2d(scale_factor=(2, 3)), images(2, 2))
    compare(nn.UpsamplingBilinear2d(size=(9, 4)), images(2, 2))


def test_rearranging():
    compare(nn.Unfold((3, 2), dilation=(1, 2), padding=1, stride=2), images(2, 3))
    compare(nn.Unfold(2), images(2, 3, batch=0))
    compare(nn.Fold((5, 6), (3, 2), padding=(1, 0), stride=2), torch.randn(2, 12, 9, dtype=F64))
    compare(nn.PixelShuffle(2), images(2, 8))
    compare(nn.PixelShuffle(3), images(2, 18, batch=0))
    compare(nn.PixelUnshuffle(2), torch.randn(2, 3, 2, 4, 6, dtype=F64))


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 1, 3, 5)])
def test_linear(shape):
    compare(nn.Linear(5, 3), torch.randn(shape, dtype=F64))
    compare(nn.Linear(5, 1, bias=False), torch.randn(shape, dtype=F64))


def test_a_linear_layer_is_a_matrix_product_that_copies_nothing():
    """torch's 1-D convolution takes channels first, so it would turn the signal around, and back."""
    layer, x = convert(nn.Linear(6, 4)), torch.randn(50, 6, requires_grad=True)
    with Dispatched() as seen:
        layer(x).sum().backward()
    assert "addmm" in seen.names and not {"convolution", "copy_", "clone"} & seen.names
    with Dispatched() as seen:  # the control: three taps are no matrix product
        convert(nn.Conv1d(6, 4, 3))(x.t())
    assert "convolution" in seen.names


def test_a_wrongly_copied_weight_is_detected(monkeypatch):
    """Negative control: input and output channels swapped, and a bias that is lost."""
    peer = gconv.interop.torch_nn.CONV

    def swapped(*arguments):
        W = peer.weights(*arguments)
        return W | {"weight": W["weight"].mT}

    for weights in (swapped, lambda *arguments: {**peer.weights(*arguments), "bias": None}):
        twin = convert(nn.Conv2d(3, 3, 3))
        monkeypatch.setattr(type(twin), "peer", gconv.interop.peer.Peer(peer.spec, weights, peer.call))
        with pytest.raises(AssertionError):
            x = torch.randn(1, 3, 5, 5)
            torch.testing.assert_close(twin(x), restore(twin)(x), rtol=1e-10, atol=1e-10)
        monkeypatch.undo()


# -- what is left alone --------------------------------------------------------------------------------------------


class Own(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


class Small(nn.Conv2d):
    def __init__(self, i, o):
        super().__init__(i, o, 3, padding=1)


def reason(layer):
    (entry,) = convert(layer).report()
    assert not entry.converted
    return entry.notes[0]


def test_layers_that_are_not_converted_have_a_reason():
    assert "return_indices" in reason(nn.MaxPool2d(2, return_indices=True))
    assert "pads with 1.5" in reason(nn.ConstantPad2d(1, 1.5))
    assert "run the model once" in reason(nn.LazyConv2d(3, 3))
    assert "code of its own (forward)" in reason(Own(2, 3, 3))
    assert "activation" in reason(nn.GELU())
    assert "product of two inputs" in reason(nn.Bilinear(2, 3, 4))
    assert "only known at the call" in reason(nn.ChannelShuffle(2))
    assert "attention" in reason(nn.MultiheadAttention(4, 2))
    assert "power mean" in reason(nn.LPPool2d(2, 2))
    assert "windows are random" in reason(nn.FractionalMaxPool2d(2, 1))
    assert "second input" in reason(nn.MaxUnpool2d(2))
    assert "not a layer that gconv supports" in reason(nn.CosineSimilarity())
    patched = nn.Conv2d(2, 3, 3)
    patched.forward = lambda input: input
    assert "forward was replaced on the instance" in reason(patched)


def test_a_subclass_that_only_names_its_arguments_is_converted():
    compare(Small(2, 3), images(2, 2))


def test_calls_that_are_not_covered_go_to_torch():
    pool = convert(nn.MaxPool2d(2))
    whole = torch.arange(16).reshape(1, 4, 4)
    assert torch.equal(pool(whole), nn.MaxPool2d(2)(whole))
    empty = torch.empty(0, 3, 5, 5)
    assert convert(nn.Conv2d(3, 2, 3))(empty).shape == (0, 2, 3, 3)
    with pytest.raises(RuntimeError):
        convert(nn.Conv2d(3, 2, 3))(torch.zeros(5, 5))


def test_convert_takes_modules():
    with pytest.raises(TypeError, match="convert takes a torch module, but a list was given"):
        convert([nn.Conv2d(2, 3, 3)])


# -- whole models --------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """A layer that is used twice, and one that two names share."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.again = self.middle
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2))

    def forward(self, x):
        x = self.norm(self.first(x).relu())
        return self.head(self.again(self.middle(input=x)).relu())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Twice().double().eval()


def same(model, twin, x):
    torch.testing.assert_close(twin(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_model(model):
    x = images(2, 3)
    state = torch.get_rng_state()
    twin = convert(model)
    assert torch.equal(state, torch.get_rng_state())
    assert type(twin) is Twice and not any(isinstance(m, Converted) for m in model.modules())
    assert twin.again is twin.middle and not twin.training
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    assert len({id(m.gconv) for m in twin.modules() if isinstance(m, Converted)}) == 4
    assert [name for name, _ in twin.named_modules()] == [name for name, _ in model.named_modules()]
    same(model, twin, x)
    same(model, twin, x.contiguous(memory_format=torch.channels_last))
    for each in (model, twin):
        each(x).square().sum().backward()
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)


def test_the_report_of_a_model(model):
    report = convert(model).report()
    assert [entry.path for entry in report.converted] == ["first", "middle", "again", "head.0", "head.3"]
    assert repr(report["middle"].spec) == "conv2d(4, 4, 3, padding=1, groups=4)"
    assert report["again"].notes[0] == "the layer at 'middle' again"
    assert report["norm"].notes == ("normalises by statistics of a batch",)
    assert {entry.path for entry in report.left_alone} == {"norm", "head.1", "head.2"}
    assert str(report).startswith("5 of 8 layers run through gconv.\nfirst: Conv2d -> conv2d(3, 4, 3, padding=1)")
    with pytest.raises(KeyError, match="no layer at 'nowhere'"):
        report["nowhere"]


def test_copies_and_saved_states(model):
    x, twin = images(2, 3), convert(model)
    same(model, copy.deepcopy(twin), x)
    same(model, pickle.loads(pickle.dumps(twin)), x)
    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    same(model, loaded, x)
    assert len(loaded.report()) == 8 and isinstance(loaded.first, Converted)
    fresh = convert(Twice().double().eval())
    fresh.load_state_dict(model.state_dict())
    same(model, fresh, x)
    model.load_state_dict(twin.state_dict())
    again = convert(twin)
    same(model, again, x)
    assert again.report().entries == twin.report().entries
    back = restore(twin)
    assert not any(isinstance(m, Converted) or "gconv" in vars(m) for m in back.modules())
    same(model, back, x)


def test_modes_dtypes_and_flags(model):
    model.first.weight.requires_grad_(False)
    twin = convert(model.train())
    assert twin.training and not twin.first.weight.requires_grad and twin.first.bias.requires_grad
    twin.eval().float()
    torch.testing.assert_close(twin(images(2, 3).float()), model.float().eval()(images(2, 3).float()))
    last = twin.to(memory_format=torch.channels_last)
    x = images(2, 3).float().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x), model(x))


def test_training_is_unchanged(model):
    """The same optimiser on both takes the same steps, as parameters are the same ones."""
    x, twin = images(2, 3), convert(model)
    for each in (model, twin):
        steps = torch.optim.Adam(each.parameters(), 1e-2)
        for _ in range(5):
            steps.zero_grad()
            each(x).square().sum().backward()
            steps.step()
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_it_compiles(model):
    twin = convert(model)
    x = images(2, 3)
    torch.testing.assert_close(torch.compile(twin, fullgraph=True, backend="eager")(x), twin(x))


def test_an_argument_that_is_changed_after_compilation_is_used():
    torch._dynamo.reset()
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    twin = convert(layer)
    run = torch.compile(twin, fullgraph=True, backend="eager")
    before = run(x)
    torch.testing.assert_close(before, layer(x))
    layer.stride = twin.stride = (2, 2)
    torch.testing.assert_close(run(x), layer(x))
    assert layer(x).shape != before.shape


def test_a_layer_alone():
    layer = nn.Conv2d(3, 4, 3)
    twin = convert(layer)
    assert type(twin).__name__ == "Conv2d" and twin.spec == gconv.operators.conv2d(3, 4, 3)
    assert repr(twin) == repr(layer) and twin.report()[""].converted
    assert twin.at(Grid((5, 5))).shape == (36, 75) and "native" in str(twin.plan(torch.zeros(1, 3, 5, 5)))
    with pytest.raises(TypeError, match="call that layer"):
        twin.gconv(torch.zeros(1, 3, 5, 5))


def test_a_model_with_an_attribute_named_report():
    class Reporting(nn.Sequential):
        def report(self):
            return "mine"

    twin = convert(Reporting(nn.Conv1d(1, 1, 1)))
    assert twin.report() == "mine" and isinstance(twin[0], Converted)
    holder = nn.Sequential(nn.Conv1d(1, 1, 1))
    holder.report = "mine"
    assert convert(holder).report == "mine" and preview(holder)["0"].converted
    assert not isinstance(holder[0], Converted)


# -- what torch hangs onto layers ----------------------------------------------------------------------------------


def test_hooks():
    layer, seen = nn.Conv2d(2, 3, 3).double(), []
    layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    layer.register_forward_hook(lambda m, args, out: seen.append(type(m).__name__) or out + 1)
    layer.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append("backward"))
    x = images(2, 2).requires_grad_()
    twin = convert(layer)
    torch.testing.assert_close(twin(x), layer(x), rtol=1e-12, atol=1e-12)
    twin(x).sum().backward()
    assert seen == ["Conv2d", "Conv2d", "Conv2d", "backward"]


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrizations(norm):
    layer = norm(nn.Conv2d(2, 3, 3).double()).eval()
    x = images(2, 2)
    twin = compare(layer, x)
    torch.testing.assert_close(copy.deepcopy(twin)(x), layer(x))
    parametrize.remove_parametrizations(twin, "weight")
    assert isinstance(twin, Converted)
    torch.testing.assert_close(twin(x), layer(x))
    after = norm(convert(nn.Conv2d(2, 3, 3).double())).eval()  # put onto a converted layer
    assert isinstance(convert(after), Converted)
    torch.testing.assert_close(after(x), restore(after)(x))


def test_spectral_norm_in_training_takes_one_step_a_call():
    layer = parametrizations.spectral_norm(nn.Linear(4, 4).double())
    twin = convert(layer)
    x = torch.randn(3, 4, dtype=F64)
    for _ in range(3):
        torch.testing.assert_close(twin(x), layer(x))


def test_hooks_that_compute_weights():
    """Pruning and the old weight_norm write the weight before each call."""
    x = images(2, 2)
    pruned = prune.random_unstructured(nn.Conv2d(2, 3, 3).double(), "weight", 0.5)
    twin = convert(pruned)
    torch.testing.assert_close(twin(x), pruned(x))
    twin(x).sum().backward()
    assert twin.weight_orig.grad is not None and bool((twin.weight_orig.grad[twin.weight_mask == 0] == 0).all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = weight_norm(nn.Conv1d(2, 3, 3).double())
    torch.testing.assert_close(convert(old)(images(1, 2)), old(images(1, 2)))


def test_later_changes_of_arguments_take_effect():
    layer = convert(nn.Conv2d(2, 3, 3).double())
    plain = restore(layer)
    for each in (layer, plain):
        each.padding, each.stride = (1, 1), (2, 2)
        each.bias = None
    x = images(2, 2)
    torch.testing.assert_close(layer(x), plain(x))
    assert layer.spec == gconv.operators.conv2d(2, 3, 3, stride=2, padding=1, bias=False)
    pool = convert(nn.MaxPool2d(2))
    pool.return_indices = True
    assert len(pool(x)) == 2
    with pytest.raises(OutsideFamily, match="changed since it was converted"):
        _ = pool.spec
    assert not convert(pool).report()[""].converted
    pool.return_indices = False
    assert pool.spec.name == "max_pool2d" and convert(pool).report()[""].converted


# -- linear maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (nn.Conv2d(3, 4, 3, padding=1, groups=1), (4, 5), 3),
        (nn.ConvTranspose1d(4, 2, 3, stride=2, groups=2), (5,), 4),
        (nn.AvgPool2d(2), (4, 6), 2),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (3, 4), 2),
        (nn.Upsample(scale_factor=2), (5,), 1),
        (nn.Unfold(2), (3, 4), 2),
        (nn.ReflectionPad1d(2), (5,), 2),
        (nn.Linear(3, 5), (4, 2), 3),
        (nn.PixelShuffle(2), (2, 3), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_linear_maps(layer, shape, channels):
    layer, grid = layer.double(), Grid(shape)
    for module in (layer, convert(layer)):
        A = as_linear_map(module, grid)
        x = torch.randn(1, channels, *shape, dtype=F64)
        flat = x.flatten(2).mT[0]
        if isinstance(layer, nn.Linear):
            y = (layer(flat) - layer(torch.zeros_like(flat))).flatten()
        else:
            y = (layer(x) - layer(torch.zeros_like(x))).flatten(2).mT.flatten()
        if not any(True for _ in layer.parameters()):
            A = as_linear_map(layer.double(), grid, x=flat)
        torch.testing.assert_close((A @ flat).flatten(), y, rtol=1e-10, atol=1e-10)


def test_layers_without_a_linear_map_give_a_reason():
    with pytest.raises(NotLinear, match="maximum"):
        as_linear_map(nn.MaxPool2d(2), Grid((4, 4)))
    with pytest.raises(OutsideFamily, match="ReLU has no LinearMap: an activation, not linear"):
        as_linear_map(nn.ReLU(), Grid((4, 4)))
    with pytest.raises(TypeError, match="takes a layer"):
        as_linear_map("conv", Grid((4, 4)))


def test_gconv_layers_are_maps_already():
    layer = GConv(gconv.operators.conv1d(2, 3, 3))
    assert as_linear_map(layer, Grid((7,))).shape == layer.at(Grid((7,))).shape


def test_layers_in_a_row():
    row = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Identity(), nn.AvgPool2d(2), nn.Conv2d(4, 2, 1)).double()
    A = as_linear_map(row, Grid((9, 8)))
    x = torch.randn(1, 3, 9, 8, dtype=F64)
    y = (row(x) - row(torch.zeros_like(x))).flatten(2).mT[0]
    torch.testing.assert_close(A @ x.flatten(2).mT[0], y, rtol=1e-10, atol=1e-10)
    assert gconv.analysis.adjoint_gap(A) < 1e-10
    with pytest.raises(OutsideFamily, match="ReLU has no LinearMap"):
        as_linear_map(nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU()), Grid((3,)))
    with pytest.raises(OutsideFamily, match="nothing to map"):
        as_linear_map(nn.Sequential(nn.Identity()), Grid((3,)))


def test_layers_print_as_before():
    """Also those inside a container or another layer, with hooks and parametrizations."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert str(convert(model)) == str(model)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 3, 3), nn.AvgPool2d(2), nn.MaxPool1d(2), nn.Linear(3, 3), nn.ZeroPad2d(1)]
)
@pytest.mark.parametrize("x", [None, [1.0], "x", 2.5], ids=str)
def test_other_inputs_raise_the_error_of_the_original(layer, x):
    errors = []
    for module in (layer, convert(layer)):
        with pytest.raises(Exception) as error:
            module(x)
        errors.append((error.type, str(error.value)))
    assert errors[0] == errors[1]


POOLS = [
    nn.MaxPool1d(3, 1), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool3d(2),
    nn.AdaptiveMaxPool1d(7), nn.AdaptiveMaxPool2d((7, 5)), nn.AdaptiveMaxPool2d(1), nn.AdaptiveMaxPool3d((3, 2, 2)),
]  # fmt: skip


@pytest.mark.parametrize("layer", POOLS, ids=str)
@pytest.mark.parametrize("channels", [2, 19])
def test_of_equal_numbers_torch_s_first_gets_the_gradient(layer, channels):
    d = int(type(layer).__name__[-2])
    torch.manual_seed(0)
    x = torch.randint(1, 4, (3, channels, *(8, 8, 4)[:d])).float()
    grads = []
    for module in (layer, convert(layer)):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        (y * torch.sin(torch.arange(y.numel())).view_as(y)).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


# -- what tools that work on any model see -------------------------------------------------------------------------


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def test_a_converted_model_has_the_modules_of_the_original():
    model = small()
    twin = convert(model)
    assert [name for name, _ in twin.named_modules()] == [name for name, _ in model.named_modules()]
    assert twin.state_dict()._metadata == model.state_dict()._metadata
    visited = []
    twin.apply(visited.append)
    assert visited == [*twin.children(), twin]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which this module of torch uses
        from torch.utils.mkldnn import to_mkldnn
    dense = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(to_mkldnn(twin[0])(dense.to_mkldnn()).to_dense(), twin[0](dense))


def test_hooks_on_all_modules_see_each_layer_once():
    twin, before, after, back = convert(small()), [], [], []
    every = nn.modules.module
    with (
        every.register_module_forward_pre_hook(lambda module, args: before.append(module)),
        every.register_module_forward_hook(lambda module, args, y: after.append(module)),
        every.register_module_full_backward_hook(lambda module, *grads: back.append(module)),
    ):
        twin(torch.randn(2, 3, 6, 6, requires_grad=True)).sum().backward()
    layers = list(twin)
    assert before == [twin, *layers] and after == [*layers, twin]
    assert {id(module) for module in back} == {id(module) for module in before} and len(back) == len(before)


def test_flops_are_counted_for_the_modules_of_the_original():
    counts = []
    for model in (small(), convert(small())):
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(2, 3, 6, 6, requires_grad=True)).sum().backward()
        counts.append(counter.get_flop_counts())
    assert counts[0] == counts[1]


def test_a_mode_sees_the_operators_of_the_chosen_lowering_only():
    """The format of torch's result, which other lowerings return too, is found outside of the mode."""
    spec, seen = gconv.operators.conv_transpose2d(4, 3, 2, 2), {}
    for lowering in ("native", "im2col", "sparse:transform"):
        with FlopCounterMode(display=False) as counter:
            gconv.GConv(spec)(torch.randn(2, 4, 5, 6), lowering=lowering)
        seen[lowering] = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    assert seen["native"] == {"aten.convolution": 2 * 2 * 30 * 4 * 12}
    assert not any("convolution" in name for name in (*seen["im2col"], *seen["sparse:transform"]))


def test_the_engine_follows_the_mode_and_type_of_its_layer():
    twin = convert(small()).eval().double()
    assert not any(layer.gconv.training for layer in (twin[0], twin[1], twin[3]))
    assert (twin[1].at(Grid((4, 4))) @ torch.ones(16, 1, dtype=F64)).dtype == F64
    twin[0].training = True
    assert twin[0].gconv.training and copy.deepcopy(twin)[0].gconv.training


def test_pickles_with_the_engine_among_the_submodules_are_read():
    """As earlier versions wrote them."""
    twin = convert(nn.Conv2d(2, 3, 3).double())
    make, arguments, state = twin.__reduce_ex__(2)[:3]
    old = {key: value for key, value in state.items() if key != "gconv"}
    old["_modules"] = {"gconv": state["gconv"]}
    again = make(*arguments)
    again.__setstate__(old)
    assert not again._modules and again.spec == twin.spec
    torch.testing.assert_close(again(images(2, 2)), twin(images(2, 2)))


MKLDNN = [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AvgPool3d(2)]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("layer", MKLDNN, ids=str)
def test_tensors_in_the_layout_of_onednn(layer):
    x = torch.randn(2, 3, *(6,) * int(type(layer).__name__[-2]))
    torch.testing.assert_close(convert(layer)(x.to_mkldnn()).to_dense(), layer(x))


def test_nested_tensors():
    layer = nn.Linear(3, 2)
    parts = [torch.randn(2, 3), torch.randn(4, 3)]
    for layout in (torch.strided, torch.jagged):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors are in prototype stage
            y = convert(layer)(torch.nested.nested_tensor(parts, layout=layout))
        for got, part in zip(y.unbind(), parts, strict=True):
            torch.testing.assert_close(got, layer(part))


def test_models_are_converted_within_a_meta_device():
    model = small()
    with torch.device("meta"):
        twin = convert(small())
        assert twin(torch.empty(2, 3, 6, 6)).shape == (2, 2)
    twin.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(twin(x), model(x))


def test_a_convolution_replaced_on_the_instance_runs():
    """Image generators patch `_conv_forward` to make seamless textures."""

    def doubled(input, weight, bias):
        return 2 * nn.functional.conv2d(input, weight, bias)

    layer, x = nn.Conv2d(2, 3, 3).double(), images(2, 2)
    twin, y = convert(layer), layer(x)
    twin._conv_forward = doubled
    torch.testing.assert_close(twin(x), 2 * y)
    del twin._conv_forward
    torch.testing.assert_close(twin(x), y)
    assert twin.spec == gconv.operators.conv2d(2, 3, 3)
    layer._conv_forward = doubled
    assert "_conv_forward was replaced" in convert(layer).report()[""].notes[0]
    torch.testing.assert_close(convert(layer)(x), 2 * y)


@pytest.mark.parametrize("name", ["gconv", *NAMES])
def test_attributes_of_the_user_with_the_names_of_converted_layers(name):
    """They are kept: a layer that has one is left alone, and one that is given one is the original again."""

    class Own(nn.Conv2d):
        pass

    setattr(Own, name, "mine")
    named, buffered, x = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3), torch.randn(1, 2, 4, 4)
    setattr(named, name, "mine")
    buffered.register_buffer(name, torch.ones(1))
    for layer in (Own(2, 3, 3), named, buffered):
        twin = convert(layer)
        assert not isinstance(twin, Converted) and name in twin.report()[""].notes[0] and hasattr(twin, name)
        torch.testing.assert_close(twin(x), layer(x))
    assert convert(nn.Conv2d(2, 3, 3)).report()[""].converted
    if name != "gconv":
        later = convert(nn.Conv2d(2, 3, 3))
        setattr(later, name, "mine")
        assert type(later) is nn.Conv2d and getattr(later, name) == "mine"
        assert later(x).shape == (1, 3, 2, 2)


def test_deleted_attributes_raise_the_error_of_the_original():
    twin = convert(nn.Linear(3, 2))
    del twin.bias
    for _ in range(2):
        with pytest.raises(AttributeError, match="bias"):
            twin(torch.ones(1, 3))
    twin.bias = None
    torch.testing.assert_close(twin(torch.ones(1, 3)), twin.weight.sum(1)[None])


def test_a_traced_linear_layer_is_one_product():
    layer = nn.Linear(3, 2)
    targets = [
        [str(node.target) for node in make_fx(module)(torch.ones(4, 3)).graph.nodes if node.op == "call_function"]
        for module in (layer, convert(layer))
    ]
    assert targets[0] == targets[1]


BATCHED = {
    nn.Fold(6, 2): (2, 12, 25), nn.Unfold(2): (2, 3, 6, 6), nn.AdaptiveAvgPool2d(4): (2, 3, 6, 6),
    nn.Upsample(scale_factor=2, mode="bilinear"): (2, 3, 6, 6), nn.PixelShuffle(2): (2, 4, 3, 3),
    nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"): (2, 3, 6, 6), nn.MaxPool2d(2): (2, 3, 6, 6),
}  # fmt: skip


@pytest.mark.parametrize("layer", BATCHED, ids=str)
def test_batches_of_gradients(layer):
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    x = torch.randn(BATCHED[layer], requires_grad=True)
    y = convert(layer)(x)
    many = torch.randn(3, *y.shape)
    (together,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in many]
    torch.testing.assert_close(together, torch.stack(single))


@pytest.mark.parametrize(
    "layer", [nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool1d(5), nn.Upsample(scale_factor=2)], ids=str
)
def test_calls_on_the_meta_device(layer):
    x = torch.empty(2, 3, 6, 6, device="meta") if "2d" in str(layer) else torch.empty(2, 3, 6, device="meta")
    y = convert(layer)(x)
    assert y.is_meta and y.shape == layer(x).shape


TRANSFORMED = {
    nn.ConvTranspose1d(4, 5, 3): (2, 4, 3), nn.ConvTranspose2d(4, 5, 3): (2, 4, 4, 4), nn.Conv1d(4, 5, 3): (2, 4, 7),
    nn.AdaptiveMaxPool3d((2, 3, 4)): (2, 4, 5, 6, 4),
}  # fmt: skip


@pytest.mark.parametrize("layer", TRANSFORMED, ids=str)
def test_results_under_transforms_are_contiguous(layer, monkeypatch):
    x, twin = torch.randn(TRANSFORMED[layer]), convert(layer)

    def results():
        both = torch.func.vmap(twin)(torch.stack([x, x]))
        return [both, *torch.func.jvp(twin, (x,), (x,))]

    assert all(y.is_contiguous() for y in results())
    monkeypatch.setattr(images_lowering, "_contiguous", lambda run: run)
    if isinstance(
        layer, nn.ConvTranspose1d | nn.ConvTranspose2d
    ):  # the negative control, where torch's kernel is not chosen
        assert not all(y.is_contiguous() for y in results())
