"""What attention promises beyond the laws, and what PyG's classes do where a graph is irregular."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import graphs
from torch_geometric import nn as pyg

from gconv import GConv, Graph, list_operators
from gconv.basis import Identity
from gconv.lowering import dense
from gconv.mixing import plain
from gconv.operators import agnn, fagcn, feast, gat, gatv2, relational, rgat, supergat, transformer
from gconv.operators.attention import complete, row_softmax
from gconv.operators.shapes import messy, pixels, ring
from gconv.spec import OutsideFamily, operator
from gconv.testing import assert_close

CONVEX = {
    "gat": gat(3, 2, heads=2),
    "gat, mean, residual, edges": gat(3, 2, heads=2, concat=False, residual=True, edge_dim=2),
    "gatv2": gatv2(3, 2, heads=3, residual=True),
    "gatv2, mean": gatv2(3, 4, heads=2, concat=False, share_weights=True),
    "agnn": agnn(),
    "supergat MX": supergat(3, 2, heads=2),
    "supergat SD": supergat(3, 2, heads=2, concat=False, attention_type="SD"),
}
HEADS = {**CONVEX, "transformer": transformer(3, 2, heads=2), "transformer, mean": transformer(3, 2, 2, concat=False)}


def made(spec, seed=0):
    torch.manual_seed(seed)
    return GConv(spec, dtype=torch.float64)


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=5, derandomize=True, deadline=None, database=None)
@given(graph=graphs(), values=st.lists(st.floats(-5, 5), min_size=3, max_size=3))
def test_a_constant_signal_stays_constant(name, graph, values):
    """Convex combinations of equal things: where each row has an edge, 1 c^T becomes 1 (sum_k c^T W_k + b)."""
    layer, c = made(HEADS[name]), torch.tensor(values, dtype=torch.float64)
    y = layer(c.expand(graph.size, 3), graph)
    mixing, W = plain(layer.spec.mixing, layer.weight)
    image = c @ mixing.dense(W, 3).to(c.dtype).sum(0) + (0 if layer.bias is None else layer.bias)
    rows = slice(None) if name in CONVEX else torch.bincount(graph.target, minlength=graph.size) > 0
    assert_close(f"{name} on a constant", y[rows], image.expand(graph.size, -1)[rows], 1e-10)


@pytest.mark.parametrize("name", HEADS)
def test_rows_are_convex_and_outputs_stay_between_the_messages(name):
    layer, x = made(HEADS[name]), torch.randn(6, 3, dtype=torch.float64)
    with torch.no_grad():
        S = dense.stack(layer.at(messy(), x=x).S, torch.float64, x.device)
        E = S @ x
    full = S.sum(-1) > 0
    assert float(S.min()) >= 0
    assert_close("row sums", S.sum(-1)[full], torch.ones_like(S.sum(-1)[full]), 1e-12)
    assert bool((E[full] <= x.amax(0) + 1e-12).all()) and bool((E[full] >= x.amin(0) - 1e-12).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [*HEADS, "fagcn"])
def test_large_logits_are_safe(name, dtype):
    torch.manual_seed(0)
    layer = GConv({**HEADS, "fagcn": fagcn(3, initial=False)}[name], dtype=dtype)
    x = (1e6 * torch.randn(6, 3, dtype=dtype)).requires_grad_()
    y = layer(x, messy())
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_softmax_over_rows():
    row, logits = torch.tensor([0, 0, 2]), torch.tensor([[1e30], [1e30], [-1e30]], dtype=torch.float64)
    assert row_softmax(logits, row, 3).flatten().tolist() == [0.5, 0.5, 1.0]
    assert row_softmax(logits[:0], row[:0], 3).shape == (0, 1)


@pytest.mark.parametrize("heads", [1, 3])
def test_on_the_complete_graph_transformer_is_self_attention(heads):
    """torch's own MultiheadAttention, its key bias and the values' (rows sum to one) carried to where they belong."""
    n, c = 5, 2
    other = torch.nn.MultiheadAttention(heads * c, heads, batch_first=True).double()
    for p in other.parameters():
        torch.nn.init.uniform_(p, -1, 1)
    other.out_proj.weight.data = torch.eye(heads * c, dtype=torch.float64)
    layer = made(transformer(heads * c, c, heads, root_weight=False))
    query, key, value = other.in_proj_weight.detach().unflatten(0, (3, heads, c)).mT
    shift, _, bias = other.in_proj_bias.detach().chunk(3)
    with torch.no_grad():
        layer.query.copy_(query), layer.key.copy_(key), layer.weight.copy_(value)
        layer.query_bias.copy_(shift.unflatten(0, (heads, c))), layer.bias.copy_(bias + other.out_proj.bias)
    x = torch.randn(n, heads * c, dtype=torch.float64)
    assert_close("self-attention", layer(x, complete(n)), other(x[None], x[None], x[None])[0][0], 1e-12)


def test_on_a_pixel_graph_transformer_is_attention_over_windows():
    graph, x = pixels(), torch.randn(20, 3, dtype=torch.float64)
    layer = made(transformer(3, 2, root_weight=False, bias=False))
    seen = torch.zeros(20, 20, dtype=torch.bool).index_put((graph.target, graph.source), torch.tensor(True))
    q, k, v = x @ layer.query[0], x @ layer.key[0], x @ layer.weight[0]
    want = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen)[0]
    assert_close("attention over windows", layer(x, graph), want, 1e-12)


def test_the_biases_of_pyg_that_are_not_ours():
    """A key bias changes nothing; a value bias, and the one of GATv2's lin_l, are output biases if rows have edges."""
    x, g = torch.randn(6, 3, dtype=torch.float64), messy()
    other = pyg.TransformerConv(3, 2, 2).double()
    before = other(x, g.edge_index)
    other.lin_key.bias.data += 3.0
    assert_close("key bias", other(x, g.edge_index), before, 1e-12)
    other.lin_value.bias.data += 3.0
    reached = torch.bincount(g.target, minlength=6) > 0
    assert_close("value bias", other(x, g.edge_index), before + 3.0 * reached.unsqueeze(-1), 1e-12)
    v2 = pyg.GATv2Conv(3, 2, 2).double()
    before = v2(x, g.edge_index)
    v2.lin_l.bias.data += 3.0
    v2.lin_r.bias.data -= 3.0
    assert_close("bias of lin_l", v2(x, g.edge_index), before + 3.0, 1e-12)


@pytest.mark.parametrize("spec", [gatv2(3, 4, heads=2, residual=True, dropout=0.9), transformer(3, 4, 2, dropout=0.9)])
def test_dropout_never_drops_the_node_itself(spec):
    layer, x = made(spec), torch.randn(7, 3, dtype=torch.float64)
    S = layer._basis(ring(), layer._call(x))
    assert isinstance(S.parts[1], Identity)
    values = S.parts[0].values
    assert 0 < int((values == 0).sum()) < values.numel()
    assert bool((layer.eval()._basis(ring(), layer._call(x)).parts[0].values > 0).all())


INDEX = torch.tensor([[0, 0, 1, 2], [1, 1, 2, 2]])  # a double edge to 1, a loop at 2, nothing arrives at 0 and 3


@pytest.mark.parametrize(
    ("name", "loops"),
    [(name, loops) for name in ("gat", "gatv2", "supergat", "agnn") for loops in (True, False)]
    + [("transformer", False)],
)
def test_pyg_on_isolated_nodes_double_edges_and_loops(name, loops):
    """How much node i listens to node j in PyG where all logits are equal: rows count edges, a loop replaces loops."""
    module = {
        "gat": lambda: pyg.GATConv(4, 4, add_self_loops=loops, bias=False),
        "gatv2": lambda: pyg.GATv2Conv(4, 4, add_self_loops=loops, bias=False),
        "supergat": lambda: pyg.SuperGATConv(4, 4, add_self_loops=loops, bias=False).eval(),
        "agnn": lambda: pyg.AGNNConv(add_self_loops=loops),
        "transformer": lambda: pyg.TransformerConv(4, 4, bias=False, root_weight=False),
    }[name]().double()
    with torch.no_grad():
        for key, p in module.named_parameters():
            value = any(part in key for part in ("lin.weight", "lin_l.weight", "lin_value.weight"))
            p.copy_(torch.eye(4) if value else torch.zeros_like(p))
        A = module(torch.eye(4, dtype=torch.float64), INDEX)
    plain = torch.tensor([[0, 0, 0, 0], [2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    count = plain + (torch.eye(4) if loops else torch.diag(torch.tensor([0.0, 0.0, 1.0, 0.0])))
    want = count / count.sum(1, keepdim=True).clamp(min=1)
    assert_close(f"{name}", A, want, 1e-10)


def test_bad_input_is_refused():
    graph = Graph(INDEX, 4)
    for make, part in (
        (lambda: gatv2(2, 2, heads=0), "heads must be a positive integer"),
        (lambda: gat(2, 2, edge_dim=0), "edge_dim must be"),
        (lambda: gat(2, 2, edge_dim=2, fill_value="median"), "fill_value must be"),
        (lambda: gatv2(2, 2, edge_dim=2, fill_value=(1.0,)), "fill_value must be one number or edge_dim=2"),
        (lambda: supergat(2, 2, attention_type="XX"), "attention_type must be"),
        (lambda: transformer(2, 2, beta=True), "gates its result"),
        (lambda: transformer(2, 2, edge_dim=3), "not linear in x"),
        (lambda: GConv(gat(2, 2, edge_dim=2))(torch.zeros(4, 2), graph), "the graph has none"),
        (lambda: GConv(fagcn(2))(torch.zeros(4, 2), graph), "takes 4 channels in, x beside x_0"),
    ):
        with pytest.raises(ValueError, match=part) as refused:
            make()
        assert str(refused.value).endswith(".")
    with pytest.raises(OutsideFamily):
        transformer(2, 2, beta=True)


ADAPTIVE = [name for name in list_operators() if operator(name).samples()[0].spec.structure.kind == "adaptive"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_signals_of_zeros_and_empty_batches_have_finite_gradients(name, dtype):
    sample = operator(name).samples()[0]
    layer, domain = GConv(sample.spec, dtype=dtype), sample.domain()
    n = domain.size if isinstance(domain, Graph) else domain.sites[1]
    for batch in (0, 2):
        x = torch.zeros(batch, n, sample.channels, dtype=dtype, requires_grad=True)
        layer.zero_grad()
        y = layer(x, domain)
        y.sum().backward()
        found = [y, x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]
        assert all(part.isfinite().all() for part in found), (name, batch)


def test_feast_keeps_its_bias_with_large_signals():
    """The differences of x come first, so that a constant signal of any size has the weights of one of zeros."""
    layer, graph = GConv(feast(2, 2, heads=3)), ring(5)
    with torch.no_grad():
        layer.c.copy_(torch.tensor([0.0, 1.0, 2.0]))
        small, large = (layer(torch.full((5, 2), size), graph) for size in (1.0, 1e8))
        assert_close("scaled", large / 1e8 - layer.bias / 1e8, small - layer.bias, 1e-5)


LEARNED = [name for name in list_operators() if operator(name).samples()[0].spec.structure.kind == "learned"]


@pytest.mark.parametrize("name", LEARNED)
def test_small_parameters_of_a_learned_structure_have_finite_gradients_in_half_precision(name):
    """The gradient of an empty batch is zero, unless a derivative on the way overflows: 0 times infinity is NaN."""
    for sample in operator(name).samples():
        layer, domain = GConv(sample.spec, dtype=torch.float16), sample.domain()
        if not isinstance(domain, Graph):
            continue
        with torch.no_grad():
            for p in layer.parameters():
                p.mul_(0.01)
        layer(torch.zeros(0, domain.size, sample.channels, dtype=torch.float16), domain).sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None), sample


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mechanism", ["across-relation", "within-relation"])
def test_relational_attention_over_a_long_row_in_half_precision(mechanism, dtype):
    """Weights of 3000 equal neighbours sum to 1; torch's sum of several signals counts to 2048 or 256 only."""
    layer = GConv(rgat(1, 1, num_relations=1, attention_mechanism=mechanism, bias=False), dtype=dtype)
    edges = torch.stack([torch.arange(1, 3001), torch.zeros(3000, dtype=torch.long)])
    star = Graph(edges, 3001, edge_type=torch.zeros(3000, dtype=torch.long))
    y = layer(torch.ones(2, 3001, 1, dtype=dtype), star)[:, 0]
    assert_close("a mean of equal messages", y.float(), layer.weight.flatten().float().expand(2, 1), 0.01)


def test_cosines_of_tiny_signals_have_gradients_in_float16():
    """The squares of their entries, and 1e-12, are zero in float16."""
    x = (1e-5 * torch.randn(6, 3, dtype=torch.float64)).half()
    gradients = []
    for dtype in (torch.float16, torch.float64):
        moved = x.to(dtype).requires_grad_()
        gradients += torch.autograd.grad(GConv(agnn(), dtype=dtype)(moved, messy()).sum(), moved)
    assert_close("gradient", gradients[0].double(), gradients[1], 0.05)
    zero = torch.zeros(6, 3, dtype=torch.float16, requires_grad=True)
    (gradient,) = torch.autograd.grad(GConv(agnn(), dtype=torch.float16)(zero, messy()).sum(), zero)
    assert gradient.isfinite().all()


HUBS = {
    "fagcn": fagcn(2),
    "rgat": rgat(2, 2, num_relations=3, mod="f-scaled", bias=False),
    "relational": relational(2, 3, num_relations=3, num_bases=2, aggr="sum"),
}


@pytest.mark.parametrize("name", HUBS)
def test_gradients_at_a_hub_in_bfloat16(name):
    """Sums over 2000 edges; a running sum of ones in bfloat16 stops at 256."""
    leaves = torch.arange(1, 2001)
    edges = torch.cat([torch.stack([leaves, 0 * leaves]), torch.stack([0 * leaves, leaves])], 1)
    star = Graph(edges, 2001, edge_type=torch.arange(4000) % 3 if name != "fagcn" else None)
    exact = made(HUBS[name]).bfloat16().double()
    x = torch.rand(2, 2001, 4 if name == "fagcn" else 2).bfloat16()
    results = []
    for layer in (exact, copy.deepcopy(exact).bfloat16()):
        signal = x.to(layer.weight.dtype if layer.weight is not None else next(layer.parameters()).dtype)
        signal.requires_grad_()
        y = layer(signal, star)
        results.append(torch.autograd.grad((y * y.detach().sign()).sum(), [signal, *layer.parameters()]))
    names = ["x", *dict(exact.named_parameters())]
    for what, want, got in zip(names, *results, strict=True):
        assert_close(f"{name}, gradient in {what}", got.double(), want, 0.1)
