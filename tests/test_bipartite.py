# ruff: noqa: E501  (a table is read in lines)
"""Two sets of nodes: every law on rectangular domains, PyG's layers on pairs, and what is refused."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch_geometric import nn as pyg
from torch_geometric.data import Data, HeteroData

from gconv import Bipartite, GConv, Graph, analysis, list_operators
from gconv.domains import read_bipartite
from gconv.laplacian import adjacency
from gconv.operators import (
    agnn,
    conv2d,
    feast,
    gat,
    gatv2,
    gcn,
    gin,
    graphconv,
    le,
    lightgcn,
    mf,
    monet,
    nnconv,
    relational,
    resgated,
    rgat,
    sage,
    selection,
    signed,
    simple,
    spline,
    supergat,
    transformer,
    wl_continuous,
)  # fmt: skip
from gconv.spec import OperatorSpec, Sample, operator
from gconv.testing import LAWS, assert_close, law_compile, law_edge_cases, law_permutation, law_transforms, law_union

SLOW = (law_transforms, law_edge_cases)  # seconds in all


def _carrying(index, sizes):
    e = index.shape[1]
    attr = torch.stack([torch.linspace(0, 1, e), torch.linspace(1, 0, e) ** 2], 1).double()
    weight = torch.linspace(0.25, 1.75, e, dtype=torch.float64)
    return Bipartite(index, sizes, edge_weight=weight, edge_attr=attr, edge_type=torch.arange(e) % 3)


def wide():
    """More sources than targets, one of each without edges, a double edge, edges i -> i."""
    return _carrying(torch.tensor([[0, 1, 1, 4, 3, 2, 2, 4, 4], [0, 1, 0, 1, 2, 2, 2, 0, 0]]), (6, 4))


def tall():
    """More targets than sources, two targets without edges."""
    return _carrying(torch.tensor([[0, 1, 1, 2, 0, 0], [1, 1, 4, 3, 3, 0]]), (3, 5))


SPECS = [
    simple(), simple("mean"), simple("max"), simple("sum", "cat"), simple("mean", "sum"),
    sage(2, 3), sage(2, 3, "max"), sage(2, 3, root_weight=False), sage((2, 1), 3, "sum"),
    graphconv(2, 3), graphconv((1, 2), 2, "mean"), gcn(2, 3, normalize=False),
    gin(0.5), gin(0.5, True), wl_continuous(), le(2, 3), mf(2, 3, max_degree=2),
    relational(2, 3, 3), relational(2, 3, 3, num_bases=2), relational(2, 2, 3, num_blocks=2),
    relational(2, 3, 3, aggr="max", root_weight=False),
    nnconv(2, 3, 2, 2), monet(2, 3, 2, 2), spline(2, 3, 2, 3), spline(2, 2, 2, 3, root_weight=False),
    resgated(2, 3), feast(2, 3, 2), feast(2, 3, 2, add_self_loops=False),
    transformer(2, 3, 2), transformer((2, 1), 3, 2, concat=False), transformer(2, 2, root_weight=False),
    gat(2, 3, 2), gat(2, 3, 2, residual=True, edge_dim=2, share_weights=False),
    gat(2, 3, 2, concat=False, residual=True, add_self_loops=False),
    gatv2(2, 3, 2, residual=True, edge_dim=2), gatv2(2, 3, 2, share_weights=True, concat=False),
    agnn(), supergat(2, 3, 2), rgat(2, 3, 3, heads=2), selection(2, 3, 3), lightgcn(False), signed(2, 3, True),
    signed(1, 3, False),
]  # fmt: skip


def samples(spec):
    relabel = (
        (lambda block: replace(block, edge_type=block.edge_type % 2))
        if spec.name == "signed"
        else (lambda block: block)
    )
    return [Sample(spec, lambda make=make: relabel(make()), max(spec.sides or (2, 2))) for make in (wide, tall)]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spec", SPECS[::3], ids=repr)
def test_laws_hold_between_two_sets(spec):
    """The quick laws, on a third of the operators; all of them below."""
    for law in LAWS.values():
        if law not in SLOW:
            law(samples(spec)[SPECS.index(spec) % 2], torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_all_laws_hold_between_two_sets(spec, dtype):
    for sample in samples(spec):
        for law in LAWS.values():
            law(sample, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", [sage(2, 3), simple("max", "cat"), gat(2, 3, 2, residual=True), relational(2, 3, 3)], ids=repr
)
def test_compiled_equals_eager(spec):
    assert law_compile(samples(spec)[0], torch.float64)


@pytest.mark.parametrize(
    "spec",
    [sage(2, 3), sage(2, 3, "max"), gat(2, 3, 2), gatv2(2, 3, 2, edge_dim=2), le(2, 3), nnconv(2, 3, 2, 2)],
    ids=repr,
)
@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_empty_inputs_have_gradients(spec, sizes):
    """No sources, no targets, no edges; and no signals in the batch."""
    e = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    u = torch.zeros(0, 2, dtype=torch.float64, requires_grad=True)
    block = Bipartite(torch.zeros(2, 0, dtype=torch.int64), sizes, edge_weight=e, edge_attr=u)
    layer = GConv(spec, dtype=torch.float64)
    for batch in ((), (0,)):
        pair = [torch.randn(*batch, n, 2, dtype=torch.float64, requires_grad=True) for n in sizes]
        y = layer(tuple(pair), block)
        assert y.shape[:-1] == (*batch, sizes[1])
        grads = torch.autograd.grad(y.sum(), [*pair, *layer.parameters(), e, u], allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in grads)


# -- PyG ---------------------------------------------------------------------------------------------------------------


def rows(W):
    """(h, i, c) as torch's Linear has it, (h c, i)."""
    return W.transpose(1, 2).flatten(0, 1)


def lin(name, W):
    return {f"{name}.weight": W.t()}


def gat_weights(a, residual=True):
    h = a.spec.structure.heads
    shared = not hasattr(a, "target_weight")
    names = (
        {"lin.weight": rows(a.weight[:h])}
        if shared
        else {"lin_src.weight": rows(a.weight[:h]), "lin_dst.weight": rows(a.target_weight)}
    )
    names |= {"att_src": a.att_src[None], "att_dst": a.att_dst[None], "bias": a.bias}
    return names | ({"res.weight": rows(a.weight[h:])} if residual else {})


def gatv2_weights(a):
    h, zero = a.spec.structure.heads, torch.zeros_like(a.shift.flatten())
    return {
        "lin_l.weight": rows(a.weight[:h]), "lin_r.weight": rows(a.target_weight), "lin_l.bias": zero,
        "lin_r.bias": a.shift.flatten(), "att": a.att[None], "lin_edge.weight": rows(a.lin_edge), "bias": a.bias,
    }  # fmt: skip


def transformer_weights(a):
    h, zero = a.spec.structure.heads, torch.zeros_like(a.query_bias.flatten())
    return {
        "lin_query.weight": rows(a.query), "lin_query.bias": a.query_bias.flatten(), "lin_key.weight": rows(a.key),
        "lin_key.bias": zero, "lin_value.weight": rows(a.weight[:h]), "lin_value.bias": zero,
        "lin_skip.weight": rows(a.weight[h:]), "lin_skip.bias": a.bias,
    }  # fmt: skip


def resgated_weights(a):
    o, zero = a.spec.structure.o, torch.zeros_like(a.gate)
    return {
        "lin_key.weight": a.key, "lin_key.bias": a.gate, "lin_query.weight": a.query, "lin_query.bias": zero,
        "lin_value.weight": rows(a.weight[:o]), "lin_value.bias": zero, "lin_skip.weight": rows(a.weight[o:]), "bias": a.bias,
    }  # fmt: skip


W, U, R = "edge_weight", "edge_attr", "edge_type"
EDGES = lambda spec: torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, spec))  # noqa: E731
# (operator, PyG's layer, its parameters from ours, the edge tensor of its call, whether it takes no x_target)
PEERS = [
    (sage((2, 4), 3), lambda: pyg.SAGEConv((2, 4), 3), lambda a: lin("lin_l", a.weight[0]) | {"lin_l.bias": a.bias} | lin("lin_r", a.weight[1]), None, True),
    (sage(2, 3, "max"), lambda: pyg.SAGEConv(2, 3, "max"), lambda a: lin("lin_l", a.weight[0]) | {"lin_l.bias": a.bias} | lin("lin_r", a.weight[1]), None, True),
    (sage(2, 3, root_weight=False), lambda: pyg.SAGEConv(2, 3, root_weight=False), lambda a: lin("lin_l", a.weight[0]) | {"lin_l.bias": a.bias}, None, True),
    (graphconv((4, 2), 3), lambda: pyg.GraphConv((4, 2), 3), lambda a: lin("lin_rel", a.weight[0]) | {"lin_rel.bias": a.bias} | lin("lin_root", a.weight[1]), W, True),
    (graphconv(2, 3, "mean"), lambda: pyg.GraphConv(2, 3, "mean"), lambda a: lin("lin_rel", a.weight[0]) | {"lin_rel.bias": a.bias} | lin("lin_root", a.weight[1]), W, True),
    (gin(0.5, True), lambda: pyg.GINConv(torch.nn.Identity(), 0.5, True), lambda a: {"eps": a.eps}, None, True),
    (simple("mean", "sum"), lambda: pyg.SimpleConv("mean", "sum"), lambda a: {}, W, True),
    (simple("sum", "cat"), lambda: pyg.SimpleConv("sum", "cat"), lambda a: {}, W, False),
    (wl_continuous(), lambda: pyg.WLConvContinuous(), lambda a: {}, W, False),
    (le((2, 3), 2, bias=False), lambda: pyg.LEConv((2, 3), 2, bias=False), lambda a: lin("lin1", a.weight[0]) | lin("lin2", a.weight[1]) | lin("lin3", a.weight[2]), W, False),
    (mf((3, 2), 2, 2, bias=False), lambda: pyg.MFConv((3, 2), 2, 2, bias=False), lambda a: {k: v for n in range(6) for k, v in lin(f"lins_{'lr'[n // 3]}.{n % 3}", a.weight[n]).items()}, None, True),
    (relational((2, 4), 3, 3), lambda: pyg.RGCNConv((2, 4), 3, 3), lambda a: {"weight": a.weight[:3], "root": a.weight[3], "bias": a.bias}, R, False),
    (nnconv((2, 4), 3, 2, 3), lambda: pyg.NNConv((2, 4), 3, EDGES(6)), lambda a: {"nn.0.weight": a.w1, "nn.0.bias": a.b1, "nn.2.weight": a.weight[:3].flatten(1).t(), "nn.2.bias": a.weight[3].flatten(), "bias": a.bias} | lin("lin", a.weight[4]), U, True),
    (monet((2, 4), 3, 2, 3), lambda: pyg.GMMConv((2, 4), 3, 2, 3), lambda a: {"g": a.weight[:3].transpose(0, 1).flatten(1), "mu": a.mu, "sigma": a.sigma, "bias": a.bias} | lin("root", a.weight[3]), U, True),
    (resgated((2, 4), 3), lambda: pyg.ResGatedGraphConv((2, 4), 3), resgated_weights, None, False),
    (feast(2, 3, 2), lambda: pyg.FeaStConv(2, 3, 2), lambda a: {"lin.weight": rows(a.weight), "u.weight": a.u, "c": a.c, "bias": a.bias}, None, False),
    (transformer((2, 4), 3, 2), lambda: pyg.TransformerConv((2, 4), 3, 2), transformer_weights, None, False),
    (gat(2, 3, 2, residual=True), lambda: pyg.GATConv(2, 3, 2, residual=True), gat_weights, None, True),
    (gat((2, 4), 3, 2, share_weights=False, residual=True), lambda: pyg.GATConv((2, 4), 3, 2, residual=True), gat_weights, None, True),
    (gat((2, 4), 3, 2, share_weights=False, add_self_loops=False), lambda: pyg.GATConv((2, 4), 3, 2, add_self_loops=False), lambda a: gat_weights(a, False), None, False),
    (gatv2((2, 4), 3, 2, edge_dim=2), lambda: pyg.GATv2Conv((2, 4), 3, 2, edge_dim=2), gatv2_weights, U, False),
]  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("make", [wide, tall])
@pytest.mark.parametrize(
    ("spec", "other", "weights", "carries", "alone"),
    PEERS,
    ids=lambda p: repr(p) if isinstance(p, OperatorSpec) else "",
)
def test_pairs_equal_pyg(spec, other, weights, carries, alone, make):
    """Value, and gradients in both signals and in edge weights; and with x_target None, where PyG takes it."""
    if make is tall and (spec.name == "feast" or (carries == U and spec.name == "gatv2")):
        pytest.skip("PyG adds loops to more targets than there are sources, or counts their edges in the sources' size")
    block, (a, b) = make(), spec.sides or (2, 2)
    layer, peer = GConv(spec, dtype=torch.float64), other().double()
    if layer.bias is not None:
        torch.nn.init.uniform_(layer.bias, -1, 1)
    own = dict(peer.named_parameters())
    given = {name: w.detach() for name, w in weights(layer).items()}
    if spec.name == "monet":
        given["g"] = layer.weight[:3, : spec.sides[0]].transpose(0, 1).flatten(1).detach()
    if spec.name == "nnconv":
        given["nn.2.weight"] = layer.weight[:3, : spec.sides[0]].flatten(1).t().detach()
        given["nn.2.bias"] = layer.weight[3, : spec.sides[0]].flatten().detach()
    assert set(given) == set(own)
    for name, p in own.items():
        p.data.copy_(given[name][tuple(slice(n) for n in p.shape)])
    xs, xt = (
        torch.randn(n, c, dtype=torch.float64, requires_grad=True) for n, c in zip(block.sizes, (a, b), strict=True)
    )
    tensor = getattr(block, carries) if carries else None
    leaves = [xs, xt]
    if carries in (W, U):
        tensor = tensor.clone().requires_grad_()
        leaves.append(tensor)
        block = replace(block, **{carries: tensor})
    extra = () if carries is None else (tensor,)
    plain = block if carries else replace(block, edge_weight=None)
    got, want = layer((xs, xt), plain), peer((xs, xt), block.edge_index, *extra)
    assert_close("value", got, want, 1e-12)
    dy = torch.randn_like(want)
    grads = [
        torch.autograd.grad((y * dy).sum(), leaves, allow_unused=True, materialize_grads=True) for y in (got, want)
    ]
    for name, g, w in zip(("x_source", "x_target", carries), *grads, strict=False):
        assert_close(f"gradient in {name}", g, w, 1e-12)
    if carries is None:
        assert_close("an edge_index instead", layer((xs, xt), block.edge_index), want, 1e-12)
    else:
        assert_close("an edge_index instead", layer((xs, xt), block.edge_index, **{carries: tensor}), want, 1e-12)
    if alone:
        want = peer((xs, None), block.edge_index, *extra, size=block.sizes)
        assert_close("no x_target", layer((xs, None), plain), want, 1e-12)


# -- the domain --------------------------------------------------------------------------------------------------------


def equal(a, b):
    """The same edges, and what they carry."""
    names = ("edge_index", "edge_weight", "edge_attr", "edge_type")
    same = [getattr(a, n) is getattr(b, n) is None or torch.equal(getattr(a, n), getattr(b, n)) for n in names]
    return all(same) and (a.sizes, a.ptr, a.sites) == (b.sizes, b.ptr, b.sites)


def test_a_bipartite_is_a_value():
    block = wide()
    assert repr(block) == "Bipartite(6 sources, 4 targets, 9 edges, edge_weight, edge_attr, edge_type)"
    assert equal(pickle.loads(pickle.dumps(block)), block) and equal(copy.deepcopy(block), block)
    assert equal(pickle.loads(pickle.dumps(block.with_targets)), block.with_targets)
    assert equal(replace(block), block) and block.to("cpu") is block
    assert block.sites == (4, 6) and block.with_targets.sites == (4, 10)
    assert block.with_targets is block.with_targets is block.with_targets.with_targets
    assert block.T is block.T and equal(block.T.T, block) and block.T.sizes == (4, 6)
    assert torch.equal(block.T.in_degree(), block.out_degree()) and not block.learned
    meta = block.to("meta")
    assert meta.device.type == "meta" and meta.sizes == block.sizes and meta.edge_weight.device.type == "meta"
    index = torch.tensor([[0, 1], [1, 0]])
    made = Bipartite(index, (2, 2))
    index.zero_()
    assert made.edge_index.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(FrozenInstanceError):
        made.sizes = (3, 3)


def test_reversed_edges_are_the_transposed_adjacency():
    layer, block = GConv(gcn(1, 1, normalize=False, bias=False), dtype=torch.float64), wide()
    A, B = layer.at(block), layer.at(block.T)
    assert A.shape == (4, 6) and B.shape == (6, 4)
    assert_close("the matrix of the reverse", analysis.matrix(B), analysis.matrix(A).mT, 1e-12)


def test_parts_of_a_union_share_their_own_nodes():
    """A self-loop joins source i and target i of one part."""
    both = Bipartite.union([wide(), tall()])
    assert both.sizes == (9, 9) and both.ptr == ((0, 0), (6, 4), (9, 9))
    assert [end.tolist() for end in both.shared()] == [[0, 1, 2, 3, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6]]
    with pytest.raises(ValueError, match="Only 1 of the 2 domains have edge_weight"):
        Bipartite.union([wide(), replace(wide(), edge_weight=None)])
    with pytest.raises(ValueError, match="union of no domains"):
        Bipartite.union([])


def test_pygs_data_is_read():
    data = HeteroData()
    data["user"].x, data["item"].num_nodes = torch.zeros(6, 2), 4
    data["user", "rates", "item"].edge_index = wide().edge_index
    data["user", "rates", "item"].edge_attr = wide().edge_attr
    assert equal(Bipartite.from_pyg(data), replace(wide(), edge_weight=None, edge_type=None))
    data["item", "rev_rates", "user"].edge_index = wide().edge_index.flip(0)
    assert Bipartite.from_pyg(data, ("item", "rev_rates", "user")).sizes == (4, 6)
    with pytest.raises(ValueError, match="2 edge types"):
        Bipartite.from_pyg(data)
    with pytest.raises(ValueError, match="no edge type"):
        Bipartite.from_pyg(data, ("user", "likes", "item"))
    for pair in ({"x": (torch.zeros(6, 2), torch.zeros(4, 3))}, {"x_s": torch.zeros(6, 2), "x_t": torch.zeros(4, 3)}):
        assert Bipartite.from_pyg(Data(edge_index=wide().edge_index, **pair)).sizes == (6, 4)
    with pytest.raises(ValueError, match="no pair of node features"):
        Bipartite.from_pyg(Data(edge_index=wide().edge_index, x=torch.zeros(6, 2)))


def test_an_edge_index_is_recognised():
    layer, (xs, xt) = GConv(sage(2, 3)), (torch.randn(6, 2), torch.randn(4, 2))
    index = wide().edge_index
    y = layer((xs, xt), index)
    assert read_bipartite(index, (6, 4)) is read_bipartite(index, (6, 4))
    index[1] = (index[1] + 1) % 4  # in place
    assert not torch.allclose(layer((xs, xt), index), y)
    assert layer((xs, torch.randn(5, 2)), index).shape == (5, 3)


# -- the map, and what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [sage((2, 3), 4), transformer((3, 1), 2, 2), le((2, 5), 3)], ids=repr)
def test_a_map_between_two_sets(spec):
    """Channels that only fill the narrower signal up are no part of it."""
    block, (a, b) = wide(), spec.sides
    layer = GConv(spec, dtype=torch.float64)
    pair = torch.randn(6, a, dtype=torch.float64), torch.randn(4, b, dtype=torch.float64)
    with torch.no_grad():
        A, x = layer.at(block, x=pair), block.stack(*pair)
        assert A.sites == (4, 10) and A.i == max(a, b)
        assert_close("A x", A @ x + layer.bias, layer(pair, block), 1e-12)
        M = analysis.matrix(A)
        used = torch.zeros(10, max(a, b), dtype=torch.bool)
        used[:6, :a], used[6:, :b] = True, True
        assert not M[:, ~used.flatten()].any()
        assert_close("norm", M.new_tensor(analysis.norm(A)), torch.linalg.matrix_norm(M, 2), 1e-10)
    assert analysis.adjoint_gap(A) < 1e-12 and analysis.receptive_field(A).shape == (4, 10)
    assert (A.T @ torch.ones(4, A.o, dtype=torch.float64)).shape == (10, max(a, b))
    with pytest.raises(ValueError, match="symmetric matrix"):
        analysis.frequency_response(A)


def test_operators_that_read_sources_have_a_map_of_sources():
    A = GConv(sage(2, 3, root_weight=False)).at(tall())
    assert A.shape == (15, 6)
    x = torch.randn(3, 2)
    layer = GConv(simple())
    assert torch.equal(layer((x, torch.randn(5, 7)), tall()), layer(x, tall()))


def test_every_operator_takes_pairs_or_gives_a_reason():
    listed = {spec.name for spec in SPECS} | {"gcn2"}
    for name in list_operators():
        for sample in operator(name).samples():
            structure = sample.spec.structure
            if structure.reads is not None:
                assert name in listed
            else:
                with pytest.raises(TypeError, match=f"^{name} works on (a grid|one set of nodes, not .*: )"):
                    GConv(sample.spec)(torch.zeros(6, sample.channels), wide())
                with pytest.raises((TypeError, ValueError), match=r"in_channels|argument|\.$"):
                    operator(name).factory(**{**dict(sample.spec.arguments), "in_channels": (2, 3)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, b, s, t: f(s, b), r"takes a pair \(x_source, x_target\)"),
        (lambda f, b, s, t: f((s,), b), "but it is a tuple of 1"),
        (lambda f, b, s, t: f((t, s), b), "x_source of shape"),
        (lambda f, b, s, t: f((s, t), Graph(b.edge_index)), "a Graph was given"),
        (lambda f, b, s, t: f((s, t)), "None was given"),
        (lambda f, b, s, t: f((s, None), b.edge_index), "use a Bipartite if x_target is None"),
        (lambda f, b, s, t: f((s, t), b, edge_weight=b.edge_weight), "put it into the Bipartite"),
        (lambda f, b, s, t: f((s[:, :1], t), b), "takes 2 channels of x_source"),
        (lambda f, b, s, t: f((s, t[:, :1]), b), "takes 2 channels of x_target"),
        (lambda f, b, s, t: f((s.double(), t), b), "convert one of them"),
        (lambda f, b, s, t: f((s, "t"), b), "x_target must be a torch tensor"),
        (lambda f, b, s, t: f((None, t), b), "x_source must be a torch tensor"),
        (lambda f, b, s, t: f((s.expand(2, 6, 2), t), b), "the same batch axes"),
        (lambda f, b, s, t: GConv(sage((1, 2, 3), 2)), "two of them for sources and targets"),
        (lambda f, b, s, t: GConv(sage((1, 2), 2, root_weight=False)), "reads one signal"),
        (lambda f, b, s, t: Bipartite(b.edge_index, 6), "sizes must be two integers"),
        (lambda f, b, s, t: Bipartite(b.edge_index, (4, 6)), "names source 4"),
        (lambda f, b, s, t: Bipartite(b.edge_index, (6, -4)), "must not be negative"),
        (lambda f, b, s, t: Bipartite(b.edge_index, (6, 4), ptr=((0, 0), (6, 5))), "ptr must increase"),
        (lambda f, b, s, t: Bipartite(b.edge_index, (6, 4), edge_weight=torch.ones(2)), "one number per edge"),
        (lambda f, b, s, t: b.split(s), "has 6 \\+ 4 sites"),
        (lambda f, b, s, t: adjacency(b, torch.float32, norm="sym"), "one degree for both ends"),
        (lambda f, b, s, t: analysis.effective_resistance(b), "one set of nodes, a Graph"),
        (lambda f, b, s, t: GConv(conv2d(1, 1, 3))(torch.zeros(1, 1, 3, 3), b), "works on a grid"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(GConv(sage(2, 2)), wide(), torch.zeros(6, 2), torch.zeros(4, 2))


def test_normalisation_reads_the_degrees_of_both_sets():
    block = wide()
    A = adjacency(block, torch.float64).expand(torch.eye(6, dtype=torch.float64))[0]
    into, out = A.sum(1), A.sum(0)
    inverse = lambda d, p: torch.where(d > 0, d**-p, 0.0)  # noqa: E731
    for norm, degree, want in (
        ("row", "in", inverse(into, 1.0)[:, None] * A),
        ("col", "out", A * inverse(out, 1.0)),
        ("both", "in", inverse(into, 0.5)[:, None] * A * inverse(out, 0.5)),
    ):
        got = adjacency(block, torch.float64, norm=norm, degree=degree).expand(torch.eye(6, dtype=torch.float64))[0]
        assert_close(norm, got, want, 1e-12)


@pytest.mark.slow
def test_a_pair_compiles():
    layer, block, pair = GConv(sage((2, 3), 4)), wide(), (torch.randn(6, 2), torch.randn(4, 3))
    want = layer(pair, block)
    assert_close("compiled", torch.compile(layer, fullgraph=True, backend="eager")(pair, block), want, 1e-6)


def test_dropout_leaves_what_a_node_reads_of_itself():
    layer = GConv(gat(2, 3, residual=True, dropout=0.999999, bias=False))
    pair = torch.randn(6, 2), torch.randn(4, 2)
    assert_close("all edges dropped", layer(pair, wide()), pair[1] @ layer.weight[1], 1e-6)


@pytest.mark.parametrize("spec", [sage(2, 3), le(2, 3), gat(2, 3, 2, add_self_loops=False), resgated(2, 3)], ids=repr)
def test_sources_and_targets_are_permuted_separately(spec):
    """Where no loop joins the two sets, each has an order of its own."""
    layer, block, (source, target) = GConv(spec, dtype=torch.float64), wide(), (torch.randperm(6), torch.randperm(4))
    xs, xt = torch.randn(2, 6, 2, dtype=torch.float64), torch.randn(2, 4, 2, dtype=torch.float64)
    moved = torch.empty_like(xs).index_copy(1, source, xs), torch.empty_like(xt).index_copy(1, target, xt)
    y = layer(moved, block.permute(source, target))
    assert_close("renamed", y[:, target], layer((xs, xt), block), 1e-12)


def test_control_loops_between_parts_break_the_law_of_unions(monkeypatch):
    sample = Sample(gat(2, 3), wide, 2)
    assert law_union(sample, torch.float64)
    joined = lambda self: (torch.arange(min(self.sizes)),) * 2  # noqa: E731  (as if there were one part)
    monkeypatch.setattr(Bipartite, "shared", joined)
    with pytest.raises(AssertionError, match="on the union"):
        law_union(sample, torch.float64)


def test_control_targets_read_at_the_wrong_rows_break_the_law_of_permutation(monkeypatch):
    sample = Sample(feast(2, 3, 2, add_self_loops=False), wide, 2)
    assert law_permutation(sample, torch.float64)
    monkeypatch.setattr(Bipartite, "at_targets", lambda self, x, axis=-2: x.narrow(axis, 1, self.sizes[1]))
    with pytest.raises(AssertionError, match="renamed"):
        law_permutation(sample, torch.float64)


def test_permutations_are_checked():
    block = Bipartite(torch.tensor([[0, 1, 2], [0, 0, 1]]), (3, 2))
    moved = block.permute(torch.tensor([2, 0, 1], dtype=torch.int32), torch.tensor([1, 0]))
    assert moved.edge_index.tolist() == [[2, 0, 1], [1, 1, 0]]
    for source, kind, message in (
        ([2, 0, 1], TypeError, "torch.as_tensor converts lists"),
        (torch.tensor([True, False, True]), TypeError, "source must be a vector of node indices"),
        (torch.tensor([0, 0, 1]), ValueError, "source must contain each of the node indices 0 to 2 once"),
    ):
        with pytest.raises(kind, match=message):
            block.permute(source, torch.tensor([1, 0]))


CHAIN = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Bipartite(CHAIN, (5, 5), ptr=(1, 2)), "ptr must be pairs of integers"),
        (lambda: Bipartite(CHAIN, (5, 5), ptr=((0, 0), (2.5, 3), (5, 5))), "ptr must be pairs of integers"),
        (lambda: Bipartite.union([Graph(CHAIN, 5)]), "Bipartite.union takes Bipartites"),
        (lambda: Bipartite.from_pyg(None), "Bipartite.from_pyg takes a HeteroData or Data"),
        (lambda: Bipartite.from_pyg({"edge_index": CHAIN}), "Bipartite.from_pyg takes a HeteroData or Data"),
    ],
)
def test_arguments_of_a_bipartite(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_edge_types_of_a_bipartite_are_triples():
    data = pytest.importorskip("torch_geometric.data").HeteroData()
    data["a"].x = data["b"].x = torch.ones(5, 3)
    data["a", "to", "b"].edge_index = CHAIN
    for wrong in ("to", 5, ("a", "b")):
        with pytest.raises(TypeError, match="edge_type must be"):
            Bipartite.from_pyg(data, wrong)
    assert Bipartite.from_pyg(data, ("a", "to", "b")).sizes == (5, 5)
