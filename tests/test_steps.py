"""A fixed structure with a dense mixing as one step of autograd: what its single operators give, and derivatives."""

import copy
import io
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gconv import GConv, Graph, constant
from gconv.kernels import Constant, known, native
from gconv.lowering import steps
from gconv.operators import cheb, gat, gcn, relational, sage, tag
from gconv.testing import assert_close

INDEX = torch.tensor([[0, 0, 1, 2, 2, 3, 4, 4, 4], [1, 1, 2, 2, 0, 4, 0, 3, 3]])  # double edges, a loop, a node alone
MESSY = Graph(INDEX, 6, edge_weight=torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25, 1.5, 1.0, 0.75, 2.0]))
TYPED = Graph(INDEX, 6, edge_type=torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0]))
LAYERS = {
    "gcn": (lambda i, o: gcn(i, o), MESSY, "sparse"),
    "sage": (lambda i, o: sage(i, o), MESSY, "sparse"),
    "sage, no bias": (lambda i, o: sage(i, o, bias=False), MESSY, "sparse"),
    "relational": (lambda i, o: relational(i, o, 2), TYPED, "sparse"),
    "cheb": (lambda i, o: cheb(i, o, k=3), MESSY, "recurrence"),
    "cheb, one term": (lambda i, o: cheb(i, o, k=1), MESSY, "recurrence"),
    "tag": (lambda i, o: tag(i, o, k=2), MESSY, "recurrence"),
}


def numbers(layer, x, graph, name):
    """The value, and the gradients of all that has one."""
    y = layer(x, graph, lowering=name)
    dy = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    leaves = [leaf for leaf in (x, *layer.parameters()) if leaf.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def by_operators(monkeypatch):
    """Neither a step that is ready nor one that is made for the call."""
    monkeypatch.setattr(steps, "serves", lambda *_: False)
    monkeypatch.setattr(steps, "is_plain_call", lambda *_: False)


def nodes(y):
    """How many nodes autograd has to go through."""
    seen, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen and type(node).__name__ != "AccumulateGrad":
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return len(seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("association", ["aggregate", "transform"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_one_step_is_as_good_as_single_operators(layer, association, dtype, monkeypatch):
    make, graph, family = layer
    name = f"{family}:{association}"
    for i, o in ((1, 3), (3, 1), (17, 33), (3, 3)):
        built = GConv(make(i, o), dtype=dtype)
        for batch in ((), (2,), (2, 3)):
            for frozen in ("nothing", "weight", "x", "bias"):
                x = torch.randn(*batch, 6, i, dtype=dtype, requires_grad=frozen != "x")
                for other, p in built.named_parameters():
                    p.requires_grad_(other != frozen)
                got = numbers(built, x, graph, name)
                with monkeypatch.context() as patch:
                    by_operators(patch)
                    want = numbers(built, x, graph, name)
                tol = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}[dtype]
                for one, right in zip(got, want, strict=True):
                    assert one.dtype == right.dtype
                    assert_close(f"{i} -> {o}, {batch}, {frozen}", one, right, tol)
                with torch.no_grad():
                    assert_close("recording nothing", built(x, graph, lowering=name), want[0], tol)


@pytest.mark.parametrize("association", ["aggregate", "transform"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_derivatives_and_theirs(layer, association):
    make, graph, family = layer
    built = GConv(make(2, 3), dtype=torch.float64)
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *parameters):
        named = dict(zip(dict(built.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(built, named, (x, graph), {"lowering": f"{family}:{association}"})

    leaves = x, *(p.detach().clone().requires_grad_() for p in built.parameters())
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_a_layer_is_one_node(monkeypatch):
    x = torch.randn(6, 3, requires_grad=True)
    for make, graph, family in LAYERS.values():  # by name: on so small a graph a plan may prefer the dense matrix
        assert nodes(GConv(make(3, 4))(x, graph, lowering=family)) == 1
    by_operators(monkeypatch)
    assert nodes(GConv(sage(3, 4))(x, MESSY, lowering="sparse")) > 4


def few_ones(i, every, dtype=torch.float64):
    """A signal on six nodes, of which one number in so many is not zero."""
    at = torch.arange(6 * i).view(6, i)
    return torch.sin(at + 1.0).to(dtype) * (at % every == 0)


@pytest.mark.parametrize("association", ["aggregate", "transform"])
@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_constant_signal(layer, every, association, monkeypatch):
    """Transform first it is one node, through the sparse form where it has one; aggregate first S x is at hand."""
    make, graph, family = layer
    name, met, times = f"{family}:{association}", [], Constant.times
    monkeypatch.setattr(Constant, "times", lambda held, W: met.append(W) or times(held, W))
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for i, o in ((17, 1), (17, 3), (5, 33)):
            built, x = GConv(make(i, o), dtype=dtype), few_ones(i, every, dtype)
            fixed = constant(x)
            sparse = known(fixed).sparse is not None
            assert sparse == (every > 1)
            got = numbers(built, fixed, graph, name)
            assert bool(met) == (sparse and association == "transform")
            for one, right in zip(got, numbers(built, x, graph, name), strict=True):
                assert_close(f"{i} -> {o}, {dtype}", one, right, tol)
            if association == "transform":
                assert nodes(built(fixed, graph, lowering=name)) == 1
            met.clear()


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_derivatives_and_theirs_at_a_constant_signal(layer):
    make, graph, family = layer
    built, x = GConv(make(7, 3), dtype=torch.float64), constant(few_ones(7, 7))

    def run(*parameters):
        named = dict(zip(dict(built.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(built, named, (x, graph), {"lowering": f"{family}:transform"}).square()

    leaves = tuple(p.detach().clone().requires_grad_() for p in built.parameters())
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("o", [3, 7])
@pytest.mark.parametrize("name", ["gcn", "sage", "relational", "cheb"])
def test_rows_may_lie_apart_on_the_way(name, o, monkeypatch):
    """To few channels from many numbers, what is gathered from has gaps; a result has none."""
    torch.manual_seed(0)
    graph = Graph(torch.randint(2100, (2, 9000)), 2100, edge_type=torch.randint(2, (9000,)))
    make, _, family = LAYERS[name]
    layer, x = GConv(make(16, o)), torch.randn(2100, 16, requires_grad=True)
    way = f"{family}:transform"
    assert layer(x, graph, lowering=way).is_contiguous()
    got = numbers(layer, x, graph, way)
    by_operators(monkeypatch)
    for one, right in zip(got, numbers(layer, x, graph, way), strict=True):
        assert_close(name, one, right, 1e-5)


class Watched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_whoever_looks_sees_single_operators():
    layer, x = GConv(sage(3, 4)), torch.randn(6, 3)
    want = layer(x, MESSY)
    with Watched() as seen:
        layer(x, MESSY)
    assert "spmm" in seen.names
    got = torch.func.vmap(lambda x: layer(x, MESSY))(x.expand(2, 6, 3))
    assert_close("vmap", got[1], want, 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        for way in ("dense", "sparse:aggregate", "sparse:transform"):
            assert layer(x, MESSY, lowering=way).dtype == torch.bfloat16


def test_what_is_not_fixed_is_not_served():
    x = torch.randn(6, 3)
    layer = GConv(gcn(3, 4))
    S, W = layer.at(MESSY).S, layer.weight
    assert steps.serves(S, x, W)
    assert not steps.serves(S, x.double(), W)
    assert not steps.serves(S, x[:0], W)
    assert not steps.serves(S, x.as_subclass(type("Mine", (torch.Tensor,), {})), W)
    attention = GConv(gat(3, 4))
    frozen = attention.at(MESSY, x=x)
    assert not steps.serves(frozen.S, x, attention.weight)
    weighted = Graph(INDEX, 6, edge_weight=torch.rand(9, requires_grad=True))
    y = layer(x, weighted)
    assert torch.autograd.grad(y.sum(), weighted.edge_weight)[0].abs().sum() > 0


def test_layers_that_ran_are_copied_changed_and_kept():
    layer, x = GConv(sage(3, 4)), torch.randn(6, 3, requires_grad=True)
    first = layer(x, MESSY)
    first.sum().backward()
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stream, weights_only=False),
    ):
        assert_close("a copy", twin(x, copy.deepcopy(MESSY)), first, 0)
    with torch.no_grad():
        without = first - layer.bias
        layer.weight.mul_(2)
        layer.bias.zero_()
    assert_close("other weights", layer(x, MESSY), 2 * without, 1e-5)
    index = INDEX.clone()
    before = layer(x, index)
    index[0, 0] = 5  # the same tensor, other edges
    assert not torch.equal(layer(x, index), before)
    assert_close("edges changed in place", layer(x, index), layer(x, index.clone()), 0)
    double = copy.deepcopy(layer).double()
    with pytest.raises(TypeError, match="convert one of them"):
        double(x, MESSY)
    assert double(x.double(), MESSY).dtype == torch.float64


@pytest.mark.parametrize("name", ["sage", "cheb", "relational"])
def test_without_compiled_kernels(name, monkeypatch):
    make, graph, _ = LAYERS[name]
    layer, x = GConv(make(3, 4)), torch.randn(6, 3, requires_grad=True)
    want = numbers(layer, x, graph, None)
    monkeypatch.setattr(native, "LIBRARY", None)
    fresh = copy.deepcopy(layer)  # what the other one has made ready holds the kernel
    for got, right in zip(numbers(fresh, x, graph, None), want, strict=True):
        assert_close("in pure torch", got, right, 1e-5)


def test_threads_do_not_change_a_bit():
    torch.manual_seed(0)
    graph = Graph(torch.randint(3000, (2, 20000)), 3000)
    layer, x = GConv(sage(16, 16)), torch.randn(3000, 16, requires_grad=True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(numbers(layer, x, graph, "sparse:aggregate")[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_what_is_ready_is_not_used_for_what_does_not_fit(monkeypatch):
    """A kernel that is ready looks at no shape or type: what was exchanged since goes the careful way."""
    layer, x = GConv(sage(3, 4)), torch.randn(6, 3, requires_grad=True)
    first = layer(x, MESSY)
    assert_close("the second call", layer(x, MESSY), first, 0)
    served = []
    monkeypatch.setattr(steps.Step, "__call__", lambda self, *_: served.append(self.dtype) or first)
    layer(x, MESSY)
    assert served.pop() == torch.float32  # ready: made for a type
    kept = layer.weight, layer.bias
    for name, shape in (("weight", (2, 3, 8)), ("weight", (2, 3, 1)), ("bias", (1,)), ("bias", (8,))):
        setattr(layer, name, torch.nn.Parameter(torch.randn(shape)))
        with pytest.raises(ValueError, match=f"sage has a {name} of shape"):
            layer(x, MESSY)
        layer.weight, layer.bias = kept
    changes = {
        "a bias with gaps": lambda: setattr(layer, "bias", torch.nn.Parameter(torch.zeros(8)[::2])),
        "a bias of another type": lambda: setattr(layer, "bias", torch.nn.Parameter(torch.zeros(4).double())),
    }
    for what, change in changes.items():
        change()
        layer(x, MESSY)
        assert served.pop() is None, what  # made for the call: shapes and types are torch's to check
        layer.weight, layer.bias = kept
    layer(x.detach().t().contiguous().t().requires_grad_(), MESSY)
    assert served.pop() is None  # channels are not side by side


def test_edges_in_a_tensor_are_recognised():
    layer, x, index = GConv(gcn(3, 4)), torch.randn(6, 3), INDEX.clone()
    weight = torch.rand(9)
    want = layer(x, Graph(index, 6, edge_weight=weight))
    for _ in range(2):
        assert_close("edge_index", layer(x, index, edge_weight=weight), want, 1e-6)
    assert len(layer._graphs) == 1  # the graph that was read, once: the other one is gone
    other = layer(x, index, edge_weight=2 * weight + 1)
    assert not torch.allclose(other, want)
    learned = weight.clone().requires_grad_()
    assert torch.autograd.grad(layer(x, index, edge_weight=learned).sum(), learned)[0].abs().sum() > 0
    with pytest.raises(TypeError, match="floating point"):
        layer(x.long(), index)
    with pytest.raises(ValueError, match="nodes"):
        layer(torch.randn(3), index)


def test_a_signal_of_another_graph_is_refused():
    layer = GConv(gcn(3, 4))
    with pytest.raises(ValueError, match="sites in"):
        steps.mixed(layer.at(MESSY).S, torch.randn(7, 3), layer.weight, layer.bias, True)
