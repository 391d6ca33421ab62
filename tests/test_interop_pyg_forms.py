"""Every form of a call that PyG's layers document, right and wrong, on a layer and its converted copy: one outcome."""

import copy
import inspect

import pytest
import torch
from oracles.pyg_layers import ATTR, BARE, CASES, REL, TWO, WEIGHT
from torch import nn
from torch_geometric import EdgeIndex
from torch_geometric import nn as pyg
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

from gconv import convert
from gconv.interop import restore, torch_nn
from gconv.interop.pyg import PEERS
from gconv.lowering import fixed

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:Converting sparse tensor"),
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:index_reduce"),
]
N, E = 5, 8
EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 2, 3], [1, 0, 2, 3, 0, 1, 4, 3]])
LAYERS = {
    name: (edges, builds[0])
    for name, (edges, builds) in CASES.items()
    if edges in (BARE, WEIGHT, ATTR, REL, TWO) and name != "SuperGATConv"
} | {"SuperGATConv": (BARE, lambda i, o: pyg.SuperGATConv(i, o, 2).eval())}
QUICK = ("GCNConv", "GATConv", "RGCNConv")
EVERY = pytest.mark.parametrize("name", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in LAYERS])


def carried(edges, count=E):
    return {
        ATTR: {"edge_attr": torch.linspace(-1, 1, 2 * count).reshape(count, 2)},
        REL: {"edge_type": torch.arange(count) % 3},
    }.get(edges, {})


def signals(edges, x):
    return (x, x.detach().cos()) if edges == TWO and isinstance(x, torch.Tensor) else (x,)


def forms(edges, parameters):
    """Name -> the arguments of a call."""
    x, base = torch.linspace(-1, 1, 3 * N).reshape(N, 3).sin(), carried(edges)
    call = lambda x=x, edge_index=EDGES, **more: ((*signals(edges, x), edge_index), {**base, **more})  # noqa: E731
    named = dict(zip(("x", "x_0"), signals(edges, x), strict=False))
    found = {
        "by position": ((*signals(edges, x), EDGES, *base.values()), {}),
        "by name": ((), {**named, "edge_index": EDGES, **base}),
        "EdgeIndex": call(edge_index=EdgeIndex(EDGES, sparse_size=(N, N))),
        "int32": call(edge_index=EDGES.int()),
        "not contiguous": call(x.t().contiguous().t(), EDGES.t().contiguous().t()),
        "Parameter": call(torch.nn.Parameter(x)),
        "no edges": ((*signals(edges, x), EDGES[:, :0]), carried(edges, 0)),
        "no nodes": ((*signals(edges, x[:0]), EDGES[:, :0]), carried(edges, 0)),
        "a node beyond": call(edge_index=EDGES.where(EDGES < 4, torch.tensor(9))),
        "fewer channels": call(x[:, :2]),
        "another type": call(x.double()),
        "whole numbers": call(x.long()),
        "one axis": call(x[:, 0]),
        "no signal": call(None),
        "a list": call(x.tolist()),
        "edges of floats": call(edge_index=EDGES.float()),
        "edges in columns": call(edge_index=EDGES.t()),
        "edges as a list": call(edge_index=EDGES.tolist()),
        "no edge_index": (signals(edges, x), base),
        "unknown": call(other=1),
        "too many": ((*signals(edges, x), EDGES, *base.values(), *[None] * 9), {}),
    }
    for name in {"size", "values", "max_num_elements"} - set(parameters):  # arguments of some descriptions
        found[f"unknown: {name}"] = call(**{name: None})
    if edges in (BARE, WEIGHT, TWO):
        found |= {
            "csr": call(edge_index=to_torch_csc_tensor(EDGES, size=(N, N)).t()),
            "coo": call(edge_index=to_torch_coo_tensor(EDGES, size=(N, N)).t().coalesce()),
            "csc": call(edge_index=to_torch_csr_tensor(EDGES, size=(N, N)).t()),
            "csr of another size": call(edge_index=to_torch_csc_tensor(EDGES, size=(N, N + 1)).t()),
        }
    if "edge_weight" in parameters:
        weight = torch.linspace(0.5, 2, E)
        found |= {
            "weights": call(edge_weight=weight),
            "weights, learned": call(edge_weight=weight.requires_grad_()),
            "weights, a column": call(edge_weight=weight.detach().unsqueeze(1)),
            "too few weights": call(edge_weight=weight[1:]),
            "weights of another type": call(edge_weight=weight.detach().double()),
            "whole weights": call(edge_weight=torch.ones(E, dtype=torch.int64)),
            "a list of weights": call(edge_weight=weight.tolist()),
            "csr with values": call(edge_index=to_torch_csc_tensor(EDGES, weight.detach(), size=(N, N)).t()),
        }
    if edges == ATTR:
        found |= {
            "attributes, a vector": call(edge_attr=base["edge_attr"][:, 0]),
            "too few attributes": call(edge_attr=base["edge_attr"][1:]),
            "no attributes": call(edge_attr=None),
        }
    if edges == REL:
        found |= {
            "labels of floats": call(edge_type=base["edge_type"].float()),
            "too few labels": call(edge_type=base["edge_type"][1:]),
            "a label beyond": call(edge_type=base["edge_type"] + 1),
            "no labels": call(edge_type=None),
        }
    if "size" in parameters:
        found |= {"size": call(size=(N, N)), "another size": call(size=(N, N + 1)), "half a size": call(size=(N, None))}
    if edges != TWO:
        found |= {
            "a pair": call((x, x.cos())),
            "a source alone": call((x, None)),
            "a pair of other sizes": call((x, x[:4].cos()), EDGES.clamp(max=3)),
            "three signals": call((x, x, x)),
            "a list of two": call([x, x]),
        }
    if "return_attention_weights" in parameters:
        found |= {f"weights asked for: {value}": call(return_attention_weights=value) for value in (True, False, None)}
    return found


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in tensors(part)] if isinstance(value, tuple | list) else [value]


def outcome(layer, arguments):
    """What a call returns, with its gradients in the parameters; or the exception that it raises."""
    args, kwargs = arguments
    layer.zero_grad()
    try:
        y = tensors(layer(*args, **kwargs))
        if y[0].requires_grad:
            y[0].sin().sum().backward()
    except Exception as error:
        return error
    return [*y, *(torch.zeros_like(p) if p.grad is None else p.grad for p in layer.parameters())]


def compare(form, theirs, ours):
    """The value, types and gradients of PyG's; or an error of the class of PyG's."""
    if isinstance(theirs, Exception):
        assert isinstance(ours, type(theirs)), (
            f"{form}: PyG raises {theirs!r}, gconv {'raises' if isinstance(ours, Exception) else 'returns'} {ours!r}"
        )
        return
    assert not isinstance(ours, Exception), f"{form}: gconv raises {ours!r}"
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if b is None or not isinstance(b, torch.Tensor):
            assert (a is None) == (b is None)
            continue
        assert (a.dtype, a.layout, a.shape) == (b.dtype, b.layout, b.shape), form
        a, b = (t.to_dense() if t.layout is not torch.strided else t for t in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True, msg=lambda m: f"{form}: {m}")


@EVERY
def test_every_form_of_a_call(name):
    edges, build = LAYERS[name]
    torch.manual_seed(0)
    layer = build(3, 2).float()
    twin = convert(layer)
    failures = []
    for form, arguments in forms(edges, inspect.signature(type(layer).forward).parameters).items():
        results = []
        for module in (layer, twin):
            torch.manual_seed(1)
            results.append(outcome(module, copy.copy(arguments)))
        try:
            compare(form, *results)
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, "\n".join(failures)


def misnamed(peers):
    """The classes whose description names its arguments in another way than the layer."""
    found = []
    for cls, peer in peers.items():
        own = list(inspect.signature(cls.forward).parameters)[1:]
        if list(inspect.signature(peer.call).parameters)[1 : 1 + len(own)] != own:
            found.append(cls)
    return found


def test_arguments_have_the_names_of_the_layers():
    assert not misnamed({**torch_nn.PEERS, **PEERS})
    x = torch.randn(4, 3)
    for layer, name in ((pyg.Linear(3, 2), "x"), (nn.Linear(3, 2), "input")):
        assert torch.equal(convert(layer)(**{name: x}), layer(x))
    assert misnamed({pyg.Linear: torch_nn.LINEAR}) == [pyg.Linear]  # the negative control


def test_readouts_and_pools_take_no_other_arguments():
    for layer, x, more in (
        (pyg.MeanAggregation(), torch.randn(4, 3), {"max_num_elements": 4}),
        (nn.AvgPool2d(2), torch.randn(1, 2, 4, 4), {"axes": 0}),
    ):
        for module in (layer, convert(layer)):
            with pytest.raises(TypeError, match=next(iter(more))):
                module(x, **more)


# -- what else a user does with a layer ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_repr_and_initialisation_of_a_layer(name):
    """Its text, its parameters after reset_parameters, its state_dict."""
    layer = LAYERS[name][1](3, 2)
    twin = convert(layer)
    assert str(twin).split("\n")[0].startswith(str(layer).split("\n")[0].rstrip(")"))
    assert repr(restore(twin)) == repr(layer) and list(twin.state_dict()) == list(layer.state_dict())
    for module in (layer, twin):
        torch.manual_seed(5)
        module.reset_parameters()
    for a, b in zip(twin.parameters(), layer.parameters(), strict=True):
        assert torch.equal(a, b)


CACHING = {
    "GCNConv": lambda: pyg.GCNConv(3, 2, cached=True),
    "APPNP": lambda: pyg.APPNP(2, 0.1, cached=True),
    "GCN2Conv": lambda: pyg.GCN2Conv(3, 0.1, cached=True),
    "FAConv": lambda: pyg.FAConv(3, cached=True),
    "EGConv": lambda: pyg.EGConv(3, 4, num_heads=2, cached=True),
}


@pytest.mark.parametrize("name", CACHING)
def test_what_a_layer_caches_is_where_pyg_puts_it(name, monkeypatch):
    """And it goes with reset_parameters; later graphs are not looked at."""
    layer = CACHING[name]()
    twin, edges = convert(layer), TWO if name in ("GCN2Conv", "FAConv") else BARE
    x = torch.randn(N, 3)
    messages = []
    monkeypatch.setattr(twin.aggr_module, "forward", lambda *given, **named: messages.append(given))
    for graph in (EDGES, EDGES.flip(0)):
        given = (*signals(edges, x), graph)
        torch.testing.assert_close(twin(*given), layer(*given))
    for ours, theirs in zip(twin._cached_edge_index, layer._cached_edge_index, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not messages, "the cache is filled without propagation"
    again = copy.deepcopy(twin)
    torch.testing.assert_close(again(*given), layer(*given))
    twin.load_state_dict(layer.state_dict())
    twin.reset_parameters()
    assert twin._cached_edge_index is None
    layer.load_state_dict(twin.state_dict())
    layer._cached_edge_index = None
    torch.testing.assert_close(twin(*given), layer(*given))


def test_caching_enabled_later():
    layer, x = pyg.GCNConv(3, 2), torch.randn(N, 3)
    twin = convert(layer)
    twin.cached = layer.cached = True
    for graph in (EDGES, EDGES.flip(0)):
        torch.testing.assert_close(twin(x, graph), layer(x, graph))
    assert twin._cached_edge_index is not None and "GCNConv" in str(twin.at(EDGES) and twin)


CHANGED = {
    "flow": lambda layer: setattr(layer, "flow", "target_to_source"),
    "aggr": lambda layer: setattr(layer, "aggr", "mean"),
    "decomposed_layers": lambda layer: setattr(layer, "decomposed_layers", 2),
    "explain": lambda layer: setattr(layer, "explain", True),
    "fuse": lambda layer: setattr(layer, "fuse", False),
    "double": lambda layer: layer.double(),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("build", [lambda: pyg.GCNConv(4, 2), lambda: pyg.SAGEConv(4, 2)], ids=["GCNConv", "SAGEConv"])
def test_attributes_that_are_set_later(build, change):
    layer = build()
    twin = convert(layer)
    for module in (layer, twin):
        change(module)
    x = torch.randn(N, 4, dtype=next(layer.parameters()).dtype)
    if layer.explain:
        layer._edge_mask = twin._edge_mask = torch.nn.Parameter(torch.ones(E))
        layer._loop_mask = twin._loop_mask = torch.ones(E, dtype=torch.bool)
        layer._apply_sigmoid = twin._apply_sigmoid = True
    results = [outcome(module, ((x, EDGES), {})) for module in (layer, twin)]
    compare("changed", *results)


HOOKS = ("propagate_forward_pre", "propagate_forward", "message_forward_pre", "message_forward", "aggregate_forward")


@pytest.mark.parametrize("where", [HOOKS[0], *(pytest.param(hook, marks=pytest.mark.slow) for hook in HOOKS[1:])])
def test_hooks_into_the_messages_are_called(where):
    layer, x, seen = pyg.GCNConv(3, 2), torch.randn(N, 3), []
    for module in (layer, convert(layer)):
        handle = getattr(module, f"register_{where}_hook")(lambda module, *rest: seen.append(module))
        module(x, EDGES)
        handle.remove()
        module(x, EDGES)
    assert [type(module).__name__ for module in seen] == ["GCNConv"] * 2


@pytest.mark.parametrize("name", ["GCNConv", "SAGEConv", "GATConv", "Linear"])
def test_lazy_layers_are_initialised_by_a_call(name):
    """Input channels of -1: left alone until a call has given them their sizes."""
    layer = {"GATConv": lambda: pyg.GATConv(-1, 2, 2), "Linear": lambda: pyg.Linear(-1, 2)}.get(
        name, lambda: getattr(pyg, name)(-1, 2)
    )()
    twin = convert(layer)
    given = (torch.randn(N, 3),) if name == "Linear" else (torch.randn(N, 3), EDGES)
    twin(*given), layer(*given)
    layer.load_state_dict(twin.state_dict())
    torch.testing.assert_close(convert(twin)(*given), layer(*given))
    assert convert(twin).report().converted


def test_scripting_names_the_way_back():
    twin = convert(pyg.GCNConv(3, 2))
    with pytest.raises(TypeError, match="restore"):
        torch.jit.script(twin)
    with pytest.raises(TypeError, match="restore"):
        torch.jit.script(torch.nn.Sequential(torch.nn.Identity(), twin))


LAID_OUT = (
    lambda: pyg.GCNConv(3, 2), lambda: pyg.SAGEConv(3, 2), lambda: pyg.GraphConv(3, 2), lambda: pyg.ChebConv(3, 2, 3),
    lambda: pyg.TAGConv(3, 2), lambda: pyg.ClusterGCNConv(3, 2), lambda: pyg.DirGNNConv(pyg.GCNConv(3, 2)),
)  # fmt: skip


def strides(layer, create_graph):
    y = layer(torch.linspace(-1, 1, 3 * N).reshape(N, 3), EDGES)
    return [g.stride() for g in torch.autograd.grad(y.sum(), [*layer.parameters()], create_graph=create_graph)]


@pytest.mark.parametrize("build", LAID_OUT)
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_have_the_strides_of_the_original(build, create_graph, monkeypatch):
    """So that `view` works on them, as on the layer's."""
    layer = build()
    twin = convert(layer)
    assert strides(twin, create_graph) == strides(layer, create_graph)
    monkeypatch.setattr(fixed, "by_columns", lambda W: False)  # the negative control
    assert strides(twin, create_graph) != strides(layer, create_graph)
