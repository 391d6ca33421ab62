"""One large signal on a fixed structure, a few rows at a time: the numbers and derivatives of all at once."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gconv import GConv, Graph, constant
from gconv.call import Call
from gconv.domains import grid_graph
from gconv.kernels import native
from gconv.lowering import single
from gconv.operators import appnp, cheb, gat, gcn, sage, selection, tag
from gconv.testing import assert_close

MESSY = Graph(
    torch.tensor([[0, 0, 1, 2, 2, 3, 4, 4], [1, 1, 2, 2, 0, 4, 0, 3]]),
    6,
    edge_weight=torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25, 1.5, 1.0, 0.75]),
)
PIXELS = grid_graph((3, 4), 8, loops=True)
LAYERS = {
    "gcn, wider": (gcn(2, 5), MESSY, "sparse"),
    "gcn, narrower": (gcn(5, 2), MESSY, "sparse"),
    "gcn, odd widths": (gcn(17, 33, bias=False), MESSY, "sparse"),
    "gcn, one channel": (gcn(1, 1), MESSY, "sparse"),
    "cheb, wider": (cheb(2, 3, k=3), MESSY, "recurrence"),
    "cheb, narrower": (cheb(3, 2, k=3), MESSY, "recurrence"),
    "tag": (tag(3, 3, k=2), MESSY, "recurrence"),
    "selection": (selection(3, 3, 9), PIXELS, "sparse"),
    "selection, wider": (selection(2, 4, 9), PIXELS, "sparse"),
    "sage": (sage(3, 2), MESSY, "sparse"),
    "sage, wider": (sage(2, 3), MESSY, "sparse"),
}
TINY = Call(torch.zeros(6, 2), weight=torch.zeros(1, 2, 2))
EACH = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
NEVER = 1 << 60


def numbers(layer, x, graph, name, create_graph=False):
    y = layer(x, graph, lowering=name)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    leaves = [leaf for leaf in (x, *layer.parameters()) if leaf.requires_grad]
    return [y, *torch.autograd.grad(y, leaves, dy, create_graph=create_graph)]


@pytest.fixture(params=["compiled", "torch"])
def small(request, monkeypatch):
    """Tiny signals count as large, and go two or three rows at a time."""
    monkeypatch.setattr(single, "LARGE", 0)
    monkeypatch.setattr(single, "CHUNK", 100)
    if request.param == "torch":
        monkeypatch.setattr(native, "LIBRARY", None)
    return monkeypatch


@EACH
@pytest.mark.parametrize("association", ["aggregate", "transform"])
def test_a_few_rows_at_a_time_are_as_good_as_all(layer, association, small):
    spec, graph, family = layer
    layer, name = GConv(spec, dtype=torch.float64), f"{family}:{association}"
    for frozen in ("nothing", "weight", "x"):
        x = torch.randn(graph.size, spec.mixing.i, dtype=torch.float64, requires_grad=frozen != "x")
        layer.weight.requires_grad_(frozen != "weight")
        small.setattr(single, "LARGE", NEVER)
        want = numbers(layer, x, graph, name)
        small.setattr(single, "LARGE", 0)
        assert "Mixed" in type(layer(x, graph, lowering=name).grad_fn).__name__
        for create_graph in (False, True):
            for got, right in zip(numbers(layer, x, graph, name, create_graph), want, strict=True):
                assert_close(frozen, got, right, 1e-10)
        with torch.no_grad():
            assert_close("inference", layer(x, graph, lowering=name), want[0], 1e-10)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["gcn, narrower", "gcn, wider", "cheb, wider", "selection, wider", "sage"])
def test_second_derivatives(name):
    spec, graph, family = LAYERS[name]
    layer = GConv(spec, dtype=torch.float64)
    x = torch.randn(graph.size, spec.mixing.i, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        theta = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, theta, (x, graph), {"lowering": family})

    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, layer.weight, layer.bias), fast_mode=True)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [gcn(8, 8), sage(8, 4), sage(4, 8), selection(8, 8, 9)], ids=str)
def test_other_types(dtype, spec):
    layer, wide = GConv(spec, dtype=dtype), GConv(spec, dtype=torch.float64)
    wide.load_state_dict(layer.state_dict())
    x = torch.randn(PIXELS.size, spec.mixing.i, dtype=dtype, requires_grad=True)
    want = numbers(wide, x.detach().double().requires_grad_(), PIXELS, "sparse")
    for got, right in zip(numbers(layer, x, PIXELS, "sparse"), want, strict=True):
        assert got.dtype == dtype
        assert_close("rounding", got.double(), right, 1e-5 if dtype == torch.float32 else 5e-2)


@pytest.mark.usefixtures("small")
def test_signals_and_gradients_may_lie_in_memory_as_they_like():
    layer = GConv(sage(4, 2), dtype=torch.float64)
    plain = torch.randn(6, 4, dtype=torch.float64)
    want = torch.autograd.grad(layer(plain.requires_grad_(), MESSY).sum(), [plain, layer.weight])
    for x in (plain.detach().t().contiguous().t(), torch.cat([plain.detach()] * 2, 1)[:, :4]):
        got = torch.autograd.grad(layer(x.requires_grad_(), MESSY).sum(), [x, layer.weight])  # dy has no strides
        for one, other in zip(got, want, strict=True):
            assert_close("the same numbers", one, other, 1e-12)


@pytest.mark.usefixtures("small")
def test_compiled_and_watched():
    layer, x = GConv(sage(3, 2)), torch.randn(6, 3, requires_grad=True)
    want = layer(x, MESSY)
    got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, MESSY)
    assert_close("compiled", got, want, 1e-5)
    with FlopCounterMode(display=False) as counted:
        layer(x, MESSY).sum().backward()
    assert counted.get_total_flops() == 3 * 2 * 6 * 3 * 4, "who watches sees the products as operators"


def test_the_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(single, "LARGE", 0)
    monkeypatch.setattr(native, "SERIAL", 0)
    generator = torch.Generator().manual_seed(0)
    graph = Graph(torch.randint(300, (2, 2000), generator=generator), 300)
    spec, x, dy = gcn(17, 5, bias=False), torch.randn(300, 17), torch.randn(300, 5)
    S, before = GConv(spec).at(graph).S, torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rows = single._side_by_side(S, x)
        found.append([rows(slice(start, start + 100)).clone() for start in (0, 100, 200)])
        found[-1].append(single._contract(S, dy.clone(), dy[0], None))
    torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_who_is_served():
    S, W = GConv(gcn(2, 2))._basis(MESSY, TINY), torch.zeros(1, 2, 2)
    large = torch.zeros(1 << 22, 2)
    assert single.serves(S, large, W)
    assert not single.serves(S, large[:1000], W)
    assert not single.serves(S, large.unsqueeze(0), W)
    assert not single.serves(S, large, W.double())
    assert not single.serves(S, constant(torch.ones(1 << 22, 2)), W), "S x of a constant is kept"
    with torch.autocast("cpu"):
        assert not single.serves(S, large, W)
    adaptive = GConv(gat(2, 2))._basis(MESSY, TINY)
    assert not single.serves(adaptive, large, W)
    learned = Graph(MESSY.edge_index, 6, edge_weight=torch.ones(8, requires_grad=True))
    assert not single.serves(GConv(gcn(2, 2))._basis(learned, TINY), large, W)
    largest = GConv(sage(2, 2, aggr="max"))._basis(MESSY, TINY)
    assert not single.serves(largest, large, torch.zeros(2, 2, 2))


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # torch's notice of beta
def test_sparse_signals_go_the_plain_way(monkeypatch):
    dense = torch.eye(6, 3).double()
    for large in (0, NEVER):
        monkeypatch.setattr(single, "LARGE", large)
        for spec in (gcn(3, 2), gcn(2, 3)):
            layer, x = GConv(spec, dtype=torch.float64), dense[:, : spec.mixing.i]
            got = [layer(x.to_sparse_csr(), MESSY, lowering="sparse:transform") for _ in range(2)]  # decided, and again
            for y in got:
                assert_close("a sparse layout", y, layer(x, MESSY), 1e-12)


def test_a_wrong_derivative_is_noticed(small):
    """Negative control: the derivative of S instead of that of its transpose."""
    layer, x = GConv(gcn(3, 2), dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    small.setattr(type(layer.at(MESSY).S), "T", property(lambda S: S))
    assert not torch.autograd.gradcheck(lambda s: layer(s, MESSY), (x,), raise_exception=False)


def test_empty_signals(monkeypatch):
    monkeypatch.setattr(single, "LARGE", -1)
    none = Graph(torch.empty(2, 0, dtype=torch.int64), 0)
    for spec in (gcn(3, 2), gcn(2, 3), sage(3, 2), cheb(3, 2, k=2), appnp(2, 0.1)):
        x = torch.empty(0, 3 if spec.name == "appnp" else spec.mixing.i, requires_grad=True)
        layer = GConv(spec)
        y = layer(x, none)
        y.sum().backward()
        assert y.shape[0] == 0 and x.grad.shape == x.shape
        assert all(not p.grad.any() for p in layer.parameters())
