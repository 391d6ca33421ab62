"""Models of Keras 3 (torch backend) with code, state and settings of a user, converted, against themselves."""

import copy
import functools
import random

import numpy as np
import pytest
import torch
from torch import nn

import gconv
from gconv import OutsideFamily
from gconv.interop import convert, preview, restore
from gconv.interop.converted import Converted
from gconv.interop.peer import Unweighted

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras writes its variables by numpy


def image(*shape):
    torch.manual_seed(0)
    return torch.randn(*(shape or (2, 6, 5, 3)))


def small(keras, **options):
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6, 5, 3)), layers.Conv2D(4, 3, **options), layers.Dropout(0.5, seed=1), layers.Dense(2)]
    )


def converted(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, Converted)]


@pytest.fixture
def runs(monkeypatch):
    """The operators of the converted layers that ran in gconv."""
    names, borrow = [], Unweighted.borrow
    monkeypatch.setattr(Unweighted, "borrow", lambda self, W: names.append(self.spec.name) or borrow(self, W))
    return names


# -- code of the user ----------------------------------------------------------------------------------------------


def own_parts(keras):
    """Models with unregistered classes and functions, by name."""
    layers, ops = keras.layers, keras.ops

    class Block(layers.Layer):
        def __init__(self, filters=3, **options):
            super().__init__(**options)
            self.filters = filters
            self.conv = layers.Conv2D(filters, 3, padding="same")

        def build(self, shape):
            self.conv.build(shape)

        def call(self, x):
            return self.conv(x) + 1

    class Net(keras.Model):
        def __init__(self, filters=4):
            super().__init__()
            self.first, self.second = layers.Conv2D(filters, 3, activation="relu"), layers.Dense(2)

        def call(self, x, training=False):
            return self.second(self.first(x))

    class Penalty(keras.regularizers.Regularizer):
        def __init__(self, scale=0.3):
            self.scale = scale

        def __call__(self, w):
            return self.scale * ops.sum(ops.abs(w))

        def get_config(self):
            return {"scale": self.scale}

    def scaled(factor):
        def act(x):
            return factor * torch.tanh(x)

        return act

    sizes, more = keras.Input((6, 5, 3)), {"kernel_regularizer": Penalty(0.2), "activity_regularizer": Penalty(0.1)}
    return {
        "a layer": lambda: keras.Sequential([sizes, Block(4)]),
        "a model": lambda: Net(5),
        "functions of one name": lambda: keras.Sequential(
            [sizes, layers.Conv2D(4, 3, activation=scaled(2)), layers.Dense(2, activation=scaled(3))]
        ),
        "a lambda": lambda: small(keras, activation=lambda x: torch.tanh(x)),
        "a function of torch": lambda: small(keras, activation=torch.tanh),
        "a partial function": lambda: small(
            keras, activation=functools.partial(nn.functional.leaky_relu, negative_slope=0.3)
        ),
        "a Lambda layer": lambda: keras.Sequential(
            [sizes, layers.Lambda(lambda x: torch.relu(x)), layers.Conv2D(4, 3)]
        ),
        "a regularizer": lambda: small(keras, **more),
        "a function as a regularizer": lambda: small(keras, kernel_regularizer=lambda w: ops.sum(ops.square(w))),
    }


NAMES = ("a layer", "a model", "functions of one name", "a lambda", "a function of torch", "a partial function",
         "a Lambda layer", "a regularizer", "a function as a regularizer")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_code_of_the_user(keras, name):
    """Models whose classes and functions Keras does not know are copied and converted."""
    model, x = own_parts(keras)[name](), image()
    expected = model(x)
    known = dict(keras.saving.get_custom_objects())
    found = convert(model)
    torch.testing.assert_close(found(x), expected)
    torch.testing.assert_close(restore(found)(x), expected)
    assert converted(found)
    model(x)  # an earlier call of another model leaves the losses of this call
    assert [loss.item() for loss in found.losses] == pytest.approx([loss.item() for loss in model.losses])
    assert dict(keras.saving.get_custom_objects()) == known
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", ["a layer", "functions of one name", "a partial function"])
def test_keras_itself_does_not_know_it(keras, name):
    """The control of the test above."""
    model = own_parts(keras)[name]()
    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        copy.deepcopy(model)


def test_two_classes_of_one_name(keras):
    """Keras finds classes by name alone, so a model with two of one name is refused."""

    def made(shift):
        class Shift(keras.layers.Layer):
            def call(self, x):
                return x + shift

        return Shift()

    model = keras.Sequential([keras.Input((3,)), made(1), made(2), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="two classes or functions of it are named 'Shift'"):
        convert(model)


def test_a_model_that_cannot_be_copied(keras):
    """A graph of layers whose class takes arguments, which Keras itself cannot copy."""

    class Net(keras.Sequential):
        def __init__(self, width):
            super().__init__([keras.Input((3,)), keras.layers.Dense(width)])

    model = Net(4)
    with pytest.raises(TypeError, match=r"Net cannot be copied: .*name.*Pass the layers .* one by one") as caught:
        convert(model)
    assert isinstance(caught.value, gconv.errors.InputError)
    torch.testing.assert_close(convert(model.layers[0])(image(2, 3)), model(image(2, 3)))


def test_compiled_with_functions_of_the_user(keras):
    """Loss, metrics and the state of the optimizer follow, so that training continues in the same way."""

    def mine(y, z):
        return keras.ops.mean((y - z) ** 2)

    x, y, results = image(8, 6, 5, 3), image(8, 4, 3, 2), []
    model = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Conv2D(4, 3), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.01), loss=lambda y, z: mine(y, z), metrics=[mine])
    model.fit(x, y, epochs=2, verbose=0)
    for trained in (convert(model), model):
        assert int(trained.optimizer.iterations) == 2
        results.append(trained.fit(x, y, epochs=3, shuffle=False, verbose=0).history)
    assert results[0].keys() == results[1].keys() and "mine" in results[0]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)


# -- state and settings --------------------------------------------------------------------------------------------


def frozen(model):
    model.layers[0].kernel.trainable = False


def uncast(model):
    model.layers[0].autocast = False


def given(model, dtype=torch.float64):
    """The result for an input of another dtype, or the first lines of the error."""
    try:
        return [str(model.layers[0](image().to(dtype)).dtype)]
    except RuntimeError as error:
        return str(error).splitlines()[:3]


def without_gradients(model):
    next(model.parameters()).requires_grad_(False)


def adapted(model):
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.ones((2, 4)))


def hooked(model):
    model.layers[0].register_forward_hook(lambda layer, given, y: 2 * y)


def noted(model):
    model.classes, model.layers[0].note = ["cat", "dog"], "first"


def replaced(model):
    first = model.layers[0]
    own = first.call
    first.call = lambda x: 3 * own(x)


def advanced(model):
    model(image(), training=True)


CHANGES = [
    (uncast, given),
    (frozen, lambda model: [v.trainable for v in model.variables]),
    (without_gradients, lambda model: [p.requires_grad for p in model.parameters()]),
    (adapted, lambda model: [w.tolist() for w in model.get_weights()]),
    (hooked, lambda model: model(image()).tolist()),
    (noted, lambda model: (getattr(model, "classes", None), getattr(model.layers[0], "note", None))),
    (replaced, lambda model: model(image()).tolist()),
    (advanced, lambda model: model(image(), training=True).tolist()),
    (nn.Module.eval, lambda model: [module.training for module in model.modules()]),
]


@pytest.mark.parametrize(("change", "seen"), CHANGES, ids=lambda value: value.__name__)
def test_what_serialisation_leaves_out(keras, change, seen):
    """A converted model has the settings of the original; the control: a copy by Keras alone does not."""
    model = small(keras)
    change(model)
    copies = [convert(model), copy.deepcopy(model)]
    expected, found, control = seen(model), *map(seen, copies)

    def equal(a, b):
        return a == b if not isinstance(a[0], list) or not isinstance(a[0][0], list) else np.allclose(a, b, atol=1e-5)

    if change is adapted:
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(expected, control, strict=True))
    else:
        assert equal(expected, found) and not equal(expected, control)


def test_names_of_parameters(keras):
    """The keys of the state_dict and the paths of variables, also of models whose layers are created by __init__."""
    for model in (small(keras), own_parts(keras)["a model"](), nn.Sequential(small(keras), nn.Linear(2, 2))):
        model(image())
        found = convert(model)
        assert list(found.state_dict()) == list(model.state_dict())
        found.load_state_dict({key: 2 * value for key, value in model.state_dict().items()})
        if isinstance(model, keras.Model):
            assert [v.path for v in found.variables] == [v.path for v in model.variables]
            assert [layer.name for layer in found.layers] == [layer.name for layer in model.layers]
            assert all(torch.equal(v.value, 2 * w.value) for v, w in
                       zip(found.weights, model.weights, strict=True))  # fmt: skip


def test_random_states_stay(keras):
    model, states = small(keras), []
    for change in (lambda m: m, convert, copy.deepcopy):
        keras.utils.set_random_seed(3)
        change(model)
        states.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert states[0] == states[1] != states[2]


def test_layers_shared_by_two_models(keras):
    """Two models of Keras in a model of torch share tensors as before."""
    encoder = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()])
    both = nn.ModuleList([encoder, keras.Sequential([encoder, keras.layers.Dense(2)])])
    found = convert(both)
    assert len(list(found.parameters())) == len(list(both.parameters())) == 4
    with torch.no_grad():
        for p in found[0].parameters():
            p.zero_()
    assert not torch.allclose(found[1](image()), both[1](image()))
    assert sum(len(list(copy.deepcopy(part).parameters())) for part in both) == 6  # the control


# -- converted layers ----------------------------------------------------------------------------------------------


def test_call_of_an_instance(keras):
    """A call that the user replaces, before or after conversion, is the one that runs."""
    layer, x = keras.layers.Conv2D(4, 3), image()
    expected = layer(x)
    found = convert(layer)
    own = found.call
    found.call = lambda inputs: 3 * own(inputs)
    torch.testing.assert_close(found(x), 3 * expected)
    del found.call
    torch.testing.assert_close(found(x), expected)
    layer.call = lambda inputs: inputs
    assert "its call was replaced" in str(preview(layer))


def test_wrappers_run_in_gconv(keras, runs):
    """Layers that Keras or a user calls by `call`; the control: the original runs nothing in gconv."""
    layers = keras.layers
    cases = [
        (layers.TimeDistributed(layers.Conv2D(2, 3)), image(2, 4, 6, 5, 3), "conv2d"),
        (layers.SpectralNormalization(layers.Dense(2)), image(4, 3), "pointwise"),
    ]
    for layer, x, name in cases:
        expected = layer(x)
        found = convert(layer)
        assert not runs
        torch.testing.assert_close(found(x), expected)
        assert set(runs) == {name}
        runs.clear()
    layer = convert(layers.Dense(2, dtype="float32"))
    layer(image(4, 3))
    assert not runs  # it was not built, so it was not converted


def test_classes_of_converted_layers(keras):
    """New layers of the class of a converted one: clones, from_config, the class itself."""
    model, x = small(keras), image()
    found = convert(model)
    clone = keras.models.clone_model(found)
    clone.set_weights(found.get_weights())
    torch.testing.assert_close(clone(x), model(x))
    assert len(converted(clone)) == 2 and converted(clone)[0].spec == converted(found)[0].spec
    linear = convert(nn.Linear(3, 4))
    made = type(linear)(3, 4)
    made.load_state_dict(linear.state_dict())
    torch.testing.assert_close(made(x), linear(x))


def test_layers_of_one_name(keras):
    layers = keras.layers

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = layers.Conv2D(4, 2, name="conv"), layers.Conv2D(4, 2, name="conv")

        def call(self, x):
            return self.b(self.a(x))

    model = Net()
    model(image())
    found = convert(model)
    assert [entry.path for entry in found.report().converted] == ["conv", "conv (2)"]
    torch.testing.assert_close(found(image()), model(image()))


def test_activations_that_are_layers(keras):
    """They are layers of their own: listed, and converted where they can be."""
    layers = keras.layers
    for follows in (layers.LeakyReLU(0.3), layers.PReLU(), layers.Dense(4), nn.LeakyReLU(0.3)):
        layer = layers.Conv2D(4, 3, activation=follows)
        expected = layer(image())
        found = convert(layer)
        torch.testing.assert_close(found(image()), expected)
        assert isinstance(found, Converted)
        assert any(entry.path.startswith("activation") for entry in found.report())
        assert isinstance(found.activation, Converted) == isinstance(follows, layers.Dense)


def test_subclasses_with_a_property(keras):
    """A property of a subclass that computes the weight is read; a method of its own is not converted."""
    layers = keras.layers

    class Doubled(layers.Conv2D):
        @property
        def kernel(self):
            return 2 * self._kernel

    class Bounded(layers.Dense):
        @property
        def kernel(self):
            return torch.tanh(self._kernel.value)

    class Own(layers.Conv2D):
        def convolution_op(self, inputs, kernel):
            return super().convolution_op(inputs, 2 * kernel)

    for layer, x in ((Doubled(4, 3), image()), (Bounded(4), image(2, 3)), (Own(4, 3), image())):
        expected = layer(x)
        found = convert(layer)
        torch.testing.assert_close(found(x), expected)
        assert isinstance(found, Converted) == (not isinstance(layer, Own))
    assert "code of its own (convolution_op)" in str(preview(Own(4, 3)))


def test_quantising_a_converted_layer(keras):
    """Keras quantises layers of exactly its own classes, which a converted layer becomes again."""
    model, found = (keras.Sequential([keras.Input((8,)), keras.layers.Dense(16)]) for _ in range(2))
    found.set_weights(model.get_weights())
    found = convert(found)
    assert converted(found)
    with pytest.raises(ValueError, match="Invalid quantization mode"):
        found.layers[0]._check_quantize_args("int3", "float32")
    assert converted(found)
    for net in (model, found):
        net.layers[0].quantize("int8")
    assert len(found.variables) == len(model.variables) == 3 and not converted(found)
    torch.testing.assert_close(found(image(4, 8)), model(image(4, 8)))


def test_dtypes_that_do_not_fit(keras):
    """Inputs of another dtype than the weights, and torch.autocast, are as in the original."""
    layers = keras.layers
    for made, x in ((layers.Conv2D, image()), (layers.Conv2DTranspose, image()), (layers.SeparableConv2D, image())):
        layer = made(4, 3, autocast=False)
        layer.build(x.shape)
        found = convert(layer)
        for dtype in (torch.float64, torch.bfloat16):
            errors = []
            for net in (layer, found):
                with pytest.raises(RuntimeError) as caught:
                    net(x.to(dtype))
                errors.append(str(caught.value))
            assert errors[0] == errors[1]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(found(x), layer(x)) and found(x).dtype == layer(x).dtype
        assert found(x).dtype == torch.float32 and isinstance(found, Converted)


def test_preview_changes_nothing(keras):
    model = own_parts(keras)["a model"]()
    model(image())
    keys = list(model.state_dict())
    preview(model)
    assert list(model.state_dict()) == keys
    next(model.first.parameters())  # the control: Keras' own access adds keys
    assert list(model.state_dict()) != keys


def test_message_of_a_call_outside(keras):
    layer = keras.layers.Conv2D(4, 3)
    layer(image())
    with pytest.raises(OutsideFamily, match="runs in Keras's own forward"):
        convert(layer).plan(image(2, 3))


def test_another_backend():
    """A model of Keras that is no torch module says which setting makes it one."""
    kind = type("Sequential", (), {"__module__": "keras.src.models.sequential"})
    with pytest.raises(TypeError, match="KERAS_BACKEND=torch"):
        convert(kind())


# -- summary -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert_first", [False, True])
def test_a_summary_has_a_row_for_each_call_of_a_layer(keras, convert_first):
    """Also of layers inside a layer of the user, and of a layer that is called twice, whose parameters count once."""
    layers = keras.layers

    class Block(layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.conv = layers.Conv2D(3, 3, padding="same", use_bias=False, name="conv")

        def call(self, x):
            return x + self.conv(keras.ops.relu(self.conv(x)))

    x = image()
    model = keras.Sequential(
        [keras.Input((6, 5, 3)), Block(), layers.BatchNormalization(name="norm"), layers.Dense(2, name="dense")]
    )
    outer = nn.Sequential(convert(model) if convert_first else model, nn.Flatten(), nn.Linear(60, 7))
    before, keys = outer(x), list(outer.state_dict())
    found = gconv.summary(outer, x, measure=1)
    rows = {row.path: row for row in found.rows if row.operator}
    calls = [row for row in found.rows if row.path.endswith("conv")]
    assert [row.parameters for row in calls] == [81, 0]
    assert [row.multiply_adds for row in calls] == [2 * 30 * 81] * 2 and rows["0.dense"].multiply_adds == 2 * 30 * 6
    assert {row.lowering for row in calls} <= ({"native", "im2col", "sparse:transform"} if convert_first else {"Keras"})
    assert found.totals["parameters"] == model.count_params() + 7 * 61 and all(row.measured > 0 for row in calls)
    assert torch.equal(outer(x), before) and list(outer.state_dict()) == keys


def test_a_summary_of_a_model_that_fails_leaves_keras_as_it_was(keras):
    own = keras.Layer.__call__
    with pytest.raises(ValueError, match="incompatible with the layer"):
        gconv.summary(small(keras), torch.zeros(2, 6, 5, 9))
    assert keras.Layer.__call__ is own
