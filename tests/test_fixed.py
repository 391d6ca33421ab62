"""A fixed structure with a dense mixing as one step of autograd: values, derivatives of any order, chunks, bounds."""

import copy
import io
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from shared import Dispatched
from torch.utils.flop_counter import FlopCounterMode

from gconv import GConv, Graph, constant, list_operators
from gconv.basis import Basis, Pattern, Taps
from gconv.call import Call
from gconv.domains import grid_graph
from gconv.kernels import Constant, known, memory, native
from gconv.laplacian import adjacency
from gconv.lowering import dense, fixed
from gconv.mixing import Dense
from gconv.operators import appnp, cheb, conv2d, gat, gcn, hypergraph, relational, sage, selection, tag
from gconv.spec import GraphStructure, OperatorSpec, Parameter, Sample, operator
from gconv.testing import LAWS, assert_close, check_operator

INDEX = torch.tensor([[0, 0, 1, 2, 2, 3, 4, 4, 4], [1, 1, 2, 2, 0, 4, 0, 3, 3]])  # double edges, a loop, a node alone
MESSY = Graph(INDEX, 6, edge_weight=torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25, 1.5, 1.0, 0.75, 2.0]))
TYPED = Graph(INDEX, 6, edge_type=torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0]))
PIXELS = grid_graph((3, 4), 8, loops=True)
LAYERS = {
    "gcn": (gcn, MESSY, "sparse"),
    "sage": (sage, MESSY, "sparse"),
    "relational": (lambda i, o, **more: relational(i, o, 2, **more), TYPED, "sparse"),
    "selection": (lambda i, o, **more: selection(i, o, 9, **more), PIXELS, "sparse"),
    "cheb": (lambda i, o, **more: cheb(i, o, k=3, **more), MESSY, "recurrence"),
    "cheb, one term": (lambda i, o, **more: cheb(i, o, k=1, **more), MESSY, "recurrence"),
    "tag": (lambda i, o, **more: tag(i, o, k=2, **more), MESSY, "recurrence"),
    "hypergraph": (hypergraph, TYPED, "sparse"),
}
EACH = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
FIRST = pytest.mark.parametrize("first", ["aggregate", "transform"])


def numbers(layer, x, graph, name, create_graph=False):
    """The value, and the gradients of all that has one."""
    y = layer(x, graph, lowering=name)
    dy = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    leaves = [leaf for leaf in (x, *layer.parameters()) if leaf.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, leaves, dy, create_graph=create_graph)]


def by_operators(monkeypatch):
    monkeypatch.setattr(fixed, "applies", lambda *_: False)


def in_chunks(monkeypatch, size=100):
    """Tiny signals count as large, and go some rows or signals at a time."""
    monkeypatch.setattr(fixed, "CHUNK_BYTES", size)
    monkeypatch.setattr(fixed, "MIN_BYTES_ROWS", 0)
    monkeypatch.setattr(fixed, "MIN_CHUNKS", 0)


def nodes(y):
    """How many nodes autograd has to go through."""
    seen, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen and type(node).__name__ != "AccumulateGrad":
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
    return len(seen)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("how", ["all", "chunks", "torch"])
@FIRST
@EACH
def test_one_step_is_as_good_as_single_operators(layer, first, how, monkeypatch):
    make, graph, family = layer
    name, n = f"{family}:{first}", graph.size
    if how == "torch":
        monkeypatch.setattr(native, "LIBRARY", None)
    for (i, o), batch, frozen in (
        ((1, 3), (), "nothing"), ((3, 1), (2, 3), "x"), ((17, 33), (9,), "weight"), ((3, 3), (2,), "bias"),
        ((5, 2), (), "x"), ((2, 5), (1,), "weight"), ((2, 5), (), "nothing"), ((1, 1), (10,), "nothing"),
    ):  # fmt: skip
        built = GConv(make(i, o), dtype=torch.float64)
        x = torch.randn(*batch, n, i, dtype=torch.float64, requires_grad=frozen != "x")
        for other, p in built.named_parameters():
            p.requires_grad_(other != frozen)
        with monkeypatch.context() as patch:
            by_operators(patch)
            want = numbers(built, x, graph, name)
        with monkeypatch.context() as patch:
            if how != "all":
                in_chunks(patch)
            for create_graph in (False, True):
                for one, right in zip(numbers(built, x, graph, name, create_graph), want, strict=True):
                    assert_close(f"{i} -> {o}, {batch}, {frozen}", one, right, 1e-12)
            assert nodes(built(x, graph, lowering=name)) <= 1 + (len(batch) > 1) * 2 + (batch == (1,)) * 3
            with torch.no_grad():
                assert_close("recording nothing", built(x, graph, lowering=name), want[0], 1e-12)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", [gcn(8, 8), sage(8, 4), sage(4, 8), selection(8, 8, 9)], ids=str)
def test_other_types(dtype, spec, chunked, monkeypatch):
    layer, wide = GConv(spec, dtype=dtype), GConv(spec, dtype=torch.float64)
    wide.load_state_dict(layer.state_dict())
    if chunked:
        in_chunks(monkeypatch)
    for batch in ((), (4,)):
        x = torch.randn(*batch, PIXELS.size, spec.mixing.i, dtype=dtype, requires_grad=True)
        want = numbers(wide, x.detach().double().requires_grad_(), PIXELS, "sparse")
        for got, right in zip(numbers(layer, x, PIXELS, "sparse"), want, strict=True):
            assert got.dtype == dtype
            assert_close("rounding", got.double(), right, 1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("chunked", [False, True])
@FIRST
@EACH
def test_derivatives_and_theirs(layer, first, chunked, monkeypatch):
    make, graph, family = layer
    if chunked:
        in_chunks(monkeypatch)
    built = GConv(make(2, 3), dtype=torch.float64)
    x = torch.randn(graph.size, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *parameters):
        named = dict(zip(dict(built.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(built, named, (x, graph), {"lowering": f"{family}:{first}"})

    leaves = x, *(p.detach().clone().requires_grad_() for p in built.parameters())
    assert torch.autograd.gradcheck(run, leaves, fast_mode=chunked)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=chunked)


class Case:
    """Y in one step, and by operators that torch knows."""

    def __init__(self, name, batch, gathers):
        make, graph, _ = LAYERS[name]
        spec = make(3, 4)
        shapes = (*batch, graph.size, 3), (spec.mixing.taps, 3, 4), (4,)
        self.x, self.W, self.bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
        layer = GConv(spec, dtype=torch.float64)
        self.S, self.gathers = layer._basis(graph, layer._call(self.x.detach())), gathers

    @property
    def leaves(self):
        return self.x, self.W, self.bias

    def __call__(self):
        return fixed.mixed(self.S, *self.leaves, self.gathers, None)

    def plain(self):
        return torch.einsum("...kmi,kio->...mo", self.S.expand(self.x), self.W) + self.bias


CASES = [
    (n, b, g, c) for n in ("gcn", "sage", "cheb") for b in ((), (2,)) for g in (True, False) for c in (True, False)
]


@pytest.fixture(params=CASES, ids=str)
def case(request, monkeypatch):
    name, batch, gathers, chunked = request.param
    if chunked:
        in_chunks(monkeypatch)
    return Case(name, batch, gathers)


def test_derivatives_up_to_the_third(case):
    def chain(y):
        """A function of Y, one of its gradients, one of theirs."""
        found = [y.pow(3).sum()]
        for _ in range(3):
            gradients = torch.autograd.grad(found[-1], case.leaves, create_graph=True)
            found.append(sum(g.square().sum() + g.sum() for g in gradients))
        return found

    for order, (got, want) in enumerate(zip(chain(case()), chain(case.plain()), strict=True)):
        assert_close(f"order {order}", got, want, 1e-9)


def test_many_gradients_at_once(case):
    """vmap over torch.autograd.grad: of the value, and of gradients that were made differentiable."""
    y = case()
    gradients = torch.autograd.grad(y.square().sum(), (case.x, case.W), create_graph=True)
    for what, of in (("value", y), ("gradient in x", gradients[0]), ("gradient in W", gradients[1])):
        seeds = torch.randn(5, *of.shape, dtype=torch.float64)

        def pull(seed, of=of):
            return torch.autograd.grad(of, (case.x, case.W), seed, retain_graph=True)

        together = torch.func.vmap(pull)(seeds)
        for got, want in zip(together, zip(*map(pull, seeds), strict=True), strict=True):
            assert_close(what, got, torch.stack(want), 1e-12)


@pytest.mark.parametrize("frozen", ["x", "W", "nothing", "both"])
def test_unneeded_gradients_are_neither_saved_nor_computed(case, frozen):
    case.x.requires_grad_(frozen not in ("x", "both"))
    case.W.requires_grad_(frozen not in ("W", "both"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = case()
    assert any(t is case.x for t in kept) == case.W.requires_grad
    assert any(t is case.W for t in kept) == case.x.requires_grad
    leaves = [leaf for leaf in case.leaves if leaf.requires_grad]
    for create_graph in (True, False):
        found = torch.autograd.grad(y.square().sum(), leaves, create_graph=create_graph, retain_graph=True)
        for got, want in zip(found, torch.autograd.grad(case.plain().square().sum(), leaves), strict=True):
            assert_close(f"{frozen}, {create_graph}", got, want, 1e-10)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_wrong_derivative_is_detected(chunked, monkeypatch):
    """Negative control: a gradient in x through the structure as it is, not transposed."""
    case = Case("gcn", (), True)
    if chunked:
        in_chunks(monkeypatch)
    assert torch.autograd.gradcheck(lambda x: fixed.mixed(case.S, x, case.W, None, True, None), (case.x,))
    monkeypatch.setattr(type(case.S), "T", property(lambda S: S))
    assert not torch.autograd.gradcheck(
        lambda x: fixed.mixed(case.S, x, case.W, None, True, None), (case.x,), raise_exception=False
    )


# -- constant signals ----------------------------------------------------------------------------------------------


def few_ones(n, i, every, dtype=torch.float64):
    """A signal of which one number in so many is not zero."""
    at = torch.arange(n * i).view(n, i)
    return torch.sin(at + 1.0).to(dtype) * (at % every == 0)


@pytest.mark.sampled(2)
@FIRST
@pytest.mark.parametrize("every", [1, 7])
@EACH
def test_a_constant_signal(layer, every, first, monkeypatch):
    """Transform first it is one node, through the sparse form where it has one; aggregate first S x is kept."""
    make, graph, family = layer
    name, used, times = f"{family}:{first}", [], Constant.times
    monkeypatch.setattr(Constant, "times", lambda held, W: used.append(W) or times(held, W))
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for i, o in ((17, 1), (17, 3), (5, 33)):
            built, x = GConv(make(i, o), dtype=dtype), few_ones(graph.size, i, every, dtype)
            given = constant(x)
            sparse = known(given).sparse is not None
            assert sparse == (every > 1)
            got = numbers(built, given, graph, name)
            assert bool(used) == (sparse and first == "transform")
            for one, right in zip(got, numbers(built, x, graph, name), strict=True):
                assert_close(f"{i} -> {o}, {dtype}", one, right, tol)
            if first == "transform":
                assert nodes(built(given, graph, lowering=name)) == 1
            used.clear()


@pytest.mark.sampled(3)
@EACH
def test_derivatives_and_theirs_at_a_constant_signal(layer):
    make, graph, family = layer
    built, x = GConv(make(7, 3), dtype=torch.float64), constant(few_ones(graph.size, 7, 7))

    def run(*parameters):
        named = dict(zip(dict(built.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(built, named, (x, graph), {"lowering": f"{family}:transform"}).square()

    leaves = tuple(p.detach().clone().requires_grad_() for p in built.parameters())
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


# -- layouts, threads, and what is left to single operators --------------------------------------------------------


@pytest.mark.parametrize("o", [3, 7])
@pytest.mark.parametrize("name", ["gcn", "sage", "relational", "cheb"])
def test_intermediate_rows_may_have_gaps(name, o, monkeypatch):
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


@pytest.mark.parametrize("chunked", [False, True])
def test_signals_and_gradients_with_any_strides(chunked, monkeypatch):
    if chunked:
        in_chunks(monkeypatch)
    layer = GConv(sage(4, 2), dtype=torch.float64)
    plain = torch.randn(6, 4, dtype=torch.float64)
    for way in ("sparse:aggregate", "sparse:transform"):
        want = torch.autograd.grad(layer(plain.requires_grad_(), MESSY, lowering=way).sum(), [plain, layer.weight])
        for x in (plain.detach().t().contiguous().t(), torch.cat([plain.detach()] * 2, 1)[:, :4]):
            y = layer(x.requires_grad_(), MESSY, lowering=way)
            for one, other in zip(torch.autograd.grad(y.sum(), [x, layer.weight]), want, strict=True):  # dy: no strides
                assert_close("the same numbers", one, other, 1e-12)


def test_a_kernel_written_out_as_entries(monkeypatch):
    in_chunks(monkeypatch)
    layer = GConv(conv2d(3, 4, 3, padding=1, stride=2), dtype=torch.float64)
    x = torch.randn(3, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    for first in ("aggregate", "transform"):
        for got, want in zip(
            numbers(layer, x, None, f"sparse:{first}"), numbers(layer, x, None, "native"), strict=True
        ):
            assert_close(first, got, want, 1e-10)


@pytest.mark.parametrize("name", ["selection", "cheb"])
def test_complex_signals_have_conjugate_gradients(name, monkeypatch):
    in_chunks(monkeypatch)
    make, graph, family = LAYERS[name]
    layer = GConv(make(2, 3), dtype=torch.complex128)
    x = torch.randn(4, graph.size, 2, dtype=torch.complex128, requires_grad=True)
    for got, want in zip(numbers(layer, x, graph, family), numbers(layer, x, graph, "dense"), strict=True):
        assert_close("complex", torch.view_as_real(got), torch.view_as_real(want), 1e-10)


@pytest.mark.parametrize("chunked", [False, True])
def test_dispatch_modes_see_single_operators(chunked, monkeypatch):
    if chunked:
        in_chunks(monkeypatch)
    layer, x = GConv(sage(3, 4)), torch.randn(6, 3, requires_grad=True)
    want = layer(x, MESSY)
    with Dispatched() as seen:
        layer(x, MESSY)
    assert "spmm" in seen.names
    got = torch.func.vmap(lambda x: layer(x, MESSY))(x.expand(2, 6, 3))
    assert_close("vmap", got[1], want, 1e-6)
    got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, MESSY)
    assert_close("compiled", got, want, 1e-5)
    with FlopCounterMode(display=False) as counted:
        layer(x, MESSY, lowering="sparse:aggregate").sum().backward()
    assert counted.get_total_flops() == 3 * 2 * 6 * 3 * 2 * 4, "who watches sees the products as operators"
    with torch.autocast("cpu", torch.bfloat16):
        for way in ("dense", "sparse:aggregate", "sparse:transform"):
            assert layer(x, MESSY, lowering=way).dtype == torch.bfloat16


def test_where_it_applies():
    x, layer = torch.randn(6, 3), GConv(gcn(3, 4))
    S = layer.at(MESSY).S

    def applies(S, x, W=layer.weight):
        return fixed.applies(S, Call(x, layer.spec.mixing, W))

    assert applies(S, x) and applies(S, x.expand(4, 6, 3))
    assert not applies(S, x.double()) and not applies(S, x[:0])
    assert not applies(S, x.as_subclass(type("Mine", (torch.Tensor,), {})))
    assert not applies(S, x.to_sparse())
    with torch.autocast("cpu"):
        assert not applies(S, x)
    with torch.autograd.forward_ad.dual_level():
        assert not applies(S, x)
    seen = []
    torch.func.vmap(lambda x: (seen.append(applies(S, x)), x)[1])(x[None])
    assert seen == [False]
    assert not applies(GConv(gat(3, 4)).at(MESSY, x=x).S, x)
    weighted = Graph(INDEX, 6, edge_weight=torch.rand(9, requires_grad=True))
    assert not applies(layer.at(weighted).S, x)
    assert torch.autograd.grad(layer(x, weighted).sum(), weighted.edge_weight)[0].abs().sum() > 0
    largest = GConv(sage(3, 4, aggr="max"))
    assert not applies(largest._basis(MESSY, largest._call(x)), x)


def test_chunks_depend_on_what_all_products_take():
    assert fixed.chunks(1 << 24, 1) == "all" and fixed.chunks((1 << 24) + 1, 1) == "rows"
    assert fixed.chunks(1 << 20, 8) == "all" and fixed.chunks(1 << 20, 9) == "signals"


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch's notice of beta
def test_sparse_signals_go_the_plain_way(monkeypatch):
    dense = torch.eye(6, 3).double()
    for spec in (gcn(3, 2), gcn(2, 3)):
        layer, x = GConv(spec, dtype=torch.float64), dense[:, : spec.mixing.i]
        for _ in range(2):  # decided, and again
            y = layer(x.to_sparse_csr(), MESSY, lowering="sparse:transform")
            assert_close("a sparse layout", y, layer(x, MESSY), 1e-12)


def test_empty_signals(monkeypatch):
    in_chunks(monkeypatch)
    none = Graph(torch.empty(2, 0, dtype=torch.int64), 0)
    for spec in (gcn(3, 2), gcn(2, 3), sage(3, 2), cheb(3, 2, k=2), appnp(2, 0.1)):
        x = torch.empty(0, 3 if spec.name == "appnp" else spec.mixing.i, requires_grad=True)
        layer = GConv(spec)
        y = layer(x, none)
        y.sum().backward()
        assert y.shape[0] == 0 and x.grad.shape == x.shape
        assert all(not p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("chunked", [False, True])
def test_threads_do_not_change_a_bit(chunked, monkeypatch):
    torch.manual_seed(0)
    graph = Graph(torch.randint(3000, (2, 20000)), 3000)
    if chunked:
        in_chunks(monkeypatch, 1 << 14)
        monkeypatch.setattr(native, "SERIAL", 0)
    layer, x = GConv(sage(16, 16)), torch.randn(3000, 16, requires_grad=True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                found.append(fixed.mixed(layer.at(graph).S, x, layer.weight, None, True, None))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


# -- layers that have run ------------------------------------------------------------------------------------------


def test_layers_that_ran_are_copied_changed_and_kept():
    layer, x = GConv(sage(3, 4)), torch.randn(6, 3, requires_grad=True)
    first = layer(x, MESSY, lowering="sparse")
    first.sum().backward()
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(stream, weights_only=False)):
        assert_close("a copy", twin(x, copy.deepcopy(MESSY), lowering="sparse"), first, 0)
    A = layer.at(MESSY)
    assert_close("a copied map", copy.deepcopy(A).apply(x, "sparse"), A.apply(x, "sparse"), 0)
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


def test_tensors_replaced_between_passes_are_detected():
    layer, x = GConv(sage(3, 4)), torch.randn(6, 3, requires_grad=True)
    first = layer(x, MESSY, lowering="sparse")
    assert_close("the second call", layer(x, MESSY, lowering="sparse"), first, 0)
    kept = layer.weight, layer.bias
    for name, shape in (("weight", (2, 3, 8)), ("weight", (2, 3, 1)), ("bias", (1,)), ("bias", (8,))):
        setattr(layer, name, torch.nn.Parameter(torch.randn(shape)))
        with pytest.raises(ValueError, match=f"sage has a {name} of shape"):
            layer(x, MESSY, lowering="sparse")
        layer.weight, layer.bias = kept
    gaps = torch.zeros(8)
    gaps[::2] = layer.bias.detach()
    layer.bias = torch.nn.Parameter(gaps[::2])
    assert_close("a bias with gaps", layer(x, MESSY, lowering="sparse"), first, 1e-6)
    turned = x.detach().t().contiguous().t()
    assert_close("channels apart", layer(turned, MESSY, lowering="sparse"), first, 1e-6)


def test_edges_in_a_tensor_are_recognised():
    layer, x, index = GConv(gcn(3, 4)), torch.randn(6, 3), INDEX.clone()
    weight = torch.rand(9)
    want = layer(x, Graph(index, 6, edge_weight=weight))
    for _ in range(2):
        assert_close("edge_index", layer(x, index, edge_weight=weight), want, 1e-6)
    assert len(layer._graphs) == 1  # the graph that was read, once: the other one is gone
    other = layer(x, index, edge_weight=2 * weight + 1)
    assert not torch.allclose(other, want)
    assert torch.allclose(layer(x, index.int(), edge_weight=weight), want)
    learned = weight.clone().requires_grad_()
    assert torch.autograd.grad(layer(x, index, edge_weight=learned).sum(), learned)[0].abs().sum() > 0
    with pytest.raises(TypeError, match="floating point"):
        layer(x.long(), index)
    with pytest.raises(ValueError, match="nodes"):
        layer(torch.randn(3), index)


def test_a_signal_of_another_graph_is_refused():
    layer = GConv(gcn(3, 4))
    for gathers in (True, False):
        with pytest.raises(ValueError, match=r"sites in|rows of"):
            fixed.mixed(layer.at(MESSY).S, torch.randn(7, 3), layer.weight, layer.bias, gathers, None)
    with pytest.raises(ValueError, match=r"contiguous matrix \(6, 3\)|signals \(7, 3\)"):  # compiled or not
        fixed.mixed(GConv(cheb(3, 4, k=3)).at(MESSY).S, torch.randn(7, 3), torch.ones(3, 3, 4), None, True, None)


# -- a form of one's own -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Circulant(Basis):
    """A new form, S_k[i, j] = values[k] where j = i + k modulo n: what a form must have, and nothing else."""

    n: int
    values: torch.Tensor
    turned: bool = False

    @property
    def shape(self):
        return len(self.values), self.n, self.n

    @property
    def nnz(self):
        return len(self.values) * self.n

    @property
    def signature(self):
        return "Circulant", self.shape, self.turned

    @property
    def learned(self):
        return [self.values] if self.values.requires_grad else []

    @property
    def T(self):
        return replace(self, turned=not self.turned)

    def expand(self, x):
        way = 1 if self.turned else -1
        return torch.stack([v * x.roll(way * k, -2) for k, v in enumerate(self.values)], -3)

    def contract(self, z):
        way = 1 if self.turned else -1
        return sum(v * z.select(-3, k).roll(way * k, -2) for k, v in enumerate(self.values))


@dataclass(frozen=True)
class Turns(GraphStructure):
    """A structure in the new form; learned or fixed."""

    taps: int
    kind: str = "fixed"

    def parameters(self):
        return {"values": Parameter((self.taps,), "uniform", 1.0)} if self.kind == "learned" else {}

    def basis(self, domain, theta, call):
        fixed_values = torch.arange(1.0, self.taps + 1, dtype=call.x.dtype)
        return Circulant(domain.size, theta["values"] if self.kind == "learned" else fixed_values)


# It knows a ring of sites, not the edges; and a spec that is not registered cannot be made from its name.
OTHERS = ("law_permutation", "law_union", "law_round_trips", "law_no_coefficient_overflows")


@pytest.mark.parametrize("law", [law for name, law in LAWS.items() if name not in OTHERS], ids=lambda law: law.__name__)
@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_laws_hold_for_a_form_that_the_library_does_not_know(kind, law):
    spec = OperatorSpec("turns", (("k", 3),), Turns(3, kind), Dense(3, 2, 4), True)
    check_operator(Sample(spec, lambda: Graph(INDEX, 6), 2), laws=[law], dtypes=[torch.float64])


@pytest.mark.parametrize("signals", [1, 3])
def test_gradients_of_a_structure_without_rows_are_zero_also_in_chunks(monkeypatch, signals):
    """Fresh memory is filled with NaN, so that a weight's gradient that nobody writes is seen."""
    in_chunks(monkeypatch)
    torch.use_deterministic_algorithms(True)
    try:
        for rows, cols in ((0, 5), (5, 1)):
            entry = torch.zeros(0, dtype=torch.int64)
            S = Taps(Pattern((1, rows, cols), entry, entry, entry), torch.zeros(0))
            for gathers in (True, False):
                for i, o in ((2, 3), (3, 2)):
                    x = torch.ones(signals, 1, cols, i, requires_grad=True)
                    W = torch.ones(1, i, o, requires_grad=True)
                    y = fixed.mixed(S, x, W, None, gathers, None)
                    dx, dW = torch.autograd.grad(y.sum(), (x, W))
                    assert torch.equal(dx, torch.zeros_like(x)) and torch.equal(dW, torch.zeros_like(W))
    finally:
        torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Dropping(GraphStructure):
    """The edges of a graph, half of which are dropped in training: a fixed structure with dropout."""

    taps = 1
    dropout = 0.5

    def basis(self, domain, theta, call):
        return adjacency(domain, call.x.dtype)


def test_dropout_of_a_fixed_structure_is_drawn_in_each_call_and_ends_with_training():
    layer = GConv(OperatorSpec("dropping", (), Dropping(), Dense(1, 2, 3)))
    x, graph = torch.ones(20, 2), Graph(torch.stack([torch.arange(20), (torch.arange(20) + 1) % 20]), 20)
    drawn = [layer(x, graph) for _ in range(4)]
    assert not all(torch.equal(y, drawn[0]) for y in drawn)
    layer.eval()
    want = torch.einsum("mn,ni->mi", dense.stack(adjacency(graph, x.dtype), x.dtype, x.device)[0], x) @ layer.weight[0]
    for _ in range(3):
        torch.testing.assert_close(layer(x, graph), want)
    layer.train()
    drawn = [layer(x, graph) for _ in range(4)]
    assert not all(torch.equal(y, drawn[0]) for y in drawn)


@pytest.mark.parametrize("spec", [gcn(3, 4), sage(3, 4), cheb(3, 4, k=3)], ids=["gcn", "sage", "cheb"])
def test_a_prepared_call_notices_what_changed_since(spec):
    """Autocast, and weights of another kind; the key of a prepared call does not hold these."""
    layer, x = GConv(spec), torch.randn(6, 3)
    want = layer(x, MESSY)
    for _ in range(2):  # the first call prepares the others
        assert torch.equal(layer(x, MESSY), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x, MESSY)
    assert low.dtype == torch.bfloat16
    assert_close("under autocast", low.float(), want, 0.05)
    twice = {name: 2 * p for name, p in layer.named_parameters()}
    assert_close("other weights", torch.func.functional_call(layer, twice, (x, MESSY)), 2 * want, 1e-6)
    assert_close("under vmap", torch.func.vmap(lambda x: layer(x, MESSY))(torch.stack([x, x]))[1], want, 1e-6)
    with torch.no_grad():
        layer.weight.mul_(2), layer.bias.mul_(2)
    assert_close("in place", layer(x, MESSY), 2 * want, 1e-6)
    with pytest.raises(ValueError, match="weight of shape"):
        layer.weight.data = layer.weight.data[..., :2]
        layer(x, MESSY)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_operators())
def test_results_in_chunks_and_pooled_buffers_are_their_callers(name, monkeypatch):
    monkeypatch.setattr(fixed, "CHUNK_BYTES", 0)
    monkeypatch.setattr(fixed, "MIN_BYTES_ROWS", 0)
    monkeypatch.setattr(memory, "MIN_BYTES_POOLED", 1)
    for sample in operator(name).samples():
        LAWS["law_results_are_their_callers"](sample, torch.float64)
