"""`convert(model, constant_inputs=True)`: what a signal that comes again gives is what it gives anew."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch_geometric import nn as pyg

from gconv import convert
from gconv.interop import restore
from gconv.kernels import constants, known
from gconv.operators.shapes import messy
from gconv.testing import assert_close

BUILDS = {
    "GCN": lambda: pyg.GCNConv(40, 3),
    "SAGE": lambda: pyg.SAGEConv(40, 3),
    "GAT": lambda: pyg.GATConv(40, 2, 2),
    "GATv2": lambda: pyg.GATv2Conv(40, 2, 2),
    "Cheb": lambda: pyg.ChebConv(40, 3, 3),
    "LE": lambda: pyg.LEConv(40, 3),  # a channel of ones
    "model": lambda: pyg.GraphSAGE(40, 8, 2, 3),
}


def features(density=0.1):
    torch.manual_seed(0)
    return torch.randn(6, 40) * (torch.rand(6, 40) < density)


def engine_signal(layer):
    return layer._repeated.constant


def check(layer, twin, x, edge_index):
    wanted = [x] * x.requires_grad
    results = [
        (y, *torch.autograd.grad(y.sin().sum(), [*wanted, *model.parameters()]))
        for model in (layer, twin)
        for y in [model(x, edge_index)]
    ]
    for theirs, ours in zip(*results, strict=True):
        assert_close("the layer", ours, theirs, 1e-5)


@pytest.mark.parametrize("density", [0.1, 0.9])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_values_and_gradients_are_those_of_the_layer(build, density):
    layer, x, edge_index = build(), features(density), messy().edge_index
    twin = convert(layer, constant_inputs=True)
    for _ in range(4):
        check(layer, twin, x, edge_index)
    check(layer, twin, x, messy().edge_index.flip(0))
    first = next(m for m in twin.modules() if hasattr(m, "_repeated"))
    assert known(engine_signal(first)) is not None


CHANGES = {
    "in place": lambda x: x.mul_(2),
    "a part, in place": lambda x: x[2].add_(1),
    "through .data": lambda x: x.data.mul_(2),  # these two in signals of up to 16384 numbers
    "through numpy": lambda x: x.numpy().__imul__(2),
    "other storage": lambda x: setattr(x, "data", torch.randn_like(x)),
    "other form": lambda x: x.set_(torch.randn(6, 40)),
    "a gradient": lambda x: x.requires_grad_(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("build", [BUILDS["GCN"], BUILDS["LE"]], ids=["GCN", "LE"])
def test_a_modified_signal_is_read_again(build, change):
    layer, x, edge_index = build(), features(), messy().edge_index
    twin = convert(layer, constant_inputs=True)
    for _ in range(2):
        for _ in range(3):
            check(layer, twin, x, edge_index)
        change(x)
    check(layer, twin, x, edge_index)


def test_another_tensor_of_the_same_size_is_another_signal():
    layer, edge_index = BUILDS["GCN"](), messy().edge_index
    twin = convert(layer, constant_inputs=True)
    for _ in range(4):  # which may be put where the last one was
        x = torch.randn(6, 40)
        check(layer, twin, x, edge_index)
        check(layer, twin, x, edge_index)


def test_a_layer_that_never_compares_is_detected(monkeypatch):
    """Negative control: without the comparison of versions and numbers."""
    layer, x, edge_index = BUILDS["GCN"](), features(), messy().edge_index
    twin = convert(layer, constant_inputs=True)
    for _ in range(3):
        twin(x, edge_index)
    kept = twin._repeated.constant
    monkeypatch.setattr(type(twin._repeated), "take", lambda self, x, prepare: kept.clone())
    kept = kept.clone()
    with pytest.raises(AssertionError):
        check(layer, twin, x.mul_(2), edge_index)


def test_nothing_outlives_the_signal():
    twin, edge_index = convert(BUILDS["LE"](), constant_inputs=True), messy().edge_index
    before = len(constants._CONSTANTS)
    x = features()
    for _ in range(3):
        twin(x, edge_index)
    alive = weakref.ref(x)
    assert len(constants._CONSTANTS) == before + 1
    del x
    gc.collect()
    assert alive() is None and engine_signal(twin) is None and len(constants._CONSTANTS) == before


def test_it_is_asked_for_and_copied():
    layer, x, edge_index = BUILDS["GCN"](), features(), messy().edge_index
    assert convert(layer)._repeated is None and convert(convert(layer, constant_inputs=True))._repeated is None
    twin = convert(layer, constant_inputs=True)
    for _ in range(3):
        twin(x, edge_index)
    for other in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert other._repeated is not twin._repeated and engine_signal(other) is None
        assert_close("a copy", other(x, edge_index), layer(x, edge_index), 1e-5)
    assert "_repeated" not in vars(restore(twin))
    with pytest.raises(TypeError, match="constant_inputs must be True or False, but it is 'yes'"):
        convert(layer, constant_inputs="yes")


def test_modes_in_which_nothing_is_kept():
    layer, x, edge_index = BUILDS["GCN"](), features(), messy().edge_index
    twin = convert(nn.Sequential(layer), constant_inputs=True)[0]
    with torch.inference_mode():
        y = torch.randn(6, 40)
        for _ in range(3):
            assert_close("inference", twin(y, edge_index), layer(y, edge_index), 1e-5)
            assert_close("inference", twin(x, edge_index), layer(x, edge_index), 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            ours, theirs = twin(x, edge_index), layer(x, edge_index)
            assert ours.dtype == theirs.dtype
            assert_close("autocast", ours.float(), theirs.float(), 0.05)
    grad = torch.func.grad(lambda x: twin(x, edge_index).sum())
    for _ in range(3):
        assert_close("torch.func", grad(x), torch.func.grad(lambda x: layer(x, edge_index).sum())(x), 1e-5)
