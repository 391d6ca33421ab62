"""Labelled, directed, relational and learned operators: what their docstrings claim, and what they refuse."""

import pytest
import torch
from torch_geometric import nn as pyg
from torch_geometric.nn import conv as pyg_conv

from gconv import GConv, Graph
from gconv.analysis import matrix
from gconv.mixing import Beside, Blocks, Dense
from gconv.operators import (
    directed,
    egc,
    feast,
    gat,
    gcn2,
    gin,
    hypergraph,
    mf,
    nnconv,
    pan,
    pdn,
    relational,
    resgated,
    rgat,
    signed,
    simple,
    spline,
)
from gconv.operators.hypergraph import groups
from gconv.operators.outside import OUTSIDE
from gconv.operators.shapes import messy, ring, weighted
from gconv.operators.spline import circled, located
from gconv.testing import assert_close

DOUBLE = torch.float64


def test_convolutions_outside_of_the_family_have_a_reason():
    assert set(OUTSIDE) <= set(pyg_conv.__all__)
    assert all(reason.endswith(".") and reason.count(". ") == 0 for reason in OUTSIDE.values())


def test_bases_are_mixtures_of_relations():
    """sum_b S'_b X V_b with S'_b = sum_r comp[r, b] S_r is the plain operator with W_r = sum_b comp[r, b] V_b."""
    few, all_ = GConv(relational(2, 3, 3, num_bases=2), dtype=DOUBLE), GConv(relational(2, 3, 3), dtype=DOUBLE)
    with torch.no_grad():
        mixed = torch.einsum("rb,bio->rio", few.comp, few.weight[:2])
        all_.weight.copy_(torch.cat([mixed, few.weight[2:]]))
        all_.bias.copy_(few.bias)
    x = torch.randn(6, 2, dtype=DOUBLE)
    assert_close("bases", few(x, messy()), all_(x, messy()), 1e-12)


def test_hypergraph_weights_of_the_paper_average_and_those_of_pyg_do_not():
    x = torch.eye(6, dtype=DOUBLE)
    sums = {}
    for paper in (True, False):
        layer = GConv(hypergraph(6, 6, apply_weights=paper, bias=False), dtype=DOUBLE)
        with torch.no_grad():
            layer.weight.copy_(x.unsqueeze(0))
        sums[paper] = layer(x, groups()).sum(1)[:5]  # the last node is in no hyperedge
    assert_close("rows", sums[True], torch.ones(5, dtype=DOUBLE), 1e-12)
    assert (sums[False] - 1).abs().max() > 0.1


def test_labels_of_a_union_of_hypergraphs_count_within_each_part():
    one, layer, x = groups(False), GConv(hypergraph(2, 2), dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)
    both = layer(torch.cat([x, -x]), Graph.union([one, one]))
    assert_close("union", both, torch.cat([layer(x, one), layer(-x, one)]), 1e-12)


def test_hyperedge_weights_must_cover_the_hyperedges():
    with pytest.raises(ValueError, match=r"one number for each of the 2 hyperedges"):
        Graph.from_hyperedge_index(torch.tensor([[0, 1], [0, 1]]), 2, torch.ones(1))


def test_spline_of_degree_one_interpolates_between_its_matrices():
    """At knot t of an open spline of degree 1, all of the value sits on tap t."""
    knots = torch.linspace(0, 1, 4, dtype=DOUBLE)
    star = Graph(torch.stack([torch.arange(1, 5), torch.zeros(4, dtype=torch.int64)]), 5, edge_attr=knots)
    layer = GConv(spline(1, 1, 1, 4, aggr="sum", root_weight=False, bias=False), dtype=DOUBLE)
    S = layer.at(star).S.expand(torch.eye(5, dtype=DOUBLE))
    assert_close("knots", S[:, 0, 1:], torch.eye(4, dtype=DOUBLE), 1e-12)


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("is_open", [True, False])
def test_splines_sum_to_one_on_every_edge(degree, is_open):
    layer = GConv(spline(1, 1, 2, 5, is_open, degree, aggr="sum", root_weight=False), dtype=DOUBLE)
    S = layer.at(located()).S
    total = torch.zeros(6, 6, dtype=DOUBLE)
    count = total.index_put((located().target, located().source), torch.ones(10, dtype=DOUBLE), accumulate=True)
    assert_close("partition of unity", S.expand(torch.eye(6, dtype=DOUBLE)).sum(0), count, 1e-12)


def test_edge_attributes_that_are_learned_get_gradients_and_are_not_kept():
    attr = circled().edge_attr.clone().requires_grad_()
    graph = Graph(circled().edge_index, 6, edge_attr=attr)
    layer, x = GConv(spline(2, 2, 1, 4, is_open_spline=False, degree=2), dtype=DOUBLE), torch.randn(6, 2, dtype=DOUBLE)
    for _ in range(2):  # a kept graph of gradients would fail the second time
        (grad,) = torch.autograd.grad(layer(x, graph).square().sum(), attr)
        assert grad.abs().max() > 0


def test_gcn2_near_the_identity_is_one_step_of_appnp():
    """With beta = 0 the matrix is the identity, whatever W is: alpha x_0 + (1 - alpha) S x."""
    layer, x = GConv(gcn2(2, 0.25, theta=0.0, layer=1), dtype=DOUBLE), torch.randn(8, 2, dtype=DOUBLE)
    want = pyg.APPNP(1, 0.25)(x, weighted().edge_index, weighted().edge_weight)
    assert_close("one step", layer(torch.cat([x, x], -1), weighted()), want, 1e-12)


def test_gin_learns_eps():
    layer, x = GConv(gin(train_eps=True), dtype=DOUBLE), torch.randn(7, 2, dtype=DOUBLE)
    layer(x, ring()).sum().backward()
    assert_close("gradient in eps", layer.eps.grad, x.sum().reshape(1), 1e-12)


def test_an_eps_that_is_not_trained_is_read_in_each_call():
    layer, x = GConv(gin(train_eps=True), dtype=DOUBLE), torch.randn(7, 2, dtype=DOUBLE)
    layer.eps.requires_grad_(False)
    for eps in (0.0, 0.5, -2.0):
        layer.load_state_dict({"eps": torch.tensor([eps])})
        assert_close(f"eps = {eps}", layer(x, ring(7)), GConv(gin(eps=eps))(x, ring(7)), 1e-12)


def test_feast_depends_on_differences_alone():
    layer, x = GConv(feast(3, 2, heads=3), dtype=DOUBLE), torch.randn(7, 3, dtype=DOUBLE)
    here, there = layer.at(ring(), x=x), layer.at(ring(), x=x + torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE))
    assert_close("shifted", matrix(there), matrix(here), 1e-12)


def test_blocks_are_dense_matrices_with_zeros():
    blocks = Blocks(2, 4, 6, 2, 3, ((0, 1, 0), (1, 0, 1), (1, 1, 1)))
    mixing, W = blocks.plain(torch.arange(1.0, 19).reshape(3, 2, 3))
    assert mixing == Dense(2, 4, 6) and blocks.shape == (3, 2, 3)
    assert_close("placed", W[0, 2:, :3], torch.arange(1.0, 7).reshape(2, 3), 0)
    assert int((W == 0).sum()) == 2 * 24 - 18


def test_the_mixing_of_side_by_side_blocks_and_its_adjoint():
    beside, x, z = Beside(3), torch.randn(2, 3, 5, 4), torch.randn(2, 5, 12)
    back, _ = beside.transpose(None, 4)
    assert_close("blocks", beside.gather(x, None)[..., 4:8], x[:, 1], 0)
    forth, there = (beside.gather(x, None) * z).sum(), (x * back.spread(z, None)).sum()
    assert_close("adjoint", forth, there, 1e-5)
    with pytest.raises(ValueError, match="multiple of 3 channels"):
        back.channels(4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spec", [gat(3, 2, heads=2), pan(3, 2, 2), egc(3, 4, num_heads=2, num_bases=2)])
def test_compiles_without_gradients(spec):
    layer, x = GConv(spec, dtype=DOUBLE), torch.randn(7, 3, dtype=DOUBLE)
    graph = ring()
    with torch.no_grad():
        want = layer(x, graph)
        assert_close("compiled", torch.compile(layer, fullgraph=True, backend="aot_eager")(x, graph), want, 1e-12)


REFUSED = [
    (lambda: relational(2, 3, 0), "num_relations must be a positive integer"),
    (lambda: relational(2, 3, 2, num_bases=2, num_blocks=1), "does not go with blocks"),
    (lambda: relational(2, 3, 2, num_bases=2, aggr="max"), "does not go with aggr='max'"),
    (lambda: relational(3, 4, 2, num_blocks=2), "2 does not divide both 3 and 4"),
    (lambda: relational(2, 3, 2, aggr="median"), "aggr must be"),
    (lambda: simple(aggr="std"), "aggr must be"),
    (lambda: simple(combine_root="product"), "combine_root must be"),
    (lambda: directed(2, 3, aggr="max"), "aggr must be"),
    (lambda: directed(2, 3, alpha=1.5), "alpha is a share"),
    (lambda: mf(2, 3, -1), "max_degree must be an integer >= 0"),
    (lambda: gcn2(2, 2.0), "alpha is a share"),
    (lambda: gcn2(2, 0.5, theta=0.5), "theta and layer come together"),
    (lambda: gcn2(2, 0.5, theta=-1.0, layer=1), "must be above -1"),
    (lambda: spline(2, 3, 0, 3), "dim must be a positive integer"),
    (lambda: spline(2, 3, 2, 3, degree=4), "degree must be 1, 2 or 3"),
    (lambda: spline(2, 3, 2, 2, degree=2), "needs a kernel_size above it"),
    (lambda: spline(2, 3, 2, (3, 3, 3)), "kernel_size must be an integer"),
    (lambda: spline(2, 3, 2, 3, (True,)), "is_open_spline must be"),
    (lambda: spline(2, 3, 2, 3, aggr="max"), "no other splits into taps"),
    (lambda: nnconv(2, 3, 2, 4, aggr="max"), "no other splits into taps"),
    (lambda: nnconv(2, 3, 2, 0), "hidden must be a positive integer"),
    (lambda: feast(2, 3, heads=0), "heads must be a positive integer"),
    (lambda: pdn(2, 3, 0, 2), "edge_dim must be a positive integer"),
    (lambda: egc(2, 3, num_heads=2), "num_heads must divide out_channels"),
    (lambda: egc(2, 4, ("max",), num_heads=2), "aggregators are some of"),
    (lambda: pan(2, 3, -1), "filter_size must be an integer >= 0"),
    (lambda: rgat(2, 3, 2, mod="scaled"), "mod must be None"),
    (lambda: rgat(2, 3, 2, mod="f-scaled", dropout=0.5), "dropout is a probability"),
    (lambda: rgat(2, 3, 2, attention_mechanism="both"), "attention_mechanism must be"),
    (lambda: resgated(2, 0), "must be a positive integer"),
    (lambda: GConv(relational(2, 3, 2))(torch.zeros(6, 2), messy()), "labels 0 to 1, but an edge has label 2"),
    (lambda: GConv(relational(2, 3, 2))(torch.zeros(7, 2), ring()), "give the graph an edge_type"),
    (lambda: GConv(signed(2, 3, False))(torch.zeros(6, 2), messy()), "takes 4 channels in"),
    (lambda: GConv(hypergraph(2, 3))(torch.zeros(7, 2), ring()), "index of its hyperedge"),
    (lambda: GConv(spline(2, 3, 2, 3))(torch.zeros(6, 2), messy()), r"in \[0, 1\], but edge_attr reaches from -1 to 1"),
    (lambda: GConv(nnconv(2, 3, 3, 2))(torch.zeros(6, 2), messy()), "3 numbers an edge; the graph has 2"),
    (lambda: GConv(pdn(2, 3, 2, 2))(torch.zeros(7, 2), ring()), "the graph has none"),
]


@pytest.mark.parametrize("make, says", REFUSED)
def test_bad_input_is_refused(make, says):
    with pytest.raises(ValueError, match=says) as refused:
        make()
    assert str(refused.value).endswith(".")
