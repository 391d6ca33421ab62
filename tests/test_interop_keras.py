"""Layers of Keras 3 (torch backend) and transformers' Conv1D, converted, against themselves."""

import copy
import pickle

import pytest
import torch
from torch import nn

import gconv
from gconv import GConv, Grid, NotLinear, OutsideFamily
from gconv.interop import as_linear_map, convert, preview, restore
from gconv.interop.converted import Converted

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras writes its variables by numpy
SIZES = {1: (9,), 2: (8, 7), 3: (4, 5, 6)}


@pytest.fixture(scope="module")
def layers(keras):
    return keras.layers


def compare(layer, x):
    """Value and all gradients of a layer and of its copy, which must not fall back to its library."""
    layer(x)  # which makes the weights of Keras' layers
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype))
    found = convert(layer)
    assert isinstance(found, Converted), str(found.report())
    close = {"rtol": 1e-11, "atol": 1e-11} if x.dtype == F64 else {}
    results = []
    for run in (layer, found, lambda leaf: found.peer.call(found, leaf)):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        assert y is not None, "the call went to the library"
        parameters = list((layer if run is layer else found).parameters())
        probe = torch.sin(torch.arange(y.numel(), dtype=x.dtype) + 1).reshape(y.shape)
        results.append([y, *torch.autograd.grad((y * probe).sum(), [leaf, *parameters])])
    for theirs, *ours in zip(*results, strict=True):
        for mine in ours:
            torch.testing.assert_close(mine, theirs, **close)
    return found


def signal(d, c, last=True, sizes=SIZES):
    torch.manual_seed(d)
    return torch.randn(2, *sizes[d], c, dtype=F64) if last else torch.randn(2, c, *sizes[d], dtype=F64)


def test_keras(layers):
    """The smallest case: what differs from torch, in one layer."""
    compare(layers.Conv2D(6, 3, strides=2, padding="same", groups=2, activation="tanh", dtype="float64"), signal(2, 4))


FORMATS = pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])


@pytest.mark.slow
@FORMATS
@pytest.mark.parametrize("d", [1, 2, 3])
def test_keras_convolutions(layers, d, data_format):
    make, x = getattr(layers, f"Conv{d}D"), signal(d, 4, data_format == "channels_last")
    shared = {"data_format": data_format, "dtype": "float64"}
    compare(make(6, 3, **shared), x)
    compare(make(6, 2, strides=2, padding="same", groups=2, activation="tanh", **shared), x)
    compare(make(3, 3, strides=2, padding="same", use_bias=False, **shared), x)
    compare(make(3, 1, strides=2, padding="same", **shared), x)  # a stride beyond the kernel
    compare(make(3, 2, dilation_rate=2, padding="same", **shared), x)
    if d == 1:
        compare(make(3, 3, dilation_rate=2, padding="causal", **shared), x)


@pytest.mark.slow
@FORMATS
@pytest.mark.parametrize("d", [1, 2])
def test_keras_depthwise_and_separable(layers, d, data_format):
    x, shared = signal(d, 3, data_format == "channels_last"), {"data_format": data_format, "dtype": "float64"}
    depthwise, separable = getattr(layers, f"DepthwiseConv{d}D"), getattr(layers, f"SeparableConv{d}D")
    compare(depthwise(3, strides=2, padding="same", depth_multiplier=2, **shared), x)
    compare(depthwise(2, padding="same", activation="relu", use_bias=False, **shared), x)
    compare(separable(5, 3, strides=2, padding="same", **shared), x)
    compare(separable(5, 3, depth_multiplier=2, use_bias=False, **shared), x)


@pytest.mark.slow
@FORMATS
@pytest.mark.parametrize("d", [1, 2, 3])
def test_keras_transposed(layers, d, data_format):
    make, x = getattr(layers, f"Conv{d}DTranspose"), signal(d, 3, data_format == "channels_last")
    for padding in ("valid", "same"):
        for kernel, stride, dilation, extra in ((3, 2, 1, None), (2, 3, 1, None), (4, 2, 1, 1), (3, 1, 2, None)):
            layer = make(2, kernel, stride, padding, output_padding=extra, data_format=data_format,
                         dilation_rate=dilation, dtype="float64")  # fmt: skip
            compare(layer, x)


@pytest.mark.slow
def test_keras_transposed_cut(layers):
    """Every kernel, stride and output_padding that Keras takes, along one axis."""
    x = signal(1, 2)
    for padding in ("valid", "same"):
        for kernel in (1, 2, 3, 4, 5):
            for stride in (1, 2, 3):
                for extra in (None, *range(stride)):
                    layer = layers.Conv1DTranspose(2, kernel, stride, padding, output_padding=extra, dtype="float64")
                    expected = layer(x)
                    if 0 in expected.shape:
                        continue
                    torch.testing.assert_close(convert(layer)(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_keras_dense(layers):
    compare(layers.Dense(4, activation="gelu"), signal(2, 3).float())
    compare(layers.Dense(4, use_bias=False), torch.randn(5, 3))
    layer = layers.Dense(4, dtype="float64")  # which Keras multiplies in float32
    x = torch.randn(5, 3, dtype=F64)
    assert torch.equal(layer(x), convert(layer)(x))


@pytest.mark.slow
def test_keras_models(layers):
    """Sequential, functional with a shared layer, nested, inside a model of torch: all layers are converted."""
    import keras

    x = signal(2, 3)
    conv = layers.Conv2D(3, 3, padding="same", dtype="float64", name="twice")
    entry = keras.Input((8, 7, 3), dtype="float64")
    y = layers.Add(dtype="float64")([conv(conv(entry)), entry])
    inner = keras.Model(entry, y)
    model = keras.Sequential(
        [inner, layers.Conv2D(4, 2, 2, "same", activation="relu", name="down", dtype="float64"),
         layers.Flatten(dtype="float64"), layers.Dense(2, name="head", dtype="float64")]
    )  # fmt: skip
    expected = model(x)
    found = convert(model)
    torch.testing.assert_close(found(x), expected, rtol=1e-11, atol=1e-11)
    report = found.report()
    assert report["down"].spec.name == "conv2d" and report["head"].spec.name == "pointwise"
    assert sum(entry.layer == "Conv2D" for entry in report) == 2 and len(report.converted) == 3
    assert all(isinstance(layer, Converted) for layer in (found.get_layer("down"), found.get_layer("head")))
    assert not any(isinstance(layer, Converted) for layer in model.layers)  # what was given is as it was
    wrapped = nn.Sequential(model, nn.Linear(2, 2).double())
    torch.testing.assert_close(convert(wrapped)(x), wrapped(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(restore(found)(x), expected)


@pytest.mark.slow
def test_keras_training_by_fit(layers):
    """fit moves the weights that gconv reads, as it moves Keras' own."""
    import keras

    x, y = torch.randn(8, 6, 6, 2), torch.randn(8, 3)
    losses = []
    for change in (lambda m: m, convert):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([layers.Conv2D(4, 3, 2, "same"), layers.Flatten(), layers.Dense(3)])
        model(x)
        model = change(model)
        model.compile("sgd", "mse")
        losses.append(model.fit(x, y, epochs=3, batch_size=4, shuffle=False, verbose=0).history["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][0] > losses[0][-1]


@pytest.mark.slow
def test_keras_copies_and_changes(layers):
    layer = layers.Conv2D(4, 3, dtype="float64")
    x = signal(2, 3)
    found = convert(nn.Sequential(layer, nn.ReLU())) if layer(x) is not None else None
    for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert isinstance(twin[0], Converted)
        torch.testing.assert_close(twin(x), found(x))
    single = found[0]
    single.strides = (2, 2)
    layer.strides = (2, 2)
    torch.testing.assert_close(single(x), layer(x), rtol=1e-11, atol=1e-11)
    assert type(restore(single)) is layers.Conv2D


@pytest.mark.slow
def test_keras_in_analysis(layers):
    layer = layers.Conv2D(4, 3, 2, "same", dtype="float64")
    x = signal(2, 3)
    layer(x)
    A = as_linear_map(layer, Grid((8, 7)))
    flat = x[:1].reshape(1, -1, 3)
    torch.testing.assert_close((A @ flat).reshape(1, 4, 4, 4) + layer.bias.value, layer(x[:1]), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(GConv.from_torch(layer)(x.movedim(-1, 1)).movedim(1, -1), layer(x))
    with pytest.raises(NotLinear, match="activation relu follows"):
        relu = layers.Conv2D(4, 3, activation="relu")
        relu(x.float())
        as_linear_map(relu, Grid((8, 7)))
    with pytest.raises(OutsideFamily, match="not created yet"):
        as_linear_map(layers.Conv2D(4, 3), Grid((8, 7)))


@pytest.mark.slow
def test_keras_layers_that_stay(layers):
    import keras

    class Doubled(layers.Conv2D):
        def call(self, inputs):
            return 2 * super().call(inputs)

    model = keras.Sequential(
        [
            layers.Input((8, 7, 3)),
            Doubled(2, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
        ]
    )
    report = preview(model)
    assert not report.converted and len(report) == 4
    reasons = " ".join(note for entry in report for note in entry.notes)
    assert "code of its own (call)" in reasons and "statistics" in reasons and "an activation" in reasons
    adapted = layers.Dense(2)
    adapted(torch.zeros(1, 3))
    assert "Keras" in str(gconv.adapt(nn.Sequential(nn.Linear(2, 2), adapted), rank=1).report)


@pytest.mark.slow
def test_lora_of_keras(layers):
    layer = layers.Dense(3)
    x = torch.randn(4, 5)
    layer(x)
    layer.enable_lora(2)
    found = convert(layer)
    torch.testing.assert_close(found(x), layer(x))
    assert "LoRA" in str(found.report()) and not isinstance(found, Converted)


# -- transformers --------------------------------------------------------------------------------------------------


def gpt(**options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=16, n_embd=12, n_layer=2, n_head=3, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
        **options,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).double().eval()


def test_conv1d_of_transformers():
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    found = compare(Conv1D(5, 3).double(), torch.randn(2, 4, 3, dtype=F64))
    assert found.spec == gconv.operators.pointwise(3, 5, ndim=1)
    x = torch.randn(6, 3, dtype=F64)
    torch.testing.assert_close(found.at(Grid((6,))) @ x, found(x) - found.bias)


def test_gpt2():
    """Logits and all gradients of a GPT-2 are those of the converted one."""
    model = gpt()
    found = convert(model)
    names = {entry.layer for entry in found.report().converted}
    assert names == {"Conv1D", "Linear"} and len(found.report().converted) == 9
    tokens = torch.arange(20).reshape(2, 10) % 31
    results = []
    for net in (model, found):
        y = net(tokens, labels=tokens)
        results.append([y.logits, *torch.autograd.grad(y.loss, list(net.parameters()))])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(restore(found)(tokens).logits, results[0][0])


def test_adapters_of_gpt2():
    """Adapters on Conv1D start as nothing, merge exactly, and alone have gradients."""
    model = gpt()
    adapted = gconv.adapt(model, rank=2)
    tokens = torch.arange(20).reshape(2, 10) % 31
    torch.testing.assert_close(adapted(tokens).logits, model(tokens).logits)
    adapted(tokens, labels=tokens).loss.backward()
    learned = [name for name, p in adapted.named_parameters() if p.grad is not None]
    assert learned and all(".parametrizations." in name for name in learned)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if name.endswith((".A", ".B")):
                p.copy_(torch.randn_like(p) / 10)
    torch.testing.assert_close(gconv.merge(adapted)(tokens).logits, adapted(tokens).logits, rtol=1e-10, atol=1e-10)
