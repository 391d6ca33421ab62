"""Tools of torch that a user applies to a model: on layers of gconv, native and converted, they act as on torch's."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

import gconv
from gconv import GConv, Graph
from gconv.interop import converted
from gconv.interop.converted import Converted
from gconv.operators import avg_pool2d, conv2d, gat, gcn, sage

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
RING = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])


def network():
    """Layers that quantization fuses, and others."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


# -- tools that select layers by their class -----------------------------------------------------------------------


def test_classes_of_converted_layers_equal_the_original():
    twin = gconv.convert(network())
    assert isinstance(twin[0], Converted) and type(twin[0]) == nn.Conv2d and nn.Conv2d == type(twin[0])  # noqa: E721
    assert type(twin[0]) in {nn.Conv2d} and {type(twin[0]): 1}[nn.Conv2d] == 1
    assert type(twin[0]) != nn.Conv3d and type(twin[0]) != type(twin[3])  # noqa: E721
    parametrizations.weight_norm(twin[0])
    model = parametrizations.weight_norm(network()[0])
    assert type(twin[0]) != nn.Conv2d and type(model) != nn.Conv2d  # noqa: E721  # as in torch

    class Named(nn.Conv2d):
        pass

    named = type(gconv.convert(Named(2, 3, 3)))
    assert named == Named and named != nn.Conv2d


def test_initialisation_by_class():
    def initialise(module):
        if type(module) == nn.Linear:  # noqa: E721
            nn.init.constant_(module.weight, 0.5)

    twin = gconv.convert(network())
    twin.apply(initialise)
    assert torch.equal(twin[-1].weight, torch.full((5, 32), 0.5))


def dynamic(model):
    return torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear})


def eager_mode(model, fuse, config, prepare):
    quantization = torch.ao.quantization
    model = nn.Sequential(quantization.QuantStub(), *model, quantization.DeQuantStub()).train(model.training)
    model = fuse(model, [["1", "2", "3"], ["5", "6", "7"]])
    model.qconfig = config("x86")
    model = prepare(model)
    model(IMAGES).sum().backward()
    return quantization.convert(model.eval())


def static(model):
    q = torch.ao.quantization
    return eager_mode(model.eval(), q.fuse_modules, q.get_default_qconfig, q.prepare)


def aware(model):
    """Quantization-aware training."""
    q = torch.ao.quantization
    return eager_mode(model.train(), q.fuse_modules_qat, q.get_default_qat_qconfig, q.prepare_qat)


def each_layer(model):
    """Static quantization of layers that were not fused before, which looks at their classes itself."""
    q = torch.ao.quantization
    return eager_mode(model.eval(), lambda model, names: model, q.get_default_qconfig, q.prepare)


def each_layer_aware(model):
    q = torch.ao.quantization
    return eager_mode(model.train(), lambda model, names: model, q.get_default_qat_qconfig, q.prepare_qat)


def graph_mode(model):
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    mapping = torch.ao.quantization.get_default_qconfig_mapping("x86")
    model = prepare_fx(model.eval(), mapping, (IMAGES,))
    model(IMAGES)
    return convert_fx(model)


QUANTIZED = (dynamic, static, aware, each_layer, each_layer_aware, graph_mode)


def quantized(way, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecation, and of observers
        return way(model)


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no fbgemm here")
@pytest.mark.parametrize("way", QUANTIZED)
def test_quantization_acts_on_converted_layers(way):
    model = quantized(way, network())
    twin = quantized(way, gconv.convert(network()))
    kinds = [f"{type(m).__module__}.{type(m).__name__}" for m in model.modules()]
    assert kinds == [f"{type(m).__module__}.{type(m).__name__}" for m in twin.modules()]
    assert any("quantized" in kind for kind in kinds)
    torch.testing.assert_close(twin(IMAGES), model(IMAGES))
    torch.testing.assert_close(gconv.convert(model)(IMAGES), model(IMAGES))


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no fbgemm here")
@pytest.mark.parametrize("way", [dynamic, graph_mode])
def test_classes_that_differ_are_not_quantized(way, monkeypatch):
    """The negative control: the classes of converted layers as they would be without their metaclass."""
    kind = type(type(gconv.convert(nn.Conv2d(3, 8, 3))))
    monkeypatch.setattr(kind, "__eq__", type.__eq__)
    monkeypatch.setattr(kind, "__hash__", type.__hash__)
    model, twin = quantized(way, network()), quantized(way, gconv.convert(network()))
    assert not torch.allclose(twin(IMAGES), model(IMAGES), atol=1e-6)


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no fbgemm here")
@pytest.mark.parametrize("way", [each_layer, each_layer_aware])
def test_layers_that_stay_converted_are_not_quantized(way, monkeypatch):
    """The negative control: eager quantization asks for exactly torch's class, not for one that equals it."""
    monkeypatch.setattr(converted, "undo", lambda layer: None)
    with pytest.raises(AssertionError):
        quantized(way, gconv.convert(network()))


def test_batch_norm_is_fused_into_a_converted_convolution():
    model = network()
    model(IMAGES)
    twin = gconv.convert(model.eval())
    fused = fuse_conv_bn_eval(twin[0], twin[1])
    torch.testing.assert_close(fused(IMAGES), model[1](model[0](IMAGES)))
    assert str(fused.spec) == "conv2d(3, 8, 3, padding=1)"


# -- torch.fx ------------------------------------------------------------------------------------------------------


class OnGraphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = GConv(gcn(3, 4)), GConv(sage((4, 4), 2))

    def forward(self, x, graph, weight):
        h = self.first(x, graph, edge_weight=weight).relu()
        return self.second((h, h), graph)


def test_fx_records_a_layer_as_one_call():
    model = nn.Sequential(GConv(conv2d(3, 4, 3)), nn.ReLU(), GConv(avg_pool2d(2)))
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", *["call_module"] * 3, "output"]
    torch.testing.assert_close(traced(IMAGES), model(IMAGES))
    on_graphs, x, weight = OnGraphs(), torch.randn(4, 3), torch.rand(4)
    traced = torch.fx.symbolic_trace(on_graphs)
    torch.testing.assert_close(traced(x, RING, weight), on_graphs(x, RING, weight))
    assert not torch.allclose(traced(x, RING, 2 + weight), on_graphs(x, RING, weight))  # the weights are an input
    with pytest.raises(TypeError, match=r"use symbolic_trace\(torch.nn.Sequential\(layer\)\)"):
        torch.fx.symbolic_trace(model[0])


def test_fx_records_converted_models_as_the_original():
    model = network().eval()
    traced = torch.fx.symbolic_trace(gconv.convert(model))
    assert traced.code == torch.fx.symbolic_trace(model).code
    torch.testing.assert_close(traced(IMAGES), model(IMAGES))


# -- copies and files ----------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("spec", [conv2d(3, 4, 3), gcn(3, 4), gat(3, 4)], ids=str)
def test_parametrized_layers_are_copied_after_a_call(spec):
    """torch copies their whole dictionaries, with what gconv caches for a layer."""
    layer = GConv(spec)
    given = (IMAGES,) if spec.name == "conv2d" else (torch.randn(4, 3), Graph(RING))
    parametrize.register_parametrization(layer, "weight", Doubled())
    y = layer(*given)
    again = copy.deepcopy(layer)
    assert torch.equal(again(*given), y)
    again.parametrizations.weight.original.data.zero_()
    assert not torch.equal(again(*given), y) and torch.equal(layer(*given), y)
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer(*given), y)


def test_tools_that_flatten_parameters_take_contiguous_weights():
    layer = GConv(conv2d(3, 4, 3))
    y = layer(IMAGES)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        nn.utils.parameters_to_vector(layer.parameters())
    layer.weight.data = layer.weight.data.contiguous()
    torch.testing.assert_close(layer(IMAGES), y)
    vector = nn.utils.parameters_to_vector(layer.parameters())
    nn.utils.vector_to_parameters(vector / 2, layer.parameters())
    torch.testing.assert_close(layer(IMAGES), y / 2)
    optimiser = torch.optim.LBFGS(layer.parameters(), lr=0.1)

    def closure():
        optimiser.zero_grad()
        loss = layer(IMAGES).square().mean()
        loss.backward()
        return loss

    before = optimiser.step(closure)
    assert closure() < before
    prune.l1_unstructured(layer, "weight", 0.5)
    assert (layer.weight == 0).float().mean() == 0.5 and closure().isfinite()
