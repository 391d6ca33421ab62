"""Every operator that torch.nn or PyG has, exported and run there."""

import warnings

import pytest
import torch
from torch import nn

import gconv
from gconv import GConv, Graph, OutsideFamily, list_operators
from gconv.interop import convert, export
from gconv.interop.export import pyg_layers, torch_layers
from gconv.operators import conv2d, gat, gcn, global_pool, sage, upsample
from gconv.spec import operator

F64 = torch.float64


def two(layer, x, g):
    a, b = x.chunk(2, -1)
    return layer(a.clone(), b, g.edge_index, g.edge_weight if layer.normalize is False else None)


def halves(layer, x, g):
    return layer(x, *(g.edge_index[:, g.edge_type == kind] for kind in (0, 1)))


def hyper(layer, x, g):
    last = torch.zeros(int(g.edge_type.max()) + 1, dtype=F64)
    return layer(x, torch.stack([g.source, g.edge_type]), last.index_put((g.edge_type,), g.weights(F64)))


CALLS = {
    **dict.fromkeys(("gcn2",), lambda m, x, g: m(*(h.clone() for h in x.chunk(2, -1)), g.edge_index, g.edge_weight)),
    "fagcn": two,
    "signed": halves,
    "hypergraph": hyper,
    "global_pool": lambda m, x, g: m(x, g.part()),
    **dict.fromkeys(("relational", "rgat"), lambda m, x, g: m(x, g.edge_index, g.edge_type)),
    **dict.fromkeys(("monet", "nnconv", "pdn"), lambda m, x, g: m(x, g.edge_index, g.edge_attr)),
}
WEIGHTED = {"gcn", "graphconv", "simple", "le", "cheb", "tag", "sgc", "ssg", "appnp", "lightgcn", "mixhop"}
WEIGHTED |= {"wl_continuous"}


def call(module, name, x, g):
    if name in CALLS:
        return CALLS[name](module, x, g)
    if name in WEIGHTED:
        return module(x, g.edge_index, g.edge_weight)
    if getattr(module, "edge_dim", None):
        return module(x, g.edge_index, g.edge_attr)
    return module(x, g.edge_index)


def exported(layer, library):
    try:
        return export(layer, library)
    except OutsideFamily as error:
        assert str(error).endswith(".") and repr(layer.spec) in str(error)
        return None


def test_every_torch_layer():
    names = set()
    for name in sorted(set(torch_layers()) & set(list_operators())):
        for sample in operator(name).samples():
            layer, grid = GConv(sample.spec, dtype=F64), sample.domain()
            module = exported(layer, "torch")
            if module is None:
                continue
            assert isinstance(module, nn.Module) and not isinstance(module, GConv)
            x = torch.randn(2, sample.channels, *grid.shape, dtype=F64)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
                y = module(x)
            torch.testing.assert_close(y, layer(x), rtol=1e-10, atol=1e-10)
            names.add(name)
    assert names == set(torch_layers())


def test_every_pyg_layer():
    names = set()
    for name in sorted(set(pyg_layers()) & set(list_operators())):
        for sample in operator(name).samples():
            layer, graph = GConv(sample.spec, dtype=F64).eval(), sample.domain()  # without dropout
            if name == "hypergraph" and not torch.equal(graph.source, graph.target):
                continue  # PyG sends from a hyperedge to the nodes it came from
            module = exported(layer, "pyg") if isinstance(graph, Graph) else None
            if module is None:
                continue
            if graph.edge_weight is not None:
                graph = Graph(
                    graph.edge_index, graph.size, graph.edge_weight.double(), graph.edge_attr, graph.edge_type
                )
            x = torch.randn(graph.size, sample.channels, dtype=F64)
            if name == "global_pool":
                graph = sample.domain()
            ours = layer(x, graph)
            tolerance = 1e-6 if name == "cluster_gcn" else 1e-10  # PyG counts its degrees in single precision
            torch.testing.assert_close(
                call(module.eval(), name, x, graph), ours, rtol=tolerance, atol=tolerance, msg=repr(layer)
            )
            names.add(name)
    assert names == set(pyg_layers())


def test_there_and_back():
    layer = GConv(conv2d(4, 6, 3, groups=2), dtype=F64)
    twin = convert(export(layer, "torch"))
    x = torch.randn(1, 4, 5, 5, dtype=F64)
    assert twin.spec == layer.spec
    torch.testing.assert_close(twin(x), layer(x))
    back = export(twin, "torch")
    assert type(back) is nn.Conv2d
    torch.testing.assert_close(back(x), layer(x))


def test_modes_and_dtypes_are_kept():
    made = export(GConv(gat(3, 2, heads=2), dtype=F64).eval(), "pyg")
    assert not made.training and made.att_src.dtype == F64
    assert not {id(p) for p in made.parameters()} & {0}


def test_refusals():
    cases = [
        (GConv(gcn(3, 2)), "torch", r"torch.nn has no layer equivalent to gcn\(3, 2\)\.$"),
        (GConv(conv2d(3, 2, 3, padding=((0, 1), (1, 1)))), "torch", "is the same on both sides"),
        (GConv(global_pool()), "torch", "no layer equivalent to global_pool"),
        (GConv(conv2d(3, 2, 3)), "pyg", "PyG has no layer"),
    ]
    for layer, library, message in cases:
        with pytest.raises(OutsideFamily, match=message):
            export(layer, library)
    with pytest.raises(ValueError, match="library must be 'torch' or 'pyg', but it is 'jax'"):
        export(GConv(sage(3, 2)), "jax")
    with pytest.raises(TypeError, match="takes a GConv, but a ReLU"):
        export(nn.ReLU(), "torch")


def test_a_peer_with_other_weights_is_detected(monkeypatch):
    """Negative control: where the weight map loses numbers, export refuses."""
    peer = gconv.interop.torch_nn.CONV
    broken = gconv.interop.peer.Peer(peer.spec, lambda m: peer.weights(m) | {"bias": None}, peer.call)
    monkeypatch.setitem(gconv.interop.torch_nn.PEERS, nn.Conv2d, broken)
    with pytest.raises(OutsideFamily, match="its bias has no place there"):
        export(GConv(conv2d(3, 2, 3)), "torch")


@pytest.mark.parametrize("d", [1, 2, 3])
def test_nearest_upsampling_is_exported_on_any_number_of_axes(d):
    layer, x = GConv(upsample(scale_factor=2, ndim=d)), torch.rand(1, 2, *(3, 4, 2)[:d])
    assert torch.equal(export(layer, "torch")(x), layer(x))
